//! Random forests (Breiman 2001) on a few codes: how important each code is for a target, and how well they predict it.
//!
//! Trees are grown by the largest decrease of the squared error, which for classes coded as 0 and 1 is that of the Gini impurity. Split
//! points lie between 256 bins of a code that hold equally many points.

use crate::base::seed::Rng;

/// Trees, each on a bootstrap sample.
const TREES: usize = 10;
/// Splits from the root to a leaf.
const DEPTH: usize = 12;
/// Fewest points of a leaf.
const LEAF: usize = 5;
/// Most bins of a code.
const BINS: usize = 256;

/// What is predicted for each point.
pub(super) enum Target {
    /// Classes below a number.
    Classes(Vec<usize>, usize),
    /// Numbers.
    Values(Vec<f64>),
}

impl Target {
    /// Numbers that a leaf holds: shares of the classes, or the mean.
    fn width(&self) -> usize {
        match self {
            Target::Classes(_, count) => *count,
            Target::Values(_) => 1,
        }
    }

    /// Adds a point to sums of `width` numbers.
    fn add(&self, i: usize, sums: &mut [f64]) {
        match self {
            Target::Classes(of, _) => sums[of[i]] += 1.0,
            Target::Values(values) => sums[0] += values[i],
        }
    }
}

/// Trees for one target.
pub(super) struct Forest {
    trees: Vec<Tree>,
    /// Share of each code in the decrease of the impurity, mean over trees that split; zeros if none did.
    pub(super) importances: Vec<f64>,
    /// Upper ends of the bins of each code, all but the last.
    edges: Vec<Vec<f64>>,
}

/// How trees are grown.
#[derive(Clone, Copy)]
struct Growth {
    trees: usize,
    bootstrap: bool,
    depth: usize,
    leaf: usize,
}

impl Forest {
    /// Grows a forest on the `points` of codes [Z][N].
    pub(super) fn grow(codes: &[Vec<f64>], target: &Target, points: &[usize], seed: u64) -> Self {
        Self::grow_by(codes, target, points, seed, Growth { trees: TREES, bootstrap: true, depth: DEPTH, leaf: LEAF })
    }

    fn grow_by(codes: &[Vec<f64>], target: &Target, points: &[usize], seed: u64, growth: Growth) -> Self {
        let edges: Vec<Vec<f64>> = codes.iter().map(|code| edges(points.iter().map(|i| code[*i]).collect())).collect();
        let bins: Vec<Vec<u8>> = codes.iter().zip(&edges).map(|(code, edges)| binned(code, edges)).collect();
        let (rng, order) = (Rng::new(seed), (0..codes.len()).collect());
        let mut grower = Grower { bins: &bins, target, growth, rng, order, nodes: Vec::new(), decrease: Vec::new() };
        let mut forest = Forest { trees: Vec::new(), importances: vec![0.0; codes.len()], edges };
        for _ in 0..growth.trees {
            let mut sample: Vec<usize> = match growth.bootstrap {
                true => points.iter().map(|_| points[grower.rng.below(points.len() as u64) as usize]).collect(),
                false => points.to_vec(),
            };
            grower.decrease = vec![0.0; codes.len()];
            grower.grow(&mut sample, growth.depth);
            let total: f64 = grower.decrease.iter().sum();
            if total > 0.0 {
                forest.importances.iter_mut().zip(&grower.decrease).for_each(|(sum, of)| *sum += of / total);
            }
            forest.trees.push(Tree(std::mem::take(&mut grower.nodes)));
        }
        let total: f64 = forest.importances.iter().sum();
        forest.importances.iter_mut().for_each(|of| *of /= total.max(f64::MIN_POSITIVE));
        forest
    }

    /// On these points: R², 0 at the least, of numbers; accuracy of classes.
    pub(super) fn quality(&self, codes: &[Vec<f64>], target: &Target, points: &[usize]) -> f64 {
        let bins: Vec<Vec<u8>> = codes.iter().zip(&self.edges).map(|(code, edges)| binned(code, edges)).collect();
        let predict = |i: usize| {
            let mut sums = vec![0.0; target.width()];
            for tree in &self.trees {
                sums.iter_mut().zip(tree.predict(&bins, i)).for_each(|(sum, v)| *sum += v / self.trees.len() as f64);
            }
            sums
        };
        let n = points.len() as f64;
        match target {
            Target::Classes(of, _) => {
                let best =
                    |sums: &[f64]| (0..sums.len()).fold(0, |best, c| if sums[c] > sums[best] { c } else { best });
                points.iter().filter(|i| best(&predict(**i)) == of[**i]).count() as f64 / n
            }
            Target::Values(values) => {
                let mean = points.iter().map(|i| values[*i]).sum::<f64>() / n;
                let variance: f64 = points.iter().map(|i| (values[*i] - mean).powi(2)).sum();
                let error: f64 = points.iter().map(|i| (values[*i] - predict(*i)[0]).powi(2)).sum();
                if variance > 0.0 { (1.0 - error / variance).max(0.0) } else { 0.0 }
            }
        }
    }
}

/// Ends of at most [`BINS`] bins of equally many points, between different values; one bin for each value if they are few.
fn edges(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let mut distinct = values.clone();
    distinct.dedup();
    if distinct.len() > BINS {
        distinct = (1..=BINS).map(|i| values[(i * n / BINS).max(1) - 1]).collect();
        distinct.dedup();
    }
    distinct.pop();
    distinct
}

/// The bin of each value: the number of edges below it.
fn binned(code: &[f64], edges: &[f64]) -> Vec<u8> {
    code.iter().map(|v| edges.partition_point(|edge| edge < v) as u8).collect()
}

/// The root is the first node.
struct Tree(Vec<Node>);

enum Node {
    /// Points whose `code` is in a bin up to `last` go to the node `left`, the others to `right`.
    Split { code: usize, last: u8, left: usize, right: usize },
    /// Means of the target.
    Leaf(Vec<f64>),
}

impl Tree {
    fn predict(&self, bins: &[Vec<u8>], i: usize) -> &[f64] {
        let mut at = 0;
        loop {
            match &self.0[at] {
                Node::Split { code, last, left, right } => at = if bins[*code][i] <= *last { *left } else { *right },
                Node::Leaf(means) => return means,
            }
        }
    }
}

/// Grows one tree after another.
struct Grower<'a> {
    bins: &'a [Vec<u8>],
    target: &'a Target,
    growth: Growth,
    rng: Rng,
    /// The codes in the order in which a node tries them.
    order: Vec<usize>,
    /// Of the tree that grows.
    nodes: Vec<Node>,
    /// Decrease of the squared error by each code.
    decrease: Vec<f64>,
}

/// Σ s² / n: the squared error that the mean of n points takes away.
fn explained(sums: &[f64], n: f64) -> f64 {
    sums.iter().map(|s| s * s).sum::<f64>() / n
}

impl Grower<'_> {
    /// Grows the node of these points and those below it; returns its number.
    fn grow(&mut self, points: &mut [usize], depth: usize) -> usize {
        let (width, n) = (self.target.width(), points.len() as f64);
        let mut sums = vec![0.0; width];
        points.iter().for_each(|i| self.target.add(*i, &mut sums));
        let here = self.nodes.len();
        self.nodes.push(Node::Leaf(sums.iter().map(|s| s / n).collect()));
        let may_split = depth > 0 && points.len() >= 2 * self.growth.leaf;
        if let Some((gain, code, last)) = may_split.then(|| self.best_split(points, &sums)).flatten() {
            self.decrease[code] += gain;
            let bins = &self.bins[code];
            points.sort_unstable_by_key(|i| bins[*i] > last);
            let middle = points.partition_point(|i| bins[*i] <= last);
            let (left, right) = points.split_at_mut(middle);
            let (left, right) = (self.grow(left, depth - 1), self.grow(right, depth - 1));
            self.nodes[here] = Node::Split { code, last, left, right };
        }
        here
    }

    /// The split that decreases the squared error most: by how much, of which code, and its last bin on the left.
    fn best_split(&mut self, points: &[usize], sums: &[f64]) -> Option<(f64, usize, u8)> {
        let (width, n, leaf) = (sums.len(), points.len(), self.growth.leaf);
        // Of codes that split equally well, each is taken equally often.
        for i in 1..self.order.len() {
            self.order.swap(i, self.rng.below(i as u64 + 1) as usize);
        }
        let whole = explained(sums, n as f64);
        // Smaller gains are rounding.
        let (mut most, mut best) = (1e-9 * whole, None);
        let mut table = vec![0.0; BINS * width];
        for &code in &self.order {
            let mut counts = [0usize; BINS];
            table.fill(0.0);
            for i in points {
                let bin = usize::from(self.bins[code][*i]);
                counts[bin] += 1;
                self.target.add(*i, &mut table[bin * width..][..width]);
            }
            let (mut count, mut left) = (0, vec![0.0; width]);
            for bin in (0..BINS).filter(|bin| counts[*bin] > 0) {
                count += counts[bin];
                left.iter_mut().zip(&table[bin * width..]).for_each(|(sum, v)| *sum += v);
                if count < leaf || n - count < leaf {
                    continue;
                }
                let right: Vec<f64> = sums.iter().zip(&left).map(|(all, left)| all - left).collect();
                let gain = explained(&left, count as f64) + explained(&right, (n - count) as f64) - whole;
                if gain > most {
                    (most, best) = (gain, Some((gain, code, bin as u8)));
                }
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten trees' work by one, on all points.
    const ONE: Growth = Growth { trees: 1, bootstrap: false, depth: 3, leaf: 1 };

    #[test]
    fn a_tree_is_the_one_that_is_worked_out_by_hand() {
        // y = 4·[a > 1] + [b > 0]: a takes 16·¼ of the variance of each point away, b ¼.
        let a: Vec<f64> = (0..8).map(|i| f64::from(i / 2)).collect();
        let b: Vec<f64> = (0..8).map(|i| f64::from(i % 2)).collect();
        let y = a.iter().zip(&b).map(|(a, b)| 4.0 * f64::from(*a > 1.0) + b).collect();
        let (codes, target, all) = ([b, a, vec![7.0; 8]], Target::Values(y), (0..8).collect::<Vec<_>>());
        let forest = Forest::grow_by(&codes, &target, &all, 0, ONE);
        let want = [0.25 / 4.25, 4.0 / 4.25, 0.0];
        assert!(forest.importances.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{:?}", forest.importances);
        assert!((forest.quality(&codes, &target, &all) - 1.0).abs() < 1e-12);
        let classes = Target::Classes(vec![0, 0, 2, 2, 1, 1, 1, 1], 3);
        let forest = Forest::grow_by(&codes, &classes, &all, 0, ONE);
        assert!((forest.importances[1] - 1.0).abs() < 1e-12);
        assert!((forest.quality(&codes, &classes, &all) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn bins_hold_equally_many_points_and_never_part_equal_values() {
        assert_eq!(edges(vec![3.0, 1.0, 3.0, 2.0]), [1.0, 2.0]);
        assert_eq!(binned(&[0.0, 1.0, 1.5, 2.0, 9.0], &[1.0, 2.0]), [0, 0, 1, 1, 2]);
        let even = edges((0..25600).map(f64::from).collect());
        assert_eq!((even.len(), even[0], even[254]), (255, 99.0, 25499.0));
        assert!(edges(vec![5.0; 100]).is_empty());
    }
}
