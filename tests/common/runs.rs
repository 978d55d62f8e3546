//! Runs in the background and what they leave: for the tests that kill, stop, damage, edit and fill.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ganvae::base::hash;
use safetensors::SafeTensors;
use serde_json::{Map, Value};

use super::{BIN, command, listing, text};

/// Runs a command that must end well; gives its stderr.
pub fn good(dir: &Path, args: &[&str]) -> String {
    text(&super::good(dir, args).stderr)
}

/// A process in the background; killed when dropped, so that a failed test leaves no training behind.
pub struct Running {
    pub child: Child,
    pub log: PathBuf,
}

impl Running {
    pub fn start(dir: &Path, args: &[&str]) -> Self {
        Running::spawn(dir, command(BIN, dir).args(args))
    }

    /// As `nohup` starts a program.
    pub fn start_ignoring_hangups(dir: &Path, args: &[&str]) -> Self {
        Running::spawn(dir, command("sh", dir).args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", BIN]).args(args))
    }

    fn spawn(dir: &Path, command: &mut Command) -> Self {
        // A log for each process: what one said is not taken for what the next says.
        let log = (0..).map(|i| dir.join(format!("stderr-{i}"))).find(|p| !p.exists()).unwrap();
        let stderr = fs::File::create(&log).unwrap();
        let child = command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        Running { child, log }
    }

    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether a line of a log interval was said.
    pub fn trains(&self) -> bool {
        self.said().lines().any(|l| l.starts_with("step "))
    }

    pub fn signal(&self, name: &str) {
        assert!(Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Waits until `done`; false when the process ended before.
    pub fn watch(&mut self, what: &str, mut done: impl FnMut() -> bool) -> bool {
        let began = Instant::now();
        loop {
            if done() {
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "no {what} in a minute: {}", self.said());
            sleep(Duration::from_micros(200));
        }
    }

    /// Waits until it trains.
    pub fn until_it_trains(&mut self) {
        let log = self.log.clone();
        let trains = || fs::read_to_string(&log).unwrap_or_default().lines().any(|l| l.starts_with("step "));
        assert!(self.watch("training", trains), "{}", self.said());
    }

    /// How it ended and what it said; it must end by itself within `seconds`.
    pub fn ends_within(mut self, seconds: u64) -> (ExitStatus, String) {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, self.said());
            }
            assert!(began.elapsed() < Duration::from_secs(seconds), "alive after {seconds} s: {}", self.said());
            sleep(Duration::from_millis(2));
        }
    }

    /// SIGKILL; whether it was alive to be killed, and what it had said.
    pub fn killed(mut self) -> (bool, String) {
        let _ = self.child.kill();
        let status = self.child.wait().unwrap();
        (status.signal() == Some(9), self.said())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A small run of each kind, quick enough for a test, with the same bits at every start.
pub const SMALL_VAE: &[&str] = &[
    "train",
    "vae",
    "--train-limit",
    "300",
    "--test-limit",
    "100",
    "--epochs",
    "2",
    "--log-every",
    "2",
    "--encoder-hidden",
    "32",
    "--decoder-hidden",
    "32",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--deterministic",
];
pub const SMALL_GAN: &[&str] = &[
    "train",
    "gan",
    "--train-limit",
    "200",
    "--test-limit",
    "50",
    "--epochs",
    "2",
    "--log-every",
    "1",
    "--base-width",
    "4",
    "--ema",
    "0.9",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--deterministic",
];

pub fn with<'a>(base: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [base, more].concat()
}

pub fn rows(run: &Path) -> Vec<Map<String, Value>> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{l:?}: {e}"))).collect()
}

/// Names of a run's checkpoints, oldest first.
pub fn checkpoints(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    let mut all: Vec<_> = names.filter(|n| n.starts_with("step-")).collect();
    all.sort();
    all
}

/// A checkpoint's folder as a path below that of its run.
pub fn of_step(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{step:08}"))
}

pub fn step_of(name: &str) -> u64 {
    name.strip_prefix("step-").unwrap_or_else(|| panic!("{name} is no checkpoint")).parse().unwrap()
}

/// The step of a run's newest checkpoint, 0 without one.
pub fn newest(run: &Path) -> u64 {
    checkpoints(run).last().map_or(0, |name| step_of(name))
}

/// Files and folders of a write that was not finished.
pub fn half_written(dir: &Path) -> Vec<PathBuf> {
    listing(dir).into_iter().filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().ends_with(".part"))).collect()
}

pub fn state(checkpoint: &Path) -> Value {
    serde_json::from_slice(&fs::read(checkpoint.join("state.json")).unwrap()).unwrap()
}

/// Names of a run's checkpoints with optimizer state, oldest first.
pub fn resumable(run: &Path) -> Vec<String> {
    let mut all = checkpoints(run);
    all.retain(|name| run.join("checkpoints").join(name).join("optimizer.safetensors").exists());
    all
}

/// Fails unless both files of a checkpoint have the sizes and checksums that its state.json gives.
pub fn assert_whole(checkpoint: &Path) {
    assert_files_whole(checkpoint, &["model.safetensors", "optimizer.safetensors"]);
}

/// [`assert_whole`] of these files.
pub fn assert_files_whole(checkpoint: &Path, files: &[&str]) {
    let state = state(checkpoint);
    for &file in files {
        let (bytes, sum) = hash::sha256_file(&checkpoint.join(file)).unwrap();
        let want = &state["files"][file];
        assert_eq!((Some(bytes), Some(sum.as_str())), (want["bytes"].as_u64(), want["sha256"].as_str()), "{file}");
    }
}

/// The first difference between what two runs ended with, but for times and their places; none when they are one run.
pub fn difference(a: &Path, b: &Path) -> Option<String> {
    let name = |run: &Path, which: &str| fs::read_to_string(run.join("checkpoints").join(which)).ok();
    for which in ["latest", "best"] {
        let (of_a, of_b) = (name(a, which), name(b, which));
        if of_a != of_b {
            return Some(format!("checkpoints/{which}: {of_a:?} and {of_b:?}"));
        }
    }
    let last = name(a, "latest").expect("a run that ended has a checkpoint");
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let read = |run: &Path| fs::read(run.join("checkpoints").join(&last).join(file)).unwrap();
        if read(a) != read(b) {
            return Some(format!("{last}/{file}"));
        }
    }
    let timeless = |run: &Path| {
        let mut all = rows(run);
        all.iter_mut().for_each(|r| r.retain(|key, _| key != "wall_s" && key != "images_per_s"));
        all
    };
    let (of_a, of_b) = (timeless(a), timeless(b));
    if let Some((one, other)) = of_a.iter().zip(&of_b).find(|(one, other)| one != other) {
        return Some(format!("metrics.jsonl: {one:?} and {other:?}"));
    }
    if of_a.len() != of_b.len() {
        return Some(format!("metrics.jsonl: {} and {} rows", of_a.len(), of_b.len()));
    }
    for folder in ["samples", "reconstructions"] {
        let below = |run: &Path| {
            let all = listing(&run.join(folder));
            // The animation is made of the pictures beside it, whichever a run that stopped on its way has left there.
            all.iter()
                .filter(|p| !p.ends_with("progress.gif"))
                .map(|p| p.strip_prefix(run).unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let (of_a, of_b) = (below(a), below(b));
        if of_a != of_b {
            return Some(format!("{folder}: {of_a:?} and {of_b:?}"));
        }
        if let Some(file) = of_a.iter().find(|f| fs::read(a.join(f)).unwrap() != fs::read(b.join(f)).unwrap()) {
            return Some(file.display().to_string());
        }
    }
    None
}

pub fn assert_same(a: &Path, b: &Path) {
    let difference = difference(a, b);
    assert!(difference.is_none(), "{} and {} differ: {}", a.display(), b.display(), difference.unwrap_or_default());
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// A copy of `run` as a process leaves it that was killed some time after `step`, in the middle of a row: later
/// checkpoints never were, rows after it are there. Later pictures go too: they have to be drawn again. The run must have been trained
/// with `--keep-optimizer all`.
pub fn cut(run: &Path, to: &Path, step: u64) {
    copy(run, to);
    for name in checkpoints(to).iter().filter(|name| step_of(name) > step) {
        fs::remove_dir_all(to.join("checkpoints").join(name)).unwrap();
    }
    let per_epoch = rows(to).last().map(|row| row["step"].as_f64().unwrap() / row["epoch"].as_f64().unwrap()).unwrap();
    for picture in [listing(&to.join("samples")), listing(&to.join("reconstructions"))].concat() {
        let name = picture.file_stem().unwrap().to_string_lossy().into_owned();
        if name == "progress" {
            fs::remove_file(picture).unwrap();
            continue;
        }
        let drawn_at = match name.split_once('-').map(|(of, n)| (of, n.parse::<f64>().unwrap())) {
            Some(("epoch", n)) => n * per_epoch,
            Some(("step", n)) => n,
            _ => panic!("{name}"),
        };
        if drawn_at.round() as u64 > step {
            fs::remove_file(picture).unwrap();
        }
    }
    let mut log = fs::OpenOptions::new().append(true).open(to.join("metrics.jsonl")).unwrap();
    log.write_all(b"{\"step\":1").unwrap();
    assert_eq!(newest(to), step, "the run has no checkpoint of step {step}");
}

/// Changes a checkpoint's state.json by hand, with checksums that fit.
pub fn rewrite_state(checkpoint: &Path, change: impl Fn(&mut Value)) {
    let mut state = state(checkpoint);
    change(&mut state);
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let (bytes, sum) = hash::sha256_file(&checkpoint.join(file)).unwrap();
        state["files"][file]["bytes"] = bytes.into();
        state["files"][file]["sha256"] = sum.into();
    }
    let text = serde_json::to_vec_pretty(&state).unwrap();
    fs::write(checkpoint.join("state.sha256"), hash::sha256([&text[..]])).unwrap();
    fs::write(checkpoint.join("state.json"), text).unwrap();
}

/// Sets Adam's moments in a checkpoint to zero.
pub fn forget_moments(checkpoint: &Path) {
    let file = checkpoint.join("optimizer.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut zeroed = 0;
    for (name, info) in metadata.tensors() {
        if name.contains(".exp_avg") {
            let (from, to) = info.data_offsets;
            bytes[8 + header + from..8 + header + to].fill(0);
            zeroed += 1;
        }
    }
    assert!(zeroed > 0, "{} has no moments", file.display());
    fs::write(file, bytes).unwrap();
    rewrite_state(checkpoint, |_| ());
}
