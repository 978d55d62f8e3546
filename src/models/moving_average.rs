//! Moving averages of weights.

use anyhow::Result;
use tch::{Device, Tensor};

use super::network::Network;
use super::schedule::Scheduled;
use crate::native;

/// Exponential moving average of all variables of a network, held in a copy of the network. It includes the running statistics of
/// batch normalisation, because those of the trained network do not match averaged weights.
#[derive(Debug)]
pub struct MovingAverage {
    /// The network that holds the averages.
    pub network: Network,
    decay: f64,
    /// Whether the average starts at random weights.
    warms_up: bool,
    weight: Scheduled,
    average: Vec<Tensor>,
    current: Vec<Tensor>,
}

impl MovingAverage {
    /// `copy` must have the variables of `network`; it starts with their values and is not trained.
    ///
    /// # Errors
    /// When the two networks differ.
    pub fn new(network: &Network, mut copy: Network, decay: f64, device: Device) -> Result<Self> {
        copy.vars.copy(&network.vars)?;
        copy.vars.freeze();
        copy.average = true;
        let (average, current) =
            copy.variables().into_iter().zip(network.variables()).map(|((_, a), (_, c))| (a, c)).unzip();
        Ok(MovingAverage {
            network: copy,
            decay,
            warms_up: true,
            weight: Scheduled::new(1.0 - decay, device)?,
            average,
            current,
        })
    }

    /// The average starts at trained weights, which it keeps: its decay does not rise from 0.
    pub fn start_trained(&mut self) {
        self.warms_up = false;
    }

    /// Sets the weight of the update after `step` updates. The decay is min((1 + t)/(10 + t), decay), so that early averages do not
    /// consist of random weights; without a warm-up, it is `decay`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn schedule(&mut self, step: u64) -> Result<()> {
        let t = step as f64;
        let rising = if self.warms_up { (1.0 + t) / (10.0 + t) } else { 1.0 };
        self.weight.set(1.0 - rising.min(self.decay))
    }

    /// Moves the averages towards the network's variables.
    ///
    /// # Errors
    /// libtorch's.
    pub fn follow(&self, on_device: bool) -> Result<()> {
        native::foreach_lerp(&self.average, &self.current, self.weight.factor(on_device))
    }
}
