//! The commands: each a file with its arguments, what it does and what it prints to stdout.

mod arguments;
mod bench;
mod data;
pub mod doctor;
mod encode;
mod encodings;
mod error;
mod eval;
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

/// Train GANs and VAEs on images. Writes loss curves, sample grids and weights; needs no Python.
#[derive(Debug, Parser)]
#[command(name = "ganvae", version, propagate_version = true, arg_required_else_help = true, args_override_self = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a VAE or a GAN; to start: `ganvae train vae`
    Train(Box<train::Train>),
    /// Generate new images with a trained run
    Sample(sample::Sample),
    /// Export the networks of a run: TorchScript, safetensors, ONNX
    Export(export::Export),
    /// Draw images and their reconstructions
    Reconstruct(reconstruct::Reconstruct),
    /// Draw interpolations between images in the latent space
    Interpolate(interpolate::Interpolate),
    /// Draw how an image changes with each latent dimension
    Traverse(traverse::Traverse),
    /// Write the latents of images as NumPy arrays
    Encode(encode::Encode),
    /// Score runs: distances of samples from real images, reconstructions
    Eval(Box<eval::Eval>),
    /// Time the training step and its phases
    Bench(Box<bench::Bench>),
    /// Draw loss curves of runs, the latents of a VAE, or an animation
    Plot(plot::PlotCommand),
    /// Describe a data set and draw a preview of it
    Data(data::Data),
    /// Check libtorch, CPU and GPU; say how to fix what is missing
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
        Command::Eval(args) => args.run(),
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
