//! Runs that cannot be lost, from outside: killed, stopped, diverged, on a full or vanished disk, with damaged or
//! edited files, two at once. Each ends as if nothing had happened, or with one sentence and a whole checkpoint.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{BIN, command, ganvae, listing, refused, sentence, text};
use ganvae::base::hash;
use ganvae::base::seed::Rng;
use safetensors::SafeTensors;
use serde_json::{Map, Value};

// ---- running the program ----

/// Runs a command that must end well; gives its stderr.
fn good(dir: &Path, args: &[&str]) -> String {
    text(&common::good(dir, args).stderr)
}

/// A process in the background; killed when dropped, so that a failed test leaves no training behind.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(dir: &Path, args: &[&str]) -> Self {
        // A log for each process: what one said is not taken for what the next says.
        let log = (0..).map(|i| dir.join(format!("stderr-{i}"))).find(|p| !p.exists()).unwrap();
        let stderr = fs::File::create(&log).unwrap();
        let child = command(BIN, dir).args(args).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        Running { child, log }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether a line of a log interval was said.
    fn trains(&self) -> bool {
        self.said().lines().any(|l| l.starts_with("step "))
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Waits until `done`; false when the process ended before.
    fn watch(&mut self, what: &str, mut done: impl FnMut() -> bool) -> bool {
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
    fn until_it_trains(&mut self) {
        let log = self.log.clone();
        let trains = || fs::read_to_string(&log).unwrap_or_default().lines().any(|l| l.starts_with("step "));
        assert!(self.watch("training", trains), "{}", self.said());
    }

    /// How it ended and what it said; it must end by itself within `seconds`.
    fn ends_within(mut self, seconds: u64) -> (ExitStatus, String) {
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
    fn killed(mut self) -> (bool, String) {
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

/// Says something also where the harness keeps the output of a test that passes to itself.
fn announce(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

// ---- what a run left ----

/// A small run of each kind, quick enough for a test, with the same bits at every start.
const SMALL_VAE: &[&str] = &[
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
const SMALL_GAN: &[&str] = &[
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

fn with<'a>(base: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [base, more].concat()
}

fn rows(run: &Path) -> Vec<Map<String, Value>> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{l:?}: {e}"))).collect()
}

/// Names of a run's checkpoints, oldest first.
fn checkpoints(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    let mut all: Vec<_> = names.filter(|n| n.starts_with("step-")).collect();
    all.sort();
    all
}

/// A checkpoint's folder as a path below that of its run.
fn of_step(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{step:08}"))
}

fn step_of(name: &str) -> u64 {
    name.strip_prefix("step-").unwrap_or_else(|| panic!("{name} is no checkpoint")).parse().unwrap()
}

/// The step of a run's newest checkpoint, 0 without one.
fn newest(run: &Path) -> u64 {
    checkpoints(run).last().map_or(0, |name| step_of(name))
}

/// Files and folders of a write that was not finished.
fn half_written(dir: &Path) -> Vec<PathBuf> {
    listing(dir).into_iter().filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().ends_with(".part"))).collect()
}

fn state(checkpoint: &Path) -> Value {
    serde_json::from_slice(&fs::read(checkpoint.join("state.json")).unwrap()).unwrap()
}

/// Fails unless both files of a checkpoint have the sizes and checksums that its state.json gives.
fn assert_whole(checkpoint: &Path) {
    let state = state(checkpoint);
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let (bytes, sum) = hash::sha256_file(&checkpoint.join(file)).unwrap();
        let want = &state["files"][file];
        assert_eq!((Some(bytes), Some(sum.as_str())), (want["bytes"].as_u64(), want["sha256"].as_str()), "{file}");
    }
}

/// The first difference between what two runs ended with, but for times and their places; none when they are one run.
fn difference(a: &Path, b: &Path) -> Option<String> {
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

fn assert_same(a: &Path, b: &Path) {
    let difference = difference(a, b);
    assert!(difference.is_none(), "{} and {} differ: {}", a.display(), b.display(), difference.unwrap_or_default());
}

fn copy(from: &Path, to: &Path) {
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
/// checkpoints never were, rows after it are there. Later pictures go too: they have to be drawn again.
fn cut(run: &Path, to: &Path, step: u64) {
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
fn rewrite_state(checkpoint: &Path, change: impl Fn(&mut Value)) {
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
fn forget_moments(checkpoint: &Path) {
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

// ---- 1. exact resume ----

/// Seven steps an epoch, the last of 4 images; rows at 3, 6, 7, 9; a checkpoint at 5, within an epoch and an interval.
const CUT: &[&str] = &[
    "--train-limit",
    "100",
    "--test-limit",
    "32",
    "--batch-size",
    "16",
    "--steps",
    "9",
    "--log-every",
    "3",
    "--checkpoint-every",
    "5",
    "--device",
    "cpu",
    "--deterministic",
];

fn preset_run_cut_at_step_5_ends_as_the_whole_one(kind: &str, preset: &str, controls: bool) {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(&["train", kind, "--preset", preset, "--out", "whole"], CUT));
    let whole = d.join("whole");
    let resumed = |name: &str, step: u64, change: &dyn Fn(&Path)| {
        let part = d.join(name);
        cut(&whole, &part, 5);
        change(&part);
        let said = good(d, &["train", "--resume", name]);
        assert!(said.contains(&format!("resuming {name} at step {step}")), "{said}");
        difference(&whole, &part)
    };
    assert_eq!(resumed("part", 5, &|_| ()), None, "{kind} {preset}");
    assert!(half_written(&d.join("part")).is_empty());
    if !controls {
        return;
    }
    // The comparison sees what is there to be seen. Writing the same state by hand changes nothing; the moments or the
    // step do.
    assert_eq!(resumed("by-hand", 5, &|run| rewrite_state(&of_step(run, 5), |_| ())), None);
    let no_moments = resumed("no-moments", 5, &|run| forget_moments(&of_step(run, 5)));
    assert_eq!(no_moments.as_deref(), Some("step-00000009/model.safetensors"));
    let off_by_one = resumed("off-by-one", 6, &|run| {
        rewrite_state(&of_step(run, 5), |state| state["step"] = 6.into());
        fs::rename(of_step(run, 5), of_step(run, 6)).unwrap();
    });
    assert_eq!(off_by_one.as_deref(), Some("step-00000009/model.safetensors"));
}

#[test]
fn a_resumed_article_vae_is_the_uninterrupted_one() {
    preset_run_cut_at_step_5_ends_as_the_whole_one("vae", "article", false);
}

#[test]
fn a_resumed_article_gan_is_the_uninterrupted_one() {
    preset_run_cut_at_step_5_ends_as_the_whole_one("gan", "article", false);
}

#[test]
fn a_resumed_pytorch_vae_is_the_uninterrupted_one_and_the_comparison_can_fail() {
    preset_run_cut_at_step_5_ends_as_the_whole_one("vae", "pytorch-vae", true);
}

#[test]
fn a_resumed_conv_vae_is_the_uninterrupted_one() {
    preset_run_cut_at_step_5_ends_as_the_whole_one("vae", "conv-vae", false);
}

#[test]
fn a_resumed_dcgan_is_the_uninterrupted_one_and_the_comparison_can_fail() {
    preset_run_cut_at_step_5_ends_as_the_whole_one("gan", "dcgan", true);
}

/// A run that was given few steps and then more has rows of its first end, and the weights of the longer run.
#[test]
fn more_steps_later_are_the_same_steps() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for (kind, preset) in [("vae", "pytorch-vae"), ("gan", "dcgan")] {
        let (long, short) = (format!("{kind}-long"), format!("{kind}-short"));
        let base = with(&["train", kind, "--preset", preset], CUT);
        good(d, &with(&base, &["--out", &long]));
        good(d, &with(&base, &["--out", &short, "--steps", "4"]));
        good(d, &["train", "--resume", &short, "--steps", "9"]);
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let read = |run: &str| fs::read(of_step(&d.join(run), 9).join(file)).unwrap();
            assert!(read(&long) == read(&short), "{kind}: {file}");
        }
        let last = |run: &str| {
            let mut row = rows(&d.join(run)).pop().unwrap();
            row.retain(|key, _| key != "wall_s");
            row
        };
        assert_eq!(last(&long), last(&short), "{kind}: the last scores");
    }
}

// ---- 2. SIGKILL ----

/// Sixty kills: before config.toml, before the first checkpoint, while it starts, while it trains, within checkpoints.
#[test]
fn a_run_killed_sixty_times_ends_as_the_uninterrupted_one() {
    const KILLS: usize = 60;
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    // 20 steps an epoch; a checkpoint every 5 steps, a row every 3: most kills land within an interval of each.
    let base = with(
        SMALL_VAE,
        &[
            "--train-limit",
            "320",
            "--batch-size",
            "16",
            "--log-every",
            "3",
            "--checkpoint-every",
            "5",
            "--sample-every",
            "8",
            "--epochs",
            "30",
        ],
    );
    // The uninterrupted run also says how long this machine takes to config.toml and to the first checkpoint.
    let began = Instant::now();
    let mut child = Running::start(d, &with(&base, &["--out", "whole"]));
    let (whole, run) = (d.join("whole"), d.join("killed"));
    assert!(child.watch("config.toml", || whole.join("config.toml").is_file()), "{}", child.said());
    let to_config = began.elapsed();
    assert!(child.watch("checkpoint", || newest(&whole) > 0), "{}", child.said());
    let to_first = began.elapsed();
    let (status, said) = child.ends_within(60);
    assert!(status.success(), "{said}");
    let to_end = began.elapsed();
    let between = (to_end - to_first) / (newest(&whole) / 5) as u32;

    let mut rng = Rng::new(20_251_123);
    let (mut kills, mut tries) = (0, 0);
    let (mut before_config, mut before_first, mut starting, mut training, mut writing) = (0, 0, 0, 0, 0);
    while kills < KILLS {
        tries += 1;
        assert!(tries < 2 * KILLS, "{kills} kills in {tries} starts");
        let begun = run.join("config.toml").is_file();
        let had = newest(&run);
        let mut child = match begun {
            true => Running::start(d, &["train", "--resume", "killed"]),
            false => Running::start(d, &with(&base, &["--out", "killed"])),
        };
        let (extra, moment) = (5 * rng.below(2), rng.uniform());
        let wait = |upto: Duration| sleep(upto.mul_f32(moment));
        let alive = match kills {
            // At any moment before the settings are written.
            0..4 => {
                wait(to_config.mul_f32(0.95));
                true
            }
            // Between the settings and the first checkpoint, soon after the settings at first: a machine that was busy when it was
            // measured may be quick by now.
            4..10 if had == 0 => {
                let log = child.log.clone();
                let there = match begun {
                    true => child.watch("word", || fs::metadata(&log).is_ok_and(|m| m.len() > 0)),
                    false => child.watch("config.toml", || run.join("config.toml").is_file()),
                };
                wait((to_first - to_config).mul_f32(0.8 * (kills - 3) as f32 / 6.0));
                there
            }
            _ => match kills % 4 {
                // Libraries, data, reading the checkpoint.
                0 => {
                    wait(to_config.mul_f32(1.2));
                    true
                }
                // One or two checkpoints further on, and at any moment up to about the next.
                1 | 2 => {
                    let further = had + 5 + extra;
                    let there = child.watch("progress", || newest(&run) >= further);
                    wait(between);
                    there
                }
                // While a checkpoint is written: its folder is there and lacks some of its files.
                _ => {
                    let from = had + extra;
                    let part =
                        || newest(&run) >= from && half_written(&run.join("checkpoints")).iter().any(|p| p.is_dir());
                    let there = child.watch("unfinished checkpoint", part);
                    wait(between / 8);
                    there
                }
            },
        };
        let trains = child.trains();
        let (killed, said) = child.killed();
        assert!(alive && killed, "the run ended by itself after {kills} kills: {said}");
        for bad in ["error: ", "is damaged", "has lost rows"] {
            assert!(!said.contains(bad), "after {kills} kills: {said}");
        }
        kills += 1;
        let torn = half_written(&run.join("checkpoints")).iter().any(|p| p.is_dir());
        before_config += usize::from(!run.join("config.toml").is_file());
        before_first += usize::from(newest(&run) == 0);
        match (torn, trains) {
            (true, _) => writing += 1,
            (false, true) => training += 1,
            (false, false) => starting += 1,
        }
    }
    let reached = newest(&run);
    good(d, &["train", "--resume", "killed"]);
    announce(&format!(
        "{kills} kills up to step {reached} of {}: {before_config} before config.toml, {before_first} before the first \
         checkpoint; {starting} while starting, {training} in training, {writing} that left an unfinished checkpoint \
         (uninterrupted: {:.2} s to config.toml, {:.2} s to the first checkpoint, {:.1} s in all; the test {:.1} s)",
        newest(&run),
        to_config.as_secs_f64(),
        to_first.as_secs_f64(),
        to_end.as_secs_f64(),
        began.elapsed().as_secs_f64()
    ));
    assert!(kills >= 50 && before_config > 0 && before_first > before_config);
    assert!(starting > 0 && training > 0 && writing > 0);
    assert_same(&whole, &run);
    assert_eq!(checkpoints(&whole), checkpoints(&run));
    assert_eq!(half_written(&run), [] as [PathBuf; 0], "leftovers");
}

#[test]
fn a_run_without_a_checkpoint_starts_from_the_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(SMALL_VAE, &["--out", "whole"]));
    good(d, &with(SMALL_VAE, &["--out", "part"]));
    let part = d.join("part");
    fs::remove_dir_all(part.join("checkpoints")).unwrap();
    // The first checkpoint was under way.
    fs::create_dir_all(part.join("checkpoints/.step-00000003.part")).unwrap();
    fs::write(part.join("checkpoints/.step-00000003.part/model.safetensors"), "half").unwrap();
    let said = good(d, &["train", "--resume", "part"]);
    assert!(said.contains("part has no checkpoint yet: it starts from the beginning"), "{said}");
    assert_same(&d.join("whole"), &part);
    assert_eq!(half_written(&part), [] as [PathBuf; 0], "leftovers");
    // Killed before its settings were written: the same command again.
    fs::create_dir_all(d.join("early")).unwrap();
    for leftover in [".lock", "config.toml.part"] {
        fs::write(d.join("early").join(leftover), "").unwrap();
    }
    refused(d, &["train", "--resume", "early"], 2, &["early", "config.toml"]);
    good(d, &with(SMALL_VAE, &["--out", "early"]));
    assert_same(&d.join("whole"), &d.join("early"));
    assert_eq!(half_written(&d.join("early")), [] as [PathBuf; 0], "leftovers");
    // Anything else is somebody's.
    fs::create_dir(d.join("theirs")).unwrap();
    fs::write(d.join("theirs/.lock"), "").unwrap();
    fs::write(d.join("theirs/notes"), "").unwrap();
    refused(d, &with(SMALL_VAE, &["--out", "theirs"]), 2, &["--out theirs", "not empty"]);
}

// ---- 3. the lock ----

#[test]
fn a_second_process_on_a_run_is_refused_and_a_killed_one_leaves_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let endless = with(SMALL_VAE, &["--out", "r", "--epochs", "1000000", "--sample-every", "0"]);
    let mut first = Running::start(d, &endless);
    first.until_it_trains();
    for _ in 0..2 {
        let second = Running::start(d, &["train", "--resume", "r"]);
        let (status, said) = second.ends_within(30);
        assert_eq!(status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        sentence(&said, &["r", "is in use by another ganvae"]);
    }
    // A run in training can be looked at.
    first.watch("checkpoint", || newest(&d.join("r")) > 0);
    good(d, &["sample", "r", "--out", "now.png"]);
    assert!(first.killed().0);
    let mut third = Running::start(d, &["train", "--resume", "r"]);
    third.until_it_trains();
    third.signal("TERM");
    let (status, said) = third.ends_within(30);
    assert_eq!(status.code(), Some(143), "{said}");
    // Two that start in one folder at once: one trains, the other is told.
    let both = [0, 1].map(|_| Running::start(d, &with(SMALL_VAE, &["--out", "same"])));
    let mut ends: Vec<_> = both.into_iter().map(|one| one.ends_within(60)).collect();
    ends.sort_by_key(|(status, _)| status.code());
    assert_eq!(ends[0].0.code(), Some(0), "{ends:?}");
    let told = sentence(&ends[1].1, &["same"]);
    assert!(told.contains("is in use by another ganvae") || told.contains("not empty"), "{told}");
    good(d, &with(SMALL_VAE, &["--out", "alone"]));
    assert_same(&d.join("alone"), &d.join("same"));
}

// ---- 4. settings ----

#[test]
fn resuming_names_every_setting_that_may_not_change() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(SMALL_VAE, &["--out", "v"]));
    good(d, &with(SMALL_GAN, &["--out", "g"]));
    let vae = |args: &[&str], parts: &[&str]| refused(d, &with(&["train", "--resume", "v"], args), 2, parts);
    let gan = |args: &[&str], parts: &[&str]| refused(d, &with(&["train", "--resume", "g"], args), 2, parts);
    let other = ["train", "gan", "--resume", "v"];
    refused(d, &other, 2, &["v is a run of a vae, and `train gan` was asked for: leave the gan out"]);
    // Each difference is `KEY... IN THE RUN in the run, ASKED FOR asked for`.
    let cannot = "--resume cannot change ";
    vae(&["--lr", "0.01"], &[cannot, "lr", "0.001 in the run, 0.01 asked for"]);
    let said = vae(
        &["--lr", "0.01", "--batch-size", "64", "--seed", "3", "--epochs", "5", "--latent", "20"],
        &[
            "lr",
            "0.001 in the run, 0.01 asked for",
            "batch-size",
            "128 in the run, 64 asked for",
            "seed",
            "0 in the run, 3 asked for",
        ],
    );
    assert!(!said.contains("epochs") && !said.contains("latent"), "only what differs and may not: {said}");
    for (flag, value) in [
        ("preset", "conv-vae"),
        ("arch", "conv"),
        ("latent", "21"),
        ("encoder-hidden", "16"),
        ("decoder-hidden", "32,16"),
        ("activation", "tanh"),
        ("beta", "2"),
        ("kl-warmup", "1"),
        ("batch-size", "100"),
        ("beta1", "0.5"),
        ("beta2", "0.9"),
        ("adam-eps", "0.1"),
        ("weight-decay", "0.5"),
        ("clip-norm", "1"),
        ("seed", "1"),
        ("tune", "off"),
        ("image-size", "14"),
        ("channels", "3"),
        ("train-limit", "200"),
        ("test-limit", "10"),
    ] {
        vae(&[&format!("--{flag}"), value], &[cannot, flag, "in the run", "asked for"]);
    }
    vae(&["--deterministic=false"], &[cannot, "deterministic", "true in the run, false asked for"]);
    vae(&["--out", "elsewhere"], &["out"]);
    for (flag, value) in
        [("gan-loss", "minimax"), ("ema", "0.5"), ("base-width", "8"), ("discriminator-hidden", "9"), ("lr", "1e-5")]
    {
        gan(&[&format!("--{flag}"), value], &[cannot, flag]);
    }
    // Fewer than there are.
    vae(&["--epochs", "1"], &["epochs"]);
    vae(&["--steps", "3"], &["steps"]);
    gan(&["--epochs", "1"], &["epochs"]);
    // In steps as well.
    let few = with(
        &["train", "vae", "--train-limit", "300", "--test-limit", "10", "--encoder-hidden", "8"],
        &["--decoder-hidden", "8", "--steps", "5", "--device", "cpu", "--deterministic", "--out", "s"],
    );
    good(d, &few);
    refused(d, &["train", "--resume", "s", "--steps", "4"], 2, &["steps"]);
    refused(d, &["train", "--resume", "s", "--epochs", "1"], 2, &["epochs"]);
    good(d, &["train", "--resume", "s", "--epochs", "2"]);
    assert_eq!(newest(&d.join("s")), 6);
    // Nothing of this has touched the runs.
    good(d, &with(SMALL_VAE, &["--out", "w"]));
    assert_same(&d.join("v"), &d.join("w"));
}

#[test]
fn resuming_takes_equal_settings_and_those_that_may_change() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(SMALL_VAE, &["--out", "whole", "--epochs", "4"]));
    good(d, &with(SMALL_VAE, &["--out", "same"]));
    // The command that began the run, with --resume in place of its place.
    let again = with(SMALL_VAE, &["--epochs", "4", "--resume", "same"]);
    assert_eq!(again[1], "vae");
    let spelt_out = ["--lr", "1e-3", "--preset", "pytorch-vae", "--beta", "1.0", "--seed", "0"];
    good(d, &with(&again, &spelt_out));
    assert_same(&d.join("whole"), &d.join("same"));
    good(d, &with(SMALL_VAE, &["--out", "other"]));
    let other = d.join("other");
    let may_change = ["--log-every", "1", "--checkpoint-every", "2", "--sample-every", "0", "--eval-every", "0"];
    let more = ["--keep", "9", "--device", "cpu", "--data", "digits", "--data-dir", "x", "--epochs", "4"];
    good(d, &[&["train", "--resume", "other"][..], &may_change, &more].concat());
    let weights = |run: &str| fs::read(of_step(&d.join(run), 12).join("model.safetensors")).unwrap();
    assert!(weights("whole") == weights("other"), "none of these changes what is computed");
    let steps: Vec<_> = rows(&other).iter().map(|r| r["step"].as_u64().unwrap()).filter(|s| *s > 6).collect();
    assert_eq!(steps, [7, 8, 9, 10, 11, 12, 12], "a row every step, one score at the end");
    assert!(!other.join("samples/epoch-0003.png").exists() && other.join("samples/epoch-0004.png").exists());
    let kept = checkpoints(&other);
    assert_eq!(kept[kept.len() - 3..], ["step-00000008", "step-00000010", "step-00000012"]);
    // They stay: the run's config.toml has them now.
    good(d, &["train", "--resume", "other", "--epochs", "5", "--threads", "2"]);
    assert_eq!(checkpoints(&other).last().unwrap(), "step-00000015");
    assert!(of_step(&other, 14).is_dir() && rows(&other).iter().any(|r| r["step"] == 13));
}

/// A folder of IDX files whose pixels start at `first`.
fn idx_folder(dir: &Path, name: &str, first: u8) -> String {
    let folder = dir.join(name);
    fs::create_dir_all(&folder).unwrap();
    for (split, n) in [("train", 12u32), ("t10k", 3)] {
        let mut images = vec![0, 0, 8, 3];
        [n, 8, 8].iter().for_each(|d| images.extend(d.to_be_bytes()));
        images.extend((0..n * 64).map(|i| first.wrapping_add(i as u8)));
        let mut labels = vec![0, 0, 8, 1];
        labels.extend(n.to_be_bytes());
        labels.extend((0..n).map(|i| i as u8 % 10));
        fs::write(folder.join(format!("{split}-images-idx3-ubyte")), images).unwrap();
        fs::write(folder.join(format!("{split}-labels-idx1-ubyte")), labels).unwrap();
    }
    folder.to_string_lossy().into_owned()
}

#[test]
fn the_same_images_may_be_in_another_place_and_other_images_may_not() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let here = idx_folder(d, "here", 0);
    let small = ["--encoder-hidden", "8", "--decoder-hidden", "8", "--latent", "2", "--batch-size", "5"];
    let run = ["train", "vae", "--device", "cpu", "--deterministic", "--epochs", "1", "--out", "r", "--data", &here];
    good(d, &[&run[..], &small].concat());
    fs::rename(d.join("here"), d.join("moved")).unwrap();
    refused(d, &["train", "--resume", "r", "--epochs", "2"], 2, &["here"]);
    let other = idx_folder(d, "other", 1);
    let said = refused(d, &["train", "--resume", "r", "--epochs", "2", "--data", &other], 1, &["--data", "other"]);
    assert!(said.contains("checksum"), "{said}");
    good(d, &["train", "--resume", "r", "--epochs", "2", "--data", "moved"]);
    good(d, &["train", "--resume", "r", "--epochs", "3"]);
    assert_eq!(newest(&d.join("r")), 9);
}

#[test]
fn an_edited_config_is_refused_with_each_changed_key() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(SMALL_VAE, &["--out", "r"]));
    let file = d.join("r/config.toml");
    let config = fs::read_to_string(&file).unwrap();
    let edited = |changes: &[(&str, &str)]| {
        let mut text = config.clone();
        for (from, to) in changes {
            assert!(text.contains(from), "{from} in {text}");
            text = text.replacen(from, to, 1);
        }
        fs::write(&file, text).unwrap();
    };
    let resume = ["train", "--resume", "r", "--epochs", "3"];
    edited(&[("\nlr = 0.001", "\nlr = 0.01"), ("batch-size = 128", "batch-size = 64"), ("seed = 0", "seed = 4")]);
    let said = refused(d, &resume, 2, &["config.toml", "lr", "batch-size", "seed", "0.001", "0.01", "128", "64"]);
    assert!(!said.contains("epochs") && !said.contains("latent"), "{said}");
    refused(d, &with(&resume, &["--lr", "0.01", "--batch-size", "64", "--seed", "4"]), 2, &["config.toml", "lr"]);
    for (from, to, key) in [
        ("latent = 20", "latent = 21", "latent"),
        ("encoder-hidden = [32]", "encoder-hidden = [32, 8]", "encoder-hidden"),
        ("train-limit = 300", "train-limit = 299", "train-limit"),
        ("train-limit = 300\n", "", "train-limit"),
        ("beta = 1.0", "beta = 1.5", "beta"),
        ("deterministic = true", "deterministic = false", "deterministic"),
        ("epochs = 2", "epochs = 1", "epochs"),
    ] {
        edited(&[(from, to)]);
        let args = if key == "epochs" { &resume[..3] } else { &resume[..] };
        refused(d, args, 2, &[if key == "epochs" { "" } else { "config.toml" }, key]);
    }
    // A key that no run knows, or a broken file: also a sentence that names it.
    edited(&[("latent = 20", "latnet = 20")]);
    refused(d, &resume, 2, &["config.toml", "latnet"]);
    edited(&[("latent = 20", "latent = ")]);
    refused(d, &resume, 2, &["config.toml"]);
    // What may change may be edited too, and the text as it was is as good as ever.
    edited(&[("log-every = 2", "log-every = 1"), ("keep = 3", "keep = 5")]);
    good(d, &resume);
    assert!(rows(&d.join("r")).iter().any(|r| r["step"] == 7));
}

// ---- 5 to 7. disks ----

/// Runs a shell script in `dir` with mounts of its own, `$BIN` being the program; nothing where this is not allowed.
fn with_own_mounts(test: &str, dir: &Path, script: &str) -> Option<Output> {
    let sh = |script: &str| command("unshare", dir).args(["-rm", "sh", "-euc", script]).env("BIN", BIN).output();
    let probe = sh("mkdir -p probe && mount -t tmpfs -o size=64k tmpfs probe && mount -o remount,size=128k probe");
    let why = match probe {
        Ok(out) if out.status.success() => return Some(sh(script).unwrap()),
        Ok(out) => text(&out.stderr),
        Err(e) => e.to_string(),
    };
    announce(&format!("SKIPPED {test}: no mounts of its own (unshare -rm, mount -t tmpfs) here: {}", why.trim()));
    None
}

/// For every size the disk is full somewhere else: at the settings, the first pictures, the rows, a checkpoint.
#[test]
fn a_full_disk_stops_a_run_with_one_sentence_and_a_whole_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    // A checkpoint is about 630 kB: 15 of them are too many for each of the disks, and one for the smaller ones.
    let often = with(SMALL_VAE, &["--epochs", "5", "--keep", "99", "--checkpoint-every", "1"]).join(" ");
    let seldom = often.replace("--checkpoint-every 1", "--checkpoint-every 0");
    for (args, out) in [(&often, "whole-often"), (&seldom, "whole-seldom")] {
        let args: Vec<&str> = args.split(' ').collect();
        good(d, &with(&args, &["--out", out]));
    }
    let often_sizes = ["4k", "12k", "64k", "1000k", "2m", "3m"].map(|size| (size, "often"));
    let seldom_sizes = ["36k", "52k", "200k", "500k"].map(|size| (size, "seldom"));
    let disks = [&often_sizes[..], &seldom_sizes].concat();
    let script = format!(
        r#"
        for disk in {}; do
            size=${{disk%:*}}
            case $disk in *:often) args="{often}" ;; *) args="{seldom}" ;; esac
            mkdir $size m-$size
            mount -t tmpfs -o size=$size tmpfs m-$size
            code=0; "$BIN" $args --out m-$size/r 2>$size/said || code=$?
            echo $code >$size/code
            cp -a m-$size/r $size/full || true
            mount -o remount,size=64m m-$size
            if [ -f m-$size/r/config.toml ]; then go="train --resume m-$size/r"; else go="$args --out m-$size/r"; fi
            "$BIN" $go 2>$size/again || echo "ended with $?" >>$size/again
            cp -a m-$size/r $size/run
            umount m-$size
        done
        "#,
        disks.iter().map(|(size, how)| format!("{size}:{how}")).collect::<Vec<_>>().join(" ")
    );
    let Some(out) = with_own_mounts("a full disk", d, &script) else { return };
    assert!(out.status.success(), "{}", text(&out.stderr));
    let (mut resumed, mut named) = (0, Vec::new());
    for (size, how) in disks {
        let read = |name: &str| fs::read_to_string(d.join(size).join(name)).unwrap();
        let (said, again) = (read("said"), read("again"));
        assert_eq!(read("code").trim(), "1", "{size}: {said}");
        let last = sentence(&said, &[&format!("m-{size}/r"), "No space left on device"]);
        named.push(format!("{size}: {last}"));
        let full = d.join(size).join("full");
        checkpoints(&full).iter().for_each(|name| assert_whole(&full.join("checkpoints").join(name)));
        let step = newest(&full);
        if step > 0 {
            resumed += 1;
            assert!(again.contains(&format!("resuming m-{size}/r at step {step}")), "{size}: {again}");
            assert_eq!(fs::read_to_string(full.join("checkpoints/latest")).unwrap(), format!("step-{step:08}"));
        }
        assert!(!again.contains("ended with"), "{size}: {again}");
        assert_same(&d.join(format!("whole-{how}")), &d.join(size).join("run"));
        assert_eq!(half_written(&d.join(size).join("run")), [] as [PathBuf; 0], "{size}");
    }
    announce(&format!("full disks:\n{}", named.join("\n")));
    assert!(resumed >= 2, "{resumed} of the runs had a checkpoint");
}

#[test]
fn a_run_whose_folder_is_removed_stops_with_one_sentence() {
    for (name, more) in [
        // What first misses its folder: a checkpoint, a picture, or nothing before the end.
        ("checkpoints", &["--epochs", "100000", "--checkpoint-every", "7", "--sample-every", "0"][..]),
        ("pictures", &["--epochs", "100000", "--checkpoint-every", "0"]),
        ("both", &["--epochs", "100000"]),
        ("the-end", &["--epochs", "1500", "--checkpoint-every", "0", "--sample-every", "0", "--eval-every", "0"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        let mut child = Running::start(d, &with(&with(SMALL_VAE, &["--out", name]), more));
        child.until_it_trains();
        // The run may be making a file in it at this moment.
        while let Err(e) = fs::remove_dir_all(d.join(name)) {
            assert_eq!(e.kind(), std::io::ErrorKind::DirectoryNotEmpty, "{e}");
        }
        let (status, said) = child.ends_within(60);
        assert_eq!(status.code(), Some(1), "{said}");
        let last = sentence(&said, &[name]);
        assert!(last.contains("No such file") || last.contains("removed"), "{last}");
        announce(&format!("removed: {last}"));
        // Nothing of it comes back: half a run without its settings would be in the way of the next.
        assert_eq!(listing(&d.join(name)), [] as [PathBuf; 0], "{name}");
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(SMALL_VAE, &["--out", "r"]));
    fs::create_dir(d.join("m")).unwrap();
    copy(&d.join("r"), &d.join("m/r"));
    let args = SMALL_VAE.join(" ");
    let steps = format!(
        r#"
        code=0; "$BIN" {args} --out m/new 2>new || code=$?; echo $code >>new
        code=0; "$BIN" train --resume m/r --epochs 3 2>old || code=$?; echo $code >>old
        "#
    );
    // Mounted read-only, which not even root may write to.
    let mounted = format!("mount -t tmpfs tmpfs m; cp -a r m/r; mount -o remount,ro m; {steps}");
    if with_own_mounts("a folder mounted read-only", d, &mounted).is_none() {
        // SAFETY: no arguments, no memory.
        if unsafe { libc::geteuid() } == 0 {
            announce("SKIPPED a read-only folder: root may write to any that is not mounted so");
            return;
        }
        let script = format!("chmod -R a-w m; {steps}; chmod -R u+w m");
        assert!(command("sh", d).args(["-euc", &script]).env("BIN", BIN).status().unwrap().success());
    }
    for (log, path) in [("new", "m/new"), ("old", "m/r")] {
        let text = fs::read_to_string(d.join(log)).unwrap();
        let (said, code) = text.trim_end().rsplit_once('\n').unwrap();
        assert_eq!(code, "1", "{said}");
        let last = sentence(said, &[path]);
        assert!(last.contains("Read-only file system") || last.contains("Permission denied"), "{last}");
        assert_eq!(said.lines().count(), 1, "told at once, not after training: {said}");
        announce(&format!("read-only: {last}"));
    }
    assert!(!d.join("m/new").exists());
}

// ---- 8. SIGTERM and SIGINT ----

/// A handler's frame on the stack of a thread that computes breaks what kernels of oneDNN keep there (src/signals.rs), so no
/// thread may have one: every thread blocks both signals, the process has no handler for them, and one thread waits for them.
#[test]
fn no_thread_that_computes_is_interrupted_by_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let mut run = Running::start(d, &with(SMALL_VAE, &["--out", "r", "--epochs", "100000", "--log-every", "1"]));
    run.until_it_trains();
    // Bits of signals 2 and 15, which count from 1.
    let both = (1u64 << 1) | (1 << 14);
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{}/task", run.child.id())).unwrap() {
        let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        let bits = |key: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        assert_eq!(bits("SigCgt:") & both, 0, "{status}");
        // The system lets them through to the one that waits.
        if !status.starts_with("Name:\tsignals\n") {
            assert_eq!(bits("SigBlk:") & both, both, "{status}");
            threads += 1;
        }
    }
    assert!(threads >= 1, "the one that trains");
    run.signal("TERM");
    let (status, said) = run.ends_within(30);
    assert_eq!(status.code(), Some(143), "{said}");
}

/// Before there is anything to keep, a signal does what it does to any program.
#[test]
fn a_signal_before_training_ends_the_program_as_any_other() {
    let dir = tempfile::tempdir().unwrap();
    // Drawing so many digits takes seconds.
    let run = Running::start(dir.path(), &["train", "vae", "--data", "digits:77", "--out", "r", "--device", "cpu"]);
    sleep(Duration::from_millis(150));
    run.signal("TERM");
    let (status, said) = run.ends_within(10);
    assert_eq!(status.signal(), Some(15), "{said}");
    assert!(!dir.path().join("r").exists());
}

#[test]
fn the_largest_preset_stops_in_time_and_a_second_signal_stops_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let run = d.join("r");
    let mut args = vec!["train", "vae", "--preset", "article", "--train-limit", "2560", "--test-limit", "100"];
    args.extend(["--log-every", "1", "--checkpoint-every", "0", "--sample-every", "0", "--eval-every", "0"]);
    args.extend(["--epochs", "1000", "--device", "cpu", "--deterministic", "--out", "r"]);
    let mut first = Running::start(d, &args);
    first.until_it_trains();
    let began = Instant::now();
    first.signal("TERM");
    let (status, said) = first.ends_within(30);
    let to_stop = began.elapsed();
    assert_eq!(status.code(), Some(143), "{said}");
    assert!(said.contains("go on with: ganvae train --resume r"), "{said}");
    let step = newest(&run);
    assert!(step > 0);
    assert_whole(&of_step(&run, step));

    // Two signals: the second one as soon as the first one's checkpoint is under way.
    let mut second = Running::start(d, &["train", "--resume", "r"]);
    second.until_it_trains();
    second.signal("INT");
    let under_way = second.watch("checkpoint", || half_written(&run.join("checkpoints")).iter().any(|p| p.is_dir()));
    assert!(under_way, "it was over before it was seen: {}", second.said());
    let began = Instant::now();
    second.signal("INT");
    let (status, said) = second.ends_within(5);
    let at_once = began.elapsed();
    assert_eq!(status.code(), Some(130), "{said}");
    let left = newest(&run);
    assert_whole(&of_step(&run, left));

    let mut third = Running::start(d, &["train", "--resume", "r"]);
    third.until_it_trains();
    third.signal("TERM");
    let (status, said) = third.ends_within(30);
    assert_eq!(status.code(), Some(143), "{said}");
    assert!(said.contains(&format!("resuming r at step {left}")), "{said}");
    assert!(newest(&run) > left);
    assert_whole(&of_step(&run, newest(&run)));
    assert_eq!(half_written(&run), [] as [PathBuf; 0], "what the second signal cut short is gone");
    announce(&format!(
        "article vae: SIGTERM to the end {:.2} s; a second SIGINT {:.3} s (steps {step}, {left})",
        to_stop.as_secs_f64(),
        at_once.as_secs_f64()
    ));
}

/// A signal at any step, with no row or checkpoint due there, leaves no trace in what the run becomes.
#[test]
fn a_run_stopped_by_signals_again_and_again_is_the_uninterrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for (kind, small) in [("v", SMALL_VAE), ("g", SMALL_GAN)] {
        let base = with(small, &["--batch-size", "20", "--log-every", "7", "--epochs", "12", "--sample-every", "4"]);
        let (whole, run) = (d.join(format!("{kind}-whole")), d.join(kind));
        good(d, &with(&base, &["--out", &format!("{kind}-whole")]));
        let mut stops = 0;
        for i in 0..6 {
            let args = if i == 0 { with(&base, &["--out", kind]) } else { vec!["train", "--resume", kind] };
            let mut child = Running::start(d, &args);
            let log = child.log.clone();
            // Its first words come after libraries, data and checkpoint: from here on it stops by itself.
            let words = || fs::read_to_string(&log).unwrap_or_default().contains("held-out images");
            assert!(child.watch("headline", words), "{}", child.said());
            sleep(Duration::from_millis(3 * i));
            child.signal(["INT", "TERM"][i as usize % 2]);
            let (status, said) = child.ends_within(30);
            if status.success() {
                break;
            }
            assert_eq!(status.code(), Some([130, 143][i as usize % 2]), "{said}");
            stops += 1;
        }
        assert!(stops >= 2, "{stops} stops");
        if newest(&run) < newest(&whole) {
            good(d, &["train", "--resume", kind]);
        }
        assert_same(&whole, &run);
    }
}

// ---- 9. divergence ----

/// Adam at a step size of 1 with this weight of the KL term overflows exp(logvar) within a few steps.
const DIVERGING: &[&str] = &["--lr", "1", "--beta", "1000", "--epochs", "400", "--checkpoint-every", "1"];

fn assert_finite(checkpoint: &Path) {
    assert_whole(checkpoint);
    for file in ["model.safetensors", "optimizer.safetensors"] {
        for (name, t) in tch::Tensor::read_safetensors(checkpoint.join(file)).unwrap() {
            assert_eq!(t.isfinite().all().int64_value(&[]), 1, "{name} in {}", checkpoint.display());
        }
    }
}

/// The rows of a run that tell of a rollback: (step, rollbacks, diverged_at, lr).
fn rollbacks(run: &Path) -> Vec<(u64, u64, u64, f64)> {
    let told = rows(run).into_iter().filter(|r| r.contains_key("rollbacks"));
    let whole = |row: &Map<String, Value>, key: &str| row[key].as_u64().unwrap_or_else(|| panic!("{key} in {row:?}"));
    told.map(|r| (whole(&r, "step"), whole(&r, "rollbacks"), whole(&r, "diverged_at"), r["lr"].as_f64().unwrap()))
        .collect()
}

#[test]
fn a_run_that_diverges_stops_with_its_last_good_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let out = ganvae(d, &with(&with(SMALL_VAE, &["--out", "r"]), DIVERGING));
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    let last = sentence(&said, &["diverged", "step", "--lr"]);
    let run = d.join("r");
    let good = newest(&run);
    assert!(good > 0, "{last}");
    assert_finite(&of_step(&run, good));
    let names_step = last.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok()).any(|n| n > good);
    assert!(names_step, "the step, after {good}, is not in: {last}");
    assert_eq!(rollbacks(&run), []);
    announce(&format!("diverged: {last}"));
    // It would diverge again, so this says so again; nothing gets worse.
    let out = ganvae(d, &["train", "--resume", "r"]);
    assert_eq!(out.status.code(), Some(1));
    sentence(&text(&out.stderr), &["diverged"]);
    assert_finite(&of_step(&run, newest(&run)));
}

#[test]
fn a_run_that_diverges_is_rolled_back_at_most_so_often() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let base = with(&with(SMALL_VAE, DIVERGING), &["--on-divergence", "rollback"]);
    for (name, more, times) in [
        ("default", &[][..], 3),
        ("once", &["--rollbacks", "1"], 1),
        ("from-the-start", &["--checkpoint-every", "0", "--rollbacks", "2"], 2),
    ] {
        let out = ganvae(d, &with(&with(&base, &["--out", name]), more));
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{name}: {said}");
        sentence(&said, &["diverged"]);
        let events = rollbacks(&d.join(name));
        assert_eq!(said.matches("rolled back to step").count(), times, "{name}: {said}");
        assert_eq!(events.len(), times, "{name}: {events:?}");
        for (i, (step, count, diverged_at, lr)) in events.into_iter().enumerate() {
            assert_eq!(count, i as u64 + 1, "{name}");
            assert_eq!(lr, 0.5f64.powi(i as i32 + 1), "{name}: half each time");
            assert!(step < diverged_at, "{name}: from {diverged_at} to {step}");
            assert!(said.contains(&format!("rolled back to step {step}")), "{name}: {step} in {said}");
            assert!(name != "from-the-start" || step == 0, "{name}: {step}");
        }
        if newest(&d.join(name)) > 0 {
            assert_finite(&of_step(&d.join(name), newest(&d.join(name))));
        }
    }
}

/// With half the step size often enough the run gets through, and a cut anywhere on its way changes nothing.
#[test]
fn a_run_that_was_rolled_back_gets_through_and_resumes_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let mut args = with(SMALL_VAE, &["--lr", "1", "--on-divergence", "rollback", "--rollbacks", "12", "--epochs", "8"]);
    args.extend(["--checkpoint-every", "2", "--keep", "99", "--out", "whole"]);
    let said = good(d, &args);
    let whole = d.join("whole");
    let events = rollbacks(&whole);
    let times = events.len();
    assert!(times >= 2, "{events:?}");
    assert_eq!(said.matches("rolled back to step").count(), times, "{said}");
    let lr = rows(&whole).into_iter().rev().find(|r| r.contains_key("loss")).unwrap()["lr"].as_f64();
    assert_eq!(lr, Some(0.5f64.powi(times as i32)));
    let last = events[times - 1].0;
    for step in [0, last, last + 2, newest(&whole) - 2] {
        let name = format!("cut-at-{step}");
        if !d.join(&name).exists() {
            cut(&whole, &d.join(&name), step);
            good(d, &["train", "--resume", &name]);
            assert_same(&whole, &d.join(&name));
        }
    }
    announce(&format!("rolled back (step, times, diverged at, lr): {events:?}"));
}

// ---- 10. --keep and best ----

/// The names that must be kept: the `n` newest, and the best where there is one.
fn must_keep(all: &[u64], n: usize, best: Option<u64>) -> Vec<String> {
    let mut kept: Vec<u64> = all[all.len() - n..].to_vec();
    kept.extend(best);
    kept.sort_unstable();
    kept.dedup();
    kept.iter().map(|step| format!("step-{step:08}")).collect()
}

/// The step with the lowest test_loss.
fn best_step(run: &Path) -> u64 {
    let scores = rows(run);
    let scores = scores.iter().filter_map(|r| Some((r["step"].as_u64()?, r.get("test_loss")?.as_f64()?)));
    scores.min_by(|a, b| a.1.total_cmp(&b.1)).expect("scores").0
}

#[test]
fn the_newest_checkpoints_and_the_best_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    // Sixteen images by heart: the held-out loss falls, then rises.
    let mut base = vec!["train", "vae", "--train-limit", "16", "--test-limit", "100", "--batch-size", "8"];
    base.extend(["--lr", "0.01", "--sample-every", "0", "--device", "cpu", "--threads", "1", "--deterministic"]);
    good(d, &with(&base, &["--epochs", "30", "--keep", "2", "--out", "whole"]));
    let whole = d.join("whole");
    let best = best_step(&whole);
    assert!((4..50).contains(&best), "the run must have its best before its end: {best}");
    let all: Vec<u64> = (1..=30).map(|epoch| 2 * epoch).collect();
    assert_eq!(checkpoints(&whole), must_keep(&all, 2, Some(best)));
    let named = |run: &Path| fs::read_to_string(run.join("checkpoints/best")).unwrap();
    assert_eq!(named(&whole), format!("step-{best:08}"));
    assert_whole(&of_step(&whole, best));

    // Stopped and gone on with after its best: it is remembered, and gives way only to a better one.
    good(d, &with(&base, &["--epochs", "28", "--keep", "2", "--out", "part"]));
    let part = d.join("part");
    good(d, &["train", "--resume", "part", "--epochs", "30"]);
    for folder in ["samples", "reconstructions"] {
        // Of its first end, which `whole` has not had.
        fs::remove_file(part.join(folder).join("epoch-0028.png")).unwrap();
    }
    assert_same(&whole, &part);
    assert_eq!(checkpoints(&part), must_keep(&all, 2, Some(best)));
    good(d, &["train", "--resume", "part", "--epochs", "31", "--keep", "1"]);
    assert_eq!(checkpoints(&part), must_keep(&[&all[..], &[62]].concat(), 1, Some(best_step(&part))));
    // Also with the rows gone: what is known of the best must not stand in a file that may be lost.
    let best = best_step(&part);
    fs::remove_file(part.join("metrics.jsonl")).unwrap();
    good(d, &["train", "--resume", "part", "--epochs", "32"]);
    assert_eq!(named(&part), format!("step-{best:08}"));
    assert!(of_step(&part, best).is_dir() && of_step(&part, 64).is_dir() && checkpoints(&part).len() == 2);

    // Killed when the best one had its name and `best` still named the one before: it is made good.
    let all_kept = d.join("all-kept");
    good(d, &with(&base, &["--epochs", "30", "--keep", "99", "--out", "all-kept"]));
    assert_eq!(checkpoints(&all_kept).len(), 30);
    cut(&all_kept, &d.join("between"), best);
    for pointer in ["latest", "best"] {
        fs::write(d.join("between/checkpoints").join(pointer), format!("step-{:08}", best - 2)).unwrap();
    }
    good(d, &["train", "--resume", "between", "--keep", "2"]);
    assert_eq!(named(&d.join("between")), format!("step-{best:08}"));
    assert_eq!(checkpoints(&d.join("between")), must_keep(&all, 2, Some(best)));

    // Early stops keep early bests: the best so far, whatever comes.
    good(d, &with(&base, &["--epochs", "3", "--keep", "1", "--out", "early"]));
    assert_eq!(named(&d.join("early")), format!("step-{:08}", best_step(&d.join("early"))));

    // A GAN has no best.
    good(d, &with(SMALL_GAN, &["--out", "g", "--checkpoint-every", "1", "--keep", "3", "--epochs", "4"]));
    let gan = d.join("g");
    let all: Vec<u64> = (1..=newest(&gan)).collect();
    assert_eq!(checkpoints(&gan), must_keep(&all, 3, None));
    assert!(!gan.join("checkpoints/best").exists());
}

// ---- 11. damage ----

/// Changes the bytes of a file.
type Damage = fn(&mut Vec<u8>);

/// What may befall a file.
const DAMAGES: &[(&str, Damage)] = &[
    ("truncated", |b| b.truncate(b.len() / 2)),
    ("one byte short", |b| b.truncate(b.len() - 1)),
    ("empty", Vec::clear),
    ("zeroed", |b| b.fill(0)),
    ("last page zeroed", |b| {
        let from = b.len() - b.len().min(4096);
        b[from..].fill(0)
    }),
    ("bit flipped", |b| {
        let middle = b.len() / 2;
        b[middle] ^= 4
    }),
];

#[test]
fn each_damaged_file_of_the_newest_checkpoint_is_named_and_the_one_before_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(SMALL_VAE, &["--out", "whole"]));
    let whole = d.join("whole");
    assert_eq!(checkpoints(&whole), ["step-00000003", "step-00000006"]);
    // A fresh copy each time: nothing of the last repair helps the next.
    let resumed = |file: &str, what: &str, damage: &dyn Fn(&Path)| {
        let run = d.join("r");
        let _ = fs::remove_dir_all(&run);
        copy(&whole, &run);
        damage(&of_step(&run, 6).join(file));
        let said = good(d, &["train", "--resume", "r"]);
        let warning =
            said.lines().find(|l| l.starts_with("warning: ")).unwrap_or_else(|| panic!("{file} {what}: {said}"));
        assert!(warning.contains("step-00000006/") && warning.contains(file), "{file} {what}: {warning}");
        assert!(said.contains("resuming r at step 3"), "{file} {what}: {said}");
        assert_eq!(difference(&whole, &run), None, "{file} {what}");
    };
    for file in ["model.safetensors", "optimizer.safetensors", "state.json", "state.sha256"] {
        for (what, change) in DAMAGES {
            resumed(file, what, &|path| {
                let mut bytes = fs::read(path).unwrap();
                change(&mut bytes);
                fs::write(path, bytes).unwrap();
            });
        }
        resumed(file, "missing", &|path| fs::remove_file(path).unwrap());
    }
    // Numbers of state.json that are still numbers.
    for key in ["\"step\": ", "\"wall_s\": ", "\"meter_images\": ", "\"metrics_bytes\": "] {
        resumed("state.json", key, &|path| {
            let mut bytes = fs::read(path).unwrap();
            let at = text(&bytes).find(key).unwrap_or_else(|| panic!("{key} in {}", text(&bytes))) + key.len();
            assert!(bytes[at].is_ascii_digit());
            bytes[at] ^= 1;
            fs::write(path, bytes).unwrap();
        });
    }
}

#[test]
fn a_run_with_no_whole_checkpoint_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(SMALL_VAE, &["--out", "r"]));
    let run = d.join("r");
    for (step, file) in [(3, "optimizer.safetensors"), (6, "model.safetensors")] {
        let path = of_step(&run, step).join(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[1000] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let before = listing(&run);
    let out = ganvae(d, &["train", "--resume", "r"]);
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    let last = sentence(&said, &["no whole checkpoint", "r/checkpoints"]);
    for path in ["step-00000003/optimizer.safetensors", "step-00000006/model.safetensors"] {
        assert!(said.contains(path), "{path}: {said}");
    }
    assert_eq!(listing(&run), before, "nothing is thrown away");
    announce(&format!("both damaged: {last}"));
}
