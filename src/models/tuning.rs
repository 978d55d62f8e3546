//! Autotuning: times the variants of the training step and chooses the fastest.
//!
//! Layout, number of threads and matmul backend change the speed several-fold in either direction, depending on processor and sizes.
//! All variants give the same numbers to rounding; the choice is stored with the run.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::Device;

use super::noise::Noise;
use super::{Model, StepContext};
use crate::base::batch::Batch;
use crate::base::process;
use crate::base::setting::{Group, Setting, Settings, choice_name as name, choice_names};
use crate::base::timer::StepTimer;
use crate::base::usage::usage;
use crate::native;
use crate::nets::{Compute, Kernels, Layout, MatmulBackend, Precision};

/// Number of threads and compute options of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tuning {
    /// CPU threads of one operation.
    pub threads: u32,
    /// Compute options of the layers.
    #[serde(flatten)]
    pub compute: Compute,
}

impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Compute { matmul, layout, kernels, precision: _ } = self.compute;
        let [matmul, layout, kernels] = [name(&matmul), name(&layout), name(&kernels)];
        write!(f, "threads={},products={matmul},layout={layout},kernels={kernels}", self.threads)
    }
}

impl Tuning {
    /// Applies it: threads to the process, compute options to the model.
    ///
    /// # Errors
    /// libtorch's, when out of memory; when the system does not allow that many threads.
    pub fn apply(self, model: &mut dyn Model) -> Result<()> {
        process::check_threads(self.threads as usize)?;
        tch::set_num_threads(self.threads as i32);
        model.set_compute(self.compute)
    }
}

/// The request: which keys are fixed, and whether the others are measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Whether keys that are not fixed are measured.
    pub measure: bool,
    /// Whether every start must give the same bits ([`MatmulBackend::is_deterministic`]).
    pub deterministic: bool,
    /// Fixed number of threads.
    pub threads: Option<u32>,
    /// Fixed matmul backend.
    pub matmul: Option<MatmulBackend>,
    /// Fixed layout.
    pub layout: Option<Layout>,
    /// Fixed kernels.
    pub kernels: Option<Kernels>,
    /// Precision of the layers.
    pub precision: Precision,
    /// Whether steps on a GPU run as a CUDA graph.
    pub captured: bool,
}

/// Which variants of the step are measured at the start.
pub static TUNE: Setting<String> = Setting::text(
    "tune",
    "auto (time the variants of the step for about a second), off, or KEY=VALUE,... of threads, products (the matmul backend), layout, \
     kernels [default: auto]",
)
.value_name("HOW");

/// See [`Plan::deterministic`].
pub static DETERMINISTIC: Setting<bool> =
    Setting::switch("deterministic", "The same seed gives the same bits on every start: nothing is autotuned")
        .default("false", "it is slower")
        .value_name("BOOL");

/// See [`Plan::threads`].
pub static THREADS: Setting<u64> = Setting::whole("threads", "CPU threads [default: chosen by --tune]")
    .range("from 1 to 1024", |n| (1..=1024).contains(n))
    .value_name("THREADS")
    .may_change_on_resume();

/// How a step is computed.
pub static SETTINGS: Group = Group { heading: "Speed", settings: &[&TUNE, &DETERMINISTIC, &THREADS] };

impl Plan {
    /// From `--tune`, `--threads` and `--deterministic`.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] if they contradict each other.
    pub fn from_settings(s: &Settings) -> Result<Self> {
        let (tune, threads) = (s.given(&TUNE), s.given(&THREADS).map(|n| n as u32));
        let text = tune.as_deref().unwrap_or("auto");
        let mut plan = match Plan::parse(text) {
            Ok(plan) => plan,
            Err(e) => usage!("--tune {text}: {e}"),
        };
        if let (Some(a), Some(b)) = (plan.threads, threads)
            && a != b
        {
            usage!("--tune threads={a} contradicts --threads {b}: leave one of the two out");
        }
        plan.threads = plan.threads.or(threads);
        if s.get(&DETERMINISTIC)? {
            if tune.as_deref().is_some_and(|t| t.split(',').any(|part| part.trim() == "auto")) {
                usage!("--tune auto contradicts --deterministic: timings may differ from one start to the next");
            }
            if plan.matmul.is_some_and(|p| !p.is_deterministic()) && plan.threads != Some(1) {
                usage!(
                    "--tune {text} contradicts --deterministic: with several threads products=blas does not round alike on every \
                     start: leave it out, or add --threads 1"
                );
            }
            plan.measure = false;
            plan.deterministic = true;
        }
        Ok(plan)
    }

    /// `auto`, `off`, or KEY=VALUE pairs, separated by commas; all other keys are measured, unless `off` is given.
    ///
    /// # Errors
    /// One sentence that names the invalid part.
    pub fn parse(text: &str) -> Result<Self> {
        let mut plan = Plan { measure: true, ..Plan::default() };
        for part in text.split(',').map(str::trim) {
            match part.split_once('=') {
                None if part == "auto" => {}
                None if part == "off" => plan.measure = false,
                Some(("threads", n)) => plan.threads = Some(threads(n)?),
                Some(("products", v)) => plan.matmul = Some(choice("products", v)?),
                Some(("layout", v)) => plan.layout = Some(choice("layout", v)?),
                Some(("kernels", v)) => plan.kernels = Some(choice("kernels", v)?),
                _ => bail!(
                    "{part:?} is none of auto, off, threads=N, products={}, layout={}, kernels={}",
                    choice_names::<MatmulBackend>(),
                    choice_names::<Layout>(),
                    choice_names::<Kernels>()
                ),
            }
        }
        Ok(plan)
    }

    /// Start of the search, and the choice if nothing is measured: the fixed keys, else all threads and the options that are fastest on
    /// most processors. The same on every start.
    pub fn first(&self, device: Device) -> Tuning {
        let usual = match device {
            Device::Cpu => {
                let matmul = MatmulBackend::BySize;
                Compute { matmul, layout: Layout::ChannelsLast, kernels: Kernels::Own, precision: self.precision }
            }
            // Tensor cores read channels-last; the layout does not affect MLPs.
            _ => Compute { layout: Layout::ChannelsLast, precision: self.precision, ..Compute::default() },
        };
        Tuning {
            threads: self.threads.unwrap_or_else(cores),
            compute: Compute {
                matmul: self.matmul.unwrap_or(usual.matmul),
                layout: self.layout.unwrap_or(usual.layout),
                kernels: self.kernels.unwrap_or(usual.kernels),
                ..usual
            },
        }
    }

    /// All choices that differ from `now` in one key, among the keys open on this device.
    fn neighbours(&self, now: Tuning, device: Device, convolutions: bool) -> Vec<Tuning> {
        // On a GPU only the layout is open.
        let cpu = device == Device::Cpu;
        let mut all = Vec::new();
        let mut add = |open: bool, changed: Tuning| {
            if open && changed != now && !all.contains(&changed) {
                all.push(changed);
            }
        };
        let compute = now.compute;
        for &matmul in MatmulBackend::value_variants() {
            add(cpu && self.matmul.is_none(), Tuning { compute: Compute { matmul, ..compute }, ..now });
        }
        for &layout in Layout::value_variants() {
            add(self.layout.is_none() && convolutions, Tuning { compute: Compute { layout, ..compute }, ..now });
        }
        for &kernels in Kernels::value_variants() {
            add(cpu && self.kernels.is_none(), Tuning { compute: Compute { kernels, ..compute }, ..now });
        }
        // All, half, and one: the step time changes smoothly in between.
        for threads in [cores().div_ceil(2), 1] {
            add(cpu && self.threads.is_none() && threads < now.threads, Tuning { threads, ..now });
        }
        all
    }
}

fn cores() -> u32 {
    process::threads() as u32
}

fn threads(text: &str) -> Result<u32> {
    match text.parse() {
        Ok(n) if (1..=1024).contains(&n) => Ok(n),
        _ => bail!("threads={text}: wanted a whole number from 1 to 1024"),
    }
}

fn choice<T: ValueEnum>(key: &str, text: &str) -> Result<T> {
    match T::from_str(text, false) {
        Ok(value) => Ok(value),
        Err(_) => bail!("{key}={text}: wanted {}", choice_names::<T>()),
    }
}

/// A choice and its source.
#[derive(Clone, Copy, Debug)]
pub struct Chosen {
    /// The choice.
    pub tuning: Tuning,
    /// Its source.
    pub source: TuningSource,
}

/// Source of a choice.
#[derive(Clone, Copy, Debug)]
pub enum TuningSource {
    /// Not measured: fixed keys and defaults.
    Unmeasured,
    /// Stored in a run that is resumed.
    Stored,
    /// The fastest of several.
    Measured {
        /// Milliseconds per step.
        ms: f64,
        /// Number of measured choices.
        of: usize,
        /// Seconds of all measurements.
        seconds: f64,
    },
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.source {
            TuningSource::Measured { ms, of, seconds } => {
                write!(f, "tuned {} ({ms:.3} ms a step, the best of {of} in {seconds:.1} s)", self.tuning)
            }
            TuningSource::Stored => write!(f, "as the run began: {}", self.tuning),
            TuningSource::Unmeasured => write!(f, "not tuned: {}", self.tuning),
        }
    }
}

/// Maximum share of a run's expected time spent on measuring.
const SHARE: f64 = 0.05;
/// Target seconds of all measurements.
const BUDGET_S: f64 = 1.0;
/// Milliseconds per step above which one thread is never the fastest.
const SLOW_MS: f64 = 20.0;
/// A run of fewer steps is not tuned.
const SHORT: u64 = 100;

/// Chooses the tuning of a run of `steps` updates. `build` makes a temporary model to measure on; `batch` is a batch of the run.
/// `convolutions` says whether the layout matters.
///
/// A run too short to gain from measuring gets [`Plan::first`].
///
/// # Errors
/// Those of a step.
pub fn choose(
    plan: &Plan,
    steps: u64,
    convolutions: bool,
    batch: &Batch,
    build: impl FnOnce() -> Result<Box<dyn Model>>,
) -> Result<Chosen> {
    let device = batch.x.device();
    let first = plan.first(device);
    let unmeasured = Chosen { tuning: first, source: TuningSource::Unmeasured };
    let open = plan.neighbours(first, device, convolutions);
    if !plan.measure || steps < SHORT || open.is_empty() {
        return Ok(unmeasured);
    }
    let began = Instant::now();
    let mut model = build()?;
    let slice = Duration::from_secs_f64(BUDGET_S / 12.0);
    let mut time = |tuning: Tuning, best_ms| {
        // Each variant fragments the heap; together they would raise the run's peak memory.
        native::release_free_memory(device)?;
        tuning.apply(model.as_mut())?;
        match device {
            Device::Cpu => time(model.as_mut(), batch, slice, best_ms),
            _ => time_on_gpu(model.as_mut(), batch, slice, plan.captured),
        }
    };
    if device == Device::Cpu {
        // Warm-up: a new process is slow for a few steps.
        time(first, f64::INFINITY)?;
    }
    let Some(mut best_ms) = time(first, f64::INFINITY)? else { return Ok(unmeasured) };
    let mut best = first;
    let mut measured = 1;
    // Each variant takes at least two steps, on a GPU a dozen, and as many again if it wins.
    let least = if device == Device::Cpu { 3.0 } else { 20.0 };
    let cost_s = BUDGET_S.max(least * open.len() as f64 * best_ms / 1e3);
    if best_ms * steps as f64 / 1e3 * SHARE < cost_s {
        return Ok(unmeasured);
    }
    for change in open {
        // One thread only helps when operations end before a second thread has woken up.
        if change.threads == 1 && first.threads != 1 && best_ms > SLOW_MS {
            continue;
        }
        // The changed key of the neighbour, the others from the best so far.
        let candidate = merge(best, first, change);
        measured += 1;
        let Some(ms) = time(candidate, best_ms)? else { continue };
        // Smaller gains are noise. Time the best again: it may have become faster since.
        if ms < 0.97 * best_ms {
            let again = time(best, f64::INFINITY)?.unwrap_or(best_ms);
            best_ms = best_ms.min(again);
            if ms < 0.97 * best_ms {
                (best, best_ms) = (candidate, ms);
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok(Chosen { tuning: best, source: TuningSource::Measured { ms: best_ms, of: measured, seconds } })
}

/// `best` with the one key in which `change` differs from `first`.
fn merge(best: Tuning, first: Tuning, change: Tuning) -> Tuning {
    fn pick<T: PartialEq>(best: T, first: T, change: T) -> T {
        if change == first { best } else { change }
    }
    let (b, f, c) = (best.compute, first.compute, change.compute);
    Tuning {
        threads: pick(best.threads, first.threads, change.threads),
        compute: Compute {
            matmul: pick(b.matmul, f.matmul, c.matmul),
            layout: pick(b.layout, f.layout, c.layout),
            kernels: pick(b.kernels, f.kernels, c.kernels),
            ..b
        },
    }
}

/// Milliseconds of the fastest of a few steps after a warm-up step; none if the warm-up takes more than 3·`best_ms` + 50.
fn time(model: &mut dyn Model, batch: &Batch, slice: Duration, best_ms: f64) -> Result<Option<f64>> {
    let timer = StepTimer::off();
    let mut step = || -> Result<f64> {
        let began = Instant::now();
        let noise = Noise::new(0, batch.x.device());
        let values = model.step(batch, StepContext { noise: &noise, timer: &timer, on_device: false })?;
        // sync: no wait on a CPU; reading the value keeps the step from being optimised away.
        values.f_double_value(&[0])?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    };
    if step()? > 3.0 * best_ms + 50.0 {
        return Ok(None);
    }
    let began = Instant::now();
    let mut least = f64::INFINITY;
    while least.is_infinite() || began.elapsed() < slice {
        least = least.min(step()?);
    }
    Ok(Some(least))
}

/// Milliseconds per step by CUDA events, run as in training: as a CUDA graph if steps are captured, else operation by operation. None
/// if the variant runs out of memory.
fn time_on_gpu(model: &mut dyn Model, batch: &Batch, slice: Duration, captured: bool) -> Result<Option<f64>> {
    let (cuda, timer) = (native::cuda()?, StepTimer::off());
    let noise = Noise::in_buffers(batch.x.device());
    let mut once = || {
        noise.again();
        model.step(batch, StepContext { noise: &noise, timer: &timer, on_device: true }).map(drop)
    };
    for _ in 0..native::WARM_UP {
        match once() {
            Err(e) if format!("{e:#}").contains("CUDA out of memory") => return Ok(None),
            made => made?,
        }
    }
    let graph = if captured { Some(cuda.capture_step(&mut once)?) } else { None };
    let mut mean = |steps: u32| -> Result<f64> {
        let began = cuda.record()?;
        for _ in 0..steps {
            match &graph {
                Some(graph) => graph.replay()?,
                None => once()?,
            }
        }
        Ok(began.ms_until(&cuda.record()?)? / f64::from(steps))
    };
    // The first replay also uploads the graph.
    mean(1)?;
    let about_ms = mean(native::WARM_UP)?;
    mean((slice.as_secs_f64() * 1e3 / about_ms).clamp(5.0, 1000.0) as u32).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::scalar::Scalar;
    use crate::models::network::Network;
    use crate::models::optimizer::Adam;
    use crate::nets::cost::Work;
    use crate::nets::graph::{Init, Port};
    use tch::Tensor;

    #[test]
    fn tune_is_parsed_or_refused() {
        let auto = Plan { measure: true, ..Plan::default() };
        assert_eq!(Plan::parse("auto").unwrap(), auto);
        assert_eq!(Plan::parse("off").unwrap(), Plan::default());
        assert_eq!(
            Plan::parse("off,threads=3, layout=channels-last").unwrap(),
            Plan { threads: Some(3), layout: Some(Layout::ChannelsLast), ..Plan::default() }
        );
        assert_eq!(Plan::parse("products=blas").unwrap(), Plan { matmul: Some(MatmulBackend::Blas), ..auto });
        for (text, part) in [
            ("fast", "\"fast\" is none of auto, off, threads=N"),
            ("", "is none of"),
            ("threads=0", "from 1 to 1024"),
            ("threads=x", "from 1 to 1024"),
            ("layout=nhwc", "layout=nhwc: wanted contiguous or channels-last"),
            ("colour=red", "is none of"),
        ] {
            let e = Plan::parse(text).unwrap_err().to_string();
            assert!(e.contains(part), "{text}: {e}");
        }
    }

    #[test]
    fn a_displayed_choice_parses_to_itself() {
        let first = Plan::default().first(Device::Cpu);
        let plan = Plan::parse(&format!("off,{first}")).unwrap();
        assert_eq!(plan.first(Device::Cpu), first);
        assert!(plan.neighbours(first, Device::Cpu, true).is_empty(), "nothing is left open");
    }

    #[test]
    fn neighbours_differ_in_one_open_key() {
        let plan = Plan { measure: true, threads: Some(4), ..Plan::default() };
        let first = plan.first(Device::Cpu);
        let all = plan.neighbours(first, Device::Cpu, true);
        assert_eq!(all.len(), 3);
        assert!(all.iter().all(|t| t.threads == 4));
        assert_eq!(plan.neighbours(first, Device::Cpu, false).len(), 2, "no layout without convolutions");
        let better = Tuning { compute: Compute { layout: Layout::Contiguous, ..first.compute }, ..first };
        let merged = merge(better, first, Tuning { threads: 1, ..first });
        assert_eq!(merged, Tuning { threads: 1, ..better });
    }

    #[test]
    fn on_a_gpu_only_the_layout_is_open() {
        let gpu = Device::Cuda(0);
        let plan = Plan { measure: true, precision: Precision::Bf16, ..Plan::default() };
        let first = plan.first(gpu);
        assert_eq!((first.compute.layout, first.compute.precision), (Layout::ChannelsLast, Precision::Bf16));
        let contiguous = Tuning { compute: Compute { layout: Layout::Contiguous, ..first.compute }, ..first };
        assert_eq!(plan.neighbours(first, gpu, true), [contiguous]);
        assert!(plan.neighbours(first, gpu, false).is_empty(), "an MLP has no layout");
        let fixed = Plan { layout: Some(Layout::Contiguous), ..plan };
        assert_eq!(fixed.first(gpu), contiguous);
        assert!(fixed.neighbours(contiguous, gpu, true).is_empty());
    }

    /// A model whose step takes a time that depends on its kernels.
    struct Timed(Network);

    impl Timed {
        fn new() -> Self {
            let (network, ()) = Network::new("n", Device::Cpu, Init::PyTorch, |b| {
                let x = b.input(Port::new("x", &[1], "numbers"))?;
                b.output(Port::new("y", &[1], "numbers"), x)
            })
            .unwrap();
            Timed(network)
        }
    }

    impl Model for Timed {
        fn step(&mut self, _: &Batch, _: StepContext) -> Result<Tensor> {
            let ms = if self.0.graph.compute.kernels == Kernels::Own { 40 } else { 15 };
            std::thread::sleep(Duration::from_millis(ms));
            Ok(Tensor::from_slice(&[0f32]))
        }
        fn score(&self, batch: &Batch, _: &Noise) -> Result<Tensor> {
            Ok(batch.x.shallow_clone())
        }
        fn scalars(&self) -> &[Scalar] {
            &[]
        }
        fn networks(&self) -> Vec<&Network> {
            vec![&self.0]
        }
        fn networks_mut(&mut self) -> Vec<&mut Network> {
            vec![&mut self.0]
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
    }

    #[test]
    fn the_fastest_variant_is_chosen_and_short_runs_are_not_tuned() {
        let before = tch::get_num_threads();
        let x = Tensor::zeros([1, 1, 1, 1], (tch::Kind::Float, Device::Cpu));
        let batch = Batch { x, labels: None };
        let plan = Plan { measure: true, threads: Some(before as u32), ..Plan::default() };
        let run = |plan: &Plan, steps| choose(plan, steps, true, &batch, || Ok(Box::new(Timed::new()))).unwrap();
        let chosen = run(&plan, 1_000_000);
        assert_eq!(chosen.tuning.compute.kernels, Kernels::Libtorch, "{chosen}");
        assert_eq!(chosen.tuning.compute.layout, Layout::ChannelsLast, "what is no faster stays");
        let TuningSource::Measured { ms, of: 4, .. } = chosen.source else { panic!("{chosen}") };
        assert!((14.0..30.0).contains(&ms), "{chosen}");
        for (plan, steps) in [(plan, 50), (plan, 300), (Plan { measure: false, ..plan }, 1_000_000)] {
            let chosen = run(&plan, steps);
            assert!(matches!(chosen.source, TuningSource::Unmeasured), "{chosen}");
            assert_eq!(chosen.tuning, plan.first(Device::Cpu));
        }
    }
}
