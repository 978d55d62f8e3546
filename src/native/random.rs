//! Random numbers: those of a seed alone, which leave libtorch's global generator as it was, and that generator itself.

use std::ffi::c_char;

use anyhow::Result;
use tch::{Device, Tensor};

use super::{Handle, check, cuda, handle, made};

unsafe extern "C" {
    fn gv_randn(out: *mut Handle, seed: u64, sizes: *const i64, dims: usize) -> *mut c_char;
    fn gv_rng_state(out: *mut Handle) -> *mut c_char;
    fn gv_set_rng_state(state: Handle) -> *mut c_char;
}

/// Standard normal float32 numbers of this shape on the CPU, a function of `seed` alone: those that libtorch's global
/// generator gives after `manual_seed(seed)`, which is not touched.
///
/// # Errors
/// libtorch's, when memory ends.
pub fn randn(seed: i64, shape: &[i64]) -> Result<Tensor> {
    // SAFETY: `shape` outlives the call.
    made("normal numbers", |out| unsafe { gv_randn(out, seed as u64, shape.as_ptr(), shape.len()) })
}

/// temporary
pub fn rand(seed: i64, shape: &[i64]) -> Result<Tensor> {
    seeded(seed, || Ok(Tensor::f_rand(shape, (tch::Kind::Float, Device::Cpu))?))
}
/// temporary
pub fn fill_normal(out: &Tensor, seed: i64) -> Result<()> {
    match out.device() {
        Device::Cpu => Ok(out.shallow_clone().f_copy_(&randn(seed, &out.size())?)?),
        device => {
            seed_default(device, seed)?;
            let _ = out.shallow_clone().f_normal_(0.0, 1.0)?;
            Ok(())
        }
    }
}
/// temporary
pub fn fill_uniform(out: &Tensor, seed: i64) -> Result<()> {
    match out.device() {
        Device::Cpu => Ok(out.shallow_clone().f_copy_(&rand(seed, &out.size())?)?),
        device => {
            seed_default(device, seed)?;
            let _ = out.shallow_clone().f_uniform_(0.0, 1.0)?;
            Ok(())
        }
    }
}

/// The default generator of a device starts anew from `seed`: a captured step draws from that one, whose seed each replay reads.
/// On the CPU its numbers are then those of [`randn`].
///
/// # Errors
/// When CUDA is not there.
pub fn seed_default(device: Device, seed: i64) -> Result<()> {
    match device {
        Device::Cuda(_) => cuda()?.seed(seed),
        _ => {
            tch::manual_seed(seed);
            Ok(())
        }
    }
}

/// Runs `work` with libtorch's global CPU generator seeded, and leaves that generator as it was.
///
/// # Errors
/// Those of `work`, and libtorch's.
pub fn seeded<T>(seed: i64, work: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: the call has no argument but the place of its result.
    let before = made("generator state", |out| unsafe { gv_rng_state(out) })?;
    tch::manual_seed(seed);
    let result = work();
    // SAFETY: `before` is a live tensor.
    check("generator state", unsafe { gv_set_rng_state(handle(&before)) })?;
    result
}
