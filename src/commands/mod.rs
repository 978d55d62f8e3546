//! Each command of the command line carried out; results go to stdout.

pub mod bench;
pub mod cli;
pub mod doctor;
pub mod encode;
pub mod interpolate;
pub mod sample;
pub mod self_check;

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::base::usage::{Usage, one_line, usage};
use crate::commands::cli::{
    Bench, Cli, Command, Data, Doctor, Encode, Export, Interpolate, Plot, Reconstruct, Sample, Train, Traverse,
};
use crate::commands::encode::{Given, Projection, Split};
use crate::commands::interpolate::{Interpolation, Traversal};
use crate::commands::sample::Samples;
use crate::config::build;
use crate::config::{self, Settings};
use crate::data;
use crate::export::{self, Verified};
use crate::pictures::animation;
use crate::pictures::curves::{self, Metrics};
use crate::run::folder::RunDir;
use crate::run::trained::Trained;
use crate::train::{self, Outcome};

/// Runs one command and gives the exit code: 0 done, 130 or 143 after a signal.
///
/// # Errors
/// One sentence for the user; [`Usage`] among the causes means exit code 2.
pub fn run(cli: Cli) -> Result<u8> {
    match cli.command {
        Command::Train(args) => run_train(&args),
        Command::Sample(args) => run_sample(&args),
        Command::Export(args) => run_export(&args),
        Command::Reconstruct(args) => run_reconstruct(&args),
        Command::Interpolate(args) => run_interpolate(&args),
        Command::Traverse(args) => run_traverse(&args),
        Command::Encode(args) => run_encode(&args),
        Command::Bench(args) => run_bench(&args),
        Command::Plot(args) => run_plot(&args),
        Command::Data(args) => run_data(&args),
        Command::Doctor(args) => run_doctor(&args),
    }
}

/// The exit code and the one-sentence text of an error.
pub fn explain(error: &anyhow::Error) -> (u8, String) {
    let usage = error.chain().any(|cause| cause.is::<Usage>());
    (if usage { 2 } else { 1 }, one_sentence(error))
}

/// Where libtorch says that memory ran out: so, in one sentence, and what to do.
fn out_of_memory(text: &str) -> Option<String> {
    let said = [("you tried to allocate ", ""), ("CUDA out of memory. Tried to allocate ", "the GPU's ")];
    let (rest, whose) = said.iter().find_map(|(before, whose)| Some((text.split_once(before)?.1, whose)))?;
    let amount = rest.split(". ").next().unwrap_or_default();
    Some(format!(
        "{whose}memory ran out, when {amount} more were wanted: choose a smaller --batch-size, smaller networks or images, or fewer \
         of them with --train-limit"
    ))
}

/// A panic in one sentence, with its place for whoever mends it: a bug of ours, but for memory that ran out in a call that tch has no
/// error for.
pub fn failed(info: &std::panic::PanicHookInfo) -> String {
    let payload = info.payload();
    let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    let text = text.unwrap_or_default();
    let place = info.location().map_or_else(String::new, |l| format!(" at {}:{}", l.file(), l.line()));
    match out_of_memory(text) {
        Some(sentence) => format!("error: {sentence}"),
        None => format!("error: ganvae failed{place}: {}", plain(text)),
    }
}

/// What libtorch says, in one line, without the stack trace that it brings.
fn plain(text: &str) -> String {
    let ends = ["Exception raised from", "frame #0:"];
    let first = ends.iter().fold(text, |text, end| text.split(end).next().unwrap_or_default());
    out_of_memory(text).unwrap_or_else(|| one_line(first))
}

/// The chain of causes in one line.
fn one_sentence(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let part = plain(&cause.to_string());
        // Some errors repeat their cause in their own text.
        if !parts.iter().any(|p| p.contains(&part)) {
            parts.push(part);
        }
    }
    parts.join(": ")
}

/// Prints a result. A reader that has gone (`ganvae data digits | head -1`) is no error.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

fn run_train(args: &Train) -> Result<u8> {
    let outcome = if let Some(root) = &args.resume {
        if args.print_config {
            usage!(
                "--print-config shows what a new run would have; a run's own settings are in {}/config.toml",
                root.display()
            );
        }
        train::resume(root, args.model, &args.settings)?
    } else {
        let (from_file, file) = match &args.config {
            Some(path) => Settings::read(path)?,
            None => (None, Settings::default()),
        };
        let model = match (args.model, from_file) {
            (Some(asked), Some(other)) if asked != other => {
                usage!("--config is of a {other}, and `train {asked}` was asked for: leave one of the two out")
            }
            (Some(model), _) | (None, Some(model)) => model,
            (None, None) => {
                usage!("train what? Say `train vae` or `train gan`, or put model = \"vae\" into the file of --config")
            }
        };
        let config = config::resolve(model, &file.overlaid(&args.settings)?)?;
        if args.print_config {
            print(&config.to_toml()?)?;
            return Ok(0);
        }
        train::train(&config)?
    };
    Ok(match outcome {
        Outcome::Done(summary) => {
            print(&summary)?;
            0
        }
        Outcome::Stopped(signal) => 128 + signal,
    })
}

fn on(device: &str) -> Settings {
    Settings { device: Some(device.to_owned()), ..Settings::default() }
}

fn print_path(path: &Path) -> Result<u8> {
    print(&format!("{}\n", path.display()))?;
    Ok(0)
}

fn run_sample(args: &Sample) -> Result<u8> {
    let ask = Samples { count: args.count, seed: args.seed, truncation: args.truncation, out: args.out.as_deref() };
    print_path(&sample::sample(&args.of.run, ask, &on(&args.of.device))?)
}

fn given(args: &crate::commands::cli::Given) -> Given<'_> {
    Given { data: args.data.as_deref(), data_dir: args.data_dir.as_deref(), split: args.split }
}

fn run_reconstruct(args: &Reconstruct) -> Result<u8> {
    let (out, over) = (args.out.as_deref(), on(&args.of.device));
    print_path(&encode::reconstruct(&args.of.run, given(&args.given), args.count, out, &over)?)
}

fn run_interpolate(args: &Interpolate) -> Result<u8> {
    let ask = Interpolation {
        rows: args.rows,
        steps: args.steps,
        mode: args.mode,
        seed: args.seed,
        data: args.data.as_deref(),
        data_dir: args.data_dir.as_deref(),
        out: args.out.as_deref(),
    };
    print_path(&interpolate::interpolate(&args.of.run, ask, &on(&args.of.device))?)
}

fn run_traverse(args: &Traverse) -> Result<u8> {
    let Traverse { of, dims, range, steps, seed, out } = args;
    let ask = Traversal { dims: *dims, range: *range, steps: *steps, seed: *seed, out: out.as_deref() };
    let (out, dims) = interpolate::traverse(&of.run, ask, &on(&of.device))?;
    let dims: Vec<_> = dims.iter().map(usize::to_string).collect();
    print(&format!("{}\ndimensions {}\n", out.display(), dims.join(" ")))?;
    Ok(0)
}

fn run_encode(args: &Encode) -> Result<u8> {
    let files = encode::encode(&args.of.run, given(&args.given), args.out.as_deref(), &on(&args.of.device))?;
    let lines: Vec<_> = files.iter().map(|f| format!("{}\n", f.display())).collect();
    print(&lines.concat())?;
    Ok(0)
}

fn run_export(args: &Export) -> Result<u8> {
    // The CPU's float32 is what the files are compared with, wherever the run was trained.
    let over = Settings { device: Some("cpu".into()), ..Settings::default() };
    args.out.as_deref().map_or(Ok(()), export::check_folder)?;
    let trained = Trained::open(&args.run, &over)?;
    let (Some((config, step)), Some(networks)) = (trained.origin(), trained.networks()) else {
        usage!(
            "{}: these are exports already; wanted a run's folder, such as runs/0001-vae-digits",
            args.run.display()
        );
    };
    let origin = config.origin(step);
    let out = args.out.clone().unwrap_or_else(|| args.run.join("export"));
    for written in export::export(&networks, &origin, &args.format, &out)? {
        let verified = match &written.verified {
            Verified::Run(differences) => match differences.iter().copied().fold(0.0, f64::max) {
                0.0 => "exact".to_owned(),
                largest => format!("off by {largest:.1e} at the most"),
            },
            Verified::Bits => "exact".to_owned(),
            Verified::Tests => "written from the same graph (not run here: ganvae has no ONNX runtime)".to_owned(),
        };
        print(&format!("{}  {verified}\n", written.path.display()))?;
    }
    Ok(0)
}

fn run_bench(args: &Bench) -> Result<u8> {
    let s = &args.settings;
    let of_a_run = [
        ("out", s.out.is_some()),
        ("init-from", s.init_from.is_some()),
        ("epochs", s.epochs.is_some()),
        ("steps", s.steps.is_some()),
        ("log-every", s.log_every.is_some()),
        ("checkpoint-every", s.checkpoint_every.is_some()),
        ("sample-every", s.sample_every.is_some()),
        ("eval-every", s.eval_every.is_some()),
        ("keep", s.keep.is_some()),
        ("on-divergence", s.on_divergence.is_some()),
        ("rollbacks", s.rollbacks.is_some()),
    ];
    if let Some((flag, _)) = of_a_run.iter().find(|(_, set)| *set) {
        usage!("--{flag} is a setting of a run, and bench makes none: leave it out (--seconds says how long it times)");
    }
    if !(0.1..=3600.0).contains(&args.seconds) {
        usage!("--seconds {}: wanted a number from 0.1 to 3600", args.seconds);
    }
    let report = bench::bench(args.model, s, args.seconds)?;
    print(&if args.json { format!("{}\n", report.json()) } else { report.table() })?;
    Ok(0)
}

fn run_plot(args: &Plot) -> Result<u8> {
    if args.latent || args.progress {
        let [root] = args.runs.as_slice() else {
            let flag = if args.latent { "latent" } else { "progress" };
            usage!("--{flag} draws one run at a time, {} were named", args.runs.len());
        };
        return if args.latent { plot_latent(root, args) } else { plot_progress(root, args) };
    }
    let mut all = Vec::new();
    for root in &args.runs {
        let run = RunDir::open(root)?;
        all.push((name_of(root), Metrics::read(run.root())?));
    }
    let out = match (&args.out, args.runs.as_slice()) {
        (Some(out), _) => out.clone(),
        (None, [one]) => one.join("loss.png"),
        (None, _) => PathBuf::from("curves.png"),
    };
    curves::draw_runs(&all, &out)?;
    print_path(&out)
}

fn plot_latent(root: &Path, args: &Plot) -> Result<u8> {
    let given = Given { data: args.data.as_deref(), data_dir: args.data_dir.as_deref(), split: Split::Test };
    let projection = args.projection.unwrap_or(Projection::Active);
    let over = on(args.device.as_deref().unwrap_or("auto"));
    print_path(&encode::draw(root, given, projection, (&name_of(root), args.out.as_deref()), &over)?)
}

fn plot_progress(root: &Path, args: &Plot) -> Result<u8> {
    let run = RunDir::open(root)?;
    let (model, settings, info) = run.config()?;
    let batch_size = config::resolve(model, &settings)?.batch_size;
    let out = args.out.clone().unwrap_or_else(|| run.samples().join("progress.gif"));
    if !animation::is_gif(&out) {
        usage!("--out {}: training becomes an animation, a .gif", out.display());
    }
    let per_epoch = build::steps_per_epoch(info.train_images, batch_size);
    if !animation::draw_training(&run.samples(), per_epoch, &out)? {
        bail!(
            "{} has fewer than two sample pictures, which make no animation: train on with `ganvae train --resume {}`",
            run.samples().display(),
            run.shown()
        );
    }
    print_path(&out)
}

/// A run's name: the last part of its path, also of `.` and `runs/x/`.
fn name_of(root: &Path) -> String {
    let full = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    full.file_name().map_or_else(|| root.display().to_string(), |n| n.to_string_lossy().into_owned())
}

fn run_doctor(args: &Doctor) -> Result<u8> {
    let report = doctor::examine(args.device.as_deref())?;
    if !args.json {
        print(&report.text)?;
    }
    let (Some(device), true) = (&args.device, args.check && report.works) else { return Ok(u8::from(!report.works)) };
    let well = self_check::examine(device, args.quick, |check| {
        print(&if args.json { format!("{}\n", check.json()) } else { check.line() })
    })?;
    Ok(u8::from(!well))
}

fn run_data(args: &Data) -> Result<u8> {
    if let Some(out) = args.out.as_ref().filter(|o| o.extension().is_none_or(|e| !e.eq_ignore_ascii_case("png"))) {
        usage!("--out {}: wanted a .png", out.display());
    }
    let settings = Settings {
        data: Some(args.spec.clone()),
        data_dir: args.data_dir.clone(),
        image_size: args.image_size.clone(),
        channels: args.channels,
        ..Settings::default()
    };
    config::check_data_settings(&settings)?;
    let source = data::open(&settings)?;
    let mut text = data::describe::describe(&source);
    if let Some(out) = &args.out {
        data::describe::preview(&source, out)?;
        text.push_str(&format!("preview   {}\n", out.display()));
    }
    print(&text)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn memory_that_ran_out_is_said_in_one_sentence() {
        let error = anyhow::Error::from(Tensor::f_zeros([1 << 45], (Kind::Float, Device::Cpu)).unwrap_err());
        let said = explain(&error.context("timing the forms of a step"));
        let want = "timing the forms of a step: memory ran out, when 140737488355328 bytes more were wanted: choose a smaller \
                    --batch-size, smaller networks or images, or fewer of them with --train-limit";
        assert_eq!(said, (1, want.to_owned()));
        let cuda = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.9 GiB is free.";
        assert!(
            plain(cuda).starts_with("the GPU's memory ran out, when 2.50 GiB more were wanted: "),
            "{}",
            plain(cuda)
        );
    }

    #[test]
    fn libtorchs_stack_traces_stay_out_of_sight() {
        let error = anyhow::Error::from(Tensor::from(1f32).f_view([2, 2]).unwrap_err());
        let (code, said) = explain(&error);
        assert_eq!(code, 1);
        assert!(
            said.contains("shape '[2, 2]' is invalid") && !said.contains("frame") && !said.contains("Exception"),
            "{said}"
        );
        assert_eq!(plain("a\n b frame #0: c10::x (0x1 in y)"), "a b");
    }
}
