//! `ganvae bench`: timing of the real training step, and of what it cannot do without.

mod gpu;
mod limit;

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::arguments::check_range;
use super::print;
use crate::base::progress::say;
use crate::base::seed::{Stream, epoch_order, seed_for};
use crate::base::setting::choice_name;
use crate::base::timer::{PHASES, Phase, StepTimer};
use crate::config::flags::Flags;
use crate::config::training::STEPS;
use crate::config::{self, Config, device};
use crate::models::ModelKind;
use crate::models::StepContext;
use crate::models::noise::Noise;
use crate::nets::cost::Work;
use crate::nets::{Layout, Precision};
use crate::train::setup::{Prefetched, Setup};

/// `ganvae bench`.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub struct Bench {
    /// What to train
    #[arg(value_enum)]
    pub model: ModelKind,
    /// Seconds of steps that are timed
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    pub seconds: f64,
    /// One JSON object in place of the table
    #[arg(long)]
    pub json: bool,
    /// What is set by flags.
    #[command(flatten)]
    pub flags: Flags<false>,
}

impl Bench {
    pub(super) fn run(&self) -> Result<u8> {
        check_range("seconds", self.seconds, 0.1..=3600.0)?;
        let report = self.time()?;
        print(&if self.json { format!("{}\n", report.json()) } else { report.table() })?;
        Ok(0)
    }

    /// Trains for `seconds` without a run folder and times it.
    fn time(&self) -> Result<Report> {
        // Long enough that tuning pays.
        let config = config::resolve(self.model, &self.flags.0.clone().with(&STEPS, 1 << 53))?;
        let mut setup = Setup::new(&config, None)?;
        say(&setup.chosen.to_string());
        let timed = match setup.device {
            Device::Cuda(index) => gpu::time(&mut setup, &config, index, self.seconds)?,
            _ => time(&mut setup, &config, self.seconds)?,
        };
        let batch = config.batch_size.min(setup.train.len());
        let work = setup.model.work(batch as i64);
        let kind = match timed.gpu.as_ref().map(|gpu| gpu.precision) {
            Some(Precision::Bf16) => Kind::BFloat16,
            _ => Kind::Float,
        };
        Ok(Report {
            model: self.model,
            preset: config.preset(),
            device: device::name(setup.device),
            tuning: setup.chosen.tuning.to_string(),
            batch_size: batch,
            steps: timed.steps,
            seconds: timed.seconds,
            phases_ms: timed.phases_ms,
            step_ms: timed.step_ms,
            limit_ms: limit::limit_ms(&work, (kind, setup.device)).context("timing the products alone")?,
            gflop: work.iter().map(Work::flops).sum::<f64>() / 1e9,
            peak_rss_mb: timed.peak_rss_mb,
            gpu: timed.gpu,
        })
    }
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Report {
    model: ModelKind,
    preset: String,
    device: String,
    tuning: String,
    batch_size: usize,
    steps: u64,
    seconds: f64,
    /// Milliseconds of a step in each of [`PHASES`].
    phases_ms: [f64; 4],
    /// Median and ninth decile of single steps.
    step_ms: (f64, f64),
    limit_ms: f64,
    gflop: f64,
    peak_rss_mb: Option<f64>,
    gpu: Option<Gpu>,
}

/// What is said of a GPU beside.
#[derive(Clone, Debug)]
struct Gpu {
    name: String,
    precision: Precision,
    layout: Layout,
    /// Whether a step is one launch.
    captured: bool,
    /// Most memory that libtorch took from the driver.
    peak_mb: f64,
    /// Share of the time in which the device waited for the next step.
    gap: f64,
}

/// Steps that were timed.
struct Timed {
    steps: u64,
    seconds: f64,
    phases_ms: [f64; 4],
    step_ms: (f64, f64),
    peak_rss_mb: Option<f64>,
    gpu: Option<Gpu>,
}

/// Steps on the CPU, by its own clock.
fn time(setup: &mut Setup, config: &Config, seconds: f64) -> Result<Timed> {
    let indices = Tensor::f_from_slice(&epoch_order(config.seed, 0, setup.train.len()))?;
    // Whole batches only: all steps do the same work.
    let whole = (setup.train.len() / config.batch_size).max(1) as u64;
    let mut step = 0;
    let mut prefetched = Prefetched::default();
    let mut one = |timer: &StepTimer| -> Result<Tensor> {
        // Stacking the values and freeing the step before this one is the networks' doing.
        timer.lap(Phase::Forward);
        let (batch, _) = setup.batch(&mut prefetched, (0, &indices), step % whole, config.batch_size)?;
        timer.lap(Phase::Data);
        setup.model.schedule(step)?;
        let noise = Noise::new(seed_for(config.seed, 0, Stream::Noise, step), setup.device);
        let values = setup.model.step(&batch, StepContext { noise: &noise, timer, on_device: false });
        step += 1;
        values
    };
    let warm = Instant::now();
    while warm.elapsed().as_secs_f64() < seconds.min(1.0) {
        black_box(&one(&StepTimer::off())?);
    }
    let (mut times, timer, began) = (Vec::new(), StepTimer::on(), Instant::now());
    let mut last = 0.0;
    while last < seconds {
        black_box(&one(&timer)?);
        let now = began.elapsed().as_secs_f64();
        times.push((now - last) * 1e3);
        last = now;
    }
    let steps = times.len() as u64;
    Ok(Timed {
        steps,
        seconds: last,
        phases_ms: PHASES.map(|(phase, _)| timer.seconds(phase) / steps as f64 * 1e3),
        step_ms: spread(times),
        // Before the limit: its tensors are not the training's.
        peak_rss_mb: peak_rss_mb(),
        gpu: None,
    })
}

/// Median and ninth decile.
fn spread(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 9 / 10])
}

impl Report {
    fn steps_per_s(&self) -> f64 {
        self.steps as f64 / self.seconds
    }

    /// One object, as the README describes it.
    pub fn json(&self) -> Value {
        let mut ms = serde_json::Map::new();
        for ((_, name), value) in PHASES.iter().zip(self.phases_ms) {
            ms.insert((*name).into(), json!(round(value)));
        }
        ms.insert("step".into(), json!(round(1e3 / self.steps_per_s())));
        ms.insert("step_median".into(), json!(round(self.step_ms.0)));
        ms.insert("step_p90".into(), json!(round(self.step_ms.1)));
        json!({
            "model": self.model.to_string(),
            "preset": self.preset,
            "device": self.device,
            "tuning": self.tuning,
            "batch_size": self.batch_size,
            "steps": self.steps,
            "steps_per_s": round(self.steps_per_s()),
            "images_per_s": round(self.steps_per_s() * self.batch_size as f64),
            "peak_rss_mb": self.peak_rss_mb.map(f64::round),
            "peak_gpu_mb": self.gpu.as_ref().map(|gpu| gpu.peak_mb.round()),
            "gpu": self.gpu.as_ref().map(|gpu| gpu.name.clone()),
            "precision": choice_name(&self.gpu.as_ref().map_or(Precision::Fp32, |gpu| gpu.precision)),
            "captured": self.gpu.as_ref().map(|gpu| gpu.captured),
            "launch_gap": self.gpu.as_ref().map(|gpu| round(gpu.gap)),
            "limit_ms": round(self.limit_ms),
            "gflop": round(self.gflop),
            "ms": ms,
        })
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let step = 1e3 / self.steps_per_s();
        let tuning = match &self.gpu {
            None => self.tuning.clone(),
            Some(gpu) => {
                let how = if gpu.captured { "one launch a step" } else { "operation by operation" };
                format!("{}, {}, {how}, {}", gpu.name, choice_name(&gpu.precision), choice_name(&gpu.layout))
            }
        };
        let mut text = format!(
            "{} {}, batch {}, {} ({})\n{:.2} steps/s, {:.0} images/s over {} steps\n\n             ms a step   share\n",
            self.preset,
            self.model,
            self.batch_size,
            self.device,
            tuning,
            self.steps_per_s(),
            self.steps_per_s() * self.batch_size as f64,
            self.steps
        );
        for ((_, name), ms) in PHASES.iter().zip(self.phases_ms) {
            text.push_str(&format!("{name:<10} {ms:>11.3} {:>6.1} %\n", ms / step * 100.0));
        }
        text.push_str(&format!("step       {step:>11.3}   median {:.3}, p90 {:.3}\n", self.step_ms.0, self.step_ms.1));
        text.push_str(&format!(
            "limit      {:>11.3}   products and convolutions alone ({:.2} GFLOP, {:.0} GFLOP/s); the step takes {:.2} of it\n",
            self.limit_ms,
            self.gflop,
            self.gflop / self.limit_ms * 1e3,
            step / self.limit_ms
        ));
        if let Some(gpu) = &self.gpu {
            text.push_str(&format!("waiting    {:>11.3}   between steps, {:.1} %\n", gpu.gap * step, gpu.gap * 100.0));
            text.push_str(
                "parts of a step are those of steps that run operation by operation, waiting after each part\n",
            );
            text.push_str(&format!("GPU memory {:>11.0} MB\n", gpu.peak_mb));
        }
        if let Some(mb) = self.peak_rss_mb {
            text.push_str(&format!("peak memory {mb:>10.0} MB\n"));
        }
        text
    }
}

/// To a millionth: a step of a GPU may be a tenth of a millisecond.
fn round(v: f64) -> f64 {
    (v * 1e6).round() / 1e6
}

/// The most memory that the process has held, MB; none where the system does not say.
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
