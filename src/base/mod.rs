//! The bottom layer, which imports nothing of the crate: settings, seeds, hashes, files, signals, progress, usage errors.

pub mod atomic_file;
pub mod batch;
pub mod classes;
pub mod hash;
pub mod names;
pub mod pickle;
pub mod process;
pub mod progress;
pub mod scalar;
pub mod seed;
pub mod setting;
pub mod shape;
pub mod signals;
pub mod small_file;
pub mod timer;
pub mod torch_file;
pub mod usage;
pub mod weights_file;
