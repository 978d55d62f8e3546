//! The posterior's draw and its divergence from the prior.

use anyhow::Result;
use tch::Tensor;

use crate::native;

/// mu, logvar, eps [B,Z] -> z = mu + exp(logvar/2)·eps [B,Z], and KL(N(mu, exp(logvar)) ‖ N(0, I)), a scalar:
/// ½ Σ (mu² + exp(logvar) − 1 − logvar), summed over latents, mean over the batch, in nats.
///
/// Kingma and Welling 2014 (arXiv 1312.6114), section 2.4 and appendix B. `own` says whether our own kernel computes it (CPU).
///
/// # Errors
/// When the shapes differ.
pub fn draw(mu: &Tensor, logvar: &Tensor, eps: &Tensor, own: bool) -> Result<(Tensor, Tensor)> {
    if own { native::gaussian_draw(mu, logvar, eps) } else { native::gaussian_draw_ops(mu, logvar, eps) }
}
