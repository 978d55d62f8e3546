//! Scores of images while a run trains: `--score`. They read the model and change nothing of the run but which checkpoint is the best.

use anyhow::{Context, Result};
use tch::Tensor;

use super::Session;
use super::setup::Setup;
use crate::base::scalar::Scalar;
use crate::base::seed::{Stream, seed_for};
use crate::base::signals::StopFlag;
use crate::base::usage::usage;
use crate::config::Config;
use crate::config::training::{PATIENCE, SCORE, SCORE_COUNT, SCORE_EVERY, ScoreKind};
use crate::data::cache_dir;
use crate::data::dataset::Dataset;
use crate::metrics::extractor::Extractor;
use crate::metrics::kernel_distance;
use crate::metrics::sample_scores::{Reference, features_of_made, frechet_distance};
use crate::metrics::{likelihood, reconstruction};
use crate::models::ModelKind;
use crate::models::noise::Noise;
use crate::run::checkpoint::Best;

/// Updates between two scores where --score-every does not say.
const UPDATES: u64 = 500;
/// Images of a score where --score-count does not say: less than a tenth of the time of so many updates.
const COUNT: usize = 1000;
/// Images that are made at a time.
const BATCH: usize = 64;
/// K of the likelihood: with 500 a score takes longer than the updates before it.
const NLL_SAMPLES: i64 = 20;

/// The score of a run, and what it is computed from.
pub(super) struct Tracker {
    kind: ScoreKind,
    /// Epochs between scores.
    every: u64,
    count: usize,
    /// Real images and their features; none for a score without features.
    reference: Option<Reference>,
    /// The images of a score without features.
    held_out: Option<Dataset>,
}

impl Tracker {
    /// The score that the settings ask for, if any. May train a network for features, which takes a minute or two.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] for a score that the model does not have; those of the features.
    pub fn of(config: &Config, setup: &Setup) -> Result<Option<Self>> {
        let s = &config.settings;
        let Some(kind) = s.given(&SCORE) else {
            for name in ["score-every", "score-count", "patience", "features"] {
                if s.value(name).is_some() {
                    usage!(
                        "--{name} is about the score of --score, and none is asked for: add --score fid, or leave it out"
                    );
                }
            }
            return Ok(None);
        };
        if config.model == ModelKind::Gan && matches!(kind, ScoreKind::Psnr | ScoreKind::Nll) {
            let (name, what) =
                if kind == ScoreKind::Psnr { ("psnr", "reconstructions") } else { ("nll", "a likelihood") };
            usage!("--score {name} needs {what}, and a GAN has none: use --score fid or kid");
        }
        let every = s.given(&SCORE_EVERY).unwrap_or_else(|| UPDATES.div_ceil(setup.per_epoch));
        let count = s.given(&SCORE_COUNT).map_or(COUNT, |n| n as usize).min(setup.test.len());
        let reference = match kind {
            ScoreKind::Psnr | ScoreKind::Nll => None,
            ScoreKind::Fid | ScoreKind::Kid => {
                let (sets, cache) = ((&setup.train, &setup.test), cache_dir(s));
                let extractor = Extractor::open(s, sets, &setup.data_sha256, cache.as_deref())?;
                Some(Reference::new(extractor, sets, false, count, config.seed)?)
            }
        };
        let held_out = match reference {
            Some(_) => None,
            None => Some(setup.test.some(count)?),
        };
        Ok(Some(Tracker { kind, every, count, reference, held_out }))
    }

    /// The score as a logged value.
    pub fn scalar(&self) -> Scalar {
        match self.kind {
            ScoreKind::Fid => Scalar::new("fid", "Fréchet distance", "", "Fréchet distance").lower(),
            ScoreKind::Kid => Scalar::new("kid", "kernel distance", "", "kernel distance").lower(),
            ScoreKind::Nll => Scalar::new("nll", "NLL", "nats per image", "NLL, importance-weighted").lower(),
            ScoreKind::Psnr => Scalar::new("psnr", "PSNR", "dB", "PSNR of reconstructions").higher(),
        }
    }

    /// A line for the start of the run.
    pub fn describe(&self) -> String {
        let every = format!("every {} epoch{}", self.every, if self.every == 1 { "" } else { "s" });
        let of = match &self.reference {
            None => format!("{} held-out images", self.count),
            Some(reference) => {
                let floor = if self.kind == ScoreKind::Kid { reference.floor.kid.mean } else { reference.floor.fid };
                format!(
                    "{} samples against as many held-out images (training images: {floor:.3}); features {}",
                    reference.count(),
                    reference.extractor.describe()
                )
            }
        };
        format!("score    {} {every}, of {of}", self.scalar().key)
    }

    /// A score as it is shown, of one as it is ranked (less is better), and the other way round.
    pub fn shown(&self, ranked: f64) -> f64 {
        if self.kind == ScoreKind::Psnr { -ranked } else { ranked }
    }

    fn of_features(&self, reference: &Reference, features: &Tensor, seed: u64) -> Result<f64> {
        match self.kind {
            ScoreKind::Kid => Ok(kernel_distance::distance(&reference.real, features, seed)?.mean),
            _ => frechet_distance(&reference.real, features),
        }
    }
}

impl Session<'_> {
    /// Whether the score is computed at this end of an epoch.
    pub(super) fn score_due(&self, epoch: u64, complete: bool, last: bool) -> bool {
        self.tracker.as_ref().is_some_and(|tracker| last || (complete && epoch.is_multiple_of(tracker.every)))
    }

    /// The score of the model as it is: its key in the log, and its value; none when a signal interrupts it.
    pub(super) fn score_images(&mut self, stop: &StopFlag) -> Result<Option<(String, f64)>> {
        let (Some(tracker), model, classes) = (&self.tracker, &self.setup.model, &self.setup.classes) else {
            return Ok(None);
        };
        let interrupted = || stop.signal().is_some();
        let value = match &tracker.reference {
            Some(reference) => {
                let features = features_of_made(&reference.extractor, reference.count(), |from, count| {
                    let seed = seed_for(self.config.seed, 0, Stream::Samples, (from / BATCH) as u64 + 1);
                    let noise = Noise::new(seed, self.setup.device);
                    if interrupted() {
                        anyhow::bail!(Interrupted);
                    }
                    let z = noise.normal("z", &[count as i64, model.latent()])?;
                    let drawn = || classes.drawn(&noise.uniform("class", &[count as i64])?);
                    let labels = (!classes.is_empty()).then(drawn).transpose()?;
                    model.decode(&z, labels.as_ref())
                });
                match features {
                    Err(e) if e.is::<Interrupted>() => return Ok(None),
                    features => tracker.of_features(reference, &features?, self.config.seed)?,
                }
            }
            None => {
                let Some(images) = &tracker.held_out else { return Ok(None) };
                let mut each = |_| if interrupted() { Err(Interrupted.into()) } else { Ok(()) };
                let found = if tracker.kind == ScoreKind::Nll {
                    let model = model.latent_variable().context("the model has no likelihood")?;
                    let options = likelihood::Options { samples: NLL_SAMPLES, seed: self.config.seed, rows: None };
                    likelihood::evaluate(model, images, options, &mut each).map(|scores| scores.nll.mean)
                } else {
                    let mut reconstruct = |x: &Tensor| model.reconstruct(x)?.context("the model has no encoder");
                    reconstruction::evaluate(images, &mut reconstruct, &mut each).map(|scores| scores.psnr.mean)
                };
                match found {
                    Err(e) if e.is::<Interrupted>() => return Ok(None),
                    found => found?,
                }
            }
        };
        let ranked = tracker.shown(value);
        self.score = Some(Best { step: self.step, value: ranked });
        let best = self.best_so_far().map_or(self.step, |best| if ranked < best.value { self.step } else { best.step });
        if let Some(patience) = self.config.settings.given(&PATIENCE) {
            // From the steps, so that a resumed run knows it too.
            let without = (self.step - best) / (tracker.every * self.setup.per_epoch);
            self.ended_early = without >= patience;
        }
        Ok(Some((format!("test_{}", tracker.scalar().key), value)))
    }

    /// What is said after a score: since when it has not become better.
    pub(super) fn since_best(&self, value: f64) -> String {
        let (Some(tracker), Some(best)) = (&self.tracker, self.best_so_far()) else { return String::new() };
        if tracker.shown(value) < best.value {
            return String::new();
        }
        let epoch = best.step as f64 / self.setup.per_epoch as f64;
        let ends = if self.ended_early { ": --patience ends the run" } else { "" };
        format!(" (best {:.3} at epoch {epoch:.2}{ends})", tracker.shown(best.value))
    }
}

/// A signal came while images were scored.
#[derive(Debug)]
struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("interrupted by a signal")
    }
}

impl std::error::Error for Interrupted {}
