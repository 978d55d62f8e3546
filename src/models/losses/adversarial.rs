//! GAN losses from logits, in nats, mean over the batch.
//!
//! Goodfellow et al. 2014 (arXiv 1406.2661).

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
}

/// The loss of both networks.
pub static GAN_LOSS: Setting<GanLoss> =
    Setting::choice("gan-loss", "The generator's loss").default("non-saturating", "Goodfellow et al. 2014, section 3");

impl GanLoss {
    /// The discriminator's loss: −E[log D(x)] − E[log(1 − D(G(z)))], D = σ(logits) (equation 1, negated): `real`, `fake` [B]
    /// logits -> scalar.
    ///
    /// # Errors
    /// libtorch's.
    pub fn discriminator(self, real: &Tensor, fake: &Tensor) -> Result<Tensor> {
        match self {
            GanLoss::NonSaturating | GanLoss::Minimax => {
                Ok(softplus_mean(&real.f_neg()?)?.f_add(&softplus_mean(fake)?)?)
            }
        }
    }

    /// The generator's loss from the discriminator's logits on generated images: `fake` [B] -> scalar.
    ///
    /// # Errors
    /// libtorch's.
    pub fn generator(self, fake: &Tensor) -> Result<Tensor> {
        match self {
            GanLoss::NonSaturating => softplus_mean(&fake.f_neg()?),
            GanLoss::Minimax => Ok(softplus_mean(fake)?.f_neg()?),
        }
    }

    /// Both losses at the equilibrium D = ½ (theorem 1); none if a loss has no such value.
    pub fn equilibrium(self) -> [Option<f64>; 2] {
        match self {
            GanLoss::NonSaturating => [Some(2.0 * LN_2), Some(LN_2)],
            GanLoss::Minimax => [Some(2.0 * LN_2), Some(-LN_2)],
        }
    }

    /// Upper bound on the magnitude of either loss in stable training; when one network dominates, the other's loss is some tens of
    /// nats.
    pub fn limit(self) -> f64 {
        match self {
            GanLoss::NonSaturating | GanLoss::Minimax => 1000.0,
        }
    }
}

fn softplus_mean(logits: &Tensor) -> Result<Tensor> {
    Ok(logits.f_softplus()?.f_mean(Kind::Float)?)
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
        assert!((value(GanLoss::NonSaturating.generator(&half)) - ln2).abs() < 1e-6);
        assert!((value(GanLoss::Minimax.generator(&half)) + ln2).abs() < 1e-6);
        // An accurate discriminator: finite losses, and the expected one is large.
        let (sure_real, sure_fake) = (scalar(80.0), scalar(-80.0));
        assert!(value(GanLoss::NonSaturating.discriminator(&sure_real, &sure_fake)).abs() < 1e-6);
        assert!((value(GanLoss::NonSaturating.discriminator(&sure_fake, &sure_real)) - 160.0).abs() < 1e-4);
        assert!((value(GanLoss::NonSaturating.generator(&sure_fake)) - 80.0).abs() < 1e-4);
        assert!(value(GanLoss::Minimax.generator(&sure_fake)).abs() < 1e-6);
    }

    #[test]
    fn only_the_minimax_gradient_vanishes_when_the_discriminator_wins() {
        for (loss, want) in [(GanLoss::NonSaturating, -1.0), (GanLoss::Minimax, 0.0)] {
            let fake = scalar(-30.0).set_requires_grad(true);
            let grad = Tensor::run_backward(&[loss.generator(&fake).unwrap()], &[&fake], false, false);
            assert!((grad[0].double_value(&[0]) - want).abs() < 1e-6, "{loss:?}");
        }
    }
}
