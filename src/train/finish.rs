//! What a run leaves when training is done: exports, an animation, a summary.

use anyhow::{Context, Result};
use clap::ValueEnum;
use tch::Device;

use super::Session;
use super::log::Recorder;
use crate::base::progress;
use crate::models::{Model, Part};
use crate::pictures::animation;
use crate::run::checkpoint;
use crate::{export, native};

impl Session<'_> {
    /// The networks for other programs, in every format.
    pub(super) fn export(&mut self, rec: &Recorder) -> Result<()> {
        // Room for the copies that are compared: the run holds no more memory at its end than in a step.
        self.setup.model.end_training();
        native::release_free_memory(self.setup.device)?;
        let write = || -> Result<()> {
            let twin = self.twin_on_cpu(rec)?;
            let networks = twin.as_ref().unwrap_or(&self.setup.model).exported();
            let origin = self.config.origin(self.step)?;
            export::export(&networks, &origin, export::Format::value_variants(), &rec.run.path("export"))?;
            Ok(())
        };
        write().with_context(|| {
            format!(
                "training is done and its checkpoint whole, but the export failed; mend it, then: ganvae export {}",
                rec.run.shown()
            )
        })
    }

    /// The model of the newest checkpoint on the CPU, whose float32 exports are compared with; none where it trained there.
    pub(super) fn twin_on_cpu(&self, rec: &Recorder) -> Result<Option<Box<dyn Model>>> {
        if self.setup.device == Device::Cpu {
            return Ok(None);
        }
        let newest = checkpoint::newest_whole(&rec.run.checkpoints())?.filter(|(_, state)| state.step == self.step);
        let (dir, _) = newest.with_context(|| format!("the checkpoint of step {} is not whole", self.step))?;
        let twin = self.config.build(self.setup.train.shape(), self.setup.per_epoch, Device::Cpu)?;
        checkpoint::load(&dir, &[Part::Model], &mut |v| twin.visit(v))?;
        Ok(Some(twin))
    }

    pub(super) fn summary(&self, rec: &Recorder) -> String {
        let root = rec.run.shown();
        let mut text = format!("{}\ncurves   {root}/loss.png\nsamples  {root}/samples/{}\n", rec.scores, rec.picture);
        if rec.run.reconstructions().is_dir() {
            text.push_str(&format!("recons   {root}/reconstructions/{}\n", rec.picture));
        }
        text.push_str(&self.timelapse(rec));
        text.push_str(&format!("weights  {root}/checkpoints/step-{:08}/model.safetensors\n", self.step));
        text.push_str(&format!("exports  {root}/export (TorchScript, safetensors, ONNX)\n"));
        text.push_str(&format!("more     ganvae sample {root}\n"));
        text
    }

    /// Draws training as an animation; the line that says where, of a run with more than one picture.
    pub(super) fn timelapse(&self, rec: &Recorder) -> String {
        let out = rec.run.samples().join("progress.gif");
        match animation::draw_training(&rec.run.samples(), self.setup.per_epoch, &out) {
            Ok(true) => format!("progress {}/samples/progress.gif\n", rec.run.shown()),
            Ok(false) => String::new(),
            Err(e) => {
                progress::say(&format!("warning: {e:#}"));
                String::new()
            }
        }
    }
}
