//! Scores of trained models, each in its file.

pub mod estimate;
mod features;
pub mod frechet;
pub mod kernel_distance;
pub mod likelihood;
pub mod neighbours;
pub mod reconstruction;
