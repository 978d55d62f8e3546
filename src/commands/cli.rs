//! The command line and nothing else: no other file knows argv.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::commands::encode::{Projection, Split};
use crate::commands::interpolate::Mode;
use crate::config::{ModelKind, Settings};
use crate::export::Format;

/// Train GANs and VAEs on images: curves, sample grids and weights by themselves, no Python.
#[derive(Debug, Parser)]
#[command(name = "ganvae", version, propagate_version = true, arg_required_else_help = true, args_override_self = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The page of help that covers `command`, the first word of a command line.
pub fn help_of(command: Option<String>) -> String {
    let known = command.filter(|name| Cli::command().find_subcommand(name).is_some());
    known.map_or_else(|| "ganvae --help".into(), |name| format!("ganvae {name} --help"))
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a VAE or a GAN; `ganvae train vae` trains on the embedded digits
    Train(Box<Train>),
    /// Draw new images from a trained run
    Sample(Sample),
    /// Write a trained run's networks as TorchScript, safetensors and ONNX
    Export(Export),
    /// Draw images above what a VAE makes of them
    Reconstruct(Reconstruct),
    /// Draw paths from one image to another through the latent space
    Interpolate(Interpolate),
    /// Draw what each dimension of the latent does to an image
    Traverse(Traverse),
    /// Write the latents of images as NumPy arrays
    Encode(Encode),
    /// Time the real training step, part by part, beside the limit of its products and convolutions
    Bench(Box<Bench>),
    /// Draw loss curves (several runs share one chart), a picture of the latents, or training as an animation
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
    #[arg(value_enum, value_name = "vae|gan", required_unless_present_any = ["resume", "config"])]
    pub model: Option<ModelKind>,
    /// Go on with a run where it stands; flags may change how far it goes (--epochs, --steps), where (--device, --threads, --data)
    /// and what it writes (--keep, --log-every and so on)
    #[arg(long, value_name = "RUN", conflicts_with = "config")]
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
    /// What is used.
    #[command(flatten)]
    pub of: Trained,
    /// Number of images
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub count: i64,
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Keep each number of z within -T and T: less varied, cleaner images the smaller T is (0.01 to 10)
    #[arg(long, value_name = "T")]
    pub truncation: Option<f64>,
    /// A .png for one grid, a .npy for the numbers, or a folder for a picture each [default: in the run's samples/]
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
}

/// A trained model, and where it computes.
#[derive(Debug, Args)]
pub struct Trained {
    /// A run's folder, or exported modules: the folder with decoder.pt or generator.pt, or such a file
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// `ganvae export`.
#[derive(Debug, Args)]
pub struct Export {
    /// A run's folder
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Which files are written of each network; those of an earlier export there that are not go
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT,...",
        value_delimiter = ',',
        default_value = "torchscript,safetensors,onnx"
    )]
    pub format: Vec<Format>,
    /// Their folder [default: export/ in the run]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Real images.
#[derive(Debug, Args)]
pub struct Given {
    /// Images as `train --data` names them; pictures of a folder are brought to the model's size [default: the run's]
    #[arg(long, value_name = "SPEC")]
    pub data: Option<String>,
    /// Where named sets are kept [default: the run's, $GANVAE_DATA or the user's cache]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The images that were trained on, or the held-out ones
    #[arg(long, value_enum, default_value_t = Split::Test)]
    pub split: Split,
}

/// `ganvae reconstruct`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct Reconstruct {
    /// What is used.
    #[command(flatten)]
    pub of: Trained,
    /// Of which images.
    #[command(flatten)]
    pub given: Given,
    /// Number of images at the most, evenly spread over the set
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub count: usize,
    /// A .png for a grid, rows of images above their reconstructions; the reconstructions alone: a .npy, or a folder for a
    /// picture each [default: in the run's reconstructions/]
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
}

/// `ganvae interpolate`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct Interpolate {
    /// What is used.
    #[command(flatten)]
    pub of: Trained,
    /// Number of paths, each a row of the grid
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub rows: i64,
    /// Images of a path, both ends included [default: 10; 30 for an animation]
    #[arg(long, value_name = "N")]
    pub steps: Option<i64>,
    /// The way between two ends
    #[arg(long, value_enum, default_value_t = Mode::Spherical)]
    pub mode: Mode,
    /// Row r goes from image 2r to image 2r + 1 of `ganvae sample` with this seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// VAE: from one held-out image of this set to another of a different class; --seed chooses which
    #[arg(long, value_name = "SPEC")]
    pub data: Option<String>,
    /// Where named sets are kept [default: the run's, $GANVAE_DATA or the user's cache]
    #[arg(long, value_name = "DIR", requires = "data")]
    pub data_dir: Option<PathBuf>,
    /// A .png for one grid, a .gif for an animation there and back, a .npy for the numbers (row by row), or a folder
    /// for a picture each [default: in the run's samples/]
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
}

/// `ganvae traverse`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct Traverse {
    /// What is used.
    #[command(flatten)]
    pub of: Trained,
    /// Rows: the dimensions that change the image most, the strongest first
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub dims: i64,
    /// A dimension goes from -RANGE to RANGE; the prior's standard deviation is 1
    #[arg(long, default_value_t = 3.0)]
    pub range: f64,
    /// Images of a row, both ends included [default: 10; 30 for an animation]
    #[arg(long, value_name = "N")]
    pub steps: Option<i64>,
    /// Start from the first image of `ganvae sample` with this seed [default: from the prior's mean]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// A .png for one grid, a .gif for an animation there and back, a .npy for the numbers (row by row), or a folder
    /// for a picture each [default: in the run's samples/]
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
}

/// `ganvae encode`.
#[derive(Debug, Args)]
pub struct Encode {
    /// What is used.
    #[command(flatten)]
    pub of: Trained,
    /// Of which images.
    #[command(flatten)]
    pub given: Given,
    /// The means of the latents, [N,Z]; beside them X.logvar.npy and, where there are classes, X.labels.npy [default:
    /// latents.npy in the run]
    #[arg(long, value_name = "X.npy")]
    pub out: Option<PathBuf>,
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
    /// A VAE's latents of held-out images in two dimensions, a colour for each class
    #[arg(long, conflicts_with = "progress")]
    pub latent: bool,
    /// The run's sample pictures one after another, as a .gif
    #[arg(long)]
    pub progress: bool,
    /// A .png or .svg [default: loss.png in the run, or curves.png for several; latent.png; samples/progress.gif]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// --latent: the two dimensions that vary most, or the principal components
    #[arg(long, value_enum, value_name = "HOW", requires = "latent")]
    pub projection: Option<Projection>,
    /// --latent: other images than the run's
    #[arg(long, value_name = "SPEC", requires = "latent")]
    pub data: Option<String>,
    /// --latent: where named sets are kept [default: the run's, $GANVAE_DATA or the user's cache]
    #[arg(long, value_name = "DIR", requires = "latent")]
    pub data_dir: Option<PathBuf>,
    /// --latent: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long, requires = "latent")]
    pub device: Option<String>,
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
