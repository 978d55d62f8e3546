//! Runs whose settings or images have changed: what may change does, all else is refused by name.

mod common;

use std::fs;
use std::path::Path;

use common::refused;
use common::runs::*;

#[test]
fn resuming_names_every_setting_that_may_not_change() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(SMALL_VAE, &["--out", "v"]));
    good(d, &with(SMALL_GAN, &["--out", "g"]));
    let vae = |args: &[&str], parts: &[&str]| refused(d, &with(&["train", "--resume", "v"], args), 2, parts);
    let gan = |args: &[&str], parts: &[&str]| refused(d, &with(&["train", "--resume", "g"], args), 2, parts);
    let other = ["train", "gan", "--resume", "v"];
    refused(d, &other, 2, &["v is a run of a vae, and `train gan` was asked for: leave the gan out"]);
    // Each difference is `KEY... IN THE RUN in the run, ASKED FOR asked for`.
    let cannot = "--resume cannot change ";
    vae(&["--lr", "0.01"], &[cannot, "lr", "0.001 in the run, 0.01 asked for"]);
    let said = vae(
        &["--lr", "0.01", "--batch-size", "64", "--seed", "3", "--epochs", "5", "--latent", "20"],
        &[
            "lr",
            "0.001 in the run, 0.01 asked for",
            "batch-size",
            "128 in the run, 64 asked for",
            "seed",
            "0 in the run, 3 asked for",
        ],
    );
    assert!(!said.contains("epochs") && !said.contains("latent"), "only what differs and may not: {said}");
    for (flag, value) in [
        ("preset", "conv-vae"),
        ("arch", "conv"),
        ("latent", "21"),
        ("encoder-hidden", "16"),
        ("decoder-hidden", "32,16"),
        ("activation", "tanh"),
        ("beta", "2"),
        ("kl-warmup", "1"),
        ("batch-size", "100"),
        ("beta1", "0.5"),
        ("beta2", "0.9"),
        ("adam-eps", "0.1"),
        ("weight-decay", "0.5"),
        ("clip-norm", "1"),
        ("seed", "1"),
        ("tune", "off"),
        ("image-size", "14"),
        ("channels", "3"),
        ("train-limit", "200"),
        ("test-limit", "10"),
    ] {
        vae(&[&format!("--{flag}"), value], &[cannot, flag, "in the run", "asked for"]);
    }
    vae(&["--deterministic=false"], &[cannot, "deterministic", "true in the run, false asked for"]);
    vae(&["--out", "elsewhere"], &["out"]);
    for (flag, value) in [
        ("gan-loss", "minimax"),
        ("ema", "0.5"),
        ("lecam", "1"),
        ("d-lr", "1e-5"),
        ("discriminator-hidden", "9"),
        ("lr", "1e-5"),
    ] {
        gan(&[&format!("--{flag}"), value], &[cannot, flag]);
    }
    // Fewer than there are.
    vae(&["--epochs", "1"], &["epochs"]);
    vae(&["--steps", "3"], &["steps"]);
    gan(&["--epochs", "1"], &["epochs"]);
    // In steps as well.
    let few = with(
        &["train", "vae", "--train-limit", "300", "--test-limit", "10", "--encoder-hidden", "8"],
        &["--decoder-hidden", "8", "--steps", "5", "--device", "cpu", "--deterministic", "--out", "s"],
    );
    good(d, &few);
    refused(d, &["train", "--resume", "s", "--steps", "4"], 2, &["steps"]);
    refused(d, &["train", "--resume", "s", "--epochs", "1"], 2, &["epochs"]);
    good(d, &["train", "--resume", "s", "--epochs", "2"]);
    assert_eq!(newest(&d.join("s")), 6);
    // Nothing of this has touched the runs.
    good(d, &with(SMALL_VAE, &["--out", "w"]));
    assert_same(&d.join("v"), &d.join("w"));
}

#[test]
fn resuming_takes_equal_settings_and_those_that_may_change() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(SMALL_VAE, &["--out", "whole", "--epochs", "4"]));
    good(d, &with(SMALL_VAE, &["--out", "same"]));
    // The command that began the run, with --resume in place of its place.
    let again = with(SMALL_VAE, &["--epochs", "4", "--resume", "same"]);
    assert_eq!(again[1], "vae");
    let spelt_out = ["--lr", "1e-3", "--preset", "pytorch-vae", "--beta", "1.0", "--seed", "0"];
    good(d, &with(&again, &spelt_out));
    assert_same(&d.join("whole"), &d.join("same"));
    good(d, &with(SMALL_VAE, &["--out", "other"]));
    let other = d.join("other");
    let may_change = ["--log-every", "1", "--checkpoint-every", "2", "--sample-every", "0", "--eval-every", "0"];
    let more = ["--keep", "9", "--device", "cpu", "--data", "digits", "--data-dir", "x", "--epochs", "4"];
    good(d, &[&["train", "--resume", "other"][..], &may_change, &more].concat());
    let weights = |run: &str| fs::read(of_step(&d.join(run), 12).join("model.safetensors")).unwrap();
    assert!(weights("whole") == weights("other"), "none of these changes what is computed");
    let steps: Vec<_> = rows(&other).iter().map(|r| r["step"].as_u64().unwrap()).filter(|s| *s > 6).collect();
    assert_eq!(steps, [7, 8, 9, 10, 11, 12, 12], "a row every step, one score at the end");
    assert!(!other.join("samples/epoch-0003.png").exists() && other.join("samples/epoch-0004.png").exists());
    let kept = checkpoints(&other);
    assert_eq!(kept[kept.len() - 3..], ["step-00000008", "step-00000010", "step-00000012"]);
    // They stay: the run's config.toml has them now.
    good(d, &["train", "--resume", "other", "--epochs", "5", "--threads", "2"]);
    assert_eq!(checkpoints(&other).last().unwrap(), "step-00000015");
    assert!(of_step(&other, 14).is_dir() && rows(&other).iter().any(|r| r["step"] == 13));
}

/// A folder of IDX files whose pixels start at `first`.
fn idx_folder(dir: &Path, name: &str, first: u8) -> String {
    let folder = dir.join(name);
    fs::create_dir_all(&folder).unwrap();
    for (split, n) in [("train", 12u32), ("t10k", 3)] {
        let mut images = vec![0, 0, 8, 3];
        [n, 8, 8].iter().for_each(|d| images.extend(d.to_be_bytes()));
        images.extend((0..n * 64).map(|i| first.wrapping_add(i as u8)));
        let mut labels = vec![0, 0, 8, 1];
        labels.extend(n.to_be_bytes());
        labels.extend((0..n).map(|i| i as u8 % 10));
        fs::write(folder.join(format!("{split}-images-idx3-ubyte")), images).unwrap();
        fs::write(folder.join(format!("{split}-labels-idx1-ubyte")), labels).unwrap();
    }
    folder.to_string_lossy().into_owned()
}

#[test]
fn the_same_images_may_be_in_another_place_and_other_images_may_not() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let here = idx_folder(d, "here", 0);
    let small = ["--encoder-hidden", "8", "--decoder-hidden", "8", "--latent", "2", "--batch-size", "5"];
    let run = ["train", "vae", "--device", "cpu", "--deterministic", "--epochs", "1", "--out", "r", "--data", &here];
    good(d, &[&run[..], &small].concat());
    fs::rename(d.join("here"), d.join("moved")).unwrap();
    refused(d, &["train", "--resume", "r", "--epochs", "2"], 2, &["here"]);
    let other = idx_folder(d, "other", 1);
    let said = refused(d, &["train", "--resume", "r", "--epochs", "2", "--data", &other], 1, &["--data", "other"]);
    assert!(said.contains("checksum"), "{said}");
    good(d, &["train", "--resume", "r", "--epochs", "2", "--data", "moved"]);
    good(d, &["train", "--resume", "r", "--epochs", "3"]);
    assert_eq!(newest(&d.join("r")), 9);
}

#[test]
fn an_edited_config_is_refused_with_each_changed_key() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(SMALL_VAE, &["--out", "r"]));
    let file = d.join("r/config.toml");
    let config = fs::read_to_string(&file).unwrap();
    let edited = |changes: &[(&str, &str)]| {
        let mut text = config.clone();
        for (from, to) in changes {
            assert!(text.contains(from), "{from} in {text}");
            text = text.replacen(from, to, 1);
        }
        fs::write(&file, text).unwrap();
    };
    let resume = ["train", "--resume", "r", "--epochs", "3"];
    edited(&[("\nlr = 0.001", "\nlr = 0.01"), ("batch-size = 128", "batch-size = 64"), ("seed = 0", "seed = 4")]);
    let said = refused(d, &resume, 2, &["config.toml", "lr", "batch-size", "seed", "0.001", "0.01", "128", "64"]);
    assert!(!said.contains("epochs") && !said.contains("latent"), "{said}");
    refused(d, &with(&resume, &["--lr", "0.01", "--batch-size", "64", "--seed", "4"]), 2, &["config.toml", "lr"]);
    for (from, to, key) in [
        ("latent = 20", "latent = 21", "latent"),
        ("encoder-hidden = [32]", "encoder-hidden = [32, 8]", "encoder-hidden"),
        ("train-limit = 300", "train-limit = 299", "train-limit"),
        ("train-limit = 300\n", "", "train-limit"),
        ("beta = 1.0", "beta = 1.5", "beta"),
        ("deterministic = true", "deterministic = false", "deterministic"),
        ("epochs = 2", "epochs = 1", "epochs"),
    ] {
        edited(&[(from, to)]);
        let args = if key == "epochs" { &resume[..3] } else { &resume[..] };
        refused(d, args, 2, &[if key == "epochs" { "" } else { "config.toml" }, key]);
    }
    // A key that no run knows, or a broken file: also a sentence that names it.
    edited(&[("latent = 20", "latnet = 20")]);
    refused(d, &resume, 2, &["config.toml", "latnet"]);
    edited(&[("latent = 20", "latent = ")]);
    refused(d, &resume, 2, &["config.toml"]);
    // What may change may be edited too, and the text as it was is as good as ever.
    edited(&[("log-every = 2", "log-every = 1"), ("keep = 3", "keep = 5")]);
    good(d, &resume);
    assert!(rows(&d.join("r")).iter().any(|r| r["step"] == 7));
}

#[test]
fn an_edited_tuning_is_refused_with_each_changed_key() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(SMALL_VAE, &["--out", "r", "--keep-optimizer", "all"]));
    let file = d.join("r/config.toml");
    let config = fs::read_to_string(&file).unwrap();
    let (settings, run) = config.split_once("[run.tuning]").unwrap();
    let edited = |changes: &[(&str, &str)]| {
        let mut text = run.to_owned();
        for (from, to) in changes {
            assert!(text.contains(from), "{from} in {text}");
            text = text.replacen(from, to, 1);
        }
        fs::write(&file, format!("{settings}[run.tuning]{text}")).unwrap();
    };
    let resume = ["train", "--resume", "r", "--epochs", "3"];
    for (from, to, key) in [
        (
            "products = \"by-size\"",
            "products = \"blas\"",
            "products is \"by-size\" in the checkpoint, \"blas\" in the file",
        ),
        ("layout = \"channels-last\"", "layout = \"contiguous\"", "layout"),
        ("kernels = \"own\"", "kernels = \"libtorch\"", "kernels"),
        ("threads = 1", "threads = 2", "threads is 1 in the checkpoint, 2 in the file"),
    ] {
        edited(&[(from, to)]);
        refused(d, &resume, 2, &["[run.tuning] in r/config.toml", key]);
    }
    edited(&[("products = \"by-size\"", "products = \"blas\""), ("kernels = \"own\"", "kernels = \"libtorch\"")]);
    refused(d, &resume, 2, &["products", "kernels"]);
    // Threads that were asked for are no edit, neither now nor in a process that goes on from there before a checkpoint.
    edited(&[]);
    good(d, &with(&resume, &["--threads", "2"]));
    assert!(fs::read_to_string(&file).unwrap().matches("threads = 2").count() == 2);
    good(d, &["train", "--resume", "r", "--epochs", "4"]);
    good(d, &["train", "--resume", "r", "--epochs", "5", "--threads", "1"]);
    fs::remove_dir_all(of_step(&d.join("r"), 15)).unwrap();
    good(d, &["train", "--resume", "r"]);
}

#[test]
fn a_run_of_another_version_is_refused_with_the_version_that_can_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(SMALL_VAE, &["--out", "r"]));
    let file = d.join("r/config.toml");
    let config = fs::read_to_string(&file).unwrap();
    let made_by = |version: &str| {
        let own = format!("ganvae = \"{}\"", env!("CARGO_PKG_VERSION"));
        assert!(config.contains(&own), "{config}");
        // Settings that this version does not know.
        fs::write(&file, config.replace(&own, &format!("ganvae = \"{version}\"")) + "\n[unheard-of]\n").unwrap();
    };
    for version in ["0.1.0", "0.1.7", "0.99.0", "1.2.0", "a fork"] {
        made_by(version);
        for args in [
            &["train", "--resume", "r", "--epochs", "3"][..],
            &["sample", "r", "--out", "x.png"],
            &["reconstruct", "r", "--out", "x.png"],
            &["interpolate", "r", "--out", "x.png"],
            &["traverse", "r", "--out", "x.png"],
            &["encode", "r", "--out", "x.npy"],
            &["export", "r", "--out", "x"],
            &["plot", "--latent", "r", "--out", "x.png"],
        ] {
            let parts = [
                &format!("r was made by ganvae {version}, whose")[..],
                &format!("with ganvae {version}, or train a new run"),
            ];
            refused(d, args, 2, &parts);
        }
    }
    // What it exported, and its curves, are as good as ever.
    good(d, &["sample", "r/export", "--out", "x.png"]);
    good(d, &["plot", "r", "--out", "curves.png"]);
    fs::write(&file, config.replace(concat!("\"", env!("CARGO_PKG_VERSION"), "\""), "\"0.2.99\"")).unwrap();
    good(d, &["train", "--resume", "r", "--epochs", "3"]);
}
