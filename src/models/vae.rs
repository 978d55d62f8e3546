//! The VAE: one update and its scores.
//!
//! Kingma and Welling 2014 (arXiv 1312.6114); β after Higgins et al. 2017. Knows no files, paths or ranks.

mod spec;

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

use super::losses::bound::{Bound, Encoded};
use super::losses::likelihood::PixelModel;
use super::losses::likelihood::bernoulli::{Binarize, binarised};
use super::network::Network;
use super::noise::Noise;
use super::optimizer::{Adam, OptimizerSettings, mean_of_passes};
use super::schedule::Scheduled;
use super::{LatentVariable, Model, StepContext};
use crate::base::batch::Batch;
use crate::base::scalar::Scalar;
use crate::base::shape::Shape;
use crate::native::{self, Factor};
use crate::nets::cost::Work;
use crate::nets::graph::{Init, Port, Value};
use crate::nets::{Mode, features, synthesis};
pub use spec::{BETA, DECODER_HIDDEN, ENCODER_HIDDEN, KL_CYCLE, KL_WARMUP, SETTINGS, VaeSpec};

/// q(z|x) = N(mu, exp(logvar)) and p(x|z), with one Adam over both networks.
#[derive(Debug)]
pub struct Vae {
    spec: VaeSpec,
    encoder: Network,
    decoder: Network,
    /// mu and logvar of the encoder.
    posterior: [Value; 2],
    /// The parameters of p(x|z) that the decoder computes.
    parameters: Value,
    pixels: PixelModel,
    /// Of the next update.
    weights: Weights,
    adam: Adam,
    scalars: Vec<Scalar>,
}

/// The scheduled numbers of the loss.
#[derive(Debug)]
struct Weights {
    beta: Scheduled,
    /// C of [`Bound::Capacity`]; 0 for another.
    capacity: Scheduled,
}

/// The random numbers of a step.
#[derive(Debug)]
pub struct LatentNoise {
    /// Standard normal [B,K,Z].
    pub eps: Tensor,
    /// Samples of the prior [B,Z], where [`Bound::takes_prior`].
    pub prior: Option<Tensor>,
    /// From U(0, 1) [B,C,H,W], where images are binarised.
    pub uniform: Option<Tensor>,
}

impl LatentNoise {
    /// Those of the images `from` to `from + count`.
    fn narrow(&self, (from, count): (i64, i64)) -> Result<Self> {
        let part = |t: &Option<Tensor>| t.as_ref().map(|t| t.f_narrow(0, from, count)).transpose();
        Ok(LatentNoise {
            eps: self.eps.f_narrow(0, from, count)?,
            prior: part(&self.prior)?,
            uniform: part(&self.uniform)?,
        })
    }
}

/// The terms of the loss, scalars, in nats per image but for what their scalars say.
#[derive(Debug)]
pub struct VaeLoss {
    /// That of the [`Bound`], minimised.
    pub loss: Tensor,
    /// −E_q[log p(x|z)], estimated with K z per image.
    pub recon: Tensor,
    /// KL(q(z|x) ‖ p(z)).
    pub kl: Tensor,
    /// Those of [`Bound::scalars`], then σ if the likelihood has one that changes.
    pub more: Vec<Tensor>,
}

/// The logged values: [`VaeLoss`] in its order, but for the ELBO after the KL.
fn scalars(spec: &VaeSpec, pixels: &PixelModel) -> Vec<Scalar> {
    // The weight of the KL term may be large, so the loss itself has no limit.
    let limit = 100.0 * (spec.likelihood.uniform_nll(spec.shape) + spec.latent as f64);
    let nats = |key, name, panel| Scalar::new(key, name, "nats per image", panel);
    let mut all = vec![
        nats("loss", "loss", "loss").lower().compared_by("elbo"),
        nats("recon", "reconstruction", "reconstruction").lower().limit(limit),
        nats("kl", "KL", "KL").limit(limit),
        nats("elbo", "ELBO", "").higher(),
    ];
    all.extend(spec.bound.scalars());
    if pixels.learns_sigma() {
        all.push(Scalar::new("sigma", "σ", "", "standard deviation of a pixel").lower());
    }
    all
}

/// x [B,C,H,W] in [0,1] -> mu [B,Z], logvar [B,Z].
fn encoder(spec: &VaeSpec, device: Device) -> Result<(Network, [Value; 2])> {
    Network::new("encoder", device, spec.encoder.init, |b| {
        let x = b.input(Port::images("x", &spec.shape.dims(), "images"))?;
        let hidden = features(b, x, &spec.encoder)?;
        b.begin_float32();
        b.init = Init::PyTorch;
        let mu = b.linear("mu", hidden, spec.latent, true)?;
        let logvar = b.linear("logvar", hidden, spec.latent, true)?;
        b.output(Port::new("mu", &[spec.latent], "mean of q(z|x)"), mu)?;
        b.output(Port::new("logvar", &[spec.latent], "logarithm of the variance of q(z|x)"), logvar)?;
        Ok([mu, logvar])
    })
}

/// z [B,Z] -> the parameters of p(x|z), and its mean x [B,C,H,W].
fn decoder(spec: &VaeSpec, device: Device) -> Result<(Network, (Value, PixelModel))> {
    let channels = spec.shape.channels * spec.likelihood.parameters();
    Network::new("decoder", device, spec.decoder.init, |b| {
        let z = b.input(Port::new("z", &[spec.latent], "latents, from the prior N(0, I)"))?;
        let parameters = synthesis(b, z, Shape { channels, ..spec.shape }, &spec.decoder)?;
        b.begin_float32();
        let (pixels, mean) = spec.likelihood.build(b, parameters)?;
        b.output(Port::images("x", &spec.shape.dims(), "means of the pixels"), mean)?;
        Ok((parameters, pixels))
    })
}

impl Vae {
    /// Fresh weights from libtorch's current random state.
    ///
    /// # Errors
    /// When the architecture does not support this image shape.
    pub fn new(spec: VaeSpec, hyper: OptimizerSettings, device: Device) -> Result<Self> {
        let (encoder, posterior) = encoder(&spec, device)?;
        let (decoder, (parameters, pixels)) = decoder(&spec, device)?;
        let adam = Adam::new("step", &[&encoder, &decoder], hyper)?;
        let weights =
            Weights { beta: Scheduled::new(spec.beta, device)?, capacity: Scheduled::new(spec.capacity(), device)? };
        let scalars = scalars(&spec, &pixels);
        Ok(Vae { spec, encoder, decoder, posterior, parameters, pixels, weights, adam, scalars })
    }

    /// The loss on x [B,C,H,W] in [0,1] with z = mu + exp(logvar/2)·eps, by β and, for [`Bound::Capacity`], C.
    ///
    /// # Errors
    /// libtorch's.
    pub fn loss(&self, x: &Tensor, noise: &LatentNoise, weights: [Factor; 2], mode: Mode) -> Result<VaeLoss> {
        let binarised = noise.uniform.as_ref().map(|uniform| binarised(x, uniform)).transpose()?;
        let x = binarised.as_ref().unwrap_or(x);
        let mut posterior = self.encoder.graph.forward(&[x], &self.posterior, mode)?.into_iter();
        let (mu, logvar) = posterior.next().zip(posterior.next()).context("the encoder has fewer than two outputs")?;
        let (samples, [beta, capacity]) = (self.spec.samples, weights);
        let eps = noise.eps.f_reshape([-1, self.spec.latent])?; // [B·K,Z]
        let (z, kl) = match samples {
            1 => native::gaussian_draw(&mu, &logvar, &eps)?,
            _ => {
                let repeated = |t: &Tensor| t.f_repeat_interleave_self_int(samples, 0, None);
                native::gaussian_draw(&repeated(&mu)?, &repeated(&logvar)?, &eps)?
            }
        };
        let parameters = self.decoder.graph.forward_one(&z, self.parameters, mode)?; // [B·K,P·C,H,W]
        if samples == 1
            && self.spec.bound == Bound::Elbo
            && let Some(both) = self.pixels.fused_bound(&parameters, x, &kl, beta)
        {
            let (loss, recon) = both?;
            return Ok(VaeLoss { loss, recon, kl, more: Vec::new() });
        }
        let (nll, sigma) = self.pixels.nll(&parameters, x, mode)?; // [B,K]
        let prior = noise.prior.as_ref();
        let encoded = Encoded { nll: &nll, kl: &kl, mu: &mu, logvar: &logvar, eps: &eps, z: &z, prior };
        let (loss, mut more) = self.spec.bound.loss(&encoded, beta, capacity)?;
        more.extend(sigma);
        Ok(VaeLoss { loss, recon: nll.f_mean(None::<Kind>)?, kl, more })
    }

    /// One update with this noise and the scheduled weights; returns the loss before it.
    ///
    /// # Errors
    /// libtorch's.
    pub fn update(&mut self, x: &Tensor, noise: &LatentNoise, cx: StepContext) -> Result<VaeLoss> {
        let passes = self.adam.passes((0, x.size()[0]));
        let mut all = Vec::new();
        let loss = |pass: (i64, i64)| {
            let (x, noise) = (x.f_narrow(0, pass.0, pass.1)?, noise.narrow(pass)?);
            let weights = [&self.weights.beta, &self.weights.capacity].map(|weight| weight.factor(cx.on_device));
            let terms = self.loss(&x, &noise, weights, Mode::Train)?;
            let loss = terms.loss.shallow_clone();
            // Without its graph.
            all.push(terms.values().map(Tensor::detach).collect::<Vec<_>>());
            Ok(loss)
        };
        self.adam.minimise_mean(&passes, cx, |adam, loss| adam.minimise(loss, cx), loss)?;
        let mean = |i: usize| mean_of_passes(&passes, all.iter().map(|terms| &terms[i]));
        let more = (3..self.measured()).map(mean).collect::<Result<_>>()?;
        Ok(VaeLoss { loss: mean(0)?, recon: mean(1)?, kl: mean(2)?, more })
    }

    /// The optimizer.
    pub fn adam(&self) -> &Adam {
        &self.adam
    }

    /// The noise of a step on x; `updates`: or of a score, for which images are always binarised alike.
    fn noise(&self, x: &Tensor, noise: &Noise, updates: bool) -> Result<LatentNoise> {
        let VaeSpec { latent, samples, bound, .. } = self.spec;
        let images = x.size()[0];
        let binarizes = match self.spec.likelihood.binarize() {
            Binarize::None => false,
            Binarize::Dynamic => true,
            // The training images already are black and white.
            Binarize::Fixed => !updates,
        };
        // The shape of one sample decides its numbers.
        let eps = if samples == 1 { vec![images, latent] } else { vec![images, samples, latent] };
        Ok(LatentNoise {
            eps: noise.normal("eps", &eps)?,
            prior: bound.takes_prior().then(|| noise.normal("prior", &[images, latent])).transpose()?,
            uniform: binarizes.then(|| noise.uniform("binarize", &x.size())).transpose()?,
        })
    }
}

impl VaeLoss {
    fn values(&self) -> impl Iterator<Item = &Tensor> {
        [&self.loss, &self.recon, &self.kl].into_iter().chain(&self.more)
    }

    fn stacked(&self) -> Result<Tensor> {
        Ok(Tensor::f_stack(&self.values().collect::<Vec<_>>(), 0)?.f_detach()?) // [3 and more]
    }
}

impl Model for Vae {
    fn step(&mut self, batch: &Batch, cx: StepContext) -> Result<Tensor> {
        let noise = self.noise(&batch.x, cx.noise, true)?;
        self.update(&batch.x, &noise, cx)?.stacked()
    }

    /// With the full β and capacity, independently of the warm-up.
    fn score(&self, batch: &Batch, noise: &Noise) -> Result<Tensor> {
        let noise = self.noise(&batch.x, noise, false)?;
        let weights = [self.spec.beta, self.spec.capacity()].map(Factor::Host);
        tch::no_grad(|| self.loss(&batch.x, &noise, weights, Mode::Eval)?.stacked())
    }

    fn schedule(&mut self, step: u64) -> Result<()> {
        self.adam.schedule(step)?;
        let VaeSpec { warm_up, beta, bound, .. } = self.spec;
        match bound {
            Bound::Capacity { most } => self.weights.capacity.set(warm_up.at(most, step)),
            _ => self.weights.beta.set(warm_up.at(beta, step)),
        }
    }

    fn scalars(&self) -> &[Scalar] {
        &self.scalars
    }

    fn measured(&self) -> usize {
        self.scalars.len() - 1
    }

    fn report(&self, measured: &[f64]) -> Vec<f64> {
        let (terms, more) = measured.split_at(3);
        [terms, &[-terms[1] - terms[2]], more].concat()
    }

    fn criterion(&self) -> Option<usize> {
        Some(0)
    }

    fn warnings(&self, measured: &[f64]) -> Vec<&'static str> {
        match measured {
            [_, _, kl, ..] if *kl < 0.05 => vec![
                "posterior collapse: the latents hold no information about the images (KL below 0.05 nats); try --kl-warmup, a lower --beta or a \
                 higher --lr",
            ],
            _ => Vec::new(),
        }
    }

    fn networks(&self) -> Vec<&Network> {
        vec![&self.encoder, &self.decoder]
    }

    fn networks_mut(&mut self) -> Vec<&mut Network> {
        vec![&mut self.encoder, &mut self.decoder]
    }

    fn optimizers(&self) -> Vec<&Adam> {
        vec![&self.adam]
    }

    fn optimizers_mut(&mut self) -> Vec<&mut Adam> {
        vec![&mut self.adam]
    }

    fn work(&self, batch: i64) -> Vec<Work> {
        // The decoder needs the gradient of its input, for the encoder.
        let mut work = self.encoder.graph.training_work(batch, true, false);
        work.extend(self.decoder.graph.training_work(batch * self.spec.samples, true, true));
        work
    }

    fn latent(&self) -> i64 {
        self.spec.latent
    }

    fn latent_variable(&self) -> Option<&dyn LatentVariable> {
        Some(self)
    }
}

impl LatentVariable for Vae {
    fn posterior(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut outputs = self.encoder.graph.evaluate(&[x])?.into_iter();
        outputs.next().zip(outputs.next()).context("the encoder has fewer than two outputs")
    }

    fn log_likelihood(&self, x: &Tensor, z: &Tensor) -> Result<Tensor> {
        let z = z.f_reshape([-1, self.spec.latent])?; // [B·K,Z]
        let decode = || self.decoder.graph.forward_one(&z, self.parameters, Mode::Eval);
        self.pixels.log_prob(&tch::no_grad(decode)?, x)
    }

    fn binarizes(&self) -> bool {
        self.spec.likelihood.binarize() != Binarize::None
    }

    fn bits(&self) -> Result<f64, &'static str> {
        self.spec.likelihood.bits()
    }
}

#[cfg(test)]
pub(crate) mod tests;
