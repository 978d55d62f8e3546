//! What every other part stands on: seeds, hashes, files, signals, progress and usage errors.

pub mod atomic_file;
pub mod hash;
pub mod progress;
pub mod scalar;
pub mod seed;
pub mod shape;
pub mod signals;
pub mod timer;
pub mod usage;
pub mod weights_file;
