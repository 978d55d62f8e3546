//! Steps on a GPU, timed by events on the device.

use std::time::Instant;

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::{GpuFigures, StepTiming, Steps, peak_rss_mb, phases_ms, spread};
use crate::base::timer::StepTimer;
use crate::config::Config;
use crate::native::{self, Cuda, Event};
use crate::train::setup::Setup;
use crate::train::stepper::{ExecutionMode, Stepper};

/// Least milliseconds between two events: the cost of recording an event is then negligible.
const SLICE_MS: f64 = 2.0;
/// Slices that the host may be ahead of the device: enough that the device never waits for the host.
const AHEAD: usize = 8;
/// Steps whose phases are timed.
const PHASE_STEPS: u64 = 20;
/// Milliseconds of calls, about, that are queued to measure the time of the device alone.
const QUEUED_MS: f64 = 200.0;
/// Most queued calls where each is one captured launch, beside one for each draw of noise: a driver queues about a thousand launches
/// before it blocks the host.
pub(super) const MOST_CAPTURED: f64 = 200.0;
/// Most queued calls where each runs eagerly, with up to some hundred launches.
const MOST_EAGER: f64 = 3.0;

/// Trains for `seconds` after a warm-up and times it.
pub(super) fn time(setup: &mut Setup, config: &Config, index: usize, seconds: f64) -> Result<StepTiming> {
    let cuda = native::cuda()?;
    // The peak must not contain the memory of tuning.
    cuda.release_free_memory()?;
    cuda.reset_peak(index)?;
    let compute = setup.chosen.tuning.compute;
    let mut steps = Steps::new(setup, config)?;
    let step_ms = warm_up(cuda, &mut steps, seconds.min(1.0))?;
    let per_slice = (SLICE_MS / step_ms).ceil().max(1.0) as u64;
    let slices = slices(cuda, &mut steps, per_slice, seconds)?;
    let step_ms = spread(slices.iter().map(|ms| ms / per_slice as f64).collect());
    // Before other work takes memory.
    let [_, taken] = cuda.peak_bytes(index)?;
    let captured = steps.stepper.captured();
    let most = if captured { MOST_CAPTURED } else { MOST_EAGER };
    // Waiting inside one captured step, between its kernels, is not measured.
    let busy_ms = queued_ms(cuda, steps.setup.device, (step_ms.0, most), || steps.next(&StepTimer::off()))?;
    steps.stepper = Stepper::new(ExecutionMode::Device, steps.setup, config)?;
    Ok(StepTiming {
        steps: per_slice * slices.len() as u64,
        seconds: slices.iter().sum::<f64>() / 1e3,
        phases_ms: eager_phases_ms(cuda, &mut steps)?,
        step_ms,
        peak_rss_mb: peak_rss_mb(),
        gpu: Some(GpuFigures {
            name: cuda.name(index)?,
            precision: compute.precision,
            layout: compute.layout,
            captured,
            peak_mb: taken as f64 / 1e6,
            gap: ((step_ms.0 - busy_ms) / step_ms.0).max(0.0),
        }),
    })
}

/// Trains until the step is captured and `seconds` are over; gives the milliseconds of a step by the host's clock.
fn warm_up(cuda: Cuda, steps: &mut Steps, seconds: f64) -> Result<f64> {
    let mut eight = || -> Result<()> {
        (0..8).try_for_each(|_| steps.next(&StepTimer::off()))?;
        cuda.synchronize()
    };
    eight()?;
    let (began, mut rounds) = (Instant::now(), 0);
    while began.elapsed().as_secs_f64() < seconds || rounds == 0 {
        eight()?;
        rounds += 1;
    }
    Ok(began.elapsed().as_secs_f64() * 1e3 / f64::from(8 * rounds))
}

/// Milliseconds of each slice of `per_slice` steps, back to back, for `seconds`.
fn slices(cuda: Cuda, steps: &mut Steps, per_slice: u64, seconds: f64) -> Result<Vec<f64>> {
    let mut events: Vec<Event> = vec![cuda.record()?];
    let (mut ms, mut total) = (Vec::new(), 0.0);
    while total < seconds * 1e3 {
        (0..per_slice).try_for_each(|_| steps.next(&StepTimer::off()))?;
        events.push(cuda.record()?);
        if events.len() > AHEAD {
            // Waits for the oldest slice, not for the newest.
            let slice = events.remove(0).ms_until(&events[0])?;
            total += slice;
            ms.push(slice);
        }
    }
    Ok(ms)
}

/// Milliseconds on the device of one call of `one`, which takes about `about_ms`: the mean of at most `most` calls that are queued behind
/// other work, so that the device never waits for the host.
pub(super) fn queued_ms(
    cuda: Cuda,
    device: Device,
    (about_ms, most): (f64, f64),
    mut one: impl FnMut() -> Result<()>,
) -> Result<f64> {
    let count = (QUEUED_MS / about_ms).clamp(MOST_EAGER, most).floor();
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

/// Milliseconds of each phase of an eager step, waiting for the device after each phase.
fn eager_phases_ms(cuda: Cuda, steps: &mut Steps) -> Result<[f64; 4]> {
    (0..3).try_for_each(|_| steps.next(&StepTimer::off()))?;
    cuda.synchronize()?;
    let timer = StepTimer::waiting(|| {
        // An error of the device comes again at the next step.
        let _ = native::cuda().and_then(Cuda::synchronize);
    });
    (0..PHASE_STEPS).try_for_each(|_| steps.next(&timer))?;
    Ok(phases_ms(&timer, PHASE_STEPS))
}
