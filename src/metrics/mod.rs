//! Scores of trained models, each in its file: of samples by features, of reconstructions, of likelihood, of latents.

pub mod disentanglement;
pub mod estimate;
pub mod extractor;
pub mod feature_net;
mod features;
mod forest;
pub mod frechet;
pub mod kernel_distance;
pub mod likelihood;
pub mod neighbours;
pub mod reconstruction;
pub mod sample_scores;
