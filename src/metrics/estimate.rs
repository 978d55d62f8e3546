//! A mean over images and how well it is known.

use anyhow::{Result, bail};
use tch::{Device, Kind, Tensor};

/// A mean over images with its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// The standard deviation of the images (with N − 1) over √N; NaN for a single image.
    pub standard_error: f64,
}

impl Estimate {
    /// The mean of one value for each image.
    ///
    /// # Errors
    /// When there are none, or one is not finite: `what` names the value.
    pub fn of(what: &str, values: &[f64]) -> Result<Self> {
        if values.is_empty() {
            bail!("{what}: there are no images to score, wanted at least one");
        }
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            bail!(
                "{what} of image {i} is {}, wanted a finite number: the weights are damaged or have diverged",
                values[i]
            );
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Ok(Estimate { mean, standard_error: (variance / n).sqrt() })
    }

    /// The estimate of a·value + b.
    #[must_use]
    pub fn scaled(self, a: f64, b: f64) -> Self {
        Estimate { mean: a * self.mean + b, standard_error: a.abs() * self.standard_error }
    }
}

/// Appends the values of a tensor [N] to a list.
///
/// # Errors
/// libtorch's.
pub(super) fn append(list: &mut Vec<f64>, values: &Tensor) -> Result<()> {
    // sync: scores are added up on the host, once for each batch.
    let values = values.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?;
    list.extend(Vec::<f64>::try_from(&values)?); // sync: as above
    Ok(())
}
