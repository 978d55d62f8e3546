//! `ganvae reconstruct`: draws images above their reconstructions.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use tch::Tensor;

use super::arguments::{RealImages, TrainedModel, check_range, write_names};
use super::encodings::{Encodings, Fidelity, SearchArguments};
use super::print;
use crate::base::names::printable;
use crate::data::dataset::Dataset;
use crate::data::images::spread;
use crate::pictures::grid::{alternate, columns_for};
use crate::pictures::image_writer::{ImageWriter, OutputFormat};
use crate::run::trained::BATCH;

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct Reconstruct {
    #[command(flatten)]
    of: TrainedModel,
    #[command(flatten)]
    images: RealImages,
    #[command(flatten)]
    search: SearchArguments,
    /// Largest number of images; they are evenly spread over the data set
    #[arg(long, value_name = "N", default_value_t = 32)]
    count: usize,
    /// A .png (one grid: rows of images above their reconstructions), or for the reconstructions alone a .npy (array) or a folder (one
    /// .png per image) [default: in the run's reconstructions/]
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
}

impl Reconstruct {
    pub(super) fn run(&self) -> Result<u8> {
        let count = self.count;
        check_range("count", count, 1..=1_000_000)?;
        // Images other than the run's own go into a file of another name.
        let name = format!("reconstruct{}.png", self.images.label());
        let out = self.out.clone().unwrap_or_else(|| self.of.default_place("reconstructions", &name));
        let grid = OutputFormat::of(&out, 1, false)? == OutputFormat::Grid;
        let pictures = |images: usize| if grid { 2 * images } else { images };
        OutputFormat::of(&out, pictures(count), false)?;
        let trained = self.of.open_to_encode()?;
        let search = self.search.search(&trained)?;
        let images = &self.images.images(&trained)?;
        let chosen: Vec<i64> = spread(images.count, count).into_iter().map(|i| i as i64).collect();
        let data = Dataset::new(images, trained.device())?;
        let columns = columns_for(2 * chosen.len(), images.height, images.width).min(chosen.len());
        // A short last row of the grid is filled up.
        let shown = if grid { chosen.len().next_multiple_of(columns) } else { chosen.len() };
        let mut writer = ImageWriter::open(&out, pictures(shown), trained.shape(), grid.then_some(columns))?;
        // Complete rows of the grid, about a batch at a time. All latents come first: a search has a progress bar of its own.
        let chunks = || chosen.chunks((BATCH as usize).next_multiple_of(columns));
        let gathered = |index| -> Result<Tensor> {
            Ok(data.gather(&Tensor::f_from_slice(index)?.f_to_device(trained.device())?)?.x)
        };
        let latents = {
            let mut encodings = Encodings::start(&trained, search, chosen.len());
            chunks().map(|index| encodings.of(&gathered(index)?)).collect::<Result<Vec<_>>>()?
        };
        let mut fidelity = Fidelity::default();
        for (index, (z, classes)) in chunks().zip(&latents) {
            let (x, reconstructions) = (gathered(index)?, trained.decode(z, classes.as_ref())?);
            fidelity.add(&x, &reconstructions)?;
            writer.push(&if grid { alternate(&x, &reconstructions, columns)? } else { reconstructions })?;
        }
        writer.finish()?;
        let names = write_names(images, chosen.iter().map(|i| *i as usize), &out)?;
        let files: String = [Some(out), names].iter().flatten().map(|f| format!("{}\n", printable(f))).collect();
        print(&(files + &fidelity.line()))
    }
}
