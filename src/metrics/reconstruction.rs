//! How close reconstructions are: PSNR, SSIM, and the PSNR that a linear model of the same width gives.
//!
//! Images are compared as files would hold them: clamped to [0,1] and rounded to 8 bits.

use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

use super::estimate::{Estimate, append};
use crate::base::seed::named;
use crate::data::dataset::Dataset;
use crate::native;

/// Images that are scored at a time.
const BATCH: usize = 256;

/// The scores of N images.
#[derive(Clone, Debug)]
pub struct Scores {
    /// N.
    pub images: usize,
    /// Mean of [`psnr`], dB.
    pub psnr: Estimate,
    /// Mean of [`ssim`]; none for images smaller than [`WINDOW`].
    pub ssim: Option<Estimate>,
}

/// Scores `reconstruct`, x [B,C,H,W] in [0,1] -> the same shape, on all images of `data`. `each` is told after each batch how many are
/// done, and stops the work by an error.
///
/// # Errors
/// When there are no images, shapes differ, a pixel is not finite, or `reconstruct` or `each` fails; libtorch's.
pub fn evaluate(
    data: &Dataset,
    reconstruct: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
    each: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Scores> {
    let [mut psnrs, mut ssims] = [const { Vec::new() }; 2];
    for from in (0..data.len()).step_by(BATCH) {
        let x = data.range(from, BATCH)?.x;
        let [x, y] = [to_8_bits(&x)?, to_8_bits(&reconstruct(&x)?)?];
        append(&mut psnrs, &psnr(&x, &y)?)?;
        if let Some(values) = ssim(&x, &y)? {
            append(&mut ssims, &values)?;
        }
        each(psnrs.len())?;
    }
    let psnr = Estimate::of("the PSNR", &psnrs)?;
    let ssim = (!ssims.is_empty()).then(|| Estimate::of("the SSIM", &ssims)).transpose()?;
    Ok(Scores { images: psnrs.len(), psnr, ssim })
}

/// Images [N,C,H,W] clamped to [0,1] and rounded to the 256 levels, float64.
///
/// # Errors
/// libtorch's.
pub fn to_8_bits(x: &Tensor) -> Result<Tensor> {
    let levels = x.f_to_kind(Kind::Double)?.f_clamp(0.0, 1.0)?.f_mul_scalar(255.0)?.f_round()?;
    Ok(levels.f_div_scalar(255.0)?)
}

/// Peak signal-to-noise ratio of each image, 10·log10(1/MSE) in dB: x, y [N,C,H,W] in [0,1] -> float64 [N]. The mean of a set is
/// that of these numbers, not that of the mean MSE.
///
/// Identical images count as if one value differed by one of the 255 levels: the largest finite PSNR of 8-bit images.
///
/// # Errors
/// When the shapes differ; libtorch's.
pub fn psnr(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    same_shape(x, y)?;
    let squares = x.f_to_kind(Kind::Double)?.f_sub(y)?.f_square()?.f_flatten(1, -1)?; // [N,D]
    let least = 1.0 / (255.0 * 255.0 * squares.size()[1].max(1) as f64);
    let mse = squares.f_mean_dim(1, false, Kind::Double)?.f_clamp_min(least)?;
    Ok(mse.f_log10()?.f_mul_scalar(-10.0)?)
}

/// Side of the Gaussian window of [`ssim`] in pixels: σ 1.5, cut at 3.5 σ.
pub const WINDOW: i64 = 11;

/// Structural similarity of each image (Wang et al. 2004): x, y [N,C,H,W] in [0,1] -> float64 [N]; none for images smaller than
/// [`WINDOW`]. Gaussian window 11×11 (σ 1.5), K1 0.01, K2 0.03, data range 1, the mean over all windows that lie inside the image, over
/// channels alike. Equals scikit-image's `structural_similarity` with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`.
///
/// # Errors
/// When the shapes differ; libtorch's.
pub fn ssim(x: &Tensor, y: &Tensor) -> Result<Option<Tensor>> {
    same_shape(x, y)?;
    let (_, _, h, w) = x.size4()?;
    if h.min(w) < WINDOW {
        return Ok(None);
    }
    let [rows, columns] = [windows(h)?.f_to_device(x.device())?, windows(w)?.f_to_device(x.device())?.f_tr()?];
    let filtered = |t: &Tensor| -> Result<Tensor> { Ok(rows.f_matmul(t)?.f_matmul(&columns)?) };
    let [x, y] = [x.f_to_kind(Kind::Double)?, y.f_to_kind(Kind::Double)?];
    let (mx, my) = (filtered(&x)?, filtered(&y)?); // [N,C,H−10,W−10]
    let product = mx.f_mul(&my)?;
    let squares = mx.f_square()?.f_add(&my.f_square()?)?;
    let covariance = filtered(&x.f_mul(&y)?)?.f_sub(&product)?;
    let variances = filtered(&x.f_square()?.f_add(&y.f_square()?)?)?.f_sub(&squares)?;
    let (c1, c2) = (0.01 * 0.01, 0.03 * 0.03);
    let twice = |t: &Tensor, c: f64| t.f_mul_scalar(2.0)?.f_add_scalar(c);
    let above = twice(&product, c1)?.f_mul(&twice(&covariance, c2)?)?;
    let below = squares.f_add_scalar(c1)?.f_mul(&variances.f_add_scalar(c2)?)?;
    Ok(Some(above.f_div(&below)?.f_flatten(1, -1)?.f_mean_dim(1, false, Kind::Double)?))
}

/// The Gaussian of [`WINDOW`] at each place inside a line of `n` pixels: float64 [n−10,n].
fn windows(n: i64) -> Result<Tensor> {
    let half = WINDOW / 2;
    let weights: Vec<f64> = (-half..=half).map(|i| (-0.5 * (i as f64 / 1.5).powi(2)).exp()).collect();
    let total: f64 = weights.iter().sum();
    let (places, n) = ((n - 2 * half) as usize, n as usize);
    let mut all = vec![0.0; places * n];
    for (i, row) in all.chunks_exact_mut(n).enumerate() {
        row[i..i + weights.len()].iter_mut().zip(&weights).for_each(|(to, w)| *to = w / total);
    }
    Ok(Tensor::f_from_slice(&all)?.f_view([places as i64, n as i64])?)
}

fn same_shape(x: &Tensor, y: &Tensor) -> Result<()> {
    let (a, b) = (x.size(), y.size());
    ensure!(a.len() == 4 && a == b, "two batches of images [N,C,H,W] of one shape are wanted, found {a:?} and {b:?}");
    Ok(())
}

/// Largest number of values of an image whose covariance matrix is computed; beyond, subspace iteration takes its place.
const EXACT: i64 = 1024;
/// Directions beyond the wanted ones that subspace iteration follows, and its passes over the data.
const EXTRA: i64 = 16;
const PASSES: usize = 8;

/// The first Z principal components of a set of images: the best linear autoencoder with Z latents.
///
/// Up to 1,024 values in an image they are the eigenvectors of the covariance matrix; beyond, those of its restriction to a subspace of
/// Z + 16 directions after 8 passes of subspace iteration (Halko, Martinsson and Tropp 2011, arXiv 0909.4061, algorithms 4.4 and 5.3).
/// Both read the set in batches, in float64.
#[derive(Debug)]
pub struct PrincipalComponents {
    /// [D]
    mean: Tensor,
    /// [D,Z], orthonormal columns.
    components: Tensor,
}

impl PrincipalComponents {
    /// The first `count` components of `data`, all D if there are fewer. `each` is told the number of passes over the data that are
    /// done and of all, and stops the work by an error.
    ///
    /// # Errors
    /// When there are no images, or `each` fails; libtorch's.
    pub fn of(data: &Dataset, count: i64, seed: u64, each: &mut dyn FnMut(usize, usize) -> Result<()>) -> Result<Self> {
        let d = data.shape().numel();
        Self::by(data, count, (d > EXACT && count + EXTRA < d).then_some(seed), each)
    }

    /// [`PrincipalComponents::of`] by the covariance matrix, or by subspace iteration from random directions of a seed.
    fn by(
        data: &Dataset,
        count: i64,
        seed: Option<u64>,
        each: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Self> {
        let d = data.shape().numel();
        ensure!(!data.is_empty() && count > 0, "principal components need images and a number of them above 0");
        let passes = seed.map_or(2, |_| 1 + PASSES);
        let mean = sum(data, |x| Ok(x.f_sum_dim_intlist(0, false, Kind::Double)?))?.f_div_scalar(data.len() as f64)?;
        each(1, passes)?;
        let centred = |x: &Tensor| x.f_sub(&mean);
        let components = match seed {
            None => {
                let covariance = sum(data, |x| {
                    let x = centred(x)?;
                    Ok(x.f_tr()?.f_matmul(&x)?)
                })?;
                each(2, passes)?;
                last(&covariance.f_linalg_eigh("L")?.1, count)?
            }
            Some(seed) => {
                let random = native::randn(named(seed as i64, "principal components"), &[d, count + EXTRA])?;
                let mut basis = random.f_to_device(mean.device())?.f_to_kind(Kind::Double)?; // [D,Z+16]
                let mut image = basis.shallow_clone();
                for pass in 1..=PASSES {
                    basis = Tensor::f_linalg_qr(&image, "reduced")?.0;
                    image = sum(data, |x| {
                        let x = centred(x)?;
                        Ok(x.f_tr()?.f_matmul(&x.f_matmul(&basis)?)?)
                    })?;
                    each(1 + pass, passes)?;
                }
                let restricted = basis.f_tr()?.f_matmul(&image)?;
                basis.f_matmul(&last(&restricted.f_linalg_eigh("L")?.1, count)?)?
            }
        };
        Ok(PrincipalComponents { mean, components })
    }

    /// Z.
    pub fn len(&self) -> i64 {
        self.components.size()[1]
    }

    /// Whether Z is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The mean image plus the projection on the components: x [B,C,H,W] -> float64 of the same shape, not clamped.
    ///
    /// # Errors
    /// When the shape is not that of the set; libtorch's.
    pub fn reconstruct(&self, x: &Tensor) -> Result<Tensor> {
        let flat = x.f_to_kind(Kind::Double)?.f_flatten(1, -1)?.f_sub(&self.mean)?;
        let latents = flat.f_matmul(&self.components)?; // [B,Z]
        Ok(latents.f_matmul(&self.components.f_tr()?)?.f_add(&self.mean)?.f_view(&x.size()[..])?)
    }
}

/// The last `count` columns, all if there are fewer: the eigenvalues ascend.
fn last(vectors: &Tensor, count: i64) -> Result<Tensor> {
    let all = vectors.size()[1];
    let count = count.min(all);
    Ok(vectors.f_narrow(1, all - count, count)?.f_contiguous()?)
}

/// The sum over batches x [B,D], float64.
fn sum(data: &Dataset, of: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let part = |from| of(&data.range(from, BATCH)?.x.f_to_kind(Kind::Double)?.f_flatten(1, -1)?);
    let mut total = part(0)?;
    for from in (BATCH..data.len()).step_by(BATCH) {
        total = total.f_add(&part(from)?)?;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::seed::Stream;
    use crate::data::digits;
    use tch::Device;

    fn images(seed: i64, dims: &[i64]) -> Tensor {
        native::random(seed, dims, native::Distribution::Uniform).unwrap()
    }

    fn numbers(t: &Tensor) -> Vec<f64> {
        Vec::try_from(t.to_kind(Kind::Double).flatten(0, -1)).unwrap()
    }

    fn close(got: f64, want: f64, within: f64) {
        assert!((got - want).abs() <= within, "{got}, wanted {want}");
    }

    fn quiet(_: usize, _: usize) -> Result<()> {
        Ok(())
    }

    #[test]
    fn psnr_is_of_each_image_and_finite_for_identical_ones() {
        let x = to_8_bits(&images(1, &[3, 2, 4, 5])).unwrap();
        let y = &x + Tensor::from_slice(&[0.0f64, 0.1, 0.001]).view([3, 1, 1, 1]);
        let got = numbers(&psnr(&x, &y).unwrap());
        close(got[1], 20.0, 1e-9);
        close(got[2], 60.0, 1e-9);
        // One of 40 values off by one level.
        let one = x.copy();
        let _ = one.get(0).get(0).get(0).narrow(0, 0, 1).f_add_scalar_(1.0 / 255.0).unwrap();
        let least = numbers(&psnr(&x, &one).unwrap())[0];
        close(least, 10.0 * (40.0 * 255.0f64 * 255.0).log10(), 1e-9);
        close(got[0], least, 1e-9);
        assert!(psnr(&x, &y.narrow(0, 0, 2)).unwrap_err().to_string().contains("one shape"));
    }

    #[test]
    fn pixels_are_those_of_a_file() {
        let x = Tensor::from_slice(&[-0.5f32, 0.0019, 0.002, 0.5, 1.5]).view([1, 1, 1, 5]);
        assert_eq!(numbers(&(to_8_bits(&x).unwrap() * 255.0)), [0.0, 0.0, 1.0, 128.0, 255.0]);
    }

    #[test]
    fn ssim_needs_images_of_the_window() {
        let x = images(2, &[2, 3, 11, 14]);
        let same = numbers(&ssim(&x, &x).unwrap().unwrap());
        same.into_iter().for_each(|v| close(v, 1.0, 1e-12));
        let small = x.narrow(2, 0, 10);
        assert!(ssim(&small, &small).unwrap().is_none());
    }

    fn set(count: usize) -> Dataset {
        Dataset::new(&digits::generate(3, Stream::DigitsTrain, count), Device::Cpu).unwrap()
    }

    #[test]
    fn components_are_the_singular_vectors_of_the_set_whatever_the_method() {
        let (train, test) = (set(300), set(400).range(300, 100).unwrap().x);
        let x = train.range(0, 300).unwrap().x.to_kind(Kind::Double).flatten(1, -1);
        let mean = x.mean_dim(0, false, Kind::Double);
        let (.., v) = (&x - &mean).svd(true, true); // [784,300]
        for count in [1, 8, 40] {
            let v = v.narrow(1, 0, count);
            let want = (test.to_kind(Kind::Double).flatten(1, -1) - &mean).matmul(&v).matmul(&v.tr()) + &mean;
            let want = psnr(&test, &want.view([100, 1, 28, 28])).unwrap().mean(Kind::Double).double_value(&[]);
            for (seed, within) in [(None, 1e-9), (Some(1), 0.01)] {
                let found = PrincipalComponents::by(&train, count, seed, &mut quiet).unwrap();
                assert_eq!(found.len(), count);
                let got = psnr(&test, &found.reconstruct(&test).unwrap()).unwrap().mean(Kind::Double);
                close(got.double_value(&[]), want, within);
            }
        }
    }

    #[test]
    fn as_many_components_as_values_lose_nothing() {
        let train = set(1000);
        let all = PrincipalComponents::of(&train, 5000, 1, &mut quiet).unwrap();
        let scores = evaluate(&set(50), &mut |x| all.reconstruct(x), &mut |_| Ok(())).unwrap();
        close(scores.psnr.mean, 10.0 * (784.0 * 255.0f64 * 255.0).log10(), 1e-9);
        close(scores.ssim.unwrap().mean, 1.0, 1e-9);
        assert_eq!(scores.images, 50);
    }

    #[test]
    fn a_failure_of_the_caller_ends_the_work() {
        let stopped = evaluate(&set(600), &mut |x| Ok(x.shallow_clone()), &mut |done| {
            ensure!(done < 512, "stopped at {done}");
            Ok(())
        });
        assert_eq!(stopped.unwrap_err().to_string(), "stopped at 512");
        let nan = evaluate(&set(3), &mut |x| Ok(x * f64::NAN), &mut |_| Ok(()));
        assert!(nan.unwrap_err().to_string().contains("the PSNR of image 0 is NaN"));
    }
}
