//! The commands: each a file with its arguments, what it does and what it prints to stdout.

mod arguments;
mod bench;
mod data;
pub mod doctor;
mod encode;
mod error;
mod export;
mod interpolate;
mod latent_paths;
mod latent_plane;
mod plot;
mod reconstruct;
pub mod sample;
mod self_check;
mod train;
mod traverse;

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use crate::base::names::printable;

pub use error::{explain, panicked};

/// Train GANs and VAEs on images: curves, sample grids and weights by themselves, no Python.
#[derive(Debug, Parser)]
#[command(name = "ganvae", version, propagate_version = true, arg_required_else_help = true, args_override_self = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a VAE or a GAN; `ganvae train vae` trains on the embedded digits
    Train(Box<train::Train>),
    /// Draw new images from a trained run
    Sample(sample::Sample),
    /// Write a trained run's networks as TorchScript, safetensors and ONNX
    Export(export::Export),
    /// Draw images above their reconstructions by a VAE
    Reconstruct(reconstruct::Reconstruct),
    /// Draw paths from one image to another through the latent space
    Interpolate(interpolate::Interpolate),
    /// Draw the effect of each dimension of the latent on an image
    Traverse(traverse::Traverse),
    /// Write the latents of images as NumPy arrays
    Encode(encode::Encode),
    /// Time the real training step, phase by phase, beside the limit of its products and convolutions
    Bench(Box<bench::Bench>),
    /// Draw loss curves (several runs share one chart), a picture of the latents, or training as an animation
    Plot(plot::PlotCommand),
    /// Describe a data set, and draw a preview of it
    Data(data::Data),
    /// Report what is found and what is missing: libtorch, CUDA, driver, devices; ends with what to do
    Doctor(doctor::Doctor),
}

/// Runs one command and gives the exit code: 0 done, 130, 143 or 129 after a signal.
///
/// # Errors
/// One sentence for the user; [`crate::base::usage::Usage`] among the causes means exit code 2.
pub fn run(cli: Cli) -> Result<u8> {
    match cli.command {
        Command::Train(args) => args.run(),
        Command::Sample(args) => args.run(),
        Command::Export(args) => args.run(),
        Command::Reconstruct(args) => args.run(),
        Command::Interpolate(args) => args.run(),
        Command::Traverse(args) => args.run(),
        Command::Encode(args) => args.run(),
        Command::Bench(args) => args.run(),
        Command::Plot(args) => args.run(),
        Command::Data(args) => args.run(),
        Command::Doctor(args) => args.run(),
    }
}

/// The page of help that covers `command`, the first word of a command line.
pub fn help_of(command: Option<OsString>) -> String {
    let known =
        command.and_then(|name| name.into_string().ok()).filter(|name| Cli::command().find_subcommand(name).is_some());
    known.map_or_else(|| "ganvae --help".into(), |name| format!("ganvae {name} --help"))
}

/// Prints the lines of a result, in which a name with line breaks must be [`printable`], and gives the exit code 0. A closed pipe
/// (`ganvae data digits | head -1`) is no error.
fn print(text: &str) -> Result<u8> {
    let lines: Vec<_> = text.split('\n').map(printable).collect();
    match std::io::stdout().write_all(lines.join("\n").as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(0),
    }
}

fn print_path(path: &Path) -> Result<u8> {
    print(&format!("{}\n", printable(path)))
}
