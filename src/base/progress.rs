//! Progress on stderr: a bar in a terminal, a line of text per log interval elsewhere.

use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::names::printable;
use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Milliseconds that a full stderr is waited for.
const PATIENCE_MS: i32 = 1000;

/// stderr. Bytes are dropped while nobody reads it (a full pipe, a stopped terminal), for training must go on, and end at a signal.
#[derive(Debug)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        static FULL: AtomicBool = AtomicBool::new(false);
        let patience_ms = if FULL.load(Ordering::Relaxed) { 0 } else { PATIENCE_MS };
        let mut stderr = libc::pollfd { fd: self.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: the pointer is to one entry, which outlives the call.
        let full = unsafe { libc::poll(&mut stderr, 1, patience_ms) } == 0;
        FULL.store(full, Ordering::Relaxed);
        if full {
            return Ok(bytes.len());
        }
        // A pipe that is not full has room for this much.
        io::stderr().write(&bytes[..bytes.len().min(libc::PIPE_BUF)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsRawFd for Stderr {
    fn as_raw_fd(&self) -> RawFd {
        libc::STDERR_FILENO
    }
}

/// Prints one line on stderr, and ignores a write error (`2>&1 | head`, a full disk).
pub fn say(text: &str) {
    let _ = Stderr.write_all(format!("{}\n", printable(text)).as_bytes());
}

/// The progress of one run.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    total: u64,
    smoothed: Vec<(String, f64)>,
    logged: u64,
}

impl Progress {
    /// A run of `total` steps, `done` of them complete.
    pub fn start(done: u64, total: u64) -> Self {
        let bar = bar(total, "{prefix} {bar:20.cyan/white.dim} {percent:>3}% {wide_msg}").with_position(done);
        Progress { bar, total, smoothed: Vec::new(), logged: 0 }
    }

    /// Prints a line, in a terminal above the bar.
    pub fn say(&self, text: &str) {
        if self.bar.is_hidden() { say(text) } else { self.bar.println(printable(text)) }
    }

    /// Moves the bar after a step. Values are shown by [`Progress::update`] only, because reading them waits for the device.
    pub fn advance(&self, step: u64) {
        self.bar.set_position(step);
    }

    /// Shows step, speed, and the values of a log interval.
    pub fn update(&mut self, step: u64, epoch: f64, images_per_s: f64, eta_s: f64, values: &[(String, f64)]) {
        if self.bar.is_hidden() {
            let values: Vec<_> = values.iter().map(|(name, v)| format!("{name} {}", short(*v))).collect();
            say(&format!(
                "step {step}/{}  epoch {epoch:.2}  {}  {images_per_s:.0} img/s  ETA {}",
                self.total,
                values.join("  "),
                clock(eta_s)
            ));
            return;
        }
        self.logged += 1;
        // Bias-corrected moving average over about ten intervals.
        let weight = 0.1 / (1.0 - 0.9f64.powf(self.logged as f64));
        for (i, (name, v)) in values.iter().enumerate() {
            match self.smoothed.get_mut(i) {
                Some((_, s)) => *s += weight * (v - *s),
                None => self.smoothed.push((name.clone(), *v)),
            }
        }
        let shown = self.smoothed.iter().map(|(name, v)| format!("{name} {}", short(*v)));
        let facts = [format!("ETA {}", clock(eta_s)), format!("{images_per_s:.0} img/s")].into_iter().chain(shown);
        let prefix = format!("epoch {epoch:.1}");
        let room = usize::from(Term::stderr().size().1).saturating_sub(prefix.len() + BAR);
        self.bar.set_message(as_fit(facts, room));
        self.bar.set_prefix(prefix);
    }

    /// Shows the current activity until the next [`Progress::update`].
    pub fn doing(&self, what: &'static str) {
        self.bar.set_message(what);
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A bar with this template in a terminal, a hidden one elsewhere.
pub fn bar(total: u64, template: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let term = Term::read_write_pair(io::stdin(), Stderr);
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::term(term, 20));
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━━─"));
    }
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// Columns of the bar, the percentage, and the spaces around them.
const BAR: usize = 27;

/// The first of `facts` that fit completely into this many columns.
fn as_fit(facts: impl Iterator<Item = String>, columns: usize) -> String {
    let mut text = String::new();
    for fact in facts {
        let between = if text.is_empty() { "" } else { " · " };
        if (text.chars().count() + between.chars().count() + fact.chars().count()) > columns {
            break;
        }
        text.push_str(between);
        text.push_str(&fact);
    }
    text
}

/// Seconds before each line of a [`Tally`] without a terminal.
const LINE_S: f64 = 10.0;

/// The progress of a count of items: a bar in a terminal, a line every ten seconds elsewhere.
#[derive(Debug)]
pub struct Tally {
    bar: ProgressBar,
    what: &'static str,
    done: u64,
    total: u64,
    started: Instant,
    said: Instant,
}

impl Tally {
    /// A count to `total`; `what` names the items (`images encoded`).
    pub fn start(what: &'static str, total: u64) -> Self {
        let bar = bar(total, "{bar:20.cyan/white.dim} {percent:>3}% {human_pos} of {human_len} {msg}, ETA {eta}");
        Tally { bar: bar.with_message(what), what, done: 0, total, started: Instant::now(), said: Instant::now() }
    }

    /// Adds `n` items.
    pub fn advance(&mut self, n: u64) {
        self.done += n;
        self.bar.set_position(self.done);
        if self.bar.is_hidden() && self.said.elapsed().as_secs_f64() >= LINE_S {
            say(&self.line(self.started.elapsed().as_secs_f64()));
            self.said = Instant::now();
        }
    }

    /// The line of text after this many seconds.
    fn line(&self, seconds: f64) -> String {
        let left = self.total.saturating_sub(self.done);
        let eta_s = seconds / self.done.max(1) as f64 * left as f64;
        format!("{} of {} {}  ETA {}", self.done, self.total, self.what, clock(eta_s))
    }
}

impl Drop for Tally {
    /// Removes the bar, also before an error is printed.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Four or five significant digits.
fn short(v: f64) -> String {
    match v.abs() {
        a if a >= 1000.0 => format!("{v:.0}"),
        a if a >= 100.0 => format!("{v:.1}"),
        a if a >= 10.0 => format!("{v:.2}"),
        _ => format!("{v:.3}"),
    }
}

/// Seconds as 1:05, or 2:01:05 from an hour on.
fn clock(seconds: f64) -> String {
    let s = seconds.clamp(0.0, 1e9).round() as u64;
    match s / 3600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        h => format!("{h}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_shows_progress_and_eta() {
        let mut tally = Tally::start("images", 1000);
        tally.advance(100);
        tally.advance(150);
        assert_eq!(tally.line(25.0), "250 of 1000 images  ETA 1:15");
    }

    #[test]
    fn facts_that_do_not_fit_are_omitted() {
        let facts = || ["ETA 0:10", "6000 img/s", "loss 105.4"].map(str::to_owned).into_iter();
        assert_eq!(as_fit(facts(), 34), "ETA 0:10 · 6000 img/s · loss 105.4");
        assert_eq!(as_fit(facts(), 33), "ETA 0:10 · 6000 img/s");
        assert_eq!(as_fit(facts(), 7), "");
    }

    #[test]
    fn numbers_and_times_are_short() {
        assert_eq!(short(105.4321), "105.4");
        assert_eq!(short(-0.65432), "-0.654");
        assert_eq!(short(12345.6), "12346");
        assert_eq!(clock(65.2), "1:05");
        assert_eq!(clock(7265.0), "2:01:05");
    }
}
