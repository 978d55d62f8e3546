//! Which of the equivalent forms of a step is the fastest here: measured on the real step.
//!
//! Contiguous and channels-last, one thread and all, libtorch's BLAS and oneDNN differ several-fold either way, depending on
//! processor and sizes. Every form gives the same numbers to rounding; the choice is stored with the run.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::Device;

use super::noise::Noise;
use super::{Model, StepContext};
use crate::base::batch::Batch;
use crate::base::setting::{Group, Setting, Settings, choice_name as name, choice_names};
use crate::base::timer::StepTimer;
use crate::base::usage::usage;
use crate::native;
use crate::nets::{Compute, Kernels, Layout, MatmulBackend, Precision};

/// What a run computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tuning {
    /// CPU threads of one operation.
    pub threads: u32,
    /// Compute of the layers.
    #[serde(flatten)]
    pub compute: Compute,
}

impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Compute { products, layout, kernels, precision: _ } = self.compute;
        let [products, layout, kernels] = [name(&products), name(&layout), name(&kernels)];
        write!(f, "threads={},products={products},layout={layout},kernels={kernels}", self.threads)
    }
}

impl Tuning {
    /// Takes effect: threads for the process, forms for the model.
    ///
    /// # Errors
    /// libtorch's, when memory ends.
    pub fn apply(self, model: &mut dyn Model) -> Result<()> {
        tch::set_num_threads(self.threads as i32);
        model.set_compute(self.compute)
    }
}

/// What was asked for: which keys are fixed, and whether the others are measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Whether keys that are not fixed are measured.
    pub measure: bool,
    /// Whether every start must give the same bits ([`MatmulBackend::rounds_alike`]).
    pub deterministic: bool,
    /// Fixed number of threads.
    pub threads: Option<u32>,
    /// Fixed products.
    pub products: Option<MatmulBackend>,
    /// Fixed layout.
    pub layout: Option<Layout>,
    /// Fixed kernels.
    pub kernels: Option<Kernels>,
    /// What the layers are computed in.
    pub precision: Precision,
    /// Whether steps on a GPU run as one captured launch.
    pub captured: bool,
}

/// What is measured at the start.
pub static TUNE: Setting<String> = Setting::text(
    "tune",
    "auto (time the forms of a step for about a second), off, or KEY=VALUE,... of threads, products, layout, kernels [default: auto]",
)
.value_name("HOW");

/// See [`Plan::deterministic`].
pub static DETERMINISTIC: Setting<bool> =
    Setting::switch("deterministic", "One seed gives the same bits on every start: nothing is chosen by the clock")
        .default("false", "it is slower")
        .value_name("BOOL");

/// See [`Plan::threads`].
pub static THREADS: Setting<u64> = Setting::whole("threads", "CPU threads [default: chosen by --tune]")
    .range("from 1 to 1024", |n| (1..=1024).contains(n))
    .may_change_on_resume();

/// How a step is computed.
pub static SETTINGS: Group = Group { heading: "Speed", settings: &[&TUNE, &DETERMINISTIC, &THREADS] };

impl Plan {
    /// What `--tune`, `--threads` and `--deterministic` ask for together.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] where they contradict each other.
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
                usage!(
                    "--tune auto contradicts --deterministic: what is measured may differ from one start to the next"
                );
            }
            if plan.products.is_some_and(|p| !p.rounds_alike()) && plan.threads != Some(1) {
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

    /// `auto`, `off`, or KEY=VALUE pairs, separated by commas; keys that are not named are measured, unless `off` is among
    /// them.
    ///
    /// # Errors
    /// One sentence that names the part that is none of these.
    pub fn parse(text: &str) -> Result<Self> {
        let mut plan = Plan { measure: true, ..Plan::default() };
        for part in text.split(',').map(str::trim) {
            match part.split_once('=') {
                None if part == "auto" => {}
                None if part == "off" => plan.measure = false,
                Some(("threads", n)) => plan.threads = Some(threads(n)?),
                Some(("products", v)) => plan.products = Some(choice("products", v)?),
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

    /// Where the search starts, and what is used when nothing is measured: all threads and the forms that are the fastest on
    /// most processors, with what is fixed put in. The same on every start.
    pub fn first(&self, device: Device) -> Tuning {
        let usual = match device {
            Device::Cpu => {
                let products = MatmulBackend::BySize;
                Compute { products, layout: Layout::ChannelsLast, kernels: Kernels::Own, precision: self.precision }
            }
            // Tensor cores read channels side by side; MLPs have no layout.
            _ => Compute { layout: Layout::ChannelsLast, precision: self.precision, ..Compute::default() },
        };
        Tuning {
            threads: self.threads.unwrap_or_else(cores),
            compute: Compute {
                products: self.products.unwrap_or(usual.products),
                layout: self.layout.unwrap_or(usual.layout),
                kernels: self.kernels.unwrap_or(usual.kernels),
                ..usual
            },
        }
    }

    /// The choices beside `now` that are open on this device, each one key away from it.
    fn neighbours(&self, now: Tuning, device: Device, convolutions: bool) -> Vec<Tuning> {
        // A GPU knows layouts alone.
        let cpu = device == Device::Cpu;
        let mut all = Vec::new();
        let mut add = |open: bool, changed: Tuning| {
            if open && changed != now && !all.contains(&changed) {
                all.push(changed);
            }
        };
        let compute = now.compute;
        for &products in MatmulBackend::value_variants() {
            add(cpu && self.products.is_none(), Tuning { compute: Compute { products, ..compute }, ..now });
        }
        for &layout in Layout::value_variants() {
            add(self.layout.is_none() && convolutions, Tuning { compute: Compute { layout, ..compute }, ..now });
        }
        for &kernels in Kernels::value_variants() {
            add(cpu && self.kernels.is_none(), Tuning { compute: Compute { kernels, ..compute }, ..now });
        }
        // All, a half, and one: between those, the step's time changes smoothly.
        for threads in [cores().div_ceil(2), 1] {
            add(cpu && self.threads.is_none() && threads < now.threads, Tuning { threads, ..now });
        }
        all
    }
}

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
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

/// A choice, and how it came about.
#[derive(Clone, Copy, Debug)]
pub struct Chosen {
    /// What to compute with.
    pub tuning: Tuning,
    /// Why.
    pub source: TuningSource,
}

/// How a choice came about.
#[derive(Clone, Copy, Debug)]
pub enum TuningSource {
    /// Nothing was measured: as asked for, or the usual.
    Unmeasured,
    /// A run began with it and goes on with it.
    Stored,
    /// The fastest of several.
    Measured {
        /// Milliseconds of a step so.
        ms: f64,
        /// How many choices were measured.
        of: usize,
        /// Seconds that it all took.
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

/// Share of a run's expected time that may go into measuring.
const SHARE: f64 = 0.05;
/// Seconds that all measuring together should take.
const BUDGET_S: f64 = 1.0;
/// Milliseconds of a step that one thread cannot be the fastest for.
const SLOW_MS: f64 = 20.0;
/// Steps of a run that is too short to measure anything for.
const SHORT: u64 = 100;

/// Chooses what a run of `steps` updates computes with. `build` makes a model to measure on, which is thrown away; `batch` is one of the
/// run's. `convolutions` says whether the layout matters.
///
/// A run that would be over before measuring paid gets [`Plan::first`].
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
        // Each form leaves holes of its own in the heap; together they would be the run's highest use of memory.
        native::release_free_memory(device)?;
        tuning.apply(model.as_mut())?;
        match device {
            Device::Cpu => time(model.as_mut(), batch, slice, best_ms),
            _ => time_on_gpu(model.as_mut(), batch, slice, plan.captured),
        }
    };
    if device == Device::Cpu {
        // Twice: a process that has just started is slow for a few steps.
        time(first, f64::INFINITY)?;
    }
    let Some(mut best_ms) = time(first, f64::INFINITY)? else { return Ok(unmeasured) };
    let mut best = first;
    let mut measured = 1;
    // Each form takes at least two steps, on a GPU a dozen, and as many again where it wins.
    let least = if device == Device::Cpu { 3.0 } else { 20.0 };
    let cost_s = BUDGET_S.max(least * open.len() as f64 * best_ms / 1e3);
    if best_ms * steps as f64 / 1e3 * SHARE < cost_s {
        return Ok(unmeasured);
    }
    for change in open {
        // One thread is for steps whose operations are over before a second has woken up.
        if change.threads == 1 && first.threads != 1 && best_ms > SLOW_MS {
            continue;
        }
        // One key of the neighbour, the others from the best so far.
        let candidate = merge(best, first, change);
        measured += 1;
        let Some(ms) = time(candidate, best_ms)? else { continue };
        // Less than that is noise; and so is more, where the best of before has become as fast by now.
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
            products: pick(b.products, f.products, c.products),
            layout: pick(b.layout, f.layout, c.layout),
            kernels: pick(b.kernels, f.kernels, c.kernels),
            ..b
        },
    }
}

/// Milliseconds of the fastest of a few steps, after one to warm up; none when that one alone took thrice `best_ms`.
fn time(model: &mut dyn Model, batch: &Batch, slice: Duration, best_ms: f64) -> Result<Option<f64>> {
    let timer = StepTimer::off();
    let mut step = || -> Result<f64> {
        let began = Instant::now();
        let noise = Noise::new(0, batch.x.device());
        let values = model.step(batch, StepContext { noise: &noise, timer: &timer, on_device: false })?;
        // sync: nothing to wait for on a CPU; the value keeps the step from being optimised away.
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

/// Milliseconds of a step by the device's own events, made as training makes it: as one launch where steps are captured, else
/// operation by operation. None where the form needs more memory than there is.
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
    fn what_is_asked_for_is_understood_or_refused_by_name() {
        let auto = Plan { measure: true, ..Plan::default() };
        assert_eq!(Plan::parse("auto").unwrap(), auto);
        assert_eq!(Plan::parse("off").unwrap(), Plan::default());
        assert_eq!(
            Plan::parse("off,threads=3, layout=channels-last").unwrap(),
            Plan { threads: Some(3), layout: Some(Layout::ChannelsLast), ..Plan::default() }
        );
        assert_eq!(Plan::parse("products=blas").unwrap(), Plan { products: Some(MatmulBackend::Blas), ..auto });
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
    fn a_choice_reads_as_it_is_asked_for() {
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
    fn a_gpu_chooses_between_layouts_alone_in_the_precision_of_the_run() {
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
    fn the_faster_form_is_found_and_short_runs_are_left_alone() {
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
