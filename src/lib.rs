//! ganvae trains generative adversarial networks and variational autoencoders on libtorch.
//!
//! The layers, each importing only from those below it:
//!
//! ```text
//! main        parse, run, print the error, exit code
//! commands    each command carried out          cli  the command line
//! sample      a trained run put to use        doctor  what is found, what is missing
//! train       the loop                       bench  timing
//! selfcheck   whether a device trains as it must
//! stepper     one update after another
//! setup       device, data and model, put together
//! run         the run folder                    checkpoint  state on disk     progress  what a person sees
//! data        where images come from            device      which device
//! config      settings, presets, checks
//! tune        which form of a step is the fastest here
//! vae  gan    one update of each model
//! optim       Adam, moving averages
//! model       what the loop needs of a model
//! nets        layers and architectures
//! native      the calls into libtorch that tch lacks
//!
//! leaves, importing nothing of the crate: seed, hash, health, clock, objectives, grid, plot
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
pub mod doctor;
pub mod gan;
pub mod grid;
pub mod hash;
pub mod health;
pub mod model;
pub mod native;
pub mod nets;
pub mod objectives;
pub mod optim;
pub mod plot;
pub mod progress;
pub mod run;
pub mod sample;
pub mod seed;
pub mod selfcheck;
pub mod setup;
pub mod stepper;
pub mod train;
pub mod tune;
pub mod vae;
