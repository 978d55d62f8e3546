//! The VAE: one update and its scores.
//!
//! Kingma and Welling 2014 (arXiv 1312.6114); β after Higgins et al. 2017. Knows no files, paths or ranks.

use anyhow::{Context, Result};
use tch::{Device, Tensor};

use super::losses::likelihood::{LIKELIHOOD, Likelihood};
use super::network::Network;
use super::noise::Noise;
use super::optimizer::{Adam, OptimizerSettings, mean_of_passes};
use super::schedule::{Scheduled, warm_up};
use super::{LatentVariable, Length, Model, StepContext};
use crate::base::batch::Batch;
use crate::base::scalar::Scalar;
use crate::base::setting::{Group, Setting, Settings};
use crate::base::shape::Shape;
use crate::native::{self, Factor};
use crate::nets::cost::Work;
use crate::nets::graph::{Init, Port, Value};
use crate::nets::{LATENT, Mode, NetSpec, features, hidden_widths, synthesis};

/// Architecture and loss of a VAE.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeSpec {
    /// Shape of the images.
    pub shape: Shape,
    /// Z, the latent width.
    pub latent: i64,
    /// The encoder's layers.
    pub encoder: NetSpec,
    /// The decoder's layers.
    pub decoder: NetSpec,
    /// p(x|z).
    pub likelihood: Likelihood,
    /// Weight of the KL term; 1 gives the ELBO.
    pub beta: f64,
    /// Updates of the linear warm-up of β from 0; 0 for none.
    pub kl_warmup_steps: u64,
}

/// Hidden layers of the encoder.
pub static ENCODER_HIDDEN: Setting<Vec<i64>> =
    hidden_widths("encoder-hidden", "Units of the hidden layers of the encoder, such as 512,256, or none");

/// Hidden layers of the decoder.
pub static DECODER_HIDDEN: Setting<Vec<i64>> =
    hidden_widths("decoder-hidden", "Units of the hidden layers of the decoder");

/// See [`VaeSpec::beta`].
pub static BETA: Setting<f64> = Setting::number("beta", "Weight of the KL term")
    .range("from 0 to 1000", |v| (0.0..=1000.0).contains(v))
    .default("1", "the ELBO");

/// Epochs of the warm-up of β ([`VaeSpec::kl_warmup_steps`]).
pub static KL_WARMUP: Setting<f64> =
    Setting::number("kl-warmup", "Epochs over which the weight of the KL term rises from 0")
        .range("from 0 to 1e6", |v| (0.0..=1e6).contains(v))
        .default("0", "Kingma and Welling 2014 have none")
        .value_name("EPOCHS");

/// The settings of a VAE.
pub static SETTINGS: Group =
    Group { heading: "VAE", settings: &[&ENCODER_HIDDEN, &DECODER_HIDDEN, &LIKELIHOOD, &BETA, &KL_WARMUP] };

impl VaeSpec {
    /// The VAE that the settings describe, for images of this shape and a run of this length.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] for contradictory settings.
    pub fn from_settings(s: &Settings, shape: Shape, length: Length) -> Result<Self> {
        Ok(VaeSpec {
            shape,
            latent: s.get(&LATENT)? as i64,
            encoder: NetSpec::from_settings(s, &ENCODER_HIDDEN)?,
            decoder: NetSpec::from_settings(s, &DECODER_HIDDEN)?,
            likelihood: s.get(&LIKELIHOOD)?,
            beta: s.get(&BETA)?,
            kl_warmup_steps: (s.get(&KL_WARMUP)? * length.per_epoch as f64).round() as u64,
        })
    }
}

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
    /// β of the next update.
    beta: Scheduled,
    adam: Adam,
    scalars: Vec<Scalar>,
}

/// The terms of the loss, scalars in nats per image.
#[derive(Debug)]
pub struct VaeLoss {
    /// recon + β·kl, minimised.
    pub loss: Tensor,
    /// −E_q[log p(x|z)], estimated with one z per image.
    pub recon: Tensor,
    /// KL(q(z|x) ‖ p(z)).
    pub kl: Tensor,
}

/// The logged values: [`VaeLoss`] in its order, then the ELBO.
fn scalars(spec: &VaeSpec) -> Vec<Scalar> {
    // The weight of the KL term may be large, so the loss itself has no limit.
    let limit = 100.0 * (spec.likelihood.uniform_nll(spec.shape) + spec.latent as f64);
    let nats = |key, name, panel| Scalar::new(key, name, "nats per image", panel);
    vec![
        nats("loss", "loss", "loss").lower().compared_by("elbo"),
        nats("recon", "reconstruction", "reconstruction").lower().limit(limit),
        nats("kl", "KL", "KL").limit(limit),
        nats("elbo", "ELBO", "").higher(),
    ]
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
fn decoder(spec: &VaeSpec, device: Device) -> Result<(Network, Value)> {
    let channels = spec.shape.channels * spec.likelihood.parameters();
    Network::new("decoder", device, spec.decoder.init, |b| {
        let z = b.input(Port::new("z", &[spec.latent], "latents, from the prior N(0, I)"))?;
        let parameters = synthesis(b, z, Shape { channels, ..spec.shape }, &spec.decoder)?;
        b.begin_float32();
        let mean = spec.likelihood.mean(b, parameters)?;
        b.output(Port::images("x", &spec.shape.dims(), "means of the pixels"), mean)?;
        Ok(parameters)
    })
}

impl Vae {
    /// Fresh weights from libtorch's current random state.
    ///
    /// # Errors
    /// When the architecture does not support this image shape.
    pub fn new(spec: VaeSpec, hyper: OptimizerSettings, device: Device) -> Result<Self> {
        let (encoder, posterior) = encoder(&spec, device)?;
        let (decoder, parameters) = decoder(&spec, device)?;
        let adam = Adam::new("step", &[&encoder, &decoder], hyper)?;
        let (scalars, beta) = (scalars(&spec), Scheduled::new(spec.beta, device)?);
        Ok(Vae { spec, encoder, decoder, posterior, parameters, beta, adam, scalars })
    }

    /// The loss on x [B,C,H,W] in [0,1] with noise eps [B,Z] ∼ N(0, I): z = mu + exp(logvar/2)·eps.
    ///
    /// # Errors
    /// libtorch's.
    pub fn loss(&self, x: &Tensor, eps: &Tensor, beta: Factor, mode: Mode) -> Result<VaeLoss> {
        let mut posterior = self.encoder.graph.forward(&[x], &self.posterior, mode)?.into_iter();
        let (mu, logvar) = posterior.next().zip(posterior.next()).context("the encoder has fewer than two outputs")?;
        let (z, kl) = native::gaussian_draw(&mu, &logvar, eps)?; // [B,Z]
        let parameters = self.decoder.graph.forward_one(&z, self.parameters, mode)?; // [B,P·C,H,W]
        let (loss, recon) = self.spec.likelihood.bound(&parameters, x, &kl, beta)?;
        Ok(VaeLoss { loss, recon, kl })
    }

    /// One update with the noise `eps` and the scheduled β; returns the loss before it.
    ///
    /// # Errors
    /// libtorch's.
    pub fn update(&mut self, x: &Tensor, eps: &Tensor, cx: StepContext) -> Result<VaeLoss> {
        let passes = self.adam.passes((0, x.size()[0]));
        let mut all = Vec::new();
        let loss = |(from, count): (i64, i64)| {
            let (x, eps) = (x.f_narrow(0, from, count)?, eps.f_narrow(0, from, count)?);
            let terms = self.loss(&x, &eps, self.beta.factor(cx.on_device), Mode::Train)?;
            let loss = terms.loss.shallow_clone();
            // Without its graph.
            all.push([terms.loss, terms.recon, terms.kl].map(|t| t.detach()));
            Ok(loss)
        };
        self.adam.minimise_mean(&passes, cx, |adam, loss| adam.minimise(loss, cx), loss)?;
        let mean = |i: usize| mean_of_passes(&passes, all.iter().map(|terms| &terms[i]));
        Ok(VaeLoss { loss: mean(0)?, recon: mean(1)?, kl: mean(2)? })
    }

    /// The optimizer.
    pub fn adam(&self) -> &Adam {
        &self.adam
    }

    fn eps(&self, x: &Tensor, noise: &Noise) -> Result<Tensor> {
        noise.normal("eps", &[x.size()[0], self.spec.latent])
    }
}

impl VaeLoss {
    fn stacked(&self) -> Result<Tensor> {
        Ok(Tensor::f_stack(&[&self.loss, &self.recon, &self.kl], 0)?.f_detach()?) // [3]
    }
}

impl Model for Vae {
    fn step(&mut self, batch: &Batch, cx: StepContext) -> Result<Tensor> {
        let eps = self.eps(&batch.x, cx.noise)?;
        self.update(&batch.x, &eps, cx)?.stacked()
    }

    /// With the full β, independently of the warm-up.
    fn score(&self, batch: &Batch, noise: &Noise) -> Result<Tensor> {
        let eps = self.eps(&batch.x, noise)?;
        tch::no_grad(|| self.loss(&batch.x, &eps, Factor::Host(self.spec.beta), Mode::Eval)?.stacked())
    }

    fn schedule(&mut self, step: u64) -> Result<()> {
        self.adam.schedule(step)?;
        self.beta.set(warm_up(self.spec.beta, self.spec.kl_warmup_steps, step))
    }

    fn scalars(&self) -> &[Scalar] {
        &self.scalars
    }

    fn measured(&self) -> usize {
        3
    }

    fn report(&self, measured: &[f64]) -> Vec<f64> {
        let elbo = measured[1..].iter().sum::<f64>();
        [measured, &[-elbo]].concat()
    }

    fn criterion(&self) -> Option<usize> {
        Some(0)
    }

    fn warnings(&self, measured: &[f64]) -> Vec<&'static str> {
        match measured {
            [_, _, kl] if *kl < 0.05 => vec![
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
        work.extend(self.decoder.graph.training_work(batch, true, true));
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
        self.spec.likelihood.log_prob(&tch::no_grad(decode)?, x)
    }

    fn bits(&self) -> Result<f64, &'static str> {
        self.spec.likelihood.bits()
    }
}

/// A tiny VAE on images of 2×3 pixels, for tests.
#[cfg(test)]
pub(crate) fn small(beta: f64, kl_warmup_steps: u64) -> Vae {
    use crate::nets::{Activation, Arch};
    let net = NetSpec {
        arch: Arch::Mlp,
        hidden: vec![4],
        activation: Activation::Relu,
        batch_norm: false,
        init: Init::PyTorch,
        ..NetSpec::default()
    };
    let shape = Shape { channels: 1, height: 2, width: 3 };
    let likelihood = Likelihood::Bernoulli;
    let spec = VaeSpec { shape, latent: 2, encoder: net.clone(), decoder: net, likelihood, beta, kl_warmup_steps };
    Vae::new(spec, OptimizerSettings::default(), Device::Cpu).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::timer::StepTimer;
    use crate::models::optimizer::MicroBatch;

    #[test]
    fn the_kl_warm_up_is_linear() {
        for (steps, want) in [(4, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]), (0, [2.0; 6])] {
            let mut vae = small(2.0, steps);
            for (step, want) in want.into_iter().enumerate() {
                vae.schedule(step as u64).unwrap();
                assert_eq!((vae.beta.host(), vae.beta.device().double_value(&[])), (want, want));
            }
        }
    }

    #[test]
    fn passes_of_an_update_give_that_of_the_whole_batch() {
        let random = |seed, shape: &[i64]| native::random(seed, shape, native::Distribution::Uniform).unwrap();
        let (x, eps) = (random(1, &[7, 1, 2, 3]), random(2, &[7, 2]));
        let timer = StepTimer::off();
        let noise = Noise::new(1, Device::Cpu);
        let update = |images: Option<u64>| {
            let micro_batch = images.map(|images| MicroBatch { images, with_batch_norm: false });
            let adam = native::AdamSettings { eps: 1e-2, ..native::AdamSettings::default() };
            let hyper = OptimizerSettings { adam, micro_batch, ..OptimizerSettings::default() };
            let mut vae = native::seeded(3, || Vae::new(small(2.0, 0).spec, hyper, Device::Cpu)).unwrap();
            let cx = StepContext { noise: &noise, timer: &timer, on_device: false };
            let terms = [vae.update(&x, &eps, cx).unwrap(), vae.update(&x, &eps, cx).unwrap()];
            let values = terms.iter().map(|terms| terms.stacked().unwrap());
            values.chain(vae.adam.params().iter().map(Tensor::detach)).collect::<Vec<_>>()
        };
        let whole = update(None);
        for images in [1, 3, 7] {
            for (got, want) in update(Some(images)).iter().zip(&whole) {
                assert!(got.allclose(want, 1e-5, 1e-6, false), "{images}: {got}, not {want}");
            }
        }
    }

    #[test]
    fn warns_of_unused_latents_and_limits_the_loss() {
        let vae = small(1.0, 0);
        assert!(vae.warnings(&[100.0, 99.0, 1.0]).is_empty());
        assert!(vae.warnings(&[100.0, 100.0, 0.01])[0].contains("hold no information"));
        let chance = 6.0 * std::f64::consts::LN_2;
        let limit = vae.scalars()[1].limit.unwrap();
        assert!(limit > 50.0 * chance && limit < 1000.0 * chance);
        assert_eq!(vae.scalars()[vae.criterion().unwrap()].key, "loss");
    }

    #[test]
    fn a_step_uses_the_scheduled_beta_and_a_score_the_full_one() {
        let mut warm = small(2.0, 4);
        let batch = Batch { x: Tensor::rand([3, 1, 2, 3], (tch::Kind::Float, Device::Cpu)), labels: None };
        let timer = StepTimer::off();
        for on_device in [false, true] {
            let noise = || Noise::new(1, Device::Cpu);
            warm.schedule(0).unwrap();
            let score = warm.score(&batch, &noise()).unwrap();
            let step = warm.step(&batch, StepContext { noise: &noise(), timer: &timer, on_device }).unwrap();
            for (values, beta) in [(score, 2.0), (step, 0.5)] {
                let v = Vec::<f32>::try_from(&values).unwrap();
                assert!((v[0] - v[1] - beta * v[2]).abs() < 1e-5, "{v:?} with {beta}");
                let report = warm.report(&[f64::from(v[0]), f64::from(v[1]), f64::from(v[2])]);
                assert_eq!(report[3], -f64::from(v[1]) - f64::from(v[2]), "the bound has no beta");
                assert_eq!(warm.scalars()[3].key, "elbo");
            }
        }
    }
}
