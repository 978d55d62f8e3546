//! `ganvae bench`: times the training step, and the lower limit of its matmuls and convolutions.

mod gpu;
mod limit;

use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use tch::{Device, Kind};

use super::arguments::check_range;
use super::print;
use crate::base::progress::say;
use crate::base::setting::choice_name;
use crate::base::timer::{PHASES, Phase, StepTimer};
use crate::config::flags::Flags;
use crate::config::training::STEPS;
use crate::config::{self, Config, device};
use crate::models::ModelKind;
use crate::nets::cost::Work;
use crate::nets::{Layout, Precision};
use crate::train::setup::Setup;
use crate::train::stepper::{AverageMeter, ExecutionMode, StepPosition, Stepper};

#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct Bench {
    /// What to train
    #[arg(value_enum)]
    model: ModelKind,
    /// Seconds of training that are timed
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags<false>,
}

impl Bench {
    pub(super) fn run(&self) -> Result<u8> {
        check_range("seconds", self.seconds, 0.1..=3600.0)?;
        // Enough steps that tuning is measured.
        let config = config::resolve(self.model, &self.flags.0.clone().with(&STEPS, 1 << 53))?;
        let mut setup = Setup::new(&config, None)?;
        say(&setup.chosen.to_string());
        let timing = match setup.device {
            Device::Cuda(index) => gpu::time(&mut setup, &config, index, self.seconds)?,
            _ => time(&mut setup, &config, self.seconds)?,
        };
        let batch_size = config.batch_size.min(setup.train.len());
        let work = setup.model.work(batch_size as i64);
        let bf16 = timing.gpu.as_ref().is_some_and(|gpu| gpu.precision == Precision::Bf16);
        let kind = if bf16 { Kind::BFloat16 } else { Kind::Float };
        let report = BenchReport {
            model: self.model,
            preset: config.preset(),
            device: device::name(setup.device),
            tuning: setup.chosen.tuning.to_string(),
            batch_size,
            limit_ms: limit::limit_ms(&work, (kind, setup.device))
                .context("timing the matmuls and convolutions alone")?,
            gflop: work.iter().map(Work::flops).sum::<f64>() / 1e9,
            timing,
        };
        print(&if self.json { format!("{}\n", report.json()) } else { report.table() })
    }
}

/// What is printed.
struct BenchReport {
    model: ModelKind,
    preset: String,
    device: String,
    tuning: String,
    batch_size: usize,
    limit_ms: f64,
    gflop: f64,
    timing: StepTiming,
}

/// Timing of the steps.
struct StepTiming {
    steps: u64,
    seconds: f64,
    /// Milliseconds of a step in each of [`PHASES`].
    phases_ms: [f64; 4],
    /// Median and ninth decile of single steps.
    step_ms: (f64, f64),
    peak_rss_mb: Option<f64>,
    gpu: Option<GpuFigures>,
}

/// Further figures of a GPU.
struct GpuFigures {
    name: String,
    precision: Precision,
    layout: Layout,
    /// Whether a step is one launch.
    captured: bool,
    /// Peak of the memory that libtorch took from the driver.
    peak_mb: f64,
    /// Share of the time in which the device waited for the next step.
    gap: f64,
}

/// Training steps on full batches of one order of the images: all do the same work.
struct Steps<'a> {
    // First: a captured graph must be dropped before the tensors that it reads.
    stepper: Stepper,
    setup: &'a mut Setup,
    meter: AverageMeter,
    seed: u64,
    full_batches: u64,
    done: u64,
}

impl<'a> Steps<'a> {
    fn new(setup: &'a mut Setup, config: &Config) -> Result<Self> {
        Ok(Steps {
            stepper: Stepper::new(ExecutionMode::new(setup.device, config.cuda_graph), setup, config)?,
            meter: AverageMeter::new(setup.model.measured(), setup.device),
            seed: config.seed,
            full_batches: (setup.train.len() / config.batch_size).max(1) as u64,
            done: 0,
            setup,
        })
    }

    fn next(&mut self, timer: &StepTimer) -> Result<()> {
        let position = StepPosition::new(self.seed, self.done, self.full_batches);
        self.stepper.step(self.setup, &mut self.meter, StepPosition { epoch: 0, ..position }, timer)?;
        self.done += 1;
        Ok(())
    }
}

/// Milliseconds of a step in each of [`PHASES`], of `steps` steps.
fn phases_ms(timer: &StepTimer, steps: u64) -> [f64; 4] {
    PHASES.map(|(phase, _)| timer.seconds(phase) / steps as f64 * 1e3)
}

/// Trains on the CPU for `seconds` after a warm-up and times it with the host's clock.
fn time(setup: &mut Setup, config: &Config, seconds: f64) -> Result<StepTiming> {
    let mut steps = Steps::new(setup, config)?;
    let warm_up = Instant::now();
    while warm_up.elapsed().as_secs_f64() < seconds.min(1.0) {
        steps.next(&StepTimer::off())?;
    }
    let (mut times, timer, began) = (Vec::new(), StepTimer::on(), Instant::now());
    let mut last = 0.0;
    while last < seconds {
        steps.next(&timer)?;
        // Adding up the values and freeing the tensors of the step count as the networks' time.
        timer.lap(Phase::Forward);
        let now = began.elapsed().as_secs_f64();
        times.push((now - last) * 1e3);
        last = now;
    }
    let steps = times.len() as u64;
    Ok(StepTiming {
        steps,
        seconds: last,
        phases_ms: phases_ms(&timer, steps),
        step_ms: spread(times),
        // Before the limit is timed, which has tensors of its own.
        peak_rss_mb: peak_rss_mb(),
        gpu: None,
    })
}

/// Median and ninth decile.
fn spread(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 9 / 10])
}

impl BenchReport {
    fn steps_per_s(&self) -> f64 {
        self.timing.steps as f64 / self.timing.seconds
    }

    /// One object, as the README describes it.
    fn json(&self) -> Value {
        let (timing, gpu) = (&self.timing, self.timing.gpu.as_ref());
        let phases = PHASES.iter().map(|(_, name)| *name).zip(timing.phases_ms);
        let (median, p90) = timing.step_ms;
        let steps = [("step", 1e3 / self.steps_per_s()), ("step_median", median), ("step_p90", p90)];
        let ms = phases.chain(steps).map(|(name, ms)| (name.to_owned(), json!(round(ms))));
        json!({
            "model": self.model.to_string(),
            "preset": self.preset,
            "device": self.device,
            "tuning": self.tuning,
            "batch_size": self.batch_size,
            "steps": timing.steps,
            "steps_per_s": round(self.steps_per_s()),
            "images_per_s": round(self.steps_per_s() * self.batch_size as f64),
            "peak_rss_mb": timing.peak_rss_mb.map(f64::round),
            "peak_gpu_mb": gpu.map(|gpu| gpu.peak_mb.round()),
            "gpu": gpu.map(|gpu| &gpu.name),
            "precision": choice_name(&gpu.map_or(Precision::Fp32, |gpu| gpu.precision)),
            "captured": gpu.map(|gpu| gpu.captured),
            "launch_gap": gpu.map(|gpu| round(gpu.gap)),
            "limit_ms": round(self.limit_ms),
            "gflop": round(self.gflop),
            "ms": ms.collect::<serde_json::Map<_, _>>(),
        })
    }

    /// A table for people.
    fn table(&self) -> String {
        let BenchReport { model, preset, device, batch_size, limit_ms, gflop, timing, .. } = self;
        let (rate, step) = (self.steps_per_s(), 1e3 / self.steps_per_s());
        let how = match &timing.gpu {
            None => self.tuning.clone(),
            Some(gpu) => {
                let how = if gpu.captured { "one launch a step" } else { "operation by operation" };
                format!("{}, {}, {how}, {}", gpu.name, choice_name(&gpu.precision), choice_name(&gpu.layout))
            }
        };
        let mut text = format!(
            "{preset} {model}, batch {batch_size}, {device} ({how})\n{rate:.2} steps/s, {:.0} images/s over {} steps\n\n             \
             ms a step   share\n",
            rate * *batch_size as f64,
            timing.steps
        );
        for ((_, name), ms) in PHASES.iter().zip(timing.phases_ms) {
            text += &format!("{name:<10} {ms:>11.3} {:>6.1} %\n", ms / step * 100.0);
        }
        let (median, p90) = timing.step_ms;
        text += &format!("step       {step:>11.3}   median {median:.3}, p90 {p90:.3}\n");
        text += &format!(
            "limit      {limit_ms:>11.3}   matmuls and convolutions alone ({gflop:.2} GFLOP, {:.0} GFLOP/s); the step takes {:.2} times as long\n",
            gflop / limit_ms * 1e3,
            step / limit_ms
        );
        if let Some(gpu) = &timing.gpu {
            text += &format!("waiting    {:>11.3}   between steps, {:.1} %\n", gpu.gap * step, gpu.gap * 100.0);
            text += "parts of a step are those of steps that run operation by operation, waiting after each part\n";
            text += &format!("GPU memory {:>11.0} MB\n", gpu.peak_mb);
        }
        if let Some(mb) = timing.peak_rss_mb {
            text += &format!("peak memory {mb:>10.0} MB\n");
        }
        text
    }
}

/// Rounds to a millionth: a step on a GPU may take a tenth of a millisecond.
fn round(v: f64) -> f64 {
    (v * 1e6).round() / 1e6
}

/// Peak resident memory of the process, MB; none on a system without /proc.
fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kb| kb / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::setting::Settings;
    use crate::data::{TEST_LIMIT, TRAIN_LIMIT};

    #[test]
    fn a_vae_of_the_article_takes_the_products_that_it_must() {
        let settings = Settings::default().with(&TRAIN_LIMIT, 300).with(&TEST_LIMIT, 10);
        let config = config::resolve(ModelKind::Vae, &settings).unwrap();
        let setup = Setup::new(&config, None).unwrap();
        let work = setup.model.work(128);
        // 784-400-(20,20) and 20-400-784: forward and weights of all five layers, inputs of all but the first.
        assert_eq!(work.len(), 5 + 5 + 4);
        let weights = 784 * 400 + 2 * 400 * 20 + 20 * 400 + 400 * 784;
        let want = 2.0 * 128.0 * (3 * weights - 784 * 400) as f64;
        assert!((work.iter().map(Work::flops).sum::<f64>() - want).abs() < 1.0);
    }
}
