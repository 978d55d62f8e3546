//! A fault at every file-system call of a run: the process is killed there, told to stop, or the call fails. Whatever it is, a run goes on
//! from what is left to the same end as one that nothing happened to, and an export is of one model.
//!
//! Some calls each time; GANVAE_FAULTS=N tries N of them, GANVAE_FAULTS=all every fault at every call (an hour on two cores).

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::python::root;
use common::runs::*;
use common::{BIN, command, good, say, sentence, text};
use serde_json::Value;

/// What happens at a call: ENOSPC, EIO and EROFS by their numbers.
const FAULTS: [&str; 5] = ["kill", "28", "5", "30", "TERM"];
/// Calls of a scenario that are tried in each run of the tests.
const SOME: usize = 10;

struct Injector {
    dir: tempfile::TempDir,
}

impl Injector {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let built = Command::new("g++")
            .args(["-std=c++17", "-O1", "-shared", "-fPIC", "-o"])
            .arg(dir.path().join("faults.so"))
            .arg(root().join("tests/cpp/faults.cpp"))
            .arg("-ldl")
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", text(&built.stderr));
        Injector { dir }
    }

    fn run(&self, dir: &Path, below: &Path, args: &[&str], fault: Option<(usize, &str)>) -> Output {
        let mut command = command(BIN, dir);
        command.args(args).env("LD_PRELOAD", self.dir.path().join("faults.so")).env("FAULTS_ROOT", below);
        match fault {
            Some((at, what)) => command.env("FAULTS_AT", at.to_string()).env("FAULTS_DO", what),
            None => command.env("FAULTS_COUNT", self.dir.path().join("count")),
        };
        command.output().unwrap()
    }

    /// The calls of a command that nothing happens to.
    fn count(&self, dir: &Path, below: &Path, args: &[&str]) -> usize {
        let _ = fs::remove_file(self.dir.path().join("count"));
        let out = self.run(dir, below, args, None);
        assert!(out.status.success(), "{}", text(&out.stderr));
        fs::metadata(self.dir.path().join("count")).unwrap().len() as usize
    }
}

/// The calls that are tried, each with one of the faults; evenly spread over the calls.
fn points(calls: usize) -> Vec<(usize, &'static str)> {
    let asked = std::env::var("GANVAE_FAULTS").unwrap_or_default();
    if asked == "all" {
        return (1..=calls).flat_map(|at| FAULTS.map(|fault| (at, fault))).collect();
    }
    let some = asked.parse().unwrap_or(SOME);
    (0..some).map(|i| (1 + i * calls / some, FAULTS[(i * 2 + calls) % FAULTS.len()])).collect()
}

/// A process that met a fault ended as it should: killed, stopped, by one sentence, or well where what failed can be done without.
fn assert_ended_well(out: &Output, fault: &str, what: &str) {
    let said = text(&out.stderr);
    match (fault, out.status.code(), out.status.signal()) {
        ("kill", None, Some(9)) | ("TERM", Some(143), None) | ("TERM", None, Some(15)) | (_, Some(0), None) => {}
        (_, Some(1 | 2), None) if !["kill", "TERM"].contains(&fault) => {
            let ours: Vec<&str> = said.lines().filter(|l| !l.starts_with("fault: ")).collect();
            sentence(&ours.join("\n"), &[]);
        }
        other => panic!("{what}: ended with {other:?}: {said}"),
    }
    assert!(!said.contains("panicked") && !said.contains("ganvae failed"), "{what}: {said}");
}

/// Goes on with what a fault has left of the run `r` in `dir`, until it is done.
fn finish(dir: &Path, start: &[&str], what: &str) {
    let started = dir.join("r/config.toml").is_file();
    let args = if started { vec!["train", "--resume", "r"] } else { start.to_vec() };
    let out = common::ganvae(dir, &args);
    let said = text(&out.stderr);
    let done = out.status.code() == Some(2) && said.contains("done all of its");
    assert!(out.status.success() || done, "{what}: {args:?} ended with {:?}: {said}", out.status);
    for file in ["loss.png", "scalars.json", "export/export.json", "samples/progress.gif"] {
        assert!(dir.join("r").join(file).is_file(), "{what}: there is no {file}: {said}");
    }
    let left = half_written(&dir.join("r"));
    assert!(left.is_empty(), "{what}: {left:?} are left");
}

fn sweep(injector: &Injector, name: &str, small: &[&str], before: impl Fn(&Path) -> Option<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let start = with(small, &["--out", "r"]);
    good(d, &with(small, &["--out", "whole"]));
    let (whole, mut calls) = (d.join("whole"), 0);
    let prepare = |i: usize| {
        let place = d.join(format!("{i}"));
        fs::create_dir(&place).unwrap();
        let begun = before(&place).is_some();
        let args = if begun { vec!["train", "--resume", "r"] } else { start.clone() };
        (place, args)
    };
    let mut all = Vec::new();
    for i in 0.. {
        let (place, args) = prepare(i);
        let below = place.join("r");
        if i == 0 {
            calls = injector.count(&place, &below, &args);
            all = points(calls);
            assert_same(&whole, &below);
        } else {
            let Some((at, fault)) = all.get(i - 1) else { break };
            let out = injector.run(&place, &below, &args, Some((*at, fault)));
            let what = format!(
                "{name}, {}",
                text(&out.stderr).lines().find(|l| l.starts_with("fault: ")).unwrap_or("no fault")
            );
            assert_ended_well(&out, fault, &what);
            finish(&place, &start, &what);
            let difference = difference(&whole, &below);
            assert!(difference.is_none(), "{what}: {}", difference.unwrap_or_default());
        }
        fs::remove_dir_all(place).unwrap();
    }
    say(&format!("{name}: {} faults at {calls} file-system calls", all.len()));
}

#[test]
fn a_run_survives_a_fault_at_any_call() {
    let injector = Injector::new();
    let vae = with(SMALL_VAE, &["--checkpoint-every", "2"]);
    sweep(&injector, "new vae", &vae, |_| None);
    sweep(&injector, "new gan, one checkpoint kept", &with(SMALL_GAN, &["--keep", "1"]), |_| None);
}

#[test]
fn a_run_that_goes_on_survives_a_fault_at_any_call() {
    let injector = Injector::new();
    let dir = tempfile::tempdir().unwrap();
    let small = with(SMALL_VAE, &["--checkpoint-every", "2", "--keep", "9", "--keep-optimizer", "all"]);
    good(dir.path(), &with(&small, &["--out", "source"]));
    sweep(&injector, "resumed vae", &small, |place| {
        cut(&dir.path().join("source"), &place.join("r"), 2);
        Some(place.join("r"))
    });
}

/// An export over the one of another step: whatever happens, all modules in the folder are of the step that its description says.
#[test]
fn an_export_is_of_one_model_whatever_happens() {
    let injector = Injector::new();
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let small = with(SMALL_VAE, &["--sample-every", "0", "--eval-every", "0"]);
    good(d, &with(&small, &["--epochs", "1", "--out", "r"]));
    copy(&d.join("r/export"), &d.join("first"));
    good(d, &["train", "--resume", "r", "--epochs", "2"]);
    let export = ["export", "r", "--out", "out"];
    let below = d.join("out");
    let fresh = || {
        let _ = fs::remove_dir_all(&below);
        copy(&d.join("first"), &below);
        fs::write(below.join("mine.txt"), "mine").unwrap();
    };
    fresh();
    // With the folder's neighbours, for it is written beside.
    let calls = injector.count(d, d, &export);
    for (at, fault) in points(calls) {
        fresh();
        let out = injector.run(d, d, &export, Some((at, fault)));
        let what = format!("export, {fault} at {at}: {}", text(&out.stderr));
        assert_ended_well(&out, fault, &what);
        let about: Option<Value> =
            fs::read(below.join("export.json")).ok().map(|b| serde_json::from_slice(&b).unwrap());
        let step = about.map(|about| about["step"].clone()).unwrap_or_else(|| panic!("{what}: no description"));
        for name in ["encoder.pt", "decoder.pt"] {
            let own = ganvae::native::script_description(&below.join(name)).unwrap().unwrap();
            let own: Value = serde_json::from_str(&own).unwrap();
            assert_eq!(own["step"], step, "{what}: {name}");
        }
        good(d, &export);
        let mine = fs::read_to_string(below.join("mine.txt")).unwrap_or_else(|e| panic!("{what}: mine.txt: {e}"));
        assert_eq!(mine, "mine", "{what}");
        let left: Vec<_> = half_written(d).into_iter().filter(|p| !p.starts_with(d.join("r"))).collect();
        assert!(left.is_empty(), "{what}: {left:?}");
    }
    say(&format!("export: {} faults at {calls} file-system calls", points(calls).len()));
}
