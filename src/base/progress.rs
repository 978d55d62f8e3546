//! Progress on stderr: a bar in a terminal, a plain line per log interval in a pipe.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Prints one line on stderr. A stderr that cannot be written (`2>&1 | head`, a full disk) does not stop a run.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The progress of one run.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    total: u64,
    smoothed: Vec<(String, f64)>,
    logged: u64,
}

impl Progress {
    /// A run of `total` steps of which `done` are behind it.
    pub fn start(done: u64, total: u64) -> Self {
        let bar = bar(total, "{prefix} {bar:20.cyan/white.dim} {percent:>3}% {wide_msg}");
        let bar = bar.map(|bar| bar.with_position(done));
        Progress { bar, total, smoothed: Vec::new(), logged: 0 }
    }

    /// Prints a line that stays: above the bar in a terminal.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => say(text),
        }
    }

    /// After every step: moves the bar. Its values wait for the log interval, because reading them waits for the device.
    pub fn advance(&self, step: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(step);
        }
    }

    /// After a log interval: where the run stands, its speed, and the values of the interval.
    pub fn update(&mut self, step: u64, epoch: f64, images_per_s: f64, eta_s: f64, values: &[(String, f64)]) {
        let Some(bar) = &self.bar else {
            let values: Vec<_> = values.iter().map(|(name, v)| format!("{name} {}", short(*v))).collect();
            say(&format!(
                "step {step}/{}  epoch {epoch:.2}  {}  {images_per_s:.0} img/s  ETA {}",
                self.total,
                values.join("  "),
                clock(eta_s)
            ));
            return;
        };
        self.logged += 1;
        // Bias-corrected average over about the last ten intervals, as Adam's moments are corrected.
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
        let room = usize::from(console::Term::stderr().size().1).saturating_sub(prefix.len() + BAR);
        bar.set_message(as_fit(facts, room));
        bar.set_prefix(prefix);
    }

    /// Shows what is being done between two steps, until the next [`Progress::update`].
    pub fn doing(&self, what: &'static str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what);
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A bar of this template in a terminal, none in a pipe.
fn bar(total: u64, template: &str) -> Option<ProgressBar> {
    std::io::stderr().is_terminal().then(|| {
        let bar = ProgressBar::new(total);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━━─"));
        }
        bar.enable_steady_tick(Duration::from_millis(250));
        bar
    })
}

/// Columns of a run's bar itself, its share of the whole and the spaces around them.
const BAR: usize = 27;

/// The first of `facts` that fit into so many columns: a number that is cut off reads as another.
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

/// Seconds between two lines of a [`Tally`] in a pipe, and before the first.
const LINE_S: f64 = 10.0;

/// The progress of a job that makes many of one thing: a bar in a terminal, a line every ten seconds in a pipe, nothing for
/// one that takes less.
#[derive(Debug)]
pub struct Tally {
    bar: Option<ProgressBar>,
    what: &'static str,
    done: u64,
    total: u64,
    started: Instant,
    said: Instant,
}

impl Tally {
    /// A job of `total` things; `what` says what happens to them (`images written`).
    pub fn start(what: &'static str, total: u64) -> Self {
        let bar = bar(total, "{bar:20.cyan/white.dim} {percent:>3}% {human_pos} of {human_len} {msg}, ETA {eta}");
        let bar = bar.map(|bar| bar.with_message(what));
        Tally { bar, what, done: 0, total, started: Instant::now(), said: Instant::now() }
    }

    /// `n` more are done.
    pub fn advance(&mut self, n: u64) {
        self.done += n;
        match &self.bar {
            Some(bar) => bar.set_position(self.done),
            None if self.said.elapsed().as_secs_f64() >= LINE_S => {
                say(&self.line(self.started.elapsed().as_secs_f64()));
                self.said = Instant::now();
            }
            None => {}
        }
    }

    /// Where the job stands after so many seconds.
    fn line(&self, seconds: f64) -> String {
        let left = self.total.saturating_sub(self.done);
        let eta_s = seconds / self.done.max(1) as f64 * left as f64;
        format!("{} of {} {}  ETA {}", self.done, self.total, self.what, clock(eta_s))
    }
}

impl Drop for Tally {
    /// Takes the bar away, on an error too: the sentence must not stand behind it.
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
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
    fn a_tally_says_how_far_it_is_and_how_long_it_takes() {
        let mut tally = Tally::start("images", 1000);
        tally.advance(100);
        tally.advance(150);
        assert_eq!(tally.line(25.0), "250 of 1000 images  ETA 1:15");
    }

    #[test]
    fn what_does_not_fit_is_left_out_whole() {
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
