//! Process-wide settings: precision, determinism, autocast; the instruction sets of the CPU.

use anyhow::Result;
use tch::Device;

use super::{same_in_shim, shim};

/// The autocast state before a region, laid out as in C++.
#[repr(C)]
struct Autocast {
    cuda: bool,
    enabled: bool,
    dtype: i8,
}

/// CUDA's numerics, laid out as in C++.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Math {
    /// Whether float32 matmuls may use TF32.
    pub tf32_matmuls: bool,
    /// Whether float32 convolutions may use TF32.
    pub tf32_convolutions: bool,
    /// Whether one seed gives the same bits on every start.
    pub deterministic: bool,
    /// Whether cuDNN benchmarks its algorithms.
    pub benchmark: bool,
}

same_in_shim!(Autocast, Math);

shim! {
    fn autocast_begin(cuda: bool) -> Result<Autocast> = gv_autocast_begin, "mixed precision";

    /// Sets CUDA's numerics: TF32 for both or neither; cuDNN benchmarks its algorithms unless `deterministic`.
    ///
    /// # Errors
    /// None are known.
    pub fn set_math(tf32: bool, deterministic: bool) -> Result<()> = gv_set_math, "precision";

    /// The current numerics.
    ///
    /// # Errors
    /// When libtorch's settings contradict each other.
    pub fn math() -> Result<Math> = gv_math, "precision";

    /// The instruction set of libtorch's CPU kernels: `AVX512`, `AVX2`, `DEFAULT`.
    ///
    /// # Errors
    /// None are known.
    pub fn cpu_capability() -> Result<String> = gv_cpu_capability, "instruction sets";

    fn encoded_cudnn_version() -> Result<i64> = gv_cudnn_version, "cuDNN's version";

    fn record_ops() -> Result<u64> = gv_record_ops, "recording operations";

    fn recorded_ops(handle: u64) -> Result<String> = gv_recorded_ops, "recording operations";
}

impl Drop for Autocast {
    fn drop(&mut self) {
        unsafe extern "C" {
            fn gv_autocast_end(before: *const Autocast);
        }
        // SAFETY: the region that began with this state ends here, once.
        unsafe { gv_autocast_end(self) }
    }
}

/// Runs `work` under libtorch's autocast on this kind of device: matmuls and convolutions in bfloat16, weights and sums in float32
/// (Micikevicius et al. 2018, arXiv 1710.03740). Weights may be updated between two such regions, not within one.
///
/// # Errors
/// Those of `work`.
pub fn autocast<T>(device: Device, work: impl FnOnce() -> Result<T>) -> Result<T> {
    // Ends the region on drop, also after an error.
    let _region = autocast_begin(device.is_cuda())?;
    work()
}

/// The version of cuDNN that libtorch was built with, such as (9, 19); libtorch's CUDA half must be loaded.
///
/// # Errors
/// When it is not.
pub fn cudnn_version() -> Result<(i64, i64)> {
    let version = encoded_cudnn_version()?;
    Ok((version / 10_000, version % 10_000 / 100))
}

/// Names of the libtorch operations that `work` calls on this thread, nested ones included, in order.
///
/// # Errors
/// Those of `work`.
pub fn operations_of(work: impl FnOnce() -> Result<()>) -> Result<Vec<String>> {
    let handle = record_ops()?;
    let done = work();
    let all = recorded_ops(handle)?.lines().map(str::to_owned).collect();
    done.map(|()| all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    #[test]
    fn matmuls_are_bfloat16_only_inside_autocast() {
        let w = Tensor::randn([4, 3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let x = Tensor::randn([2, 3], (Kind::Float, Device::Cpu));
        let product = || x.linear(&w, None::<&Tensor>);
        let inside = autocast(Device::Cpu, || Ok(product())).unwrap();
        assert_eq!(inside.kind(), Kind::BFloat16);
        assert!(autocast::<()>(Device::Cpu, || anyhow::bail!("no")).is_err());
        assert_eq!(product().kind(), Kind::Float, "after an error too");
        // An update between two regions is seen: no cached copy of the weights is left.
        let _ = tch::no_grad(|| w.shallow_clone().fill_(0.0));
        let after = autocast(Device::Cpu, || Ok(product())).unwrap();
        assert_eq!(after.abs().max().double_value(&[]), 0.0);
    }
}
