//! Feature arrays [N,D] as the scores take them: checked once, then read row by row.

use anyhow::{Result, ensure};
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

/// A contiguous float32 array [N,D] on the CPU whose rows are read as slices.
#[derive(Debug)]
pub(super) struct Features {
    tensor: Tensor,
    pub n: usize,
    pub d: usize,
}

impl Features {
    /// `what` names the array in errors ("real").
    ///
    /// # Errors
    /// When the array is not float32 [N,D] with D of at least 1 on the CPU, has fewer than `least` rows, or a value that is not
    /// finite.
    pub fn new(what: &str, tensor: &Tensor, least: usize) -> Result<Self> {
        let features = Features::view(what, tensor)?;
        let (n, d) = (features.n, features.d);
        ensure!(n >= least, "the {what} features are {n} rows, wanted at least {least}: give more images");
        let bad = features.values().par_iter().position_any(|v| !v.is_finite());
        if let Some(at) = bad {
            let value = features.values()[at];
            anyhow::bail!(
                "the {what} features hold {value} in row {}, column {}, wanted finite numbers: look at that image and at the \
                 feature extractor",
                at / d,
                at % d
            );
        }
        Ok(features)
    }

    /// Two arrays that are compared, each with at least `least` rows.
    ///
    /// # Errors
    /// As [`Features::new`], and when their numbers of columns differ.
    pub fn pair(names: [&str; 2], tensors: [&Tensor; 2], least: usize) -> Result<[Self; 2]> {
        let a = Features::new(names[0], tensors[0], least)?;
        let b = Features::new(names[1], tensors[1], least)?;
        ensure!(
            a.d == b.d,
            "the {} features have {} columns and the {} ones {}, wanted the same number: compute both with one feature extractor",
            names[0],
            a.d,
            names[1],
            b.d
        );
        Ok([a, b])
    }

    /// An array whose values nothing is asked of.
    pub fn view(what: &str, tensor: &Tensor) -> Result<Self> {
        let shape = tensor.size();
        ensure!(
            shape.len() == 2 && shape[1] > 0 && tensor.kind() == Kind::Float && tensor.device() == Device::Cpu,
            "the {what} features are {:?} {shape:?} on {:?}, wanted 32-bit floats [images, features] on the CPU",
            tensor.kind(),
            tensor.device()
        );
        Ok(Features {
            tensor: tensor.detach().f_contiguous()?,
            n: usize::try_from(shape[0])?,
            d: usize::try_from(shape[1])?,
        })
    }

    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// All values, row after row.
    pub fn values(&self) -> &[f32] {
        match self.n * self.d {
            0 => &[],
            // SAFETY: `view` made the tensor a contiguous one of N·D 32-bit floats on the CPU, whose memory lives as long as `self`
            // holds the tensor; none of its users writes to it meanwhile.
            len => unsafe { std::slice::from_raw_parts(self.tensor.data_ptr() as *const f32, len) },
        }
    }
}
