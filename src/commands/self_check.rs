//! `ganvae doctor --check`: compares losses, gradients and steps of a device with the CPU's, and captured steps with eager ones.
//!
//! Small networks of every kind on the embedded digits: about two minutes on a GPU. `scripts/gpu_check` reads the result.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::{Context, Result};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::base::setting::{Settings, choice_name};
use crate::base::timer::StepTimer;
use crate::config::device::{self, PRECISION};
use crate::config::training::{BATCH_SIZE, PRESET};
use crate::config::{self, Config};
use crate::data::{TEST_LIMIT, TRAIN_LIMIT};
use crate::models::gan::{DISCRIMINATOR_HIDDEN, EMA, GENERATOR_HIDDEN};
use crate::models::optimizer::{ADAM_EPS, CLIP_NORM, LR, OptimizerSettings, WEIGHT_DECAY};
use crate::models::tuning::{DETERMINISTIC, TUNE};
use crate::models::vae::{DECODER_HIDDEN, ENCODER_HIDDEN, KL_WARMUP};
use crate::models::{Length, ModelKind, Part};
use crate::nets::BASE_WIDTH;
use crate::nets::Precision;
use crate::run::checkpoint;
use crate::train::setup::Setup;
use crate::train::stepper::{AverageMeter, ExecutionMode, StepPosition, Stepper};

/// The result of one check.
pub(super) struct CheckResult {
    /// Such as `dcgan gan: gradients against the CPU`.
    name: String,
    /// None where this device cannot run the check.
    passed: Option<bool>,
    /// The figures.
    detail: String,
}

impl CheckResult {
    /// The difference `off`, of the tensor `name_of`, must be at most `most`.
    fn new(name: String, (off, name_of): (f64, String), most: f64) -> Self {
        let detail = format!("{name_of} is off by {off:.2e}, at most {most:.0e} wanted");
        CheckResult { name, passed: Some(off <= most), detail }
    }

    fn not_run(name: String, why: &str) -> Self {
        CheckResult { name, passed: None, detail: why.into() }
    }

    /// A line for people, or a JSON object.
    pub(super) fn line(&self, json: bool) -> String {
        if json {
            return format!("{}\n", json!({ "name": self.name, "passed": self.passed, "detail": self.detail }));
        }
        let mark = match self.passed {
            Some(true) => "ok     ",
            Some(false) => "FAILED ",
            None => "not run",
        };
        format!("{mark}  {}: {}\n", self.name, self.detail)
    }
}

/// A check, which adds its results.
type CheckFn<'a> = Box<dyn FnOnce(&mut Vec<CheckResult>) -> Result<()> + 'a>;

/// Checks the device of this name with networks of every kind; `quick` takes a tenth of the steps. `report` gets each result at once,
/// since a failed capture may end the process. Gives whether none failed.
pub(super) fn check_device(
    device: &str,
    quick: bool,
    mut report: impl FnMut(&CheckResult) -> Result<()>,
) -> Result<bool> {
    let (cpu_steps, eager_steps, batch_size) = if quick { (5, 20, 16) } else { (50, 200, 64) };
    let cases = [
        (ModelKind::Vae, "pytorch-vae"),
        (ModelKind::Vae, "conv-vae"),
        (ModelKind::Gan, "article"),
        (ModelKind::Gan, "dcgan"),
    ]
    .map(|(kind, preset)| CheckCase { name: format!("{preset} {kind}"), kind, preset, device, batch_size });
    // Checks without a capture first.
    let mut checks: Vec<(String, CheckFn)> = Vec::new();
    for case in &cases {
        let name = || case.name.clone();
        checks.push((name(), Box::new(move |all| case.against_the_cpu(cpu_steps, all))));
        for limits in LOW_PRECISION {
            checks.push((name(), Box::new(move |all| case.in_low_precision(limits, all))));
        }
    }
    let without_capture = checks.len();
    for case in &cases {
        let name = |what: &str| format!("{}{what}", case.name);
        for variant in case.variants(eager_steps) {
            let what = name(&format!("{}: captured steps", variant.what));
            checks.push((what, Box::new(move |all| case.captured(variant, all))));
        }
        checks.push((name(": noise"), Box::new(|all| case.noise(all))));
        checks.push((name(": updates"), Box::new(|all| case.updates(all))));
        checks.push((name(": step size"), Box::new(|all| case.learning_rate(all))));
    }
    // After a failed capture the process cannot use the device: the remaining checks are not run.
    let (mut passed, mut usable) = (true, true);
    for (i, (name, check)) in checks.into_iter().enumerate() {
        let mut results = Vec::new();
        if !usable {
            results.push(CheckResult::not_run(name, "a captured step failed before"));
        } else if let Err(e) = check(&mut results) {
            results.push(CheckResult { name, passed: Some(false), detail: format!("{e:#}") });
            usable = i < without_capture;
        }
        passed &= results.iter().all(|result| result.passed != Some(false));
        results.iter().try_for_each(&mut report)?;
    }
    Ok(passed)
}

/// A precision below float32, and the largest relative differences of losses and gradients from the CPU's; `least` is the smallest
/// difference of the gradients that shows that the precision was used.
struct PrecisionLimits {
    precision: Precision,
    losses: f64,
    gradient: f64,
    least: f64,
}

/// TF32 rounds a factor by up to 5e-4, bfloat16 by up to 4e-3. Sums average these errors, small sums of large terms magnify them; an
/// error in the code differs by as much as the value itself. GPUs before Ampere have no TF32, and compute in float32.
const LOW_PRECISION: [PrecisionLimits; 2] = [
    PrecisionLimits { precision: Precision::Tf32, losses: 5e-3, gradient: 3e-2, least: 0.0 },
    PrecisionLimits { precision: Precision::Bf16, losses: 2e-2, gradient: 2e-1, least: 1e-4 },
];

/// Settings in which captured steps are compared with eager ones.
struct Variant {
    what: &'static str,
    settings: Settings,
    steps: u64,
    most: f64,
    /// Whether both modes call the same kernels, so that all state can be compared.
    same_kernels: bool,
}

/// Decay of the moving average.
const EMA_DECAY: f64 = 0.9;
/// Magnitude of a loss below which differences are absolute: the divergence of fresh latents is a small difference of large sums.
const LEAST_VALUE: f64 = 1.0;

/// Tensors by name.
type Tensors = BTreeMap<String, Tensor>;

/// A small network on a device.
struct CheckCase<'a> {
    name: String,
    kind: ModelKind,
    preset: &'static str,
    device: &'a str,
    batch_size: u64,
}

impl CheckCase<'_> {
    /// Small, in float32, with everything that changes from step to step: warm-up, moving average, partial batches.
    fn config(&self, device: &str, more: Settings) -> Result<Config> {
        let mut settings = device::on(device)
            .with(&PRESET, self.preset.to_owned())
            .with(&BATCH_SIZE, self.batch_size)
            .with(&TRAIN_LIMIT, self.batch_size * 7 / 2)
            .with(&TEST_LIMIT, 1)
            .with(&DETERMINISTIC, true)
            // With a smaller one, a gradient of rounding errors alone moves its weight by a full step in either direction.
            .with(&ADAM_EPS, 1e-4);
        settings = match device.starts_with("cuda") {
            true => settings.with(&PRECISION, Precision::Fp32),
            false => settings.with(&TUNE, "off,kernels=libtorch,threads=1,products=blas".into()),
        };
        settings = match (self.kind, self.convolutional()) {
            (ModelKind::Vae, _) => {
                settings.with(&KL_WARMUP, 8.0).with(&ENCODER_HIDDEN, vec![64]).with(&DECODER_HIDDEN, vec![64])
            }
            (ModelKind::Gan, true) => settings.with(&EMA, EMA_DECAY),
            (ModelKind::Gan, false) => {
                let settings = settings.with(&EMA, EMA_DECAY).with(&GENERATOR_HIDDEN, vec![64, 96]);
                settings.with(&DISCRIMINATOR_HIDDEN, vec![96, 64])
            }
        };
        settings = settings.with_some(&BASE_WIDTH, self.convolutional().then_some(16));
        config::resolve(self.kind, &settings.overlaid(&more))
    }

    fn convolutional(&self) -> bool {
        ["conv-vae", "dcgan"].contains(&self.preset)
    }

    fn on_cuda(&self) -> bool {
        self.device.starts_with("cuda")
    }

    /// A run here with `more` settings that reads its numbers from the device, captured where possible.
    fn run_on_device(&self, more: Settings) -> Result<(Config, TestRun)> {
        let config = self.config(self.device, more)?;
        let mode = if self.on_cuda() { ExecutionMode::Captured } else { ExecutionMode::Device };
        let run = TestRun::new(&config, mode)?;
        Ok((config, run))
    }

    /// Two runs with the same weights: here, with `more` settings, and on the CPU.
    fn here_and_on_cpu(&self, more: Settings) -> Result<[TestRun; 2]> {
        let cpu = TestRun::new(&self.config("cpu", Settings::default())?, ExecutionMode::Host)?;
        let here = TestRun::new(&self.config(self.device, more)?, ExecutionMode::Host)?;
        let from = cpu.state()?;
        tch::no_grad(|| {
            for (name, mut t) in here.live()? {
                t.f_copy_(from.get(&name).with_context(|| format!("{name} is missing"))?)?;
            }
            Ok([here, cpu])
        })
    }

    /// Runs the first step of both on the same images with the same noise, and compares the losses and the gradients, the gradients
    /// as one vector for each `group`.
    fn compare_first_step(
        &self,
        [here, cpu]: &mut [TestRun; 2],
        group: fn(&str) -> &str,
    ) -> Result<[(f64, String); 2]> {
        let losses = compare(&here.step(0)?, &cpu.step(0)?, LEAST_VALUE);
        // The first moment after one step is the gradient, times 1 - beta1.
        let gradients = |run: &TestRun| -> Result<Tensors> {
            Ok(run.state()?.into_iter().filter(|(name, _)| name.ends_with(".exp_avg")).collect())
        };
        Ok([losses, compare_groups(&gradients(here)?, &gradients(cpu)?, group)])
    }

    /// Compares the device with the CPU: losses and gradients of the first step, then the losses of many.
    fn against_the_cpu(&self, steps: u64, all: &mut Vec<CheckResult>) -> Result<()> {
        let name = &self.name;
        let mut runs = self.here_and_on_cpu(Settings::default())?;
        // Each gradient as one vector: where rounding turns a ReLU on or off, one element may differ by any amount.
        let [losses, gradients] = self.compare_first_step(&mut runs, |name| name)?;
        all.push(CheckResult::new(format!("{name}: losses against the CPU"), losses, 1e-5));
        all.push(CheckResult::new(format!("{name}: gradients against the CPU"), gradients, 3e-2));
        let worst = compare_steps(&mut runs, 1..steps, LEAST_VALUE)?;
        // In a GAN, each network amplifies the rounding errors of the other.
        let most = if self.kind == ModelKind::Vae { 1e-3 } else { 5e-2 };
        all.push(CheckResult::new(format!("{name}: {steps} steps against the CPU"), worst, most));
        Ok(())
    }

    /// Compares the first step in this precision with the CPU's in float32.
    fn in_low_precision(&self, limits: PrecisionLimits, all: &mut Vec<CheckResult>) -> Result<()> {
        let name = format!("{}, {}", self.name, choice_name(&limits.precision));
        if !self.on_cuda() {
            all.push(CheckResult::not_run(name, "a CPU computes in fp32"));
            return Ok(());
        }
        let more = Settings::default().with(&PRECISION, limits.precision);
        let [losses, gradients] = self.compare_first_step(&mut self.here_and_on_cpu(more)?, network)?;
        all.push(CheckResult::new(format!("{name}: losses against the CPU"), losses, limits.losses));
        let (off, of) = gradients.clone();
        let mut result = CheckResult::new(format!("{name}: gradients against the CPU"), gradients, limits.gradient);
        if off < limits.least {
            result.passed = Some(false);
            result.detail = format!("{of} is off by {off:.1e} alone: it was computed in more bits");
        }
        all.push(result);
        Ok(())
    }

    /// Settings that change the operations of a step: each must be captured correctly.
    fn variants(&self, steps: u64) -> Vec<Variant> {
        let none = Settings::default;
        let half = |what, settings, most| Variant { what, settings, steps: steps / 2, most, same_kernels: true };
        let mut all = vec![
            Variant { what: "", settings: none(), steps, most: 1e-3, same_kernels: true },
            half(", clipped AdamW", none().with(&CLIP_NORM, 0.5).with(&WEIGHT_DECAY, 0.1), 1e-3),
            half(", bf16", none().with(&PRECISION, Precision::Bf16), 5e-2),
            // The defaults of a run.
            Variant {
                what: ", tf32, not deterministic",
                settings: none().with(&PRECISION, Precision::Tf32).with(&DETERMINISTIC, false),
                steps: (steps / 10).max(8),
                most: 5e-2,
                same_kernels: false,
            },
        ];
        if self.convolutional() {
            all.push(half(", contiguous", none().with(&TUNE, "off,layout=contiguous".into()), 1e-3));
        }
        all
    }

    /// Compares captured steps with eager ones: the losses of each step, and all state at the end.
    fn captured(&self, variant: Variant, all: &mut Vec<CheckResult>) -> Result<()> {
        let Variant { what, settings, steps, most, same_kernels } = variant;
        let name = format!("{}{what}: {steps} captured steps against steps operation by operation", self.name);
        if !self.on_cuda() {
            all.push(CheckResult::not_run(name, "there is nothing to capture on a CPU"));
            return Ok(());
        }
        let config = self.config(self.device, settings)?;
        let eager = TestRun::new(&config, ExecutionMode::Device)?;
        let mut runs = [TestRun::new(&config, ExecutionMode::Captured)?, eager];
        let mut worst = compare_steps(&mut runs, 0..steps, 0.1)?;
        let [captured, eager] = runs;
        if same_kernels {
            let off = compare(&captured.state()?, &eager.state()?, 1e-4);
            worst = if off.0 > worst.0 { off } else { worst };
        }
        let mut result = CheckResult::new(name, worst, most);
        if !captured.stepper.captured() {
            result = CheckResult { passed: Some(false), detail: "no step was captured".into(), ..result };
        }
        all.push(result);
        Ok(())
    }

    /// Compares the weights and averages after one step with the formulas, in double precision: Adam with weight decay (algorithms 1
    /// and 2 of arXiv 1412.6980 and 1711.05101), from the moments after the step, and the moving average.
    fn updates(&self, all: &mut Vec<CheckResult>) -> Result<()> {
        let (config, mut run) = self.run_on_device(Settings::default().with(&WEIGHT_DECAY, 0.1))?;
        // The last of these is a replay, where steps are captured.
        let (done, c) = (9, OptimizerSettings::from_settings(&config.settings, Length::ONE)?.adam);
        for step in 0..done {
            run.step(step)?;
        }
        let before = run.state()?;
        run.step(done)?;
        let after = run.state()?;
        let double = |of: &Tensors, name: &str| -> Result<Tensor> {
            Ok(of.get(name).with_context(|| format!("{name} is missing"))?.to_kind(Kind::Double))
        };
        let (t, updates) = ((done + 1) as i32, done as f64);
        let average_weight = 1.0 - ((1.0 + updates) / (10.0 + updates)).min(EMA_DECAY);
        let mut wanted = Tensors::new();
        for name in before.keys() {
            if let (Ok(m), Ok(v)) =
                (double(&after, &format!("{name}.exp_avg")), double(&after, &format!("{name}.exp_avg_sq")))
            {
                let (m, v) = (m / (1.0 - c.beta1.powi(t)), v / (1.0 - c.beta2.powi(t)));
                let decayed = double(&before, name)? * (1.0 - c.lr * c.weight_decay);
                wanted.insert(name.clone(), decayed - m / (v.sqrt() + c.eps) * c.lr);
            } else if let Some(of) = name.strip_prefix("ema.") {
                let old = double(&before, name)?;
                wanted.insert(name.clone(), &old + (double(&after, of)? - &old) * average_weight);
            }
        }
        // The change of each tensor, not its value.
        let change = |of: &Tensors| -> Result<Tensors> {
            wanted.keys().map(|name| Ok((name.clone(), double(of, name)? - double(&before, name)?))).collect()
        };
        let off = compare(&change(&after)?, &change(&wanted)?, 1e-6);
        all.push(CheckResult::new(format!("{}: {} updates by their formulas", self.name, wanted.len()), off, 1e-2));
        Ok(())
    }

    /// Checks that replays use a learning rate that is changed after the capture, as at a rollback.
    fn learning_rate(&self, all: &mut Vec<CheckResult>) -> Result<()> {
        let (_, mut run) = self.run_on_device(Settings::default().with(&WEIGHT_DECAY, 0.1))?;
        let mut weights = |from: u64, factor: f64| -> Result<Tensors> {
            run.setup.model.scale_lr(factor);
            for step in from..from + 8 {
                run.step(step)?;
            }
            let mut state = run.state()?;
            let trained: BTreeSet<_> =
                state.keys().filter_map(|name| name.strip_suffix(".exp_avg")).map(str::to_owned).collect();
            state.retain(|name, _| trained.contains(name));
            Ok(state)
        };
        let (before, still, moved) = (weights(0, 1.0)?, weights(8, 0.0)?, weights(16, 1.0)?);
        let [still, moved] = [&still, &moved].map(|after| compare(after, &before, 1e-6).0);
        all.push(CheckResult {
            name: format!("{}: a changed step size reaches later steps", self.name),
            passed: Some(!before.is_empty() && still == 0.0 && moved > 0.0),
            detail: format!("{} weights move by {still:.1e} with none, by {moved:.1e} with one again", before.len()),
        });
        Ok(())
    }

    /// Checks that each step has noise of its own, and that a repeated step has the same: on the same images, with a negligible
    /// learning rate, the losses differ by the noise alone.
    fn noise(&self, all: &mut Vec<CheckResult>) -> Result<()> {
        let more = Settings::default().with(&LR, 1e-12).with(&TRAIN_LIMIT, self.batch_size);
        // A loss that depends on the noise.
        let loss = if self.kind == ModelKind::Vae { "recon" } else { "d_loss" };
        let values = || -> Result<Vec<f64>> {
            let (_, mut run) = self.run_on_device(more.clone())?;
            // sync: numbers of a check, on the CPU.
            (0..16).map(|step| Ok(run.step_in_epoch(step, 0)?[loss].double_value(&[]))).collect()
        };
        let (first, second) = (values()?, values()?);
        // From the sixth step on, a captured step is a replay.
        let mut sorted = first[6..].to_vec();
        sorted.sort_by(f64::total_cmp);
        let least = sorted.windows(2).map(|w| (w[1] - w[0]).abs()).fold(f64::INFINITY, f64::min);
        let again = first.iter().zip(&second).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        all.push(CheckResult {
            name: format!("{}: each step has noise of its own", self.name),
            passed: Some(least > 0.0 && again <= 1e-4 * first[0].abs()),
            detail: format!("values of ten steps differ by at least {least:.1e}, made again by at most {again:.1e}"),
        });
        Ok(())
    }
}

/// A model in training.
struct TestRun {
    // First: a captured graph must be dropped before the tensors that it reads.
    stepper: Stepper,
    setup: Setup,
    meter: AverageMeter,
    seed: u64,
}

impl TestRun {
    fn new(config: &Config, mode: ExecutionMode) -> Result<Self> {
        let setup = Setup::new(config, None)?;
        let meter = AverageMeter::new(setup.model.measured(), setup.device);
        Ok(TestRun { stepper: Stepper::new(mode, &setup, config)?, setup, meter, seed: config.seed })
    }

    /// One update; its values by name.
    fn step(&mut self, step: u64) -> Result<Tensors> {
        self.step_in_epoch(step, step / self.setup.per_epoch)
    }

    /// One update on the images in the order of this epoch.
    fn step_in_epoch(&mut self, step: u64, epoch: u64) -> Result<Tensors> {
        let position = StepPosition { epoch, ..StepPosition::new(self.seed, step, self.setup.per_epoch) };
        self.stepper.step(&mut self.setup, &mut self.meter, position, &StepTimer::off())?;
        let means = self.meter.means()?;
        self.meter.reset()?;
        let names = self.setup.model.scalars().iter().map(|scalar| scalar.key.clone());
        // An accuracy jumps when one image is at the threshold.
        let values = self.setup.model.report(&means).into_iter().map(Tensor::from);
        let named = names.zip(values).filter(|(name, _)| name != "d_accuracy");
        Ok(named.collect())
    }

    /// All state, sharing its memory.
    fn live(&self) -> Result<Tensors> {
        let mut all = Tensors::new();
        for part in [Part::Model, Part::Optimizer] {
            all.extend(checkpoint::gather(part, &mut |v| self.setup.model.visit(v))?);
        }
        Ok(all)
    }

    /// A copy of all state on the CPU.
    fn state(&self) -> Result<Tensors> {
        let copy = |(name, t): (String, Tensor)| {
            let mut copy = Tensor::f_zeros(t.size(), (t.kind(), Device::Cpu))?;
            copy.f_copy_(&t.detach())?;
            Ok((name, copy))
        };
        self.live()?.into_iter().map(copy).collect()
    }
}

/// Runs `steps` of both and gives the largest difference of their losses, and where it is.
fn compare_steps([a, b]: &mut [TestRun; 2], steps: Range<u64>, least: f64) -> Result<(f64, String)> {
    let mut worst = (0.0, String::new());
    for step in steps {
        let (off, name) = compare(&a.step(step)?, &b.step(step)?, least);
        if off > worst.0 {
            worst = (off, format!("{name} at step {step}"));
        }
    }
    Ok(worst)
}

/// The largest difference of two sets of tensors, relative to the larger of the tensor's largest magnitude and `least`, and the name of
/// the tensor.
fn compare(got: &Tensors, want: &Tensors, least: f64) -> (f64, String) {
    let off = |(name, want): (&String, &Tensor)| {
        let Some(got) = got.get(name) else { return (f64::INFINITY, name.clone()) };
        let (got, want) = (got.to_kind(Kind::Double), want.to_kind(Kind::Double));
        // sync: numbers of a check, on the CPU.
        let [off, most] = [(got - &want).abs().max(), want.abs().max()].map(|t| t.double_value(&[]));
        (nan_to_infinity(off / most.max(least)), name.clone())
    };
    want.iter().map(off).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default()
}

/// The largest [`distance`] of a group of tensors in two sets, and its name; `group` gives the group of a tensor.
fn compare_groups(got: &Tensors, want: &Tensors, group: impl Fn(&str) -> &str) -> (f64, String) {
    let select = |which: &str, of: &Tensors| {
        of.iter().filter(|(name, _)| group(name) == which).map(|(name, t)| (name.clone(), t.shallow_clone())).collect()
    };
    let groups: BTreeSet<&str> = want.keys().map(|name| group(name)).collect();
    let off = |which: &str| (distance(&select(which, got), &select(which, want)), which.to_owned());
    groups.into_iter().map(off).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default()
}

/// The network that a tensor belongs to.
fn network(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

/// The Euclidean distance of two sets of tensors, each as one vector, relative to the norm of `want`.
fn distance(got: &Tensors, want: &Tensors) -> f64 {
    // sync: numbers of a check, on the CPU.
    let square = |t: Tensor| t.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]);
    let off: f64 = want.iter().map(|(name, want)| got.get(name).map_or(f64::INFINITY, |got| square(got - want))).sum();
    let norm: f64 = want.values().map(|want| square(want.shallow_clone())).sum();
    // A gradient near zero counts as zero.
    nan_to_infinity((off / norm.max(1e-16)).sqrt())
}

fn nan_to_infinity(v: f64) -> f64 {
    if v.is_nan() { f64::INFINITY } else { v }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distance_is_that_of_whole_gradients() {
        let of =
            |a: f64, b: f64| BTreeMap::from([("a".to_owned(), Tensor::from(a)), ("b".to_owned(), Tensor::from(b))]);
        assert_eq!(distance(&of(3.0, 4.0), &of(3.0, 4.0)), 0.0);
        assert_eq!(distance(&of(3.0, 6.5), &of(3.0, 4.0)), 0.5);
        assert_eq!(distance(&of(f64::NAN, 4.0), &of(3.0, 4.0)), f64::INFINITY);
        assert_eq!(distance(&BTreeMap::new(), &of(3.0, 4.0)), f64::INFINITY);
        assert_eq!(compare_groups(&of(3.0, 6.0), &of(3.0, 4.0), |name| name), (0.5, "b".into()));
        assert_eq!(compare_groups(&of(f64::NAN, 4.0), &of(3.0, 4.0), |name| name), (f64::INFINITY, "a".into()));
        assert_eq!(compare_groups(&of(3.0, 6.5), &of(3.0, 4.0), |_| "all"), (0.5, "all".into()));
        assert_eq!(network("encoder.fc1.weight"), "encoder");
    }

    #[test]
    fn a_difference_is_found_where_it_is() {
        let of =
            |a: f64, b: f64| BTreeMap::from([("a".to_owned(), Tensor::from(a)), ("b".to_owned(), Tensor::from(b))]);
        assert_eq!(compare(&of(1.0, 2.0), &of(1.0, 2.0), 0.1).0, 0.0);
        assert_eq!(compare(&of(1.0, 3.0), &of(1.0, 2.0), 0.1), (0.5, "b".into()));
        assert_eq!(compare(&of(f64::NAN, 2.0), &of(1.0, 2.0), 0.1), (f64::INFINITY, "a".into()));
        assert_eq!(compare(&BTreeMap::new(), &of(1.0, 2.0), 0.1).0, f64::INFINITY);
        let check = CheckResult::new("x".into(), (0.5, "b".into()), 1e-3);
        assert!(check.line(false).starts_with("FAILED   x: b is off by"), "{}", check.line(false));
    }
}
