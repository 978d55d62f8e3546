//! All scores of generated images on features, beside the same scores of real images.

use anyhow::Result;
use tch::Tensor;

use super::extractor::Extractor;
use super::frechet::{self, Statistics};
use super::kernel_distance::{self, KernelDistance};
use super::neighbours::{self, ManifoldScores, Memorisation, Nearest};
use crate::data::dataset::Dataset;
use crate::data::images::spread;
use crate::pictures::grid;

/// Images whose features are computed at a time.
const BATCH: usize = 64;

/// How far images are from real ones.
#[derive(Clone, Copy, Debug)]
pub struct Distances {
    /// Fréchet distance (FID).
    pub fid: f64,
    /// Kernel distance (KID).
    pub kid: KernelDistance,
    /// Precision, recall, density, coverage.
    pub manifold: ManifoldScores,
}

impl Distances {
    /// Of images whose features are `generated` [M,D] from real ones `real` [N,D].
    ///
    /// # Errors
    /// When a set has too few images, or a feature is not finite.
    pub fn between(real: &Tensor, generated: &Tensor, seed: u64) -> Result<Self> {
        Ok(Distances {
            fid: frechet_distance(real, generated)?,
            kid: kernel_distance::distance(real, generated, seed)?,
            manifold: neighbours::manifold_scores(real, generated)?,
        })
    }
}

/// The Fréchet distance alone of `generated` [M,D] from `real` [N,D].
///
/// # Errors
/// When a set has too few images, or a feature is not finite.
pub fn frechet_distance(real: &Tensor, generated: &Tensor) -> Result<f64> {
    frechet::distance(&Statistics::of(real)?, &Statistics::of(generated)?)
}

/// Features [N,D] of a set's images with these indices.
///
/// # Errors
/// libtorch's.
pub fn features_of(extractor: &Extractor, set: &Dataset, indices: &[usize]) -> Result<Tensor> {
    let mut all = Vec::new();
    for rows in indices.chunks(BATCH) {
        let index: Vec<i64> = rows.iter().map(|i| *i as i64).collect();
        let batch = set.gather(&Tensor::f_from_slice(&index)?.f_to_device(set.device())?)?;
        all.push(extractor.features(&grid::bytes(&batch.x)?)?);
    }
    Ok(Tensor::f_cat(&all, 0)?)
}

/// Features [N,D] of `count` images of any origin: `make(from, n)` gives `n` of them, [n,C,H,W] in [0,1], which are rounded to bytes.
///
/// # Errors
/// Those of `make`; libtorch's.
pub fn features_of_made(
    extractor: &Extractor,
    count: usize,
    mut make: impl FnMut(usize, usize) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut all = Vec::new();
    for from in (0..count).step_by(BATCH) {
        all.push(extractor.features(&grid::bytes(&make(from, BATCH.min(count - from))?)?)?);
    }
    Ok(Tensor::f_cat(&all, 0)?)
}

/// Features of real images, computed once for all models that are scored on them.
#[derive(Debug)]
pub struct Reference {
    /// What gives features.
    pub extractor: Extractor,
    /// Of the real images that others are compared with: [N,D].
    pub real: Tensor,
    /// Of as many real images of the other split: what a perfect model would get.
    pub other: Tensor,
    /// Indices of the real images in their split.
    pub indices: Vec<usize>,
    /// The scores of `other` against `real`.
    pub floor: Distances,
    seed: u64,
}

impl Reference {
    /// Of at most `count` images of `train` and of `test`, evenly spread, the same number of both: `on_train` says which of them models are
    /// compared with.
    ///
    /// # Errors
    /// libtorch's; when there are too few images.
    pub fn new(
        extractor: Extractor,
        (train, test): (&Dataset, &Dataset),
        on_train: bool,
        count: usize,
        seed: u64,
    ) -> Result<Self> {
        let n = count.min(train.len()).min(test.len());
        let [train_rows, test_rows] = [train, test].map(|set| spread(set.len(), n));
        let of_train = features_of(&extractor, train, &train_rows)?;
        let of_test = features_of(&extractor, test, &test_rows)?;
        let (real, other, indices) =
            if on_train { (of_train, of_test, train_rows) } else { (of_test, of_train, test_rows) };
        let floor = Distances::between(&real, &other, seed)?;
        Ok(Reference { extractor, real, other, indices, floor, seed })
    }

    /// N: real images, and generated ones that are compared with them.
    pub fn count(&self) -> usize {
        self.indices.len()
    }

    /// The scores of generated images with these features.
    ///
    /// # Errors
    /// As [`Distances::between`].
    pub fn distances(&self, generated: &Tensor) -> Result<Distances> {
        Distances::between(&self.real, generated, self.seed)
    }
}

/// All training images, in which the nearest ones are looked up.
#[derive(Debug)]
pub struct Training {
    features: Tensor,
    /// Of the held-out images of the reference.
    held_out: Nearest,
}

impl Training {
    /// All images of `train`, and the distances of the held-out images with the features `held_out` [N,D] from them.
    ///
    /// # Errors
    /// libtorch's; when there are too few images.
    pub fn new(extractor: &Extractor, train: &Dataset, held_out: &Tensor) -> Result<Self> {
        let all: Vec<usize> = (0..train.len()).collect();
        let features = features_of(extractor, train, &all)?;
        let held_out = neighbours::nearest(&features, held_out)?;
        Ok(Training { features, held_out })
    }

    /// The nearest training image of each generated one, and whether training images are repeated.
    ///
    /// # Errors
    /// As [`neighbours::nearest`].
    pub fn memorisation(&self, generated: &Tensor) -> Result<(Nearest, Memorisation)> {
        let nearest = neighbours::nearest(&self.features, generated)?;
        let found = neighbours::memorisation(&nearest, &self.held_out)?;
        Ok((nearest, found))
    }
}
