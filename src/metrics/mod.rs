//! Scores of trained models, each in its file.

pub mod disentanglement;
pub mod estimate;
mod features;
mod forest;
pub mod frechet;
pub mod kernel_distance;
pub mod likelihood;
pub mod neighbours;
pub mod reconstruction;
