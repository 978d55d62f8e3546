//! A set of images in memory, as bytes.

use std::ops::{Deref, Range};
use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};
use rayon::prelude::*;
use tch::Tensor;

use super::cache::Mapped;
use super::layout::Split;
use super::subset::Subset;
use crate::base::seed::{Rng, Stream, seed_for};
use crate::base::shape::Shape;
use crate::base::usage::usage;

/// Class numbers are below this.
pub const MOST_CLASSES: u32 = 1 << 16;

/// Bytes that several sets share; a clone copies none.
#[derive(Clone, Debug)]
pub enum Pixels {
    /// A range of bytes in memory.
    Memory(Arc<Vec<u8>>, Range<usize>),
    /// Some images of a mapped file.
    Mapped(Arc<Mapped>, Range<usize>),
}

impl Pixels {
    /// The mapped file of a set that may not fit into memory, and its first image that belongs to this set.
    pub fn large_file(&self) -> Option<(&Mapped, usize)> {
        match self {
            Pixels::Mapped(file, images) if file.is_large() => Some((file, images.start)),
            _ => None,
        }
    }
}

impl Deref for Pixels {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Pixels::Memory(bytes, range) => &bytes[range.clone()],
            Pixels::Mapped(file, images) => file.pixels_of(images.clone()),
        }
    }
}

impl AsRef<[u8]> for Pixels {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for Pixels {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Pixels::Memory(Arc::new(bytes), range)
    }
}

impl<T: AsRef<[u8]>> PartialEq<T> for Pixels {
    fn eq(&self, other: &T) -> bool {
        self[..] == *other.as_ref()
    }
}

/// Images as bytes, [N,C,H,W] row-major, with one class number each or none at all.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    /// N.
    pub count: usize,
    /// C: 1 (grey), 3 (red, green, blue) or 4 (with alpha).
    pub channels: usize,
    /// H in pixels.
    pub height: usize,
    /// W in pixels.
    pub width: usize,
    /// N·C·H·W bytes, 0 = black.
    pub pixels: Pixels,
    /// N class numbers; empty without labels.
    pub labels: Vec<u32>,
    /// Names of the files that they are of; empty where they are of none.
    pub names: Vec<String>,
}

impl Images {
    /// Shape of each image.
    pub fn shape(&self) -> Shape {
        Shape { channels: self.channels as i64, height: self.height as i64, width: self.width as i64 }
    }

    /// Checks that the bytes and labels fit the shape [N,C,H,W].
    ///
    /// # Errors
    /// When the number of bytes is not N·C·H·W or the number of labels is neither 0 nor N.
    pub fn new(shape: [usize; 4], pixels: impl Into<Pixels>, labels: Vec<u32>) -> Result<Self> {
        let ([count, channels, height, width], pixels) = (shape, pixels.into());
        let want = shape.iter().try_fold(1usize, |a, &b| a.checked_mul(b)).unwrap_or(usize::MAX);
        ensure!(
            pixels.len() == want,
            "{} bytes of pixels do not make {count} images of {channels}x{height}x{width}",
            pixels.len()
        );
        ensure!(
            labels.is_empty() || labels.len() == count,
            "{} labels for {count} images: there must be one for each",
            labels.len()
        );
        Ok(Images { count, channels, height, width, pixels, labels, names: Vec::new() })
    }

    /// The class numbers as a tensor: int64 [N], or [0] without labels.
    ///
    /// # Errors
    /// libtorch's, when memory ends.
    pub fn label_tensor(&self) -> Result<Tensor> {
        Ok(Tensor::f_from_slice(&self.labels.iter().map(|&label| i64::from(label)).collect::<Vec<_>>())?)
    }

    /// Makes each pixel value 0 or 255, the latter with the probability of its brightness, by the seed and the image's index.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] when the set may not fit into memory.
    pub fn binarise(&mut self, seed: u64) -> Result<()> {
        if self.pixels.large_file().is_some() {
            usage!(
                "--binarize fixed keeps all images in memory, for which there are too many: use --binarize dynamic, or --train-limit"
            );
        }
        let len = self.image_len().max(1);
        let mut pixels = self.pixels.to_vec();
        pixels.par_chunks_mut(len).enumerate().for_each(|(i, image)| {
            let mut rng = Rng::new(seed_for(seed, 0, Stream::Binarize, i as u64) as u64);
            image.iter_mut().for_each(|p| *p = if rng.below(255) < u64::from(*p) { 255 } else { 0 });
        });
        self.pixels = pixels.into();
        Ok(())
    }

    /// Bytes of one image: C·H·W.
    pub fn image_len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// `n` of the images (all if there are fewer), evenly spaced, because folders are sorted by class.
    #[must_use]
    pub fn take(self, n: usize) -> Self {
        if n >= self.count {
            return self;
        }
        self.select(&spread(self.count, n))
    }

    /// The images with these indices.
    #[must_use]
    pub fn select(&self, indices: &[usize]) -> Self {
        let len = self.image_len();
        let pixels: Vec<u8> = indices.iter().flat_map(|&i| &self.pixels[i * len..(i + 1) * len]).copied().collect();
        let labels = indices.iter().filter_map(|&i| self.labels.get(i)).copied().collect();
        let names = indices.iter().filter_map(|&i| self.names.get(i)).cloned().collect();
        Images { count: indices.len(), pixels: pixels.into(), labels, names, ..*self }
    }

    /// The first `n` images and the others; no byte is copied.
    pub fn split_at(self, n: usize) -> (Self, Self) {
        let part = |range: Range<usize>| {
            let bytes = range.start * self.image_len()..range.end * self.image_len();
            let pixels = match &self.pixels {
                Pixels::Memory(all, within) => {
                    Pixels::Memory(all.clone(), within.start + bytes.start..within.start + bytes.end)
                }
                Pixels::Mapped(file, images) => {
                    Pixels::Mapped(file.clone(), images.start + range.start..images.start + range.end)
                }
            };
            let labels = self.labels.get(range.clone()).unwrap_or_default().to_vec();
            let names = self.names.get(range.clone()).unwrap_or_default().to_vec();
            Images { count: range.len(), pixels, labels, names, ..self }
        };
        (part(0..n), part(n..self.count))
    }

    /// These images, then those of a set of the same shape.
    ///
    /// # Errors
    /// When the shapes differ, or only one has labels.
    pub fn followed_by(&self, other: &Images) -> Result<Self> {
        let shape = |i: &Images| [i.channels, i.height, i.width];
        let (a, b) = (shape(self), shape(other));
        ensure!(a == b, "images of {a:?} and of {b:?} (channels, height, width) are not one set");
        let labels = [&self.labels[..], &other.labels].concat();
        let all = Images::new(
            [self.count + other.count, a[0], a[1], a[2]],
            [&self.pixels[..], &other.pixels].concat(),
            labels,
        )?;
        Ok(Images { names: [&self.names[..], &other.names].concat(), ..all })
    }
}

/// Allocates memory for `len` bytes in all, or fails when there is not enough.
pub fn reserve(bytes: &mut Vec<u8>, len: usize) -> Result<()> {
    let reserved = bytes.try_reserve_exact(len.saturating_sub(bytes.len()));
    reserved.map_err(|_| anyhow!("{len} bytes of images do not fit into memory: use fewer or smaller images"))
}

/// `n` evenly spaced numbers of 0..count (all if there are fewer), ascending.
pub fn spread(count: usize, n: usize) -> Vec<usize> {
    let n = n.min(count);
    (0..n).map(|i| i * count / n).collect()
}

/// A training and a held-out set of the same image shape, and the names of their classes.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name: `digits`, `mnist`, or the folder.
    pub name: String,
    /// Training images.
    pub train: Images,
    /// Held-out images.
    pub test: Images,
    /// Names of the classes by number; empty without labels.
    pub classes: Vec<String>,
    /// Their checksum, where it is known already (see [`super::checksum`]).
    pub sha256: Option<String>,
}

impl Source {
    /// The part of the set that `subset` chooses; without `has_test`, `train` is all of it, and a part is held out.
    ///
    /// # Errors
    /// Those of [`Subset::choose`].
    pub fn subset(self, subset: &Subset, has_test: bool) -> Result<Source> {
        let counts = [self.train.count, self.test.count];
        if has_test
            && !subset.whole
            && subset.classes.is_empty()
            && subset.holdout.is_none()
            && counts.iter().zip(subset.limits).all(|(n, limit)| *n <= limit)
        {
            return Ok(self);
        }
        let splits = [vec![Split::Train; counts[0]], vec![Split::Test; counts[1]]].concat();
        let labels = [&self.train.labels[..], &self.test.labels].concat();
        let chosen = subset.choose(&self.name, splits.len(), (&self.classes, &labels), has_test.then_some(&splits))?;
        let part = |of: &[usize]| -> Result<Images> {
            let (train, test): (Vec<usize>, Vec<usize>) = of.iter().partition(|i| **i < counts[0]);
            let test: Vec<usize> = test.into_iter().map(|i| i - counts[0]).collect();
            let mut all = self.train.select(&train).followed_by(&self.test.select(&test))?;
            if !chosen.labels.is_empty() {
                all.labels = of.iter().map(|i| chosen.labels[*i]).collect();
            }
            Ok(all)
        };
        let [train, test] = [part(&chosen.splits[0])?, part(&chosen.splits[1])?];
        Ok(Source { name: self.name, train, test, classes: chosen.classes, sha256: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_set_is_spread_over_its_classes() {
        let set = Images::new([10, 1, 1, 2], (0..20).collect::<Vec<_>>(), vec![0, 0, 0, 0, 0, 1, 1, 1, 1, 1]).unwrap();
        let part = set.clone().take(4);
        assert_eq!(
            (part.count, part.labels, part.pixels.to_vec()),
            (4, vec![0, 0, 1, 1], vec![0, 1, 4, 5, 10, 11, 14, 15])
        );
        assert_eq!(set.clone().take(10), set);
        assert_eq!(set.clone().take(99), set);
        assert_eq!(spread(3, 3), [0, 1, 2]);
    }

    #[test]
    fn binarised_pixels_are_white_as_often_as_they_are_bright_and_follow_the_seed() {
        let set = |level: u8| Images::new([500, 1, 2, 10], vec![level; 10_000], vec![]).unwrap();
        let of = |level, seed| {
            let mut images = set(level);
            images.binarise(seed).unwrap();
            images.pixels.to_vec()
        };
        for (level, want) in [(0, 0.0), (51, 0.2), (204, 0.8), (255, 1.0)] {
            let pixels = of(level, 3);
            assert!(pixels.iter().all(|p| [0, 255].contains(p)));
            let white = pixels.iter().filter(|p| **p == 255).count() as f64 / 10_000.0;
            assert!((white - want).abs() < 0.02 && (want % 1.0 != 0.0 || white == want), "{level}: {white}");
        }
        assert_eq!(of(51, 3), of(51, 3));
        assert_ne!(of(51, 3), of(51, 4));
        assert_ne!(of(100, 3)[..20], of(100, 3)[20..40], "each image has its own");
    }
}
