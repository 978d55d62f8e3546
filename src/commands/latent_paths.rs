//! Rows of images along paths through the latent space, as a grid, an animation, an array or files.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use tch::Tensor;

use super::arguments::{TrainedModel, check_range};
use crate::pictures::animation::{is_gif, write_gif};
use crate::pictures::grid;
use crate::pictures::image_writer::{ImageWriter, OutputFormat};
use crate::run::trained::{BATCH, Trained};

/// Default images of a path in a still picture, and in an animation.
const STEPS: (i64, i64) = (10, 30);
/// Hundredths of a second that a frame is shown, and the first and the last frame of the paths.
const DELAY: (u16, u16) = (8, 50);

#[derive(Debug, Args)]
pub struct PathOutput {
    /// Images per row, including both ends [default: 10; 30 for an animation]
    #[arg(long, value_name = "N")]
    steps: Option<i64>,
    /// A .png (one grid), a .gif (animation, forth and back), a .npy (array, row by row), or a folder (one .png per image)
    /// [default: in the run's samples/]
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
}

impl PathOutput {
    /// The file, its format, and the images of a path, for `rows` paths; `name` is the default file in the run's samples.
    pub fn resolve(&self, of: &TrainedModel, name: &str, rows: i64) -> Result<(PathBuf, OutputFormat, i64)> {
        let out = self.out.clone().unwrap_or_else(|| of.default_place("samples", name));
        let steps = self.steps.unwrap_or(if is_gif(&out) { STEPS.1 } else { STEPS.0 });
        check_range("steps", steps, 2..=1000)?;
        let format = OutputFormat::of(&out, (rows * steps) as usize, true)?;
        Ok((out, format, steps))
    }
}

/// Rows of latents z [N,Z] on the CPU.
pub fn vectors(z: &Tensor) -> Result<Vec<Vec<f32>>> {
    // sync: paths are computed on the CPU, in double precision.
    Ok(Vec::<Vec<f32>>::try_from(z)?)
}

/// Rows of `steps` images each.
pub struct LatentPaths<'a> {
    pub trained: &'a Trained,
    /// Number of paths.
    pub rows: usize,
    /// Images of a path.
    pub steps: usize,
    /// The latent of a row and a step.
    pub latent: &'a dyn Fn(usize, usize) -> Vec<f32>,
    /// Of a conditional model, the weights of the classes at a row and a step.
    pub classes: Option<&'a dyn Fn(usize, usize) -> Vec<f32>>,
}

/// The weights of `count` classes that are `class` alone.
pub fn one_class(count: i64, class: i64) -> Vec<f32> {
    (0..count).map(|i| f32::from(u8::from(i == class))).collect()
}

impl LatentPaths<'_> {
    /// Draws them into `out`.
    pub fn draw(&self, out: &Path, format: OutputFormat) -> Result<()> {
        if format == OutputFormat::Gif {
            // Few enough, as `PathOutput::resolve` checks; each is decoded once for both directions.
            let mut images = Vec::new();
            self.each(|batch| {
                images.push(grid::bytes(batch)?);
                Ok(())
            })?;
            return self.animate(&Tensor::f_cat(&images, 0)?, out);
        }
        let mut sink = ImageWriter::open(out, self.rows * self.steps, self.trained.shape(), Some(self.steps))?;
        self.each(|batch| sink.push(batch))?;
        sink.finish()
    }

    /// Calls `take` with all images, row by row, in batches [B,C,H,W].
    fn each(&self, mut take: impl FnMut(&Tensor) -> Result<()>) -> Result<()> {
        let (count, batch) = (self.rows * self.steps, BATCH as usize);
        for from in (0..count).step_by(batch) {
            let places = from..count.min(from + batch);
            let rows = |of: &dyn Fn(usize, usize) -> Vec<f32>| -> Result<Tensor> {
                let all: Vec<f32> = places.clone().flat_map(|i| of(i / self.steps, i % self.steps)).collect();
                Ok(Tensor::f_from_slice(&all)?.f_view([places.len() as i64, -1])?)
            };
            let classes = self.classes.map(rows).transpose()?;
            take(&self.trained.decode(&rows(self.latent)?, classes.as_ref())?)?;
        }
        Ok(())
    }

    /// Writes an animation of the images [R·S,C,H,W]: a frame for each step, with all rows side by side.
    fn animate(&self, images: &Tensor, out: &Path) -> Result<()> {
        let (rows, steps) = (self.rows as i64, self.steps as i64);
        let size = images.size();
        let square = grid::columns_for(self.rows, size[2] as usize, size[3] as usize);
        // The next number of columns that fills the last row, if there is one below twice as many.
        let columns = (square..2 * square).find(|c| self.rows.is_multiple_of(*c)).unwrap_or(square);
        let frame = |step: usize| {
            let index: Vec<i64> = (0..rows).map(|row| row * steps + step as i64).collect();
            let picture = grid::draw(&images.f_index_select(0, &Tensor::f_from_slice(&index)?)?, columns)?;
            let end = step == 0 || step + 1 == self.steps;
            Ok((picture, if end { DELAY.1 } else { DELAY.0 }))
        };
        write_gif(out, there_and_back(self.steps).into_iter().map(frame))
    }
}

/// Steps to the other end and back, so that a repeated animation never jumps: 0, 1, 2, 1 for three.
fn there_and_back(steps: usize) -> Vec<usize> {
    (0..steps).chain((1..steps.saturating_sub(1)).rev()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_animation_goes_there_and_back_without_showing_an_end_twice() {
        assert_eq!(there_and_back(4), [0, 1, 2, 3, 2, 1]);
        assert_eq!(there_and_back(2), [0, 1]);
    }
}
