//! A trained model put to use from outside: every command on a small VAE and a small GAN, twice, and what wrong uses are told.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use common::{ganvae, listing, say, text};
use ganvae::base::setting::Settings;
use ganvae::data::dataset::Dataset;
use image::AnimationDecoder;
use image::codecs::gif::GifDecoder;
use tch::{Kind, Tensor};

/// Runs a command that must end well; gives its stdout.
fn good(dir: &Path, args: &[&str]) -> String {
    text(&common::good(dir, args).stdout)
}

/// Runs a command that must be refused as bad usage.
fn refused(dir: &Path, args: &[&str], parts: &[&str]) {
    common::refused(dir, args, 2, parts);
}

/// Settings that make a run of a second or two.
const SHORT: &[&str] =
    &["--train-limit", "300", "--test-limit", "100", "--epochs", "3", "--device", "cpu", "--deterministic"];

fn train(dir: &Path, model: &str, more: &[&str]) -> String {
    good(dir, &[&["train", model], SHORT, more].concat())
}

/// A folder with the runs `v` (a VAE) and `g` (a GAN), trained once for all tests, which only add files to it.
fn trained() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = common::folder_of_process("use");
        train(&dir, "vae", &["--encoder-hidden", "32", "--decoder-hidden", "32", "--latent", "12", "--out", "v"]);
        train(&dir, "gan", &["--base-width", "4", "--ema", "0.9", "--out", "g"]);
        dir
    })
}

/// The VAE, opened through the library.
fn library() -> ganvae::run::trained::Trained {
    ganvae::run::trained::Trained::open(trained().join("v"), "cpu").unwrap()
}

fn hundred_held_out_digits() -> ganvae::data::images::Source {
    use ganvae::data::{TEST_LIMIT, TRAIN_LIMIT};
    ganvae::data::open(&Settings::default().with(&TRAIN_LIMIT, 1).with(&TEST_LIMIT, 100)).unwrap()
}

/// A fresh folder from which the runs are `../v` and `../g`.
fn place() -> tempfile::TempDir {
    tempfile::tempdir_in(trained()).unwrap()
}

fn array(dir: &Path, file: &str) -> Tensor {
    Tensor::read_npy(dir.join(file)).unwrap()
}

/// The bytes of a file, or of all files of a folder.
fn bytes(path: &Path) -> Vec<u8> {
    if path.is_dir() {
        listing(path).iter().flat_map(|p| fs::read(p).unwrap()).collect()
    } else {
        fs::read(path).unwrap()
    }
}

#[test]
fn every_command_gives_the_same_bytes_for_a_seed_and_others_for_another() {
    let dir = place();
    let d = dir.path();
    let mut number = 0;
    let mut outputs = |args: &[&str], ending: &str| {
        number += 1;
        let out = format!("{number}{ending}");
        let said = good(d, &[args, &["--out", &out]].concat());
        assert_eq!(said.lines().next(), Some(&*out), "{args:?}");
        bytes(&d.join(out))
    };
    for run in ["../v", "../g"] {
        // Every writer once, and the numbers of everything else.
        let all = if run == "../v" { vec![".png", ".npy", "", ".gif"] } else { vec![".npy"] };
        for (command, more, endings) in [
            ("sample", vec!["--count", "70"], vec![".npy"]),
            ("sample", vec!["--count", "5", "--truncation", "0.7"], vec![".npy"]),
            ("interpolate", vec!["--rows", "3", "--steps", "4"], all),
            ("interpolate", vec!["--rows", "2", "--mode", "linear"], vec![".npy"]),
            ("traverse", vec!["--dims", "3", "--steps", "5"], vec![".npy"]),
        ] {
            for ending in endings {
                let base = [&[command, run], &more[..]].concat();
                let of = |seed: &'static str| [&base[..], &["--seed", seed]].concat();
                let first = outputs(&of("1"), ending);
                assert!(first == outputs(&of("1"), ending), "{base:?} {ending} again");
                assert!(first != outputs(&of("2"), ending), "{base:?} {ending} with another seed");
            }
        }
    }
    for base in [&["reconstruct", "../v"][..], &["plot", "--latent", "../v"]] {
        assert!(outputs(base, ".png") == outputs(base, ".png"), "{base:?}");
    }
    assert!(outputs(&["encode", "../v"], ".npy") == outputs(&["encode", "../v"], ".npy"));
}

#[test]
fn samples_of_all_kinds_are_the_same_images() {
    let dir = place();
    let d = dir.path();
    for args in [&["--out", "a.npy"][..], &["--out", "single"], &["--out", "a.png"]] {
        good(d, &[&["sample", "../v", "--seed", "0", "--count", "70"], args].concat());
    }
    let all = array(d, "a.npy");
    assert_eq!((all.size(), all.kind()), (vec![70, 1, 28, 28], Kind::Float));
    for i in [0, 64, 69] {
        let picture = image::open(d.join(format!("single/{i:06}.png"))).unwrap().to_luma8();
        let want = Vec::<f32>::try_from(all.get(i).flatten(0, -1)).unwrap();
        let near = picture.iter().zip(want).all(|(p, v)| (f32::from(*p) - v * 255.0).abs() <= 0.5001);
        assert!(near, "image {i}");
    }
    assert_eq!(fs::read_dir(d.join("single")).unwrap().count(), 70);
    // 70 tiles in 8 columns and 9 rows of 56 pixels with gaps of 2.
    assert_eq!(image::open(d.join("a.png")).unwrap().to_rgb8().dimensions(), (466, 524));
    good(d, &["sample", "../v", "--seed", "0", "--count", "3", "--truncation", "10", "--out", "wide.npy"]);
    let off = (array(d, "wide.npy") - all.narrow(0, 0, 3)).abs().max().double_value(&[]);
    assert!(off < 1e-4, "hardly truncated: {off}");
    good(d, &["sample", "../v", "--seed", "0", "--count", "70", "--truncation", "0.7", "--out", "cut.npy"]);
    let model = library();
    let z = ganvae::commands::sample::truncated(&model.prior(0, 0, 70).unwrap(), 0.7).unwrap();
    assert_eq!(array(d, "cut.npy"), model.decode(&z, None).unwrap());
    good(d, &["sample", "../v", "--seed", "0", "--count", "70", "--truncation", "0.01", "--out", "narrow.npy"]);
    let spread = |t: &Tensor| t.std_dim(&[0i64][..], false, false).max().double_value(&[]);
    assert!(spread(&array(d, "narrow.npy")) < 0.02 * spread(&all), "all but one image");
}

#[test]
fn paths_run_from_sample_to_sample() {
    let dir = place();
    let d = dir.path();
    for run in ["../v", "../g"] {
        good(d, &["sample", run, "--count", "6", "--seed", "7", "--out", "s.npy"]);
        let samples = array(d, "s.npy");
        for mode in ["spherical", "linear"] {
            let args = ["interpolate", run, "--rows", "3", "--steps", "30", "--seed", "7", "--mode", mode];
            good(d, &[&args[..], &["--out", "i.npy"]].concat());
            let rows = array(d, "i.npy").view([3, 30, 1, 28, 28]);
            for row in 0..3 {
                assert_eq!(rows.get(row).get(0), samples.get(2 * row), "{run} {mode}: the first end, bit for bit");
                assert_eq!(rows.get(row).get(29), samples.get(2 * row + 1), "{run} {mode}: the other end");
            }
            // No step is a jump: none as large as a third of the whole way.
            let step = (rows.slice(1, 1, 30, 1) - rows.slice(1, 0, 29, 1)).abs().mean(Kind::Float).double_value(&[]);
            let way = (rows.select(1, 29) - rows.select(1, 0)).abs().mean(Kind::Float).double_value(&[]);
            assert!(step > 0.0 && step < way / 3.0, "{step} of {way}");
        }
    }
}

#[test]
fn paths_between_real_images_end_at_their_reconstructions() {
    let dir = place();
    let d = dir.path();
    let args = ["interpolate", "../v", "--data", "digits:5", "--rows", "2", "--steps", "3"];
    good(d, &[&args[..], &["--out", "i.npy"]].concat());
    good(d, &["reconstruct", "../v", "--data", "digits:5", "--count", "10000", "--out", "all.npy"]);
    let (rows, all) = (array(d, "i.npy"), array(d, "all.npy"));
    for end in [0, 2, 3, 5] {
        let off = (&all - rows.get(end)).abs().amax([1, 2, 3], false).min().double_value(&[]);
        assert_eq!(off, 0.0, "image {end} is the reconstruction of a held-out image");
    }
}

#[test]
fn traversals_move_one_dimension_and_name_it() {
    let dir = place();
    let d = dir.path();
    let said = good(d, &["traverse", "../v", "--dims", "4", "--steps", "5", "--out", "t.npy"]);
    let dims: Vec<usize> = said
        .lines()
        .nth(1)
        .unwrap()
        .strip_prefix("dimensions ")
        .unwrap()
        .split(' ')
        .map(|n| n.parse().unwrap())
        .collect();
    assert!(dims.len() == 4 && dims.iter().all(|n| *n < 12), "{said}");
    let rows = array(d, "t.npy").view([4, 5, 1, 28, 28]);
    // The middle step of every row is the image of the prior's mean.
    for row in 1..4 {
        assert_eq!(rows.get(row).get(2), rows.get(0).get(2));
    }
    let effect: Vec<f64> =
        (0..4).map(|r| rows.get(r).var_dim(&[0i64][..], false, false).sum(Kind::Double).double_value(&[])).collect();
    assert!(effect.windows(2).all(|w| w[0] >= w[1]), "the strongest first: {effect:?}");
    // Against the library: row 0 is decoded from a latent that is 0 but for that dimension.
    let trained = library();
    let z = Tensor::zeros([1, 12], (Kind::Float, tch::Device::Cpu));
    let _ = z.get(0).get(dims[0] as i64).fill_(-3.0);
    assert_eq!(trained.decode(&z, None).unwrap().get(0), rows.get(0).get(0));
    let all = good(d, &["traverse", "../v", "--dims", "50", "--out", "all.png"]);
    let mut dims: Vec<usize> = all.split_whitespace().skip(2).map(|n| n.parse().unwrap()).collect();
    dims.sort_unstable();
    assert_eq!(dims, (0..12).collect::<Vec<_>>(), "no more rows than dimensions, each once");
    good(d, &["sample", "../g", "--count", "1", "--seed", "3", "--out", "s.npy"]);
    good(d, &["traverse", "../g", "--seed", "3", "--range", "1e-9", "--dims", "1", "--steps", "2", "--out", "g.npy"]);
    assert_ne!(
        array(d, "g.npy").get(0),
        array(d, "s.npy").get(0),
        "its dimension is near 0, the others as in the sample"
    );
}

/// What differs has a name of its own, so that the one does not take the place of the other.
#[test]
fn pictures_without_a_given_place_do_not_replace_each_other() {
    let dir = place();
    for (args, name) in [
        (&["sample", "../v", "--seed", "0", "--count", "4"][..], "samples/sample-0.png"),
        (
            &["sample", "../v", "--seed", "0", "--count", "4", "--truncation", "0.5"],
            "samples/sample-0-truncation-0.5.png",
        ),
        (&["reconstruct", "../v", "--count", "4"], "reconstructions/reconstruct.png"),
        (&["reconstruct", "../v", "--count", "4", "--data", "digits:5"], "reconstructions/reconstruct-digits-5.png"),
    ] {
        let said = good(dir.path(), args);
        assert!(said.lines().next().is_some_and(|line| line.ends_with(name)), "{args:?}: {said}");
    }
}

#[test]
fn reconstructions_are_those_that_training_drew() {
    let dir = place();
    let d = dir.path();
    good(d, &["reconstruct", "../v", "--out", "r.png"]);
    let drawn = |file: &Path| image::open(file).unwrap().to_rgb8();
    let (ours, theirs) = (drawn(&d.join("r.png")), drawn(&d.join("../v/reconstructions/epoch-0003.png")));
    assert_eq!(ours.dimensions(), theirs.dimensions());
    // Rows of originals to the last bit; of reconstructions to rounding, because the batch is another.
    assert!(ours.iter().zip(theirs.iter()).all(|(a, b)| a.abs_diff(*b) <= 1));
    good(d, &["reconstruct", "../v", "--split", "train", "--count", "9", "--out", "r.npy"]);
    assert_eq!(array(d, "r.npy").size(), [9, 1, 28, 28]);
    good(d, &["reconstruct", "../v", "--count", "1000", "--out", "all"]);
    assert_eq!(fs::read_dir(d.join("all")).unwrap().count(), 100, "no more than there are");
}

#[test]
fn latents_are_arrays_with_labels_beside_them() {
    let dir = place();
    let d = dir.path();
    assert_eq!(good(d, &["encode", "../v", "--out", "z.npy"]), "z.npy\nz.logvar.npy\nz.labels.npy\n");
    let (mu, logvar, labels) = (array(d, "z.npy"), array(d, "z.logvar.npy"), array(d, "z.labels.npy"));
    assert_eq!((mu.size(), logvar.size(), labels.size()), (vec![100, 12], vec![100, 12], vec![100]));
    assert_eq!((mu.kind(), labels.kind()), (Kind::Float, Kind::Int64));
    let source = hundred_held_out_digits();
    let want: Vec<i64> = source.test.labels.iter().map(|l| i64::from(*l)).collect();
    assert_eq!(Vec::<i64>::try_from(labels).unwrap(), want);
    // The same images among others: the same bits.
    good(d, &["encode", "../v", "--data", "digits", "--out", "all.npy"]);
    assert_eq!(array(d, "all.npy").size(), [10_000, 12]);
    assert_eq!(array(d, "all.npy").narrow(0, 0, 100), mu);
    // mu decoded is the reconstruction.
    good(d, &["reconstruct", "../v", "--count", "100", "--out", "r.npy"]);
    assert_eq!(library().decode(&mu, None).unwrap(), array(d, "r.npy"));
    numpy_loads(d);
}

/// A GAN's own images, from files, are found again; no other image is as near.
#[test]
fn a_gan_encodes_and_reconstructs_by_a_search() {
    let dir = place();
    let d = dir.path();
    // Trained until its images differ.
    train(
        d,
        "gan",
        &["--base-width", "4", "--latent", "8", "--epochs", "12", "--batch-size", "16", "--lr", "0.001", "--out", "h"],
    );
    good(d, &["sample", "h", "--count", "3", "--seed", "5", "--out", "own"]);
    good(d, &["sample", "h", "--count", "3", "--seed", "5", "--out", "own.npy"]);
    let db = |a: &Tensor, b: &Tensor| -10.0 * (a - b).square().mean(Kind::Double).log10().double_value(&[]);
    let own = array(d, "own.npy");
    assert!(db(&own.get(0), &own.get(1)) < 20.0, "the images differ");
    let said = good(d, &["encode", "h", "--data", "own", "--out", "z.npy"]);
    let mean: f64 = said.split_once("psnr ").unwrap().1.split(' ').next().unwrap().parse().unwrap();
    assert!(
        said.starts_with("z.npy\nz.csv\n") && said.ends_with(" dB, the mean of 3 images\n") && mean > 30.0,
        "{said}"
    );
    assert!(!d.join("z.logvar.npy").exists());
    let said = good(d, &["reconstruct", "h", "--data", "own", "--out", "r.npy"]);
    assert!(said.contains(&format!("psnr {mean:.2} dB")), "{said}");
    let (z, again) = (array(d, "z.npy"), array(d, "r.npy"));
    for i in 0..3 {
        assert!(db(&own.get(i), &again.get(i)) > 30.0, "image {i}");
    }
    let model = ganvae::run::trained::Trained::open(d.join("h"), "cpu").unwrap();
    assert_eq!(model.decode(&z, None).unwrap(), again, "reconstructions are the decoded latents");
    // Another picture beside it, and another place: the same bits. Another seed or fewer updates: others.
    let found = |more: &[&str]| {
        good(d, &[&["encode", "h", "--out", "one.npy", "--data"], more].concat());
        array(d, "one.npy")
    };
    assert_eq!(found(&["own/000002.png", "own/000001.png"]), Tensor::stack(&[z.get(2), z.get(1)], 0));
    for other in [["--seed", "1"], ["--steps", "20"]] {
        assert_ne!(found(&[&["own/000002.png"], &other[..]].concat()).get(0), z.get(2), "{other:?}");
    }
    // Held-out images in one grid.
    good(d, &["reconstruct", "h", "--count", "4", "--steps", "5", "--out", "held.png"]);
    assert!(image::open(d.join("held.png")).is_ok());
}

/// Pictures in files are interpolated and varied, by both kinds of models.
#[test]
fn real_pictures_are_interpolated_and_varied() {
    let dir = place();
    let d = dir.path();
    for run in ["../v", "../g"] {
        let own = format!("own{}", &run[3..]);
        good(d, &["sample", run, "--count", "2", "--seed", "5", "--out", &own]);
        let [a, b] = ["000000.png", "000001.png"].map(|name| format!("{own}/{name}"));
        good(d, &["reconstruct", run, "--data", &own, "--out", "r.npy"]);
        let wanted = array(d, "r.npy");
        let paths = ["interpolate", run, "--from", &a, "--to", &b, "--steps", "5", "--out"];
        good(d, &[&paths[..], &["i.npy"]].concat());
        let path = array(d, "i.npy");
        assert_eq!(path.size(), [5, 1, 28, 28]);
        let near = |x: &Tensor, y: &Tensor| (x - y).abs().max().double_value(&[]) < 1e-5;
        assert!(
            near(&path.get(0), &wanted.get(0)) && near(&path.get(4), &wanted.get(1)),
            "{run}: the pictures are the ends"
        );
        let varied = |strength: &str, seed: &str| {
            let args = ["sample", run, "--near", &a, "--strength", strength, "--seed", seed, "--count", "4"];
            good(d, &[&args[..], &["--out", "n.npy"]].concat());
            array(d, "n.npy")
        };
        assert!(near(&varied("0", "1"), &wanted.narrow(0, 0, 1)), "{run}: no strength, no change");
        good(d, &["sample", run, "--seed", "1", "--count", "4", "--out", "s.npy"]);
        assert!(near(&varied("1", "1"), &array(d, "s.npy")), "{run}: at full strength they are samples");
        let off =
            |strength: &str| (varied(strength, "1") - wanted.get(0)).square().mean(Kind::Double).double_value(&[]);
        let all = ["0.1", "0.3", "0.9"].map(off);
        assert!(all[0] > 0.0 && all.windows(2).all(|w| w[0] < w[1]), "{run}: {all:?}");
        assert_ne!(varied("0.3", "1"), varied("0.3", "2"));
    }
    let said = good(d, &["sample", "../v", "--near", "ownv/000000.png", "--seed", "1"]);
    assert!(said.starts_with("../v/samples/sample-1-near-000000-0.3.png\n"), "{said}");
    let said = good(d, &["interpolate", "../v", "--from", "ownv/000000.png", "--to", "ownv/000001.png"]);
    assert!(said.ends_with("/samples/interpolation-000000-to-000001.png\n"), "{said}");
    // Pairs of held-out images, also of a GAN.
    good(d, &["interpolate", "../g", "--data", "digits", "--rows", "1", "--out", "p.png"]);
}

fn numpy_loads(d: &Path) {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    let check = "import numpy as np\n\
        z, v, l = (np.load(n, mmap_mode='r') for n in ('z.npy', 'z.logvar.npy', 'z.labels.npy'))\n\
        assert z.shape == v.shape == (100, 12) and z.dtype == v.dtype == np.float32\n\
        assert l.shape == (100,) and l.dtype == np.int64 and np.isfinite(z).all() and 0 <= l.min() <= l.max() <= 9\n\
        print('good')\n";
    let out = Command::new(python).args(["-c", check]).current_dir(d).output();
    match out {
        Ok(out) if String::from_utf8_lossy(&out.stderr).contains("No module named 'numpy'") => {
            say("SKIPPED: numpy is not installed");
        }
        Ok(out) => assert_eq!(out.stdout, b"good\n", "{}", String::from_utf8_lossy(&out.stderr)),
        Err(e) => say(&format!("SKIPPED: no Python in .venv ({e})")),
    }
}

/// Sizes and delays in ms of an animation's frames.
fn frames(path: &Path) -> Vec<((u32, u32), u32)> {
    let file = std::io::BufReader::new(fs::File::open(path).unwrap());
    let frames = GifDecoder::new(file).unwrap().into_frames();
    let ms = |f: &image::Frame| f.delay().numer_denom_ms().0 / f.delay().numer_denom_ms().1;
    frames.collect_frames().unwrap().iter().map(|f| (f.buffer().dimensions(), ms(f))).collect()
}

#[test]
fn animations_have_a_frame_for_each_step_there_and_back() {
    let dir = place();
    let d = dir.path();
    good(d, &["interpolate", "../v", "--out", "a.gif"]);
    let all = frames(&d.join("a.gif"));
    // Eight rows in four columns; 30 steps there, 28 back.
    assert_eq!((all.len(), all[0].0), (58, (4 * 58 + 2, 2 * 58 + 2)));
    assert!(all.iter().enumerate().all(|(i, f)| f.1 == if i == 0 || i == 29 { 500 } else { 80 }), "{all:?}");
    good(d, &["traverse", "../g", "--dims", "3", "--steps", "4", "--out", "b.gif"]);
    assert_eq!(frames(&d.join("b.gif")).len(), 6);
}

#[test]
fn training_leaves_an_animation_of_itself() {
    let dir = place();
    let d = dir.path();
    let shown = |file: &Path| frames(file).iter().map(|f| f.1).collect::<Vec<_>>();
    let own = trained().join("v/samples/progress.gif");
    assert_eq!(shown(&own), [500, 500, 2500]);
    good(d, &["plot", "--progress", "../v", "--out", "p.gif"]);
    assert!(bytes(&d.join("p.gif")) == bytes(&own));
    good(d, &["plot", "--progress", "../g", "--out", "q.gif"]);
    assert_eq!(shown(&d.join("q.gif")).len(), 3);
    let said = train(d, "vae", &["--epochs", "1", "--encoder-hidden", "8", "--decoder-hidden", "8", "--out", "one"]);
    assert!(!d.join("one/samples/progress.gif").exists() && !said.contains("progress"), "one picture does not move");
    let out = ganvae(d, &["plot", "--progress", "one"]);
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && error.contains("fewer than two"), "{error}");
    // An animation that cannot be made is no reason to lose a run.
    fs::create_dir(d.join("one/samples/progress.gif.part")).unwrap();
    let out = ganvae(d, &["train", "--resume", "one", "--epochs", "2"]);
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.success() && error.contains("warning: one/samples/progress.gif could not be written"),
        "{error}"
    );
}

#[test]
fn a_picture_of_latents_names_its_classes() {
    let dir = place();
    let d = dir.path();
    assert_eq!(good(d, &["plot", "--latent", "../v", "--out", "l.svg"]), "l.svg\n");
    let svg = fs::read_to_string(d.join("l.svg")).unwrap();
    for part in
        ["v: latents of 100 held-out images of digits", "dimensions active", "variance of mu", "circles: 1, 2, 3"]
    {
        assert!(svg.contains(part), "{part}");
    }
    for class in 0..10 {
        assert!(svg.contains(&format!("\n{class}\n")), "class {class} is in the legend");
    }
    let labels = hundred_held_out_digits().test.labels;
    for class in 0..10 {
        let count = labels.iter().filter(|l| **l == class).count();
        assert!(svg.contains(&format!("\n{count}\n")), "class {class} has {count}");
    }
    // A dot for each image, and one for each class.
    assert_eq!(svg.matches("<circle").count(), 110);
    good(d, &["plot", "--latent", "../v", "--projection", "pca", "--data", "digits:3", "--out", "l.png"]);
    let picture = image::open(d.join("l.png")).unwrap().to_rgb8();
    assert_eq!(picture.dimensions(), (1000, 800));
    let of_class_2 = picture.pixels().filter(|p| p.0 == [189, 31, 1]).count();
    assert!(of_class_2 > 60, "its dot in the legend is whole: {of_class_2} pixels");
}

#[test]
fn pictures_of_a_folder_are_brought_to_the_models_size() {
    let dir = place();
    let d = dir.path();
    for class in ["cat", "dog"] {
        fs::create_dir_all(d.join("pictures").join(class)).unwrap();
        for i in 0..20u32 {
            let pixel = |x, y| image::Rgb([(x * 9 + i) as u8, (y * 7) as u8, 99]);
            image::RgbImage::from_fn(40, 32, pixel).save(d.join(format!("pictures/{class}/{i:02}.png"))).unwrap();
        }
    }
    good(d, &["encode", "../v", "--data", "pictures", "--split", "train", "--out", "z.npy"]);
    let labels = Vec::<i64>::try_from(array(d, "z.labels.npy")).unwrap();
    assert!(labels.contains(&0) && labels.contains(&1) && array(d, "z.npy").size() == [labels.len() as i64, 12]);
    // Another way round there is no bringing: digits have one size.
    let small = ["--data", "pictures", "--image-size", "16x12", "--latent", "1", "--encoder-hidden", "8"];
    train(d, "vae", &[&small[..], &["--decoder-hidden", "8", "--out", "small"]].concat());
    refused(d, &["reconstruct", "small", "--data", "digits"], &["--data digits", "1x28x28", "3x16x12"]);
    refused(d, &["plot", "--latent", "small"], &["one dimension"]);
    good(d, &["reconstruct", "small"]);
}

#[test]
fn wrong_uses_get_one_sentence() {
    let dir = place();
    let d = dir.path();
    fs::create_dir(d.join("full")).unwrap();
    fs::write(d.join("full/x"), "").unwrap();
    fs::write(d.join("x.pt"), "").unwrap();
    for command in ["sample", "reconstruct", "interpolate", "traverse", "encode"] {
        refused(d, &[command, "nowhere"], &["nowhere", "no such file", "wanted a run's folder"]);
        refused(d, &[command, "full"], &["full", "not a run"]);
        refused(d, &[command, "../v", "--out", "a.jpg"], &["--out a.jpg"]);
        refused(d, &[command, "../v", "--device", "tpu"], &["--device tpu"]);
        if command != "encode" {
            refused(d, &[command, "../v", "--out", "full"], &["--out full", "not empty"]);
        }
    }
    refused(d, &["plot", "--latent", "../g"], &["../g is a GAN", "searched for", "use a VAE"]);
    fs::write(d.join("no.png"), "no picture").unwrap();
    for (command, flag) in
        [("interpolate", &["--to", "no.png", "--from"]), ("sample", &["--strength", "0.5", "--near"])]
    {
        for (picture, wrong) in [("no.png", "cannot be read as a picture"), ("nowhere.png", "No such file")] {
            common::refused(d, &[&[command, "../g"], &flag[..], &[picture]].concat(), 1, &[picture, wrong]);
        }
    }
    for (args, parts) in [
        (&["sample", "../v", "--count", "0"][..], &["--count 0", "from 1"][..]),
        (&["sample", "../v", "--count", "10001"], &["10001 images", "too many for one grid"]),
        (&["sample", "../v", "--out", "a.gif"], &["--out a.gif", "wanted a .png"]),
        (&["sample", "../g", "--truncation", "0"], &["--truncation 0", "0.01 to 10"]),
        (&["sample", "../g", "--truncation", "-1"], &["--truncation -1"]),
        (&["sample", "../g", "--truncation", "nan"], &["--truncation NaN"]),
        (&["reconstruct", "../v", "--count", "0"], &["--count 0"]),
        (&["reconstruct", "../v", "--steps", "5"], &["--steps is for a GAN", "leave it out"]),
        (&["encode", "../v", "--seed", "1"], &["--seed is for a GAN"]),
        (&["encode", "../g", "--steps", "0"], &["--steps 0", "from 1"]),
        (&["reconstruct", "../g", "--starts", "257"], &["--starts 257", "from 1 to 256"]),
        (&["interpolate", "../v", "--from", "a.png"], &["--to"]),
        (&["interpolate", "../v", "--from", "a.png", "--to", "b.png", "--rows", "2"], &["--rows"]),
        (&["sample", "../v", "--strength", "0.5"], &["--near"]),
        (&["sample", "../v", "--near", "a.png", "--strength", "1.5"], &["--strength 1.5", "from 0 to 1"]),
        (&["sample", "../v", "--near", "a.png", "--truncation", "1"], &["--truncation"]),
        (&["reconstruct", "../v", "--count", "9000"], &["18000 images"]),
        (&["reconstruct", "../v", "--split", "validation"], &["validation", "train, test"]),
        (&["reconstruct", "../v", "--data", "mnits"], &["--data mnits", "mnist"]),
        (&["interpolate", "../v", "--rows", "0"], &["--rows 0"]),
        (&["interpolate", "../v", "--steps", "1"], &["--steps 1", "from 2"]),
        (&["interpolate", "../v", "--mode", "cubic"], &["cubic", "spherical"]),
        (&["interpolate", "../v", "--rows", "1000", "--steps", "1000"], &["1000000 images"]),
        (&["interpolate", "../v", "--rows", "500", "--out", "a.gif"], &["15000 images"]),
        (&["traverse", "../v", "--dims", "0"], &["--dims 0"]),
        (&["traverse", "../v", "--range", "0"], &["--range 0"]),
        (&["traverse", "../v", "--range", "nan"], &["--range NaN"]),
        (&["encode", "../v", "--out", "z"], &["--out z", ".npy"]),
        (&["plot", "--latent", "../v", "../g"], &["--latent", "one run"]),
        (&["plot", "--progress", "../v", "../g"], &["--progress", "one run"]),
        (&["plot", "--progress", "../v", "--out", "p.png"], &["--out p.png", ".gif"]),
        (&["plot", "--progress", "../v", "--out", "p.apng"], &["--out p.apng", ".gif"]),
        (&["interpolate", "../v", "--out", "a.apng"], &["--out a.apng", "a .gif for an animation"]),
        (&["plot", "--latent", "../v", "--out", "p.gif"], &["--out p.gif", ".svg"]),
        (&["plot", "--latent", "--progress", "../v"], &["--progress"]),
        (&["plot", "../v", "--projection", "pca"], &["--latent"]),
    ] {
        refused(d, args, parts);
    }
    let out = ganvae(d, &["sample", "x.pt"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && said.contains("x.pt is no TorchScript module"), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    // What fails on the way leaves nothing half-done.
    let out = ganvae(d, &["sample", "../v", "--out", "/nonexistent/a.npy"]);
    assert_eq!(out.status.code(), Some(1));
}

/// The discriminator that is exported judges as the run's scores say.
#[test]
fn an_exported_discriminator_agrees_with_the_scores_of_the_run() {
    let run = trained().join("g");
    let rows = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(rows.lines().last().unwrap()).unwrap();
    let module = tch::CModule::load(run.join("export/discriminator.pt")).unwrap();
    let x = Dataset::new(&hundred_held_out_digits().test, tch::Device::Cpu).unwrap().range(0, 100).unwrap().x;
    let logits = module.forward_ts(&[x]).unwrap();
    let (found, want) = (logits.mean(Kind::Double).double_value(&[]), last["test_d_real"].as_f64().unwrap());
    assert!((found - want).abs() < 1e-5 * (1.0 + want.abs()), "mean logit of real images {found}, {want} in the run");
}

/// One set of weights, trained on at two batch sizes so little that they stay the same.
#[test]
fn held_out_scores_do_not_depend_on_the_batch_size() {
    let dir = place();
    let gan = &["train", "gan", "--generator-hidden", "16", "--discriminator-hidden", "16", "--arch", "mlp"];
    let small = &["--train-limit", "100", "--test-limit", "100", "--device", "cpu", "--deterministic"];
    good(dir.path(), &[&gan[..], small, &["--steps", "20", "--out", "first"]].concat());
    let scores = ["1", "3", "100"].map(|batch| {
        let more = ["--init-from", "first", "--lr", "1e-12", "--steps", "1", "--batch-size", batch, "--out", batch];
        good(dir.path(), &[&gan[..], small, &more].concat());
        let rows = fs::read_to_string(dir.path().join(batch).join("metrics.jsonl")).unwrap();
        let [trained, row] = ["\"d_loss\"", "\"test_d_loss\""].map(|key| {
            let line = rows.lines().find(|line| line.contains(key)).unwrap();
            serde_json::from_str::<serde_json::Value>(line).unwrap()
        });
        // The variance over a batch of one says nothing: the value is left out.
        assert_eq!(trained.get("diversity").is_some(), batch != "1", "batch {batch}: {trained}");
        ["d_loss", "g_loss", "d_real", "d_fake", "d_accuracy", "diversity"]
            .map(|key| row[format!("test_{key}")].as_f64().unwrap())
    });
    for (one, other) in scores[1..].iter().flat_map(|s| scores[0].iter().zip(s)) {
        assert!((one - other).abs() < 1e-5 * (1.0 + one.abs()), "{scores:?}");
    }
}

/// `--init-from RUN` goes on with that run's networks, loss and moving average.
#[test]
fn training_goes_on_from_another_run_with_its_networks() {
    let dir = place();
    let more = &["--steps", "1", "--train-limit", "100", "--test-limit", "100", "--device", "cpu", "--deterministic"];
    let start = |model: &str, from: &str, out: &str, more_still: &[&str]| {
        let args = [&["train", model, "--init-from", from, "--out", out], &more[..], more_still].concat();
        text(&common::good(dir.path(), &args).stderr)
    };
    let said = start("vae", "../v", "v", &[]);
    assert!(said.contains("10 of 10 tensors of the model loaded") && !said.contains("warning: these"), "{said}");
    let config = fs::read_to_string(dir.path().join("v/config.toml")).unwrap();
    assert!(config.contains("encoder-hidden = [32]") && config.contains("latent = 12"), "{config}");
    good(dir.path(), &["train", "--resume", "v", "--steps", "2"]);
    // The average hardly moves in one step, however far the weights do.
    start("gan", "../g", "g", &["--lr", "0.1"]);
    let key = "generator.base.weight";
    let weights = |run: &str, prefix: &str| {
        let newest = fs::read_to_string(dir.path().join(run).join("checkpoints/latest")).unwrap();
        let file = dir.path().join(run).join("checkpoints").join(newest).join("model.safetensors");
        let mut all = Tensor::read_safetensors(file).unwrap().into_iter();
        all.find(|(name, _)| *name == format!("{prefix}{key}")).unwrap().1
    };
    let moved =
        |prefix: &str| (weights("g", prefix) - weights("../g", prefix)).abs().mean(Kind::Double).double_value(&[]);
    let (weights_moved, average_moved) = (moved(""), moved("ema."));
    assert!(weights_moved > 0.02 && average_moved < 0.15 * weights_moved, "{average_moved} of {weights_moved}");
    let said = start("vae", "../v", "m", &["--preset", "pytorch-vae"]);
    assert!(said.contains("start from random values: decoder.fc1.bias"), "{said}");
}

/// Pictures of a folder take convolutional networks, from which an MLP learns blurs only.
#[test]
fn pictures_take_convolutional_networks_unless_others_are_asked_for() {
    let dir = place();
    let pictures = dir.path().join("p");
    fs::create_dir(&pictures).unwrap();
    for i in 0..4u8 {
        image::RgbImage::from_pixel(16, 16, image::Rgb([60 * i, 10, 200]))
            .save(pictures.join(format!("{i}.png")))
            .unwrap();
    }
    for (args, preset) in [
        (&["vae", "--data", "p"][..], "conv-vae"),
        (&["gan", "--data", "p"], "small"),
        (&["gan", "--data", "p", "--arch", "conv"], "dcgan"),
        (&["gan", "--data", "p", "--preset", "auto"], "small"),
        (&["vae", "--data", "p", "--arch", "mlp"], "pytorch-vae"),
        (&["vae", "--data", "p", "--preset", "article"], "article"),
        (&["vae"], "pytorch-vae"),
    ] {
        let printed = good(dir.path(), &[&["train"], args, &["--print-config"]].concat());
        assert!(printed.contains(&format!("preset = \"{preset}\"")), "{args:?}: {printed}");
    }
    // What was chosen stays chosen when the pictures have moved.
    let small = ["--base-width", "2", "--steps", "1", "--device", "cpu", "--out", "r"];
    good(dir.path(), &[&["train", "vae", "--data", "p"], &small[..]].concat());
    fs::rename(&pictures, dir.path().join("q")).unwrap();
    good(dir.path(), &["train", "--resume", "r", "--data", "q", "--steps", "2"]);
}
