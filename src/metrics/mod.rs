//! Scores of trained models, as functions of tensors: no files, no settings, no models.

mod features;
pub mod frechet;
pub mod kernel_distance;
pub mod neighbours;
