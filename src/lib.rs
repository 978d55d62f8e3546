//! ganvae trains generative adversarial networks and variational autoencoders on libtorch.
//!
//! The folders, each importing only from those below it:
//!
//! ```text
//! commands   the subcommands: arguments, execution, output
//! train      the training loop
//! run        the folder of a run, and loading its model
//! config     settings resolved into a configuration
//! metrics    scores: samples, reconstructions, likelihood, disentanglement
//! data       data sets and batches
//! models     one update of a VAE and of a GAN, losses, optimizer
//! export     TorchScript, safetensors, ONNX
//! nets       networks and their forward pass
//! pictures   curves, grids, animations, .npy files
//! native     libtorch functions that tch lacks
//! base       settings, seeds, hashes, files, signals, progress, usage errors
//! ```
//!
//! # Use as a library
//!
//! Open a run or its export:
//!
//! ```
//! # fn main() -> anyhow::Result<()> {
//! use ganvae::{pictures::grid, run::trained::Trained};
//! # let dir = tempfile::tempdir()?;
//! # std::env::set_current_dir(&dir)?;
//! # let tiny = "steps = 2\ntrain-limit = 64\ntest-limit = 16\ndevice = 'cpu'";
//! # let (_, tiny) = ganvae::config::file::parse(tiny, "tiny.toml".as_ref())?;
//! # ganvae::train::train(&ganvae::config::resolve(ganvae::models::ModelKind::Vae, &tiny)?)?;
//!
//! let trained = Trained::open("runs/0001-vae-digits", "auto")?;
//! let images = trained.sample(64, 0)?; // [64,C,H,W] in [0,1]; 0 is the seed
//! grid::draw(&images, 8)?.save("samples.png".as_ref())?;
//!
//! let (mu, _logvar) = trained.encode(&images)?; // [64,Z]
//! let again = trained.decode(&mu, None)?; // [64,C,H,W]
//! # assert_eq!(again.size(), [64, 1, 28, 28]);
//! # assert!(std::fs::metadata("samples.png")?.len() > 1000);
//! # Ok(())
//! # }
//! ```
//!
//! `"cuda"` instead of `"auto"` requires a GPU. To train, call [`config::resolve`] and [`train::train`]. A program that depends on
//! ganvae needs two more lines: see "As a library" in the README.

#![warn(missing_docs)]
// Shapes are in brackets, x [B,C,H,W]; rustdoc takes them for links.
#![allow(rustdoc::broken_intra_doc_links)]

/// The crate of the tensors in this API, in the version that fits.
pub use tch;

pub mod base;
pub mod commands;
pub mod config;
pub mod data;
pub mod export;
pub mod metrics;
pub mod models;
pub mod native;
pub mod nets;
pub mod pictures;
pub mod run;
pub mod train;
