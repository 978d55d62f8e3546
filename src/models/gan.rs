//! The GAN: one update of generator and discriminator.
//!
//! Goodfellow et al. 2014 (arXiv 1406.2661). Knows no files, paths or ranks.

mod networks;
mod spec;
mod terms;

use anyhow::{Context, Result, bail};
use tch::{Device, Kind, Tensor};

use super::augment::{AugmentDraws, Augmenter};
use super::losses::penalty::{Draws, ImageKind, Judged, LeCam};
use super::moving_average::MovingAverage;
use super::network::Network;
use super::noise::Noise;
use super::optimizer::{Adam, OptimizerSettings, mean_of_passes};
use super::schedule::Scheduled;
use super::statistics::Statistics;
use super::{Model, StepContext};
use crate::base::batch::Batch;
use crate::base::scalar::Scalar;
use crate::base::timer::Phase;
use crate::base::usage::usage;
use crate::native::{AdamSettings, Factor};
use crate::nets::Mode;
use crate::nets::cost::Work;
use crate::nets::graph::Value;
use networks::{discriminator, freeze_first, generator};
pub use spec::*;
pub use terms::GanTerms;
use terms::{PENALTY_TERMS, TERMS, diversity, scalars};

/// Two networks, two optimizers.
#[derive(Debug)]
pub struct Gan {
    spec: GanSpec,
    generator: Network,
    discriminator: Network,
    /// The generator's images in training ([`GanSpec::has_linear_images`]) and the discriminator's logits, in their graphs.
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

    /// z [B,Z] -> x [B,C,H,W], in evaluation mode in [0,1]; with class numbers [B] of a conditional GAN.
    fn generate(&self, network: &Network, z: &Tensor, labels: Option<&Tensor>, mode: Mode) -> Result<Tensor> {
        let shown = network.graph.outputs().first().map(|(_, images)| *images);
        let value = if mode == Mode::Eval { shown.unwrap_or(self.images) } else { self.images };
        one_value(network, (z, labels), value, mode)
    }

    /// The generator of pictures and exports.
    fn shown(&self) -> &Network {
        self.average.as_ref().map_or(&self.generator, |average| &average.network)
    }

    /// x [B,C,H,W] in [0,1] -> logits [B]; with class numbers [B] of a conditional GAN.
    fn judge(&self, x: &Tensor, labels: Option<&Tensor>, mode: Mode) -> Result<Tensor> {
        one_value(&self.discriminator, (x, labels), self.logits, mode)
    }

    /// The batch with its labels if they are read, else without.
    fn conditioned(&self, batch: &Batch) -> Result<Batch> {
        let labels = match (&batch.labels, self.spec.classes) {
            (_, None) => None,
            (Some(labels), Some(_)) => Some(labels.shallow_clone()),
            (None, Some(_)) => bail!("a conditional GAN needs the classes of its images"),
        };
        Ok(Batch { x: batch.x.shallow_clone(), labels })
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
    fn judge_both(
        &self,
        [real, fake]: [&Tensor; 2],
        labels: Option<&Tensor>,
        apart: bool,
        mode: Mode,
    ) -> Result<(Tensor, Tensor)> {
        if apart || mode != Mode::Eval && self.discriminator.graph.has_batch_norm() {
            return Ok((self.judge(real, labels, mode)?, self.judge(fake, labels, Mode::Batch)?));
        }
        let twice = labels.map(|labels| Tensor::f_cat(&[labels, labels], 0)).transpose()?;
        let logits = self.judge(&Tensor::f_cat(&[real, fake], 0)?, twice.as_ref(), mode)?; // [2B]
        // One backward operation; two slices would take five.
        let mut both = logits.f_split_with_sizes([real.size()[0], fake.size()[0]], 0)?.into_iter();
        both.next().zip(both.next()).context("the split did not give two tensors of logits")
    }

    /// The updates of the discriminator, then one of the generator, on B real images and noise of as many. The images are split into
    /// [`GanSpec::batches`] of equal size, the last of which may be smaller or missing. Generated images have the classes of the real
    /// ones.
    ///
    /// The generator's update uses the generated images of the discriminator's last one: they are made once (as in PyTorch's DCGAN
    /// example). If its loss compares them with real ones, it gets a batch and noise of its own (arXiv 2501.05441). Only the gradients
    /// of the network being updated are computed. `minimise` is [`Adam::minimise`]; tests pass another.
    ///
    /// # Errors
    /// libtorch's.
    pub fn update(
        &self,
        batch: &Batch,
        noise: &StepNoise,
        cx: StepContext,
        mut minimise: impl FnMut(&Adam, &Tensor) -> Result<()>,
    ) -> Result<GanTerms> {
        let batch = self.conditioned(batch)?;
        let parts = self.spec.parts(batch.x.size()[0]);
        let (for_g, for_d) = parts.split_last().context("a step needs images")?;
        let of = |part: (i64, i64)| -> Result<(Batch, StepNoise)> {
            Ok((batch.narrow(part.0, part.1)?, noise.narrow(part)?))
        };
        let (mut judged, mut penalties) = (None, Vec::new());
        for (i, part) in for_d.iter().enumerate() {
            let passes = self.adam_d.passes(*part);
            let mut all = Vec::new();
            let loss = |pass: (i64, i64)| {
                let (batch, noise) = of(pass)?;
                let generate = || self.generate(&self.generator, &noise.z, batch.labels.as_ref(), Mode::Train);
                let fake = if pass == *for_g { generate() } else { tch::no_grad(generate) }?; // [B,C,H,W]
                let updates = self.step * self.spec.d_steps + i as u64;
                let (loss, judged) = self.judge_pass(batch, fake, &noise, updates, cx)?;
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
            let (Batch { x: g_x, labels }, StepNoise { z, augment, .. }) = of(pass)?;
            let labels = labels.as_ref();
            let g_fake = match shared {
                true => fake.shallow_clone(),
                // The running statistics have followed these images already, unless they are others.
                false => {
                    let mode = if for_d.last() == Some(for_g) { Mode::Batch } else { Mode::Train };
                    self.generate(&self.generator, &z, labels, mode)?
                }
            };
            let real_logits = match self.spec.loss.pairs() {
                true => tch::no_grad(|| {
                    self.judge(&self.seen(&g_x, augment.as_ref().map(|a| &a.real))?, labels, Mode::Batch)
                })?,
                false => logits.0.f_detach()?,
            };
            let seen = self.seen(&g_fake, augment.as_ref().map(|a| &a.generated))?;
            let g_loss = self.spec.loss.generator(&real_logits, &self.judge(&seen, labels, Mode::Batch)?)?;
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
        Batch { x, labels }: Batch,
        made: Tensor,
        noise: &StepNoise,
        updates: u64,
        cx: StepContext,
    ) -> Result<(Tensor, JudgedPass)> {
        let (penalties, labels) = (&self.spec.penalties, labels.as_ref());
        let due = penalties.due(updates);
        let [real, fake] = match due {
            true => [penalties.leaf(&x, penalties.r1)?, penalties.leaf(&made, penalties.r2)?],
            false => [x.shallow_clone(), made.f_detach()?],
        };
        // The slopes are those through the augmentation (as in arXiv 2006.06676 and 2501.05441).
        let uniform = [noise.augment.as_ref().map(|a| &a.real), noise.augment.as_ref().map(|a| &a.fake)];
        let (real_seen, fake_seen) = (self.seen(&real, uniform[0])?, self.seen(&fake, uniform[1])?);
        let logits = self.judge_both([&real_seen, &fake_seen], labels, due && penalties.of_one_kind(), Mode::Train)?;
        let d_loss = self.spec.loss.discriminator(&logits.0, &logits.1)?;
        let (mut total, mut measured) = (d_loss.shallow_clone(), None);
        if penalties.any() {
            let none = d_loss.f_detach()?.f_zeros_like()?;
            let [mut slopes, mut lecam] = [none.shallow_clone(), none.shallow_clone()];
            if due {
                let judge = |x: &Tensor, kind| {
                    let uniform = if kind == ImageKind::Real { uniform[0] } else { uniform[1] };
                    self.judge(&self.seen(x, uniform)?, labels, Mode::Batch)
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

/// A value of a network for its input [B,...] and, of a conditional one, class numbers [B].
fn one_value(network: &Network, (x, labels): (&Tensor, Option<&Tensor>), value: Value, mode: Mode) -> Result<Tensor> {
    let inputs: Vec<&Tensor> = [x].into_iter().chain(labels).collect();
    network.graph.forward(&inputs, &[value], mode)?.pop().context("one output was asked for")
}

impl Model for Gan {
    fn step(&mut self, batch: &Batch, cx: StepContext) -> Result<Tensor> {
        let noise = StepNoise {
            z: self.z(&batch.x, cx.noise)?,
            penalty: self.spec.penalties.draw(cx.noise, &batch.x)?,
            augment: self.augmenter.as_ref().map(|_| AugmentDraws::new(cx.noise, batch.x.size()[0])).transpose()?,
        };
        let terms = self.update(batch, &noise, cx, |adam, loss| adam.minimise(loss, cx))?.stacked()?;
        self.with_p(terms, true)
    }

    fn score(&self, batch: &Batch, noise: &Noise) -> Result<Tensor> {
        tch::no_grad(|| {
            // In evaluation mode, as exported: the scores do not depend on the batch.
            let Batch { x, labels } = &self.conditioned(batch)?;
            let fake = self.generate(self.shown(), &self.z(x, noise)?, labels.as_ref(), Mode::Eval)?;
            let (real_logits, fake_logits) = self.judge_both([x, &fake], labels.as_ref(), false, Mode::Eval)?;
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
        // A network without batch normalisation is not run: in training mode, spectral normalisation would move.
        let of = |network: &Network| match network.graph.has_batch_norm() {
            true => Statistics::new(&network.graph).map(Some),
            false => Ok(None),
        };
        let (mut of_generator, mut of_discriminator) = (of(self.shown())?, of(&self.discriminator)?);
        if of_generator.is_none() && of_discriminator.is_none() {
            return Ok(());
        }
        tch::no_grad(|| {
            for batch in batches {
                let (batch, noise) = batch?;
                let Batch { x, labels } = &self.conditioned(&batch)?;
                if let Some(of_generator) = &mut of_generator {
                    of_generator
                        .add(|| self.generate(self.shown(), &self.z(x, &noise)?, labels.as_ref(), Mode::Train))?;
                }
                if let Some(of_discriminator) = &mut of_discriminator {
                    of_discriminator.add(|| self.judge(x, labels.as_ref(), Mode::Train))?;
                }
            }
            of_generator.into_iter().chain(of_discriminator).try_for_each(|statistics| statistics.finish())
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
mod tests;
