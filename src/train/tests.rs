//! Tests of the loop.

use super::*;
use crate::base::batch::Batch;
use crate::base::scalar::Scalar;
use crate::base::setting::Settings;
use crate::base::signals::StopFlag;
use crate::config;
use crate::config::device::DEVICE;
use crate::config::training::BATCH_SIZE;
use crate::data;
use crate::data::dataset::Dataset;
use crate::data::{TEST_LIMIT, TRAIN_LIMIT};
use crate::models::ModelKind;
use crate::models::network::Network;
use crate::models::noise::Noise;
use crate::models::optimizer::Adam;
use crate::models::{Model, StepContext};
use crate::models::{Part, Visit};
use crate::nets::cost::Work;
use tch::{Device, Kind, Tensor};

/// A model that only keeps what it was shown.
struct Witness {
    shown: Vec<u8>,
    scalars: [Scalar; 1],
}

impl Model for Witness {
    fn step(&mut self, batch: &Batch, _: StepContext) -> Result<Tensor> {
        let x = &batch.x;
        let values = (x * 255.0).round().to_kind(Kind::Int64).flatten(0, -1);
        assert_eq!(batch.labels.as_ref(), Some(&values), "the labels of these images");
        self.shown.extend(Vec::<u8>::try_from(values.to_kind(Kind::Uint8))?);
        Ok(x.mean(Kind::Float).view([1]))
    }
    fn score(&self, batch: &Batch, _: &Noise) -> Result<Tensor> {
        Ok(batch.x.mean(Kind::Float).view([1]))
    }
    fn scalars(&self) -> &[Scalar] {
        &self.scalars
    }
    fn networks(&self) -> Vec<&Network> {
        Vec::new()
    }
    fn networks_mut(&mut self) -> Vec<&mut Network> {
        Vec::new()
    }
    fn optimizers(&self) -> Vec<&Adam> {
        Vec::new()
    }
    fn optimizers_mut(&mut self) -> Vec<&mut Adam> {
        Vec::new()
    }
    fn work(&self, _: i64) -> Vec<Work> {
        Vec::new()
    }
    fn latent(&self) -> i64 {
        1
    }
    fn visit(&self, v: &mut dyn Visit) -> Result<()> {
        v.tensor(Part::Model, "shown", &Tensor::from_slice(&self.shown).to_kind(Kind::Float))
    }
}

/// A known mistake of peers: a last partial batch silently dropped, from training or from the score.
#[test]
fn an_epoch_shows_every_image_once_with_its_label_and_a_score_counts_each() {
    let settings = Settings::default()
        .with(&BATCH_SIZE, 64)
        .with(&TRAIN_LIMIT, 200)
        .with(&TEST_LIMIT, 130)
        .with(&DEVICE, "cpu".into());
    let config = config::resolve(ModelKind::Vae, &settings).unwrap();
    let mut session = Session::build(&config, None).unwrap();
    let numbered = |n: u8| {
        let images =
            data::images::Images::new([n.into(), 1, 1, 1], (0..n).collect::<Vec<_>>(), (0..n.into()).collect())
                .unwrap();
        Dataset::new(&images, Device::Cpu).unwrap()
    };
    (session.setup.train, session.setup.test) = (numbered(200), numbered(130));
    session.setup.model = Box::new(Witness { shown: Vec::new(), scalars: [Scalar::new("mean", "mean", "", "mean")] });
    session.meter = AverageMeter::new(1, Device::Cpu);
    let counts: Vec<i64> = (0..session.setup.per_epoch).map(|_| session.one_step().unwrap()).collect();
    assert_eq!(counts, [64, 64, 64, 8]);
    let mut shown = Vec::new();
    session.setup.model.visit(&mut Shown(&mut shown)).unwrap();
    assert_ne!(shown, (0..200).collect::<Vec<u8>>(), "in another order than the data's");
    shown.sort_unstable();
    assert_eq!(shown, (0..200).collect::<Vec<u8>>());
    assert!((session.meter.means().unwrap()[0] - 99.5 / 255.0).abs() < 1e-6);
    let score = session.evaluate(&StopFlag::listen().unwrap()).unwrap().unwrap();
    assert!((score[0].1 - 64.5 / 255.0).abs() < 1e-6);
}

struct Shown<'a>(&'a mut Vec<u8>);

impl Visit for Shown<'_> {
    fn tensor(&mut self, _: Part, _: &str, t: &Tensor) -> Result<()> {
        *self.0 = Vec::<u8>::try_from(t.to_kind(Kind::Uint8))?;
        Ok(())
    }
}

#[test]
fn the_meter_weighs_batches_by_their_size() {
    let mut meter = AverageMeter::new(2, Device::Cpu);
    meter.add(&Tensor::from_slice(&[1f32, 10.0]), 3).unwrap();
    meter.add(&Tensor::from_slice(&[5f32, -10.0]), 1).unwrap();
    assert_eq!(meter.means().unwrap(), [2.0, 5.0]);
    meter.reset().unwrap();
    meter.add(&Tensor::from_slice(&[7f32, 8.0]), 2).unwrap();
    assert_eq!(meter.means().unwrap(), [7.0, 8.0]);
}
