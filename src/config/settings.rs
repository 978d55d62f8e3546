//! The one list of what can be set, and its config file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Result;
use clap::{Args, CommandFactory, ValueEnum};
use serde::{Deserialize, Deserializer, Serialize};

use crate::base::usage::{one_line, usage};
use crate::models::losses::adversarial::GanLoss;
use crate::nets::{Activation, Arch, Precision};

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelKind {
    /// A variational autoencoder.
    Vae,
    /// A generative adversarial network.
    Gan,
}

impl fmt::Display for ModelKind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            ModelKind::Vae => "vae",
            ModelKind::Gan => "gan",
        })
    }
}

/// Networks and hyper-parameters that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// VAE or GAN: the article's networks, Adam 1e-4, batch 128.
    Article,
    /// VAE: 784-400-20, Adam 1e-3, the example that PyTorch ships.
    PytorchVae,
    /// VAE: two strided convolutions and back, latent 64, Adam 1e-3.
    ConvVae,
    /// GAN: DCGAN (arXiv 1511.06434) at the size of the images.
    Dcgan,
}

/// What to do when training has diverged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDivergence {
    /// Stop; the checkpoints before stay.
    Stop,
    /// Go back to the newest checkpoint, with fresh noise and half the step size.
    Rollback,
}

/// Whether the training step runs as one launch on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CudaGraph {
    /// It is captured once and replayed.
    Auto,
    /// Operation by operation.
    Off,
}

/// Whole numbers that TOML, JSON and floating point all keep.
fn whole() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(0..=1 << 53)
}

/// As [`whole`], for counts.
fn count() -> clap::builder::RangedU64ValueParser<usize> {
    clap::builder::RangedU64ValueParser::new().range(0..=1 << 53)
}

/// Widths of hidden layers: `512,256`, or `none`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Widths(pub Vec<i64>);

impl FromStr for Widths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Widths(Vec::new()));
        }
        text.split(',')
            .map(|w| w.trim().parse::<i64>().ok().filter(|w| *w > 0))
            .collect::<Option<Vec<_>>>()
            .map(Widths)
            .ok_or_else(|| format!("'{text}' is not a list of widths such as 512,256, nor 'none'"))
    }
}

/// Everything that can be set, as a flag or as a key of the config file (same names).
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// Networks and hyper-parameters that belong together [default: pytorch-vae, dcgan; with --arch: conv-vae, article]
    #[arg(long, value_enum, help_heading = "Network")]
    pub preset: Option<Preset>,
    /// Kind of networks
    #[arg(long, value_enum, help_heading = "Network")]
    pub arch: Option<Arch>,
    /// Width of the latent vector z
    #[arg(long, value_name = "Z", help_heading = "Network")]
    pub latent: Option<i64>,
    /// VAE: hidden layers of the encoder, as 512,256 or none
    #[arg(long, value_name = "WIDTHS", help_heading = "Network")]
    pub encoder_hidden: Option<Widths>,
    /// VAE: hidden layers of the decoder
    #[arg(long, value_name = "WIDTHS", help_heading = "Network")]
    pub decoder_hidden: Option<Widths>,
    /// GAN: hidden layers of the generator
    #[arg(long, value_name = "WIDTHS", help_heading = "Network")]
    pub generator_hidden: Option<Widths>,
    /// GAN: hidden layers of the discriminator
    #[arg(long, value_name = "WIDTHS", help_heading = "Network")]
    pub discriminator_hidden: Option<Widths>,
    /// Channels of the convolution nearest to the image (--arch conv)
    #[arg(long, value_name = "CHANNELS", help_heading = "Network")]
    pub base_width: Option<i64>,
    /// Hidden activation: of both networks of a VAE, of a GAN's discriminator (its generator has ReLU)
    #[arg(long, value_enum, help_heading = "Network")]
    pub activation: Option<Activation>,

    /// VAE: weight of the KL term
    #[arg(long, help_heading = "Objective")]
    pub beta: Option<f64>,
    /// VAE: epochs over which the weight of the KL term rises from 0
    #[arg(long, value_name = "EPOCHS", help_heading = "Objective")]
    pub kl_warmup: Option<f64>,
    /// GAN: what the generator minimises
    #[arg(long, value_enum, help_heading = "Objective")]
    pub gan_loss: Option<GanLoss>,
    /// GAN: decay of the generator's moving average, which pictures and exports show; 0 for none
    #[arg(long, value_name = "DECAY", help_heading = "Objective")]
    pub ema: Option<f64>,

    /// Start from these weights, by key: a .safetensors or TorchScript .pt file, a folder of exports, or a run
    #[arg(long, value_name = "PATH", help_heading = "Training")]
    pub init_from: Option<PathBuf>,
    /// Passes over the training images
    #[arg(long, value_name = "N", conflicts_with = "steps", help_heading = "Training", value_parser = whole())]
    pub epochs: Option<u64>,
    /// Updates, in place of --epochs
    #[arg(long, value_name = "N", help_heading = "Training", value_parser = whole())]
    pub steps: Option<u64>,
    /// Images for each update
    #[arg(long, value_name = "N", help_heading = "Training", value_parser = whole())]
    pub batch_size: Option<u64>,
    /// Adam's step size
    #[arg(long, help_heading = "Training")]
    pub lr: Option<f64>,
    /// Adam's decay of the first moment
    #[arg(long, help_heading = "Training")]
    pub beta1: Option<f64>,
    /// Adam's decay of the second moment
    #[arg(long, help_heading = "Training")]
    pub beta2: Option<f64>,
    /// Adam's epsilon
    #[arg(long, help_heading = "Training")]
    pub adam_eps: Option<f64>,
    /// AdamW's weight decay; 0 for plain Adam
    #[arg(long, value_name = "DECAY", help_heading = "Training")]
    pub weight_decay: Option<f64>,
    /// Scale each network's gradients down to this norm; 0 for never
    #[arg(long, value_name = "NORM", help_heading = "Training")]
    pub clip_norm: Option<f64>,
    /// Everything random follows from it
    #[arg(long, value_name = "N", help_heading = "Training", value_parser = whole())]
    pub seed: Option<u64>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, help_heading = "Training")]
    pub device: Option<String>,
    /// CUDA: what products and convolutions are computed in, the weights staying float32 [default: tf32]; a CPU has fp32
    #[arg(long, value_enum, value_name = "BITS", help_heading = "Training")]
    pub precision: Option<Precision>,
    /// CUDA: capture the training step once and replay it by one launch, or run it operation by operation
    #[arg(long, value_enum, value_name = "HOW", help_heading = "Training")]
    pub cuda_graph: Option<CudaGraph>,
    /// auto (time the forms of a step for about a second), off, or KEY=VALUE,... of threads, products, layout, kernels
    #[arg(long, value_name = "HOW", help_heading = "Training")]
    pub tune: Option<String>,
    /// One seed gives the same bits on every start: nothing is chosen by the clock
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Training")]
    pub deterministic: Option<bool>,
    /// CPU threads [default: chosen by --tune]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub threads: Option<u32>,

    /// digits, mnist, fashion-mnist, kmnist, or a folder: IDX files, images, CIFAR-10 binaries
    #[arg(long, value_name = "SPEC", help_heading = "Data")]
    pub data: Option<String>,
    /// Where named sets are kept [default: $GANVAE_DATA or the user's cache]
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub data_dir: Option<PathBuf>,
    /// Resize pictures of a folder: HEIGHTxWIDTH, or one number for both
    #[arg(long, value_name = "HxW", help_heading = "Data")]
    #[serde(default, deserialize_with = "size")]
    pub image_size: Option<String>,
    /// Force pictures of a folder to grey (1) or colour (3)
    #[arg(long, value_name = "1|3", help_heading = "Data")]
    pub channels: Option<u32>,
    /// Use only N training images, evenly spread (digits: draw N)
    #[arg(long, value_name = "N", help_heading = "Data", value_parser = count())]
    pub train_limit: Option<usize>,
    /// Use only N held-out images, evenly spread (digits: draw N)
    #[arg(long, value_name = "N", help_heading = "Data", value_parser = count())]
    pub test_limit: Option<usize>,

    /// The run's folder [default: the next number under runs/]
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    pub out: Option<PathBuf>,
    /// Steps between rows of metrics
    #[arg(long, value_name = "STEPS", help_heading = "Run", value_parser = whole())]
    pub log_every: Option<u64>,
    /// Steps between checkpoints; 0 for one at the end only [default: every epoch]
    #[arg(long, value_name = "STEPS", help_heading = "Run", value_parser = whole())]
    pub checkpoint_every: Option<u64>,
    /// Epochs between sample grids; 0 for none but the last
    #[arg(long, value_name = "EPOCHS", help_heading = "Run", value_parser = whole())]
    pub sample_every: Option<u64>,
    /// Epochs between held-out scores; 0 for none but the last
    #[arg(long, value_name = "EPOCHS", help_heading = "Run", value_parser = whole())]
    pub eval_every: Option<u64>,
    /// Newest checkpoints that are kept; beside them stays the one with the best held-out loss (VAE)
    #[arg(long, value_name = "N", help_heading = "Run", value_parser = count())]
    pub keep: Option<usize>,
    /// What to do when a loss is no longer finite or explodes
    #[arg(long, value_enum, value_name = "WHAT", help_heading = "Run")]
    pub on_divergence: Option<OnDivergence>,
    /// How often --on-divergence rollback may go back
    #[arg(long, value_name = "K", help_heading = "Run", value_parser = whole())]
    pub rollbacks: Option<u64>,
}

impl Settings {
    /// What `over` sets, else what `self` sets.
    ///
    /// # Errors
    /// None on values of this type; TOML's otherwise.
    pub fn overlaid(&self, over: &Settings) -> Result<Settings> {
        let mut table = toml::Table::try_from(self)?;
        let over = toml::Table::try_from(over)?;
        // `--steps` and `--epochs` say the same thing: the later of the two wins.
        for (key, other) in [("steps", "epochs"), ("epochs", "steps")] {
            if over.contains_key(key) {
                table.remove(other);
            }
        }
        table.extend(over);
        Ok(table.try_into()?)
    }

    /// Settings from the text of a config file; the table `[run]` that runs write beside them is passed over.
    ///
    /// # Errors
    /// Bad TOML, an unknown key (naming the nearest known one) or a value of the wrong type, with file and line.
    pub fn from_toml(text: &str, file: &Path) -> Result<(Option<ModelKind>, Settings)> {
        let at = |span: Option<std::ops::Range<usize>>| {
            let line = span.map_or(1, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
            format!("{}, line {line}", file.display())
        };
        let mut table: toml::Table = match toml::from_str(text) {
            Ok(table) => table,
            Err(e) => usage!("{}: {}", at(e.span()), one_line(e.message())),
        };
        table.remove("run");
        let known = known_keys();
        for key in table.keys() {
            if key != "model" && !known.contains(key) {
                usage!("{}: unknown key '{key}'{}", file.display(), nearest(key, &known));
            }
        }
        if table.contains_key("epochs") && table.contains_key("steps") {
            usage!("{}: epochs and steps say the same thing: keep one of the two", file.display());
        }
        let model = match table.remove("model") {
            None => None,
            Some(value) => match value.clone().try_into() {
                Ok(kind) => Some(kind),
                Err(_) => usage!("{}: model = {value}, wanted \"vae\" or \"gan\"", file.display()),
            },
        };
        for (key, value) in &table {
            let one: toml::Table = [(key.clone(), value.clone())].into_iter().collect();
            if let Err(e) = one.try_into::<Settings>() {
                usage!("{}: {key} = {value}: {}", file.display(), one_line(e.message()));
            }
        }
        Ok((model, table.try_into()?))
    }

    /// [`Settings::from_toml`] of a file.
    ///
    /// # Errors
    /// As that, and when the file cannot be read.
    pub fn read(file: &Path) -> Result<(Option<ModelKind>, Settings)> {
        match std::fs::read_to_string(file) {
            Ok(text) => Settings::from_toml(&text, file),
            Err(e) => usage!("--config {}: the file cannot be read ({e})", file.display()),
        }
    }
}

/// Keys of the config file, which are the names of the flags.
fn known_keys() -> Vec<String> {
    #[derive(clap::Parser)]
    struct Only {
        #[command(flatten)]
        _settings: Settings,
    }
    Only::command()
        .get_arguments()
        .filter_map(|a| a.get_long().map(str::to_owned))
        .filter(|name| name != "help")
        .collect()
}

fn nearest(key: &str, known: &[String]) -> String {
    let dashed = key.replace('_', "-");
    known
        .iter()
        .map(|k| (strsim::jaro_winkler(k, &dashed), k))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(score, _)| *score > 0.75)
        .map_or_else(
            || ": `ganvae train --help` lists the keys (they are the flags' names)".to_owned(),
            |(_, k)| format!(": did you mean '{k}'?"),
        )
}

/// A size as on the command line: text, in a file also a number by itself.
fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "wanted a size such as 64 or \"64x48\"")]
    enum Size {
        Text(String),
        Number(u64),
    }
    Ok(Option::<Size>::deserialize(from)?.map(|size| match size {
        Size::Text(text) => text,
        Size::Number(number) => number.to_string(),
    }))
}
