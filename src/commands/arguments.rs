//! Arguments that several commands have.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::base::atomic_file;
use crate::base::names::unescaped;
use crate::base::usage::usage;
use crate::config::flags::escaped_text;
use crate::data::images::Images;
use crate::data::path_of;
use crate::run::checkpoint::Selection;
use crate::run::folder::ignore_missing;
use crate::run::trained::{Trained, default_place};

/// A trained model and its device.
#[derive(Debug, Args)]
pub struct TrainedModel {
    /// A run's folder, a folder of exports (with decoder.pt or generator.pt), or one exported .pt file
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    #[command(flatten)]
    pub checkpoint: CheckpointChoice,
    /// Device: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// The number of the class that `--class` names; none without the flag.
///
/// # Errors
/// [`crate::base::usage::Usage`] for a class that there is not, and for a model that is not conditional.
pub fn class_number(trained: &Trained, class: Option<&str>) -> Result<Option<i64>> {
    let Some(class) = class else { return Ok(None) };
    let Some(classes) = trained.classes() else {
        usage!(
            "--class {class}: the model is not conditional, and makes no images of a class: leave it out, or train with --conditional"
        );
    };
    classes.number("--class", class).map(Some)
}

/// Which of a run's checkpoints is read.
#[derive(Debug, Args)]
pub struct CheckpointChoice {
    /// Checkpoint of the run: latest (the default), best (by --score, else a VAE's lowest held-out loss) or the number of a step
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

    /// Opens one that gives latents of images.
    pub fn open_to_encode(&self) -> Result<Trained> {
        let trained = self.open()?;
        trained.check_latents()?;
        Ok(trained)
    }
}

/// Real images.
#[derive(Debug, Args)]
pub struct RealImages {
    /// Images as `train --data` names them, or some pictures: all of them are used, fitted to the model's size [default: the run's]
    #[arg(long, value_name = "SPEC", value_parser = escaped_text(), num_args = 1..)]
    pub data: Vec<String>,
    /// Folder of the named data sets [default: the run's, $GANVAE_DATA or the user's cache]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The images that were trained on, the held-out ones, or all [default: test; all of a folder or
    /// file that the run was not trained on]
    #[arg(long, value_enum)]
    pub split: Option<SplitChoice>,
}

impl RealImages {
    /// The images, in the shape of the model's.
    pub fn images(&self, trained: &Trained) -> Result<Images> {
        let spec = match &self.data[..] {
            [] => None,
            [spec] => Some(spec.as_str()),
            many => {
                if self.split.is_some() {
                    usage!("--split is for one data set, found {} names after --data: leave it out", many.len());
                }
                return trained.pictures(&many.iter().map(|path| unescaped(path)).collect::<Vec<_>>());
            }
        };
        let whole = spec.is_some_and(|spec| path_of(spec).is_some()) && !trained.is_own_data(spec);
        let default = if whole { SplitChoice::All } else { SplitChoice::Test };
        let split = self.split.unwrap_or(default);
        let source = trained.source(spec, self.data_dir.as_deref(), split == SplitChoice::All)?;
        Ok(if split == SplitChoice::Test { source.test } else { source.train })
    }

    /// What is written into names of files: nothing for the run's own images.
    pub fn label(&self) -> String {
        self.data.first().map_or_else(String::new, |data| {
            format!("-{}", Path::new(data).file_name().unwrap_or_default().to_string_lossy().replace(':', "-"))
        })
    }
}

/// Writes the names of the pictures beside what was made of them, a row each: `row,file,class`. For images that are of no files, a file
/// of that name from before is removed. Gives its path if it was written.
pub fn write_names(images: &Images, rows: impl Iterator<Item = usize>, out: &Path) -> Result<Option<PathBuf>> {
    let path = out.with_extension("csv");
    if images.names.is_empty() {
        ignore_missing(std::fs::remove_file(&path))
            .with_context(|| format!("{}, of other images, could not be removed", path.display()))?;
        return Ok(None);
    }
    let mut text = String::from("row,file,class\n");
    for (row, i) in rows.enumerate() {
        let class = images.labels.get(i).map_or_else(String::new, u32::to_string);
        // Names are quoted as in RFC 4180.
        text.push_str(&format!("{row},\"{}\",{class}\n", images.names[i].replace('"', "\"\"")));
    }
    atomic_file::write(&path, text.as_bytes())?;
    Ok(Some(path))
}

/// Which images of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SplitChoice {
    /// The images that are trained on.
    Train,
    /// The held-out images.
    Test,
    /// Both.
    All,
}

/// Refuses a value of `--flag` outside `range`, with a [`crate::base::usage::Usage`] error.
pub fn check_range<T: Display + PartialOrd>(flag: &str, value: T, range: RangeInclusive<T>) -> Result<()> {
    if !range.contains(&value) {
        usage!("--{flag} {value}: wanted a number from {} to {}", range.start(), range.end());
    }
    Ok(())
}

/// Refuses a file of `--flag` that ends in none of `endings` (in lower case, without the dot), with a [`crate::base::usage::Usage`] error.
pub fn check_ending(flag: &str, file: &Path, endings: &[&str]) -> Result<()> {
    let ends_in = |ending: &&str| file.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending));
    if !endings.iter().any(ends_in) {
        usage!("--{flag} {}: wanted a .{}", file.display(), endings.join(" or a ."));
    }
    Ok(())
}
