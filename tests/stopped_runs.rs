//! Runs that a signal stops or whose training diverges: each leaves a whole checkpoint to go on from.

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::runs::*;
use common::{ganvae, say, sentence, text};
use serde_json::{Map, Value};

/// A handler's frame on the stack of a thread that computes breaks what kernels of oneDNN keep there (src/signals.rs), so no
/// thread may have one: every thread blocks the signals, the process has no handler for them, and one thread waits for them.
#[test]
fn no_thread_that_computes_is_interrupted_by_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let mut run = Running::start(d, &with(SMALL_VAE, &["--out", "r", "--epochs", "100000", "--log-every", "1"]));
    run.until_it_trains();
    // Bits of signals 1, 2 and 15, which count from 1.
    let all = 1 | (1u64 << 1) | (1 << 14);
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{}/task", run.child.id())).unwrap() {
        let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        let bits = |key: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        assert_eq!(bits("SigCgt:") & all, 0, "{status}");
        // The system lets them through to the one that waits.
        if !status.starts_with("Name:\tsignals\n") {
            assert_eq!(bits("SigBlk:") & all, all, "{status}");
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

/// A terminal that closes sends SIGHUP, and its shell sends it again: a checkpoint is written. Under nohup, training goes on.
#[test]
fn a_closed_terminal_stops_a_run_after_a_checkpoint_and_nohup_keeps_it_running() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let args = with(SMALL_VAE, &["--epochs", "100000", "--log-every", "1", "--checkpoint-every", "0"]);
    let mut run = Running::start(d, &with(&args, &["--out", "r"]));
    run.until_it_trains();
    run.signal("HUP");
    run.signal("HUP");
    let (status, said) = run.ends_within(30);
    assert_eq!(status.code(), Some(129), "{said}");
    assert_whole(&of_step(&d.join("r"), newest(&d.join("r"))));

    let mut kept = Running::start_ignoring_hangups(d, &with(&args, &["--out", "n"]));
    kept.until_it_trains();
    kept.signal("HUP");
    sleep(Duration::from_millis(300));
    assert!(kept.child.try_wait().unwrap().is_none(), "it goes on: {}", kept.said());
    kept.signal("TERM");
    let (status, said) = kept.ends_within(30);
    assert_eq!(status.code(), Some(143), "{said}");
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
    say(&format!(
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
            child.signal(["INT", "TERM", "HUP"][i as usize % 3]);
            let (status, said) = child.ends_within(30);
            if status.success() {
                break;
            }
            assert_eq!(status.code(), Some([130, 143, 129][i as usize % 3]), "{said}");
            stops += 1;
        }
        assert!(stops >= 2, "{stops} stops");
        if newest(&run) < newest(&whole) {
            good(d, &["train", "--resume", kind]);
        }
        assert_same(&whole, &run);
    }
}

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
    say(&format!("diverged: {last}"));
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
    args.extend(["--checkpoint-every", "2", "--keep", "99", "--keep-optimizer", "all", "--out", "whole"]);
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
    say(&format!("rolled back (step, times, diverged at, lr): {events:?}"));
}

/// The count is on the disk before training goes on: with nothing else since, the checkpoint gone back to has it.
#[test]
fn a_rollback_is_not_forgotten_by_a_kill_before_the_next_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let mut base = with(SMALL_VAE, &["--lr", "1", "--on-divergence", "rollback", "--rollbacks", "12"]);
    base.extend(["--epochs", "100", "--checkpoint-every", "0", "--eval-every", "0", "--sample-every", "0"]);
    good(d, &with(&base, &["--out", "whole"]));
    let mut running = Running::start(d, &with(&base, &["--out", "killed"]));
    let log = running.log.clone();
    let told = |said: &str| said.matches("rolled back to step").count() as u64;
    assert!(running.watch("rollback", || told(&fs::read_to_string(&log).unwrap_or_default()) > 0));
    let (alive, said) = running.killed();
    assert!(alive, "it ended before it could be killed: {said}");
    let run = d.join("killed");
    assert_eq!(checkpoints(&run), ["step-00000000"]);
    let counted = state(&of_step(&run, 0))["rollbacks"].as_u64().unwrap();
    assert!(counted >= told(&said), "{counted} in the checkpoint: {said}");
    assert!(rollbacks(&run).len() as u64 >= counted, "its rows: {:?}", rollbacks(&run));
    good(d, &["train", "--resume", "killed"]);
    assert_same(&d.join("whole"), &run);
}
