//! Data sets: where images come from ([`open`]), and batches of them ([`dataset::Dataset`]).

pub mod cifar;
pub mod dataset;
pub mod describe;
pub mod digits;
pub mod fetch;
pub mod files;
pub mod folder;
pub mod idx;
pub mod images;
pub mod picture;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::base::hash;
use crate::base::names::{escaped, unescaped};
use crate::base::seed::Stream;
use crate::base::setting::{Group, Setting, Settings};
use crate::base::usage::{nearest, usage};
use images::{Images, Source};
use picture::Fit;

/// Default numbers of training and held-out images of `digits`: those of MNIST.
const DIGITS: (usize, usize) = (60_000, 10_000);
/// The largest number of digits in a split: 7.8 GB of pixels.
const MOST_DIGITS: usize = 10_000_000;

/// The data set; a path as [`Setting::path`] writes it.
pub static DATA: Setting<String> = Setting::new(
    "data",
    "digits, mnist, fashion-mnist, kmnist, or a folder: IDX files, images, CIFAR-10 binaries",
    "text",
    |text| Some(text.to_owned()),
    |v| toml::Value::String(escaped(unescaped(v))),
)
.default("digits", "drawn by ganvae, so that nothing is downloaded")
.value_name("SPEC")
.may_change_on_resume();

/// The folder of named sets.
pub static DATA_DIR: Setting<PathBuf> =
    Setting::path("data-dir", "Where named sets are kept [default: $GANVAE_DATA or the user's cache]")
        .value_name("DIR")
        .may_change_on_resume();

/// (H, W) in pixels that pictures are resized to.
pub static IMAGE_SIZE: Setting<(usize, usize)> = Setting::new(
    "image-size",
    "Resize pictures of a folder: HEIGHTxWIDTH, or one number for both",
    "HEIGHTxWIDTH in pixels, each",
    |text| {
        let (h, w) = text.split_once(['x', 'X']).unwrap_or((text, text));
        h.parse().ok().zip(w.parse().ok())
    },
    |(h, w)| toml::Value::String(format!("{h}x{w}")),
)
.range("from 1 to 4096, such as 64x64", |(h, w)| (1..=4096).contains(h) && (1..=4096).contains(w))
.value_name("HxW");

/// C that pictures are converted to.
pub static CHANNELS: Setting<u64> =
    Setting::whole("channels", "Force pictures of a folder to grey (1), colour (3) or colour with alpha (4)")
        .range("1 (grey), 3 (colour) or 4 (colour with alpha)", |n| [1, 3, 4].contains(n))
        .value_name("1|3|4");

/// The largest number of training images.
pub static TRAIN_LIMIT: Setting<u64> =
    Setting::count("train-limit", "Use only N training images, evenly spread (digits: draw N)");

/// The largest number of held-out images.
pub static TEST_LIMIT: Setting<u64> =
    Setting::count("test-limit", "Use only N held-out images, evenly spread (digits: draw N)");

/// The settings of the data set.
pub static SETTINGS: Group = Group {
    heading: "Data",
    settings: &[
        &DATA,
        &DATA_DIR,
        &IMAGE_SIZE,
        &CHANNELS,
        &picture::FIT,
        &picture::RESIZE,
        &picture::BACKGROUND,
        &picture::MAX_PICTURE,
        &TRAIN_LIMIT,
        &TEST_LIMIT,
    ],
};

/// Reads, downloads or draws the images of `--data`, within the limits and in the size of the settings.
///
/// # Errors
/// [`crate::base::usage::Usage`] for a SPEC that is neither a known name nor a folder, or for a size of a set that cannot be
/// resized; the errors of the readers.
pub fn open(s: &Settings) -> Result<Source> {
    let spec = &s.get(&DATA)?;
    let limits = [&TRAIN_LIMIT, &TEST_LIMIT].map(|limit| s.given(limit).map(|n| n as usize));
    let [train, test] = limits.map(|limit| limit.unwrap_or(usize::MAX));
    let fit = Fit::of(s)?;
    let path = &unescaped(spec);
    if !resizable(spec) && fit != Fit::default() {
        usage!("--image-size and --channels are for folders of pictures, and --data {spec} is none: leave them out");
    }
    let mut source = if let Some(seed) = digits_seed(spec)? {
        let (train, test) = (limits[0].unwrap_or(DIGITS.0), limits[1].unwrap_or(DIGITS.1));
        let most = train.max(test);
        if most > MOST_DIGITS {
            usage!("--train-limit and --test-limit of digits: at most {MOST_DIGITS} can be drawn, found {most}");
        }
        Source {
            name: spec.to_owned(),
            train: digits::generate(seed, Stream::DigitsTrain, train),
            test: digits::generate(seed, Stream::DigitsTest, test),
            classes: (0..10).map(|d| d.to_string()).collect(),
        }
    } else if let Some(set) = fetch::find(spec) {
        Source {
            name: spec.to_owned(),
            classes: set.classes.split(',').map(str::to_owned).collect(),
            ..idx::load_folder(&fetch::ensure(set, &data_dir(s)?)?)?
        }
    } else if !path.is_dir() {
        let names: Vec<_> = ["digits"].into_iter().chain(fetch::SETS.iter().map(|set| set.name)).collect();
        let hint = nearest(spec, names.iter().copied()).map_or_else(String::new, |n| format!("; did you mean {n}?"));
        usage!("--data {spec}: no folder of that name, and not one of {}{hint}", names.join(", "));
    } else if idx::is_idx_folder(path) {
        idx::load_folder(path)?
    } else if cifar::is_cifar(path) {
        cifar::load_folder(path)?
    } else {
        folder::load_folder(path, &fit, (train, test))?
    };
    source.train = source.train.take(train);
    source.test = source.test.take(test);
    ensure!(
        source.train.count > 0 && source.test.count > 0,
        "--data {spec} holds {} training and {} held-out images: there must be at least one of each",
        source.train.count,
        source.test.count
    );
    Ok(source)
}

/// Whether `--data SPEC` is a folder of pictures, which can be resized.
pub fn resizable(spec: &str) -> bool {
    path_of(spec).is_some_and(|path| path.is_dir() && !idx::is_idx_folder(&path) && !cifar::is_cifar(&path))
}

/// The path that `--data SPEC` is; none for the name of a set, also where a folder has that name.
pub fn path_of(spec: &str) -> Option<PathBuf> {
    let named = fetch::find(spec).is_some() || !matches!(digits_seed(spec), Ok(None));
    (!named).then(|| unescaped(spec))
}

/// The seed of `digits` (0) or `digits:SEED`; none for another SPEC.
fn digits_seed(spec: &str) -> Result<Option<u64>> {
    match spec.split_once(':') {
        None if spec == "digits" => Ok(Some(0)),
        Some(("digits", seed)) => match seed.parse() {
            Ok(seed) => Ok(Some(seed)),
            Err(_) => usage!("--data {spec}: wanted digits, or digits:SEED with a whole number"),
        },
        _ => Ok(None),
    }
}

/// `--data-dir`, else `$GANVAE_DATA`, else `ganvae` in the user's cache.
///
/// # Errors
/// When HOME is needed and not set.
pub fn data_dir(s: &Settings) -> Result<PathBuf> {
    if let Some(dir) = s.given(&DATA_DIR) {
        return Ok(dir);
    }
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("GANVAE_DATA") {
        return Ok(dir);
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let dir = cache.map(|cache| cache.join("ganvae"));
    dir.context("no folder for data is known, because HOME is not set: give --data-dir or GANVAE_DATA")
}

/// SHA-256 over a set's images and labels, training then held-out, in hexadecimal. A label is one byte, or four (little-endian)
/// from the 257th class on.
pub fn checksum(source: &Source) -> String {
    let bytes = if source.classes.len() <= 256 { 1 } else { 4 };
    let labels = |images: &Images| images.labels.iter().flat_map(|l| l.to_le_bytes()[..bytes].to_vec()).collect();
    let [a, b] = [&source.train, &source.test];
    let [a_labels, b_labels]: [Vec<u8>; 2] = [a, b].map(labels);
    hash::sha256([&a.pixels[..], &a_labels, &b.pixels, &b_labels])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(spec: &str) -> Settings {
        Settings::default().with(&DATA, spec.into()).with(&TRAIN_LIMIT, 40).with(&TEST_LIMIT, 7)
    }

    #[test]
    fn a_seed_makes_other_digits_and_another_checksum() {
        let a = open(&settings("digits")).unwrap();
        let b = open(&settings("digits:1")).unwrap();
        assert_ne!(checksum(&a), checksum(&b));
        assert_eq!(checksum(&a), checksum(&open(&settings("digits:0")).unwrap()));
    }

    #[test]
    fn a_set_is_no_path_also_where_a_folder_has_its_name() {
        for (spec, path) in [("digits", None), ("digits:3", None), ("mnist", None), ("./mnist", Some("./mnist"))] {
            assert_eq!(path_of(spec), path.map(PathBuf::from), "{spec}");
        }
    }

    #[test]
    fn an_unknown_spec_is_a_usage_error_with_the_nearest_name() {
        for (spec, part) in [("mnits", "did you mean mnist?"), ("digits:x", "digits:SEED"), ("/no/such", "no folder")] {
            let e = open(&settings(spec)).unwrap_err();
            assert!(e.is::<crate::base::usage::Usage>() && e.to_string().contains(part), "{e}");
        }
        let sized = settings("digits").with(&IMAGE_SIZE, (32, 32));
        assert!(open(&sized).unwrap_err().to_string().contains("--image-size"));
    }
}
