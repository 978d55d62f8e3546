//! The continuous Bernoulli distribution, a density on [0,1] (Loaiza-Ganem and Cunningham 2019, arXiv 1907.06845).
//!
//! p(x) = exp(l·x) / ((e^l − 1)/l) with the logit l = log(λ/(1 − λ)), which is C(λ) λ^x (1 − λ)^(1 − x) of its equation 5.

use anyhow::Result;
use tch::Tensor;

/// |l| below which a series replaces the formula, which is 0/0 at 0. The first term left out is below 5e-10 there.
const SERIES_BELOW: f64 = 0.5;

/// −log p of each pixel, log((e^l − 1)/l) − l·x: logits l and x of shapes that broadcast.
///
/// log((e^l − 1)/l) = l/2 + g(|l|), g(u) = log(2 sinh(u/2)/u) = u/2 + log(1 − e^−u) − log u = u²/24 − u⁴/2880 + u⁶/181440 − ...
pub(super) fn nll(logits: &Tensor, x: &Tensor) -> Result<Tensor> {
    let u = logits.f_abs()?;
    let small = u.f_lt(SERIES_BELOW)?;
    // Each branch sees only arguments at which its gradient is finite.
    let (near, far) = (u.f_clamp_max(SERIES_BELOW)?, u.f_clamp_min(SERIES_BELOW)?);
    let square = near.f_square()?;
    let series = square.f_mul_scalar(1.0 / 181_440.0)?.f_add_scalar(-1.0 / 2880.0)?;
    let series = series.f_mul(&square)?.f_add_scalar(1.0 / 24.0)?.f_mul(&square)?;
    let log_one_minus = far.f_neg()?.f_expm1()?.f_neg()?.f_log()?;
    let formula = far.f_mul_scalar(0.5)?.f_add(&log_one_minus)?.f_sub(&far.f_log()?)?;
    let even = series.f_where_self(&small, &formula)?;
    Ok(even.f_add(&logits.f_mul(&x.f_rsub_scalar(0.5)?)?)?)
}
