//! Settings resolved into a [`Config`]: preset, then config file, then flags, every value and combination checked.
//!
//! [`Settings`] is the one list of what can be set: its fields are the flags, the keys of the TOML file and the lines of the help at once.

pub mod build;
pub mod device;
mod presets;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::base::usage::usage;
use crate::export::Origin;
use crate::models::gan::GanSpec;
use crate::models::losses::adversarial::GanLoss;
use crate::models::losses::likelihood::Likelihood;
use crate::models::optimizer::Hyper;
use crate::models::tuning::Plan;
use crate::models::vae::VaeSpec;
use crate::native::AdamStep;
use crate::nets::graph::Init;
use crate::nets::{Activation, Arch, NetSpec, Shape};

pub use presets::name as preset_name;
pub use settings::{CudaGraph, ModelKind, OnDivergence, Preset, Settings, Widths};

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Passes over the training images.
    Epochs(u64),
    /// Updates.
    Steps(u64),
}

/// Settings that have been checked, complete.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is trained.
    pub model: ModelKind,
    /// Every setting that applies, filled in: what `--print-config` shows and config.toml keeps.
    pub settings: Settings,
    /// How long.
    pub budget: Budget,
    /// Images for each update.
    pub batch_size: usize,
    /// Everything random follows from it.
    pub seed: u64,
    /// What the optimizers are told.
    pub hyper: Hyper,
    /// What is measured at the start.
    pub plan: Plan,
    /// Whether the step is captured on a GPU.
    pub cuda_graph: bool,
    /// Steps between rows of metrics.
    pub log_every: u64,
    /// Steps between checkpoints; none means every epoch, 0 at the end only.
    pub checkpoint_every: Option<u64>,
    /// Epochs between sample grids; 0 for the last only.
    pub sample_every: u64,
    /// Epochs between scores; 0 for the last only.
    pub eval_every: u64,
    /// Newest checkpoints that are kept.
    pub keep: usize,
    /// Times that training may go back after a divergence; 0 for none.
    pub rollbacks: u64,
    networks: Networks,
}

/// The part of a model's specification that does not depend on the data.
#[derive(Clone, Debug)]
enum Networks {
    Vae { latent: i64, encoder: NetSpec, decoder: NetSpec, beta: f64, kl_warmup: f64 },
    Gan { latent: i64, generator: NetSpec, discriminator: NetSpec, loss: GanLoss, ema: f64 },
}

/// A model's full specification.
#[derive(Clone, Debug)]
pub enum ModelSpec {
    /// For [`crate::models::vae::Vae::new`].
    Vae(VaeSpec),
    /// For [`crate::models::gan::Gan::new`].
    Gan(GanSpec),
}

impl Config {
    /// The model for images of this shape, with epochs of `steps_per_epoch` updates.
    pub fn model_spec(&self, shape: Shape, steps_per_epoch: u64) -> ModelSpec {
        match self.networks.clone() {
            Networks::Vae { latent, encoder, decoder, beta, kl_warmup } => {
                let kl_warmup_steps = (kl_warmup * steps_per_epoch as f64).round() as u64;
                let likelihood = Likelihood::default();
                ModelSpec::Vae(VaeSpec { shape, latent, encoder, decoder, likelihood, beta, kl_warmup_steps })
            }
            Networks::Gan { latent, generator, discriminator, loss, ema } => {
                ModelSpec::Gan(GanSpec { shape, latent, generator, discriminator, loss, ema })
            }
        }
    }

    /// Where a model of this configuration comes from, after `step` updates.
    pub fn origin(&self, step: u64) -> Origin {
        let s = &self.settings;
        Origin {
            model: self.model.to_string(),
            preset: s.preset.map_or_else(String::new, preset_name),
            data: s.data.clone().unwrap_or_default(),
            step,
        }
    }

    /// The settings that a run's folder keeps, as the text of a config file: without its own place, so that the file serves
    /// another run, and with full paths, so that it serves from any folder.
    ///
    /// # Errors
    /// When the current folder is gone.
    pub fn kept_toml(&self) -> Result<String> {
        let mut kept = self.clone();
        kept.settings.out = None;
        let full =
            |path: &Path| std::path::absolute(path).with_context(|| format!("{} has no full path", path.display()));
        if let Some(data) = self.settings.data.as_deref().filter(|d| Path::new(d).is_dir()) {
            kept.settings.data = Some(full(Path::new(data))?.to_string_lossy().into_owned());
        }
        for path in [&mut kept.settings.data_dir, &mut kept.settings.init_from].into_iter().flatten() {
            *path = full(path)?;
        }
        kept.to_toml()
    }

    /// What must stay as it is for a run to go on as it began: values as TOML writes them, by key.
    ///
    /// # Errors
    /// TOML's, on none of these types.
    pub fn fixed(&self) -> Result<BTreeMap<String, String>> {
        let mut fixed = by_key(&self.settings)?;
        fixed.retain(|key, _| !MAY_CHANGE.contains(&key.as_str()) && key != "tune" && key != "out");
        fixed.insert("model".into(), format!("\"{}\"", self.model));
        Ok(fixed)
    }

    /// The resolved settings as the text of a config file.
    ///
    /// # Errors
    /// TOML's, on none of these types.
    pub fn to_toml(&self) -> Result<String> {
        let settings = toml::to_string(&self.settings).context("writing the settings as TOML")?;
        Ok(format!("model = \"{}\"\n{settings}", self.model))
    }
}

/// Settings that may change while a run goes on: how far (upwards, which is checked by itself), where, on what, and what it
/// writes. The images' own checksum says whether they are the same.
const MAY_CHANGE: &[&str] = &[
    "epochs",
    "steps",
    "device",
    "cuda-graph",
    "threads",
    "data",
    "data-dir",
    "log-every",
    "checkpoint-every",
    "sample-every",
    "eval-every",
    "keep",
    "on-divergence",
    "rollbacks",
];

fn by_key(settings: &Settings) -> Result<BTreeMap<String, String>> {
    let table = toml::Table::try_from(settings).context("writing the settings as TOML")?;
    Ok(table.into_iter().map(|(key, value)| (key, value.to_string())).collect())
}

/// `a in X, b in Y` for each key whose value differs; none where both are alike.
fn differences(
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

/// Refuses flags that would change what a run with these settings is.
///
/// # Errors
/// [`Usage`], which lists each.
pub fn refuse_changes(run: &Settings, given: &Settings) -> Result<()> {
    let (mut before, mut asked) = (by_key(run)?, by_key(given)?);
    asked.retain(|key, _| !MAY_CHANGE.contains(&key.as_str()));
    before.retain(|key, _| asked.contains_key(key));
    match differences(&before, ("in the run", "asked for"), &asked) {
        None => Ok(()),
        Some(list) => usage!("--resume cannot change what the run is: {list}; leave the flags out, or train a new run"),
    }
}

/// Refuses settings in `file`, the config.toml of a run, that are not those (`before`) that its checkpoint was made with.
///
/// # Errors
/// [`Usage`], which lists each difference.
pub fn refuse_edits(before: &BTreeMap<String, String>, now: &Config, file: &Path) -> Result<()> {
    let now_fixed = now.fixed()?;
    // A setting that has come since the checkpoint was written had its default.
    let mut filled = match now.settings.preset {
        Some(preset) => by_key(&presets::preset(now.model, preset)?)?,
        None => BTreeMap::new(),
    };
    filled.retain(|key, _| now_fixed.contains_key(key));
    filled.extend(before.clone());
    match differences(&filled, ("in the checkpoint", "in the file"), &now_fixed) {
        None => Ok(()),
        Some(list) => usage!(
            "{} is not what the run began with: {list}; put it back, or train a new run with --config",
            file.display()
        ),
    }
}

/// Preset, then `given` (config file and flags): every default filled in, every value and combination checked.
///
/// # Errors
/// [`Usage`], one sentence that names the flag, what was found and what was wanted.
pub fn resolve(model: ModelKind, given: &Settings) -> Result<Config> {
    let preset = given.preset.unwrap_or(presets::default(model, given.arch));
    let base = presets::preset(model, preset)?;
    let s = base.overlaid(given)?;
    refuse_foreign(model, given)?;
    check_architecture(base.arch, &s, given)?;
    let checked = Checked { s: &s };
    let budget = match (s.steps, s.epochs) {
        (Some(_), _) => Budget::Steps(checked.whole("steps", s.steps, 1)?),
        (None, _) => Budget::Epochs(checked.whole("epochs", s.epochs, 1)?),
    };
    let config = Config {
        model,
        budget,
        batch_size: checked.whole("batch-size", s.batch_size, 1)? as usize,
        seed: checked.whole("seed", s.seed, 0)?,
        hyper: Hyper {
            clip_norm: checked.real("clip-norm", s.clip_norm, "of 0 (none) or more", |v| (0.0..=1e9).contains(&v))?,
            adam: AdamStep {
                lr: checked.real("lr", s.lr, "above 0 and at most 1", |v| v > 0.0 && v <= 1.0)?,
                beta1: checked.real("beta1", s.beta1, "from 0 to below 1", |v| (0.0..1.0).contains(&v))?,
                beta2: checked.real("beta2", s.beta2, "from 0 to below 1", |v| (0.0..1.0).contains(&v))?,
                eps: checked.real("adam-eps", s.adam_eps, "above 0 and at most 1", |v| v > 0.0 && v <= 1.0)?,
                weight_decay: checked
                    .real("weight-decay", s.weight_decay, "from 0 to 1", |v| (0.0..=1.0).contains(&v))?,
            },
        },
        plan: plan(&s)?,
        cuda_graph: checked.set("cuda-graph", s.cuda_graph)? == CudaGraph::Auto,
        log_every: checked.whole("log-every", s.log_every, 1)?,
        checkpoint_every: match s.checkpoint_every {
            Some(_) => Some(checked.whole("checkpoint-every", s.checkpoint_every, 0)?),
            None => None,
        },
        sample_every: checked.whole("sample-every", s.sample_every, 0)?,
        eval_every: checked.whole("eval-every", s.eval_every, 0)?,
        keep: checked.whole("keep", s.keep.map(|k| k as u64), 1)? as usize,
        rollbacks: match checked.set("on-divergence", s.on_divergence)? {
            OnDivergence::Stop => 0,
            OnDivergence::Rollback => checked.whole("rollbacks", s.rollbacks, 1)?,
        },
        networks: networks(model, &checked)?,
        settings: s,
    };
    check_data_settings(&config.settings)?;
    Ok(config)
}

/// What `--tune`, `--threads` and `--deterministic` ask for together.
fn plan(s: &Settings) -> Result<Plan> {
    let text = s.tune.as_deref().unwrap_or("auto");
    let mut plan = match Plan::parse(text) {
        Ok(plan) => plan,
        Err(e) => usage!("--tune {text}: {e}"),
    };
    if let (Some(a), Some(b)) = (plan.threads, s.threads)
        && a != b
    {
        usage!("--tune threads={a} contradicts --threads {b}: leave one of the two out");
    }
    plan.threads = plan.threads.or(s.threads);
    if s.deterministic == Some(true) {
        if s.tune.as_deref().is_some_and(|t| t.split(',').any(|part| part.trim() == "auto")) {
            usage!("--tune auto contradicts --deterministic: what is measured may differ from one start to the next");
        }
        if plan.products.is_some_and(|p| !p.rounds_alike()) && plan.threads != Some(1) {
            usage!(
                "--tune {text} contradicts --deterministic: with several threads products=blas does not round alike on every start: \
                 leave it out, or add --threads 1"
            );
        }
        plan.measure = false;
        plan.deterministic = true;
    }
    Ok(plan)
}

/// Refuses a setting of the other kind of model: it would do nothing, silently.
fn refuse_foreign(model: ModelKind, given: &Settings) -> Result<()> {
    let (other, foreign): (_, &[(&str, bool)]) = match model {
        ModelKind::Vae => (
            "GAN",
            &[
                ("generator-hidden", given.generator_hidden.is_some()),
                ("discriminator-hidden", given.discriminator_hidden.is_some()),
                ("gan-loss", given.gan_loss.is_some()),
                ("ema", given.ema.is_some()),
            ],
        ),
        ModelKind::Gan => (
            "VAE",
            &[
                ("encoder-hidden", given.encoder_hidden.is_some()),
                ("decoder-hidden", given.decoder_hidden.is_some()),
                ("beta", given.beta.is_some()),
                ("kl-warmup", given.kl_warmup.is_some()),
            ],
        ),
    };
    if let Some((flag, _)) = foreign.iter().find(|(_, set)| *set) {
        usage!("--{flag} is a setting of a {other}, and this is a {model}: leave it out");
    }
    Ok(())
}

/// Refuses an `--arch` that contradicts the preset, and a setting of the other architecture.
fn check_architecture(preset_arch: Option<Arch>, s: &Settings, given: &Settings) -> Result<()> {
    if s.arch != preset_arch {
        usage!(
            "--arch contradicts --preset {}, whose networks are of the other kind: leave one of the two out",
            s.preset.map_or_else(String::new, presets::name)
        );
    }
    if s.arch == Some(Arch::Mlp) && given.base_width.is_some() {
        usage!("--base-width is a setting of --arch conv, and this is --arch mlp: leave it out");
    }
    Ok(())
}

/// The checks of the settings that choose and shape data.
///
/// # Errors
/// [`Usage`], naming the flag.
pub fn check_data_settings(s: &Settings) -> Result<()> {
    for (flag, limit) in [("train-limit", s.train_limit), ("test-limit", s.test_limit)] {
        if limit == Some(0) {
            usage!("--{flag} 0: wanted at least 1, or leave it out for all images");
        }
    }
    if let Some(channels) = s.channels
        && channels != 1
        && channels != 3
    {
        usage!("--channels {channels}: wanted 1 (grey) or 3 (colour)");
    }
    if let Some(n) = s.threads.filter(|n| !(1..=1024).contains(n)) {
        usage!("--threads {n}: wanted a whole number from 1 to 1024, or leave it out for --tune to choose");
    }
    parse_size(s.image_size.as_deref())?;
    Ok(())
}

/// `28x28` or `28` as (height, width).
///
/// # Errors
/// [`Usage`] when it is neither, or a side is not in 1..=4096.
pub fn parse_size(text: Option<&str>) -> Result<Option<(usize, usize)>> {
    let Some(text) = text else { return Ok(None) };
    let (h, w) = text.split_once(['x', 'X']).unwrap_or((text, text));
    match (h.parse(), w.parse()) {
        (Ok(h), Ok(w)) if (1..=4096).contains(&h) && (1..=4096).contains(&w) => Ok(Some((h, w))),
        _ => usage!("--image-size {text}: wanted HEIGHTxWIDTH in pixels, each from 1 to 4096, such as 64x64"),
    }
}

/// Settings with every default filled in, read with a check each.
struct Checked<'a> {
    s: &'a Settings,
}

impl Checked<'_> {
    fn set<T>(&self, flag: &str, value: Option<T>) -> Result<T> {
        match value {
            Some(value) => Ok(value),
            None => bail!("--{flag} has no value: set it, or name a --preset that does"),
        }
    }

    fn whole(&self, flag: &str, value: Option<u64>, least: u64) -> Result<u64> {
        // 2^53: beyond it TOML, JSON and floating point would not keep the number.
        let (value, most) = (self.set(flag, value)?, 1u64 << 53);
        if value < least || value > most {
            usage!("--{flag} {value}: wanted a whole number from {least} to {most}");
        }
        Ok(value)
    }

    fn real(&self, flag: &str, value: Option<f64>, wanted: &str, fits: impl Fn(f64) -> bool) -> Result<f64> {
        let value = self.set(flag, value)?;
        if !fits(value) {
            usage!("--{flag} {value}: wanted a number {wanted}");
        }
        Ok(value)
    }

    fn width(&self, flag: &str, value: Option<i64>) -> Result<i64> {
        let value = self.set(flag, value)?;
        if !(1..=65_536).contains(&value) {
            usage!("--{flag} {value}: wanted a whole number from 1 to 65536");
        }
        Ok(value)
    }

    fn net(&self, flag: &str, hidden: &Option<Widths>, activation: Activation, dcgan: bool) -> Result<NetSpec> {
        let arch = self.set("arch", self.s.arch)?;
        let hidden = self.set(flag, hidden.clone())?.0;
        for &w in &hidden {
            self.width(flag, Some(w))?;
        }
        let conv = arch == Arch::Conv;
        Ok(NetSpec {
            arch,
            hidden,
            base_width: if conv { self.width("base-width", self.s.base_width)? } else { 1 },
            activation,
            batch_norm: conv && dcgan,
            init: if conv && dcgan { Init::Dcgan } else { Init::PyTorch },
        })
    }
}

fn networks(model: ModelKind, c: &Checked) -> Result<Networks> {
    let s = c.s;
    let latent = c.width("latent", s.latent)?;
    let activation = c.set("activation", s.activation)?;
    Ok(match model {
        ModelKind::Vae => Networks::Vae {
            latent,
            encoder: c.net("encoder-hidden", &s.encoder_hidden, activation, false)?,
            decoder: c.net("decoder-hidden", &s.decoder_hidden, activation, false)?,
            beta: c.real("beta", s.beta, "from 0 to 1000", |v| (0.0..=1000.0).contains(&v))?,
            kl_warmup: c.real("kl-warmup", s.kl_warmup, "of epochs from 0 to 1e6", |v| (0.0..=1e6).contains(&v))?,
        },
        ModelKind::Gan => Networks::Gan {
            latent,
            generator: c.net("generator-hidden", &s.generator_hidden, Activation::Relu, true)?,
            discriminator: c.net("discriminator-hidden", &s.discriminator_hidden, activation, true)?,
            loss: c.set("gan-loss", s.gan_loss)?,
            ema: c.real("ema", s.ema, "from 0 to below 1", |v| (0.0..1.0).contains(&v))?,
        },
    })
}

#[cfg(test)]
mod tests;
