//! What a step is given of the data.

use anyhow::Result;
use tch::Tensor;

/// Images and their classes.
#[derive(Debug)]
pub struct Batch {
    /// [B,C,H,W] in [0,1].
    pub x: Tensor,
    /// Class numbers [B], int64; none where the data has no classes.
    pub labels: Option<Tensor>,
}

impl Batch {
    /// Images number `from` to `from + count` of these.
    ///
    /// # Errors
    /// libtorch's, when there are not as many.
    pub fn narrow(&self, from: i64, count: i64) -> Result<Self> {
        let part = |t: &Tensor| t.f_narrow(0, from, count);
        Ok(Batch { x: part(&self.x)?, labels: self.labels.as_ref().map(part).transpose()? })
    }
}
