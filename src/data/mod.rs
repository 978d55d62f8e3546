//! Data sets: where images come from ([`open`]), and batches of them ([`dataset::Dataset`]).

pub mod archive;
pub mod arrays;
pub mod cache;
pub mod cifar;
pub mod csv;
pub mod dataset;
pub mod describe;
pub mod digits;
pub mod fetch;
pub mod files;
pub mod fit;
pub mod idx;
pub mod images;
pub mod kinds;
pub mod layout;
mod npy;
pub mod numpy;
pub mod picture;
pub mod picture_set;
pub mod shards;
pub mod subset;
mod unknown;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::base::hash;
use crate::base::names::{escaped, unescaped};
use crate::base::progress::say;
use crate::base::seed::Stream;
use crate::base::setting::{Group, Setting, Settings};
use crate::base::shape::Shape;
use crate::base::usage::{nearest, usage};
use arrays::Arrays;
use images::{Images, Source};
use picture::Fit;
use picture_set::{PictureSet, ReadOptions};
pub use subset::few_held_out;
use subset::{CLASS, HOLDOUT, Subset};
pub use subset::{TEST_LIMIT, TRAIN_LIMIT};

/// Default numbers of training and held-out images of `digits`: those of MNIST.
const DIGITS: (usize, usize) = (60_000, 10_000);
/// The largest number of digits in a split: 7.8 GB of pixels.
const MOST_DIGITS: usize = 10_000_000;

/// The data set; a path as [`Setting::path`] writes it.
pub static DATA: Setting<String> = Setting::new(
    "data",
    "digits, mnist, fashion-mnist, kmnist, or a path: pictures (a folder, .zip, .tar, shards), arrays (IDX, CIFAR, .npy, .npz, .csv)",
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
    "Resize images: HEIGHTxWIDTH, or one number for both",
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
    Setting::whole("channels", "Convert images to grey (1), colour (3) or colour with transparency (4)")
        .range("1 (grey), 3 (colour) or 4 (colour with alpha)", |n| [1, 3, 4].contains(n))
        .value_name("1|3|4");

/// Whether training images are mirrored.
pub static HFLIP: Setting<bool> =
    Setting::switch("hflip", "Mirror training images left to right at random, each in half of its epochs")
        .default("false", "letters and digits have a direction");

/// Whether all classes are drawn equally often.
pub static BALANCE: Setting<bool> = Setting::switch(
    "balance",
    "Draw all classes equally often in training: images of a small class several times an epoch, those of a large one in part",
)
.default("false", "each image once an epoch");

/// Whether broken pictures are left out.
pub static SKIP_BROKEN: Setting<bool> =
    Setting::switch("skip-broken", "Leave out pictures that cannot be read; without it they are an error");

/// Whether every broken picture is named.
pub static LIST_BROKEN: Setting<bool> =
    Setting::switch("list-broken", "Name all pictures that cannot be read, not only the first twenty")
        .may_change_on_resume();

/// Where decoded pictures are kept.
pub static CACHE: Setting<PathBuf> =
    Setting::path("cache", "Where decoded pictures are kept for the next start, or off [default: in the user's cache]")
        .value_name("DIR|off")
        .may_change_on_resume();

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
        &HOLDOUT,
        &CLASS,
        &HFLIP,
        &BALANCE,
        &TRAIN_LIMIT,
        &TEST_LIMIT,
        &SKIP_BROKEN,
        &LIST_BROKEN,
        &CACHE,
    ],
};

/// The settings that hold for other data than the run's own.
pub const FOR_OTHER_DATA: &[&str] = &["data-dir", "cache", "fit", "resize", "background", "max-picture"];

/// Reads, downloads or draws the images of `--data`, those that the settings choose. Says what was left out and what was chosen.
///
/// # Errors
/// [`crate::base::usage::Usage`] for a SPEC that is neither a known name nor a path, or for a size of a set that cannot be
/// resized; the errors of the readers.
pub fn open(s: &Settings) -> Result<Source> {
    open_subset(s, Subset::of(s))
}

/// Number and shape of the training images that [`open`] gives. Says nothing.
///
/// # Errors
/// As [`open`].
pub fn size(s: &Settings) -> Result<(usize, Shape)> {
    let (Source { train, .. }, _) = read(s, Subset::of(s))?;
    Ok((train.count, train.shape()))
}

/// Shape of the training images, and the share of their pixel values that are within a tenth of 0 or 1, of 1000 images. Says nothing.
///
/// # Errors
/// As [`open`].
pub fn look(s: &Settings) -> Result<(Shape, f64)> {
    let source = match digits_seed(&s.get(&DATA)?)? {
        // A few of any seed show it.
        Some(seed) => digits::generate(seed, Stream::DigitsTrain, 100),
        None => read(s, Subset::of(s))?.0.train,
    };
    let (each, shape) = (source.shape().numel() as usize, source.shape());
    let (mut extreme, mut all) = (0usize, 0usize);
    for i in images::spread(source.count, 1000) {
        let pixels = &source.pixels[i * each..(i + 1) * each];
        extreme += pixels.iter().filter(|p| **p <= 25 || **p >= 230).count();
        all += each;
    }
    Ok((shape, extreme as f64 / all.max(1) as f64))
}

/// All images of `--data` as one set, `train` of the result: nothing is held out.
///
/// # Errors
/// As [`open`].
pub fn open_whole(s: &Settings) -> Result<Source> {
    open_subset(s, Subset { whole: true, ..Subset::of(s) })
}

/// These pictures, in the size and channels of the settings.
///
/// # Errors
/// When one cannot be read.
pub fn open_files(s: &Settings, paths: &[PathBuf]) -> Result<Images> {
    let subset = Subset { whole: true, ..Subset::of(s) };
    let options = ReadOptions { fit: Fit::of(s)?, subset, skip_broken: false, list_broken: false, cache: None };
    let (source, notes) = PictureSet::of_files(paths)?.read(&options)?;
    notes.iter().for_each(|note| say(&format!("data: {note}")));
    Ok(Images { labels: Vec::new(), ..source.train })
}

fn open_subset(s: &Settings, subset: Subset) -> Result<Source> {
    let (source, notes) = read(s, subset)?;
    notes.iter().for_each(|note| say(&format!("data: {note}")));
    Ok(source)
}

/// The images, and what the user should know about them.
fn read(s: &Settings, subset: Subset) -> Result<(Source, Vec<String>)> {
    let spec = &s.get(&DATA)?;
    let fit = Fit::of(s)?;
    let path = &unescaped(spec);
    if path_of(spec).is_none() && fit != Fit::default() {
        usage!("--image-size and --channels are for images of your own, and --data {spec} are none: leave them out");
    }
    let pictures = if let Some(seed) = digits_seed(spec)? {
        return Ok((digits(spec, seed, s)?.subset(&subset, true)?, Vec::new()));
    } else if let Some(set) = fetch::find(spec) {
        let dir = fetch::ensure(set, &data_dir(s)?)?;
        let kind = arrays::recognise(&dir)?.with_context(|| format!("{} holds no IDX files", dir.display()))?;
        let classes = set.classes.split(',').map(str::to_owned).collect();
        return of_arrays(spec, Arrays { classes, ..kind.load()? }, &fit, &subset);
    } else if let Some(paths) = shards::paths(path)? {
        PictureSet::of_shards(path, &paths)?
    } else if !path.exists() {
        let names: Vec<_> = ["digits"].into_iter().chain(fetch::SETS.iter().map(|set| set.name)).collect();
        let hint = nearest(spec, names.iter().copied()).map_or_else(String::new, |n| format!("; did you mean {n}?"));
        usage!("--data {spec}: no file or folder of that name, and not one of {}{hint}", names.join(", "));
    } else if let Some(kind) = arrays::recognise(path)? {
        return of_arrays(spec, kind.load()?, &fit, &subset);
    } else if path.is_dir() {
        PictureSet::of_folder(path)?
    } else if archive::is_archive(path)? {
        PictureSet::of_archive(path)?
    } else if kinds::is_picture(path)? {
        PictureSet::of_files(std::slice::from_ref(path))?
    } else {
        usage!("--data {spec}: {}", arrays::describe_unknown(path));
    };
    let cache = cache_dir(s);
    let (skip_broken, list_broken) = (s.given(&SKIP_BROKEN) == Some(true), s.given(&LIST_BROKEN) == Some(true));
    pictures.read(&ReadOptions { fit, subset, skip_broken, list_broken, cache: cache.as_deref() })
}

/// The digits of a seed, as many as the limits say.
fn digits(spec: &str, seed: u64, s: &Settings) -> Result<Source> {
    let [train, test] = [(&TRAIN_LIMIT, DIGITS.0), (&TEST_LIMIT, DIGITS.1)]
        .map(|(limit, most)| s.given(limit).map_or(most, |n| n as usize));
    let most = train.max(test);
    if most > MOST_DIGITS {
        usage!("--train-limit and --test-limit of digits: at most {MOST_DIGITS} can be drawn, found {most}");
    }
    Ok(Source {
        name: spec.to_owned(),
        train: digits::generate(seed, Stream::DigitsTrain, train),
        test: digits::generate(seed, Stream::DigitsTest, test),
        classes: (0..10).map(|d| d.to_string()).collect(),
        sha256: None,
    })
}

/// The images of arrays that `subset` chooses, and what the user should know about them.
fn of_arrays(name: &str, arrays: Arrays, fit: &Fit, subset: &Subset) -> Result<(Source, Vec<String>)> {
    let Arrays { train, test, classes, mut notes } = arrays;
    let has_test = test.is_some();
    let test = test.unwrap_or(train.select(&[]));
    let source = Source { name: name.to_owned(), train, test, classes, sha256: None }.subset(subset, has_test)?;
    let (fit, note) = fit::choose(&source.train, fit);
    notes.extend(note);
    let (train, test) = (fit::fit_pixels(source.train, &fit)?, fit::fit_pixels(source.test, &fit)?);
    Ok((Source { train, test, ..source }, notes))
}

/// Whether `--data SPEC` is a path, whose images can be resized.
pub fn resizable(spec: &str) -> bool {
    path_of(spec).is_some()
}

/// Whether `--data SPEC` is pictures, in a folder or an archive.
pub fn is_of_pictures(spec: &str) -> bool {
    path_of(spec).is_some_and(|path| {
        matches!(shards::paths(&path), Ok(Some(_))) || (path.exists() && matches!(arrays::recognise(&path), Ok(None)))
    })
}

/// The path that `--data SPEC` is; none for the name of a set, also where a folder has that name.
pub fn path_of(spec: &str) -> Option<PathBuf> {
    let named = fetch::find(spec).is_some() || !matches!(digits_seed(spec), Ok(None));
    (!named).then(|| unescaped(spec))
}

/// The seed of `digits` (0) or `digits:SEED`; none for another SPEC.
///
/// # Errors
/// [`crate::base::usage::Usage`] for a seed that is no whole number.
pub fn digits_seed(spec: &str) -> Result<Option<u64>> {
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
    let dir = variable("GANVAE_DATA").or_else(user_cache);
    dir.context("no folder for data is known, because HOME is not set: give --data-dir or GANVAE_DATA")
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// `ganvae` in the user's cache; none without HOME.
fn user_cache() -> Option<PathBuf> {
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    cache.map(|cache| cache.join("ganvae"))
}

/// The folder of decoded pictures: `--cache`, else `pixels` in the user's cache; none for `--cache off` or without HOME.
pub fn cache_dir(s: &Settings) -> Option<PathBuf> {
    match s.given(&CACHE) {
        Some(dir) => (dir.as_os_str() != "off").then_some(dir),
        None => user_cache().map(|dir| dir.join("pixels")),
    }
}

/// SHA-256 over a set's images and labels, training then held-out, in hexadecimal. A label is one byte, or four (little-endian)
/// from the 257th class on.
pub fn checksum(source: &Source) -> String {
    let [a, b] = [&source.train, &source.test];
    let compute = || checksum_of((&a.pixels, &b.pixels), (&a.labels, &b.labels), source.classes.len());
    source.sha256.clone().unwrap_or_else(compute)
}

fn checksum_of(pixels: (&[u8], &[u8]), labels: (&[u32], &[u32]), classes: usize) -> String {
    let width = if classes <= 256 { 1 } else { 4 };
    let bytes = |labels: &[u32]| labels.iter().flat_map(|l| l.to_le_bytes()[..width].to_vec()).collect::<Vec<u8>>();
    hash::sha256([pixels.0, &bytes(labels.0), pixels.1, &bytes(labels.1)])
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
        for (spec, part) in
            [("mnits", "did you mean mnist?"), ("digits:x", "digits:SEED"), ("/no/such", "no file or folder")]
        {
            let e = open(&settings(spec)).unwrap_err();
            assert!(e.is::<crate::base::usage::Usage>() && e.to_string().contains(part), "{e}");
        }
        let sized = settings("digits").with(&IMAGE_SIZE, (32, 32));
        assert!(open(&sized).unwrap_err().to_string().contains("--image-size"));
    }
}
