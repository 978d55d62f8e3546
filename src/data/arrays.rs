//! Data sets that are arrays of pixels in files: IDX, CIFAR, NumPy and CSV. What they share: recognising them, the order of axes,
//! labels, and what is said about a file that is none of them.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;

use super::archive;
use super::idx::reserve;
use super::images::Images;
use super::{cifar, csv, idx, numpy, unknown};

/// A data set of one of the array formats, recognised and not yet read.
#[derive(Debug)]
pub enum ArrayKind {
    /// The format of MNIST.
    Idx(idx::Set),
    /// CIFAR-10 or CIFAR-100, binary or pickled.
    Cifar(cifar::Set),
    /// `.npy` and `.npz`.
    Numpy(numpy::Set),
    /// Rows of pixels as text.
    Csv(csv::Set),
}

/// The images of such a set.
#[derive(Clone, Debug)]
pub struct Arrays {
    /// Training images.
    pub train: Images,
    /// Held-out images of the same size; none if the set does not say which.
    pub test: Option<Images>,
    /// Names of the classes by number; empty without labels.
    pub classes: Vec<String>,
    /// What the user should know, a line each.
    pub notes: Vec<String>,
}

/// The set at `path`, a file or a folder; none if it is of no such format.
///
/// # Errors
/// When the path cannot be read, or holds several sets: names them.
pub fn recognise(path: &Path) -> Result<Option<ArrayKind>> {
    if path.is_dir() {
        if let Some(set) = idx::in_folder(path)? {
            return Ok(Some(ArrayKind::Idx(set)));
        }
        if let Some(set) = cifar::in_folder(path)? {
            return Ok(Some(ArrayKind::Cifar(set)));
        }
        if let Some(set) = numpy::in_folder(path)? {
            return Ok(Some(ArrayKind::Numpy(set)));
        }
        return Ok(csv::in_folder(path)?.map(ArrayKind::Csv));
    }
    if !path.is_file() {
        return Ok(None);
    }
    let (start, gzip) = archive::start_of(path, 512)?;
    if let Some(set) = numpy::of_file(path, if gzip { &[] } else { &start })? {
        return Ok(Some(ArrayKind::Numpy(set)));
    }
    if idx::is_idx(&start) {
        return Ok(Some(ArrayKind::Idx(idx::of_file(path))));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    if name.contains("cifar") && archive::is_archive(path)? {
        return Ok(cifar::in_archive(path)?.map(ArrayKind::Cifar));
    }
    Ok(csv::of_file(path).map(ArrayKind::Csv))
}

/// What a file is that is no data set, by its content, and what to do: one sentence without its name.
pub fn describe_unknown(path: &Path) -> String {
    unknown::describe_unknown(path)
}

impl ArrayKind {
    /// Reads the images.
    ///
    /// # Errors
    /// Those of the format: one sentence that names the file and the place in it.
    pub fn load(self) -> Result<Arrays> {
        match self {
            ArrayKind::Idx(set) => set.load(),
            ArrayKind::Cifar(set) => set.load(),
            ArrayKind::Numpy(set) => set.load(),
            ArrayKind::Csv(set) => set.load(),
        }
    }
}

/// One split as its reader gives it.
#[derive(Debug)]
pub(super) struct Split {
    /// The file or array, for messages.
    pub name: String,
    /// [N,C,H,W].
    pub shape: [usize; 4],
    /// N·C·H·W bytes.
    pub pixels: Vec<u8>,
    /// N class numbers.
    pub labels: Option<Vec<u32>>,
}

impl Arrays {
    /// A set of these splits. Labels are used if both have them; classes are named by `names`, or by their numbers.
    ///
    /// # Errors
    /// When the splits differ in the size of their images, or a class has no name.
    pub(super) fn new(
        mut train: Split,
        mut test: Option<Split>,
        names: Option<Vec<String>>,
        mut notes: Vec<String>,
    ) -> Result<Self> {
        if let Some(test) = &mut test {
            let [a, b] = [train.shape, test.shape];
            ensure!(
                a[1..] == b[1..],
                "{} holds images of {} but {} of {} (channels x height x width): training and test images must have one size, \
                 so put files of the same set together",
                train.name,
                sides(&a[1..]),
                test.name,
                sides(&b[1..])
            );
            let bare = match (&train.labels, &test.labels) {
                (Some(_), None) => Some(&test.name),
                (None, Some(_)) => Some(&train.name),
                _ => None,
            };
            if let Some(bare) = bare {
                notes.push(format!("{bare} has no labels: those of the other images are not used"));
                (train.labels, test.labels) = (None, None);
            }
        }
        let splits = [Some(&train), test.as_ref()].into_iter().flatten();
        let most = splits.filter_map(|split| split.labels.as_ref()?.iter().max()).max();
        let classes = match (most, names) {
            (None, _) => Vec::new(),
            (Some(most), None) => (0..=*most).map(|class| class.to_string()).collect(),
            (Some(most), Some(names)) => {
                let count = names.len();
                ensure!((*most as usize) < count, "{}: found label {most}, and names of {count} classes", train.name);
                names
            }
        };
        let images = |split: Split| Images::new(split.shape, split.pixels, split.labels.unwrap_or_default());
        Ok(Arrays { train: images(train)?, test: test.map(images).transpose()?, classes, notes })
    }
}

/// `1x28x28`.
pub(super) fn sides(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

/// How the numbers of an array are images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// [N,C,H,W].
    pub shape: [usize; 4],
    /// The distance of neighbours along each.
    strides: [usize; 4],
}

impl Layout {
    /// The layout of an array with these sides, in the order of C or of Fortran: N x H x W, N x H x W x C, N x C x H x W, or rows of
    /// H·W pixels of square grey images. C is 1 or 3 on one of the two places only, or else 4.
    ///
    /// # Errors
    /// What the shape is and what is wanted, as a phrase.
    pub(super) fn of(sides_of: &[usize], fortran: bool) -> Result<Self> {
        let text = format!("shape {}", sides(sides_of));
        let wanted = "wanted N x H x W, or N x H x W x C or N x C x H x W with 1, 3 or 4 channels";
        ensure!(!sides_of.contains(&0), "{text}, which holds no pixels: {wanted}");
        let product = |sides: &[usize]| sides.iter().try_fold(1usize, |a, b| a.checked_mul(*b));
        ensure!(product(sides_of).is_some(), "{text}, more than any memory holds: {wanted}");
        let mut strides = vec![1usize; sides_of.len()];
        for (i, stride) in strides.iter_mut().enumerate() {
            *stride = product(if fortran { &sides_of[..i] } else { &sides_of[i + 1..] }).unwrap_or_default();
        }
        // Four channels where neither place is 1 or 3: images of three pixels' width are rare.
        let usual = |side: usize| side == 1 || side == 3;
        let colours = |side: usize| match sides_of {
            &[_, a, _, b] if !usual(a) && !usual(b) => side == 4,
            _ => usual(side),
        };
        match (sides_of, &strides[..]) {
            (&[n, pixels], [sn, s]) => {
                let side = pixels.isqrt();
                ensure!(
                    side * side == pixels,
                    "{text}: rows of {pixels} numbers are no square grey images, so reshape it to N x H x W or N x H x W x C"
                );
                Ok(Layout { shape: [n, 1, side, side], strides: [*sn, 0, side * s, *s] })
            }
            (&[_, h, 3 | 4], _) if h >= 8 => bail!(
                "{text}, which looks like one colour picture (H x W x C): {wanted}, so stack many of them to N x H x W x C"
            ),
            (&[n, h, w], [sn, sh, sw]) => Ok(Layout { shape: [n, 1, h, w], strides: [*sn, 0, *sh, *sw] }),
            (&[n, c, h, w], [sn, sc, sh, sw]) if colours(c) && !colours(w) => {
                Ok(Layout { shape: [n, c, h, w], strides: [*sn, *sc, *sh, *sw] })
            }
            (&[n, h, w, c], [sn, sh, sw, sc]) if colours(c) && !colours(h) => {
                Ok(Layout { shape: [n, c, h, w], strides: [*sn, *sc, *sh, *sw] })
            }
            (&[_, a, _, b], _) if colours(a) && colours(b) => bail!(
                "{text}, which may be N x C x H x W as well as N x H x W x C: reshape it, so that only the channels are 1, 3 or 4"
            ),
            _ => bail!("{text}: {wanted}"),
        }
    }

    /// Grey images in the order of C, whatever their sides.
    ///
    /// # Errors
    /// When there are more numbers than any memory holds.
    pub(super) fn grey(n: usize, h: usize, w: usize) -> Result<Self> {
        let len = h.checked_mul(w).filter(|len| len.checked_mul(n).is_some()).context("more than any memory holds")?;
        Ok(Layout { shape: [n, 1, h, w], strides: [len, len, w, 1] })
    }

    /// Colours of each pixel in the order of C: N x H x W x 3.
    ///
    /// # Errors
    /// As [`Layout::grey`].
    pub(super) fn colours_last(n: usize, h: usize, w: usize) -> Result<Self> {
        let Layout { strides: [len, ..], .. } = Layout::grey(n, h, w.saturating_mul(3))?;
        Ok(Layout { shape: [n, 3, h, w], strides: [len, 1, 3 * w, 3] })
    }

    /// The same images on their side: H and W are exchanged.
    pub(super) fn transposed(self) -> Self {
        let swap = |[n, c, h, w]: [usize; 4]| [n, c, w, h];
        Layout { shape: swap(self.shape), strides: swap(self.strides) }
    }

    /// The numbers as [N,C,H,W].
    ///
    /// # Errors
    /// When they do not fit into memory twice; within an image they are moved in place.
    pub(super) fn arrange(self, mut data: Vec<u8>) -> Result<Vec<u8>> {
        let [n, c, h, w] = self.shape;
        let len = c * h * w;
        let plain = [len, h * w, w, 1];
        if (0..4).all(|i| self.shape[i] == 1 || self.strides[i] == plain[i]) {
            return Ok(data);
        }
        let [sn, sc, sh, sw] = self.strides;
        let fill = |to: &mut [u8], from: &[u8]| {
            for (i, to) in to.chunks_exact_mut(w).enumerate() {
                let row = i / h * sc + i % h * sh;
                to.iter_mut().enumerate().for_each(|(x, to)| *to = from[row + x * sw]);
            }
        };
        if n == 1 || sn == len {
            data.par_chunks_exact_mut(len).for_each_init(Vec::new, |copy, image| {
                copy.clear();
                copy.extend_from_slice(image);
                fill(image, copy);
            });
            return Ok(data);
        }
        let mut out = Vec::new();
        reserve(&mut out, data.len())?;
        out.resize(data.len(), 0);
        out.par_chunks_exact_mut(len).enumerate().for_each(|(i, image)| fill(image, &data[i * sn..]));
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_told_apart_by_the_channels() {
        // The value of a pixel is its place in the array; the wanted ones are written out by hand.
        for (sides, fortran, shape, image) in [
            (&[2, 3, 2][..], false, [2, 1, 3, 2], vec![6, 7, 8, 9, 10, 11]),
            (&[2, 3, 2], true, [2, 1, 3, 2], vec![1, 7, 3, 9, 5, 11]),
            (&[2, 4], false, [2, 1, 2, 2], vec![4, 5, 6, 7]),
            (&[2, 4], true, [2, 1, 2, 2], vec![1, 3, 5, 7]),
            (&[2, 3, 1, 2], false, [2, 3, 1, 2], vec![6, 7, 8, 9, 10, 11]),
            (&[2, 2, 1, 3], false, [2, 3, 2, 1], vec![6, 9, 7, 10, 8, 11]),
            (&[2, 2, 1, 3], true, [2, 3, 2, 1], vec![1, 3, 5, 7, 9, 11]),
            (&[2, 2, 1, 4], false, [2, 4, 2, 1], vec![8, 12, 9, 13, 10, 14, 11, 15]),
            (&[2, 2, 5, 1], false, [2, 1, 2, 5], vec![10, 11, 12, 13, 14, 15, 16, 17, 18, 19]),
        ] {
            let count: usize = sides.iter().product();
            let layout = Layout::of(sides, fortran).unwrap();
            assert_eq!(layout.shape, shape, "{sides:?}");
            let got = layout.arrange((0..count as u8).collect()).unwrap();
            assert_eq!(got[count / 2..], image[..], "{sides:?} {fortran}");
        }
        let turned = Layout::grey(1, 2, 3).unwrap().transposed();
        assert_eq!((turned.shape, turned.arrange((0..6).collect()).unwrap()), ([1, 1, 3, 2], vec![0, 3, 1, 4, 2, 5]));
    }

    #[test]
    fn other_shapes_are_refused_with_what_to_do() {
        for (sides, part) in [
            (&[10][..], "shape 10: wanted N x H x W"),
            (&[2, 2, 2, 2, 3], "shape 2x2x2x2x3: wanted"),
            (&[10, 12], "rows of 12 numbers are no square grey images, so reshape"),
            (&[32, 32, 3], "looks like one colour picture"),
            (&[5, 3, 32, 3], "may be N x C x H x W as well as"),
            (&[5, 1, 28, 1], "may be N x C x H x W as well as"),
            (&[5, 28, 28, 2], "shape 5x28x28x2: wanted"),
            (&[5, 28, 28, 7], "shape 5x28x28x7: wanted"),
            (&[5, 0, 28], "holds no pixels"),
            (&[usize::MAX, 3, 2], "more than any memory"),
        ] {
            let text = Layout::of(sides, false).unwrap_err().to_string();
            assert!(part.split(" .. ").all(|part| text.contains(part)), "{text}");
        }
    }
}
