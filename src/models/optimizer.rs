//! Adam with its own visible state, and moving averages of weights.

use anyhow::{Result, bail, ensure};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::base::timer::Phase;
use crate::models::{Moment, Number, Part, StepCx, Visit, named, trainable};
use crate::native::{self, AdamStep};

/// Adam (Kingma and Ba 2015, arXiv 1412.6980) over the trainable variables of one network.
#[derive(Debug)]
pub struct Adam {
    names: Vec<String>,
    params: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
    step: Tensor,
    /// The step size on the device, which a captured update reads.
    lr: Tensor,
    hyper: Hyper,
}

/// What an optimizer is told.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Hyper {
    /// Adam's numbers.
    pub adam: AdamStep,
    /// Gradients are scaled down to this norm, taken over all of a network's; 0 leaves them as they are.
    pub clip_norm: f64,
}

impl Adam {
    /// Zero moments for every trainable variable of `vars`.
    pub fn new(vars: &VarStore, hyper: Hyper) -> Self {
        let (names, params): (Vec<_>, Vec<_>) = trainable(vars).into_iter().unzip();
        let zeros = || params.iter().map(|p| p.detach().zeros_like()).collect();
        Adam {
            exp_avgs: zeros(),
            exp_avg_sqs: zeros(),
            step: Tensor::zeros([], (Kind::Float, vars.device())),
            lr: Tensor::full([], hyper.adam.lr, (Kind::Float, vars.device())),
            names,
            params,
            hyper,
        }
    }

    /// Gradients of `loss` with respect to these parameters only: nothing else's is computed.
    ///
    /// # Errors
    /// libtorch's, and when a parameter does not reach the loss.
    pub fn gradients(&self, loss: &Tensor) -> Result<Vec<Tensor>> {
        let grads = Tensor::f_run_backward(&[loss], &self.params, false, false)?;
        if let Some(i) = grads.iter().position(|g| !g.defined()) {
            self.unreached(i)?;
        }
        Ok(grads)
    }

    /// One update with gradients in the order of [`Adam::names`]; clips them where it is told to.
    ///
    /// # Errors
    /// libtorch's.
    pub fn apply(&self, grads: &[Tensor], now: Moment) -> Result<()> {
        let clipped;
        let grads = if self.hyper.clip_norm > 0.0 {
            (clipped, _) = native::clip_grad_norm(grads, self.hyper.clip_norm)?;
            &clipped
        } else {
            grads
        };
        let (p, m, v, step, c) = (&self.params, &self.exp_avgs, &self.exp_avg_sqs, &self.step, self.hyper.adam);
        match now {
            Moment::Host { .. } => native::fused_adam(p, grads, m, v, step, c),
            Moment::Device { .. } => native::fused_adam_on_device(p, grads, [m, v], step, &self.lr, c),
        }
    }

    /// The backward pass of `loss` and one update: each parameter's as soon as its gradient is there, or, where gradients are
    /// clipped by their common norm, the step may be captured or the device is not the CPU, [`Adam::gradients`] and [`Adam::apply`].
    ///
    /// # Errors
    /// As those two.
    pub fn minimise(&self, loss: &Tensor, cx: StepCx) -> Result<()> {
        if self.hyper.clip_norm > 0.0 || !self.as_they_arrive(cx.now) {
            let grads = self.gradients(loss)?;
            cx.clock.lap(Phase::Backward);
            self.apply(&grads, cx.now)?;
            cx.clock.lap(Phase::Optimizer);
            return Ok(());
        }
        let (seconds, missing) =
            native::minimise(loss, &self.params, &self.exp_avgs, &self.exp_avg_sqs, &self.step, self.hyper.adam)?;
        cx.clock.lap(Phase::Backward);
        cx.clock.shift(Phase::Backward, Phase::Optimizer, seconds);
        match missing {
            Some(i) => self.unreached(i),
            None => Ok(()),
        }
    }

    /// On a CPU a gradient is best used while it is in the cache; a GPU takes all in one launch.
    fn as_they_arrive(&self, now: Moment) -> bool {
        matches!(now, Moment::Host { .. }) && self.step.device() == Device::Cpu
    }

    fn unreached(&self, i: usize) -> Result<()> {
        bail!("the parameter {} does not reach the loss, so it has no gradient", self.names[i])
    }

    /// Lays the moments out as the parameters are: one update walks through all of them in memory order.
    ///
    /// # Errors
    /// libtorch's, when memory ends.
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

    /// Frees the moments; updates and [`Adam::visit`] fail from now on.
    pub fn forget(&mut self) {
        (self.exp_avgs, self.exp_avg_sqs) = (Vec::new(), Vec::new());
    }

    /// The step size from now on.
    pub fn set_lr(&mut self, lr: f64) {
        self.hyper.adam.lr = lr;
        let _ = self.lr.fill_(lr);
    }

    /// The parameters, in the order of their names.
    pub fn params(&self) -> &[Tensor] {
        &self.params
    }

    /// Names of the parameters, sorted.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Shows `v` the moments, and the counter under `step_name`.
    ///
    /// # Errors
    /// The visitor's; when the moments have been let go.
    pub fn visit(&self, v: &mut dyn Visit, step_name: &str) -> Result<()> {
        ensure!(self.exp_avgs.len() == self.names.len(), "the optimizer's moments were let go when training ended");
        for (i, name) in self.names.iter().enumerate() {
            v.tensor(Part::Optimizer, &format!("{name}.exp_avg"), &self.exp_avgs[i])?;
            v.tensor(Part::Optimizer, &format!("{name}.exp_avg_sq"), &self.exp_avg_sqs[i])?;
        }
        v.tensor(Part::Optimizer, step_name, &self.step)
    }
}

/// Pairs a network with a twin that follows it slowly: every variable is a moving average, the running statistics of
/// batch normalisation too, since those of the network itself do not fit averaged weights.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    average: Vec<Tensor>,
    current: Vec<Tensor>,
}

impl Ema {
    /// `twin` must have the variables of `vars`; it starts as their copy and is not trained.
    ///
    /// # Errors
    /// When the two networks differ.
    pub fn new(vars: &VarStore, twin: &mut VarStore, decay: f64) -> Result<Self> {
        twin.copy(vars)?;
        twin.freeze();
        let (average, current) = named(twin).into_iter().zip(named(vars)).map(|((_, a), (_, c))| (a, c)).unzip();
        Ok(Ema { decay, average, current })
    }

    /// Moves the twin after the update that `now` tells (number 0 is the first).
    ///
    /// The decay rises to its value as (1 + t)/(10 + t), so that the first pictures are not those of the initial weights.
    ///
    /// # Errors
    /// libtorch's.
    pub fn follow(&self, now: Moment) -> Result<()> {
        let t = now.step();
        let decay = t.plus(1.0)?.over(&t.plus(10.0)?)?.at_most(self.decay)?;
        match decay.scaled(-1.0)?.plus(1.0)? {
            Number::Host(weight) => native::foreach_lerp(&self.average, &self.current, weight),
            Number::Device(weight) => {
                native::foreach_lerp(&self.average, &self.current, &weight.f_to_kind(Kind::Float)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::timer::Clock;
    use tch::nn;

    #[test]
    fn a_parameter_that_does_not_reach_the_loss_is_named() {
        let vars = VarStore::new(Device::Cpu);
        let used = vars.root().var("used", &[2], nn::Init::Const(1.0));
        let unused = vars.root().var("unused", &[2], nn::Init::Const(1.0));
        let adam = Adam::new(&vars, Hyper::default());
        let both = || used.sum(Kind::Float) + unused.sum(Kind::Float);
        let clock = Clock::off();
        let run =
            |adam: &Adam, loss: &Tensor| adam.minimise(loss, StepCx::host(0, 0, &clock)).map_err(|e| e.to_string());
        let clipped = Adam::new(&vars, Hyper { clip_norm: 1.0, ..Hyper::default() });
        for adam in [adam, clipped] {
            let e = run(&adam, &used.sum(Kind::Float)).unwrap_err();
            assert!(e.contains("unused does not reach"), "{e}");
            run(&adam, &both()).unwrap();
        }
    }
}
