//! `ganvae eval`: scores of trained models.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Map, Value, json};
use tch::Tensor;

use super::arguments::{CheckpointChoice, SplitChoice, check_range};
use super::print;
use crate::base::atomic_file;
use crate::base::names::printable;
use crate::base::progress::Tally;
use crate::base::seed::Stream;
use crate::base::setting::Group;
use crate::base::usage::usage;
use crate::config::flags::{FlagGroup, GroupFlags, escaped_text};
use crate::data::dataset::Dataset;
use crate::data::images::Source;
use crate::data::{self, cache_dir, digits_seed};
use crate::metrics::disentanglement;
use crate::metrics::extractor::{self, Extractor};
use crate::metrics::likelihood;
use crate::metrics::reconstruction::{self, PrincipalComponents};
use crate::metrics::sample_scores::{Distances, Reference, Training, features_of_made, frechet_distance};
use crate::models::LatentVariable;
use crate::run::trained::Trained;

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
    #[arg(value_name = "RUN", required = true, num_args = 1..)]
    runs: Vec<PathBuf>,
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
    /// Device: auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    #[command(flatten)]
    features: GroupFlags<OfFeatures>,
}

/// A score in the order of the table: its key, its value, the value of real images, and its digits after the point.
struct Row {
    key: &'static str,
    value: f64,
    real: Option<f64>,
    digits: usize,
}

/// The scores of one run.
struct Scored {
    run: PathBuf,
    step: Option<u64>,
    data: String,
    data_sha256: String,
    split: SplitChoice,
    n: usize,
    k: Option<i64>,
    seed: u64,
    features: (String, String),
    rows: Vec<Row>,
    /// What the numbers do not say.
    notes: Vec<String>,
}

/// Real images and their features, for all runs on the same data.
struct Data {
    sha256: String,
    shape: [usize; 3],
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
        let mut data: Option<Data> = None;
        let mut all = Vec::new();
        for run in &self.runs {
            let trained = Trained::open_checkpoint(run, self.checkpoint.selection, &self.device)?;
            let source = trained.source(self.data.as_deref(), self.data_dir.as_deref(), false)?;
            let sha256 = data::checksum(&source);
            let shape = [source.train.channels, source.train.height, source.train.width];
            match &data {
                Some(known) if known.sha256 == sha256 && known.shape == shape => {}
                Some(known) => usage!(
                    "{} is scored on {} and {} on {}, whose images differ: scores on different data cannot be compared, so give one \
                     --data that fits both, or score them one by one",
                    self.runs[0].display(),
                    known.name,
                    run.display(),
                    source.name
                ),
                None => data = Some(self.open_data(&trained, &source, sha256)?),
            }
            let data = data.as_ref().context("the data are open")?;
            all.push(self.score(run, &trained, data)?);
        }
        if let Some(csv) = &self.csv {
            atomic_file::write(csv, csv_of(&all).as_bytes())?;
        }
        if self.json {
            return print(&all.iter().map(|scored| format!("{}\n", scored.json())).collect::<String>());
        }
        let extractor = data.as_ref().map(|data| data.reference.extractor.describe()).unwrap_or_default();
        print(&table(&all, &extractor))
    }

    fn open_data(&self, trained: &Trained, source: &Source, sha256: String) -> Result<Data> {
        let device = trained.device();
        let [train, test] = [&source.train, &source.test].map(|images| Dataset::new(images, device));
        let (train, test) = (train?, test?);
        let settings = trained.origin().map(|(config, _)| config.settings.clone()).unwrap_or_default();
        let cache = cache_dir(&settings);
        let extractor = Extractor::open(&self.features.0, (&train, &test), &sha256, cache.as_deref())?;
        let on_train = self.split == SplitChoice::Train;
        let reference = Reference::new(extractor, (&train, &test), on_train, self.count, self.seed)?;
        let held_out = if on_train { &reference.other } else { &reference.real };
        let training = Training::new(&reference.extractor, &train, held_out)?;
        let shape = [source.train.channels, source.train.height, source.train.width];
        let real = if on_train { &train } else { &test }.some(reference.count())?;
        Ok(Data { sha256, shape, name: source.name.clone(), train, real, reference, training })
    }

    fn score(&self, run: &Path, trained: &Trained, data: &Data) -> Result<Scored> {
        let reference = &data.reference;
        let n = reference.count();
        let mut rows = Vec::new();
        let mut notes = Vec::new();
        if trained.generates() {
            let generated = features_of_made(&reference.extractor, n, |from, count| {
                trained.decode(&trained.prior(self.seed, from as i64, count as i64)?)
            })?;
            rows.extend(distance_rows(&reference.distances(&generated)?, &reference.floor));
            let (_, copies) = data.training.memorisation(&generated)?;
            rows.push(Row { key: "copied", value: copies.share, real: Some(copies.held_out_share), digits: 4 });
            if copies.flagged {
                notes.push(format!(
                    "warning: the model repeats training images: {:.1} % of its samples are as near to one as the nearest {:.1} % of the \
                     held-out images are (z {:.1})",
                    100.0 * copies.share,
                    100.0 * copies.held_out_share,
                    copies.z
                ));
            }
        }
        if trained.generates() && trained.check_encoder().is_ok() {
            rows.extend(self.reconstruction_rows(trained, data)?);
        }
        if let Some(model) = trained.latent_variable() {
            let (more, note) = self.likelihood_rows(model, data)?;
            rows.extend(more);
            notes.extend(note);
        }
        if trained.check_encoder().is_ok() {
            rows.extend(self.disentanglement_rows(trained, data)?);
        }
        Ok(Scored {
            run: run.to_owned(),
            step: trained.origin().map(|(_, step)| step),
            data: data.name.clone(),
            data_sha256: data.sha256.clone(),
            split: self.split,
            n,
            k: trained.latent_variable().map(|_| self.k),
            seed: self.seed,
            features: (reference.extractor.name().to_owned(), reference.extractor.sha256().to_owned()),
            rows,
            notes,
        })
    }

    /// Scores of reconstructions of the real images, and the PSNR of as many principal components of the training set as there are
    /// latents.
    fn reconstruction_rows(&self, trained: &Trained, data: &Data) -> Result<Vec<Row>> {
        let reconstruct = |x: &Tensor| trained.decode(&trained.encode(x)?.0);
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

impl Row {
    fn new(key: &'static str, value: f64, digits: usize) -> Self {
        Row { key, value, real: None, digits }
    }
}

fn distance_rows(found: &Distances, real: &Distances) -> Vec<Row> {
    let row = |key, digits, of: &dyn Fn(&Distances) -> f64| Row { key, value: of(found), real: Some(of(real)), digits };
    vec![
        row("fid", 3, &|d| d.fid),
        row("kid", 5, &|d| d.kid.mean),
        row("kid_se", 5, &|d| d.kid.standard_error),
        row("precision", 4, &|d| d.manifold.precision),
        row("recall", 4, &|d| d.manifold.recall),
        row("density", 4, &|d| d.manifold.density),
        row("coverage", 4, &|d| d.manifold.coverage),
    ]
}

impl Scored {
    fn split_name(&self) -> &'static str {
        if self.split == SplitChoice::Train { "train" } else { "test" }
    }

    fn json(&self) -> Value {
        let mut all = Map::new();
        let (features, sha256) = &self.features;
        all.insert("run".into(), json!(printable(&self.run)));
        all.insert("step".into(), json!(self.step));
        all.insert("data".into(), json!(self.data));
        all.insert("data_sha256".into(), json!(self.data_sha256));
        all.insert("split".into(), json!(self.split_name()));
        all.insert("n".into(), json!(self.n));
        if let Some(k) = self.k {
            all.insert("k".into(), json!(k));
        }
        all.insert("seed".into(), json!(self.seed));
        all.insert("features".into(), json!({"name": features, "sha256": sha256}));
        for row in &self.rows {
            all.insert(row.key.into(), json!(row.value));
            if let Some(real) = row.real {
                all.insert(format!("{}_real", row.key), json!(real));
            }
        }
        Value::Object(all)
    }
}

/// The scores as text: a row for each score, a column for each run and one for real images.
fn table(all: &[Scored], extractor: &str) -> String {
    let Some(first) = all.first() else { return String::new() };
    let other = if first.split == SplitChoice::Train { "held-out" } else { "training" };
    let of = if first.split == SplitChoice::Train { "training" } else { "held-out" };
    let mut text = String::new();
    for (i, scored) in all.iter().enumerate() {
        let name = if all.len() == 1 { "run      ".to_owned() } else { format!("run {}    ", i + 1) };
        let step = scored.step.map_or_else(String::new, |step| format!(", step {step}"));
        text.push_str(&format!("{name} {}{step}\n", printable(&scored.run)));
    }
    let k = all.iter().find_map(|scored| scored.k).map_or_else(String::new, |k| format!("; nll with K = {k}"));
    text.push_str(&format!("data      {}: {} {of} images; seed {}{k}\n", first.data, first.n, first.seed));
    text.push_str(&format!("features  {extractor}\n\n"));
    let heads: Vec<String> = match all.len() {
        1 => vec!["samples".into()],
        n => (1..=n).map(|i| format!("run {i}")).collect(),
    };
    let real = format!("real ({other})");
    text.push_str(&format!("{:20}", ""));
    heads.iter().chain([&real]).for_each(|head| text.push_str(&format!("{head:>17}")));
    text.push('\n');
    let mut keys: Vec<&str> = Vec::new();
    all.iter().flat_map(|scored| &scored.rows).for_each(|row| {
        if !keys.contains(&row.key) {
            keys.push(row.key);
        }
    });
    for key in keys {
        text.push_str(&format!("{key:20}"));
        let mut real = String::new();
        for scored in all {
            let found = scored.rows.iter().find(|row| row.key == key);
            let shown = found.map_or_else(String::new, |row| format!("{:.*}", row.digits, row.value));
            text.push_str(&format!("{shown:>17}"));
            if let Some((row, value)) = found.and_then(|row| Some((row, row.real?))) {
                real = format!("{value:.*}", row.digits);
            }
        }
        text.push_str(&format!("{real:>17}\n"));
    }
    for (i, scored) in all.iter().enumerate() {
        let of = if all.len() == 1 { String::new() } else { format!("run {}: ", i + 1) };
        scored.notes.iter().for_each(|note| text.push_str(&format!("{of}{note}\n")));
    }
    text
}

/// A line for each run: what its scores depend on, then the scores.
fn csv_of(all: &[Scored]) -> String {
    let mut keys: Vec<String> = Vec::new();
    let objects: Vec<Map<String, Value>> = all
        .iter()
        .filter_map(|scored| match scored.json() {
            Value::Object(mut object) => {
                let (name, sha256) = scored.features.clone();
                object.insert("features".into(), json!(name));
                object.insert("features_sha256".into(), json!(sha256));
                Some(object)
            }
            _ => None,
        })
        .collect();
    for key in objects.iter().flat_map(Map::keys) {
        if !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    let mut text = format!("{}\n", keys.join(","));
    for object in &objects {
        let cells = keys.iter().map(|key| match object.get(key) {
            Some(Value::String(s)) => format!("\"{}\"", s.replace('"', "\"\"")),
            Some(Value::Null) | None => String::new(),
            Some(value) => value.to_string(),
        });
        text.push_str(&format!("{}\n", cells.collect::<Vec<_>>().join(",")));
    }
    text
}
