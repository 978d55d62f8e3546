//! `ganvae doctor`: what is found and what is missing: libtorch, CUDA, the processor, the data folder.

use anyhow::Result;
use clap::Args;
use tch::{Device, Kind, Tensor};

use super::{print, self_check};
use crate::base::setting::Settings;
use crate::base::usage::{Usage, one_line};
use crate::config::device;
use crate::data;
use crate::native;

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Check this device: auto, cpu, cuda or cuda:N; the exit code is 1 if it cannot be used
    #[arg(long)]
    device: Option<String>,
    /// Also train small networks on it and compare the results with the CPU's, and captured steps with eager ones; takes a minute
    #[arg(long, requires = "device")]
    check: bool,
    /// --check: run a tenth of the steps
    #[arg(long, requires = "check")]
    quick: bool,
    /// --check: print only one JSON object per check
    #[arg(long, requires = "check")]
    json: bool,
}

impl Doctor {
    pub(super) fn run(&self) -> Result<u8> {
        let report = examine(self.device.as_deref())?;
        if !self.json {
            print(&report.text)?;
        }
        let (Some(device), true) = (&self.device, self.check && report.works) else {
            return Ok(u8::from(!report.works));
        };
        let passed = self_check::check_device(device, self.quick, |result| print(&result.line(self.json)).map(drop))?;
        Ok(u8::from(!passed))
    }
}

/// The result of [`examine`].
#[derive(Debug, Default)]
pub struct DoctorReport {
    /// A page for people; ends with what to do for each thing that is missing.
    pub text: String,
    /// Whether the device that was asked about can be used; true when none was.
    pub works: bool,
    todo: Vec<String>,
}

impl DoctorReport {
    fn line(&mut self, name: &str, text: &str) {
        self.text += &format!("{name:<11}{text}\n");
    }

    /// A line for what was found; for what is missing, also what to do.
    fn result(&mut self, name: &str, found: Result<String>) {
        match found {
            Ok(text) => self.line(name, &text),
            Err(why) => {
                self.line(name, "MISSING, see below");
                let why = one_line(&format!("{why:#}"));
                if !self.todo.contains(&why) {
                    self.todo.push(why);
                }
            }
        }
    }
}

/// Examines everything; `asked` is the value of `--device`. An unknown device name is a usage error.
pub fn examine(asked: Option<&str>) -> Result<DoctorReport> {
    let mut report = DoctorReport::default();
    // sync: a sum on the CPU shows that libtorch computes.
    let computes =
        Tensor::f_ones([8], (Kind::Float, Device::Cpu)).and_then(|t| t.f_sum(Kind::Float)?.f_double_value(&[]));
    report.text += &match computes {
        Ok(8.0) => "CPU: ready\n".to_owned(),
        Ok(_) => "CPU: libtorch computes wrongly\n".to_owned(),
        Err(why) => format!("CPU: libtorch does not compute ({})\n", one_line(&why.to_string())),
    };
    if let (None, Err(why)) = (asked, device::open(&device::on("cuda"))) {
        let why = one_line(&format!("{why:#}"));
        let why = why.trim_start_matches("--device cuda: ");
        report.text += &format!("GPU: none ({why}); all parts that one needs: ganvae doctor --device cuda\n");
        return Ok(DoctorReport { works: true, ..about_the_machine(report) });
    }
    let mut report = about_the_machine(report);
    let name = asked.unwrap_or("cuda");
    if name != "cpu" {
        report.text.push('\n');
        report.result("cuda", native::load_libtorch_cuda().map(|()| "libtorch's CUDA half loads".into()));
        report.result("driver", driver());
        report.result("half", native::check_cuda_half().map(|()| "ganvae's own CUDA half is built in".into()));
    }
    let opened = match device::open(&device::on(name)) {
        Err(e) if e.is::<Usage>() => return Err(e),
        opened => opened,
    };
    if name != "cpu" {
        devices(&mut report);
        report.result("math", math());
    }
    report.works = opened.is_ok() || asked.is_none();
    let verdict = match opened {
        Ok(device) => format!("works: it is {}", device::name(device)),
        Err(why) => {
            if report.todo.is_empty() {
                report.todo.push(one_line(&format!("{why:#}")));
            }
            "would fail".to_owned()
        }
    };
    report.text += &format!("\n--device {name} {verdict}\n");
    for todo in &report.todo {
        report.text += &format!("  - {todo}\n");
    }
    Ok(report)
}

/// The lines about the program and the processor.
fn about_the_machine(mut report: DoctorReport) -> DoctorReport {
    report.line("ganvae", env!("CARGO_PKG_VERSION"));
    let folder = native::libtorch_folder();
    report.line("libtorch", &format!("{}, {}", env!("GANVAE_LIBTORCH_VERSION"), folder.display()));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    report.line("threads", &format!("{} of {cores} cores", tch::get_num_threads()));
    let kernels = native::cpu_capability().unwrap_or_else(|_| "unknown".into());
    report.line("processor", &format!("libtorch's kernels for {kernels}; it has {}", instruction_sets()));
    report.result("data", data_folder());
    report
}

/// The instruction sets that matter for training.
fn instruction_sets() -> String {
    #[cfg(target_arch = "x86_64")]
    let sets = {
        let all = [
            ("avx2", std::is_x86_feature_detected!("avx2")),
            ("fma", std::is_x86_feature_detected!("fma")),
            ("avx512f", std::is_x86_feature_detected!("avx512f")),
            ("avx512bw", std::is_x86_feature_detected!("avx512bw")),
            ("avx512vnni", std::is_x86_feature_detected!("avx512vnni")),
            ("avx512bf16", std::is_x86_feature_detected!("avx512bf16")),
        ];
        all.iter().filter(|(_, has)| *has).map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
    };
    #[cfg(not(target_arch = "x86_64"))]
    let sets = std::env::consts::ARCH.to_owned();
    if sets.is_empty() { "none of those that libtorch is fast with".into() } else { sets }
}

fn data_folder() -> Result<String> {
    let dir = data::data_dir(&Settings::default())?;
    let note = if dir.is_dir() { "" } else { " (not there yet: the first download makes it)" };
    Ok(format!("{}{note}", dir.display()))
}

fn driver() -> Result<String> {
    native::load_driver()?;
    let version = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let version = version.lines().next().unwrap_or_default().trim_start_matches("NVRM version:").trim().to_owned();
    match native::cuda().and_then(native::Cuda::versions) {
        Ok([(major, minor), (of, runtime)]) => {
            Ok(format!("serves CUDA {major}.{minor}, this libtorch is of {of}.{runtime}; {version}"))
        }
        // What is missing has a line of its own.
        Err(_) => Ok(format!("loads; {version}")),
    }
}

/// A line for each device.
fn devices(report: &mut DoctorReport) {
    // Without CUDA, the lines above say why.
    let Ok(cuda) = native::cuda() else { return };
    let count = match cuda.devices() {
        Ok(count) => count,
        Err(why) => {
            let why = why.context("no CUDA device can be used: check nvidia-smi and CUDA_VISIBLE_DEVICES");
            return report.result("devices", Err(why));
        }
    };
    for index in 0..count {
        report.result(&format!("cuda:{index}"), cuda.describe(index));
    }
}

/// The settings of arithmetic in a run without flags.
fn math() -> Result<String> {
    let m = native::math()?;
    let yes = |on: bool| if on { "on" } else { "off" };
    let cudnn = native::cudnn_version().map_or_else(|_| String::new(), |(a, b)| format!(" {a}.{b}"));
    Ok(format!(
        "TF32 {} in products, {} in convolutions (--precision); deterministic {} (--deterministic); cuDNN{cudnn} times its algorithms: {}",
        yes(m.tf32_matmuls),
        yes(m.tf32_convolutions),
        yes(m.deterministic),
        yes(m.benchmark)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_works_and_names_that_are_none_are_refused() {
        let report = examine(Some("cpu")).unwrap();
        assert!(report.works, "{}", report.text);
        for part in ["libtorch   2.11.0, /", "threads", "processor", "data", "--device cpu works: it is cpu"] {
            assert!(report.text.contains(part), "{part} in {}", report.text);
        }
        assert!(examine(Some("gpu")).unwrap_err().is::<crate::base::usage::Usage>());
    }
}
