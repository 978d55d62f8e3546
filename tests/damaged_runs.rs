//! Checkpoints that are kept, and damaged ones that are named and passed over.

mod common;

use std::fs;
use std::path::Path;

use common::runs::*;
use common::{ganvae, listing, say, sentence, text};

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
    let last = sentence(&said, &["no intact checkpoint", "r/checkpoints"]);
    for path in ["step-00000003/optimizer.safetensors", "step-00000006/model.safetensors"] {
        assert!(said.contains(path), "{path}: {said}");
    }
    assert_eq!(listing(&run), before, "nothing is thrown away");
    say(&format!("both damaged: {last}"));
}
