//! Process-wide settings: precision, determinism, autocast; the instruction sets of the CPU.

use std::ffi::{CStr, c_char};

use anyhow::Result;
use tch::Device;

use super::check;

/// The autocast state before a region, laid out as in C++.
#[repr(C)]
struct Autocast {
    cuda: bool,
    enabled: bool,
    dtype: i8,
}

unsafe extern "C" {
    fn gv_autocast_begin(cuda: bool, before: *mut Autocast) -> *mut c_char;
    fn gv_autocast_end(before: *const Autocast);
    fn gv_set_math(tf32: bool, deterministic: bool) -> *mut c_char;
    fn gv_math(out: *mut bool) -> *mut c_char;
    fn gv_cpu_capability(out: *mut c_char, size: usize) -> *mut c_char;
    fn gv_cudnn_version(out: *mut i64) -> *mut c_char;
    fn gv_record_ops(handle: *mut u64) -> *mut c_char;
    fn gv_recorded_ops(handle: u64, out: *mut *const c_char) -> *mut c_char;
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: the region that filled this in ends here, once.
        unsafe { gv_autocast_end(self) }
    }
}

/// Runs `work` under libtorch's autocast on this kind of device: matmuls and convolutions in bfloat16, weights and sums in float32
/// (Micikevicius et al. 2018, arXiv 1710.03740). Weights may be updated between two such regions, not within one.
///
/// # Errors
/// Those of `work`.
pub fn autocast<T>(device: Device, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut before = std::mem::ManuallyDrop::new(Autocast { cuda: false, enabled: false, dtype: 0 });
    // SAFETY: the place outlives the call, which fills it in unless it fails.
    check("mixed precision", unsafe { gv_autocast_begin(device.is_cuda(), &mut *before) })?;
    // Ends the region on drop, also after an error.
    let _region = std::mem::ManuallyDrop::into_inner(before);
    work()
}

/// CUDA's numerics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// Sets them: TF32 for both or neither; cuDNN benchmarks its algorithms unless `deterministic`.
///
/// # Errors
/// None are known.
pub fn set_math(tf32: bool, deterministic: bool) -> Result<()> {
    // SAFETY: the call takes two flags.
    check("precision", unsafe { gv_set_math(tf32, deterministic) })
}

/// The current numerics.
///
/// # Errors
/// When libtorch's settings contradict each other.
pub fn math() -> Result<Math> {
    let mut flags = [false; 4];
    // SAFETY: there is room for the four flags.
    check("precision", unsafe { gv_math(flags.as_mut_ptr()) })?;
    let [tf32_matmuls, tf32_convolutions, deterministic, benchmark] = flags;
    Ok(Math { tf32_matmuls, tf32_convolutions, deterministic, benchmark })
}

/// The instruction set of libtorch's CPU kernels: `AVX512`, `AVX2`, `DEFAULT`.
///
/// # Errors
/// None are known.
pub fn cpu_capability() -> Result<String> {
    let mut name = [0; 64];
    // SAFETY: the size is that of the place, which the call ends with a NUL.
    check("instruction sets", unsafe { gv_cpu_capability(name.as_mut_ptr(), name.len()) })?;
    // SAFETY: as above.
    Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
}

/// The version of cuDNN that libtorch was built with, such as (9, 19); libtorch's CUDA half must be loaded.
///
/// # Errors
/// When it is not.
pub fn cudnn_version() -> Result<(i64, i64)> {
    let mut version = 0;
    // SAFETY: `version` outlives the call.
    check("cuDNN's version", unsafe { gv_cudnn_version(&mut version) })?;
    Ok((version / 10_000, version % 10_000 / 100))
}

/// Names of the libtorch operations that `work` calls on this thread, nested ones included, in order.
///
/// # Errors
/// Those of `work`.
pub fn operations_of(work: impl FnOnce() -> Result<()>) -> Result<Vec<String>> {
    let (mut handle, mut text) = (0, std::ptr::null());
    // SAFETY: the place outlives the call.
    check("recording operations", unsafe { gv_record_ops(&mut handle) })?;
    let done = work();
    // SAFETY: the handle is that of the recording under way; the text is this thread's and stays until its next recording.
    let all = unsafe {
        check("recording operations", gv_recorded_ops(handle, &mut text))?;
        CStr::from_ptr(text).to_string_lossy().lines().map(str::to_owned).collect()
    };
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
