//! Trained networks as files for other programs: TorchScript, safetensors, ONNX, each read back and compared before it counts.

pub mod onnx;
mod torchscript;

use std::fs::{self, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use tch::{CModule, IValue, Tensor};

use crate::base::atomic_file;
use crate::base::usage::usage;
use crate::base::weights_file;
use crate::config::{Config, preset_name};
use crate::native;
use crate::nets::{NETWORKS, Network, Port};

/// What the folder's description is called.
pub const ABOUT: &str = "export.json";
/// Batch sizes at which each file is compared with the live network.
const BATCHES: [i64; 3] = [1, 7, 64];
/// Largest difference from the live network that is rounding: relative to the largest output, or absolute below 1. Usual are 1e-7
/// to 1e-6; batch normalisation by small running variances has been seen to make 6e-5 of them.
const TOLERANCE: f64 = 1e-4;
/// Where files are until all of them have been compared.
const PART: &str = ".export.part";

/// What a network can be written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Format {
    /// NAME.pt: a module with real parameters and buffers, for `torch.jit.load` in Python, C++ and here.
    Torchscript,
    /// NAME.safetensors: the module's state_dict, key by key.
    Safetensors,
    /// NAME.onnx: opset 17 with a free batch size, for onnxruntime and its like.
    Onnx,
}

impl Format {
    fn extension(self) -> &'static str {
        match self {
            Format::Torchscript => "pt",
            Format::Safetensors => "safetensors",
            Format::Onnx => "onnx",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Format::Torchscript => "torchscript",
            Format::Safetensors => "safetensors",
            Format::Onnx => "onnx",
        }
    }
}

/// Where the networks come from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// `vae` or `gan`.
    pub model: String,
    /// The preset's name.
    pub preset: String,
    /// The data's.
    pub data: String,
    /// Updates done.
    pub step: u64,
}

impl Origin {
    /// That of a model of this configuration after `step` updates.
    pub fn new(config: &Config, step: u64) -> Self {
        let s = &config.settings;
        Origin {
            model: config.model.to_string(),
            preset: s.preset.map_or_else(String::new, preset_name),
            data: s.data.clone().unwrap_or_default(),
            step,
        }
    }
}

/// A file that was written, read back and compared.
#[derive(Clone, Debug)]
pub struct Written {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub format: Format,
    /// Largest absolute difference from the live network at each of the batch sizes 1, 7 and 64; of safetensors, between the
    /// weights.
    pub differences: Vec<f64>,
}

/// Writes every network in every format into the folder `dir`, beside an `export.json`; what an earlier export left there and this
/// one does not write is removed, so that the folder is always of one model. Nothing is there under its name before all of it has
/// been read back and compared with the live networks at batch sizes 1, 7 and 64.
///
/// # Errors
/// When another process exports there; when a file cannot be written, or differs by more than rounding: then the folder is as
/// it was.
pub fn export(networks: &[Network], origin: &Origin, formats: &[Format], dir: &Path) -> Result<Vec<Written>> {
    let mut formats = formats.to_vec();
    formats.sort();
    formats.dedup();
    fs::create_dir_all(dir).with_context(|| format!("the folder {} could not be made", dir.display()))?;
    let _lock = lock(dir)?;
    let part = dir.join(PART);
    remove(&part)?;
    fs::create_dir(&part).with_context(|| format!("the folder {} could not be made", part.display()))?;
    let write = || -> Result<Vec<Written>> {
        let (mut all, mut described) = (Vec::new(), Map::new());
        for network in networks {
            let mut files = Map::new();
            for &format in &formats {
                let written = write_one(network, origin, format, &part)?;
                files.insert(format.key().into(), described_file(&written)?);
                all.push(written);
            }
            let mut about = port_list(network);
            about.insert("files".into(), files.into());
            described.insert(network.name.into(), about.into());
        }
        let mut about = head(origin);
        about.insert("tolerance".into(), json!(TOLERANCE));
        about.insert("networks".into(), described.into());
        let file = part.join(ABOUT);
        let text = format!("{:#}\n", Value::from(about));
        atomic_file::write(&file, text.as_bytes())?;
        Ok(all)
    };
    let moved = write().and_then(|all| move_in(&part, dir, all));
    let cleared = remove(&part);
    let all = moved?;
    cleared?;
    Ok(all)
}

/// Takes a folder for this process, while the file lives.
fn lock(dir: &Path) -> Result<fs::File> {
    let folder = fs::File::open(dir).with_context(|| format!("the folder {} could not be read", dir.display()))?;
    match folder.try_lock() {
        Err(TryLockError::WouldBlock) => {
            bail!("another ganvae is exporting into {}: wait until it is done", dir.display())
        }
        // Some network file systems have no locks: then it is the user's to export once at a time, as it is with any program.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(folder),
    }
}

/// Refuses a folder of the user's choice whose files this program did not export.
///
/// # Errors
/// [`crate::base::usage::Usage`] when it has files and no earlier export; when it cannot be read.
pub fn check_folder(dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => bail!("--out {}: the folder could not be read ({e}): name another", dir.display()),
        Ok(entries) => entries,
    };
    let others = entries.flatten().any(|entry| entry.file_name() != PART);
    if others && !dir.join(ABOUT).exists() {
        usage!(
            "--out {}: the folder is not empty and holds no earlier export (no {ABOUT}), and its files could be overwritten: name another",
            dir.display()
        );
    }
    Ok(())
}

/// Puts the files of `part` into `dir`, the description after what it describes; then removes what it does not describe.
fn move_in(part: &Path, dir: &Path, all: Vec<Written>) -> Result<Vec<Written>> {
    let place = |from: &Path| -> Result<PathBuf> {
        let to = dir.join(from.file_name().unwrap_or_default());
        fs::rename(from, &to).with_context(|| format!("{} could not be put into place", to.display()))?;
        Ok(to)
    };
    let mut placed = Vec::new();
    for written in all {
        placed.push(Written { path: place(&written.path)?, ..written });
    }
    place(&part.join(ABOUT))?;
    for name in NETWORKS {
        for format in Format::value_variants() {
            let file = dir.join(format!("{name}.{}", format.extension()));
            if placed.iter().all(|written| written.path != file) {
                remove(&file)?;
            }
        }
    }
    atomic_file::sync(dir).with_context(|| format!("{} could not be synced", dir.display()))?;
    Ok(placed)
}

fn remove(path: &Path) -> Result<()> {
    let done = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match done {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("{} could not be removed", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes one file, reads it back and compares.
fn write_one(network: &Network, origin: &Origin, format: Format, dir: &Path) -> Result<Written> {
    let path = dir.join(format!("{}.{}", network.name, format.extension()));
    let failed = || format!("{} could not be written", path.display());
    let reread = || format!("{} was written, but could not be read back", path.display());
    let differences = match format {
        Format::Torchscript => {
            let mut about = head(origin);
            about.insert("network".into(), json!(network.name));
            about.extend(port_list(network));
            torchscript::write(network, &Value::from(about).to_string(), &path).with_context(failed)?;
            let module = CModule::load(&path).with_context(reread)?;
            compare(network, |x| outputs(module.forward_is(&[IValue::Tensor(x.shallow_clone())])?))
        }
        Format::Safetensors => {
            let tensors = network.tensors().into_iter().map(|(key, t, _)| (key, t)).collect();
            weights_file::write(&path, tensors).with_context(failed)?;
            Ok(vec![weights_difference(network, &path).with_context(reread)?])
        }
        Format::Onnx => {
            let about: Vec<_> = head(origin).into_iter().map(|(key, value)| (key, plain(&value))).collect();
            let about: Vec<_> = about.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
            onnx::write(network, &about, &path).with_context(failed)?;
            let graph = onnx::Loaded::read(&path).with_context(reread)?;
            compare(network, |x| graph.run(x))
        }
    };
    let differences =
        differences.with_context(|| format!("the export {}.{} was thrown away", network.name, format.extension()))?;
    Ok(Written { path, format, differences })
}

/// A value's text without quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn outputs(value: IValue) -> Result<Vec<Tensor>> {
    match value {
        IValue::Tensor(t) => Ok(vec![t]),
        IValue::Tuple(all) => all.into_iter().map(|v| Ok(Tensor::try_from(v)?)).collect(),
        other => bail!("the module gave {other:?}, wanted tensors"),
    }
}

/// The batch of `batch` on which exports are compared: always the same, within the port's range.
///
/// # Errors
/// libtorch's, when memory ends.
pub fn example(port: &Port, batch: i64) -> Result<Tensor> {
    let shape: Vec<i64> = [batch].into_iter().chain(port.dims.iter().copied()).collect();
    let x = native::randn(batch, &shape)?;
    Ok(if port.range.is_some() { x.f_sigmoid()? } else { x })
}

/// Largest differences of `run` from the live network at each batch size.
fn compare(network: &Network, run: impl Fn(&Tensor) -> Result<Vec<Tensor>>) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for batch in BATCHES {
        let x = example(&network.input, batch)?;
        let (want, got) = tch::no_grad(|| anyhow::Ok(((network.live)(&x)?, run(&x)?)))?;
        ensure!(want.len() == got.len(), "it gives {} outputs, the live network {}", got.len(), want.len());
        let mut largest = 0.0;
        for (((port, _), want), got) in network.outputs.iter().zip(&want).zip(&got) {
            let (name, shape) = (port.name, want.size());
            ensure!(got.size() == shape, "its {name} has shape {:?}, the live network's {shape:?}", got.size());
            // sync: two numbers for each comparison.
            let (difference, scale) = ((got - want).abs().max().double_value(&[]), want.abs().max().double_value(&[]));
            ensure!(scale.is_finite(), "the live network's {name} is not finite: training has diverged");
            ensure!(
                difference <= TOLERANCE * scale.max(1.0),
                "its {name} differs by {difference:.3e} from the live network's at batch size {batch}, at most {:.3e} is rounding",
                TOLERANCE * scale.max(1.0)
            );
            largest = f64::max(largest, difference);
        }
        all.push(largest);
    }
    Ok(all)
}

/// Largest difference of the file's tensors from the live ones, which must be 0: the bits are the same.
fn weights_difference(network: &Network, path: &Path) -> Result<f64> {
    let bytes = fs::read(path)?;
    let stored = safetensors::SafeTensors::deserialize(&bytes)?;
    let live = network.tensors();
    ensure!(stored.len() == live.len(), "it holds {} tensors, the network {}", stored.len(), live.len());
    for (key, t, _) in live {
        ensure!(weights_file::same(&stored.tensor(&key)?, &t)?, "its {key} is not the live network's");
    }
    Ok(0.0)
}

/// What stands first in every description.
fn head(origin: &Origin) -> Map<String, Value> {
    let pairs = [
        ("ganvae", json!(env!("CARGO_PKG_VERSION"))),
        ("libtorch", json!(env!("GANVAE_LIBTORCH_VERSION"))),
        ("model", json!(origin.model)),
        ("preset", json!(origin.preset)),
        ("data", json!(origin.data)),
        ("step", json!(origin.step)),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// What goes in and comes out, for people and programs.
fn port_list(network: &Network) -> Map<String, Value> {
    let port = |p: &Port| {
        let shape: Vec<Value> = [json!("B")].into_iter().chain(p.dims.iter().map(|d| json!(d))).collect();
        json!({ "name": p.name, "about": p.about, "shape": shape, "range": p.range.map(|(lo, hi)| [lo, hi]) })
    };
    let outputs: Vec<_> = network.outputs.iter().map(|(p, _)| port(p)).collect();
    let count: usize = network.tensors().iter().filter(|(.., trained)| *trained).map(|(_, t, _)| t.numel()).sum();
    let pairs = [("input", port(&network.input)), ("outputs", outputs.into()), ("parameters", json!(count))];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn described_file(written: &Written) -> Result<Value> {
    let name = written.path.file_name().unwrap_or_default().to_string_lossy();
    let largest = written.differences.iter().copied().fold(0.0, f64::max);
    let at: Map<String, Value> =
        BATCHES.iter().zip(&written.differences).map(|(b, d)| (b.to_string(), json!(d))).collect();
    let mut about = json!({ "file": name, "largest_difference": largest });
    if written.format != Format::Safetensors {
        about["difference_at_batch_size"] = at.into();
    }
    Ok(about)
}

#[cfg(test)]
mod tests;
