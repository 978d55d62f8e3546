//! Whether a device trains as it must: its losses, gradients and steps beside the CPU's, captured steps beside those that run operation
//! by operation.
//!
//! Small networks of every kind on the embedded digits: about two minutes on a GPU. `scripts/gpu_check` reads the result.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::base::seed::{Stream, seed_for};
use crate::base::setting::{Settings, choice_name};
use crate::base::timer::StepTimer;
use crate::config::device::{self, PRECISION};
use crate::config::training::{BATCH_SIZE, PRESET};
use crate::config::{self, Config};
use crate::data::{TEST_LIMIT, TRAIN_LIMIT};
use crate::models::gan::{DISCRIMINATOR_HIDDEN, EMA, GENERATOR_HIDDEN};
use crate::models::optimizer::{ADAM_EPS, CLIP_NORM, Hyper, LR, WEIGHT_DECAY};
use crate::models::tuning::{DETERMINISTIC, TUNE};
use crate::models::vae::{DECODER_HIDDEN, ENCODER_HIDDEN, KL_WARMUP};
use crate::models::{ModelKind, Part, Visit};
use crate::nets::BASE_WIDTH;
use crate::nets::Precision;
use crate::train::setup::Setup;
use crate::train::stepper::{At, Meter, Stepper, Way};

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub struct Check {
    /// What, such as `dcgan gan: gradients against the CPU`.
    pub name: String,
    /// Whether it is as it must be; none where this device cannot do it at all.
    pub passed: Option<bool>,
    /// The figures.
    pub detail: String,
}

impl Check {
    /// `off` must be at most `most`.
    fn new(name: String, (off, at): (f64, String), most: f64) -> Self {
        Check {
            name,
            passed: Some(off <= most),
            detail: format!("{at} is off by {off:.2e}, at most {most:.0e} wanted"),
        }
    }

    fn not_run(name: String, why: &str) -> Self {
        Check { name, passed: None, detail: why.into() }
    }

    /// One object.
    pub fn json(&self) -> Value {
        json!({ "name": self.name, "passed": self.passed, "detail": self.detail })
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let mark = match self.passed {
            Some(true) => "ok     ",
            Some(false) => "FAILED ",
            None => "not run",
        };
        format!("{mark}  {}: {}\n", self.name, self.detail)
    }
}

/// Adds what it finds.
type Look<'a> = Box<dyn FnOnce(&mut Vec<Check>) -> Result<()> + 'a>;

/// How long the comparisons are.
#[derive(Clone, Copy, Debug)]
struct Lengths {
    against_cpu: u64,
    against_eager: u64,
}

/// Looks at the device of this name with networks of every kind; `quick` takes a tenth of the steps. Each check is told to `said` as
/// soon as it is made, for a capture that fails may be the last thing that the process does; gives whether none failed.
///
/// # Errors
/// Those of `said`.
pub fn examine(device: &str, quick: bool, mut said: impl FnMut(&Check) -> Result<()>) -> Result<bool> {
    let lengths = if quick {
        Lengths { against_cpu: 5, against_eager: 20 }
    } else {
        Lengths { against_cpu: 50, against_eager: 200 }
    };
    let cases = [
        (ModelKind::Vae, "pytorch-vae"),
        (ModelKind::Vae, "conv-vae"),
        (ModelKind::Gan, "article"),
        (ModelKind::Gan, "dcgan"),
    ];
    let named = cases.map(|(kind, preset)| {
        let case = Case { kind, preset, device, batch: if quick { 16 } else { 64 } };
        (format!("{preset} {kind}"), case)
    });
    let mut well = true;
    let mut tell = |name: &str, made: Result<()>, mut all: Vec<Check>| -> Result<()> {
        if let Err(e) = made {
            all.push(Check { name: name.to_owned(), passed: Some(false), detail: format!("{e:#}") });
        }
        well &= all.iter().all(|check| check.passed != Some(false));
        all.iter().try_for_each(&mut said)
    };
    // All that captures nothing first.
    for (name, case) in &named {
        let mut all = Vec::new();
        let made = case.against_the_cpu(name, lengths.against_cpu, &mut all);
        tell(name, made, all)?;
        for few in FEW_BITS {
            let mut all = Vec::new();
            let made = case.in_few_bits(name, few, &mut all);
            tell(name, made, all)?;
        }
    }
    // After a capture that failed, the device is of no more use to the process: what is left is not looked at.
    let mut usable = true;
    for (name, case) in &named {
        let mut looks: Vec<(String, Look)> = Vec::new();
        for variant in case.variants(lengths.against_eager) {
            let what = format!("{name}{}: captured steps", variant.what);
            looks.push((what, Box::new(move |all| case.captured(name, variant, all))));
        }
        looks.push((format!("{name}: noise"), Box::new(|all| case.noise(name, all))));
        looks.push((format!("{name}: updates"), Box::new(|all| case.updates(name, all))));
        looks.push((format!("{name}: step size"), Box::new(|all| case.step_size(name, all))));
        for (what, look) in looks {
            if !usable {
                tell(&what, Ok(()), vec![Check::not_run(what.clone(), "a captured step failed before")])?;
                continue;
            }
            let mut all = Vec::new();
            let made = look(&mut all);
            usable = made.is_ok();
            tell(&what, made, all)?;
        }
    }
    Ok(well)
}

/// Factors of fewer bits than the CPU's, and how far losses and the gradient may be from its; and how far the gradient must be, so
/// that they were used at all.
struct FewBits {
    precision: Precision,
    losses: f64,
    gradient: f64,
    least: f64,
}

/// A factor of 11 bits is off by up to 5e-4, one of 8 by up to 4e-3. Sums average that, small sums of large terms magnify it: what
/// is wrong in kind is off by as much as the value itself. GPUs before Ampere know no TF32, and compute in float32.
const FEW_BITS: [FewBits; 2] = [
    FewBits { precision: Precision::Tf32, losses: 5e-3, gradient: 3e-2, least: 0.0 },
    FewBits { precision: Precision::Bf16, losses: 2e-2, gradient: 2e-1, least: 1e-4 },
];

/// Settings in which captured steps are compared with the same ones operation by operation.
struct Variant {
    what: &'static str,
    settings: Settings,
    steps: u64,
    most: f64,
    /// Whether both ways call the same kernels, so that all state can be compared.
    alike: bool,
}

/// Decay of the moving average.
const AVERAGE: f64 = 0.9;

struct Case<'a> {
    kind: ModelKind,
    preset: &'static str,
    device: &'a str,
    batch: u64,
}

impl Case<'_> {
    /// Small, in full float32, with everything that changes from step to step: warm-up, average, partial batches.
    fn config(&self, device: &str, more: Settings) -> Result<Config> {
        let cuda = device.starts_with("cuda");
        let mut settings = device::on(device)
            .with(&PRESET, self.preset.to_owned())
            .with(&BATCH_SIZE, self.batch)
            .with(&TRAIN_LIMIT, self.batch * 7 / 2)
            .with(&TEST_LIMIT, 1)
            .with(&DETERMINISTIC, true)
            // Else a gradient that is nothing but rounding moves its weight by a whole step, this way or that.
            .with(&ADAM_EPS, 1e-4);
        settings = match cuda {
            true => settings.with(&PRECISION, Precision::Fp32),
            false => settings.with(&TUNE, "off,kernels=libtorch,threads=1,products=blas".into()),
        };
        if self.convolutional() {
            settings = settings.with(&BASE_WIDTH, 16);
        }
        settings = match self.kind {
            ModelKind::Vae => {
                settings.with(&KL_WARMUP, 8.0).with(&ENCODER_HIDDEN, vec![64]).with(&DECODER_HIDDEN, vec![64])
            }
            ModelKind::Gan => settings.with(&EMA, AVERAGE),
        };
        if self.kind == ModelKind::Gan && !self.convolutional() {
            settings = settings.with(&GENERATOR_HIDDEN, vec![64, 96]).with(&DISCRIMINATOR_HIDDEN, vec![96, 64]);
        }
        config::resolve(self.kind, &settings.overlaid(&more))
    }

    fn convolutional(&self) -> bool {
        ["conv-vae", "dcgan"].contains(&self.preset)
    }

    /// How a run here reads its numbers from the device.
    fn way(&self) -> Way {
        if self.device.starts_with("cuda") { Way::Captured } else { Way::Device }
    }

    /// The same weights here, with `more` settings, and on the CPU.
    fn twins(&self, more: Settings) -> Result<[Run; 2]> {
        let mut cpu = Run::new(&self.config("cpu", Settings::default())?, Way::Host)?;
        let here = Run::new(&self.config(self.device, more)?, Way::Host)?;
        here.setup.model.visit(&mut Copy(&cpu.state()?))?;
        Ok([here, cpu])
    }

    /// The first step of both, on the same images with the same noise: its values and its gradients.
    fn first_step(&self, [here, cpu]: &mut [Run; 2]) -> Result<[[BTreeMap<String, Tensor>; 2]; 2]> {
        let values = [here.step(0)?, cpu.step(0)?];
        // The first moment after one step is the gradient, times 1 - beta1.
        let moments = |run: &mut Run| -> Result<BTreeMap<String, Tensor>> {
            Ok(run.state()?.into_iter().filter(|(name, _)| name.ends_with(".exp_avg")).collect())
        };
        Ok([values, [moments(here)?, moments(cpu)?]])
    }

    /// Here and on the CPU: the first step's values and gradients, then the values of many.
    fn against_the_cpu(&self, name: &str, steps: u64, all: &mut Vec<Check>) -> Result<()> {
        let mut twins = self.twins(Settings::default())?;
        let [values, gradients] = self.first_step(&mut twins)?;
        let off = compare(&values[0], &values[1], LEAST_VALUE);
        all.push(Check::new(format!("{name}: losses against the CPU"), off, 1e-5));
        // Each as one vector: where rounding turns a ReLU on or off, one element may be anything.
        let off = of_each(&gradients[0], &gradients[1], |name| name);
        all.push(Check::new(format!("{name}: gradients against the CPU"), off, 3e-2));
        let [mut here, mut cpu] = twins;
        let mut worst = (0.0, String::new());
        for step in 1..steps {
            let off = compare(&here.step(step)?, &cpu.step(step)?, LEAST_VALUE);
            if off.0 > worst.0 {
                worst = (off.0, format!("{} at step {step}", off.1));
            }
        }
        // Two players amplify the rounding of one step in the next.
        let most = if self.kind == ModelKind::Vae { 1e-3 } else { 5e-2 };
        all.push(Check::new(format!("{name}: {steps} steps against the CPU"), worst, most));
        Ok(())
    }

    /// The first step in this precision against the CPU's in float32.
    fn in_few_bits(&self, name: &str, few: FewBits, all: &mut Vec<Check>) -> Result<()> {
        let name = format!("{name}, {}", choice_name(&few.precision));
        if !self.device.starts_with("cuda") {
            all.push(Check::not_run(name, "a CPU computes in fp32"));
            return Ok(());
        }
        let more = Settings::default().with(&PRECISION, few.precision);
        let [values, gradients] = self.first_step(&mut self.twins(more)?)?;
        let off = compare(&values[0], &values[1], LEAST_VALUE);
        all.push(Check::new(format!("{name}: losses against the CPU"), off, few.losses));
        let off = of_each(&gradients[0], &gradients[1], network);
        let check = Check::new(format!("{name}: gradients against the CPU"), off.clone(), few.gradient);
        all.push(if off.0 >= few.least {
            check
        } else {
            Check {
                passed: Some(false),
                detail: format!("{} is off by {:.1e} alone: it was computed in more bits", off.1, off.0),
                ..check
            }
        });
        Ok(())
    }

    /// What changes the operations of a step: each must be captured as it runs.
    fn variants(&self, steps: u64) -> Vec<Variant> {
        let few = |what, settings, most| Variant { what, settings, steps: steps / 2, most, alike: true };
        let none = Settings::default;
        let mut all = vec![
            Variant { what: "", settings: none(), steps, most: 1e-3, alike: true },
            few(", clipped AdamW", none().with(&CLIP_NORM, 0.5).with(&WEIGHT_DECAY, 0.1), 1e-3),
            few(", bf16", none().with(&PRECISION, Precision::Bf16), 5e-2),
            // As a run is that asks for nothing.
            Variant {
                what: ", tf32, not deterministic",
                settings: none().with(&PRECISION, Precision::Tf32).with(&DETERMINISTIC, false),
                steps: (steps / 10).max(8),
                most: 5e-2,
                alike: false,
            },
        ];
        if self.convolutional() {
            all.push(few(", contiguous", none().with(&TUNE, "off,layout=contiguous".into()), 1e-3));
        }
        all
    }

    /// Captured steps against the same ones operation by operation: values on the way, and all state at the end.
    fn captured(&self, name: &str, variant: Variant, all: &mut Vec<Check>) -> Result<()> {
        let Variant { what, settings, steps, most, alike } = variant;
        let name = format!("{name}{what}: {steps} captured steps against steps operation by operation");
        if !self.device.starts_with("cuda") {
            all.push(Check::not_run(name, "there is nothing to capture on a CPU"));
            return Ok(());
        }
        let config = self.config(self.device, settings)?;
        let [mut eager, mut captured] = [Run::new(&config, Way::Device)?, Run::new(&config, Way::Captured)?];
        let mut worst = (0.0, String::new());
        for step in 0..steps {
            let off = compare(&captured.step(step)?, &eager.step(step)?, 0.1);
            if off.0 > worst.0 {
                worst = (off.0, format!("{} at step {step}", off.1));
            }
        }
        if alike {
            let off = compare(&captured.state()?, &eager.state()?, 1e-4);
            worst = if off.0 > worst.0 { off } else { worst };
        }
        let mut check = Check::new(name, worst, most);
        if !captured.stepper.captured() {
            check = Check { passed: Some(false), detail: "no step was captured".into(), ..check };
        }
        all.push(check);
        Ok(())
    }

    /// What one step by the device's numbers does to weights and averages, from its moments by the formulas, in double precision:
    /// Adam with weight decay (algorithms 1 and 2 of arXiv 1412.6980 and 1711.05101), and the moving average.
    fn updates(&self, name: &str, all: &mut Vec<Check>) -> Result<()> {
        let config = self.config(self.device, Settings::default().with(&WEIGHT_DECAY, 0.1))?;
        let mut run = Run::new(&config, self.way())?;
        // The last of these is a replay, where steps are captured.
        let (done, c) = (9, Hyper::from_settings(&config.settings)?.adam);
        for step in 0..done {
            run.step(step)?;
        }
        let before = run.state()?;
        run.step(done)?;
        let after = run.state()?;
        let double = |of: &BTreeMap<String, Tensor>, name: &str| -> Result<Tensor> {
            Ok(of.get(name).with_context(|| format!("{name} is missing"))?.to_kind(Kind::Double))
        };
        let (t, of_t) = ((done + 1) as i32, done as f64);
        let average_weight = 1.0 - ((1.0 + of_t) / (10.0 + of_t)).min(AVERAGE);
        let mut wanted = BTreeMap::new();
        for name in before.keys() {
            if let (Some(m), Some(v)) =
                (after.get(&format!("{name}.exp_avg")), after.get(&format!("{name}.exp_avg_sq")))
            {
                let m = m.to_kind(Kind::Double) / (1.0 - c.beta1.powi(t));
                let v = v.to_kind(Kind::Double) / (1.0 - c.beta2.powi(t));
                let kept = double(&before, name)? * (1.0 - c.lr * c.weight_decay);
                wanted.insert(name.clone(), kept - m / (v.sqrt() + c.eps) * c.lr);
            } else if let Some(of) = name.strip_prefix("ema.") {
                let old = double(&before, name)?;
                wanted.insert(name.clone(), &old + (double(&after, of)? - &old) * average_weight);
            }
        }
        // Of what the step moved, not of what was there.
        let moved = |of: &BTreeMap<String, Tensor>| -> Result<BTreeMap<String, Tensor>> {
            wanted.keys().map(|name| Ok((name.clone(), double(of, name)? - double(&before, name)?))).collect()
        };
        let off = compare(&moved(&after)?, &moved(&wanted)?, 1e-6);
        all.push(Check::new(format!("{name}: {} updates by their formulas", wanted.len()), off, 1e-2));
        Ok(())
    }

    /// A step size that is changed after the capture, as when a run goes back, is the one that replays take.
    fn step_size(&self, name: &str, all: &mut Vec<Check>) -> Result<()> {
        let config = self.config(self.device, Settings::default().with(&WEIGHT_DECAY, 0.1))?;
        let mut run = Run::new(&config, self.way())?;
        let mut weights = |from: u64, lr: f64| -> Result<BTreeMap<String, Tensor>> {
            run.setup.model.set_lr(lr)?;
            for step in from..from + 8 {
                run.step(step)?;
            }
            let state = run.state()?;
            let trained = |name: &String| state.contains_key(&format!("{name}.exp_avg"));
            Ok(state.keys().filter(|name| trained(name)).map(|name| (name.clone(), state[name].copy())).collect())
        };
        let lr = config.settings.get(&LR)?;
        let (before, still, moved) = (weights(0, lr)?, weights(8, 0.0)?, weights(16, lr)?);
        let [still, moved] = [&still, &moved].map(|after| compare(after, &before, 1e-6).0);
        all.push(Check {
            name: format!("{name}: a changed step size reaches later steps"),
            passed: Some(!before.is_empty() && still == 0.0 && moved > 0.0),
            detail: format!("{} weights move by {still:.1e} with none, by {moved:.1e} with one again", before.len()),
        });
        Ok(())
    }

    /// On the same images and all but the same weights, the first loss differs from step to step by the noise alone; a step made
    /// again gives its own value again.
    fn noise(&self, name: &str, all: &mut Vec<Check>) -> Result<()> {
        let still = Settings::default().with(&LR, 1e-12).with(&TRAIN_LIMIT, self.batch);
        let config = self.config(self.device, still)?;
        let way = Way::on(device::open(&config.settings)?, true);
        // The terms of the losses that depend on the noise.
        let of = if self.kind == ModelKind::Vae { "recon" } else { "d_loss" };
        // The sixth step on: a captured step is a replay by then. Batch normalisation's averages move, what is drawn does not.
        let values = || -> Result<Vec<f64>> {
            let mut run = Run::new(&config, way)?;
            // sync: numbers of a check, on the CPU.
            (0..16).map(|step| Ok(run.step_at(step, 0)?[of].double_value(&[]))).collect()
        };
        let (first, second) = (values()?, values()?);
        let mut sorted = first[6..].to_vec();
        sorted.sort_by(f64::total_cmp);
        let least = sorted.windows(2).map(|w| (w[1] - w[0]).abs()).fold(f64::INFINITY, f64::min);
        let again = first.iter().zip(&second).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        all.push(Check {
            name: format!("{name}: each step has noise of its own"),
            passed: Some(least > 0.0 && again <= 1e-4 * first[0].abs()),
            detail: format!("values of ten steps differ by at least {least:.1e}, made again by at most {again:.1e}"),
        });
        Ok(())
    }
}

/// The divergence of fresh latents is a small difference of large sums: below 1 nat values are compared as they stand.
const LEAST_VALUE: f64 = 1.0;

/// A model under training.
struct Run {
    // First: a captured step must go before the tensors that it reads.
    stepper: Stepper,
    setup: Setup,
    meter: Meter,
    seed: u64,
}

impl Run {
    fn new(config: &Config, way: Way) -> Result<Self> {
        let setup = Setup::new(config, None)?;
        let device = setup.device;
        let meter = Meter::new(setup.model.measured(), device);
        Ok(Run { stepper: Stepper::new(way, device, config.seed, config.batch_size)?, setup, meter, seed: config.seed })
    }

    /// One update; its values by name, those that change smoothly.
    fn step(&mut self, step: u64) -> Result<BTreeMap<String, Tensor>> {
        self.step_at(step, step / self.setup.per_epoch)
    }

    /// The same on the images of this epoch.
    fn step_at(&mut self, step: u64, epoch: u64) -> Result<BTreeMap<String, Tensor>> {
        let within = step % self.setup.per_epoch;
        let at = At { noise: seed_for(self.seed, 0, Stream::Noise, step), step, epoch, within };
        self.stepper.step(&mut self.setup, &mut self.meter, at, &StepTimer::off())?;
        let means = self.meter.means()?;
        self.meter.reset()?;
        let names = self.setup.model.scalars().iter().map(|scalar| scalar.key.clone());
        // A share of images jumps when one of them is at the edge.
        let named = names.zip(means.into_iter().map(Tensor::from)).filter(|(name, _)| name != "d_accuracy");
        Ok(named.collect())
    }

    /// All state, on the CPU.
    fn state(&mut self) -> Result<BTreeMap<String, Tensor>> {
        let mut all = Collect(BTreeMap::new());
        self.setup.model.visit(&mut all)?;
        Ok(all.0)
    }
}

struct Collect(BTreeMap<String, Tensor>);

impl Visit for Collect {
    fn tensor(&mut self, _: Part, name: &str, t: &Tensor) -> Result<()> {
        let mut kept = Tensor::f_zeros(t.size(), (t.kind(), Device::Cpu))?;
        kept.f_copy_(&t.detach())?;
        self.0.insert(name.to_owned(), kept);
        Ok(())
    }
}

struct Copy<'a>(&'a BTreeMap<String, Tensor>);

impl Visit for Copy<'_> {
    fn tensor(&mut self, _: Part, name: &str, t: &Tensor) -> Result<()> {
        let from = self.0.get(name).with_context(|| format!("{name} is missing"))?;
        tch::no_grad(|| t.shallow_clone().f_copy_(from))?;
        Ok(())
    }
}

/// The largest difference of two sets of tensors, as a share of the larger of a tensor's largest magnitude and `least`, and where.
fn compare(got: &BTreeMap<String, Tensor>, want: &BTreeMap<String, Tensor>, least: f64) -> (f64, String) {
    let off = |(name, want): (&String, &Tensor)| {
        let Some(got) = got.get(name) else { return (f64::INFINITY, name.clone()) };
        let (got, want) = (got.to_kind(Kind::Double), want.to_kind(Kind::Double));
        // sync: numbers of a check, on the CPU.
        let [off, most] = [(got - &want).abs().max(), want.abs().max()].map(|t| t.double_value(&[]));
        // NaN compares as the largest.
        let off = off / most.max(least);
        (if off.is_nan() { f64::INFINITY } else { off }, name.clone())
    };
    want.iter().map(off).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default()
}

/// The largest [`distance`] of a part of two sets, and which; `part` says what part a tensor belongs to.
fn of_each(
    got: &BTreeMap<String, Tensor>,
    want: &BTreeMap<String, Tensor>,
    part: impl Fn(&str) -> &str,
) -> (f64, String) {
    let one = |which: &str, of: &BTreeMap<String, Tensor>| {
        of.iter().filter(|(name, _)| part(name) == which).map(|(name, t)| (name.clone(), t.shallow_clone())).collect()
    };
    let parts: BTreeSet<&str> = want.keys().map(|name| part(name)).collect();
    let off = |which: &str| (distance(&one(which, got), &one(which, want)), which.to_owned());
    parts.into_iter().map(off).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default()
}

/// The network that a tensor belongs to.
fn network(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

/// The Euclidean distance of two sets of tensors, each taken as one vector, as a share of the length of `want`.
fn distance(got: &BTreeMap<String, Tensor>, want: &BTreeMap<String, Tensor>) -> f64 {
    // sync: numbers of a check, on the CPU.
    let square = |t: Tensor| t.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]);
    let off: f64 = want.iter().map(|(name, want)| got.get(name).map_or(f64::INFINITY, |got| square(got - want))).sum();
    let length: f64 = want.values().map(|want| square(want.shallow_clone())).sum();
    // A gradient of nothing is as good as none.
    let share = (off / length.max(1e-16)).sqrt();
    if share.is_nan() { f64::INFINITY } else { share }
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
        assert_eq!(of_each(&of(3.0, 6.0), &of(3.0, 4.0), |name| name), (0.5, "b".into()));
        assert_eq!(of_each(&of(f64::NAN, 4.0), &of(3.0, 4.0), |name| name), (f64::INFINITY, "a".into()));
        assert_eq!(of_each(&of(3.0, 6.5), &of(3.0, 4.0), |_| "all"), (0.5, "all".into()));
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
        let check = Check::new("x".into(), (0.5, "b".into()), 1e-3);
        assert!(check.line().starts_with("FAILED   x: b is off by"), "{}", check.line());
    }
}
