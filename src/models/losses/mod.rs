//! Loss functions, one file per family.

pub mod adversarial;
pub mod bound;
pub mod likelihood;
pub mod penalty;
