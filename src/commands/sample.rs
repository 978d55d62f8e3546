//! `ganvae sample`: new images of a trained model.

use std::path::{Path, PathBuf};

use anyhow::Result;
use tch::{Kind, Tensor};

use crate::base::usage::usage;
use crate::config::Settings;
use crate::pictures::image_writer::{Format, ImageWriter};
use crate::run::trained::{BATCH, Trained, default_place};

/// Bounds of `--truncation`. Below the first all images are one; beyond the second a normal number lies once in 10^23.
const TRUNCATION: std::ops::RangeInclusive<f64> = 0.01..=10.0;

/// What `ganvae sample` is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Samples<'a> {
    /// Number of images.
    pub count: i64,
    /// Seed of the latents.
    pub seed: u64,
    /// Bound of every component of a latent; none for the whole normal distribution.
    pub truncation: Option<f64>,
    /// A .png (one grid), a .npy ([N,C,H,W] float32) or a folder (a picture each); none for a grid in the run's samples/.
    pub out: Option<&'a Path>,
}

/// Draws images of the prior of the model at `root` ([`Trained::open`]); gives their place.
///
/// # Errors
/// As [`Trained::open`]; when the output cannot be written; [`crate::base::usage::Usage`] for a number out of range or another kind
/// of file.
pub fn sample(root: &Path, ask: Samples, over: &Settings) -> Result<PathBuf> {
    let Samples { count, seed, truncation, out } = ask;
    if !(1..=100_000_000).contains(&count) {
        usage!("--count {count}: wanted a whole number from 1 to 100000000");
    }
    if let Some(bound) = truncation.filter(|t| !TRUNCATION.contains(t)) {
        usage!(
            "--truncation {bound}: wanted a number from {} to {}, or leave it out for the whole normal distribution",
            TRUNCATION.start(),
            TRUNCATION.end()
        );
    }
    let cut = truncation.map_or_else(String::new, |bound| format!("-truncation-{bound}"));
    let out = out.map_or_else(|| default_place(root, "samples", &format!("sample-{seed}{cut}.png")), Path::to_owned);
    Format::of(&out, count as usize, false)?;
    let trained = Trained::open(root, over)?;
    let mut sink = ImageWriter::open(&out, count as usize, trained.shape(), None)?;
    for from in (0..count).step_by(BATCH as usize) {
        let mut z = trained.prior(seed, from, BATCH)?;
        if let Some(bound) = truncation {
            z = truncated(&z, bound)?;
        }
        sink.push(&trained.decode(&z)?.f_narrow(0, 0, BATCH.min(count - from))?)?;
    }
    sink.finish()?;
    Ok(out)
}

/// Standard normal numbers z mapped to those of the normal distribution truncated to [−T, T], T = `bound`: Brock et al. 2019
/// (arXiv 1809.11096, section 3.1).
///
/// Differs: the paper draws anew what falls outside; here F_T⁻¹(Φ(z)), F_T the truncated distribution's function, gives each z
/// its place, so that one seed shows the same images at every T, less and less varied as T falls.
///
/// # Errors
/// libtorch's.
pub fn truncated(z: &Tensor, bound: f64) -> Result<Tensor> {
    // In the lower tail, where double precision has the most to give; the upper one is its mirror.
    let tail = Tensor::from(-bound).f_special_ndtr()?.f_to_device(z.device())?;
    let below = z.f_to_kind(Kind::Double)?.f_abs()?.f_neg()?.f_special_ndtr()?; // Φ(−|z|)
    let place = &tail + below * (tail.f_neg()? * 2.0 + 1.0); // Φ(−T) + Φ(−|z|)·(1 − 2Φ(−T))
    let size = place.f_special_ndtri()?.f_neg()?.f_clamp(0.0, bound)?;
    Ok((size * z.f_sign()?).f_to_kind(Kind::Float)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native;

    fn values(t: &Tensor) -> Vec<f64> {
        Vec::<f64>::try_from(t.to_kind(Kind::Double).flatten(0, -1)).unwrap()
    }

    /// Mean square of a normal number truncated to [−T, T]: 1 − 2Tφ(T) / (2Φ(T) − 1).
    #[test]
    fn truncated_latents_have_the_closed_form_variance_and_never_leave_the_bound() {
        let z = native::randn(5, &[400, 1000]).unwrap();
        // n = statistics.NormalDist(); 1 - 2*T*n.pdf(T) / (2*n.cdf(T) - 1)
        for (bound, variance) in [(0.5, 0.080_589), (1.0, 0.291_125), (2.0, 0.773_741), (4.0, 0.998_929)] {
            let t = truncated(&z, bound).unwrap();
            let all = values(&t);
            assert!(all.iter().all(|v| v.abs() <= bound));
            assert!(all.iter().fold(0.0f64, |m, v| m.max(v.abs())) > bound * 0.99, "the bound is reached");
            let found = all.iter().map(|v| v * v).sum::<f64>() / all.len() as f64;
            assert!((found - variance).abs() < 6e-3 * variance, "T {bound}: {found}, not {variance}");
        }
    }

    #[test]
    fn the_map_keeps_order_and_sign_and_is_none_at_a_wide_bound() {
        let z = Tensor::from_slice(&[-3.0f32, -1.0, -0.1, 0.0, 0.1, 1.0, 3.0]);
        for bound in [0.01, 0.5, 2.0] {
            let t = values(&truncated(&z, bound).unwrap());
            assert!(t.windows(2).all(|w| w[0] < w[1]), "{t:?}");
            assert!((0..7).all(|i| t[i] == -t[6 - i]), "odd: {t:?}");
        }
        let wide = truncated(&z, 10.0).unwrap();
        assert!((&wide - &z).abs().max().double_value(&[]) < 1e-6);
        // n.inv_cdf(n.cdf(-1) + n.cdf(1) * (n.cdf(1) - n.cdf(-1)))
        let one = values(&truncated(&z, 1.0).unwrap())[5];
        assert!((one - 0.622_010_36).abs() < 1e-6, "{one}");
    }
}
