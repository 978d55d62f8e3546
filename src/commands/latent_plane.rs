//! A scatter plot of a VAE's latents in two dimensions.

use std::path::Path;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use indicatif::HumanCount;
use tch::{Device, Kind, Tensor};

use super::encode::each_posterior;
use crate::data::images::Source;
use crate::pictures::latent_scatter::LatentScatter;
use crate::run::trained::Trained;

/// Most points in a plot: the number of MNIST's held-out images.
const MOST_POINTS: usize = 10_000;
/// Variance of mu over the data above which a dimension counts as active: Burda et al. 2016 (arXiv 1509.00519, section 5.2).
const ACTIVE: f64 = 0.01;

/// How the latent is reduced to two dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Projection {
    /// The two dimensions in which mu varies most.
    Active,
    /// The two principal components of mu.
    Pca,
}

/// Draws the latents of the held-out images in two dimensions into `out`, a colour for each class.
pub fn draw(trained: &Trained, source: Source, projection: Projection, (title, out): (&str, &Path)) -> Result<()> {
    let shown = source.test.take(MOST_POINTS);
    let mut mus = Vec::new();
    each_posterior(trained, &shown, |mu, _| {
        mus.push(mu.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?);
        Ok(())
    })?;
    let plane = plane(&Tensor::f_cat(&mus, 0)?, projection)?;
    let scatter = LatentScatter {
        title: format!("{title}: latents of {} held-out images of {}", HumanCount(shown.count as u64), source.name),
        note: format!("{} of {} dimensions active", plane.active, trained.latent()),
        x_label: plane.labels.0,
        y_label: plane.labels.1,
        points: plane.points,
        classes: shown.labels.iter().map(|l| *l as usize).collect(),
        names: source.classes,
        prior: plane.prior,
    };
    scatter.draw_to(out)
}

/// Latents in two dimensions.
struct Plane {
    points: Vec<(f64, f64)>,
    labels: (String, String),
    /// The prior's mean.
    prior: (f64, f64),
    /// Number of active dimensions of the latent.
    active: usize,
}

/// mu [N,Z] (float64, CPU) -> [N,2].
fn plane(mu: &Tensor, projection: Projection) -> Result<Plane> {
    let mean = mu.f_mean_dim(&[0i64][..], true, Kind::Double)?; // [1,Z]
    let centred = mu.f_sub(&mean)?;
    let n = mu.size()[0];
    let variances = doubles(&centred.f_square()?.f_mean_dim(&[0i64][..], false, Kind::Double)?)?;
    let active = variances.iter().filter(|v| **v > ACTIVE).count();
    let (xy, labels, prior) = match projection {
        Projection::Active => {
            let mut order: Vec<usize> = (0..variances.len()).collect();
            order.sort_by(|a, b| variances[*b].total_cmp(&variances[*a]).then(a.cmp(b)));
            let two = [order[0] as i64, order[1] as i64];
            let label = |i: usize| format!("dimension {} (variance of mu {:.2})", order[i], variances[order[i]]);
            (mu.f_index_select(1, &Tensor::f_from_slice(&two)?)?, (label(0), label(1)), (0.0, 0.0))
        }
        Projection::Pca => {
            let covariance = centred.f_tr()?.f_matmul(&centred)? / n as f64; // [Z,Z]
            let (values, vectors) = covariance.f_linalg_eigh("L")?;
            let (values, z) = (doubles(&values)?, variances.len() as i64);
            let axes = vectors.f_index_select(1, &Tensor::f_from_slice(&[z - 1, z - 2])?)?; // [Z,2]
            // The sign of an axis is arbitrary: the largest component is made positive.
            let largest = axes.f_abs()?.f_argmax(0, true)?; // [1,2]
            let axes = axes.f_mul(&axes.f_gather(0, &largest, false)?.f_sign()?)?;
            let total: f64 = values.iter().sum();
            let label = |i: usize| {
                let share = if total > 0.0 { 100.0 * values[values.len() - i].max(0.0) / total } else { 0.0 };
                format!("principal component {i} ({share:.0} % of the variance)")
            };
            let origin = doubles(&mean.f_neg()?.f_matmul(&axes)?)?;
            (centred.f_matmul(&axes)?, (label(1), label(2)), (origin[0], origin[1]))
        }
    };
    let points: Vec<_> = doubles(&xy)?.chunks_exact(2).map(|p| (p[0], p[1])).collect();
    let finite = points.iter().all(|p| p.0.is_finite() && p.1.is_finite());
    ensure!(finite, "the latents are not finite: the run has diverged");
    Ok(Plane { points, labels, prior, active })
}

fn doubles(t: &Tensor) -> Result<Vec<f64>> {
    // sync: for a picture.
    Ok(Vec::<f64>::try_from(&t.f_contiguous()?.f_reshape([-1])?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2,000 latents of four dimensions with variances 0.25, 9, 0.001 and 1 around (5, 0, 0, 0).
    fn latents() -> Tensor {
        let z = crate::native::randn(3, &[2000, 4]).unwrap().to_kind(Kind::Double);
        z * Tensor::from_slice(&[0.5, 3.0, 0.03, 1.0]) + Tensor::from_slice(&[5.0, 0.0, 0.0, 0.0])
    }

    #[test]
    fn the_most_active_dimensions_are_drawn() {
        let mu = latents();
        let plane = plane(&mu, Projection::Active).unwrap();
        assert!(plane.labels.0.starts_with("dimension 1 (variance of mu 9.") || plane.labels.0.contains("mu 8."));
        assert!(plane.labels.1.starts_with("dimension 3 "), "{:?}", plane.labels);
        assert_eq!((plane.active, plane.prior), (3, (0.0, 0.0)));
        let want = |i: i64, j: i64| mu.get(i).get(j).double_value(&[]);
        assert_eq!(plane.points[17], (want(17, 1), want(17, 3)));
        assert_eq!(plane.points.len(), 2000);
    }

    #[test]
    fn principal_components_are_those_of_a_turned_cloud() {
        // Two dimensions turned by 30 degrees: the components turn them back.
        let (c, s) = (0.75f64.sqrt(), 0.5);
        let turn = Tensor::from_slice(&[c, s, -s, c]).view([2, 2]);
        let flat = crate::native::randn(4, &[5000, 2]).unwrap().to_kind(Kind::Double) * Tensor::from_slice(&[3.0, 1.0]);
        let mu = flat.matmul(&turn) + Tensor::from_slice(&[10.0, 0.0]);
        let plane = plane(&mu, Projection::Pca).unwrap();
        assert!(
            plane.labels.0.contains("component 1 (90 %") && plane.labels.1.contains("2 (10 %"),
            "{:?}",
            plane.labels
        );
        let centred = &flat - flat.mean_dim(&[0i64][..], true, Kind::Double);
        for i in 0..20 {
            let want = centred.get(i);
            assert!((plane.points[i as usize].0 - want.double_value(&[0])).abs() < 0.1);
            assert!((plane.points[i as usize].1 - want.double_value(&[1])).abs() < 0.2);
        }
        // The prior's mean lies 10 to the left before the turn.
        assert!((plane.prior.0 + 10.0 * c).abs() < 0.2 && (plane.prior.1 - 10.0 * s).abs() < 0.2, "{:?}", plane.prior);
    }
}
