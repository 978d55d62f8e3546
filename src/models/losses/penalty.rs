//! Penalties on a discriminator: on its slope at images (R1, R2, gradient penalty) and on its logits (LeCam).
//!
//! They are of images in [−1,1], as the discriminator sees them; it is given x in [0,1] and maps it to 2x − 1, so a gradient with respect
//! to x is twice the one that is penalised. A norm is over C, H and W of one image; E is the mean over the batch.

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

use crate::base::setting::{Setting, Settings};
use crate::base::usage::usage;
use crate::models::Length;
use crate::models::noise::Noise;
use crate::models::optimizer::OptimizerSettings;
use crate::models::schedule::{Schedule, is_scheduled};
use crate::native::{AdamSettings, Factor};

/// The weights of the penalties; 0 for none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// γ of R1, γ/2·E‖∇D(x)‖² (Mescheder et al. 2018, arXiv 1801.04406, equation 9).
    pub r1: f64,
    /// γ of R2, the same on generated images (equation 10 there).
    pub r2: f64,
    /// γ of R1 and of R2 over the run; none where it stays.
    pub schedules: [Option<Schedule>; 2],
    /// λ of λE(‖∇D(x̂)‖ − 1)², x̂ between a real and a generated image (Gulrajani et al. 2017, arXiv 1704.00028, equation 3).
    pub gradient: f64,
    /// λ of λ(E relu(r − α_F)² + E relu(α_R − f)²), α the moving averages of the mean logits (Tseng et al. 2021, arXiv 2104.03310).
    ///
    /// Differs: only logits on the far side of the other kind's average count, as in StudioGAN's code.
    pub lecam: f64,
    /// R1 and R2 as λE(D(x) − D(x + σε))², ε ∼ N(0, I), σ = 0.01, without a second derivative (Lin et al. 2025, arXiv 2501.08316, section
    /// 3.4). λ = γ/(2σ²), at which both forms have the same limit for small σ; the paper's λ = 100 is γ = 0.02.
    pub first_order: bool,
    /// k: slopes are penalised in every k-th update of the discriminator, k times as much (lazy regularisation: Karras et al. 2020,
    /// arXiv 1912.04958, appendix B).
    pub every: u64,
}

impl Default for Penalties {
    /// None.
    fn default() -> Self {
        Penalties { r1: 0.0, r2: 0.0, schedules: [None; 2], gradient: 0.0, lecam: 0.0, first_order: false, every: 1 }
    }
}

/// σ of [`Penalties::first_order`], of images in [−1,1].
const SIGMA: f64 = 0.01;
/// Decay of LeCam's moving averages, that of the paper's code.
const LECAM_DECAY: f64 = 0.99;

const fn weight(name: &'static str, help: &'static str) -> Setting<f64> {
    Setting::number(name, help)
        .range("from 0 to 1e9", |v| (0.0..=1e9).contains(v))
        .default("0", "Goodfellow et al. 2014 have none")
}

const fn end(name: &'static str, help: &'static str) -> Setting<f64> {
    Setting::number(name, help).range("from 0 to 1e9", |v| (0.0..=1e9).contains(v))
}

/// See [`Penalties::r1`].
pub static R1: Setting<f64> =
    weight("r1", "Weight gamma of the penalty gamma/2 |grad D|^2 at real images; 0.05 at 32x32 to 150 at 256x256");

/// See [`Penalties::r2`].
pub static R2: Setting<f64> = weight("r2", "Weight gamma of the same penalty at generated images");

/// γ of R1 at the end.
pub static R1_END: Setting<f64> =
    end("r1-end", "Weight of --r1 at the end of the run (see --schedule) [default: --r1]");

/// γ of R2 at the end.
pub static R2_END: Setting<f64> = end("r2-end", "Weight of --r2 at the end of the run [default: --r2]");

/// See [`Penalties::gradient`].
pub static GRADIENT_PENALTY: Setting<f64> = weight(
    "gradient-penalty",
    "Weight of the penalty (|grad D| - 1)^2 between real and generated images; 10 in WGAN-GP",
);

/// See [`Penalties::lecam`].
pub static LECAM: Setting<f64> = weight(
    "lecam",
    "Weight of the LeCam penalty on logits far from their moving averages, for few images; 0.3 is usual",
);

/// See [`Penalties::first_order`].
pub static FIRST_ORDER: Setting<bool> = Setting::switch(
    "first-order",
    "Estimate the penalties of --r1 and --r2 from a little noise, without second derivatives",
)
.default("false", "second derivatives are exact");

/// See [`Penalties::every`].
pub static PENALTY_EVERY: Setting<u64> = Setting::count(
    "penalty-every",
    "Updates of the discriminator from one penalty of its slope to the next, which counts so many times (lazy)",
)
.default("1", "R3GAN and WGAN-GP have one in every update")
.value_name("UPDATES");

/// The random numbers of the penalties of one update or several, along the batch: ε of each kind of images [B,C,H,W], and the weight of
/// the real image in a mix [B,1,1,1].
#[derive(Debug, Default)]
pub struct Draws {
    /// ε of real images.
    pub real: Option<Tensor>,
    /// ε of generated images: not that of real ones.
    pub fake: Option<Tensor>,
    /// From U(0, 1).
    pub mix: Option<Tensor>,
}

impl Draws {
    /// The numbers of the images `from` to `from + count`.
    ///
    /// # Errors
    /// When there are not that many.
    pub fn narrow(&self, from: i64, count: i64) -> Result<Self> {
        let part = |t: &Option<Tensor>| t.as_ref().map(|t| t.f_narrow(0, from, count)).transpose();
        Ok(Draws { real: part(&self.real)?, fake: part(&self.fake)?, mix: part(&self.mix)? })
    }
}

/// Which images are judged: both kinds have an augmentation of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// Real ones, and mixtures with generated ones.
    Real,
    /// Generated ones.
    Generated,
}

/// Real or generated images x [B,C,H,W] in [0,1] and their logits [B].
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// Which they are.
    pub kind: ImageKind,
    /// The images: what the logits were computed from, recorded by autograd ([`Penalties::leaf`]).
    pub x: &'a Tensor,
    /// The logits.
    pub logits: &'a Tensor,
}

impl Penalties {
    /// From the settings, for a discriminator with batch normalisation or without, in a run of this length.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] for settings that need another, and for batch normalisation under a penalty of its slope.
    pub fn from_settings(s: &Settings, batch_norm: bool, length: Length) -> Result<Self> {
        let (r1, r2) = (s.get(&R1)?, s.get(&R2)?);
        for (weight, start, end) in [(r1, &R1, &R1_END), (r2, &R2, &R2_END)] {
            if weight == 0.0 && s.given(end).is_some() && is_scheduled(s)? {
                let (start, end) = (start.name(), end.name());
                usage!("--{end} is the end of a penalty that is not there: set --{start}, or leave it out");
            }
        }
        let schedules =
            [(r1, &R1_END), (r2, &R2_END)].map(|(start, end)| Schedule::from_settings(s, start, end, length));
        let all = Penalties {
            r1,
            r2,
            schedules,
            gradient: s.get(&GRADIENT_PENALTY)?,
            lecam: s.get(&LECAM)?,
            first_order: s.get(&FIRST_ORDER)?,
            every: s.get(&PENALTY_EVERY)?,
        };
        if all.first_order && !all.of_kinds() {
            usage!(
                "--first-order is a form of the penalties --r1 and --r2, and neither is set: set one, or leave it out"
            );
        }
        if all.every > 1 && !all.of_slopes() {
            usage!(
                "--penalty-every {} has no penalty to delay: set --r1, --r2 or --gradient-penalty, or leave it out",
                all.every
            );
        }
        let first =
            [(&R1, all.r1), (&R2, all.r2), (&GRADIENT_PENALTY, all.gradient)].into_iter().find(|(_, w)| *w > 0.0);
        if let (Some((setting, _)), true) = (first, batch_norm) {
            usage!(
                "--{} penalises the slope of the discriminator at each image, and its batch normalisation makes the logit of an image \
                 depend on all others of the batch: add --discriminator-norm none, or leave the penalty out",
                setting.name()
            );
        }
        Ok(all)
    }

    /// Settings that have no effect, as the penalty that they are of is switched off.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] for a setting without a value.
    pub fn idle(s: &Settings) -> Result<Vec<&'static str>> {
        let [r1, r2, gradient] =
            [&R1, &R2, &GRADIENT_PENALTY].map(|weight| Ok::<_, anyhow::Error>(s.get(weight)? == 0.0));
        let (r1, r2, gradient) = (r1?, r2?, gradient?);
        let all = [
            (R1_END.name(), r1),
            (R2_END.name(), r2),
            (FIRST_ORDER.name(), r1 && r2),
            (PENALTY_EVERY.name(), r1 && r2 && gradient),
        ];
        Ok(all.into_iter().filter(|(_, idle)| *idle).map(|(name, _)| name).collect())
    }

    /// R1 or R2.
    fn of_kinds(&self) -> bool {
        self.r1 > 0.0 || self.r2 > 0.0
    }

    /// Whether there are penalties of slopes, which may be lazy.
    pub fn of_slopes(&self) -> bool {
        self.of_kinds() || self.gradient > 0.0
    }

    /// Whether there is any penalty.
    pub fn any(&self) -> bool {
        self.of_slopes() || self.lecam > 0.0
    }

    /// Whether slopes are penalised in the discriminator's update after `updates` of them.
    pub fn due(&self, updates: u64) -> bool {
        self.of_slopes() && updates.is_multiple_of(self.every)
    }

    /// The optimizer for lazy penalties: with c = k/(k + 1), lr·c, β₁^c and β₂^c, of schedules at both ends; unchanged where k is 1
    /// (arXiv 1912.04958, appendix B).
    pub fn lazy(&self, of: OptimizerSettings) -> OptimizerSettings {
        if self.every <= 1 {
            return of;
        }
        let c = self.every as f64 / (self.every + 1) as f64;
        let AdamSettings { lr, beta1, beta2, .. } = of.adam;
        OptimizerSettings {
            adam: AdamSettings { lr: lr * c, beta1: beta1.powf(c), beta2: beta2.powf(c), ..of.adam },
            lr: of.lr.map(|schedule| schedule.map(|lr| lr * c)),
            beta2: of.beta2.map(|schedule| schedule.map(|beta2| beta2.powf(c))),
            ..of
        }
    }

    /// Whether exactly one kind of images needs a gradient: then it is cheaper to judge the two kinds apart.
    pub fn of_one_kind(&self) -> bool {
        !self.first_order && (self.r1 > 0.0) != (self.r2 > 0.0)
    }

    /// The images as the discriminator must be given them in an update with penalties of slopes: x recorded by autograd if its
    /// gradient is penalised, which is that of `weight`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn leaf(&self, x: &Tensor, weight: f64) -> Result<Tensor> {
        Ok(x.f_detach()?.set_requires_grad(weight > 0.0 && !self.first_order))
    }

    /// The draws for images x [B,C,H,W], or more updates' along the batch.
    ///
    /// # Errors
    /// Those of [`Noise::normal`].
    pub fn draw(&self, noise: &Noise, x: &Tensor) -> Result<Draws> {
        let size = x.size();
        let normal =
            |name, weight: f64| (self.first_order && weight > 0.0).then(|| noise.normal(name, &size)).transpose();
        let mix = (self.gradient > 0.0).then(|| noise.uniform("penalty.mix", &[size[0], 1, 1, 1])).transpose()?;
        Ok(Draws { real: normal("penalty.real", self.r1)?, fake: normal("penalty.fake", self.r2)?, mix })
    }

    /// The sum of the penalties of slopes, not yet times k, a scalar with a gradient to the discriminator's weights. `gammas` are those
    /// of this update; `judge` maps images [B,C,H,W] in [0,1] to logits [B].
    ///
    /// # Errors
    /// libtorch's; when a draw is missing.
    pub fn slopes(
        &self,
        real: Judged,
        fake: Judged,
        draws: &Draws,
        gammas: [Factor; 2],
        judge: impl Fn(&Tensor, ImageKind) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut terms = Vec::new();
        let kinds = [(real, self.r1, gammas[0], &draws.real), (fake, self.r2, gammas[1], &draws.fake)];
        let kinds: Vec<_> = kinds
            .into_iter()
            .filter(|(_, weight, ..)| *weight > 0.0)
            .map(|(of, _, gamma, eps)| (of, gamma, eps))
            .collect();
        if self.first_order {
            for (Judged { kind, x, logits }, gamma, eps) in kinds {
                let eps = eps.as_ref().context("the noise of a first-order penalty was not drawn")?;
                // σ of images in [−1,1] is σ/2 of those in [0,1].
                let moved = judge(&x.f_add(&eps.f_mul_scalar(SIGMA / 2.0)?)?, kind)?;
                let square = logits.f_sub(&moved)?.f_square()?.f_mean(None::<Kind>)?;
                terms.push(gamma.times(&square)?.f_mul_scalar(0.5 / (SIGMA * SIGMA))?);
            }
        } else if !kinds.is_empty() {
            let (x, logits): (Vec<_>, Vec<_>) = kinds.iter().map(|(judged, ..)| (judged.x, judged.logits)).unzip();
            for ((_, gamma, _), squares) in kinds.iter().zip(square_norms(&logits, &x)?) {
                terms.push(gamma.times(&squares.f_mean(None::<Kind>)?)?.f_mul_scalar(0.5)?);
            }
        }
        if self.gradient > 0.0 {
            let mix = draws.mix.as_ref().context("the mix of the gradient penalty was not drawn")?;
            let x = tch::no_grad(|| Tensor::f_addcmul(fake.x, mix, &real.x.f_sub(fake.x)?))?.set_requires_grad(true);
            let squares =
                square_norms(&[&judge(&x, ImageKind::Real)?], &[&x])?.pop().context("one gradient was asked for")?;
            // Where a gradient is 0, so is that of its norm: not NaN.
            let norms = squares.f_clamp_min(f64::from(f32::MIN_POSITIVE))?.f_sqrt()?;
            terms.push(norms.f_sub_scalar(1.0)?.f_square()?.f_mean(None::<Kind>)?.f_mul_scalar(self.gradient)?);
        }
        Ok(Tensor::f_stack(&terms, 0)?.f_sum(None::<Kind>)?)
    }
}

/// ‖∇D‖² of each image with respect to its pixels in [−1,1], over C, H and W, for every x [B,C,H,W] in [0,1] with its logits [B]:
/// [B] each, differentiable.
fn square_norms(logits: &[&Tensor], x: &[&Tensor]) -> Result<Vec<Tensor>> {
    // The logit of an image depends on this image alone, so that the gradient of the sum holds those of all.
    let sums = logits.iter().map(|l| Ok(l.f_sum(None::<Kind>)?)).collect::<Result<Vec<_>>>()?;
    let grads = Tensor::f_run_backward(&sums, x, true, true)?;
    let norm =
        |g: Tensor| Ok(g.f_mul_scalar(0.5)?.f_square()?.f_flatten(1, -1)?.f_sum_dim_intlist(1, false, None::<Kind>)?);
    grads.into_iter().map(norm).collect()
}

/// The LeCam penalty with its moving averages.
#[derive(Debug)]
pub struct LeCam {
    weight: f64,
    /// float32 [3]: averages of the means of r, of f and of 1, from 0: the first two over the third have no bias (as Adam's moments).
    averages: Tensor,
}

impl LeCam {
    /// Averages of nothing; `weight` is λ.
    ///
    /// # Errors
    /// libtorch's.
    pub fn new(weight: f64, device: Device) -> Result<Self> {
        Ok(LeCam { weight, averages: Tensor::f_zeros([3], (Kind::Float, device))? })
    }

    /// Moves the averages towards this batch, then λ(E relu(r − α_F)² + E relu(α_R − f)²): logits r, f [B] -> scalar.
    ///
    /// # Errors
    /// libtorch's.
    pub fn penalty(&self, r: &Tensor, f: &Tensor) -> Result<Tensor> {
        let [real, fake] = tch::no_grad(|| -> Result<_> {
            let (r, f) = (r.f_mean(Kind::Float)?, f.f_mean(Kind::Float)?);
            let now = Tensor::f_stack(&[&r, &f, &r.f_ones_like()?], 0)?;
            let _ = self.averages.shallow_clone().f_lerp_(&now, 1.0 - LECAM_DECAY)?;
            let unbiased = |i| self.averages.f_get(i)?.f_div(&self.averages.f_get(2)?);
            Ok([unbiased(0)?, unbiased(1)?])
        })?;
        let term = |far: Tensor| far.f_relu()?.f_square()?.f_mean(None::<Kind>);
        Ok(term(r.f_sub(&fake)?)?.f_add(&term(real.f_sub(f)?)?)?.f_mul_scalar(self.weight)?)
    }

    /// The moving averages: what a checkpoint keeps.
    pub fn averages(&self) -> &Tensor {
        &self.averages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

    /// The penalties of slopes on these images, for a discriminator on [0,1].
    fn slopes(of: Penalties, x: [&Tensor; 2], judge: impl Fn(&Tensor) -> Tensor) -> Tensor {
        let draws = of.draw(&Noise::new(3, Device::Cpu), x[0]).unwrap();
        let leaves = [of.leaf(x[0], of.r1).unwrap(), of.leaf(x[1], of.r2).unwrap()];
        let logits = leaves.each_ref().map(&judge);
        let judged = |i: usize, kind| Judged { kind, x: &leaves[i], logits: &logits[i] };
        let (real, fake) = (judged(0, ImageKind::Real), judged(1, ImageKind::Generated));
        let gammas = [of.r1, of.r2].map(Factor::Host);
        of.slopes(real, fake, &draws, gammas, |x, _| Ok(judge(x))).unwrap()
    }

    fn kinds() -> [Penalties; 5] {
        let none = Penalties::default();
        [
            Penalties { r1: 2.0, ..none },
            Penalties { r2: 3.0, ..none },
            Penalties { gradient: 10.0, ..none },
            Penalties { r1: 2.0, r2: 3.0, first_order: true, ..none },
            Penalties { r1: 2.0, r2: 3.0, gradient: 0.5, ..none },
        ]
    }

    /// The slope of w·u on images u in [−1,1] is w everywhere: over all channels and pixels, and not over x in [0,1].
    #[test]
    fn the_penalties_of_a_linear_discriminator_are_those_of_its_slope() {
        tch::manual_seed(1);
        let w = Tensor::randn([3, 4, 5], DOUBLE);
        let square = w.square().sum(Kind::Double).double_value(&[]);
        let x = Tensor::rand([4000, 3, 4, 5], DOUBLE);
        for of in kinds() {
            let judge = |x: &Tensor| ((x * 2.0 - 1.0) * &w).flatten(1, -1).sum_dim_intlist(1, false, Kind::Double);
            let got = slopes(of, [&x, &(&x * 0.5)], judge).double_value(&[]);
            let want = (of.r1 + of.r2) / 2.0 * square + of.gradient * (square.sqrt() - 1.0).powi(2);
            // The first-order form is a mean over 4,000 draws of χ²: a deviation of 2 % for each of two.
            let most = if of.first_order { 0.08 } else { 1e-9 };
            assert!((got - want).abs() <= most * want, "{of:?}: {got}, wanted {want}");
        }
    }

    /// The gradients with respect to the weights, through second derivatives, against central differences in double precision.
    #[test]
    fn the_gradients_of_penalties_are_those_of_finite_differences() {
        tch::manual_seed(2);
        let (real, fake) = (Tensor::rand([6, 2, 3, 3], DOUBLE), Tensor::rand([6, 2, 3, 3], DOUBLE));
        let weights = [Tensor::randn([5, 18], DOUBLE), Tensor::randn([5], DOUBLE)];
        for of in kinds() {
            let value = |w: &[Tensor; 2]| {
                let judge = |x: &Tensor| (x * 2.0 - 1.0).flatten(1, -1).matmul(&w[0].tr()).tanh().matmul(&w[1]);
                slopes(of, [&real, &fake], judge)
            };
            let leaves = weights.each_ref().map(|w| w.copy().set_requires_grad(true));
            let grads = Tensor::run_backward(&[value(&leaves)], &leaves, false, false);
            for (i, grad) in grads.iter().enumerate() {
                let way = Tensor::randn_like(grad);
                let at = |h: f64| {
                    let mut w = weights.each_ref().map(Tensor::copy);
                    w[i] = &w[i] + &way * h;
                    value(&w).double_value(&[])
                };
                let (want, got) = ((at(1e-5) - at(-1e-5)) / 2e-5, (grad * &way).sum(Kind::Double).double_value(&[]));
                assert!((got - want).abs() <= 1e-6 * want.abs(), "{of:?}, weights {i}: {got}, wanted {want}");
            }
        }
    }

    #[test]
    fn a_slope_of_zero_has_a_finite_gradient() {
        let w = Tensor::zeros([4], DOUBLE).set_requires_grad(true);
        let x = Tensor::rand([2, 1, 2, 2], DOUBLE);
        let of = Penalties { gradient: 10.0, ..Penalties::default() };
        let penalty = slopes(of, [&x, &x], |x| x.flatten(1, -1).matmul(&w));
        let grad = &Tensor::run_backward(&[&penalty], &[&w], false, false)[0];
        assert_eq!((penalty.double_value(&[]), bool::try_from(grad.isfinite().all()).unwrap()), (10.0, true));
    }

    #[test]
    fn real_and_generated_images_have_their_own_noise() {
        let of = Penalties { r1: 1.0, r2: 1.0, first_order: true, ..Penalties::default() };
        let x = Tensor::zeros([4, 1, 3, 3], (Kind::Float, Device::Cpu));
        let Draws { real, fake, mix } = of.draw(&Noise::new(5, Device::Cpu), &x).unwrap();
        assert!(real.is_some() && real != fake && mix.is_none());
        let of = Penalties { gradient: 1.0, ..Penalties::default() };
        let mix = of.draw(&Noise::new(5, Device::Cpu), &x).unwrap().mix.unwrap();
        assert_ne!(mix.get(0), mix.get(1), "each pair of images has its own place between them");
    }

    #[test]
    fn contradictory_penalties_are_refused() {
        let refusal =
            |s: Settings, batch_norm| Penalties::from_settings(&s, batch_norm, Length::ONE).unwrap_err().to_string();
        let none = Settings::default;
        assert!(refusal(none().with(&FIRST_ORDER, true), false).contains("--r1 and --r2, and neither is set"));
        assert!(refusal(none().with(&PENALTY_EVERY, 4).with(&LECAM, 1.0), false).contains("--penalty-every 4"));
        for setting in [&R1, &R2, &GRADIENT_PENALTY] {
            let e = refusal(none().with(setting, 1.0), true);
            assert!(e.starts_with(&format!("--{}", setting.name())) && e.contains("--discriminator-norm none"), "{e}");
        }
        assert!(Penalties::from_settings(&none().with(&LECAM, 1.0), true, Length::ONE).is_ok(), "LeCam is of logits");
    }
}
