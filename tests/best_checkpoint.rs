//! The best checkpoint: the one with the best held-out score that was ever seen, whatever the intervals, and what is made of it.

mod common;

use std::fs;
use std::path::Path;

use common::runs::*;
use common::{refused, text};
use serde_json::Value;

/// Overfits within a second: the held-out loss falls, then rises, with better scores at most epochs of two steps before.
const OVERFIT: &[&str] = &[
    "train",
    "vae",
    "--encoder-hidden",
    "32",
    "--decoder-hidden",
    "32",
    "--latent",
    "4",
    "--train-limit",
    "32",
    "--test-limit",
    "32",
    "--batch-size",
    "16",
    "--epochs",
    "60",
    "--lr",
    "0.02",
    "--sample-every",
    "0",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--deterministic",
];

/// The step of the lowest held-out loss up to `last`, by the run's rows.
fn lowest(run: &Path, last: u64) -> u64 {
    let scored = rows(run).into_iter().filter(|r| r.contains_key("test_loss") && r["step"].as_u64().unwrap() <= last);
    let best = scored.min_by(|a, b| a["test_loss"].as_f64().unwrap().total_cmp(&b["test_loss"].as_f64().unwrap()));
    best.map_or(0, |row| row["step"].as_u64().unwrap())
}

fn best(run: &Path) -> u64 {
    fs::read_to_string(run.join("checkpoints/best")).map_or(0, |name| step_of(&name))
}

#[test]
fn the_best_score_ever_seen_has_a_checkpoint_whatever_the_intervals() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for (i, intervals) in [
        &["--checkpoint-every", "0"][..],
        &["--checkpoint-every", "0", "--best-every", "1"],
        &["--checkpoint-every", "0", "--best-every", "1000", "--keep", "1"],
        &["--checkpoint-every", "25"],
        &["--checkpoint-every", "0", "--eval-every", "7"],
        &[],
    ]
    .iter()
    .enumerate()
    {
        let name = format!("r{i}");
        let out = common::good(d, &with(OVERFIT, &[intervals, &["--out", &name][..]].concat()));
        let run = d.join(&name);
        let want = lowest(&run, 120);
        assert!(0 < want && want < 120, "{want}: it must overfit");
        assert_eq!(best(&run), want, "{intervals:?}");
        assert_whole(&of_step(&run, want));
        let line = format!("best     epoch {}.00: test_loss ", want / 2);
        assert!(text(&out.stdout).contains(&line), "{}", text(&out.stdout));
    }
    // Of the first alone: its checkpoints are those of the last step and of better scores, at least 50 steps apart.
    let kept = checkpoints(&d.join("r0"));
    assert!(kept.len() <= 4, "{kept:?}");
}

#[test]
fn a_run_that_is_stopped_or_killed_keeps_the_best_so_far() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    // Scores at every second step, and time to be stopped between them.
    let long = with(OVERFIT, &["--checkpoint-every", "60", "--epochs", "300", "--keep", "100000"]);
    for (name, signal) in [("stopped", "TERM"), ("killed", "KILL")] {
        let run = d.join(name);
        let mut running = Running::start(d, &with(&long, &["--out", name]));
        assert!(running.watch("scores", || run.join("metrics.jsonl").is_file() && newest(&run) > 60), "it ended");
        running.signal(signal);
        drop(running.ends_within(30));
        // A kill may come before the file `best` is written, which the next start does.
        let last = newest(&run);
        assert_eq!(state(&of_step(&run, last))["best"]["step"].as_u64(), Some(lowest(&run, last)), "{name}");
        good(d, &["sample", name, "--checkpoint", "best", "--device", "cpu"]);
    }
    // Where the killed one goes on, it sees again what it lost.
    good(d, &["train", "--resume", "killed"]);
    assert_eq!(best(&d.join("killed")), lowest(&d.join("killed"), u64::MAX));
}

#[test]
fn commands_take_the_checkpoint_that_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(OVERFIT, &["--checkpoint-every", "0", "--out", "r"]));
    let run = d.join("r");
    let (best, other) = (best(&run).to_string(), step_of(&checkpoints(&run)[0]).to_string());
    let made = |args: &[&str]| {
        let out = text(&common::good(d, args).stdout);
        d.join(out.lines().next().unwrap_or_else(|| panic!("{args:?} printed nothing")))
    };
    for command in ["sample", "reconstruct", "interpolate", "traverse", "encode"] {
        let seed = if command == "sample" { &["--seed", "0"][..] } else { &[] };
        let of = |checkpoint: &[&str]| made(&[&[command, "r", "--device", "cpu"], seed, checkpoint].concat());
        let files =
            [of(&[]), of(&["--checkpoint", "best"]), of(&["--checkpoint", &best]), of(&["--checkpoint", &other])];
        let [latest, of_best, by_step, of_other] = files.each_ref().map(|file| fs::read(file).unwrap());
        assert!(latest != of_best && of_best == by_step, "{command}: {files:?}");
        assert!(files.iter().all(|f| files.iter().filter(|g| *g == f).count() == 1), "{command} wrote over: {files:?}");
        assert!(other == best || of_other != of_best, "{command}");
    }
    for (checkpoint, folder, step) in [
        ("best", "export-best", &best),
        ("latest", "export", &"120".to_owned()),
        (&*other, &format!("export-step-{other}"), &other),
    ] {
        good(d, &["export", "r", "--checkpoint", checkpoint, "--format", "safetensors"]);
        let about: Value = serde_json::from_slice(&fs::read(run.join(folder).join("export.json")).unwrap()).unwrap();
        assert_eq!(about["step"].to_string(), *step, "{folder}");
    }
    assert!(made(&["plot", "r", "--latent", "--checkpoint", "best", "--device", "cpu"]).ends_with("latent-best.png"));
    refused(d, &["sample", "r", "--checkpoint", "7"], 2, &["--checkpoint 7", "a step of", "120"]);
    refused(d, &["sample", "r", "--checkpoint", "newest"], 2, &["best, latest or the number of a step"]);
    refused(d, &["sample", "r/export", "--checkpoint", "best"], 2, &["is no run"]);
}
