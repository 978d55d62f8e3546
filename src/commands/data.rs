//! `ganvae data`: describes a data set.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use toml::Value;

use super::print;
use crate::base::names::printable;
use crate::base::setting::{AnySetting, Settings};
use crate::base::usage::usage;
use crate::config::flags::escaped_text;
use crate::data::{self, CHANNELS, DATA, DATA_DIR, IMAGE_SIZE, describe};

#[derive(Debug, Args)]
pub(super) struct Data {
    /// digits, mnist, fashion-mnist, kmnist, or a folder: IDX files, images, CIFAR-10 binaries
    #[arg(value_name = "SPEC", value_parser = escaped_text())]
    spec: String,
    /// Where the preview goes
    #[arg(long, value_name = "FILE.png")]
    out: Option<PathBuf>,
    /// Where named sets are kept [default: $GANVAE_DATA or the user's cache]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Resize pictures of a folder: HEIGHTxWIDTH, or one number for both
    #[arg(long, value_name = "HxW")]
    image_size: Option<String>,
    /// Force pictures of a folder to grey (1) or colour (3)
    #[arg(long, value_name = "1|3")]
    channels: Option<String>,
}

impl Data {
    pub(super) fn run(&self) -> Result<u8> {
        if let Some(out) = self.out.as_ref().filter(|o| o.extension().is_none_or(|e| !e.eq_ignore_ascii_case("png"))) {
            usage!("--out {}: wanted a .png", out.display());
        }
        let mut settings =
            Settings::default().with(&DATA, self.spec.clone()).with_some(&DATA_DIR, self.data_dir.clone());
        let shapes: [(&'static dyn AnySetting, _); 2] = [(&IMAGE_SIZE, &self.image_size), (&CHANNELS, &self.channels)];
        for (setting, text) in shapes {
            let Some(text) = text else { continue };
            if let Err(wanted) = settings.set(setting, &Value::String(text.clone())) {
                usage!("--{} {text}: wanted {wanted}", setting.info().name);
            }
        }
        let source = data::open(&settings)?;
        let mut text = describe::describe(&source);
        if let Some(out) = &self.out {
            describe::preview(&source, out)?;
            text.push_str(&format!("preview   {}\n", printable(out)));
        }
        print(&text)
    }
}
