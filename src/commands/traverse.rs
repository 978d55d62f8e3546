//! `ganvae traverse`: draws the effect of each dimension of the latent on an image.

use anyhow::Result;
use clap::Args;
use tch::{Kind, Tensor};

use super::arguments::{TrainedModel, check_range, class_number};
use super::latent_paths::{LatentPaths, PathOutput, one_class, vectors};
use super::print;
use crate::base::names::printable;
use crate::base::usage::usage;
use crate::run::trained::Trained;

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct Traverse {
    #[command(flatten)]
    of: TrainedModel,
    /// Number of dimensions, each a row: those that change the image most, the strongest first
    #[arg(long, value_name = "N", default_value_t = 10)]
    dims: i64,
    /// Change each dimension from -RANGE to RANGE; the prior has a standard deviation of 1
    #[arg(long, default_value_t = 3.0)]
    range: f64,
    /// Start from the first image of `ganvae sample` with this seed [default: from the prior's mean]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Class of the images of a conditional model: its name or number [default: the first]
    #[arg(long, value_name = "NAME")]
    class: Option<String>,
    #[command(flatten)]
    output: PathOutput,
}

impl Traverse {
    pub(super) fn run(&self) -> Result<u8> {
        check_range("dims", self.dims, 1..=1000)?;
        if !(self.range > 0.0 && self.range <= 100.0) {
            let range = self.range;
            usage!("--range {range}: wanted a number above 0, at most 100 (the prior has a standard deviation of 1)");
        }
        let name = self.seed.map_or_else(|| "traversal.png".to_owned(), |seed| format!("traversal-{seed}.png"));
        let trained = self.of.open()?;
        let (out, format, steps) = self.output.resolve(&self.of, &name, self.dims.min(trained.latent()))?;
        let base = match self.seed {
            Some(seed) => vectors(&trained.prior(seed, 0, 1)?)?.swap_remove(0),
            None => vec![0.0; trained.latent() as usize],
        };
        let moved = |dim: usize, step: usize| {
            let mut z = base.clone();
            z[dim] = (self.range * (2.0 * step as f64 / (steps - 1) as f64 - 1.0)) as f32;
            z
        };
        let class = class_number(&trained, self.class.as_deref())?;
        let weights = trained.classes().map(|classes| one_class(classes.len(), class.unwrap_or(0)));
        let effects = effects(&trained, steps as usize, &moved, weights.as_deref())?;
        let mut dims: Vec<usize> = (0..effects.len()).collect();
        dims.sort_by(|a, b| effects[*b].total_cmp(&effects[*a]).then(a.cmp(b)));
        dims.truncate(self.dims as usize);
        let latent = |row: usize, step: usize| moved(dims[row], step);
        let classes = weights.map(|weights| move |_: usize, _: usize| weights.clone());
        let classes = classes.as_ref().map(|classes| classes as &dyn Fn(usize, usize) -> Vec<f32>);
        LatentPaths { trained: &trained, rows: dims.len(), steps: steps as usize, latent: &latent, classes }
            .draw(&out, format)?;
        let dims: Vec<_> = dims.iter().map(usize::to_string).collect();
        print(&format!("{}\ndimensions {}\n", printable(&out), dims.join(" ")))
    }
}

/// The effect of each dimension of the latent on the image: the variance over the steps, summed over pixels.
fn effects(
    trained: &Trained,
    steps: usize,
    moved: &dyn Fn(usize, usize) -> Vec<f32>,
    class: Option<&[f32]>,
) -> Result<Vec<f64>> {
    let classes = class.map(|weights| Tensor::f_from_slice(weights)?.f_repeat([steps as i64, 1])).transpose()?;
    (0..trained.latent() as usize)
        .map(|dim| {
            let row: Vec<f32> = (0..steps).flat_map(|step| moved(dim, step)).collect();
            let z = Tensor::f_from_slice(&row)?.f_view([steps as i64, trained.latent()])?;
            let x = trained.decode(&z, classes.as_ref())?;
            let spread = x.f_var_dim(&[0i64][..], false, false)?.f_sum(Kind::Double)?;
            // sync: the choice of rows depends on it.
            Ok(spread.f_double_value(&[])?)
        })
        .collect()
}
