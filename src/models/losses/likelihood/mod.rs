//! p(x|z): the distribution of the pixels given the decoder's outputs.
//!
//! Each has its formula in its own file: [`bernoulli`], [`continuous_bernoulli`], [`gaussian`], [`logistic`].

pub mod bernoulli;
pub mod continuous_bernoulli;
pub mod gaussian;
pub mod logistic;

use anyhow::Result;
use clap::ValueEnum;
use tch::{Kind, Tensor};

use crate::base::setting::{Setting, Settings};
use crate::base::shape::Shape;
use crate::base::usage::usage;
use crate::native::{self, Factor};
use crate::nets::Mode;
use crate::nets::graph::{Builder, Function, Op, Value};
use bernoulli::{BINARIZE, Binarize};
use gaussian::{SIGMA, Sigma, StoredSigma};

/// Names of the likelihoods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LikelihoodName {
    /// [`Likelihood::Bernoulli`].
    Bernoulli,
    /// [`Likelihood::ContinuousBernoulli`].
    ContinuousBernoulli,
    /// [`Likelihood::Gaussian`].
    Gaussian,
    /// [`Likelihood::Logistic`].
    Logistic,
}

/// p(x|z), independent for each pixel value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Likelihood {
    /// A logit each (Kingma and Welling 2014, arXiv 1312.6114, appendix C.1). Grey pixels count as probabilities, unless the images are
    /// binarised.
    Bernoulli(Binarize),
    /// A logit each (Loaiza-Ganem and Cunningham 2019, arXiv 1907.06845): a density on [0,1].
    ContinuousBernoulli,
    /// A mean each and one standard deviation for all: a density.
    Gaussian(Sigma),
    /// A mean and a scale each of a logistic distribution on the 256 levels (Kingma et al. 2016, arXiv 1606.04934).
    Logistic,
}

/// p(x|z) of the decoder. Without a value: by the images.
pub static LIKELIHOOD: Setting<LikelihoodName> = Setting::choice(
    "likelihood",
    "Distribution of a pixel given the latents [default: the preset's, else bernoulli for grey images that are nearly black and white, \
     gaussian for others]",
);

/// A likelihood with the numbers that it learns, which are variables of the decoder.
#[derive(Debug)]
pub struct PixelModel {
    likelihood: Likelihood,
    sigma: Option<StoredSigma>,
}

impl Likelihood {
    /// From the settings; Bernoulli where none is set.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] for a setting of another likelihood.
    pub fn from_settings(s: &Settings) -> Result<Self> {
        let name = s.given(&LIKELIHOOD).unwrap_or(LikelihoodName::Bernoulli);
        let (binarize, sigma) = (s.get(&BINARIZE)?, s.given(&SIGMA));
        if binarize != Binarize::None && name != LikelihoodName::Bernoulli {
            usage!(
                "--binarize makes pixels black or white, which --likelihood bernoulli is for: leave one of the two out"
            );
        }
        if sigma.is_some() && name != LikelihoodName::Gaussian {
            usage!("--sigma is the standard deviation of --likelihood gaussian: add it, or leave --sigma out");
        }
        Ok(match name {
            LikelihoodName::Bernoulli => Likelihood::Bernoulli(binarize),
            LikelihoodName::ContinuousBernoulli => Likelihood::ContinuousBernoulli,
            LikelihoodName::Gaussian => Likelihood::Gaussian(sigma.unwrap_or(Sigma::Optimal)),
            LikelihoodName::Logistic => Likelihood::Logistic,
        })
    }

    /// What suits images of this shape of whose pixel values `extreme` (0 to 1) are near 0 or 1, and why.
    pub fn for_images(shape: Shape, extreme: f64) -> (LikelihoodName, String) {
        let percent = (100.0 * extreme).round();
        match shape.channels {
            1 if extreme >= 0.8 => (
                LikelihoodName::Bernoulli,
                format!("the images are grey and {percent} % of their pixels are nearly black or white"),
            ),
            1 => (LikelihoodName::Gaussian, format!("only {percent} % of the pixels are nearly black or white")),
            _ => (LikelihoodName::Gaussian, "the images have colours".to_owned()),
        }
    }

    /// Decoder outputs per pixel value.
    pub fn parameters(self) -> i64 {
        if self == Likelihood::Logistic { 2 } else { 1 }
    }

    /// How images are made black and white.
    pub fn binarize(self) -> Binarize {
        if let Likelihood::Bernoulli(binarize) = self { binarize } else { Binarize::None }
    }

    /// Whether the loss of an image depends on the others of its batch.
    pub fn is_of_batch(self) -> bool {
        self == Likelihood::Gaussian(Sigma::Optimal)
    }

    /// Adds the likelihood to a decoder with the outputs `parameters` [P·C,H,W]: its variables, and the mean image [C,H,W] in [0,1].
    ///
    /// # Errors
    /// Those of the builder.
    pub fn build(self, b: &mut Builder, parameters: Value) -> Result<(PixelModel, Value)> {
        let function = |b: &mut Builder, name: &str, f: Function, x: Value| b.op(name, Op::Activation(f), &[x]);
        let mean = match self {
            Likelihood::Bernoulli(_) | Likelihood::Gaussian(_) => {
                function(b, "sigmoid", Function::Sigmoid, parameters)?
            }
            Likelihood::ContinuousBernoulli => function(b, "mean", Function::ContinuousBernoulliMean, parameters)?,
            Likelihood::Logistic => {
                let location = logistic::location(b, parameters)?;
                function(b, "sigmoid", Function::Sigmoid, location)?
            }
        };
        let sigma = match self {
            Likelihood::Gaussian(sigma) => Some(StoredSigma::new(sigma, b)?),
            _ => None,
        };
        Ok((PixelModel { likelihood: self, sigma }, mean))
    }

    /// What log p(x) says about images of 8 bits: the bits per dimension to add to −log p(x) / (D ln 2), which are 0 for probabilities
    /// of the 256 levels and 8 for a density on [0,1]; or why bits per dimension have no meaning.
    ///
    /// # Errors
    /// The reason, a clause.
    pub fn bits(self) -> Result<f64, &'static str> {
        match self {
            Likelihood::Bernoulli(Binarize::None) => Err(
                "a Bernoulli distribution gives grey pixels no probability, so its nats are not those of 8-bit images",
            ),
            Likelihood::Bernoulli(_) => {
                Err("the images were made black and white, so the nats are not those of 8-bit images")
            }
            Likelihood::ContinuousBernoulli | Likelihood::Gaussian(_) => Ok(8.0),
            Likelihood::Logistic => Ok(0.0),
        }
    }

    /// Scale of the negative log-likelihood of an untrained decoder, in nats per image.
    pub fn uniform_nll(self, shape: Shape) -> f64 {
        let each = match self {
            Likelihood::Bernoulli(_) | Likelihood::ContinuousBernoulli => std::f64::consts::LN_2,
            Likelihood::Gaussian(sigma) => sigma.nll_of_half(),
            Likelihood::Logistic => 256f64.ln(),
        };
        shape.numel() as f64 * each
    }
}

impl PixelModel {
    /// Which likelihood it is.
    pub fn likelihood(&self) -> Likelihood {
        self.likelihood
    }

    /// Whether σ is a number that changes: [`PixelModel::nll`] then gives it.
    pub fn learns_sigma(&self) -> bool {
        matches!(self.likelihood, Likelihood::Gaussian(Sigma::Learned | Sigma::Optimal))
    }

    /// −log p(x|z) + `beta`·kl and −log p(x|z), summed over pixels, mean over the batch, in nats, as one loop over memory where there is
    /// one: parameters [B,P·C,H,W], x [B,C,H,W], kl a scalar. None for a likelihood without such a loop.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn fused_bound(
        &self,
        parameters: &Tensor,
        x: &Tensor,
        kl: &Tensor,
        beta: Factor,
    ) -> Option<Result<(Tensor, Tensor)>> {
        let fused = matches!(self.likelihood, Likelihood::Bernoulli(_));
        fused.then(|| native::bernoulli_bound(parameters, x, kl, beta))
    }

    /// −log p(x|z) of each latent, summed over pixels in float32, in nats: parameters [B·K,P·C,H,W] of K latents for each of
    /// x [B,C,H,W] -> [B,K]; and σ, a scalar, where it changes ([`PixelModel::learns_sigma`]). In training mode an optimal σ is the batch's, and its average follows.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn nll(&self, parameters: &Tensor, x: &Tensor, mode: Mode) -> Result<(Tensor, Option<Tensor>)> {
        let (each, sigma) = self.pixels(parameters, x, mode)?;
        Ok((each.f_sum_dim_intlist(&[2i64, 3, 4][..], false, Kind::Float)?, sigma))
    }

    /// log p(x|z) of each latent in evaluation mode, as [`PixelModel::nll`], in float64 without a gradient.
    ///
    /// # Errors
    /// As [`PixelModel::nll`].
    pub fn log_prob(&self, parameters: &Tensor, x: &Tensor) -> Result<Tensor> {
        if let Likelihood::Bernoulli(_) = self.likelihood {
            let x = x.f_reshape([x.size()[0], -1])?; // [B,D]
            let logits = parameters.f_reshape([x.size()[0], -1, x.size()[1]])?; // [B,K,D]
            return Ok(native::bernoulli_nll(&logits, &x)?.f_neg()?);
        }
        let (each, _) = tch::no_grad(|| self.pixels(parameters, x, Mode::Eval))?;
        Ok(each.f_sum_dim_intlist(&[2i64, 3, 4][..], false, Kind::Double)?.f_neg()?)
    }

    /// −log p of each pixel value: [B,K,C,H,W].
    fn pixels(&self, parameters: &Tensor, x: &Tensor, mode: Mode) -> Result<(Tensor, Option<Tensor>)> {
        let [b, c, h, w] = x.size4().map(|(b, c, h, w)| [b, c, h, w])?;
        let parameters = parameters.f_reshape([b, -1, self.likelihood.parameters() * c, h, w])?;
        let x = x.f_unsqueeze(1)?; // [B,1,C,H,W]
        Ok(match self.likelihood {
            Likelihood::Bernoulli(_) => (bernoulli::nll(&parameters, &x)?, None),
            Likelihood::ContinuousBernoulli => (continuous_bernoulli::nll(&parameters, &x)?, None),
            Likelihood::Gaussian(_) => {
                let errors = parameters.f_sigmoid()?.f_sub(&x)?.f_square()?;
                let sigma = match &self.sigma {
                    Some(stored) => stored.sigma(&errors, mode)?,
                    None => anyhow::bail!("a Gaussian likelihood has no σ"),
                };
                (gaussian::nll(&errors, &sigma)?, self.learns_sigma().then(|| sigma.f_detach()).transpose()?)
            }
            Likelihood::Logistic => {
                let both = parameters.f_split(c, 2)?;
                (logistic::nll(&both[0].f_sigmoid()?, &both[1], &x)?, None)
            }
        })
    }
}

#[cfg(test)]
mod tests;
