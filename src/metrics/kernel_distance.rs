//! The kernel distance: squared maximum mean discrepancy with a cubic kernel, averaged over random subsets. With Inception features
//! it is the KID (Bińkowski et al. 2018, 1801.01401, section 4).

use anyhow::{Result, ensure};
use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::features::Features;
use crate::base::seed::{Rng, Stream, named, seed_for};

/// Subsets that are averaged, and the images in each: the values of the KID's authors, and the defaults of torch-fidelity.
pub const SUBSETS: usize = 100;
/// See [`SUBSETS`].
pub const SUBSET_SIZE: usize = 1000;

/// Rows of a kernel matrix that one thread sums; fixed, so that sums are the same bits on any number of threads.
const ROWS: usize = 64;

/// Rows of a block of a symmetric kernel matrix.
const PART: usize = 250;

/// Rows of the real and of the generated features, equally many, each without repetition.
pub type Draw = [Vec<i64>; 2];

/// A kernel distance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KernelDistance {
    /// The mean of the unbiased MMD² over the subsets. Near 0, and as often below it, for images of one distribution.
    pub mean: f64,
    /// The standard deviation of the MMD² over the subsets (divisor: their number): what torch-fidelity prints after ±. It is the
    /// spread for `subset_size` images, and 0 where each subset is the whole set.
    pub std: f64,
    /// The standard error of `mean` for new draws of all images and subsets. Its square is Vₓ/n₁ + Vᵧ/n₂ + std²/subsets, with
    /// Vₓ = 4 var(h(x)), h(x) the mean of k(x,x′) less that of k(x,y): the first-order variance of a U-statistic (Sutherland et
    /// al. 2017, 1611.04488, eq. 5), n₁ and n₂ the sizes of the sets. It is too large for images of one distribution, where the first
    /// order vanishes and its estimate does not.
    pub standard_error: f64,
    /// Subsets averaged.
    pub subsets: usize,
    /// Images of each set in a subset: 1,000, or the smaller set.
    pub subset_size: usize,
}

/// The rows of all subsets, from the run's seed: [`SUBSETS`] times [`SUBSET_SIZE`] rows, or as many as the smaller set has. One
/// subset where it holds all of both sets.
pub fn draws(real: usize, generated: usize, seed: u64) -> Vec<Draw> {
    let size = SUBSET_SIZE.min(real).min(generated);
    let subsets = if real == size && generated == size { 1 } else { SUBSETS };
    let rows = |n: usize, name: &str, subset: usize| {
        let mut rng = Rng::new(named(seed_for(seed, 0, Stream::Eval, subset as u64), name) as u64);
        let mut all: Vec<i64> = (0..n as i64).collect();
        for i in 0..size {
            all.swap(i, i + rng.below((n - i) as u64) as usize);
        }
        all.truncate(size);
        all.shrink_to_fit();
        all
    };
    let draw = |s| [rows(real, "kernel_distance.real", s), rows(generated, "kernel_distance.generated", s)];
    (0..subsets).map(draw).collect()
}

/// The kernel distance between real features [N,D] and generated ones [M,D], float32 on the CPU, over subsets by [`draws`].
///
/// # Errors
/// When an array is no such one, the columns differ, a value is not finite, or a set has fewer than 2 rows.
pub fn distance(real: &Tensor, generated: &Tensor, seed: u64) -> Result<KernelDistance> {
    let rows = |t: &Tensor| t.size().first().map_or(0, |&n| n as usize);
    distance_over(real, generated, &draws(rows(real), rows(generated), seed))
}

/// The kernel distance over subsets of the caller's: kernel k(x,y) = (x·y/D + 1)³, unbiased MMD² of each.
///
/// # Errors
/// As [`distance`]; also when there is no subset, one has fewer than 2 rows or not the size of the first, or a row does not exist.
pub fn distance_over(real: &Tensor, generated: &Tensor, draws: &[Draw]) -> Result<KernelDistance> {
    let sets = Features::pair(["real", "generated"], [real, generated], 2)?;
    let size = draws.first().map_or(0, |d| d[0].len());
    let exists = |d: &Draw| (0..2).all(|i| d[i].iter().all(|&r| r >= 0 && (r as usize) < sets[i].n));
    ensure!(
        size >= 2 && draws.iter().all(|d| d[0].len() == size && d[1].len() == size && exists(d)),
        "a subset of the kernel distance has fewer than 2 rows, another size, or rows that the features lack: draw all subsets with \
         one size from the rows there are"
    );
    let center = sets[0].tensor().f_mean_dim(0i64, false, Kind::Float)?; // [D]
    let shifts = [shifts(&sets[0], &center)?, shifts(&sets[1], &center)?];
    let (m, count) = (size as f64, draws.len() as f64);
    let mut values = Vec::with_capacity(draws.len());
    let mut variances = [0.0; 2]; // V of each set, summed over subsets
    for draw in draws {
        let pick = |i: usize| -> Result<Subset> {
            let mut moved = sets[i].tensor().f_index_select(0, &Tensor::f_from_slice(&draw[i])?)?;
            let _ = moved.f_sub_(&center)?;
            let shifts = draw[i].iter().map(|r| shifts[i][*r as usize]).collect();
            Ok(Subset { moved, shifts })
        };
        let [x, y] = [pick(0)?, pick(1)?];
        let within = [sums_within(&x)?, sums_within(&y)?];
        let between = kernel_sums(&x, &y)?;
        let mut mmd2 = -2.0 * between[0].iter().sum::<f64>() / (m * m);
        for i in 0..2 {
            mmd2 += within[i].iter().sum::<f64>() / (m * (m - 1.0));
            let h = within[i].iter().zip(&between[i]).map(|(same, other)| same / (m - 1.0) - other / m);
            variances[i] += 4.0 * spread(h).1 * m / (m - 1.0);
        }
        values.push(mmd2);
    }
    let (mean, variance) = spread(values.iter().copied());
    let [vx, vy] = [0, 1].map(|i| variances[i] / count / sets[i].n as f64);
    let standard_error = (vx + vy + variance / count).sqrt();
    ensure!(
        mean.is_finite() && standard_error.is_finite(),
        "the kernel distance of these features overflows, wanted features that a float32 product can hold: scale them down"
    );
    Ok(KernelDistance { mean, std: variance.sqrt(), standard_error, subsets: draws.len(), subset_size: size })
}

/// Rows of a set, taken apart so that products lose no digits where the mean is far from 0: with the centre c,
/// x·y = (x − c)·(y − c) + s(x) + s(y), s(x) = x·c − c·c / 2. The first product is in float32, the rest in float64.
struct Subset {
    /// x − c [m,D]
    moved: Tensor,
    /// s(x) [m]
    shifts: Vec<f64>,
}

impl Subset {
    fn part(&self, start: usize, rows: usize) -> Result<Subset> {
        let moved = self.moved.f_narrow(0, start as i64, rows as i64)?;
        Ok(Subset { moved, shifts: self.shifts[start..start + rows].to_vec() })
    }
}

/// s(x) of all rows.
fn shifts(set: &Features, center: &Tensor) -> Result<Vec<f64>> {
    let center = Features::view("mean of the", &center.f_unsqueeze(0)?)?;
    let center = center.values();
    let dot = |row: &[f32]| row.iter().zip(center).map(|(x, c)| f64::from(*x) * f64::from(*c)).sum::<f64>();
    let half = dot(center) / 2.0;
    Ok(set.values().par_chunks(set.d).map(|row| dot(row) - half).collect())
}

/// The sums of k(x,x′) over the x′ ≠ x, for each x; by the blocks on and above the diagonal of the kernel matrix.
fn sums_within(x: &Subset) -> Result<Vec<f64>> {
    let m = x.shifts.len();
    let mut sums = vec![0.0; m];
    let mut add = |start: usize, more: &[f64]| sums[start..].iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    for start in (0..m).step_by(PART) {
        let part = x.part(start, PART.min(m - start))?;
        add(start, &kernel_sums(&part, &part)?[0]);
        let [above, part] = kernel_sums(&x.part(0, start)?, &part)?;
        add(0, &above);
        add(start, &part);
    }
    Ok(sums)
}

/// The sums of k(x,y) over the rows and over the columns of the kernel matrix, in float64; without the diagonal where `x` is `y`.
fn kernel_sums(x: &Subset, y: &Subset) -> Result<[Vec<f64>; 2]> {
    let same = std::ptr::eq(x, y);
    let dots = Features::view("product of", &x.moved.f_matmul(&y.moved.f_tr()?)?)?; // [m,m]
    let (scale, xs, ys) = (1.0 / x.moved.size()[1] as f64, &x.shifts, &y.shifts);
    let part = |(block, values): (usize, &[f32])| {
        let mut rows = Vec::with_capacity(ROWS);
        let mut columns = vec![0.0; dots.d];
        for (at, row) in values.chunks(dots.d).enumerate() {
            let i = block * ROWS + at;
            let kernel = |dot: f32, shift: f64| ((f64::from(dot) + xs[i] + shift) * scale + 1.0).powi(3);
            let mut sum = 0.0;
            for ((dot, shift), column) in row.iter().zip(ys).zip(&mut columns) {
                let k = kernel(*dot, *shift);
                sum += k;
                *column += k;
            }
            rows.push(if same { sum - kernel(row[i], ys[i]) } else { sum });
        }
        (rows, columns)
    };
    let parts: Vec<_> = dots.values().par_chunks(ROWS * dots.d).enumerate().map(part).collect();
    let mut columns = vec![0.0; dots.d];
    for (_, more) in &parts {
        columns.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    }
    Ok([parts.into_iter().flat_map(|(rows, _)| rows).collect(), columns])
}

/// Mean and variance (divisor n).
fn spread(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / n;
    (mean, values.map(|v| (v - mean).powi(2)).sum::<f64>() / n)
}
