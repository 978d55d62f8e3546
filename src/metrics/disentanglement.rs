//! How well latent codes separate the true factors of the images: MIG, SAP, DCI and the FactorVAE score.
//!
//! All are in [0,1], more is better, and are computed from N codes and the factors of the same N images. Continuous factors are cut
//! into [`BINS`] bins of equal width from the smallest value to the largest where a score needs classes, as codes are for MIG.

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use tch::Tensor;

use super::estimate::append;
use super::forest::{Forest, Target};
use crate::base::seed::{Rng, Stream, named};
use crate::data::digits;

/// Points that the published scores take (Chen et al. 2018).
pub const POINTS: usize = 10_000;
/// Bins of codes and of continuous factors (Chen et al. 2018; disentanglement_lib).
pub const BINS: usize = 20;
/// Fewest points: below, bins are too empty for any of the scores.
pub const FEWEST: usize = 1000;
/// Points of one vote of the FactorVAE score, and votes to learn from and to score (Kim and Mnih 2018).
const VOTE: usize = 64;
const VOTES: usize = 800;

/// One true factor of N images.
#[derive(Clone, Debug)]
pub struct Factor {
    /// Its name.
    pub name: String,
    /// Its value for each image, [N]; numbers of classes if `discrete`.
    pub values: Vec<f64>,
    /// Whether the values are classes without an order.
    pub discrete: bool,
}

/// The true factors of the images that [`digits::generate`] draws with the same arguments.
pub fn factors_of_digits(seed: u64, stream: Stream, count: usize) -> Vec<Factor> {
    let images: Vec<_> = (0..count as u64).map(|i| digits::factors(seed, stream, i).values()).collect();
    let factor = |(k, (name, discrete)): (usize, (&str, bool))| {
        let values = images.iter().map(|values| values[k]).collect();
        Factor { name: name.to_owned(), values, discrete }
    };
    digits::Factors::NAMES.into_iter().enumerate().map(factor).collect()
}

/// The scores.
#[derive(Clone, Debug)]
pub struct Scores {
    /// N.
    pub images: usize,
    /// Mutual information gap (Chen et al. 2018, arXiv 1802.04942, eq. 6): for each factor, the difference of the two largest I(code;
    /// factor) over H(factor); the mean of `mig_by_factor`.
    pub mig: f64,
    /// The gap of each factor.
    pub mig_by_factor: Vec<f64>,
    /// Separated attribute predictability (Kumar et al. 2018, arXiv 1711.00848, section 3.2): for each factor, the difference of the two
    /// best predictions from a single code; see [`sap`].
    pub sap: f64,
    /// DCI (Eastwood and Williams 2018): the importances are those of a random forest; see [`dci`].
    pub dci: Dci,
    /// FactorVAE score (Kim and Mnih 2018, arXiv 1802.05983, section 3): accuracy of the majority vote; see [`factor_vae`]. Random
    /// codes have about one over the number of factors.
    pub factor_vae: f64,
}

/// Disentanglement, completeness and informativeness (Eastwood and Williams 2018).
#[derive(Clone, Debug)]
pub struct Dci {
    /// Whether each code is important for one factor only, mean over codes weighted by importance.
    pub disentanglement: f64,
    /// Whether one code only is important for each factor, mean over factors.
    pub completeness: f64,
    /// How well the forests predict factors of images that they have not seen: R² (0 at the least) of continuous ones, accuracy of
    /// discrete ones, mean over factors.
    pub informativeness: f64,
    /// The importances [Z][F], which sum to 1 for each factor that any code predicts.
    pub importances: Vec<Vec<f64>>,
}

/// Scores codes [N,Z] against factors, each [N].
///
/// # Errors
/// When there are fewer than 1,000 points, no codes or no factors, numbers of points differ, or a value is not finite.
pub fn scores(codes: &Tensor, factors: &[Factor], seed: u64) -> Result<Scores> {
    let size = codes.size();
    ensure!(size.len() == 2 && size[1] > 0, "codes [N,Z] are wanted, found {size:?}");
    let (n, z) = (size[0] as usize, size[1] as usize);
    ensure!(n >= FEWEST, "disentanglement scores need {FEWEST} or more images, found {n}");
    ensure!(!factors.is_empty(), "disentanglement scores need at least one factor");
    let mut rows = Vec::new();
    append(&mut rows, &codes.f_reshape([-1])?)?;
    ensure!(rows.iter().all(|v| v.is_finite()), "a code is not finite: the weights are damaged or have diverged");
    let codes: Vec<Vec<f64>> = (0..z).map(|j| rows.iter().skip(j).step_by(z).copied().collect()).collect();
    for Factor { name, values, .. } in factors {
        ensure!(values.len() == n, "the factor {name} has {} values for {n} codes", values.len());
        ensure!(values.iter().all(|v| v.is_finite()), "a value of the factor {name} is not finite");
    }
    let mig_by_factor = mig(&codes, factors);
    Ok(Scores {
        images: n,
        mig: mean(&mig_by_factor),
        mig_by_factor,
        sap: sap(&codes, factors),
        dci: dci(&codes, factors, seed),
        factor_vae: factor_vae(&codes, factors, seed)?,
    })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The difference of the largest and the second largest, 0 at the least; of one number, itself.
fn gap(mut values: Vec<f64>) -> f64 {
    values.sort_by(|a, b| b.total_cmp(a));
    values[0] - values.get(1).copied().unwrap_or(0.0)
}

/// Classes 0.. of points.
struct Classes {
    of: Vec<usize>,
    count: usize,
}

impl Classes {
    /// Bins of equal width, as numpy.histogram has them: the last one contains the largest value.
    fn bins(values: &[f64]) -> Self {
        let (lo, hi) = values.iter().fold((f64::MAX, f64::MIN), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
        let scale = if hi > lo { BINS as f64 / (hi - lo) } else { 0.0 };
        Classes { of: values.iter().map(|v| (((v - lo) * scale) as usize).min(BINS - 1)).collect(), count: BINS }
    }

    /// The values of a discrete factor, or the bins of a continuous one.
    fn of(factor: &Factor) -> Self {
        if !factor.discrete {
            return Classes::bins(&factor.values);
        }
        let mut all = factor.values.clone();
        all.sort_by(f64::total_cmp);
        all.dedup();
        Classes { of: factor.values.iter().map(|v| all.partition_point(|a| a < v)).collect(), count: all.len() }
    }

    /// Numbers of points in each class of `self` [rows] and of `other` [columns].
    fn table(&self, other: &Classes) -> Vec<Vec<f64>> {
        let mut table = vec![vec![0.0; other.count]; self.count];
        self.of.iter().zip(&other.of).for_each(|(a, b)| table[*a][*b] += 1.0);
        table
    }
}

/// I(a; b) in nats.
fn mutual_information(a: &Classes, b: &Classes) -> f64 {
    let (table, n) = (a.table(b), a.of.len() as f64);
    let rows: Vec<f64> = table.iter().map(|row| row.iter().sum()).collect();
    let columns: Vec<f64> = (0..b.count).map(|j| table.iter().map(|row| row[j]).sum()).collect();
    let mut sum = 0.0;
    for (row, of_row) in table.iter().zip(rows) {
        for (both, of_column) in row.iter().zip(&columns).filter(|(both, _)| **both > 0.0) {
            sum += both / n * (both * n / (of_row * of_column)).ln();
        }
    }
    sum
}

/// The gap of each factor; 0 for one that does not vary.
fn mig(codes: &[Vec<f64>], factors: &[Factor]) -> Vec<f64> {
    let codes: Vec<Classes> = codes.iter().map(|values| Classes::bins(values)).collect();
    let of = |factor: &Factor| {
        let factor = Classes::of(factor);
        let entropy = mutual_information(&factor, &factor);
        let information = codes.iter().map(|code| mutual_information(code, &factor)).collect();
        if entropy > 0.0 { gap(information) / entropy } else { 0.0 }
    };
    factors.par_iter().map(of).collect()
}

/// For each factor, the difference of the two best codes, mean over factors. A code predicts a continuous factor as well as the square
/// of their correlation says. It predicts a discrete one by thresholds: each of its [`BINS`] bins stands for the class that has
/// the largest share of its own points there, learnt on the even points; the score is the balanced accuracy on the odd ones. Of C
/// classes the gap is 1 − 1/C at most, because a code of noise is right once in C.
///
/// Differs: Kumar et al. 2018 search the thresholds; disentanglement_lib takes a linear support vector machine, which cannot tell the
/// middle one of three classes.
fn sap(codes: &[Vec<f64>], factors: &[Factor]) -> f64 {
    let bins: Vec<Classes> = codes.iter().map(|values| Classes::bins(values)).collect();
    let of = |factor: &Factor| match factor.discrete {
        true => gap(bins.iter().map(|bins| threshold_accuracy(bins, &Classes::of(factor))).collect()),
        false => gap(codes.iter().map(|code| squared_correlation(code, &factor.values)).collect()),
    };
    mean(&factors.par_iter().map(of).collect::<Vec<_>>())
}

/// 0 where either does not vary.
fn squared_correlation(a: &[f64], b: &[f64]) -> f64 {
    let (ma, mb) = (mean(a), mean(b));
    let [mut ab, mut aa, mut bb] = [0.0; 3];
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a - ma, b - mb);
        (ab, aa, bb) = (ab + a * b, aa + a * a, bb + b * b);
    }
    if aa > 0.0 && bb > 0.0 { ab * ab / (aa * bb) } else { 0.0 }
}

fn threshold_accuracy(bins: &Classes, classes: &Classes) -> f64 {
    let half = |skip: usize| {
        let of = |c: &Classes| Classes { of: c.of.iter().skip(skip).step_by(2).copied().collect(), count: c.count };
        let table = of(bins).table(&of(classes));
        let totals: Vec<f64> = (0..classes.count).map(|c| table.iter().map(|row| row[c]).sum()).collect();
        (table, totals)
    };
    let ((learnt, sizes), (seen, totals)) = (half(0), half(1));
    let mut right = vec![0.0; classes.count];
    for (learnt, seen) in learnt.iter().zip(seen) {
        let share = |c: usize| learnt[c] / sizes[c].max(1.0);
        let class = (0..classes.count).fold(0, |best, c| if share(c) > share(best) { c } else { best });
        right[class] += seen[class];
    }
    let recalls: Vec<f64> = right.iter().zip(&totals).filter(|(_, n)| **n > 0.0).map(|(r, n)| r / n).collect();
    mean(&recalls)
}

/// A forest for each factor, on four of five points; the fifth measures how well it predicts. The importance of a code is the share of
/// the decrease of the variance (of the Gini impurity of a discrete factor) that its splits bring.
fn dci(codes: &[Vec<f64>], factors: &[Factor], seed: u64) -> Dci {
    let (held_out, learnt): (Vec<usize>, Vec<usize>) = (0..codes[0].len()).partition(|i| i % 5 == 4);
    let forest = |(k, factor): (usize, &Factor)| {
        let target = match factor.discrete {
            true => {
                let Classes { of, count } = Classes::of(factor);
                Target::Classes(of, count)
            }
            false => Target::Values(factor.values.clone()),
        };
        let forest = Forest::grow(codes, &target, &learnt, named(seed as i64, &format!("forest-{k}")) as u64);
        (forest.quality(codes, &target, &held_out), forest.importances)
    };
    let all: Vec<(f64, Vec<f64>)> = factors.par_iter().enumerate().map(forest).collect();
    let importances: Vec<Vec<f64>> = (0..codes.len()).map(|z| all.iter().map(|(_, of)| of[z]).collect()).collect();
    let total: f64 = importances.iter().flatten().sum();
    let disentangled = importances.iter().map(|row| row.iter().sum::<f64>() / total.max(1e-300) * concentration(row));
    Dci {
        disentanglement: disentangled.sum(),
        completeness: mean(&all.iter().map(|(_, column)| concentration(column)).collect::<Vec<_>>()),
        informativeness: mean(&all.iter().map(|(quality, _)| *quality).collect::<Vec<_>>()),
        importances,
    }
}

/// 1 minus the entropy of these weights relative to the largest possible; 0 without any weight, 1 for a single one.
fn concentration(weights: &[f64]) -> f64 {
    let total: f64 = weights.iter().sum();
    if total <= 0.0 {
        return 0.0;
    }
    let entropy: f64 = weights.iter().filter(|w| **w > 0.0).map(|w| -(w / total) * (w / total).ln()).sum();
    if weights.len() > 1 { 1.0 - entropy / (weights.len() as f64).ln() } else { 1.0 }
}

/// Each vote: a factor and 64 points that agree in it; the code whose variance among them, relative to that among all points, is least.
/// The classifier learns from 800 votes which factor each code stands for most often, and the score is its accuracy on 800 others.
///
/// Differs: the points of a vote are drawn from those given, not generated, so continuous factors agree to a bin. Codes that do not vary
/// cast no votes.
fn factor_vae(codes: &[Vec<f64>], factors: &[Factor], seed: u64) -> Result<f64> {
    let variance = |values: &mut dyn Iterator<Item = f64>| {
        let values: Vec<f64> = values.collect();
        let m = mean(&values);
        values.iter().map(|v| (v - m).powi(2)).sum::<f64>() / (values.len() as f64 - 1.0)
    };
    let whole: Vec<f64> = codes.iter().map(|code| variance(&mut code.iter().copied())).collect();
    if whole.iter().all(|v| *v <= 0.0) {
        return Ok(0.0);
    }
    let mut groups = Vec::new();
    for factor in factors {
        let classes = Classes::of(factor);
        let mut members = vec![Vec::new(); classes.count];
        classes.of.iter().enumerate().for_each(|(i, class)| members[*class].push(i));
        members.retain(|group| group.len() >= VOTE);
        ensure!(
            !members.is_empty(),
            "no value of the factor {} has {VOTE} points: the FactorVAE score needs more images",
            factor.name
        );
        groups.push(members);
    }
    let mut rng = Rng::new(named(seed as i64, "factor-vae") as u64);
    let mut table = vec![vec![[0usize; 2]; factors.len()]; codes.len()];
    for vote in 0..2 * VOTES {
        let k = rng.below(factors.len() as u64) as usize;
        // A value as often as the points have it.
        let mut at = rng.below(groups[k].iter().map(|g| g.len() as u64).sum()) as usize;
        let group = groups[k].iter_mut().find(|g| {
            let found = at < g.len();
            at = if found { at } else { at - g.len() };
            found
        });
        let group = group.context("a draw is below the number of points")?;
        for i in 0..VOTE {
            let other = i + rng.below((group.len() - i) as u64) as usize;
            group.swap(i, other);
        }
        let share = |z: &usize| variance(&mut group[..VOTE].iter().map(|i| codes[*z][*i])) / whole[*z];
        let shares = (0..codes.len()).filter(|z| whole[*z] > 0.0).map(|z| (z, share(&z)));
        let (code, _) = shares.min_by(|a, b| a.1.total_cmp(&b.1)).context("no code varies")?;
        table[code][k][usize::from(vote >= VOTES)] += 1;
    }
    let right = table.iter().map(|row| row.iter().max_by_key(|n| n[0]).map_or(0, |n| n[1]));
    Ok(right.sum::<usize>() as f64 / VOTES as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A class of five and four continuous factors, independent, uniform.
    fn truth(n: usize) -> Vec<Factor> {
        let mut rng = Rng::new(5);
        let of = |k: usize, rng: &mut Rng| match k {
            0 => rng.below(5) as f64,
            _ => f64::from(rng.range(-1.0, 1.0)),
        };
        let factor = |k: usize| Factor {
            name: k.to_string(),
            values: (0..n).map(|_| of(k, &mut rng)).collect(),
            discrete: k == 0,
        };
        (0..5).map(factor).collect()
    }

    fn scored(columns: &[Vec<f64>], factors: &[Factor]) -> Scores {
        let all = Tensor::stack(&columns.iter().map(|c| Tensor::from_slice(c)).collect::<Vec<_>>(), 1);
        scores(&all, factors, 3).unwrap()
    }

    fn random(n: usize, z: usize) -> Vec<Vec<f64>> {
        let mut rng = Rng::new(11);
        (0..z).map(|_| (0..n).map(|_| f64::from(rng.normal())).collect()).collect()
    }

    #[test]
    fn codes_that_are_the_factors_score_near_one() {
        let factors = truth(POINTS);
        // The sizes of codes are nothing to the scores.
        let code = |(k, f): (i32, &Factor)| f.values.iter().map(|v| 10f64.powi(k) * (3.0 - v)).collect();
        let mut codes: Vec<Vec<f64>> = (0..).zip(&factors).map(code).collect();
        codes.reverse();
        // Noise and a dead code beside them change nothing.
        codes.extend(random(POINTS, 1));
        codes.push(vec![0.5; POINTS]);
        let s = scored(&codes, &factors);
        println!("{s:?}");
        assert!(s.mig > 0.97 && s.factor_vae > 0.99);
        // The second-best code guesses one class of five: (0.8 + 4) / 5.
        assert!((s.sap - 0.96).abs() < 0.005);
        assert!(s.dci.disentanglement > 0.97 && s.dci.completeness > 0.97 && s.dci.informativeness > 0.97);
        assert!((0..5).all(|k| s.dci.importances[4 - k][k] > 0.98), "{:?}", s.dci.importances);
        assert_eq!((s.images, s.dci.importances[6].iter().sum::<f64>()), (POINTS, 0.0));
    }

    #[test]
    fn codes_that_mix_two_factors_score_low() {
        let factors = truth(POINTS)[1..].to_vec();
        let mut codes: Vec<Vec<f64>> = factors.iter().map(|f| f.values.clone()).collect();
        for pair in codes.chunks_mut(2) {
            let (a, b) = pair.split_at_mut(1);
            a[0].iter_mut().zip(&mut b[0]).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
        }
        let s = scored(&codes, &factors);
        println!("{s:?}");
        assert!(s.mig < 0.05 && s.sap < 0.05 && (0.4..0.6).contains(&s.factor_vae));
        // Each code tells of two of four factors: 1 − ln 2 / ln 4.
        assert!((s.dci.disentanglement - 0.5).abs() < 0.05 && (s.dci.completeness - 0.5).abs() < 0.05);
        assert!(s.dci.informativeness > 0.9);
    }

    #[test]
    fn codes_of_noise_score_near_zero() {
        let factors = truth(POINTS);
        let s = scored(&random(POINTS, 6), &factors);
        println!("{s:?}");
        assert!(s.mig < 0.01 && s.sap < 0.02 && (0.1..0.3).contains(&s.factor_vae));
        assert!(s.dci.disentanglement < 0.05 && s.dci.completeness < 0.05 && s.dci.informativeness < 0.1);
        let dead = scored(&[vec![1.0; POINTS], vec![2.0; POINTS]], &factors);
        assert_eq!([dead.mig, dead.sap, dead.factor_vae, dead.dci.disentanglement, dead.dci.completeness], [0.0; 5]);
    }

    #[test]
    fn the_factors_of_digits_are_those_of_their_images() {
        let (factors, images) =
            (factors_of_digits(3, Stream::DigitsTest, 50), digits::generate(3, Stream::DigitsTest, 50));
        assert_eq!(factors.len(), 9);
        assert!(factors[0].values.iter().zip(&images.labels).all(|(v, label)| *v == f64::from(*label)));
        let one = digits::factors(3, Stream::DigitsTest, 49);
        let (name, last) = (&factors[2].name, factors[2].values[49]);
        assert_eq!((name.as_str(), last, factors[2].discrete), ("thickness", f64::from(one.thickness), false));
    }

    #[test]
    fn what_cannot_be_scored_is_said() {
        let factors = truth(1000);
        let refused = |codes: &Tensor, factors: &[Factor]| scores(codes, factors, 0).unwrap_err().to_string();
        let codes = Tensor::zeros([1000, 2], (tch::Kind::Float, tch::Device::Cpu));
        assert!(refused(&codes.narrow(0, 0, 999), &factors).contains("1000 or more images, found 999"));
        assert!(refused(&codes, &[]).contains("at least one factor"));
        assert!(refused(&(&codes / 0.0), &factors).contains("not finite"));
        assert!(refused(&codes, &truth(1001)).contains("1001 values for 1000 codes"));
        assert!(refused(&codes.flatten(0, 1), &factors).contains("[N,Z]"));
    }
}
