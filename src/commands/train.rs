//! `ganvae train`: a new run, or one that goes on.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::print;
use crate::base::setting::Settings;
use crate::base::usage::usage;
use crate::config::flags::Flags;
use crate::config::{self, file};
use crate::models::ModelKind;
use crate::train::{self, Outcome};

/// `ganvae train`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct Train {
    /// What to train
    #[arg(value_enum, value_name = "vae|gan", required_unless_present_any = ["resume", "config"])]
    pub model: Option<ModelKind>,
    /// Go on with a run where it stands; flags may change how far it goes (--epochs, --steps), where (--device, --threads, --data)
    /// and what it writes (--keep, --log-every and so on)
    #[arg(long, value_name = "RUN", conflicts_with = "config")]
    pub resume: Option<PathBuf>,
    /// Settings in TOML, the keys as the flags; flags win over the file, the file over the preset
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Show the resolved settings as TOML and end
    #[arg(long)]
    pub print_config: bool,
    /// What is set by flags.
    #[command(flatten)]
    pub flags: Flags<true>,
}

impl Train {
    pub(super) fn run(&self) -> Result<u8> {
        let outcome = match &self.resume {
            Some(root) if self.print_config => usage!(
                "--print-config shows what a new run would have; a run's own settings are in {}/config.toml",
                root.display()
            ),
            Some(root) => train::resume(root, self.model, &self.flags.0)?,
            None => {
                let (model, given) = self.asked()?;
                let config = config::resolve(model, &given)?;
                if self.print_config {
                    print(&config.to_toml())?;
                    return Ok(0);
                }
                train::train(&config)?
            }
        };
        Ok(match outcome {
            Outcome::Done(summary) => {
                print(&summary)?;
                0
            }
            Outcome::Stopped(signal) => 128 + signal,
        })
    }

    /// The model and the settings of config file and flags together.
    fn asked(&self) -> Result<(ModelKind, Settings)> {
        let (from_file, file) = match &self.config {
            Some(path) => file::read(path)?,
            None => (None, Settings::default()),
        };
        let model = match (self.model, from_file) {
            (Some(asked), Some(other)) if asked != other => {
                usage!("--config is of a {other}, and `train {asked}` was asked for: leave one of the two out")
            }
            (Some(model), _) | (None, Some(model)) => model,
            (None, None) => {
                usage!("train what? Say `train vae` or `train gan`, or put model = \"vae\" into the file of --config")
            }
        };
        Ok((model, file.overlaid(&self.flags.0)))
    }
}
