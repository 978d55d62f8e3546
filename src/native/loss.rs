//! The VAE loss in nats: reparameterised latents with their KL divergence, and the negative ELBO with Bernoulli pixels.
//!
//! On the CPU each is one loop over memory (loss.cpp); on a GPU the same formulas in libtorch's operations, which can be captured.
//! Both support second derivatives.

use anyhow::{Result, ensure};
use tch::{Device, Kind, Reduction, Tensor};

use super::{Factor, shim};

shim! {
    fn fused_draw(mu: &Tensor, logvar: &Tensor, eps: &Tensor) -> Result<(Tensor, Tensor)> = gv_gaussian_draw, "drawing latents";

    fn fused_bound(logits: &Tensor, x: &Tensor, kl: &Tensor, beta: f64) -> Result<(Tensor, Tensor)> = gv_bernoulli_bound, "loss";

    fn fused_nll(logits: &Tensor, x: &Tensor) -> Result<Tensor> = gv_bernoulli_nll, "likelihood";
}

/// mu, logvar, eps [B,Z] -> z = mu + exp(logvar/2)·eps [B,Z], and KL(N(mu, exp(logvar)) ‖ N(0, I)), a scalar:
/// ½ Σ (mu² + exp(logvar) − 1 − logvar), summed over latents, mean over the batch, in nats.
///
/// Kingma and Welling 2014 (arXiv 1312.6114), section 2.4 and appendix B.
///
/// # Errors
/// When the shapes or devices differ, or a tensor is not float32.
pub fn gaussian_draw(mu: &Tensor, logvar: &Tensor, eps: &Tensor) -> Result<(Tensor, Tensor)> {
    for t in [mu, logvar, eps] {
        like("drawing latents", t, &mu.size(), mu)?;
    }
    match mu.device() {
        Device::Cpu => fused_draw(mu, logvar, eps),
        _ => plain_draw(mu, logvar, eps),
    }
}

/// logits, x [B,...], kl a scalar -> recon + `beta`·kl, and recon: −log p(x|z) of independent Bernoulli pixels, summed over
/// pixels, mean over the batch, in nats.
///
/// # Errors
/// As [`gaussian_draw`].
pub fn bernoulli_bound(logits: &Tensor, x: &Tensor, kl: &Tensor, beta: Factor) -> Result<(Tensor, Tensor)> {
    for (t, shape) in [(logits, logits.size()), (x, logits.size()), (kl, vec![])] {
        like("loss", t, &shape, logits)?;
    }
    match beta {
        Factor::Host(beta) if logits.device() == Device::Cpu => fused_bound(logits, x, kl, beta),
        beta => plain_bound(logits, x, kl, beta),
    }
}

/// logits [B,K,D], x [B,D] in [0,1] -> −log p(x|z) of independent Bernoulli pixels, summed over pixels, in nats: float64 [B,K],
/// without a gradient.
///
/// # Errors
/// As [`gaussian_draw`].
pub fn bernoulli_nll(logits: &Tensor, x: &Tensor) -> Result<Tensor> {
    let [b, k, d] = logits.size3().map(|(b, k, d)| [b, k, d])?;
    like("likelihood", logits, &[b, k, d], logits)?;
    like("likelihood", x, &[b, d], logits)?;
    match logits.device() {
        Device::Cpu => fused_nll(logits, x),
        _ => plain_nll(logits, x),
    }
}

/// Checks that `t` is float32 of this shape on the device of `other`: the loops read raw memory.
fn like(what: &str, t: &Tensor, shape: &[i64], other: &Tensor) -> Result<()> {
    let (size, kind) = (t.size(), t.f_kind()?);
    ensure!(
        size == shape && kind == Kind::Float && t.device() == other.device(),
        "{what}: wanted float32 {shape:?} on {:?}, found {kind:?} {size:?} on {:?}",
        other.device(),
        t.device()
    );
    Ok(())
}

/// [`gaussian_draw`] in libtorch's operations.
fn plain_draw(mu: &Tensor, logvar: &Tensor, eps: &Tensor) -> Result<(Tensor, Tensor)> {
    let deviation = logvar.f_mul_scalar(0.5)?.f_exp()?; // [B,Z]
    // 0 at the least, but for rounding.
    let of_variance = logvar.f_expm1()?.f_sub(logvar)?.f_clamp_min(0.0)?;
    let terms = mu.f_square()?.f_add(&of_variance)?;
    let kl = terms.f_sum(Kind::Float)?.f_mul_scalar(0.5 / mu.size()[0] as f64)?;
    Ok((mu.f_addcmul(&deviation, eps)?, kl))
}

/// [`bernoulli_bound`] in libtorch's operations.
fn plain_bound(logits: &Tensor, x: &Tensor, kl: &Tensor, beta: Factor) -> Result<(Tensor, Tensor)> {
    let sum = logits.f_binary_cross_entropy_with_logits::<Tensor>(x, None, None, Reduction::Sum)?;
    let recon = sum.f_div_scalar(logits.size()[0])?;
    Ok((recon.f_add(&beta.times(kl)?)?, recon))
}

/// [`bernoulli_nll`] in libtorch's operations.
fn plain_nll(logits: &Tensor, x: &Tensor) -> Result<Tensor> {
    let x = x.f_unsqueeze(1)?.f_expand_as(logits)?;
    let each = logits.f_binary_cross_entropy_with_logits::<Tensor>(&x, None, None, Reduction::None)?;
    Ok(each.f_sum_dim_intlist(-1, false, Kind::Double)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    const SEED: i64 = 0;
    type Draw = fn(&Tensor, &Tensor, &Tensor) -> Result<(Tensor, Tensor)>;
    type Bound = fn(&Tensor, &Tensor, &Tensor, f64) -> Result<(Tensor, Tensor)>;

    const DRAWS: [Draw; 2] = [gaussian_draw, plain_draw];

    fn loops(logits: &Tensor, x: &Tensor, kl: &Tensor, beta: f64) -> Result<(Tensor, Tensor)> {
        bernoulli_bound(logits, x, kl, Factor::Host(beta))
    }

    fn plain(logits: &Tensor, x: &Tensor, kl: &Tensor, beta: f64) -> Result<(Tensor, Tensor)> {
        plain_bound(logits, x, kl, Factor::Host(beta))
    }

    /// The weight as a tensor.
    fn on_device(logits: &Tensor, x: &Tensor, kl: &Tensor, beta: f64) -> Result<(Tensor, Tensor)> {
        bernoulli_bound(logits, x, kl, Factor::Device(&Tensor::from(beta as f32)))
    }

    const BOUNDS: [Bound; 3] = [loops, plain, on_device];

    /// Not from the global generator, which other tests use at the same time.
    fn randn(seed: i64, shape: &[i64]) -> Tensor {
        crate::native::randn(seed, shape).unwrap()
    }

    fn leaf(t: Tensor) -> Tensor {
        t.detach().set_requires_grad(true)
    }

    /// To a few units in the last place of float32, relative to the largest value.
    fn close(what: &str, got: &Tensor, want: &Tensor) {
        let off = (got.to_kind(Kind::Double) - want).abs().max().double_value(&[]);
        let most = want.abs().max().double_value(&[]);
        assert!(off <= 1e-6 * most.max(0.1), "{what}: off by {off} where the largest value is {most}");
    }

    #[test]
    fn latents_and_their_divergence_are_the_formulas() {
        for (draw, shape) in DRAWS.into_iter().flat_map(|d| [[1, 1], [3, 5], [20, 50], [7, 1111]].map(|s| (d, s))) {
            let (mu, logvar) = (leaf(randn(SEED, &shape)), leaf(randn(SEED + 1, &shape) * 3.0));
            let (eps, weights) = (randn(SEED + 2, &shape), randn(SEED + 3, &shape));
            let (z, kl) = draw(&mu, &logvar, &eps).unwrap();
            let double = |t: &Tensor| t.detach().to_kind(Kind::Double);
            let (mu2, logvar2) = (leaf(double(&mu)), leaf(double(&logvar)));
            let z2 = &mu2 + (&logvar2 * 0.5).exp() * double(&eps);
            let kl2 = (mu2.square() + logvar2.exp() - 1.0 - &logvar2).sum(Kind::Double) * (0.5 / shape[0] as f64);
            close("z", &z, &z2);
            close("kl", &kl, &kl2);
            // Each output's own gradient, and both at once.
            for (a, b) in [(1.0, 0.0), (0.0, 1.0), (1.0, 3.0)] {
                let of = |z: &Tensor, kl: &Tensor, w: &Tensor| (z * w).sum(z.kind()) * a + kl * b;
                let got = Tensor::run_backward(&[of(&z, &kl, &weights)], &[&mu, &logvar], true, false);
                let want = Tensor::run_backward(&[of(&z2, &kl2, &double(&weights))], &[&mu2, &logvar2], true, false);
                close("gradient of mu", &got[0], &want[0]);
                close("gradient of logvar", &got[1], &want[1]);
            }
            let alone = |of: &Tensor| Tensor::run_backward(&[of], &[&mu, &logvar], true, false);
            close("gradient of mu, of kl alone", &alone(&kl)[0], &(double(&mu) / shape[0]));
            close("gradient of mu, of z alone", &alone(&z.sum(Kind::Float))[0], &mu2.ones_like());
        }
    }

    #[test]
    fn the_likelihood_of_each_sample_is_its_own_and_sums_to_the_loss() {
        let (logits, x) = (randn(SEED, &[3, 5, 1111]) * 8.0, randn(SEED + 1, &[3, 1111]).sigmoid());
        for nll in [bernoulli_nll, plain_nll] {
            let got = nll(&logits, &x).unwrap();
            assert_eq!((got.size(), got.kind()), (vec![3, 5], Kind::Double));
            let (l, x) = (logits.to_kind(Kind::Double), x.to_kind(Kind::Double).unsqueeze(1));
            close("nll", &got, &(l.softplus() - &l * &x).sum_dim_intlist(-1, false, Kind::Double));
        }
        assert!(bernoulli_nll(&logits, &x.narrow(0, 0, 2)).is_err());
    }

    /// ∫ q(z) (log q(z) − log p(z)) dz by Simpson's rule over ±12 standard deviations.
    fn kl_by_integral(mu: f64, logvar: f64) -> f64 {
        let sd = (logvar / 2.0).exp();
        let log_normal =
            |z: f64, m: f64, s: f64| -0.5 * ((z - m) / s).powi(2) - s.ln() - 0.5 * std::f64::consts::TAU.ln();
        let (n, lo, hi) = (20_000, mu - 12.0 * sd, mu + 12.0 * sd);
        let h = (hi - lo) / n as f64;
        (0..=n)
            .map(|i| {
                let z = lo + h * i as f64;
                let w = match i {
                    0 => 1.0,
                    i if i == n => 1.0,
                    i if i % 2 == 1 => 4.0,
                    _ => 2.0,
                };
                let lq = log_normal(z, mu, sd);
                w * lq.exp() * (lq - log_normal(z, 0.0, 1.0))
            })
            .sum::<f64>()
            * h
            / 3.0
    }

    #[test]
    fn the_divergence_equals_its_integral() {
        for (mu, logvar) in [(0.0, 0.0), (1.5, -2.0), (-0.7, 1.2), (3.0, 0.5), (0.0, -6.0)] {
            let of = |v: f64| Tensor::from_slice(&[v as f32]).view([1, 1]);
            let want = kl_by_integral(mu, logvar);
            for draw in DRAWS {
                let got = draw(&of(mu), &of(logvar), &of(0.0)).unwrap().1.double_value(&[]);
                assert!((got - want).abs() < 1e-5 * (1.0 + want), "({mu}, {logvar}): {got} against {want}");
            }
        }
    }

    /// Near the prior, where exp(logvar) − 1 − logvar is logvar²/2.
    #[test]
    fn the_divergence_is_never_negative_and_exact_near_zero() {
        for (draw, size) in DRAWS.into_iter().flat_map(|draw| [0.0, 1e-7, 1e-4, 1e-3, 1e-2].map(|size| (draw, size))) {
            let logvar = randn(SEED, &[1000, 1]) * size;
            for row in 0..1000 {
                let one = logvar.narrow(0, row, 1);
                let kl = draw(&one.zeros_like(), &one, &one).unwrap().1.double_value(&[]);
                let lv = one.double_value(&[0, 0]);
                let want = 0.5 * (lv.exp_m1() - lv);
                assert!(kl >= 0.0 && (kl - want).abs() <= 3e-7 * lv.abs(), "logvar {lv}: {kl}, wanted {want}");
            }
        }
    }

    #[test]
    fn the_bound_is_cross_entropy_plus_the_weighted_kl() {
        let shapes = [[1, 1, 1, 1], [3, 1, 5, 7], [20, 1, 28, 28], [2, 3, 40, 33]];
        for (bound, shape) in BOUNDS.into_iter().flat_map(|b| shapes.map(|s| (b, s))) {
            // Logits from the straight parts to the bend.
            let logits = leaf(randn(SEED + 4, &shape) * 8.0);
            let x = randn(SEED + 5, &shape).sigmoid();
            let kl = leaf(Tensor::from(2.5f32));
            let (loss, recon) = bound(&logits, &x, &kl, 0.5).unwrap();
            let l2 = leaf(logits.detach().to_kind(Kind::Double));
            let x2 = x.to_kind(Kind::Double);
            let plain =
                l2.binary_cross_entropy_with_logits::<Tensor>(&x2, None, None, Reduction::Sum) / shape[0] as f64;
            close("recon", &recon, &plain);
            close("loss", &loss, &(&plain + 1.25));
            let got = Tensor::run_backward(&[&loss], &[&logits, &kl], true, false);
            let want = Tensor::run_backward(&[&plain], &[&l2], true, false);
            close("gradient of the logits", &got[0], &want[0]);
            assert_eq!(f64::try_from(&got[1]).unwrap(), 0.5);
            let alone = Tensor::run_backward(&[&recon], &[&logits], true, false);
            close("gradient of recon alone", &alone[0], &want[0]);
            let twice = Tensor::run_backward(&[&loss + &recon], &[&logits], true, false);
            close("gradient of both", &twice[0], &(&want[0] * 2.0));
        }
    }

    #[test]
    fn large_numbers_stay_exact_and_nan_propagates() {
        for bound in BOUNDS {
            let run = |l: f32, x: f32| {
                let l = leaf(Tensor::from_slice(&[l]).view([1, 1]));
                let x = Tensor::from_slice(&[x]).view([1, 1]);
                let (loss, _) = bound(&l, &x, &Tensor::from(0f32), 1.0).unwrap();
                let grad = Tensor::run_backward(&[&loss], &[&l], false, false);
                (loss.double_value(&[]), grad[0].double_value(&[0, 0]))
            };
            assert_eq!(run(200.0, 1.0), (0.0, 0.0));
            assert_eq!(run(200.0, 0.0), (200.0, 1.0));
            assert_eq!(run(-200.0, 1.0), (200.0, -1.0));
            assert_eq!(run(80.0, 0.25), (60.0, 0.75), "a grey pixel");
            let (loss, grad) = run(0.0, 0.25);
            assert!((loss - std::f64::consts::LN_2).abs() < 1e-7 && grad == 0.25, "{loss}, {grad}");
            assert!(run(f32::NAN, 0.5).0.is_nan() && run(f32::NAN, 0.0).1.is_nan());
        }
        let broken = Tensor::from_slice(&[f32::NAN]).view([1, 1]);
        let zero = broken.zeros_like();
        for draw in DRAWS {
            for (mu, logvar) in [(&broken, &zero), (&zero, &broken)] {
                let (z, kl) = draw(mu, logvar, &zero.ones_like()).unwrap();
                assert!(z.double_value(&[0, 0]).is_nan() && kl.double_value(&[]).is_nan());
            }
            let (_, kl) = draw(&zero, &(&zero + 200.0), &zero).unwrap();
            assert_eq!(kl.double_value(&[]), f64::INFINITY);
        }
    }

    #[test]
    fn mismatched_shapes_and_types_are_errors() {
        let (a, b) = (Tensor::zeros([2, 3], CPU), Tensor::zeros([3, 2], CPU));
        for (mu, logvar, eps) in [(&a, &b, &a), (&a, &a, &b), (&a, &a, &a.to_kind(Kind::Double))] {
            let e = gaussian_draw(mu, logvar, eps).unwrap_err().to_string();
            assert!(e.starts_with("drawing latents: wanted float32 [2, 3] on "), "{e}");
            assert!(e.contains(", found "), "{e}");
        }
        for bound in [loops, on_device] {
            assert!(bound(&a, &b, &Tensor::from(0f32), 1.0).is_err());
        }
    }
    /// Gradients of a function of the gradients: of `loops` on float32, of `plain` on the same numbers in double precision.
    #[test]
    fn second_derivatives_are_libtorchs() {
        let shape = [3, 7];
        let [a, b, c] = [10, 11, 12].map(|seed| randn(seed, &shape));
        let twice = |inputs: [Tensor; 3], f: &dyn Fn(&[Tensor]) -> (Tensor, Tensor)| {
            let kind = inputs[0].kind();
            let inputs = inputs.map(leaf);
            let (first, second) = f(&inputs);
            let loss = first.square().sum(kind) + second.square().sum(kind) * 0.1;
            let once = Tensor::run_backward(&[&loss], &inputs, true, true);
            let sum: Tensor = once.iter().map(|g| g.square().sum(kind)).sum();
            once.into_iter().chain(Tensor::run_backward(&[&sum], &inputs, false, false)).collect::<Vec<_>>()
        };
        let double = || [&a, &b, &c].map(|t| t.to_kind(Kind::Double));
        let single = || [&a, &b, &c].map(Tensor::copy);
        let x = |t: &Tensor| t.sigmoid();
        let kl = |t: &Tensor| t.square().sum(t.kind());
        let pairs = [
            (
                twice(single(), &|t| gaussian_draw(&t[0], &t[1], &t[2]).unwrap()),
                twice(double(), &|t| plain_draw(&t[0], &t[1], &t[2]).unwrap()),
            ),
            (
                twice(single(), &|t| loops(&t[0], &x(&t[1]), &kl(&t[2]), 0.5).unwrap()),
                twice(double(), &|t| plain(&t[0], &x(&t[1]), &kl(&t[2]), 0.5).unwrap()),
            ),
        ];
        for (got, want) in pairs {
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                close(&format!("derivative {i}"), got, want);
                assert!(want.abs().max().double_value(&[]) > 0.0);
            }
        }
    }
}
