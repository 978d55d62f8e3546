//! A run on disk: its folder, its checkpoints, its model opened again.

pub mod checkpoint;
pub mod folder;
pub mod trained;
