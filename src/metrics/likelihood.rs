//! How probable held-out images are under a VAE: the ELBO with its two terms, and the importance-weighted bound on log p(x).
//!
//! log p(x) ≥ E log (1/K) Σ_k w_k, w_k = p(x|z_k) p(z_k) / q(z_k|x), z_k ∼ q(z|x): Burda, Grosse and Salakhutdinov 2016 (arXiv
//! 1509.00519), eq. 8. K = 1 is an ELBO; the bound rises with K.

use anyhow::{Context, Result, ensure};
use tch::{Kind, Tensor};

use super::estimate::{Estimate, append};
use crate::base::seed::{Stream, named, seed_for};
use crate::data::dataset::Dataset;
use crate::models::LatentVariable;
use crate::models::losses::likelihood::bernoulli::binarised;
use crate::native::{self, Distribution};

/// K without another wish.
pub const SAMPLES: i64 = 500;
/// A latent whose mean varies by more than this over the images is active (Burda et al. 2016, section 5.2).
pub const ACTIVE: f64 = 0.01;
/// Samples whose noise has one seed: a part of the definition of the noise.
const BLOCK: i64 = 64;

/// What is computed.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// K, the samples of z for each image.
    pub samples: i64,
    /// Seed of the samples.
    pub seed: u64,
    /// Pairs of an image and a sample that are decoded at a time; none for as many as 2^20 pixel values hold, within 64..=1024. Bounds
    /// the memory, and changes the scores by rounding only.
    pub rows: Option<i64>,
}

/// The scores of N images, in nats per image.
#[derive(Clone, Debug)]
pub struct Scores {
    /// N.
    pub images: usize,
    /// The options.
    pub options: Options,
    /// −E_q log p(x|z), by K samples for each image.
    pub recon: Estimate,
    /// KL(q(z|x) ‖ p(z)), in closed form.
    pub kl: Estimate,
    /// −recon − kl, a lower bound on log p(x).
    pub elbo: Estimate,
    /// The importance-weighted upper bound on −log p(x).
    pub nll: Estimate,
    /// `nll` in bits per pixel value of 8-bit images, or why there is none: a clause.
    pub bits_per_dim: Result<Estimate, &'static str>,
    /// Latents whose mean varies over the images by more than [`ACTIVE`] (variance).
    pub active_units: usize,
    /// Z.
    pub latents: usize,
}

/// Scores all images of `data`. `each` is told after each batch how many are done, and stops the work by an error.
///
/// # Errors
/// When there are no images or no samples, a likelihood is not finite, or `each` fails; libtorch's.
pub fn evaluate(
    model: &dyn LatentVariable,
    data: &Dataset,
    options: Options,
    each: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Scores> {
    let Options { samples, seed, rows } = options;
    ensure!(samples > 0, "1 or more samples for each image are wanted, found {samples}");
    let dims = data.shape().numel();
    let rows = rows.unwrap_or_else(|| ((1 << 20) / dims.max(1)).clamp(64, 1024)).max(1);
    // Both steps are bounded, so memory does not grow with N or K.
    let (part, images) = (samples.min(rows), (rows / samples).max(1));
    let [mut recon, mut kl, mut nll] = [const { Vec::new() }; 3];
    let mut means = None::<[Tensor; 2]>;
    for from in (0..data.len()).step_by(images as usize) {
        let mut x = data.range(from, images as usize)?.x; // [B,C,H,W]
        if model.binarizes() {
            x = binarised(&x, &uniform(seed, from, &x.size())?.f_to_device(x.device())?)?;
        }
        let posterior = Posterior::new(model.posterior(&x)?)?;
        let (mut log_sum, mut log_likelihood) = (None::<Tensor>, None::<Tensor>); // [B] each
        for first in (0..samples).step_by(part as usize) {
            let eps = noise(seed, from, x.size()[0], first..samples.min(first + part), posterior.latents())?;
            let (z, log_ratio) = posterior.draw(&eps.f_to_device(x.device())?)?;
            let log_p = model.log_likelihood(&x, &z)?; // [B,K']
            let log_weights = log_p.f_add(&log_ratio)?;
            // The sums over samples go on in float64 from part to part.
            let more = log_weights.f_logsumexp(1, false)?;
            log_sum = Some(log_sum.map_or(Ok(more.shallow_clone()), |sum| sum.f_logaddexp(&more))?);
            let more = log_p.f_sum_dim_intlist(1, false, Kind::Double)?;
            log_likelihood = Some(log_likelihood.map_or(Ok(more.shallow_clone()), |sum| sum.f_add(&more))?);
        }
        let (log_sum, log_likelihood) = log_sum.zip(log_likelihood).context("no samples were drawn")?;
        append(&mut nll, &log_sum.f_neg()?.f_add_scalar((samples as f64).ln())?)?;
        append(&mut recon, &log_likelihood.f_div_scalar(-(samples as f64))?)?;
        append(&mut kl, &posterior.kl()?)?;
        let sums = [&posterior.mu, &posterior.mu.f_square()?].map(|t| t.f_sum_dim_intlist(0, false, Kind::Double));
        let [sum, squares] = sums;
        means = Some(match means {
            None => [sum?, squares?],
            Some([a, b]) => [a.f_add(&sum?)?, b.f_add(&squares?)?],
        });
        each(nll.len())?;
    }
    let elbo: Vec<f64> = recon.iter().zip(&kl).map(|(recon, kl)| -recon - kl).collect();
    let variances = variances(means.context("the likelihood: there are no images to score")?, nll.len())?;
    let nll = Estimate::of("the negative log-likelihood", &nll)?;
    let to_bits = 1.0 / (dims as f64 * std::f64::consts::LN_2);
    Ok(Scores {
        images: recon.len(),
        options,
        recon: Estimate::of("the reconstruction term", &recon)?,
        kl: Estimate::of("the KL term", &kl)?,
        elbo: Estimate::of("the ELBO", &elbo)?,
        nll,
        bits_per_dim: model.bits().map(|add| nll.scaled(to_bits, add)),
        active_units: variances.iter().filter(|v| **v > ACTIVE).count(),
        latents: variances.len(),
    })
}

/// The variances over `n` images of sums and sums of squares [Z].
fn variances([sums, squares]: [Tensor; 2], n: usize) -> Result<Vec<f64>> {
    let mean = sums.f_div_scalar(n as f64)?;
    let mut variances = Vec::new();
    append(&mut variances, &squares.f_div_scalar(n as f64)?.f_sub(&mean.f_square()?)?)?;
    Ok(variances)
}

/// q(z|x) of a batch: [B,Z] each, float64.
struct Posterior {
    mu: Tensor,
    logvar: Tensor,
    /// As the model gave them.
    kind: Kind,
}

impl Posterior {
    fn new((mu, logvar): (Tensor, Tensor)) -> Result<Self> {
        let (size, kind) = (mu.size(), mu.f_kind()?);
        ensure!(
            size.len() == 2 && size == logvar.size(),
            "mu is {size:?} and logvar {:?}, wanted [B,Z]",
            logvar.size()
        );
        Ok(Posterior { mu: mu.f_to_kind(Kind::Double)?, logvar: logvar.f_to_kind(Kind::Double)?, kind })
    }

    fn latents(&self) -> i64 {
        self.mu.size()[1]
    }

    /// ½ Σ (mu² + exp(logvar) − 1 − logvar): [B].
    fn kl(&self) -> Result<Tensor> {
        // 0 at the least, but for rounding.
        let of_variance = self.logvar.f_expm1()?.f_sub(&self.logvar)?.f_clamp_min(0.0)?;
        let each = self.mu.f_square()?.f_add(&of_variance)?;
        Ok(each.f_sum_dim_intlist(1, false, Kind::Double)?.f_mul_scalar(0.5)?)
    }

    /// eps [B,K,Z] -> z = mu + exp(logvar/2)·eps as the model takes it, and log p(z) − log q(z|x) [B,K], float64.
    fn draw(&self, eps: &Tensor) -> Result<(Tensor, Tensor)> {
        let eps = eps.f_to_kind(Kind::Double)?;
        let deviation = self.logvar.f_mul_scalar(0.5)?.f_exp()?.f_unsqueeze(1)?; // [B,1,Z]
        let z = self.mu.f_unsqueeze(1)?.f_addcmul(&deviation, &eps)?;
        // The normalising 2π of both densities cancel.
        let terms = eps.f_square()?.f_add(&self.logvar.f_unsqueeze(1)?)?.f_sub(&z.f_square()?)?;
        let log_ratio = terms.f_sum_dim_intlist(2, false, Kind::Double)?.f_mul_scalar(0.5)?;
        Ok((z.f_to_kind(self.kind)?, log_ratio))
    }
}

/// The noise of samples `range` of `count` images from `from` on: float32 [count,K',Z] on the CPU, standard normal. A function of the
/// seed, the image's index and the sample's index.
///
/// # Errors
/// libtorch's.
pub fn noise(seed: u64, from: usize, count: i64, range: std::ops::Range<i64>, latents: i64) -> Result<Tensor> {
    let blocks = range.start / BLOCK..(range.end - 1) / BLOCK + 1;
    let skip = range.start - blocks.start * BLOCK;
    let mut images = Vec::with_capacity(count as usize);
    for image in (from..).take(count as usize) {
        let seed = seed_for(seed, 0, Stream::Eval, image as u64);
        let block = |b| native::randn(named(seed, &format!("importance-{b}")), &[BLOCK, latents]);
        let all = Tensor::f_cat(&blocks.clone().map(block).collect::<Result<Vec<_>>>()?, 0)?;
        images.push(all.f_narrow(0, skip, range.end - range.start)?);
    }
    Ok(Tensor::f_stack(&images, 0)?)
}

/// Numbers in [0, 1) by which images from `from` on, of shapes [B,C,H,W], are made black and white: a function of the seed and the image's
/// index, so that each image is always made so alike.
fn uniform(seed: u64, from: usize, shape: &[i64]) -> Result<Tensor> {
    let (count, each) = shape.split_first().context("images have no shape")?;
    let of = |image: usize| {
        let seed = named(seed_for(seed, 0, Stream::Eval, image as u64), "binarize");
        native::random(seed, each, Distribution::Uniform)
    };
    Ok(Tensor::f_stack(&(from..).take(*count as usize).map(of).collect::<Result<Vec<_>>>()?, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::seed::Rng;
    use crate::data::images::Images;
    use tch::Device;

    const PIXELS: usize = 6;
    const LN_2PI: f64 = 1.837_877_066_409_345_3;

    /// x = W z + b + σ·noise with orthogonal columns of W, so that the true posterior has independent latents; q is the true one, moved
    /// by `off` in the mean and `off` in the logarithm of the variance.
    struct Linear {
        w: [[f64; PIXELS]; 2],
        b: f64,
        sigma: f64,
        off: f64,
    }

    fn linear(off: f64) -> Linear {
        Linear { w: [[0.3, -0.2, 0.1, 0.0, 0.2, 0.1], [0.2, 0.3, 0.0, 0.4, 0.05, -0.1]], b: 0.5, sigma: 0.15, off }
    }

    impl Linear {
        fn norms(&self) -> [f64; 2] {
            let [u, v] = &self.w;
            assert!(u.iter().zip(v).map(|(a, b)| a * b).sum::<f64>().abs() < 1e-12);
            self.w.map(|w| w.iter().map(|v| v * v).sum())
        }

        /// log N(x; b, W Wᵀ + σ² I): the columns of W are eigenvectors of the covariance.
        fn log_px(&self, x: &[f64]) -> f64 {
            let d: Vec<f64> = x.iter().map(|x| x - self.b).collect();
            let (norms, s2) = (self.norms(), self.sigma * self.sigma);
            let mut distance = d.iter().map(|d| d * d).sum::<f64>() / s2;
            let mut log_det = PIXELS as f64 * s2.ln();
            for (w, norm) in self.w.iter().zip(norms) {
                let along = w.iter().zip(&d).map(|(w, d)| w * d).sum::<f64>().powi(2) / norm;
                distance += along * (1.0 / (norm + s2) - 1.0 / s2);
                log_det += (norm + s2).ln() - s2.ln();
            }
            -0.5 * (distance + log_det + PIXELS as f64 * LN_2PI)
        }

        fn weights(&self) -> Tensor {
            Tensor::from_slice(&self.w.concat()).view([2, PIXELS as i64])
        }
    }

    impl LatentVariable for Linear {
        fn posterior(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
            let s2 = self.sigma * self.sigma;
            let precision = Tensor::from_slice(&self.norms().map(|n| (n + s2) / s2));
            let mu = (x.to_kind(Kind::Double).flatten(1, -1) - self.b).matmul(&self.weights().tr()) / s2 / &precision;
            Ok((mu + self.off, (self.off - precision.log()).expand([x.size()[0], 2], false)))
        }

        fn log_likelihood(&self, x: &Tensor, z: &Tensor) -> Result<Tensor> {
            let off = x.to_kind(Kind::Double).flatten(1, -1).unsqueeze(1) - self.b - z.matmul(&self.weights());
            let squares = (off / self.sigma).square().sum_dim_intlist(-1, false, Kind::Double);
            Ok((squares + PIXELS as f64 * (LN_2PI + 2.0 * self.sigma.ln())) * -0.5)
        }

        fn bits(&self) -> Result<f64, &'static str> {
            Ok(8.0)
        }
    }

    fn data(n: usize) -> Dataset {
        let mut rng = Rng::new(8);
        let pixels: Vec<u8> = (0..n * PIXELS).map(|_| rng.below(256) as u8).collect();
        Dataset::new(&Images::new([n, 1, 2, 3], pixels, vec![]).unwrap(), Device::Cpu).unwrap()
    }

    fn truth(model: &Linear, data: &Dataset) -> f64 {
        let x = data.range(0, data.len()).unwrap().x.to_kind(Kind::Double);
        let x = Vec::<f64>::try_from(x.flatten(0, -1)).unwrap();
        x.chunks(PIXELS).map(|x| model.log_px(x)).sum::<f64>() / data.len() as f64
    }

    fn score(model: &Linear, data: &Dataset, samples: i64, rows: Option<i64>) -> Scores {
        evaluate(model, data, Options { samples, seed: 4, rows }, &mut |_| Ok(())).unwrap()
    }

    #[test]
    fn with_the_true_posterior_the_bound_is_log_px_for_any_k() {
        let (model, data) = (linear(0.0), data(40));
        let want = -truth(&model, &data);
        for samples in [1, 3, 200] {
            let s = score(&model, &data, samples, None);
            assert!((s.nll.mean - want).abs() < 1e-9, "{} against {want}", s.nll.mean);
        }
        let s = score(&model, &data, 4000, None);
        assert!((-s.elbo.mean - want).abs() < 0.02, "{} against {want}", s.elbo.mean);
        let bits = s.bits_per_dim.unwrap().mean;
        assert!((bits - (want / 6.0 / 2f64.ln() + 8.0)).abs() < 1e-9);
    }

    #[test]
    fn with_another_posterior_the_bound_rises_to_log_px() {
        let (model, data) = (linear(0.4), data(40));
        let want = -truth(&model, &data);
        let all: Vec<f64> = [1, 4, 16, 4000].map(|k| score(&model, &data, k, None).nll.mean).into();
        println!("{all:?} to {want}");
        assert!(all.windows(2).all(|w| w[0] > w[1] + 0.01), "{all:?}");
        assert!(all[3] > want - 0.02 && all[3] < want + 0.05, "{all:?} to {want}");
        let s = score(&model, &data, 4000, None);
        // The ELBO misses log p(x) by KL(q ‖ true posterior), in closed form.
        let precision = model.norms().map(|n| n / (0.15 * 0.15) + 1.0);
        let miss: f64 = precision.iter().map(|p| 0.5 * (0.4f64.exp() - 1.0 - 0.4 + 0.16 * p)).sum();
        assert!((-s.elbo.mean - want - miss).abs() < 0.05, "{} against {}", -s.elbo.mean, want + miss);
        assert!((s.elbo.mean + s.recon.mean + s.kl.mean).abs() < 1e-9 && s.nll.mean < -s.elbo.mean);
    }

    #[test]
    fn one_sample_gives_the_elbo_with_its_noise() {
        let (model, data) = (linear(0.3), data(20));
        let x = data.range(0, 20).unwrap().x;
        let (mu, logvar) = model.posterior(&x).unwrap();
        let eps = noise(4, 0, 20, 0..1, 2).unwrap().squeeze_dim(1).to_kind(Kind::Double);
        let z = &mu + (&logvar / 2.0).exp() * &eps;
        let normal = |x: &Tensor, m: &Tensor, logvar: &Tensor| {
            ((x - m).square() / logvar.exp() + logvar + LN_2PI).sum_dim_intlist(1, false, Kind::Double) * -0.5
        };
        let prior = normal(&z, &mu.zeros_like(), &mu.zeros_like());
        let terms =
            model.log_likelihood(&x, &z.unsqueeze(1)).unwrap().squeeze_dim(1) + prior - normal(&z, &mu, &logvar);
        let want = -terms.mean(Kind::Double).double_value(&[]);
        assert!((score(&model, &data, 1, None).nll.mean - want).abs() < 1e-9);
    }

    #[test]
    fn scores_depend_on_the_seed_alone_not_on_the_parts() {
        let (model, data) = (linear(0.4), data(33));
        let whole = score(&model, &data, 200, Some(100_000));
        for rows in [1, 7, 64, 130, 200, 450] {
            let s = score(&model, &data, 200, Some(rows));
            for (a, b) in [(s.nll, whole.nll), (s.elbo, whole.elbo), (s.kl, whole.kl)] {
                let off = (a.mean - b.mean).abs() + (a.standard_error - b.standard_error).abs();
                assert!(off < 1e-9, "{rows} rows: {a:?} against {b:?}");
            }
        }
        let other = Options { samples: 200, seed: 5, rows: None };
        let other = evaluate(&model, &data, other, &mut |_| Ok(())).unwrap();
        assert!((other.nll.mean - whole.nll.mean).abs() > 1e-6);
        let both = noise(1, 2, 2, 63..66, 2).unwrap();
        assert_ne!(both.get(0), both.get(1));
        assert_ne!(both.narrow(1, 0, 1), both.narrow(1, 1, 1));
        assert_eq!(
            noise(1, 3, 2, 60..70, 2).unwrap(),
            noise(1, 2, 5, 0..130, 2).unwrap().narrow(0, 1, 2).narrow(1, 60, 10)
        );
    }

    /// mu 0.2·i in the first latent, 0.01·i in the second.
    struct Units;

    impl LatentVariable for Units {
        fn posterior(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
            let i = x.flatten(1, -1).narrow(1, 0, 1) * 255.0;
            let mu = i.matmul(&Tensor::from_slice(&[0.2f32, 0.01]).view([1, 2])) + 7.0;
            Ok((mu.shallow_clone(), mu.zeros_like()))
        }

        fn log_likelihood(&self, x: &Tensor, z: &Tensor) -> Result<Tensor> {
            let level = x.flatten(1, -1).narrow(1, 0, 1).to_kind(Kind::Double) * 255.0;
            Ok((level - 5.0).log().expand([x.size()[0], z.size()[1]], false))
        }

        fn bits(&self) -> Result<f64, &'static str> {
            Err("this has none")
        }
    }

    #[test]
    fn active_units_vary_and_standard_errors_are_over_images() {
        let images = |from: u8| Images::new([8, 1, 1, 1], (from..from + 8).collect::<Vec<u8>>(), vec![]).unwrap();
        let options = Options { samples: 3, seed: 0, rows: Some(6) };
        let run = |from, f: &mut dyn FnMut(usize) -> Result<()>| {
            evaluate(&Units, &Dataset::new(&images(from), Device::Cpu).unwrap(), options, f)
        };
        let s = run(10, &mut |_| Ok(())).unwrap();
        // Variances 0.04·5.25 and 0.0001·5.25.
        assert_eq!((s.active_units, s.latents, s.images, s.bits_per_dim), (1, 2, 8, Err("this has none")));
        let logs: Vec<f64> = (5..13).map(|i| -f64::from(i).ln()).collect();
        let mean = logs.iter().sum::<f64>() / 8.0;
        let error = (logs.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 7.0 / 8.0).sqrt();
        assert!((s.recon.mean - mean).abs() < 1e-6 && (s.recon.standard_error - error).abs() < 1e-6, "{:?}", s.recon);
        let said = run(0, &mut |_| Ok(())).unwrap_err().to_string();
        assert!(said.contains("of image 0 is NaN, wanted a finite number"), "{said}");
        let mut seen = Vec::new();
        let stopped = run(10, &mut |done| {
            seen.push(done);
            ensure!(done < 4, "stopped");
            Ok(())
        });
        assert_eq!((stopped.unwrap_err().to_string(), seen), ("stopped".to_owned(), vec![2, 4]));
    }
}
