//! `ganvae encode`, `ganvae reconstruct` and `ganvae plot --latent`: what a VAE makes of real images.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use tch::{Device, Kind, Tensor};

use crate::base::progress::Tally;
use crate::base::usage::usage;
use crate::config::Settings;
use crate::data::dataset::Dataset;
use crate::data::images::{Images, Source, spread};
use crate::pictures::curves::thousands;
use crate::pictures::grid;
use crate::pictures::image_writer::{Format, ImageWriter, flat};
use crate::pictures::latent_scatter::LatentScatter;
use crate::pictures::npy::NpyWriter;
use crate::run::trained::{BATCH, Trained, default_place};

/// Points in a picture of latents at the most: MNIST's held-out images, all of them.
const MOST_POINTS: usize = 10_000;
/// Variance of mu over the data above which a dimension counts as active: Burda et al. 2016 (arXiv 1509.00519, section 5.2).
const ACTIVE: f64 = 0.01;

/// Which half of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Split {
    /// The images that are trained on.
    Train,
    /// The held-out images.
    Test,
}

impl Split {
    /// These images of a set.
    pub fn of(self, source: &Source) -> &Images {
        match self {
            Split::Train => &source.train,
            Split::Test => &source.test,
        }
    }
}

/// How many dimensions become two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Projection {
    /// The two dimensions in which mu varies most.
    Active,
    /// The two principal components of mu.
    Pca,
}

/// Real images that a command is given.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// What names them; none for those of the run.
    pub data: Option<&'a str>,
    /// Where named sets are kept.
    pub data_dir: Option<&'a Path>,
    /// Which half.
    pub split: Split,
}

/// Draws images above what the model makes of them, at most `count`, evenly spread over the set; a .npy or a folder gets the
/// reconstructions alone. Gives their place.
///
/// # Errors
/// As [`Trained::open`] and [`Trained::source`]; [`crate::base::usage::Usage`] for a model without an encoder, a count out of range
/// or another kind of file.
pub fn reconstruct(root: &Path, given: Given, count: usize, out: Option<&Path>, over: &Settings) -> Result<PathBuf> {
    if !(1..=1_000_000).contains(&count) {
        usage!("--count {count}: wanted a whole number from 1 to 1000000");
    }
    // Of other images than the run's own under another name.
    let of = given.data.map_or_else(String::new, |data| {
        format!("-{}", Path::new(data).file_name().unwrap_or_default().to_string_lossy().replace(':', "-"))
    });
    let name = format!("reconstruct{of}.png");
    let out = out.map_or_else(|| default_place(root, "reconstructions", &name), Path::to_owned);
    let format = Format::of(&out, if Format::of(&out, 1, false)? == Format::Grid { 2 * count } else { count }, false)?;
    let trained = Trained::open(root, over)?;
    trained.check_encoder()?;
    let source = trained.source(given.data, given.data_dir)?;
    let images = given.split.of(&source);
    let chosen: Vec<i64> = spread(images.count, count).into_iter().map(|i| i as i64).collect();
    let data = Dataset::new(images, trained.device())?;
    let mut sink = match format {
        Format::Grid => None,
        _ => Some(ImageWriter::open(&out, chosen.len(), trained.shape(), None)?),
    };
    let mut pairs = Vec::new();
    for some in chosen.chunks(BATCH as usize) {
        let x = data.gather(&Tensor::f_from_slice(some)?.f_to_device(trained.device())?)?.x;
        let (mu, _) = trained.encode(&x)?;
        let again = trained.decode(&mu)?;
        match &mut sink {
            Some(sink) => sink.push(&again)?,
            None => pairs.push((grid::bytes(&x)?, grid::bytes(&again)?)),
        }
    }
    match sink {
        Some(sink) => sink.finish()?,
        None => {
            let (x, again): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            let columns = grid::columns_for(2 * chosen.len(), images.height, images.width).min(chosen.len());
            let all = grid::alternate(&Tensor::f_cat(&x, 0)?, &Tensor::f_cat(&again, 0)?, columns)?;
            grid::draw(&all, columns)?.save(&out)?;
        }
    }
    Ok(out)
}

/// Writes the latents of all images of a set: mu [N,Z] float32 to `out`, beside it logvar [N,Z] and, where the set has classes,
/// labels [N] int64. Gives the files, mu first.
///
/// # Errors
/// As [`reconstruct`].
pub fn encode(root: &Path, given: Given, out: Option<&Path>, over: &Settings) -> Result<Vec<PathBuf>> {
    let out = out.map_or_else(|| default_place(root, "", "latents.npy"), Path::to_owned);
    if out.extension().is_none_or(|e| !e.eq_ignore_ascii_case("npy")) {
        usage!("--out {}: wanted a .npy", out.display());
    }
    let trained = Trained::open(root, over)?;
    trained.check_encoder()?;
    let source = trained.source(given.data, given.data_dir)?;
    let images = given.split.of(&source);
    let (n, z) = (images.count, trained.latent() as usize);
    let mut files = vec![out.clone(), out.with_extension("logvar.npy")];
    let mut mus = NpyWriter::<f32>::create(&files[0], &[n, z])?;
    let mut logvars = NpyWriter::<f32>::create(&files[1], &[n, z])?;
    each_posterior(&trained, images, |mu, logvar| {
        // sync: on their way to files.
        mus.push(&Vec::<f32>::try_from(&flat(mu)?)?)?;
        logvars.push(&Vec::<f32>::try_from(&flat(logvar)?)?)
    })?;
    if !images.labels.is_empty() {
        let file = out.with_extension("labels.npy");
        let mut labels = NpyWriter::<i64>::create(&file, &[n])?;
        labels.push(&images.labels.iter().map(|l| i64::from(*l)).collect::<Vec<_>>())?;
        labels.finish()?;
        files.push(file);
    }
    logvars.finish()?;
    mus.finish()?;
    if images.labels.is_empty() {
        // Those of an earlier set would be taken for these images'.
        let stale = out.with_extension("labels.npy");
        match std::fs::remove_file(&stale) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).with_context(|| format!("{}, of other images, could not be removed", stale.display()))?;
            }
            _ => {}
        }
    }
    Ok(files)
}

/// Gives `take` mu and logvar [B,Z] of all images, in order.
fn each_posterior(
    trained: &Trained,
    images: &Images,
    mut take: impl FnMut(&Tensor, &Tensor) -> Result<()>,
) -> Result<()> {
    let data = Dataset::new(images, trained.device())?;
    let mut tally = Tally::start("images encoded", images.count as u64);
    for from in (0..images.count).step_by(BATCH as usize) {
        let x = data.range(from, BATCH as usize)?.x;
        let (mu, logvar) = trained.encode(&x)?;
        take(&mu, &logvar)?;
        tally.advance(x.size()[0] as u64);
    }
    Ok(())
}

/// Draws the latents of held-out images in two dimensions, a colour for each class, as .png or .svg; gives its place.
///
/// # Errors
/// As [`reconstruct`]; [`crate::base::usage::Usage`] for a latent of one dimension.
pub fn draw(
    root: &Path,
    given: Given,
    projection: Projection,
    (title, out): (&str, Option<&Path>),
    over: &Settings,
) -> Result<PathBuf> {
    let out = out.map_or_else(|| default_place(root, "", "latent.png"), Path::to_owned);
    if !out.extension().is_some_and(|e| e.eq_ignore_ascii_case("png") || e.eq_ignore_ascii_case("svg")) {
        usage!("--out {}: a picture of latents is a .png or a .svg", out.display());
    }
    let trained = Trained::open(root, over)?;
    trained.check_encoder()?;
    if trained.latent() < 2 {
        usage!("{} has a latent of one dimension, and a picture of it needs two", root.display());
    }
    let source = trained.source(given.data, given.data_dir)?;
    let images = given.split.of(&source).clone().take(MOST_POINTS);
    let mut mus = Vec::new();
    each_posterior(&trained, &images, |mu, _| {
        mus.push(mu.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?);
        Ok(())
    })?;
    let plane = plane(&Tensor::f_cat(&mus, 0)?, projection)?;
    let which = match given.split {
        Split::Train => "training",
        Split::Test => "held-out",
    };
    let scatter = LatentScatter {
        title: format!("{title}: latents of {} {which} images of {}", thousands(images.count), source.name),
        note: format!("{} of {} dimensions active", plane.active, trained.latent()),
        x_label: plane.labels.0,
        y_label: plane.labels.1,
        points: plane.points,
        classes: images.labels.iter().map(|l| usize::from(*l)).collect(),
        names: source.classes,
        prior: plane.prior,
    };
    scatter.draw_to(&out)?;
    Ok(out)
}

/// Latents in two dimensions.
struct Plane {
    points: Vec<(f64, f64)>,
    labels: (String, String),
    /// Where the prior's mean lies.
    prior: (f64, f64),
    /// Dimensions of the latent in which mu varies at all.
    active: usize,
}

/// mu [N,Z] (float64, CPU) -> [N,2].
fn plane(mu: &Tensor, projection: Projection) -> Result<Plane> {
    let mean = mu.f_mean_dim(&[0i64][..], true, Kind::Double)?; // [1,Z]
    let centred = mu - &mean;
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
            // An axis has no sign of its own: its largest part points upwards.
            let largest = axes.f_abs()?.f_argmax(0, true)?; // [1,2]
            let axes = &axes * axes.f_gather(0, &largest, false)?.f_sign()?;
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
    ensure!(
        points.iter().all(|p| p.0.is_finite() && p.1.is_finite()),
        "the latents are not finite: the run has diverged"
    );
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
