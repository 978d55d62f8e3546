//! `ganvae encode`: writes the latents of images as arrays.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use tch::{Kind, Tensor};

use super::arguments::{RealImages, TrainedModel, check_ending, write_names};
use super::encodings::{Encodings, Fidelity, SearchArguments};
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
    #[command(flatten)]
    search: SearchArguments,
    /// The latents, [N,Z]: of a VAE the means mu, of a GAN z; beside them X.logvar.npy (VAE), X.classes.npy (conditional GAN: the classes
    /// that the search found), X.labels.npy where the images have classes, and X.csv with the names of pictures [default: latents.npy in
    /// the run]
    #[arg(long, value_name = "X.npy")]
    out: Option<PathBuf>,
}

impl Encode {
    pub(super) fn run(&self) -> Result<u8> {
        let out = self.out.clone().unwrap_or_else(|| self.of.default_place("", "latents.npy"));
        check_ending("out", &out, &["npy"])?;
        let trained = self.of.open_to_encode()?;
        let search = self.search.search(&trained)?;
        let images = &self.images.images(&trained)?;
        let (n, z) = (images.count, trained.latent() as usize);
        let [logvar_file, classes_file, labels_file] =
            ["logvar.npy", "classes.npy", "labels.npy"].map(|ending| out.with_extension(ending));
        let mut files = vec![out.clone()];
        let mut latents = NpyWriter::create(&out, &[n, z], Kind::Float)?;
        let mut fidelity = None;
        if trained.is_gan() {
            let quality = fidelity.insert(Fidelity::default());
            let mut encodings = Encodings::start(&trained, search, n);
            let mut found = Vec::new();
            each_batch(&trained, images, |x| {
                let (z, classes) = encodings.of(x)?;
                quality.add(x, &trained.decode(&z, classes.as_ref())?)?;
                found.extend(classes);
                latents.push(&z)
            })?;
            if found.is_empty() {
                remove_other(&classes_file)?;
            } else {
                let mut writer = NpyWriter::create(&classes_file, &[n], Kind::Int64)?;
                found.iter().try_for_each(|classes| writer.push(classes))?;
                writer.finish()?;
                files.push(classes_file);
            }
            remove_other(&logvar_file)?;
        } else {
            let mut logvars = NpyWriter::create(&logvar_file, &[n, z], Kind::Float)?;
            each_posterior(&trained, images, |mu, logvar| {
                latents.push(mu)?;
                logvars.push(logvar)
            })?;
            logvars.finish()?;
            files.push(logvar_file);
        }
        if images.labels.is_empty() {
            remove_other(&labels_file)?;
        } else {
            let mut labels = NpyWriter::create(&labels_file, &[n], Kind::Int64)?;
            labels.push(&images.label_tensor()?)?;
            labels.finish()?;
            files.push(labels_file);
        }
        files.extend(write_names(images, 0..n, &out)?);
        latents.finish()?;
        let files: String = files.iter().map(|f| format!("{}\n", printable(f))).collect();
        print(&(files + &fidelity.map_or_else(String::new, |fidelity| fidelity.line())))
    }
}

/// Removes a file that an earlier call wrote beside its latents, and that does not belong to these.
fn remove_other(file: &Path) -> Result<()> {
    ignore_missing(std::fs::remove_file(file))
        .with_context(|| format!("{}, of other images, could not be removed", file.display()))
}

/// Calls `take` with all images, x [B,C,H,W], in order.
fn each_batch(trained: &Trained, images: &Images, mut take: impl FnMut(&Tensor) -> Result<()>) -> Result<()> {
    let data = Dataset::new(images, trained.device())?;
    (0..images.count).step_by(BATCH as usize).try_for_each(|from| take(&data.range(from, BATCH as usize)?.x))
}

/// Calls `take` with mu and logvar [B,Z] of all images, in order.
pub(super) fn each_posterior(
    trained: &Trained,
    images: &Images,
    mut take: impl FnMut(&Tensor, &Tensor) -> Result<()>,
) -> Result<()> {
    let mut tally = Tally::start("images encoded", images.count as u64);
    each_batch(trained, images, |x| {
        let (mu, logvar) = trained.encode(x)?;
        take(&mu, &logvar)?;
        tally.advance(x.size()[0] as u64);
        Ok(())
    })
}
