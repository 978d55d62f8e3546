//! Scores by nearest neighbours: improved precision and recall, density and coverage, the nearest training image, and copying of
//! training images.
//!
//! Distances are Euclidean. Products of blocks in float32 find the pairs that matter, with a bound on their rounding error; a pair
//! that the bound leaves undecided is computed again in float64 from the differences. So every comparison is that of exact
//! distances, equal rows have the distance 0, and ties are ties; and no matrix of all pairs is held.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Result, ensure};
use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::features::Features;

/// Neighbours of improved precision and recall (Kynkäänniemi et al. 2019, 1904.06991, section 3).
pub const K_PRECISION: usize = 3;
/// Neighbours of density and coverage (Naeem et al. 2020, 2002.09797, section 4).
pub const K_DENSITY: usize = 5;

/// Products that are held at a time: 64 MB.
const BLOCK: usize = 1 << 24;

/// How the generated images lie among the real ones. A ball is around an image, as far as its k-th nearest other image of its set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ManifoldScores {
    /// Share of generated images within (distance ≤ radius, k = [`K_PRECISION`]) the ball of any real image: are they real?
    pub precision: f64,
    /// Share of real images within the ball of any generated image: is all that is real generated?
    pub recall: f64,
    /// Balls of real images (distance < radius, k = [`K_DENSITY`]) that a generated image is within, over k, on average. About 1 for
    /// images of one distribution; may exceed 1.
    pub density: f64,
    /// Share of real images with a generated image in their ball (distance < radius, k = [`K_DENSITY`]).
    pub coverage: f64,
}

/// The nearest training image of each of a list of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Nearest {
    /// Its row among the training features; the first of those equally near.
    pub index: Vec<usize>,
    /// The distance to it, in units of the features.
    pub distance: Vec<f64>,
}

/// Whether generated images repeat training images.
#[derive(Clone, Debug, PartialEq)]
pub struct Memorisation {
    /// A generated image at most this near to a training image counts as copied: the distance that [`Memorisation::RULE`] of the
    /// held-out images keep within.
    pub threshold: f64,
    /// Share of generated images counted so; about `held_out_share` where nothing is copied.
    pub share: f64,
    /// Share of held-out images counted so, which nobody can have copied. Above the rule where the data repeat themselves.
    pub held_out_share: f64,
    /// The difference of the shares over its standard error (pooled, of two independent proportions).
    pub z: f64,
    /// Whether `z` exceeds [`Memorisation::Z`]: more generated images than chance allows are as near to training images as the nearest
    /// held-out ones.
    pub flagged: bool,
}

impl Memorisation {
    /// The share of held-out images that sets the threshold.
    pub const RULE: f64 = 0.01;
    /// The z above which copying is flagged: by chance once in 700 evaluations.
    pub const Z: f64 = 3.0;
}

/// Precision, recall, density and coverage of generated features [M,D] against real ones [N,D], float32 on the CPU.
///
/// Equal to torch-fidelity 0.4.0 (precision, recall) and prdc 0.2 (density, coverage), but for ties and near ties, which rounding
/// decides there.
///
/// # Errors
/// When an array is no such one, the columns differ, a value is not finite, or a set has no more than [`K_DENSITY`] rows.
pub fn manifold_scores(real: &Tensor, generated: &Tensor) -> Result<ManifoldScores> {
    let sets = Features::pair(["real", "generated"], [real, generated], K_DENSITY.max(K_PRECISION) + 1)?;
    let [real, generated] = prepare(&sets)?;
    let [real3, real5] = radii(&real, [K_PRECISION, K_DENSITY])?;
    let [generated3] = radii(&generated, [K_PRECISION])?;
    let widest: Vec<f64> = real3.iter().zip(&real5).map(|(a, b)| a.max(*b)).collect();

    let flags: [Vec<AtomicBool>; 2] = [0, 1].map(|_| real3.iter().map(|_| AtomicBool::new(false)).collect());
    let [recalled, covered] = &flags; // real images
    let inside = for_rows(&generated, &real, |i, row| {
        let (mut precise, mut balls) = (false, 0);
        for j in 0..widest.len() {
            let (d2, error) = row.about(j);
            if d2 - error > widest[j].max(generated3[i]) {
                continue; // outside of all three balls
            }
            let clear = |radius: f64| (d2 - radius).abs() > error;
            let decided = clear(real3[j]) && clear(real5[j]) && clear(generated3[i]);
            let d2 = if decided { d2 } else { row.exact(j) };
            precise |= d2 <= real3[j];
            if d2 <= generated3[i] {
                recalled[j].store(true, Relaxed);
            }
            if d2 < real5[j] {
                covered[j].store(true, Relaxed);
                balls += 1;
            }
        }
        (precise, balls)
    })?;
    let share = |flags: &[AtomicBool]| flags.iter().filter(|f| f.load(Relaxed)).count() as f64 / flags.len() as f64;
    let m = inside.len() as f64;
    Ok(ManifoldScores {
        precision: inside.iter().filter(|(precise, _)| *precise).count() as f64 / m,
        recall: share(recalled),
        density: inside.iter().map(|(_, balls)| *balls as f64).sum::<f64>() / (K_DENSITY as f64 * m),
        coverage: share(covered),
    })
}

/// The nearest of the training features [N,D] to each row of `images` [M,D], float32 on the CPU.
///
/// # Errors
/// When an array is no such one, the columns differ, a value is not finite, or a set is empty.
pub fn nearest(training: &Tensor, images: &Tensor) -> Result<Nearest> {
    let sets = Features::pair(["training", "compared"], [training, images], 1)?;
    let [training, images] = prepare(&sets)?;
    let found = smallest(&images, &training, 1, false)?;
    let (distance, index) = found.into_iter().map(|near| (near[0].0.sqrt(), near[0].1)).unzip();
    Ok(Nearest { index, distance })
}

/// Whether the generated images repeat training images, from their nearest training images and those of held-out images.
///
/// Held-out images are as near to training images as images of the data are by chance, so that more generated images as near mean
/// copying: the idea of the three-sample test of Meehan, Chaudhuri and Dasgupta (2020, 2004.05675).
/// Differs: they compare the whole distributions of the distances, in cells; this looks at the nearest hundredth only, which a model
/// that leaves out the unusual moves less. Look at the pairs before you believe it.
///
/// # Errors
/// When a list is empty.
pub fn memorisation(generated: &Nearest, held_out: &Nearest) -> Result<Memorisation> {
    let (m, n) = (generated.distance.len(), held_out.distance.len());
    ensure!(
        m > 0 && n > 0,
        "copying was to be judged by {m} generated and {n} held-out images, wanted at least one of each"
    );
    let mut sorted = held_out.distance.clone();
    sorted.sort_unstable_by(f64::total_cmp);
    let threshold = sorted[(Memorisation::RULE * n as f64).ceil() as usize - 1];
    let count = |of: &Nearest| of.distance.iter().filter(|d| **d <= threshold).count() as f64;
    let (copied, chance) = (count(generated), count(held_out));
    let (m, n) = (m as f64, n as f64);
    let (share, held_out_share) = (copied / m, chance / n);
    let pooled = (copied + chance) / (m + n);
    let error = (pooled * (1.0 - pooled) * (1.0 / m + 1.0 / n)).sqrt();
    let z = if error > 0.0 { (share - held_out_share) / error } else { 0.0 };
    Ok(Memorisation { threshold, share, held_out_share, z, flagged: z > Memorisation::Z })
}

/// Features made ready for products of blocks: moved by a point common to both sets and scaled by a power of two, so that large means
/// cost no digits and nothing overflows.
struct Prepared<'a> {
    /// As they came, for exact distances.
    features: &'a Features,
    /// [N,D]
    moved: Tensor,
    /// ‖x‖² of each moved row, in units of the features.
    norms: Vec<f64>,
    /// 1 / scale².
    unscale: f64,
}

impl Prepared<'_> {
    fn n(&self) -> usize {
        self.features.n
    }
}

fn prepare<'a>(sets: &'a [Features; 2]) -> Result<[Prepared<'a>; 2]> {
    let most = |f: &Features| f.values().par_iter().map(|v| v.abs()).reduce(|| 0.0, f32::max);
    let most = most(&sets[0]).max(most(&sets[1]));
    // 2^-⌈log₂ most⌉, within what a float32 holds.
    let scale = if most > 0.0 { (-f64::from(most).log2().ceil()).clamp(-126.0, 126.0).exp2() } else { 1.0 };
    let unscale = scale.powi(-2);
    let center = sets[0].tensor().f_mul_scalar(scale)?.f_mean_dim(0i64, false, Kind::Float)?; // [D]
    let one = |features: &'a Features| -> Result<Prepared<'a>> {
        let mut moved = features.tensor().f_mul_scalar(scale)?;
        let _ = moved.f_sub_(&center)?;
        let rows = Features::view("moved", &moved)?;
        let square = |row: &[f32]| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() * unscale;
        let norms = rows.values().par_chunks(rows.d).map(square).collect();
        Ok(Prepared { features, moved, norms, unscale })
    };
    Ok([one(&sets[0])?, one(&sets[1])?])
}

/// The distances of one row of `a` to all rows of `b`.
struct Row<'a> {
    /// The row [D], and the rows of b [N,D], as they came.
    a: &'a [f32],
    b: &'a [f32],
    /// Products with the moved rows of b.
    dots: &'a [f32],
    norm: f64,
    norms: &'a [f64],
    unscale: f64,
    /// Bounds of the rounding error of a squared distance: relative to the sum of squared norms, and absolute.
    relative: f64,
    least: f64,
}

impl Row<'_> {
    /// The squared distance to row `j`, and a bound on its error.
    ///
    /// For any order of summation a product errs by D·u·‖x‖‖y‖, with u = 2⁻²⁴ (Higham 2002, section 3.1), and moving the rows by 4u of
    /// the same; 2‖x‖‖y‖ is at most ‖x‖² + ‖y‖².
    #[inline]
    fn about(&self, j: usize) -> (f64, f64) {
        let sum = self.norm + self.norms[j];
        (sum - 2.0 * self.unscale * f64::from(self.dots[j]), self.relative * sum + self.least)
    }

    /// The squared distance to row `j` by differences in float64: the same for (x,y) and (y,x), and 0 for equal rows.
    fn exact(&self, j: usize) -> f64 {
        const LANES: usize = 8;
        let d = self.a.len();
        let (x, y) = (self.a, &self.b[j * d..(j + 1) * d]);
        let square = |x: f32, y: f32| (f64::from(x) - f64::from(y)).powi(2);
        let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
        let rest: f64 = xs.remainder().iter().zip(ys.remainder()).map(|(x, y)| square(*x, *y)).sum();
        let mut lanes = [0.0; LANES];
        for (x, y) in xs.zip(ys) {
            for l in 0..LANES {
                lanes[l] += square(x[l], y[l]);
            }
        }
        rest + lanes.iter().sum::<f64>()
    }
}

/// What `each` gives of every row of `a`, told its number and its distances to `b`; on all cores.
fn for_rows<T: Send>(a: &Prepared, b: &Prepared, each: impl Fn(usize, &Row) -> T + Sync) -> Result<Vec<T>> {
    let (d, n, right) = (a.features.d, b.n(), b.moved.f_tr()?);
    let relative = (d as f64 + 16.0) * f64::from(f32::EPSILON) / 2.0;
    let least = d as f64 * f64::from(f32::MIN_POSITIVE) * a.unscale;
    let (a_rows, b_rows) = (a.features.values(), b.features.values());
    let (a_norms, norms, unscale) = (&a.norms, &b.norms[..], a.unscale);
    let step = (BLOCK / n).clamp(16, 2048);
    let mut all = Vec::with_capacity(a.n());
    for start in (0..a.n()).step_by(step) {
        let rows = step.min(a.n() - start);
        let dots = Features::view("product of", &a.moved.f_narrow(0, start as i64, rows as i64)?.f_matmul(&right)?)?;
        let row = |(at, dots)| {
            let i = start + at;
            let a = &a_rows[i * d..(i + 1) * d];
            each(i, &Row { a, b: b_rows, dots, norm: a_norms[i], norms, unscale, relative, least })
        };
        all.par_extend(dots.values().par_chunks(n).enumerate().map(row));
    }
    Ok(all)
}

/// The `k` smallest squared distances of each row of `a` to rows of `b`, exact and ascending, with the rows; without the row itself
/// where the sets are `same`.
fn smallest(a: &Prepared, b: &Prepared, k: usize, same: bool) -> Result<Vec<Vec<(f64, usize)>>> {
    let n = b.n();
    for_rows(a, b, |i, row| {
        let others = || (0..n).filter(|j| !same || *j != i);
        // The k-th smallest upper bound: no row whose lower bound is above it is among the k nearest.
        let mut upper = vec![f64::INFINITY; k];
        for j in others() {
            let (d2, error) = row.about(j);
            if d2 + error < upper[k - 1] {
                let at = upper.partition_point(|u| *u <= d2 + error);
                upper[at..].rotate_right(1);
                upper[at] = d2 + error;
            }
        }
        let near = |j: &usize| {
            let (d2, error) = row.about(*j);
            d2 - error <= upper[k - 1]
        };
        let mut exact: Vec<_> = others().filter(near).map(|j| (row.exact(j), j)).collect();
        exact.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        exact.truncate(k);
        exact
    })
}

/// The squared distance of each row to its k-th nearest other row, for each `k`.
fn radii<const K: usize>(set: &Prepared, ks: [usize; K]) -> Result<[Vec<f64>; K]> {
    let most = ks.into_iter().max().unwrap_or(1);
    let found = smallest(set, set, most, true)?;
    Ok(ks.map(|k| found.iter().map(|near| near[k - 1].0).collect()))
}
