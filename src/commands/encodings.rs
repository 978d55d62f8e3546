//! The latents of real images, for every command that starts from them: a VAE's by its encoder, a GAN's by a search.

use std::path::Path;

use anyhow::{Result, ensure};
use clap::Args;
use tch::Tensor;

use super::arguments::check_range;
use crate::base::progress::Tally;
use crate::base::usage::usage;
use crate::data::dataset::Dataset;
use crate::metrics::reconstruction::{psnr, to_8_bits};
use crate::models::inversion::Search;
use crate::run::trained::Trained;

/// The search for the latents of a GAN.
#[derive(Debug, Args)]
pub struct SearchArguments {
    /// GAN: updates of the search for the latent of an image [default: 200]
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// GAN: latents that the search goes on from at a time; the best is taken [default: 4]
    #[arg(long, value_name = "N")]
    starts: Option<i64>,
    /// GAN: seed of the search [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl SearchArguments {
    /// The search that they describe, for this model.
    pub fn search(&self, trained: &Trained) -> Result<Search> {
        let given = [("steps", self.steps.is_some()), ("starts", self.starts.is_some()), ("seed", self.seed.is_some())];
        if let (false, Some((flag, _))) = (trained.is_gan(), given.iter().find(|(_, given)| *given)) {
            usage!(
                "--{flag} is for a GAN, whose latents are searched for; a VAE's encoder computes them: leave it out"
            );
        }
        let default = Search::default();
        let search = Search {
            steps: self.steps.unwrap_or(default.steps),
            starts: self.starts.unwrap_or(default.starts),
            seed: self.seed.unwrap_or(default.seed),
        };
        check_range("steps", search.steps, 1..=100_000)?;
        check_range("starts", search.starts, 1..=256)?;
        Ok(search)
    }
}

/// The latents of a number of images; a search has a progress bar.
pub struct Encodings<'a> {
    trained: &'a Trained,
    search: Search,
    /// Of a GAN: an encoder takes no time worth showing.
    tally: Option<Tally>,
}

impl<'a> Encodings<'a> {
    /// Of `count` images.
    pub fn start(trained: &'a Trained, search: Search, count: usize) -> Self {
        let tally = trained.is_gan().then(|| Tally::start("updates of latents", search.steps * count as u64));
        Encodings { trained, search, tally }
    }

    /// Of the next ones: x [B,C,H,W] in [0,1] -> [B,Z], and the classes [B] of a conditional model.
    pub fn of(&mut self, x: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        self.trained.latents(x, &self.search, &mut || self.tally.iter_mut().for_each(|tally| tally.advance(1)))
    }
}

/// The latent [1,Z] of a picture in a file, fitted to the model's size, and its class [1] of a conditional model.
pub fn of_picture(trained: &Trained, path: &Path) -> Result<(Tensor, Option<Tensor>)> {
    trained.check_latents()?;
    let images = trained.pictures(&[path.to_owned()])?;
    let x = Dataset::new(&images, trained.device())?.range(0, 1)?.x;
    Encodings::start(trained, Search::default(), 1).of(&x)
}

/// The name of a picture as a part of another file's name.
pub fn stem(picture: &Path) -> String {
    picture.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The mean PSNR of reconstructions.
#[derive(Default)]
pub struct Fidelity {
    total_db: f64,
    images: usize,
}

impl Fidelity {
    /// Adds images and their reconstructions, [B,C,H,W] each.
    pub fn add(&mut self, x: &Tensor, reconstructions: &Tensor) -> Result<()> {
        let each = psnr(&to_8_bits(x)?, &to_8_bits(reconstructions)?)?;
        // sync: for a line of text.
        let total = each.f_sum(tch::Kind::Double)?.f_double_value(&[])?;
        ensure!(total.is_finite(), "the reconstructions are not finite: the run has diverged");
        self.total_db += total;
        self.images += each.size()[0] as usize;
        Ok(())
    }

    /// As a line of a command's output.
    pub fn line(&self) -> String {
        format!("psnr {:.2} dB, the mean of {} images\n", self.total_db / self.images.max(1) as f64, self.images)
    }
}
