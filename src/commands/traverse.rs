//! `ganvae traverse`: what each dimension of the latent does to an image.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use tch::{Kind, Tensor};

use super::arguments::{TrainedModel, check_range};
use super::latent_paths::{LatentPaths, planned, vectors};
use super::print;
use crate::base::usage::usage;
use crate::run::trained::{Trained, default_place};

/// `ganvae traverse`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct Traverse {
    /// What is used.
    #[command(flatten)]
    pub of: TrainedModel,
    /// Rows: the dimensions that change the image most, the strongest first
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub dims: i64,
    /// A dimension goes from -RANGE to RANGE; the prior's standard deviation is 1
    #[arg(long, default_value_t = 3.0)]
    pub range: f64,
    /// Images of a row, both ends included [default: 10; 30 for an animation]
    #[arg(long, value_name = "N")]
    pub steps: Option<i64>,
    /// Start from the first image of `ganvae sample` with this seed [default: from the prior's mean]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// A .png for one grid, a .gif for an animation there and back, a .npy for the numbers (row by row), or a folder
    /// for a picture each [default: in the run's samples/]
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
}

impl Traverse {
    pub(super) fn run(&self) -> Result<u8> {
        check_range("dims", self.dims, 1..=1000)?;
        if !(self.range > 0.0 && self.range <= 100.0) {
            usage!(
                "--range {}: wanted a number above 0, at most 100 (the prior has a standard deviation of 1)",
                self.range
            );
        }
        let name = self.seed.map_or_else(|| "traversal.png".to_owned(), |seed| format!("traversal-{seed}.png"));
        let out = self.out.clone().unwrap_or_else(|| default_place(&self.of.run, "samples", &name));
        let trained = self.of.open()?;
        let (format, steps) = planned(&out, self.dims.min(trained.latent()), self.steps)?;
        let base = match self.seed {
            Some(seed) => vectors(&trained.prior(seed, 0, 1)?)?.swap_remove(0),
            None => vec![0.0; trained.latent() as usize],
        };
        let value = |step: usize| self.range * (2.0 * step as f64 / (steps - 1) as f64 - 1.0);
        let moved = |dim: usize, step: usize| {
            let mut z = base.clone();
            z[dim] = value(step) as f32;
            z
        };
        let effects = effects(&trained, steps as usize, &moved)?;
        let mut dims: Vec<usize> = (0..effects.len()).collect();
        dims.sort_by(|a, b| effects[*b].total_cmp(&effects[*a]).then(a.cmp(b)));
        dims.truncate(self.dims as usize);
        let at = |row: usize, step: usize| moved(dims[row], step);
        LatentPaths { trained: &trained, rows: dims.len(), steps: steps as usize, at: &at }.show(&out, format)?;
        let dims: Vec<_> = dims.iter().map(usize::to_string).collect();
        print(&format!("{}\ndimensions {}\n", out.display(), dims.join(" ")))?;
        Ok(0)
    }
}

/// For each dimension of the latent how much the image changes along its row: the variance over the steps, summed over pixels.
fn effects(trained: &Trained, steps: usize, moved: &dyn Fn(usize, usize) -> Vec<f32>) -> Result<Vec<f64>> {
    (0..trained.latent() as usize)
        .map(|dim| {
            let row: Vec<f32> = (0..steps).flat_map(|step| moved(dim, step)).collect();
            let x = trained.decode(&Tensor::f_from_slice(&row)?.f_view([steps as i64, trained.latent()])?)?;
            let spread = x.f_var_dim(&[0i64][..], false, false)?.f_sum(Kind::Double)?;
            // sync: which rows are drawn depends on it.
            Ok(spread.f_double_value(&[])?)
        })
        .collect()
}
