//! The distribution of pixels given the decoder's outputs.

use anyhow::Result;
use clap::ValueEnum;
use tch::Tensor;

use crate::base::setting::Setting;
use crate::base::shape::Shape;
use crate::native::{self, Factor};
use crate::nets::graph::{Builder, Function, Op, Value};

/// p(x|z).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Likelihood {
    /// Independent Bernoulli pixels with a logit each (Kingma and Welling 2014, arXiv 1312.6114, appendix C.1). Grey pixels count
    /// as probabilities.
    Bernoulli,
}

/// p(x|z) of the decoder.
pub static LIKELIHOOD: Setting<Likelihood> = Setting::choice("likelihood", "Distribution of a pixel given the latents")
    .default("bernoulli", "Kingma and Welling 2014");

impl Likelihood {
    /// Decoder outputs per pixel value.
    pub fn parameters(self) -> i64 {
        match self {
            Likelihood::Bernoulli => 1,
        }
    }

    /// Adds the mean image in [0,1] to a decoder, from the parameters [P·C,H,W].
    ///
    /// # Errors
    /// Those of the builder.
    pub fn mean(self, b: &mut Builder, parameters: Value) -> Result<Value> {
        match self {
            Likelihood::Bernoulli => b.op("sigmoid", Op::Activation(Function::Sigmoid), &[parameters]),
        }
    }

    /// −log p(x|z) + `beta`·kl and −log p(x|z), summed over pixels, mean over the batch, in nats: parameters [B,P·C,H,W],
    /// x [B,C,H,W] in [0,1], kl a scalar.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn bound(self, parameters: &Tensor, x: &Tensor, kl: &Tensor, beta: Factor) -> Result<(Tensor, Tensor)> {
        match self {
            Likelihood::Bernoulli => native::bernoulli_bound(parameters, x, kl, beta),
        }
    }

    /// Negative log-likelihood, in nats per image, of the uninformed prediction (for Bernoulli: logits 0).
    pub fn uniform_nll(self, shape: Shape) -> f64 {
        match self {
            Likelihood::Bernoulli => shape.numel() as f64 * std::f64::consts::LN_2,
        }
    }
}
