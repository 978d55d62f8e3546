//! The step that reads its changing numbers from the device, as a GPU captures and replays it, against the one that the host tells
//! them: both run here on the CPU, operation by operation. One test at a time draws from the global generator.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use ganvae::base::seed::{Stream, seed_for};
use ganvae::base::setting::Settings;
use ganvae::base::timer::StepTimer;
use ganvae::config::device::DEVICE;
use ganvae::config::training::{BATCH_SIZE, PRESET};
use ganvae::config::{self, Config};
use ganvae::data::{BALANCE, TEST_LIMIT, TRAIN_LIMIT};
use ganvae::models::augment::{AUGMENT, AUGMENT_P, ApplyProbability, Augmentation};
use ganvae::models::gan::{CONDITIONAL, D_LR, D_STEPS, DISCRIMINATOR_NORM, DiscriminatorNorm, EMA};
use ganvae::models::losses::adversarial::{GAN_LOSS, GanLoss};
use ganvae::models::losses::bound::{CAPACITY, IWAE, MMD, Z_SAMPLES};
use ganvae::models::losses::likelihood::bernoulli::{BINARIZE, Binarize};
use ganvae::models::losses::likelihood::gaussian::{SIGMA, Sigma};
use ganvae::models::losses::likelihood::{LIKELIHOOD, LikelihoodName};
use ganvae::models::losses::penalty::{GRADIENT_PENALTY, LECAM, R1, R1_END, R2};
use ganvae::models::optimizer::{ADAM_EPS, BETA2_END, CLIP_NORM, LR, LR_END, WEIGHT_DECAY};
use ganvae::models::schedule::{SCHEDULE, ScheduleKind};
use ganvae::models::tuning::TUNE;
use ganvae::models::vae::{BETA, DECODER_HIDDEN, ENCODER_HIDDEN, KL_WARMUP};
use ganvae::models::{ModelKind, Part, Visit};
use ganvae::native;
use ganvae::nets::BASE_WIDTH;
use ganvae::train::setup::Setup;
use ganvae::train::stepper::{AverageMeter, ExecutionMode, StepPosition, Stepper};
use tch::{Device, Kind, Tensor};

fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    tch::set_num_threads(1);
    guard
}

#[derive(Default)]
struct Collect(BTreeMap<String, Tensor>);

impl Visit for Collect {
    fn tensor(&mut self, _: Part, name: &str, t: &Tensor) -> Result<()> {
        self.0.insert(name.to_owned(), t.detach().copy());
        Ok(())
    }
}

/// 200 images in batches of 64: every fourth is one of 8.
fn config(kind: ModelKind, more: Settings) -> Config {
    let settings = more
        .with(&DEVICE, "cpu".into())
        .with(&TRAIN_LIMIT, 200)
        .with(&TEST_LIMIT, 10)
        .with(&BATCH_SIZE, 64)
        // One way to compute in both: they differ in where numbers come from alone.
        .with(&TUNE, "off,threads=1,products=blas,kernels=libtorch,layout=channels-last".into())
        .with(&LR, 1e-3)
        // Else a gradient that is nothing but rounding moves its weight by a whole step, this way or that.
        .with(&ADAM_EPS, 1e-4);
    config::resolve(kind, &settings).unwrap()
}

fn vae() -> Config {
    let more = Settings::default()
        .with(&ENCODER_HIDDEN, vec![32])
        .with(&DECODER_HIDDEN, vec![32])
        // 3.5 epochs of 4 steps: the weight is still rising after the third.
        .with(&KL_WARMUP, 3.5)
        .with(&BETA, 2.0)
        .with(&CLIP_NORM, 50.0);
    config(ModelKind::Vae, more)
}

fn gan() -> Config {
    config(ModelKind::Gan, Settings::default().with(&BASE_WIDTH, 4).with(&EMA, 0.9).with(&WEIGHT_DECAY, 0.01))
}

fn augmented_gan(p: ApplyProbability) -> Config {
    use Augmentation::{Colour, Cutout, Mirror, Shift, Turn};
    let more = Settings::default()
        .with(&BASE_WIDTH, 4)
        .with(&AUGMENT, vec![Colour, Mirror, Turn, Shift, Cutout])
        .with(&AUGMENT_P, p);
    config(ModelKind::Gan, more)
}

/// With every penalty that may be captured, a batch of its own for the generator's update, and classes in a balanced order.
fn penalised_gan() -> Config {
    let penalties = Settings::default().with(&R1, 0.5).with(&R2, 0.5).with(&GRADIENT_PENALTY, 0.1).with(&LECAM, 0.3);
    let spec = penalties.with(&DISCRIMINATOR_NORM, DiscriminatorNorm::None).with(&GAN_LOSS, GanLoss::Relativistic);
    let spec = spec.with(&BASE_WIDTH, 4).with(&D_LR, 2e-3).with(&LR_END, 1e-4).with(&R1_END, 0.05);
    let spec = spec.with(&CONDITIONAL, true).with(&BALANCE, true);
    let config = config(ModelKind::Gan, spec.with(&SCHEDULE, ScheduleKind::Linear));
    // Twice the images a step: two batches.
    assert_eq!((config.batch_size, config.cuda_graph), (128, true));
    config
}

/// Augmentation under penalties, several updates of the discriminator in a step.
fn augmented_and_penalised_gan() -> Config {
    let penalties = Settings::default().with(&R1, 0.5).with(&GRADIENT_PENALTY, 0.1).with(&D_STEPS, 2);
    let spec = penalties.with(&DISCRIMINATOR_NORM, DiscriminatorNorm::None).with(&BASE_WIDTH, 4);
    let augment = vec![Augmentation::Colour, Augmentation::Shift];
    config(ModelKind::Gan, spec.with(&AUGMENT, augment).with(&AUGMENT_P, ApplyProbability::Adaptive))
}

/// With a second decay that changes, which libtorch's fused Adam cannot read from the device.
fn scheduled_vae() -> Config {
    let more = Settings::default().with(&ENCODER_HIDDEN, vec![32]).with(&DECODER_HIDDEN, vec![32]);
    config(ModelKind::Vae, more.with(&BETA2_END, 0.99).with(&LR_END, 2e-3).with(&WEIGHT_DECAY, 0.01))
}

/// A scheduled capacity with a σ of its own state; importance weights of binarised images; samples of the prior.
fn other_bounds() -> [Config; 3] {
    let small = || Settings::default().with(&ENCODER_HIDDEN, vec![32]).with(&DECODER_HIDDEN, vec![32]);
    let gaussian = small().with(&PRESET, "conv-vae".into()).with(&BASE_WIDTH, 4).with(&SIGMA, Sigma::Optimal);
    [
        gaussian.with(&CAPACITY, 5.0).with(&BETA, 10.0).with(&KL_WARMUP, 3.5),
        small().with(&BINARIZE, Binarize::Dynamic).with(&IWAE, true).with(&Z_SAMPLES, 3),
        small().with(&LIKELIHOOD, LikelihoodName::Logistic).with(&MMD, 20.0),
    ]
    .map(|settings| config(ModelKind::Vae, settings))
}

fn all() -> Vec<Config> {
    let [fixed, adaptive] = [ApplyProbability::Fixed(0.5), ApplyProbability::Adaptive].map(augmented_gan);
    let others = [vae(), gan(), fixed, adaptive, penalised_gan(), augmented_and_penalised_gan(), scheduled_vae()];
    others.into_iter().chain(other_bounds()).collect()
}

struct Run {
    config: Config,
    setup: Setup,
    stepper: Stepper,
    meter: AverageMeter,
}

impl Run {
    fn new(config: &Config, mode: ExecutionMode) -> Self {
        let setup = Setup::new(config, None).unwrap();
        let meter = AverageMeter::new(setup.model.measured(), Device::Cpu);
        let stepper = Stepper::new(mode, &setup, config).unwrap();
        Run { config: config.clone(), setup, stepper, meter }
    }

    fn step(&mut self, step: u64) {
        let position = StepPosition::new(self.config.seed, step, self.setup.per_epoch);
        self.stepper.step(&mut self.setup, &mut self.meter, position, &StepTimer::off()).unwrap();
    }

    /// Another process goes on with the run: only the model and the meter are the same.
    fn restart(&mut self) {
        self.stepper = Stepper::new(ExecutionMode::Device, &self.setup, &self.config).unwrap();
    }

    /// Weights, moments, averages and counters, and the means of the step's values.
    fn state(&mut self) -> BTreeMap<String, Tensor> {
        let mut all = Collect::default();
        self.setup.model.visit(&mut all).unwrap();
        all.0.insert("values".into(), Tensor::from_slice(&self.meter.means().unwrap()));
        all.0
    }
}

/// Largest difference of two states, as a share of the larger of a tensor's largest magnitude and 1e-4, and where it is.
fn difference(got: &BTreeMap<String, Tensor>, want: &BTreeMap<String, Tensor>) -> (f64, String) {
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    let off = |name: &String| {
        let (got, want) = (got[name].to_kind(Kind::Double), want[name].to_kind(Kind::Double));
        let most = want.abs().max().double_value(&[]).max(1e-4);
        ((got - want).abs().max().double_value(&[]) / most, name.clone())
    };
    want.keys().map(off).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

/// Steps before rounding that turns a ReLU at its edge has been seen to grow beyond rounding: they cross a partial batch and an epoch.
const EXACT: u64 = 6;

#[test]
fn numbers_on_the_device_give_the_same_training() {
    let _alone = alone();
    for config in all() {
        let (mut host, mut there) = (Run::new(&config, ExecutionMode::Host), Run::new(&config, ExecutionMode::Device));
        assert_eq!(host.setup.per_epoch, 200_u64.div_ceil(config.batch_size as u64));
        // Two players amplify the rounding of one step in the next, their moments the most.
        let later = if config.model == ModelKind::Vae { (1e-5, 1e-4) } else { (5e-2, f64::INFINITY) };
        for step in 0..20 {
            host.step(step);
            there.step(step);
            let (of_values, of_state) = if step < EXACT { (1e-5, 1e-4) } else { later };
            let (off, name) = difference(&there.state(), &host.state());
            assert!(off < of_state, "{}, step {step}: {name} is off by {off}", config.model);
            let values = [&mut host, &mut there].map(|run| {
                let means = run.meter.means().unwrap();
                run.meter.reset().unwrap();
                means
            });
            for (a, b) in values[0].iter().zip(&values[1]) {
                assert!((a - b).abs() <= of_values * a.abs().max(0.1), "{}, step {step}: {values:?}", config.model);
            }
        }
    }
}

/// A run that goes on at any step, as after a checkpoint, is the run that never stopped.
#[test]
fn numbers_on_the_device_follow_a_resumed_run() {
    let _alone = alone();
    for config in all() {
        let mut whole = Run::new(&config, ExecutionMode::Device);
        (0..11).for_each(|step| whole.step(step));
        let mut parts = Run::new(&config, ExecutionMode::Device);
        (0..6).for_each(|step| parts.step(step));
        parts.restart();
        (6..11).for_each(|step| parts.step(step));
        assert_eq!(difference(&parts.state(), &whole.state()).0, 0.0);
    }
}

/// Noise of a seed's own is that of the global generator after the same seed, which stays as it was.
#[test]
fn numbers_of_a_seed_leave_the_global_generator_alone() -> Result<()> {
    let _alone = alone();
    let global = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    tch::manual_seed(7);
    let (want, next) = (global(&[5, 30]), global(&[4]));
    tch::manual_seed(7);
    assert_eq!(native::randn(7, &[5, 30])?, want);
    assert_ne!(native::randn(8, &[5, 30])?, want);
    assert_eq!(native::seeded(7, || Ok(global(&[5, 30])))?, want);
    let uniform = native::seeded(7, || Ok(Tensor::rand([5, 30], (Kind::Float, Device::Cpu))))?;
    assert_eq!(native::random(7, &[5, 30], native::Distribution::Uniform)?, uniform);
    assert!(native::seeded(1, || -> Result<()> { anyhow::bail!("no") }).is_err());
    assert_eq!(global(&[5, 30]), want, "the global generator has not moved");
    let _between = native::seeded(9, || Ok(global(&[100])))?;
    assert_eq!(global(&[4]), next, "work inside leaves what follows as it was");
    Ok(())
}

/// Noise is that of the seed: another for each step, the same for the same step.
#[test]
fn each_step_draws_its_own_noise() {
    let _alone = alone();
    let draw = |step: u64| {
        native::seed_default(Device::Cpu, seed_for(1, 0, Stream::Noise, step)).unwrap();
        Tensor::randn([50], (Kind::Float, Device::Cpu))
    };
    assert_eq!(draw(3), draw(3));
    assert_ne!(draw(3), draw(4));
    assert_eq!(draw(3), native::randn(seed_for(1, 0, Stream::Noise, 3), &[50]).unwrap());
}

/// Operations that give the host a number of the device's, or depend on one: none may be captured.
const READS: &[&str] = &[
    "aten::item",
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::equal",
    "aten::masked_select",
    "aten::_unique2",
    "aten::allclose",
    "aten::lift_fresh",
];

#[test]
fn a_step_that_may_be_captured_reads_nothing_back() {
    let _alone = alone();
    for config in all() {
        let mut run = Run::new(&config, ExecutionMode::Device);
        run.step(0);
        let ops = native::operations_of(|| {
            run.step(1);
            Ok(())
        })
        .unwrap();
        let count = |wanted: &[&str]| ops.iter().filter(|op| wanted.contains(&op.as_str())).count();
        let updates = count(&["aten::_fused_adam_", "aten::_fused_adamw_"]);
        let wanted = match config.model {
            ModelKind::Vae => usize::from(config.settings.given(&BETA2_END).is_none()),
            ModelKind::Gan => config.settings.get(&D_STEPS).unwrap() as usize + 1,
        };
        assert_eq!(updates, wanted, "{ops:?}");
        assert!(ops.len() > 50 && count(&["aten::linear"]) > 0, "{ops:?}");
        // On the CPU, and only there, libtorch's fused Adam reads the step size, and the counter for each parameter: each read is
        // recorded twice, as a call and as its kernel.
        let state = run.state();
        let moments = state.keys().filter(|name| name.ends_with(".exp_avg"));
        let of_vae = if config.model == ModelKind::Vae { wanted } else { 1 };
        let params: usize =
            moments.map(|name| if name.starts_with("discriminator") { wanted - 1 } else { of_vae }).sum();
        let reads: Vec<_> = ops.iter().filter(|op| READS.contains(&op.as_str())).collect();
        assert_eq!(reads.len(), 2 * (params + updates), "{reads:?}");
    }
    let read = native::operations_of(|| {
        let _ = Tensor::from_slice(&[1f32]).double_value(&[0]);
        Ok(())
    });
    assert!(read.unwrap().iter().any(|op| READS.contains(&op.as_str())), "the recorder sees a read");
}
