//! A run on disk: its folder, its log of metrics, its checkpoints, its trained model.

pub mod checkpoint;
mod exported;
pub mod folder;
pub mod metrics_log;
pub mod trained;
