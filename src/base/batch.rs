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

    /// Images mirrored left to right where `uniform` [B], numbers in [0,1), is below a half.
    ///
    /// # Errors
    /// libtorch's.
    pub fn mirrored(self, uniform: &Tensor) -> Result<Self> {
        let chosen = uniform.f_lt(0.5)?.f_view([-1, 1, 1, 1])?;
        Ok(Batch { x: self.x.f_flip([3])?.f_where_self(&chosen, &self.x)?, labels: self.labels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_mirrored_left_to_right_where_the_number_is_small() {
        let x = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]).view([2, 1, 2, 2]);
        let mirrored = Batch { x, labels: None }.mirrored(&Tensor::from_slice(&[0.49f32, 0.5])).unwrap();
        assert_eq!(Vec::<f32>::try_from(mirrored.x.flatten(0, -1)).unwrap(), [2.0, 1.0, 4.0, 3.0, 5.0, 6.0, 7.0, 8.0]);
    }
}
