//! The measured values of a GAN's update, and the scalars that they give.

use anyhow::Result;
use tch::{Kind, Tensor};

use crate::base::scalar::Scalar;
use crate::models::losses::adversarial::GanLoss;
use crate::models::losses::penalty::Penalties;

/// The values of one update, all scalars.
#[derive(Debug)]
pub struct GanTerms {
    /// The discriminator's loss before its update, in [`GanLoss::unit`].
    pub d_loss: Tensor,
    /// The generator's loss against the updated discriminator, in the same unit.
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
    /// Means over the discriminator's updates, [3]: penalties of slopes (not times k), the share of updates with them, LeCam.
    pub penalty: Option<Tensor>,
}

/// Descriptions of [`GanTerms`], in their order; the two variances give one scalar, [`diversity`], and the penalties one.
pub(super) fn scalars(loss: GanLoss, penalties: &Penalties) -> Vec<Scalar> {
    let [d, g] = loss.equilibrium();
    let mut all = vec![
        Scalar::new("d_loss", "discriminator", loss.unit(), "loss").limit(loss.limit()).equilibrium(d),
        Scalar::new("g_loss", "generator", loss.unit(), "loss").limit(loss.limit()).equilibrium(g),
        Scalar::new("d_real", "real images", "logit", "mean critic output"),
        Scalar::new("d_fake", "generated images", "logit", "mean critic output"),
        Scalar::new("d_accuracy", "accuracy", "share", "accuracy and diversity"),
        Scalar::new("diversity", "diversity", "ratio", "accuracy and diversity").higher().may_be_unknown(),
    ];
    if penalties.any() {
        all.push(Scalar::new("penalty", "penalty", loss.unit(), "penalty").may_be_unknown());
    }
    all
}

/// The measured values that [`GanTerms`] has without penalties, and those of [`GanTerms::penalty`]; the probability of an adaptive
/// augmentation follows them.
pub(super) const TERMS: usize = 7;
pub(super) const PENALTY_TERMS: usize = 3;

/// Mean over pixels of the variance over the batch: x [B,C,H,W] -> scalar.
fn variance(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_sub(&x.f_mean_dim(0, true, Kind::Float)?)?.f_square()?.f_mean(Kind::Float)?)
}

/// Standard deviation of the pixels over generated images, relative to real ones; near 0: all generated images are the same. NaN if the
/// real images do not vary: they are identical, or all batches had one image.
pub(super) fn diversity(real_variance: f64, fake_variance: f64) -> f64 {
    if real_variance > 1e-8 { (fake_variance / real_variance).sqrt() } else { f64::NAN }
}

impl GanTerms {
    pub(super) fn stacked(&self) -> Result<Tensor> {
        let GanTerms { d_loss, g_loss, d_real, d_fake, d_accuracy, real_variance, fake_variance, penalty } = self;
        let all = [d_loss, g_loss, d_real, d_fake, d_accuracy, real_variance, fake_variance];
        let all = Tensor::f_stack(&all, 0)?.f_detach()?; // [7]
        match penalty {
            Some(penalty) => Ok(Tensor::f_cat(&[&all, penalty], 0)?), // [10]
            None => Ok(all),
        }
    }

    /// From the losses, and the real and generated images [B,C,H,W], their logits [B] and which are right ([`GanLoss::correct`]).
    pub(super) fn new(
        losses: (Tensor, Tensor),
        images: (&Tensor, &Tensor),
        logits: (&Tensor, &Tensor),
        right: [Tensor; 2],
        penalty: Option<Tensor>,
    ) -> Result<Self> {
        let ((d_loss, g_loss), (real, fake)) = (losses, logits);
        tch::no_grad(|| {
            let right = right[0].f_add(&right[1])?;
            Ok(GanTerms {
                d_loss,
                g_loss,
                d_real: real.f_mean(Kind::Float)?,
                d_fake: fake.f_mean(Kind::Float)?,
                d_accuracy: right.f_mean(Kind::Float)?.f_mul_scalar(0.5)?,
                real_variance: variance(images.0)?,
                fake_variance: variance(images.1)?,
                penalty,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn accuracy_and_diversity_have_the_expected_values() {
        let scalar = || Tensor::from(0f32);
        let terms = |real: &[f32], fake: &[f32], images: (&Tensor, &Tensor)| {
            let (real, fake) = (Tensor::from_slice(real), Tensor::from_slice(fake));
            let right = GanLoss::NonSaturating.correct(&real, &fake).unwrap();
            let terms = GanTerms::new((scalar(), scalar()), images, (&real, &fake), right, None).unwrap();
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
