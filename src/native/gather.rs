//! A batch gathered from images that stay bytes, in memory or in a memory-mapped file.

use anyhow::Result;
use tch::Tensor;

use super::shim;
use crate::base::shape::Shape;

shim! {
    fn gather_bytes(bytes: &[u8], index: &Tensor, c: i64, h: i64, w: i64) -> Result<Tensor> = gv_gather, "gathering a batch";
}

/// Images `index` [B] (int64, on the CPU) of `pixels` [N,C,H,W] as x [B,C,H,W] = byte / 255, on the CPU.
///
/// # Errors
/// When an index is not in 0..N; libtorch's, when memory ends.
pub fn gather(pixels: &[u8], shape: Shape, index: &Tensor) -> Result<Tensor> {
    gather_bytes(pixels, index, shape.channels, shape.height, shape.width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn it_is_index_select_then_a_division() {
        let bytes: Vec<u8> = (0..=255).cycle().take(7 * 3 * 200).collect();
        let images = Tensor::from_slice(&bytes).view([7, 3, 10, 20]);
        let shape = Shape { channels: 3, height: 10, width: 20 };
        for index in [vec![3i64, 0, 6, 6], vec![], (0..400).map(|i| i % 7).collect()] {
            let index = Tensor::from_slice(&index);
            let want = images.index_select(0, &index).to_kind(Kind::Float) / 255.0;
            assert_eq!(gather(&bytes, shape, &index).unwrap(), want);
        }
        for bad in [vec![7i64], vec![-1]] {
            let e = gather(&bytes, shape, &Tensor::from_slice(&bad)).unwrap_err().to_string();
            assert!(e.contains(&format!("image {} of 7", bad[0])), "{e}");
        }
        assert!(gather(&bytes, shape, &Tensor::from_slice(&[1i32])).is_err());
    }
}
