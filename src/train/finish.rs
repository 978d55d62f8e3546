//! The end of a run: exports, the training animation, the summary.

use std::fs;

use anyhow::{Context, Result};
use clap::ValueEnum;
use tch::Device;

use super::{Session, log::Recorder};
use crate::base::progress;
use crate::models::{Model, Part};
use crate::pictures::animation;
use crate::run::checkpoint;
use crate::run::folder::RunDir;
use crate::{export, native};

/// Whether a run whose last step is `step` is complete: it has its export and, with two or more sample grids, its animation.
pub(super) fn is_finished(run: &RunDir, step: u64) -> bool {
    let samples = fs::read_dir(run.samples()).into_iter().flatten().flatten();
    let pictures = samples.filter(|entry| entry.path().extension().is_some_and(|e| e == "png")).count();
    let animated = pictures < 2 || run.samples().join("progress.gif").is_file();
    animated && export::step_of(&run.path("export")) == Some(step)
}

impl Session<'_> {
    /// Exports the networks in every format.
    pub(super) fn export(&mut self, rec: &Recorder) -> Result<()> {
        // The exports are compared with copies: this frees the memory for them.
        self.setup.model.end_training();
        native::release_free_memory(self.setup.device)?;
        let write = || -> Result<()> {
            let copy = self.copy_on_cpu(rec)?;
            let networks = copy.as_ref().unwrap_or(&self.setup.model).exported();
            let origin = self.config.origin(self.step, &self.setup.classes)?;
            export::export(&networks, &origin, export::Format::value_variants(), &rec.run.path("export"))?;
            Ok(())
        };
        write().with_context(|| {
            let root = rec.run.shell_quoted();
            format!("training is done and its checkpoint is complete, but the export failed; fix the cause, then run: ganvae export {root}")
        })
    }

    /// The model of the newest checkpoint on the CPU, whose float32 the exports are compared with; none where it trained there.
    fn copy_on_cpu(&self, rec: &Recorder) -> Result<Option<Box<dyn Model>>> {
        if self.setup.device == Device::Cpu {
            return Ok(None);
        }
        let newest = checkpoint::newest_intact(&rec.run.checkpoints())?.filter(|(_, state)| state.step == self.step);
        let (dir, _) = newest.with_context(|| format!("the checkpoint of step {} is damaged", self.step))?;
        let copy = self.config.build(self.setup.images(), self.setup.per_epoch, Device::Cpu)?;
        checkpoint::load(&dir, &[Part::Model], &mut |v| copy.visit(v))?;
        Ok(Some(copy))
    }

    pub(super) fn summary(&self, rec: &Recorder) -> String {
        let root = rec.run.shell_quoted();
        let reconstructions = match rec.run.path("reconstructions").is_dir() {
            true => format!("recons   {root}/reconstructions/{}\n", rec.picture),
            false => String::new(),
        };
        format!(
            "{}\n\
             curves   {root}/loss.png\n\
             samples  {root}/samples/{}\n\
             {reconstructions}{}{}\
             weights  {root}/checkpoints/step-{:08}/model.safetensors\n\
             exports  {root}/export (TorchScript, safetensors, ONNX)\n\
             more     ganvae sample {root}\n",
            // Empty where the steps were done before, and the run had not been finished.
            if rec.scores.is_empty() { format!("all {} steps were done", self.step) } else { rec.scores.clone() },
            rec.picture,
            self.draw_training_animation(rec),
            self.best_line(&root),
            self.step
        )
    }

    /// The line of the summary on the best checkpoint, for a model that has a score.
    fn best_line(&self, root: &str) -> String {
        let key = match (&self.tracker, self.setup.model.criterion()) {
            (Some(tracker), _) => tracker.scalar().key,
            (None, Some(index)) => self.setup.model.scalars()[index].key.clone(),
            (None, None) => return String::new(),
        };
        let Some(best) = self.best else { return String::new() };
        let epoch = best.step as f64 / self.setup.per_epoch as f64;
        let value = self.tracker.as_ref().map_or(best.value, |tracker| tracker.shown(best.value));
        let score = format!("test_{key} {value:.3}");
        match best.step == self.step {
            true => format!("best     epoch {epoch:.2}, the last: {score}\n"),
            false => format!("best     epoch {epoch:.2}: {score} (ganvae sample {root} --checkpoint best)\n"),
        }
    }

    /// Draws the training animation; gives its line of the summary, for a run with more than one picture.
    fn draw_training_animation(&self, rec: &Recorder) -> String {
        let samples = rec.run.samples();
        match animation::draw_training(&samples, self.setup.per_epoch, &samples.join("progress.gif")) {
            Ok(true) => return format!("progress {}/samples/progress.gif\n", rec.run.shell_quoted()),
            Ok(false) => {}
            Err(e) => progress::say(&format!("warning: {e:#}")),
        }
        String::new()
    }
}
