//! Steps on a GPU, timed by the device's own events.

use std::time::Instant;

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::{Gpu, Timed, spread};
use crate::base::seed::{Stream, seed_for};
use crate::base::timer::{PHASES, StepTimer};
use crate::config::Config;
use crate::native::{self, Cuda, Event};
use crate::train::setup::Setup;
use crate::train::stepper::{At, Meter, Stepper, Way};

/// Milliseconds between two events at least: what recording one costs is then nothing beside it.
const SLICE_MS: f64 = 2.0;
/// Slices that the host may be ahead of the device: enough that the device never waits for it.
const AHEAD: usize = 8;
/// Steps whose parts are timed.
const PARTS: u64 = 20;
/// About how long the calls take, in milliseconds, that are queued up to see how long the device is busy with each.
const QUEUED_MS: f64 = 200.0;
/// The most of them that are one captured launch, with one for each draw of noise: a driver queues about a thousand launches before it
/// makes the host wait.
pub(super) const MOST_CAPTURED: f64 = 200.0;
/// As many of them as run operation by operation, each of up to some hundred launches.
const EAGER: f64 = 3.0;

/// Steps one after another on whole batches: all do the same work.
struct Steps<'a> {
    setup: &'a mut Setup,
    meter: Meter,
    seed: u64,
    whole: u64,
    done: u64,
}

impl Steps<'_> {
    fn next(&mut self, stepper: &mut Stepper, timer: &StepTimer) -> Result<()> {
        let at = At {
            noise: seed_for(self.seed, 0, Stream::Noise, self.done),
            step: self.done,
            epoch: 0,
            within: self.done % self.whole,
        };
        stepper.step(self.setup, &mut self.meter, at, timer)?;
        self.done += 1;
        Ok(())
    }
}

/// Trains for `seconds` after a warm-up and times it.
///
/// # Errors
/// Those of training.
pub(super) fn time(setup: &mut Setup, config: &Config, index: usize, seconds: f64) -> Result<Timed> {
    let cuda = native::cuda()?;
    // What tuning took is not the training's.
    cuda.release_free_memory()?;
    cuda.reset_peak(index)?;
    let (device, compute) = (setup.device, setup.chosen.tuning.compute);
    let mut stepper = Stepper::new(Way::on(device, config.cuda_graph), device, config.seed, config.batch_size)?;
    let meter = Meter::new(setup.model.measured(), device);
    let whole = (setup.train.len() / config.batch_size).max(1) as u64;
    let mut steps = Steps { setup, meter, seed: config.seed, whole, done: 0 };
    let step_ms = warm_up(cuda, &mut steps, &mut stepper, seconds.min(1.0))?;
    let each = (SLICE_MS / step_ms).ceil().max(1.0) as u64;
    let (slices, total_ms) = slices(cuda, &mut steps, &mut stepper, each, seconds)?;
    let step_ms = spread(slices.iter().map(|ms| ms / each as f64).collect());
    // Before anything else takes memory.
    let (_, taken) = cuda.peak_bytes(index)?;
    let gap = gap(cuda, &mut steps, &mut stepper, step_ms.0)?;
    let captured = stepper.captured();
    drop(stepper);
    Ok(Timed {
        steps: each * slices.len() as u64,
        seconds: total_ms / 1e3,
        phases_ms: parts(&mut steps, config)?,
        step_ms,
        peak_rss_mb: super::peak_rss_mb(),
        gpu: Some(Gpu {
            name: cuda.describe(index)?.name,
            precision: compute.precision,
            layout: compute.layout,
            captured,
            peak_mb: taken as f64 / 1e6,
            gap,
        }),
    })
}

/// Trains until the step is captured and `seconds` are over; gives the milliseconds of a step by the host's clock.
fn warm_up(cuda: Cuda, steps: &mut Steps, stepper: &mut Stepper, seconds: f64) -> Result<f64> {
    let off = StepTimer::off();
    for _ in 0..8 {
        steps.next(stepper, &off)?;
    }
    cuda.synchronize()?;
    let (began, before) = (Instant::now(), steps.done);
    while began.elapsed().as_secs_f64() < seconds {
        for _ in 0..8 {
            steps.next(stepper, &off)?;
        }
        cuda.synchronize()?;
    }
    Ok(began.elapsed().as_secs_f64() * 1e3 / (steps.done - before).max(1) as f64)
}

/// Milliseconds of slices of `each` steps, back to back, and of all together.
fn slices(cuda: Cuda, steps: &mut Steps, stepper: &mut Stepper, each: u64, seconds: f64) -> Result<(Vec<f64>, f64)> {
    let off = StepTimer::off();
    let mut events: Vec<Event> = vec![cuda.record()?];
    let mut ms = Vec::new();
    let mut total = 0.0;
    while total < seconds * 1e3 {
        for _ in 0..each {
            steps.next(stepper, &off)?;
        }
        events.push(cuda.record()?);
        if events.len() > AHEAD {
            // Waits for the slice that was begun long ago, not for the newest.
            ms.push(events[0].ms_until(&events[1])?);
            total += ms.last().copied().unwrap_or_default();
            events.remove(0);
        }
    }
    Ok((ms, total))
}

/// Share of a step of `step_ms` in which the device waits for the host: what a step takes less when the device finds many of
/// them queued up. Waiting within one captured step, between its kernels, is not seen.
fn gap(cuda: Cuda, steps: &mut Steps, stepper: &mut Stepper, step_ms: f64) -> Result<f64> {
    let off = StepTimer::off();
    let most = if stepper.captured() { MOST_CAPTURED } else { EAGER };
    let busy = queued_ms(cuda, steps.setup.device, (step_ms, most), || steps.next(stepper, &off))?;
    Ok(((step_ms - busy) / step_ms).max(0.0))
}

/// Milliseconds on the device of one call of `one`, which takes it about `about_ms`: of many, `most` at the most, queued up behind
/// other work, so that it never waits for the host.
pub(super) fn queued_ms(
    cuda: Cuda,
    device: Device,
    (about_ms, most): (f64, f64),
    mut one: impl FnMut() -> Result<()>,
) -> Result<f64> {
    let count = (QUEUED_MS / about_ms).clamp(EAGER, most).floor();
    let a = Tensor::f_rand([4096, 4096], (Kind::Float, device))?;
    let work = || a.f_matmul(&a);
    drop(work()?);
    let before = cuda.record()?;
    drop(work()?);
    let each = before.ms_until(&cuda.record()?)?;
    // Longer than the host needs to queue the calls.
    for _ in 0..((1.5 * count * about_ms + 20.0) / each).ceil() as u64 {
        drop(work()?);
    }
    let begun = cuda.record()?;
    for _ in 0..count as u64 {
        one()?;
    }
    Ok(begun.ms_until(&cuda.record()?)? / count)
}

/// Milliseconds of each phase of a step that runs operation by operation, waiting for the device after each phase.
fn parts(steps: &mut Steps, config: &Config) -> Result<[f64; 4]> {
    let device = steps.setup.device;
    let mut stepper = Stepper::new(Way::Device, device, config.seed, config.batch_size)?;
    let wait = || {
        // A device that fails says so at the next step.
        let _ = native::cuda().and_then(Cuda::synchronize);
    };
    for _ in 0..3 {
        steps.next(&mut stepper, &StepTimer::off())?;
    }
    wait();
    let clock = StepTimer::waiting(wait);
    for _ in 0..PARTS {
        steps.next(&mut stepper, &clock)?;
    }
    Ok(PHASES.map(|(phase, _)| clock.seconds(phase) / PARTS as f64 * 1e3))
}
