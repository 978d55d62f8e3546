//! Each command of the command line carried out; results go to stdout. Imports cli and the modules that do the work.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::bench;
use crate::cli::{Bench, Cli, Command, Data, Doctor, Plot, Sample, Train};
use crate::config::{self, Settings, Usage, one_line, usage};
use crate::data;
use crate::doctor;
use crate::plot;
use crate::run::RunDir;
use crate::sample;
use crate::selfcheck;
use crate::train::{self, Outcome};

/// Runs one command and gives the exit code: 0 done, 130 or 143 after a signal.
///
/// # Errors
/// One sentence for the user; [`Usage`] among the causes means exit code 2.
pub fn run(cli: Cli) -> Result<u8> {
    match cli.command {
        Command::Train(args) => run_train(&args),
        Command::Sample(args) => run_sample(&args),
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

/// The chain of causes in one line. Of libtorch's errors, which bring a stack trace, only the first line stays.
fn one_sentence(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let first = text.split("\nException raised from").next().unwrap_or_default();
        let part = one_line(first);
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
        train::resume(root, &args.settings)?
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

fn run_sample(args: &Sample) -> Result<u8> {
    let over = Settings { device: Some(args.device.clone()), ..Settings::default() };
    let out = sample::sample(&args.run, args.count, args.seed, args.out.as_deref(), &over)?;
    print(&format!("{}\n", out.display()))?;
    Ok(0)
}

fn run_bench(args: &Bench) -> Result<u8> {
    let s = &args.settings;
    let of_a_run = [
        ("out", s.out.is_some()),
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
    let mut all = Vec::new();
    for root in &args.runs {
        let run = RunDir::open(root)?;
        all.push((name_of(root), plot::read_metrics(&run.path("metrics.jsonl"))?));
    }
    let out = match (&args.out, args.runs.as_slice()) {
        (Some(out), _) => out.clone(),
        (None, [one]) => one.join("loss.png"),
        (None, _) => PathBuf::from("curves.png"),
    };
    match all.as_slice() {
        [(name, metrics)] => plot::draw_run(metrics, name, &out)?,
        several => plot::draw_runs(several, &out)?,
    }
    print(&format!("{}\n", out.display()))?;
    Ok(0)
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
    let checks = selfcheck::examine(device, args.quick)?;
    for check in &checks {
        print(&if args.json { format!("{}\n", check.json()) } else { check.line() })?;
    }
    Ok(u8::from(checks.iter().any(|c| c.passed == Some(false))))
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
