//! A set of images in memory, as bytes.

use std::ops::Deref;
use std::sync::Arc;

use anyhow::{Result, ensure};
use tch::Tensor;

/// Class numbers are below this.
pub const MOST_CLASSES: u32 = 1 << 16;

/// Bytes that several sets share; a clone copies none.
#[derive(Clone, Debug)]
pub enum Pixels {
    /// In memory.
    Memory(Arc<Vec<u8>>),
}

impl Deref for Pixels {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Pixels::Memory(bytes) => bytes,
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
        Pixels::Memory(Arc::new(bytes))
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
    /// C: 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// H in pixels.
    pub height: usize,
    /// W in pixels.
    pub width: usize,
    /// N·C·H·W bytes, 0 = black.
    pub pixels: Pixels,
    /// N class numbers; empty without labels.
    pub labels: Vec<u32>,
}

impl Images {
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
        Ok(Images { count, channels, height, width, pixels, labels })
    }

    /// The class numbers as a tensor: int64 [N], or [0] without labels.
    ///
    /// # Errors
    /// libtorch's, when memory ends.
    pub fn label_tensor(&self) -> Result<Tensor> {
        Ok(Tensor::f_from_slice(&self.labels.iter().map(|&label| i64::from(label)).collect::<Vec<_>>())?)
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
        self.chosen(&spread(self.count, n))
    }

    /// The images of these numbers, in their order.
    #[must_use]
    pub fn chosen(&self, numbers: &[usize]) -> Self {
        let len = self.image_len();
        let pixels: Vec<u8> = numbers.iter().flat_map(|&i| &self.pixels[i * len..(i + 1) * len]).copied().collect();
        let labels = numbers.iter().filter_map(|&i| self.labels.get(i)).copied().collect();
        Images { count: numbers.len(), pixels: pixels.into(), labels, ..*self }
    }
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
}
