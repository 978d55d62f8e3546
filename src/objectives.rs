//! Loss terms as pure functions of tensors, all from logits in softplus forms.
//!
//! Leaf: imports no other module of the crate. Reductions: sum over pixels and latents, mean over the batch; in nats.

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

/// KL(N(mu, exp(logvar)) ‖ N(0, I)): ½ Σ (mu² + exp(logvar) − 1 − logvar), summed over latents, mean over the batch.
///
/// Kingma and Welling 2014 (arXiv 1312.6114), appendix B. `mu`, `logvar` [B,Z] -> scalar, nats per image, ≥ 0.
///
/// # Errors
/// libtorch's, when the shapes differ.
pub fn gaussian_kl(mu: &Tensor, logvar: &Tensor) -> Result<Tensor> {
    let batch = mu.size()[0] as f64;
    let terms = (mu.f_square()? + logvar.f_exp()?).f_sub(logvar)?; // [B,Z]
    let count = terms.numel() as f64;
    Ok((terms.f_sum(Kind::Float)? - count) * (0.5 / batch))
}

/// −log p(x|z) of independent Bernoulli pixels: binary cross entropy, summed over pixels, mean over the batch.
///
/// `logits`, `x` [B,C,H,W]; x in [0,1], grey values allowed (they are taken as probabilities, as the field's VAE examples
/// do) -> scalar, nats per image. Finite for every finite logit.
///
/// # Errors
/// libtorch's, when the shapes differ.
pub fn bernoulli_nll(logits: &Tensor, x: &Tensor) -> Result<Tensor> {
    let batch = x.size()[0] as f64;
    Ok(logits.f_binary_cross_entropy_with_logits::<Tensor>(x, None, None, Reduction::Sum)? / batch)
}

/// Discriminator loss, to be minimised: −E[log D(x)] − E[log(1 − D(G(z)))], D = σ(logits).
///
/// Goodfellow et al. 2014 (arXiv 1406.2661), equation 1, negated. `real`, `fake` [B] logits -> scalar, nats.
///
/// # Errors
/// libtorch's.
pub fn discriminator_loss(real: &Tensor, fake: &Tensor) -> Result<Tensor> {
    Ok(real.f_neg()?.f_softplus()?.f_mean(Kind::Float)? + fake.f_softplus()?.f_mean(Kind::Float)?)
}

/// What the generator minimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GanLoss {
    /// −E[log D(G(z))]: strong gradients while the discriminator wins (arXiv 1406.2661, section 3).
    NonSaturating,
    /// E[log(1 − D(G(z)))]: the literal two-player game of equation 1; its gradient fades when the discriminator wins.
    Minimax,
}

impl GanLoss {
    /// The generator's loss from the discriminator's logits on generated images: `fake` [B] -> scalar, nats.
    ///
    /// # Errors
    /// libtorch's.
    pub fn generator_loss(self, fake: &Tensor) -> Result<Tensor> {
        Ok(match self {
            GanLoss::NonSaturating => fake.f_neg()?.f_softplus()?.f_mean(Kind::Float)?,
            GanLoss::Minimax => fake.f_softplus()?.f_mean(Kind::Float)?.f_neg()?,
        })
    }
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

    /// ∫ q(z) (log q(z) − log p(z)) dz by Simpson's rule over ±12 standard deviations.
    fn kl_by_integral(mu: f64, logvar: f64) -> f64 {
        let sd = (logvar / 2.0).exp();
        let log_normal =
            |z: f64, m: f64, s: f64| -0.5 * ((z - m) / s).powi(2) - s.ln() - 0.5 * std::f64::consts::TAU.ln();
        let (n, lo, hi) = (20_000, mu - 12.0 * sd, mu + 12.0 * sd);
        let h = (hi - lo) / n as f64;
        (0..=n)
            .map(|i| {
                let z = lo + h * i as f64;
                let w = match i {
                    0 => 1.0,
                    i if i == n => 1.0,
                    i if i % 2 == 1 => 4.0,
                    _ => 2.0,
                };
                let lq = log_normal(z, mu, sd);
                w * lq.exp() * (lq - log_normal(z, 0.0, 1.0))
            })
            .sum::<f64>()
            * h
            / 3.0
    }

    #[test]
    fn kl_equals_its_integral() {
        for (mu, logvar) in [(0.0, 0.0), (1.5, -2.0), (-0.7, 1.2), (3.0, 0.5), (0.0, -6.0)] {
            let got = value(gaussian_kl(
                &Tensor::from_slice(&[mu as f32]).view([1, 1]),
                &Tensor::from_slice(&[logvar as f32]).view([1, 1]),
            ));
            let want = kl_by_integral(mu, logvar);
            assert!((got - want).abs() < 1e-5 * (1.0 + want), "({mu}, {logvar}): {got} against {want}");
        }
    }

    #[test]
    fn kl_sums_latents_and_averages_the_batch() {
        let mu = Tensor::from_slice(&[1f32, 2., 3., 4., 5., 6.]).view([3, 2]);
        let logvar = Tensor::zeros([3, 2], (Kind::Float, tch::Device::Cpu));
        assert!((value(gaussian_kl(&mu, &logvar)) - 91.0 / 6.0).abs() < 1e-5);
    }

    #[test]
    fn bernoulli_stays_finite_at_huge_logits() {
        for (logit, x, want) in [
            (80.0, 1.0, 0.0),
            (80.0, 0.0, 80.0),
            (-80.0, 1.0, 80.0),
            (-80.0, 0.0, 0.0),
            (80.0, 0.25, 60.0),
            (0.0, 0.5, std::f64::consts::LN_2),
        ] {
            let got = value(bernoulli_nll(&scalar(logit), &scalar(x)));
            assert!((got - want).abs() < 1e-5, "logit {logit}, x {x}: {got} against {want}");
        }
    }

    #[test]
    fn gan_losses_have_their_closed_forms() {
        // At D = 1/2 everywhere: log 4, log 2, −log 2 (the equilibrium of arXiv 1406.2661, theorem 1).
        let half = Tensor::zeros([5], (Kind::Float, tch::Device::Cpu));
        let ln2 = std::f64::consts::LN_2;
        assert!((value(discriminator_loss(&half, &half)) - 2.0 * ln2).abs() < 1e-6);
        assert!((value(GanLoss::NonSaturating.generator_loss(&half)) - ln2).abs() < 1e-6);
        assert!((value(GanLoss::Minimax.generator_loss(&half)) + ln2).abs() < 1e-6);
        // A winning discriminator: finite losses, and the right one of the two is large.
        let (sure_real, sure_fake) = (scalar(80.0), scalar(-80.0));
        assert!(value(discriminator_loss(&sure_real, &sure_fake)).abs() < 1e-6);
        assert!((value(discriminator_loss(&sure_fake, &sure_real)) - 160.0).abs() < 1e-4);
        assert!((value(GanLoss::NonSaturating.generator_loss(&sure_fake)) - 80.0).abs() < 1e-4);
        assert!(value(GanLoss::Minimax.generator_loss(&sure_fake)).abs() < 1e-6);
    }

    #[test]
    fn only_the_non_saturating_loss_keeps_its_gradient_when_the_discriminator_wins() {
        for (loss, want) in [(GanLoss::NonSaturating, -1.0), (GanLoss::Minimax, 0.0)] {
            let fake = scalar(-30.0).set_requires_grad(true);
            let grad = Tensor::run_backward(&[loss.generator_loss(&fake).unwrap()], &[&fake], false, false);
            assert!((grad[0].double_value(&[0]) - want).abs() < 1e-6, "{loss:?}");
        }
    }
}
