//! `ganvae doctor`: what this ganvae stands on, found and missing: libtorch, CUDA, the processor, the data folder.

use std::fmt::Write;

use anyhow::{Result, anyhow};
use clap::Args;

use super::{print, self_check};
use crate::base::setting::Settings;
use crate::config::device;
use crate::data;
use crate::native;

/// `ganvae doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// auto, cpu, cuda or cuda:N: exit with 1 if it could not be used
    #[arg(long)]
    pub device: Option<String>,
    /// Also train small networks there and compare with the CPU, and captured steps with others; about a minute
    #[arg(long, requires = "device")]
    pub check: bool,
    /// With --check: a tenth of the steps
    #[arg(long, requires = "check")]
    pub quick: bool,
    /// With --check: one JSON object for each thing that was looked at, and nothing else
    #[arg(long, requires = "check")]
    pub json: bool,
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
        let well = self_check::examine(device, self.quick, |check| {
            print(&if self.json { format!("{}\n", check.json()) } else { check.line() })
        })?;
        Ok(u8::from(!well))
    }
}

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// A page for people; ends with what to do for each thing that is missing.
    pub text: String,
    /// Whether the device that was asked about can be used; also when none was.
    pub works: bool,
}

/// A page under way: a line for each thing, and what to do.
#[derive(Default)]
struct Page {
    lines: String,
    todo: Vec<String>,
}

impl Page {
    fn line(&mut self, name: &str, text: impl AsRef<str>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.lines, "{name:<11}{}", text.as_ref());
    }

    /// What was found, or that it is missing, with what to do.
    fn found(&mut self, name: &str, what: Result<String>) {
        match what {
            Ok(text) => self.line(name, text),
            Err(why) => {
                let why = crate::base::usage::one_line(&format!("{why:#}"));
                self.line(name, "MISSING, see below");
                if !self.todo.contains(&why) {
                    self.todo.push(why);
                }
            }
        }
    }
}

/// Looks at everything; `asked` is the value of `--device`.
///
/// # Errors
/// [`crate::base::usage::Usage`] for a device's name that is none.
pub fn examine(asked: Option<&str>) -> Result<Report> {
    let mut page = Page::default();
    page.line("ganvae", env!("CARGO_PKG_VERSION"));
    let folder = native::libtorch_folder();
    page.line("libtorch", format!("{}, {}", env!("GANVAE_LIBTORCH_VERSION"), folder.display()));
    page.line("threads", format!("{} of {} cores", tch::get_num_threads(), cores()));
    let kernels = native::cpu_capability().unwrap_or_else(|_| "unknown".into());
    page.line("processor", format!("libtorch's kernels for {kernels}; it has {}", instruction_sets()));
    page.found("data", data_folder());
    page.lines.push('\n');
    let cuda = |page: &mut Page| {
        page.found("cuda", native::load_libtorch_cuda().map(|()| "libtorch's CUDA half loads".into()));
        page.found("driver", driver());
        page.found("half", half());
    };
    let name = asked.unwrap_or("cuda");
    if name != "cpu" {
        cuda(&mut page);
    }
    // What is missing is said part by part above; the verdict is that of a training run.
    let opened = device::open(&device::on(name));
    if opened.as_ref().is_err_and(|e| e.is::<crate::base::usage::Usage>()) {
        opened?;
        return Err(anyhow!("a device's name was refused without a reason"));
    }
    if name != "cpu" {
        devices(&mut page);
        page.found("math", math());
    }
    let works = opened.is_ok();
    if let Err(why) = &opened
        && page.todo.is_empty()
    {
        page.todo.push(crate::base::usage::one_line(&format!("{why:#}")));
    }
    let mut text = page.lines;
    text.push_str(&match &opened {
        Ok(device) => format!("\n--device {name} works: it is {}\n", device::name(*device)),
        Err(_) => format!("\n--device {name} would fail\n"),
    });
    for todo in &page.todo {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  - {todo}");
    }
    Ok(Report { text, works: works || asked.is_none() })
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Those that make a difference to training.
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
        // That its libraries load is all that can be said; what else is missing has a line of its own.
        Err(_) => Ok(format!("loads; {version}")),
    }
}

fn half() -> Result<String> {
    if native::cuda_half_built() {
        return Ok("ganvae's own CUDA half is built in".into());
    }
    Err(anyhow!(
        "this ganvae was built without its CUDA half, because CUDA's headers were missing: run scripts/setup --full and cargo build \
         --release again"
    ))
}

/// Every device, with its memory.
fn devices(page: &mut Page) {
    // Without CUDA, the lines above have said why.
    let Ok(cuda) = native::cuda() else { return };
    match cuda.devices() {
        Ok(count) => {
            for index in 0..count {
                let text = cuda.describe(index).map(|d| {
                    let (major, minor) = d.capability;
                    let gb = d.total_bytes as f64 / 1e9;
                    format!(
                        "{}, {gb:.1} GB, compute capability {major}.{minor}, {} multiprocessors",
                        d.name, d.multiprocessors
                    )
                });
                page.found(&format!("cuda:{index}"), text);
            }
        }
        Err(why) => {
            page.found(
                "devices",
                Err(why.context("no CUDA device can be used: check nvidia-smi and CUDA_VISIBLE_DEVICES")),
            );
        }
    }
}

/// As a run without flags computes.
fn math() -> Result<String> {
    let m = native::math()?;
    let yes = |on: bool| if on { "on" } else { "off" };
    let cudnn = native::cudnn_version().map_or_else(|_| String::new(), |(a, b)| format!(" {a}.{b}"));
    Ok(format!(
        "TF32 {} in products, {} in convolutions (--precision); deterministic {} (--deterministic); cuDNN{cudnn} times its algorithms: {}",
        yes(m.tf32_products),
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
