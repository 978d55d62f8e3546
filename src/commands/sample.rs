//! `ganvae sample`: draws new images from a trained model.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use tch::{Kind, Tensor};

use super::arguments::{TrainedModel, check_range, class_number};
use super::encodings::{of_picture, stem};
use super::print;
use crate::base::classes::{Classes, ROW};
use crate::base::names::printable;
use crate::pictures::image_writer::{ImageWriter, OutputFormat};
use crate::pictures::npy::NpyWriter;
use crate::run::trained::BATCH;

/// Range of `--truncation`. Below it all images are alike; a normal number exceeds 10 with a probability of 1e-23.
const TRUNCATION: std::ops::RangeInclusive<f64> = 0.01..=10.0;

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct Sample {
    #[command(flatten)]
    of: TrainedModel,
    /// Number of images [default: 64; 8 of each class of a conditional model, of at most 16]
    #[arg(long, value_name = "N")]
    count: Option<i64>,
    /// Draw images of this class of a conditional model: its name or number [default: 8 of each class in turn, a row of the grid]
    #[arg(long, value_name = "NAME", conflicts_with = "near")]
    class: Option<String>,
    /// Seed of the latents [default: a new one each time; it is printed]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Draw z from a normal distribution truncated to [-T, T]: a smaller T gives images closer to the average (0.01 to 10)
    #[arg(long, value_name = "T")]
    truncation: Option<f64>,
    /// Draw variants of this picture
    #[arg(long, value_name = "PICTURE", conflicts_with = "truncation")]
    near: Option<PathBuf>,
    /// How far the variants are from the picture, from 0 (its reconstruction) to 1 (any image)
    #[arg(long, value_name = "S", requires = "near", default_value_t = 0.3)]
    strength: f64,
    /// A .png (one grid), a .npy (array), or a folder (one .png per image) [default: in the run's samples/]
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
}

impl Sample {
    pub(super) fn run(&self) -> Result<u8> {
        let Sample { of, count, class, seed, truncation, near, strength, out } = self;
        let seed = seed.unwrap_or_else(new_seed);
        count.map_or(Ok(()), |count| check_range("count", count, 1..=100_000_000))?;
        truncation.map_or(Ok(()), |bound| check_range("truncation", bound, TRUNCATION))?;
        check_range("strength", *strength, 0.0..=1.0)?;
        let cut = match (truncation, near) {
            (Some(bound), _) => format!("-truncation-{bound}"),
            (None, Some(picture)) => format!("-near-{}-{strength}", stem(picture)),
            (None, None) => String::new(),
        };
        let cut = class.as_ref().map_or(cut.clone(), |class| format!("{cut}-{}", class.trim().replace('/', "-")));
        let out = out.clone().unwrap_or_else(|| of.default_place("samples", &format!("sample-{seed}{cut}.png")));
        let format = OutputFormat::of(&out, count.unwrap_or(64) as usize, false)?;
        let trained = of.open()?;
        let class = class_number(&trained, class.as_deref())?;
        let in_rows = trained.classes().filter(|_| class.is_none() && near.is_none());
        let count = count.unwrap_or_else(|| in_rows.map_or(64, Classes::in_grid));
        let centre = near.as_ref().map(|picture| of_picture(&trained, picture)).transpose()?;
        let columns = in_rows.map(|_| ROW as usize).filter(|_| format == OutputFormat::Grid);
        let mut sink = ImageWriter::open(&out, count as usize, trained.shape(), columns)?;
        let mut labels = Vec::new();
        for from in (0..count).step_by(BATCH as usize) {
            let mut z = trained.prior(seed, from, BATCH)?;
            if let Some(bound) = truncation {
                z = truncated(&z, *bound)?;
            }
            if let Some((centre, _)) = &centre {
                z = varied(centre, &z, *strength)?;
            }
            let classes = match (in_rows, &class, &centre) {
                (Some(classes), ..) => Some(classes.in_rows(from, BATCH, trained.device())?),
                (None, Some(class), _) => Some(Tensor::f_full([BATCH], *class, (Kind::Int64, trained.device()))?),
                (None, None, Some((_, Some(class)))) => Some(class.f_expand([BATCH], false)?),
                (None, None, _) => None,
            };
            let taken = BATCH.min(count - from);
            sink.push(&trained.decode(&z, classes.as_ref())?.f_narrow(0, 0, taken)?)?;
            labels.extend(classes.map(|classes| classes.f_narrow(0, 0, taken)).transpose()?);
        }
        sink.finish()?;
        let labels_file = out.with_extension("labels.npy");
        let mut files = format!("{}\n", printable(&out));
        if format == OutputFormat::Npy && !labels.is_empty() {
            let mut writer = NpyWriter::create(&labels_file, &[count as usize], Kind::Int64)?;
            labels.iter().try_for_each(|labels| writer.push(labels))?;
            writer.finish()?;
            files += &format!("{}\n", printable(&labels_file));
        }
        let rows = in_rows.map_or_else(String::new, |classes| row_names(classes, count));
        print(&format!("{files}{rows}seed {seed}\n"))
    }
}

/// A line that names the classes of the grid's rows.
fn row_names(classes: &Classes, count: i64) -> String {
    let rows = (count as usize).div_ceil(ROW as usize).min(classes.names.len());
    let more =
        if rows < classes.names.len() { format!(" (of {} classes)", classes.names.len()) } else { String::new() };
    format!("classes {}{more}\n", classes.names[..rows].join(", "))
}

/// A seed of at most six digits, to be typed again.
fn new_seed() -> u64 {
    // The standard library's only source of randomness: each state has keys of the system's.
    RandomState::new().build_hasher().finish() % 1_000_000
}

/// Variants of a latent: centre [1,Z], noise eps [B,Z] from N(0, I) -> √(1 − s²)·centre + s·eps [B,Z]. If the centre is from N(0, I), so
/// are its variants, at every strength s.
fn varied(centre: &Tensor, eps: &Tensor, strength: f64) -> Result<Tensor> {
    let kept = centre.f_mul_scalar((1.0 - strength * strength).sqrt())?;
    Ok(eps.f_mul_scalar(strength)?.f_add(&kept)?)
}

/// Standard normal numbers z mapped to those of the normal distribution truncated to [−T, T], T = `bound`: Brock et al. 2019
/// (arXiv 1809.11096, section 3.1).
///
/// Differs: the paper samples again what falls outside; here z becomes F_T⁻¹(Φ(z)), F_T the truncated distribution's cumulative
/// distribution function, so that one seed gives similar images at every T, less varied as T falls.
pub fn truncated(z: &Tensor, bound: f64) -> Result<Tensor> {
    // In the lower tail, where double precision is the most exact; the upper tail is symmetric.
    let tail = Tensor::from(-bound).f_special_ndtr()?.f_to_device(z.device())?;
    let below = z.f_to_kind(Kind::Double)?.f_abs()?.f_neg()?.f_special_ndtr()?; // Φ(−|z|)
    let place = below.f_mul(&tail.f_mul_scalar(-2.0)?.f_add_scalar(1.0)?)?.f_add(&tail)?; // Φ(−T) + Φ(−|z|)·(1 − 2Φ(−T))
    let size = place.f_special_ndtri()?.f_neg()?.f_clamp(0.0, bound)?;
    Ok(size.f_mul(&z.f_sign()?)?.f_to_kind(Kind::Float)?)
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
