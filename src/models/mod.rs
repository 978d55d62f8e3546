//! What the training loop, checkpoints and pictures need of a model.

pub mod gan;
pub mod losses;
pub mod optimizer;
pub mod tuning;
pub mod vae;

use anyhow::Result;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use crate::base::timer::Clock;
use crate::native;
use crate::nets::{Forms, Network, Work};

/// Where a step stands.
#[derive(Clone, Copy, Debug)]
pub struct StepCx<'a> {
    /// Which update it is.
    pub now: Moment<'a>,
    /// Told as each phase of the step ends.
    pub clock: &'a Clock,
}

/// Which update a step is: all that differs from one step to the next, but for the images.
#[derive(Clone, Copy, Debug)]
pub enum Moment<'a> {
    /// As the host knows it.
    Host {
        /// Seed of this step's noise.
        noise: i64,
        /// Updates done before this one.
        step: u64,
    },
    /// As the device holds it, so that the step can be captured once and replayed: the host's numbers would be captured with it.
    /// Noise comes from the device's default generator as it stands.
    Device {
        /// Updates done before this one, a float64 scalar.
        step: &'a Tensor,
    },
}

impl<'a> StepCx<'a> {
    /// A step that the host knows the number of.
    pub fn host(noise: i64, step: u64, clock: &'a Clock) -> Self {
        StepCx { now: Moment::Host { noise, step }, clock }
    }

    /// A step that may be captured; `step` is a float64 scalar on the device.
    pub fn device(step: &'a Tensor, clock: &'a Clock) -> Self {
        StepCx { now: Moment::Device { step }, clock }
    }
}

impl Moment<'_> {
    /// Updates done before this one.
    pub fn step(self) -> Number {
        match self {
            Moment::Host { step, .. } => Number::Host(step as f64),
            Moment::Device { step } => Number::Device(step.shallow_clone()),
        }
    }

    /// This step's standard normal noise of the given shape.
    ///
    /// # Errors
    /// libtorch's, when memory ends.
    pub fn noise(self, shape: &[i64], device: Device) -> Result<Tensor> {
        match self {
            Moment::Host { noise: seed, .. } => noise(seed, shape, device),
            Moment::Device { .. } => Ok(Tensor::f_randn(shape, (Kind::Float, device))?),
        }
    }
}

/// A number that changes with the steps: the host's, or a float64 scalar on the device. A formula is written once for both.
#[derive(Debug)]
pub enum Number {
    /// Known here.
    Host(f64),
    /// Known there.
    Device(Tensor),
}

impl Number {
    /// self + v.
    ///
    /// # Errors
    /// libtorch's; so below.
    pub fn plus(&self, v: f64) -> Result<Number> {
        self.map(|n| n + v, |n| n.f_add_scalar(v))
    }

    /// self · v.
    ///
    /// # Errors
    /// As [`Number::plus`].
    pub fn scaled(&self, v: f64) -> Result<Number> {
        self.map(|n| n * v, |n| n.f_mul_scalar(v))
    }

    /// self / v.
    ///
    /// # Errors
    /// As [`Number::plus`].
    pub fn over(&self, v: &Number) -> Result<Number> {
        match v {
            Number::Host(v) => self.map(|n| n / v, |n| n.f_div_scalar(*v)),
            Number::Device(v) => match self {
                Number::Host(n) => Ok(Number::Device(v.f_reciprocal()?.f_mul_scalar(*n)?)),
                Number::Device(n) => Ok(Number::Device(n.f_div(v)?)),
            },
        }
    }

    /// The smaller of self and v.
    ///
    /// # Errors
    /// As [`Number::plus`].
    pub fn at_most(&self, v: f64) -> Result<Number> {
        self.map(|n| n.min(v), |n| n.f_clamp_max(v))
    }

    fn map(
        &self,
        host: impl FnOnce(f64) -> f64,
        device: impl FnOnce(&Tensor) -> std::result::Result<Tensor, tch::TchError>,
    ) -> Result<Number> {
        Ok(match self {
            Number::Host(n) => Number::Host(host(*n)),
            Number::Device(n) => Number::Device(device(n)?),
        })
    }
}

/// One kind of model: a VAE or a GAN with its optimizers.
pub trait Model {
    /// One update on x [B,C,H,W] in [0,1]. Returns the values named by [`Model::scalars`] as one detached tensor [K] that
    /// stays on the device: a step never waits for it.
    ///
    /// # Errors
    /// libtorch's: memory, or an x of another shape.
    fn step(&mut self, x: &Tensor, cx: StepCx) -> Result<Tensor>;

    /// The same values on held-out x, without an update or any other change; tensor [K].
    ///
    /// # Errors
    /// As [`Model::step`].
    fn score(&self, x: &Tensor, cx: StepCx) -> Result<Tensor>;

    /// Names of the values that [`Model::step`] and [`Model::score`] return, in order.
    fn scalars(&self) -> &'static [&'static str];

    /// What is reported of those values: themselves, and what follows from them (`elbo`).
    fn report(&self, values: &[f64]) -> Vec<(&'static str, f64)> {
        self.scalars().iter().copied().zip(values.iter().copied()).collect()
    }

    /// For each value the largest magnitude that training which works can have, far above that of a model which has learned
    /// nothing; infinite for none.
    fn limits(&self) -> Vec<f64> {
        vec![f64::INFINITY; self.scalars().len()]
    }

    /// What is worrying if these means are those of many updates: a sentence each, which says what to try.
    fn worries(&self, _means: &[f64]) -> Vec<&'static str> {
        Vec::new()
    }

    /// Which of the values says how good a model is when it is held-out (less is better); none where none does, as in a game,
    /// whose losses say how the players stand to each other.
    fn criterion(&self) -> Option<usize> {
        None
    }

    /// Training is over: lets go of what only further updates need, which fail from now on.
    fn end_training(&mut self);

    /// The optimizers' step size from now on.
    fn set_lr(&mut self, lr: f64);

    /// Images of latents in evaluation mode: z [N,Z] -> [N,C,H,W] in [0,1].
    ///
    /// # Errors
    /// As [`Model::step`].
    fn decode(&self, z: &Tensor) -> Result<Tensor>;

    /// The model's own picture of x [N,C,H,W] in [0,1]: same shape; none where a model cannot (a GAN).
    ///
    /// # Errors
    /// As [`Model::step`].
    fn reconstruct(&self, _x: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// The posterior of x [N,C,H,W] in [0,1] in evaluation mode: (mu [N,Z], logvar [N,Z]); none where a model has no encoder
    /// (a GAN).
    ///
    /// # Errors
    /// As [`Model::step`].
    fn encode(&self, _x: &Tensor) -> Result<Option<(Tensor, Tensor)>> {
        Ok(None)
    }

    /// The networks that exports are of, in evaluation mode, of the averaged weights where the model keeps an average.
    fn networks(&self) -> Vec<Network<'_>>;

    /// How the layers are to be computed from now on; results stay equal to rounding.
    ///
    /// # Errors
    /// As [`Model::step`].
    fn set_forms(&mut self, forms: Forms) -> Result<()>;

    /// The matrix products and convolutions of one step on `batch` images.
    fn work(&self, batch: i64) -> Vec<Work>;

    /// Z: width of the latent vector.
    fn latent(&self) -> i64;

    /// Shows `v` all state in a fixed order: weights, buffers, averages, optimizer moments, counters.
    ///
    /// # Errors
    /// The visitor's.
    fn visit(&mut self, v: &mut dyn Visit) -> Result<()>;
}

/// What a piece of state is, and so which file it belongs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Weights, buffers and their moving averages: what a trained model needs.
    Model,
    /// Moments and counters of an optimizer: what training on needs.
    Optimizer,
}

/// Something done to all state: saved, loaded, compared, counted.
pub trait Visit {
    /// One tensor, under a name that no other has.
    ///
    /// # Errors
    /// Whatever the visitor finds wrong with it.
    fn tensor(&mut self, part: Part, name: &str, t: &Tensor) -> Result<()>;
}

/// Shows `v` every variable of a network in the order of the names, `prefix` before each.
///
/// # Errors
/// The visitor's.
pub fn visit_vars(v: &mut dyn Visit, prefix: &str, vars: &VarStore) -> Result<()> {
    for (name, t) in named(vars) {
        v.tensor(Part::Model, &format!("{prefix}{name}"), &t)?;
    }
    Ok(())
}

/// Variables of a network, sorted by name.
pub fn named(vars: &VarStore) -> Vec<(String, Tensor)> {
    let mut all: Vec<_> = vars.variables().into_iter().collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Variables that are trained, sorted by name.
pub fn trainable(vars: &VarStore) -> Vec<(String, Tensor)> {
    let mut all = named(vars);
    all.retain(|(_, t)| t.requires_grad());
    all
}

/// Standard normal noise of the given shape that depends on `seed` alone: the same numbers on every device.
///
/// # Errors
/// libtorch's, when memory ends.
pub fn noise(seed: i64, shape: &[i64], device: Device) -> Result<Tensor> {
    Ok(native::randn(seed, shape)?.f_to_device(device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_formula_gives_the_same_number_on_either_side() {
        let formula = |t: Number| -> Result<Number> {
            t.plus(1.0)?.over(&t.plus(10.0)?)?.at_most(0.4)?.scaled(-1.0)?.plus(1.0)?.over(&Number::Host(3.0))
        };
        for t in [0.0, 3.0, 7.0, 1e9] {
            let Number::Host(host) = formula(Number::Host(t)).unwrap() else { panic!("it has left the host") };
            let there = Tensor::from(t);
            let Number::Device(device) = formula(Number::Device(there)).unwrap() else { panic!("it has come back") };
            assert_eq!((device.kind(), device.double_value(&[])), (Kind::Double, host), "{t}");
        }
        let inverse = Number::Host(2.0).over(&Number::Device(Tensor::from(8.0))).unwrap();
        assert!(matches!(inverse, Number::Device(n) if n.double_value(&[]) == 0.25));
    }
}
