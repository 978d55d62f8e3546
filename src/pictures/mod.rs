//! Files of pictures and numbers: loss curves, latents, grids, animations, arrays.

pub mod animation;
mod chart;
pub mod curves;
pub mod grid;
pub mod image_writer;
pub mod latent_scatter;
pub mod npy;
pub mod score_bars;
mod surface;
mod ticks;
