//! Conditional GANs from outside: they learn what a class looks like, and every command makes images of a class.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use common::{ganvae, good, sentence, text};
use ganvae::run::trained::Trained;
use image::{Rgb, RgbImage};
use tch::{Kind, Tensor};

const CLASSES: [&str; 3] = ["blue", "green", "red"];

/// Writes pictures of one colour each, `counts` of each class, with some noise.
fn pictures(dir: &Path, counts: [u32; 3]) {
    for (class, name) in CLASSES.iter().enumerate() {
        fs::create_dir_all(dir.join(name)).unwrap();
        for i in 0..counts[class] {
            let level = 200 + (i * 37 % 40) as u8;
            let mut colour = [20; 3];
            colour[2 - class] = level;
            RgbImage::from_pixel(8, 8, Rgb(colour)).save(dir.join(name).join(format!("{i:03}.png"))).unwrap();
        }
    }
}

const TRAINING: &[&str] = &[
    "train",
    "gan",
    "--data",
    "pictures",
    "--image-size",
    "8",
    "--preset",
    "article",
    "--conditional",
    "--latent",
    "4",
    "--generator-hidden",
    "32",
    "--discriminator-hidden",
    "32",
    "--lr",
    "5e-3",
    "--beta1",
    "0.5",
    "--batch-size",
    "30",
    "--epochs",
    "40",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--deterministic",
    "--sample-every",
    "0",
    "--eval-every",
    "0",
];

/// A folder with the pictures and the run `g`, trained once for all tests, which only add files to it.
fn trained() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = common::folder_of_process("classes");
        pictures(&dir.join("pictures"), [30, 90, 60]);
        good(&dir, &[TRAINING, &["--out", "g"]].concat());
        dir
    })
}

fn open(path: &str) -> Trained {
    Trained::open(trained().join(path), "cpu").unwrap()
}

fn array(name: &str) -> Tensor {
    Tensor::read_npy(trained().join(name)).unwrap()
}

/// Runs a command that must be refused as bad usage, beside other tests that add files to the folder.
fn refused(args: &[&str], parts: &[&str]) {
    let out = ganvae(trained(), args);
    assert_eq!(out.status.code(), Some(2), "{args:?}");
    sentence(&text(&out.stderr), parts);
}

/// The mean of each channel: [N,C,H,W] -> [N,C].
fn colours(x: &Tensor) -> Tensor {
    x.mean_dim(&[2i64, 3][..], false, Kind::Double)
}

#[test]
fn images_of_a_class_have_its_colour() {
    for (class, name) in CLASSES.iter().enumerate() {
        let file = format!("{name}.npy");
        let out = good(trained(), &["sample", "g", "--class", name, "--count", "20", "--seed", "1", "--out", &file]);
        assert!(text(&out.stdout).contains("blue.labels.npy") == (class == 0), "{}", text(&out.stdout));
        let brightest = Vec::<i64>::try_from(colours(&array(&file)).argmax(1, false)).unwrap();
        assert!(brightest.iter().all(|channel| *channel == 2 - class as i64), "{name}: {brightest:?}");
        assert_eq!(
            array(&format!("{name}.labels.npy")),
            Tensor::full([20], class as i64, (Kind::Int64, tch::Device::Cpu))
        );
    }
    // By number, and from the exports: the same images.
    good(trained(), &["sample", "g", "--class", "2", "--count", "20", "--seed", "1", "--out", "number.npy"]);
    assert_eq!(array("number.npy"), array("red.npy"));
    good(trained(), &["sample", "g/export", "--class", "red", "--count", "20", "--seed", "1", "--out", "export.npy"]);
    assert!((array("export.npy") - array("red.npy")).abs().max().double_value(&[]) < 1e-6);
}

#[test]
fn without_a_class_each_has_a_row_in_turn() {
    let said = text(&good(trained(), &["sample", "g", "--seed", "5", "--out", "rows.npy"]).stdout);
    assert!(said.contains("classes blue, green, red\n"), "{said}");
    let labels = Vec::<i64>::try_from(array("rows.labels.npy")).unwrap();
    assert_eq!(labels, [[0; 8], [1; 8], [2; 8]].concat());
    let brightest = Vec::<i64>::try_from(colours(&array("rows.npy")).argmax(1, false)).unwrap();
    assert_eq!(brightest, labels.iter().map(|label| 2 - label).collect::<Vec<_>>());
    good(trained(), &["sample", "g", "--seed", "5", "--out", "rows.png"]);
    let grid = image::open(trained().join("rows.png")).unwrap();
    let last = image::open(trained().join("g/samples/epoch-0040.png")).unwrap();
    assert!(grid.width() > 2 * grid.height(), "8 columns, 3 rows");
    assert_eq!((grid.width(), grid.height()), (last.width(), last.height()), "training draws the same grid");
}

#[test]
fn a_path_goes_from_one_class_to_another() {
    good(trained(), &["interpolate", "g", "--class", "blue,red", "--rows", "2", "--steps", "5", "--out", "path.npy"]);
    let path = colours(&array("path.npy")).view([2, 5, 3]);
    for row in 0..2 {
        let [red, blue] = [0, 2].map(|channel| Vec::<f64>::try_from(path.get(row).select(1, channel)).unwrap());
        assert!(blue[0] > red[0] + 0.3 && red[4] > blue[4] + 0.3, "{red:?} {blue:?}");
    }
    // Its ends are those images of both classes that the first latent of the row gives.
    let (model, z) = (open("g"), open("g").prior(0, 0, 4).unwrap());
    for (step, class) in [(0, 0i64), (4, 2)] {
        let want = model.decode(&z.get(2).unsqueeze(0), Some(&Tensor::from_slice(&[class]))).unwrap();
        let off = (array("path.npy").get(5 + step).unsqueeze(0) - want).abs().max().double_value(&[]);
        assert!(off < 1e-5, "{off}");
    }
    let one = ["interpolate", "g", "--class", "green", "--rows", "1", "--steps", "3", "--out", "green-path.npy"];
    good(trained(), &one);
    let brightest = Vec::<i64>::try_from(colours(&array("green-path.npy")).argmax(1, false)).unwrap();
    assert_eq!(brightest, [1, 1, 1]);
    let e = ["interpolate", "g/export", "--class", "blue,red", "--out", "no.npy"];
    refused(&e, &["takes one class for each image", "name the run"]);
    good(trained(), &["traverse", "g", "--class", "red", "--dims", "2", "--steps", "3", "--out", "dims.npy"]);
    let brightest = Vec::<i64>::try_from(colours(&array("dims.npy")).argmax(1, false)).unwrap();
    assert_eq!(brightest, [0; 6]);
}

#[test]
fn the_search_for_a_latent_finds_the_class_too() {
    let picture = "pictures/green/003.png";
    good(trained(), &["encode", "g", "--data", picture, "--steps", "50", "--out", "z.npy"]);
    assert_eq!(Vec::<i64>::try_from(array("z.classes.npy")).unwrap(), [1]);
    let made = open("g").decode(&array("z.npy"), Some(&array("z.classes.npy"))).unwrap();
    assert_eq!(Vec::<i64>::try_from(colours(&made).argmax(1, false)).unwrap(), [1]);
    good(trained(), &["reconstruct", "g", "--data", picture, "--steps", "50", "--out", "again.npy"]);
    assert!((array("again.npy") - made).abs().max().double_value(&[]) < 1e-5);
    good(trained(), &["sample", "g", "--near", picture, "--count", "3", "--out", "near.npy"]);
    assert_eq!(Vec::<i64>::try_from(array("near.labels.npy")).unwrap(), [1; 3]);
    let ends = ["--from", picture, "--to", "pictures/red/001.png", "--steps", "3", "--out", "from-to.npy"];
    good(trained(), &[&["interpolate", "g"][..], &ends].concat());
    let brightest = Vec::<i64>::try_from(colours(&array("from-to.npy")).argmax(1, false)).unwrap();
    assert_eq!((brightest[0], brightest[2]), (1, 0));
}

/// Samples that stand for the whole set have the classes of its images; with --balance each class equally often.
#[test]
fn samples_of_the_whole_have_the_shares_of_training() {
    let shares = |run: &str| {
        let drawn = Vec::<i64>::try_from(open(run).drawn_classes(3, 0, 2000).unwrap().unwrap()).unwrap();
        [0, 1, 2].map(|class| drawn.iter().filter(|drawn| **drawn == class).count() as f64 / 2000.0)
    };
    let near = |found: [f64; 3], want: [f64; 3]| {
        assert!(found.iter().zip(want).all(|(a, b)| (a - b).abs() < 0.04), "{found:?}, not {want:?}");
    };
    near(shares("g"), [1.0 / 6.0, 0.5, 1.0 / 3.0]);
    let few = ["--balance", "--epochs", "1", "--out", "balanced"];
    good(trained(), &[TRAINING, &few].concat());
    near(shares("balanced"), [1.0 / 3.0; 3]);
}

#[test]
fn a_resumed_run_is_the_same_bit_for_bit() {
    let dir = trained();
    let stop = ["--balance", "--epochs", "2", "--out", "part"];
    good(dir, &[TRAINING, &stop].concat());
    good(dir, &["train", "--resume", "part", "--epochs", "4"]);
    good(dir, &[TRAINING, &["--balance", "--epochs", "4", "--out", "whole"]].concat());
    let weights = |run: &str| {
        let newest =
            fs::read_dir(dir.join(run).join("checkpoints")).unwrap().flatten().map(|e| e.path()).max().unwrap();
        fs::read(newest.join("model.safetensors")).unwrap()
    };
    assert!(weights("part") == weights("whole"));
}

#[test]
fn what_cannot_be_is_one_sentence() {
    let dir = trained();
    refused(&["sample", "g", "--class", "pink"], &["--class pink: no such class; there are blue, green, red"]);
    let plain = [
        "train",
        "gan",
        "--data",
        "pictures",
        "--image-size",
        "8",
        "--preset",
        "article",
        "--steps",
        "1",
        "--out",
        "plain",
    ];
    let said = text(&good(dir, &plain).stderr);
    assert!(said.contains("note: the images have 3 classes") && said.contains("--conditional"), "{said}");
    refused(&["sample", "plain", "--class", "red"], &["--class red: the model is not conditional"]);
    refused(&["interpolate", "plain", "--class", "red"], &["--class red: the model is not conditional"]);
    fs::create_dir_all(dir.join("flat")).unwrap();
    for i in 0..10 {
        RgbImage::new(8, 8).save(dir.join(format!("flat/{i}.png"))).unwrap();
    }
    let flat =
        ["train", "gan", "--data", "flat", "--image-size", "8", "--preset", "article", "--steps", "1", "--out", "f"];
    refused(&[&flat[..], &["--conditional"]].concat(), &["--conditional needs images of two classes or more"]);
    refused(&[&flat[..], &["--balance"]].concat(), &["--balance", "no classes"]);
    assert!(!dir.join("f").exists(), "nothing was made");
}
