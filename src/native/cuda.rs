//! The CUDA half of libtorch, loaded on demand.

use std::ffi::{CStr, CString};

use anyhow::{Result, bail};

/// Loads the CUDA half of libtorch into this process, so that one binary serves both: a CPU run never maps it.
///
/// Must come before the first question about CUDA, because libtorch remembers its answer. Takes 0.2 to 0.5 s.
///
/// # Errors
/// One sentence that names the part that is missing: the NVIDIA driver, or libtorch's CUDA library or one that it needs.
pub fn load_cuda() -> Result<()> {
    if let Err(why) = load("libcuda.so.1") {
        bail!("no NVIDIA driver was found ({why}): install one, or use --device cpu");
    }
    let library = format!("{}/libtorch_cuda.so", env!("GANVAE_LIBTORCH_LIB"));
    // The loader's search path first (LD_LIBRARY_PATH), then the folder that the binary was built with.
    if load("libtorch_cuda.so").is_err()
        && let Err(why) = load(&library)
    {
        bail!("the CUDA half of libtorch did not load ({why}): run scripts/setup --full, or use --device cpu");
    }
    Ok(())
}

/// `dlopen` for the whole process; the error is the loader's own sentence.
fn load(library: &str) -> Result<()> {
    let name = CString::new(library)?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call; the library's initialisers are libtorch's own or
    // the driver's, made to be loaded this way.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if handle.is_null() {
        // SAFETY: dlerror returns null or a NUL-terminated string that stays valid until the next dl call of this thread.
        let why = unsafe {
            let text = libc::dlerror();
            if text.is_null() { "no reason given".into() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };
        bail!(why);
    }
    Ok(())
}
