//! Bernoulli pixels, and grey images made black and white for them.

use anyhow::Result;
use clap::ValueEnum;
use tch::{Kind, Tensor};

use crate::base::setting::Setting;

/// How grey pixels, as probabilities, become black or white. Held-out images are binarised once, by their place in the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Binarize {
    /// They stay grey.
    None,
    /// Drawn anew in each update (Burda et al. 2016, arXiv 1509.00519, section 5.1).
    Dynamic,
    /// Drawn once for each image, before training (Larochelle and Murray 2011).
    Fixed,
}

/// See [`Binarize`].
pub static BINARIZE: Setting<Binarize> = Setting::choice(
    "binarize",
    "Draw black or white pixels with the grey ones as probabilities, for --likelihood bernoulli: dynamic: in each update; fixed: once",
)
.default("none", "Kingma and Welling 2014 train on grey levels");

/// x in [0,1] and uniform numbers in [0,1) of the same shape -> 0 or 1, which is 1 with probability x.
///
/// # Errors
/// When the shapes differ.
pub fn binarised(x: &Tensor, uniform: &Tensor) -> Result<Tensor> {
    Ok(uniform.f_lt_tensor(x)?.f_to_kind(Kind::Float)?)
}

/// −log p of each pixel: x, logits of shapes that broadcast.
pub(super) fn nll(logits: &Tensor, x: &Tensor) -> Result<Tensor> {
    Ok(logits.f_softplus()?.f_sub(&logits.f_mul(x)?)?)
}
