//! Full, vanished and read-only disks stop a run with one sentence and a whole checkpoint.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::runs::*;
use common::{BIN, command, listing, say, sentence, text};

/// Runs a shell script in `dir` with mounts of its own, `$BIN` being the program; nothing where this is not allowed.
fn with_own_mounts(test: &str, dir: &Path, script: &str) -> Option<Output> {
    let sh = |script: &str| command("unshare", dir).args(["-rm", "sh", "-euc", script]).env("BIN", BIN).output();
    let probe = sh("mkdir -p probe && mount -t tmpfs -o size=64k tmpfs probe && mount -o remount,size=128k probe");
    let why = match probe {
        Ok(out) if out.status.success() => return Some(sh(script).unwrap()),
        Ok(out) => text(&out.stderr),
        Err(e) => e.to_string(),
    };
    say(&format!("SKIPPED {test}: no mounts of its own (unshare -rm, mount -t tmpfs) here: {}", why.trim()));
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
        let weights = ["model.safetensors"];
        checkpoints(&full).iter().for_each(|name| assert_files_whole(&full.join("checkpoints").join(name), &weights));
        let step = newest(&full);
        if step > 0 {
            resumed += 1;
            assert_whole(&of_step(&full, step));
            assert!(again.contains(&format!("resuming m-{size}/r at step {step}")), "{size}: {again}");
            assert_eq!(fs::read_to_string(full.join("checkpoints/latest")).unwrap(), format!("step-{step:08}"));
        }
        assert!(!again.contains("ended with"), "{size}: {again}");
        assert_same(&d.join(format!("whole-{how}")), &d.join(size).join("run"));
        assert_eq!(half_written(&d.join(size).join("run")), [] as [PathBuf; 0], "{size}");
    }
    say(&format!("full disks:\n{}", named.join("\n")));
    assert!(resumed >= 2, "{resumed} of the runs had a checkpoint");
}

/// Every output of the commands that a full disk cuts off is named, once, with the reason.
#[test]
fn a_full_disk_is_named_by_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(SMALL_VAE, &["--out", "r"]));
    let commands = [
        ("interpolate r --out", "m/a.gif"),
        ("traverse r --out", "m/a.gif"),
        ("plot r --progress --out", "m/a.gif"),
        ("plot r --latent --out", "m/a.svg"),
        ("plot r --out", "m/a.png"),
        ("sample r --out", "m/a.png"),
        ("sample r --out", "m/a.npy"),
        ("sample r --out", "m/a"),
        ("encode r --out", "m/a.npy"),
        ("export r --out", "m/a"),
        ("data digits --out", "m/a.png"),
    ];
    let lines: Vec<_> =
        commands.iter().map(|(command, out)| format!("\"$BIN\" {command} {out} 2>&1 || rm -rf m/*")).collect();
    let script = format!("mkdir m; mount -t tmpfs -o size=4k tmpfs m\n{}", lines.join("\n"));
    let Some(out) = with_own_mounts("a full disk for every command", d, &script) else { return };
    let said = text(&out.stdout);
    assert_eq!(said.lines().count(), commands.len(), "{said}");
    for (line, (command, out)) in said.lines().zip(commands) {
        let once =
            line.matches("could not be written").count() == 1 && line.matches("No space left on device").count() == 1;
        let named = line.starts_with("error: m/") && (line.contains(out) || out == "m/a" || out == "m/a.npy");
        assert!(once && named, "{command}: {line}");
    }
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
        say(&format!("removed: {last}"));
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
            say("SKIPPED a read-only folder: root may write to any that is not mounted so");
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
        say(&format!("read-only: {last}"));
    }
    assert!(!d.join("m/new").exists());
}
