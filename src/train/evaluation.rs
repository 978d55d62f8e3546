//! The work at the end of an epoch: held-out scores, sample grids, curves.

use anyhow::Result;
use tch::Tensor;

use super::{
    Session, divergence,
    log::{Recorder, distinct},
    setup::Setup,
    stepper::AverageMeter,
};
use crate::base::progress::{self, as_fit};
use crate::base::seed::{Stream, seed_for};
use crate::base::signals::StopFlag;
use crate::models::noise::Noise;
use crate::pictures::grid;
use crate::run::checkpoint::Best;
use crate::run::folder::make_folder;

/// Images in a sample grid.
pub(super) const SAMPLES: usize = 64;
/// Originals in a reconstruction grid, each followed below by its reconstruction.
const RECONSTRUCTIONS: usize = 32;
/// Images of the statistics of batch normalisation.
const STATISTICS: usize = 1024;
/// Images scored at a time: not the batch of training, on which scores must not depend.
const BATCH: usize = 64;
/// Columns of both.
pub(super) const COLUMNS: usize = 8;

impl Session<'_> {
    /// Computes held-out scores and draws samples and curves, each when its interval is due; false when a signal interrupted it.
    pub(super) fn epoch_end(&mut self, rec: &mut Recorder, last: bool, stop: &StopFlag) -> Result<bool> {
        let epoch = self.step / self.setup.per_epoch;
        let complete = self.step.is_multiple_of(self.setup.per_epoch);
        let due = |every: u64| last || (complete && every > 0 && epoch.is_multiple_of(every));
        let checkpoint_due = last || self.config.checkpoint_every.is_none_or(|n| self.step.is_multiple_of(n));
        // Before what reads them.
        if checkpoint_due
            || due(self.config.eval_every)
            || due(self.config.sample_every)
            || self.score_due(epoch, complete, last)
        {
            self.recompute_statistics()?;
        }
        let mut row = Vec::new();
        let mut said = Vec::new();
        if due(self.config.eval_every) {
            rec.progress.doing("scoring the held-out images");
            let Some(values) = self.evaluate(stop)? else { return Ok(false) };
            row.extend(values.iter().map(|(k, v)| (format!("test_{k}"), *v)));
            said.extend(distinct(values).into_iter().map(|(k, v)| format!("test_{k} {v:.3}")));
        }
        if self.score_due(epoch, complete, last) {
            rec.progress.doing("scoring samples");
            let Some((key, value)) = self.score_images(stop)? else { return Ok(false) };
            // First: what was asked for must fit into the line.
            said.insert(0, format!("{key} {value:.3}{}", self.since_best(value)));
            row.push((key, value));
        }
        // One row, once nothing can interrupt it any more: a resumed run does all of this again.
        if !row.is_empty() {
            rec.log.append(&[self.row_head(rec), row].concat())?;
            rec.scores = said.join("  ");
            let epoch = format!("epoch {:.2}", self.step as f64 / self.setup.per_epoch as f64);
            rec.progress.say(&as_fit([epoch].into_iter().chain(said), "  ", progress::COLUMNS));
        }
        if due(self.config.sample_every) {
            rec.progress.doing("drawing");
            let name = if complete { format!("epoch-{epoch:04}.png") } else { format!("step-{:08}.png", self.step) };
            self.draw_samples(rec, &name)?;
            rec.picture = name;
        }
        // In short epochs: drawing takes at most a thirtieth of the time.
        if last || epoch <= 1 || rec.drawn.elapsed().as_secs_f64() > 30.0 * rec.draw_s {
            self.draw_curves(rec);
        }
        rec.restart_clock();
        Ok(true)
    }

    /// Computes the running statistics of batch normalisation anew, of the same images and noise each time: those of training are of
    /// its last few batches, and the ones of an averaged generator match no weights. A function of the weights alone, at epoch ends
    /// alone, so that a resumed run has the same.
    pub(super) fn recompute_statistics(&self) -> Result<()> {
        let Setup { train, model, device, .. } = &self.setup;
        let order = self.setup.order(self.config.seed, 0);
        let chosen = &order[..order.len().min(STATISTICS)];
        // Batches of one size, which count alike.
        let batches = chosen.chunks(BATCH).filter(|rows| rows.len() == BATCH.min(chosen.len())).enumerate();
        let mut batches = batches.map(|(i, rows)| {
            let batch = train.gather(&Tensor::f_from_slice(rows)?.f_to_device(*device)?)?;
            Ok((batch, Noise::new(seed_for(self.config.seed, 0, Stream::Statistics, i as u64), *device)))
        });
        model.recompute_statistics(&mut batches)
    }

    /// Means of the model's values over all held-out images, each once, with the same noise at every evaluation; none when a
    /// signal interrupts it.
    pub(super) fn evaluate(&mut self, stop: &StopFlag) -> Result<Option<Vec<(String, f64)>>> {
        let mut meter = AverageMeter::new(self.setup.model.measured(), self.setup.device);
        for (i, from) in (0..self.setup.test.len()).step_by(BATCH).enumerate() {
            if stop.signal().is_some() {
                return Ok(None);
            }
            let batch = self.setup.test.range(from, BATCH)?;
            let noise = Noise::new(seed_for(self.config.seed, 0, Stream::Eval, i as u64), self.setup.device);
            meter.add(&self.setup.model.score(&batch, &noise)?, batch.x.size()[0])?;
        }
        let means = meter.means()?;
        let model = &self.setup.model;
        divergence::check("test_", model.scalars(), &model.report(&means), self.step)?;
        if self.tracker.is_none() {
            self.score = self.setup.model.criterion().map(|index| Best { step: self.step, value: means[index] });
        }
        Ok(Some(self.report(&means)))
    }

    pub(super) fn draw_samples(&self, rec: &Recorder, name: &str) -> Result<()> {
        let seed = seed_for(self.config.seed, 0, Stream::Samples, 0);
        let Setup { train, model, classes, device, .. } = &self.setup;
        let wanted = if classes.is_empty() { SAMPLES } else { classes.in_grid() as usize };
        let count = train.showable(wanted) as i64;
        let z = Noise::new(seed, *device).normal("z", &[count, model.latent()])?;
        let labels = (!classes.is_empty()).then(|| classes.in_rows(0, count, *device)).transpose()?;
        grid::draw(&model.decode(&z, labels.as_ref())?, COLUMNS)?.save(&rec.run.samples().join(name))?;
        let originals = self.setup.test.spread(RECONSTRUCTIONS)?.x;
        if let Some(images) = self.setup.model.reconstruct(&originals)? {
            let folder = rec.run.path("reconstructions");
            make_folder(&folder)?;
            grid::draw(&grid::alternate(&originals, &images, COLUMNS)?, COLUMNS)?.save(&folder.join(name))?;
        }
        Ok(())
    }

    /// The meter's means; an error when a scalar that they give is not finite or beyond its limit.
    pub(super) fn finite_means(&self) -> Result<Vec<f64>> {
        let means = self.meter.means()?;
        let model = &self.setup.model;
        divergence::check("", model.scalars(), &model.report(&means), self.step)?;
        Ok(means)
    }

    /// The values of all scalars that these means give, by key.
    pub(super) fn report(&self, measured: &[f64]) -> Vec<(String, f64)> {
        let model = &self.setup.model;
        let all = model.scalars().iter().map(|s| s.key.clone()).zip(model.report(measured));
        all.filter(|(_, value)| !value.is_nan()).collect()
    }
}
