//! The program from outside: what a run leaves behind, and what bad input gets told.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{ganvae, listing, refused, text};

/// Runs a command that must end well; gives its stdout.
fn good(dir: &Path, args: &[&str]) -> String {
    text(&common::good(dir, args).stdout)
}

/// A small run of each kind, quick enough for a test, with the same bits at every start.
const SMALL_VAE: &[&str] = &[
    "train",
    "vae",
    "--train-limit",
    "300",
    "--test-limit",
    "100",
    "--epochs",
    "2",
    "--log-every",
    "2",
    "--encoder-hidden",
    "32",
    "--decoder-hidden",
    "32",
    "--device",
    "cpu",
    "--deterministic",
];
const SMALL_GAN: &[&str] = &[
    "train",
    "gan",
    "--train-limit",
    "200",
    "--test-limit",
    "50",
    "--epochs",
    "2",
    "--log-every",
    "1",
    "--base-width",
    "4",
    "--ema",
    "0.9",
    "--device",
    "cpu",
    "--deterministic",
];

fn with<'a>(base: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [base, more].concat()
}

fn rows(run: &Path) -> Vec<serde_json::Map<String, serde_json::Value>> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn a_vae_run_leaves_everything_the_contract_names() {
    let dir = tempfile::tempdir().unwrap();
    let said = good(dir.path(), SMALL_VAE);
    let run = dir.path().join("runs/0001-vae-digits");
    for file in [
        "config.toml",
        "metrics.jsonl",
        "scalars.json",
        "loss.png",
        "data.png",
        "samples/epoch-0001.png",
        "samples/epoch-0002.png",
        "reconstructions/epoch-0002.png",
        "checkpoints/latest",
        "checkpoints/step-00000006/model.safetensors",
        "checkpoints/step-00000006/optimizer.safetensors",
        "checkpoints/step-00000006/state.json",
    ] {
        assert!(run.join(file).is_file(), "{file} is missing");
        assert!(fs::metadata(run.join(file)).unwrap().len() > 0, "{file} is empty");
    }
    assert_eq!(fs::read_to_string(run.join("checkpoints/latest")).unwrap(), "step-00000006");
    assert!(said.contains("test_loss") && said.contains("runs/0001-vae-digits/loss.png"), "{said}");
    let rows = rows(&run);
    let steps: Vec<_> = rows.iter().map(|r| (r["step"].as_u64().unwrap(), r.contains_key("test_loss"))).collect();
    // 300 images in batches of 128: three steps an epoch, the last of 44 images; a row every two steps and at each end.
    let want = [(2, false), (3, false), (3, true), (4, false), (6, false), (6, true)];
    assert_eq!(steps, want);
    for row in &rows {
        for key in ["step", "epoch", "seen_images", "wall_s"] {
            assert!(row.contains_key(key), "{key} in {row:?}");
        }
        let prefix = if row.contains_key("lr") { "" } else { "test_" };
        let get = |name: &str| row[&format!("{prefix}{name}")].as_f64().unwrap();
        assert!((get("loss") - get("recon") - get("kl")).abs() < 1e-3, "{row:?}");
        assert!((get("elbo") + get("recon") + get("kl")).abs() < 1e-3, "{row:?}");
    }
    assert_eq!(rows[1]["seen_images"], 300, "the last partial batch is used");
    assert_eq!(rows[5]["seen_images"], 600);
    let config = fs::read_to_string(run.join("config.toml")).unwrap();
    for part in [
        "model = \"vae\"",
        "encoder-hidden = [32]",
        "[run]",
        "libtorch = \"2.11.0\"",
        "data-sha256",
        "device = \"cpu\"",
    ] {
        assert!(config.contains(part), "{part} in {config}");
    }
    good(dir.path(), SMALL_VAE);
    assert!(dir.path().join("runs/0002-vae-digits").is_dir(), "a second run has the next number");
}

#[test]
fn a_schedule_ends_with_its_run() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(SMALL_VAE, &["--lr-end", "1e-4", "--schedule", "linear", "--out", "v"]));
    let lr: Vec<f64> = rows(&d.join("v")).iter().filter_map(|row| row.get("lr")?.as_f64()).collect();
    // From 1e-3 over six updates; a row has that of the update before it.
    let want = [1.0, 2.0, 3.0, 5.0].map(|updates| 1e-3 - 9e-4 * updates / 6.0);
    assert!(lr.len() == 4 && lr.iter().zip(want).all(|(lr, want)| (lr - want).abs() < 1e-12), "{lr:?}, not {want:?}");
    refused(d, &["train", "--resume", "v", "--epochs", "3"], 2, &["--epochs", "ends with its 6 steps", "--init-from"]);
}

/// Networks that hardly learn: what they compute in training, with the statistics of each batch, is what they compute in evaluation
/// mode, in which they are scored and exported. The running statistics of five updates are still near 0 and 1.
#[test]
fn networks_are_scored_as_they_were_trained() {
    let dir = tempfile::tempdir().unwrap();
    let small = ["--train-limit", "600", "--test-limit", "600", "--epochs", "1", "--base-width", "4", "--ema", "0.9"];
    let args = [
        &["train", "gan", "--lr", "1e-9", "--seed", "1", "--device", "cpu", "--deterministic", "--out", "g"],
        &small[..],
    ];
    good(dir.path(), &args.concat());
    let rows = rows(&dir.path().join("g"));
    let last = |key: &str| rows.iter().rev().find_map(|row| row.get(key)?.as_f64()).unwrap();
    for key in ["d_real", "diversity"] {
        let (trained, scored) = (last(key), last(&format!("test_{key}")));
        assert!((trained / scored - 1.0).abs() < 0.05, "{key}: {trained} in training, {scored} in the score");
    }
}

#[test]
fn a_gan_run_has_its_own_columns() {
    let dir = tempfile::tempdir().unwrap();
    good(dir.path(), &with(SMALL_GAN, &["--out", "g"]));
    let run = dir.path().join("g");
    let rows = rows(&run);
    assert!(rows.iter().any(|r| r.contains_key("test_d_real")));
    for key in ["d_loss", "g_loss", "d_real", "d_fake"] {
        assert!(rows[0][key].is_f64(), "{key}");
    }
    assert!(!run.join("reconstructions").exists());
    assert!(run.join("samples/epoch-0002.png").is_file());
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_another() {
    let dir = tempfile::tempdir().unwrap();
    let losses = |name: &str, seed: &str| {
        good(dir.path(), &with(SMALL_VAE, &["--out", name, "--seed", seed]));
        let all = rows(&dir.path().join(name));
        all.iter().map(|r| r.get("loss").or(r.get("test_loss")).unwrap().to_string()).collect::<Vec<_>>()
    };
    let (a, b, c) = (losses("a", "1"), losses("b", "1"), losses("c", "2"));
    assert_eq!(a, b);
    assert_ne!(a, c);
    let picture = |name: &str| fs::read(dir.path().join(name).join("samples/epoch-0002.png")).unwrap();
    assert!(picture("a") == picture("b") && picture("a") != picture("c"));
}

/// State handling of DESIGN 5 and 8: a run stopped in the middle of an epoch and resumed is the uninterrupted run.
#[test]
fn a_resumed_run_is_the_uninterrupted_one_bit_for_bit() {
    // Lazy penalties depend on the number of updates, LeCam on moving averages; a step is of three batches.
    let penalised = "--batch-size 16 --discriminator-norm none --r1 1 --lecam 0.3 --penalty-every 4 --d-steps 2 --d-lr 3e-4 --gan-loss relativistic";
    let penalised = with(SMALL_GAN, &penalised.split(' ').collect::<Vec<_>>());
    for (base, name) in [(SMALL_VAE, "vae"), (SMALL_GAN, "gan"), (&penalised, "penalised gan")] {
        let dir = tempfile::tempdir().unwrap();
        let base = with(base, &["--checkpoint-every", "1", "--keep", "99", "--keep-optimizer", "all"]);
        good(dir.path(), &with(&base, &["--out", "whole"]));
        good(dir.path(), &with(&base, &["--out", "part"]));
        // As if killed in step 2: later checkpoints never were, and rows after it are stale. Step 1 is within an epoch and,
        // for the VAE, within a log interval.
        let part = dir.path().join("part");
        for checkpoint in fs::read_dir(part.join("checkpoints")).unwrap().flatten() {
            if checkpoint.file_name().to_string_lossy().as_ref() > "step-00000001" {
                fs::remove_dir_all(checkpoint.path()).unwrap();
            }
        }
        good(dir.path(), &["train", "--resume", "part"]);
        let last = fs::read_to_string(part.join("checkpoints/latest")).unwrap();
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let of = |run: &str| fs::read(dir.path().join(run).join("checkpoints").join(&last).join(file)).unwrap();
            assert!(of("whole") == of("part"), "{name}: {file} differs");
        }
        let timeless = |run: &str| {
            let mut all = rows(&dir.path().join(run));
            all.iter_mut().for_each(|r| {
                r.remove("wall_s");
                r.remove("images_per_s");
            });
            all
        };
        assert_eq!(timeless("whole"), timeless("part"), "{name}");
        let picture = |run: &str| fs::read(dir.path().join(run).join("samples/epoch-0002.png")).unwrap();
        assert!(picture("whole") == picture("part"), "{name}");
        refused(dir.path(), &["train", "--resume", "part"], 2, &["has done all", "--epochs"]);
        good(dir.path(), &["train", "--resume", "part", "--epochs", "3"]);
        assert!(part.join("samples/epoch-0003.png").is_file());
    }
}

/// Every loss under every penalty: finite rows, with the penalty where there is one; what contradicts itself is refused.
#[test]
fn every_loss_trains_under_every_penalty() {
    let dir = tempfile::tempdir().unwrap();
    let conv = "train gan --arch conv --base-width 4 --discriminator-norm none --train-limit 64 --test-limit 8 \
                --batch-size 8 --steps 4 --log-every 2 --device cpu --deterministic";
    for loss in ["non-saturating", "minimax", "least-squares", "hinge", "wasserstein", "relativistic"] {
        for penalty in ["", "--r1 1 --r2 1", "--gradient-penalty 10 --d-steps 3", "--lecam 0.3", "--r1 1 --first-order"]
        {
            let flags: Vec<_> = conv.split_whitespace().chain(penalty.split_whitespace()).collect();
            let out = format!("{loss}{penalty}").replace(' ', "");
            good(dir.path(), &with(&flags, &["--gan-loss", loss, "--out", &out]));
            let rows = rows(&dir.path().join(&out));
            for row in rows.iter().filter(|row| row.contains_key("d_loss")) {
                let value = row.get("penalty").and_then(serde_json::Value::as_f64);
                assert_eq!(value.is_some_and(|v| v.is_finite() && v >= 0.0), !penalty.is_empty(), "{out}: {row:?}");
            }
        }
    }
    // What is of training alone is unknown on held-out images: no value, and no divergence.
    let flags: Vec<_> =
        conv.split_whitespace().chain("--r2 1 --augment shift --augment-p adaptive --out both".split(' ')).collect();
    good(dir.path(), &flags);
    let all = rows(&dir.path().join("both"));
    let has = |row: &serde_json::Map<String, serde_json::Value>, keys: [&str; 2]| keys.map(|key| row.contains_key(key));
    let (training, held_out): (Vec<_>, Vec<_>) = all.iter().partition(|row| row.contains_key("d_loss"));
    assert!(!training.is_empty() && training.iter().all(|row| has(row, ["penalty", "augment_p"]) == [true; 2]));
    assert!(held_out.iter().any(|row| row.contains_key("test_d_loss")), "{held_out:?}");
    assert!(held_out.iter().all(|row| has(row, ["test_penalty", "test_augment_p"]) == [false; 2]), "{held_out:?}");
    let conv = ["train", "gan", "--arch", "conv", "--gan-loss", "wasserstein", "--gradient-penalty", "10"];
    refused(dir.path(), &conv, 2, &["--gradient-penalty", "batch normalisation", "--discriminator-norm none"]);
    let mlp = ["train", "gan", "--arch", "mlp", "--discriminator-norm", "batch"];
    refused(dir.path(), &mlp, 2, &["--discriminator-norm batch", "--arch conv"]);
}

#[test]
fn samples_come_from_the_checkpoint_and_the_seed() {
    let dir = tempfile::tempdir().unwrap();
    good(dir.path(), &with(SMALL_GAN, &["--out", "g"]));
    let read = |file: &str| tch::Tensor::read_npy(dir.path().join(file)).unwrap();
    let first = good(dir.path(), &["sample", "g", "--count", "7", "--out", "a.npy"]);
    let seed = first.strip_prefix("a.npy\nseed ").unwrap_or_else(|| panic!("{first}")).trim();
    good(dir.path(), &["sample", "g", "--count", "12", "--seed", seed, "--out", "b.npy"]);
    good(dir.path(), &["sample", "g", "--count", "7", "--seed", "1", "--out", "c.npy"]);
    let (a, b, c) = (read("a.npy"), read("b.npy"), read("c.npy"));
    assert_eq!(a.size(), [7, 1, 28, 28]);
    assert!(a.min().double_value(&[]) >= 0.0 && a.max().double_value(&[]) <= 1.0);
    assert!(a.equal(&b.narrow(0, 0, 7)), "the first of more are the same");
    assert!(!a.equal(&c));
    good(dir.path(), &["sample", "g", "--out", "grid.png"]);
    good(dir.path(), &["sample", "g", "--count", "3", "--out", "single"]);
    assert_eq!(fs::read_dir(dir.path().join("single")).unwrap().count(), 3);
    refused(dir.path(), &["sample", "g", "--out", "single"], 2, &["--out single", "not empty"]);
    let places = [0, 1].map(|_| good(dir.path(), &["sample", "g"]).lines().next().unwrap_or_default().to_owned());
    assert!(places[0].ends_with(".png") && places[0] != places[1], "new images in a new file each time: {places:?}");
}

#[test]
fn plot_draws_one_run_or_several() {
    let dir = tempfile::tempdir().unwrap();
    good(dir.path(), &with(SMALL_VAE, &["--out", "a"]));
    good(dir.path(), &with(SMALL_VAE, &["--out", "b", "--seed", "5"]));
    good(dir.path(), &["plot", "a", "--out", "a.svg"]);
    assert!(fs::read_to_string(dir.path().join("a.svg")).unwrap().contains("nats per image"));
    assert_eq!(good(dir.path(), &["plot", "a", "b"]), "curves.png\n");
    fs::remove_file(dir.path().join("b/scalars.json")).unwrap();
    refused(dir.path(), &["plot", "b"], 1, &["b has no scalars.json", "ganvae 0.1", "`ganvae plot"]);
    assert!(fs::metadata(dir.path().join("curves.png")).unwrap().len() > 1000);
}

#[test]
fn print_config_shows_what_would_run_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let text = good(dir.path(), &["train", "vae", "--preset", "article", "--lr", "0.5", "--print-config"]);
    assert!(text.contains("lr = 0.5") && text.contains("decoder-hidden = [512, 12544]"), "{text}");
    assert!(listing(dir.path()).is_empty(), "nothing is written");
    fs::write(dir.path().join("c.toml"), text.replace("0.5", "0.25")).unwrap();
    let again = good(dir.path(), &["train", "vae", "--config", "c.toml", "--print-config"]);
    assert!(again.contains("lr = 0.25") && again.contains("preset = \"article\""), "{again}");
}

#[test]
fn data_says_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let text = good(dir.path(), &["data", "digits", "--out", "p.png"]);
    assert!(text.contains("60000 images") && text.contains("1x28x28") && text.contains("p.png"), "{text}");
    assert!(dir.path().join("p.png").is_file());
    let mnist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/mnist");
    if !mnist.is_dir() {
        eprintln!("SKIPPED: real MNIST was not found at {}", mnist.display());
        return;
    }
    let text = good(dir.path(), &["data", &mnist.to_string_lossy()]);
    // Published counts of MNIST's training classes, and the mean pixel that every tutorial quotes.
    assert!(text.contains("0:5923 1:6742 2:5958 3:6131 4:5842 5:5421 6:5918 7:6265 8:5851 9:5949"), "{text}");
    assert!(text.contains("mean 0.1307"), "{text}");
}

/// Colour pictures of 32×32 in two class folders.
fn pictures(dir: &Path) -> String {
    for (class, tint) in [("red", [200u8, 30, 30]), ("blue", [20, 40, 220])] {
        let folder = dir.join("pictures").join(class);
        fs::create_dir_all(&folder).unwrap();
        for i in 0..30u32 {
            let pixel = |x, y| image::Rgb(tint.map(|v| v.wrapping_add((x * i % 23 + y) as u8)));
            image::RgbImage::from_fn(32, 32, pixel).save(folder.join(format!("{i:02}.png"))).unwrap();
        }
    }
    dir.join("pictures").to_string_lossy().into_owned()
}

#[test]
fn folders_of_colour_pictures_train_both_architectures() {
    let dir = tempfile::tempdir().unwrap();
    let pictures = pictures(dir.path());
    let common =
        ["--data", &pictures, "--train-limit", "200", "--test-limit", "40", "--epochs", "1", "--device", "cpu"];
    for (out, args) in [
        ("a", vec!["train", "vae", "--arch", "conv", "--base-width", "4"]),
        ("b", vec!["train", "gan", "--base-width", "4", "--image-size", "24x32"]),
        ("c", vec!["train", "vae", "--arch", "mlp", "--image-size", "9x7", "--channels", "1"]),
    ] {
        good(dir.path(), &[&args[..], &common[..], &["--out", out]].concat());
        good(dir.path(), &["sample", out, "--count", "2", "--out", &format!("{out}.npy")]);
    }
    let size = |file: &str| tch::Tensor::read_npy(dir.path().join(file)).unwrap().size();
    assert_eq!(size("a.npy"), [2, 3, 32, 32]);
    assert_eq!(size("b.npy"), [2, 3, 24, 32]);
    assert_eq!(size("c.npy"), [2, 1, 9, 7]);
    refused(
        dir.path(),
        &[&["train", "vae", "--arch", "conv", "--image-size", "27x28"][..], &common[..]].concat(),
        1,
        &["27x28", "--arch mlp"],
    );
}

#[test]
fn a_number_of_steps_may_end_within_an_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["train", "vae", "--train-limit", "300", "--test-limit", "100", "--steps", "4", "--log-every", "3"];
    good(dir.path(), &[&args[..], &["--encoder-hidden", "8", "--decoder-hidden", "8", "--out", "r"]].concat());
    let run = dir.path().join("r");
    let steps: Vec<_> =
        rows(&run).iter().map(|r| (r["step"].as_u64().unwrap(), r["seen_images"].as_u64().unwrap())).collect();
    // Three steps an epoch (128 + 128 + 44 images), both ends of it scored.
    assert_eq!(steps, [(3, 300), (3, 300), (4, 428), (4, 428)]);
    for file in ["samples/epoch-0001.png", "samples/step-00000004.png", "checkpoints/step-00000004/state.json"] {
        assert!(run.join(file).is_file(), "{file}");
    }
    good(dir.path(), &["train", "--resume", "r", "--steps", "6"]);
    assert_eq!(rows(&run).last().unwrap()["seen_images"], 600);
}

#[test]
fn a_runs_config_serves_another_run_from_another_folder() {
    let dir = tempfile::tempdir().unwrap();
    let pictures = pictures(dir.path());
    let relative = Path::new(&pictures).file_name().unwrap().to_string_lossy();
    let args = ["--data", &relative, "--image-size", "8", "--epochs", "1", "--latent", "2", "--out", "a"];
    good(dir.path(), &[&["train", "vae"][..], &args[..]].concat());
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    good(&elsewhere, &["train", "--config", "../a/config.toml"]);
    let kept = |run: PathBuf| fs::read_to_string(run.join("config.toml")).unwrap();
    assert_eq!(kept(dir.path().join("a")), kept(elsewhere.join("runs/0001-vae-pictures")));
    good(&elsewhere, &["train", "--resume", "../a", "--epochs", "2"]);
}

#[test]
fn resuming_passes_over_a_damaged_newest_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let base = with(SMALL_VAE, &["--checkpoint-every", "2", "--keep-optimizer", "all"]);
    good(dir.path(), &with(&base, &["--out", "a"]));
    good(dir.path(), &with(&base, &["--out", "b"]));
    let of = |run: &str, step: &str| dir.path().join(run).join("checkpoints").join(step).join("model.safetensors");
    let whole = fs::read(of("a", "step-00000006")).unwrap();
    fs::write(of("b", "step-00000006"), &whole[1..]).unwrap();
    let out = ganvae(dir.path(), &["train", "--resume", "b"]);
    let said = text(&out.stderr);
    assert!(out.status.success() && said.contains("is damaged") && said.contains("resuming b at step 4"), "{said}");
    assert!(fs::read(of("b", "step-00000006")).unwrap() == whole, "the same weights again");
}

#[test]
fn a_run_whose_metrics_are_gone_can_still_go_on() {
    let dir = tempfile::tempdir().unwrap();
    good(dir.path(), &with(SMALL_VAE, &["--out", "r r"]));
    fs::remove_file(dir.path().join("r r/metrics.jsonl")).unwrap();
    let out = ganvae(dir.path(), &["train", "--resume", "r r", "--epochs", "3"]);
    assert!(out.status.success() && text(&out.stderr).contains("has lost rows"), "{}", text(&out.stderr));
    assert_eq!(rows(&dir.path().join("r r"))[0]["step"], 8);
    assert!(text(&out.stdout).contains("ganvae sample 'r r'"), "{}", text(&out.stdout));
}

#[test]
fn a_held_out_score_that_is_not_finite_stops_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let args = [
        "train",
        "vae",
        "--lr",
        "1",
        "--steps",
        "3",
        "--encoder-hidden",
        "2048",
        "--train-limit",
        "64",
        "--test-limit",
        "16",
    ];
    let out = ganvae(dir.path(), &[&args[..], &["--out", "r", "--batch-size", "32", "--device", "cpu"]].concat());
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.lines().last().unwrap().contains("diverged"), "{said}");
}

/// `ganvae train vae 2>&1 | head -1` and a full disk behind stderr: no reason to lose a run or to panic.
#[test]
fn a_stderr_that_cannot_be_written_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ganvae"));
        command
            .args(args)
            .current_dir(dir.path())
            .stderr(full)
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap()
            .code()
    };
    assert_eq!(run(&["plot", "nowhere"]), Some(2));
    assert_eq!(run(&["trian"]), Some(2));
    assert_eq!(run(&with(SMALL_VAE, &["--out", "r"])), Some(0));
    assert!(dir.path().join("r/checkpoints/step-00000006/state.json").is_file());
}

#[test]
fn interrupted_runs_write_a_checkpoint_and_say_how_to_go_on() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_ganvae"))
            .args(with(SMALL_VAE, &["--out", "r", "--epochs", "100000"]))
            .current_dir(dir.path())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let run = dir.path().join("r");
        for _ in 0..600 {
            if fs::metadata(run.join("metrics.jsonl")).is_ok_and(|m| m.len() > 0) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert!(Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap().success());
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(code));
        let said = text(&out.stderr);
        assert!(said.contains("go on with: ganvae train --resume r"), "{said}");
        let latest = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
        assert!(run.join("checkpoints").join(latest).join("state.json").is_file() && run.join("loss.png").is_file());
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    // Adam at a step size of 1 on a wide network overflows exp(logvar) within a few steps.
    let args =
        with(SMALL_VAE, &["--out", "r", "--lr", "1", "--beta", "1000", "--epochs", "400", "--checkpoint-every", "1"]);
    let out = ganvae(dir.path(), &args);
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("error: ") && last.contains("diverged") && last.contains("--lr"), "{last}");
    let latest = fs::read_to_string(dir.path().join("r/checkpoints/latest")).unwrap();
    let weights = dir.path().join("r/checkpoints").join(latest).join("model.safetensors");
    for (name, t) in tch::Tensor::read_safetensors(weights).unwrap() {
        assert!(t.isfinite().all().int64_value(&[]) == 1, "{name} in the last checkpoint");
    }
}

fn idx_folder(dir: &Path, name: &str, change: impl Fn(&str, &mut Vec<u8>)) -> PathBuf {
    let folder = dir.join(name);
    fs::create_dir_all(&folder).unwrap();
    for (split, n) in [("train", 6u32), ("t10k", 3)] {
        let mut images = vec![0, 0, 8, 3];
        [n, 4, 5].iter().for_each(|d| images.extend(d.to_be_bytes()));
        images.extend((0..n * 20).map(|i| i as u8));
        let mut labels = vec![0, 0, 8, 1];
        labels.extend(n.to_be_bytes());
        labels.extend((0..n).map(|i| i as u8));
        for (kind, mut bytes) in [("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)] {
            let file = format!("{split}-{kind}");
            change(&file, &mut bytes);
            fs::write(folder.join(file), bytes).unwrap();
        }
    }
    folder
}

#[test]
fn a_size_in_a_file_may_be_a_number() {
    let dir = tempfile::tempdir().unwrap();
    for (size, want) in [("64", "image-size = \"64x64\""), ("'64x48'", "image-size = \"64x48\"")] {
        fs::write(dir.path().join("c.toml"), format!("image-size = {size}\ndata = 'my/pictures'")).unwrap();
        let text = good(dir.path(), &["train", "vae", "--config", "c.toml", "--print-config"]);
        assert!(text.contains(want), "{text}");
    }
    fs::write(dir.path().join("c.toml"), "image-size = [64, 64]").unwrap();
    refused(dir.path(), &["train", "vae", "--config", "c.toml"], 2, &["image-size = [64, 64]: wanted HEIGHTxWIDTH"]);
}

/// Ten epochs of a hundred pictures are ten updates, which is not what was hoped for.
#[test]
fn a_run_of_too_few_updates_is_warned_of_unless_they_were_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let said = |args: &[&str]| {
        let out = ganvae(dir.path(), &with(&with(SMALL_GAN, args), &["--sample-every", "0"]));
        assert!(out.status.success());
        text(&out.stderr)
    };
    let warned = said(&["--epochs", "2", "--out", "a"]);
    assert!(
        warned.contains("updates (") && warned.contains("use more --epochs, --steps 5000 or a smaller --batch-size"),
        "{warned}"
    );
    // As many as these, but asked for.
    let out = ganvae(
        dir.path(),
        &[
            "train",
            "gan",
            "--base-width",
            "4",
            "--train-limit",
            "64",
            "--test-limit",
            "8",
            "--steps",
            "2",
            "--out",
            "b",
        ],
    );
    let said = text(&out.stderr);
    assert!(out.status.success() && !said.contains("warning: this run has 2 updates"), "{said}");
    assert!(said.contains("warning: this run has 64 training images"), "few are few however it is trained: {said}");
}

#[test]
fn bad_flags_and_settings_get_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::write(d.join("bad.toml"), "batch_size = 3").unwrap();
    fs::write(d.join("broken.toml"), "lr = ").unwrap();
    fs::write(d.join("type.toml"), "lr = 'fast'").unwrap();
    fs::write(d.join("gan.toml"), "model = 'gan'").unwrap();
    fs::write(d.join("twice.toml"), "epochs = 1\nsteps = 2").unwrap();
    fs::write(d.join("file"), "x").unwrap();
    fs::create_dir(d.join("full")).unwrap();
    fs::write(d.join("full/x"), "x").unwrap();
    let vae = |more: &[&str], parts: &[&str]| refused(d, &with(&["train", "vae"], more), 2, parts);
    refused(d, &["train"], 2, &["<vae|gan>", "(see ganvae train --help)"]);
    refused(d, &["trian"], 2, &["(see ganvae --help)"]);
    refused(d, &["trian"], 2, &["trian", "train"]);
    refused(d, &["train", "diffusion"], 2, &["diffusion", "vae"]);
    vae(&["--no-such-flag"], &["--no-such-flag"]);
    vae(&["--lr", "0"], &["--lr 0", "above 0"]);
    vae(&["--lr", "-1"], &["--lr"]);
    vae(&["--lr", "fast"], &["--lr", "fast"]);
    vae(&["--lr", "nan"], &["--lr nan"]);
    vae(&["--batch-size", "0"], &["--batch-size 0"]);
    vae(&["--batch-size", "-3"], &["-3"]);
    vae(&["--batch-size", "1.5"], &["--batch-size", "1.5"]);
    vae(&["--epochs", "0"], &["--epochs 0"]);
    vae(&["--epochs", "2", "--steps", "3"], &["--epochs", "--steps"]);
    vae(&["--beta1", "1"], &["--beta1 1"]);
    vae(&["--latent", "0"], &["--latent 0"]);
    vae(&["--encoder-hidden", "12,x"], &["--encoder-hidden", "12,x"]);
    vae(&["--encoder-hidden", "0"], &["--encoder-hidden"]);
    vae(&["--preset", "dcgna"], &["dcgna", "dcgan"]);
    vae(&["--preset", "dcgan"], &["--preset dcgan", "train gan"]);
    vae(&["--preset", "article", "--arch", "conv"], &["--arch contradicts --preset article"]);
    vae(&["--ema", "0.9"], &["--ema", "GAN"]);
    vae(&["--base-width", "3"], &["--base-width", "--arch conv"]);
    vae(&["--device", "gpu"], &["--device gpu", "cuda"]);
    vae(&["--device", "cuda:x"], &["--device cuda:x"]);
    vae(&["--device", "cpu", "--precision", "bf16"], &["--precision bf16 is for CUDA", "--device cuda"]);
    vae(&["--precision", "fp16"], &["--precision", "fp16", "bf16"]);
    vae(&["--cuda-graph", "on"], &["--cuda-graph", "on", "auto"]);
    vae(&["--threads", "0"], &["--threads 0"]);
    vae(&["--threads", "4294967295"], &["--threads 4294967295"]);
    vae(&["--seed", "18446744073709551615"], &["--seed", "18446744073709551615"]);
    vae(&["--checkpoint-every", "18446744073709551615"], &["--checkpoint-every"]);
    vae(&["--train-limit", "1000000000000"], &["--train-limit", "10000000"]);
    vae(&["--out", ""], &["--out"]);
    fs::write(d.join("no-out.toml"), "out = ''").unwrap();
    vae(&["--config", "no-out.toml"], &["out = \"\": wanted a path"]);
    vae(&["--log-every", "0"], &["--log-every 0"]);
    vae(&["--keep", "0"], &["--keep 0"]);
    vae(&["--data", "mnits"], &["--data mnits", "did you mean mnist?"]);
    vae(&["--data", "/no/such/folder"], &["/no/such/folder"]);
    vae(&["--image-size", "64"], &["--image-size"]);
    vae(&["--channels", "2"], &["--channels 2"]);
    vae(&["--train-limit", "0"], &["--train-limit 0"]);
    vae(&["--config", "none.toml"], &["none.toml"]);
    vae(&["--config", "bad.toml"], &["bad.toml", "did you mean 'batch-size'?"]);
    vae(&["--config", "broken.toml"], &["broken.toml, line 1"]);
    vae(&["--config", "type.toml"], &["lr = \"fast\""]);
    vae(&["--config", "twice.toml"], &["epochs and steps"]);
    vae(&["--config", "gan.toml"], &["of a gan"]);
    refused(d, &["train", "--config", "type.toml"], 2, &["lr = \"fast\""]);
    vae(&["--out", "full"], &["--out full", "not empty"]);
    vae(&["--out", "file"], &["--out file"]);
    refused(d, &["train", "gan", "--beta", "2"], 2, &["--beta", "VAE"]);
    refused(d, &["train", "gan", "--ema", "1"], 2, &["--ema 1"]);
    refused(d, &["train", "gan", "--ema", "0.9", "--ema-half-life", "1e4"], 2, &["--ema", "--ema-half-life"]);
    refused(d, &["train", "--resume", "nowhere"], 2, &["nowhere"]);
    refused(d, &["train", "--resume", "full"], 2, &["full", "not a run"]);
    refused(d, &["train", "vae", "--resume", "full"], 2, &["full", "not a run"]);
    refused(d, &["train", "--config", "twice.toml", "--resume", "full"], 2, &["--resume"]);
    refused(d, &["sample", "nowhere"], 2, &["nowhere"]);
    refused(d, &["sample", "full", "--count", "0"], 2, &["--count 0"]);
    refused(d, &["sample", "full", "--out", "x.jpg"], 2, &["x.jpg", ".png"]);
    refused(d, &["plot", "nowhere"], 2, &["nowhere"]);
    refused(d, &["plot"], 2, &["<RUN>"]);
    refused(d, &["data", "nothing"], 2, &["nothing", "digits"]);
    refused(d, &["data", "digits", "--out", "x.gif"], 2, &["x.gif"]);
}

#[test]
fn bad_data_gets_one_sentence_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let images = "train-images-idx3-ubyte";
    type Change = fn(&mut Vec<u8>);
    let changes: &[(&str, &str, Change, &str)] = &[
        ("truncated", images, |b| b.truncate(50), images),
        ("trailing", images, |b| b.push(0), images),
        ("magic", images, |b| b[0] = 7, "byte 0"),
        ("type", images, |b| b[2] = 0x0d, images),
        ("dims", images, |b| b[3] = 1, images),
        ("empty-set", images, |b| b[4..8].fill(0), images),
        ("huge", images, |b| b[4..8].fill(0xff), images),
        ("no-bytes", images, |b| b.clear(), images),
        (
            "labels",
            "train-labels-idx1-ubyte",
            |b| {
                b.pop();
                b[7] -= 1
            },
            "labels",
        ),
        (
            "other-shape",
            "t10k-images-idx3-ubyte",
            |b| {
                b[11] = 5;
                b[15] = 4
            },
            "4x5",
        ),
    ];
    assert!(ganvae(d, &["data", &idx_folder(d, "good", |_, _| ()).to_string_lossy()]).status.success());
    for (name, file, change, part) in changes {
        let folder = idx_folder(d, name, |f, bytes| {
            if f == *file {
                change(bytes)
            }
        });
        for args in [vec!["data"], vec!["train", "vae", "--data"]] {
            refused(d, &with(&args, &[&folder.to_string_lossy()]), 1, &[part]);
        }
    }
    fs::create_dir(d.join("hollow")).unwrap();
    refused(d, &["train", "vae", "--data", "hollow"], 1, &["hollow"]);
    fs::create_dir(d.join("pics")).unwrap();
    fs::write(d.join("pics/a.png"), b"not a picture").unwrap();
    refused(d, &["train", "vae", "--data", "pics"], 1, &["a.png"]);
    let said = refused(
        d,
        &["train", "vae", "--data", "mnist", "--data-dir", "here"],
        1,
        &["train-images-idx3-ubyte.gz", "here"],
    );
    assert!(said.len() < 1500, "{said}");
    let wide = ["train", "vae", "--arch", "conv", "--base-width", "65536", "--train-limit", "9", "--test-limit", "9"];
    refused(d, &wide, 2, &["--base-width 65536 is more than --max-width 1024"]);
    refused(d, &[&wide[..], &["--max-width", "65536"]].concat(), 1, &["conv2", "--base-width"]);
    // Digits cannot be 5x4 convolutions' images.
    refused(d, &["train", "vae", "--arch", "conv", "--data", "good"], 1, &["4x5", "--arch mlp"]);
}

#[test]
fn a_damaged_run_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    good(d, &with(SMALL_VAE, &["--out", "r"]));
    let step = d.join("r/checkpoints/step-00000006");
    let model = fs::read(step.join("model.safetensors")).unwrap();
    fs::write(step.join("model.safetensors"), &model[..model.len() - 1]).unwrap();
    let out = ganvae(d, &["sample", "r", "--out", "s.png"]);
    assert!(
        out.status.success() && text(&out.stderr).contains("trying the checkpoint before it"),
        "{}",
        text(&out.stderr)
    );
    fs::remove_dir_all(d.join("r/checkpoints/step-00000003")).unwrap();
    let out = ganvae(d, &["sample", "r"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("no intact checkpoint"), "{}", text(&out.stderr));
    fs::remove_dir_all(&step).unwrap();
    refused(d, &["sample", "r"], 1, &["no checkpoint yet"]);
    fs::write(d.join("r/metrics.jsonl"), "{\"step\":1,\n{}\n").unwrap();
    refused(d, &["plot", "r"], 1, &["metrics.jsonl", "line 1"]);
    good(d, &with(SMALL_VAE, &["--out", "w"]));
    refused(d, &["sample", "w", "--out", "/nonexistent/a.npy"], 1, &["/nonexistent/a.npy"]);
    refused(d, &["sample", "w", "--out", "/nonexistent/a.png"], 1, &["/nonexistent/a.png"]);
    refused(d, &["plot", "w", "--out", "/nonexistent/a.png"], 1, &["/nonexistent/a.png"]);
    refused(d, &["plot", "w", "--out", "a.bmp"], 1, &["a.bmp", "png"]);
    fs::write(d.join("r/config.toml"), "model = 'vae'").unwrap();
    refused(d, &["sample", "r"], 1, &["config.toml", "[run]"]);
    let config = fs::read_to_string(d.join("w/config.toml")).unwrap();
    fs::write(d.join("w/config.toml"), config.replace("channels = 1", "channels = 0")).unwrap();
    refused(d, &["sample", "w", "--out", "x.png"], 1, &["0x28x28", "[run]"]);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let command = format!("{} data digits | true; exit ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_ganvae"));
    let out = Command::new("bash").args(["-c", &command]).current_dir(dir.path()).output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{}", text(&out.stderr));
}

/// The table `[run.tuning]` of a run.
fn tuning(run: &Path) -> toml::Table {
    let config: toml::Table = fs::read_to_string(run.join("config.toml")).unwrap().parse().unwrap();
    config["run"]["tuning"].as_table().unwrap().clone()
}

#[test]
fn what_a_run_computes_with_is_said_stored_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let short = ["train", "vae", "--train-limit", "100", "--test-limit", "10", "--device", "cpu", "--steps"];
    let run = |name: &str, more: &[&str]| {
        let out = ganvae(dir.path(), &[&short[..], more, &["--out", name]].concat());
        assert!(out.status.success(), "{}", text(&out.stderr));
        text(&out.stderr)
    };
    let said = run("a", &["3", "--tune", "off,threads=1,products=blas,layout=contiguous,kernels=libtorch"]);
    assert!(said.contains("not tuned: threads=1,products=blas,layout=contiguous,kernels=libtorch"), "{said}");
    let want: toml::Table =
        "threads = 1\nproducts = 'blas'\nlayout = 'contiguous'\nkernels = 'libtorch'".parse().unwrap();
    assert_eq!(tuning(&dir.path().join("a")), want);
    let out = ganvae(dir.path(), &["train", "--resume", "a", "--steps", "5"]);
    assert!(text(&out.stderr).contains("as the run began: threads=1,products=blas,layout=contiguous,kernels=libtorch"));
    assert_eq!(tuning(&dir.path().join("a")), want, "a resumed run computes as it began");
    good(dir.path(), &["train", "--resume", "a", "--steps", "7", "--threads", "2"]);
    assert_eq!(
        tuning(&dir.path().join("a"))["threads"].as_integer(),
        Some(2),
        "but for the threads that are asked for"
    );
    let out = ganvae(dir.path(), &["train", "--resume", "a", "--steps", "9"]);
    assert!(text(&out.stderr).contains("as the run began: threads=2,"), "which stay: {}", text(&out.stderr));
    good(dir.path(), &["train", "--config", "a/config.toml", "--tune", "off", "--deterministic", "--out", "c"]);
    // An activation that batch normalisation does not take in, after one that is fused.
    let tanh =
        ["train", "gan", "--base-width", "4", "--activation", "tanh", "--train-limit", "200", "--test-limit", "10"];
    good(dir.path(), &[&tanh[..], &["--steps", "3", "--device", "cpu", "--out", "d"]].concat());
    let said = run("b", &["3", "--threads", "1", "--deterministic"]);
    assert!(said.contains("not tuned: threads=1,products=by-size,layout=channels-last,kernels=own"), "{said}");
    for (args, part) in [
        (&["--tune", "fast"][..], "\"fast\" is none of auto, off, threads=N"),
        (&["--tune", "threads=0"], "from 1 to 1024"),
        (&["--tune", "threads=2", "--threads", "1"], "contradicts --threads 1"),
        (&["--tune", "auto", "--deterministic"], "contradicts --deterministic"),
        (&["--tune", "products=blas", "--deterministic"], "products=blas does not round alike"),
        (&["--deterministic=maybe"], "maybe"),
        (&["--clip-norm", "-1"], "--clip-norm -1"),
        (&["--weight-decay", "2"], "--weight-decay 2"),
    ] {
        refused(dir.path(), &[&short[..], &["3"], args].concat(), 2, &[part]);
    }
}

/// A machine without a driver gets one sentence from every command that CUDA was asked of, and never a run on the CPU.
#[test]
fn cuda_that_is_not_there_is_refused_and_doctor_says_what_is() {
    let dir = tempfile::tempdir().unwrap();
    let page = good(dir.path(), &["doctor"]);
    assert!(page.starts_with("CPU: ready\n"), "{page}");
    for part in ["libtorch   2.11.0, /", "threads", "processor", "data", "driver"] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    let cpu = good(dir.path(), &["doctor", "--device", "cpu"]);
    assert!(cpu.ends_with("--device cpu works: it is cpu\n"), "{cpu}");
    refused(dir.path(), &["doctor", "--device", "gpu"], 2, &["--device gpu"]);
    refused(dir.path(), &["doctor", "--check"], 2, &["--device"]);
    let cuda = ganvae(dir.path(), &["doctor", "--device", "cuda"]);
    if cuda.status.success() {
        return;
    }
    assert_eq!(cuda.status.code(), Some(1));
    let said = text(&cuda.stdout);
    assert!(said.contains("--device cuda would fail\n  - "), "{said}");
    for command in [&["train", "vae"][..], &["bench", "gan"]] {
        refused(dir.path(), &[command, &["--device", "cuda"]].concat(), 1, &["--device cuda: ", "or use --device cpu"]);
    }
}

/// The device's check of itself against the CPU, here on the CPU: all that it looks at, but what only CUDA can do.
#[test]
fn a_device_is_checked_against_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    let said = good(dir.path(), &["doctor", "--device", "cpu", "--check", "--quick", "--json"]);
    let checks: Vec<serde_json::Value> = said.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    // Of each of four models: losses, gradients, steps, two precisions, captured steps in four ways, noise, updates and step size; captured
    // steps in the other layout of the two with convolutions.
    assert_eq!(checks.len(), 4 * 12 + 2, "{said}");
    for check in checks {
        let name = check["name"].as_str().unwrap();
        let cuda_alone = ["captured", ", tf32", ", bf16"].iter().any(|part| name.contains(part));
        assert_eq!(check["passed"].as_bool(), (!cuda_alone).then_some(true), "{check}");
    }
}

#[test]
fn bench_reports_what_the_contract_names() {
    let dir = tempfile::tempdir().unwrap();
    let small = ["--train-limit", "300", "--test-limit", "10", "--device", "cpu", "--seconds", "0.3", "--tune", "off"];
    for (args, phases) in [
        (&["bench", "vae", "--encoder-hidden", "32", "--decoder-hidden", "32", "--json"][..], 4),
        (&["bench", "gan", "--base-width", "4", "--batch-size", "20", "--json"], 4),
    ] {
        let out = good(dir.path(), &[args, &small].concat());
        let report: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&out).unwrap();
        let number = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("{key} in {out}"));
        assert_eq!(report["device"], "cpu");
        assert!(report["preset"].is_string() && report["peak_gpu_mb"].is_null());
        let batch = if args.contains(&"--batch-size") { 20.0 } else { 128.0 };
        assert_eq!(number("batch_size"), batch);
        assert!(number("limit_ms") > 0.0 && number("peak_rss_mb") > 50.0);
        assert!((number("images_per_s") / number("steps_per_s") / batch - 1.0).abs() < 0.01);
        let ms = report["ms"].as_object().unwrap();
        let parts: f64 = ["data", "forward", "backward", "optimizer"].map(|p| ms[p].as_f64().unwrap()).iter().sum();
        assert_eq!(ms.len() - 3, phases);
        let step = ms["step"].as_f64().unwrap();
        assert!((parts / step - 1.0).abs() < 0.1, "the parts make the step: {out}");
    }
    let table = good(dir.path(), &[&["bench", "vae", "--latent", "3"][..], &small].concat());
    for part in ["steps/s", "data", "forward", "backward", "optimizer", "limit", "peak memory"] {
        assert!(table.contains(part), "{part} in {table}");
    }
    assert!(listing(dir.path()).is_empty(), "bench leaves nothing behind");
    refused(dir.path(), &["bench", "vae", "--out", "x"], 2, &["--out is a setting of a run"]);
    refused(dir.path(), &["bench", "vae", "--seconds", "0"], 2, &["--seconds 0"]);
    refused(dir.path(), &["bench", "diffusion"], 2, &["vae, gan"]);
}

/// Long work keeps its memory: 20,000 steps grow by no more than a page cache of the allocator.
#[test]
fn twenty_thousand_steps_hold_no_more_memory_than_the_first() {
    if !Path::new("/proc/self/status").is_file() {
        eprintln!("skipped: this system has no /proc to read a process's memory from");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut args = vec!["train", "vae", "--encoder-hidden", "16", "--decoder-hidden", "16", "--latent", "2"];
    args.extend([
        "--batch-size",
        "8",
        "--train-limit",
        "16000",
        "--test-limit",
        "16",
        "--steps",
        "20000",
        "--out",
        "r",
    ]);
    args.extend([
        "--log-every",
        "500",
        "--checkpoint-every",
        "0",
        "--device",
        "cpu",
        "--tune",
        "off",
        "--threads",
        "1",
    ]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ganvae"))
        .args(&args)
        .current_dir(dir.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Resident memory against steps done, as seen from outside.
    let mut seen: Vec<(f64, f64)> = Vec::new();
    while child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(50));
        let Ok(status) = fs::read_to_string(format!("/proc/{}/status", child.id())) else { continue };
        let Some(kb) = status.lines().find_map(|l| l.strip_prefix("VmRSS:")) else { continue };
        let mb = kb.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap() / 1024.0;
        let log = fs::read_to_string(dir.path().join("r/metrics.jsonl")).unwrap_or_default();
        let step = log.lines().rev().find_map(|l| serde_json::from_str::<serde_json::Value>(l).ok()?["step"].as_f64());
        seen.extend(step.map(|step| (step, mb)));
    }
    assert!(child.wait().unwrap().success());
    let most =
        |from: f64, to: f64| seen.iter().filter(|(s, _)| (from..to).contains(s)).map(|s| s.1).fold(0.0, f64::max);
    // Pictures at the end of the first epoch (step 2000) belong to what a run holds.
    let (early, late) = (most(2000.0, 6000.0), most(14000.0, 20000.0));
    assert!(early > 50.0 && late > 50.0, "too few readings: {seen:?}");
    assert!(late < early + 4.0, "{early} MB in the first steps, {late} MB in the last");
}

#[test]
fn the_short_help_is_a_line_for_each_option_and_says_where_the_rest_is() {
    use clap::CommandFactory;
    for command in ["train", "bench"] {
        let mut cli = ganvae::commands::Cli::command().term_width(80);
        cli.build();
        let page = cli.find_subcommand_mut(command).unwrap().render_help().to_string();
        let lines: Vec<_> = page.trim_end().lines().collect();
        assert!(lines.len() <= 48, "more than two screens of 24 lines: {page}");
        let wrapped = lines.iter().find(|line| line.starts_with(&" ".repeat(10)) || line.chars().count() > 80);
        assert_eq!(wrapped, None, "{page}");
        assert!(lines[lines.len() - 1].ends_with(&format!("ganvae {command} --help")), "{page}");
        assert!(page.contains("--preset <NAME>") && !page.contains("--adam-eps"), "{page}");
    }
}

/// Without a run: the first column is the training images, which nothing changes at probability 0.
#[test]
fn a_preview_shows_training_images_and_their_augmented_versions() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let base = ["train", "gan", "--train-limit", "100", "--test-limit", "20", "--augment", "colour,shift"];
    let tiles = |p: &str| {
        good(d, &with(&base, &["--augment-p", p, "--augment-preview", "p.png"]));
        let grid = image::open(d.join("p.png")).unwrap().to_rgb8();
        // 28x28 digits at twice their size, with 2 pixels around each.
        assert_eq!(grid.dimensions(), (8 * 58 + 2, 8 * 58 + 2));
        let tile = |row: u32, column: u32| {
            image::imageops::crop_imm(&grid, 2 + 58 * column, 2 + 58 * row, 56, 56).to_image().into_raw()
        };
        (0..8).map(|row| (0..8).map(|column| tile(row, column)).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    let (never, always) = (tiles("0"), tiles("1"));
    for (row, (images, augmented)) in never.iter().zip(&always).enumerate() {
        assert!(images.iter().all(|tile| *tile == images[0]), "row {row} at probability 0");
        assert_eq!(augmented[0], images[0], "row {row}");
        for column in 1..8 {
            assert!(!augmented[..column].contains(&augmented[column]), "row {row}, column {column}");
        }
    }
    assert_ne!(never[0][0], never[1][0]);
    assert_eq!(listing(d), [d.join("p.png")], "no run");
    let none = &["train", "gan", "--augment-preview", "p.png"];
    refused(d, none, 2, &["nothing is augmented", "--augment shift,colour,cutout"]);
    refused(d, &with(&base, &["--augment-preview", "p.gif"]), 2, &["--augment-preview p.gif", "a .png"]);
    refused(d, &["train", "vae", "--augment", "shift"], 2, &["--augment is a setting of a GAN"]);
}
