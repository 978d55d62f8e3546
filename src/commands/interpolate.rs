//! `ganvae interpolate` and `ganvae traverse`: rows of images along paths through the latent space.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use tch::{Kind, Tensor};

use crate::base::seed::{Rng, Stream, seed_for};
use crate::base::usage::usage;
use crate::config::Settings;
use crate::data::dataset::Dataset;
use crate::data::images::Images;
use crate::pictures::animation::{is_gif, write_gif};
use crate::pictures::grid;
use crate::pictures::image_writer::{Format, ImageWriter, flat};
use crate::run::trained::{BATCH, Trained, default_place};

/// Steps of a path in a still picture, and in an animation, where they are moments.
const STEPS: (i64, i64) = (10, 30);
/// Hundredths of a second that a frame is shown, and one at either end of its paths.
const SHOWN: (u16, u16) = (8, 50);

/// The way between two latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// On the arc between the two: every image on the way is as likely as its ends.
    Spherical,
    /// On the straight line between the two.
    Linear,
}

/// What `ganvae interpolate` is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Interpolation<'a> {
    /// Number of paths.
    pub rows: i64,
    /// Images of a path, both ends included; none for the default of the output's kind.
    pub steps: Option<i64>,
    /// The way between two ends.
    pub mode: Mode,
    /// The ends of row r are the images 2r and 2r + 1 of `ganvae sample` with this seed.
    pub seed: u64,
    /// Ends that are encoded held-out images of this set; the seed chooses which.
    pub data: Option<&'a str>,
    /// Where named sets are kept.
    pub data_dir: Option<&'a Path>,
    /// Where the images go; none for a grid in the run's samples/.
    pub out: Option<&'a Path>,
}

/// What `ganvae traverse` is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Traversal<'a> {
    /// Rows at the most: dimensions with the largest effect.
    pub dims: i64,
    /// Values go from −range to range.
    pub range: f64,
    /// Images of a row; none for the default of the output's kind.
    pub steps: Option<i64>,
    /// The other dimensions stay as in the first image of `ganvae sample` with this seed; none for the prior's mean.
    pub seed: Option<u64>,
    /// Where the images go; none for a grid in the run's samples/.
    pub out: Option<&'a Path>,
}

/// Draws rows of images, each on a path between two latents; gives their place.
///
/// # Errors
/// As [`Trained::open`]; when the output cannot be written; [`crate::base::usage::Usage`] for numbers out of range, another kind of
/// file, or data with a model that has no encoder.
pub fn interpolate(root: &Path, ask: Interpolation, over: &Settings) -> Result<PathBuf> {
    if !(1..=1000).contains(&ask.rows) {
        usage!("--rows {}: wanted a whole number from 1 to 1000", ask.rows);
    }
    let name = format!("interpolation-{}.png", ask.seed);
    let out = ask.out.map_or_else(|| default_place(root, "samples", &name), Path::to_owned);
    let (format, steps) = planned(&out, ask.rows, ask.steps)?;
    let trained = Trained::open(root, over)?;
    let z = match ask.data {
        None => trained.prior(ask.seed, 0, 2 * ask.rows)?,
        Some(spec) => {
            trained.check_encoder()?;
            let source = trained.source(Some(spec), ask.data_dir)?;
            let pairs = pairs(&source.test, ask.rows as usize, ask.seed);
            let test = Dataset::new(&source.test, trained.device())?;
            trained.encode(&test.gather(&Tensor::f_from_slice(&pairs)?.f_to_device(trained.device())?)?.x)?.0
        }
    };
    let ends = vectors(&z)?;
    let at = |row: usize, step: usize| {
        between(&ends[2 * row], &ends[2 * row + 1], step as f64 / (steps - 1) as f64, ask.mode)
    };
    let walk = Walk { trained: &trained, rows: ask.rows as usize, steps: steps as usize, at: &at };
    walk.show(&out, format)?;
    Ok(out)
}

/// Draws a row of images for each of the dimensions that change the image most; gives their place, and the dimensions from the
/// top row to the bottom one.
///
/// # Errors
/// As [`interpolate`].
pub fn traverse(root: &Path, ask: Traversal, over: &Settings) -> Result<(PathBuf, Vec<usize>)> {
    if !(1..=1000).contains(&ask.dims) {
        usage!("--dims {}: wanted a whole number from 1 to 1000", ask.dims);
    }
    if !(ask.range > 0.0 && ask.range <= 100.0) {
        usage!("--range {}: wanted a number above 0, at most 100 (the prior has a standard deviation of 1)", ask.range);
    }
    let name = ask.seed.map_or_else(|| "traversal.png".to_owned(), |seed| format!("traversal-{seed}.png"));
    let out = ask.out.map_or_else(|| default_place(root, "samples", &name), Path::to_owned);
    let trained = Trained::open(root, over)?;
    let (format, steps) = planned(&out, ask.dims.min(trained.latent()), ask.steps)?;
    let base = match ask.seed {
        Some(seed) => vectors(&trained.prior(seed, 0, 1)?)?.swap_remove(0),
        None => vec![0.0; trained.latent() as usize],
    };
    let value = |step: usize| ask.range * (2.0 * step as f64 / (steps - 1) as f64 - 1.0);
    let moved = |dim: usize, step: usize| {
        let mut z = base.clone();
        z[dim] = value(step) as f32;
        z
    };
    let effects = effects(&trained, steps as usize, &moved)?;
    let mut dims: Vec<usize> = (0..effects.len()).collect();
    dims.sort_by(|a, b| effects[*b].total_cmp(&effects[*a]).then(a.cmp(b)));
    dims.truncate(ask.dims as usize);
    let at = |row: usize, step: usize| moved(dims[row], step);
    Walk { trained: &trained, rows: dims.len(), steps: steps as usize, at: &at }.show(&out, format)?;
    Ok((out, dims))
}

/// The output's kind, and the steps of a path.
fn planned(out: &Path, rows: i64, steps: Option<i64>) -> Result<(Format, i64)> {
    if let Some(steps) = steps.filter(|s| !(2..=1000).contains(s)) {
        usage!("--steps {steps}: wanted a whole number from 2 to 1000, both ends included");
    }
    let steps = steps.unwrap_or(if is_gif(out) { STEPS.1 } else { STEPS.0 });
    Ok((Format::of(out, (rows * steps) as usize, true)?, steps))
}

/// For each dimension of the latent how much the image changes along its row: the variance over the steps, summed over pixels.
fn effects(trained: &Trained, steps: usize, moved: &dyn Fn(usize, usize) -> Vec<f32>) -> Result<Vec<f64>> {
    (0..trained.latent() as usize)
        .map(|dim| {
            let row: Vec<f32> = (0..steps).flat_map(|step| moved(dim, step)).collect();
            let x = trained.decode(&Tensor::f_from_slice(&row)?.f_view([steps as i64, trained.latent()])?)?;
            let spread = x.f_var_dim(&[0i64][..], false, false)?.f_sum(Kind::Double)?;
            // sync: which rows are drawn depends on it.
            Ok(spread.f_double_value(&[])?)
        })
        .collect()
}

/// Rows of a latent [N,Z] on the CPU.
fn vectors(z: &Tensor) -> Result<Vec<Vec<f32>>> {
    // sync: paths are laid on the CPU, in double precision.
    let all = Vec::<f32>::try_from(&flat(z)?)?;
    Ok(all.chunks_exact(z.size()[1] as usize).map(<[f32]>::to_vec).collect())
}

/// Rows of `steps` images each: a latent for every place.
struct Walk<'a> {
    trained: &'a Trained,
    rows: usize,
    steps: usize,
    at: &'a dyn Fn(usize, usize) -> Vec<f32>,
}

impl Walk<'_> {
    fn show(&self, out: &Path, format: Format) -> Result<()> {
        if format == Format::Gif {
            // Few enough, as `planned` saw to it, and each is decoded once for both ways.
            let mut images = Vec::new();
            self.each(|batch| {
                images.push(grid::bytes(batch)?);
                Ok(())
            })?;
            return self.animate(&Tensor::f_cat(&images, 0)?, out);
        }
        let mut sink = ImageWriter::open(out, self.rows * self.steps, self.trained.shape(), Some(self.steps))?;
        self.each(|batch| sink.push(batch))?;
        sink.finish()
    }

    /// Gives `take` all images, row by row, in batches [B,C,H,W].
    fn each(&self, mut take: impl FnMut(&Tensor) -> Result<()>) -> Result<()> {
        let (count, batch) = (self.rows * self.steps, BATCH as usize);
        for from in (0..count).step_by(batch) {
            let places = from..count.min(from + batch);
            let z: Vec<f32> = places.flat_map(|i| (self.at)(i / self.steps, i % self.steps)).collect();
            take(&self.trained.decode(&Tensor::f_from_slice(&z)?.f_view([-1, self.trained.latent()])?)?)?;
        }
        Ok(())
    }

    /// Writes all rows side by side at one step after the other: images [R·S,C,H,W].
    fn animate(&self, images: &Tensor, out: &Path) -> Result<()> {
        let (rows, steps) = (self.rows as i64, self.steps as i64);
        let size = images.size();
        let square = grid::columns_for(self.rows, size[2] as usize, size[3] as usize);
        // Without a gap at the end where a number of columns near it leaves none.
        let columns = (square..2 * square).find(|c| self.rows.is_multiple_of(*c)).unwrap_or(square);
        let frame = |step: usize| {
            let index: Vec<i64> = (0..rows).map(|row| row * steps + step as i64).collect();
            let picture = grid::draw(&images.f_index_select(0, &Tensor::f_from_slice(&index)?)?, columns)?;
            let end = step == 0 || step + 1 == self.steps;
            Ok((picture, if end { SHOWN.1 } else { SHOWN.0 }))
        };
        write_gif(out, there_and_back(self.steps).into_iter().map(frame))
    }
}

/// Steps to the other end and back, so that an animation which repeats never jumps: 0, 1, 2, 1 of three.
fn there_and_back(steps: usize) -> Vec<usize> {
    (0..steps).chain((1..steps.saturating_sub(1)).rev()).collect()
}

/// For each row the numbers of two images, of different classes where there are classes; the seed chooses.
fn pairs(images: &Images, rows: usize, seed: u64) -> Vec<i64> {
    let mut rng = Rng::new(seed_for(seed, 0, Stream::Samples, 0) as u64);
    let mut below = |n: usize| rng.below(n as u64) as usize;
    let mut pairs = Vec::new();
    for _ in 0..rows {
        let first = below(images.count);
        let class = |i: usize| images.labels.get(i);
        // Where all are of one class, any other image.
        let other: Vec<usize> = (0..images.count).filter(|&i| class(i) != class(first)).collect();
        let second = match other.len() {
            0 => (first + 1 + below(images.count.max(2) - 1)) % images.count,
            n => other[below(n)],
        };
        pairs.extend([first as i64, second as i64]);
    }
    pairs
}

/// The point at `t` in [0,1] on the way from `a` to `b`, the ends exactly.
///
/// Spherical: White 2016 (arXiv 1609.04468, section 2.1). Differs: the direction turns evenly and the length grows evenly, where
/// the paper's formula, the same for ends of one length, shoots far out between nearly opposite ends of two lengths.
pub fn between(a: &[f32], b: &[f32], t: f64, mode: Mode) -> Vec<f32> {
    if t <= 0.0 || t >= 1.0 {
        return if t <= 0.0 { a.to_vec() } else { b.to_vec() };
    }
    let wide = |v: &[f32]| v.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    let (a, b) = (wide(a), wide(b));
    let (len_a, len_b) = (length(&a), length(&b));
    let arc = (mode == Mode::Spherical && len_a > 0.0 && len_b > 0.0)
        .then(|| arc(&scaled(&a, 1.0 / len_a), &scaled(&b, 1.0 / len_b), t))
        .flatten();
    match arc {
        Some(direction) => scaled(&direction, len_a + t * (len_b - len_a)).iter().map(|x| *x as f32).collect(),
        None => a.iter().zip(&b).map(|(a, b)| (a + t * (b - a)) as f32).collect(),
    }
}

/// The direction at `t` on the great circle from direction `a` to `b`; none where they are parallel, or opposite in one
/// dimension, which has no circle.
fn arc(a: &[f64], b: &[f64], t: f64) -> Option<Vec<f64>> {
    let along: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
    // What of b is across a. Its length is the angle's sine, good to the last digit where the cosine says nothing.
    let across: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - along * a).collect();
    let sine = length(&across);
    let across = match sine > 1e-9 {
        true => scaled(&across, 1.0 / sine),
        false if along > 0.0 => return None,
        false => any_across(a)?,
    };
    let angle = sine.atan2(along) * t;
    Some(a.iter().zip(&across).map(|(a, c)| angle.cos() * a + angle.sin() * c).collect())
}

/// A direction at right angles to `a`, always the same one: of the axis that `a` points along least.
fn any_across(a: &[f64]) -> Option<Vec<f64>> {
    let least = (0..a.len()).min_by(|i, j| a[*i].abs().total_cmp(&a[*j].abs()))?;
    let across: Vec<f64> = (0..a.len()).map(|i| f64::from(u8::from(i == least)) - a[least] * a[i]).collect();
    let len = length(&across);
    (len > 1e-9).then(|| scaled(&across, 1.0 / len))
}

fn length(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn scaled(v: &[f64], by: f64) -> Vec<f64> {
    v.iter().map(|x| x * by).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn len(v: &[f32]) -> f64 {
        length(&v.iter().map(|x| f64::from(*x)).collect::<Vec<_>>())
    }

    fn normal(seed: u64, n: usize) -> Vec<f32> {
        let mut rng = Rng::new(seed);
        (0..n).map(|_| rng.normal()).collect()
    }

    #[test]
    fn both_ways_meet_their_ends_exactly() {
        let (a, b) = (normal(1, 20), normal(2, 20));
        for mode in [Mode::Spherical, Mode::Linear] {
            assert_eq!(between(&a, &b, 0.0, mode), a);
            assert_eq!(between(&a, &b, 1.0, mode), b);
            let near: f64 = between(&a, &b, 1e-6, mode).iter().zip(&a).map(|(x, y)| f64::from((x - y).abs())).sum();
            assert!(near < 1e-3, "no jump at an end: {near}");
        }
        let middle = between(&a, &b, 0.5, Mode::Linear);
        assert!(middle.iter().zip(a.iter().zip(&b)).all(|(m, (a, b))| (m - (a + b) / 2.0).abs() < 1e-6));
    }

    /// White's formula itself, sin((1−t)θ)/sin θ·a + sin(tθ)/sin θ·b, between ends of one length.
    #[test]
    fn on_a_sphere_it_is_the_papers_formula_and_never_leaves_it() {
        let b = normal(4, 64);
        let scale = len(&b);
        let a: Vec<f32> = normal(3, 64);
        let a: Vec<f32> = a.iter().map(|x| (f64::from(*x) / len(&a) * scale) as f32).collect();
        let cosine: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() / (scale * scale);
        let angle = cosine.acos();
        for t in [0.1, 0.37, 0.5, 0.9] {
            let got = between(&a, &b, t, Mode::Spherical);
            assert!((len(&got) / scale - 1.0).abs() < 1e-6);
            let (p, q) = (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin());
            for (got, (a, b)) in got.iter().zip(a.iter().zip(&b)) {
                assert!((f64::from(*got) - p * f64::from(*a) - q * f64::from(*b)).abs() < 1e-5);
            }
        }
        assert!(len(&between(&a, &b, 0.5, Mode::Linear)) < 0.9 * scale, "the straight line cuts the corner");
    }

    #[test]
    fn parallel_opposite_and_vanishing_ends_are_safe() {
        let a = vec![3.0f32, 0.0, 4.0];
        let double: Vec<f32> = a.iter().map(|x| 2.0 * x).collect();
        assert_eq!(between(&a, &double, 0.5, Mode::Spherical), [4.5, 0.0, 6.0], "parallel: the straight line");
        assert_eq!(between(&a, &a, 0.5, Mode::Spherical), a);
        // Opposite, exactly or nearly, and of two lengths: on the way the length stays between those of the ends.
        for tilt in [0.0, 1e-7, 1e-3] {
            let b = vec![-6.0f32, tilt, -8.0];
            for t in [0.01, 0.25, 0.5, 0.75, 0.99] {
                let got = between(&a, &b, t, Mode::Spherical);
                assert!((len(&got) - (5.0 + 5.0 * t)).abs() < 1e-5, "tilt {tilt}, t {t}: {got:?}");
            }
        }
        let half = between(&a, &[-3.0, 0.0, -4.0], 0.5, Mode::Spherical);
        assert!((f64::from(half[1]).abs() - 5.0).abs() < 1e-5, "at right angles to both: {half:?}");
        assert_eq!(between(&[2.0], &[-2.0], 0.5, Mode::Spherical), [0.0], "one dimension has no circle");
        assert_eq!(between(&[0.0, 0.0], &[2.0, 4.0], 0.5, Mode::Spherical), [1.0, 2.0]);
    }

    #[test]
    fn a_film_goes_there_and_back_without_showing_an_end_twice() {
        assert_eq!(there_and_back(4), [0, 1, 2, 3, 2, 1]);
        assert_eq!(there_and_back(2), [0, 1]);
    }

    #[test]
    fn pairs_are_of_two_classes_and_follow_the_seed() {
        let images = |labels: Vec<u8>| Images::new([10, 1, 1, 1], vec![0; 10], labels).unwrap();
        let labels: Vec<u8> = vec![0, 0, 0, 0, 0, 0, 0, 0, 1, 2];
        let all = pairs(&images(labels.clone()), 50, 3);
        assert_eq!(all.len(), 100);
        assert!(all.chunks(2).all(|p| labels[p[0] as usize] != labels[p[1] as usize]), "{all:?}");
        assert_eq!(all, pairs(&images(labels.clone()), 50, 3));
        assert_ne!(all, pairs(&images(labels), 50, 4));
        for labels in [vec![], vec![7; 10]] {
            let all = pairs(&images(labels), 50, 3);
            assert!(all.chunks(2).all(|p| p[0] != p[1] && (0..10).contains(&p[1])), "{all:?}");
        }
        let one = Images::new([1, 1, 1, 1], vec![0], vec![]).unwrap();
        assert_eq!(pairs(&one, 1, 0), [0, 0]);
    }
}
