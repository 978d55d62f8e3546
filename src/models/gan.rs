//! The generative adversarial network: one update of both players.
//!
//! Goodfellow et al. 2014 (arXiv 1406.2661). Never sees files, paths or ranks.

use anyhow::{Context, Result};
use tch::nn::{self, VarStore};
use tch::{Device, Kind, Tensor};

use crate::base::timer::Phase;
use crate::models::losses::{GanLoss, discriminator_loss};
use crate::models::optimizer::{Adam, Ema, Hyper};
use crate::models::{Model, Moment, StepCx, Visit, visit_vars};
use crate::native;
use crate::nets::{
    self, Activation, Forms, Mode, Net, NetSpec, Network, Op, Operation, Port, Shape, features, linear, synthesis,
};

/// Everything that decides a GAN's mathematics.
#[derive(Clone, Debug, PartialEq)]
pub struct GanSpec {
    /// Shape of the images.
    pub shape: Shape,
    /// Z.
    pub latent: i64,
    /// The generator's layers.
    pub generator: NetSpec,
    /// The discriminator's layers.
    pub discriminator: NetSpec,
    /// What the generator minimises.
    pub loss: GanLoss,
    /// Decay of the generator's moving average; 0 keeps none.
    pub ema: f64,
}

/// Two players, two optimizers.
#[derive(Debug)]
pub struct Gan {
    spec: GanSpec,
    generator: Generator,
    discriminator: Discriminator,
    adam_g: Adam,
    adam_d: Adam,
    average: Option<(Generator, Ema)>,
}

/// z [B,Z] -> x [B,C,H,W] in [0,1].
#[derive(Debug)]
struct Generator {
    vars: VarStore,
    net: Net,
}

impl Generator {
    fn new(spec: &GanSpec, device: Device) -> Result<Self> {
        let vars = VarStore::new(device);
        let net = synthesis(&(&vars.root() / "generator"), spec.latent, spec.shape, &spec.generator)?;
        Ok(Generator { vars, net })
    }

    /// tanh, moved from [−1,1] to [0,1]: images are in [0,1] at every interface.
    fn forward(&self, z: &Tensor, mode: Mode) -> Result<Tensor> {
        // Not in place: an MLP's output is a view, on which autograd would pay for a copy.
        native::affine(&self.net.forward(z, mode)?.f_tanh()?, 0.5, 0.5)
    }
}

/// x [B,C,H,W] in [0,1] -> logits [B].
#[derive(Debug)]
struct Discriminator {
    vars: VarStore,
    net: Net,
    out: nn::Linear,
}

impl Discriminator {
    fn new(spec: &GanSpec, device: Device) -> Result<Self> {
        let vars = VarStore::new(device);
        let path = &vars.root() / "discriminator";
        let (net, width) = features(&path, spec.shape, &spec.discriminator)?;
        let out = linear(&path, "out", width, 1, true, spec.discriminator.init)?;
        Ok(Discriminator { vars, net, out })
    }

    /// Centres the images, [0,1] to [−1,1], before the first layer.
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let h = self.net.forward(&native::affine(x, 2.0, -1.0)?, mode)?; // [B,F]
        Ok(self.net.forms.linear(&h, &self.out.ws, self.out.bs.as_ref(), 1.0)?.f_squeeze_dim(1)?) // [B]
    }

    /// Logits of real and generated images: one pass where the layers treat each image alone, else one for each, because
    /// batch statistics of the mixture would tell the two apart.
    fn both(&self, real: &Tensor, fake: &Tensor, mode: Mode) -> Result<(Tensor, Tensor)> {
        if mode != Mode::Eval && self.net.has_batch_norm() {
            return Ok((self.forward(real, mode)?, self.forward(fake, mode)?));
        }
        let logits = self.forward(&Tensor::f_cat(&[real, fake], 0)?, mode)?; // [2B]
        // One operation of the backward pass; two slices would be five.
        let mut both = logits.f_split_with_sizes([real.size()[0], fake.size()[0]], 0)?.into_iter();
        both.next().zip(both.next()).context("the logits of two batches are not two")
    }
}

/// The values of one update, scalars.
#[derive(Debug)]
pub struct GanTerms {
    /// −E[log D(x)] − E[log(1 − D(G(z)))], nats.
    pub d_loss: Tensor,
    /// The generator's loss against the updated discriminator, nats.
    pub g_loss: Tensor,
    /// Mean logit of real images.
    pub d_real: Tensor,
    /// Mean logit of generated images, before the discriminator's update.
    pub d_fake: Tensor,
    /// Share of the images, real and generated alike, that the discriminator takes for what they are.
    pub d_accuracy: Tensor,
    /// Standard deviation of a pixel over the generated batch, over that of the real one: near 0, all are the same image.
    pub diversity: Tensor,
}

/// Mean over pixels of the variance over the batch: x [B,C,H,W] -> scalar.
fn spread(x: &Tensor) -> Result<Tensor> {
    Ok((x - x.f_mean_dim(0, true, Kind::Float)?).f_square()?.f_mean(Kind::Float)?)
}

/// Spread of the generated images over that of the real ones, as standard deviations; 1 where the real ones are all alike, as
/// in a batch of one.
fn diversity(real: &Tensor, fake: &Tensor) -> Result<Tensor> {
    let real = spread(real)?;
    let ratio = (spread(fake)? / real.f_clamp_min(1e-8)?).f_sqrt()?;
    Ok(ratio.f_where_self(&real.f_gt(1e-8)?, &ratio.f_ones_like()?)?)
}

impl GanTerms {
    fn stacked(&self) -> Result<Tensor> {
        let all = [&self.d_loss, &self.g_loss, &self.d_real, &self.d_fake, &self.d_accuracy, &self.diversity];
        Ok(Tensor::f_stack(&all, 0)?.f_detach()?) // [6]
    }

    /// The losses, and what else follows from real and generated images [B,C,H,W] and the logits [B] of each.
    fn new(losses: (Tensor, Tensor), images: (&Tensor, &Tensor), logits: (&Tensor, &Tensor)) -> Result<Self> {
        let ((d_loss, g_loss), (real, fake)) = (losses, logits);
        tch::no_grad(|| {
            let right = real.f_gt(0.0)?.f_to_kind(Kind::Float)? + fake.f_le(0.0)?.f_to_kind(Kind::Float)?;
            Ok(GanTerms {
                d_loss,
                g_loss,
                d_real: real.f_mean(Kind::Float)?,
                d_fake: fake.f_mean(Kind::Float)?,
                d_accuracy: right.f_mean(Kind::Float)? * 0.5,
                diversity: diversity(images.0, images.1)?,
            })
        })
    }
}

impl Gan {
    /// Fresh weights from libtorch's current random state.
    ///
    /// # Errors
    /// When the architecture cannot make images of this shape.
    pub fn new(spec: GanSpec, hyper: Hyper, device: Device) -> Result<Self> {
        let generator = Generator::new(&spec, device)?;
        let discriminator = Discriminator::new(&spec, device)?;
        let average = if spec.ema > 0.0 {
            let mut twin = Generator::new(&spec, device)?;
            let ema = Ema::new(&generator.vars, &mut twin.vars, spec.ema)?;
            Some((twin, ema))
        } else {
            None
        };
        Ok(Gan {
            adam_g: Adam::new(&generator.vars, hyper),
            adam_d: Adam::new(&discriminator.vars, hyper),
            spec,
            generator,
            discriminator,
            average,
        })
    }

    /// One update of the discriminator, then of the generator, on real x [B,C,H,W] in [0,1] and noise z [B,Z].
    ///
    /// Both players use the same generated images: the generator runs once (as in PyTorch's DCGAN example). Only the
    /// gradients of the player being updated are computed. `minimise` is [`Adam::minimise`], or what a test puts in its place.
    ///
    /// # Errors
    /// libtorch's.
    pub fn update(
        &mut self,
        x: &Tensor,
        z: &Tensor,
        cx: StepCx,
        mut minimise: impl FnMut(&Adam, &Tensor) -> Result<()>,
    ) -> Result<GanTerms> {
        let fake = self.generator.forward(z, Mode::Train)?; // [B,C,H,W]
        let (real_logits, fake_logits) = self.discriminator.both(x, &fake.f_detach()?, Mode::Train)?;
        let d_loss = discriminator_loss(&real_logits, &fake_logits)?;
        cx.clock.lap(Phase::Forward);
        minimise(&self.adam_d, &d_loss)?;

        let g_loss = self.spec.loss.generator_loss(&self.discriminator.forward(&fake, Mode::Train)?)?;
        cx.clock.lap(Phase::Forward);
        minimise(&self.adam_g, &g_loss)?;
        if let Some((_, ema)) = &self.average {
            ema.follow(cx.now)?;
        }
        cx.clock.lap(Phase::Optimizer);
        GanTerms::new((d_loss, g_loss), (x, &fake), (&real_logits, &fake_logits))
    }

    /// The optimizers: the discriminator's, the generator's.
    pub fn adams(&self) -> [&Adam; 2] {
        [&self.adam_d, &self.adam_g]
    }

    /// The discriminator in evaluation mode: x [B,C,H,W] in [0,1] -> logits [B].
    ///
    /// # Errors
    /// libtorch's.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        tch::no_grad(|| self.discriminator.forward(x, Mode::Eval))
    }

    /// The generator that pictures and exports use: the moving average where there is one.
    fn shown(&self) -> &Generator {
        self.average.as_ref().map_or(&self.generator, |(twin, _)| twin)
    }

    fn z(&self, x: &Tensor, now: Moment) -> Result<Tensor> {
        now.noise(&[x.size()[0], self.spec.latent], self.generator.vars.device())
    }
}

impl Model for Gan {
    fn step(&mut self, x: &Tensor, cx: StepCx) -> Result<Tensor> {
        let z = self.z(x, cx.now)?;
        self.update(x, &z, cx, |adam, loss| adam.minimise(loss, cx))?.stacked()
    }

    fn score(&self, x: &Tensor, cx: StepCx) -> Result<Tensor> {
        tch::no_grad(|| {
            // The discriminator has only ever seen batches of one kind, real or generated, each with its own statistics;
            // its running ones are of the mixture and would judge both wrongly.
            let fake = self.shown().forward(&self.z(x, cx.now)?, Mode::Eval)?;
            let (real_logits, fake_logits) = self.discriminator.both(x, &fake, Mode::Batch)?;
            let d_loss = discriminator_loss(&real_logits, &fake_logits)?;
            let g_loss = self.spec.loss.generator_loss(&fake_logits)?;
            GanTerms::new((d_loss, g_loss), (x, &fake), (&real_logits, &fake_logits))?.stacked()
        })
    }

    fn scalars(&self) -> &'static [&'static str] {
        &["d_loss", "g_loss", "d_real", "d_fake", "d_accuracy", "diversity"]
    }

    fn limits(&self) -> Vec<f64> {
        // At chance the losses are ln 4 and ln 2; one player that wins clearly has the other's at some tens of nats.
        vec![1000.0, 1000.0, f64::INFINITY, f64::INFINITY, f64::INFINITY, f64::INFINITY]
    }

    fn worries(&self, means: &[f64]) -> Vec<&'static str> {
        let [.., accuracy, diversity] = means else { return Vec::new() };
        let mut all = Vec::new();
        if *accuracy > 0.995 {
            all.push(
                "the discriminator has won (it tells real from generated images more than 99.5 % of the time), and the generator \
                 learns little from it; try a lower --lr, a smaller discriminator or a larger --batch-size",
            );
        }
        if *diversity < 0.2 {
            all.push(
                "the generated images hardly differ from each other (their pixels vary less than a fifth as much as real ones): \
                 the generator has collapsed to few images; try a lower --lr, a larger --batch-size or another --seed",
            );
        }
        all
    }

    fn end_training(&mut self) {
        self.adam_g.forget();
        self.adam_d.forget();
    }

    fn set_lr(&mut self, lr: f64) {
        self.adam_g.set_lr(lr);
        self.adam_d.set_lr(lr);
    }

    fn decode(&self, z: &Tensor) -> Result<Tensor> {
        tch::no_grad(|| self.shown().forward(z, Mode::Eval))
    }

    fn networks(&self) -> Vec<Network<'_>> {
        let x = Port { name: "x", dims: self.spec.shape.dims().to_vec(), range: Some((0.0, 1.0)), about: "images" };
        let z = Port { name: "z", dims: vec![self.spec.latent], range: None, about: "latents, from N(0, I)" };
        let logits =
            Port { name: "logits", dims: Vec::new(), range: None, about: "above 0 for images taken to be real" };
        let mut judge = vec![("centre".to_owned(), Operation::Affine { scale: 2.0, shift: -1.0 })];
        judge.extend(self.discriminator.net.operations());
        vec![
            Network {
                name: "generator",
                input: z,
                trunk: self.shown().net.operations(),
                outputs: vec![(
                    x.clone(),
                    vec![
                        ("tanh".to_owned(), Operation::Activation(Activation::Tanh)),
                        ("unit".to_owned(), Operation::Affine { scale: 0.5, shift: 0.5 }),
                    ],
                )],
                live: Box::new(|z| Ok(vec![self.decode(z)?])),
            },
            Network {
                name: "discriminator",
                input: x,
                trunk: judge,
                outputs: vec![(
                    logits,
                    vec![
                        ("out".to_owned(), Operation::Linear(&self.discriminator.out)),
                        ("squeeze".to_owned(), Operation::Squeeze),
                    ],
                )],
                live: Box::new(|x| Ok(vec![self.logits(x)?])),
            },
        ]
    }

    fn set_forms(&mut self, forms: Forms) -> Result<()> {
        self.discriminator.net.forms = forms;
        forms.arrange_weights(&self.discriminator.vars)?;
        let twin = self.average.as_mut().map(|(twin, _)| twin);
        for generator in [&mut self.generator].into_iter().chain(twin) {
            generator.net.forms = forms;
            forms.arrange_weights(&generator.vars)?;
        }
        self.adam_d.arrange()?;
        self.adam_g.arrange()
    }

    fn work(&self, batch: i64) -> Vec<nets::Work> {
        let mut judge = self.discriminator.net.ops(Some((self.spec.shape.height, self.spec.shape.width)));
        judge.push(Op::Linear { from: self.discriminator.out.ws.size()[1], to: 1 });
        let mut work = nets::training(&self.generator.net.ops(None), batch, true, false);
        let passes = if self.discriminator.net.has_batch_norm() { vec![batch; 2] } else { vec![2 * batch] };
        work.extend(passes.into_iter().flat_map(|b| nets::training(&judge, b, true, false)));
        work.extend(nets::training(&judge, batch, false, true));
        work
    }

    fn latent(&self) -> i64 {
        self.spec.latent
    }

    fn visit(&mut self, v: &mut dyn Visit) -> Result<()> {
        visit_vars(v, "", &self.generator.vars)?;
        visit_vars(v, "", &self.discriminator.vars)?;
        if let Some((twin, _)) = &self.average {
            visit_vars(v, "ema.", &twin.vars)?;
        }
        self.adam_g.visit(v, "generator.step")?;
        self.adam_d.visit(v, "discriminator.step")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_won_game_and_a_collapse_are_worrying_and_an_explosion_has_a_limit() {
        let net = NetSpec {
            arch: crate::nets::Arch::Mlp,
            hidden: vec![2],
            base_width: 1,
            activation: crate::nets::Activation::Relu,
            batch_norm: false,
            init: crate::nets::Init::PyTorch,
        };
        let shape = Shape { channels: 1, height: 2, width: 3 };
        let (generator, discriminator) = (net.clone(), net);
        let spec = GanSpec { shape, latent: 2, generator, discriminator, loss: GanLoss::NonSaturating, ema: 0.0 };
        let gan = Gan::new(spec, Hyper::default(), Device::Cpu).unwrap();
        let worries = |accuracy, diversity| gan.worries(&[1.0, 1.0, 0.0, 0.0, accuracy, diversity]).join(" and ");
        assert_eq!(worries(0.9, 0.7), "");
        assert!(worries(0.999, 0.7).starts_with("the discriminator has won"));
        assert!(worries(0.9, 0.05).contains("collapsed"));
        assert!(worries(1.0, 0.0).contains(" and "), "both");
        assert_eq!(gan.limits().len(), gan.scalars().len());
        assert!(gan.limits()[1] < 1667.0, "seen in a run with --lr 0.02");
    }

    #[test]
    fn accuracy_and_diversity_are_what_their_names_say() {
        let scalar = || Tensor::from(0f32);
        let terms = |real: &[f32], fake: &[f32], images: (&Tensor, &Tensor)| {
            let (real, fake) = (Tensor::from_slice(real), Tensor::from_slice(fake));
            let terms = GanTerms::new((scalar(), scalar()), images, (&real, &fake)).unwrap();
            (terms.d_accuracy.double_value(&[]), terms.diversity.double_value(&[]))
        };
        tch::manual_seed(1);
        let real = Tensor::rand([64, 1, 5, 5], (Kind::Float, Device::Cpu));
        let same = real.narrow(0, 0, 1).expand_as(&real);
        let (accuracy, diversity) = terms(&[1.0, 2.0, -1.0, 3.0], &[-1.0, 0.5, -2.0, -3.0], (&real, &(&real * 0.5)));
        assert_eq!(accuracy, 6.0 / 8.0);
        assert!((diversity - 0.5).abs() < 1e-5, "{diversity}");
        let (accuracy, diversity) = terms(&[1.0], &[-1.0], (&real, &same));
        assert!(accuracy == 1.0 && diversity < 1e-3, "{accuracy}, {diversity}");
        assert_eq!(terms(&[1.0], &[-1.0], (&same, &same)).1, 1.0, "real images that are all alike");
    }
}
