//! `ganvae eval` and `train --score` from the outside, and what features are made of.

mod common;

use std::fs;
use std::path::Path;

use common::{good, python, refused, text};
use ganvae::base::setting::Settings;
use ganvae::data::dataset::Dataset;
use ganvae::data::{self, DATA, TEST_LIMIT, TRAIN_LIMIT};
use ganvae::metrics::extractor::{self, Extractor, FEATURES, FEATURES_RANGE, FEATURES_RESIZE, FEATURES_SIZE};
use ganvae::metrics::extractor::{InceptionResize, InputRange, ScriptExtractor};
use ganvae::metrics::feature_net::FeatureNet;
use ganvae::metrics::sample_scores::{Distances, Training, features_of_made};
use ganvae::native;
use ganvae::nets::Shape;
use ganvae::pictures::npy::NpyWriter;
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use tempfile::tempdir;

const SMALL: [&str; 12] = [
    "--data",
    "digits",
    "--train-limit",
    "200",
    "--test-limit",
    "60",
    "--device",
    "cpu",
    "--tune",
    "off",
    "--batch-size",
    "50",
];

fn train(dir: &Path, model: &str, more: &[&str]) -> String {
    text(&good(dir, &[&["train", model], &SMALL[..], more].concat()).stdout)
}

fn sets(train: u64, test: u64) -> (Dataset, Dataset) {
    let s = Settings::default().with(&DATA, "digits".into()).with(&TRAIN_LIMIT, train).with(&TEST_LIMIT, test);
    let source = data::open(&s).unwrap();
    let [train, test] = [&source.train, &source.test].map(|images| Dataset::new(images, Device::Cpu).unwrap());
    (train, test)
}

#[test]
fn the_network_for_features_is_the_same_each_time_and_kept() {
    let (train, test) = sets(120, 40);
    let dir = tempdir().unwrap();
    let cache = dir.path().join("cache");
    let made = |cache: Option<&Path>| FeatureNet::of((&train, &test), "one", cache).unwrap().0;
    let (first, again) = (made(Some(&cache)), made(None));
    assert_eq!(first.sha256, again.sha256);
    assert_eq!(first.accuracy, again.accuracy);
    assert!(first.accuracy > 0.6 && first.name() == "own-classifier", "{}", first.accuracy);
    let x = test.range(0, 20).unwrap().x;
    let features = first.features(&x).unwrap();
    assert_eq!(features.size(), [20, 128]);
    let square = made(None).features(&train.range(0, 120).unwrap().x).unwrap().square().mean(Kind::Double);
    assert!((square.double_value(&[]) - 1.0).abs() < 1e-5, "features of the training images have a mean square of 1");
    let [file] = &fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>()[..] else {
        panic!("one file is kept")
    };
    let kept = made(Some(&cache));
    assert_eq!((kept.sha256.clone(), kept.features(&x).unwrap()), (first.sha256.clone(), features.shallow_clone()));
    // Damage is noticed by what cannot be read; then it is trained again from the same start.
    let bytes = fs::read(file).unwrap();
    fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(made(Some(&cache)).sha256, first.sha256);
    assert_eq!(fs::read(file).unwrap().len(), bytes.len(), "and kept again");
    let mut changed = bytes.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    fs::write(file, changed).unwrap();
    assert_eq!(made(Some(&cache)).sha256, first.sha256, "one bit of a weight");
    // A cache that cannot be written is a note, no error.
    fs::write(dir.path().join("file"), "").unwrap();
    let (_, note) = FeatureNet::of((&train, &test), "one", Some(&dir.path().join("file"))).unwrap();
    assert!(note.unwrap().contains("could not be kept"));
}

/// Images without labels: a quarter turn or none, of digits.
#[test]
fn without_labels_the_network_tells_turns() {
    let s = Settings::default().with(&DATA, "digits".into()).with(&TRAIN_LIMIT, 300).with(&TEST_LIMIT, 60);
    let mut source = data::open(&s).unwrap();
    (source.train.labels, source.test.labels) = (Vec::new(), Vec::new());
    let [train, test] = [&source.train, &source.test].map(|images| Dataset::new(images, Device::Cpu).unwrap());
    let (net, _) = FeatureNet::of((&train, &test), "two", None).unwrap();
    assert_eq!(net.name(), "own-turns");
    assert!(net.accuracy > 0.5, "0.25 by chance, found {}", net.accuracy);
}

#[test]
fn samples_are_scored_beside_real_images_and_runs_beside_each_other() {
    let dir = tempdir().unwrap();
    let d = dir.path();
    train(d, "gan", &["--preset", "article", "--steps", "4", "--out", "gan"]);
    train(d, "vae", &["--epochs", "2", "--out", "vae"]);
    let json = |args: &[&str]| -> Vec<Value> {
        let out = text(&good(d, &[&["eval"], args, &["--json"]].concat()).stdout);
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let both = json(&["gan", "vae", "--k", "20"]);
    let [gan, vae] = &both[..] else { panic!("an object for each run") };
    assert_eq!((gan["n"].as_u64(), gan["split"].as_str(), gan["seed"].as_u64()), (Some(60), Some("test"), Some(0)));
    assert_eq!(gan["features"], vae["features"]);
    assert_eq!(gan["features"]["sha256"].as_str().unwrap().len(), 64);
    let number = |run: &Value, key: &str| run[key].as_f64().unwrap_or_else(|| panic!("{key} in {run}"));
    for run in [gan, vae] {
        assert!(number(run, "fid") > 2.0 * number(run, "fid_real"), "an untrained model is far from real images");
        assert!(number(run, "precision") <= 1.0 && number(run, "precision_real") > 0.5);
    }
    for key in ["psnr", "psnr_pca", "ssim", "elbo", "nll", "active_units"] {
        assert!(gan.get(key).is_none() && number(vae, key).is_finite(), "{key}");
    }
    assert!(number(vae, "nll") < -number(vae, "elbo"), "the bound of many samples is tighter");
    assert_eq!(number(vae, "k"), 20.0);
    assert!(gan.get("rfid").is_none() && number(vae, "rfid") < number(vae, "fid"));
    assert_eq!(json(&["gan"]), both[..1], "alone as beside another");
    assert_ne!(json(&["gan", "--seed", "1"])[0]["fid"], gan["fid"]);
    let on_train = &json(&["gan", "--split", "train", "--count", "50"])[0];
    assert_eq!((on_train["split"].as_str(), on_train["n"].as_u64()), (Some("train"), Some(50)));
    let table = text(&good(d, &["eval", "gan", "vae", "--csv", "scores.csv"]).stdout);
    assert!(
        table.contains("run 1     gan, step 4")
            && table.contains("own-classifier")
            && table.contains("real (training)"),
        "{table}"
    );
    let csv = fs::read_to_string(d.join("scores.csv")).unwrap();
    let rows: Vec<_> = csv.lines().collect();
    assert!(rows.len() == 3 && rows[0].starts_with("run,step,data,") && rows[1].starts_with("\"gan\",4,"), "{csv}");
    // Images of another program: the same pixels have the same scores, whoever made them.
    good(d, &["sample", "gan", "--seed", "0", "--count", "60", "--out", "made.npy"]);
    let both = json(&["gan", "--samples", "made.npy"]);
    let [own, made] = &both[..] else { panic!("an object for each") };
    assert_eq!(made["run"], "made.npy");
    for key in ["fid", "kid", "precision", "coverage", "copied", "fid_real"] {
        assert_eq!(number(own, key), number(made, key), "{key}");
    }
    assert!(made["step"].is_null() && number(made, "n") == 60.0);
    good(d, &["sample", "gan", "--seed", "0", "--count", "40", "--out", "few.npy"]);
    let few = json(&["gan", "--samples", "few.npy"]);
    assert_eq!((number(&few[0], "n"), number(&few[1], "n")), (40.0, 40.0), "all get as many as the smallest set has");
    refused(d, &["eval", "--samples", "made.npy"], 2, &["--data is missing", "without a run"]);
    refused(d, &["eval", "--samples", "not-there.npy", "--data", "digits"], 2, &["not-there.npy"]);
    let mut npy = NpyWriter::create(&d.join("small.npy"), &[60, 20, 20], Kind::Float).unwrap();
    npy.push(&Tensor::zeros([60, 20, 20], (Kind::Float, Device::Cpu))).unwrap();
    npy.finish().unwrap();
    refused(d, &["eval", "gan", "--samples", "small.npy"], 2, &["1x20x20", "1x28x28", "a resize changes the scores"]);
    // The pictures.
    let said = text(&good(d, &["eval", "gan", "--nearest", "near.png", "--plot", "one.svg"]).stdout);
    assert!(said.contains("near.png: rows of samples, each above the training image nearest to it"), "{said}");
    let near = image::open(d.join("near.png")).unwrap();
    assert!(
        near.width() >= 8 * 28 && near.height() >= 8 * 28,
        "32 pairs in rows of 8: {}x{}",
        near.width(),
        near.height()
    );
    good(d, &["eval", "gan", "vae", "--samples", "made.npy", "--k", "5", "--plot", "bars.svg"]);
    let bars = fs::read_to_string(d.join("bars.svg")).unwrap();
    for name in ["fid", "kid", "nll", "psnr", "gan", "vae", "made.npy", "real images", "lower is better"] {
        assert!(bars.contains(&format!("\n{name}\n")), "{name} is in the chart");
    }
    refused(d, &["eval", "gan", "--plot", "bars.gif"], 2, &["--plot bars.gif: wanted a .png or a .svg"]);
    refused(d, &["eval", "gan", "vae", "--nearest", "near.png"], 2, &["--nearest draws the samples of one run"]);
    // Other data: another number of digits.
    train(d, "vae", &["--train-limit", "100", "--steps", "1", "--out", "other"]);
    refused(d, &["eval", "gan", "other"], 2, &["scores on different data cannot be compared", "one by one"]);
    refused(d, &["eval", "gan", "--split", "all"], 2, &["wanted train or test"]);
    refused(d, &["eval", "gan", "--features", "none.pt"], 1, &["none.pt", "no such file"]);
    refused(d, &["eval", "gan", "--features", "scores.csv"], 1, &["scores.csv", "wanted a TorchScript module"]);
    refused(d, &["eval", "gan", "--resize", "clean"], 2, &["--features-resize describes the file of --features"]);
}

#[test]
fn scores_while_training_change_no_bit_and_choose_the_best_checkpoint() {
    let dir = tempdir().unwrap();
    let d = dir.path();
    let args = ["--epochs", "4", "--keep", "9", "--preset", "article"];
    train(d, "gan", &[&args[..], &["--out", "plain"]].concat());
    let said = train(d, "gan", &[&args[..], &["--out", "scored", "--score", "fid", "--score-every", "1"]].concat());
    let weights = |run: &str, step: u64| {
        fs::read(d.join(run).join(format!("checkpoints/step-{step:08}/model.safetensors"))).unwrap()
    };
    assert!(weights("plain", 16) == weights("scored", 16), "the weights differ");
    let rows = fs::read_to_string(d.join("scored/metrics.jsonl")).unwrap();
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let scores: Vec<(u64, f64)> =
        rows.iter().filter_map(|r| Some((r["step"].as_u64()?, r["test_fid"].as_f64()?))).collect();
    assert_eq!(scores.iter().map(|s| s.0).collect::<Vec<_>>(), [4, 8, 12, 16]);
    let best = scores.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let named = fs::read_to_string(d.join("scored/checkpoints/best")).unwrap();
    assert_eq!(named.trim(), format!("step-{:08}", best.0), "{scores:?}");
    assert!(said.contains(&format!("test_fid {:.3}", best.1)), "{said}");
    let scalars = fs::read_to_string(d.join("scored/scalars.json")).unwrap();
    assert!(
        scalars.contains("\"fid\"") && !fs::read_to_string(d.join("plain/scalars.json")).unwrap().contains("\"fid\"")
    );
    good(d, &["sample", "scored", "--checkpoint", "best"]);
    // A step so large that nothing improves ends the run; the same when it was stopped in between and went on.
    let worse = ["--score", "psnr", "--score-every", "1", "--patience", "2", "--lr", "0.03", "--epochs", "30"];
    let said = train(d, "vae", &[&worse[..], &["--out", "worse"]].concat());
    let last = fs::read_to_string(d.join("worse/checkpoints/latest")).unwrap();
    let last: u64 = last.trim().trim_start_matches("step-").parse().unwrap();
    let best = fs::read_to_string(d.join("worse/checkpoints/best")).unwrap();
    let best: u64 = best.trim().trim_start_matches("step-").parse().unwrap();
    assert_eq!(last, best + 8, "two scores of four steps after the best one: {said}");
    assert!(last < 120 && d.join("worse/export/decoder.pt").is_file());
    refused(
        d,
        &["train", "gan", "--score", "psnr", "--train-limit", "60", "--test-limit", "20", "--out", "x"],
        2,
        &["--score psnr needs reconstructions"],
    );
    refused(
        d,
        &["train", "gan", "--patience", "2", "--train-limit", "60", "--test-limit", "20", "--out", "x"],
        2,
        &["--patience is about the score"],
    );
}

/// Stand-ins for feature networks, saved by PyTorch, and what they must be given by Pillow's arithmetic.
const MODULES: &str = r#"
import numpy as np, torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

class Layers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        # Sums that tell where each pixel is and whether it was normalised.
        assert x.shape[2] == 299 and x.shape[3] == 299
        w = torch.linspace(0.5, 1.5, 299)
        return torch.stack([(x * w).mean((1, 2, 3)), (x * w[:, None]).mean((1, 2, 3)), x.amax((1, 2, 3)), x.amin((1, 2, 3))], 1)

class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Layers()
    def forward(self, img: Tensor, return_features: bool = False, use_fp16: bool = False) -> Tensor:
        assert img.dtype == torch.uint8
        if not return_features:
            return torch.zeros(img.shape[0], 1008)
        x = nn.functional.interpolate(img.float(), size=(299, 299), mode="bilinear", align_corners=False)
        return self.layers((x - 128) / 128)

class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)

class Three(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3
        return x.mean((2, 3), keepdim=True)

class OfBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) - x.flatten(1).mean(0)

for name, module in [("inception", Inception()), ("plain", Plain()), ("three", Three()), ("of_batch", OfBatch())]:
    torch.jit.script(module).save(f"{name}.pt")

rng = np.random.default_rng(3)
out = {}
def resized(x, size):
    "clean-fid: each channel by itself as floats, bicubic, clipped"
    one = lambda c: np.asarray(Image.fromarray(c.astype(np.float32), mode="F").resize((size, size), Image.BICUBIC))
    return np.stack([np.stack([one(c) for c in image]) for image in x]).clip(0, 255)
for name, shape in [("grey", (5, 1, 28, 28)), ("colour", (5, 3, 40, 52)), ("large", (5, 3, 320, 400))]:
    x = rng.integers(0, 256, shape).astype(np.uint8)
    out[f"{name}.x"] = torch.tensor(x)
    rgb = np.broadcast_to(x, (5, 3) + shape[2:])
    clean = torch.tensor(resized(rgb, 299))
    out[f"{name}.resized"] = clean
    out[f"{name}.clean"] = Layers()((clean - 128) / 128)
    out[f"{name}.legacy"] = Inception()(torch.tensor(rgb.copy()), True)
    out[f"{name}.small"] = torch.tensor(resized(x, 16)).flatten(1)
save_file({k: v.contiguous() for k, v in out.items()}, "expected.safetensors")
"#;

#[test]
fn images_reach_a_file_of_features_as_its_protocol_says() {
    let Some(python) = python::numpy().and(python::scores()) else { return };
    let dir = tempdir().unwrap();
    let d = dir.path();
    // TorchScript reads the source of classes from a file.
    fs::write(d.join("modules.py"), MODULES).unwrap();
    python::run(&python, "import modules", d);
    let expected = Tensor::read_safetensors(d.join("expected.safetensors")).unwrap();
    let expected = |key: &str| expected.iter().find(|(k, _)| k == key).unwrap().1.shallow_clone();
    let open = |name: &str, x: &Tensor, with: &dyn Fn(Settings) -> Settings| {
        let size = x.size();
        let shape = Shape { channels: size[1], height: size[2], width: size[3] };
        ScriptExtractor::of(&with(Settings::default().with(&FEATURES, d.join(name))), shape, Device::Cpu)
            .map(Option::unwrap)
    };
    let near = |found: &Tensor, key: &str, most: f64| {
        let far = (found - expected(key)).abs().max().double_value(&[]);
        assert!(found.size() == expected(key).size() && far <= most, "{key}: {far}");
    };
    for name in ["grey", "colour", "large"] {
        let x = expected(&format!("{name}.x"));
        let size = x.size();
        let rgb = x.expand([size[0], 3, size[2], size[3]], false);
        // Levels of 0 to 255.
        near(&extractor::resized(&rgb, 299, 299).unwrap(), &format!("{name}.resized"), 1e-3);
        let clean = open("inception.pt", &x, &|s| s.with(&FEATURES_RESIZE, InceptionResize::Clean)).unwrap();
        let legacy = open("inception.pt", &x, &|s| s).unwrap();
        let small =
            open("plain.pt", &x, &|s| s.with(&FEATURES_SIZE, 16).with(&FEATURES_RANGE, InputRange::Bytes)).unwrap();
        let [clean, legacy, small] = [clean, legacy, small].map(Extractor::Script);
        near(&clean.features(&x).unwrap(), &format!("{name}.clean"), 1e-5);
        near(&legacy.features(&x).unwrap(), &format!("{name}.legacy"), 1e-5);
        near(&small.features(&x).unwrap(), &format!("{name}.small"), 1e-3);
        assert_eq!((clean.name(), legacy.name(), small.name()), ("inception/clean", "inception/legacy", "plain"));
        assert!(
            clean.describe().contains("299x299") && small.describe().contains("16x16, 0 to 255"),
            "{}",
            small.describe()
        );
        assert_eq!(clean.sha256().len(), 64);
    }
    let x = expected("grey.x");
    // A module for colour takes grey images in three channels; normalised as ImageNet.
    let three = Extractor::Script(open("three.pt", &x, &|s| s.with(&FEATURES_RANGE, InputRange::Imagenet)).unwrap());
    let mean = x.to_kind(Kind::Double).mean_dim([1i64, 2, 3].as_slice(), false, Kind::Double) / 255.0;
    let found = three.features(&x).unwrap().select(1, 2);
    assert!((found - (mean - 0.406) / 0.225).abs().max().double_value(&[]) < 1e-5);
    for (name, with, part) in [
        ("of_batch.pt", &(|s: Settings| s) as &dyn Fn(Settings) -> Settings, "depend on the other images"),
        ("inception.pt", &|s: Settings| s.with(&FEATURES_SIZE, 64), "whose input is known"),
        ("plain.pt", &|s: Settings| s.with(&FEATURES_RESIZE, InceptionResize::Clean), "give --features-size instead"),
        ("expected.safetensors", &|s: Settings| s, "wanted a TorchScript module"),
    ] {
        let e = format!("{:#}", open(name, &x, with).unwrap_err());
        assert!(e.contains(part), "{name}: {e}");
    }
}

/// Scores of real images get worse, in order, with everything that makes them worse.
#[test]
fn scores_follow_what_is_done_to_images() {
    let (train, test) = sets(400, 400);
    let (net, _) = FeatureNet::of((&train, &test), "three", None).unwrap();
    let extractor = Extractor::Own(Box::new(net));
    let x = train.range(0, 400).unwrap().x;
    let labels = train.range(0, 400).unwrap().labels.unwrap();
    let features = |x: &Tensor| {
        let x = x.shallow_clone();
        features_of_made(&extractor, 400, |from, n| Ok(x.narrow(0, from as i64, n as i64))).unwrap()
    };
    let real = features(&test.range(0, 400).unwrap().x);
    let distances = |x: &Tensor| Distances::between(&real, &features(x), 0).unwrap();
    let floor = distances(&x);
    let noise = native::randn(7, &[400, 1, 28, 28]).unwrap();
    let blurred = |times: usize| {
        (0..times).fold(x.shallow_clone(), |x, _| x.avg_pool2d([3, 3], [1, 1], [1, 1], false, true, None))
    };
    // Images of the first classes only, or the first images only, again and again.
    let rows = |keep: &dyn Fn(i64, i64) -> bool| {
        let kept: Vec<i64> = (0..400).filter(|i| keep(*i, labels.int64_value(&[*i]))).collect();
        let index: Vec<i64> = kept.into_iter().cycle().take(400).collect();
        x.index_select(0, &Tensor::from_slice(&index))
    };
    for (what, worse) in [
        ("noise", [0.05, 0.15, 0.4].map(|s| (&x + &noise * s).clamp(0.0, 1.0))),
        ("blur", [1, 2, 4].map(blurred)),
        ("dropped classes", [8, 4, 1].map(|n| rows(&|_, label| label < n))),
        ("repeated images", [60, 20, 6].map(|n| rows(&|i, _| i < n))),
    ] {
        let all: Vec<Distances> = [floor].into_iter().chain(worse.iter().map(distances)).collect();
        let show: Vec<_> = all.iter().map(|d| (d.fid, d.kid.mean, d.manifold.recall, d.manifold.coverage)).collect();
        assert!(all.is_sorted_by(|a, b| a.fid < b.fid), "{what}, Fréchet distance: {show:?}");
        assert!(all.is_sorted_by(|a, b| a.kid.mean < b.kid.mean), "{what}, kernel distance: {show:?}");
        assert!(all.is_sorted_by(|a, b| a.manifold.coverage >= b.manifold.coverage), "{what}, coverage: {show:?}");
        assert!(all[3].manifold.coverage < 0.8 * floor.manifold.coverage, "{what}, coverage: {show:?}");
    }
    // Training images themselves are the copies that they are; held-out images are not.
    let training = Training::new(&extractor, &train, &real).unwrap();
    assert!(training.memorisation(&features(&x)).unwrap().1.flagged);
    assert!(!training.memorisation(&real).unwrap().1.flagged);
}
