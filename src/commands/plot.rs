//! `ganvae plot`: draws loss curves, a scatter plot of the latents, or the training animation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;

use super::arguments::{CheckpointChoice, TrainedModel, check_ending};
use super::latent_plane::{self, Projection};
use super::print_path;
use crate::base::names::printable;
use crate::base::usage::usage;
use crate::config::{self, flags::escaped_text};
use crate::pictures::animation;
use crate::pictures::curves::{self, Metrics};
use crate::run::checkpoint::Selection;
use crate::run::folder::RunDir;

/// Settings named in the legend of several runs.
const SHOWN_DIFFERENCES: usize = 3;

#[derive(Debug, Args)]
pub(super) struct PlotCommand {
    /// Folders of runs
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// Draw a VAE's latents of held-out images in two dimensions, coloured by class
    #[arg(long, conflicts_with = "progress")]
    latent: bool,
    /// Draw the run's sample grids as an animation (.gif)
    #[arg(long)]
    progress: bool,
    /// File: a .png or .svg, or a .gif with --progress [default: in the run loss.png, latent.png or samples/progress.gif; for several
    /// runs curves.png]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// --latent: show the two dimensions of largest variance (active) or the principal components (pca)
    #[arg(long, value_enum, value_name = "HOW", requires = "latent")]
    projection: Option<Projection>,
    /// --latent: data set, instead of the run's
    #[arg(long, value_name = "SPEC", value_parser = escaped_text(), requires = "latent")]
    data: Option<String>,
    /// --latent: folder of the named data sets [default: the run's, $GANVAE_DATA or the user's cache]
    #[arg(long, value_name = "DIR", requires = "latent")]
    data_dir: Option<PathBuf>,
    /// --latent: best, latest or the number of a step, as in `ganvae sample` [default: latest]
    #[arg(long, value_name = "best|latest|STEP", requires = "latent")]
    checkpoint: Option<Selection>,
    /// --latent: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long, requires = "latent")]
    device: Option<String>,
}

impl PlotCommand {
    pub(super) fn run(&self) -> Result<u8> {
        if self.latent || self.progress {
            let [root] = self.runs.as_slice() else {
                let flag = if self.latent { "latent" } else { "progress" };
                usage!("--{flag} draws one run, but {} were given: name one", self.runs.len());
            };
            return if self.latent { self.latents(root) } else { self.animation(root) };
        }
        let mut all = Vec::new();
        for (root, differs) in self.runs.iter().zip(differences(&self.runs)) {
            let run = RunDir::open(root)?;
            all.push((format!("{}{differs}", name_of(root)), Metrics::read(run.root())?));
        }
        let out = match (&self.out, self.runs.as_slice()) {
            (Some(out), _) => out.clone(),
            (None, [one]) => one.join("loss.png"),
            (None, _) => PathBuf::from("curves.png"),
        };
        curves::draw_runs(&all, &out)?;
        print_path(&out)
    }

    fn latents(&self, root: &Path) -> Result<u8> {
        let of = TrainedModel {
            run: root.to_owned(),
            checkpoint: CheckpointChoice { selection: self.checkpoint.unwrap_or_default() },
            device: self.device.clone().unwrap_or_else(|| "auto".into()),
        };
        let out = self.out.clone().unwrap_or_else(|| of.default_place("", "latent.png"));
        check_ending("out", &out, &["png", "svg"])?;
        let trained = of.open()?;
        trained.check_encoder()?;
        if trained.latent() < 2 {
            usage!("{} has a latent of one dimension, and --latent needs two or more", root.display());
        }
        let source = trained.source(self.data.as_deref(), self.data_dir.as_deref(), false)?;
        let projection = self.projection.unwrap_or(Projection::Active);
        latent_plane::draw(&trained, source, projection, (&name_of(root), &out))?;
        print_path(&out)
    }

    fn animation(&self, root: &Path) -> Result<u8> {
        let run = RunDir::open(root)?;
        let (model, settings, info) = run.config()?;
        let out = self.out.clone().unwrap_or_else(|| run.samples().join("progress.gif"));
        check_ending("out", &out, &["gif"])?;
        let per_epoch = config::resolve(model, &settings)?.steps_per_epoch(info.train_images);
        if !animation::draw_training(&run.samples(), per_epoch, &out)? {
            bail!(
                "{} has fewer than two sample grids, and an animation needs two or more: train longer with `ganvae train --resume {}`",
                run.samples().display(),
                run.shell_quoted()
            );
        }
        print_path(&out)
    }
}

/// What differs between the settings of these runs, for each run: `: beta 4, lr 0.001`; nothing for runs that are alike.
fn differences(roots: &[PathBuf]) -> Vec<String> {
    let settings = |root: &PathBuf| -> Result<BTreeMap<String, String>> {
        let (model, settings, info) = RunDir::open(root)?.config()?;
        let mut all = config::resolve(model, &settings)?.fixed()?;
        all.insert("data checksum".into(), format!("{:.8}", info.data_sha256));
        Ok(all)
    };
    // Runs of other versions can be drawn, but their settings are not known here: the legend has their names alone.
    let each: Vec<_> = match roots.iter().map(settings).collect::<Result<_>>() {
        Ok(all) if roots.len() > 1 => all,
        _ => return vec![String::new(); roots.len()],
    };
    let value = |run: &BTreeMap<String, String>, key: &str| run.get(key).map_or("none".into(), |v| v.replace('"', ""));
    let differ = |key: &&String| each.iter().any(|run| value(run, key) != value(&each[0], key));
    let mut keys: Vec<&String> =
        each.iter().flat_map(BTreeMap::keys).collect::<BTreeSet<_>>().into_iter().filter(differ).collect();
    // A preset decides most of the others; other data have another checksum.
    keys.sort_by_key(|key| ["preset", "data"].iter().position(|first| first == key).unwrap_or(2));
    let other_data = keys.iter().any(|key| *key == "data");
    keys.retain(|key| !other_data || *key != "data checksum");
    let more = keys.len().saturating_sub(SHOWN_DIFFERENCES);
    keys.truncate(SHOWN_DIFFERENCES);
    let text = |run| {
        let list: Vec<String> = keys.iter().map(|key| format!("{key} {}", value(run, key))).collect();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        if list.is_empty() { String::new() } else { format!(": {}{more}", list.join(", ")) }
    };
    each.iter().map(text).collect()
}

/// A run's name: the last part of its path, also of `.` and `runs/x/`.
fn name_of(root: &Path) -> String {
    let full = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    printable(full.file_name().unwrap_or(root.as_os_str()))
}
