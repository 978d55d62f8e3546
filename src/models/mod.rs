//! The [`Model`] trait: networks, optimizers, one update, scores. Saving, loading and exporting are loops over these.

pub mod augment;
pub mod gan;
pub mod inversion;
pub mod losses;
pub mod moving_average;
pub mod network;
pub mod noise;
pub mod optimizer;
pub mod schedule;
pub mod statistics;
pub mod tuning;
pub mod vae;

use anyhow::{Context, Result};
use clap::ValueEnum;
use tch::{Device, Tensor};

use crate::base::batch::Batch;
use crate::base::scalar::Scalar;
use crate::base::setting::{Group, Settings, choice_name};
use crate::base::shape::Shape;
use crate::base::timer::StepTimer;
use crate::nets::cost::Work;
use crate::nets::graph::Graph;
use crate::nets::{self, Compute};
use network::Network;
use noise::Noise;
use optimizer::Adam;

/// The sizes of a run that schedules follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// Images of an update.
    pub batch_size: u64,
    /// Updates in an epoch.
    pub per_epoch: u64,
    /// Updates in all.
    pub total: u64,
}

impl Length {
    /// That of one update on one image, for what does not depend on it.
    pub const ONE: Length = Length { batch_size: 1, per_epoch: 1, total: 1 };
}

/// What a model is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// Shape of the images.
    pub shape: Shape,
    /// Number of classes; 0 of images without classes.
    pub classes: i64,
}

impl ImageSpec {
    /// The smallest ones, for what does not depend on them.
    const SMALLEST: ImageSpec = ImageSpec { shape: Shape { channels: 1, height: 1, width: 1 }, classes: 2 };
}

/// The kinds of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModelKind {
    /// A variational autoencoder.
    Vae,
    /// A generative adversarial network.
    Gan,
}

impl std::fmt::Display for ModelKind {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&choice_name(self))
    }
}

impl ModelKind {
    /// The settings of this kind of model.
    pub fn settings(self) -> [&'static Group; 3] {
        let own = match self {
            ModelKind::Vae => &vae::SETTINGS,
            ModelKind::Gan => &gan::SETTINGS,
        };
        [&nets::SETTINGS, own, &optimizer::SETTINGS]
    }

    /// Refuses contradictory settings, independently of the images.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`].
    pub fn check(self, s: &Settings) -> Result<()> {
        let images = ImageSpec::SMALLEST;
        match self {
            ModelKind::Vae => vae::VaeSpec::from_settings(s, images.shape, Length::ONE).map(drop)?,
            ModelKind::Gan => gan::GanSpec::from_settings(s, images, Length::ONE).map(drop)?,
        }
        optimizer::OptimizerSettings::from_settings(s, Length::ONE)?;
        schedule::is_scheduled(s).map(drop)
    }

    /// Settings of a preset that have no effect where other settings switch off what they are of.
    ///
    /// # Errors
    /// As [`ModelKind::check`].
    pub fn idle(self, s: &Settings) -> Result<Vec<&'static str>> {
        match self {
            ModelKind::Vae => Ok(Vec::new()),
            ModelKind::Gan => losses::penalty::Penalties::idle(s),
        }
    }

    /// Batches that one step takes.
    ///
    /// # Errors
    /// As [`ModelKind::check`].
    pub fn batches_per_step(self, s: &Settings) -> Result<u64> {
        Ok(match self {
            ModelKind::Vae => 1,
            ModelKind::Gan => gan::GanSpec::from_settings(s, ImageSpec::SMALLEST, Length::ONE)?.batches(),
        })
    }

    /// Whether all steps are the same operations, so that one can be captured and replayed.
    ///
    /// # Errors
    /// As [`ModelKind::check`].
    pub fn steps_alike(self, s: &Settings) -> Result<bool> {
        Ok(match self {
            ModelKind::Vae => true,
            ModelKind::Gan => gan::GanSpec::from_settings(s, ImageSpec::SMALLEST, Length::ONE)?.penalties.every == 1,
        })
    }

    /// A model with fresh weights from libtorch's current random state, for such images and a run of this length.
    ///
    /// # Errors
    /// When the architecture does not support such images; [`crate::base::usage::Usage`] for contradictory settings.
    pub fn build(self, s: &Settings, images: ImageSpec, length: Length, device: Device) -> Result<Box<dyn Model>> {
        let hyper = optimizer::OptimizerSettings::from_settings(s, length)?;
        Ok(match self {
            ModelKind::Vae => {
                let spec = vae::VaeSpec::from_settings(s, images.shape, length)?;
                Box::new(vae::Vae::new(spec, hyper, device)?) as Box<dyn Model>
            }
            ModelKind::Gan => Box::new(gan::Gan::new(gan::GanSpec::from_settings(s, images, length)?, hyper, device)?),
        })
    }
}

/// The arguments of a step in addition to its batch.
#[derive(Clone, Copy, Debug)]
pub struct StepContext<'a> {
    /// The step's random numbers, by name.
    pub noise: &'a Noise,
    /// Measures the phases of the step.
    pub timer: &'a StepTimer,
    /// Whether the step may be captured: it then reads every number that changes between steps from device memory.
    pub on_device: bool,
}

/// One kind of model: a VAE or a GAN with its optimizers.
pub trait Model {
    /// One update. Returns the measured values as one detached tensor [K] on the device: a step does not synchronize. Means of them
    /// over images become [`Model::scalars`] by [`Model::report`].
    ///
    /// # Errors
    /// libtorch's: out of memory, or an x of another shape.
    fn step(&mut self, batch: &Batch, cx: StepContext) -> Result<Tensor>;

    /// The same values on a held-out batch, tensor [K]; changes no state.
    ///
    /// # Errors
    /// As [`Model::step`].
    fn score(&self, batch: &Batch, noise: &Noise) -> Result<Tensor>;

    /// Sets the scheduled values for the update after `step` updates. Called on the host before each step.
    ///
    /// # Errors
    /// libtorch's.
    fn schedule(&mut self, step: u64) -> Result<()> {
        self.optimizers_mut().into_iter().try_for_each(|adam| adam.schedule(step))
    }

    /// The weights that training starts from are trained ones: moving averages keep them.
    fn start_trained(&mut self) {}

    /// The logged values.
    fn scalars(&self) -> &[Scalar];

    /// K: number of values that a step measures.
    fn measured(&self) -> usize {
        self.scalars().len()
    }

    /// Values of all scalars from means of the measured ones; NaN for one that these images cannot give: it is not logged.
    fn report(&self, measured: &[f64]) -> Vec<f64> {
        measured.to_vec()
    }

    /// Index of the scalar whose held-out value ranks checkpoints (less is better); none for a GAN, as its losses do not measure
    /// quality.
    fn criterion(&self) -> Option<usize> {
        None
    }

    /// Warnings about these means over many updates: a sentence each, with what to try.
    fn warnings(&self, _measured: &[f64]) -> Vec<&'static str> {
        Vec::new()
    }

    /// The networks, in a fixed order.
    fn networks(&self) -> Vec<&Network>;

    /// [`Model::networks`], mutable.
    fn networks_mut(&mut self) -> Vec<&mut Network>;

    /// The optimizers, in a fixed order.
    fn optimizers(&self) -> Vec<&Adam>;

    /// [`Model::optimizers`], mutable.
    fn optimizers_mut(&mut self) -> Vec<&mut Adam>;

    /// Tensors besides networks and optimizers that resuming needs, by name.
    fn more_state(&self) -> Vec<(&'static str, &Tensor)> {
        Vec::new()
    }

    /// The matmuls and convolutions of one step on `batch` images.
    fn work(&self, batch: i64) -> Vec<Work>;

    /// Z: width of the latent vector.
    fn latent(&self) -> i64;

    /// The networks used for exports and pictures: with averaged weights if the model keeps a moving average.
    fn exported(&self) -> Vec<&Graph> {
        let all = self.networks();
        let average = |name| all.iter().copied().find(|n| n.average && n.graph.name() == name);
        all.iter().copied().filter(|n| !n.average).map(|n| &average(n.graph.name()).unwrap_or(n).graph).collect()
    }

    /// The network that makes images of latents, as it is exported.
    ///
    /// # Errors
    /// None for a model that makes images.
    fn decoder(&self) -> Result<&Graph> {
        let takes_z = |graph: &&Graph| graph.inputs().iter().any(|port| port.name == "z");
        self.exported().into_iter().find(takes_z).context("no network has an input z")
    }

    /// Number of classes of a conditional model, else none.
    fn classes(&self) -> Option<i64> {
        self.decoder().ok()?.inputs().iter().find_map(|port| port.classes)
    }

    /// Images of latents in evaluation mode: z [N,Z] -> [N,C,H,W] in [0,1]. Those of a conditional model have `classes`: numbers [N]
    /// (int64), or weights of the classes [N,K] (float32).
    ///
    /// # Errors
    /// As [`Model::step`]; without the classes that a conditional model needs.
    fn decode(&self, z: &Tensor, classes: Option<&Tensor>) -> Result<Tensor> {
        let inputs: Vec<&Tensor> = [z].into_iter().chain(classes).collect();
        self.decoder()?.evaluate(&inputs)?.pop().context("the decoder has no output")
    }

    /// The posterior of x [N,C,H,W] in [0,1] in evaluation mode: (mu [N,Z], logvar [N,Z]); none without an encoder (GAN).
    ///
    /// # Errors
    /// As [`Model::step`].
    fn encode(&self, x: &Tensor) -> Result<Option<(Tensor, Tensor)>> {
        let encoder = self.networks().into_iter().find(|n| n.graph.name() == "encoder");
        let Some(encoder) = encoder else { return Ok(None) };
        let mut outputs = encoder.graph.evaluate(&[x])?.into_iter();
        Ok(outputs.next().zip(outputs.next()))
    }

    /// The model as one whose log p(x) has a bound; none for a GAN.
    fn latent_variable(&self) -> Option<&dyn LatentVariable> {
        None
    }

    /// Reconstruction of x [N,C,H,W] in [0,1]: same shape; none without an encoder (GAN).
    ///
    /// # Errors
    /// As [`Model::step`].
    fn reconstruct(&self, x: &Tensor) -> Result<Option<Tensor>> {
        self.encode(x)?.map(|(mu, _)| self.decode(&mu, None)).transpose()
    }

    /// Computes the running statistics of batch normalisation in [`Model::exported`] anew, as means over `batches` of real images with
    /// the noise of generated ones. Training does not read them.
    ///
    /// # Errors
    /// As [`Model::step`].
    fn recompute_statistics(&self, _batches: &mut dyn Iterator<Item = Result<(Batch, Noise)>>) -> Result<()> {
        Ok(())
    }

    /// Sets how the operations are computed; results stay equal to rounding.
    ///
    /// # Errors
    /// libtorch's, when out of memory.
    fn set_compute(&mut self, compute: Compute) -> Result<()> {
        for network in self.networks_mut() {
            network.graph.compute = compute;
            compute.arrange_weights(&network.vars)?;
        }
        self.optimizers_mut().into_iter().try_for_each(Adam::arrange)
    }

    /// Sets the factor on the learning rates of later [`Model::schedule`]s.
    fn scale_lr(&mut self, factor: f64) {
        self.optimizers_mut().into_iter().for_each(|adam| adam.scale_lr(factor));
    }

    /// Frees the optimizer moments at the end of training; further updates fail.
    fn end_training(&mut self) {
        self.optimizers_mut().into_iter().for_each(Adam::free);
    }

    /// Passes all state to `v` in a fixed order: weights, buffers, averages, optimizer moments, counters,
    /// [`Model::more_state`].
    ///
    /// # Errors
    /// The visitor's.
    fn visit(&self, v: &mut dyn Visit) -> Result<()> {
        for network in self.networks() {
            for (name, t) in network.variables() {
                v.tensor(Part::Model, &name, &t)?;
            }
        }
        self.optimizers().into_iter().try_for_each(|adam| adam.visit(v))?;
        self.more_state().into_iter().try_for_each(|(name, t)| v.tensor(Part::Optimizer, name, t))
    }
}

/// A model with latents z of the prior N(0, I), an approximate posterior q(z|x) = N(mu, exp(logvar)) and a likelihood p(x|z), in
/// evaluation mode: what its bounds on log p(x) are computed from.
pub trait LatentVariable {
    /// q(z|x): x [B,C,H,W] in [0,1] -> (mu, logvar), [B,Z] each.
    ///
    /// # Errors
    /// As [`Model::step`].
    fn posterior(&self, x: &Tensor) -> Result<(Tensor, Tensor)>;

    /// log p(x|z) of each latent, summed over pixels, in nats: x [B,C,H,W] in [0,1], z [B,K,Z] -> float64 [B,K].
    ///
    /// # Errors
    /// As [`Model::step`].
    fn log_likelihood(&self, x: &Tensor, z: &Tensor) -> Result<Tensor>;

    /// Whether it is a model of black and white images, which are drawn from grey ones as probabilities
    /// ([`losses::likelihood::bernoulli::binarised`]).
    fn binarizes(&self) -> bool {
        false
    }

    /// Bits per dimension to add to −log p(x) / (D ln 2), for images of 8 bits; or why there are none
    /// ([`losses::likelihood::Likelihood::bits`]).
    ///
    /// # Errors
    /// The reason, a clause.
    fn bits(&self) -> Result<f64, &'static str>;
}

/// Kind of state; it decides the file of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Weights, buffers and their moving averages, needed for inference.
    Model,
    /// Moments and counters of an optimizer, needed to resume training.
    Optimizer,
}

/// An operation on all state: save, load, compare, count.
pub trait Visit {
    /// One tensor, with a unique name.
    ///
    /// # Errors
    /// The visitor's.
    fn tensor(&mut self, part: Part, name: &str, t: &Tensor) -> Result<()>;
}
