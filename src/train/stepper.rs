//! One update after another: from the epoch's order of the images to the sums of the step's values.
//!
//! On a CPU each step takes what changes from the host: its images, its noise, its scheduled numbers. On CUDA the complete update
//! reads all of that from tensors on the device, so that it can be captured once and then replayed by one launch; the host writes
//! the noise and the numbers there before each replay, which waits for nothing, and the update itself moves on to the next images.
//! What must not be captured (the first steps, an epoch's last partial batch) runs operation by operation through the same code.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use crate::base::seed::epoch_order;
use crate::base::timer::{Phase, StepTimer};
use crate::models::StepContext;
use crate::models::noise::Noise;
use crate::native;
use crate::train::setup::{Prefetched, Setup};

/// Sums of the step's values since the last row of metrics, on the device.
#[derive(Debug)]
pub struct Meter {
    /// [K], each value times the images it is the mean of.
    pub sums: Tensor,
    /// Images in the sums.
    pub images: u64,
}

impl Meter {
    /// Zero sums of `values` values.
    pub fn new(values: usize, device: Device) -> Self {
        Meter { sums: Tensor::zeros([values as i64], (Kind::Double, device)), images: 0 }
    }

    /// Adds the means `values` [K] of a batch of `images`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn add(&mut self, values: &Tensor, images: i64) -> Result<()> {
        self.add_on_device(values, images)?;
        self.images += images as u64;
        Ok(())
    }

    /// The part of [`Meter::add`] that a captured step repeats by itself.
    fn add_on_device(&self, values: &Tensor, images: i64) -> Result<()> {
        let _ = self.sums.shallow_clone().f_add_(&values.f_mul_scalar(images as f64)?)?;
        Ok(())
    }

    /// Means over all images since the last reset.
    ///
    /// # Errors
    /// Those of work on the device.
    pub fn means(&self) -> Result<Vec<f64>> {
        // sync: once a log interval.
        let sums = Vec::<f64>::try_from(&self.sums)?;
        Ok(sums.into_iter().map(|s| s / self.images as f64).collect())
    }

    /// Begins anew.
    ///
    /// # Errors
    /// libtorch's.
    pub fn reset(&mut self) -> Result<()> {
        self.images = 0;
        let _ = self.sums.f_zero_()?;
        Ok(())
    }
}

/// Which step is made.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// Seed of its noise.
    pub noise: i64,
    /// Updates done before it.
    pub step: u64,
    /// Whose order the images are taken in.
    pub epoch: u64,
    /// Number of the batch in that order.
    pub within: u64,
}

/// How steps are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Each by the host's numbers: the fastest on a CPU.
    Host,
    /// By numbers on the device, operation by operation.
    Device,
    /// By numbers on the device, as one launch (CUDA).
    Captured,
}

impl Way {
    /// The way for a device; `graph` says whether steps may be captured.
    pub fn on(device: Device, graph: bool) -> Self {
        match (device, graph) {
            (Device::Cuda(_), true) => Way::Captured,
            (Device::Cuda(_), false) => Way::Device,
            _ => Way::Host,
        }
    }
}

/// Makes the steps of one run.
#[derive(Debug)]
pub struct Stepper {
    // First, as its graph below: what is captured must go before the tensors that it reads.
    there: Option<OnDevice>,
    seed: u64,
    batch_size: i64,
    device: Device,
    /// The order of the images of `epoch`, int64 [N], always in the same place.
    order: Option<(u64, Tensor)>,
    prefetched: Prefetched,
}

/// What a step on the device reads and moves on.
#[derive(Debug)]
struct OnDevice {
    graph: Capture,
    noise: Noise,
    /// Positions in the order of the next whole batch's images, int64 [B].
    rows: Tensor,
    /// The batch that they name; none before the first.
    next: Option<u64>,
}

/// How far the capture is.
#[derive(Debug)]
enum Capture {
    /// None is wanted.
    Off,
    /// After so many more steps of whole batches, which are steps of the training like any other.
    After(u32),
    /// Done: steps of whole batches replay it.
    Done(native::CudaGraph),
}

impl Stepper {
    /// Steps of batches of `batch_size` images, in orders that follow from `seed`.
    ///
    /// # Errors
    /// libtorch's, when memory ends.
    pub fn new(way: Way, device: Device, seed: u64, batch_size: usize) -> Result<Self> {
        let batch_size = batch_size as i64;
        let there = |graph| -> Result<OnDevice> {
            Ok(OnDevice {
                noise: Noise::in_buffers(device),
                rows: Tensor::f_zeros([batch_size], (Kind::Int64, device))?,
                next: None,
                graph,
            })
        };
        let there = match way {
            Way::Host => None,
            Way::Device => Some(there(Capture::Off)?),
            Way::Captured => Some(there(Capture::After(native::WARM_UP))?),
        };
        Ok(Stepper { seed, batch_size, device, order: None, prefetched: Prefetched::default(), there })
    }

    /// Whether a step is one launch by now.
    pub fn captured(&self) -> bool {
        self.there.as_ref().is_some_and(|there| matches!(there.graph, Capture::Done(_)))
    }

    /// One update on the batch that `at` tells; adds its values to `meter` and gives its number of images.
    ///
    /// # Errors
    /// libtorch's; a step that cannot be captured.
    pub fn step(&mut self, setup: &mut Setup, meter: &mut Meter, at: At, timer: &StepTimer) -> Result<i64> {
        self.take_order(setup.train.len(), at.epoch)?;
        let Some((epoch, order)) = &self.order else { return Ok(0) };
        setup.model.schedule(at.step)?;
        let Some(there) = &mut self.there else {
            let (batch, count) =
                setup.batch(&mut self.prefetched, (*epoch, order), at.within, self.batch_size as usize)?;
            timer.lap(Phase::Data);
            let noise = Noise::new(at.noise, self.device);
            let values = setup.model.step(&batch, StepContext { noise: &noise, timer, on_device: false })?;
            meter.add(&values, count)?;
            return Ok(count);
        };
        let from = at.within as i64 * self.batch_size;
        let count = self.batch_size.min(setup.train.len() as i64 - from);
        there.place(at.within, self.batch_size)?;
        there.noise.begin(at.noise)?;
        if count == self.batch_size
            && let Capture::After(0) = there.graph
        {
            let timer = StepTimer::off();
            let graph = native::cuda()?.capture_step(|| there.update(setup, meter, order, count, &timer))?;
            there.graph = Capture::Done(graph);
        }
        match &mut there.graph {
            Capture::Done(graph) if count == self.batch_size => graph.replay()?,
            _ => {
                if let (Capture::After(n), true) = (&mut there.graph, count == self.batch_size) {
                    *n -= 1;
                }
                there.update(setup, meter, order, count, timer)?;
            }
        }
        there.next = Some(at.within + 1);
        meter.images += count as u64;
        Ok(count)
    }

    /// Puts the order of `epoch` where steps read it, unless it stands there.
    fn take_order(&mut self, images: usize, epoch: u64) -> Result<()> {
        if self.order.as_ref().is_some_and(|(of, _)| *of == epoch) {
            return Ok(());
        }
        let fresh = Tensor::f_from_slice(&epoch_order(self.seed, epoch, images))?;
        match &mut self.order {
            Some((of, order)) => {
                order.f_copy_(&fresh)?;
                *of = epoch;
            }
            none => *none = Some((epoch, fresh.f_to_device(self.device)?)),
        }
        Ok(())
    }
}

impl OnDevice {
    /// Names the rows of batch number `within`, unless the step before has moved on to it: at the start, at an epoch's first batch,
    /// after going back.
    fn place(&mut self, within: u64, batch_size: i64) -> Result<()> {
        if self.next == Some(within) {
            return Ok(());
        }
        let first = within as i64 * batch_size;
        let rows = Tensor::f_arange_start(first, first + batch_size, (Kind::Int64, self.rows.device()))?;
        self.rows.f_copy_(&rows)?;
        Ok(())
    }

    /// The complete update on the next `count` images, from gathering them to moving on. Everything in here may be captured: it
    /// must read nothing back, and take no number of the host's that another step would have otherwise.
    fn update(&self, setup: &mut Setup, meter: &Meter, order: &Tensor, count: i64, timer: &StepTimer) -> Result<()> {
        self.noise.again();
        let batch = setup.train.gather(&order.f_index_select(0, &self.rows.f_narrow(0, 0, count)?)?)?;
        timer.lap(Phase::Data);
        let values = setup.model.step(&batch, StepContext { noise: &self.noise, timer, on_device: true })?;
        meter.add_on_device(&values, count)?;
        let _ = self.rows.shallow_clone().f_add_scalar_(self.rows.size()[0])?;
        Ok(())
    }
}
