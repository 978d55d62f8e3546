//! A batch gathered from images that stay bytes.

use std::ffi::c_char;

use anyhow::Result;
use tch::Tensor;

use super::{Handle, handle, made};

unsafe extern "C" {
    fn gv_gather_unit(out: *mut Handle, images: Handle, index: Handle) -> *mut c_char;
}

/// Rows `index` [B] (int64) of `images` [N,C,H,W] (bytes) as x [B,C,H,W] = byte / 255, in one pass; on the CPU.
///
/// # Errors
/// When an index is not in 0..N, or the tensors are of other kinds or elsewhere.
pub fn gather_unit(images: &Tensor, index: &Tensor) -> Result<Tensor> {
    // SAFETY: the tensors live until the call returns; the indices are checked against N before they are used.
    made("gathering a batch", |out| unsafe { gv_gather_unit(out, handle(images), handle(index)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn it_is_index_select_then_a_division() {
        let bytes: Vec<u8> = (0..=255).cycle().take(7 * 3 * 200).collect();
        let images = Tensor::from_slice(&bytes).view([7, 3, 10, 20]);
        for index in [vec![3i64, 0, 6, 6], vec![], (0..400).map(|i| i % 7).collect()] {
            let index = Tensor::from_slice(&index);
            let want = images.index_select(0, &index).to_kind(Kind::Float) / 255.0;
            assert_eq!(gather_unit(&images, &index).unwrap(), want);
        }
        for bad in [vec![7i64], vec![-1]] {
            let e = gather_unit(&images, &Tensor::from_slice(&bad)).unwrap_err().to_string();
            assert!(e.contains(&format!("image {} of 7", bad[0])), "{e}");
        }
        assert!(gather_unit(&images, &Tensor::from_slice(&[1i32])).is_err());
        assert!(gather_unit(&images.to_kind(Kind::Float), &Tensor::from_slice(&[1i64])).is_err());
    }
}
