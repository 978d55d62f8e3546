//! Training steps: the epoch's shuffled order, the batch, the update, the running averages.
//!
//! On a CPU the host passes each step its batch, its noise and its scheduled numbers. On CUDA the update reads them from tensors on
//! the device, so that it can be captured once as a CUDA graph and replayed by one launch. Before each replay the host writes the
//! noise and the numbers to the device, without waiting for it; the update itself advances to the next batch. The warm-up steps and
//! an epoch's last partial batch run the same code eagerly.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use crate::base::batch::Batch;
use crate::base::seed::{Stream, seed_for};
use crate::base::timer::{Phase, StepTimer};
use crate::config::Config;
use crate::models::StepContext;
use crate::models::noise::Noise;
use crate::native;
use crate::train::setup::{Prefetched, Setup};

/// Averages of the step's values since the last row of metrics, summed on the device.
#[derive(Debug)]
pub struct AverageMeter {
    /// [K], each value times the number of images that it is the mean of.
    pub sums: Tensor,
    /// Images in the sums.
    pub images: u64,
}

impl AverageMeter {
    /// Zero sums of `values` values.
    pub fn new(values: usize, device: Device) -> Self {
        AverageMeter { sums: Tensor::zeros([values as i64], (Kind::Double, device)), images: 0 }
    }

    /// Adds the means `values` [K] of a batch of `images`.
    pub fn add(&mut self, values: &Tensor, images: i64) -> Result<()> {
        self.images += images as u64;
        self.add_to_sums(values, images)
    }

    /// The part of [`AverageMeter::add`] on the device, which a captured step contains.
    fn add_to_sums(&self, values: &Tensor, images: i64) -> Result<()> {
        let _ = self.sums.shallow_clone().f_add_(&values.f_mul_scalar(images as f64)?)?;
        Ok(())
    }

    /// Means over all images since the last reset.
    pub fn means(&self) -> Result<Vec<f64>> {
        // sync: once a log interval.
        let sums = Vec::<f64>::try_from(&self.sums)?;
        Ok(sums.into_iter().map(|s| s / self.images as f64).collect())
    }

    /// Sets the sums to zero.
    pub fn reset(&mut self) -> Result<()> {
        self.images = 0;
        let _ = self.sums.f_zero_()?;
        Ok(())
    }
}

/// Which step is run.
#[derive(Clone, Copy, Debug)]
pub struct StepPosition {
    /// Seed of the step's noise.
    pub noise_seed: i64,
    /// Updates before this one.
    pub step: u64,
    /// The epoch whose order the images are taken in.
    pub epoch: u64,
    /// Index of the batch in that order.
    pub batch: u64,
}

impl StepPosition {
    /// The position of the update after `step` updates, with `per_epoch` updates an epoch and noise that follows from `seed`.
    pub fn new(seed: u64, step: u64, per_epoch: u64) -> Self {
        let noise_seed = seed_for(seed, 0, Stream::Noise, step);
        StepPosition { noise_seed, step, epoch: step / per_epoch, batch: step % per_epoch }
    }
}

/// How steps are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecutionMode {
    /// Eagerly, with numbers from the host: the fastest on a CPU.
    Host,
    /// Eagerly, with numbers read from the device.
    Device,
    /// As one captured CUDA graph, with numbers read from the device.
    Captured,
}

impl ExecutionMode {
    /// The mode for a device; `cuda_graph` says whether steps may be captured.
    pub fn new(device: Device, cuda_graph: bool) -> Self {
        match (device, cuda_graph) {
            (Device::Cuda(_), true) => ExecutionMode::Captured,
            (Device::Cuda(_), false) => ExecutionMode::Device,
            _ => ExecutionMode::Host,
        }
    }
}

/// Runs the steps of one training run.
#[derive(Debug)]
pub struct Stepper {
    // First: a captured graph must be dropped before the tensors that it reads.
    on_device: Option<DeviceState>,
    seed: u64,
    batch_size: i64,
    /// The epoch that `order` is of; none before the first step.
    epoch: Option<u64>,
    /// The order of the epoch's images, int64 [N], at one address throughout.
    order: Tensor,
    prefetched: Option<Prefetched>,
}

/// What a step on the device reads and advances.
#[derive(Debug)]
struct DeviceState {
    capture: Capture,
    noise: Noise,
    /// Positions in the order of the next full batch's images, int64 [B].
    rows: Tensor,
    /// Index of the batch that `rows` selects; none before the first step.
    next: Option<u64>,
}

/// The state of the capture.
#[derive(Debug)]
enum Capture {
    Off,
    /// So many warm-up steps on full batches are left, which are training steps like any other.
    WarmUp(u32),
    /// Steps on full batches replay the graph.
    Done(native::CudaGraph),
}

impl Stepper {
    /// A stepper for a training run of `config` on the data and the device of `setup`.
    pub fn new(mode: ExecutionMode, setup: &Setup, config: &Config) -> Result<Self> {
        let batch_size = config.batch_size as i64;
        let indices = |count: i64| Tensor::f_zeros([count], (Kind::Int64, setup.device));
        let on_device = |capture| -> Result<DeviceState> {
            Ok(DeviceState { capture, noise: Noise::in_buffers(setup.device), rows: indices(batch_size)?, next: None })
        };
        Ok(Stepper {
            on_device: match mode {
                ExecutionMode::Host => None,
                ExecutionMode::Device => Some(on_device(Capture::Off)?),
                ExecutionMode::Captured => Some(on_device(Capture::WarmUp(native::WARM_UP))?),
            },
            seed: config.seed,
            batch_size,
            epoch: None,
            order: indices(setup.train.len() as i64)?,
            prefetched: None,
        })
    }

    /// Whether full batches replay a captured graph by now.
    pub fn captured(&self) -> bool {
        self.on_device.as_ref().is_some_and(|state| matches!(state.capture, Capture::Done(_)))
    }

    /// One update at `position`; adds its values to `meter` and gives its number of images.
    ///
    /// # Errors
    /// libtorch's; a step that cannot be captured.
    pub fn step(
        &mut self,
        setup: &mut Setup,
        meter: &mut AverageMeter,
        position: StepPosition,
        timer: &StepTimer,
    ) -> Result<i64> {
        let StepPosition { noise_seed, step, epoch, batch } = position;
        if self.epoch != Some(epoch) {
            self.order.f_copy_(&Tensor::f_from_slice(&setup.order(self.seed, epoch))?)?;
            self.epoch = Some(epoch);
        }
        setup.model.schedule(step)?;
        let order = &self.order;
        let Some(state) = &mut self.on_device else {
            let (batch, count) = setup.batch(&mut self.prefetched, (epoch, order), batch, self.batch_size as usize)?;
            let noise = Noise::new(noise_seed, setup.device);
            let batch = augmented(setup, batch, &noise)?;
            timer.lap(Phase::Data);
            let values = setup.model.step(&batch, StepContext { noise: &noise, timer, on_device: false })?;
            meter.add(&values, count)?;
            return Ok(count);
        };
        let count = self.batch_size.min(setup.train.len() as i64 - batch as i64 * self.batch_size);
        let full = count == self.batch_size;
        state.select(batch, self.batch_size)?;
        state.noise.begin(noise_seed)?;
        if full && matches!(state.capture, Capture::WarmUp(0)) {
            let timer = StepTimer::off();
            let graph = native::cuda()?.capture_step(|| state.update(setup, meter, order, count, &timer))?;
            state.capture = Capture::Done(graph);
        }
        match &mut state.capture {
            Capture::Done(graph) if full => graph.replay()?,
            capture => {
                if let (Capture::WarmUp(left), true) = (capture, full) {
                    *left -= 1;
                }
                state.update(setup, meter, order, count, timer)?;
            }
        }
        state.next = Some(batch + 1);
        meter.images += count as u64;
        Ok(count)
    }
}

/// The batch as it is trained on: mirrored at random with --hflip.
fn augmented(setup: &Setup, batch: Batch, noise: &Noise) -> Result<Batch> {
    if !setup.hflip {
        return Ok(batch);
    }
    let uniform = noise.uniform("mirror", &[batch.x.size()[0]])?;
    batch.mirrored(&uniform)
}

impl DeviceState {
    /// Selects the rows of batch `batch`, unless the last step has advanced to it: at the start, at an epoch's first batch, after a
    /// rollback.
    fn select(&mut self, batch: u64, batch_size: i64) -> Result<()> {
        if self.next != Some(batch) {
            let first = batch as i64 * batch_size;
            let rows = Tensor::f_arange_start(first, first + batch_size, (Kind::Int64, self.rows.device()))?;
            self.rows.f_copy_(&rows)?;
        }
        Ok(())
    }

    /// The complete update on the next `n` images, from gathering them to advancing to the next batch. This code may be captured:
    /// it must not copy anything to the host, nor use a number of the host that differs from step to step.
    fn update(&self, setup: &mut Setup, meter: &AverageMeter, order: &Tensor, n: i64, timer: &StepTimer) -> Result<()> {
        self.noise.again();
        let batch = setup.train.gather(&order.f_index_select(0, &self.rows.f_narrow(0, 0, n)?)?)?;
        let batch = augmented(setup, batch, &self.noise)?;
        timer.lap(Phase::Data);
        let values = setup.model.step(&batch, StepContext { noise: &self.noise, timer, on_device: true })?;
        meter.add_to_sums(&values, n)?;
        let _ = self.rows.shallow_clone().f_add_scalar_(self.rows.size()[0])?;
        Ok(())
    }
}
