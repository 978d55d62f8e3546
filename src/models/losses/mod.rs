//! Loss functions, one file per family.

pub mod adversarial;
pub mod likelihood;
pub mod penalty;
