//! The model that a configuration describes.

use anyhow::Result;
use tch::Device;

use crate::base::seed::{Stream, seed_for};
use crate::config::{Config, ModelSpec};
use crate::models::Model;
use crate::models::gan::Gan;
use crate::models::vae::Vae;
use crate::native;
use crate::nets::Shape;

/// A model with fresh weights from the seed.
///
/// # Errors
/// When the architecture cannot take images of this shape.
pub fn build(config: &Config, shape: Shape, steps_per_epoch: u64, device: Device) -> Result<Box<dyn Model>> {
    native::seeded(seed_for(config.seed, 0, Stream::Init, 0), || {
        Ok(match config.model_spec(shape, steps_per_epoch) {
            ModelSpec::Vae(spec) => Box::new(Vae::new(spec, config.hyper, device)?) as Box<dyn Model>,
            ModelSpec::Gan(spec) => Box::new(Gan::new(spec, config.hyper, device)?),
        })
    })
}

/// Updates in one pass over the training images: the last, partial batch counts.
pub fn steps_per_epoch(images: usize, batch_size: usize) -> u64 {
    images.div_ceil(batch_size) as u64
}
