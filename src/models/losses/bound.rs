//! What a VAE minimises: the negative ELBO, other bounds on −log p(x), and forms of the KL term.
//!
//! Everything is summed over pixels and latents and a mean over the batch, in nats.

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use crate::base::scalar::Scalar;
use crate::base::setting::{Setting, Settings};
use crate::base::usage::usage;
use crate::native::Factor;

/// The loss, from recon = −E_q[log p(x|z)] and KL = KL(q(z|x) ‖ N(0, I)); β may follow a warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// recon + β·KL (Higgins et al. 2017; β = 1: Kingma and Welling 2014, arXiv 1312.6114).
    Elbo,
    /// −E log (1/K) Σ_k p(x|z_k) (p(z_k)/q(z_k|x))^β: with β = 1 the importance-weighted bound (Burda et al. 2016, arXiv 1509.00519,
    /// equation 8).
    ImportanceWeighted,
    /// recon + β Σ_j max(λ, KL_j), KL_j that of latent j, a mean over the batch (Kingma et al. 2016, arXiv 1606.04934, equation 15).
    FreeBits {
        /// λ, in nats.
        least: f64,
    },
    /// recon + β·|KL − C|; C, not β, follows the warm-up (Burgess et al. 2018, arXiv 1804.03599, equation 8, whose γ is β here).
    Capacity {
        /// C at the end, in nats.
        most: f64,
    },
    /// recon + β·(MI + w·TC + Σ_j KL(q(z_j) ‖ p(z_j))), the KL in three terms by minibatch-weighted sampling (Chen et al. 2018, arXiv
    /// 1802.04942, equations 2 and 3), in which q(z) is estimated from the batch.
    TotalCorrelation {
        /// w, the paper's β.
        weight: f64,
        /// N, the number of training images.
        images: f64,
    },
    /// recon + β·KL + w·MMD(q(z), p(z)) (Zhao et al. 2019, arXiv 1706.02262, equation 6, with β = 1 − α and w = α + λ − 1).
    Mmd {
        /// w.
        weight: f64,
    },
}

/// K.
pub static Z_SAMPLES: Setting<u64> =
    Setting::whole("z-samples", "Samples of z for each of the images of an update; the encoder runs once for all")
        .range("from 1 to 10000", |n| (1..=10_000).contains(n))
        .default("1", "Kingma and Welling 2014");

/// See [`Bound::ImportanceWeighted`].
pub static IWAE: Setting<bool> = Setting::switch(
    "iwae",
    "Maximise the importance-weighted bound on log p(x) of the --z-samples, in place of the ELBO",
);

const fn nats(name: &'static str, help: &'static str) -> Setting<f64> {
    Setting::number(name, help).range("above 0 and at most 1e6", |v| *v > 0.0 && *v <= 1e6)
}

/// See [`Bound::FreeBits`].
pub static FREE_BITS: Setting<f64> =
    nats("free-bits", "Nats of KL that each latent may have for free, against unused latents").value_name("NATS");

/// See [`Bound::Capacity`].
pub static CAPACITY: Setting<f64> = nats(
    "capacity",
    "Hold the KL term at this many nats, with weight --beta (100 or more); --kl-warmup lets it rise to them from 0",
)
.value_name("NATS");

/// See [`Bound::TotalCorrelation`].
pub static TC: Setting<f64> =
    nats("tc", "Weight of the total correlation of the latents in the KL term (beta-TC-VAE); 6 is usual");

/// See [`Bound::Mmd`].
pub static MMD: Setting<f64> = nats(
    "mmd",
    "Weight of the maximum mean discrepancy of all latents from the prior (InfoVAE; with --beta 0: MMD-VAE)",
);

/// The values and tensors of a batch that a bound is made of; K samples z of each of B images, in rows b·K + k.
#[derive(Debug)]
pub struct Encoded<'a> {
    /// −log p(x|z) [B,K].
    pub nll: &'a Tensor,
    /// KL(q(z|x) ‖ N(0, I)), a scalar.
    pub kl: &'a Tensor,
    /// [B,Z].
    pub mu: &'a Tensor,
    /// [B,Z].
    pub logvar: &'a Tensor,
    /// The noise of z [B·K,Z].
    pub eps: &'a Tensor,
    /// [B·K,Z].
    pub z: &'a Tensor,
    /// Samples of the prior [B,Z], where [`Bound::takes_prior`].
    pub prior: Option<&'a Tensor>,
}

impl Bound {
    /// From the settings, for N training images.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] for settings that contradict each other.
    pub fn from_settings(s: &Settings, images: u64) -> Result<Self> {
        let iwae = s.given(&IWAE) == Some(true);
        let all = [
            iwae.then_some((IWAE.name(), Bound::ImportanceWeighted)),
            s.given(&FREE_BITS).map(|least| (FREE_BITS.name(), Bound::FreeBits { least })),
            s.given(&CAPACITY).map(|most| (CAPACITY.name(), Bound::Capacity { most })),
            s.given(&TC).map(|weight| (TC.name(), Bound::TotalCorrelation { weight, images: images as f64 })),
            s.given(&MMD).map(|weight| (MMD.name(), Bound::Mmd { weight })),
        ];
        match all.into_iter().flatten().collect::<Vec<_>>().as_slice() {
            [] => Ok(Bound::Elbo),
            [(_, bound)] => Ok(*bound),
            [(a, _), (b, _), ..] => {
                usage!("--{a} and --{b} both replace the ELBO, each by a loss of its own: leave one of the two out")
            }
        }
    }

    /// Whether the loss of an image depends on the others of its batch.
    pub fn is_of_batch(self) -> bool {
        !matches!(self, Bound::Elbo | Bound::ImportanceWeighted)
    }

    /// Whether it compares latents with samples of the prior.
    pub fn takes_prior(self) -> bool {
        matches!(self, Bound::Mmd { .. })
    }

    /// The values that [`Bound::loss`] gives besides the loss.
    pub fn scalars(self) -> Vec<Scalar> {
        let nats = |key, name, panel| Scalar::new(key, name, "nats per image", panel);
        match self {
            Bound::TotalCorrelation { .. } => vec![
                nats("mutual_information", "mutual information", "KL in terms"),
                nats("total_correlation", "total correlation", "KL in terms"),
                nats("dimension_kl", "dimension-wise KL", "KL in terms"),
            ],
            Bound::Mmd { .. } => vec![Scalar::new("mmd", "MMD", "", "MMD")],
            _ => Vec::new(),
        }
    }

    /// The loss, and the values of [`Bound::scalars`]: scalars. `capacity` is C.
    ///
    /// # Errors
    /// When shapes do not fit; libtorch's.
    pub fn loss(self, of: &Encoded, beta: Factor, capacity: Factor) -> Result<(Tensor, Vec<Tensor>)> {
        let recon = of.nll.f_mean(None::<Kind>)?;
        let with = |kl: &Tensor| -> Result<Tensor> { Ok(recon.f_add(&beta.times(kl)?)?) };
        Ok(match self {
            Bound::Elbo => (with(of.kl)?, Vec::new()),
            Bound::ImportanceWeighted => {
                let log_weights = beta.times(&of.log_ratio()?)?.f_sub(of.nll)?; // [B,K]
                let samples = log_weights.size()[1] as f64;
                let bound = log_weights.f_logsumexp(1, false)?.f_mean(None::<Kind>)?.f_sub_scalar(samples.ln())?;
                (bound.f_neg()?, Vec::new())
            }
            Bound::FreeBits { least } => (with(&of.kl_of_latents()?.f_clamp_min(least)?.f_sum(None::<Kind>)?)?, vec![]),
            Bound::Capacity { .. } => {
                let off = match capacity {
                    Factor::Host(c) => of.kl.f_sub_scalar(c)?,
                    Factor::Device(c) => of.kl.f_sub(c)?,
                };
                (with(&off.f_abs()?)?, Vec::new())
            }
            Bound::TotalCorrelation { weight, images } => {
                let [mi, tc, dimensions] = of.kl_in_terms(images)?;
                (with(&mi.f_add(&tc.f_mul_scalar(weight)?)?.f_add(&dimensions)?)?, vec![mi, tc, dimensions])
            }
            Bound::Mmd { weight } => {
                let mmd = mmd(of.z, of.prior.context("the samples of the prior were not drawn")?)?;
                (with(of.kl)?.f_add(&mmd.f_mul_scalar(weight)?)?, vec![mmd])
            }
        })
    }
}

impl Encoded<'_> {
    /// log p(z) − log q(z|x) of each sample [B,K].
    fn log_ratio(&self) -> Result<Tensor> {
        let size = self.nll.size();
        let by_sample = |t: &Tensor| t.f_view([size[0], size[1], -1]); // [B,K,Z]
        // The normalising 2π of both densities cancel.
        let terms = by_sample(self.eps)?.f_square()?.f_add(&self.logvar.f_unsqueeze(1)?)?;
        let terms = terms.f_sub(&by_sample(self.z)?.f_square()?)?;
        Ok(terms.f_sum_dim_intlist(2, false, None::<Kind>)?.f_mul_scalar(0.5)?)
    }

    /// The KL of each latent, a mean over the batch [Z].
    fn kl_of_latents(&self) -> Result<Tensor> {
        // 0 at the least, but for rounding.
        let of_variance = self.logvar.f_expm1()?.f_sub(self.logvar)?.f_clamp_min(0.0)?;
        let each = self.mu.f_square()?.f_add(&of_variance)?;
        Ok(each.f_mean_dim(0, false, None::<Kind>)?.f_mul_scalar(0.5)?)
    }

    /// MI = E log q(z|x)/q(z), TC = E log q(z)/Π_j q(z_j) and Σ_j E log q(z_j)/p(z_j), by minibatch-weighted sampling from N images:
    /// q(z_i) ≈ 1/(NB) Σ_b q(z_i|x_b). Their sum is a sample of the KL.
    fn kl_in_terms(&self, images: f64) -> Result<[Tensor; 3]> {
        let (mu, logvar) = (self.mu.f_unsqueeze(0)?, self.logvar.f_unsqueeze(0)?); // [1,B,Z]
        let from_mean = self.z.f_unsqueeze(1)?.f_sub(&mu)?; // [B·K,B,Z]
        // Twice the logarithms of densities, without 2π: those of q and of p are equally many.
        let each = from_mean.f_square()?.f_mul(&logvar.f_neg()?.f_exp()?)?.f_add(&logvar)?.f_mul_scalar(-0.5)?;
        let log_count = (images * mu.size()[1] as f64).ln();
        let sum = |t: &Tensor| t.f_sum_dim_intlist(-1, false, None::<Kind>);
        let log_qz = sum(&each)?.f_logsumexp(1, false)?.f_sub_scalar(log_count)?; // [B·K]
        let log_product = sum(&each.f_logsumexp(1, false)?.f_sub_scalar(log_count)?)?;
        let log_p = sum(&self.z.f_square()?)?.f_mul_scalar(-0.5)?;
        // ε² is that of the sample's own posterior.
        let samples = self.z.size()[0] / mu.size()[1];
        let own = self.logvar.f_repeat_interleave_self_int(samples, 0, None)?;
        let log_q = sum(&self.eps.f_square()?.f_add(&own)?)?.f_mul_scalar(-0.5)?;
        let mean = |a: &Tensor, b: &Tensor| -> Result<Tensor> { Ok(a.f_sub(b)?.f_mean(None::<Kind>)?) };
        Ok([mean(&log_q, &log_qz)?, mean(&log_qz, &log_product)?, mean(&log_product, &log_p)?])
    }
}

/// The squared maximum mean discrepancy of samples a [N,Z] and b [M,Z], without bias, with the kernel C/(C + ‖a − b‖²), C = 2Z (Tolstikhin
/// et al. 2018, arXiv 1711.01558, section 4 and algorithm 2).
fn mmd(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let c = 2.0 * a.size()[1] as f64;
    let kernel = |a: &Tensor, b: &Tensor| -> Result<Tensor> {
        let off = a.f_unsqueeze(1)?.f_sub(&b.f_unsqueeze(0)?)?; // [N,M,Z]
        let squares = off.f_square()?.f_sum_dim_intlist(-1, false, None::<Kind>)?;
        Ok(squares.f_add_scalar(c)?.f_reciprocal()?.f_mul_scalar(c)?)
    };
    // The kernel of a sample with itself, 1, does not count.
    let within = |t: &Tensor| -> Result<Tensor> {
        let n = t.size()[0] as f64;
        Ok(kernel(t, t)?.f_sum(None::<Kind>)?.f_sub_scalar(n)?.f_div_scalar((n * (n - 1.0)).max(1.0))?)
    };
    let between = kernel(a, b)?.f_mean(None::<Kind>)?.f_mul_scalar(2.0)?;
    Ok(within(a)?.f_add(&within(b)?)?.f_sub(&between)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::{gaussian_draw, randn};
    use tch::Device;

    /// x ∼ N(z, S²) of one pixel, z ∼ N(0, 1), seen at x = 1.2: log p(x) is log N(x; 0, 1 + S²).
    const S: f64 = 0.7;
    const X: f64 = 1.2;

    fn log_normal(x: f64, variance: f64) -> f64 {
        -0.5 * (x * x / variance + (std::f64::consts::TAU * variance).ln())
    }

    /// A batch of `images` alike, with a posterior that is not the true one; mu and logvar [B,1] are recorded.
    struct Toy {
        mu: Tensor,
        logvar: Tensor,
        eps: Tensor,
    }

    impl Toy {
        fn new(images: i64, samples: i64, seed: i64) -> Self {
            let one = |v: f64| Tensor::full([images, 1], v, (Kind::Float, Device::Cpu)).set_requires_grad(true);
            Toy { mu: one(0.5), logvar: one(-0.5), eps: randn(seed, &[images * samples, 1]).unwrap() }
        }

        /// The loss and −log p(x|z), log p(z) − log q(z|x) [B,K].
        fn loss(&self, bound: Bound, beta: f64) -> (Tensor, Tensor, Tensor) {
            let (images, samples) = (self.mu.size()[0], self.eps.size()[0] / self.mu.size()[0]);
            let repeated = |t: &Tensor| t.repeat_interleave_self_int(samples, 0, None);
            let (z, kl) = gaussian_draw(&repeated(&self.mu), &repeated(&self.logvar), &self.eps).unwrap();
            let by_sample = |t: &Tensor| t.view([images, samples]);
            let nll = (by_sample(&z) - X).square() * (0.5 / (S * S)) + 0.5 * (std::f64::consts::TAU * S * S).ln();
            let of =
                Encoded { nll: &nll, kl: &kl, mu: &self.mu, logvar: &self.logvar, eps: &self.eps, z: &z, prior: None };
            let (loss, _) = bound.loss(&of, Factor::Host(beta), Factor::Host(0.0)).unwrap();
            let log_q = ((by_sample(&z) - &self.mu).square() / self.logvar.exp() + &self.logvar) * -0.5;
            (loss, nll, by_sample(&z).square() * -0.5 - log_q)
        }
    }

    #[test]
    fn the_importance_weighted_bound_is_the_elbo_for_one_sample_and_rises_to_log_px() {
        let value = |samples| -Toy::new(20_000, samples, 3).loss(Bound::ImportanceWeighted, 1.0).0.double_value(&[]);
        let all: Vec<f64> = [1, 3, 10, 100].map(value).into();
        let elbo = -Toy::new(20_000, 1, 3).loss(Bound::Elbo, 1.0).0.double_value(&[]);
        let log_px = log_normal(X, 1.0 + S * S);
        assert!((all[0] - elbo).abs() < 0.02, "{all:?}, ELBO {elbo}: they differ by the noise of the sampled KL");
        assert!(all.windows(2).all(|w| w[0] < w[1] - 1e-3), "{all:?}");
        assert!((all[3] - log_px).abs() < 0.01, "{all:?} to {log_px}");
    }

    /// ∇ log (1/K) Σ w_k = Σ w_k/Σw ∇ log w_k, for a β too.
    #[test]
    fn the_gradient_of_the_importance_weighted_bound_weighs_those_of_the_samples() {
        for beta in [1.0, 0.3] {
            let toy = Toy::new(3, 5, 4);
            let (loss, nll, log_ratio) = toy.loss(Bound::ImportanceWeighted, beta);
            let log_w = log_ratio * beta - nll;
            let share = log_w.detach().softmax(1, Kind::Float);
            let inputs = [&toy.mu, &toy.logvar];
            let want = Tensor::run_backward(&[(&log_w * share).sum(Kind::Float) / -3.0], &inputs, true, false);
            let got = Tensor::run_backward(&[&loss], &inputs, false, false);
            for (got, want) in got.iter().zip(&want) {
                assert!(got.allclose(want, 1e-4, 1e-6, false), "{got}, not {want}");
            }
        }
    }

    #[test]
    fn the_three_terms_of_the_kl_sum_to_it_in_expectation() {
        let (mu, logvar) = (randn(1, &[40, 3]).unwrap(), randn(2, &[40, 3]).unwrap() * 0.5);
        let (mut sums, mut want) = (Vec::new(), 0.0);
        for seed in 0..400 {
            let eps = randn(100 + seed, &[40, 3]).unwrap();
            let (z, kl) = gaussian_draw(&mu, &logvar, &eps).unwrap();
            let nll = Tensor::zeros([40, 1], (Kind::Float, Device::Cpu));
            let of = Encoded { nll: &nll, kl: &kl, mu: &mu, logvar: &logvar, eps: &eps, z: &z, prior: None };
            let terms = of.kl_in_terms(1000.0).unwrap().map(|t| t.double_value(&[]));
            sums.push(terms.iter().sum::<f64>());
            want = kl.double_value(&[]);
        }
        let mean = sums.iter().sum::<f64>() / 400.0;
        let deviation = (sums.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / 399.0).sqrt();
        assert!((mean - want).abs() < 4.0 * deviation / 20.0, "{mean} ± {}, not {want}", deviation / 20.0);
        assert!(deviation > 0.05 && want > 1.0);
    }

    #[test]
    fn the_discrepancy_has_no_bias_and_tells_distributions_apart() {
        let mean = |shift: f64| {
            let one = |seed| mmd(&(randn(seed, &[30, 2]).unwrap() + shift), &randn(seed + 1000, &[30, 2]).unwrap());
            (0..300).map(|seed| one(seed).unwrap().double_value(&[])).sum::<f64>() / 300.0
        };
        assert!(mean(0.0).abs() < 2e-3 && mean(1.0) > 0.1, "{} and {}", mean(0.0), mean(1.0));
    }

    /// Capacity: the KL is pulled from either side. Free bits: a latent below its share has no gradient.
    #[test]
    fn capacity_and_free_bits_leave_a_kl_alone_where_they_should() {
        let toy = Toy::new(4, 1, 5);
        let kl = 0.5 * (0.25 + (-0.5f64).exp() - 1.0 + 0.5);
        let pull = |bound, capacity: f64| {
            let (mu, logvar) = (&toy.mu, &toy.logvar);
            let (z, kl) = gaussian_draw(mu, logvar, &toy.eps).unwrap();
            let nll = Tensor::zeros([4, 1], (Kind::Float, Device::Cpu)) + mu.sum(Kind::Float) * 0.0;
            let of = Encoded { nll: &nll, kl: &kl, mu, logvar, eps: &toy.eps, z: &z, prior: None };
            let (loss, _) = Bound::loss(bound, &of, Factor::Host(2.0), Factor::Host(capacity)).unwrap();
            let grad = &Tensor::run_backward(&[&loss], &[mu], false, false)[0];
            (loss.double_value(&[]), grad.double_value(&[0, 0]))
        };
        let close = |(loss, grad): (f64, f64), want: (f64, f64)| {
            assert!((loss - want.0).abs() < 1e-5 && (grad - want.1).abs() < 1e-6, "{loss}, {grad}, not {want:?}");
        };
        // dKL/dmu = mu/B.
        close(pull(Bound::Capacity { most: 9.0 }, 1.0), (2.0 * (1.0 - kl), -0.25));
        close(pull(Bound::Capacity { most: 9.0 }, 0.0), (2.0 * kl, 0.25));
        close(pull(Bound::FreeBits { least: kl + 0.1 }, 0.0), (2.0 * (kl + 0.1), 0.0));
        close(pull(Bound::FreeBits { least: kl - 0.1 }, 0.0), (2.0 * kl, 0.25));
    }
}
