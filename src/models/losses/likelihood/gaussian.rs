//! Gaussian pixels with one standard deviation σ for all (Rybkin, Daniilidis and Levine 2021, σ-VAE, arXiv 2006.13202).

use anyhow::{Context, Result};
use tch::{Kind, Tensor};
use toml::Value;

use crate::base::setting::Setting;
use crate::nets::Mode;
use crate::nets::graph::Builder;

/// σ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sigma {
    /// This one.
    Fixed(f64),
    /// A parameter of the decoder (section 3.1 of the paper), from 1 on.
    Learned,
    /// The one that makes the batch most probable, σ² = its mean squared error (equation 4). Evaluation takes the average over the last
    /// hundred updates or so.
    Optimal,
}

/// The least σ of [`Sigma::Learned`] and [`Sigma::Optimal`], e⁻⁶, about 0.6 grey levels, as in the paper's code: a density on
/// grey levels has no upper bound.
///
/// Differs: a hard limit, where the code bends log σ towards it.
const LEAST: f64 = 0.002_478_752_176_666_358_4;
/// Decay of the average of squared errors.
const DECAY: f64 = 0.99;
/// ½ log 2π.
const HALF_LOG_TAU: f64 = 0.918_938_533_204_672_7;

/// See [`Sigma`].
pub static SIGMA: Setting<Sigma> = Setting::new(
    "sigma",
    "Standard deviation of --likelihood gaussian, of pixels in [0,1]: optimal (that of the errors of the batch), learned, or a number \
     [default: optimal]",
    "optimal, learned or a number from 0.0025 to 100",
    |text| match text {
        "optimal" => Some(Sigma::Optimal),
        "learned" => Some(Sigma::Learned),
        number => number.parse().ok().filter(|v| (0.0025..=100.0).contains(v)).map(Sigma::Fixed),
    },
    |sigma| match sigma {
        Sigma::Optimal => Value::String("optimal".into()),
        Sigma::Learned => Value::String("learned".into()),
        Sigma::Fixed(v) => Value::Float(*v),
    },
)
.value_name("SIGMA");

impl Sigma {
    /// −log p of an error of ½, with σ = 1 where it is learned.
    pub(super) fn nll_of_half(self) -> f64 {
        let sigma = if let Sigma::Fixed(sigma) = self { sigma } else { 1.0 };
        0.125 / (sigma * sigma) + sigma.ln().abs() + HALF_LOG_TAU
    }
}

/// σ with its variable in the decoder.
#[derive(Debug)]
pub(super) struct StoredSigma {
    sigma: Sigma,
    /// `log_sigma`, log σ, a scalar; or `squared_error` [2], averages of the mean squared error and of 1, whose ratio is σ².
    variable: Option<Tensor>,
}

impl StoredSigma {
    /// Adds the variable to the decoder.
    pub(super) fn new(sigma: Sigma, b: &Builder) -> Result<Self> {
        let variable = match sigma {
            Sigma::Fixed(_) => None,
            Sigma::Learned => Some(b.variable("log_sigma", &[], 0.0, true)?),
            // σ = 1 until the first update, which outweighs it.
            Sigma::Optimal => Some(b.variable("squared_error", &[2], 1e-6, false)?),
        };
        Ok(StoredSigma { sigma, variable })
    }

    /// σ, a scalar, for these squared errors.
    pub(super) fn sigma(&self, errors: &Tensor, mode: Mode) -> Result<Tensor> {
        let variable = || self.variable.as_ref().context("the σ of the Gaussian likelihood was not stored");
        Ok(match self.sigma {
            Sigma::Fixed(sigma) => Tensor::f_full([] as [i64; 0], sigma, (Kind::Float, errors.device()))?,
            Sigma::Learned => variable()?.f_clamp_min(LEAST.ln())?.f_exp()?,
            Sigma::Optimal => {
                let average = variable()?;
                // At the optimum the loss does not change with σ, so that no gradient passes through it.
                let of_batch = || -> Result<Tensor> {
                    let error = errors.f_detach()?.f_mean(None::<Kind>)?;
                    if mode == Mode::Batch {
                        return Ok(error);
                    }
                    let now = Tensor::f_stack(&[&error, &error.f_ones_like()?], 0)?;
                    let mut average = average.shallow_clone();
                    average.f_copy_(&average.f_mul_scalar(DECAY)?.f_add(&now.f_mul_scalar(1.0 - DECAY)?)?)?;
                    Ok(error)
                };
                let variance = match mode {
                    Mode::Train | Mode::Batch => tch::no_grad(of_batch)?,
                    Mode::Eval => average.f_get(0)?.f_div(&average.f_get(1)?)?,
                };
                variance.f_clamp_min(LEAST * LEAST)?.f_sqrt()?
            }
        })
    }
}

/// −log p of each pixel, ½ e²/σ² + log σ + ½ log 2π: squared errors e², and σ, a scalar.
pub(super) fn nll(errors: &Tensor, sigma: &Tensor) -> Result<Tensor> {
    let scaled = errors.f_mul(&sigma.f_square()?.f_reciprocal()?.f_mul_scalar(0.5)?)?;
    Ok(scaled.f_add(&sigma.f_log()?.f_add_scalar(HALF_LOG_TAU)?)?)
}
