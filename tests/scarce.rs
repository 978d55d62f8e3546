//! Few threads, little memory, small files, an stderr that nobody reads: each ends well, or in one sentence.

mod common;

use std::fs;
use std::os::unix::net::UnixListener;
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

/// The exit code of a command, its sentence, and the most memory in MB that it took; a hang ends after a minute.
#[allow(clippy::zombie_processes)] // wait4 waits for it.
fn measured(dir: &Path, args: &[&str]) -> (i32, String, i64) {
    let mut command = command("timeout", dir);
    command.args(["60", BIN]).args(args).stdout(Stdio::null()).stderr(fs::File::create(dir.join("said")).unwrap());
    let child = command.spawn().unwrap();
    // SAFETY: plain numbers, which the call fills in.
    let (mut status, mut usage) = (0, unsafe { std::mem::zeroed::<libc::rusage>() });
    // SAFETY: both pointers outlive the call, which waits for a child of this process.
    unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
    // With the memory of what the child has waited for.
    (libc::WEXITSTATUS(status), fs::read_to_string(dir.join("said")).unwrap(), usage.ru_maxrss / 1024)
}

#[test]
fn pipes_sockets_and_huge_files_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for name in ["pipe", "pipe.safetensors", "pipe.pt", "pipe.toml"] {
        assert!(Command::new("mkfifo").arg(d.join(name)).status().unwrap().success());
    }
    let _socket = UnixListener::bind(d.join("socket.pt")).unwrap();
    for name in ["zeros.safetensors", "zeros.pt", "zeros.toml"] {
        fs::File::create(d.join(name)).unwrap().set_len(3 << 30).unwrap();
    }
    // A header that fits no file, one for less data than there is, and pictures that are none.
    fs::write(d.join("head.safetensors"), [0xff; 100]).unwrap();
    fs::write(d.join("long.safetensors"), [&[2, 0, 0, 0, 0, 0, 0, 0], &b"{}"[..]].concat()).unwrap();
    fs::OpenOptions::new().write(true).open(d.join("long.safetensors")).unwrap().set_len(3 << 30).unwrap();
    fs::create_dir(d.join("pictures")).unwrap();
    assert!(Command::new("mkfifo").arg(d.join("pictures/a.png")).status().unwrap().success());
    let _other = UnixListener::bind(d.join("pictures/b.png")).unwrap();
    good(d, &with(SMALL_VAE, &["--out", "run"]));
    let pipe = "a folder, a pipe or a device";
    for (args, part) in [
        (&["train", "vae", "--init-from", "pipe.safetensors"][..], pipe),
        (&["train", "vae", "--init-from", "pipe.pt"], pipe),
        (&["train", "vae", "--init-from", "socket.pt"], pipe),
        (&["train", "vae", "--config", "pipe.toml"], pipe),
        (&["train", "vae", "--data", "pipe"], pipe),
        (&["train", "vae", "--data", "pictures"], "holds no pictures"),
        (&["encode", "run", "--data", "pipe", "--out", "z.npy"], pipe),
        (&["reconstruct", "run", "--data", "pipe"], pipe),
        (&["sample", "pipe.pt"], "not a run"),
        (&["plot", "pipe"], "no such folder"),
        (&["train", "vae", "--init-from", "zeros.safetensors"], "not a valid safetensors file"),
        (&["train", "vae", "--init-from", "head.safetensors"], "its header cannot have"),
        (&["train", "vae", "--init-from", "long.safetensors"], "it has 3221225472 bytes, and 10 by its header"),
        (&["train", "vae", "--init-from", "zeros.pt"], "not a file of torch.save"),
        (&["train", "vae", "--config", "zeros.toml"], "it cannot be the right file"),
        (&["sample", "zeros.pt"], "no TorchScript module"),
    ] {
        let small: &[&str] = if args[0] == "train" { &["--train-limit", "50", "--test-limit", "10"] } else { &[] };
        let (code, said, mb) = measured(d, &with(args, small));
        assert!([1, 2].contains(&code), "{args:?}: {code}: {said}");
        sentence(&said, &[part]);
        assert!(mb < 600, "{args:?} took {mb} MB");
    }
}

#[test]
fn a_small_picture_with_a_large_profile_takes_little_memory() {
    use image::{ImageEncoder, codecs::png::PngEncoder};
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("pictures")).unwrap();
    for name in ["pictures/a.png", "pictures/b.png"] {
        let mut encoder = PngEncoder::new(fs::File::create(dir.path().join(name)).unwrap());
        encoder.set_icc_profile(vec![0; 240 << 20]).unwrap();
        encoder.write_image(&[7; 12], 2, 2, image::ExtendedColorType::Rgb8).unwrap();
    }
    let (code, said, mb) = measured(dir.path(), &["data", "pictures"]);
    assert_eq!(code, 0, "{said}");
    assert!(mb < 300, "{mb} MB");
}

#[test]
fn a_run_edited_to_huge_images_is_refused_before_it_takes_memory() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for (name, small) in [("vae", SMALL_VAE), ("gan", SMALL_GAN)] {
        good(d, &with(small, &["--epochs", "1", "--out", name]));
        let config = d.join(name).join("config.toml");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, text.replace("height = 28", "height = 8192").replace("width = 28", "width = 8192")).unwrap();
        let (code, said, mb) = measured(d, &["sample", name, "--device", "cpu"]);
        assert_eq!(code, 1, "{said}");
        sentence(&said, &["the checkpoint has", "config.toml"]);
        assert!(mb < 600, "{name} took {mb} MB");
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
