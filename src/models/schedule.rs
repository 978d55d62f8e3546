//! Numbers that change between steps, computed on the host before each step.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use crate::native::Factor;

/// A number on the host and its copy on the device; a captured step reads the copy.
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

    /// Sets the value for the next steps.
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

    /// The value on the host.
    pub fn host(&self) -> f64 {
        self.host
    }

    /// The value as a step takes it: the device copy if the step may be captured.
    pub fn factor(&self, on_device: bool) -> Factor<'_> {
        if on_device { Factor::Device(&self.device) } else { Factor::Host(self.host) }
    }

    /// The device copy: always the same float32 scalar tensor.
    pub fn device(&self) -> &Tensor {
        &self.device
    }
}

/// Linear warm-up from 0 to `weight` over `steps` updates (the first update has 1/`steps` of it): Bowman et al. 2016, arXiv 1511.06349,
/// section 3.1.
pub fn warm_up(weight: f64, steps: u64, step: u64) -> f64 {
    if steps == 0 { weight } else { weight * ((step + 1) as f64 / steps as f64).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_up_is_linear() {
        let weights: Vec<f64> = (0..6).map(|step| warm_up(2.0, 4, step)).collect();
        assert_eq!(weights, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]);
        assert_eq!(warm_up(2.0, 0, 0), 2.0);
    }

    #[test]
    fn the_device_copy_follows_the_host_at_the_same_address() {
        let mut beta = Scheduled::new(0.5, Device::Cpu).unwrap();
        let place = beta.device().data_ptr();
        beta.set(0.75).unwrap();
        assert_eq!((beta.host(), beta.device().double_value(&[])), (0.75, 0.75));
        assert_eq!(beta.device().data_ptr(), place, "a captured step reads from there");
    }
}
