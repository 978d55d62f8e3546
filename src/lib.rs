//! ganvae trains generative adversarial networks and variational autoencoders on libtorch.
//!
//! The layers, each importing only from those below it:
//!
//! ```text
//! main        parse, run, print the error, exit code
//! commands    each command carried out          cli  the command line
//! generate  walk  latents   images from latents, and latents from images
//! trained     a run or an export put to use     doctor  what is found, what is missing
//! train       the loop                       bench  timing
//! selfcheck   whether a device trains as it must
//! stepper     one update after another
//! setup       device, data and model, put together
//! run         the run folder                    checkpoint  state on disk     progress  what a person sees
//! export      modules for other programs        init        weights from other programs
//! data        where images come from            output  where they go           device      which device
//! config      settings, presets, checks
//! tune        which form of a step is the fastest here
//! vae  gan    one update of each model
//! optim       Adam, moving averages
//! model       what the loop needs of a model
//! nets        layers and architectures
//! native      the calls into libtorch that tch lacks
//!
//! timelapse   training as an animation          film  npy  grid   files of pictures
//!
//! leaves, importing nothing of the crate: seed, hash, health, clock, objectives, weights, part, plot, signals
//! ```
//!
//! # From a program of your own
//!
//! A run, or what was exported of one, opened and put to use:
//!
//! ```
//! # fn main() -> anyhow::Result<()> {
//! use ganvae::{config::Settings, grid, trained::Trained};
//! # let dir = tempfile::tempdir()?;
//! # std::env::set_current_dir(&dir)?;
//! # let (train_limit, test_limit, device) = (Some(64), Some(16), Some("cpu".to_owned()));
//! # let tiny = Settings { steps: Some(2), train_limit, test_limit, device, ..Settings::default() };
//! # ganvae::train::train(&ganvae::config::resolve(ganvae::config::ModelKind::Vae, &tiny)?)?;
//!
//! let trained = Trained::open("runs/0001-vae-digits", &Settings::default())?;
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
//! `Settings { device: Some("cuda".into()), ..Settings::default() }` does it on a GPU. Training is [`config::resolve`] and
//! [`train::train`].

#![warn(missing_docs)]
// Shapes stand in brackets, x [B,C,H,W], which rustdoc takes for links to items of that name.
#![allow(rustdoc::broken_intra_doc_links)]

pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod data;
pub mod device;
pub mod doctor;
pub mod export;
pub mod film;
pub mod gan;
pub mod generate;
pub mod grid;
pub mod hash;
pub mod health;
pub mod init;
pub mod latents;
pub mod model;
pub mod native;
pub mod nets;
pub mod npy;
pub mod objectives;
pub mod optim;
pub mod output;
pub mod part;
pub mod plot;
pub mod progress;
pub mod run;
pub mod seed;
pub mod selfcheck;
pub mod setup;
pub mod signals;
pub mod stepper;
pub mod timelapse;
pub mod train;
pub mod trained;
pub mod tune;
pub mod vae;
pub mod walk;
pub mod weights;
