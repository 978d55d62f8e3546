//! Counter-based random seeds: a function of (seed, rank, stream, step), without state to save in a checkpoint.
//!
//! All random numbers of a run (initial weights, order of the images, noise) are seeded by [`seed_for`], so a resumed run draws
//! the same numbers as an uninterrupted one.

use std::collections::BTreeMap;

/// The use of a random stream. Streams are independent, so a new one changes no other. The discriminants are part of the format
/// of a run: never renumber them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Initial weights (step 0).
    Init = 1,
    /// Order of the training images (step = epoch).
    Order = 2,
    /// Noise of a training step (step = global step).
    Noise = 3,
    /// Noise of held-out evaluation (step = index of the batch, the same at every evaluation).
    Eval = 4,
    /// Noise of the sample grids (step 0: the same pictures' noise from the first epoch to the last).
    Samples = 5,
    /// The embedded digits' training split (step = index of the image).
    DigitsTrain = 6,
    /// The embedded digits' test split (step = index of the image).
    DigitsTest = 7,
    /// Seeds of the noise after a divergence (step = times that the run has gone back).
    Rollback = 8,
    /// Noise for the statistics of batch normalisation (step = index of the batch, the same at every computation).
    Statistics = 9,
    /// Black and white pixels in place of grey ones (step = index of the training image).
    Binarize = 10,
}

/// The seed of a stream at a step: SplitMix64 finalisers chained over the four numbers.
///
/// The result is never negative, because libtorch takes an `i64`.
pub fn seed_for(seed: u64, rank: u32, stream: Stream, step: u64) -> i64 {
    let mut h = mix(seed ^ 0x6761_6e76_6165_0001); // "ganvae", format 1
    for part in [u64::from(rank), stream as u64, step] {
        h = mix(h.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ part);
    }
    (h >> 1) as i64
}

/// The seed of the draw `name` under `seed`: mixed with the FNV-1a hash of the name.
pub fn named(seed: i64, name: &str) -> i64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    (mix(mix(seed as u64).wrapping_add(hash)) >> 1) as i64
}

/// The order in which epoch `epoch` visits `n` images: a permutation of 0..n.
pub fn epoch_order(seed: u64, epoch: u64, n: usize) -> Vec<i64> {
    let mut rng = Rng::new(seed_for(seed, 0, Stream::Order, epoch) as u64);
    let mut order: Vec<i64> = (0..n as i64).collect();
    shuffle(&mut order, &mut rng);
    order
}

/// The order in which epoch `epoch` visits as many images as there are `labels`, each class that has images equally often: those of a
/// large class in part, those of a small one several times.
pub fn balanced_order(seed: u64, epoch: u64, labels: &[u32]) -> Vec<i64> {
    let mut rng = Rng::new(seed_for(seed, 0, Stream::Order, epoch) as u64);
    let mut by_class = BTreeMap::<u32, Vec<i64>>::new();
    for (i, label) in labels.iter().enumerate() {
        by_class.entry(*label).or_default().push(i as i64);
    }
    let mut classes: Vec<_> = by_class.into_values().collect();
    shuffle(&mut classes, &mut rng);
    let (n, k) = (labels.len(), classes.len().max(1));
    let mut order = Vec::with_capacity(n);
    for (i, images) in classes.iter_mut().enumerate() {
        // The first classes of this epoch have one image more, where the number of images is no multiple of theirs.
        let mut left = n / k + usize::from(i < n % k);
        while left > 0 {
            shuffle(images, &mut rng);
            let some = &images[..left.min(images.len())];
            order.extend(some);
            left -= some.len();
        }
    }
    shuffle(&mut order, &mut rng);
    order
}

/// Fisher and Yates, as Durstenfeld 1964.
fn shuffle<T>(all: &mut [T], rng: &mut Rng) {
    for i in (1..all.len()).rev() {
        all.swap(i, rng.below(i as u64 + 1) as usize);
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): 64 bits of state, every seed is valid. Its values do not depend on a library version,
/// so a resumed run has the same permutations.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator whose sequence is fixed by `seed`.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// The next 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Uniform in [0, 1), 24 bits.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// Uniform in [lo, hi).
    pub fn range(&mut self, lo: f32, hi: f32) -> f32 {
        lo + (hi - lo) * self.uniform()
    }

    /// Standard normal (Box and Muller 1958; one of the pair is used).
    pub fn normal(&mut self) -> f32 {
        let u = 1.0 - self.uniform(); // (0, 1]: the logarithm is finite
        (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * self.uniform()).cos()
    }

    /// Uniform in 0..n without bias (Lemire 2019, arXiv 1805.10941); `n` of 0 gives 0.
    pub fn below(&mut self, n: u64) -> u64 {
        loop {
            let m = u128::from(self.next_u64()) * u128::from(n);
            if (m as u64) >= n.wrapping_neg().checked_rem(n).unwrap_or(0) {
                return (m >> 64) as u64;
            }
        }
    }
}

/// The finaliser of SplitMix64: a bijection of 64 bits in which every input bit moves every output bit.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_gives_the_published_sequence() {
        // First outputs for seed 1234567, as in the reference program (Vigna, splitmix64.c) and Rosetta Code.
        let mut rng = Rng::new(1_234_567);
        let got: Vec<u64> = (0..5).map(|_| rng.next_u64()).collect();
        let want = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn an_epoch_visits_every_image_once_and_epochs_differ() {
        let a = epoch_order(7, 0, 1000);
        let b = epoch_order(7, 1, 1000);
        let mut sorted = a.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<i64>>());
        assert_ne!(a, b);
        assert_eq!(a, epoch_order(7, 0, 1000));
        assert_ne!(a, epoch_order(8, 0, 1000));
    }

    #[test]
    fn a_balanced_epoch_visits_each_class_equally_often() {
        // Class 7 has 90 images, class 2 has 9, class 4 one.
        let labels: Vec<u32> = [vec![7; 90], vec![2; 9], vec![4]].concat();
        let order = balanced_order(5, 0, &labels);
        let of = |label: u32| order.iter().filter(|i| labels[**i as usize] == label).copied().collect::<Vec<_>>();
        let counts = [7, 2, 4].map(|label| of(label).len());
        assert!(order.len() == 100 && counts.iter().all(|n| [33, 34].contains(n)), "{counts:?}");
        let once: std::collections::HashSet<_> = of(7).into_iter().collect();
        assert_eq!(once.len(), counts[0], "none of a large class twice");
        for i in 90..99 {
            let times = order.iter().filter(|n| **n == i).count();
            assert!((3..=4).contains(&times), "all of a small class before one comes again: {times}");
        }
        assert_eq!(order, balanced_order(5, 0, &labels));
        assert_ne!(order, balanced_order(5, 1, &labels));
        assert!(order.windows(2).filter(|w| labels[w[0] as usize] != labels[w[1] as usize]).count() > 40, "mixed");
        assert_eq!(balanced_order(1, 0, &[]), Vec::<i64>::new());
    }

    #[test]
    fn every_part_of_the_key_changes_the_seed() {
        let base = seed_for(1, 0, Stream::Noise, 5);
        assert!(base >= 0);
        for other in [
            seed_for(2, 0, Stream::Noise, 5),
            seed_for(1, 1, Stream::Noise, 5),
            seed_for(1, 0, Stream::Eval, 5),
            seed_for(1, 0, Stream::Noise, 6),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn normals_have_the_moments_of_a_normal() {
        let mut rng = Rng::new(3);
        let n = 200_000;
        let xs: Vec<f64> = (0..n).map(|_| f64::from(rng.normal())).collect();
        let mean = xs.iter().sum::<f64>() / n as f64;
        let var = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.01 && (var - 1.0).abs() < 0.02, "mean {mean}, variance {var}");
    }
}
