//! Named random tensors of a step.

use std::cell::RefCell;

use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

use crate::base::seed::named;
use crate::native::{self, Distribution};

/// The random numbers of one step. Each draw has a name; its numbers depend only on the step's seed and this name, not on the order of
/// draws or on other draws.
#[derive(Debug)]
pub struct Noise {
    seed: i64,
    device: Device,
    drawn: RefCell<Vec<&'static str>>,
    /// For steps that may be captured: persistent tensors that the captured step reads, refilled before each step.
    buffers: Option<RefCell<Vec<Buffer>>>,
}

#[derive(Debug)]
struct Buffer {
    name: &'static str,
    distribution: Distribution,
    values: Tensor,
}

impl Noise {
    /// The numbers of a step with this seed, drawn on demand.
    pub fn new(seed: i64, device: Device) -> Self {
        Noise { seed, device, drawn: RefCell::default(), buffers: None }
    }

    /// Numbers in persistent buffers, for steps that may be captured. Call [`Noise::begin`] before each step.
    pub fn in_buffers(device: Device) -> Self {
        Noise { buffers: Some(RefCell::default()), ..Noise::new(0, device) }
    }

    /// Begins a new step with this seed.
    ///
    /// # Errors
    /// libtorch's.
    pub fn begin(&mut self, seed: i64) -> Result<()> {
        self.seed = seed;
        self.again();
        for buffer in self.buffers.iter_mut().flat_map(RefCell::get_mut) {
            native::fill(&buffer.values, buffer.distribution, named(seed, buffer.name))?;
        }
        Ok(())
    }

    /// Repeats the same step, as for its capture after a run.
    pub fn again(&self) {
        self.drawn.borrow_mut().clear();
    }

    /// Standard normal float32 numbers; on the CPU a function of seed, name and shape, the same on every machine.
    ///
    /// # Errors
    /// libtorch's, when out of memory; when the step has used this name before.
    pub fn normal(&self, name: &'static str, shape: &[i64]) -> Result<Tensor> {
        self.draw(name, Distribution::Normal, shape)
    }

    /// Uniform float32 numbers in [0, 1).
    ///
    /// # Errors
    /// As [`Noise::normal`].
    pub fn uniform(&self, name: &'static str, shape: &[i64]) -> Result<Tensor> {
        self.draw(name, Distribution::Uniform, shape)
    }

    fn draw(&self, name: &'static str, distribution: Distribution, shape: &[i64]) -> Result<Tensor> {
        let mut drawn = self.drawn.borrow_mut();
        ensure!(!drawn.contains(&name), "the noise {name} was drawn twice in one step: each draw needs its own name");
        drawn.push(name);
        let seed = named(self.seed, name);
        let Some(buffers) = &self.buffers else {
            // The same numbers on every device.
            return Ok(native::random(seed, shape, distribution)?.f_to_device(self.device)?);
        };
        let mut buffers = buffers.borrow_mut();
        let same = |b: &&Buffer| (b.name, b.distribution) == (name, distribution) && b.values.size() == shape;
        if let Some(buffer) = buffers.iter().find(same) {
            return Ok(buffer.values.shallow_clone());
        }
        let values = Tensor::f_zeros(shape, (Kind::Float, self.device))?;
        native::fill(&values, distribution, seed)?;
        buffers.push(Buffer { name, distribution, values: values.shallow_clone() });
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(seed: i64) -> [Noise; 2] {
        let mut buffered = Noise::in_buffers(Device::Cpu);
        buffered.begin(seed).unwrap();
        [Noise::new(seed, Device::Cpu), buffered]
    }

    #[test]
    fn draws_depend_on_their_names_not_on_their_order() {
        let [host, buffered] = both(7);
        let z = host.normal("z", &[3, 4]).unwrap();
        let eps = host.normal("eps", &[3, 4]).unwrap();
        let mix = host.uniform("mix", &[3, 4]).unwrap();
        assert_ne!(z, eps);
        assert_ne!(eps, mix);
        assert!(mix.min().double_value(&[]) >= 0.0 && mix.max().double_value(&[]) < 1.0);
        // In the reverse order, in persistent buffers: the same numbers.
        assert_eq!(buffered.uniform("mix", &[3, 4]).unwrap(), mix);
        assert_eq!(buffered.normal("eps", &[3, 4]).unwrap(), eps);
        assert_eq!(buffered.normal("z", &[3, 4]).unwrap(), z);
    }

    #[test]
    fn a_second_draw_of_a_name_is_an_error() {
        for noise in both(1) {
            let _first = noise.normal("z", &[2]).unwrap();
            let e = noise.normal("z", &[2]).unwrap_err().to_string();
            assert!(e.contains("z was drawn twice"), "{e}");
        }
    }

    #[test]
    fn a_buffer_keeps_its_address_and_is_refilled_each_step() {
        let mut noise = Noise::in_buffers(Device::Cpu);
        let mut place = None;
        for seed in [3, 4, 3] {
            noise.begin(seed).unwrap();
            let z = noise.normal("z", &[5]).unwrap();
            assert_eq!(z, Noise::new(seed, Device::Cpu).normal("z", &[5]).unwrap());
            assert_eq!(*place.get_or_insert(z.data_ptr()), z.data_ptr());
        }
    }
}
