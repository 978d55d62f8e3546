//! What a VAE is made of, and its settings.

use anyhow::Result;

use crate::base::setting::{Group, Setting, Settings};
use crate::base::shape::Shape;
use crate::base::usage::usage;
use crate::models::Length;
use crate::models::losses::bound::{Bound, CAPACITY, FREE_BITS, IWAE, MMD, TC, Z_SAMPLES};
use crate::models::losses::likelihood::bernoulli::{BINARIZE, Binarize};
use crate::models::losses::likelihood::gaussian::SIGMA;
use crate::models::losses::likelihood::{LIKELIHOOD, Likelihood};
use crate::models::optimizer::MICRO_BATCH;
use crate::models::schedule::WarmUp;
use crate::nets::{LATENT, NetSpec, hidden_widths};

/// Architecture and loss of a VAE.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeSpec {
    /// Shape of the images.
    pub shape: Shape,
    /// Z, the latent width.
    pub latent: i64,
    /// The encoder's layers.
    pub encoder: NetSpec,
    /// The decoder's layers.
    pub decoder: NetSpec,
    /// p(x|z).
    pub likelihood: Likelihood,
    /// The loss.
    pub bound: Bound,
    /// K, the samples of z for each image of an update.
    pub samples: i64,
    /// β, the weight of the KL term; 1 gives the ELBO.
    pub beta: f64,
    /// How β rises, or the capacity of [`Bound::Capacity`].
    pub warm_up: WarmUp,
}

/// Hidden layers of the encoder.
pub static ENCODER_HIDDEN: Setting<Vec<i64>> =
    hidden_widths("encoder-hidden", "Units of the hidden layers of the encoder, such as 512,256, or none");

/// Hidden layers of the decoder.
pub static DECODER_HIDDEN: Setting<Vec<i64>> =
    hidden_widths("decoder-hidden", "Units of the hidden layers of the decoder");

/// See [`VaeSpec::beta`].
pub static BETA: Setting<f64> = Setting::number("beta", "Weight of the KL term")
    .range("from 0 to 1000", |v| (0.0..=1000.0).contains(v))
    .default("1", "the ELBO");

/// Epochs of the warm-up ([`WarmUp::steps`]).
pub static KL_WARMUP: Setting<f64> =
    Setting::number("kl-warmup", "Epochs over which the weight of the KL term rises from 0")
        .range("from 0 to 1e6", |v| (0.0..=1e6).contains(v))
        .default("0", "Kingma and Welling 2014 have none")
        .value_name("EPOCHS");

/// Epochs of a cycle ([`WarmUp::cycle`]).
pub static KL_CYCLE: Setting<f64> =
    Setting::number("kl-cycle", "Epochs after which --kl-warmup begins again, such as twice as many [default: never]")
        .range("above 0 and at most 1e6", |v| *v > 0.0 && *v <= 1e6)
        .value_name("EPOCHS");

/// The settings of a VAE.
pub static SETTINGS: Group = Group {
    heading: "VAE",
    settings: &[
        &ENCODER_HIDDEN,
        &DECODER_HIDDEN,
        &LIKELIHOOD,
        &BINARIZE,
        &SIGMA,
        &BETA,
        &KL_WARMUP,
        &KL_CYCLE,
        &Z_SAMPLES,
        &IWAE,
        &FREE_BITS,
        &CAPACITY,
        &TC,
        &MMD,
    ],
};

impl VaeSpec {
    /// The negative ELBO with Bernoulli pixels.
    pub fn new(shape: Shape, latent: i64, [encoder, decoder]: [NetSpec; 2]) -> Self {
        let (likelihood, bound) = (Likelihood::Bernoulli(Binarize::None), Bound::Elbo);
        let warm_up = WarmUp::default();
        VaeSpec { shape, latent, encoder, decoder, likelihood, bound, samples: 1, beta: 1.0, warm_up }
    }

    /// C of [`Bound::Capacity`] at the end; 0 for another bound.
    pub(super) fn capacity(&self) -> f64 {
        if let Bound::Capacity { most } = self.bound { most } else { 0.0 }
    }

    /// The VAE that the settings describe, for images of this shape and a run of this length.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] for contradictory settings.
    pub fn from_settings(s: &Settings, shape: Shape, length: Length) -> Result<Self> {
        let likelihood = Likelihood::from_settings(s)?;
        let bound = Bound::from_settings(s, length.per_epoch.saturating_mul(length.batch_size))?;
        if s.given(&MICRO_BATCH).is_some() && (likelihood.is_of_batch() || bound.is_of_batch()) {
            let what = if likelihood.is_of_batch() { "--sigma optimal" } else { "this form of the KL term" };
            usage!(
                "--micro-batch averages losses of single images, and {what} is computed from a whole batch: leave it out"
            );
        }
        let (warm_up, cycle) = (s.get(&KL_WARMUP)?, s.given(&KL_CYCLE));
        if let Some(cycle) = cycle
            && (warm_up == 0.0 || cycle < warm_up)
        {
            usage!(
                "--kl-cycle {cycle} begins the warm-up again, which takes --kl-warmup {warm_up} epochs: set --kl-warmup to fewer epochs than \
                 the cycle, but above 0"
            );
        }
        let steps = |epochs: f64| (epochs * length.per_epoch as f64).round() as u64;
        Ok(VaeSpec {
            likelihood,
            bound,
            samples: s.get(&Z_SAMPLES)? as i64,
            beta: s.get(&BETA)?,
            warm_up: WarmUp { steps: steps(warm_up), cycle: cycle.map_or(0, |epochs| steps(epochs).max(1)) },
            ..VaeSpec::new(
                shape,
                s.get(&LATENT)? as i64,
                [NetSpec::from_settings(s, &ENCODER_HIDDEN)?, NetSpec::from_settings(s, &DECODER_HIDDEN)?],
            )
        })
    }
}
