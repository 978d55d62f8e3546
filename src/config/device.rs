//! Device and precision of a run.

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use tch::{Device, Kind, Tensor};

use crate::base::progress::say;
use crate::base::setting::{Group, Setting, Settings, choice_name};
use crate::base::usage::{one_line, usage};
use crate::models::tuning::DETERMINISTIC;
use crate::native;
use crate::nets::Precision;

/// Whether the training step runs as a CUDA graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GraphCapture {
    /// Captured once and replayed.
    Auto,
    /// Operation by operation (eager).
    Off,
}

/// Where the tensors are.
pub static DEVICE: Setting<String> = Setting::text("device", "auto, cpu, cuda or cuda:N")
    .default("auto", "CUDA if it works, else the CPU")
    .value_name("DEVICE")
    .may_change_on_resume();

/// Precision of the layers.
pub static PRECISION: Setting<Precision> = Setting::choice(
    "precision",
    "CUDA: precision of matmuls and convolutions; weights stay float32 [default: tf32]; the CPU has fp32 only",
)
.value_name("BITS");

/// How steps run on a GPU.
pub static CUDA_GRAPH: Setting<GraphCapture> = Setting::choice(
    "cuda-graph",
    "CUDA: capture the training step as a CUDA graph and replay it, or run it operation by operation",
)
.default("auto", "launching each operation separately leaves the GPU idle")
.value_name("HOW")
.may_change_on_resume();

/// Device and precision.
pub static SETTINGS: Group = Group { heading: "Device", settings: &[&DEVICE, &PRECISION, &CUDA_GRAPH] };

/// Settings with this device only.
pub fn on(name: &str) -> Settings {
    Settings::default().with(&DEVICE, name.to_owned())
}

/// The device of `--device`, initialised. `auto` is CUDA if it works, else the CPU.
///
/// # Errors
/// [`crate::base::usage::Usage`] for an unknown name; if CUDA cannot be used, one sentence about the missing part.
pub fn open(s: &Settings) -> Result<Device> {
    let name = &s.get(&DEVICE)?;
    match name.split_once(':').unwrap_or((name, "0")) {
        ("cpu", "0") => Ok(Device::Cpu),
        ("auto", "0") => Ok(auto(s)),
        ("cuda", index) => match index.parse() {
            Ok(index) => cuda(index, s).with_context(|| format!("--device {name}")),
            Err(_) => usage!("--device {name}: the number after cuda: must be a device's index, such as cuda:0"),
        },
        _ => usage!("--device {name}: wanted auto, cpu, cuda or cuda:N"),
    }
}

/// CUDA, else the CPU; if there is a driver but CUDA fails, a warning says why.
fn auto(s: &Settings) -> Device {
    if native::load_driver().is_err() {
        return Device::Cpu;
    }
    cuda(0, s).unwrap_or_else(|why| {
        say(&format!(
            "warning: there is an NVIDIA driver, but CUDA cannot be used, so this runs on the CPU: {}",
            one_line(&format!("{why:#}"))
        ));
        Device::Cpu
    })
}

/// The environment variable for cuBLAS's workspace, and a value for deterministic results.
const WORKSPACE: (&str, &str) = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8");

fn cuda(index: usize, s: &Settings) -> Result<Device> {
    let deterministic = s.get(&DETERMINISTIC)?;
    if deterministic && std::env::var_os(WORKSPACE.0).is_none() {
        // SAFETY: no other thread reads the environment at this time: the device is opened before data is read and before other
        // threads have work.
        unsafe { std::env::set_var(WORKSPACE.0, WORKSPACE.1) };
    }
    let cuda = native::cuda()?;
    let found = match cuda.devices() {
        Ok(found) if tch::Cuda::is_available() => found,
        Ok(_) => 0,
        Err(why) => {
            return Err(why.context(
                "no CUDA device can be used: check nvidia-smi and CUDA_VISIBLE_DEVICES, update the driver if it is too old, or \
                 use --device cpu",
            ));
        }
    };
    ensure!(
        index < found,
        "{found} CUDA devices are visible, so there is no number {index}: check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu"
    );
    cuda.select(index)?;
    native::set_math(s.given(&PRECISION) != Some(Precision::Fp32), deterministic)?;
    let device = Device::Cuda(index);
    let sum = small_sum(device)
        .with_context(|| format!("a small sum on {} failed: check nvidia-smi, or use --device cpu", name(device)))?;
    ensure!(
        sum == 20.0,
        "a small sum on {} came out as {sum} instead of 20: check nvidia-smi, or use --device cpu",
        name(device)
    );
    Ok(device)
}

/// 0 + 2 + 4 + 6 + 8, computed on the device: a listed device may not work, for example if it is too old for this libtorch.
fn small_sum(device: Device) -> Result<f64> {
    let numbers = Tensor::f_arange(5, (Kind::Float, device))?.f_mul_scalar(2.0)?;
    // sync: once, when a device is opened.
    Ok(numbers.f_sum(Kind::Float)?.f_double_value(&[])?)
}

/// The precision of training on `device`: the setting, else TF32 on CUDA and float32 on the CPU.
///
/// # Errors
/// [`crate::base::usage::Usage`] for tf32 and bf16 on the CPU.
pub fn precision(s: &Settings, device: Device) -> Result<Precision> {
    match (device, s.given(&PRECISION)) {
        (Device::Cuda(_), asked) => Ok(asked.unwrap_or(Precision::Tf32)),
        (_, None | Some(Precision::Fp32)) => Ok(Precision::Fp32),
        (_, Some(asked)) => usage!(
            "--precision {} is for CUDA, and this runs on the CPU, which computes in fp32: leave it out, or use --device cuda",
            choice_name(&asked)
        ),
    }
}

/// `cpu` or `cuda:0`.
pub fn name(device: Device) -> String {
    match device {
        Device::Cuda(i) => format!("cuda:{i}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_devices_and_unsupported_precisions_are_refused() {
        assert_eq!(open(&on("cpu")).unwrap(), Device::Cpu);
        for bad in ["gpu", "cuda:x", "cuda:", "cpu:1", "auto:0x"] {
            assert!(open(&on(bad)).unwrap_err().is::<crate::base::usage::Usage>(), "{bad}");
        }
        let with = |precision| Settings::default().with_some(&PRECISION, precision);
        for asked in [None, Some(Precision::Fp32)] {
            assert_eq!(precision(&with(asked), Device::Cpu).unwrap(), Precision::Fp32);
        }
        assert_eq!(precision(&with(None), Device::Cuda(0)).unwrap(), Precision::Tf32);
        assert_eq!(precision(&with(Some(Precision::Bf16)), Device::Cuda(0)).unwrap(), Precision::Bf16);
        let e = precision(&with(Some(Precision::Bf16)), Device::Cpu).unwrap_err();
        assert!(e.is::<crate::base::usage::Usage>() && e.to_string().contains("--precision bf16 is for CUDA"), "{e}");
        assert_eq!(small_sum(Device::Cpu).unwrap(), 20.0);
    }
}
