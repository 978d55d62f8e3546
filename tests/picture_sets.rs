//! Folders of pictures from the outside: what is found, what is said, the cache, and pictures given to a trained model.

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::time::SystemTime;

use common::{good, refused, text};
use image::{Rgb, RgbImage};
use tempfile::tempdir;

/// A picture of 16x16 pixels of one colour.
fn put(dir: &Path, name: &str, value: u8) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(16, 16, Rgb([value, 0, 255 - value])).save(path).unwrap();
}

fn set(dir: &Path) {
    for i in 0..40 {
        put(dir, &format!("pics/{}/deep/{i:02}.png", if i < 30 { "cats" } else { "dogs" }), i * 6);
    }
}

/// What `ganvae data` prints, and what it says.
fn data(dir: &Path, args: &[&str]) -> (String, String) {
    let out = good(dir, &[&["data"], args].concat());
    (text(&out.stdout), text(&out.stderr))
}

#[test]
fn what_is_left_out_is_said() {
    let dir = tempdir().unwrap();
    let d = dir.path();
    set(d);
    fs::write(d.join("pics/notes.txt"), "text").unwrap();
    put(d, "pics/.hidden/x.png", 0);
    let (found, said) = data(d, &["pics"]);
    assert!(found.contains("train has cats:27 dogs:9\ntest has  cats:3 dogs:1"), "{found}");
    assert!(said.contains("data: left out: 1 files that are no pictures"), "{said}");
    assert!(found.contains("warning   only 4 images are held out"), "{found}");
    fs::write(d.join("pics/cats/broken.png"), "no picture").unwrap();
    refused(d, &["data", "pics"], 1, &["pics/cats/broken.png cannot be read as a picture", "--skip-broken"]);
    let (again, said) = data(d, &["pics", "--skip-broken"]);
    assert!(again.contains("train has cats:27 dogs:9\ntest has  cats:3 dogs:1"), "{again}");
    assert!(said.contains("left out: 1 broken of 41 pictures: pics/cats/broken.png ("), "{said}");
    let (dogs, _) = data(d, &["pics", "--skip-broken", "--class", "dogs", "--holdout", "0.5"]);
    assert!(dogs.contains("train has dogs:5\ntest has  dogs:5"), "{dogs}");
    refused(d, &["data", "pics", "--class", "dogz"], 2, &["--class dogz", "did you mean dogs?"]);
}

#[test]
fn a_second_start_reads_no_picture_and_damage_is_mended() {
    let dir = tempdir().unwrap();
    let d = dir.path();
    set(d);
    let (found, _) = data(d, &["pics"]);
    // A picture of the same length and time with other content is not looked at.
    let path = d.join("pics/cats/deep/00.png");
    let (good, time) = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap());
    let change = |bytes: &[u8], time: SystemTime| {
        fs::write(&path, bytes).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    };
    change(&vec![0; good.len()], time);
    assert_eq!(data(d, &["pics"]).0, found);
    refused(d, &["data", "pics", "--cache", "off"], 1, &["00.png cannot be read as a picture"]);
    // A later time is another content.
    change(&vec![0; good.len()], SystemTime::now());
    refused(d, &["data", "pics"], 1, &["00.png cannot be read as a picture"]);
    change(&good, time);
    let cache = d.join("home/.cache/ganvae/pixels");
    let files = || {
        fs::read_dir(&cache)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "pixels"))
    };
    assert_eq!(files().count(), 1);
    let file = files().next().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes[5000] ^= 1;
    fs::write(&file, bytes).unwrap();
    let (again, said) = data(d, &["pics"]);
    assert!(again == found && said.contains("is damaged") && said.contains("decoded again"), "{said}");
    // Another place for it.
    data(d, &["pics", "--cache", "here"]);
    assert_eq!(fs::read_dir(d.join("here")).unwrap().count(), 2);
    let (cleared, _) = data(d, &["--clear-cache"]);
    assert!(cleared.starts_with("removed 1 files") && files().count() == 0, "{cleared}");
}

#[test]
fn processes_that_fill_the_cache_at_the_same_time_all_succeed() {
    let dir = tempdir().unwrap();
    let d = dir.path();
    set(d);
    let start =
        || common::command(common::BIN, d).args(["data", "pics"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let all: Vec<_> = (0..4).map(|_| start()).collect();
    let outputs: Vec<_> = all.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    assert!(outputs.iter().all(|o| o.status.success() && o.stdout == outputs[0].stdout));
    assert_eq!(fs::read_dir(d.join("home/.cache/ganvae/pixels")).unwrap().count(), 2, "the tag and one file");
}

#[test]
fn a_model_takes_one_picture_some_or_a_folder() {
    let dir = tempdir().unwrap();
    let d = dir.path();
    set(d);
    let small = ["--arch", "mlp", "--encoder-hidden", "8", "--decoder-hidden", "8", "--latent", "2", "--epochs", "1"];
    good(d, &[&["train", "vae", "--data", "pics", "--out", "v", "--hflip"][..], &small].concat());
    let rows = |file: &str| fs::read_to_string(d.join(file)).unwrap();
    // Of its own data the held-out ones.
    good(d, &["encode", "v", "--out", "own.npy"]);
    assert_eq!(rows("own.csv").lines().count(), 5);
    // Other pictures: of any size, and all of them.
    RgbImage::from_pixel(50, 31, Rgb([9, 9, 9])).save(d.join("one.png")).unwrap();
    good(d, &["encode", "v", "--data", "one.png", "--out", "one.npy"]);
    assert_eq!(rows("one.csv"), "row,file,class\n0,\"one.png\",\n");
    good(d, &["encode", "v", "--data", "one.png", "pics/cats/deep/03.png", "--out", "two.npy"]);
    assert_eq!(rows("two.csv"), "row,file,class\n0,\"one.png\",\n1,\"03.png\",\n");
    for i in 0..25 {
        put(d, &format!("others/b/{i:02}.png"), i);
    }
    good(d, &["encode", "v", "--data", "others", "--out", "all.npy"]);
    assert_eq!(rows("all.csv").lines().nth(25), Some("24,\"b/24.png\",0"));
    let printed = text(&good(d, &["reconstruct", "v", "--data", "others", "--count", "100", "--out", "r.png"]).stdout);
    assert!(printed.starts_with("r.png\nr.csv\npsnr ") && printed.ends_with("the mean of 25 images\n"), "{printed}");
    assert_eq!(rows("r.csv").lines().count(), 26);
    refused(d, &["encode", "v", "--data", "one.png", "none.png"], 1, &["none.png"]);
    // Digits have no names.
    fs::write(d.join("digits.csv"), "of before").unwrap();
    good(
        d,
        &[
            "train",
            "vae",
            "--train-limit",
            "100",
            "--test-limit",
            "9",
            "--encoder-hidden",
            "8",
            "--epochs",
            "1",
            "--out",
            "w",
        ],
    );
    good(d, &["encode", "w", "--out", "digits.npy"]);
    assert!(!d.join("digits.csv").exists());
}

#[test]
fn transparency_is_kept_from_the_picture_to_the_sample() {
    let dir = tempdir().unwrap();
    let d = dir.path();
    fs::create_dir(d.join("rgba")).unwrap();
    for i in 0..20u8 {
        let picture =
            image::RgbaImage::from_fn(8, 8, |x, _| image::Rgba([i * 12, 90, 200, if x < 4 { 0 } else { 255 }]));
        picture.save(d.join(format!("rgba/{i}.png"))).unwrap();
    }
    assert!(data(d, &["rgba"]).0.contains("3x8x8"), "alpha is kept where it is asked for only");
    for (model, arch) in [("vae", "mlp"), ("gan", "conv")] {
        let args =
            ["--data", "rgba", "--channels", "4", "--arch", arch, "--epochs", "1", "--batch-size", "6", "--out", model];
        good(d, &[&["train", model, "--device", "cpu", "--tune", "off"], &args[..]].concat());
        good(d, &["sample", model, "--count", "2", "--out", &format!("{model}-samples")]);
        let sample = image::open(d.join(format!("{model}-samples/000001.png"))).unwrap();
        assert_eq!((sample.color(), sample.width(), sample.height()), (image::ColorType::Rgba8, 8, 8));
        // Left, a transparent column shows the checkerboard of the grid; right, the colour of the picture.
        let grid = image::open(d.join(model).join("data.png")).unwrap().into_rgb8();
        assert_eq!((grid.get_pixel(2, 2).0, grid.get_pixel(10, 2).0), ([153; 3], [204; 3]));
        assert_eq!(grid.get_pixel(2 + 55, 2).0[1..], [90, 200]);
    }
    good(d, &["reconstruct", "vae", "--data", "rgba/3.png", "--out", "one.png"]);
    refused(d, &["train", "vae", "--data", "digits", "--channels", "4"], 2, &["--channels", "--data digits"]);
}
