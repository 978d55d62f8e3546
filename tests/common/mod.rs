//! Running the program from outside, for every test that does.

// Each test program uses its own part of this.
#![allow(dead_code)]

pub mod python;

pub mod runs;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub const BIN: &str = env!("CARGO_BIN_EXE_ganvae");

/// The program in `dir`, away from this machine's own data and from the network.
pub fn command(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(dir)
        .env("HOME", dir.join("home"))
        .env_remove("XDG_CACHE_HOME")
        .env_remove("GANVAE_DATA")
        // Tests share the cores: a thread that waits for another must not spin on them.
        .env("OMP_WAIT_POLICY", "passive")
        .env("GANVAE_MIRROR", "http://127.0.0.1:9"); // the discard port: no download in a test
    command
}

/// A folder for what all tests of a program share: a static is never dropped, so those of earlier processes go now.
pub fn folder_of_process(program: &str) -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let prefix = format!("{program}-");
    for old in fs::read_dir(all).into_iter().flatten().flatten() {
        let process = old.file_name().to_string_lossy().strip_prefix(&prefix).map(str::to_owned);
        if process.is_some_and(|p| !Path::new("/proc").join(p).exists()) {
            let _ = fs::remove_dir_all(old.path());
        }
    }
    let dir = all.join(format!("{prefix}{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}

pub fn ganvae(dir: &Path, args: &[&str]) -> Output {
    command(BIN, dir).args(args).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must end well; gives what it said and did.
pub fn good(dir: &Path, args: &[&str]) -> Output {
    let out = ganvae(dir, args);
    assert!(out.status.success(), "{args:?} ended with {:?}: {}", out.status, text(&out.stderr));
    out
}

/// The last line of stderr, which must be one sentence of ours with these parts.
pub fn sentence(said: &str, parts: &[&str]) -> String {
    let last = said.lines().last().unwrap_or_default().to_owned();
    assert!(last.starts_with("error: "), "no sentence at the end of: {said}");
    assert_eq!(said.lines().filter(|l| l.starts_with("error: ")).count(), 1, "more than one sentence: {said}");
    for bad in ["panicked", "ganvae failed", "backtrace", "Exception raised"] {
        assert!(!said.contains(bad), "{said}");
    }
    for part in parts {
        assert!(last.contains(part), "{part:?} is not in {last}");
    }
    last
}

/// Runs a command that must be refused with this exit code, in one sentence that has these parts and nothing else, and
/// leaves all as it was.
pub fn refused(dir: &Path, args: &[&str], code: i32, parts: &[&str]) -> String {
    let before = listing(dir);
    let out = ganvae(dir, args);
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{args:?} said more than a sentence: {said}");
    assert!(out.stdout.is_empty(), "{args:?} printed {}", text(&out.stdout));
    assert_eq!(listing(dir), before, "{args:?} left something behind");
    sentence(&said, parts)
}

/// Says something aloud: the test runner keeps what passing tests print to itself.
pub fn say(line: &str) {
    let mut stderr = std::io::stderr().lock();
    writeln!(stderr, "{line}").unwrap();
}

/// Every path below a folder, but for the user's cache, which any command may fill.
pub fn listing(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.ends_with("home") {
            continue;
        }
        if path.is_dir() {
            all.extend(listing(&path));
        }
        all.push(path);
    }
    all.sort();
    all
}
