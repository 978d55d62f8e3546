//! `ganvae eval`: scores of trained models, and of images that other programs made.

mod report;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use tch::{Device, Tensor};

use super::arguments::{CheckpointChoice, SplitChoice, check_ending, check_range};
use super::print;
use crate::base::atomic_file;
use crate::base::names::printable;
use crate::base::progress::Tally;
use crate::base::seed::Stream;
use crate::base::setting::{Group, Settings};
use crate::base::usage::usage;
use crate::config::device::{self, DEVICE};
use crate::config::flags::{FlagGroup, GroupFlags, escaped_text};
use crate::data::dataset::Dataset;
use crate::data::images::{Source, spread};
use crate::data::{self, CHANNELS, DATA, DATA_DIR, cache_dir, digits_seed};
use crate::metrics::disentanglement;
use crate::metrics::extractor::{self, Extractor};
use crate::metrics::likelihood;
use crate::metrics::neighbours::Nearest;
use crate::metrics::reconstruction::{self, PrincipalComponents};
use crate::metrics::sample_scores::{Reference, Training, features_of, features_of_made, frechet_distance};
use crate::models::LatentVariable;
use crate::pictures::grid;
use crate::run::trained::Trained;
use report::{Row, Scored, bars, csv_of, distance_rows, table};

/// The flags of features.
#[derive(Clone, Debug)]
struct OfFeatures;

impl FlagGroup for OfFeatures {
    const GROUP: &'static Group = &extractor::SETTINGS;
    const ALIASES: &'static [(&'static str, &'static str)] = &[("features-resize", "resize")];
}

#[derive(Debug, Args)]
pub(super) struct Eval {
    /// Runs' folders, folders of exports, or exported .pt files; several are compared
    #[arg(value_name = "RUN", required_unless_present = "samples", num_args = 1..)]
    runs: Vec<PathBuf>,
    /// Images that another program made, of the size of the real ones: anything that --data takes; may be repeated
    #[arg(long, value_name = "SPEC", value_parser = escaped_text())]
    samples: Vec<String>,
    #[command(flatten)]
    checkpoint: CheckpointChoice,
    /// Real images, as `train --data` names them [default: the run's]
    #[arg(long, value_name = "SPEC", value_parser = escaped_text())]
    data: Option<String>,
    /// Folder of the named data sets [default: the run's, $GANVAE_DATA or the user's cache]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Real images that samples are compared with: those that were trained on, or the held-out ones
    #[arg(long, value_enum, default_value = "test")]
    split: SplitChoice,
    /// Number of generated images, and at most of real ones; both sets get as many as the smaller one has
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    count: usize,
    /// K, the samples of z for each image in the importance-weighted bound on the likelihood (VAE)
    #[arg(long, value_name = "K", default_value_t = 500)]
    k: i64,
    /// Seed of everything that is drawn: samples, subsets, noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print one JSON object per run
    #[arg(long)]
    json: bool,
    /// Also write the table into this file
    #[arg(long, value_name = "FILE.csv")]
    csv: Option<PathBuf>,
    /// Also draw the scores as bars
    #[arg(long, value_name = "FILE.png|.svg")]
    plot: Option<PathBuf>,
    /// Also draw the samples that are nearest to training images, each above that image
    #[arg(long, value_name = "FILE.png")]
    nearest: Option<PathBuf>,
    /// Device: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    #[command(flatten)]
    features: GroupFlags<OfFeatures>,
}

fn settings_of(trained: &Trained) -> Settings {
    trained.origin().map(|(config, _)| config.settings.clone()).unwrap_or_default()
}

/// Samples that [`Eval::nearest`] shows.
const SHOWN: usize = 32;
const COLUMNS: usize = 8;

/// The samples nearest to training images, the nearest first; below each row the row of those training images.
fn draw_nearest(nearest: &Nearest, data: &Data, image: impl Fn(usize) -> Result<Tensor>) -> Result<grid::Picture> {
    let mut order: Vec<usize> = (0..nearest.distance.len()).collect();
    order.sort_by(|a, b| nearest.distance[*a].total_cmp(&nearest.distance[*b]));
    order.truncate(SHOWN);
    let samples = order.iter().map(|i| image(*i)).collect::<Result<Vec<_>>>()?;
    let theirs = order.iter().map(|i| Ok(data.train.range(nearest.index[*i], 1)?.x)).collect::<Result<Vec<_>>>()?;
    let [samples, theirs] = [samples, theirs].map(|images| Tensor::f_cat(&images, 0));
    grid::draw(&grid::alternate(&samples?, &theirs?, COLUMNS)?, COLUMNS)
}

/// Real images and their features, for all that is scored on them.
struct Data {
    sha256: String,
    name: String,
    train: Dataset,
    /// The real images of the reference.
    real: Dataset,
    reference: Reference,
    training: Training,
}

impl Eval {
    pub(super) fn run(&self) -> Result<u8> {
        check_range("count", self.count, 2..=1_000_000)?;
        check_range("k", self.k, 1..=1_000_000)?;
        if self.split == SplitChoice::All {
            usage!("--split all: wanted train or test, so that the scores of real images can stand beside");
        }
        self.plot.as_deref().map_or(Ok(()), |out| check_ending("plot", out, &["png", "svg"]))?;
        self.nearest.as_deref().map_or(Ok(()), |out| check_ending("nearest", out, &["png"]))?;
        if self.nearest.is_some() && self.runs.len() + self.samples.len() > 1 {
            usage!("--nearest draws the samples of one run: give one");
        }
        let mut first = self.runs.first().map(|run| self.open_run(run)).transpose()?;
        let (source, settings, device) = match &first {
            Some(trained) => (self.source(trained)?, settings_of(trained), trained.device()),
            None => self.source_alone()?,
        };
        let samples: Vec<_> =
            self.samples.iter().map(|spec| self.open_samples(spec, &source, device)).collect::<Result<_>>()?;
        let data = self.open_data(source, &settings, (device, &samples))?;
        let mut all = Vec::new();
        for run in &self.runs {
            let trained = match first.take() {
                Some(trained) => trained,
                None => self.open_other(run, &data)?,
            };
            all.push(self.score_run(run, &trained, &data)?);
        }
        for (spec, set) in self.samples.iter().zip(&samples) {
            all.push(self.score_samples(spec, set, &data)?);
        }
        if let Some(csv) = &self.csv {
            atomic_file::write(csv, csv_of(&all).as_bytes())?;
        }
        if let Some(plot) = &self.plot {
            bars(&all, data.reference.extractor.name()).draw_to(plot)?;
        }
        if self.json {
            return print(&all.iter().map(|scored| format!("{}\n", scored.json())).collect::<String>());
        }
        print(&table(&all, &data.reference.extractor.describe()))
    }

    fn open_run(&self, run: &Path) -> Result<Trained> {
        Trained::open_checkpoint(run, self.checkpoint.selection, &self.device)
    }

    fn source(&self, trained: &Trained) -> Result<Source> {
        trained.source(self.data.as_deref(), self.data_dir.as_deref(), false)
    }

    /// The real images where no run says what they are.
    fn source_alone(&self) -> Result<(Source, Settings, Device)> {
        let Some(data) = &self.data else {
            usage!("--data is missing: without a run, nothing says which real images --samples are compared with")
        };
        let settings = Settings::default().with(&DATA, data.clone()).with_some(&DATA_DIR, self.data_dir.clone());
        let device = device::open(&settings.clone().with(&DEVICE, self.device.clone()))?;
        Ok((data::open(&settings)?, settings, device))
    }

    /// Another run, which must have the same real images.
    fn open_other(&self, run: &Path, data: &Data) -> Result<Trained> {
        let trained = self.open_run(run)?;
        let source = self.source(&trained)?;
        if data::checksum(&source) != data.sha256 || source.train.shape() != data.train.shape() {
            usage!(
                "{} is scored on {} and {} on {}, whose images differ: scores on different data cannot be compared, so give one \
                 --data that fits both, or score them one by one",
                self.runs[0].display(),
                data.name,
                run.display(),
                source.name
            );
        }
        Ok(trained)
    }

    /// Images of another program, all of them, unchanged but for their number of channels.
    fn open_samples(&self, spec: &str, real: &Source, device: Device) -> Result<Dataset> {
        let mut settings = Settings::default().with(&DATA, spec.to_owned());
        if data::resizable(spec) {
            settings = settings.with(&CHANNELS, real.train.channels as u64);
        }
        let source = data::open_whole(&settings)?;
        if source.train.shape() != real.train.shape() {
            usage!(
                "--samples {spec} are images of {}, and the real ones are {}: make samples of that size, since a resize changes the scores",
                source.train.shape(),
                real.train.shape()
            );
        }
        Dataset::new(&source.train, device)
    }

    fn open_data(&self, source: Source, settings: &Settings, (device, samples): (Device, &[Dataset])) -> Result<Data> {
        let sha256 = data::checksum(&source);
        let [train, test] = [&source.train, &source.test].map(|images| Dataset::new(images, device));
        let (train, test) = (train?, test?);
        let cache = cache_dir(settings);
        let extractor = Extractor::open(&self.features.0, (&train, &test), &sha256, cache.as_deref())?;
        let on_train = self.split == SplitChoice::Train;
        let count = samples.iter().map(Dataset::len).fold(self.count, usize::min);
        let reference = Reference::new(extractor, (&train, &test), on_train, count, self.seed)?;
        let held_out = if on_train { &reference.other } else { &reference.real };
        let training = Training::new(&reference.extractor, &train, held_out)?;
        let real = if on_train { &train } else { &test }.some(reference.count())?;
        Ok(Data { sha256, name: source.name, train, real, reference, training })
    }

    fn score_run(&self, run: &Path, trained: &Trained, data: &Data) -> Result<Scored> {
        let (mut rows, mut notes) = (Vec::new(), Vec::new());
        if trained.generates() {
            let make = |from, count| {
                let (from, count) = (from as i64, count as i64);
                let classes = trained.drawn_classes(self.seed, from, count)?;
                trained.decode(&trained.prior(self.seed, from, count)?, classes.as_ref())
            };
            let generated = features_of_made(&data.reference.extractor, data.reference.count(), make)?;
            (rows, notes) = self.sample_rows(&generated, data, |i| make(i, 1))?;
        }
        if trained.generates() && trained.check_encoder().is_ok() {
            rows.extend(self.reconstruction_rows(trained, data)?);
        }
        let model = trained.latent_variable();
        if let Some(model) = model {
            let (more, note) = self.likelihood_rows(model, data)?;
            rows.extend(more);
            notes.extend(note);
        }
        if trained.check_encoder().is_ok() {
            rows.extend(self.disentanglement_rows(trained, data)?);
        }
        let step = trained.origin().map(|(_, step)| step);
        Ok(self.scored(printable(run), (step, model.map(|_| self.k)), (rows, notes), data))
    }

    fn score_samples(&self, spec: &str, set: &Dataset, data: &Data) -> Result<Scored> {
        let rows = spread(set.len(), data.reference.count());
        let generated = features_of(&data.reference.extractor, set, &rows)?;
        let found = self.sample_rows(&generated, data, |i| Ok(set.range(rows[i], 1)?.x))?;
        Ok(self.scored(printable(spec), (None, None), found, data))
    }

    /// The scores of samples with these features and what is to be said of them; `image(i)` is sample i, [1,C,H,W].
    fn sample_rows(
        &self,
        generated: &Tensor,
        data: &Data,
        image: impl Fn(usize) -> Result<Tensor>,
    ) -> Result<(Vec<Row>, Vec<String>)> {
        let mut rows = distance_rows(&data.reference.distances(generated)?, &data.reference.floor);
        let (nearest, copies) = data.training.memorisation(generated)?;
        rows.push(Row { key: "copied", value: copies.share, real: Some(copies.held_out_share), digits: 4 });
        let mut notes = Vec::new();
        if copies.flagged {
            notes.push(format!(
                "warning: the model repeats training images: {:.1} % of its samples are as near to one as the nearest {:.1} % of the \
                 held-out images are (z {:.1}); look at them with --nearest",
                100.0 * copies.share,
                100.0 * copies.held_out_share,
                copies.z
            ));
        }
        if let Some(out) = &self.nearest {
            draw_nearest(&nearest, data, image)?.save(out)?;
            notes.push(format!("{}: rows of samples, each above the training image nearest to it", printable(out)));
        }
        Ok((rows, notes))
    }

    fn scored(
        &self,
        name: String,
        (step, k): (Option<u64>, Option<i64>),
        (rows, notes): (Vec<Row>, Vec<String>),
        data: &Data,
    ) -> Scored {
        let extractor = &data.reference.extractor;
        Scored {
            name,
            step,
            data: data.name.clone(),
            data_sha256: data.sha256.clone(),
            split: self.split,
            n: data.reference.count(),
            k,
            seed: self.seed,
            features: (extractor.name().to_owned(), extractor.sha256().to_owned()),
            rows,
            notes,
        }
    }

    /// Scores of reconstructions of the real images, and the PSNR of as many principal components of the training set as there are
    /// latents.
    fn reconstruction_rows(&self, trained: &Trained, data: &Data) -> Result<Vec<Row>> {
        let reconstruct = |x: &Tensor| trained.decode(&trained.encode(x)?.0, None);
        let mut tally = Tally::start("images reconstructed", data.real.len() as u64);
        let mut done = 0;
        let scores = reconstruction::evaluate(&data.real, &mut |x| reconstruct(x), &mut |n| {
            tally.advance((n - std::mem::replace(&mut done, n)) as u64);
            Ok(())
        })?;
        let linear = PrincipalComponents::of(&data.train, trained.latent(), self.seed, &mut |_, _| Ok(()))?;
        let of_linear =
            reconstruction::evaluate(&data.real, &mut |x| linear.reconstruct(x), &mut |_| Ok(()))?.psnr.mean;
        let made = features_of_made(&data.reference.extractor, data.real.len(), |from, count| {
            reconstruct(&data.real.range(from, count)?.x)
        })?;
        let rfid = frechet_distance(&data.reference.real, &made)?;
        let mut rows = vec![Row::new("psnr", scores.psnr.mean, 2), Row::new("psnr_pca", of_linear, 2)];
        rows.extend(scores.ssim.map(|ssim| Row::new("ssim", ssim.mean, 4)));
        rows.push(Row::new("rfid", rfid, 3));
        Ok(rows)
    }

    /// The ELBO, the importance-weighted bound, active units; and why there are no bits per dimension.
    fn likelihood_rows(&self, model: &dyn LatentVariable, data: &Data) -> Result<(Vec<Row>, Option<String>)> {
        let options = likelihood::Options { samples: self.k, seed: self.seed, rows: None };
        let mut tally = Tally::start("images, likelihood", data.real.len() as u64);
        let mut done = 0;
        let scores = likelihood::evaluate(model, &data.real, options, &mut |n| {
            tally.advance((n - std::mem::replace(&mut done, n)) as u64);
            Ok(())
        })?;
        let mut rows = Vec::new();
        for (key, of) in [("elbo", scores.elbo), ("recon", scores.recon), ("kl", scores.kl), ("nll", scores.nll)] {
            rows.push(Row::new(key, of.mean, 3));
        }
        rows.push(Row::new("nll_se", scores.nll.standard_error, 3));
        let note = match scores.bits_per_dim {
            Ok(bits) => {
                rows.push(Row::new("bits_per_dim", bits.mean, 4));
                None
            }
            Err(why) => Some(format!("note: no bits per dimension: {why}")),
        };
        rows.push(Row::new("active_units", scores.active_units as f64, 0));
        Ok((rows, note))
    }

    /// Scores of latents against the true factors of `digits`; none for other data and for too few images.
    fn disentanglement_rows(&self, trained: &Trained, data: &Data) -> Result<Vec<Row>> {
        let Some(seed) = digits_seed(&data.name)? else { return Ok(Vec::new()) };
        // Digits that were chosen by class have other numbers.
        let chosen = trained.origin().is_some_and(|(config, _)| config.settings.value("class").is_some());
        let n = data.real.len();
        if n < disentanglement::FEWEST || chosen || data.reference.indices.iter().enumerate().any(|(i, at)| i != *at) {
            return Ok(Vec::new());
        }
        let mut codes = Vec::new();
        for from in (0..n).step_by(256) {
            codes.push(trained.encode(&data.real.range(from, 256)?.x)?.0.f_to_device(tch::Device::Cpu)?);
        }
        let stream = if self.split == SplitChoice::Train { Stream::DigitsTrain } else { Stream::DigitsTest };
        let factors = disentanglement::factors_of_digits(seed, stream, n);
        let scores = disentanglement::scores(&Tensor::f_cat(&codes, 0)?, &factors, self.seed)?;
        let all = [
            ("mig", scores.mig),
            ("sap", scores.sap),
            ("dci", scores.dci.disentanglement),
            ("dci_completeness", scores.dci.completeness),
            ("dci_informativeness", scores.dci.informativeness),
            ("factor_vae", scores.factor_vae),
        ];
        Ok(all.into_iter().map(|(key, value)| Row::new(key, value, 4)).collect())
    }
}
