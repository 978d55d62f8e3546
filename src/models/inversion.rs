//! Inversion of a generator: the latents of given images by optimisation, as a GAN has no encoder.
//!
//! Zhu et al. 2016 (arXiv 1609.03552, section 4.1): gradient descent on z in pixels and in features of the discriminator. Differs: the
//! starts are the best of many random latents instead of a trained encoder's output, and the distances are taken as logarithms, so
//! that no weight depends on the images or the networks, and the gradient does not vanish near the optimum.

use std::f64::consts::PI;

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use super::noise::Noise;
use crate::base::seed::{Stream, seed_for};
use crate::native::{AdamSettings, fused_adam};
use crate::nets::Mode;
use crate::nets::graph::{Graph, Op, Value};

/// Random latents that the starts of an image are chosen from, and how many of them are tried at a time.
const CANDIDATES: i64 = 256;
const BATCH: i64 = 64;
/// Adam's first learning rate, of latents with a standard deviation of 1; it falls to 0 by half a cosine.
const LR: f64 = 0.1;
/// Weight of −log N(z; 0, I) per dimension of z. Real images of CIFAR-10 without it: |z| of 1.25 to 1.43 √Z; with it 0.8 to 1.0 √Z, at
/// the same PSNR.
const PRIOR: f64 = 0.2;
/// Added to a squared distance before its logarithm: the error of rounding to 8 bits is as large.
const FLOOR: f64 = 1e-6;

/// How the latents of an image are searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    /// Updates of z.
    pub steps: u64,
    /// Latents that are optimised side by side, from 1 to 256; the best one is the result.
    pub starts: i64,
    /// The seed of the random latents.
    pub seed: u64,
}

impl Default for Search {
    /// Each of four starts recovered images of a DCGAN of 32×32 at 38 dB or more in 200 updates.
    fn default() -> Self {
        Search { steps: 200, starts: 4, seed: 0 }
    }
}

/// The sizes of a latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Z.
    pub latent: i64,
    /// Number of classes of a conditional GAN.
    pub classes: Option<i64>,
}

/// A function of a batch, and of class numbers [B] of a conditional GAN, that gradients pass through.
type Differentiable<'a, T> = Box<dyn Fn(&Tensor, Option<&Tensor>) -> Result<T> + 'a>;

/// A GAN whose generator can be inverted.
pub struct Inverter<'a> {
    generate: Differentiable<'a, Tensor>,
    features: Differentiable<'a, Vec<Tensor>>,
}

/// The image that is searched for.
struct Target<'a> {
    /// [1,C,H,W].
    x: &'a Tensor,
    /// Its features [1,...], with their mean square [].
    features: Vec<(Tensor, Tensor)>,
}

impl<'a> Inverter<'a> {
    /// By these networks in evaluation mode; the features are the results of the discriminator's activations.
    pub fn new(generator: &'a Graph, discriminator: &'a Graph) -> Self {
        let images: Vec<Value> = generator.outputs().iter().map(|(_, value)| *value).collect();
        let hidden = discriminator.needed().into_iter().filter(|(_, node)| matches!(node.op, Op::Activation(_)));
        let hidden: Vec<Value> = hidden.map(|(value, _)| value).collect();
        Inverter {
            generate: Box::new(move |z, classes| {
                let inputs: Vec<&Tensor> = [z].into_iter().chain(classes).collect();
                generator.forward(&inputs, &images, Mode::Eval)?.pop().context("the generator has no output")
            }),
            features: Box::new(move |x, classes| {
                let inputs: Vec<&Tensor> = [x].into_iter().chain(classes).collect();
                discriminator.forward(&inputs, &hidden, Mode::Eval)
            }),
        }
    }

    /// By `generate`, z [B,Z] and class numbers [B] of a conditional GAN -> x [B,C,H,W] in [0,1], and the pixels alone.
    pub fn of_pixels(generate: impl Fn(&Tensor, Option<&Tensor>) -> Result<Tensor> + 'a) -> Self {
        Inverter { generate: Box::new(generate), features: Box::new(|_, _| Ok(Vec::new())) }
    }

    /// The latent of one image: x [1,C,H,W] in [0,1] -> [1,Z], and its class [1] of a conditional GAN: the random latents are of all
    /// classes in turn, and each keeps its own. `each` is called after every update.
    ///
    /// # Errors
    /// libtorch's, when x has another shape or when out of memory.
    pub fn invert(
        &self,
        x: &Tensor,
        Sizes { latent, classes }: Sizes,
        search: &Search,
        each: &mut dyn FnMut(),
    ) -> Result<(Tensor, Option<Tensor>)> {
        // Hidden features of the discriminator do not depend on the class.
        let first = classes.map(|_| Tensor::f_zeros([1], (Kind::Int64, x.device()))).transpose()?;
        let target = tch::no_grad(|| self.target(x, first.as_ref()))?;
        let noise = Noise::new(seed_for(search.seed, 0, Stream::Samples, 0), x.device());
        // Not the "z" of samples: their own latents must not be among the candidates.
        let candidates = noise.normal("start", &[CANDIDATES, latent])?;
        let classes =
            classes.map(|n| Tensor::f_arange(CANDIDATES, (Kind::Int64, x.device()))?.f_remainder(n)).transpose()?;
        let tried = (0..CANDIDATES).step_by(BATCH as usize).map(|from| -> Result<Tensor> {
            let some = |all: &Tensor| all.f_narrow(0, from, BATCH);
            self.losses(&some(&candidates)?, classes.as_ref().map(some).transpose()?.as_ref(), &target)
        });
        let losses = Tensor::f_cat(&tch::no_grad(|| tried.collect::<Result<Vec<_>>>())?, 0)?; // [CANDIDATES]
        let (_, best) = losses.f_topk(search.starts, 0, false, true)?;
        let classes = classes.map(|all| all.f_index_select(0, &best)).transpose()?; // [S]
        let z = [candidates.f_index_select(0, &best)?.f_set_requires_grad(true)?]; // [S,Z]
        let moments = [[z[0].f_zeros_like()?], [z[0].f_zeros_like()?]];
        let updates = Tensor::f_zeros([] as [i64; 0], (Kind::Float, x.device()))?;
        for step in 0..search.steps {
            let loss = self.losses(&z[0], classes.as_ref(), &target)?.f_sum(Kind::Float)?;
            let gradients = Tensor::f_run_backward(&[loss], &z, false, false)?;
            let lr = LR * 0.5 * (1.0 + (PI * step as f64 / search.steps as f64).cos());
            let [first, second] = &moments;
            fused_adam(&z, &gradients, [first, second], &updates, None, AdamSettings { lr, ..Default::default() })?;
            each();
        }
        tch::no_grad(|| {
            let best = self.losses(&z[0], classes.as_ref(), &target)?.f_argmin(0, true)?; // [1]
            let class = classes.map(|all| all.f_index_select(0, &best)).transpose()?;
            Ok((z[0].f_detach()?.f_index_select(0, &best)?, class))
        })
    }

    fn target<'x>(&self, x: &'x Tensor, class: Option<&Tensor>) -> Result<Target<'x>> {
        let with_scale = |f: Tensor| -> Result<(Tensor, Tensor)> {
            let scale = f.f_square()?.f_mean(Kind::Float)?.f_clamp_min(1e-12)?;
            Ok((f, scale))
        };
        let features = (self.features)(x, class)?.into_iter().map(with_scale).collect::<Result<_>>()?;
        Ok(Target { x, features })
    }

    /// log(mean squared error of the pixels) + log(mean over the layers of the relative squared error of the features) +
    /// [`PRIOR`]·‖z‖²/2Z for each latent: z [B,Z] -> [B].
    fn losses(&self, z: &Tensor, classes: Option<&Tensor>, target: &Target) -> Result<Tensor> {
        let x = (self.generate)(z, classes)?;
        let mut loss = error(&x, target.x)?.f_add_scalar(FLOOR)?.f_log()?;
        let features = (self.features)(&x, classes)?;
        if !features.is_empty() {
            let layers = features.iter().zip(&target.features);
            let layers = layers.map(|(f, (wanted, scale))| Ok(error(f, wanted)?.f_div(scale)?));
            let layers = Tensor::f_stack(&layers.collect::<Result<Vec<_>>>()?, 0)?; // [L,B]
            loss = loss.f_add(&layers.f_mean_dim(0, false, Kind::Float)?.f_add_scalar(FLOOR)?.f_log()?)?;
        }
        let prior = z.f_square()?.f_mean_dim(1, false, Kind::Float)?;
        Ok(loss.f_add(&prior.f_mul_scalar(0.5 * PRIOR)?)?)
    }
}

/// Mean squared difference of each: [B,...] and [1,...] -> [B].
fn error(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(a.f_sub(b)?.f_square()?.f_flatten(1, -1)?.f_mean_dim(1, false, Kind::Float)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::shape::Shape;
    use crate::models::Model;
    use crate::models::gan::{Gan, GanSpec};
    use crate::models::losses::adversarial::GanLoss;
    use crate::models::optimizer::OptimizerSettings;
    use crate::nets::{Arch, NetSpec};
    use tch::Device;

    const LATENT: i64 = 8;
    const SIZES: Sizes = Sizes { latent: LATENT, classes: None };

    /// A GAN for images 16×16×3 with random weights after He et al. 2015 (arXiv 1502.01852), so that its images have contrast.
    fn gan(arch: Arch) -> Gan {
        let net = NetSpec {
            arch,
            hidden: if arch == Arch::Mlp { vec![32, 64] } else { vec![] },
            base_width: Some(8),
            batch_norm: arch == Arch::Conv,
            ..NetSpec::default()
        };
        let shape = Shape { channels: 3, height: 16, width: 16 };
        let spec = GanSpec::new(shape, LATENT, [net.clone(), net], GanLoss::NonSaturating);
        let gan = Gan::new(spec, OptimizerSettings::default(), Device::Cpu).unwrap();
        for (i, (name, w)) in gan.networks().into_iter().flat_map(|n| n.variables()).enumerate() {
            let size = w.size();
            let fan_in = match (size.len(), name.contains("convt")) {
                (0 | 1, _) => continue,
                // Each pixel is a sum over a quarter of the kernel's 4×4 places.
                (4, true) => size[0] * 4,
                _ => size[1..].iter().product(),
            };
            let wide = crate::native::randn(i as i64, &size).unwrap() * (2.0 / fan_in as f64).sqrt();
            tch::no_grad(|| w.shallow_clone().copy_(&wide));
        }
        gan
    }

    fn inverter(gan: &Gan) -> Inverter<'_> {
        let graphs = gan.exported();
        Inverter::new(graphs[0], graphs[1])
    }

    fn psnr(x: &Tensor, y: &Tensor) -> f64 {
        -10.0 * (x - y).square().mean(Kind::Double).log10().double_value(&[])
    }

    #[test]
    fn own_images_are_recovered_and_a_seed_gives_the_same_latents() {
        for arch in [Arch::Mlp, Arch::Conv] {
            let gan = gan(arch);
            let (inverter, search) = (inverter(&gan), Search::default());
            let x = gan.decode(&crate::native::randn(77, &[3, LATENT]).unwrap(), None).unwrap();
            assert!(psnr(&x.get(0), &x.get(1)) < 15.0, "{arch:?}: two images differ");
            let invert =
                |i: i64, search: &Search| inverter.invert(&x.narrow(0, i, 1), SIZES, search, &mut || ()).unwrap().0;
            for i in 0..3 {
                let db = psnr(&gan.decode(&invert(i, &search), None).unwrap(), &x.narrow(0, i, 1));
                assert!(db > 30.0, "{arch:?}, image {i}: {db} dB");
            }
            let short = Search { steps: 10, ..search };
            assert_eq!(invert(0, &short), invert(0, &short), "{arch:?}");
            assert_ne!(invert(0, &short), invert(0, &Search { seed: 1, ..short }), "{arch:?}");
            let weights = gan.networks().into_iter().flat_map(|n| n.variables());
            assert!(weights.into_iter().all(|(_, w)| !w.grad().defined()), "{arch:?}: no weight has a gradient");
        }
    }

    /// Of an image that the generator cannot make, the features are nearer than by pixels alone.
    #[test]
    fn features_take_part() {
        let gan = gan(Arch::Conv);
        let both = inverter(&gan);
        let pixels = Inverter::of_pixels(|z, _| (both.generate)(z, None));
        let x = crate::native::randn(5, &[1, 3, 4, 4]).unwrap().sigmoid().upsample_nearest2d([16, 16], 4.0, 4.0);
        let found = |inverter: &Inverter| inverter.invert(&x, SIZES, &Search::default(), &mut || ()).unwrap().0;
        let (with, without) = (found(&both), found(&pixels));
        let target = both.target(&x, None).unwrap();
        let of_features = |z: &Tensor| {
            let features = (both.features)(&gan.decode(z, None).unwrap(), None).unwrap();
            let each = features
                .iter()
                .zip(&target.features)
                .map(|(f, (wanted, scale))| (error(f, wanted).unwrap() / scale).double_value(&[0]));
            each.sum::<f64>()
        };
        let (near, far) = (of_features(&with), of_features(&without));
        assert!(near < 0.98 * far, "relative error of the features {near}, by pixels alone {far}");
    }

    /// Where z changes nothing else, the likeliest one is found: 0.
    #[test]
    fn the_prior_takes_part() {
        let constant =
            |z: &Tensor, _: Option<&Tensor>| Ok((z * 0.0).sum_dim_intlist(1, false, Kind::Float).view([-1, 1, 1, 1]));
        let x = Tensor::ones([1, 1, 1, 1], (Kind::Float, Device::Cpu));
        let z = Inverter::of_pixels(constant).invert(&x, SIZES, &Search::default(), &mut || ()).unwrap().0;
        assert!(z.abs().max().double_value(&[]) < 0.1, "{z:?}");
    }
}
