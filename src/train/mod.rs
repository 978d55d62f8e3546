//! The training loop.

pub mod divergence;
mod evaluation;
mod finish;
pub mod initial_weights;
mod log;
mod preview;
mod resume;
mod score;
pub mod setup;
mod state;
pub mod stepper;

use std::time::Instant;

use anyhow::{Result, bail};

use crate::base::progress::{self, Progress};
use crate::base::scalar;
use crate::base::seed::{Stream, seed_for};
use crate::base::signals::{self, StopFlag};
use crate::base::timer::StepTimer;
use crate::config::training::{INIT_FROM, OUT};
use crate::config::{Config, device};
use crate::models::tuning::Tuning;
use crate::nets::{ARCH, size_warning};
use crate::pictures::curves::Metrics;
use crate::pictures::grid;
use crate::run::checkpoint::{self, Best, State};
use crate::run::folder::{self, Lock, RunDir, RunInfo, make_folder};
use crate::run::metrics_log::MetricsLog;
use divergence::{Diverged, WarningFilter};
use evaluation::{COLUMNS, SAMPLES};
use initial_weights::init_from;
use log::Recorder;
use score::Tracker;
use setup::Setup;
use state::BestCopy;
use stepper::{AverageMeter, ExecutionMode, StepPosition, Stepper};

pub use preview::augment_preview;
pub use resume::resume;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done: a summary of scores and files, a line each.
    Done(String),
    /// This signal stopped it, after a checkpoint was written.
    Stopped(u8),
}

/// Trains a new run. Nothing is written before the data is read and the model is built.
///
/// # Errors
/// Bad data, a model that does not fit it, a folder that cannot be written, a loss that is not finite.
pub fn train(config: &Config) -> Result<Outcome> {
    signals::hold()?;
    let out = config.settings.given(&OUT);
    out.as_deref().map_or(Ok(()), folder::check_free)?;
    let mut session = Session::build(config, None)?;
    session.load_initial_weights()?;
    let run = RunDir::create(out.as_deref(), config.model, &session.setup.data)?;
    let lock = run.lock()?;
    run.write_config(&config.kept_toml()?, &session.info)?;
    let state = session.state(0.0, 0)?;
    session.run(run, lock, state)
}

/// A run in memory.
struct Session<'a> {
    config: &'a Config,
    // First: a captured graph must be dropped before the tensors that it reads.
    stepper: Stepper,
    setup: Setup,
    info: RunInfo,
    meter: AverageMeter,
    step: u64,
    /// Whether an epoch has ended and its evaluation is not done yet.
    epoch_due: bool,
    rollbacks: u32,
    /// The checkpoint with the best score.
    best: Option<Best>,
    best_copy: Option<BestCopy>,
    /// The held-out value of the model's criterion, and its step.
    score: Option<Best>,
    /// The score of --score.
    tracker: Option<Tracker>,
    /// Whether --patience has ended the run.
    ended_early: bool,
    warnings: WarningFilter,
}

impl<'a> Session<'a> {
    fn build(config: &'a Config, stored: Option<Tuning>) -> Result<Self> {
        let mut setup = Setup::new(config, stored)?;
        if config.settings.given(&INIT_FROM).is_some() {
            setup.model.start_trained();
        }
        Ok(Session {
            stepper: Stepper::new(ExecutionMode::new(setup.device, config.cuda_graph), &setup, config)?,
            meter: AverageMeter::new(setup.model.measured(), setup.device),
            info: RunInfo {
                ganvae: env!("CARGO_PKG_VERSION").into(),
                libtorch: env!("GANVAE_LIBTORCH_VERSION").into(),
                device: device::name(setup.device),
                data_sha256: setup.data_sha256.clone(),
                train_images: setup.train.len(),
                test_images: setup.test.len(),
                shape: setup.train.shape(),
                classes: setup.classes.clone(),
                tuning: setup.chosen.tuning,
            },
            config,
            warnings: WarningFilter::new(setup.total),
            tracker: Tracker::of(config, &setup)?,
            setup,
            step: 0,
            epoch_due: false,
            rollbacks: 0,
            best: None,
            best_copy: None,
            score: None,
            ended_early: false,
        })
    }

    /// Loads the weights of `--init-from`, if given.
    fn load_initial_weights(&mut self) -> Result<()> {
        if let Some(path) = self.config.settings.given(&INIT_FROM) {
            let report = init_from(self.setup.model.as_mut(), &path)?;
            progress::say(&format!("{}: {report}", path.display()));
            if !report.missing.is_empty() {
                let missing = checkpoint::shortened(&report.missing, ", ");
                progress::say(&format!(
                    "warning: these tensors of the model are not in it and start from random values: {missing}"
                ));
            }
        }
        Ok(())
    }

    /// Trains from `state`, the state of this session, until all steps are done or a signal comes.
    fn run(&mut self, run: RunDir, lock: Lock, state: State) -> Result<Outcome> {
        make_folder(&run.samples())?;
        make_folder(&run.checkpoints())?;
        let scalars = self.setup.model.scalars().iter().cloned().chain(self.tracker.as_ref().map(Tracker::scalar));
        scalar::write(&run.path("scalars.json"), &scalars.collect::<Vec<_>>())?;
        if !run.path("data.png").exists() {
            grid::draw(&self.setup.train.spread(SAMPLES)?.x, COLUMNS)?.save(&run.path("data.png"))?;
        }
        let stop = StopFlag::listen()?;
        let mut rec = Recorder {
            log: MetricsLog::open(run.path("metrics.jsonl"), state.metrics_bytes)?,
            progress: Progress::start(self.step, self.setup.total, self.setup.per_epoch),
            run,
            lock,
            started: Instant::now(),
            wall_before: state.wall_s,
            interval: Instant::now(),
            interval_images: 0,
            curves: Metrics::default(),
            drawn: Instant::now(),
            draw_s: 0.0,
            warned: false,
            scores: String::new(),
            picture: String::new(),
        };
        rec.progress.say(&self.headline(&rec));
        rec.progress.say(&self.setup.chosen.to_string());
        let shape = self.setup.train.shape();
        let notes = [
            size_warning(self.config.settings.get(&ARCH)?, shape),
            self.size_note()?,
            self.few_images_warning(),
            self.few_held_out_warning(),
            self.short_run_warning(),
            self.classes_note()?,
        ];
        for note in notes.into_iter().flatten().chain(self.tracker.as_ref().map(Tracker::describe)) {
            rec.progress.say(&note);
        }
        if self.step == self.setup.total && !self.epoch_due {
            self.draw_curves(&mut rec);
        }
        if self.config.rollbacks > 0 && self.step == 0 {
            // For a rollback before the first regular checkpoint.
            self.checkpoint(&mut rec)?;
        }
        while (self.step < self.setup.total && !self.ended_early) || self.epoch_due {
            let diverged = match self.advance(&mut rec, &stop) {
                Ok(None) => continue,
                Ok(Some(outcome)) => return Ok(outcome),
                Err(e) => e.downcast::<Diverged>()?,
            };
            self.write_best(&mut rec)?;
            if u64::from(self.rollbacks) < self.config.rollbacks {
                self.roll_back(&mut rec, &diverged)?;
                continue;
            }
            let (after, or) = match self.rollbacks {
                0 => (String::new(), ", or --on-divergence rollback"),
                n => (format!(" after {n} rollbacks"), ""),
            };
            let kept = !checkpoint::list(&rec.run.checkpoints())?.is_empty();
            let intact = if kept { "; its earlier checkpoints are intact" } else { "" };
            bail!("{diverged}, and the run stops{after}{intact}; try a lower --lr, --clip-norm 1{or}");
        }
        rec.progress.finish();
        // The export comes last: where it is there, all is.
        let summary = self.summary(&rec);
        self.export(&rec)?;
        Ok(Outcome::Done(summary))
    }

    /// One update and the work that is due after it: metrics, evaluation, samples, a checkpoint; an outcome when a signal has come.
    fn advance(&mut self, rec: &mut Recorder, stop: &StopFlag) -> Result<Option<Outcome>> {
        // Otherwise a signal interrupted the evaluation, which comes first.
        if !self.epoch_due {
            rec.interval_images += self.one_step()?;
            rec.progress.advance(self.step);
            self.epoch_due = self.step.is_multiple_of(self.setup.per_epoch) || self.step == self.setup.total;
            if self.epoch_due || self.step.is_multiple_of(self.config.log_every) {
                self.log_interval(rec)?;
            }
        }
        let epoch_ends = self.step.is_multiple_of(self.setup.per_epoch);
        let last = self.step == self.setup.total;
        if self.epoch_due {
            self.epoch_due = !self.epoch_end(rec, last, stop)?;
        }
        // An interval of 0 is never due.
        let due = self.config.checkpoint_every.map_or(epoch_ends, |n| self.step.is_multiple_of(n));
        let stopped = stop.signal();
        if due || last || stopped.is_some() {
            self.checkpoint(rec)?;
        } else {
            self.keep_best(rec)?;
        }
        let Some(signal) = stopped.filter(|_| !last || self.epoch_due) else { return Ok(None) };
        self.draw_curves(rec);
        rec.progress.finish();
        let (root, step, total) = (rec.run.shell_quoted(), self.step, self.setup.total);
        progress::say(&format!("stopped at step {step} of {total}; go on with: ganvae train --resume {root}"));
        Ok(Some(Outcome::Stopped(signal)))
    }

    /// One update; gives its number of images.
    fn one_step(&mut self) -> Result<i64> {
        let seed = match self.rollbacks {
            0 => self.config.seed,
            n => seed_for(self.config.seed, 0, Stream::Rollback, n.into()) as u64,
        };
        let position = StepPosition::new(seed, self.step, self.setup.per_epoch);
        let count = self.stepper.step(&mut self.setup, &mut self.meter, position, &StepTimer::off())?;
        self.step += 1;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
