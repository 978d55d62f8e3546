//! Warnings, micro-batches, frozen layers.

use super::*;
use clap::ValueEnum;

use crate::base::shape::Shape;
use crate::base::timer::StepTimer;
use crate::models::augment::AugmentSpec;
use crate::models::losses::adversarial::GanLoss;
use crate::models::losses::penalty::Penalties;
use crate::models::moving_average::Decay;
use crate::models::optimizer::MicroBatch;
use crate::native;
use crate::nets::{Activation, NetSpec};

#[test]
fn warns_of_a_dominant_discriminator_and_mode_collapse_and_limits_the_loss() {
    let net = NetSpec {
        arch: crate::nets::Arch::Mlp,
        hidden: vec![2],
        activation: crate::nets::Activation::Relu,
        batch_norm: false,
        init: crate::nets::graph::Init::PyTorch,
        ..NetSpec::default()
    };
    let shape = Shape { channels: 1, height: 2, width: 3 };
    let spec = GanSpec::new(shape, 2, [net.clone(), net], GanLoss::NonSaturating);
    let gan = Gan::new(spec, OptimizerSettings::default(), Device::Cpu).unwrap();
    let worries =
        |accuracy, diversity| gan.warnings(&[1.0, 1.0, 0.0, 0.0, accuracy, 1.0, diversity * diversity]).join(" and ");
    assert_eq!(worries(0.9, 0.7), "");
    assert!(worries(0.999, 0.7).starts_with("the discriminator is too strong"));
    assert!(worries(0.9, 0.05).contains("collapsed"));
    assert!(worries(1.0, 0.0).contains(" and "), "both");
    let unknown = [1.0, 1.0, 0.0, 0.0, 0.9, 0.0, 0.0];
    assert!(gan.warnings(&unknown).is_empty(), "nothing is known of batches of one");
    assert_eq!(gan.report(&[1.0, 2.0, 3.0, 4.0, 0.9, 4.0, 1.0]), [1.0, 2.0, 3.0, 4.0, 0.9, 0.5]);
    assert_eq!((gan.scalars().len(), gan.scalars()[5].key.as_str()), (6, "diversity"));
    assert!(gan.scalars()[1].limit.unwrap() < 1667.0, "seen in a run with --lr 0.02");
}

/// A small GAN on images of 8x8, convolutional ones with batch normalisation.
fn spec(arch: crate::nets::Arch, loss: GanLoss) -> GanSpec {
    let net = NetSpec {
        arch,
        hidden: vec![5, 4],
        base_width: Some(4),
        activation: Activation::LeakyRelu,
        ..NetSpec::default()
    };
    GanSpec::new(Shape { channels: 1, height: 8, width: 8 }, 3, [net.clone().like_dcgan(), net.like_dcgan()], loss)
}

fn images(seed: i64, count: i64) -> Batch {
    let x = native::random(seed, &[count, 1, 8, 8], native::Distribution::Uniform).unwrap();
    // Read by conditional ones alone.
    Batch { x, labels: Some(Tensor::arange(count, (Kind::Int64, Device::Cpu)).remainder(3)) }
}

/// Updates on the same images; the measured values of the last.
fn train(gan: &mut Gan, batch: &Batch, steps: u64) -> Tensor {
    let timer = StepTimer::off();
    let step = |step: u64| {
        let noise = Noise::new(step as i64, Device::Cpu);
        gan.schedule(step).unwrap();
        gan.step(batch, StepContext { noise: &noise, timer: &timer, on_device: false }).unwrap()
    };
    (0..steps).map(step).last().unwrap()
}

fn weights(gan: &Gan) -> Vec<Tensor> {
    gan.optimizers().iter().flat_map(|adam| adam.params().iter().map(|p| p.detach().copy())).collect()
}

#[test]
fn passes_of_an_update_give_that_of_the_whole_batch() {
    let none = Penalties::default();
    let kinds = [
        (none, 1, None),
        (Penalties { r1: 0.5, r2: 0.3, gradient: 0.2, ..none }, 1, Some(3)),
        (Penalties { r1: 0.5, first_order: true, every: 2, ..none }, 2, None),
    ];
    for &loss in GanLoss::value_variants() {
        for (penalties, d_steps, classes) in kinds {
            let update = |size: Option<u64>| {
                let list = vec![crate::models::augment::Augmentation::Shift];
                let augment = Some(AugmentSpec { list, p: crate::models::augment::ApplyProbability::Adaptive });
                let spec = GanSpec { penalties, d_steps, classes, augment, ..spec(crate::nets::Arch::Mlp, loss) };
                let adam = AdamSettings { eps: 1e-2, ..AdamSettings::default() };
                let micro_batch = size.map(|images| MicroBatch { images, with_batch_norm: false });
                let hyper = OptimizerSettings { adam, micro_batch, ..OptimizerSettings::default() };
                let mut gan = native::seeded(3, || Gan::new(spec, hyper, Device::Cpu)).unwrap();
                let values = train(&mut gan, &images(1, 18), 2);
                let state = gan.more_state().into_iter().map(|(_, t)| t.copy()).collect::<Vec<_>>();
                [values.to_kind(Kind::Float)].into_iter().chain(state).chain(weights(&gan)).collect::<Vec<_>>()
            };
            let whole = update(None);
            for size in [4, 18] {
                for (i, (got, want)) in update(Some(size)).iter().zip(&whole).enumerate() {
                    // A difference of two logits over a small distance, which rounds.
                    let most = if penalties.first_order { 1e-3 } else { 1e-5 };
                    let close = got.allclose(want, most, most / 10.0, false);
                    assert!(close, "{loss:?}, {penalties:?}, {size}, tensor {i}: {got}, not {want}");
                }
            }
        }
    }
}

#[test]
fn passes_need_leave_for_batch_normalisation() {
    let with = |with_batch_norm, penalties| {
        let micro_batch = Some(MicroBatch { images: 4, with_batch_norm });
        let spec = GanSpec { penalties, ..spec(crate::nets::Arch::Conv, GanLoss::Hinge) };
        Gan::new(spec, OptimizerSettings { micro_batch, ..OptimizerSettings::default() }, Device::Cpu)
    };
    let e = with(false, Penalties::default()).unwrap_err().to_string();
    assert!(e.contains("the generator has batch normalisation") && e.contains("--micro-batch-norm"), "{e}");
    let e = with(true, Penalties { lecam: 1.0, ..Penalties::default() }).unwrap_err().to_string();
    assert!(e.contains("--lecam"), "{e}");
    let values = train(&mut with(true, Penalties::default()).unwrap(), &images(1, 10), 2);
    assert_eq!(values.isfinite().all().int64_value(&[]), 1);
}

#[test]
fn frozen_layers_keep_their_weights() {
    let gan = |freeze_d| {
        let spec = GanSpec { freeze_d, ..spec(crate::nets::Arch::Conv, GanLoss::NonSaturating) };
        native::seeded(3, || Gan::new(spec, OptimizerSettings::default(), Device::Cpu))
    };
    // conv1, fc1, fc2, out.
    for freeze_d in 0..4 {
        let mut gan = gan(freeze_d).unwrap();
        let of = |gan: &Gan| {
            gan.networks()
                .into_iter()
                .flat_map(Network::variables)
                .map(|(name, t)| (name, t.copy()))
                .collect::<Vec<_>>()
        };
        let before = of(&gan);
        let _values = train(&mut gan, &images(1, 6), 2);
        let kept = before.iter().zip(of(&gan)).filter(|((_, before), (_, after))| before == after);
        let kept: Vec<_> = kept.map(|((name, _), _)| name.as_str()).filter(|name| name.ends_with("weight")).collect();
        let names = ["conv1", "fc1", "fc2", "out"].map(|name| format!("discriminator.{name}.weight"));
        assert_eq!(kept, names[..freeze_d as usize]);
    }
    let e = gan(4).unwrap_err().to_string();
    assert!(e.contains("--freeze-d 4") && e.contains("4 layers"), "{e}");
}

/// In evaluation mode, both networks then compute what they do with the statistics of a batch.
#[test]
fn recomputed_statistics_are_those_of_batches() {
    let net = spec(crate::nets::Arch::Conv, GanLoss::NonSaturating);
    let shape = Shape { channels: 1, height: 16, width: 16 };
    let spec = GanSpec { shape, ema: Some(Decay::Fixed(0.9)), ..net };
    let hyper = OptimizerSettings {
        adam: AdamSettings { lr: 0.01, ..AdamSettings::default() },
        ..OptimizerSettings::default()
    };
    let mut gan = native::seeded(3, || Gan::new(spec, hyper, Device::Cpu)).unwrap();
    let uniform = |seed| native::random(seed, &[64, 1, 16, 16], native::Distribution::Uniform).unwrap();
    let _values = train(&mut gan, &Batch { x: uniform(1), labels: None }, 5);
    let noise = || Noise::new(7, Device::Cpu);
    let (x, z) = (uniform(2), gan.z(&uniform(2), &noise()).unwrap());
    let off = |gan: &Gan| {
        let differ = |of: &dyn Fn(Mode) -> Result<Tensor>| {
            let [eval, batch] = [Mode::Eval, Mode::Batch].map(|mode| tch::no_grad(|| of(mode)).unwrap());
            let scale = batch.std(false).double_value(&[]);
            (eval - batch).abs().max().double_value(&[]) / scale
        };
        [differ(&|mode| gan.judge(&x, None, mode)), differ(&|mode| gan.generate(gan.shown(), &z, None, mode))]
    };
    let before = (off(&gan), weights(&gan));
    let recompute = |gan: &Gan| {
        let batch = || Ok((Batch { x: x.shallow_clone(), labels: None }, noise()));
        gan.recompute_statistics(&mut [batch(), batch()].into_iter()).unwrap();
        gan.networks().into_iter().flat_map(Network::variables).map(|(_, t)| t.copy()).collect::<Vec<_>>()
    };
    let once = recompute(&gan);
    let after = off(&gan);
    assert!(before.0.iter().all(|off| *off > 0.2) && after.iter().all(|off| *off < 0.02), "{before:?}, then {after:?}");
    assert_eq!(before.1, weights(&gan), "no weight has moved");
    assert_eq!(recompute(&gan), once, "they do not depend on those before");
}

/// Statistics made anew change nothing that training reads: the singular vectors of a discriminator beside a normalised generator stay.
#[test]
fn new_statistics_leave_spectral_normalisation_as_it_is() {
    let mut spec = spec(crate::nets::Arch::Conv, GanLoss::Hinge);
    spec.discriminator = NetSpec { batch_norm: false, spectral: true, ..spec.discriminator };
    let gan = Gan::new(spec, OptimizerSettings::default(), Device::Cpu).unwrap();
    let state = |network: &Network| network.variables().into_iter().map(|(_, t)| t.copy()).collect::<Vec<_>>();
    let (generator, discriminator) = (state(&gan.generator), state(&gan.discriminator));
    let batch = || Ok((images(1, 8), Noise::new(3, Device::Cpu)));
    gan.recompute_statistics(&mut [batch()].into_iter()).unwrap();
    assert_eq!(state(&gan.discriminator), discriminator);
    assert_ne!(state(&gan.generator), generator);
}

/// A residual generator without normalisation is trained without a limit, so that no gradient vanishes; what it shows is in [0,1].
#[test]
fn linear_images_are_limited_where_they_are_shown() {
    let gan = native::seeded(3, || {
        Gan::new(spec(crate::nets::Arch::Residual, GanLoss::Hinge), OptimizerSettings::default(), Device::Cpu)
    });
    let gan = gan.unwrap();
    let (_, last) = gan.generator.variables().into_iter().find(|(name, _)| name == "generator.image.weight").unwrap();
    let _ = tch::no_grad(|| last.shallow_clone().g_mul_scalar_(20.0));
    let z = Noise::new(1, Device::Cpu).normal("z", &[4, 3]).unwrap();
    let of = |mode| tch::no_grad(|| gan.generate(&gan.generator, &z, None, mode)).unwrap();
    let (trained, shown) = (of(Mode::Train), of(Mode::Eval));
    assert!(trained.min().double_value(&[]) < -0.5 && trained.max().double_value(&[]) > 1.5);
    assert!(shown.allclose(&trained.clamp(0.0, 1.0), 1e-6, 1e-6, false));
    assert_eq!(gan.decode(&z, None).unwrap(), shown);
}
