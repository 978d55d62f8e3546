//! `ganvae encode`: writes the latents of images as arrays.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use tch::{Kind, Tensor};

use super::arguments::{RealImages, TrainedModel, check_ending, write_names};
use super::print;
use crate::base::names::printable;
use crate::base::progress::Tally;
use crate::data::dataset::Dataset;
use crate::data::images::Images;
use crate::pictures::npy::NpyWriter;
use crate::run::folder::ignore_missing;
use crate::run::trained::{BATCH, Trained};

#[derive(Debug, Args)]
pub(super) struct Encode {
    #[command(flatten)]
    of: TrainedModel,
    #[command(flatten)]
    images: RealImages,
    /// The means of the latents, [N,Z]; beside them X.logvar.npy, X.labels.npy where there are classes, and X.csv with the names of
    /// pictures [default: latents.npy in the run]
    #[arg(long, value_name = "X.npy")]
    out: Option<PathBuf>,
}

impl Encode {
    pub(super) fn run(&self) -> Result<u8> {
        let out = self.out.clone().unwrap_or_else(|| self.of.default_place("", "latents.npy"));
        check_ending("out", &out, &["npy"])?;
        let trained = self.of.open_with_encoder()?;
        let images = &self.images.images(&trained)?;
        let (n, z) = (images.count, trained.latent() as usize);
        let mut files = vec![out.clone(), out.with_extension("logvar.npy")];
        let mut mus = NpyWriter::create(&files[0], &[n, z], Kind::Float)?;
        let mut logvars = NpyWriter::create(&files[1], &[n, z], Kind::Float)?;
        each_posterior(&trained, images, |mu, logvar| {
            mus.push(mu)?;
            logvars.push(logvar)
        })?;
        let labels_file = out.with_extension("labels.npy");
        if !images.labels.is_empty() {
            let mut labels = NpyWriter::create(&labels_file, &[n], Kind::Int64)?;
            labels.push(&images.label_tensor()?)?;
            labels.finish()?;
            files.push(labels_file.clone());
        }
        files.extend(write_names(images, 0..n, &out)?);
        logvars.finish()?;
        mus.finish()?;
        if images.labels.is_empty() {
            // Labels of an earlier data set do not belong to these images.
            ignore_missing(std::fs::remove_file(&labels_file))
                .with_context(|| format!("{}, of other images, could not be removed", labels_file.display()))?;
        }
        print(&files.iter().map(|f| format!("{}\n", printable(f))).collect::<String>())
    }
}

/// Calls `take` with mu and logvar [B,Z] of all images, in order.
pub(super) fn each_posterior(
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
