//! Steps on a GPU, timed by the device's own events. Imports setup, stepper, config, native, clock and seed.

use std::time::Instant;

use anyhow::Result;

use super::{Gpu, Timed, spread};
use crate::clock::{Clock, PHASES};
use crate::config::Config;
use crate::native::{self, Cuda, Event};
use crate::seed::{Stream, seed_for};
use crate::setup::Setup;
use crate::stepper::{At, Meter, Stepper, Way};

/// Milliseconds between two events at least: what recording one costs is then nothing beside it.
const SLICE_MS: f64 = 2.0;
/// Slices that the host may be ahead of the device: enough that the device never waits for it.
const AHEAD: usize = 8;
/// Steps whose parts are timed.
const PARTS: u64 = 20;
/// Steps between which the device's waiting is timed.
const GAPS: usize = 100;

/// Steps one after another on whole batches: all do the same work.
struct Steps<'a> {
    setup: &'a mut Setup,
    meter: Meter,
    seed: u64,
    whole: u64,
    done: u64,
}

impl Steps<'_> {
    fn next(&mut self, stepper: &mut Stepper, clock: &Clock) -> Result<()> {
        let at = At {
            noise: seed_for(self.seed, 0, Stream::Noise, self.done),
            step: self.done,
            epoch: 0,
            within: self.done % self.whole,
        };
        stepper.step(self.setup, &mut self.meter, at, clock)?;
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
    cuda.reset_peak(index)?;
    let (device, precision) = (setup.device, setup.chosen.tuning.forms.precision);
    let mut stepper = Stepper::new(Way::on(device, config.cuda_graph), device, config.seed, config.batch_size)?;
    let meter = Meter::new(setup.model.scalars().len(), device);
    let whole = (setup.train.len() / config.batch_size).max(1) as u64;
    let mut steps = Steps { setup, meter, seed: config.seed, whole, done: 0 };
    let step_ms = warm_up(cuda, &mut steps, &mut stepper, seconds.min(1.0))?;
    let each = (SLICE_MS / step_ms).ceil().max(1.0) as u64;
    let (slices, total_ms) = slices(cuda, &mut steps, &mut stepper, each, seconds)?;
    let gap = gap(cuda, &mut steps, &mut stepper)?;
    // Before anything else takes memory.
    let (_, taken) = cuda.peak_bytes(index)?;
    let captured = stepper.captured();
    drop(stepper);
    Ok(Timed {
        steps: each * slices.len() as u64,
        seconds: total_ms / 1e3,
        phases_ms: parts(&mut steps, config)?,
        step_ms: spread(slices.iter().map(|ms| ms / each as f64).collect()),
        peak_rss_mb: super::peak_rss_mb(),
        gpu: Some(Gpu { name: cuda.describe(index)?.name, precision, captured, peak_mb: taken as f64 / 1e6, gap }),
    })
}

/// Trains until the step is captured and `seconds` are over; gives the milliseconds of a step by the host's clock.
fn warm_up(cuda: Cuda, steps: &mut Steps, stepper: &mut Stepper, seconds: f64) -> Result<f64> {
    let off = Clock::off();
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
    let off = Clock::off();
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

/// Share of the time in which the device has ended one step and not begun the next.
fn gap(cuda: Cuda, steps: &mut Steps, stepper: &mut Stepper) -> Result<f64> {
    let off = Clock::off();
    let mut pairs: Vec<(Event, Event)> = Vec::new();
    for _ in 0..GAPS {
        let begun = cuda.record()?;
        steps.next(stepper, &off)?;
        pairs.push((begun, cuda.record()?));
    }
    let (mut all, mut waiting) = (0.0, 0.0);
    // The first half fills the queue.
    for two in pairs[GAPS / 2..].windows(2) {
        all += two[0].0.ms_until(&two[1].0)?;
        waiting += two[0].1.ms_until(&two[1].0)?;
    }
    Ok(waiting / all)
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
        steps.next(&mut stepper, &Clock::off())?;
    }
    wait();
    let clock = Clock::waiting(wait);
    for _ in 0..PARTS {
        steps.next(&mut stepper, &clock)?;
    }
    Ok(PHASES.map(|(phase, _)| clock.seconds(phase) / PARTS as f64 * 1e3))
}
