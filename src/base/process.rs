//! Limits of the system on a process: threads, memory, file sizes. A process that reaches one ends with a sentence.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use libc::{c_uint, c_void};

use super::progress::{Stderr, say};
use super::signals;

/// What to do where memory has run out.
pub const LESS_MEMORY: &str = "choose a smaller --batch-size, smaller networks or images, fewer of them with --train-limit, or allow more memory (ulimit -v)";

/// Bytes of memory that the process can still have: the least of what the machine and its control group leave; none where the system
/// does not say.
pub fn available_memory() -> Option<u64> {
    let number = |file: &Path| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10;
    // Of version 2 and of version 1; a group without a limit has no number there, or a huge one.
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = group.lines().filter_map(|line| match line.split(':').collect::<Vec<_>>()[..] {
        [_, "", path] => Some(("/sys/fs/cgroup", "memory.max", path)),
        [_, "memory", path] => Some(("/sys/fs/cgroup/memory", "memory.limit_in_bytes", path)),
        _ => None,
    });
    let groups = limits.flat_map(|(root, file, path)| {
        let folders = Path::new(path).ancestors().filter_map(|p| p.strip_prefix("/").ok());
        folders.filter_map(|p| number(&Path::new(root).join(p).join(file))).collect::<Vec<_>>()
    });
    groups.chain([machine]).min()
}

/// What limits threads: their number, or the memory for their stacks.
const LIMITS: &str = "(ulimit -u, ulimit -v, a container's limit on pids)";

/// The system's allocator. If memory runs out, the process ends with a sentence, where Rust would abort.
#[derive(Debug)]
pub struct Memory;

// SAFETY: the pointers are those of the system's allocator.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise, here and below.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        given(unsafe { System.realloc(old, layout, size) }, size)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn given(memory: *mut u8, bytes: usize) -> *mut u8 {
    if memory.is_null() {
        end(format_args!(", when {bytes} bytes more were wanted"));
    }
    memory
}

/// Ends the process without running anything of it, which could need memory.
fn end(wanted: fmt::Arguments) -> ! {
    static ENDING: AtomicBool = AtomicBool::new(false);
    // Another thread may have met the same: one sentence is enough.
    while ENDING.swap(true, Ordering::Relaxed) {
        thread::sleep(Duration::from_secs(1));
    }
    // Written in pieces, since a text would need memory.
    let _ = writeln!(Stderr, "error: memory ran out{wanted}: {LESS_MEMORY}");
    // SAFETY: the call takes a number, and does not return.
    unsafe { libc::_exit(1) }
}

extern "C" fn no_memory_in_libtorch() {
    end(format_args!(" in libtorch"))
}

unsafe extern "C" {
    /// `std::set_new_handler`.
    #[link_name = "_ZSt15set_new_handlerPFvvE"]
    fn set_new_handler(handler: extern "C" fn()) -> usize;

    /// OpenMP's: runs a function on this many threads.
    fn GOMP_parallel(run: extern "C" fn(*mut c_void), given: *mut c_void, threads: c_uint, flags: c_uint);
}

/// To be run before the constructors of libtorch, which need memory: by an entry in the program's `.preinit_array`.
pub extern "C" fn before_libraries() {
    // SAFETY: the handlers do not return, so they cannot harm the computation that they interrupt; the calls store pointers to them, and
    // fill in plain numbers.
    unsafe {
        set_new_handler(no_memory_in_libtorch);
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_AS, &mut limit);
        if limit.rlim_cur != libc::RLIM_INFINITY {
            // oneDNN does not check all of its allocations.
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = no_memory_in_libtorch as *const () as usize;
            action.sa_flags = libc::SA_ONSTACK;
            for signal in [libc::SIGSEGV, libc::SIGABRT] {
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
    }
}

/// To be called first: a file larger than `ulimit -f` is an error of its write, and the pools of threads are no larger than the system
/// allows; a line says so where they are smaller than the number of cores.
///
/// # Errors
/// When not even the threads of a computation on one core can start; as [`signals::hold`].
pub fn prepare() -> Result<()> {
    // SAFETY: changes the action of a signal before other threads start.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = threads();
    ensure!(
        threads > 0,
        "the system allows {} threads, and {} are wanted: raise the limit {LIMITS}",
        startable(wanted(1)),
        wanted(1)
    );
    // Before the threads of the pools.
    signals::hold()?;
    // libtorch's threads start now, while they can, and not in the middle of training.
    let used = tch::get_num_threads().min(threads as i32);
    tch::set_num_threads(used);
    extern "C" fn nothing(_: *mut c_void) {}
    // SAFETY: the function takes nothing.
    unsafe { GOMP_parallel(nothing, std::ptr::null_mut(), used as c_uint, 0) };
    if threads < cores {
        say(&format!("warning: the system does not allow the threads for {cores} cores, so {threads} of them compute"));
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    Ok(())
}

/// The cores that the program computes on: those there are, or as many as the system allows threads for at the start.
pub fn threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        (startable(wanted(cores)).saturating_sub(1) / 3).min(cores)
    })
}

/// Refuses more threads than there are cores where the system does not allow them.
///
/// # Errors
/// With the number that it allows.
pub fn check_threads(threads: usize) -> Result<()> {
    // In both pools of libtorch, beside the calling thread.
    let wanted = 2 * (threads - 1);
    if threads > self::threads() {
        let found = startable(wanted);
        ensure!(
            found == wanted,
            "{threads} threads need {wanted} more of the system, which allows {found}: choose fewer --threads, or raise the limit {LIMITS}"
        );
    }
    Ok(())
}

/// Threads of a process that computes on this many cores: in rayon's pool and in two of libtorch's, and one that receives signals.
fn wanted(cores: usize) -> usize {
    3 * cores + 1
}

/// How many threads can start, up to `most`: where one of a pool cannot, libtorch waits for it forever.
fn startable(most: usize) -> usize {
    static GATE: Mutex<()> = Mutex::new(());
    // Not Rust's threads, which allocate: each would take an arena of malloc, and keep it.
    extern "C" fn wait(_: *mut c_void) -> *mut c_void {
        drop(GATE.lock());
        std::ptr::null_mut()
    }
    // Each lives until all have started.
    let closed = GATE.lock();
    let start = |_| {
        let mut thread = 0;
        // SAFETY: the thread's number is written before the call returns; the thread reads a static only.
        let code = unsafe { libc::pthread_create(&mut thread, std::ptr::null(), wait, std::ptr::null_mut()) };
        (code == 0).then_some(thread)
    };
    let started: Vec<_> = (0..most).map_while(start).collect();
    drop(closed);
    for thread in &started {
        // SAFETY: it was started above, and is joined once.
        unsafe { libc::pthread_join(*thread, std::ptr::null_mut()) };
    }
    started.len()
}
