//! The picture of `--augment-preview`: training images as the discriminator of a GAN sees them.

use std::path::Path;

use anyhow::Result;
use tch::{Device, Tensor};

use super::evaluation::{COLUMNS, SAMPLES};
use crate::base::names::printable;
use crate::base::seed::{Stream, seed_for};
use crate::base::usage::usage;
use crate::config::Config;
use crate::data;
use crate::data::dataset::Dataset;
use crate::models::augment::{ApplyProbability, AugmentSpec, Augmenter, MOST};
use crate::models::noise::Noise;
use crate::pictures::grid;

/// Draws a grid into `file`: each row begins with a training image, and seven augmented versions of it follow. An adaptive
/// probability is drawn at its largest. Gives a line that says so.
///
/// # Errors
/// [`crate::base::usage::Usage`] without `--augment` and for images that it does not take; bad data; a file that cannot be written.
pub fn augment_preview(config: &Config, file: &Path) -> Result<String> {
    let Some(spec) = AugmentSpec::from_settings(&config.settings)? else {
        usage!(
            "--augment-preview shows what --augment does, and nothing is augmented: add a list such as --augment shift,colour,cutout"
        );
    };
    let (p, note) = match spec.p {
        ApplyProbability::Fixed(p) => (p, ""),
        ApplyProbability::Adaptive => (MOST, ", the most that adaptive can reach"),
    };
    let images = Dataset::new(&data::open(&config.settings)?.train, Device::Cpu)?;
    let augmenter = Augmenter::new(AugmentSpec { p: ApplyProbability::Fixed(p), ..spec }, images.shape(), Device::Cpu)?;
    let rows = images.showable(SAMPLES).div_ceil(COLUMNS);
    let x = images.spread(rows)?.x; // [R,C,H,W]
    let each = COLUMNS as i64 - 1;
    let noise = Noise::new(seed_for(config.seed, 0, Stream::Noise, 0), Device::Cpu);
    let seen = augmenter.augmented(&x.f_repeat_interleave_self_int(each, 0, None)?, &noise, "augment-real")?;
    let seen = seen.f_unflatten(0, [-1, each])?; // [R,7,C,H,W]
    let all = Tensor::f_cat(&[x.f_unsqueeze(1)?, seen], 1)?.f_flatten(0, 1)?;
    grid::draw(&all, COLUMNS)?.save(file)?;
    Ok(format!(
        "preview   {}: training images, each followed by seven augmented versions (probability {p}{note})\n",
        printable(file)
    ))
}
