//! The logistic distribution on the 256 levels of a pixel (Kingma et al. 2016, arXiv 1606.04934, appendix C).
//!
//! Differs: the tails belong to the first and the last level, as in PixelCNN++ (Salimans et al. 2017, arXiv 1701.05517, equation 2), so
//! that the levels' probabilities sum to 1.

use anyhow::Result;
use tch::Tensor;

use crate::nets::graph::{Builder, Op, Value};

/// The largest magnitude of the logarithm of the scale. The least is that of PixelCNN++'s code, where pixels are twice as far apart; a
/// larger scale leaves the levels inside no probability.
const MOST_LOG_SCALE: f64 = 7.0;
/// Half the distance of two levels.
const HALF_LEVEL: f64 = 0.5 / 255.0;

/// The first half of the channels, [2·C,H,W] -> [C,H,W]: the means before their sigmoid. The others are logarithms of scales.
pub(super) fn location(b: &mut Builder, parameters: Value) -> Result<Value> {
    let dims = b.dims(parameters).to_vec();
    let half = [dims[0] / 2, dims[1], dims[2]];
    let rows = Op::Reshape(vec![1, 2, half.iter().product()]);
    let rows = b.op("location_rows", rows, &[parameters])?;
    let first = b.op("location_row", Op::Pad { left: 0, right: 0, top: 0, bottom: -1 }, &[rows])?;
    b.op("location", Op::Reshape(half.to_vec()), &[first])
}

/// −log p of each pixel's level: mean, log of the scale, and x in [0,1], of shapes that broadcast.
///
/// With a and b the edges of the level, (x ∓ ½/255 − mean)/scale: log(σ(b) − σ(a)) = −softplus(−b) − softplus(a) + log(1 − e^(a−b)), in
/// which the first level has no a and the last no b. No term cancels another.
pub(super) fn nll(mean: &Tensor, log_scale: &Tensor, x: &Tensor) -> Result<Tensor> {
    let inverse = log_scale.f_clamp(-MOST_LOG_SCALE, MOST_LOG_SCALE)?.f_neg()?.f_exp()?;
    let from_mean = x.f_sub(mean)?;
    let edge = |off: f64| from_mean.f_add_scalar(off).and_then(|d| d.f_mul(&inverse));
    let (below, above) = (edge(-HALF_LEVEL)?.f_softplus()?, edge(HALF_LEVEL)?.f_neg()?.f_softplus()?);
    let inside = inverse.f_mul_scalar(-2.0 * HALF_LEVEL)?.f_expm1()?.f_neg()?.f_log()?;
    let kind = from_mean.f_kind()?;
    let (not_first, not_last) = (x.f_gt(HALF_LEVEL)?.f_to_kind(kind)?, x.f_lt(1.0 - HALF_LEVEL)?.f_to_kind(kind)?);
    let ends = below.f_mul(&not_first)?.f_add(&above.f_mul(&not_last)?)?;
    Ok(ends.f_sub(&inside.f_mul(&not_first.f_mul(&not_last)?)?)?)
}
