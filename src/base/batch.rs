//! One batch: images and the labels that belong to them.

use anyhow::Result;
use tch::Tensor;

/// Images, with the class number of each where the set has labels.
#[derive(Debug)]
pub struct Batch {
    /// Images [B,C,H,W] in [0,1].
    pub x: Tensor,
    /// Class numbers [B], int64; none for a set without labels.
    pub labels: Option<Tensor>,
}

impl Batch {
    /// Rows `from` to `from + count`, sharing this batch's memory.
    ///
    /// # Errors
    /// libtorch's, when there are not that many.
    pub fn narrow(&self, from: i64, count: i64) -> Result<Self> {
        let labels = self.labels.as_ref().map(|l| l.f_narrow(0, from, count)).transpose()?;
        Ok(Batch { x: self.x.f_narrow(0, from, count)?, labels })
    }
}
