//! What a configuration asks for, put together in memory: device, data, tuned model.

use anyhow::{Context, Result};
use tch::{Device, Tensor};

use crate::base::batch::Batch;
use crate::base::usage::usage;
use crate::config::device;
use crate::config::{Budget, Config};
use crate::data;
use crate::data::dataset::Dataset;
use crate::models::Model;
use crate::models::tuning::{self, Chosen, Plan, Tuning, TuningSource};
use crate::native;
use crate::nets::{ARCH, Arch, Compute};

fn steps_of(budget: Budget, per_epoch: u64) -> u64 {
    match budget {
        Budget::Epochs(n) => n.saturating_mul(per_epoch),
        Budget::Steps(n) => n,
    }
}

/// Everything that a step needs.
pub struct Setup {
    /// Where the tensors are.
    pub device: Device,
    /// What a person calls the data.
    pub data: String,
    /// Checksum of the images and labels.
    pub data_sha256: String,
    /// Images that are trained on.
    pub train: Dataset,
    /// Images that are only ever scored.
    pub test: Dataset,
    /// The model, computing as `chosen` says.
    pub model: Box<dyn Model>,
    /// Threads and forms of layers.
    pub chosen: Chosen,
    /// Updates in an epoch.
    pub per_epoch: u64,
    /// Updates in all.
    pub total: u64,
}

impl Setup {
    /// Device, data and model, in this order; the images' bytes live on only in the data sets on the device.
    ///
    /// `stored` is the tuning of a run that goes on; without it, it is chosen now.
    ///
    /// # Errors
    /// A device that is not there, bad data, a model that does not fit it.
    pub fn new(config: &Config, stored: Option<Tuning>) -> Result<Self> {
        let device = device::open(&config.settings)?;
        if device != Device::Cpu
            && stored.is_none()
            && (config.plan.products.is_some() || config.plan.kernels.is_some())
        {
            usage!(
                "--tune with products or kernels is for the CPU, and this run is on {}: leave it out, or use --device cpu",
                device::name(device)
            );
        }
        let precision = device::precision(&config.settings, device)?;
        let source = data::open(&config.settings)?;
        let train = Dataset::new(&source.train, device)?;
        let test = Dataset::new(&source.test, device)?;
        let (data, data_sha256) = (source.name.clone(), data::checksum(&source));
        // The sets on the device are all that is needed from here on.
        drop(source);
        let per_epoch = config.steps_per_epoch(train.len());
        let shape = train.shape();
        let total = steps_of(config.budget, per_epoch);
        let fresh = || config.build(shape, per_epoch, device);
        let chosen = match stored {
            Some(Tuning { threads, compute }) => Chosen {
                tuning: Tuning { threads, compute: Compute { precision, ..compute } },
                source: TuningSource::Stored,
            },
            None => {
                let batch = train.range(0, config.batch_size)?;
                let convolutions = config.settings.get(&ARCH)? == Arch::Conv;
                let plan = Plan { precision, captured: config.cuda_graph, ..config.plan };
                let chosen =
                    tuning::choose(&plan, total, convolutions, &batch, fresh).context("timing the forms of a step")?;
                // The model that was measured on has left holes that the real one does not quite fit.
                native::release_free_memory(device)?;
                chosen
            }
        };
        let mut model = fresh()?;
        chosen.tuning.apply(model.as_mut())?;
        Ok(Setup { device, data, data_sha256, train, test, model, chosen, per_epoch, total })
    }

    /// How many updates a budget is.
    pub fn steps_of(&self, budget: Budget) -> u64 {
        steps_of(budget, self.per_epoch)
    }

    /// Batch number `within` of the epoch whose images come in the order `order` (the epoch's number, int64 [N]): images, labels
    /// and B. Small batches are gathered several at a time into `prefetched`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn batch(
        &self,
        prefetched: &mut Prefetched,
        (epoch, order): (u64, &Tensor),
        within: u64,
        batch_size: usize,
    ) -> Result<(Batch, i64)> {
        let (images, size) = (self.train.len() as i64, batch_size as i64);
        let from = within as i64 * size;
        let count = size.min(images - from);
        let bytes = size.saturating_mul(4 * self.train.shape().numel());
        let batches = (PREFETCH_BYTES / bytes).max(1);
        if batches == 1 {
            return Ok((self.train.gather(&order.f_narrow(0, from, count)?)?, count));
        }
        // Always the same batches together, so that a batch lies in memory alike in a run that was resumed among them.
        let first = from / (batches * size) * (batches * size);
        let all = match prefetched.0.take() {
            Some((e, f, all)) if (e, f) == (epoch, first) => all,
            _ => self.train.gather(&order.f_narrow(0, first, (batches * size).min(images - first))?)?,
        };
        let batch = all.narrow(from - first, count)?;
        prefetched.0 = Some((epoch, first, all));
        Ok((batch, count))
    }
}

/// Floats of small batches that are gathered in one go, in bytes: gathering one of 20 digits alone costs as much in calls as in
/// bytes, and these still lie in a core's cache when their turn comes.
const PREFETCH_BYTES: i64 = 512 << 10;

/// Batches gathered before their turn: the epoch, the position of the first image, the images with their labels.
#[derive(Debug, Default)]
pub struct Prefetched(Option<(u64, i64, Batch)>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::seed::epoch_order;
    use crate::base::setting::Settings;
    use crate::config;
    use crate::config::training::BATCH_SIZE;
    use crate::data::{TEST_LIMIT, TRAIN_LIMIT};
    use crate::models::ModelKind;

    /// Batches of any size are those images of the order, also when they are gathered several at a time, from any batch on, in
    /// any epoch.
    #[test]
    fn batches_are_the_images_of_the_order() {
        let given = Settings::default().with(&TRAIN_LIMIT, 203).with(&TEST_LIMIT, 1);
        let setup = Setup::new(&config::resolve(ModelKind::Vae, &given).unwrap(), None).unwrap();
        for batch_size in [1, 7, 20, 64, 203, 500] {
            let mut prefetched = Prefetched::default();
            for (epoch, start) in [(0, 0), (1, 0), (1, 2), (0, 1)] {
                let order = Tensor::from_slice(&epoch_order(5, epoch, 203));
                for within in start..203_u64.div_ceil(batch_size as u64) {
                    let (batch, count) = setup.batch(&mut prefetched, (epoch, &order), within, batch_size).unwrap();
                    let from = within as i64 * batch_size as i64;
                    assert_eq!(count, (batch_size as i64).min(203 - from));
                    let want = setup.train.gather(&order.narrow(0, from, count)).unwrap();
                    assert_eq!((batch.x, batch.labels), (want.x, want.labels), "{batch_size} {within}");
                }
            }
        }
    }

    #[test]
    fn a_partial_batch_is_a_step() {
        let given = Settings::default().with(&BATCH_SIZE, 128);
        let config = config::resolve(ModelKind::Vae, &given).unwrap();
        assert_eq!([60_000, 256, 1].map(|images| config.steps_per_epoch(images)), [469, 2, 1]);
    }
}
