//! Files of pictures and numbers: loss curves, grids, animations, arrays.

pub mod animation;
pub mod curves;
pub mod grid;
pub mod image_writer;
pub mod npy;
pub mod training_animation;
