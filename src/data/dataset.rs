//! A set of images on the device, and batches of it.
//!
//! Images stay bytes; each batch is gathered and converted to floats when it is needed.

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

use super::cache::Mapped;
use super::images::{self, Images, Pixels};
use crate::base::batch::Batch;
use crate::base::shape::Shape;
use crate::native;

/// Bytes of images that are read from the disk before they are needed.
const AHEAD_BYTES: i64 = 32 << 20;

/// Images as bytes on the device.
#[derive(Debug)]
pub struct Dataset {
    images: Store,
    /// N.
    count: usize,
    /// [N], int64, on the device; none for a set without labels.
    labels: Option<Tensor>,
    shape: Shape,
    device: Device,
}

/// [N,C,H,W], bytes.
#[derive(Debug)]
enum Store {
    /// Shared with whoever read them.
    Host(Pixels),
    Device(Tensor),
}

impl Dataset {
    /// A set on the device. On the CPU, no byte is copied.
    ///
    /// # Errors
    /// libtorch's, when there is not enough memory.
    pub fn new(images: &Images, device: Device) -> Result<Self> {
        let shape = images.shape();
        let dims = [images.count as i64, shape.channels, shape.height, shape.width];
        let load = || -> Result<Self> {
            let labels = images.label_tensor()?.f_to_device(device)?;
            let store = match device {
                Device::Cpu => Store::Host(images.pixels.clone()),
                _ => Store::Device(Tensor::f_from_data_size(&images.pixels, &dims, Kind::Uint8)?.f_to_device(device)?),
            };
            let labels = (!images.labels.is_empty()).then_some(labels);
            Ok(Dataset { images: store, count: images.count, labels, shape, device })
        };
        load().with_context(|| format!("moving {} images to the device", images.count))
    }

    /// N, the number of images.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether N is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One more than the largest class number; 0 for a set without labels.
    ///
    /// # Errors
    /// libtorch's.
    pub fn classes(&self) -> Result<i64> {
        // sync: once for a network for features.
        self.labels.as_ref().map_or(Ok(0), |labels| Ok(labels.f_max()?.f_int64_value(&[])? + 1))
    }

    /// The device that batches are on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Shape of each image.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Images `from..from + count` in the order of the set, fewer at its end.
    ///
    /// # Errors
    /// libtorch's.
    pub fn range(&self, from: usize, count: usize) -> Result<Batch> {
        let to = self.len().min(from.saturating_add(count)).max(from);
        if let Some((file, first)) = self.large_file() {
            // The next ones, where a set is read from its start to its end.
            file.will_need((to..self.len().min(to.saturating_add(count))).map(|i| first + i));
        }
        self.gather(&Tensor::f_arange_start(from as i64, to as i64, (Kind::Int64, self.device))?)
    }

    /// At most `n` images, evenly spaced in the set, as a set of their own: all of them without a copy, else copied.
    ///
    /// # Errors
    /// libtorch's, when there is not enough memory.
    pub fn some(&self, n: usize) -> Result<Self> {
        let rows = images::spread(self.len(), n);
        let index =
            Tensor::f_from_slice(&rows.iter().map(|i| *i as i64).collect::<Vec<_>>())?.f_to_device(self.device)?;
        let len = self.shape.numel() as usize;
        let images = match &self.images {
            Store::Host(pixels) if rows.len() == self.len() => Store::Host(pixels.clone()),
            Store::Host(pixels) => {
                let bytes: Vec<u8> = rows.iter().flat_map(|i| &pixels[i * len..(i + 1) * len]).copied().collect();
                Store::Host(bytes.into())
            }
            Store::Device(images) => Store::Device(images.f_index_select(0, &index)?),
        };
        let labels = self.labels.as_ref().map(|labels| labels.f_index_select(0, &index)).transpose()?;
        Ok(Dataset { images, count: rows.len(), labels, shape: self.shape, device: self.device })
    }

    /// At most `n` images, evenly spaced in the set: at most 2^24 pixels in all, but at least four images.
    ///
    /// # Errors
    /// libtorch's.
    pub fn spread(&self, n: usize) -> Result<Batch> {
        let index: Vec<i64> = images::spread(self.len(), self.showable(n)).into_iter().map(|i| i as i64).collect();
        self.gather(&Tensor::f_from_slice(&index)?.f_to_device(self.device)?)
    }

    /// The number of images, up to `n`, that fit into a picture of 2^24 pixels; at least four.
    pub fn showable(&self, n: usize) -> usize {
        let pixels = (self.shape.height * self.shape.width).max(1) as usize;
        n.min(((1 << 24) / pixels).max(4))
    }

    /// The mapped file of a set that may not fit into memory, and its first image.
    fn large_file(&self) -> Option<(&Mapped, usize)> {
        if let Store::Host(pixels) = &self.images { pixels.large_file() } else { None }
    }

    /// Prepares for [`Dataset::gather`] of the batches after the one at `from` in this order (int64 [N], on the CPU): their images begin to
    /// be read from the disk, where they may not be in memory.
    ///
    /// # Errors
    /// libtorch's.
    pub fn will_need(&self, order: &Tensor, from: i64, batch: i64) -> Result<()> {
        let Some((file, first)) = self.large_file() else { return Ok(()) };
        let ahead = (AHEAD_BYTES / (batch * self.shape.numel()).max(1)).clamp(2, 64) * batch;
        // At the start of an epoch everything ahead, then one batch more at each step.
        let start = if from == 0 { batch } else { from + ahead };
        let count = (from + ahead + batch - start).min(self.count as i64 - start);
        if count > 0 {
            let next = Vec::<i64>::try_from(order.f_narrow(0, start, count)?)?;
            file.will_need(next.into_iter().map(|i| first + i as usize));
        }
        Ok(())
    }

    /// The images with the indices `index` [B] (int64, on the device), and their labels.
    ///
    /// # Errors
    /// libtorch's.
    pub fn gather(&self, index: &Tensor) -> Result<Batch> {
        let x = match &self.images {
            Store::Host(pixels) => {
                if let Some((file, from)) = pixels.large_file() {
                    file.check(Vec::<i64>::try_from(index)?.into_iter().map(|i| from + i as usize))?;
                }
                native::gather(pixels, self.shape, index)?
            }
            // Division promotes bytes to floats.
            Store::Device(images) => images.f_index_select(0, index)?.f_div_scalar(255.0)?,
        };
        let labels = self.labels.as_ref().map(|labels| labels.f_index_select(0, index)).transpose()?;
        Ok(Batch { x, labels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::seed::epoch_order;
    use crate::base::setting::Settings;
    use crate::data;

    #[test]
    fn batches_are_the_images_divided_by_255() {
        let settings = Settings::default().with(&data::TRAIN_LIMIT, 40).with(&data::TEST_LIMIT, 7);
        let source = data::open(&settings).unwrap();
        assert_eq!((source.train.count, source.test.count), (40, 7));
        let data = Dataset::new(&source.train, Device::Cpu).unwrap();
        let x = data.gather(&Tensor::from_slice(&[3i64, 0, 39])).unwrap().x;
        assert_eq!(x.size(), [3, 1, 28, 28]);
        let floats = Vec::<f32>::try_from(x.get(0).flatten(0, -1)).unwrap();
        let want: Vec<f32> = source.train.pixels[3 * 784..4 * 784].iter().map(|&b| f32::from(b) / 255.0).collect();
        assert_eq!(floats, want);
        assert_eq!(data.range(38, 128).unwrap().x.size()[0], 2, "the last partial batch is kept");
    }

    #[test]
    fn labels_follow_their_images_through_a_shuffled_gather() {
        // Image i is one pixel of value i, of class (7·i) mod 10.
        let of = |i: i64| 7 * i % 10;
        let labels = (0..200).map(|i| of(i) as u32).collect();
        let data =
            Dataset::new(&Images::new([200, 1, 1, 1], (0..200).collect::<Vec<_>>(), labels).unwrap(), Device::Cpu)
                .unwrap();
        let pairs = |batch: Batch| -> Vec<(i64, i64)> {
            let numbers = (batch.x * 255.0).round().to_kind(Kind::Int64).flatten(0, -1);
            let [numbers, labels] = [numbers, batch.labels.unwrap()].map(|t| Vec::try_from(t).unwrap());
            std::iter::zip(numbers, labels).collect()
        };
        let want = |numbers: Vec<i64>| numbers.into_iter().map(|i| (i, of(i))).collect::<Vec<_>>();
        let order = epoch_order(3, 0, 200);
        assert_eq!(pairs(data.gather(&Tensor::from_slice(&order)).unwrap()), want(order.clone()));
        let part = data.gather(&Tensor::from_slice(&order)).unwrap().narrow(50, 20).unwrap();
        assert_eq!(pairs(part), want(order[50..70].to_vec()));
        assert_eq!(pairs(data.range(190, 50).unwrap()), want((190..200).collect()));
        assert_eq!(pairs(data.spread(4).unwrap()), want(vec![0, 50, 100, 150]));
        let bare = Images::new([2, 1, 1, 1], vec![0, 1], vec![]).unwrap();
        assert!(Dataset::new(&bare, Device::Cpu).unwrap().range(0, 2).unwrap().labels.is_none());
    }
}
