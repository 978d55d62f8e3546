//! Adam and its state.

use anyhow::{Context, Result, bail, ensure};
use tch::{Device, Kind, Tensor};

use super::network::Network;
use super::schedule::{SCHEDULE, Schedule, Scheduled};
use super::{Length, Part, StepContext, Visit};
use crate::base::setting::{Group, Setting, Settings};
use crate::base::timer::Phase;
use crate::base::usage::usage;
use crate::native::{self, AdamSettings};

/// Hyper-parameters of an optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OptimizerSettings {
    /// Adam's hyper-parameters in the first update.
    pub adam: AdamSettings,
    /// The learning rate over the run; none where it stays.
    pub lr: Option<Schedule>,
    /// β₂ over the run; none where it stays. The bias correction of an update is 1 − β₂^t with the β₂ of this update, as in PyTorch's
    /// Adam under R3GAN's schedule: not the product of all β₂.
    pub beta2: Option<Schedule>,
    /// Maximum global norm of a network's gradients; 0 for no clipping.
    pub clip_norm: f64,
    /// How the images of an update are split into passes, whose gradients are averaged; none: they are one pass.
    pub micro_batch: Option<MicroBatch>,
}

/// Passes of an update, each of which takes the memory of its own images alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MicroBatch {
    /// Images of a pass, the last of which may have fewer.
    pub images: u64,
    /// Whether networks with batch normalisation are allowed: its statistics are those of a pass.
    pub with_batch_norm: bool,
}

/// Learning rate.
pub static LR: Setting<f64> =
    Setting::number("lr", "Adam's learning rate").range("above 0 and at most 1", |v| *v > 0.0 && *v <= 1.0);

/// The learning rate at the end.
pub static LR_END: Setting<f64> = Setting::number(
    "lr-end",
    "Adam's learning rate at the end of the run (see --schedule); that of --d-lr changes by the same factor [default: --lr]",
)
.range("from 0 to 1", |v| (0.0..=1.0).contains(v));

/// Decay of the first moment.
pub static BETA1: Setting<f64> = Setting::number("beta1", "Adam's decay of the first moment")
    .range("from 0 to below 1", |v| (0.0..1.0).contains(v))
    .default("0.9", "Kingma and Ba 2015");

/// Decay of the second moment.
pub static BETA2: Setting<f64> = Setting::number("beta2", "Adam's decay of the second moment")
    .range("from 0 to below 1", |v| (0.0..1.0).contains(v))
    .default("0.999", "Kingma and Ba 2015");

/// β₂ at the end.
pub static BETA2_END: Setting<f64> =
    Setting::number("beta2-end", "Adam's decay of the second moment at the end of the run [default: --beta2]")
        .range("from 0 to below 1", |v| (0.0..1.0).contains(v));

/// ε.
pub static ADAM_EPS: Setting<f64> = Setting::number("adam-eps", "Adam's epsilon")
    .range("above 0 and at most 1", |v| *v > 0.0 && *v <= 1.0)
    .default("1e-8", "Kingma and Ba 2015");

/// Weight decay.
pub static WEIGHT_DECAY: Setting<f64> = Setting::number("weight-decay", "AdamW's weight decay; 0 for plain Adam")
    .range("from 0 to 1", |v| (0.0..=1.0).contains(v))
    .default("0", "Kingma and Ba 2015 have none")
    .value_name("DECAY");

/// See [`OptimizerSettings::clip_norm`].
pub static CLIP_NORM: Setting<f64> =
    Setting::number("clip-norm", "Clip the gradients of each network to this global norm; 0 for no clipping")
        .range("from 0 to 1e9", |v| (0.0..=1e9).contains(v))
        .default("0", "stable training does not need it")
        .value_name("NORM");

/// See [`MicroBatch`].
pub static MICRO_BATCH: Setting<u64> = Setting::count(
    "micro-batch",
    "Compute an update in passes of so many images, to save memory: the mean of their gradients is that of the whole batch \
     [default: in one pass]",
)
.value_name("IMAGES");

/// See [`MicroBatch::with_batch_norm`].
pub static MICRO_BATCH_NORM: Setting<bool> = Setting::switch(
    "micro-batch-norm",
    "Allow --micro-batch with batch normalisation, whose statistics are then those of a pass: it trains as a smaller batch does",
)
.default("false", "the update is another one");

/// The settings of the optimizers.
pub static SETTINGS: Group = Group {
    heading: "Optimizer",
    settings: &[
        &LR,
        &LR_END,
        &BETA1,
        &BETA2,
        &BETA2_END,
        &SCHEDULE,
        &ADAM_EPS,
        &WEIGHT_DECAY,
        &CLIP_NORM,
        &MICRO_BATCH,
        &MICRO_BATCH_NORM,
    ],
};

impl OptimizerSettings {
    /// From the settings, for a run of this length.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] if the learning rate is not set.
    pub fn from_settings(s: &Settings, length: Length) -> Result<Self> {
        let adam = AdamSettings {
            lr: s.get(&LR)?,
            beta1: s.get(&BETA1)?,
            beta2: s.get(&BETA2)?,
            eps: s.get(&ADAM_EPS)?,
            weight_decay: s.get(&WEIGHT_DECAY)?,
        };
        let lr = Schedule::from_settings(s, adam.lr, &LR_END, length);
        let beta2 = Schedule::from_settings(s, adam.beta2, &BETA2_END, length);
        let with_batch_norm = s.get(&MICRO_BATCH_NORM)?;
        if with_batch_norm && s.given(&MICRO_BATCH).is_none() {
            usage!("--micro-batch-norm has no effect without --micro-batch: add it, or leave this out");
        }
        let micro_batch = s.given(&MICRO_BATCH).map(|images| MicroBatch { images, with_batch_norm });
        Ok(OptimizerSettings { adam, lr, beta2, clip_norm: s.get(&CLIP_NORM)?, micro_batch })
    }
}

/// Adam (Kingma and Ba 2015, arXiv 1412.6980) over the trainable variables of some networks.
#[derive(Debug)]
pub struct Adam {
    counter: &'static str,
    names: Vec<String>,
    params: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
    step: Tensor,
    start_lr: f64,
    lr: Scheduled,
    /// 1 − β₂, which float32 holds to more digits than β₂.
    beta2_rest: Scheduled,
    /// The factor on the scheduled learning rate.
    lr_factor: f64,
    hyper: OptimizerSettings,
}

impl Adam {
    /// Zero moments for every trainable variable of `networks`; `counter` is the checkpoint key of the number of updates.
    ///
    /// # Errors
    /// libtorch's, when memory ends.
    pub fn new(counter: &'static str, networks: &[&Network], hyper: OptimizerSettings) -> Result<Self> {
        let mut all: Vec<_> = networks.iter().flat_map(|n| n.variables()).filter(|(_, t)| t.requires_grad()).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let (names, params): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        let device = networks.first().map_or(Device::Cpu, |n| n.vars.device());
        let zeros = || params.iter().map(|p| Ok(p.detach().f_zeros_like()?)).collect::<Result<Vec<_>>>();
        Ok(Adam {
            counter,
            exp_avgs: zeros()?,
            exp_avg_sqs: zeros()?,
            step: Tensor::f_zeros([] as [i64; 0], (Kind::Float, device))?,
            start_lr: hyper.adam.lr,
            lr: Scheduled::new(hyper.adam.lr, device)?,
            beta2_rest: Scheduled::new(1.0 - hyper.adam.beta2, device)?,
            lr_factor: 1.0,
            names,
            params,
            hyper,
        })
    }

    /// Gradients of `loss` with respect to these parameters only.
    ///
    /// # Errors
    /// libtorch's, and when the loss does not depend on a parameter.
    pub fn gradients(&self, loss: &Tensor) -> Result<Vec<Tensor>> {
        let grads = Tensor::f_run_backward(&[loss], &self.params, false, false)?;
        if let Some(i) = grads.iter().position(|g| !g.defined()) {
            self.unreached(i)?;
        }
        Ok(grads)
    }

    /// One update with gradients in the order of [`Adam::names`], clipped if `clip_norm` is set.
    ///
    /// # Errors
    /// libtorch's.
    pub fn apply(&self, grads: &[Tensor], on_device: bool) -> Result<()> {
        let clipped;
        let grads = if self.hyper.clip_norm > 0.0 {
            (clipped, _) = native::clip_grad_norm(grads, self.hyper.clip_norm)?;
            &clipped
        } else {
            grads
        };
        let (p, m, v, step, c) = (&self.params, &self.exp_avgs, &self.exp_avg_sqs, &self.step, self.hyper.adam);
        if on_device && self.hyper.beta2.is_some() {
            return native::adam_on_device(p, grads, [m, v], step, [self.lr.device(), self.beta2_rest.device()], c);
        }
        native::fused_adam(p, grads, [m, v], step, on_device.then_some(self.lr.device()), c)
    }

    /// The backward pass of `loss` and one update. On the CPU, weights may be updated during the backward pass; with clipping, on a
    /// GPU and in steps that may be captured, it is [`Adam::gradients`], then [`Adam::apply`].
    ///
    /// # Errors
    /// As these two.
    pub fn minimise(&self, loss: &Tensor, cx: StepContext) -> Result<()> {
        let all_at_once = self.hyper.clip_norm > 0.0 || cx.on_device || self.step.device() != Device::Cpu;
        if all_at_once {
            let grads = self.gradients(loss)?;
            cx.timer.lap(Phase::Backward);
            self.apply(&grads, cx.on_device)?;
            cx.timer.lap(Phase::Optimizer);
            return Ok(());
        }
        let (seconds, missing) =
            native::minimise(loss, &self.params, [&self.exp_avgs, &self.exp_avg_sqs], &self.step, self.hyper.adam)?;
        cx.timer.lap(Phase::Backward);
        cx.timer.shift(Phase::Backward, Phase::Optimizer, seconds);
        match missing {
            Some(i) => self.unreached(i),
            None => Ok(()),
        }
    }

    /// The passes of an update on `count` images from image `from` on, as (from, count).
    pub fn passes(&self, (from, count): (i64, i64)) -> Vec<(i64, i64)> {
        let each = self.hyper.micro_batch.map_or(count, |micro| count.min(micro.images as i64)).max(1);
        (from..from + count).step_by(each as usize).map(|at| (at, each.min(from + count - at))).collect()
    }

    /// One update by a loss that is a mean over images: `loss` gives that of each of the `passes`, a scalar. One pass is left to
    /// `minimise`, which is [`Adam::minimise`].
    ///
    /// # Errors
    /// As [`Adam::minimise`].
    pub fn minimise_mean(
        &self,
        passes: &[(i64, i64)],
        cx: StepContext,
        minimise: impl FnOnce(&Adam, &Tensor) -> Result<()>,
        mut loss: impl FnMut((i64, i64)) -> Result<Tensor>,
    ) -> Result<()> {
        if let [pass] = passes {
            let loss = loss(*pass)?;
            cx.timer.lap(Phase::Forward);
            return minimise(self, &loss);
        }
        let images: i64 = passes.iter().map(|pass| pass.1).sum();
        let mut mean: Vec<Tensor> = Vec::new();
        for pass in passes {
            let share = loss(*pass)?.f_mul_scalar(pass.1 as f64 / images as f64)?;
            cx.timer.lap(Phase::Forward);
            let grads = self.gradients(&share)?;
            match mean.is_empty() {
                true => mean = grads,
                false => {
                    for (sum, grad) in mean.iter_mut().zip(&grads) {
                        // Not in place: two parameters may share one gradient tensor.
                        *sum = sum.f_add(grad)?;
                    }
                }
            }
            cx.timer.lap(Phase::Backward);
        }
        self.apply(&mean, cx.on_device)?;
        cx.timer.lap(Phase::Optimizer);
        Ok(())
    }

    fn unreached(&self, i: usize) -> Result<()> {
        bail!("the parameter {} does not reach the loss, so it has no gradient", self.names[i])
    }

    /// Gives the moments the memory layout of the parameters: an update reads all of them in memory order.
    ///
    /// # Errors
    /// libtorch's, when out of memory.
    pub fn arrange(&mut self) -> Result<()> {
        for moments in [&mut self.exp_avgs, &mut self.exp_avg_sqs] {
            for (p, m) in self.params.iter().zip(moments) {
                let mut laid = p.detach().f_zeros_like()?;
                laid.f_copy_(m)?;
                *m = laid;
            }
        }
        Ok(())
    }

    /// Frees the moments; later updates and [`Adam::visit`] fail.
    pub fn free(&mut self) {
        (self.exp_avgs, self.exp_avg_sqs) = (Vec::new(), Vec::new());
    }

    /// Sets learning rate and β₂ for the update after `step` updates.
    ///
    /// # Errors
    /// libtorch's.
    pub fn schedule(&mut self, step: u64) -> Result<()> {
        let OptimizerSettings { lr, beta2, .. } = self.hyper;
        if let Some(beta2) = beta2 {
            self.hyper.adam.beta2 = beta2.at(step);
            self.beta2_rest.set(1.0 - beta2.at(step))?;
        }
        self.set_lr(lr.map_or(self.start_lr, |lr| lr.at(step)) * self.lr_factor)
    }

    /// Sets the factor on the learning rates of later [`Adam::schedule`]s.
    pub fn scale_lr(&mut self, factor: f64) {
        self.lr_factor = factor;
    }

    /// The learning rate of the next update.
    pub fn lr(&self) -> f64 {
        self.lr.host()
    }

    /// Sets the learning rate, until the next [`Adam::schedule`].
    ///
    /// # Errors
    /// libtorch's.
    pub fn set_lr(&mut self, lr: f64) -> Result<()> {
        self.hyper.adam.lr = lr;
        self.lr.set(lr)
    }

    /// The parameters, in the order of their names.
    pub fn params(&self) -> &[Tensor] {
        &self.params
    }

    /// Names of the parameters, sorted.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Passes the moments and the counter to `v`.
    ///
    /// # Errors
    /// The visitor's; when the moments have been freed.
    pub fn visit(&self, v: &mut dyn Visit) -> Result<()> {
        ensure!(self.exp_avgs.len() == self.names.len(), "the optimizer's moments were freed when training ended");
        for (i, name) in self.names.iter().enumerate() {
            v.tensor(Part::Optimizer, &format!("{name}.exp_avg"), &self.exp_avgs[i])?;
            v.tensor(Part::Optimizer, &format!("{name}.exp_avg_sq"), &self.exp_avg_sqs[i])?;
        }
        v.tensor(Part::Optimizer, self.counter, &self.step)
    }
}

/// The mean over images of a value that is a mean over those of each pass.
///
/// # Errors
/// libtorch's.
pub fn mean_of_passes<'a>(passes: &[(i64, i64)], values: impl Iterator<Item = &'a Tensor>) -> Result<Tensor> {
    let images: i64 = passes.iter().map(|pass| pass.1).sum();
    let mut shares = passes.iter().zip(values).map(|(pass, value)| (pass.1 as f64 / images as f64, value));
    let (share, first) = shares.next().context("an update has a pass")?;
    // One pass: the value itself, without an operation.
    let first = if share == 1.0 { first.shallow_clone() } else { first.f_mul_scalar(share)? };
    shares.try_fold(first, |sum, (share, value)| Ok(sum.f_add(&value.f_mul_scalar(share)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::timer::StepTimer;
    use crate::models::noise::Noise;
    use crate::models::schedule::ScheduleKind;
    use crate::nets::graph::{Init, Port};

    #[test]
    fn a_factor_multiplies_the_schedule() {
        let schedule = |start, end| Some(Schedule { start, end, kind: ScheduleKind::Linear, steps: 10 });
        let hyper =
            OptimizerSettings { lr: schedule(1.0, 0.0), beta2: schedule(0.9, 0.99), ..OptimizerSettings::default() };
        let (network, _) = Network::new("n", Device::Cpu, Init::PyTorch, |b| {
            let x = b.input(Port::new("x", &[2], "numbers"))?;
            let out = b.linear("fc", x, 1, false)?;
            b.output(Port::new("y", &[1], "numbers"), out)
        })
        .unwrap();
        let mut adam = Adam::new("step", &[&network], hyper).unwrap();
        adam.scale_lr(0.5);
        adam.schedule(5).unwrap();
        assert_eq!((adam.lr(), adam.lr.device().double_value(&[])), (0.25, 0.25));
        assert!((adam.hyper.adam.beta2 - 0.945).abs() < 1e-12, "no factor");
        assert!((adam.beta2_rest.device().double_value(&[]) - 0.055).abs() < 1e-8);
    }

    #[test]
    fn an_unused_parameter_is_named_in_the_error() {
        let (network, out) = Network::new("n", Device::Cpu, Init::PyTorch, |b| {
            let x = b.input(Port::new("x", &[2], "numbers"))?;
            let out = b.linear("used", x, 1, false)?;
            b.linear("unused", x, 1, false)?;
            b.output(Port::new("y", &[1], "numbers"), out)?;
            Ok(out)
        })
        .unwrap();
        let x = Tensor::ones([1, 2], (Kind::Float, Device::Cpu));
        let (noise, timer) = (Noise::new(0, Device::Cpu), StepTimer::off());
        for clip_norm in [0.0, 1.0] {
            let adam = Adam::new("step", &[&network], OptimizerSettings { clip_norm, ..OptimizerSettings::default() })
                .unwrap();
            let loss = || network.graph.forward_one(&x, out, crate::nets::Mode::Train).unwrap().sum(Kind::Float);
            for on_device in [false, true] {
                let cx = StepContext { noise: &noise, timer: &timer, on_device };
                let e = adam.minimise(&loss(), cx).unwrap_err().to_string();
                assert!(e.contains("n.unused.weight does not reach"), "{e}");
            }
        }
    }
}
