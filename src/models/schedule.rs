//! Numbers that change from step to step. Each is computed once, on the host, before the step that uses it.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use crate::native::Factor;

/// A number as the host knows it, and its copy on the device, from which a captured step reads it.
#[derive(Debug)]
pub struct Scheduled {
    host: f64,
    device: Tensor,
}

impl Scheduled {
    /// Starts at `value`.
    ///
    /// # Errors
    /// libtorch's, when memory ends.
    pub fn new(value: f64, device: Device) -> Result<Self> {
        Ok(Scheduled { host: value, device: Tensor::f_full([] as [i64; 0], value, (Kind::Float, device))? })
    }

    /// The value of the steps to come.
    ///
    /// # Errors
    /// libtorch's.
    pub fn set(&mut self, value: f64) -> Result<()> {
        if value != self.host {
            self.host = value;
            let _ = self.device.f_fill_(value)?;
        }
        Ok(())
    }

    /// The value.
    pub fn host(&self) -> f64 {
        self.host
    }

    /// The value as a step takes it: the device's copy, where the step may be captured.
    pub fn factor(&self, on_device: bool) -> Factor<'_> {
        if on_device { Factor::Device(&self.device) } else { Factor::Host(self.host) }
    }

    /// A float32 scalar, always the same one.
    pub fn device(&self) -> &Tensor {
        &self.device
    }
}

/// A weight that rises linearly from 0 over `steps` updates (the first update has 1/`steps` of it) and stays: Bowman et al. 2016,
/// arXiv 1511.06349, section 3.1.
pub fn warm_up(weight: f64, steps: u64, step: u64) -> f64 {
    if steps == 0 { weight } else { weight * ((step + 1) as f64 / steps as f64).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_up_rises_in_equal_parts() {
        let weights: Vec<f64> = (0..6).map(|step| warm_up(2.0, 4, step)).collect();
        assert_eq!(weights, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]);
        assert_eq!(warm_up(2.0, 0, 0), 2.0);
    }

    #[test]
    fn the_device_has_the_hosts_number_in_the_same_place() {
        let mut beta = Scheduled::new(0.5, Device::Cpu).unwrap();
        let place = beta.device().data_ptr();
        beta.set(0.75).unwrap();
        assert_eq!((beta.host(), beta.device().double_value(&[])), (0.75, 0.75));
        assert_eq!(beta.device().data_ptr(), place, "a captured step reads from there");
    }
}
