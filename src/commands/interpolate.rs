//! `ganvae interpolate`: draws paths from one latent to another.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use tch::Tensor;

use super::arguments::{TrainedModel, check_range, class_number};
use super::encodings::{Encodings, of_picture, stem};
use super::latent_paths::{LatentPaths, PathOutput, one_class, vectors};
use super::print_path;
use crate::base::seed::{Rng, Stream, seed_for};
use crate::config::flags::escaped_text;
use crate::data::dataset::Dataset;
use crate::data::images::Images;
use crate::models::inversion::Search;
use crate::run::trained::Trained;

/// The path between two latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PathKind {
    /// Along the arc between them: every latent on it is as likely as the two ends.
    Spherical,
    /// Along the straight line between them.
    Linear,
}

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct Interpolate {
    #[command(flatten)]
    of: TrainedModel,
    /// Number of interpolations; each is a row of the grid
    #[arg(long, value_name = "N", default_value_t = 8)]
    rows: i64,
    /// Shape of the path between the two latents
    #[arg(long, value_enum, default_value_t = PathKind::Spherical)]
    mode: PathKind,
    /// Row r goes from image 2r to image 2r + 1 of `ganvae sample` with this seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Interpolate from this picture to that of --to
    #[arg(long, value_name = "PICTURE", requires = "to", conflicts_with_all = ["data", "rows"])]
    from: Option<PathBuf>,
    /// The picture at the other end
    #[arg(long, value_name = "PICTURE", requires = "from")]
    to: Option<PathBuf>,
    /// Class of the images of a conditional model, by name or number; of two, A,B, each row goes from class A to class B and keeps its
    /// latent [default: a class for each row in turn]
    #[arg(long, value_name = "A[,B]", conflicts_with_all = ["from", "data"])]
    class: Option<String>,
    /// Interpolate between held-out images of this data set, of different classes; --seed chooses them
    #[arg(long, value_name = "SPEC", value_parser = escaped_text())]
    data: Option<String>,
    /// Folder of the named data sets [default: the run's, $GANVAE_DATA or the user's cache]
    #[arg(long, value_name = "DIR", requires = "data")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    output: PathOutput,
}

impl Interpolate {
    pub(super) fn run(&self) -> Result<u8> {
        check_range("rows", self.rows, 1..=1000)?;
        let pictures = self.from.as_deref().zip(self.to.as_deref());
        let (rows, name) = match pictures {
            Some((from, to)) => (1, format!("{}-to-{}", stem(from), stem(to))),
            None => {
                let class =
                    self.class.as_ref().map_or_else(String::new, |class| format!("-{}", class.replace('/', "-")));
                (self.rows, format!("{}{class}", self.seed))
            }
        };
        let (out, format, steps) = self.output.resolve(&self.of, &format!("interpolation-{name}.png"), rows)?;
        let trained = self.of.open()?;
        let (z, found) = match (pictures, &self.data) {
            (Some((from, to)), _) => {
                let ((a, class_a), (b, class_b)) = (of_picture(&trained, from)?, of_picture(&trained, to)?);
                let classes = class_a.zip(class_b).map(|(a, b)| Tensor::f_cat(&[a, b], 0)).transpose()?;
                (Tensor::f_cat(&[a, b], 0)?, classes)
            }
            (None, None) => (trained.prior(self.seed, 0, 2 * rows)?, None),
            (None, Some(spec)) => {
                trained.check_latents()?;
                let source = trained.source(Some(spec), self.data_dir.as_deref(), false)?;
                let pairs = pairs(&source.test, rows as usize, self.seed);
                let test = Dataset::new(&source.test, trained.device())?;
                let x = test.gather(&Tensor::f_from_slice(&pairs)?.f_to_device(trained.device())?)?.x;
                Encodings::start(&trained, Search::default(), pairs.len()).of(&x)?
            }
        };
        let classes = self.classes(&trained, found.as_ref(), rows as usize)?;
        let changes = |row: usize| classes.as_ref().is_some_and(|ends| ends[2 * row] != ends[2 * row + 1]);
        let between_classes = self.class.is_some() && (0..rows as usize).any(changes);
        let ends = vectors(&z)?;
        let at = |step: usize| step as f64 / (steps - 1) as f64;
        let latent = |row: usize, step: usize| match between_classes {
            true => ends[2 * row].clone(),
            false => between(&ends[2 * row], &ends[2 * row + 1], at(step), self.mode),
        };
        let classes = classes.map(|ends| {
            move |row: usize, step: usize| between(&ends[2 * row], &ends[2 * row + 1], at(step), PathKind::Linear)
        });
        let classes = classes.as_ref().map(|classes| classes as &dyn Fn(usize, usize) -> Vec<f32>);
        let (rows, steps) = (rows as usize, steps as usize);
        LatentPaths { trained: &trained, rows, steps, latent: &latent, classes }.draw(&out, format)?;
        print_path(&out)
    }
}

impl Interpolate {
    /// Of a conditional model, the weights of the classes at the two ends of each row; `found` are those of given images.
    fn classes(&self, trained: &Trained, found: Option<&Tensor>, rows: usize) -> Result<Option<Vec<Vec<f32>>>> {
        // A comma may be part of a name.
        let named = |class: &String| trained.classes().is_some_and(|classes| classes.names.contains(class));
        let pair = self.class.as_ref().filter(|class| !named(class)).and_then(|class| class.split_once(','));
        let chosen = match self.class.as_ref().map(|class| (class, pair)) {
            Some((_, Some((a, b)))) => class_number(trained, Some(a))?.zip(class_number(trained, Some(b))?),
            Some((class, None)) => class_number(trained, Some(class))?.map(|class| (class, class)),
            None => None,
        };
        let Some(classes) = trained.classes() else { return Ok(None) };
        let numbers: Vec<i64> = match (chosen, found) {
            (Some((a, b)), _) => [a, b].repeat(rows),
            // sync: paths are computed on the CPU.
            (None, Some(found)) => Vec::try_from(found)?,
            (None, None) => (0..rows as i64).flat_map(|row| [row % classes.len(); 2]).collect(),
        };
        Ok(Some(numbers.into_iter().map(|class| one_class(classes.len(), class)).collect()))
    }
}

/// For each row the indices of two images, of different classes where there are labels; the seed chooses.
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

/// The point at `t` in [0,1] on the path from `a` to `b`, exact at the ends.
///
/// Spherical: White 2016 (arXiv 1609.04468, section 2.1). Differs: the angle and the length are interpolated linearly. For ends of one
/// length this is the paper's formula, which leaves the range of the lengths between nearly opposite ends of two lengths.
fn between(a: &[f32], b: &[f32], t: f64, mode: PathKind) -> Vec<f32> {
    if t <= 0.0 || t >= 1.0 {
        return if t <= 0.0 { a.to_vec() } else { b.to_vec() };
    }
    let wide = |v: &[f32]| v.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    let (a, b) = (wide(a), wide(b));
    let (len_a, len_b) = (length(&a), length(&b));
    let arc = (mode == PathKind::Spherical && len_a > 0.0 && len_b > 0.0)
        .then(|| arc(&scaled(&a, 1.0 / len_a), &scaled(&b, 1.0 / len_b), t))
        .flatten();
    match arc {
        Some(direction) => scaled(&direction, len_a + t * (len_b - len_a)).iter().map(|x| *x as f32).collect(),
        None => a.iter().zip(&b).map(|(a, b)| (a + t * (b - a)) as f32).collect(),
    }
}

/// The direction at `t` on the great circle from direction `a` to `b`; none where they are parallel, or opposite in one dimension.
fn arc(a: &[f64], b: &[f64], t: f64) -> Option<Vec<f64>> {
    let along: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
    // The part of b at right angles to a. Its length is the sine of the angle, exact where the cosine is imprecise.
    let across: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - along * a).collect();
    let sine = length(&across);
    let across = match sine > 1e-9 {
        true => scaled(&across, 1.0 / sine),
        false if along > 0.0 => return None,
        false => perpendicular(a)?,
    };
    let angle = sine.atan2(along) * t;
    Some(a.iter().zip(&across).map(|(a, c)| angle.cos() * a + angle.sin() * c).collect())
}

/// A direction at right angles to `a`, always the same one: from the axis of a's smallest component.
fn perpendicular(a: &[f64]) -> Option<Vec<f64>> {
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
        for mode in [PathKind::Spherical, PathKind::Linear] {
            assert_eq!(between(&a, &b, 0.0, mode), a);
            assert_eq!(between(&a, &b, 1.0, mode), b);
            let near: f64 = between(&a, &b, 1e-6, mode).iter().zip(&a).map(|(x, y)| f64::from((x - y).abs())).sum();
            assert!(near < 1e-3, "no jump at an end: {near}");
        }
        let middle = between(&a, &b, 0.5, PathKind::Linear);
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
            let got = between(&a, &b, t, PathKind::Spherical);
            assert!((len(&got) / scale - 1.0).abs() < 1e-6);
            let (p, q) = (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin());
            for (got, (a, b)) in got.iter().zip(a.iter().zip(&b)) {
                assert!((f64::from(*got) - p * f64::from(*a) - q * f64::from(*b)).abs() < 1e-5);
            }
        }
        assert!(len(&between(&a, &b, 0.5, PathKind::Linear)) < 0.9 * scale, "the straight line cuts the corner");
    }

    #[test]
    fn parallel_opposite_and_vanishing_ends_are_safe() {
        let a = vec![3.0f32, 0.0, 4.0];
        let double: Vec<f32> = a.iter().map(|x| 2.0 * x).collect();
        assert_eq!(between(&a, &double, 0.5, PathKind::Spherical), [4.5, 0.0, 6.0], "parallel: the straight line");
        assert_eq!(between(&a, &a, 0.5, PathKind::Spherical), a);
        // Opposite, exactly or nearly, and of two lengths: on the way the length stays between those of the ends.
        for tilt in [0.0, 1e-7, 1e-3] {
            let b = vec![-6.0f32, tilt, -8.0];
            for t in [0.01, 0.25, 0.5, 0.75, 0.99] {
                let got = between(&a, &b, t, PathKind::Spherical);
                assert!((len(&got) - (5.0 + 5.0 * t)).abs() < 1e-5, "tilt {tilt}, t {t}: {got:?}");
            }
        }
        let half = between(&a, &[-3.0, 0.0, -4.0], 0.5, PathKind::Spherical);
        assert!((f64::from(half[1]).abs() - 5.0).abs() < 1e-5, "at right angles to both: {half:?}");
        assert_eq!(between(&[2.0], &[-2.0], 0.5, PathKind::Spherical), [0.0], "one dimension has no circle");
        assert_eq!(between(&[0.0, 0.0], &[2.0, 4.0], 0.5, PathKind::Spherical), [1.0, 2.0]);
    }

    #[test]
    fn pairs_are_of_two_classes_and_follow_the_seed() {
        let images = |labels: Vec<u32>| Images::new([10, 1, 1, 1], vec![0; 10], labels).unwrap();
        let labels: Vec<u32> = vec![0, 0, 0, 0, 0, 0, 0, 0, 1, 2];
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
