//! Safe wrapper of the C++ shim (the .cpp files in this folder), and process-wide settings of libc and libtorch.
//!
//! Input tensors are borrowed for the call, output tensors are owned by the caller. Errors carry libtorch's message; no exception
//! crosses the boundary.

mod context;
mod cuda;
mod layers;
mod loss;
mod optim;
mod random;
mod script;

use std::ffi::{CStr, c_char};

use anyhow::{Result, bail};
use tch::{Device, Tensor};

pub use context::{Math, autocast, cpu_capability, cudnn_version, math, operations_of, set_math};
pub use cuda::{
    Cuda, CudaDevice, CudaGraph, Event, WARM_UP, cuda, cuda_half_built, libtorch_folder, load, load_driver,
    load_libtorch_cuda, resolve_cuda_half,
};
pub use layers::{
    ConvGeometry, MatmulBackend, affine, channels_last, contiguous, conv_gradient, leaky_relu, linear, linear_gradient,
    norm_relu, strided,
};
pub use loss::{bernoulli_bound, gaussian_draw};
pub use optim::{AdamSettings, clip_grad_norm, foreach_lerp, fused_adam, fused_adam_on_device, minimise};
pub use random::{fill_normal, fill_uniform, rand, randn, seed_default, seeded};
pub use script::{Submodule, save_script, script_description};

/// A number on the host, or a float32 scalar on the device, which a captured step reads at each replay.
#[derive(Clone, Copy, Debug)]
pub enum Factor<'a> {
    /// The host's.
    Host(f64),
    /// The device's.
    Device(&'a Tensor),
}

impl Factor<'_> {
    /// The number times t.
    ///
    /// # Errors
    /// libtorch's, when memory ends.
    pub fn times(self, t: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Factor::Host(number) => t.f_mul_scalar(number)?,
            Factor::Device(number) => t.f_mul(number)?,
        })
    }
}

impl From<f64> for Factor<'_> {
    fn from(number: f64) -> Self {
        Factor::Host(number)
    }
}

impl<'a> From<&'a Tensor> for Factor<'a> {
    fn from(scalar: &'a Tensor) -> Self {
        Factor::Device(scalar)
    }
}

type Handle = *mut torch_sys::C_tensor;

unsafe extern "C" {
    fn gv_free(message: *mut c_char);
}

/// Keeps large blocks in the process between steps.
///
/// glibc returns every block over 32 MB to the kernel on free, so each step would page-fault its large gradients again: a third of
/// the step of the article's VAE. Call once, before any tensor exists. Other systems: no effect.
pub fn keep_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only stores limits of the allocator; it is called before other threads start.
    unsafe {
        // An older glibc refuses a threshold above 32 MB (it returns 0): turn mmap off for all blocks.
        if libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX) == 0 {
            libc::mallopt(libc::M_MMAP_MAX, 0);
        }
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

/// Returns free memory that [`keep_large_blocks`] has kept to the system (other systems: no effect), and on a GPU the cached memory
/// to the driver.
///
/// # Errors
/// Those of pending GPU work.
pub fn release_free_memory(device: Device) -> Result<()> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
    if device.is_cuda() { cuda()?.release_free_memory() } else { Ok(()) }
}

fn handle(t: &Tensor) -> Handle {
    t.as_ptr() as Handle
}

fn maybe(t: Option<&Tensor>) -> Handle {
    t.map_or(std::ptr::null_mut(), handle)
}

/// The tensor that a call of the shim makes.
fn made(what: &str, call: impl FnOnce(*mut Handle) -> *mut c_char) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    check(what, call(&mut out))?;
    // SAFETY: without a message, the shim has put a new handle there, which nothing else owns.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// The two tensors that a call of the shim makes.
fn made_two(what: &str, call: impl FnOnce(*mut Handle, *mut Handle) -> *mut c_char) -> Result<(Tensor, Tensor)> {
    let (mut first, mut second) = (std::ptr::null_mut(), std::ptr::null_mut());
    check(what, call(&mut first, &mut second))?;
    // SAFETY: as in `made`.
    Ok(unsafe { (Tensor::from_ptr(first), Tensor::from_ptr(second)) })
}

fn handles(tensors: &[Tensor]) -> Vec<Handle> {
    tensors.iter().map(|t| t.as_ptr() as Handle).collect()
}

fn check(what: &str, message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null message is a NUL-terminated string made by the shim, freed once, here.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        gv_free(message);
        text
    };
    // Only the first sentence: libtorch's guesses about causes do not help.
    let first = text.lines().next().unwrap_or_default().split(". This is an internal").next().unwrap_or_default();
    bail!("{what}: {first}")
}
