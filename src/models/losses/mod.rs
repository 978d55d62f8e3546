//! What models minimise: one file per family. An objective knows everything about itself.

pub mod adversarial;
pub mod likelihood;
