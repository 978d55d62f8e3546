//! SIGINT, SIGTERM and SIGHUP, received by a dedicated thread, so that no signal handler runs on a compute thread.
//!
//! A handler's stack frame lies below the stack pointer of the interrupted thread. The kernels that oneDNN generates for a
//! product with a transposed factor store numbers there, beyond the red zone of 128 bytes that the ABI protects. Seen with
//! libtorch 2.11 (`mkldnn::_linear_pointwise(g, w.t(), ...)` under a timer signal, in Python too): weights that are not finite, and
//! heap corruption.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Context, Result};
use libc::{SIG_BLOCK, SIG_IGN, SIG_UNBLOCK, SIGHUP, SIGINT, SIGTERM, c_int, sigset_t};

/// No [`StopFlag`]: a signal has its default action, the end of the process.
const ASIDE: i32 = -1;
/// A [`StopFlag`] exists: the next signal is stored.
const LISTENING: i32 = 0;
/// One of the above, or the stored signal.
static STATE: AtomicI32 = AtomicI32::new(ASIDE);

/// Blocks the signals in this thread and all threads that it starts later, and starts the thread that receives them. Call it
/// before other threads start.
///
/// # Errors
/// The system's.
pub fn hold() -> Result<()> {
    static HELD: OnceLock<Result<(), String>> = OnceLock::new();
    HELD.get_or_init(|| {
        mask(SIG_BLOCK).map_err(|e| e.to_string())?;
        let thread = std::thread::Builder::new().name("signals".into());
        thread.spawn(take).map(drop).map_err(|e| e.to_string())
    })
    .clone()
    .map_err(anyhow::Error::msg)
    .context("SIGINT, SIGTERM and SIGHUP could not be blocked")
}

/// The signals that are received: not SIGHUP if the process was started with it ignored, as by nohup.
fn received() -> sigset_t {
    // SAFETY: both values are plain numbers, which the calls fill in; the pointers are to those values.
    unsafe {
        let (mut set, mut hup): (sigset_t, libc::sigaction) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, SIGINT);
        libc::sigaddset(&mut set, SIGTERM);
        libc::sigaction(SIGHUP, std::ptr::null(), &mut hup);
        if hup.sa_sigaction != SIG_IGN {
            libc::sigaddset(&mut set, SIGHUP);
        }
        set
    }
}

fn mask(how: c_int) -> std::io::Result<()> {
    // SAFETY: the set outlives the call, which may be told nothing of the one before.
    match unsafe { libc::pthread_sigmask(how, &received(), std::ptr::null_mut()) } {
        0 => Ok(()),
        code => Err(std::io::Error::from_raw_os_error(code)),
    }
}

/// Waits for signals until the process ends.
fn take() {
    loop {
        let mut signal = 0;
        // SAFETY: both pointers outlive the call; the set is blocked on this thread, as on all.
        if unsafe { libc::sigwait(&received(), &mut signal) } != 0 {
            continue;
        }
        match STATE.compare_exchange(LISTENING, signal, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => {}
            Err(ASIDE) => {
                // The default action: unblocked and raised on this thread. The mask was set before, so this cannot fail.
                let _ = mask(SIG_UNBLOCK);
                // SAFETY: the call takes a number, and does not return.
                unsafe { libc::raise(signal) };
            }
            // A terminal that closes sends it twice: from the kernel, and from the shell.
            Err(_) if signal == SIGHUP => {}
            // SAFETY: ends the process without running anything of it: a second signal means at once.
            Err(_) => unsafe { libc::_exit(128 + signal) },
        }
    }
}

/// While it exists, the first signal is stored, for a loop that checks it between steps; a second signal ends the process.
#[derive(Debug)]
pub struct StopFlag(());

impl StopFlag {
    /// Starts storing signals.
    ///
    /// # Errors
    /// As [`hold`].
    pub fn listen() -> Result<Self> {
        hold()?;
        STATE.store(LISTENING, Ordering::Relaxed);
        Ok(StopFlag(()))
    }

    /// The stored signal, if any.
    pub fn signal(&self) -> Option<u8> {
        match STATE.load(Ordering::Relaxed) {
            ASIDE | LISTENING => None,
            signal => Some(signal as u8),
        }
    }
}

impl Drop for StopFlag {
    fn drop(&mut self) {
        STATE.store(ASIDE, Ordering::Relaxed);
    }
}
