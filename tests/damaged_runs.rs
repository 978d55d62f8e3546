//! Checkpoints that are kept, and damaged ones that are named and passed over.

mod common;

use std::fs;
use std::path::Path;

use common::runs::*;
use common::{ganvae, listing, say, sentence, text};

/// Sixteen images, which the VAE memorizes: the held-out loss falls, then rises. Two steps an epoch.
const OVERFITS: &[&str] = &[
    "train",
    "vae",
    "--train-limit",
    "16",
    "--test-limit",
    "100",
    "--batch-size",
    "8",
    "--lr",
    "0.01",
    "--sample-every",
    "0",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--deterministic",
];

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
    good(d, &with(OVERFITS, &["--epochs", "30", "--keep", "2", "--out", "whole"]));
    let whole = d.join("whole");
    let best = best_step(&whole);
    assert!((4..50).contains(&best), "the run must have its best before its end: {best}");
    let all: Vec<u64> = (1..=30).map(|epoch| 2 * epoch).collect();
    assert_eq!(checkpoints(&whole), must_keep(&all, 2, Some(best)));
    let named = |run: &Path| fs::read_to_string(run.join("checkpoints/best")).unwrap();
    assert_eq!(named(&whole), format!("step-{best:08}"));
    assert_whole(&of_step(&whole, best));
    assert_eq!(resumable(&whole), must_keep(&all, 1, Some(best)), "the others hold weights only");

    // Stopped and gone on with after its best: it is remembered, and gives way only to a better one.
    good(d, &with(OVERFITS, &["--epochs", "28", "--keep", "2", "--out", "part"]));
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
    good(d, &with(OVERFITS, &["--epochs", "30", "--keep", "99", "--keep-optimizer", "all", "--out", "all-kept"]));
    assert_eq!((checkpoints(&all_kept).len(), resumable(&all_kept).len()), (30, 30));
    cut(&all_kept, &d.join("between"), best);
    for pointer in ["latest", "best"] {
        fs::write(d.join("between/checkpoints").join(pointer), format!("step-{:08}", best - 2)).unwrap();
    }
    good(d, &["train", "--resume", "between", "--keep", "2"]);
    assert_eq!(named(&d.join("between")), format!("step-{best:08}"));
    assert_eq!(checkpoints(&d.join("between")), must_keep(&all, 2, Some(best)));

    // Early stops keep early bests: the best so far, whatever comes.
    good(d, &with(OVERFITS, &["--epochs", "3", "--keep", "1", "--out", "early"]));
    assert_eq!(named(&d.join("early")), format!("step-{:08}", best_step(&d.join("early"))));

    // A GAN has no best.
    good(d, &with(SMALL_GAN, &["--out", "g", "--checkpoint-every", "1", "--keep", "3", "--epochs", "4"]));
    let gan = d.join("g");
    let all: Vec<u64> = (1..=newest(&gan)).collect();
    assert_eq!(checkpoints(&gan), must_keep(&all, 3, None));
    assert_eq!(resumable(&gan), must_keep(&all, 1, None));
    let size = |file: &str| fs::metadata(of_step(&whole, best).join(file)).unwrap().len() as f64;
    let share = size("optimizer.safetensors") / (size("model.safetensors") + size("optimizer.safetensors"));
    assert!((share - 2.0 / 3.0).abs() < 0.02, "of a checkpoint, {share:.3} is optimizer state");
    assert!(!gan.join("checkpoints/best").exists());
}

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
    good(d, &with(SMALL_VAE, &["--out", "whole", "--keep-optimizer", "all"]));
    let whole = d.join("whole");
    assert_eq!(checkpoints(&whole), ["step-00000003", "step-00000006"]);
    assert_eq!(resumable(&whole), checkpoints(&whole));
    // A fresh copy each time: nothing of the last repair helps the next.
    let resumed = |file: &str, what: &str, damage: &dyn Fn(&Path)| {
        let run = d.join("r");
        let _ = fs::remove_dir_all(&run);
        copy(&whole, &run);
        damage(&of_step(&run, 6).join(file));
        let said = good(d, &["train", "--resume", "r"]);
        let warning =
            said.lines().find(|l| l.starts_with("warning: ")).unwrap_or_else(|| panic!("{file} {what}: {said}"));
        let removed = what == "missing" && file == "optimizer.safetensors";
        let named = if removed { ["step-00000006 ", "no optimizer state"] } else { ["step-00000006/", file] };
        assert!(named.iter().all(|part| warning.contains(part)), "{file} {what}: {warning}");
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
    good(d, &with(SMALL_VAE, &["--out", "r", "--keep-optimizer", "all"]));
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
    let last = sentence(&said, &["no intact checkpoint", "r/checkpoints"]);
    for path in ["step-00000003/optimizer.safetensors", "step-00000006/model.safetensors"] {
        assert!(said.contains(path), "{path}: {said}");
    }
    assert_eq!(listing(&run), before, "nothing is thrown away");
    say(&format!("both damaged: {last}"));
}

/// The default keeps the optimizer state of the newest checkpoint and of the best one.
#[test]
fn a_checkpoint_without_optimizer_state_is_never_resumed_from_and_serves_everything_else() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let spoil = |run: &str, step: u64| fs::write(of_step(&d.join(run), step).join("model.safetensors"), "x").unwrap();
    // The last score is the best one: the checkpoint before it has no optimizer state.
    good(d, &with(SMALL_VAE, &["--out", "r"]));
    assert_eq!((checkpoints(&d.join("r")).len(), resumable(&d.join("r"))), (2, vec!["step-00000006".to_owned()]));
    spoil("r", 6);
    let before = listing(&d.join("r"));
    let out = ganvae(d, &["train", "--resume", "r"]);
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    let parts =
        ["r/checkpoints/step-00000003 holds no optimizer state", "--keep-optimizer all", "train vae --init-from r"];
    let last = sentence(&said, &parts);
    assert!(said.contains("step-00000006/model.safetensors is damaged"), "{said}");
    assert_eq!(listing(&d.join("r")), before, "nothing is thrown away");
    say(&format!("no optimizer state: {last}"));
    // What the sentence advises, and the other uses of weights.
    for (args, made) in [
        (&["sample", "r", "--out", "s.png"][..], "s.png"),
        (&["reconstruct", "r", "--out", "rec.png"], "rec.png"),
        (&["export", "r", "--out", "e", "--format", "safetensors"], "e/export.json"),
        (&["train", "vae", "--init-from", "r", "--train-limit", "100", "--steps", "1", "--out", "n"], "n/config.toml"),
    ] {
        let said = good(d, args);
        assert!(d.join(made).is_file(), "{args:?}");
        assert!(args[0] == "train" || said.contains("step-00000006/model.safetensors is damaged"), "{args:?}: {said}");
    }

    // The best one is older: it has the state, so training goes on from there, and says so.
    good(d, &with(OVERFITS, &["--epochs", "30", "--keep", "4", "--out", "old-best"]));
    let run = d.join("old-best");
    let best = best_step(&run);
    assert!(best < 58, "{best}");
    assert_eq!(resumable(&run), [best, 60].map(|step| format!("step-{step:08}")), "the best must be before the last");
    copy(&run, &d.join("broken"));
    spoil("broken", 60);
    let said = good(d, &["train", "--resume", "broken"]);
    assert!(said.contains("step-00000058 holds no optimizer state"), "{said}");
    assert!(said.contains(&format!("resuming broken at step {best}")), "{said}");
    assert_same(&run, &d.join("broken"));
    // Without the file of the newest one, as after a copy of the weights alone.
    fs::remove_file(of_step(&run, 60).join("optimizer.safetensors")).unwrap();
    fs::remove_dir_all(of_step(&run, best)).unwrap();
    let said = text(&ganvae(d, &["train", "--resume", "old-best", "--epochs", "31"]).stderr);
    sentence(&said, &["step-00000060 holds no optimizer state"]);
}
