//! SIGINT, SIGTERM and SIGHUP, taken by a thread of their own, so that no handler ever runs on a thread that computes.
//!
//! The frame of a handler goes below the stack pointer of the thread that it interrupts. Kernels that oneDNN generates for a
//! product with a transposed factor keep numbers there, beyond the 128 bytes that the ABI keeps clear of it: seen with libtorch 2.11
//! (`mkldnn::_linear_pointwise(g, w.t(), ...)` under a timer's signal, in Python as well) as weights that are not finite and as a heap
//! that is broken.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::{Context, Result};
use libc::{SIG_BLOCK, SIG_IGN, SIG_UNBLOCK, SIGHUP, SIGINT, SIGTERM, c_int, sigset_t};

/// Nothing listens: a signal ends the process as if it had not been taken.
const ASIDE: i32 = -1;
/// The next signal is noted.
const LISTENING: i32 = 0;
/// One of the above, or the signal that was noted.
static STATE: AtomicI32 = AtomicI32::new(ASIDE);

/// Takes the signals for this thread and all threads that it starts from now on: call it before there are any others.
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
    .context("SIGINT, SIGTERM and SIGHUP could not be taken")
}

/// The signals that are taken: not SIGHUP where the process was started to ignore it, as by nohup.
fn taken() -> sigset_t {
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
    match unsafe { libc::pthread_sigmask(how, &taken(), std::ptr::null_mut()) } {
        0 => Ok(()),
        code => Err(std::io::Error::from_raw_os_error(code)),
    }
}

/// Waits for signals as long as the process lives.
fn take() {
    loop {
        let mut signal = 0;
        // SAFETY: both pointers outlive the call; the set is blocked on this thread, as on all.
        if unsafe { libc::sigwait(&taken(), &mut signal) } != 0 {
            continue;
        }
        match STATE.compare_exchange(LISTENING, signal, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => {}
            Err(ASIDE) => {
                // What it does by default: it is let through to this thread. The mask has been set before, so it can be again.
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

/// The first signal as a flag that a loop reads between steps, while the value lives; a second one ends the process at once.
#[derive(Debug)]
pub struct StopFlag(());

impl StopFlag {
    /// Starts listening.
    ///
    /// # Errors
    /// As [`hold`].
    pub fn listen() -> Result<Self> {
        hold()?;
        STATE.store(LISTENING, Ordering::Relaxed);
        Ok(StopFlag(()))
    }

    /// The signal that came, if any.
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
