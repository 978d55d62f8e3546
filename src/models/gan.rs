//! The GAN: one update of generator and discriminator.
//!
//! Goodfellow et al. 2014 (arXiv 1406.2661). Knows no files, paths or ranks.

mod terms;

use anyhow::{Context, Result};
use clap::ValueEnum;
use tch::{Device, Kind, Tensor};

use super::augment::{AUGMENT, AUGMENT_P, AugmentDraws, AugmentSpec, Augmenter};
use super::losses::adversarial::{GAN_LOSS, GanLoss};
use super::losses::penalty::{
    Draws, FIRST_ORDER, GRADIENT_PENALTY, ImageKind, Judged, LECAM, LeCam, PENALTY_EVERY, Penalties, R1, R1_END, R2,
    R2_END,
};
use super::moving_average::{Decay, MovingAverage};
use super::network::Network;
use super::noise::Noise;
use super::optimizer::{Adam, OptimizerSettings, mean_of_passes};
use super::schedule::Scheduled;
use super::statistics::Statistics;
use super::{Length, Model, StepContext};
use crate::base::batch::Batch;
use crate::base::scalar::Scalar;
use crate::base::setting::{AnySetting, Group, Setting, Settings};
use crate::base::shape::Shape;
use crate::base::timer::Phase;
use crate::base::usage::usage;
use crate::native::{AdamSettings, Factor};
use crate::nets::cost::Work;
use crate::nets::graph::{Function, Op, Port, Value};
use crate::nets::{Activation, Arch, LATENT, Mode, NetSpec, channels, features, hidden_widths, synthesis};
pub use terms::GanTerms;
use terms::{PENALTY_TERMS, TERMS, diversity, scalars};

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
    /// The penalties of the discriminator.
    pub penalties: Penalties,
    /// N, the discriminator's updates for each of the generator (arXiv 1406.2661, algorithm 1, k; 5 in arXiv 1704.00028).
    pub d_steps: u64,
    /// The discriminator's learning rate; none for that of the generator (two learning rates: arXiv 1706.08500).
    pub d_lr: Option<f64>,
    /// N, the first layers of the discriminator that keep their weights (Mo et al. 2020, arXiv 2002.10964).
    pub freeze_d: u64,
    /// The generator's moving average; none keeps none.
    pub ema: Option<Decay>,
    /// Augmentation of the images that the discriminator sees.
    pub augment: Option<AugmentSpec>,
}

/// Hidden layers of the generator.
pub static GENERATOR_HIDDEN: Setting<Vec<i64>> =
    hidden_widths("generator-hidden", "Units of the hidden layers of the generator, such as 512,256, or none");

/// Hidden layers of the discriminator.
pub static DISCRIMINATOR_HIDDEN: Setting<Vec<i64>> =
    hidden_widths("discriminator-hidden", "Units of the hidden layers of the discriminator");

/// Channels of the generator.
pub static GENERATOR_WIDTHS: Setting<Vec<i64>> = channels(
    "generator-widths",
    "Channels of the generator at each resolution, from the image's on, in place of --base-width; the last number holds for all further ones",
);

/// Channels of the discriminator.
pub static DISCRIMINATOR_WIDTHS: Setting<Vec<i64>> =
    channels("discriminator-widths", "The same of the discriminator [default: those of --base-width]");

/// Normalisation in the generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GeneratorNorm {
    /// Of the features, before each activation.
    Batch,
    /// Nothing.
    None,
}

/// Normalisation in the generator.
pub static GENERATOR_NORM: Setting<GeneratorNorm> =
    Setting::choice("generator-norm", "Normalisation in the generator [default: batch for --arch conv, else none]");

/// Normalisation in the discriminator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DiscriminatorNorm {
    /// Of the features, as in DCGAN.
    Batch,
    /// Of the weights, by their largest singular value (Miyato et al. 2018, arXiv 1802.05957).
    Spectral,
    /// Nothing.
    None,
}

/// Normalisation in the discriminator.
pub static DISCRIMINATOR_NORM: Setting<DiscriminatorNorm> = Setting::choice(
    "discriminator-norm",
    "Normalisation in the discriminator; penalties of its slope take none but spectral [default: batch for --arch conv, else none]",
);

/// See [`GanSpec::d_steps`].
pub static D_STEPS: Setting<u64> = Setting::whole(
    "d-steps",
    "Updates of the discriminator for each of the generator; a step then takes so many batches",
)
.range("from 1 to 1000", |n| (1..=1000).contains(n))
.default("1", "Goodfellow et al. 2014, section 4")
.value_name("UPDATES");

/// See [`GanSpec::d_lr`].
pub static D_LR: Setting<f64> =
    Setting::number("d-lr", "Adam's learning rate of the discriminator [default: that of --lr]")
        .range("above 0 and at most 1", |v| *v > 0.0 && *v <= 1.0);

/// See [`GanSpec::freeze_d`].
pub static FREEZE_D: Setting<u64> = Setting::whole(
    "freeze-d",
    "Linear and convolutional layers of the discriminator, from the image on, that keep the weights of --init-from, with their \
     normalisations; for few images",
)
.default("0", "all layers learn")
.value_name("LAYERS");

/// See [`GanSpec::ema`].
pub static EMA: Setting<f64> =
    Setting::number("ema", "Decay of the generator's moving average, used for sample grids and exports; 0 for none")
        .range("from 0 to below 1", |v| (0.0..1.0).contains(v))
        .default("0", "Goodfellow et al. 2014 have none")
        .value_name("DECAY")
        .in_place_of("ema-half-life");

/// See [`Decay::HalfLife`].
pub static EMA_HALF_LIFE: Setting<f64> = Setting::number(
    "ema-half-life",
    "Half-life of that average, instead of --ema: a weight counts half after so many images; early in a run that has no --init-from, after \
     a twentieth of the images seen",
)
.range("from 1 to 1e12", |v| (1.0..=1e12).contains(v))
.value_name("IMAGES")
.in_place_of("ema");

/// The settings of a GAN.
pub static SETTINGS: Group = Group {
    heading: "GAN",
    settings: &[
        &GENERATOR_HIDDEN,
        &DISCRIMINATOR_HIDDEN,
        &GENERATOR_WIDTHS,
        &DISCRIMINATOR_WIDTHS,
        &GENERATOR_NORM,
        &DISCRIMINATOR_NORM,
        &GAN_LOSS,
        &R1,
        &R1_END,
        &R2,
        &R2_END,
        &GRADIENT_PENALTY,
        &LECAM,
        &FIRST_ORDER,
        &PENALTY_EVERY,
        &D_STEPS,
        &D_LR,
        &FREEZE_D,
        &EMA,
        &EMA_HALF_LIFE,
        &AUGMENT,
        &AUGMENT_P,
    ],
};

impl GanSpec {
    /// A GAN without penalties, moving average and augmentation.
    pub fn new(shape: Shape, latent: i64, [generator, discriminator]: [NetSpec; 2], loss: GanLoss) -> Self {
        GanSpec {
            shape,
            latent,
            generator,
            discriminator,
            loss,
            penalties: Penalties::default(),
            d_steps: 1,
            d_lr: None,
            freeze_d: 0,
            ema: None,
            augment: None,
        }
    }

    /// The GAN that the settings describe, for images of this shape.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] for contradictory settings.
    pub fn from_settings(s: &Settings, shape: Shape, length: Length) -> Result<Self> {
        let mut generator = NetSpec::from_settings(s, &GENERATOR_HIDDEN)?.like_dcgan();
        let mut discriminator = NetSpec::from_settings(s, &DISCRIMINATOR_HIDDEN)?.like_dcgan();
        for (net, widths) in [(&mut generator, &GENERATOR_WIDTHS), (&mut discriminator, &DISCRIMINATOR_WIDTHS)] {
            net.widths = s.given(widths).unwrap_or_default();
            if net.arch == Arch::Mlp && !net.widths.is_empty() {
                usage!(
                    "--{} is a setting of --arch conv and residual, and this is --arch mlp: leave it out",
                    widths.info().name
                );
            }
        }
        if let Some(norm) = s.given(&GENERATOR_NORM) {
            generator.batch_norm = norm == GeneratorNorm::Batch;
        }
        if let Some(norm) = s.given(&DISCRIMINATOR_NORM) {
            discriminator.batch_norm = norm == DiscriminatorNorm::Batch;
            discriminator.spectral = norm == DiscriminatorNorm::Spectral;
        }
        for (net, name) in [(&generator, "generator"), (&discriminator, "discriminator")] {
            if net.arch == Arch::Mlp && net.batch_norm {
                usage!(
                    "--{name}-norm batch is a setting of --arch conv and residual, and this is --arch mlp: leave it out"
                );
            }
        }
        Ok(GanSpec {
            shape,
            latent: s.get(&LATENT)? as i64,
            generator: NetSpec { activation: Activation::Relu, ..generator },
            penalties: Penalties::from_settings(s, discriminator.batch_norm, length)?,
            discriminator,
            loss: s.get(&GAN_LOSS)?,
            d_steps: s.get(&D_STEPS)?,
            d_lr: s.given(&D_LR),
            freeze_d: s.get(&FREEZE_D)?,
            ema: match s.given(&EMA_HALF_LIFE) {
                Some(images) => Some(Decay::HalfLife { images, batch: length.batch_size as f64 }),
                None => Some(s.get(&EMA)?).filter(|decay| *decay > 0.0).map(Decay::Fixed),
            },
            augment: AugmentSpec::from_settings(s)?,
        })
    }

    /// Batches of a step: one for each update of the discriminator, and one for the generator's if its loss reads real images.
    pub fn batches(&self) -> u64 {
        self.d_steps + u64::from(self.loss.pairs())
    }

    /// The images of a step of `images`, as (from, count): of each update of the discriminator, then of the generator's, which
    /// may be those of the last one before it.
    fn parts(&self, images: i64) -> Vec<(i64, i64)> {
        let batches = self.batches() as i64;
        let each = ((images + batches - 1) / batches).max(1);
        let mut parts: Vec<_> =
            (0..images).step_by(each as usize).map(|from| (from, each.min(images - from))).collect();
        if !self.loss.pairs() || parts.len() == 1 {
            parts.extend(parts.last().copied());
        }
        parts
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
    lecam: Option<LeCam>,
    /// γ of R1 and of R2, where it changes.
    gammas: [Option<Scheduled>; 2],
    /// Updates before the next one.
    step: u64,
    average: Option<MovingAverage>,
    augmenter: Option<Augmenter>,
    scalars: Vec<Scalar>,
}

/// The random numbers of a step's images, in their order.
#[derive(Debug)]
pub struct StepNoise {
    /// [B,Z], from N(0, I).
    pub z: Tensor,
    /// Those of the penalties.
    pub penalty: Draws,
    /// Those of the augmentation.
    pub augment: Option<AugmentDraws>,
}

impl StepNoise {
    /// The numbers of `count` images from image `from` on.
    fn narrow(&self, (from, count): (i64, i64)) -> Result<Self> {
        Ok(StepNoise {
            z: self.z.f_narrow(0, from, count)?,
            penalty: self.penalty.narrow(from, count)?,
            augment: self.augment.as_ref().map(|augment| augment.narrow(from, count)).transpose()?,
        })
    }
}

/// A pass of the discriminator's update, or all of them.
struct JudgedPass {
    /// The loss without the penalties, a scalar.
    d_loss: Tensor,
    /// Real images [B,C,H,W] in [0,1].
    x: Tensor,
    /// Generated ones; in the only pass of an update with the generator's graph.
    fake: Tensor,
    /// The logits [B] of both.
    logits: (Tensor, Tensor),
    /// See [`GanTerms::penalty`].
    penalty: Option<Tensor>,
}

impl JudgedPass {
    /// All passes of an update as one.
    fn joined(passes: &[(i64, i64)], mut all: Vec<Self>) -> Result<Self> {
        if all.len() == 1 {
            return all.pop().context("an update has a pass");
        }
        let cat = |part: fn(&Self) -> &Tensor| {
            Ok::<_, anyhow::Error>(Tensor::f_cat(&all.iter().map(part).collect::<Vec<_>>(), 0)?)
        };
        let penalties: Vec<_> = all.iter().filter_map(|pass| pass.penalty.as_ref()).collect();
        Ok(JudgedPass {
            d_loss: mean_of_passes(passes, all.iter().map(|pass| &pass.d_loss))?,
            x: cat(|pass| &pass.x)?,
            fake: cat(|pass| &pass.fake)?,
            logits: (cat(|pass| &pass.logits.0)?, cat(|pass| &pass.logits.1)?),
            penalty: match penalties.len() {
                0 => None,
                _ => Some(mean_of_passes(passes, penalties.into_iter())?),
            },
        })
    }
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

/// Excludes the first `count` linear and convolutional layers, and the normalisations after them, from training. The running statistics
/// of batch normalisation go on.
fn freeze_first(network: &Network, count: u64) -> Result<()> {
    let is_layer = |op: &Op| matches!(op, Op::Linear(_) | Op::Conv(_));
    let nodes = network.graph.nodes();
    let layers = nodes.iter().filter(|node| is_layer(&node.op)).count() as u64;
    if count >= layers {
        usage!(
            "--freeze-d {count} leaves the {} nothing to learn, which has {layers} layers: freeze fewer",
            network.graph.name()
        );
    }
    let mut begun = 0;
    for node in nodes {
        begun += u64::from(is_layer(&node.op));
        if begun > count {
            break;
        }
        for (_, t, _) in node.op.tensors() {
            let _same = t.set_requires_grad(false);
        }
    }
    Ok(())
}

impl Gan {
    /// Fresh weights from libtorch's current random state.
    ///
    /// # Errors
    /// When the architecture cannot make images of this shape.
    pub fn new(spec: GanSpec, hyper: OptimizerSettings, device: Device) -> Result<Self> {
        let (g, images) = generator(&spec, device)?;
        let (d, logits) = discriminator(&spec, device)?;
        if let Some(micro) = hyper.micro_batch {
            let images = micro.images;
            let norm = [&g, &d].into_iter().find(|n| n.graph.has_batch_norm());
            if let Some(network) = norm.filter(|_| !micro.with_batch_norm) {
                let off = if network.graph.name() == "discriminator" { ", --discriminator-norm none" } else { "" };
                usage!(
                    "--micro-batch {images}: the {} has batch normalisation, whose statistics would be those of {images} images: add \
                     --micro-batch-norm if that is meant{off}, or leave it out",
                    network.graph.name()
                );
            }
            if spec.penalties.lecam > 0.0 {
                usage!(
                    "--micro-batch {images} contradicts --lecam, which needs the logits of the whole batch: leave one of the two out"
                );
            }
        }
        freeze_first(&d, spec.freeze_d)?;
        let average = spec.ema.map(|decay| MovingAverage::new(&g, generator(&spec, device)?.0, decay, device));
        let average = average.transpose()?;
        let d_lr = spec.d_lr.unwrap_or(hyper.adam.lr);
        let for_d = spec.penalties.lazy(OptimizerSettings {
            adam: AdamSettings { lr: d_lr, ..hyper.adam },
            lr: hyper.lr.map(|schedule| schedule.map(|lr| lr * (d_lr / hyper.adam.lr))),
            ..hyper
        });
        let [r1, r2] = spec
            .penalties
            .schedules
            .map(|schedule| schedule.map(|schedule| Scheduled::new(schedule.start, device)).transpose());
        let lecam = spec.penalties.lecam;
        let augmenter = spec.augment.clone().map(|augment| Augmenter::new(augment, spec.shape, device)).transpose()?;
        let mut scalars = scalars(spec.loss, &spec.penalties);
        if augmenter.as_ref().and_then(Augmenter::adaptive_p).is_some() {
            let p = Scalar::new("augment_p", "probability", "share", "augmentation probability");
            scalars.push(p.may_be_unknown());
        }
        Ok(Gan {
            adam_g: Adam::new("generator.step", &[&g], hyper)?,
            adam_d: Adam::new("discriminator.step", &[&d], for_d)?,
            lecam: (lecam > 0.0).then(|| LeCam::new(lecam, device)).transpose()?,
            gammas: [r1?, r2?],
            step: 0,
            augmenter,
            scalars,
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

    /// The generator of pictures and exports.
    fn shown(&self) -> &Network {
        self.average.as_ref().map_or(&self.generator, |average| &average.network)
    }

    /// x [B,C,H,W] in [0,1] -> logits [B].
    fn judge(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.discriminator.graph.forward_one(x, self.logits, mode)
    }

    /// x [B,C,H,W] in [0,1] as the discriminator sees it in training: augmented by uniform numbers, where it is augmented.
    fn seen(&self, x: &Tensor, uniform: Option<&Tensor>) -> Result<Tensor> {
        match self.augmenter.as_ref().zip(uniform) {
            Some((augmenter, uniform)) => augmenter.apply(x, uniform),
            None => Ok(x.shallow_clone()),
        }
    }

    /// Logits of real and generated images: in one pass, or in two if `apart` and with batch statistics, which over a mixed batch
    /// would reveal the class.
    ///
    /// Differs from PyTorch's DCGAN example: the running statistics are those of real images. Statistics of both kinds, two thirds of
    /// them generated, judge worse in evaluation mode: after 1,017 updates on MNIST 75 % right, those of real images 86 %.
    fn judge_both(&self, real: &Tensor, fake: &Tensor, apart: bool, mode: Mode) -> Result<(Tensor, Tensor)> {
        if apart || mode != Mode::Eval && self.discriminator.graph.has_batch_norm() {
            return Ok((self.judge(real, mode)?, self.judge(fake, Mode::Batch)?));
        }
        let logits = self.judge(&Tensor::f_cat(&[real, fake], 0)?, mode)?; // [2B]
        // One backward operation; two slices would take five.
        let mut both = logits.f_split_with_sizes([real.size()[0], fake.size()[0]], 0)?.into_iter();
        both.next().zip(both.next()).context("the split did not give two tensors of logits")
    }

    /// The updates of the discriminator, then one of the generator, on real x [B,C,H,W] in [0,1] and noise of B images. The images
    /// are split into [`GanSpec::batches`] of equal size, the last of which may be smaller or missing.
    ///
    /// The generator's update uses the generated images of the discriminator's last one: they are made once (as in PyTorch's DCGAN
    /// example). If its loss compares them with real ones, it gets a batch and noise of its own (arXiv 2501.05441). Only the gradients
    /// of the network being updated are computed. `minimise` is [`Adam::minimise`]; tests pass another.
    ///
    /// # Errors
    /// libtorch's.
    pub fn update(
        &self,
        x: &Tensor,
        noise: &StepNoise,
        cx: StepContext,
        mut minimise: impl FnMut(&Adam, &Tensor) -> Result<()>,
    ) -> Result<GanTerms> {
        let parts = self.spec.parts(x.size()[0]);
        let (for_g, for_d) = parts.split_last().context("a step needs images")?;
        let of = |part: (i64, i64)| -> Result<(Tensor, StepNoise)> {
            Ok((x.f_narrow(0, part.0, part.1)?, noise.narrow(part)?))
        };
        let (mut judged, mut penalties) = (None, Vec::new());
        for (i, part) in for_d.iter().enumerate() {
            let passes = self.adam_d.passes(*part);
            let mut all = Vec::new();
            let loss = |pass: (i64, i64)| {
                let (x, noise) = of(pass)?;
                let fake = match pass == *for_g {
                    true => self.generate(&self.generator, &noise.z, Mode::Train)?,
                    false => tch::no_grad(|| self.generate(&self.generator, &noise.z, Mode::Train))?,
                }; // [B,C,H,W]
                let updates = self.step * self.spec.d_steps + i as u64;
                let (loss, judged) = self.judge_pass(x, fake, &noise, updates, cx)?;
                all.push(judged);
                Ok(loss)
            };
            self.adam_d.minimise_mean(&passes, cx, &mut minimise, loss)?;
            let all = JudgedPass::joined(&passes, all)?;
            if let Some(augmenter) = &self.augmenter {
                augmenter.observe(&all.logits.0)?;
            }
            penalties.extend(all.penalty.as_ref().map(Tensor::shallow_clone));
            judged = Some(all);
        }
        let JudgedPass { d_loss, x, fake, logits, .. } = judged.context("a step needs images")?;

        let passes = self.adam_g.passes(*for_g);
        let shared = self.shares_images(&parts);
        let mut g_losses = Vec::new();
        let loss = |pass: (i64, i64)| {
            let (g_x, StepNoise { z, augment, .. }) = of(pass)?;
            let g_fake = match shared {
                true => fake.shallow_clone(),
                // The running statistics have followed these images already, unless they are others.
                false => {
                    let mode = if for_d.last() == Some(for_g) { Mode::Batch } else { Mode::Train };
                    self.generate(&self.generator, &z, mode)?
                }
            };
            let real_logits = match self.spec.loss.pairs() {
                true => tch::no_grad(|| self.judge(&self.seen(&g_x, augment.as_ref().map(|a| &a.real))?, Mode::Batch))?,
                false => logits.0.f_detach()?,
            };
            let seen = self.seen(&g_fake, augment.as_ref().map(|a| &a.generated))?;
            let g_loss = self.spec.loss.generator(&real_logits, &self.judge(&seen, Mode::Batch)?)?;
            g_losses.push(g_loss.f_detach()?);
            Ok(g_loss)
        };
        self.adam_g.minimise_mean(&passes, cx, &mut minimise, loss)?;
        let g_loss = mean_of_passes(&passes, g_losses.iter())?;
        if let Some(average) = &self.average {
            average.follow(cx.on_device)?;
        }
        cx.timer.lap(Phase::Optimizer);
        let right = tch::no_grad(|| self.spec.loss.correct(&logits.0, &logits.1))?;
        let penalty = match penalties.len() {
            0 => None,
            _ => Some(Tensor::f_stack(&penalties, 0)?.f_mean_dim(0, false, Kind::Float)?), // [3]
        };
        GanTerms::new((d_loss, g_loss), (&x, &fake), (&logits.0, &logits.1), right, penalty)
    }

    /// Whether the generator's update uses the generated images of the discriminator's last one, with their graph: they are the same
    /// images, in one pass.
    fn shares_images(&self, parts: &[(i64, i64)]) -> bool {
        matches!(parts, [.., last, for_g] if last == for_g && self.adam_g.passes(*for_g).len() == 1)
    }

    /// The discriminator's loss in its update after `updates` of them, with the penalties, on real and generated images [B,C,H,W].
    fn judge_pass(
        &self,
        x: Tensor,
        made: Tensor,
        noise: &StepNoise,
        updates: u64,
        cx: StepContext,
    ) -> Result<(Tensor, JudgedPass)> {
        let penalties = &self.spec.penalties;
        let due = penalties.due(updates);
        let [real, fake] = match due {
            true => [penalties.leaf(&x, penalties.r1)?, penalties.leaf(&made, penalties.r2)?],
            false => [x.shallow_clone(), made.f_detach()?],
        };
        // The slopes are those through the augmentation (as in arXiv 2006.06676 and 2501.05441).
        let uniform = [noise.augment.as_ref().map(|a| &a.real), noise.augment.as_ref().map(|a| &a.fake)];
        let (real_seen, fake_seen) = (self.seen(&real, uniform[0])?, self.seen(&fake, uniform[1])?);
        let logits = self.judge_both(&real_seen, &fake_seen, due && penalties.of_one_kind(), Mode::Train)?;
        let d_loss = self.spec.loss.discriminator(&logits.0, &logits.1)?;
        let (mut total, mut measured) = (d_loss.shallow_clone(), None);
        if penalties.any() {
            let none = d_loss.f_detach()?.f_zeros_like()?;
            let [mut slopes, mut lecam] = [none.shallow_clone(), none.shallow_clone()];
            if due {
                let judge = |x: &Tensor, kind| {
                    let uniform = if kind == ImageKind::Real { uniform[0] } else { uniform[1] };
                    self.judge(&self.seen(x, uniform)?, Mode::Batch)
                };
                let real = Judged { kind: ImageKind::Real, x: &real, logits: &logits.0 };
                let fake = Judged { kind: ImageKind::Generated, x: &fake, logits: &logits.1 };
                let gamma = |i: usize, fixed| {
                    self.gammas[i].as_ref().map_or(Factor::Host(fixed), |gamma| gamma.factor(cx.on_device))
                };
                let gammas = [gamma(0, penalties.r1), gamma(1, penalties.r2)];
                slopes = penalties.slopes(real, fake, &noise.penalty, gammas, judge)?;
                total = total.f_add(&slopes.f_mul_scalar(penalties.every as f64)?)?;
            }
            if let Some(of_logits) = &self.lecam {
                lecam = of_logits.penalty(&logits.0, &logits.1)?;
                total = total.f_add(&lecam)?;
            }
            // LeCam alone is in every update.
            let share = none.f_add_scalar(if due || !penalties.of_slopes() { 1.0 } else { 0.0 })?;
            measured = Some(Tensor::f_stack(&[&slopes, &share, &lecam], 0)?.f_detach()?);
        }
        let logits = (logits.0.f_detach()?, logits.1.f_detach()?);
        let d_loss = d_loss.f_detach()?;
        Ok((total, JudgedPass { d_loss, x, fake: made, logits, penalty: measured }))
    }

    fn adaptive_p(&self) -> Option<&Tensor> {
        self.augmenter.as_ref().and_then(Augmenter::adaptive_p)
    }

    /// Measured values [K], with the probability of an adaptive augmentation at their end; NaN for held-out images, which are not
    /// augmented.
    fn with_p(&self, terms: Tensor, training: bool) -> Result<Tensor> {
        let Some(p) = self.adaptive_p() else { return Ok(terms) };
        let p = if training { p.shallow_clone() } else { p.f_full_like(f64::NAN)? };
        Ok(Tensor::f_cat(&[terms, p.f_view([1])?], 0)?)
    }

    fn z(&self, x: &Tensor, noise: &Noise) -> Result<Tensor> {
        noise.normal("z", &[x.size()[0], self.spec.latent])
    }
}

impl Model for Gan {
    fn step(&mut self, batch: &Batch, cx: StepContext) -> Result<Tensor> {
        let noise = StepNoise {
            z: self.z(&batch.x, cx.noise)?,
            penalty: self.spec.penalties.draw(cx.noise, &batch.x)?,
            augment: self.augmenter.as_ref().map(|_| AugmentDraws::new(cx.noise, batch.x.size()[0])).transpose()?,
        };
        let terms = self.update(&batch.x, &noise, cx, |adam, loss| adam.minimise(loss, cx))?.stacked()?;
        self.with_p(terms, true)
    }

    fn score(&self, batch: &Batch, noise: &Noise) -> Result<Tensor> {
        tch::no_grad(|| {
            // In evaluation mode, as exported: the scores do not depend on the batch.
            let (x, fake) = (&batch.x, self.generate(self.shown(), &self.z(&batch.x, noise)?, Mode::Eval)?);
            let (real_logits, fake_logits) = self.judge_both(x, &fake, false, Mode::Eval)?;
            let d_loss = self.spec.loss.discriminator(&real_logits, &fake_logits)?;
            let g_loss = self.spec.loss.generator(&real_logits, &fake_logits)?;
            let right = self.spec.loss.correct(&real_logits, &fake_logits)?;
            // The penalties are of training only.
            let unknown = match self.spec.penalties.any() {
                true => Some(Tensor::f_full([PENALTY_TERMS as i64], f64::NAN, (Kind::Float, x.device()))?),
                false => None,
            };
            let logits = (&real_logits, &fake_logits);
            let terms = GanTerms::new((d_loss, g_loss), (x, &fake), logits, right, unknown)?.stacked()?;
            self.with_p(terms, false)
        })
    }

    fn schedule(&mut self, step: u64) -> Result<()> {
        self.step = step;
        self.adam_g.schedule(step)?;
        self.adam_d.schedule(step)?;
        for (gamma, schedule) in self.gammas.iter_mut().zip(self.spec.penalties.schedules) {
            if let Some((gamma, schedule)) = gamma.as_mut().zip(schedule) {
                gamma.set(schedule.at(step))?;
            }
        }
        self.average.as_mut().map_or(Ok(()), |average| average.schedule(step))
    }

    /// The discriminator's are those of real images, as in training.
    fn recompute_statistics(&self, batches: &mut dyn Iterator<Item = Result<(Batch, Noise)>>) -> Result<()> {
        if ![self.shown(), &self.discriminator].iter().any(|network| network.graph.has_batch_norm()) {
            return Ok(());
        }
        let (mut of_generator, mut of_discriminator) =
            (Statistics::new(&self.shown().graph)?, Statistics::new(&self.discriminator.graph)?);
        tch::no_grad(|| {
            for batch in batches {
                let (batch, noise) = batch?;
                of_generator.add(|| self.generate(self.shown(), &self.z(&batch.x, &noise)?, Mode::Train))?;
                of_discriminator.add(|| self.judge(&batch.x, Mode::Train))?;
            }
            of_generator.finish()?;
            of_discriminator.finish()
        })
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
        let of_penalties = if self.spec.penalties.any() { PENALTY_TERMS } else { 0 };
        TERMS + of_penalties + usize::from(self.adaptive_p().is_some())
    }

    fn report(&self, measured: &[f64]) -> Vec<f64> {
        let Some((&[ref terms @ .., real_variance, fake_variance], more)) = measured.split_at_checked(TERMS) else {
            return Vec::new();
        };
        let (penalty, p) = match more {
            // NaN if no update had a penalty.
            [slopes, share, lecam, p @ ..] => (Some(slopes / share + lecam), p),
            p => (None, p),
        };
        let diversity = diversity(real_variance, fake_variance);
        terms.iter().copied().chain([diversity]).chain(penalty).chain(p.iter().copied()).collect()
    }

    fn more_state(&self) -> Vec<(&'static str, &Tensor)> {
        let lecam = self.lecam.iter().map(|lecam| ("discriminator.lecam", lecam.averages()));
        lecam.chain(self.augmenter.iter().flat_map(Augmenter::state)).collect()
    }

    fn warnings(&self, measured: &[f64]) -> Vec<&'static str> {
        let [_, _, _, _, accuracy, real_variance, fake_variance, ..] = measured else { return Vec::new() };
        let mut all = Vec::new();
        if *accuracy > 0.995 && self.spec.loss.wants_a_contest() {
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

    fn work(&self, batch: i64) -> Vec<Work> {
        let (generator, discriminator) = (&self.generator.graph, &self.discriminator.graph);
        let parts = self.spec.parts(batch);
        let Some((for_g, for_d)) = parts.split_last() else { return Vec::new() };
        let mut work = Vec::new();
        let shared = self.shares_images(&parts);
        for part in for_d {
            // Without the generator's gradients, unless its update uses the same images.
            match shared && part == for_g {
                true => work.extend(generator.training_work(part.1, true, false)),
                false => work.extend(generator.forward_work(part.1)),
            }
            let passes = if discriminator.has_batch_norm() { vec![part.1; 2] } else { vec![2 * part.1] };
            work.extend(passes.into_iter().flat_map(|b| discriminator.training_work(b, true, false)));
        }
        if self.spec.loss.pairs() {
            work.extend(discriminator.forward_work(for_g.1));
        }
        if !shared {
            work.extend(generator.training_work(for_g.1, true, false));
        }
        work.extend(discriminator.training_work(for_g.1, false, true));
        work
    }

    fn latent(&self) -> i64 {
        self.spec.latent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::timer::StepTimer;
    use crate::models::optimizer::MicroBatch;
    use crate::native;

    #[test]
    fn warns_of_a_dominant_discriminator_and_mode_collapse_and_limits_the_loss() {
        let net = NetSpec {
            arch: crate::nets::Arch::Mlp,
            hidden: vec![2],
            activation: crate::nets::Activation::Relu,
            batch_norm: false,
            init: crate::nets::graph::Init::PyTorch,
            ..NetSpec::default()
        };
        let shape = Shape { channels: 1, height: 2, width: 3 };
        let spec = GanSpec::new(shape, 2, [net.clone(), net], GanLoss::NonSaturating);
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

    /// A small GAN on images of 8x8, convolutional ones with batch normalisation.
    fn spec(arch: crate::nets::Arch, loss: GanLoss) -> GanSpec {
        let net = NetSpec {
            arch,
            hidden: vec![5, 4],
            base_width: Some(4),
            activation: Activation::LeakyRelu,
            ..NetSpec::default()
        };
        GanSpec::new(Shape { channels: 1, height: 8, width: 8 }, 3, [net.clone().like_dcgan(), net.like_dcgan()], loss)
    }

    fn images(seed: i64, count: i64) -> Batch {
        let x = native::random(seed, &[count, 1, 8, 8], native::Distribution::Uniform).unwrap();
        Batch { x, labels: None }
    }

    /// Updates on the same images; the measured values of the last.
    fn train(gan: &mut Gan, batch: &Batch, steps: u64) -> Tensor {
        let timer = StepTimer::off();
        let step = |step: u64| {
            let noise = Noise::new(step as i64, Device::Cpu);
            gan.schedule(step).unwrap();
            gan.step(batch, StepContext { noise: &noise, timer: &timer, on_device: false }).unwrap()
        };
        (0..steps).map(step).last().unwrap()
    }

    fn weights(gan: &Gan) -> Vec<Tensor> {
        gan.optimizers().iter().flat_map(|adam| adam.params().iter().map(|p| p.detach().copy())).collect()
    }

    #[test]
    fn passes_of_an_update_give_that_of_the_whole_batch() {
        let none = Penalties::default();
        let kinds = [
            (none, 1),
            (Penalties { r1: 0.5, r2: 0.3, gradient: 0.2, ..none }, 1),
            (Penalties { r1: 0.5, first_order: true, every: 2, ..none }, 2),
        ];
        for &loss in GanLoss::value_variants() {
            for (penalties, d_steps) in kinds {
                let update = |size: Option<u64>| {
                    let list = vec![crate::models::augment::Augmentation::Shift];
                    let augment = Some(AugmentSpec { list, p: crate::models::augment::ApplyProbability::Adaptive });
                    let spec = GanSpec { penalties, d_steps, augment, ..spec(crate::nets::Arch::Mlp, loss) };
                    let adam = AdamSettings { eps: 1e-2, ..AdamSettings::default() };
                    let micro_batch = size.map(|images| MicroBatch { images, with_batch_norm: false });
                    let hyper = OptimizerSettings { adam, micro_batch, ..OptimizerSettings::default() };
                    let mut gan = native::seeded(3, || Gan::new(spec, hyper, Device::Cpu)).unwrap();
                    let values = train(&mut gan, &images(1, 18), 2);
                    let state = gan.more_state().into_iter().map(|(_, t)| t.copy()).collect::<Vec<_>>();
                    [values.to_kind(Kind::Float)].into_iter().chain(state).chain(weights(&gan)).collect::<Vec<_>>()
                };
                let whole = update(None);
                for size in [4, 18] {
                    for (i, (got, want)) in update(Some(size)).iter().zip(&whole).enumerate() {
                        // A difference of two logits over a small distance, which rounds.
                        let most = if penalties.first_order { 1e-3 } else { 1e-5 };
                        let close = got.allclose(want, most, most / 10.0, false);
                        assert!(close, "{loss:?}, {penalties:?}, {size}, tensor {i}: {got}, not {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn passes_need_leave_for_batch_normalisation() {
        let with = |with_batch_norm, penalties| {
            let micro_batch = Some(MicroBatch { images: 4, with_batch_norm });
            let spec = GanSpec { penalties, ..spec(crate::nets::Arch::Conv, GanLoss::Hinge) };
            Gan::new(spec, OptimizerSettings { micro_batch, ..OptimizerSettings::default() }, Device::Cpu)
        };
        let e = with(false, Penalties::default()).unwrap_err().to_string();
        assert!(e.contains("the generator has batch normalisation") && e.contains("--micro-batch-norm"), "{e}");
        let e = with(true, Penalties { lecam: 1.0, ..Penalties::default() }).unwrap_err().to_string();
        assert!(e.contains("--lecam"), "{e}");
        let values = train(&mut with(true, Penalties::default()).unwrap(), &images(1, 10), 2);
        assert_eq!(values.isfinite().all().int64_value(&[]), 1);
    }

    #[test]
    fn frozen_layers_keep_their_weights() {
        let gan = |freeze_d| {
            let spec = GanSpec { freeze_d, ..spec(crate::nets::Arch::Conv, GanLoss::NonSaturating) };
            native::seeded(3, || Gan::new(spec, OptimizerSettings::default(), Device::Cpu))
        };
        // conv1, fc1, fc2, out.
        for freeze_d in 0..4 {
            let mut gan = gan(freeze_d).unwrap();
            let of = |gan: &Gan| {
                gan.networks()
                    .into_iter()
                    .flat_map(Network::variables)
                    .map(|(name, t)| (name, t.copy()))
                    .collect::<Vec<_>>()
            };
            let before = of(&gan);
            let _values = train(&mut gan, &images(1, 6), 2);
            let kept = before.iter().zip(of(&gan)).filter(|((_, before), (_, after))| before == after);
            let kept: Vec<_> =
                kept.map(|((name, _), _)| name.as_str()).filter(|name| name.ends_with("weight")).collect();
            let names = ["conv1", "fc1", "fc2", "out"].map(|name| format!("discriminator.{name}.weight"));
            assert_eq!(kept, names[..freeze_d as usize]);
        }
        let e = gan(4).unwrap_err().to_string();
        assert!(e.contains("--freeze-d 4") && e.contains("4 layers"), "{e}");
    }

    /// In evaluation mode, both networks then compute what they do with the statistics of a batch.
    #[test]
    fn recomputed_statistics_are_those_of_batches() {
        let net = spec(crate::nets::Arch::Conv, GanLoss::NonSaturating);
        let shape = Shape { channels: 1, height: 16, width: 16 };
        let spec = GanSpec { shape, ema: Some(Decay::Fixed(0.9)), ..net };
        let hyper = OptimizerSettings {
            adam: AdamSettings { lr: 0.01, ..AdamSettings::default() },
            ..OptimizerSettings::default()
        };
        let mut gan = native::seeded(3, || Gan::new(spec, hyper, Device::Cpu)).unwrap();
        let uniform = |seed| native::random(seed, &[64, 1, 16, 16], native::Distribution::Uniform).unwrap();
        let _values = train(&mut gan, &Batch { x: uniform(1), labels: None }, 5);
        let noise = || Noise::new(7, Device::Cpu);
        let (x, z) = (uniform(2), gan.z(&uniform(2), &noise()).unwrap());
        let off = |gan: &Gan| {
            let differ = |of: &dyn Fn(Mode) -> Result<Tensor>| {
                let [eval, batch] = [Mode::Eval, Mode::Batch].map(|mode| tch::no_grad(|| of(mode)).unwrap());
                let scale = batch.std(false).double_value(&[]);
                (eval - batch).abs().max().double_value(&[]) / scale
            };
            [differ(&|mode| gan.judge(&x, mode)), differ(&|mode| gan.generate(gan.shown(), &z, mode))]
        };
        let before = (off(&gan), weights(&gan));
        let recompute = |gan: &Gan| {
            let batch = || Ok((Batch { x: x.shallow_clone(), labels: None }, noise()));
            gan.recompute_statistics(&mut [batch(), batch()].into_iter()).unwrap();
            gan.networks().into_iter().flat_map(Network::variables).map(|(_, t)| t.copy()).collect::<Vec<_>>()
        };
        let once = recompute(&gan);
        let after = off(&gan);
        assert!(
            before.0.iter().all(|off| *off > 0.2) && after.iter().all(|off| *off < 0.02),
            "{before:?}, then {after:?}"
        );
        assert_eq!(before.1, weights(&gan), "no weight has moved");
        assert_eq!(recompute(&gan), once, "they do not depend on those before");
    }
}
