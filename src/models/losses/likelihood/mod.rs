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

    /// log p(x|z) of each latent, summed over pixels, in nats: parameters [B·K,P·C,H,W] of K latents for each of x [B,C,H,W] in [0,1]
    /// -> float64 [B,K], without a gradient.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn log_prob(self, parameters: &Tensor, x: &Tensor) -> Result<Tensor> {
        let images = x.size()[0];
        match self {
            Likelihood::Bernoulli => {
                let x = x.f_reshape([images, -1])?; // [B,D]
                let logits = parameters.f_reshape([images, -1, x.size()[1]])?; // [B,K,D]
                Ok(native::bernoulli_nll(&logits, &x)?.f_neg()?)
            }
        }
    }

    /// What log p(x) says about images of 8 bits: the bits per dimension to add to −log p(x) / (D ln 2), which are 0 for probabilities
    /// of the 256 levels and 8 for a density on [0,1]; or why bits per dimension have no meaning.
    ///
    /// # Errors
    /// The reason, a clause.
    pub fn bits(self) -> Result<f64, &'static str> {
        match self {
            Likelihood::Bernoulli => Err(
                "a Bernoulli distribution gives grey pixels no probability, so its nats are not those of 8-bit images",
            ),
        }
    }

    /// Negative log-likelihood, in nats per image, of the uninformed prediction (for Bernoulli: logits 0).
    pub fn uniform_nll(self, shape: Shape) -> f64 {
        match self {
            Likelihood::Bernoulli => shape.numel() as f64 * std::f64::consts::LN_2,
        }
    }
}
