//! The time of each phase of a step.

use std::cell::Cell;
use std::time::Instant;

/// The parts of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Gathering and converting the batch.
    Data,
    /// Noise, networks and losses, and giving back what they held.
    Forward,
    /// Gradients, and the updates of a linear layer's weights, which its backward pass makes block by block.
    Backward,
    /// Clipping, the other updates, moving averages.
    Optimizer,
}

/// The phases in the order of a step, with their names.
pub const PHASES: [(Phase, &str); 4] = [
    (Phase::Data, "data"),
    (Phase::Forward, "forward"),
    (Phase::Backward, "backward"),
    (Phase::Optimizer, "optimizer"),
];

/// Measures the phases of a step; costs nothing when off.
#[derive(Debug)]
pub struct StepTimer {
    last: Cell<Option<Instant>>,
    sums: [Cell<f64>; 4],
    /// Called at the end of a phase, to synchronize with an asynchronous device.
    wait: Option<fn()>,
}

impl StepTimer {
    /// One that measures nothing.
    pub fn off() -> Self {
        StepTimer { last: Cell::new(None), sums: Default::default(), wait: None }
    }

    /// One that runs from now.
    pub fn on() -> Self {
        StepTimer { last: Cell::new(Some(Instant::now())), ..StepTimer::off() }
    }

    /// One that calls `wait` at the end of each phase, before it looks at the time.
    pub fn waiting(wait: fn()) -> Self {
        StepTimer { wait: Some(wait), ..StepTimer::on() }
    }

    /// Adds the time since the last call to `phase`.
    pub fn lap(&self, phase: Phase) {
        if let Some(last) = self.last.get() {
            if let Some(wait) = self.wait {
                wait();
            }
            let now = Instant::now();
            let sum = &self.sums[phase as usize];
            sum.set(sum.get() + (now - last).as_secs_f64());
            self.last.set(Some(now));
        }
    }

    /// Moves `seconds` that were counted as `from` to `to`.
    pub fn shift(&self, from: Phase, to: Phase, seconds: f64) {
        if self.last.get().is_some() {
            let [a, b] = [from, to].map(|phase| &self.sums[phase as usize]);
            a.set(a.get() - seconds);
            b.set(b.get() + seconds);
        }
    }

    /// Seconds that belong to `phase` so far.
    pub fn seconds(&self, phase: Phase) -> f64 {
        self.sums[phase as usize].get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn time_goes_to_the_phase_that_ended() {
        let clock = StepTimer::on();
        std::thread::sleep(Duration::from_millis(20));
        clock.lap(Phase::Data);
        std::thread::sleep(Duration::from_millis(5));
        clock.lap(Phase::Backward);
        clock.lap(Phase::Data);
        assert!(clock.seconds(Phase::Data) >= 0.02 && clock.seconds(Phase::Backward) >= 0.005);
        assert_eq!(clock.seconds(Phase::Forward), 0.0);
        let waiting = StepTimer::waiting(|| std::thread::sleep(Duration::from_millis(5)));
        waiting.lap(Phase::Forward);
        assert!(waiting.seconds(Phase::Forward) >= 0.005, "what is waited for belongs to the phase");
        let off = StepTimer::off();
        off.lap(Phase::Data);
        assert_eq!(off.seconds(Phase::Data), 0.0);
    }
}
