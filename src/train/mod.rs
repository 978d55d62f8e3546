//! Training: the loop.

pub mod divergence;
pub mod initial_weights;
mod resume;
pub mod setup;
pub mod stepper;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use tch::{Device, Kind, Tensor};

use crate::base::progress::{self, Progress};
use crate::base::scalar::{self, Scalar};
use crate::base::seed::{Stream, seed_for};
use crate::base::shape::Shape;
use crate::base::signals::{self, StopFlag};
use crate::base::timer::Clock;
use crate::config::build;
use crate::config::device;
use crate::config::{Config, ModelKind, ModelSpec};
use crate::export;
use crate::models::losses::GanLoss;
use crate::models::tuning::Tuning;
use crate::models::{Model, Part, StepCx, Visit, noise};
use crate::native;
use crate::pictures::animation;
use crate::pictures::curves::{self, Metrics};
use crate::pictures::grid;
use crate::run::checkpoint::{self, Best, State};
use crate::run::folder::{self, Lock, MetricsLog, RunDir, RunInfo};
use crate::train::divergence::{Diverged, Watch};
use crate::train::initial_weights::init_from;
use crate::train::setup::Setup;
use crate::train::stepper::{At, Meter, Stepper, Way};

pub use resume::resume;

/// Images in a sample grid.
const SAMPLES: usize = 64;
/// Originals in a reconstruction grid, each followed below by its reconstruction.
const RECONSTRUCTIONS: usize = 32;
/// Columns of both.
const COLUMNS: usize = 8;
/// Seconds between redrawings of the curves within an epoch.
const REDRAW_S: f64 = 20.0;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done; what came of them and where it is, a line each.
    Done(String),
    /// This signal came; a checkpoint was written.
    Stopped(u8),
}

/// Trains a new run from first step to last. Nothing is written before the data is read and the model is built.
///
/// # Errors
/// Bad data, a model that does not fit it, a folder that cannot be written, a loss that is not finite.
pub fn train(config: &Config) -> Result<Outcome> {
    signals::hold()?;
    let out = config.settings.out.as_deref();
    if let Some(out) = out {
        folder::check_free(out)?;
    }
    let mut session = Session::build(config, None)?;
    session.init()?;
    let run = RunDir::create(out, config.model, &session.setup.data)?;
    let lock = run.lock()?;
    run.write_config(&config.kept_toml()?, &session.info)?;
    let state = session.state(0.0, 0)?;
    session.run(run, lock, state)
}

/// What the model logs, and how it is drawn.
fn scalars(config: &Config, shape: Shape) -> Vec<Scalar> {
    let (nats, critic, health) = ("nats per image", "mean critic output", "accuracy and diversity");
    match config.model_spec(shape, 1) {
        ModelSpec::Vae(_) => vec![
            Scalar::new("loss", "loss", nats, "loss").lower(),
            Scalar::new("recon", "reconstruction", nats, "reconstruction").lower(),
            Scalar::new("kl", "KL", nats, "KL"),
            Scalar::new("elbo", "ELBO", nats, "").higher(),
        ],
        ModelSpec::Gan(spec) => {
            // The losses of a discriminator that cannot tell real from generated images (arXiv 1406.2661, theorem 1).
            let ln2 = std::f64::consts::LN_2;
            let generator = if spec.loss == GanLoss::Minimax { -ln2 } else { ln2 };
            vec![
                Scalar::new("d_loss", "discriminator", "nats", "loss").equilibrium(Some(2.0 * ln2)),
                Scalar::new("g_loss", "generator", "nats", "loss").equilibrium(Some(generator)),
                Scalar::new("d_real", "real images", "logit", critic),
                Scalar::new("d_fake", "generated images", "logit", critic),
                Scalar::new("d_accuracy", "accuracy", "share", health),
                Scalar::new("diversity", "diversity", "ratio", health).higher(),
            ]
        }
    }
}

/// Everything a run needs in memory.
struct Session<'a> {
    config: &'a Config,
    // First: a captured step must go before the tensors that it reads.
    stepper: Stepper,
    setup: Setup,
    info: RunInfo,
    meter: Meter,
    clock: Clock,
    step: u64,
    /// Whether an epoch has ended and what follows has not been done yet.
    epoch_due: bool,
    rollbacks: u32,
    best: Option<Best>,
    /// The held-out value of the model's criterion, and the step that it is of.
    score: Option<Best>,
    watch: Watch,
}

/// What the loop keeps beside the session: the folder, the clock, the bar.
struct Recorder {
    run: RunDir,
    lock: Lock,
    log: MetricsLog,
    progress: Progress,
    started: Instant,
    wall_before: f64,
    first_step: u64,
    interval: Instant,
    interval_images: i64,
    drawn: Instant,
    draw_s: f64,
    warned: bool,
    scores: String,
    picture: String,
    /// Rows about divergences since the last checkpoint.
    events: Vec<Vec<(String, f64)>>,
}

impl Recorder {
    fn wall_s(&self) -> f64 {
        self.wall_before + self.started.elapsed().as_secs_f64()
    }

    /// Starts measuring throughput anew: after a row, and after every pause that is no training.
    fn restart_clock(&mut self) {
        self.interval = Instant::now();
        self.interval_images = 0;
    }
}

impl<'a> Session<'a> {
    fn build(config: &'a Config, stored: Option<Tuning>) -> Result<Self> {
        let setup = Setup::new(config, stored)?;
        let shape = setup.train.shape();
        Ok(Session {
            stepper: Stepper::new(
                Way::on(setup.device, config.cuda_graph),
                setup.device,
                config.seed,
                config.batch_size,
            )?,
            meter: Meter::new(setup.model.scalars().len(), setup.device),
            info: RunInfo {
                ganvae: env!("CARGO_PKG_VERSION").into(),
                libtorch: env!("GANVAE_LIBTORCH_VERSION").into(),
                device: device::name(setup.device),
                data_sha256: setup.data_sha256.clone(),
                train_images: setup.train.len(),
                test_images: setup.test.len(),
                channels: shape.channels,
                height: shape.height,
                width: shape.width,
                tuning: setup.chosen.tuning,
            },
            config,
            setup,
            clock: Clock::off(),
            step: 0,
            epoch_due: false,
            rollbacks: 0,
            best: None,
            score: None,
            watch: Watch::default(),
        })
    }

    /// The weights that `--init-from` names, in place of fresh ones.
    fn init(&mut self) -> Result<()> {
        if let Some(path) = &self.config.settings.init_from {
            let taken = init_from(self.setup.model.as_mut(), path)?;
            progress::say(&format!("{}: {taken}", path.display()));
        }
        Ok(())
    }

    /// Where the run stands, for a checkpoint.
    fn state(&self, wall_s: f64, metrics_bytes: u64) -> Result<State> {
        Ok(State {
            wall_s,
            meter_images: self.meter.images,
            metrics_bytes,
            settings: self.config.fixed()?,
            epoch_due: self.epoch_due,
            rollbacks: self.rollbacks,
            best: self.best,
            ..State::new(self.config.model.to_string(), self.step)
        })
    }

    /// Puts everything where the checkpoint `dir` with this state stood.
    fn restore(&mut self, dir: &Path, state: &State) -> Result<()> {
        checkpoint::load(dir, &[Part::Model, Part::Optimizer], &mut |v| self.visit(v))?;
        self.step = state.step;
        self.epoch_due = state.epoch_due;
        self.meter.images = state.meter_images;
        self.best = state.best;
        self.rollbacks = self.rollbacks.max(state.rollbacks);
        self.setup.model.set_lr(self.lr());
        Ok(())
    }

    /// Adam's step size: halved each time that the run has gone back.
    fn lr(&self) -> f64 {
        self.config.hyper.adam.lr * 0.5f64.powi(self.rollbacks as i32)
    }

    /// The loop: from `state`, which is that of this session, to `self.setup.total`, or until a signal.
    fn run(&mut self, run: RunDir, lock: Lock, state: State) -> Result<Outcome> {
        run.make_folders()?;
        scalar::write(&run.path("scalars.json"), &scalars(self.config, self.setup.train.shape()))?;
        if !run.path("data.png").exists() {
            grid::draw(&self.setup.train.spread(SAMPLES)?, COLUMNS)?.save(&run.path("data.png"))?;
        }
        let stop = StopFlag::listen()?;
        let mut rec = Recorder {
            log: MetricsLog::open(run.path("metrics.jsonl"), state.metrics_bytes)?,
            progress: Progress::start(self.step, self.setup.total),
            run,
            lock,
            started: Instant::now(),
            wall_before: state.wall_s,
            first_step: self.step,
            interval: Instant::now(),
            interval_images: 0,
            drawn: Instant::now(),
            draw_s: 0.0,
            warned: false,
            scores: String::new(),
            picture: String::new(),
            events: Vec::new(),
        };
        rec.progress.say(&self.headline(&rec));
        rec.progress.say(&self.setup.chosen.to_string());
        if let Some(warning) = self.too_few() {
            rec.progress.say(&warning);
        }
        if self.config.rollbacks > 0 && self.step == 0 {
            // There must be something to go back to.
            self.checkpoint(&mut rec)?;
        }
        while self.step < self.setup.total || self.epoch_due {
            match self.advance(&mut rec, &stop) {
                Ok(None) => {}
                Ok(Some(outcome)) => return Ok(outcome),
                Err(e) => match e.downcast::<Diverged>()? {
                    why if u64::from(self.rollbacks) < self.config.rollbacks => self.roll_back(&mut rec, &why)?,
                    why => {
                        let (after, or) = match self.rollbacks {
                            0 => (String::new(), ", or --on-divergence rollback"),
                            n => (format!(" after going back {n} times"), ""),
                        };
                        let kept = !checkpoint::list(&rec.run.checkpoints())?.is_empty();
                        let whole = if kept { "; the checkpoints before it are whole" } else { "" };
                        bail!("{why}, and stops{after}{whole}; try a lower --lr, --clip-norm 1{or}");
                    }
                },
            }
        }
        rec.progress.finish();
        self.export(&rec)?;
        Ok(Outcome::Done(self.summary(&rec)))
    }

    /// One update and all that is due after it: rows, scores, pictures, a checkpoint; an outcome when a signal has come.
    fn advance(&mut self, rec: &mut Recorder, stop: &StopFlag) -> Result<Option<Outcome>> {
        // Else a signal came within the score of an epoch, which is made first of all.
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
        let due = match self.config.checkpoint_every {
            None => epoch_ends,
            Some(0) => false,
            Some(n) => self.step.is_multiple_of(n),
        };
        let stopped = stop.signal();
        if due || last || stopped.is_some() {
            self.checkpoint(rec)?;
            rec.restart_clock();
        }
        let Some(signal) = stopped.filter(|_| !last || self.epoch_due) else { return Ok(None) };
        self.draw_curves(rec);
        rec.progress.finish();
        let root = rec.run.shown();
        let (step, total) = (self.step, self.setup.total);
        progress::say(&format!("stopped at step {step} of {total}; go on with: ganvae train --resume {root}"));
        Ok(Some(Outcome::Stopped(signal)))
    }

    /// Back to the newest checkpoint after a divergence: with fresh noise, half the step size, and a row that says so.
    fn roll_back(&mut self, rec: &mut Recorder, why: &Diverged) -> Result<()> {
        let diverged_at = self.step;
        let Some((dir, state)) = checkpoint::newest_whole(&rec.run.checkpoints())? else {
            bail!("{why}, and there is no checkpoint to go back to");
        };
        self.rollbacks += 1;
        self.restore(&dir, &state)?;
        self.watch.restart();
        rec.first_step = rec.first_step.min(self.step);
        rec.log.cut(state.metrics_bytes)?;
        let mut row = self.row_head(rec);
        row.push(("rollbacks".into(), self.rollbacks.into()));
        row.push(("diverged_at".into(), diverged_at as f64));
        row.push(("lr".into(), self.lr()));
        rec.events.push(row);
        for row in &rec.events {
            rec.log.append(row)?;
        }
        rec.progress.say(&format!(
            "warning: {why}: rolled back to step {} ({} of {}), with fresh noise and lr {:e}",
            self.step,
            self.rollbacks,
            self.config.rollbacks,
            self.lr()
        ));
        rec.restart_clock();
        Ok(())
    }

    /// The networks for other programs, in every format.
    fn export(&mut self, rec: &Recorder) -> Result<()> {
        // Room for the copies that are compared: the run holds no more memory at its end than in a step.
        self.setup.model.end_training();
        native::release_free_memory(self.setup.device)?;
        let write = || -> Result<()> {
            let twin = self.twin_on_cpu(rec)?;
            let networks = twin.as_ref().unwrap_or(&self.setup.model).networks();
            let origin = export::Origin::new(self.config, self.step);
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
    fn twin_on_cpu(&self, rec: &Recorder) -> Result<Option<Box<dyn Model>>> {
        if self.setup.device == Device::Cpu {
            return Ok(None);
        }
        let newest = checkpoint::newest_whole(&rec.run.checkpoints())?.filter(|(_, state)| state.step == self.step);
        let (dir, _) = newest.with_context(|| format!("the checkpoint of step {} is not whole", self.step))?;
        let mut twin = build::build(self.config, self.setup.train.shape(), self.setup.per_epoch, Device::Cpu)?;
        checkpoint::load(&dir, &[Part::Model], &mut |v| twin.visit(v))?;
        Ok(Some(twin))
    }

    fn summary(&self, rec: &Recorder) -> String {
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
    fn timelapse(&self, rec: &Recorder) -> String {
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

    /// What to say of a run of so few updates that nothing is learnt, unless just so many were asked for.
    fn too_few(&self) -> Option<String> {
        let (total, fresh) = (self.setup.total, self.step == 0 && self.config.settings.steps.is_none());
        let (enough, sees) = match self.config.model {
            ModelKind::Vae => (300, "a VAE's pictures take shape after some hundred"),
            ModelKind::Gan => (1000, "a GAN's pictures take shape after some thousand"),
        };
        (fresh && total < enough).then(|| {
            format!(
                "warning: this run has {total} updates ({} an epoch), and {sees}: more --epochs, --steps {}, or a smaller --batch-size",
                self.setup.per_epoch,
                5 * enough
            )
        })
    }

    fn headline(&self, rec: &Recorder) -> String {
        format!(
            "{}: {} on {} ({} training, {} held-out images of {}), {} steps, {}",
            rec.run.root().display(),
            self.config.model,
            self.setup.data,
            self.setup.train.len(),
            self.setup.test.len(),
            self.setup.train.shape(),
            self.setup.total,
            device::name(self.setup.device)
        )
    }

    /// One update; gives its number of images.
    fn one_step(&mut self) -> Result<i64> {
        let seed = match self.rollbacks {
            0 => self.config.seed,
            n => seed_for(self.config.seed, 0, Stream::Rollback, n.into()) as u64,
        };
        let at = At {
            noise: seed_for(seed, 0, Stream::Noise, self.step),
            step: self.step,
            epoch: self.step / self.setup.per_epoch,
            within: self.step % self.setup.per_epoch,
        };
        let count = self.stepper.step(&mut self.setup, &mut self.meter, at, &self.clock)?;
        self.step += 1;
        Ok(count)
    }

    /// Writes the row of the log interval that ends here.
    fn log_interval(&mut self, rec: &mut Recorder) -> Result<()> {
        let means = self.finite_means()?;
        let images_per_s = rec.interval_images as f64 / rec.interval.elapsed().as_secs_f64().max(1e-9);
        let values = self.setup.model.report(&means);
        let mut row = self.row_head(rec);
        row.push(("images_per_s".into(), images_per_s.round()));
        row.push(("lr".into(), self.lr()));
        row.extend(values.iter().map(|(k, v)| ((*k).to_owned(), *v)));
        rec.log.append(&row)?;
        let done = (self.step - rec.first_step) as f64;
        let eta_s = rec.started.elapsed().as_secs_f64() / done * (self.setup.total - self.step) as f64;
        let epoch = self.step as f64 / self.setup.per_epoch as f64;
        rec.progress.update(self.step, epoch, images_per_s, eta_s, &values);
        let from = self.step.saturating_sub(self.meter.images.div_ceil(self.config.batch_size as u64));
        for worry in self.watch.look(&self.setup.model.worries(&means), from, self.step) {
            rec.progress.say(&format!("warning: {worry}"));
        }
        self.meter.reset()?;
        if rec.drawn.elapsed().as_secs_f64() > REDRAW_S.max(30.0 * rec.draw_s) {
            self.draw_curves(rec);
        }
        rec.restart_clock();
        Ok(())
    }

    /// The meter's means.
    ///
    /// # Errors
    /// [`Diverged`], when one is not finite or beyond its limit.
    fn finite_means(&self) -> Result<Vec<f64>> {
        let means = self.meter.means()?;
        self.refuse_divergence("", &means)?;
        Ok(means)
    }

    fn refuse_divergence(&self, prefix: &str, means: &[f64]) -> Result<()> {
        let model = &self.setup.model;
        Ok(divergence::check(prefix, model.scalars(), means, &model.limits(), self.step)?)
    }

    fn row_head(&self, rec: &Recorder) -> Vec<(String, f64)> {
        let (epoch, within) = (self.step / self.setup.per_epoch, self.step % self.setup.per_epoch);
        let seen = epoch as f64 * self.setup.train.len() as f64 + (within * self.config.batch_size as u64) as f64;
        vec![
            ("step".into(), self.step as f64),
            ("epoch".into(), self.step as f64 / self.setup.per_epoch as f64),
            ("seen_images".into(), seen),
            ("wall_s".into(), (rec.wall_s() * 1e3).round() / 1e3),
        ]
    }

    /// Held-out scores, pictures and curves, each when its interval is due; false when a signal came before they were done.
    fn epoch_end(&mut self, rec: &mut Recorder, last: bool, stop: &StopFlag) -> Result<bool> {
        let epoch = self.step / self.setup.per_epoch;
        let whole = self.step.is_multiple_of(self.setup.per_epoch);
        let due = |every: u64| last || (whole && every > 0 && epoch.is_multiple_of(every));
        if due(self.config.eval_every) {
            rec.progress.doing("scoring the held-out images");
            let Some(values) = self.evaluate(stop)? else { return Ok(false) };
            let mut row = self.row_head(rec);
            row.extend(values.iter().map(|(k, v)| (format!("test_{k}"), *v)));
            rec.log.append(&row)?;
            let text: Vec<_> = values.iter().map(|(k, v)| format!("test_{k} {v:.3}")).collect();
            rec.scores = text.join("  ");
            rec.progress.say(&format!("epoch {:.2}  {}", self.step as f64 / self.setup.per_epoch as f64, rec.scores));
        }
        if due(self.config.sample_every) {
            rec.progress.doing("drawing");
            let name = if whole { format!("epoch-{epoch:04}.png") } else { format!("step-{:08}.png", self.step) };
            self.draw_samples(rec, &name)?;
            rec.picture = name;
        }
        // Short epochs: drawing takes at most a thirtieth of the time.
        if last || epoch <= 1 || rec.drawn.elapsed().as_secs_f64() > 30.0 * rec.draw_s {
            self.draw_curves(rec);
        }
        rec.restart_clock();
        Ok(true)
    }

    /// Means of the model's values over all held-out images, each once, with the same noise at every evaluation; none when a
    /// signal came.
    fn evaluate(&mut self, stop: &StopFlag) -> Result<Option<Vec<(&'static str, f64)>>> {
        let mut meter = Meter::new(self.setup.model.scalars().len(), self.setup.device);
        for (i, from) in (0..self.setup.test.len()).step_by(self.config.batch_size).enumerate() {
            if stop.signal().is_some() {
                return Ok(None);
            }
            let x = self.setup.test.range(from, self.config.batch_size)?;
            let cx = StepCx::host(seed_for(self.config.seed, 0, Stream::Eval, i as u64), self.step, &self.clock);
            meter.add(&self.setup.model.score(&x, cx)?, x.size()[0])?;
        }
        let means = meter.means()?;
        self.refuse_divergence("test_", &means)?;
        let criterion = self.setup.model.criterion();
        self.score = criterion.map(|of| Best { step: self.step, value: means[of] });
        Ok(Some(self.setup.model.report(&means)))
    }

    fn draw_samples(&self, rec: &Recorder, name: &str) -> Result<()> {
        let seed = seed_for(self.config.seed, 0, Stream::Samples, 0);
        let count = self.setup.train.showable(SAMPLES) as i64;
        let z = noise(seed, &[count, self.setup.model.latent()], self.setup.device)?;
        grid::draw(&self.setup.model.decode(&z)?, COLUMNS)?.save(&rec.run.samples().join(name))?;
        let originals = self.setup.test.spread(RECONSTRUCTIONS)?;
        if let Some(images) = self.setup.model.reconstruct(&originals)? {
            let folder = rec.run.reconstructions();
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("the folder {} could not be made", folder.display()))?;
            grid::draw(&grid::alternate(&originals, &images, COLUMNS)?, COLUMNS)?.save(&folder.join(name))?;
        }
        Ok(())
    }

    /// Redraws loss.png. A chart that cannot be drawn is said once and does not stop the run.
    fn draw_curves(&self, rec: &mut Recorder) {
        let began = Instant::now();
        let name = Path::new(&self.setup.data).file_name().unwrap_or_default().to_string_lossy();
        let title = format!("{} on {name}", self.config.model);
        let drawn = Metrics::read(rec.run.root())
            .and_then(|metrics| curves::draw_run(&metrics, &title, &rec.run.path("loss.png")));
        if let (Err(e), false) = (drawn, rec.warned) {
            rec.warned = true;
            rec.progress.say(&format!("warning: the curves could not be drawn, training goes on: {e:#}"));
        }
        rec.drawn = Instant::now();
        rec.draw_s = began.elapsed().as_secs_f64();
    }

    fn checkpoint(&mut self, rec: &mut Recorder) -> Result<()> {
        rec.lock.check()?;
        if self.meter.images > 0 {
            self.finite_means()?;
        }
        // The losses are of before the last update: what that one did to the weights shows here.
        self.visit(&mut AllFinite { step: self.step })?;
        if let Some(score) = self.score.filter(|s| s.step == self.step)
            && self.best.is_none_or(|best| score.value < best.value)
        {
            self.best = Some(score);
        }
        let state = self.state(rec.wall_s(), rec.log.sync()?)?;
        checkpoint::save(&rec.run.checkpoints(), state, self.config.keep, &mut |v| self.visit(v))?;
        rec.events.clear();
        Ok(())
    }

    fn visit(&mut self, v: &mut dyn Visit) -> Result<()> {
        self.setup.model.visit(v)?;
        v.tensor(Part::Optimizer, "meter.sums", &self.meter.sums)
    }
}

/// Refuses state that is not finite, so that a checkpoint is always one to go on from.
struct AllFinite {
    step: u64,
}

impl Visit for AllFinite {
    fn tensor(&mut self, _: Part, name: &str, t: &Tensor) -> Result<()> {
        // A sum is finite only if every element is (a finite sum that overflows would need weights of no use). Not in double:
        // that would copy the largest weights at twice their size. sync: at checkpoints only.
        let sum = t.f_sum(Kind::Float)?.f_double_value(&[])?;
        if !sum.is_finite() {
            let step = self.step;
            return Err(Diverged(format!("{name} is not finite after step {step}: training has diverged")).into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
