//! A GAN's loss terms as pure functions of tensors, all from logits in softplus forms (a VAE's stand in native/loss.rs).
//! Means over the batch, in nats.

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

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
