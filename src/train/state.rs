//! The state of a run: saved to a checkpoint, restored from one, rolled back to one.

use std::path::Path;

use anyhow::{Context, Result, bail};
use tch::{Device, Kind, Tensor};

use super::{Session, divergence::Diverged, log::Recorder};
use crate::models::{Part, Visit};
use crate::pictures::curves::Metrics;
use crate::run::checkpoint::{self, Best, State};

/// A copy of all state, of a step with a better score than any checkpoint's, until it is written.
pub(super) struct BestCopy {
    state: State,
    tensors: Vec<(Part, String, Tensor)>,
}

impl Session<'_> {
    /// The position of the run, for a checkpoint.
    pub(super) fn state(&self, wall_s: f64, metrics_bytes: u64) -> Result<State> {
        Ok(State {
            wall_s,
            meter_images: self.meter.images,
            metrics_bytes,
            settings: self.config.fixed()?,
            tuning: self.info.tuning_by_key()?,
            epoch_due: self.epoch_due,
            rollbacks: self.rollbacks,
            best: self.best,
            ..State::new(self.config.model.to_string(), self.step)
        })
    }

    /// Restores everything from the checkpoint `dir` with this state.
    pub(super) fn restore(&mut self, dir: &Path, state: &State) -> Result<()> {
        checkpoint::load(dir, &[Part::Model, Part::Optimizer], &mut |v| self.visit(v))?;
        self.step = state.step;
        self.epoch_due = state.epoch_due;
        self.meter.images = state.meter_images;
        self.best = state.best;
        self.rollbacks = self.rollbacks.max(state.rollbacks);
        self.setup.model.scale_lr(0.5f64.powi(self.rollbacks as i32));
        self.setup.model.schedule(self.step)
    }

    /// The learning rate, of a GAN that of its generator: scheduled, and halved at each rollback.
    pub(super) fn lr(&self) -> f64 {
        self.setup.model.optimizers().first().map_or(f64::NAN, |adam| adam.lr())
    }

    /// Restores the newest checkpoint after a divergence, with fresh noise and half the learning rate, and logs a row for it.
    pub(super) fn roll_back(&mut self, rec: &mut Recorder, why: &Diverged) -> Result<()> {
        let diverged_at = self.step;
        let found = checkpoint::newest_resumable(&rec.run.checkpoints()).with_context(|| why.to_string())?;
        let Some((dir, state)) = found else {
            bail!("{why}, and there is no checkpoint to go back to");
        };
        self.rollbacks += 1;
        self.restore(&dir, &state)?;
        self.warnings.restart();
        rec.log.cut(state.metrics_bytes)?;
        rec.curves = Metrics::default();
        let mut row = self.row_head(rec);
        row.extend([("rollbacks".into(), self.rollbacks.into()), ("diverged_at".into(), diverged_at as f64)]);
        row.push(("lr".into(), self.lr()));
        rec.log.append(&row)?;
        // At once: a process that is killed before the next checkpoint must not lose the rollback.
        self.checkpoint(rec)?;
        let (step, lr, n, most) = (self.step, self.lr(), self.rollbacks, self.config.rollbacks);
        rec.progress.say(&format!(
            "warning: {why}: rolled back to step {step} ({n} of {most}), with fresh noise and lr {lr:e}"
        ));
        rec.restart_clock();
        Ok(())
    }

    /// Writes a checkpoint of this step, and before it the one of an earlier step with a better score, where such a copy waits.
    pub(super) fn checkpoint(&mut self, rec: &mut Recorder) -> Result<()> {
        if self.better_score().is_none() {
            self.write_best(rec)?;
        }
        self.best_copy = None;
        let state = self.checked_state(rec)?;
        self.best = state.best;
        checkpoint::save(&rec.run.checkpoints(), state, self.config.keep, &mut |v| self.visit(v))?;
        rec.restart_clock();
        Ok(())
    }

    /// Writes a checkpoint when this step has a better score than any before; within --best-every steps of the last best one, keeps a
    /// copy in memory until they have passed or the next checkpoint is written.
    pub(super) fn keep_best(&mut self, rec: &mut Recorder) -> Result<()> {
        let due = self.best.is_none_or(|best| self.step >= best.step + self.config.best_every);
        match (self.better_score(), due) {
            (Some(_), true) => self.checkpoint(rec),
            (Some(_), false) => {
                let (state, mut tensors) = (self.checked_state(rec)?, Vec::new());
                for part in [Part::Model, Part::Optimizer] {
                    for (name, t) in checkpoint::gather(part, &mut |v| self.visit(v))? {
                        // To the CPU, where there is more memory.
                        tensors.push((part, name, t.f_to_device_(Device::Cpu, t.kind(), false, true)?));
                    }
                }
                self.best_copy = Some(BestCopy { state, tensors });
                Ok(())
            }
            (None, true) => self.write_best(rec),
            (None, false) => Ok(()),
        }
    }

    /// Writes the copy of a step with a better score, if there is one.
    pub(super) fn write_best(&mut self, rec: &mut Recorder) -> Result<()> {
        let Some(BestCopy { state, tensors }) = self.best_copy.take() else { return Ok(()) };
        rec.lock.check()?;
        self.best = state.best;
        checkpoint::save(&rec.run.checkpoints(), state, self.config.keep, &mut |v| {
            tensors.iter().try_for_each(|(part, name, t)| v.tensor(*part, name, t))
        })?;
        rec.restart_clock();
        Ok(())
    }

    /// The best score before this step, of a checkpoint or of the copy in memory.
    pub(super) fn best_so_far(&self) -> Option<Best> {
        self.best_copy.as_ref().map_or(self.best, |copy| copy.state.best)
    }

    /// The score of this step, if it is better than any before.
    fn better_score(&self) -> Option<Best> {
        let best = self.best_so_far();
        self.score.filter(|score| score.step == self.step && best.is_none_or(|best| score.value < best.value))
    }

    /// The state for a checkpoint of this step, once everything is finite.
    fn checked_state(&mut self, rec: &mut Recorder) -> Result<State> {
        rec.lock.check()?;
        if self.meter.images > 0 {
            self.finite_means()?;
        }
        // The losses are from before the last update; the weights are from after it.
        for part in [Part::Model, Part::Optimizer] {
            for (name, t) in checkpoint::gather(part, &mut |v| self.visit(v))? {
                // A sum is finite only if every element is (a finite sum that overflows would need weights of no use). Not in double:
                // that would copy the largest weights at twice their size. sync: at checkpoints only.
                if !t.f_sum(Kind::Float)?.f_double_value(&[])?.is_finite() {
                    let step = self.step;
                    bail!(Diverged(format!("{name} is not finite after step {step}: training has diverged")));
                }
            }
        }
        let best = self.better_score().or(self.best);
        Ok(State { best, ..self.state(rec.wall_s(), rec.log.sync()?)? })
    }

    pub(super) fn visit(&mut self, v: &mut dyn Visit) -> Result<()> {
        self.setup.model.visit(v)?;
        v.tensor(Part::Optimizer, "meter.sums", &self.meter.sums)
    }
}
