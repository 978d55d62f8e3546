//! Settings resolved into a [`Config`]: preset, then config file, then flags.
//!
//! Each setting is declared in the module that uses it ([`crate::base::setting`]); this module collects them.

pub mod device;
pub mod file;
pub mod flags;
pub mod presets;
pub mod training;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use toml::Value;

use crate::base::classes::Classes;
use crate::base::names::escaped;
use crate::base::seed::{Stream, seed_for};
use crate::base::setting::{AnySetting, Group, Settings, choice_name};
use crate::base::usage::usage;
use crate::data::{self, DATA, DATA_DIR};
use crate::export::Origin;
use crate::metrics::extractor;
use crate::models::gan::FREEZE_D;
use crate::models::losses::likelihood::bernoulli::{BINARIZE, Binarize};
use crate::models::losses::likelihood::gaussian::SIGMA;
use crate::models::losses::likelihood::{LIKELIHOOD, Likelihood, LikelihoodName};
use crate::models::tuning::{Plan, TUNE};
use crate::models::{ImageSpec, Length, Model, ModelKind, tuning};
use crate::native;
use device::GraphCapture;
use training::{OnDivergence, Retention};

/// Length of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Passes over the training images.
    Epochs(u64),
    /// Updates.
    Steps(u64),
}

impl Budget {
    /// The number of updates, `per_epoch` of them an epoch.
    pub fn steps(self, per_epoch: u64) -> u64 {
        match self {
            Budget::Epochs(n) => n.saturating_mul(per_epoch),
            Budget::Steps(n) => n,
        }
    }
}

/// The complete, checked settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Kind of the model.
    pub model: ModelKind,
    /// Every setting that is set explicitly.
    pub settings: Settings,
    /// Length of training.
    pub budget: Budget,
    /// Images per step: of all its updates.
    pub batch_size: usize,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Autotuning.
    pub plan: Plan,
    /// Whether the step is captured on a GPU.
    pub cuda_graph: bool,
    /// Steps between rows of metrics.
    pub log_every: u64,
    /// Steps between checkpoints; none: every epoch; 0: at the end only.
    pub checkpoint_every: Option<u64>,
    /// Steps between checkpoints for a better score.
    pub best_every: u64,
    /// Epochs between sample grids; 0 for the last only.
    pub sample_every: u64,
    /// Epochs between scores; 0 for the last only.
    pub eval_every: u64,
    /// What remains of older checkpoints.
    pub keep: Retention,
    /// Maximum number of rollbacks after a divergence; 0 for none.
    pub rollbacks: u64,
    /// What the images have chosen, and why: for people, when training starts.
    pub note: Option<String>,
}

/// The settings of a kind of model, in the order of the help.
fn groups(model: ModelKind) -> impl Iterator<Item = &'static Group> {
    static PRESET: Group = Group { heading: "Network", settings: &[&training::PRESET] };
    let run = [
        &training::TRAINING,
        &device::SETTINGS,
        &tuning::SETTINGS,
        &crate::data::SETTINGS,
        &training::RUN,
        &training::SCORES,
        &extractor::SETTINGS,
    ];
    [&PRESET].into_iter().chain(model.settings()).chain(run)
}

fn settings_of(model: ModelKind) -> impl Iterator<Item = (&'static str, &'static dyn AnySetting)> {
    groups(model).flat_map(|group| group.settings.iter().map(|setting| (group.heading, *setting)))
}

/// Every setting of every kind of model once, with its heading in the help.
fn all_settings() -> Vec<(&'static str, &'static dyn AnySetting)> {
    let mut all: Vec<(&'static str, &'static dyn AnySetting)> = Vec::new();
    let lists: Vec<Vec<_>> = ModelKind::value_variants().iter().map(|model| groups(*model).collect()).collect();
    // The groups specific to one model come next to each other.
    for group in (0..lists[0].len()).flat_map(|i| lists.iter().filter_map(move |list| list.get(i))) {
        for setting in group.settings {
            if !all.iter().any(|(_, known)| known.info().name == setting.info().name) {
                all.push((group.heading, *setting));
            }
        }
    }
    all
}

impl Config {
    /// A model with initial weights from the seed, for such images and `per_epoch` updates per epoch.
    ///
    /// # Errors
    /// When the architecture does not support such images.
    pub fn build(&self, images: ImageSpec, per_epoch: u64, device: tch::Device) -> Result<Box<dyn Model>> {
        let batch_size = self.settings.get(&training::BATCH_SIZE)?;
        let length = Length { batch_size, per_epoch, total: self.budget.steps(per_epoch) };
        native::seeded(seed_for(self.seed, 0, Stream::Init, 0), || {
            self.model.build(&self.settings, images, length, device)
        })
    }

    /// Updates per epoch, including the last, partial batch.
    pub fn steps_per_epoch(&self, images: usize) -> u64 {
        images.div_ceil(self.batch_size) as u64
    }

    /// Name of the preset.
    pub fn preset(&self) -> String {
        self.settings.given(&training::PRESET).unwrap_or_default()
    }

    /// Origin of a model of this configuration after `step` updates, with the classes of a conditional one.
    ///
    /// # Errors
    /// None for a resolved configuration.
    pub fn origin(&self, step: u64, classes: &Classes) -> Result<Origin> {
        let (data, classes) = (self.settings.get(&DATA)?, classes.names.clone());
        Ok(Origin { model: self.model.to_string(), preset: self.preset(), data, step, classes })
    }

    /// The text of a run's config.toml: without `--out`, so that it can be used for another run, and with absolute paths, so that it
    /// works in any folder.
    ///
    /// # Errors
    /// When the current folder is gone.
    pub fn kept_toml(&self) -> Result<String> {
        Ok(self.kept()?.to_toml())
    }

    /// See [`Config::kept_toml`].
    fn kept(&self) -> Result<Config> {
        Ok(Config { settings: with_full_paths(self.settings.clone().without(&training::OUT))?, ..self.clone() })
    }

    /// Every setting with a value, explicit or default, in the order of the help.
    fn values(&self) -> Vec<(&'static str, Value)> {
        let value = |setting: &'static dyn AnySetting| {
            let info = setting.info();
            let replaced = info.in_place_of.is_some_and(|other| self.settings.value(other).is_some());
            let default = info.default.filter(|_| !replaced).map(|(text, _)| Value::String(text.into()));
            let value = self.settings.value(info.name).cloned().or(default)?;
            Some((info.name, setting.check(&value).ok()?))
        };
        settings_of(self.model).filter_map(|(_, setting)| value(setting)).collect()
    }

    /// The settings that must not change on resume: values as TOML, by key.
    ///
    /// # Errors
    /// When the current folder is gone.
    pub fn fixed(&self) -> Result<BTreeMap<String, String>> {
        let free: Vec<_> = settings_of(self.model)
            .filter(|(_, setting)| setting.info().may_change || setting.info().name == TUNE.name())
            .map(|(_, setting)| setting.info().name)
            .collect();
        let model = ("model".to_owned(), format!("\"{}\"", self.model));
        let fixed = self.kept()?.values().into_iter().filter(|(name, _)| !free.contains(name));
        Ok(fixed.map(|(name, value)| (name.to_owned(), value.to_string())).chain([model]).collect())
    }

    /// Every setting with a value, as the text of a config file.
    pub fn to_toml(&self) -> String {
        let mut text = format!("model = \"{}\"\n", self.model);
        for (name, value) in self.values() {
            text.push_str(&match value {
                // 1e-8, not 0.00000001.
                Value::Float(v) => format!("{name} = {v:?}\n"),
                other => format!("{name} = {other}\n"),
            });
        }
        text
    }
}

/// Settings with absolute paths.
fn with_full_paths(mut settings: Settings) -> Result<Settings> {
    let full =
        |path: PathBuf| std::path::absolute(&path).with_context(|| format!("{} has no full path", path.display()));
    if let Some(path) = settings.given(&DATA).and_then(|spec| data::path_of(&spec)) {
        settings = settings.with(&DATA, escaped(full(path)?));
    }
    for setting in [&DATA_DIR, &training::INIT_FROM] {
        if let Some(path) = settings.given(setting) {
            settings = settings.with(setting, full(path)?);
        }
    }
    Ok(settings)
}

/// `a in X, b in Y` for each key whose value differs; none where both are alike.
pub(crate) fn differences(
    before: &BTreeMap<String, String>,
    (where_before, where_now): (&str, &str),
    now: &BTreeMap<String, String>,
) -> Option<String> {
    let none = "not set".to_owned();
    let keys: BTreeSet<_> = before.keys().chain(now.keys()).collect();
    let each: Vec<_> = keys
        .into_iter()
        .map(|key| (key, before.get(key).unwrap_or(&none), now.get(key).unwrap_or(&none)))
        .filter(|(_, a, b)| a != b)
        .map(|(key, a, b)| format!("{key} is {a} {where_before}, {b} {where_now}"))
        .collect();
    (!each.is_empty()).then(|| each.join("; "))
}

/// Refuses flags that must not change on resume.
///
/// # Errors
/// [`crate::base::usage::Usage`] with a list of the differences.
pub fn refuse_changes(run: &Config, given: &Settings) -> Result<()> {
    let asked: BTreeMap<_, _> = with_full_paths(given.clone())?
        .iter()
        .filter(|(info, _)| !info.may_change)
        .map(|(info, value)| (info.name.to_owned(), value.to_string()))
        .collect();
    let before = run.values().into_iter().map(|(name, value)| (name.to_owned(), value.to_string()));
    let before = before.filter(|(name, _)| asked.contains_key(name)).collect();
    match differences(&before, ("in the run", "asked for"), &asked) {
        None => Ok(()),
        Some(list) => usage!("--resume cannot change these settings: {list}; leave the flags out, or train a new run"),
    }
}

/// Refuses settings in `file`, the config.toml of a run, that differ from those of its checkpoint (`before`).
///
/// # Errors
/// [`crate::base::usage::Usage`] with a list of the differences.
pub fn refuse_edits(before: &BTreeMap<String, String>, now: &Config, file: &Path) -> Result<()> {
    let now_fixed = now.fixed()?;
    // A setting that is newer than the checkpoint had its default. Likelihoods that no preset states were all Bernoulli.
    let preset = Settings::default().with(&training::PRESET, now.preset());
    let states = |(name, model, s): &(&str, ModelKind, Settings)| {
        (*name, *model) == (now.preset().as_str(), now.model) && s.given(&LIKELIHOOD).is_some()
    };
    let older = now.model == ModelKind::Vae && !presets::all()?.iter().any(states);
    let preset = preset.with_some(&LIKELIHOOD, older.then_some(LikelihoodName::Bernoulli));
    let mut filled = resolve(now.model, &preset)?.fixed()?;
    filled.retain(|key, _| now_fixed.contains_key(key));
    filled.extend(before.clone());
    match differences(&filled, ("in the checkpoint", "in the file"), &now_fixed) {
        None => Ok(()),
        Some(list) => usage!(
            "{} has changed since the run began: {list}; change it back, or train a new run with --config",
            file.display()
        ),
    }
}

/// Preset, then `given` (config file and flags), with all combinations checked.
///
/// # Errors
/// [`crate::base::usage::Usage`]: one sentence with the flag, its value and the wanted values.
pub fn resolve(model: ModelKind, given: &Settings) -> Result<Config> {
    refuse_foreign(model, given)?;
    let base = presets::below(model, given)?;
    let preset = base.given(&training::PRESET);
    // The preset's own name, where the images chose it.
    let s = base.overlaid(given).without(&training::PRESET).with_some(&training::PRESET, preset);
    // Of the preset's, those that are of something that is switched off.
    let idle: Vec<_> = model.idle(&s)?.into_iter().filter(|name| given.value(name).is_none()).collect();
    let mut s = s.without_names(&idle);
    if model == ModelKind::Vae && s.given(&LIKELIHOOD).is_none() {
        s = s.clone().with_some(&LIKELIHOOD, implied_likelihood(&s)?);
    }
    model.check(&s)?;
    let mut note = None;
    if model == ModelKind::Vae && s.given(&LIKELIHOOD).is_none() {
        let (shape, extreme) = data::look(&s)?;
        let (name, why) = Likelihood::for_images(shape, extreme);
        note = Some(format!("--likelihood {}, as {why}", choice_name(&name)));
        s = s.with(&LIKELIHOOD, name);
        model.check(&s)?;
    }
    if let (Some(layers @ 1..), None) = (s.given(&FREEZE_D), s.given(&training::INIT_FROM)) {
        usage!("--freeze-d {layers} keeps weights that were trained before: add --init-from, or leave it out");
    }
    Ok(Config {
        model,
        budget: match s.given(&training::STEPS) {
            Some(steps) => Budget::Steps(steps),
            None => Budget::Epochs(s.get(&training::EPOCHS)?),
        },
        batch_size: s.get(&training::BATCH_SIZE)?.saturating_mul(model.batches_per_step(&s)?) as usize,
        seed: s.get(&training::SEED)?,
        plan: Plan::from_settings(&s)?,
        cuda_graph: s.get(&device::CUDA_GRAPH)? == GraphCapture::Auto && model.steps_alike(&s)?,
        log_every: s.get(&training::LOG_EVERY)?,
        checkpoint_every: s.given(&training::CHECKPOINT_EVERY),
        best_every: s.get(&training::BEST_EVERY)?,
        sample_every: s.get(&training::SAMPLE_EVERY)?,
        eval_every: s.get(&training::EVAL_EVERY)?,
        keep: Retention { checkpoints: s.get(&training::KEEP)? as usize, optimizer: s.get(&training::KEEP_OPTIMIZER)? },
        rollbacks: match s.get(&training::ON_DIVERGENCE)? {
            OnDivergence::Stop => 0,
            OnDivergence::Rollback => s.get(&training::ROLLBACKS)?,
        },
        settings: s,
        note,
    })
}

/// The likelihood that settings of one alone ask for.
fn implied_likelihood(s: &Settings) -> Result<Option<LikelihoodName>> {
    Ok(match (s.given(&SIGMA), s.get(&BINARIZE)?) {
        (Some(_), _) => Some(LikelihoodName::Gaussian),
        (None, Binarize::Dynamic | Binarize::Fixed) => Some(LikelihoodName::Bernoulli),
        (None, Binarize::None) => None,
    })
}

/// Refuses a setting of the other kind of model, which would have no effect.
fn refuse_foreign(model: ModelKind, given: &Settings) -> Result<()> {
    let has = |of: ModelKind, name: &str| settings_of(of).any(|(_, setting)| setting.info().name == name);
    let Some((info, _)) = given.iter().find(|(info, _)| !has(model, info.name)) else { return Ok(()) };
    let other = ModelKind::value_variants().iter().find(|other| has(**other, info.name));
    let other = other.map_or_else(|| "another model".to_owned(), |other| other.to_string().to_uppercase());
    usage!("--{} is a setting of a {other}, and this is a {model}: leave it out", info.name)
}

#[cfg(test)]
mod tests;
