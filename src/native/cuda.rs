//! The CUDA half of libtorch and of the shim, loaded on demand: a CPU run never maps either.
//!
//! The shim's half is a shared library embedded in the binary, loaded from memory after libtorch_cuda; so one binary runs on CPU and
//! GPU.

use std::ffi::{CStr, CString, c_int, c_void};
use std::io::Write;
use std::marker::PhantomData;
use std::os::fd::FromRawFd;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{FromShim, Outcome, ToShim, same_in_shim};

/// `ganvae_cuda.so`; empty where CUDA's headers were missing when the program was built.
static HALF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ganvae_cuda.so"));

/// Whether this binary has the CUDA half of the shim in it.
pub fn cuda_half_built() -> bool {
    !HALF.is_empty()
}

/// Declares the functions of the half: their table, its loading, and a method for each, as [`shim`] does.
macro_rules! half {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),*) -> Result<$out:ty> = $symbol:literal, $what:literal;)*) => {
        struct Calls {
            $($name: unsafe extern "C" fn($(<$type as ToShim>::C),*) -> Outcome<<$out as FromShim>::C>,)*
        }

        impl Calls {
            /// # Safety
            /// `library` must be a handle of the loaded half.
            #[allow(clippy::missing_transmute_annotations, reason = "the field has the type")]
            unsafe fn of(library: *mut c_void) -> Result<Self> {
                Ok(Calls { $($name: {
                    // SAFETY: the symbol's name is NUL-terminated, the handle is live; the type is that of the definition in
                    // native/cuda/*.cpp.
                    let found = unsafe { libc::dlsym(library, concat!($symbol, "\0").as_ptr().cast()) };
                    let found = NonNull::new(found).context(concat!("the CUDA half has no ", $symbol))?;
                    // SAFETY: as above; function pointers are as wide as data pointers on every system with dlsym.
                    unsafe { std::mem::transmute(found) }
                },)* })
            }
        }

        impl Cuda {
            $($(#[$doc])*
            $vis fn $name(self, $($arg: $type),*) -> Result<$out> {
                // SAFETY: as in `Calls::of`; pointers are what the half gave, which [`Event`] and [`CudaGraph`] own.
                unsafe { (self.0.$name)($(ToShim::to_shim($arg)),*).result($what) }
            })*
        }
    };
}

half! {
    /// Number of visible devices.
    ///
    /// # Errors
    /// CUDA's message, as when there is no device or the driver is too old.
    pub fn devices() -> Result<usize> = "gvc_count", "counting the CUDA devices";

    /// CUDA versions (major, minor) of the driver and the runtime.
    ///
    /// # Errors
    /// CUDA's.
    pub fn versions() -> Result<[(i32, i32); 2]> = "gvc_versions", "CUDA's versions";

    /// `NVIDIA H200`, say, for device `index`.
    ///
    /// # Errors
    /// CUDA's, for an invalid index.
    pub fn name(index: usize) -> Result<String> = "gvc_name", "a CUDA device's name";

    /// Name, memory, compute capability and streaming multiprocessors of device `index` as text.
    ///
    /// # Errors
    /// As [`Cuda::name`].
    pub fn describe(index: usize) -> Result<String> = "gvc_describe", "a CUDA device's description";

    fn choose(index: usize) -> Result<()> = "gvc_select", "choosing the CUDA device";

    /// Seeds the current device's generator, without synchronizing.
    ///
    /// # Errors
    /// During a capture.
    pub fn seed(seed: i64) -> Result<()> = "gvc_seed", "seeding the CUDA generator";

    /// Waits until the device has finished all work.
    ///
    /// # Errors
    /// Those of pending work.
    pub fn synchronize() -> Result<()> = "gvc_synchronize", "waiting for the CUDA device";

    /// Peak bytes on device `index` since the last reset: allocated to tensors, and reserved from the driver.
    ///
    /// # Errors
    /// libtorch's.
    pub fn peak_bytes(index: usize) -> Result<[i64; 2]> = "gvc_peak_bytes", "the GPU's peak memory";

    /// Resets [`Cuda::peak_bytes`].
    ///
    /// # Errors
    /// libtorch's.
    pub fn reset_peak(index: usize) -> Result<()> = "gvc_reset_peak", "the GPU's peak memory";

    /// Returns unused cached memory to the driver.
    ///
    /// # Errors
    /// Those of pending work.
    pub fn release_free_memory() -> Result<()> = "gvc_empty_cache", "the GPU's memory";

    fn new_event() -> Result<*mut c_void> = "gvc_record", "a CUDA event";

    fn elapsed_ms(from: *mut c_void, to: *mut c_void) -> Result<f32> = "gvc_elapsed_ms", "a CUDA event";

    fn free_event(event: *mut c_void) -> Result<()> = "gvc_free_event", "a CUDA event";

    fn capture_begin() -> Result<*mut c_void> = "gvc_capture_begin", "capturing";

    fn capture_end(graph: *mut c_void) -> Result<()> = "gvc_capture_end", "capturing";

    fn capture_abandon() -> Result<()> = "gvc_capture_abandon", "capturing";

    fn replay(graph: *mut c_void) -> Result<()> = "gvc_replay", "replaying a captured step";

    fn free_graph(graph: *mut c_void) -> Result<()> = "gvc_free_graph", "a CUDA graph";
}

impl FromShim for [(i32, i32); 2] {
    type C = [c_int; 2];
    unsafe fn from_shim(versions: [c_int; 2]) -> Self {
        versions.map(|v| (v / 1000, v % 1000 / 10))
    }
}

same_in_shim!([i64; 2]);

/// The CUDA half, loaded.
#[derive(Clone, Copy)]
pub struct Cuda(&'static Calls);

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("Cuda")
    }
}

/// The CUDA half of libtorch and of the shim, loaded into this process at the first call, which takes 0.2 to 0.5 s.
///
/// Must be called before any query about CUDA, because libtorch caches the answer.
///
/// # Errors
/// One sentence that names the missing part: the NVIDIA driver, a CUDA half of libtorch, a library that it needs, or the
/// shim's own half.
pub fn cuda() -> Result<Cuda> {
    static LOADED: OnceLock<Result<Calls, String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        load_driver().and_then(|()| load_libtorch_cuda()).and_then(|()| load_half()).map_err(|e| format!("{e:#}"))
    });
    loaded.as_ref().map(Cuda).map_err(|why| anyhow!(why.clone()))
}

/// The NVIDIA driver's library.
///
/// # Errors
/// When it is not there.
pub fn load_driver() -> Result<()> {
    match load("libcuda.so.1") {
        Ok(_) => Ok(()),
        Err(why) => bail!("no NVIDIA driver was found ({why}): install one, or use --device cpu"),
    }
}

/// The CUDA half of libtorch.
///
/// # Errors
/// When libtorch was built without one, or a library that it needs is missing.
pub fn load_libtorch_cuda() -> Result<()> {
    // The loader's search path first (LD_LIBRARY_PATH), then the folder of the libtorch in use.
    let Err(first) = load("libtorch_cuda.so") else { return Ok(()) };
    let folder = libtorch_folder();
    let library = folder.join("libtorch_cuda.so");
    let loaded = match library.is_file() {
        true => load(&library.to_string_lossy()),
        false if first.to_string().starts_with("libtorch_cuda.so:") => bail!(
            "the libtorch in {} was built without CUDA: run scripts/setup --full, point LIBTORCH (and LD_LIBRARY_PATH) at one \
             that has it, or use --device cpu",
            folder.display()
        ),
        // Found by name but not loadable: another library is missing.
        false => Err(first),
    };
    match loaded {
        Ok(_) => Ok(()),
        Err(why) => {
            bail!("the CUDA half of libtorch did not load ({why}): run scripts/setup --full, or use --device cpu")
        }
    }
}

/// The folder of the libtorch that this process runs on: where its CPU half was found.
pub fn libtorch_folder() -> PathBuf {
    let mapped = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let library =
        mapped.lines().filter_map(|l| l.find('/').map(|at| &l[at..])).find(|l| l.ends_with("/libtorch_cpu.so"));
    let folder = library.and_then(|l| PathBuf::from(l).parent().map(PathBuf::from));
    folder.unwrap_or_else(|| env!("GANVAE_LIBTORCH_LIB").into())
}

/// Checks that this binary has the CUDA half of the shim in it.
///
/// # Errors
/// When CUDA's headers were missing as it was built.
pub fn check_cuda_half() -> Result<()> {
    ensure!(
        cuda_half_built(),
        "this ganvae was built without its CUDA half, because CUDA's headers were missing: run scripts/setup --full and cargo \
         build --release again, or use --device cpu"
    );
    Ok(())
}

/// Loads the shim's half from this binary; libtorch's must be loaded.
fn load_half() -> Result<Calls> {
    check_cuda_half()?;
    let library = load_from_memory(HALF).context("the CUDA half of ganvae did not load")?;
    // SAFETY: the handle is that of the half, which is never unloaded.
    unsafe { Calls::of(library) }
}

/// Checks that the loaded libraries have every symbol of the shim's half; for tests without a GPU.
///
/// # Errors
/// The loader's message about the first missing symbol.
pub fn resolve_cuda_half() -> Result<()> {
    load_half().map(|_| ())
}

fn load_from_memory(bytes: &[u8]) -> Result<*mut c_void> {
    // SAFETY: the name is NUL-terminated; the call makes a file that only this process sees.
    let fd = unsafe { libc::memfd_create(c"ganvae_cuda".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error()).context("a file in memory could not be made");
    }
    // SAFETY: the descriptor is fresh, and owned from here on.
    let mut file = unsafe { std::fs::File::from_raw_fd(fd) };
    file.write_all(bytes)?;
    load(&format!("/proc/self/fd/{fd}"))
}

/// `dlopen` with global symbols; the error is the loader's message.
///
/// # Errors
/// When the library, or one that it needs, is missing or damaged.
pub fn load(library: &str) -> Result<*mut c_void> {
    let name = CString::new(library)?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call; the library's initialisers are libtorch's own, the
    // driver's or none, made to be loaded this way.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if handle.is_null() {
        // SAFETY: dlerror returns null or a NUL-terminated string that stays valid until the next dl call of this thread.
        let why = unsafe {
            let text = libc::dlerror();
            if text.is_null() { "no reason given".into() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };
        bail!(why);
    }
    Ok(handle)
}

/// Eager steps before a capture or timing: cuDNN chooses its algorithms, libraries allocate their workspaces.
pub const WARM_UP: u32 = 3;

impl Cuda {
    /// Selects device `index` and a non-default stream on it for this thread: a graph cannot be captured on the default stream. When
    /// selected again, the device keeps its stream: streams do not wait for each other, so existing tensors must stay on theirs.
    ///
    /// # Errors
    /// CUDA's.
    pub fn select(self, index: usize) -> Result<()> {
        thread_local! {
            static SELECTED: std::cell::Cell<Option<usize>> = const { std::cell::Cell::new(None) };
        }
        if SELECTED.get() != Some(index) {
            self.choose(index)?;
            SELECTED.set(Some(index));
        }
        Ok(())
    }

    /// Records an event on this thread's stream.
    ///
    /// # Errors
    /// CUDA's.
    pub fn record(self) -> Result<Event> {
        Ok(Event { cuda: self, event: self.new_event()? })
    }

    /// Captures `work` as a CUDA graph, without running it. The work must not synchronize or copy numbers from the host; existing
    /// tensors that it reads or writes must outlive the graph and keep their addresses.
    ///
    /// # Errors
    /// Those of `work`; CUDA's, for work that cannot be captured. The process should then end: it cannot use the device any more.
    pub fn capture(self, work: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
        let graph = self.capture_begin()?;
        if let Err(e) = work() {
            // The error that came first is told.
            let _ = self.capture_abandon();
            return Err(e);
        }
        self.capture_end(graph)?;
        Ok(CudaGraph { cuda: self, graph, _this_thread: PhantomData })
    }

    /// [`Cuda::capture`] of a training step; the error names --cuda-graph off.
    ///
    /// # Errors
    /// As [`Cuda::capture`].
    pub fn capture_step(self, step: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
        self.capture(step)
            .context("the step could not be captured as a CUDA graph: --cuda-graph off runs it operation by operation")
    }
}

/// A CUDA event.
#[derive(Debug)]
pub struct Event {
    cuda: Cuda,
    event: *mut c_void,
}

impl Event {
    /// Milliseconds on the device from this event to `later`; waits for `later`.
    ///
    /// # Errors
    /// CUDA's.
    pub fn ms_until(&self, later: &Event) -> Result<f64> {
        Ok(self.cuda.elapsed_ms(self.event, later.event)?.into())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.cuda.free_event(self.event);
    }
}

/// A CUDA graph.
#[derive(Debug)]
pub struct CudaGraph {
    cuda: Cuda,
    graph: *mut c_void,
    /// Not Send: its stream belongs to one thread.
    _this_thread: PhantomData<*mut ()>,
}

impl CudaGraph {
    /// Replays the graph by one launch; random numbers come from the generator's current seed.
    ///
    /// # Errors
    /// CUDA's.
    pub fn replay(&self) -> Result<()> {
        self.cuda.replay(self.graph)
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        let _ = self.cuda.free_graph(self.graph);
    }
}
