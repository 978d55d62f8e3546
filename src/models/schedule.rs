//! Numbers that change between steps, computed on the host before each step.

use anyhow::Result;
use clap::ValueEnum;
use tch::{Device, Kind, Tensor};

use super::Length;
use crate::base::setting::{Setting, Settings};
use crate::base::usage::usage;
use crate::native::Factor;

/// How a value goes from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScheduleKind {
    /// It stays at its start, whatever its end.
    Constant,
    /// By the same amount in each update.
    Linear,
    /// Along half a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts).
    Cosine,
}

/// The kind of every schedule of a run.
pub static SCHEDULE: Setting<ScheduleKind> = Setting::choice(
    "schedule",
    "How the values that are given an end (--lr-end and the like) go to it over all updates of the run; constant: not at all \
     [default: cosine]",
);

/// The names of all ends.
const ENDS: [&str; 4] = ["lr-end", "beta2-end", "r1-end", "r2-end"];

/// A value from its start, in the first update, to its end, which the update after the last one of the run would have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The value in the first update.
    pub start: f64,
    /// The value after `steps` updates and later.
    pub end: f64,
    /// The way from one to the other.
    pub kind: ScheduleKind,
    /// Updates of the way.
    pub steps: u64,
}

impl Schedule {
    /// The schedule of a value that starts at `start` and may have been given an end; none if it stays.
    pub fn from_settings(s: &Settings, start: f64, end: &Setting<f64>, length: Length) -> Option<Self> {
        let kind = s.given(&SCHEDULE).unwrap_or(ScheduleKind::Cosine);
        let end = s.given(end).filter(|_| kind != ScheduleKind::Constant)?;
        Some(Schedule { start, end, kind, steps: length.total })
    }

    /// The value of the update after `step` updates.
    pub fn at(&self, step: u64) -> f64 {
        let t = (step as f64 / self.steps as f64).min(1.0);
        let share = match self.kind {
            ScheduleKind::Constant => 0.0,
            ScheduleKind::Linear => t,
            ScheduleKind::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * t).cos()),
        };
        self.start + share * (self.end - self.start)
    }

    /// With both ends changed alike.
    pub fn map(self, change: impl Fn(f64) -> f64) -> Self {
        Schedule { start: change(self.start), end: change(self.end), ..self }
    }
}

/// Whether any value follows a schedule.
///
/// # Errors
/// [`crate::base::usage::Usage`] for a kind of schedule where no value has an end.
pub fn is_scheduled(s: &Settings) -> Result<bool> {
    let end = ENDS.iter().any(|name| s.value(name).is_some());
    let kind = s.given(&SCHEDULE);
    if matches!(kind, Some(ScheduleKind::Linear | ScheduleKind::Cosine)) && !end {
        usage!("--schedule has no value to change: give an end, such as --lr-end 1e-5, or leave it out");
    }
    Ok(end && kind != Some(ScheduleKind::Constant))
}

/// A number on the host and its copy on the device; a captured step reads the copy.
#[derive(Debug)]
pub struct Scheduled {
    host: f64,
    device: Tensor,
}

impl Scheduled {
    /// Starts at `value`.
    ///
    /// # Errors
    /// libtorch's, when memory ends.
    pub fn new(value: f64, device: Device) -> Result<Self> {
        Ok(Scheduled { host: value, device: Tensor::f_full([] as [i64; 0], value, (Kind::Float, device))? })
    }

    /// Sets the value for the next steps.
    ///
    /// # Errors
    /// libtorch's.
    pub fn set(&mut self, value: f64) -> Result<()> {
        if value != self.host {
            self.host = value;
            let _ = self.device.f_fill_(value)?;
        }
        Ok(())
    }

    /// The value on the host.
    pub fn host(&self) -> f64 {
        self.host
    }

    /// The value as a step takes it: the device copy if the step may be captured.
    pub fn factor(&self, on_device: bool) -> Factor<'_> {
        if on_device { Factor::Device(&self.device) } else { Factor::Host(self.host) }
    }

    /// The device copy: always the same float32 scalar tensor.
    pub fn device(&self) -> &Tensor {
        &self.device
    }
}

/// A rise from 0, once or again and again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WarmUp {
    /// Updates of the rise; 0 for none.
    pub steps: u64,
    /// Updates from one start of the rise to the next; 0: there is one.
    pub cycle: u64,
}

impl WarmUp {
    /// `weight` in the update after `step` updates: linear from 0 (the first update has 1/`steps` of it; Bowman et al. 2016, arXiv
    /// 1511.06349, section 3.1), again in each cycle (Fu et al. 2019, arXiv 1903.10145, equation 4).
    pub fn at(self, weight: f64, step: u64) -> f64 {
        let step = if self.cycle == 0 { step } else { step % self.cycle };
        if self.steps == 0 { weight } else { weight * ((step + 1) as f64 / self.steps as f64).min(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PyTorch 2.11: CosineAnnealingLR(optimizer, T_max=8, eta_min=5e-5) and LinearLR(optimizer, 1.0, 0.25, total_iters=8) at lr 2e-4.
    #[test]
    fn schedules_have_the_values_of_pytorchs() {
        let cosine = [
            2e-4,
            1.942_909_649_383_465e-4,
            1.780_330_085_889_911e-4,
            1.537_012_574_273_816e-4,
            1.25e-4,
            9.629_874_257_261_838e-5,
            7.196_699_141_100_894e-5,
            5.570_903_506_165_351e-5,
            5e-5,
        ];
        let linear = [2e-4, 1.8125e-4, 1.625e-4, 1.4375e-4, 1.25e-4, 1.0625e-4, 8.75e-5, 6.875e-5, 5e-5];
        for (kind, want) in [(ScheduleKind::Cosine, cosine), (ScheduleKind::Linear, linear)] {
            let schedule = Schedule { start: 2e-4, end: 5e-5, kind, steps: 8 };
            for (step, want) in want.into_iter().enumerate() {
                let got = schedule.at(step as u64);
                assert!((got - want).abs() < 1e-15, "{kind:?}, step {step}: {got}, not {want}");
            }
            assert_eq!(schedule.at(0), 2e-4, "to the bit");
            assert!((schedule.at(100) - 5e-5).abs() < 1e-15, "it stays at its end");
        }
        assert_eq!(Schedule { start: 1.0, end: 2.0, kind: ScheduleKind::Constant, steps: 8 }.at(5), 1.0);
    }

    #[test]
    fn a_warm_up_is_linear_and_may_begin_again() {
        let weights = |steps, cycle| (0..6).map(|step| WarmUp { steps, cycle }.at(2.0, step)).collect::<Vec<_>>();
        assert_eq!(weights(4, 0), [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]);
        assert_eq!(weights(2, 3), [1.0, 2.0, 2.0, 1.0, 2.0, 2.0]);
        assert_eq!(weights(0, 0), [2.0; 6]);
    }

    #[test]
    fn the_device_copy_follows_the_host_at_the_same_address() {
        let mut beta = Scheduled::new(0.5, Device::Cpu).unwrap();
        let place = beta.device().data_ptr();
        beta.set(0.75).unwrap();
        assert_eq!((beta.host(), beta.device().double_value(&[])), (0.75, 0.75));
        assert_eq!(beta.device().data_ptr(), place, "a captured step reads from there");
    }
}
