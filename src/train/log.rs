//! The output of a run while it trains: rows of metrics, curves, the progress bar.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use super::{Session, setup::Setup};
use crate::base::progress::Progress;
use crate::config::device;
use crate::config::training::{KeepOptimizer, STEPS};
use crate::data::{TEST_LIMIT, few_held_out};
use crate::models::augment::AUGMENT;
use crate::models::{ModelKind, Part};
use crate::pictures::curves::{self, Metrics};
use crate::run::checkpoint;
use crate::run::folder::{Lock, RunDir};
use crate::run::metrics_log::MetricsLog;

/// Seconds between redrawings of the curves within an epoch.
const REDRAW_S: f64 = 20.0;

/// The output of the loop: the folder, the log, the clocks, the progress bar.
pub(super) struct Recorder {
    pub(super) run: RunDir,
    pub(super) lock: Lock,
    pub(super) log: MetricsLog,
    pub(super) progress: Progress,
    pub(super) started: Instant,
    pub(super) wall_before: f64,
    pub(super) interval: Instant,
    pub(super) interval_images: i64,
    pub(super) curves: Metrics,
    pub(super) drawn: Instant,
    pub(super) draw_s: f64,
    pub(super) warned: bool,
    pub(super) scores: String,
    pub(super) picture: String,
}

impl Recorder {
    pub(super) fn wall_s(&self) -> f64 {
        self.wall_before + self.started.elapsed().as_secs_f64()
    }

    /// Restarts the measurement of throughput: after a row, and after work that is not training.
    pub(super) fn restart_clock(&mut self) {
        self.interval = Instant::now();
        self.interval_images = 0;
    }
}

/// Without values that are the first one negated, as a VAE's ELBO at β = 1.
pub(super) fn distinct(mut values: Vec<(String, f64)>) -> Vec<(String, f64)> {
    let first = values.first().map_or(0.0, |(_, v)| *v);
    values.retain(|(_, v)| *v == first || (v + first).abs() > 1e-5 * first.abs());
    values
}

impl Session<'_> {
    pub(super) fn row_head(&self, rec: &Recorder) -> Vec<(String, f64)> {
        let (epoch, within) = (self.step / self.setup.per_epoch, self.step % self.setup.per_epoch);
        let seen = epoch as f64 * self.setup.train.len() as f64 + (within * self.config.batch_size as u64) as f64;
        vec![
            ("step".into(), self.step as f64),
            ("epoch".into(), self.step as f64 / self.setup.per_epoch as f64),
            ("seen_images".into(), seen),
            ("wall_s".into(), (rec.wall_s() * 1e3).round() / 1e3),
        ]
    }

    /// Writes the row of the log interval that ends here.
    pub(super) fn log_interval(&mut self, rec: &mut Recorder) -> Result<()> {
        let means = self.finite_means()?;
        let images_per_s = rec.interval_images as f64 / rec.interval.elapsed().as_secs_f64().max(1e-9);
        let values = self.report(&means);
        let mut row = self.row_head(rec);
        row.extend([("images_per_s".into(), images_per_s.round()), ("lr".into(), self.lr())]);
        row.extend(values.iter().cloned());
        rec.log.append(&row)?;
        rec.progress.update(self.step, images_per_s, &distinct(values));
        let from = self.step.saturating_sub(self.meter.images.div_ceil(self.config.batch_size as u64));
        for warning in self.warnings.filter(&self.setup.model.warnings(&means), from, self.step) {
            rec.progress.say(&format!("warning: {warning}"));
        }
        self.meter.reset()?;
        if rec.drawn.elapsed().as_secs_f64() > REDRAW_S.max(30.0 * rec.draw_s) {
            self.draw_curves(rec);
        }
        rec.restart_clock();
        Ok(())
    }

    /// Redraws loss.png. A failure gives one warning and does not stop the run.
    pub(super) fn draw_curves(&self, rec: &mut Recorder) {
        let began = Instant::now();
        let name = Path::new(&self.setup.data).file_name().unwrap_or_default().to_string_lossy();
        let title = format!("{} on {name}", self.config.model);
        let drawn = rec.curves.read_on(rec.run.root());
        let drawn = drawn.and_then(|()| curves::draw_run(&rec.curves, &title, &rec.run.path("loss.png")));
        if let (Err(e), false) = (drawn, rec.warned) {
            rec.warned = true;
            rec.progress.say(&format!("warning: the curves could not be drawn, training goes on: {e:#}"));
        }
        rec.drawn = Instant::now();
        rec.draw_s = began.elapsed().as_secs_f64();
    }

    pub(super) fn headline(&self, rec: &Recorder) -> String {
        let Setup { data, train, test, total, .. } = &self.setup;
        let (root, model, device) = (rec.run.root().display(), self.config.model, device::name(self.setup.device));
        let (training, held_out, shape) = (train.len(), test.len(), train.shape());
        format!(
            "{root}: {model} on {data} ({training} training, {held_out} held-out images of {shape}), {total} steps, {device}"
        )
    }

    /// What the run takes on disk and in memory, where it is over a gigabyte.
    pub(super) fn size_note(&mut self) -> Result<Option<String>> {
        let mut sizes = [0; 2];
        for (size, part) in sizes.iter_mut().zip([Part::Model, Part::Optimizer]) {
            let state = checkpoint::gather(part, &mut |v| self.visit(v))?;
            *size = state.values().map(|t| t.numel() * t.kind().elt_size_in_bytes()).sum::<usize>();
        }
        let [weights, optimizer] = sizes;
        let images = (self.setup.train.len() + self.setup.test.len()) * self.setup.train.shape().numel() as usize;
        // The newest ones, the best one (VAE), and the one that is being written, which at the end of a run the exports replace.
        let (keep, best) = (self.config.keep, usize::from(self.setup.model.criterion().is_some()));
        let kept = keep.checkpoints + best + 1;
        let resumable = if keep.optimizer == KeepOptimizer::All { kept } else { best + 2 };
        let (disk, memory) = (kept * weights + resumable * optimizer, 2 * weights + optimizer + images);
        let gb = |bytes: usize| format!("{:.1} GB", bytes as f64 / 1e9);
        Ok((disk.max(memory) > 1_000_000_000).then(|| {
            format!(
                "takes up to {} on disk ({kept} checkpoints of {}, {resumable} of them with {} of optimizer state: see --keep and \
                 --keep-optimizer) and over {} of memory (weights, gradients, optimizer state, images)",
                gb(disk),
                gb(weights),
                gb(optimizer),
                gb(memory)
            )
        }))
    }

    /// The warning for a set of few images, whatever else is set.
    pub(super) fn few_images_warning(&self) -> Option<String> {
        let (images, enough, happens) = match self.config.model {
            ModelKind::Vae => (self.setup.train.len(), 500, "a VAE memorizes, so that its new images are poor"),
            ModelKind::Gan => {
                (self.setup.train.len(), 1000, "a GAN's discriminator memorizes, so that the new images are poor")
            }
        };
        let augmented = self.config.settings.given(&AUGMENT).is_some_and(|list| !list.is_empty());
        let or = match self.config.model {
            ModelKind::Gan if !augmented => ", or --augment shift,colour,cutout",
            _ => "",
        };
        (self.step == 0 && images < enough).then(|| {
            format!(
                "warning: this run has {images} training images, which {happens}: use at least {enough}, better some thousand{or}"
            )
        })
    }

    /// The note on classes that a GAN is not told.
    pub(super) fn classes_note(&self) -> Result<Option<String>> {
        let unused = self.step == 0 && self.config.model == ModelKind::Gan && self.setup.classes.is_empty();
        let classes = if unused { self.setup.train.classes()? } else { 0 };
        Ok((classes > 1).then(|| {
            format!("note: the images have {classes} classes, which the networks are not told: --conditional makes images of a class")
        }))
    }

    /// The warning for few held-out images, unless --test-limit asks for them.
    pub(super) fn few_held_out_warning(&self) -> Option<String> {
        let asked = self.step > 0 || self.config.settings.given(&TEST_LIMIT).is_some();
        few_held_out(self.setup.test.len()).filter(|_| !asked).map(|text| format!("warning: {text}"))
    }

    /// The warning for a run with too few updates to learn anything, unless --steps asks for them.
    pub(super) fn short_run_warning(&self) -> Option<String> {
        let (total, per_epoch) = (self.setup.total, self.setup.per_epoch);
        let (enough, shapes) = match self.config.model {
            ModelKind::Vae => (300, "a VAE needs some hundred before its images are legible"),
            ModelKind::Gan => (1000, "a GAN needs some thousand before its images are legible"),
        };
        let unasked = self.step == 0 && self.config.settings.given(&STEPS).is_none();
        (unasked && total < enough).then(|| {
            format!(
                "warning: this run has {total} updates ({per_epoch} per epoch), and {shapes}: use more --epochs, --steps {} or a smaller \
                 --batch-size",
                5 * enough
            )
        })
    }
}
