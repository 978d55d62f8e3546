//! Arguments that several commands have.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::base::usage::usage;
use crate::config::flags::escaped_text;
use crate::data::images::{Images, Source};
use crate::run::checkpoint::Selection;
use crate::run::trained::{Trained, default_place};

/// A trained model and its device.
#[derive(Debug, Args)]
pub struct TrainedModel {
    /// A run's folder, or exported modules: the folder with decoder.pt or generator.pt, or such a file
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    #[command(flatten)]
    pub checkpoint: CheckpointChoice,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// Which of a run's checkpoints is read.
#[derive(Debug, Args)]
pub struct CheckpointChoice {
    /// The run's checkpoint: latest, best (the lowest held-out loss of a VAE) or the number of its step
    #[arg(long = "checkpoint", value_name = "best|latest|STEP", default_value = "latest", hide_default_value = true)]
    pub selection: Selection,
}

impl CheckpointChoice {
    /// `name` of what is made of the latest checkpoint; of another one, `name` with that one's name after it.
    pub fn named(&self, name: &str) -> String {
        match self.selection {
            Selection::Latest => name.to_owned(),
            Selection::Best => format!("{name}-best"),
            Selection::Step(step) => format!("{name}-step-{step}"),
        }
    }
}

impl TrainedModel {
    pub fn open(&self) -> Result<Trained> {
        Trained::open_checkpoint(&self.run, self.checkpoint.selection, &self.device)
    }

    /// Where a command writes `name` without --out ([`default_place`]); the name of another checkpoint than the latest goes into it.
    pub fn default_place(&self, folder: &str, name: &str) -> PathBuf {
        let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
        default_place(&self.run, folder, &format!("{}.{extension}", self.checkpoint.named(stem)))
    }

    pub fn open_with_encoder(&self) -> Result<Trained> {
        let trained = self.open()?;
        trained.check_encoder()?;
        Ok(trained)
    }
}

/// Real images.
#[derive(Debug, Args)]
pub struct RealImages {
    /// Images as `train --data` names them; pictures of a folder are brought to the model's size [default: the run's]
    #[arg(long, value_name = "SPEC", value_parser = escaped_text())]
    pub data: Option<String>,
    /// Where named sets are kept [default: the run's, $GANVAE_DATA or the user's cache]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The images that were trained on, or the held-out ones
    #[arg(long, value_enum, default_value_t = SplitChoice::Test)]
    pub split: SplitChoice,
}

impl RealImages {
    /// The data set, in the shape of the model's images.
    pub fn source(&self, trained: &Trained) -> Result<Source> {
        trained.source(self.data.as_deref(), self.data_dir.as_deref())
    }
}

/// Which half of a data set.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SplitChoice {
    /// The images that are trained on.
    Train,
    /// The held-out images.
    Test,
}

impl SplitChoice {
    /// The images of this half.
    pub fn of(self, source: &Source) -> &Images {
        match self {
            SplitChoice::Train => &source.train,
            SplitChoice::Test => &source.test,
        }
    }
}

/// Refuses a value of `--flag` outside `range`, with a [`crate::base::usage::Usage`] error.
pub fn check_range<T: Display + PartialOrd>(flag: &str, value: T, range: RangeInclusive<T>) -> Result<()> {
    if !range.contains(&value) {
        usage!("--{flag} {value}: wanted a number from {} to {}", range.start(), range.end());
    }
    Ok(())
}
