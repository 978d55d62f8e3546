//! ganvae trains generative adversarial networks and variational autoencoders on libtorch.
//!
//! The folders, each importing only from those below it:
//!
//! ```text
//! commands   one command each: its arguments, what it does, what it prints
//! train      the loop and what hangs on it
//! run        a run on disk, and its model opened again
//! config     how settings become a plan
//! data       where images come from, and batches of them
//! models     one update of a VAE and of a GAN, losses, optimizer
//! export     TorchScript, safetensors, ONNX
//! nets       networks and how they are computed
//! pictures   curves, grids, animations, arrays on disk
//! native     the calls into libtorch that tch lacks
//! base       settings, seeds, hashes, files, signals, progress, usage errors
//! ```
//!
//! # From a program of your own
//!
//! A run, or what was exported of one, opened and put to use:
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
//! let again = trained.decode(&mu)?; // [64,C,H,W]
//! # assert_eq!(again.size(), [64, 1, 28, 28]);
//! # assert!(std::fs::metadata("samples.png")?.len() > 1000);
//! # Ok(())
//! # }
//! ```
//!
//! `"cuda"` in place of `"auto"` insists on a GPU. Training is [`config::resolve`] and
//! [`train::train`].

#![warn(missing_docs)]
// Shapes stand in brackets, x [B,C,H,W], which rustdoc takes for links to items of that name.
#![allow(rustdoc::broken_intra_doc_links)]

pub mod base;
pub mod commands;
pub mod config;
pub mod data;
pub mod export;
pub mod models;
pub mod native;
pub mod nets;
pub mod pictures;
pub mod run;
pub mod train;
