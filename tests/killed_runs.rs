//! Killed runs end as if nothing had happened: resumed bit for bit, after SIGKILL anywhere, one process at a time.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::runs::*;
use common::{refused, say, sentence};
use ganvae::base::seed::Rng;

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
    "--keep-optimizer",
    "all",
    "--device",
    "cpu",
    "--deterministic",
];

fn preset_run_cut_at_step_5_ends_as_the_whole_one(kind: &str, preset: &str, controls: bool) {
    run_cut_at_step_5_ends_as_the_whole_one(&[kind, "--preset", preset], controls);
}

fn run_cut_at_step_5_ends_as_the_whole_one(args: &[&str], controls: bool) {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(&with(&["train"], args), &with(&["--out", "whole"], CUT)));
    let whole = d.join("whole");
    let resumed = |name: &str, step: u64, change: &dyn Fn(&Path)| {
        let part = d.join(name);
        cut(&whole, &part, 5);
        change(&part);
        let said = good(d, &["train", "--resume", name]);
        assert!(said.contains(&format!("resuming {name} at step {step}")), "{said}");
        difference(&whole, &part)
    };
    assert_eq!(resumed("part", 5, &|_| ()), None, "{args:?}");
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

/// Also within the four updates after which an adaptive probability changes.
#[test]
fn a_resumed_gan_with_augmentation_is_the_uninterrupted_one() {
    for p in ["0.5", "adaptive"] {
        let all = "mirror,turn,shift,colour,cutout";
        let args = ["gan", "--base-width", "4", "--augment", all, "--augment-p", p];
        run_cut_at_step_5_ends_as_the_whole_one(&args, false);
    }
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
        let at = newest(&run);
        assert!(at == 0 || of_step(&run, at).join("optimizer.safetensors").exists(), "step {at} after {kills} kills");
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
    say(&format!(
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
    assert!(said.contains("part has no checkpoint yet: it starts from step 0"), "{said}");
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
