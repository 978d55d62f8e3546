//! Safe wrapper of the C++ shim (the .cpp files in this folder), and process-wide settings of libc and libtorch.
//!
//! [`shim`] declares its functions: arguments are borrowed for the call, results are owned. Errors carry libtorch's message; no
//! exception crosses the boundary.

mod context;
mod cuda;
mod gather;
mod layers;
mod loss;
mod optim;
mod random;
mod script;

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;

use anyhow::{Result, bail};
use tch::{Device, Tensor};

pub use context::{Math, autocast, cpu_capability, cudnn_version, math, operations_of, set_math};
pub use cuda::{
    Cuda, CudaGraph, Event, WARM_UP, check_cuda_half, cuda, cuda_half_built, libtorch_folder, load, load_driver,
    load_libtorch_cuda, resolve_cuda_half,
};
pub use gather::gather;
pub use layers::{
    ConvSpec, MatmulBackend, affine, channels_last, contiguous, conv_gradient, leaky_relu_, linear, linear_gradient,
    norm_relu, strided,
};
pub use loss::{bernoulli_bound, bernoulli_nll, gaussian_draw};
pub use optim::{AdamSettings, adam_on_device, clip_grad_norm, foreach_lerp, fused_adam, minimise};
pub use random::{Distribution, fill, randn, random, seed_default, seeded};
pub use script::{ScriptModule, Submodule, load_script, save_script, script_description};

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

/// Declares functions of the shim: each is called by this signature, and its error begins with what it was about.
macro_rules! shim {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> Result<$out:ty> = $symbol:ident, $what:literal;)*) => {$(
        $(#[$doc])*
        $vis fn $name($($arg: $type),*) -> Result<$out> {
            unsafe extern "C" {
                fn $symbol($($arg: <$type as $crate::native::ToShim>::C),*)
                    -> $crate::native::Outcome<<$out as $crate::native::FromShim>::C>;
            }
            // SAFETY: the types are those of the definition in *.cpp; what the arguments borrow lives until the call returns.
            unsafe { $symbol($($crate::native::ToShim::to_shim($arg)),*).result($what) }
        }
    )*};
}
use shim;

/// What a function of the shim returns, as in guard.h.
#[repr(C)]
struct Outcome<C> {
    message: *mut c_char,
    value: MaybeUninit<C>,
}

impl<C> Outcome<C> {
    /// The value, or the message after `what`.
    ///
    /// # Safety
    /// The outcome must come from the shim, and `T` must be the type of what its function returns.
    unsafe fn result<T: FromShim<C = C>>(self, what: &str) -> Result<T> {
        if self.message.is_null() {
            // SAFETY: without a message there is a value, which nothing else owns.
            return Ok(unsafe { T::from_shim(self.value.assume_init()) });
        }
        // SAFETY: the message is a string that nothing else owns.
        let text = unsafe { String::from_shim(self.message) };
        // Only the first sentence: libtorch's guesses about causes do not help.
        let first = text.lines().next().unwrap_or_default().split(". This is an internal").next().unwrap_or_default();
        bail!("{what}: {first}")
    }
}

/// An argument, borrowed for a call.
trait ToShim {
    /// Its type in C++.
    type C;
    fn to_shim(self) -> Self::C;
}

/// A result.
trait FromShim {
    /// Its type in C++.
    type C;
    /// # Safety
    /// `value` must come from the shim, and nothing else may own it.
    unsafe fn from_shim(value: Self::C) -> Self;
}

/// Declares types that are the same on both sides.
macro_rules! same_in_shim {
    ($($type:ty),*) => {$(
        impl $crate::native::ToShim for $type {
            type C = $type;
            fn to_shim(self) -> $type {
                self
            }
        }
        impl $crate::native::FromShim for $type {
            type C = $type;
            unsafe fn from_shim(value: $type) -> $type {
                value
            }
        }
    )*};
}
use same_in_shim;

same_in_shim!((), bool, i32, i64, u64, usize, f32, f64, *mut c_void);

type Handle = *mut torch_sys::C_tensor;

impl ToShim for &Tensor {
    type C = Handle;
    fn to_shim(self) -> Handle {
        self.as_ptr() as Handle
    }
}

impl ToShim for Option<&Tensor> {
    type C = Handle;
    fn to_shim(self) -> Handle {
        self.map_or(std::ptr::null_mut(), ToShim::to_shim)
    }
}

impl FromShim for Tensor {
    type C = Handle;
    unsafe fn from_shim(handle: Handle) -> Tensor {
        // SAFETY: a new handle, by this trait's contract.
        unsafe { Tensor::from_ptr(handle) }
    }
}

impl FromShim for (Tensor, Tensor) {
    type C = [Handle; 2];
    unsafe fn from_shim(handles: [Handle; 2]) -> (Tensor, Tensor) {
        // SAFETY: as of one tensor.
        let [a, b] = handles.map(|handle| unsafe { Tensor::from_ptr(handle) });
        (a, b)
    }
}

impl FromShim for String {
    type C = *mut c_char;
    unsafe fn from_shim(text: *mut c_char) -> String {
        unsafe extern "C" {
            fn gv_free(text: *mut c_char);
        }
        // SAFETY: the shim's strings end with a NUL; this one is freed once, here.
        unsafe {
            let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
            gv_free(text);
            owned
        }
    }
}

/// Several values, or the bytes of a text, as in guard.h.
#[repr(C)]
struct List<T> {
    data: *const T,
    count: usize,
}

impl<T> ToShim for &[T] {
    type C = List<T>;
    fn to_shim(self) -> List<T> {
        List { data: self.as_ptr(), count: self.len() }
    }
}

impl ToShim for &str {
    type C = List<u8>;
    fn to_shim(self) -> List<u8> {
        self.as_bytes().to_shim()
    }
}

fn handles(tensors: &[Tensor]) -> Vec<Handle> {
    tensors.iter().map(ToShim::to_shim).collect()
}
