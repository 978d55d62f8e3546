//! Where images come from ([`open`]) and how they are fed ([`dataset::Dataset`]).

pub mod cifar;
pub mod dataset;
pub mod describe;
pub mod digits;
pub mod fetch;
pub mod folder;
pub mod idx;
pub mod images;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::base::hash;
use crate::base::seed::Stream;
use crate::base::setting::{Group, Setting, Settings};
use crate::base::usage::{nearest, usage};
use images::Source;

/// Images of the embedded set unless a limit says otherwise: as many as MNIST has.
const DIGITS: (usize, usize) = (60_000, 10_000);
/// Digits in a split at the most: 7.8 GB of pixels.
const MOST_DIGITS: usize = 10_000_000;

/// What names the images.
pub static DATA: Setting<String> =
    Setting::text("data", "digits, mnist, fashion-mnist, kmnist, or a folder: IDX files, images, CIFAR-10 binaries")
        .default("digits", "drawn by ganvae, so that nothing is downloaded")
        .value_name("SPEC")
        .may_change_on_resume();

/// Where named sets are kept.
pub static DATA_DIR: Setting<PathBuf> =
    Setting::path("data-dir", "Where named sets are kept [default: $GANVAE_DATA or the user's cache]")
        .value_name("DIR")
        .may_change_on_resume();

/// (H, W) that pictures are brought to, in pixels.
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

/// C that pictures are brought to.
pub static CHANNELS: Setting<u64> = Setting::whole("channels", "Force pictures of a folder to grey (1) or colour (3)")
    .range("1 (grey) or 3 (colour)", |n| [1, 3].contains(n))
    .value_name("1|3");

/// Training images at the most.
pub static TRAIN_LIMIT: Setting<u64> =
    Setting::count("train-limit", "Use only N training images, evenly spread (digits: draw N)");

/// Held-out images at the most.
pub static TEST_LIMIT: Setting<u64> =
    Setting::count("test-limit", "Use only N held-out images, evenly spread (digits: draw N)");

/// Which images.
pub static SETTINGS: Group =
    Group { heading: "Data", settings: &[&DATA, &DATA_DIR, &IMAGE_SIZE, &CHANNELS, &TRAIN_LIMIT, &TEST_LIMIT] };

/// Finds, downloads or draws the images that `--data` names, with the limits and sizes that the settings ask for.
///
/// # Errors
/// [`crate::base::usage::Usage`] for a SPEC that is no known name and no folder, or a size asked of a set that has its own; else
/// the reader's own sentence about the file.
pub fn open(s: &Settings) -> Result<Source> {
    let spec = &s.get(&DATA)?;
    let limits = [&TRAIN_LIMIT, &TEST_LIMIT].map(|limit| s.given(limit).map(|n| n as usize));
    let [train, test] = limits.map(|limit| limit.unwrap_or(usize::MAX));
    let (size, channels) = (s.given(&IMAGE_SIZE), s.given(&CHANNELS).map(|c| c as usize));
    let path = Path::new(spec);
    if !resizable(spec) && (size.is_some() || channels.is_some()) {
        usage!("--image-size and --channels are for folders of pictures, and --data {spec} is none: leave them out");
    }
    let mut source = if let Some(seed) = digits_seed(spec)? {
        let (train, test) = (limits[0].unwrap_or(DIGITS.0), limits[1].unwrap_or(DIGITS.1));
        if train.max(test) > MOST_DIGITS {
            usage!(
                "--train-limit and --test-limit of digits: at most {MOST_DIGITS} can be drawn, found {}",
                train.max(test)
            );
        }
        drawn(spec, seed, train, test)
    } else if let Some(set) = fetch::find(spec) {
        let mut source = idx::load_folder(&fetch::ensure(set, &data_dir(s)?)?)?;
        source.name = spec.to_owned();
        source.classes = set.classes.iter().map(|c| (*c).to_owned()).collect();
        source
    } else if path.is_dir() {
        if idx::is_idx_folder(path) {
            idx::load_folder(path)?
        } else if cifar::is_cifar(path) {
            cifar::load_folder(path)?
        } else {
            folder::load_folder(path, size, channels, (train, test))?
        }
    } else {
        let names: Vec<_> = ["digits"].into_iter().chain(fetch::SETS.iter().map(|set| set.name)).collect();
        let near = nearest(spec, names.iter().copied());
        let hint = near.map_or_else(String::new, |n| format!("; did you mean {n}?"));
        usage!("--data {spec}: no folder of that name, and not one of {}{hint}", names.join(", "));
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

/// Whether `--data SPEC` is a folder of pictures, which can be brought to any size.
pub fn resizable(spec: &str) -> bool {
    let path = Path::new(spec);
    path.is_dir() && !idx::is_idx_folder(path) && !cifar::is_cifar(path)
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

fn drawn(name: &str, seed: u64, train: usize, test: usize) -> Source {
    Source {
        name: name.to_owned(),
        train: digits::generate(seed, Stream::DigitsTrain, train),
        test: digits::generate(seed, Stream::DigitsTest, test),
        classes: (0..10).map(|d| d.to_string()).collect(),
    }
}

/// `--data-dir`, else `$GANVAE_DATA`, else `ganvae` in the user's cache.
///
/// # Errors
/// When no home folder is known.
pub fn data_dir(s: &Settings) -> Result<PathBuf> {
    if let Some(dir) = s.given(&DATA_DIR) {
        return Ok(dir);
    }
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("GANVAE_DATA") {
        return Ok(dir);
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    Ok(cache
        .context("no folder for data is known, because HOME is not set: give --data-dir or GANVAE_DATA")?
        .join("ganvae"))
}

/// SHA-256 over a set's images and labels, training then held-out, in hexadecimal.
pub fn checksum(source: &Source) -> String {
    let [a, b] = [&source.train, &source.test];
    hash::sha256([&a.pixels[..], &a.labels, &b.pixels, &b.labels])
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
    fn an_unknown_spec_is_a_usage_error_with_the_nearest_name() {
        for (spec, part) in [("mnits", "did you mean mnist?"), ("digits:x", "digits:SEED"), ("/no/such", "no folder")] {
            let e = open(&settings(spec)).unwrap_err();
            assert!(e.is::<crate::base::usage::Usage>() && e.to_string().contains(part), "{e}");
        }
        let sized = settings("digits").with(&IMAGE_SIZE, (32, 32));
        assert!(open(&sized).unwrap_err().to_string().contains("--image-size"));
    }
}
