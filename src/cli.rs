//! The command line and nothing else: no other file knows argv. Imports config for the settings that are flags.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{ModelKind, Settings};

/// Train GANs and VAEs on images: curves, sample grids and weights by themselves, no Python.
#[derive(Debug, Parser)]
#[command(name = "ganvae", version, propagate_version = true, arg_required_else_help = true, args_override_self = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a VAE or a GAN; `ganvae train vae` trains on the embedded digits
    Train(Box<Train>),
    /// Draw new images from a trained run
    Sample(Sample),
    /// Time the real training step, part by part, beside the limit of its products and convolutions
    Bench(Box<Bench>),
    /// Draw loss curves; several runs share one chart
    Plot(Plot),
    /// Say what a data set holds, and draw a preview of it
    Data(Data),
    /// Say what is found and what is missing: libtorch, CUDA, driver, devices; ends with what to do
    Doctor(Doctor),
}

/// `ganvae train`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct Train {
    /// What to train
    #[arg(value_enum, required_unless_present_any = ["resume", "config"])]
    pub model: Option<ModelKind>,
    /// Go on with a run where it stands; flags may change how far it goes (--epochs, --steps), where (--device, --threads, --data)
    /// and what it writes (--keep, --log-every and so on)
    #[arg(long, value_name = "RUN", conflicts_with_all = ["model", "config"])]
    pub resume: Option<PathBuf>,
    /// Settings in TOML, the keys as the flags; flags win over the file, the file over the preset
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Show the resolved settings as TOML and end
    #[arg(long)]
    pub print_config: bool,
    /// What is set by flags.
    #[command(flatten)]
    pub settings: Settings,
}

/// `ganvae sample`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct Sample {
    /// A run's folder
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Number of images
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub count: i64,
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// A .png for one grid, a .npy for the numbers, or a folder for a picture each [default: in the run's samples/]
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// `ganvae bench`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct Bench {
    /// What to train
    #[arg(value_enum)]
    pub model: ModelKind,
    /// Seconds of steps that are timed
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    pub seconds: f64,
    /// One JSON object in place of the table
    #[arg(long)]
    pub json: bool,
    /// What is set by flags.
    #[command(flatten)]
    pub settings: Settings,
}

/// `ganvae plot`.
#[derive(Debug, Args)]
pub struct Plot {
    /// Folders of runs
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// A .png or .svg [default: loss.png in the run, or curves.png for several]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `ganvae doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// auto, cpu, cuda or cuda:N: exit with 1 if it could not be used
    #[arg(long)]
    pub device: Option<String>,
    /// Also train small networks there and compare with the CPU, and captured steps with others; about a minute
    #[arg(long, requires = "device")]
    pub check: bool,
    /// With --check: a tenth of the steps
    #[arg(long, requires = "check")]
    pub quick: bool,
    /// With --check: one JSON object for each thing that was looked at, and nothing else
    #[arg(long, requires = "check")]
    pub json: bool,
}

/// `ganvae data`.
#[derive(Debug, Args)]
pub struct Data {
    /// digits, mnist, fashion-mnist, kmnist, or a folder: IDX files, images, CIFAR-10 binaries
    #[arg(value_name = "SPEC")]
    pub spec: String,
    /// Where the preview goes
    #[arg(long, value_name = "FILE.png")]
    pub out: Option<PathBuf>,
    /// Where named sets are kept [default: $GANVAE_DATA or the user's cache]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Resize pictures of a folder: HEIGHTxWIDTH, or one number for both
    #[arg(long, value_name = "HxW")]
    pub image_size: Option<String>,
    /// Force pictures of a folder to grey (1) or colour (3)
    #[arg(long, value_name = "1|3")]
    pub channels: Option<u32>,
}
