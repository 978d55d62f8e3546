//! The GAN: one update of generator and discriminator.
//!
//! Goodfellow et al. 2014 (arXiv 1406.2661). Knows no files, paths or ranks.

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

use super::augment::{AUGMENT, AUGMENT_P, AugmentSpec, Augmenter};
use super::losses::adversarial::{GAN_LOSS, GanLoss};
use super::moving_average::MovingAverage;
use super::network::Network;
use super::noise::Noise;
use super::optimizer::{Adam, OptimizerSettings};
use super::{Model, StepContext};
use crate::base::batch::Batch;
use crate::base::scalar::Scalar;
use crate::base::setting::{Group, Setting, Settings};
use crate::base::shape::Shape;
use crate::base::timer::Phase;
use crate::nets::cost::Work;
use crate::nets::graph::{Function, Op, Port, Value};
use crate::nets::{Activation, LATENT, Mode, NetSpec, features, hidden_widths, synthesis};

/// Architecture and loss of a GAN.
#[derive(Clone, Debug, PartialEq)]
pub struct GanSpec {
    /// Shape of the images.
    pub shape: Shape,
    /// Z, the latent width.
    pub latent: i64,
    /// The generator's layers.
    pub generator: NetSpec,
    /// The discriminator's layers.
    pub discriminator: NetSpec,
    /// The loss of both networks.
    pub loss: GanLoss,
    /// Decay of the generator's moving average; 0 keeps none.
    pub ema: f64,
    /// Augmentation of the images that the discriminator sees.
    pub augment: Option<AugmentSpec>,
}

/// Hidden layers of the generator.
pub static GENERATOR_HIDDEN: Setting<Vec<i64>> =
    hidden_widths("generator-hidden", "Units of the hidden layers of the generator, such as 512,256, or none");

/// Hidden layers of the discriminator.
pub static DISCRIMINATOR_HIDDEN: Setting<Vec<i64>> =
    hidden_widths("discriminator-hidden", "Units of the hidden layers of the discriminator");

/// See [`GanSpec::ema`].
pub static EMA: Setting<f64> =
    Setting::number("ema", "Decay of the generator's moving average, used for sample grids and exports; 0 for none")
        .range("from 0 to below 1", |v| (0.0..1.0).contains(v))
        .default("0", "Goodfellow et al. 2014 have none")
        .value_name("DECAY");

/// The settings of a GAN.
pub static SETTINGS: Group = Group {
    heading: "GAN",
    settings: &[&GENERATOR_HIDDEN, &DISCRIMINATOR_HIDDEN, &GAN_LOSS, &EMA, &AUGMENT, &AUGMENT_P],
};

impl GanSpec {
    /// The GAN that the settings describe, for images of this shape.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] for contradictory settings.
    pub fn from_settings(s: &Settings, shape: Shape) -> Result<Self> {
        let generator = NetSpec::from_settings(s, &GENERATOR_HIDDEN)?.like_dcgan();
        Ok(GanSpec {
            shape,
            latent: s.get(&LATENT)? as i64,
            generator: NetSpec { activation: Activation::Relu, ..generator },
            discriminator: NetSpec::from_settings(s, &DISCRIMINATOR_HIDDEN)?.like_dcgan(),
            loss: s.get(&GAN_LOSS)?,
            ema: s.get(&EMA)?,
            augment: AugmentSpec::from_settings(s)?,
        })
    }
}

/// Two networks, two optimizers.
#[derive(Debug)]
pub struct Gan {
    spec: GanSpec,
    generator: Network,
    discriminator: Network,
    /// The generator's images and the discriminator's logits in their graphs.
    images: Value,
    logits: Value,
    adam_g: Adam,
    adam_d: Adam,
    average: Option<MovingAverage>,
    augmenter: Option<Augmenter>,
    scalars: Vec<Scalar>,
}

/// z [B,Z] -> x [B,C,H,W] in [0,1]: tanh, rescaled from [−1,1].
fn generator(spec: &GanSpec, device: Device) -> Result<(Network, Value)> {
    Network::new("generator", device, spec.generator.init, |b| {
        let z = b.input(Port::new("z", &[spec.latent], "latents, from N(0, I)"))?;
        let image = synthesis(b, z, spec.shape, &spec.generator)?;
        b.begin_float32();
        let tanh = b.op("tanh", Op::Activation(Function::Tanh), &[image])?;
        let unit = b.op("unit", Op::Affine { scale: 0.5, shift: 0.5 }, &[tanh])?;
        b.output(Port::images("x", &spec.shape.dims(), "images"), unit)?;
        Ok(unit)
    })
}

/// x [B,C,H,W] in [0,1] -> logits [B]; the images are rescaled to [−1,1] before the first layer.
fn discriminator(spec: &GanSpec, device: Device) -> Result<(Network, Value)> {
    Network::new("discriminator", device, spec.discriminator.init, |b| {
        let x = b.input(Port::images("x", &spec.shape.dims(), "images"))?;
        let centre = b.op("centre", Op::Affine { scale: 2.0, shift: -1.0 }, &[x])?;
        let hidden = features(b, centre, &spec.discriminator)?;
        b.begin_float32();
        let out = b.linear("out", hidden, 1, true)?;
        let logits = b.op("squeeze", Op::Reshape(Vec::new()), &[out])?;
        b.output(Port::new("logits", &[], "above 0 for images taken to be real"), logits)?;
        Ok(logits)
    })
}

/// The values of one update, all scalars.
#[derive(Debug)]
pub struct GanTerms {
    /// The discriminator's loss before its update, nats.
    pub d_loss: Tensor,
    /// The generator's loss against the updated discriminator, nats.
    pub g_loss: Tensor,
    /// Mean logit of real images.
    pub d_real: Tensor,
    /// Mean logit of generated images, before the discriminator's update.
    pub d_fake: Tensor,
    /// Share of the images, real and generated, that the discriminator classifies correctly.
    pub d_accuracy: Tensor,
    /// Mean over pixels of the variance over the real batch; 0 in a batch of one.
    pub real_variance: Tensor,
    /// The same of the generated batch.
    pub fake_variance: Tensor,
}

/// Descriptions of [`GanTerms`], in their order; the two variances give one scalar, [`diversity`].
fn scalars(loss: GanLoss) -> Vec<Scalar> {
    let [d, g] = loss.equilibrium();
    vec![
        Scalar::new("d_loss", "discriminator", "nats", "loss").limit(loss.limit()).equilibrium(d),
        Scalar::new("g_loss", "generator", "nats", "loss").limit(loss.limit()).equilibrium(g),
        Scalar::new("d_real", "real images", "logit", "mean critic output"),
        Scalar::new("d_fake", "generated images", "logit", "mean critic output"),
        Scalar::new("d_accuracy", "accuracy", "share", "accuracy and diversity"),
        Scalar::new("diversity", "diversity", "ratio", "accuracy and diversity").higher(),
    ]
}

/// The measured values that [`GanTerms`] has; the probability of an adaptive augmentation follows them.
const TERMS: usize = 7;

/// Mean over pixels of the variance over the batch: x [B,C,H,W] -> scalar.
fn variance(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_sub(&x.f_mean_dim(0, true, Kind::Float)?)?.f_square()?.f_mean(Kind::Float)?)
}

/// Standard deviation of the pixels over generated images, relative to real ones; near 0: all generated images are the same. NaN if the
/// real images do not vary: they are identical, or all batches had one image.
fn diversity(real_variance: f64, fake_variance: f64) -> f64 {
    if real_variance > 1e-8 { (fake_variance / real_variance).sqrt() } else { f64::NAN }
}

impl GanTerms {
    fn stacked(&self) -> Result<Tensor> {
        let GanTerms { d_loss, g_loss, d_real, d_fake, d_accuracy, real_variance, fake_variance } = self;
        let all = [d_loss, g_loss, d_real, d_fake, d_accuracy, real_variance, fake_variance];
        Ok(Tensor::f_stack(&all, 0)?.f_detach()?) // [7]
    }

    /// From the losses, and the real and generated images [B,C,H,W] and their logits [B].
    fn new(losses: (Tensor, Tensor), images: (&Tensor, &Tensor), logits: (&Tensor, &Tensor)) -> Result<Self> {
        let ((d_loss, g_loss), (real, fake)) = (losses, logits);
        tch::no_grad(|| {
            let right = real.f_gt(0.0)?.f_to_kind(Kind::Float)?.f_add(&fake.f_le(0.0)?.f_to_kind(Kind::Float)?)?;
            Ok(GanTerms {
                d_loss,
                g_loss,
                d_real: real.f_mean(Kind::Float)?,
                d_fake: fake.f_mean(Kind::Float)?,
                d_accuracy: right.f_mean(Kind::Float)?.f_mul_scalar(0.5)?,
                real_variance: variance(images.0)?,
                fake_variance: variance(images.1)?,
            })
        })
    }
}

impl Gan {
    /// Fresh weights from libtorch's current random state.
    ///
    /// # Errors
    /// When the architecture cannot make images of this shape.
    pub fn new(spec: GanSpec, hyper: OptimizerSettings, device: Device) -> Result<Self> {
        let (g, images) = generator(&spec, device)?;
        let (d, logits) = discriminator(&spec, device)?;
        let average = match spec.ema > 0.0 {
            true => Some(MovingAverage::new(&g, generator(&spec, device)?.0, spec.ema, device)?),
            false => None,
        };
        let augmenter = spec.augment.clone().map(|augment| Augmenter::new(augment, spec.shape, device)).transpose()?;
        let mut scalars = scalars(spec.loss);
        if augmenter.as_ref().and_then(Augmenter::adaptive_p).is_some() {
            scalars.push(Scalar::new("augment_p", "probability", "", "augmentation probability"));
        }
        Ok(Gan {
            adam_g: Adam::new("generator.step", &[&g], hyper)?,
            adam_d: Adam::new("discriminator.step", &[&d], hyper)?,
            scalars,
            augmenter,
            spec,
            generator: g,
            discriminator: d,
            images,
            logits,
            average,
        })
    }

    /// z [B,Z] -> x [B,C,H,W] in [0,1].
    fn generate(&self, network: &Network, z: &Tensor, mode: Mode) -> Result<Tensor> {
        network.graph.forward_one(z, self.images, mode)
    }

    /// x [B,C,H,W] in [0,1] -> logits [B].
    fn judge(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.discriminator.graph.forward_one(x, self.logits, mode)
    }

    /// x [B,C,H,W] in [0,1] as the discriminator sees it in training: augmented by the step's noise under `name`.
    fn seen(&self, x: &Tensor, name: &'static str, noise: &Noise) -> Result<Tensor> {
        self.augmenter.as_ref().map_or_else(|| Ok(x.shallow_clone()), |augmenter| augmenter.augmented(x, noise, name))
    }

    /// Logits of real and generated images: in one pass, or in two with batch statistics, which over a mixed batch would reveal the
    /// class.
    ///
    /// Differs from PyTorch's DCGAN example: the running statistics are those of real images. Statistics of both kinds, two thirds of
    /// them generated, judge worse in evaluation mode: after 1,017 updates on MNIST 75 % right, those of real images 86 %.
    fn judge_both(&self, real: &Tensor, fake: &Tensor, mode: Mode) -> Result<(Tensor, Tensor)> {
        if mode != Mode::Eval && self.discriminator.graph.has_batch_norm() {
            return Ok((self.judge(real, mode)?, self.judge(fake, Mode::Batch)?));
        }
        let logits = self.judge(&Tensor::f_cat(&[real, fake], 0)?, mode)?; // [2B]
        // One backward operation; two slices would take five.
        let mut both = logits.f_split_with_sizes([real.size()[0], fake.size()[0]], 0)?.into_iter();
        both.next().zip(both.next()).context("the split did not give two tensors of logits")
    }

    /// One update of the discriminator, then of the generator, on real x [B,C,H,W] in [0,1] and noise z [B,Z].
    ///
    /// Both updates use the same generated images: the generator runs once (as in PyTorch's DCGAN example). Only the gradients of
    /// the network being updated are computed. `minimise` is [`Adam::minimise`]; tests pass another.
    ///
    /// # Errors
    /// libtorch's.
    pub fn update(
        &mut self,
        x: &Tensor,
        z: &Tensor,
        cx: StepContext,
        mut minimise: impl FnMut(&Adam, &Tensor) -> Result<()>,
    ) -> Result<GanTerms> {
        let fake = self.generate(&self.generator, z, Mode::Train)?; // [B,C,H,W]
        let real_seen = self.seen(x, "augment-real", cx.noise)?;
        let fake_seen = self.seen(&fake.f_detach()?, "augment-fake", cx.noise)?;
        let (real_logits, fake_logits) = self.judge_both(&real_seen, &fake_seen, Mode::Train)?;
        let d_loss = self.spec.loss.discriminator(&real_logits, &fake_logits)?;
        cx.timer.lap(Phase::Forward);
        minimise(&self.adam_d, &d_loss)?;

        let fake_seen = self.seen(&fake, "augment-generated", cx.noise)?;
        let g_loss = self.spec.loss.generator(&self.judge(&fake_seen, Mode::Batch)?)?;
        cx.timer.lap(Phase::Forward);
        minimise(&self.adam_g, &g_loss)?;
        if let Some(average) = &self.average {
            average.follow(cx.on_device)?;
        }
        if let Some(augmenter) = &self.augmenter {
            augmenter.observe(&real_logits)?;
        }
        cx.timer.lap(Phase::Optimizer);
        GanTerms::new((d_loss, g_loss), (x, &fake), (&real_logits, &fake_logits))
    }

    /// Measured values [K], with the probability of an adaptive augmentation at their end; NaN for held-out images, which are not
    /// augmented.
    fn with_p(&self, terms: Tensor, training: bool) -> Result<Tensor> {
        let Some(p) = self.augmenter.as_ref().and_then(Augmenter::adaptive_p) else { return Ok(terms) };
        let p = if training { p.shallow_clone() } else { p.f_full_like(f64::NAN)? };
        Ok(Tensor::f_cat(&[terms, p.f_view([1])?], 0)?)
    }

    fn z(&self, x: &Tensor, noise: &Noise) -> Result<Tensor> {
        noise.normal("z", &[x.size()[0], self.spec.latent])
    }
}

impl Model for Gan {
    fn step(&mut self, batch: &Batch, cx: StepContext) -> Result<Tensor> {
        let z = self.z(&batch.x, cx.noise)?;
        let terms = self.update(&batch.x, &z, cx, |adam, loss| adam.minimise(loss, cx))?.stacked()?;
        self.with_p(terms, true)
    }

    fn score(&self, batch: &Batch, noise: &Noise) -> Result<Tensor> {
        tch::no_grad(|| {
            // In evaluation mode, as exported: the scores do not depend on the batch.
            let shown = self.average.as_ref().map_or(&self.generator, |average| &average.network);
            let (x, fake) = (&batch.x, self.generate(shown, &self.z(&batch.x, noise)?, Mode::Eval)?);
            let (real_logits, fake_logits) = self.judge_both(x, &fake, Mode::Eval)?;
            let d_loss = self.spec.loss.discriminator(&real_logits, &fake_logits)?;
            let g_loss = self.spec.loss.generator(&fake_logits)?;
            let terms = GanTerms::new((d_loss, g_loss), (x, &fake), (&real_logits, &fake_logits))?.stacked()?;
            self.with_p(terms, false)
        })
    }

    fn schedule(&mut self, step: u64) -> Result<()> {
        self.average.as_mut().map_or(Ok(()), |average| average.schedule(step))
    }

    fn start_trained(&mut self) {
        if let Some(average) = &mut self.average {
            average.start_trained();
        }
    }

    fn scalars(&self) -> &[Scalar] {
        &self.scalars
    }

    fn measured(&self) -> usize {
        TERMS + usize::from(self.augmenter.as_ref().and_then(Augmenter::adaptive_p).is_some())
    }

    fn report(&self, measured: &[f64]) -> Vec<f64> {
        let Some(([terms @ .., real_variance, fake_variance], p)) = measured.split_at_checked(TERMS) else {
            return Vec::new();
        };
        terms.iter().copied().chain([diversity(*real_variance, *fake_variance)]).chain(p.iter().copied()).collect()
    }

    fn warnings(&self, measured: &[f64]) -> Vec<&'static str> {
        let Some([.., accuracy, real_variance, fake_variance]) = measured.get(..TERMS) else { return Vec::new() };
        let mut all = Vec::new();
        if *accuracy > 0.995 {
            all.push(
                "the discriminator is too strong: it classifies more than 99.5 % of the images correctly, so that the generator \
                 learns little from it; try a lower --lr, a smaller discriminator or a larger --batch-size",
            );
        }
        // False for NaN: what cannot be known is no reason to warn.
        if diversity(*real_variance, *fake_variance) < 0.2 {
            all.push(
                "the generator has collapsed: its images hardly differ (the standard deviation of their pixels is less than a \
                 fifth of the real images'); try a lower --lr, a larger --batch-size or another --seed",
            );
        }
        all
    }

    fn networks(&self) -> Vec<&Network> {
        let average = self.average.as_ref().map(|average| &average.network);
        [&self.generator, &self.discriminator].into_iter().chain(average).collect()
    }

    fn networks_mut(&mut self) -> Vec<&mut Network> {
        let average = self.average.as_mut().map(|average| &mut average.network);
        [&mut self.generator, &mut self.discriminator].into_iter().chain(average).collect()
    }

    fn optimizers(&self) -> Vec<&Adam> {
        vec![&self.adam_g, &self.adam_d]
    }

    fn optimizers_mut(&mut self) -> Vec<&mut Adam> {
        vec![&mut self.adam_g, &mut self.adam_d]
    }

    fn more_state(&self) -> Vec<(&'static str, &Tensor)> {
        self.augmenter.iter().flat_map(Augmenter::state).collect()
    }

    fn work(&self, batch: i64) -> Vec<Work> {
        let (generator, discriminator) = (&self.generator.graph, &self.discriminator.graph);
        let passes = if discriminator.has_batch_norm() { vec![batch; 2] } else { vec![2 * batch] };
        let mut work = generator.training_work(batch, true, false);
        work.extend(passes.into_iter().flat_map(|b| discriminator.training_work(b, true, false)));
        work.extend(discriminator.training_work(batch, false, true));
        work
    }

    fn latent(&self) -> i64 {
        self.spec.latent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warns_of_a_dominant_discriminator_and_mode_collapse_and_limits_the_loss() {
        let net = NetSpec {
            arch: crate::nets::Arch::Mlp,
            hidden: vec![2],
            base_width: 1,
            activation: crate::nets::Activation::Relu,
            batch_norm: false,
            init: crate::nets::graph::Init::PyTorch,
        };
        let shape = Shape { channels: 1, height: 2, width: 3 };
        let (generator, discriminator) = (net.clone(), net);
        let spec = GanSpec {
            shape,
            latent: 2,
            generator,
            discriminator,
            loss: GanLoss::NonSaturating,
            ema: 0.0,
            augment: None,
        };
        let gan = Gan::new(spec, OptimizerSettings::default(), Device::Cpu).unwrap();
        let worries = |accuracy, diversity| {
            gan.warnings(&[1.0, 1.0, 0.0, 0.0, accuracy, 1.0, diversity * diversity]).join(" and ")
        };
        assert_eq!(worries(0.9, 0.7), "");
        assert!(worries(0.999, 0.7).starts_with("the discriminator is too strong"));
        assert!(worries(0.9, 0.05).contains("collapsed"));
        assert!(worries(1.0, 0.0).contains(" and "), "both");
        let unknown = [1.0, 1.0, 0.0, 0.0, 0.9, 0.0, 0.0];
        assert!(gan.warnings(&unknown).is_empty(), "nothing is known of batches of one");
        assert_eq!(gan.report(&[1.0, 2.0, 3.0, 4.0, 0.9, 4.0, 1.0]), [1.0, 2.0, 3.0, 4.0, 0.9, 0.5]);
        assert_eq!((gan.scalars().len(), gan.scalars()[5].key.as_str()), (6, "diversity"));
        assert!(gan.scalars()[1].limit.unwrap() < 1667.0, "seen in a run with --lr 0.02");
    }

    #[test]
    fn accuracy_and_diversity_have_the_expected_values() {
        let scalar = || Tensor::from(0f32);
        let terms = |real: &[f32], fake: &[f32], images: (&Tensor, &Tensor)| {
            let (real, fake) = (Tensor::from_slice(real), Tensor::from_slice(fake));
            let terms = GanTerms::new((scalar(), scalar()), images, (&real, &fake)).unwrap();
            let [real, fake] = [&terms.real_variance, &terms.fake_variance].map(|t| t.double_value(&[]));
            (terms.d_accuracy.double_value(&[]), diversity(real, fake))
        };
        tch::manual_seed(1);
        let real = Tensor::rand([64, 1, 5, 5], (Kind::Float, Device::Cpu));
        let same = real.narrow(0, 0, 1).expand_as(&real);
        let (accuracy, diversity) = terms(&[1.0, 2.0, -1.0, 3.0], &[-1.0, 0.5, -2.0, -3.0], (&real, &(&real * 0.5)));
        assert_eq!(accuracy, 6.0 / 8.0);
        assert!((diversity - 0.5).abs() < 1e-5, "{diversity}");
        let (accuracy, diversity) = terms(&[1.0], &[-1.0], (&real, &same));
        assert!(accuracy == 1.0 && diversity < 1e-3, "{accuracy}, {diversity}");
        assert!(terms(&[1.0], &[-1.0], (&same, &real)).1.is_nan(), "real images that are all alike");
        let one = |x: &Tensor| x.narrow(0, 0, 1);
        assert!(terms(&[1.0], &[-1.0], (&one(&real), &one(&(&real * 0.5)))).1.is_nan(), "a batch of one");
    }
}
