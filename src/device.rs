//! Which device a run uses. Imports config's usage errors and native.

use anyhow::{Context, Result};
use tch::{Cuda, Device};

use crate::config::{Settings, usage};
use crate::native;

/// The device that `--device` names. `auto` is CUDA where it truly works, else the CPU.
///
/// # Errors
/// [`crate::config::Usage`] for a name that is none; one sentence on what is missing when CUDA is asked for and not there.
pub fn open(s: &Settings) -> Result<Device> {
    let name = s.device.as_deref().unwrap_or("auto");
    match name.split_once(':').unwrap_or((name, "0")) {
        ("cpu", "0") => Ok(Device::Cpu),
        ("auto", "0") => Ok(cuda(0).unwrap_or(Device::Cpu)),
        ("cuda", index) => match index.parse() {
            Ok(index) => cuda(index).with_context(|| format!("--device {name}")),
            Err(_) => usage!("--device {name}: the number after cuda: must be a device's index, such as cuda:0"),
        },
        _ => usage!("--device {name}: wanted auto, cpu, cuda or cuda:N"),
    }
}

fn cuda(index: usize) -> Result<Device> {
    native::load_cuda()?;
    let found = Cuda::device_count();
    anyhow::ensure!(
        (index as i64) < found,
        "{found} CUDA devices are visible, so there is no number {index}: check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu"
    );
    Ok(Device::Cuda(index))
}

/// `cpu` or `cuda:0`.
pub fn name(device: Device) -> String {
    match device {
        Device::Cuda(i) => format!("cuda:{i}"),
        other => format!("{other:?}").to_lowercase(),
    }
}
