//! Settings as command-line flags: generates clap's arguments and both pages of help from the declarations and the presets.

use std::marker::PhantomData;

use clap::builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches};
use toml::Value;

use super::training::PRESET;
use super::{all_settings, presets};
use crate::base::names::escaped;
use crate::base::setting::{AnySetting, Group, Settings, text_of};
use crate::data;
use crate::models::ModelKind;

/// Settings given as flags; `OF_A_RUN`: whether settings of a run's folder and length are accepted.
#[derive(Clone, Debug)]
pub struct Flags<const OF_A_RUN: bool>(pub Settings);

/// Reads any argument as [`escaped`] text, as the settings of paths are.
pub fn escaped_text() -> impl TypedValueParser<Value = String> {
    OsStringValueParser::new().map(escaped)
}

/// The settings on the short page of help (`-h`), which a first run may need, with a text for one line of 80 columns.
const SHORT_PAGE: [(&str, &str); 15] = [
    ("preset", "Such as conv-vae, dcgan, small; auto: by the images"),
    ("latent", "Size of the latent vector z"),
    ("lr", "Adam's learning rate"),
    ("epochs", "Passes over the training images"),
    ("steps", "Updates, instead of --epochs"),
    ("batch-size", "Images per update"),
    ("seed", "Seed of all random numbers"),
    ("init-from", "Start with the weights of a run, export or file"),
    ("device", "auto, cpu, cuda or cuda:N"),
    ("data", "digits, mnist, ... or a path"),
    ("image-size", "Resize images, such as 64 or 48x64"),
    ("train-limit", "Use only N training images"),
    ("out", "The run's folder [default: a new one in runs/]"),
    ("checkpoint-every", "Steps between checkpoints [default: an epoch]"),
    ("sample-every", "Epochs between sample grids"),
];

/// The default of a setting, and of each preset with another one: `[0.9 (Kingma and Ba 2015), dcgan 0.5]`.
fn defaults(setting: &dyn AnySetting, presets: &[(&str, ModelKind, Settings)]) -> Vec<String> {
    let info = setting.info();
    let default = info.default.and_then(|(text, _)| setting.check(&Value::String(text.into())).ok());
    let mut all: Vec<_> = info.default.iter().map(|(value, reason)| format!("{value} ({reason})")).collect();
    for (name, model, settings) in presets.iter().filter(|_| info.name != PRESET.name()) {
        let Some(value) = settings.value(info.name).filter(|value| Some(*value) != default.as_ref()) else { continue };
        let differs = |other: &Settings| other.value(info.name).is_some_and(|v| v != value);
        let of = match presets.iter().any(|(other, _, settings)| other == name && differs(settings)) {
            true => format!(" {}", model.to_string().to_uppercase()),
            false => String::new(),
        };
        let text = format!("{name}{of} {}", text_of(value).unwrap_or_default());
        if !all.contains(&text) {
            all.push(text);
        }
    }
    all
}

fn argument(heading: &'static str, setting: &'static dyn AnySetting, presets: &[(&str, ModelKind, Settings)]) -> Arg {
    let info = setting.info();
    let (defaults, mut long) = (defaults(setting, presets), info.help.to_owned());
    for (what, text) in [("value", setting.range()), ("default", defaults.join("; "))] {
        if !text.is_empty() {
            long.push_str(&format!("\n[{what}: {text}]"));
        }
    }
    let mut arg = Arg::new(info.name).long(info.name).long_help(long).help_heading(heading).value_name(info.value_name);
    arg = match SHORT_PAGE.iter().find(|(name, _)| *name == info.name) {
        Some((_, short)) => arg.help(match info.default {
            Some((value, _)) => format!("{short} [default: {value}]"),
            None if !defaults.is_empty()
                && presets.iter().all(|(.., settings)| settings.value(info.name).is_some()) =>
            {
                format!("{short} [default: the preset's]")
            }
            // Some presets at the most have one: the long page says which.
            None => (*short).to_owned(),
        }),
        None => arg.hide_short_help(true),
    };
    if let Some(other) = info.in_place_of {
        arg = arg.conflicts_with(other);
    }
    if info.switch {
        arg = arg.num_args(0..=1).require_equals(true).default_missing_value("true");
    }
    match setting.choices() {
        choices if choices.is_empty() => arg.value_parser(escaped_text()),
        choices => arg.value_parser(PossibleValuesParser::new(choices)),
    }
}

impl<const OF_A_RUN: bool> Args for Flags<OF_A_RUN> {
    fn augment_args(command: Command) -> Command {
        // Of files in the binary, which the tests read.
        let presets = presets::all().unwrap_or_default();
        let name = command.get_name().to_owned();
        let command = all_settings().into_iter().fold(command, |command, (heading, setting)| {
            command.arg(argument(heading, setting, &presets).hide(setting.info().of_a_run && !OF_A_RUN))
        });
        command
            .after_help(format!("All options with units, ranges and presets' defaults: ganvae {name} --help"))
            .after_long_help("The word in <> is the unit of a number; NUMBER, DECAY and NORM have none. The keys of a --config file are the names of the flags.")
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const OF_A_RUN: bool> FromArgMatches for Flags<OF_A_RUN> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let all: Vec<_> = all_settings().into_iter().map(|(_, setting)| setting).collect();
        for info in all.iter().map(|s| s.info()).filter(|info| info.of_a_run && !OF_A_RUN) {
            if matches.contains_id(info.name) {
                let text =
                    format!("--{} is a setting of a run, and this command makes no run: leave it out", info.name);
                return Err(Error::raw(ErrorKind::ValueValidation, text));
            }
        }
        given(matches, &all).map(Flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0 = self.0.overlaid(&Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}

/// The values of the flags of these settings.
fn given(matches: &ArgMatches, all: &[&'static dyn AnySetting]) -> Result<Settings, Error> {
    let mut settings = Settings::default();
    for setting in all {
        let name = setting.info().name;
        let Some(text) = matches.get_one::<String>(name) else { continue };
        let set = settings.set(*setting, &Value::String(text.clone()));
        set.map_err(|wanted| Error::raw(ErrorKind::ValueValidation, format!("--{name} {text}: wanted {wanted}")))?;
    }
    Ok(settings)
}

/// A group of settings that a command takes as flags.
pub trait FlagGroup {
    /// The group.
    const GROUP: &'static Group;
    /// Names of settings in it that the command does not take.
    const LEFT_OUT: &'static [&'static str] = &[];
    /// Other names of flags: the setting's, and the other.
    const ALIASES: &'static [(&'static str, &'static str)] = &[];

    /// The settings that it takes.
    fn settings() -> Vec<&'static dyn AnySetting> {
        Self::GROUP.settings.iter().copied().filter(|s| !Self::LEFT_OUT.contains(&s.info().name)).collect()
    }
}

/// The settings of a group as flags.
#[derive(Clone, Debug)]
pub struct GroupFlags<G>(pub Settings, PhantomData<G>);

/// The settings of a data set, but for its name.
#[derive(Clone, Debug)]
pub struct OfData;

impl FlagGroup for OfData {
    const GROUP: &'static Group = &data::SETTINGS;
    const LEFT_OUT: &'static [&'static str] = &["data", "hflip"];
}

impl<G: FlagGroup> Args for GroupFlags<G> {
    fn augment_args(command: Command) -> Command {
        let argument = |setting: &'static dyn AnySetting| {
            let aliases = G::ALIASES.iter().filter(|(name, _)| *name == setting.info().name).map(|(_, alias)| *alias);
            argument(G::GROUP.heading, setting, &[]).hide_short_help(false).visible_aliases(aliases)
        };
        command.args(G::settings().into_iter().map(argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<G: FlagGroup> FromArgMatches for GroupFlags<G> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        given(matches, &G::settings()).map(|settings| GroupFlags(settings, PhantomData))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0 = self.0.overlaid(&Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}
