//! The Fréchet distance between Gaussians fitted to two sets of features.
//!
//! d² = ‖μ₁ − μ₂‖² + tr S₁ + tr S₂ − 2 tr (S₁½ S₂ S₁½)½ (Dowson and Landau 1982; as a score of images Heusel et al. 2017,
//! 1706.08500, eq. 6). With Inception features it is the FID.

use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

use super::features::Features;

/// Rows that are converted to float64 at a time: 64 MB at 2,048 features.
const CHUNK: usize = 4096;
/// Columns of the scatter matrix that one product computes.
const COLUMNS: usize = 512;

/// Mean and covariance of features that come in batches, in float64; memory O(D²) for any number of images.
#[derive(Debug)]
pub struct Statistics {
    count: usize,
    /// [D]
    mean: Tensor,
    /// Sum of the outer products of the deviations from the mean [D,D]; what is below the diagonal is not kept.
    scatter: Tensor,
}

impl Statistics {
    /// Of no image yet, for `dims` features.
    ///
    /// # Errors
    /// When `dims` is 0 or memory ends.
    pub fn new(dims: usize) -> Result<Self> {
        ensure!(dims > 0, "statistics of 0 features were asked for, wanted at least 1");
        let options = (Kind::Double, Device::Cpu);
        let d = i64::try_from(dims)?;
        Ok(Statistics { count: 0, mean: Tensor::f_zeros([d], options)?, scatter: Tensor::f_zeros([d, d], options)? })
    }

    /// Of a whole array [N,D], float32 on the CPU.
    ///
    /// # Errors
    /// As [`Statistics::add`].
    pub fn of(features: &Tensor) -> Result<Self> {
        let mut all = Statistics::new(usize::try_from(features.size().last().copied().unwrap_or(0))?)?;
        all.add(features)?;
        Ok(all)
    }

    /// Statistics that were kept: the number of images, [`mean`](Statistics::mean) and [`covariance`](Statistics::covariance).
    ///
    /// # Errors
    /// When the shapes are not [D] and [D,D], a value is not finite, or fewer than 2 images are told.
    pub fn restore(count: usize, mean: &Tensor, covariance: &Tensor) -> Result<Self> {
        let d = mean.numel() as i64;
        ensure!(
            count >= 2 && d > 0 && mean.size() == [d] && covariance.size() == [d, d],
            "kept statistics are of {count} images with a mean {:?} and a covariance {:?}, wanted at least 2 images, [D] and [D,D]: \
             compute them again",
            mean.size(),
            covariance.size()
        );
        let keep = |t: &Tensor| t.detach().f_to_device(Device::Cpu)?.f_to_kind(Kind::Double);
        let (mean, covariance) = (keep(mean)?, keep(covariance)?);
        for part in [&mean, &covariance] {
            ensure!(
                number(&part.f_sum(Kind::Double)?)?.is_finite(),
                "kept statistics are not finite: compute them again"
            );
        }
        Ok(Statistics { count, mean, scatter: covariance.f_mul_scalar(count as f64 - 1.0)? })
    }

    /// Adds a batch [B,D], float32 on the CPU; B may be 0.
    ///
    /// Deviations are taken from the batch's own mean and then shifted (Chan, Golub and LeVeque 1983, eq. 2.1), so features with a
    /// mean far from 0 lose no digits.
    ///
    /// # Errors
    /// When the batch is not such an array, has another D, or a value that is not finite.
    pub fn add(&mut self, batch: &Tensor) -> Result<()> {
        let batch = Features::new("added", batch, 0)?;
        ensure!(
            batch.d == self.dims(),
            "the added features have {} columns and the ones before {}, wanted the same number: compute all with one feature \
             extractor",
            batch.d,
            self.dims()
        );
        for start in (0..batch.n).step_by(CHUNK) {
            let rows = CHUNK.min(batch.n - start);
            let mut x = batch.tensor().f_narrow(0, start as i64, rows as i64)?.f_to_kind(Kind::Double)?; // [B,D]
            let mean = x.f_mean_dim(0i64, false, Kind::Double)?; // [D]
            let _ = x.f_sub_(&mean)?;
            let (before, added) = (self.count as f64, rows as f64);
            let shift = mean.f_sub(&self.mean)?; // [D]
            // The blocks on and above the diagonal: five eighths of the work at 2,048 features.
            for column in (0..self.dims()).step_by(COLUMNS) {
                let width = COLUMNS.min(self.dims() - column);
                let (right, above) = (x.f_narrow(1, column as i64, width as i64)?, (column + width) as i64);
                let product = x.f_narrow(1, 0, above)?.f_tr()?.f_matmul(&right)?;
                let mut part = self.scatter.f_narrow(0, 0, above)?.f_narrow(1, column as i64, width as i64)?;
                let _ = part.f_add_(&product)?;
            }
            let _ = self.scatter.f_add_(&shift.f_outer(&shift)?.f_mul_scalar(before * added / (before + added))?)?;
            self.mean = self.mean.f_add(&shift.f_mul_scalar(added / (before + added))?)?;
            self.count += rows;
        }
        Ok(())
    }

    /// Images so far.
    pub fn count(&self) -> usize {
        self.count
    }

    /// D, the features of an image.
    pub fn dims(&self) -> usize {
        self.mean.numel()
    }

    /// The mean, float64 [D].
    pub fn mean(&self) -> &Tensor {
        &self.mean
    }

    /// The unbiased covariance (divisor N − 1), float64 [D,D].
    ///
    /// # Errors
    /// With fewer than 2 images, which have none.
    pub fn covariance(&self) -> Result<Tensor> {
        ensure!(
            self.count >= 2,
            "a covariance of {} images was asked for, wanted at least 2: give more images",
            self.count
        );
        let upper = self.scatter.f_triu(0)?;
        Ok(upper.f_add(&self.scatter.f_triu(1)?.f_tr()?)?.f_div_scalar(self.count as f64 - 1.0)?)
    }
}

/// The squared Fréchet distance d² (what is called FID) between two sets of images; at least 0.
///
/// With any factors S = A Aᵀ, the eigenvalues of S₁½ S₂ S₁½ are those of B Bᵀ, B = A₁ᵀ A₂: symmetric, so that roots are never complex, and
/// of the ranks of the covariances only, so that the directions they lack add no roots of rounding errors.
///
/// The distance is biased upwards by about 1/N: compare distances of the same N only.
///
/// # Errors
/// When the numbers of features differ, a set has fewer than 2 images, or kept statistics are so large that they overflow.
pub fn distance(a: &Statistics, b: &Statistics) -> Result<f64> {
    ensure!(
        a.dims() == b.dims(),
        "one set has {} features and the other {}, wanted the same number: compute both with one feature extractor",
        a.dims(),
        b.dims()
    );
    let (cov_a, cov_b) = (a.covariance()?, b.covariance()?);
    let shift = a.mean.f_sub(&b.mean)?;
    let both = factor(&cov_a, a.count)?.f_tr()?.f_matmul(&factor(&cov_b, b.count)?)?; // [rank of a, rank of b]
    let both = if both.size()[0] > both.size()[1] { both.f_tr()? } else { both };
    let squares = both.f_matmul(&both.f_tr()?)?.f_linalg_eigvalsh("L")?;
    let trace = number(&squares.f_clamp_min(0.0)?.f_sqrt()?.f_sum(Kind::Double)?)?;
    let d2 = number(&shift.f_dot(&shift)?)? + number(&cov_a.f_trace()?)? + number(&cov_b.f_trace()?)? - 2.0 * trace;
    ensure!(
        d2.is_finite(),
        "the Fréchet distance of these statistics is {d2}, wanted a finite number: compute them again"
    );
    Ok(d2.max(0.0)) // rounding may leave less than 0
}

/// A [D,R] with A Aᵀ = S, where R is the rank of the covariance S of `count` images.
fn factor(covariance: &Tensor, count: usize) -> Result<Tensor> {
    let d = covariance.size()[0] as usize;
    // Eigenvalues below are rounding errors of zeros (as NumPy's matrix_rank counts).
    let noise = d as f64 * f64::EPSILON;
    if count > d {
        // Cholesky takes a tenth of an eigendecomposition's time, and is as exact where no pivot is near zero.
        let (lower, info) = covariance.f_linalg_cholesky_ex(false, false)?;
        let smallest = number(&lower.f_diagonal(0, 0, 1)?.f_min()?)?;
        if number(&info)? == 0.0 && smallest.powi(2) > noise * number(&covariance.f_diagonal(0, 0, 1)?.f_max()?)? {
            return Ok(lower);
        }
    }
    let (values, vectors) = covariance.f_linalg_eigh("L")?; // ascending [D], [D,D]
    let limit = noise * number(&values.f_max()?)?;
    let rank = number(&values.f_gt(limit)?.f_sum(Kind::Double)?)? as usize;
    let rank = rank.min(count - 1) as i64;
    let top = |t: &Tensor, dim: i64| t.f_narrow(dim, d as i64 - rank, rank);
    Ok(top(&vectors, 1)?.f_mul(&top(&values, 0)?.f_sqrt()?)?)
}

fn number(t: &Tensor) -> Result<f64> {
    Ok(f64::try_from(t)?)
}
