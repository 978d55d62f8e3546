//! The warm-up, passes of an update, warnings, scores.

use super::*;
use crate::base::timer::StepTimer;
use crate::models::optimizer::MicroBatch;
use crate::models::schedule::WarmUp;
use crate::nets::{Activation, Arch, NetSpec};

/// A tiny VAE on images of 2×3 pixels, for tests.
pub(crate) fn small(beta: f64, kl_warmup_steps: u64) -> Vae {
    Vae::new(small_spec(beta, kl_warmup_steps), OptimizerSettings::default(), Device::Cpu).unwrap()
}

fn small_spec(beta: f64, kl_warmup_steps: u64) -> VaeSpec {
    let net = NetSpec {
        arch: Arch::Mlp,
        hidden: vec![4],
        activation: Activation::Relu,
        batch_norm: false,
        init: Init::PyTorch,
        ..NetSpec::default()
    };
    let shape = Shape { channels: 1, height: 2, width: 3 };
    let warm_up = WarmUp { steps: kl_warmup_steps, cycle: 0 };
    VaeSpec { beta, warm_up, ..VaeSpec::new(shape, 2, [net.clone(), net]) }
}

#[test]
fn the_kl_warm_up_is_linear() {
    for (steps, want) in [(4, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]), (0, [2.0; 6])] {
        let mut vae = small(2.0, steps);
        for (step, want) in want.into_iter().enumerate() {
            vae.schedule(step as u64).unwrap();
            assert_eq!((vae.weights.beta.host(), vae.weights.beta.device().double_value(&[])), (want, want));
        }
    }
}

#[test]
fn passes_of_an_update_give_that_of_the_whole_batch() {
    let random = |seed, shape: &[i64]| native::random(seed, shape, native::Distribution::Uniform).unwrap();
    let (x, eps) = (random(1, &[7, 1, 2, 3]), random(2, &[7, 2]));
    let timer = StepTimer::off();
    let (noise, latent) = (Noise::new(1, Device::Cpu), LatentNoise { eps, prior: None, uniform: None });
    let update = |images: Option<u64>| {
        let micro_batch = images.map(|images| MicroBatch { images, with_batch_norm: false });
        let adam = native::AdamSettings { eps: 1e-2, ..native::AdamSettings::default() };
        let hyper = OptimizerSettings { adam, micro_batch, ..OptimizerSettings::default() };
        let mut vae = native::seeded(3, || Vae::new(small_spec(2.0, 0), hyper, Device::Cpu)).unwrap();
        let cx = StepContext { noise: &noise, timer: &timer, on_device: false };
        let terms = [vae.update(&x, &latent, cx).unwrap(), vae.update(&x, &latent, cx).unwrap()];
        let values = terms.iter().map(|terms| terms.stacked().unwrap());
        values.chain(vae.adam.params().iter().map(Tensor::detach)).collect::<Vec<_>>()
    };
    let whole = update(None);
    for images in [1, 3, 7] {
        for (got, want) in update(Some(images)).iter().zip(&whole) {
            assert!(got.allclose(want, 1e-5, 1e-6, false), "{images}: {got}, not {want}");
        }
    }
}

#[test]
fn warns_of_unused_latents_and_limits_the_loss() {
    let vae = small(1.0, 0);
    assert!(vae.warnings(&[100.0, 99.0, 1.0]).is_empty());
    assert!(vae.warnings(&[100.0, 100.0, 0.01])[0].contains("hold no information"));
    let chance = 6.0 * std::f64::consts::LN_2;
    let limit = vae.scalars()[1].limit.unwrap();
    assert!(limit > 50.0 * chance && limit < 1000.0 * chance);
    assert_eq!(vae.scalars()[vae.criterion().unwrap()].key, "loss");
}

#[test]
fn a_step_uses_the_scheduled_beta_and_a_score_the_full_one() {
    let mut warm = small(2.0, 4);
    let batch = Batch { x: Tensor::rand([3, 1, 2, 3], (tch::Kind::Float, Device::Cpu)), labels: None };
    let timer = StepTimer::off();
    for on_device in [false, true] {
        let noise = || Noise::new(1, Device::Cpu);
        warm.schedule(0).unwrap();
        let score = warm.score(&batch, &noise()).unwrap();
        let step = warm.step(&batch, StepContext { noise: &noise(), timer: &timer, on_device }).unwrap();
        for (values, beta) in [(score, 2.0), (step, 0.5)] {
            let v = Vec::<f32>::try_from(&values).unwrap();
            assert!((v[0] - v[1] - beta * v[2]).abs() < 1e-5, "{v:?} with {beta}");
            let report = warm.report(&[f64::from(v[0]), f64::from(v[1]), f64::from(v[2])]);
            assert_eq!(report[3], -f64::from(v[1]) - f64::from(v[2]), "the bound has no beta");
            assert_eq!(warm.scalars()[3].key, "elbo");
        }
    }
}
