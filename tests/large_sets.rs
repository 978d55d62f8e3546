//! Training on a set four times as large as the memory that the process may have, under a control group.
//!
//! Takes some seconds and 1.2 GB of disk: a smaller limit would not hold libtorch.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{BIN, text};
use image::{Rgb, RgbImage};

/// Bytes of memory for the process.
const LIMIT: u64 = 300 << 20;
/// Side of a picture in pixels.
const SIDE: u32 = 128;

/// A control group with a limit on memory, of version 1 or 2; none where the user may not make one.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Group> {
        for (root, file) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let group = Group(Path::new(root).join(format!("ganvae-test-{}", std::process::id())));
            if Path::new(root).join("cgroup.procs").exists()
                && fs::create_dir(&group.0).is_ok()
                && group.0.join(file).exists()
                && fs::write(group.0.join(file), LIMIT.to_string()).is_ok()
            {
                return Some(group);
            }
        }
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_set_four_times_the_memory_trains_to_the_same_bits() {
    let Some(group) = Group::new() else {
        eprintln!("skipped: this user may not make a control group that limits memory");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::create_dir(d.join("pictures")).unwrap();
    let count = 4 * LIMIT / u64::from(3 * SIDE * SIDE) + 1;
    for i in 0..count {
        let colour = Rgb([(i % 256) as u8, (i / 256) as u8, 99]);
        RgbImage::from_pixel(SIDE, SIDE, colour).save(d.join(format!("pictures/{i:05}.png"))).unwrap();
    }
    let run = |out: &str, limited: bool| {
        let join = if limited { format!("echo $$ > {}/cgroup.procs && ", group.0.display()) } else { String::new() };
        let train = "train vae --data pictures --arch mlp --encoder-hidden 2 --decoder-hidden 2 --latent 2 --batch-size 8 --steps 6 \
                     --holdout 8 --cache cache --device cpu --tune off --checkpoint-every 3";
        let command = format!("{join}exec {BIN} {train} --out {out}");
        let out = Command::new("sh").args(["-c", &command]).current_dir(d).output().unwrap();
        assert!(out.status.success(), "{command}: {}", text(&out.stderr));
    };
    // The first decodes all pictures under the limit, the second finds them in the cache.
    run("first", true);
    let cached: u64 = fs::read_dir(d.join("cache")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(cached > 4 * LIMIT, "the set is {cached} bytes");
    run("second", true);
    run("free", false);
    let weights = |run: &str| fs::read(d.join(run).join("checkpoints/step-00000006/model.safetensors")).unwrap();
    assert!(weights("first") == weights("free"), "the first start under the limit differs");
    assert!(weights("second") == weights("free"), "the second start under the limit differs");
}
