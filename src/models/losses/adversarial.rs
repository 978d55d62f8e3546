//! GAN losses from logits, mean over the batch.
//!
//! r = D(x) and f = D(G(z)) are logits [B]; E is the mean over the batch.

use std::f64::consts::LN_2;

use anyhow::Result;
use clap::ValueEnum;
use tch::{Kind, Tensor};

use crate::base::setting::Setting;

/// The loss of generator and discriminator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GanLoss {
    /// −E[log D(G(z))]: strong gradients when the discriminator is accurate (arXiv 1406.2661, section 3).
    NonSaturating,
    /// E[log(1 − D(G(z)))]: equation 1 as written; its gradient vanishes when the discriminator is accurate.
    Minimax,
    /// Logits regress to 1 for real and 0 for generated images (Mao et al. 2017, arXiv 1611.04076, equation 9).
    LeastSquares,
    /// Images beyond the margins −1 and 1 no longer count (arXiv 1705.02894, 1802.05957); usual with a normalised discriminator.
    Hinge,
    /// Difference of the mean logits (arXiv 1701.07875); needs a bound on the slope of the critic, such as --gradient-penalty.
    Wasserstein,
    /// Each real image against a generated one (arXiv 1807.00734, 2501.05441); usual with --r1 and --r2.
    Relativistic,
}

/// The loss of both networks.
pub static GAN_LOSS: Setting<GanLoss> = Setting::choice("gan-loss", "The loss of both networks")
    .default("non-saturating", "Goodfellow et al. 2014, section 3");

impl GanLoss {
    /// The discriminator's loss: `real` r, `fake` f [B] logits -> scalar.
    ///
    /// Logistic losses: −E[log σ(r)] − E[log(1 − σ(f))] (arXiv 1406.2661, equation 1, negated), in nats. Least squares: ½E(r − 1)² + ½E f².
    /// Hinge: E max(0, 1 − r) + E max(0, 1 + f). Wasserstein: E f − E r. Relativistic: E softplus(fᵢ − rᵢ) over pairs, in nats.
    ///
    /// # Errors
    /// libtorch's; for the paired loss also when r and f differ in length.
    pub fn discriminator(self, real: &Tensor, fake: &Tensor) -> Result<Tensor> {
        match self {
            GanLoss::NonSaturating | GanLoss::Minimax => {
                Ok(softplus_mean(&real.f_neg()?)?.f_add(&softplus_mean(fake)?)?)
            }
            GanLoss::LeastSquares => Ok(half_square_mean(&real.f_sub_scalar(1.0)?)?.f_add(&half_square_mean(fake)?)?),
            GanLoss::Hinge => {
                let (real, fake) = (real.f_neg()?.f_add_scalar(1.0)?.f_relu()?, fake.f_add_scalar(1.0)?.f_relu()?);
                Ok(mean(&real)?.f_add(&mean(&fake)?)?)
            }
            GanLoss::Wasserstein => Ok(mean(fake)?.f_sub(&mean(real)?)?),
            GanLoss::Relativistic => softplus_mean(&fake.f_sub(real)?),
        }
    }

    /// The generator's loss: logits r of real images, used if [`GanLoss::pairs`], and f of generated ones, `fake` [B] -> scalar.
    ///
    /// Non-saturating: −E[log σ(f)]. Minimax: E[log(1 − σ(f))]. Least squares: ½E(f − 1)². Hinge and Wasserstein: −E f. Relativistic:
    /// E softplus(rᵢ − fᵢ) over pairs.
    ///
    /// # Errors
    /// As [`GanLoss::discriminator`].
    pub fn generator(self, real: &Tensor, fake: &Tensor) -> Result<Tensor> {
        match self {
            GanLoss::NonSaturating => softplus_mean(&fake.f_neg()?),
            GanLoss::Minimax => Ok(softplus_mean(fake)?.f_neg()?),
            GanLoss::LeastSquares => half_square_mean(&fake.f_sub_scalar(1.0)?),
            GanLoss::Hinge | GanLoss::Wasserstein => Ok(mean(fake)?.f_neg()?),
            GanLoss::Relativistic => softplus_mean(&real.f_sub(fake)?),
        }
    }

    /// Whether both losses compare each real image with a generated one.
    pub fn pairs(self) -> bool {
        self == GanLoss::Relativistic
    }

    /// Which images, real and generated, the discriminator classifies correctly: r, f [B] -> float32 [B] each, 0 or 1.
    ///
    /// A logit is that of a real image above 0, with least squares above ½. Where only differences of logits have a meaning
    /// (Wasserstein, relativistic), an image is classified correctly if the real one of its pair has the larger logit.
    ///
    /// # Errors
    /// As [`GanLoss::discriminator`].
    pub fn correct(self, real: &Tensor, fake: &Tensor) -> Result<[Tensor; 2]> {
        let boundary = match self {
            GanLoss::NonSaturating | GanLoss::Minimax | GanLoss::Hinge => 0.0,
            GanLoss::LeastSquares => 0.5,
            GanLoss::Wasserstein | GanLoss::Relativistic => {
                let right = real.f_gt_tensor(fake)?.f_to_kind(Kind::Float)?;
                return Ok([right.shallow_clone(), right]);
            }
        };
        Ok([real.f_gt(boundary)?.f_to_kind(Kind::Float)?, fake.f_le(boundary)?.f_to_kind(Kind::Float)?])
    }

    /// Whether a discriminator that is almost always right is a bad sign. A Wasserstein critic is meant to be near its optimum.
    pub fn wants_a_contest(self) -> bool {
        self != GanLoss::Wasserstein
    }

    /// Unit of both losses; empty for a pure number.
    pub fn unit(self) -> &'static str {
        match self {
            GanLoss::NonSaturating | GanLoss::Minimax | GanLoss::Relativistic => "nats",
            GanLoss::LeastSquares | GanLoss::Hinge | GanLoss::Wasserstein => "",
        }
    }

    /// Both losses at the equilibrium, where generated images are distributed as real ones and the discriminator is optimal: D = ½
    /// (arXiv 1406.2661, theorem 1), with least squares logits of ½, otherwise equal logits; none if a loss has no such value.
    pub fn equilibrium(self) -> [Option<f64>; 2] {
        match self {
            GanLoss::NonSaturating => [Some(2.0 * LN_2), Some(LN_2)],
            GanLoss::Minimax => [Some(2.0 * LN_2), Some(-LN_2)],
            GanLoss::LeastSquares => [Some(0.25), Some(0.125)],
            // Any constant logit from −1 to 1 is optimal, so the generator's loss has no one value.
            GanLoss::Hinge => [Some(2.0), None],
            GanLoss::Wasserstein => [Some(0.0), None],
            GanLoss::Relativistic => [Some(LN_2), Some(LN_2)],
        }
    }

    /// Upper bound on the magnitude of either loss in stable training. When one network dominates, the other's logistic or hinge loss
    /// is some tens, as its logits are; least squares are the square of that. Wasserstein losses are distances between images of
    /// [−1,1], times the slope of the critic: 2√D at a slope of 1, which is 900 for 256×256×3.
    pub fn limit(self) -> f64 {
        match self {
            GanLoss::NonSaturating | GanLoss::Minimax | GanLoss::Hinge | GanLoss::Relativistic => 1000.0,
            GanLoss::LeastSquares | GanLoss::Wasserstein => 1e5,
        }
    }
}

fn mean(t: &Tensor) -> Result<Tensor> {
    Ok(t.f_mean(None::<Kind>)?)
}

fn softplus_mean(logits: &Tensor) -> Result<Tensor> {
    mean(&logits.f_softplus()?)
}

fn half_square_mean(t: &Tensor) -> Result<Tensor> {
    Ok(mean(&t.f_square()?)?.f_mul_scalar(0.5)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(t: Result<Tensor>) -> f64 {
        t.map(|t| t.double_value(&[])).unwrap()
    }

    fn scalar(v: f64) -> Tensor {
        Tensor::from_slice(&[v as f32])
    }

    #[test]
    fn gan_losses_have_the_expected_values() {
        // At D = 1/2 everywhere: log 4, log 2, −log 2 (the equilibrium of arXiv 1406.2661, theorem 1).
        let half = Tensor::zeros([5], (Kind::Float, tch::Device::Cpu));
        let ln2 = std::f64::consts::LN_2;
        assert!((value(GanLoss::Minimax.discriminator(&half, &half)) - 2.0 * ln2).abs() < 1e-6);
        assert!((value(GanLoss::NonSaturating.generator(&half, &half)) - ln2).abs() < 1e-6);
        assert!((value(GanLoss::Minimax.generator(&half, &half)) + ln2).abs() < 1e-6);
        // An accurate discriminator: finite losses, and the expected one is large.
        let (sure_real, sure_fake) = (scalar(80.0), scalar(-80.0));
        assert!(value(GanLoss::NonSaturating.discriminator(&sure_real, &sure_fake)).abs() < 1e-6);
        assert!((value(GanLoss::NonSaturating.discriminator(&sure_fake, &sure_real)) - 160.0).abs() < 1e-4);
        assert!((value(GanLoss::NonSaturating.generator(&sure_real, &sure_fake)) - 80.0).abs() < 1e-4);
        assert!(value(GanLoss::Minimax.generator(&sure_real, &sure_fake)).abs() < 1e-6);
    }

    #[test]
    fn only_the_minimax_gradient_vanishes_when_the_discriminator_wins() {
        for (loss, want) in [(GanLoss::NonSaturating, -1.0), (GanLoss::Minimax, 0.0)] {
            let fake = scalar(-30.0).set_requires_grad(true);
            let grad = Tensor::run_backward(&[loss.generator(&fake, &fake).unwrap()], &[&fake], false, false);
            assert!((grad[0].double_value(&[0]) - want).abs() < 1e-6, "{loss:?}");
        }
    }

    /// Both losses, by arithmetic on paper, at logits that tell a swapped sign, margin or target.
    #[test]
    fn other_losses_have_the_values_of_their_papers() {
        let (r, f) = (Tensor::from_slice(&[2f32, 0.5]), Tensor::from_slice(&[-3f32, 0.25]));
        let softplus = |v: f64| v.exp().ln_1p();
        for (loss, d, g) in [
            (GanLoss::LeastSquares, (1.0 + 0.25) / 4.0 + (9.0 + 0.0625) / 4.0, (16.0 + 0.5625) / 4.0),
            (GanLoss::Hinge, 0.5 / 2.0 + 1.25 / 2.0, 2.75 / 2.0),
            (GanLoss::Wasserstein, -2.75 / 2.0 - 2.5 / 2.0, 2.75 / 2.0),
            (GanLoss::Relativistic, (softplus(-5.0) + softplus(-0.25)) / 2.0, (softplus(5.0) + softplus(0.25)) / 2.0),
        ] {
            assert!((value(loss.discriminator(&r, &f)) - d).abs() < 1e-6, "{loss:?}");
            assert!((value(loss.generator(&r, &f)) - g).abs() < 1e-6, "{loss:?}");
        }
    }

    /// No constant logit has a smaller discriminator's loss than the equilibrium when generated images are real ones.
    #[test]
    fn the_equilibrium_is_the_minimum_where_both_kinds_of_images_are_alike() {
        for &loss in GanLoss::value_variants() {
            let logits: Vec<f64> = (-40..=40).map(|i| f64::from(i) / 20.0).collect();
            let d = |v: &f64| value(loss.discriminator(&scalar(*v), &scalar(*v)));
            let best = logits.iter().min_by(|a, b| d(a).total_cmp(&d(b))).unwrap();
            let [at, g] = loss.equilibrium();
            assert!((d(best) - at.unwrap()).abs() < 1e-6, "{loss:?}: {}", d(best));
            if let Some(g) = g {
                assert!((value(loss.generator(&scalar(*best), &scalar(*best))) - g).abs() < 1e-6, "{loss:?}");
            }
        }
    }

    #[test]
    fn an_image_is_judged_by_the_boundary_of_its_loss() {
        let (r, f) = (Tensor::from_slice(&[0.3f32, 0.7, -0.4]), Tensor::from_slice(&[0.4f32, -0.1, -0.5]));
        for (loss, want) in [
            (GanLoss::NonSaturating, [[1f32, 1.0, 0.0], [0.0, 1.0, 1.0]]),
            (GanLoss::Hinge, [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]),
            (GanLoss::LeastSquares, [[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]),
            (GanLoss::Wasserstein, [[0.0, 1.0, 1.0]; 2]),
            (GanLoss::Relativistic, [[0.0, 1.0, 1.0]; 2]),
        ] {
            let right = loss.correct(&r, &f).unwrap();
            assert_eq!(right.map(|t| Vec::<f32>::try_from(t).unwrap()), want.map(Vec::from), "{loss:?}");
        }
    }
}
