//! Moving averages of weights.

use anyhow::Result;
use tch::{Device, Tensor};

use super::network::Network;
use super::schedule::Scheduled;
use crate::native;

/// The decay of a moving average: the share of the old average in the new one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    /// min((1 + t)/(10 + t), this) after t updates, so that early averages do not consist of random weights.
    Fixed(f64),
    /// 0.5^(`batch`/h), h = min(`images`, 0.05·images seen): a weight counts half when so many further images have been seen (Karras et
    /// al. 2020, arXiv 2006.06676, in its code).
    HalfLife {
        /// The half-life in images, once as many have been seen twenty times over.
        images: f64,
        /// Images of an update.
        batch: f64,
    },
}

/// Images of the half-life for each image seen.
const RAMP_UP: f64 = 0.05;

impl Decay {
    /// The decay of the update after `step` updates; of one that `starts_trained`, it does not rise from 0.
    fn at(self, step: u64, starts_trained: bool) -> f64 {
        let t = step as f64;
        match self {
            Decay::Fixed(decay) if starts_trained => decay,
            Decay::Fixed(decay) => decay.min((1.0 + t) / (10.0 + t)),
            Decay::HalfLife { images, batch } if starts_trained => 0.5f64.powf(batch / images),
            // At the start the half-life is 0 images, and the average is the weights.
            Decay::HalfLife { images, batch } => 0.5f64.powf(batch / images.min(RAMP_UP * t * batch)),
        }
    }
}

/// Exponential moving average of all variables of a network, held in a copy of the network. It includes the running statistics of
/// batch normalisation, because those of the trained network do not match averaged weights.
#[derive(Debug)]
pub struct MovingAverage {
    /// The network that holds the averages.
    pub network: Network,
    decay: Decay,
    /// Whether the average starts at trained weights.
    starts_trained: bool,
    weight: Scheduled,
    average: Vec<Tensor>,
    current: Vec<Tensor>,
}

impl MovingAverage {
    /// `copy` must have the variables of `network`; it starts with their values and is not trained.
    ///
    /// # Errors
    /// When the two networks differ.
    pub fn new(network: &Network, mut copy: Network, decay: Decay, device: Device) -> Result<Self> {
        copy.vars.copy(&network.vars)?;
        copy.vars.freeze();
        copy.average = true;
        let (average, current) =
            copy.variables().into_iter().zip(network.variables()).map(|((_, a), (_, c))| (a, c)).unzip();
        Ok(MovingAverage {
            network: copy,
            decay,
            starts_trained: false,
            weight: Scheduled::new(1.0 - decay.at(0, false), device)?,
            average,
            current,
        })
    }

    /// The average starts at trained weights, which it keeps: its decay does not rise from 0.
    pub fn start_trained(&mut self) {
        self.starts_trained = true;
    }

    /// Sets the weight of the update after `step` updates.
    ///
    /// # Errors
    /// libtorch's.
    pub fn schedule(&mut self, step: u64) -> Result<()> {
        self.weight.set(1.0 - self.decay.at(step, self.starts_trained))
    }

    /// Moves the averages towards the network's variables.
    ///
    /// # Errors
    /// libtorch's.
    pub fn follow(&self, on_device: bool) -> Result<()> {
        native::foreach_lerp(&self.average, &self.current, self.weight.factor(on_device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the lines of stylegan2-ada's training_loop.py, and what a half-life means.
    #[test]
    fn a_half_life_is_that_of_stylegan2() {
        let (batch, images) = (32.0, 10_000.0);
        let decay = Decay::HalfLife { images, batch };
        let mut cur_nimg = 0.0;
        for step in 0..10_000 {
            let ema_nimg = f64::min(images, cur_nimg * 0.05);
            let ema_beta = 0.5f64.powf(batch / f64::max(ema_nimg, 1e-8));
            assert!((decay.at(step, false) - ema_beta).abs() < 1e-15, "step {step}");
            cur_nimg += batch;
        }
        assert_eq!(decay.at(0, false), 0.0, "random weights leave nothing behind");
        // 312.5 updates of 32 images.
        let later: f64 = (20_000..20_625).map(|step| decay.at(step, false)).product();
        assert!((later - 0.25).abs() < 1e-12, "two half-lives: {later}");
        assert_eq!(decay.at(0, true), decay.at(1 << 40, false), "trained weights are kept from the start");
    }
}
