//! Timing of the real training step, and of what it cannot do without. Imports setup, config, model, nets, native, clock,
//! progress and seed.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::clock::{Clock, PHASES, Phase};
use crate::config::{self, ModelKind, Settings, usage};
use crate::device;
use crate::model::StepCx;
use crate::native;
use crate::nets::{Op, Pass, Work};
use crate::progress::say;
use crate::seed::{Stream, epoch_order, seed_for};
use crate::setup::Setup;

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
}

/// Trains for `seconds` without a run folder and times it.
///
/// # Errors
/// Those of training; [`crate::config::Usage`] for a GPU, which needs a clock of its own.
pub fn bench(model: ModelKind, settings: &Settings, seconds: f64) -> Result<Report> {
    // Long enough that tuning pays.
    let long = Settings { steps: Some(1 << 53), ..Settings::default() };
    let config = config::resolve(model, &settings.overlaid(&long)?)?;
    let mut setup = Setup::new(&config, None)?;
    if setup.device != Device::Cpu {
        usage!("bench on {} is not there yet: use --device cpu", device::name(setup.device));
    }
    say(&setup.chosen.to_string());
    let indices = Tensor::f_from_slice(&epoch_order(config.seed, 0, setup.train.len()))?.f_to_device(setup.device)?;
    // Whole batches only: all steps do the same work.
    let whole = (setup.train.len() / config.batch_size).max(1) as u64;
    let mut step = 0;
    let mut one = |clock: &Clock| -> Result<Tensor> {
        // Stacking the values and freeing the step before this one is the networks' doing.
        clock.lap(Phase::Forward);
        let (x, _) = setup.batch(&indices, step % whole, config.batch_size)?;
        clock.lap(Phase::Data);
        let noise = seed_for(config.seed, 0, Stream::Noise, step);
        let values = setup.model.step(&x, StepCx { noise, step, clock });
        step += 1;
        values
    };
    let warm = Instant::now();
    while warm.elapsed().as_secs_f64() < seconds.min(1.0) {
        black_box(&one(&Clock::off())?);
    }
    let (mut times, clock, began) = (Vec::new(), Clock::on(), Instant::now());
    let mut last = 0.0;
    while last < seconds {
        black_box(&one(&clock)?);
        let now = began.elapsed().as_secs_f64();
        times.push((now - last) * 1e3);
        last = now;
    }
    // Before the limit: its tensors are not the training's.
    let peak_rss_mb = peak_rss_mb();
    let steps = times.len() as u64;
    times.sort_by(f64::total_cmp);
    let batch = config.batch_size.min(setup.train.len());
    let work = setup.model.work(batch as i64);
    Ok(Report {
        model,
        preset: config.settings.preset.map_or_else(String::new, config::preset_name),
        device: device::name(setup.device),
        tuning: setup.chosen.tuning.to_string(),
        batch_size: batch,
        steps,
        seconds: last,
        phases_ms: PHASES.map(|(phase, _)| clock.seconds(phase) / steps as f64 * 1e3),
        step_ms: (times[times.len() / 2], times[times.len() * 9 / 10]),
        limit_ms: limit_ms(&work).context("timing the products alone")?,
        gflop: work.iter().map(Work::flops).sum::<f64>() / 1e9,
        peak_rss_mb,
    })
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
            "peak_gpu_mb": Value::Null,
            "limit_ms": round(self.limit_ms),
            "gflop": round(self.gflop),
            "ms": ms,
        })
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let step = 1e3 / self.steps_per_s();
        let mut text = format!(
            "{} {}, batch {}, {} ({})\n{:.2} steps/s, {:.0} images/s over {} steps\n\n             ms a step   share\n",
            self.preset,
            self.model,
            self.batch_size,
            self.device,
            self.tuning,
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
        if let Some(mb) = self.peak_rss_mb {
            text.push_str(&format!("peak memory {mb:>10.0} MB\n"));
        }
        text
    }
}

fn round(v: f64) -> f64 {
    (v * 1e3).round() / 1e3
}

/// The most memory that the process has held, MB; none where the system does not say.
fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kb| kb / 1024.0)
}

/// One way to compute a piece of work.
type Way = Box<dyn Fn() -> Result<Tensor>>;

/// Milliseconds of all `work` run back to back, each piece in the fastest way there is, on as many threads as the step has.
fn limit_ms(work: &[Work]) -> Result<f64> {
    let mut chosen: Vec<Way> = Vec::new();
    tch::no_grad(|| {
        for piece in work {
            let mut best: Option<(f64, Way)> = None;
            for way in ways(piece)? {
                let ms = least_ms(&way, 5)?;
                if best.as_ref().is_none_or(|(least, _)| ms < *least) {
                    best = Some((ms, way));
                }
            }
            chosen.extend(best.map(|(_, way)| way));
        }
        let mut rounds = Vec::new();
        let began = Instant::now();
        while rounds.len() < 5 || (began.elapsed().as_secs_f64() < 1.0 && rounds.len() < 200) {
            let round = Instant::now();
            for way in &chosen {
                black_box(&way()?);
            }
            rounds.push(round.elapsed().as_secs_f64() * 1e3);
        }
        rounds.sort_by(f64::total_cmp);
        Ok(rounds[rounds.len() / 2])
    })
}

fn least_ms(way: &Way, times: usize) -> Result<f64> {
    black_box(&way()?);
    let mut least = f64::INFINITY;
    for _ in 0..times {
        let began = Instant::now();
        black_box(&way()?);
        least = least.min(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(least)
}

fn random(shape: &[i64]) -> Result<Tensor> {
    Ok(Tensor::f_rand(shape, (Kind::Float, Device::Cpu))?)
}

/// Every way there is to compute a piece of work, on random numbers.
fn ways(work: &Work) -> Result<Vec<Way>> {
    let b = work.batch;
    match work.op {
        Op::Linear { from, to } => {
            let (x, w, g) = (random(&[b, from])?, random(&[to, from])?, random(&[b, to])?);
            let way = |products| -> Way {
                let [x, w, g] = [&x, &w, &g].map(Tensor::shallow_clone);
                match work.pass {
                    Pass::Forward => Box::new(move || native::linear(&x, &w, None, 1.0, products)),
                    pass => Box::new(move || native::linear_gradient(&g, &x, &w, pass == Pass::Input, products)),
                }
            };
            Ok([native::Products::Blas, native::Products::Onednn, native::Products::Brgemm].map(way).into())
        }
        Op::Strided { from, to, height, width, transposed } => {
            let (out, weights) = if transposed {
                ([b, to, 2 * height, 2 * width], [from, to, 4, 4])
            } else {
                ([b, to, height / 2, width / 2], [to, from, 4, 4])
            };
            let (x, w, g) = (random(&[b, from, height, width])?, random(&weights)?, random(&out)?);
            let mut ways: Vec<Way> = Vec::new();
            for last in [false, true] {
                let lay = |t: &Tensor| if last { native::channels_last(t) } else { Ok(t.shallow_clone()) };
                let (x, w, g) = (lay(&x)?, if w.size()[1] > 1 { lay(&w)? } else { w.shallow_clone() }, lay(&g)?);
                ways.push(match work.pass {
                    Pass::Forward if transposed => Box::new(move || {
                        Ok(x.f_conv_transpose2d::<Tensor>(&w, None, [2, 2], [1, 1], [0, 0], 1, [1, 1])?)
                    }),
                    Pass::Forward => Box::new(move || Ok(x.f_conv2d::<Tensor>(&w, None, [2, 2], [1, 1], [1, 1], 1)?)),
                    pass => Box::new(move || native::strided_gradient(&g, &x, &w, transposed, pass == Pass::Input)),
                });
            }
            // Towards few channels ours is another way: a transposed convolution, forward or as a gradient.
            let (x, w) = (native::channels_last(&x)?, w);
            match work.pass {
                Pass::Forward if transposed => ways.push(Box::new(move || native::strided(&x, &w, None, true, 1.0))),
                Pass::Input if !transposed => {
                    let g = native::channels_last(&g)?;
                    ways.push(Box::new(move || native::strided(&g, &w, None, true, 1.0)));
                }
                _ => {}
            }
            Ok(ways)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way of a piece of work gives the same shape, that of what it stands for.
    #[test]
    fn ways_compute_what_they_stand_for() {
        let linear = Op::Linear { from: 5, to: 7 };
        let down = Op::Strided { from: 1, to: 6, height: 8, width: 12, transposed: false };
        let up = Op::Strided { from: 6, to: 3, height: 4, width: 6, transposed: true };
        for (op, pass, want) in [
            (linear, Pass::Forward, vec![2, 7]),
            (linear, Pass::Input, vec![2, 5]),
            (linear, Pass::Weights, vec![7, 5]),
            (down, Pass::Forward, vec![2, 6, 4, 6]),
            (down, Pass::Input, vec![2, 1, 8, 12]),
            (down, Pass::Weights, vec![6, 1, 4, 4]),
            (up, Pass::Forward, vec![2, 3, 8, 12]),
            (up, Pass::Input, vec![2, 6, 4, 6]),
            (up, Pass::Weights, vec![6, 3, 4, 4]),
        ] {
            let all = ways(&Work { op, pass, batch: 2 }).unwrap();
            assert!(all.len() >= 2);
            for way in all {
                assert_eq!(way().unwrap().size(), want, "{op:?} {pass:?}");
            }
        }
        let flops = |op| Work { op, pass: Pass::Forward, batch: 2 }.flops();
        assert_eq!((flops(linear), flops(down), flops(up)), (140.0, 2.0 * 24.0 * 96.0 * 2.0, 2.0 * 16.0 * 432.0 * 2.0));
    }

    #[test]
    fn a_vae_of_the_article_takes_the_products_that_it_must() {
        let settings = Settings { train_limit: Some(300), test_limit: Some(10), ..Settings::default() };
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
