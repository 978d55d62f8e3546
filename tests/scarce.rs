//! Few threads, little memory, small files, an stderr that nobody reads: each ends well, or in one sentence.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::python::root;
use common::runs::*;
use common::{BIN, command, sentence, text};

/// A small run on every core.
const SMALL: &[&str] =
    &["train", "vae", "--train-limit", "300", "--test-limit", "100", "--steps", "3", "--device", "cpu", "--out", "r"];

/// Runs it in `dir` under a limit of the shell; a hang ends after a minute.
fn limited(dir: &Path, limit: &str) -> Output {
    let _ = fs::remove_dir_all(dir.join("r"));
    let script = format!("ulimit {limit}; exec timeout 60 \"$0\" \"$@\"");
    command("sh", dir).args(["-c", &script, BIN]).args(SMALL).output().unwrap()
}

/// The sentence of a process that failed.
fn failure(out: &Output, what: &str) -> String {
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{what}: {:?}: {said}", out.status);
    sentence(&said, &[])
}

#[test]
fn fewer_threads_than_cores_are_enough_and_too_few_are_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let injector = dir.path().join("threads.so");
    let mut compiler = Command::new("g++");
    compiler.args(["-std=c++17", "-O1", "-shared", "-fPIC", "-o"]).arg(&injector);
    let built = compiler.arg(root().join("tests/cpp/threads.cpp")).arg("-ldl").output().unwrap();
    assert!(built.status.success(), "{}", text(&built.stderr));
    let cores = std::thread::available_parallelism().unwrap().get();
    let run = |threads: usize, more: &[&str]| {
        let _ = fs::remove_dir_all(dir.path().join("r"));
        let mut command = command("timeout", dir.path());
        command.args(["60", BIN]).args(with(SMALL, more)).env("LD_PRELOAD", &injector);
        command.env("THREADS", threads.to_string()).output().unwrap()
    };
    for threads in [0, 1, 3] {
        let last = failure(&run(threads, &[]), &format!("{threads} threads"));
        assert!(last.contains(&format!("allows {threads} threads, and 4 are wanted: raise the limit")), "{last}");
    }
    for threads in [4, 3 * cores, 3 * cores + 1] {
        let out = run(threads, &[]);
        let said = text(&out.stderr);
        assert!(out.status.success(), "{threads} threads: {:?}: {said}", out.status);
        assert_eq!(said.contains("of them compute"), threads <= 3 * cores, "{threads} threads: {said}");
    }
    let last = failure(&run(3 * cores + 1, &["--threads", "99"]), "--threads 99");
    assert!(last.contains("99 threads need 196 more") && last.contains("choose fewer --threads"), "{last}");
}

#[test]
fn little_memory_is_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let mut ended = [0, 0];
    // From where libtorch can be loaded to where a run succeeds.
    for mb in (380..1700).step_by(110) {
        let out = limited(dir.path(), &format!("-v {mb}000"));
        match out.status.code() {
            Some(0) => ended[0] += 1,
            // The loader's.
            Some(127) => {}
            _ => {
                failure(&out, &format!("{mb} MB"));
                ended[1] += 1;
            }
        }
    }
    assert!(ended.iter().all(|n| *n > 0), "{ended:?}");
}

#[test]
fn a_limit_on_the_size_of_files_is_the_error_of_a_write() {
    let dir = tempfile::tempdir().unwrap();
    for blocks in [0, 1, 100, 3000] {
        let last = failure(&limited(dir.path(), &format!("-f {blocks}")), &format!("ulimit -f {blocks}"));
        assert!(last.contains("File too large") && last.contains("r/"), "{last}");
    }
}

/// A pipe holds 64 KiB: 600 lines.
#[test]
fn an_stderr_that_nobody_reads_stops_neither_training_nor_the_checkpoint_of_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(BIN, dir.path());
    command
        .args(with(SMALL_VAE, &["--epochs", "100000", "--log-every", "1", "--eval-every", "0", "--sample-every", "0"]));
    command.args(["--checkpoint-every", "0", "--out", "r"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut child = Running { child, log: dir.path().join("none") };
    let run = dir.path().join("r");
    let rows = || fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count());
    assert!(child.watch("training on", || rows() > 2000));
    child.signal("TERM");
    let began = Instant::now();
    assert!(!child.watch("end", || began.elapsed() > Duration::from_secs(20)), "it does not end");
    let status = child.child.wait().unwrap();
    assert_eq!(status.code(), Some(143), "{status:?}");
    assert!(newest(&run) > 2000 && newest(&run) as usize >= rows());
}
