//! Where images come from ([`open`]) and how they are fed ([`Dataset`]).
//!
//! Images stay bytes, on the device, for the whole run; a batch is gathered, converted and scaled when it is needed.

pub mod cifar;
pub mod describe;
pub mod digits;
pub mod fetch;
pub mod folder;
pub mod idx;
pub mod images;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};

use crate::base::hash;
use crate::base::seed::Stream;
use crate::base::usage::usage;
use crate::config::{Settings, parse_size};
use crate::nets::Shape;
use images::{Images, Source};

/// Images of the embedded set unless a limit says otherwise: as many as MNIST has.
const DIGITS: (usize, usize) = (60_000, 10_000);
/// Digits in a split at the most: 7.8 GB of pixels.
const MOST_DIGITS: usize = 10_000_000;

/// Finds, downloads or draws the images that `--data` names, with the limits and sizes that the settings ask for.
///
/// # Errors
/// [`crate::base::usage::Usage`] for a SPEC that is no known name and no folder, or a size asked of a set that has its own; else
/// the reader's own sentence about the file.
pub fn open(s: &Settings) -> Result<Source> {
    let spec = s.data.as_deref().unwrap_or("digits");
    let (train, test) = (s.train_limit.unwrap_or(usize::MAX), s.test_limit.unwrap_or(usize::MAX));
    let path = Path::new(spec);
    if !resizable(spec) && (s.image_size.is_some() || s.channels.is_some()) {
        usage!("--image-size and --channels are for folders of pictures, and --data {spec} is none: leave them out");
    }
    let mut source = if let Some(seed) = digits_seed(spec)? {
        let (train, test) = (s.train_limit.unwrap_or(DIGITS.0), s.test_limit.unwrap_or(DIGITS.1));
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
            folder::load_folder(path, parse_size(s.image_size.as_deref())?, s.channels.map(|c| c as usize))?
        }
    } else {
        let names: Vec<_> = ["digits"].into_iter().chain(fetch::SETS.iter().map(|set| set.name)).collect();
        let near = names.iter().find(|n| strsim::jaro_winkler(n, spec) > 0.85);
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
    if let Some(dir) = &s.data_dir {
        return Ok(dir.clone());
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

/// Images as bytes on the device, handed out in batches.
#[derive(Debug)]
pub struct Dataset {
    images: Tensor,
    shape: Shape,
}

impl Dataset {
    /// Moves a set to the device.
    ///
    /// # Errors
    /// libtorch's, when memory ends.
    pub fn new(images: &Images, device: Device) -> Result<Self> {
        let shape =
            Shape { channels: images.channels as i64, height: images.height as i64, width: images.width as i64 };
        let dims = [images.count as i64, shape.channels, shape.height, shape.width];
        let tensor = Tensor::f_from_data_size(&images.pixels, &dims, Kind::Uint8)?;
        let images =
            tensor.f_to_device(device).with_context(|| format!("moving {} images to the device", images.count))?;
        Ok(Dataset { images, shape })
    }

    /// N.
    pub fn len(&self) -> usize {
        self.images.size()[0] as usize
    }

    /// Whether there is no image at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shape of each image.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Images number `from` to `from + count` as they stand, fewer at the end: x [B,C,H,W] in [0,1].
    ///
    /// # Errors
    /// libtorch's.
    pub fn range(&self, from: usize, count: usize) -> Result<Tensor> {
        let to = self.len().min(from.saturating_add(count)).max(from);
        self.gather(&Tensor::f_arange_start(from as i64, to as i64, (Kind::Int64, self.images.device()))?)
    }

    /// At most `n` images evenly spread over the set, fewer when they are large (2^24 pixels in all), at least four:
    /// x [B,C,H,W] in [0,1].
    ///
    /// # Errors
    /// libtorch's.
    pub fn spread(&self, n: usize) -> Result<Tensor> {
        let index: Vec<i64> = images::spread(self.len(), self.showable(n)).into_iter().map(|i| i as i64).collect();
        self.gather(&Tensor::f_from_slice(&index)?.f_to_device(self.images.device())?)
    }

    /// How many of `n` images of this shape make a picture of at most 2^24 pixels; at least four.
    pub fn showable(&self, n: usize) -> usize {
        let pixels = (self.shape.height * self.shape.width).max(1) as usize;
        n.min(((1 << 24) / pixels).max(4))
    }

    /// The images that `index` [B] (int64, on the device) names: x [B,C,H,W] in [0,1].
    ///
    /// # Errors
    /// libtorch's.
    pub fn gather(&self, index: &Tensor) -> Result<Tensor> {
        // Division turns bytes into floats by itself: on a GPU two launches, one for the bytes of the batch.
        Ok(self.images.f_index_select(0, index)?.f_div_scalar(255.0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(spec: &str) -> Settings {
        Settings { data: Some(spec.into()), train_limit: Some(40), test_limit: Some(7), ..Settings::default() }
    }

    #[test]
    fn batches_are_the_images_divided_by_255() {
        let source = open(&settings("digits")).unwrap();
        assert_eq!((source.train.count, source.test.count), (40, 7));
        let data = Dataset::new(&source.train, Device::Cpu).unwrap();
        let x = data.gather(&Tensor::from_slice(&[3i64, 0, 39])).unwrap();
        assert_eq!(x.size(), [3, 1, 28, 28]);
        let floats = Vec::<f32>::try_from(x.get(0).flatten(0, -1)).unwrap();
        let want: Vec<f32> = source.train.pixels[3 * 784..4 * 784].iter().map(|&b| f32::from(b) / 255.0).collect();
        assert_eq!(floats, want);
        assert_eq!(data.range(38, 128).unwrap().size()[0], 2, "the last partial batch is kept");
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
        let sized = Settings { image_size: Some("32".into()), ..settings("digits") };
        assert!(open(&sized).unwrap_err().to_string().contains("--image-size"));
    }
}
