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

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    /// The global generator is one for the whole process, and tests run side by side: all in one test.
    #[test]
    fn numbers_are_those_of_the_seeded_global_generator_which_stays_as_it_was() -> Result<()> {
        let state = || made("state", |out| unsafe { gv_rng_state(out) });
        let global = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let (got, want) = seeded(7, || {
            let before = state()?;
            let got = randn(7, &[5, 30])?;
            assert_eq!(state()?, before, "the global generator has not moved");
            Ok((got, global(&[5, 30])))
        })?;
        assert_eq!(got, want);
        assert_ne!(randn(8, &[5, 30])?, want);
        let (first, second) = seeded(3, || {
            let first = global(&[4]);
            let _between = seeded(9, || Ok(global(&[100])))?;
            Ok((first, global(&[4])))
        })?;
        let both = seeded(3, || Ok((global(&[4]), global(&[4]))))?;
        assert_eq!((first, second), both, "work inside leaves what follows as it was");
        assert!(seeded(1, || -> Result<()> { anyhow::bail!("no") }).is_err());
        Ok(())
    }
}
