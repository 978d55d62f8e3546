//! `ganvae train`: starts or resumes a run.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::arguments::check_ending;
use super::print;
use crate::base::setting::Settings;
use crate::base::usage::usage;
use crate::config::flags::Flags;
use crate::config::{self, file};
use crate::models::ModelKind;
use crate::train::{self, Outcome};

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct Train {
    /// Model to train
    #[arg(value_enum, value_name = "vae|gan", required_unless_present_any = ["resume", "config"])]
    model: Option<ModelKind>,
    /// Go on with a run
    ///
    /// Flags may change its length (--epochs, --steps), where it computes and reads (--device, --threads, --data) and what it writes
    /// (--keep, --log-every and so on).
    #[arg(long, value_name = "RUN", conflicts_with = "config")]
    resume: Option<PathBuf>,
    /// Read settings from a TOML file; flags override it
    ///
    /// The keys of the file are the names of the flags. The file overrides the preset.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the resolved settings as TOML and exit
    #[arg(long)]
    print_config: bool,
    /// Draw training images as the discriminator sees them with --augment, and exit
    ///
    /// Each row of the grid begins with a training image; seven augmented versions of it follow.
    #[arg(long, value_name = "FILE.png", hide_short_help = true, conflicts_with = "resume")]
    augment_preview: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags<true>,
}

impl Train {
    pub(super) fn run(&self) -> Result<u8> {
        let outcome = match &self.resume {
            Some(root) if self.print_config => {
                let root = root.display();
                usage!("--print-config shows the settings of a new run; those of this run are in {root}/config.toml")
            }
            Some(root) => train::resume(root, self.model, &self.flags.0)?,
            None => {
                let (model, given) = self.model_and_settings()?;
                let config = config::resolve(model, &given)?;
                if self.print_config {
                    return print(&config.to_toml());
                }
                if let Some(file) = &self.augment_preview {
                    check_ending("augment-preview", file, &["png"])?;
                    return print(&train::augment_preview(&config, file)?);
                }
                train::train(&config)?
            }
        };
        match outcome {
            Outcome::Done(summary) => print(&summary),
            Outcome::Stopped(signal) => Ok(128 + signal),
        }
    }

    /// The model and the settings of config file and flags together.
    fn model_and_settings(&self) -> Result<(ModelKind, Settings)> {
        let (from_file, file) = match &self.config {
            Some(path) => file::read(path)?,
            None => (None, Settings::default()),
        };
        if let (Some(asked), Some(other)) = (self.model, from_file)
            && asked != other
        {
            usage!("--config is of a {other}, and `train {asked}` was asked for: leave one of the two out");
        }
        let Some(model) = self.model.or(from_file) else {
            usage!(
                "the model is missing: use `train vae` or `train gan`, or put model = \"vae\" into the file of --config"
            );
        };
        Ok((model, file.overlaid(&self.flags.0)))
    }
}
