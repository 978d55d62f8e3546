//! Config files: TOML with the names of the flags as keys.

use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use toml::{Table, Value};

use super::all_settings;
use crate::base::setting::{AnySetting, Settings, choice_names};
use crate::base::small_file;
use crate::base::usage::{nearest, one_line, usage};
use crate::models::ModelKind;

/// The model and the settings in the text of a config file; ignores the table `[run]`, which runs add.
///
/// # Errors
/// Bad TOML, an unknown key (naming the nearest known one) or an invalid value, with file and line or key.
pub fn parse(text: &str, file: &Path) -> Result<(Option<ModelKind>, Settings)> {
    let file = file.display();
    let mut table: Table = match toml::from_str(text) {
        Ok(table) => table,
        Err(e) => {
            let line = e.span().map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
            usage!("{file}, line {line}: {}", one_line(e.message()))
        }
    };
    table.remove("run");
    let model = match table.remove("model") {
        None => None,
        Some(value) => match value.as_str().map(|name| ModelKind::from_str(name, false)) {
            Some(Ok(model)) => Some(model),
            _ => usage!("{file}: model = {}: wanted {}", shown(&value), choice_names::<ModelKind>()),
        },
    };
    let known: Vec<&'static dyn AnySetting> = all_settings().into_iter().map(|(_, setting)| setting).collect();
    for info in known.iter().map(|setting| setting.info()) {
        if let Some(other) =
            info.in_place_of.filter(|other| table.contains_key(info.name) && table.contains_key(*other))
        {
            usage!("{file}: {} and {other} set the same thing: keep one of the two", info.name);
        }
    }
    let mut settings = Settings::default();
    for (key, value) in &table {
        let Some(setting) = known.iter().find(|s| s.info().name == key) else {
            match nearest(&key.replace('_', "-"), known.iter().map(|s| s.info().name)) {
                Some(name) => usage!("{file}: unknown key '{key}': did you mean '{name}'?"),
                None => usage!(
                    "{file}: unknown key '{key}': `ganvae train --help` lists the keys (they are the flags' names)"
                ),
            }
        };
        if let Err(wanted) = settings.set(*setting, value) {
            usage!("{file}: {key} = {}: wanted {wanted}", shown(value));
        }
    }
    Ok((model, settings))
}

/// [`parse`] of a file.
///
/// # Errors
/// As [`parse`], and when the file cannot be read.
pub fn read(file: &Path) -> Result<(Option<ModelKind>, Settings)> {
    match small_file::read_text(file) {
        Ok(text) => parse(&text, file),
        Err(e) => usage!("--config {e:#}"),
    }
}

/// A value in one line.
fn shown(value: &Value) -> String {
    one_line(&value.to_string())
}
