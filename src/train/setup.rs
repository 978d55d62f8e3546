//! A configuration in memory: device, data, tuned model.

use anyhow::{Context, Result};
use tch::{Device, Tensor};

use crate::base::batch::Batch;
use crate::base::classes::Classes;
use crate::base::progress::say;
use crate::base::seed::{balanced_order, epoch_order};
use crate::base::usage::usage;
use crate::config::Config;
use crate::config::device;
use crate::data::dataset::Dataset;
use crate::data::{self, BALANCE, HFLIP};
use crate::models::losses::likelihood::bernoulli::{BINARIZE, Binarize};
use crate::models::tuning::{self, Chosen, Plan, Tuning, TuningSource};
use crate::models::{ImageSpec, Model};
use crate::native;
use crate::nets::{ARCH, Arch, Compute};

/// Everything that a step needs.
pub struct Setup {
    /// The device of all tensors.
    pub device: Device,
    /// The name of the data, for messages.
    pub data: String,
    /// Checksum of the images and labels.
    pub data_sha256: String,
    /// Training images.
    pub train: Dataset,
    /// Held-out images, for evaluation only.
    pub test: Dataset,
    /// Whether training images are mirrored at random.
    pub hflip: bool,
    /// The classes of a conditional model's images; none for another.
    pub classes: Classes,
    /// The class of each training image, where all classes are drawn equally often.
    balance: Option<Vec<u32>>,
    /// The model, with the tuning applied.
    pub model: Box<dyn Model>,
    /// The tuning: threads, kernels, layout.
    pub chosen: Chosen,
    /// Updates in an epoch.
    pub per_epoch: u64,
    /// Updates in all.
    pub total: u64,
}

impl Setup {
    /// Opens the device, reads the data and builds the model, in this order. `stored` is the tuning of a resumed run; without it, the
    /// tuning is chosen now.
    ///
    /// # Errors
    /// A device that cannot be used, bad data, a model that does not fit it.
    pub fn new(config: &Config, stored: Option<Tuning>) -> Result<Self> {
        let device = device::open(&config.settings)?;
        let for_cpu = config.plan.matmul.is_some() || config.plan.kernels.is_some();
        if device != Device::Cpu && stored.is_none() && for_cpu {
            let name = device::name(device);
            usage!(
                "--tune with products or kernels is for the CPU, and this run is on {name}: leave it out, or use --device cpu"
            );
        }
        // On a GPU the threads compute none of the training.
        if let Some(Tuning { threads: threads @ 2.., compute }) = stored
            && device == Device::Cpu
            && config.plan.deterministic
            && !compute.matmul.is_deterministic()
        {
            usage!("--threads {threads}: the run is --deterministic with products=blas, which needs --threads 1");
        }
        let precision = device::precision(&config.settings, device)?;
        let mut source = data::open(&config.settings)?;
        let test = Dataset::new(&source.test, device)?;
        let (data, data_sha256) = (source.name.clone(), data::checksum(&source));
        if config.settings.given(&BINARIZE) == Some(Binarize::Fixed) {
            source.train.binarise(config.seed)?;
        }
        let train = Dataset::new(&source.train, device)?;
        let labels = &source.train.labels;
        let balance = config.settings.get(&BALANCE)?.then(|| labels.clone());
        if balance.is_some() && labels.is_empty() {
            usage!("--balance draws all classes equally often, and {data} has no classes: leave it out");
        }
        let images = ImageSpec { shape: train.shape(), classes: source.classes.len() as i64 };
        let counted = Classes::counted(source.classes.clone(), labels);
        let classes = if balance.is_some() { counted.balanced() } else { counted };
        // From here on only the copies on the device are needed.
        drop(source);
        let per_epoch = config.steps_per_epoch(train.len());
        let total = config.budget.steps(per_epoch);
        let fresh = || config.build(images, per_epoch, device);
        let chosen = match stored {
            Some(Tuning { threads, compute }) => Chosen {
                tuning: Tuning { threads, compute: Compute { precision, ..compute } },
                source: TuningSource::Stored,
            },
            None => {
                let batch = train.range(0, config.batch_size)?;
                let convolutions = config.settings.get(&ARCH)? != Arch::Mlp;
                let plan = Plan { precision, captured: config.cuda_graph, ..config.plan };
                let chosen = tuning::choose(&plan, total, convolutions, &batch, fresh)
                    .context("timing the variants of a step")?;
                // The model that was timed has fragmented the memory.
                native::release_free_memory(device)?;
                chosen
            }
        };
        let mut model = fresh()?;
        chosen.tuning.apply(model.as_mut())?;
        if let Some(note) = &config.note {
            say(note);
        }
        let hflip = config.settings.get(&HFLIP)?;
        let classes = if model.classes().is_some() { classes } else { Classes::default() };
        Ok(Setup { device, data, data_sha256, train, test, hflip, classes, balance, model, chosen, per_epoch, total })
    }

    /// The order of the training images in an epoch: int64 [N] on the CPU.
    pub fn order(&self, seed: u64, epoch: u64) -> Vec<i64> {
        match &self.balance {
            Some(labels) => balanced_order(seed, epoch, labels),
            None => epoch_order(seed, epoch, self.train.len()),
        }
    }

    /// What the model was built for.
    pub fn images(&self) -> ImageSpec {
        ImageSpec { shape: self.train.shape(), classes: self.classes.len() }
    }

    /// Batch `index` of an epoch with its order of the images (int64 [N]): images, labels and B. Several small batches at a time are
    /// gathered into `prefetched`.
    pub fn batch(
        &self,
        prefetched: &mut Option<Prefetched>,
        (epoch, order): (u64, &Tensor),
        index: u64,
        batch_size: usize,
    ) -> Result<(Batch, i64)> {
        let (images, size) = (self.train.len() as i64, batch_size as i64);
        let from = index as i64 * size;
        let count = size.min(images - from);
        if self.device == Device::Cpu {
            self.train.will_need(order, from, size)?;
        }
        let bytes = size.saturating_mul(4 * self.train.shape().numel());
        let batches = (PREFETCH_BYTES / bytes).max(1);
        if batches == 1 {
            return Ok((self.train.gather(&order.f_narrow(0, from, count)?)?, count));
        }
        // Always the same batches together, so that a batch has the same memory alignment in a run that was resumed between them.
        let first = from / (batches * size) * (batches * size);
        let all = match prefetched.take() {
            Some((e, f, all)) if (e, f) == (epoch, first) => all,
            _ => self.train.gather(&order.f_narrow(0, first, (batches * size).min(images - first))?)?,
        };
        let batch = all.narrow(from - first, count)?;
        *prefetched = Some((epoch, first, all));
        Ok((batch, count))
    }
}

/// Bytes of small batches that are gathered in one call: a batch of 20 digits alone costs as much in calls as in copying, and this
/// much still is in a core's cache when it is used.
const PREFETCH_BYTES: i64 = 512 << 10;

/// Batches gathered in advance: the epoch, the index of the first image, the images with their labels.
pub type Prefetched = (u64, i64, Batch);

#[cfg(test)]
mod tests {
    use super::*;
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
            let mut prefetched = None;
            for (epoch, start) in [(0, 0), (1, 0), (1, 2), (0, 1)] {
                let order = Tensor::from_slice(&epoch_order(5, epoch, 203));
                for index in start..203_u64.div_ceil(batch_size as u64) {
                    let (batch, count) = setup.batch(&mut prefetched, (epoch, &order), index, batch_size).unwrap();
                    let from = index as i64 * batch_size as i64;
                    assert_eq!(count, (batch_size as i64).min(203 - from));
                    let want = setup.train.gather(&order.narrow(0, from, count)).unwrap();
                    assert_eq!((batch.x, batch.labels), (want.x, want.labels), "{batch_size} {index}");
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
