//! Losses, gradients and Adam updates against PyTorch's own.
//!
//! `scripts/golden.py` wrote the values with PyTorch's layers, losses and optimizer; `scripts/golden.py --check` computes
//! them anew. From the same weights, batches and noise, three updates here must give the same to float32 accuracy.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use ganvae::base::batch::Batch;
use ganvae::base::timer::StepTimer;
use ganvae::models::augment::{ApplyProbability, AugmentSpec, Augmentation, Augmenter};
use ganvae::models::gan::{Gan, GanSpec, StepNoise};
use ganvae::models::losses::adversarial::GanLoss;
use ganvae::models::losses::bound::Bound;
use ganvae::models::losses::likelihood::Likelihood;
use ganvae::models::losses::likelihood::bernoulli::Binarize;
use ganvae::models::losses::likelihood::gaussian::Sigma;
use ganvae::models::losses::penalty::{Draws, Penalties};
use ganvae::models::moving_average::Decay;
use ganvae::models::noise::Noise;
use ganvae::models::optimizer::OptimizerSettings;
use ganvae::models::schedule::{Schedule, ScheduleKind};
use ganvae::models::vae::{LatentNoise, Vae, VaeSpec};
use ganvae::models::{Model, Part, StepContext, Visit};
use ganvae::native::{AdamSettings, Factor};
use ganvae::nets::{Activation, Arch, Block, Compute, Kernels, Layout, MatmulBackend, Mode, NetSpec, Residual, Shape};
use tch::{Device, Kind, Tensor};

type Tensors = BTreeMap<String, Tensor>;

fn golden(case: &str) -> Tensors {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{case}.safetensors"));
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

/// Largest difference allowed between float32 results of the same arithmetic done in another order.
fn close(what: &str, got: &Tensor, want: &Tensor, rtol: f64, atol: f64) {
    let (got, want) = (got.to_kind(Kind::Double), want.to_kind(Kind::Double));
    assert_eq!(got.size(), want.size(), "{what}");
    let off = (&got - &want).abs();
    let worst = (&off - want.abs() * rtol - atol).max().double_value(&[]);
    assert!(
        worst <= 0.0,
        "{what}: off by {} where the largest value is {}",
        off.max().double_value(&[]),
        want.abs().max().double_value(&[])
    );
}

/// Copies the golden starting weights into a model, and counts that none is left over.
struct Start<'a> {
    golden: &'a Tensors,
    copied: usize,
}

impl Visit for Start<'_> {
    fn tensor(&mut self, part: Part, name: &str, t: &Tensor) -> Result<()> {
        if part == Part::Model {
            let value = &self.golden[&format!("init.{name}")];
            assert_eq!(value.size(), t.size(), "{name}");
            tch::no_grad(|| t.shallow_clone().copy_(value));
            self.copied += 1;
        }
        Ok(())
    }
}

/// What rounding leaves of a gradient whose terms, of about 1, cancel.
const ROUNDING: f64 = 1e-7;

/// Collects all state by name.
#[derive(Default)]
struct Collect(Tensors);

impl Visit for Collect {
    fn tensor(&mut self, _: Part, name: &str, t: &Tensor) -> Result<()> {
        self.0.insert(name.to_owned(), t.detach().copy());
        Ok(())
    }
}

fn begin(model: &mut dyn Model, golden: &Tensors) {
    let mut start = Start { golden, copied: 0 };
    model.visit(&mut start).unwrap();
    let there = golden.keys().filter(|k| k.starts_with("init.") && !k.ends_with("num_batches_tracked")).count();
    assert_eq!(start.copied, there, "every golden variable has its place in the model");
}

/// Weights, buffers and moments after the three updates.
fn compare_end(case: &str, model: &mut dyn Model, golden: &Tensors, hyper: AdamSettings) {
    let mut state = Collect::default();
    model.visit(&mut state).unwrap();
    let mut compared = 0;
    for (key, want) in golden {
        let Some((kind, name)) = key.split_once('.') else { continue };
        // Adam divides by the root of a squared gradient, so a relative error of a tiny gradient becomes one of the step:
        // weights are compared on the scale of the three steps, moments on the scale of each tensor's largest.
        let most = slack(case) * want.abs().max().double_value(&[]);
        let (ours, rtol, atol) = match kind {
            "final" if name.ends_with("num_batches_tracked") => continue,
            "final" => (name.to_owned(), 1e-6, slack(case) * hyper.lr * 1e-3),
            "exp_avg" => (format!("{name}.exp_avg"), 1e-5, 2e-5 * most + (1.0 - hyper.beta1) * ROUNDING),
            "exp_avg_sq" => (format!("{name}.exp_avg_sq"), 1e-5, 2e-5 * most + ROUNDING.powi(2)),
            _ => continue,
        };
        close(&format!("{case}: {key}"), &state.0[&ours], want, rtol, atol);
        compared += 1;
    }
    assert!(compared > 12, "{case}: only {compared} tensors were compared");
}

/// A case's tolerance over that of the others. The first-order penalty is a difference of logits that agree in their first digits.
fn slack(case: &str) -> f64 {
    if case.starts_with("gan-first-order") { 30.0 } else { 1.0 }
}

fn value(golden: &Tensors, i: usize, name: &str) -> Tensor {
    golden[&format!("value.{i}.{name}")].shallow_clone()
}

fn compare_gradients(case: &str, names: &[String], grads: &[Tensor], golden: &Tensors) {
    assert_eq!(names.len(), grads.len());
    for (name, grad) in names.iter().zip(grads) {
        let want = &golden[&format!("grad.0.{name}")];
        let most = slack(case) * want.abs().max().double_value(&[]);
        close(&format!("{case}: gradient of {name}"), grad, want, 1e-5, 1e-5 * most + ROUNDING);
    }
}

fn net(arch: Arch, hidden: &[i64], base_width: i64, activation: Activation, batch_norm: bool) -> NetSpec {
    let base_width = Some(base_width);
    NetSpec { arch, hidden: hidden.to_vec(), base_width, activation, batch_norm, ..NetSpec::default() }
}

fn shape(channels: i64, height: i64, width: i64) -> Shape {
    Shape { channels, height, width }
}

/// What a step is given that draws no noise itself.
fn cx() -> StepContext<'static> {
    thread_local! {
        static GIVEN: &'static (Noise, StepTimer) = Box::leak(Box::new((Noise::new(0, Device::Cpu), StepTimer::off())));
    }
    let (noise, timer) = GIVEN.with(|given| *given);
    StepContext { noise, timer, on_device: false }
}

/// Every way in which the layers can be computed: each must give PyTorch's values.
fn all_ways() -> Vec<Compute> {
    let mut all = Vec::new();
    for &matmul in MatmulBackend::value_variants() {
        for &layout in Layout::value_variants() {
            for &kernels in Kernels::value_variants() {
                all.push(Compute { matmul, layout, kernels, ..Compute::default() });
            }
        }
    }
    all
}

fn check_vae(case: &str, spec: VaeSpec) {
    let adam = AdamSettings { lr: 1e-3, beta1: 0.9, beta2: 0.999, ..AdamSettings::default() };
    check_vae_with(case, spec, OptimizerSettings { adam, ..OptimizerSettings::default() });
}

fn check_vae_with(case: &str, spec: VaeSpec, hyper: OptimizerSettings) {
    for compute in all_ways() {
        check_vae_in(compute, case, spec.clone(), hyper);
    }
}

fn check_gan(case: &str, spec: GanSpec, adam: AdamSettings) {
    check_gan_with(case, spec, OptimizerSettings { adam, ..OptimizerSettings::default() });
}

fn check_gan_with(case: &str, spec: GanSpec, hyper: OptimizerSettings) {
    for compute in all_ways() {
        check_gan_in(compute, case, spec.clone(), hyper);
    }
}

fn check_vae_in(compute: Compute, file: &str, spec: VaeSpec, hyper: OptimizerSettings) {
    let (golden, case) = (golden(file), &format!("{file}, {compute:?}"));
    let capacity = if let Bound::Capacity { most } = spec.bound { most } else { 0.0 };
    let weights = [spec.beta, capacity].map(Factor::Host);
    let mut vae = Vae::new(spec, hyper, Device::Cpu).unwrap();
    vae.set_compute(compute).unwrap();
    begin(&mut vae, &golden);
    let input = |i: usize| {
        let prior = golden.get(&format!("prior.{i}")).map(Tensor::shallow_clone);
        let eps = golden[&format!("noise.{i}")].shallow_clone();
        (&golden[&format!("x.{i}")], LatentNoise { eps, prior, uniform: None })
    };
    let (x, noise) = input(0);
    let terms = vae.loss(x, &noise, weights, Mode::Batch).unwrap();
    let grads = vae.adam().gradients(&terms.loss).unwrap();
    compare_gradients(case, vae.adam().names(), &grads, &golden);
    assert_eq!(grads.len(), golden.keys().filter(|k| k.starts_with("grad.0.")).count());
    for i in 0..3 {
        let (x, noise) = input(i);
        vae.schedule(i as u64).unwrap();
        let terms = vae.update(x, &noise, cx()).unwrap();
        let more: Vec<_> = vae.scalars()[4..].iter().map(|scalar| scalar.key.as_str()).zip(&terms.more).collect();
        assert_eq!(more.len(), vae.scalars().len() - 4, "{case}");
        assert_eq!(more.len(), terms.more.len(), "{case}");
        let three = [("loss", &terms.loss), ("recon", &terms.recon), ("kl", &terms.kl)];
        for (name, got) in three.iter().chain(&more) {
            close(&format!("{case}: {name} of update {i}"), got, &value(&golden, i, name), 1e-5, 1e-6);
        }
        let values = golden.keys().filter(|key| key.starts_with(&format!("value.{i}."))).count();
        assert_eq!(3 + more.len(), values, "{case}: every golden value was compared");
    }
    compare_end(case, &mut vae, &golden, hyper.adam);
    let z = golden["noise.2"].flatten(0, -2);
    close(&format!("{case}: decoded"), &vae.decode(&z, None).unwrap(), &golden["eval.decoded"], 1e-5, 1e-6);
    let (mu, logvar) = vae.encode(&golden["x.2"]).unwrap().unwrap();
    close(&format!("{case}: mu"), &mu, &golden["eval.mu"], 1e-5, 1e-6);
    close(&format!("{case}: logvar"), &logvar, &golden["eval.logvar"], 1e-5, 1e-6);
}

fn check_gan_in(compute: Compute, file: &str, spec: GanSpec, hyper: OptimizerSettings) {
    let (golden, case) = (golden(file), &format!("{file}, {compute:?}"));
    let mut gan = Gan::new(spec, hyper, Device::Cpu).unwrap();
    gan.set_compute(compute).unwrap();
    begin(&mut gan, &golden);
    for i in 0..3 {
        let z = &golden[&format!("noise.{i}")];
        let draw = |name: &str| golden.get(&format!("{name}.{i}")).map(Tensor::shallow_clone);
        let batch = Batch { x: golden[&format!("x.{i}")].shallow_clone(), labels: draw("labels") };
        let penalty = Draws { real: draw("eps_real"), fake: draw("eps_fake"), mix: draw("mix") };
        let noise = StepNoise { z: z.shallow_clone(), penalty, augment: None };
        gan.schedule(i as u64).unwrap();
        // The first update shows its gradients; the others are made as training makes them.
        let mut grads = Vec::new();
        let terms = gan
            .update(&batch, &noise, cx(), |adam, loss| {
                if i > 0 {
                    return adam.minimise(loss, cx());
                }
                let all = adam.gradients(loss)?;
                adam.apply(&all, false)?;
                grads.push(all);
                Ok(())
            })
            .unwrap();
        if i == 0 {
            // The discriminator is updated first.
            let last = &grads[grads.len() - 2..];
            for (adam, grads) in gan.optimizers().into_iter().rev().zip(last) {
                compare_gradients(case, adam.names(), grads, &golden);
            }
            let all: usize = last.iter().map(Vec::len).sum();
            assert_eq!(all, golden.keys().filter(|k| k.starts_with("grad.0.")).count());
        }
        for (name, got) in
            [("d_loss", &terms.d_loss), ("g_loss", &terms.g_loss), ("d_real", &terms.d_real), ("d_fake", &terms.d_fake)]
        {
            close(&format!("{case}: {name} of update {i}"), got, &value(&golden, i, name), 1e-5, 1e-6);
        }
        if let Some(penalty) = terms.penalty {
            let got = penalty.get(0) + penalty.get(2);
            close(&format!("{case}: penalty of update {i}"), &got, &value(&golden, i, "penalty"), 1e-4, 1e-6);
        }
    }
    compare_end(case, &mut gan, &golden, hyper.adam);
    let labels = golden.get("labels.2");
    let decoded = gan.decode(&golden["noise.2"], labels).unwrap();
    close(&format!("{case}: decoded"), &decoded, &golden["eval.decoded"], 1e-5, 1e-6);
    let discriminator = gan.networks().into_iter().find(|n| n.graph.name() == "discriminator").unwrap();
    let inputs: Vec<&Tensor> = [&golden["x.2"]].into_iter().chain(labels).collect();
    let logits = discriminator.graph.evaluate(&inputs).unwrap().pop().unwrap();
    close(&format!("{case}: logits"), &logits, &golden["eval.logits"], 1e-5, 1e-6);
}

#[test]
fn the_articles_vae_updates_as_in_pytorch() {
    check_vae(
        "vae-mlp",
        VaeSpec::new(
            shape(1, 6, 5),
            3,
            [net(Arch::Mlp, &[7], 1, Activation::Relu, false), net(Arch::Mlp, &[6, 9], 1, Activation::Relu, false)],
        ),
    );
}

#[test]
fn a_beta_vae_of_tanh_layers_updates_as_in_pytorch() {
    check_vae(
        "vae-tanh-beta",
        VaeSpec {
            beta: 2.5,
            ..VaeSpec::new(
                shape(3, 4, 4),
                4,
                [net(Arch::Mlp, &[8], 1, Activation::Tanh, false), net(Arch::Mlp, &[8], 1, Activation::Tanh, false)],
            )
        },
    );
}

#[test]
fn a_convolutional_vae_updates_as_in_pytorch() {
    check_vae(
        "vae-conv",
        VaeSpec::new(
            shape(1, 16, 16),
            4,
            [net(Arch::Conv, &[10], 4, Activation::Relu, false), net(Arch::Conv, &[10], 4, Activation::Relu, false)],
        ),
    );
}

fn small_vae() -> VaeSpec {
    let layers = || net(Arch::Mlp, &[8], 1, Activation::Tanh, false);
    VaeSpec::new(shape(3, 4, 4), 4, [layers(), layers()])
}

#[test]
fn every_likelihood_updates_as_in_pytorch() {
    for (case, likelihood) in [
        ("vae-continuous-bernoulli", Likelihood::ContinuousBernoulli),
        ("vae-gaussian-fixed", Likelihood::Gaussian(Sigma::Fixed(0.3))),
        ("vae-gaussian-learned", Likelihood::Gaussian(Sigma::Learned)),
        ("vae-gaussian-optimal", Likelihood::Gaussian(Sigma::Optimal)),
        ("vae-logistic", Likelihood::Logistic),
    ] {
        check_vae(case, VaeSpec { likelihood, ..small_vae() });
    }
}

#[test]
fn every_bound_updates_as_in_pytorch() {
    let (grey, gaussian) = (Likelihood::Bernoulli(Binarize::None), Likelihood::Gaussian(Sigma::Fixed(0.5)));
    let iwae = Bound::ImportanceWeighted;
    for (case, bound, likelihood, samples, beta) in [
        ("vae-samples", Bound::Elbo, grey, 3, 1.0),
        ("vae-iwae", iwae, gaussian, 4, 1.0),
        ("vae-iwae-1", iwae, grey, 1, 1.0),
        ("vae-free-bits", Bound::FreeBits { least: 0.12 }, grey, 1, 1.5),
        ("vae-capacity", Bound::Capacity { most: 3.0 }, grey, 1, 20.0),
        ("vae-tc", Bound::TotalCorrelation { weight: 6.0, images: 100.0 }, grey, 1, 1.0),
        ("vae-mmd", Bound::Mmd { weight: 50.0 }, grey, 1, 0.5),
    ] {
        // The terms of the total correlation cancel each other in most gradients: with this ε, rounding in them moves little.
        let eps = if matches!(bound, Bound::TotalCorrelation { .. }) { 1e-4 } else { 1e-8 };
        let adam = AdamSettings { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps, ..AdamSettings::default() };
        let hyper = OptimizerSettings { adam, ..OptimizerSettings::default() };
        check_vae_with(case, VaeSpec { bound, likelihood, samples, beta, ..small_vae() }, hyper);
    }
}

fn mlp_gan(loss: GanLoss, activation: Activation) -> GanSpec {
    let generator = net(Arch::Mlp, &[5, 8], 1, Activation::Relu, false);
    GanSpec::new(shape(1, 6, 5), 4, [generator, net(Arch::Mlp, &[8, 6], 1, activation, false)], loss)
}

#[test]
fn the_articles_gan_updates_as_in_pytorch() {
    let hyper = AdamSettings { lr: 1e-3, beta1: 0.9, beta2: 0.999, ..AdamSettings::default() };
    check_gan("gan-mlp-ns", mlp_gan(GanLoss::NonSaturating, Activation::LeakyRelu), hyper);
}

#[test]
fn the_literal_minimax_gan_updates_as_in_pytorch() {
    let hyper = AdamSettings { lr: 1e-3, beta1: 0.9, beta2: 0.999, ..AdamSettings::default() };
    check_gan("gan-mlp-minimax", mlp_gan(GanLoss::Minimax, Activation::Relu), hyper);
}

#[test]
fn every_other_loss_updates_as_in_pytorch() {
    let hyper = AdamSettings { lr: 1e-3, beta1: 0.9, beta2: 0.999, ..AdamSettings::default() };
    for loss in [GanLoss::LeastSquares, GanLoss::Hinge, GanLoss::Wasserstein, GanLoss::Relativistic] {
        let case = format!("gan-{}", ganvae::base::setting::choice_name(&loss));
        let eps = if loss == GanLoss::LeastSquares { hyper.eps } else { 1e-4 };
        check_gan(&case, mlp_gan(loss, Activation::LeakyRelu), AdamSettings { eps, ..hyper });
    }
}

/// The penalties through second derivatives, lazy ones, several updates of the discriminator, its own learning rate.
#[test]
fn penalised_discriminators_update_as_in_pytorch() {
    let hyper = AdamSettings { lr: 1e-3, beta1: 0.9, beta2: 0.999, ..AdamSettings::default() };
    let wide = AdamSettings { eps: 1e-4, ..hyper };
    let none = Penalties::default();
    let mlp = |loss, penalties| GanSpec { penalties, ..mlp_gan(loss, Activation::LeakyRelu) };
    let logistic = GanLoss::NonSaturating;
    check_gan("gan-r1-r2", mlp(GanLoss::Relativistic, Penalties { r1: 0.5, r2: 0.2, ..none }), wide);
    let lazy = mlp(logistic, Penalties { r1: 3.0, every: 2, ..none });
    check_gan("gan-r1-lazy", GanSpec { d_lr: Some(2e-3), ..lazy }, hyper);
    let wgan = mlp(GanLoss::Wasserstein, Penalties { gradient: 10.0, ..none });
    check_gan("gan-wgan-gp", GanSpec { d_steps: 2, ..wgan }, AdamSettings { eps: 1e-3, ..hyper });
    check_gan("gan-lecam", mlp(GanLoss::LeastSquares, Penalties { lecam: 0.3, ..none }), hyper);
    check_gan("gan-first-order", mlp(logistic, Penalties { r1: 2.0, r2: 5.0, first_order: true, ..none }), hyper);
    let conv = GanSpec {
        shape: shape(3, 16, 16),
        latent: 5,
        generator: net(Arch::Conv, &[], 2, Activation::Relu, true),
        discriminator: net(Arch::Conv, &[], 2, Activation::Tanh, false),
        ..mlp(logistic, Penalties { r1: 1.5, r2: 2.5, ..none })
    };
    check_gan("gan-conv-r1-r2", conv, AdamSettings { lr: 2e-4, beta1: 0.5, ..hyper });
}

/// One power iteration in each update of the discriminator, none in the generator's; the embedding of classes is normalised too.
#[test]
fn spectral_normalisation_updates_as_in_pytorch() {
    let spec = |classes| GanSpec {
        classes,
        shape: shape(3, 16, 16),
        latent: 5,
        generator: net(Arch::Conv, &[], 2, Activation::Relu, true),
        discriminator: NetSpec { spectral: true, ..net(Arch::Conv, &[4], 2, Activation::LeakyRelu, false) },
        ..mlp_gan(GanLoss::Hinge, Activation::LeakyRelu)
    };
    let hyper = AdamSettings { lr: 2e-4, beta1: 0.5, beta2: 0.999, eps: 1e-4, ..AdamSettings::default() };
    check_gan("gan-spectral", spec(None), hyper);
    check_gan("gan-projection", spec(Some(4)), hyper);
}

#[test]
fn residual_networks_update_as_in_pytorch() {
    for (case, block, widths, r2, classes) in [
        ("gan-residual", Block::Plain, [3, 6], 0.2, None),
        ("gan-grouped", Block::Grouped, [8, 16], 0.0, None),
        ("gan-classes", Block::Plain, [3, 6], 0.2, Some(3)),
    ] {
        let net = |hidden: &[i64], activation| NetSpec {
            widths: widths.to_vec(),
            residual: Residual { block, blocks: vec![1, 2], attention: 5 },
            ..net(Arch::Residual, hidden, 1, activation, false)
        };
        let spec = GanSpec {
            shape: shape(3, 10, 9),
            classes,
            generator: net(&[], Activation::Relu),
            discriminator: net(&[5], Activation::LeakyRelu),
            penalties: Penalties { r1: 0.5, r2, ..Penalties::default() },
            ..mlp_gan(GanLoss::Relativistic, Activation::LeakyRelu)
        };
        let hyper = AdamSettings { lr: 2e-4, beta1: 0.0, beta2: 0.99, eps: 1e-4, ..AdamSettings::default() };
        check_gan(case, spec, hyper);
    }
}

/// Learning rates, β₂ and the weights of penalties that change in each update.
#[test]
fn schedules_update_as_in_pytorch() {
    let schedule = |start, end, kind| Some(Schedule { start, end, kind, steps: 4 });
    let (linear, cosine) = (ScheduleKind::Linear, ScheduleKind::Cosine);
    let adam = AdamSettings { lr: 1e-3, beta1: 0.9, beta2: 0.999, ..AdamSettings::default() };
    let vae = VaeSpec::new(
        shape(1, 6, 5),
        3,
        [net(Arch::Mlp, &[7], 1, Activation::Relu, false), net(Arch::Mlp, &[6], 1, Activation::Relu, false)],
    );
    let (lr, beta2) = (schedule(1e-3, 1e-4, linear), schedule(0.999, 0.9, linear));
    check_vae_with("vae-linear", vae, OptimizerSettings { adam, lr, beta2, ..OptimizerSettings::default() });
    let schedules = [schedule(0.5, 0.05, cosine), schedule(0.2, 0.02, cosine)];
    let gan = GanSpec {
        penalties: Penalties { r1: 0.5, r2: 0.2, schedules, ..Penalties::default() },
        d_lr: Some(2e-3),
        ..mlp_gan(GanLoss::Relativistic, Activation::LeakyRelu)
    };
    let (lr, beta2) = (schedule(1e-3, 2.5e-4, cosine), schedule(0.9, 0.99, cosine));
    let adam = AdamSettings { beta2: 0.9, eps: 1e-3, ..adam };
    check_gan_with("gan-cosine", gan, OptimizerSettings { adam, lr, beta2, ..OptimizerSettings::default() });
}

#[test]
fn dcgan_updates_as_in_pytorch() {
    let nets = [Activation::Relu, Activation::LeakyRelu].map(|activation| net(Arch::Conv, &[], 3, activation, true));
    let spec = GanSpec::new(shape(3, 16, 16), 5, nets, GanLoss::NonSaturating);
    check_gan("gan-conv", spec, AdamSettings { lr: 2e-4, beta1: 0.5, beta2: 0.999, ..AdamSettings::default() });
}

/// The moving average against its recurrence, with decays as the formulas say; running statistics are averaged as weights are.
#[test]
fn the_shown_generator_is_the_moving_average() {
    follows(Decay::Fixed(0.4), |t| f64::min(0.4, (1.0 + t) / (10.0 + t)));
    // The half-life has risen after 40 images, 10 updates.
    let half_life = Decay::HalfLife { images: 2.0, batch: 4.0 };
    follows(half_life, |t| 0.5f64.powf(4.0 / f64::min(2.0, 0.05 * 4.0 * t)));
}

fn follows(ema: Decay, decay: fn(f64) -> f64) {
    let mut spec = mlp_gan(GanLoss::NonSaturating, Activation::LeakyRelu);
    spec.ema = Some(ema);
    spec.shape = shape(1, 8, 8);
    spec.generator = net(Arch::Conv, &[5], 2, Activation::Relu, true);
    let hyper = AdamSettings { lr: 0.05, beta1: 0.5, beta2: 0.9, ..AdamSettings::default() };
    tch::manual_seed(4);
    let mut gan =
        Gan::new(spec, OptimizerSettings { adam: hyper, ..OptimizerSettings::default() }, Device::Cpu).unwrap();
    let weights = |gan: &mut Gan| {
        let mut state = Collect::default();
        gan.visit(&mut state).unwrap();
        state.0
    };
    let names = ["generator.convt1.weight", "generator.bn0.running_mean", "generator.bn0.weight"];
    let start = weights(&mut gan);
    let mut want: Vec<_> = names.iter().map(|name| start[*name].to_kind(Kind::Double)).collect();
    for t in 0..12u64 {
        let x = Tensor::rand([4, 1, 8, 8], (Kind::Float, Device::Cpu));
        let z = Tensor::randn([4, 4], (Kind::Float, Device::Cpu));
        gan.schedule(t).unwrap();
        let noise = StepNoise { z, penalty: Draws::default(), augment: None };
        gan.update(&Batch { x, labels: None }, &noise, cx(), |adam, loss| adam.minimise(loss, cx())).unwrap();
        let now = weights(&mut gan);
        let decay = decay(t as f64);
        for (name, want) in names.iter().zip(&mut want) {
            *want = &*want * decay + now[*name].to_kind(Kind::Double) * (1.0 - decay);
            let shown = &now[&format!("ema.{name}")];
            close(&format!("average of {name} after update {t}"), shown, want, 1e-5, 1e-6);
            let own = now[*name].allclose(shown, 1e-4, 1e-5, false);
            assert!(decay < 0.05 || !own, "{name} is still the network's own");
        }
    }
}

/// The generator's update leaves the discriminator as it is, and nobody keeps a gradient.
#[test]
fn each_player_updates_itself_alone() {
    let spec = mlp_gan(GanLoss::NonSaturating, Activation::LeakyRelu);
    tch::manual_seed(5);
    let mut gan = Gan::new(spec, OptimizerSettings::default(), Device::Cpu).unwrap();
    let state = |gan: &mut Gan| {
        let mut state = Collect::default();
        gan.visit(&mut state).unwrap();
        state.0
    };
    let (x, z) =
        (Tensor::rand([4, 1, 6, 5], (Kind::Float, Device::Cpu)), Tensor::randn([4, 4], (Kind::Float, Device::Cpu)));
    let before = state(&mut gan);
    let mut calls = 0;
    // Only the second of the two updates, the generator's, is carried out.
    let noise = StepNoise { z, penalty: Draws::default(), augment: None };
    let batch = Batch { x, labels: None };
    gan.update(&batch, &noise, cx(), |adam, loss| {
        calls += 1;
        if calls == 2 { adam.minimise(loss, cx()) } else { Ok(()) }
    })
    .unwrap();
    let after = state(&mut gan);
    assert_eq!(calls, 2);
    for (name, old) in &before {
        let moved = old != &after[name];
        assert_eq!(moved, name.starts_with("generator."), "{name}");
    }
    for adam in gan.optimizers() {
        assert!(adam.params().iter().all(|p| !p.grad().defined()));
    }
}

/// Values and gradients of each augmentation alone and of all in turn, by the same uniform numbers.
#[test]
fn augmented_images_and_their_gradients_are_those_of_diffaugment() {
    let mut compared = 0;
    for case in ["augment-colour", "augment-alpha", "augment-grey"] {
        let golden = golden(case);
        let of = golden["x"].size();
        for (key, want) in &golden {
            let Some((list, p)) = key.strip_prefix("y.").and_then(|key| key.split_once('@')) else { continue };
            let list = list.split(',').map(|name| Augmentation::from_str(name, false).unwrap()).collect();
            let spec = AugmentSpec { list, p: ApplyProbability::Fixed(p.parse().unwrap()) };
            let augmenter = Augmenter::new(spec, shape(of[1], of[2], of[3]), Device::Cpu).unwrap();
            let x = golden["x"].copy().set_requires_grad(true);
            let y = augmenter.apply(&x, &golden["uniform"]).unwrap();
            close(&format!("{case}: {key}"), &y, want, 1e-5, 1e-6);
            let grads = Tensor::run_backward(&[(y * &golden["weight"]).sum(Kind::Float)], &[&x], false, false);
            let (grad, most) = (key.replacen('y', "grad", 1), golden["weight"].abs().max().double_value(&[]));
            close(&format!("{case}: {grad}"), &grads[0], &golden[&grad], 1e-5, 2e-6 * most);
            compared += 1;
        }
    }
    assert_eq!(compared, 9 + 9 + 7);
}
