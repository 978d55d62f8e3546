//! Progress on stderr: a bar in a terminal, a line of text per log interval elsewhere.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::names::printable;
use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

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

/// Columns of a line of text.
pub const COLUMNS: usize = 80;
/// Seconds of training before the first line of a run without a terminal, when no log interval has ended.
const FIRST_LINE_S: f64 = 3.0;

/// The progress of one run.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    pace: Pace,
    /// The moving averages of the logged values.
    smoothed: Vec<(String, f64)>,
    logged: u64,
    /// Whether a line with an ETA was printed.
    timed: bool,
}

/// Steps since a time, of which epoch and ETA follow.
#[derive(Clone, Copy, Debug)]
struct Pace {
    started: Instant,
    first: u64,
    total: u64,
    per_epoch: u64,
}

impl Pace {
    fn epoch(&self, step: u64) -> String {
        format!("epoch {:.2}", step as f64 / self.per_epoch as f64)
    }

    fn eta(&self, step: u64) -> String {
        if step <= self.first {
            return "ETA -:--".into();
        }
        let each_s = self.started.elapsed().as_secs_f64() / (step - self.first) as f64;
        format!("ETA {}", clock(each_s * self.total.saturating_sub(step) as f64))
    }
}

impl Progress {
    /// A run of `total` steps, `per_epoch` an epoch, `done` of them complete.
    pub fn start(done: u64, total: u64, per_epoch: u64) -> Self {
        let pace = Pace { started: Instant::now(), first: done, total, per_epoch };
        let bar = bar(total, "{epoch} {bar:20.cyan/white.dim} {percent:>3}% {eta} {wide_msg}", |style| {
            // Computed at each drawing: live between log intervals.
            style
                .with_key("epoch", move |state: &ProgressState, out: &mut dyn fmt::Write| {
                    let _ = out.write_str(&pace.epoch(state.pos()));
                })
                .with_key("eta", move |state: &ProgressState, out: &mut dyn fmt::Write| {
                    let _ = out.write_str(&pace.eta(state.pos()));
                })
        });
        Progress { bar: bar.with_position(done), pace, smoothed: Vec::new(), logged: 0, timed: false }
    }

    /// Prints a line, in a terminal above the bar.
    pub fn say(&self, text: &str) {
        if self.bar.is_hidden() { say(text) } else { self.bar.println(printable(text)) }
    }

    /// Moves the bar after a step. Values are shown by [`Progress::update`] only, because reading them waits for the device.
    pub fn advance(&mut self, step: u64) {
        self.bar.set_position(step);
        if !self.timed && self.bar.is_hidden() && self.pace.started.elapsed().as_secs_f64() > FIRST_LINE_S {
            self.line(step, &[]);
        }
    }

    /// Shows step, speed, and the values of a log interval.
    pub fn update(&mut self, step: u64, images_per_s: f64, values: &[(String, f64)]) {
        let speed = format!("{images_per_s:.0} img/s");
        let fact = |(name, v): &(String, f64)| format!("{name} {}", short(*v));
        if self.bar.is_hidden() {
            let values: Vec<_> = [speed].into_iter().chain(values.iter().map(fact)).collect();
            self.line(step, &values);
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
        let facts = [speed].into_iter().chain(self.smoothed.iter().map(fact));
        let columns = usize::from(Term::stderr().size().1).min(COLUMNS);
        let room = columns.saturating_sub(self.pace.epoch(step).len() + self.pace.eta(step).len() + BAR);
        self.bar.set_message(as_fit(facts, " · ", room));
    }

    /// One line of text for this step.
    fn line(&mut self, step: u64, values: &[String]) {
        self.timed = true;
        let pace = &self.pace;
        let head = [format!("step {step}/{}", pace.total), pace.epoch(step), pace.eta(step)];
        say(&as_fit(head.into_iter().chain(values.iter().cloned()), "  ", COLUMNS));
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

/// A bar with this template in a terminal, a hidden one elsewhere; `keys` adds keys of the template.
pub fn bar(total: u64, template: &str, keys: impl FnOnce(ProgressStyle) -> ProgressStyle) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let term = Term::read_write_pair(io::stdin(), Stderr);
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::term(term, 20));
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(keys(style.progress_chars("━━─")));
    }
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// Columns of the bar, the percentage, and the spaces around them.
const BAR: usize = 28;

/// The first of `facts` that fit completely into this many columns, with `separator` between them.
pub fn as_fit(facts: impl Iterator<Item = String>, separator: &str, columns: usize) -> String {
    let mut text = String::new();
    for fact in facts {
        let between = if text.is_empty() { "" } else { separator };
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
        let bar =
            bar(total, "{bar:20.cyan/white.dim} {percent:>3}% {human_pos} of {human_len} {msg}, ETA {eta}", |style| {
                style
            });
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
        assert_eq!(as_fit(facts(), " · ", 34), "ETA 0:10 · 6000 img/s · loss 105.4");
        assert_eq!(as_fit(facts(), " · ", 33), "ETA 0:10 · 6000 img/s");
        assert_eq!(as_fit(facts(), " · ", 7), "");
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
