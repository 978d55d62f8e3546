//! ganvae trains generative adversarial networks and variational autoencoders on libtorch.
//!
//! The layers, each importing only from those below it:
//!
//! ```text
//! main        parse, run, print the error, exit code
//! commands    each command carried out          cli  the command line
//! generate  walk  latents   images from latents, and latents from images
//! trained     a run or an export put to use
//! train       the loop                       bench  timing
//! setup       device, data and model, put together
//! run         the run folder                    checkpoint  state on disk     progress  what a person sees
//! data        where images come from            output  where they go           device      which device
//! config      settings, presets, checks
//! tune        which form of a step is the fastest here
//! vae  gan    one update of each model
//! optim       Adam, moving averages
//! model       what the loop needs of a model
//! nets        layers and architectures
//! native      the calls into libtorch that tch lacks
//!
//! timelapse   training as an animation          film  npy   files of many pictures
//!
//! leaves, importing nothing of the crate: seed, hash, health, clock, objectives, grid, part, plot
//! ```

#![warn(missing_docs)]

pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod data;
pub mod device;
pub mod film;
pub mod gan;
pub mod generate;
pub mod grid;
pub mod hash;
pub mod health;
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
pub mod setup;
pub mod timelapse;
pub mod train;
pub mod trained;
pub mod tune;
pub mod vae;
pub mod walk;
