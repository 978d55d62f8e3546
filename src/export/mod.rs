//! Trained networks as files for other programs: TorchScript, safetensors, ONNX.
//!
//! Before a file gets its final name, a TorchScript module is loaded and compared with the network, a safetensors file bit for bit.
//! ONNX files are written from the same graph; the tests run such files in onnxruntime.

pub mod onnx;
mod torchscript;

use std::ffi::OsString;
use std::fs::{self, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use tch::{CModule, Device, IValue, Kind, Tensor};

use crate::base::atomic_file;
use crate::base::setting::choice_name;
use crate::base::small_file;
use crate::base::usage::usage;
use crate::base::weights_file;
use crate::native;
use crate::nets::NETWORKS;
use crate::nets::graph::{Graph, Port};

/// File name of the folder's description.
pub const ABOUT: &str = "export.json";
/// Batch sizes at which each file is compared with the live network.
const BATCHES: [i64; 3] = [1, 7, 64];
/// Largest difference from the live network that counts as rounding: relative to the largest output, or absolute below 1. Usual
/// differences are 1e-7 to 1e-6; batch normalisation with small running variances increased one to 6e-5.
const TOLERANCE: f64 = 1e-4;
/// Folder of unverified files inside `dir`, used where none can be made next to it.
const PART: &str = ".export.part";

/// File formats of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Format {
    /// NAME.pt: a module with real parameters and buffers, for `torch.jit.load` in Python, C++ and here.
    Torchscript,
    /// NAME.safetensors: the module's state_dict, key by key.
    Safetensors,
    /// NAME.onnx: opset 17 with a free batch size, for onnxruntime and other runtimes.
    Onnx,
}

impl Format {
    fn file(self, network: &str) -> String {
        let extension = match self {
            Format::Torchscript => "pt",
            Format::Safetensors => "safetensors",
            Format::Onnx => "onnx",
        };
        format!("{network}.{extension}")
    }
}

/// The run that the networks are of.
#[derive(Clone, Debug)]
pub struct Origin {
    /// `vae` or `gan`.
    pub model: String,
    /// Name of the preset.
    pub preset: String,
    /// Name of the data set.
    pub data: String,
    /// Updates done.
    pub step: u64,
    /// Names of the classes of a conditional model, by number; none for another.
    pub classes: Vec<String>,
}

/// A file that was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its path.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// How it was verified.
    pub verified: Verified,
}

/// How a file was verified when it was written.
#[derive(Clone, Debug, PartialEq)]
pub enum Verified {
    /// Loaded again, with this largest absolute difference from the network's outputs at each of the batch sizes 1, 7 and 64.
    Run(Vec<f64>),
    /// Read again, and equal bit for bit.
    Bits,
    /// Not verified: ganvae has no ONNX runtime. Its tests run such files in onnxruntime.
    Tests,
}

/// Writes every network in every format into the folder `dir`, with an `export.json`. The folder is always of one model, also when
/// the process is killed: all files are written into a second folder and verified, then the two folders exchange their names. Files of an
/// earlier export are removed; other files in the folder stay.
///
/// # Errors
/// When another process exports there; when a file cannot be written, or differs by more than rounding: then the folder is as
/// it was. When the files cannot be put into place: then there may be no `export.json`.
pub fn export(networks: &[&Graph], origin: &Origin, formats: &[Format], dir: &Path) -> Result<Vec<Written>> {
    let mut formats = formats.to_vec();
    formats.sort();
    formats.dedup();
    fs::create_dir_all(dir).with_context(|| format!("the folder {} could not be made", dir.display()))?;
    let _lock = lock(dir)?;
    let (within, beside) = (dir.join(PART), beside(dir));
    for left in [&within, &beside] {
        give_back(left, dir)?;
    }
    let part = if fs::create_dir(&beside).is_ok() { beside } else { within };
    fs::create_dir_all(&part).with_context(|| format!("the folder {} could not be made", part.display()))?;
    // It will be the folder, and no other process may take it before this is done.
    let _lock_part = lock(&part)?;
    let write = || -> Result<Vec<Written>> {
        let (mut all, mut described) = (Vec::new(), Map::new());
        for network in networks {
            let mut files = Map::new();
            for &format in &formats {
                let written = write_one(network, origin, format, &part)?;
                files.insert(choice_name(&format), described_file(&written));
                all.push(written);
            }
            let mut about = port_list(network)?;
            about.insert("files".into(), files.into());
            described.insert(network.name().into(), about.into());
        }
        let mut about = head(origin);
        about.insert("tolerance".into(), json!(TOLERANCE));
        about.insert("networks".into(), described.into());
        let file = part.join(ABOUT);
        let text = format!("{:#}\n", Value::from(about));
        atomic_file::write(&file, text.as_bytes())?;
        Ok(all)
    };
    let put = write().and_then(|all| put(&part, dir, all));
    if put.is_err() {
        // The error that came first is told. What cannot be given back now stays for the next export to do.
        let _ = give_back(&part, dir);
    }
    put
}

/// A name next to the folder, usually on the same disk.
fn beside(dir: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.extend([dir.file_name().unwrap_or("export".as_ref()), ".part".as_ref()]);
    dir.with_file_name(name)
}

/// Names of all files that an export may write.
fn own_files() -> Vec<String> {
    let files = NETWORKS.iter().flat_map(|name| Format::value_variants().iter().map(move |f| f.file(name)));
    files.chain([ABOUT.to_owned()]).collect()
}

/// Moves files that no export wrote from `part` (the earlier folder, or one that a killed export left) to `dir`; removes the rest.
fn give_back(part: &Path, dir: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(part) else { return Ok(()) };
    let own = own_files();
    for entry in entries {
        let entry = entry.with_context(|| format!("{} could not be read", part.display()))?;
        let (name, to) = (entry.file_name(), dir.join(entry.file_name()));
        let text = name.to_string_lossy();
        // A file that was being written has its name with `.part`.
        let is_own = own.iter().any(|own| *own == text.trim_end_matches(".part")) || name == PART;
        if !is_own && !to.exists() {
            fs::rename(entry.path(), &to).with_context(|| format!("{} could not be kept", to.display()))?;
        }
    }
    remove(part)
}

/// The step of the run that the folder `dir` is an export of; none where it is no complete export, or one that
/// was killed while it put the folder in place.
pub fn step_of(dir: &Path) -> Option<u64> {
    if beside(dir).exists() {
        return None;
    }
    let about: Value = serde_json::from_slice(&small_file::read(&dir.join(ABOUT)).ok()?).ok()?;
    about["step"].as_u64()
}

/// Locks a folder for this process until the returned file is dropped.
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

/// Puts the files of `part` into `dir`.
fn put(part: &Path, dir: &Path, all: Vec<Written>) -> Result<Vec<Written>> {
    atomic_file::sync(part).with_context(|| format!("{} could not be synced", part.display()))?;
    if part.parent() == Some(dir) || !atomic_file::exchange(part, dir)? {
        return move_in(part, dir, all);
    }
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    atomic_file::sync(parent).with_context(|| format!("{} could not be synced", parent.display()))?;
    give_back(part, dir)?;
    let place = |written: Written| Written { path: dir.join(written.path.file_name().unwrap_or_default()), ..written };
    Ok(all.into_iter().map(place).collect())
}

/// [`put`] file by file, where two folders cannot exchange their names. Until all are there, there is no description.
fn move_in(part: &Path, dir: &Path, all: Vec<Written>) -> Result<Vec<Written>> {
    let place = |from: &Path| -> Result<PathBuf> {
        let to = dir.join(from.file_name().unwrap_or_default());
        // A folder that is a mount point, as in a container, is on another file system than what was written beside it.
        let part = dir.join(PART);
        let copy =
            || fs::copy(from, &part).and_then(|_| atomic_file::sync(&part)).and_then(|()| fs::rename(&part, &to));
        fs::rename(from, &to)
            .or_else(|_| copy())
            .with_context(|| format!("{} could not be put into place", to.display()))?;
        Ok(to)
    };
    remove(&dir.join(ABOUT))?;
    let mut placed = Vec::new();
    for written in all {
        placed.push(Written { path: place(&written.path)?, ..written });
    }
    place(&part.join(ABOUT))?;
    for file in own_files().into_iter().map(|name| dir.join(name)) {
        if !file.ends_with(ABOUT) && placed.iter().all(|written| written.path != file) {
            remove(&file)?;
        }
    }
    atomic_file::sync(dir).with_context(|| format!("{} could not be synced", dir.display()))?;
    remove(part)?;
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

/// Writes one file and verifies it.
fn write_one(graph: &Graph, origin: &Origin, format: Format, dir: &Path) -> Result<Written> {
    let path = dir.join(format.file(graph.name()));
    let failed = || format!("{} could not be written", path.display());
    let reread = || format!("{} was written, but could not be read back", path.display());
    let verified = match format {
        Format::Torchscript => {
            let mut about = head(origin);
            about.insert("network".into(), json!(graph.name()));
            about.extend(port_list(graph)?);
            torchscript::write(graph, &Value::from(about).to_string(), &path).with_context(failed)?;
            let module = native::load_script(&path, Device::Cpu).with_context(reread)?;
            compare(graph, &module).map(Verified::Run)
        }
        Format::Safetensors => {
            let tensors = graph.tensors()?.into_iter().map(|(key, t, _)| (key, t)).collect();
            weights_file::write(&path, tensors).with_context(failed)?;
            same_bits(graph, &path).with_context(reread).map(|()| Verified::Bits)
        }
        Format::Onnx => {
            let about: Vec<_> = head(origin).into_iter().map(|(key, value)| (key, plain(&value))).collect();
            let about: Vec<_> = about.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
            onnx::write(graph, &about, &path).with_context(failed).map(|()| Verified::Tests)
        }
    };
    let verified = verified
        .with_context(|| format!("the export {} failed its check and was deleted", format.file(graph.name())))?;
    Ok(Written { path, format, verified })
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
    if let Some(classes) = port.classes {
        return Ok(Tensor::f_arange(batch, (Kind::Int64, Device::Cpu))?.f_remainder(classes)?);
    }
    let shape: Vec<i64> = [batch].into_iter().chain(port.dims.iter().copied()).collect();
    let x = native::randn(batch, &shape)?;
    Ok(if port.range.is_some() { x.f_sigmoid()? } else { x })
}

/// Largest differences of the module's outputs from the network's at each batch size.
fn compare(graph: &Graph, module: &CModule) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for batch in BATCHES {
        let inputs = graph.inputs().iter().map(|port| example(port, batch)).collect::<Result<Vec<_>>>()?;
        let want = graph.evaluate(&inputs.iter().collect::<Vec<_>>())?;
        let given: Vec<IValue> = inputs.into_iter().map(IValue::Tensor).collect();
        let got = outputs(tch::no_grad(|| module.forward_is(&given))?)?;
        ensure!(want.len() == got.len(), "it gives {} outputs, the network {}", got.len(), want.len());
        let mut largest = 0.0;
        for (((port, _), want), got) in graph.outputs().iter().zip(&want).zip(&got) {
            largest = f64::max(largest, difference(port.name, batch, got, want)?);
        }
        all.push(largest);
    }
    Ok(all)
}

/// Largest difference of an output from the network's.
///
/// # Errors
/// When it is more than rounding, or the shapes differ.
fn difference(name: &str, batch: i64, got: &Tensor, want: &Tensor) -> Result<f64> {
    let shape = want.size();
    ensure!(got.size() == shape, "its {name} has shape {:?}, the network's {shape:?}", got.size());
    let largest = |t: &Tensor| -> Result<f64> {
        // sync: two numbers for each comparison.
        Ok(t.f_abs()?.f_max()?.f_double_value(&[])?)
    };
    let (off, scale) = (largest(&got.f_sub(want)?)?, largest(want)?);
    ensure!(scale.is_finite(), "the network's {name} is not finite: training has diverged");
    ensure!(
        off <= TOLERANCE * scale.max(1.0),
        "its {name} differs by {off:.3e} from the network's at batch size {batch}, at most {:.3e} is rounding",
        TOLERANCE * scale.max(1.0)
    );
    Ok(off)
}

/// Refuses a file whose tensors are not the network's, bit for bit.
fn same_bits(graph: &Graph, path: &Path) -> Result<()> {
    let bytes = fs::read(path)?;
    let stored = safetensors::SafeTensors::deserialize(&bytes)?;
    let wanted = graph.tensors()?;
    ensure!(stored.len() == wanted.len(), "it holds {} tensors, the network {}", stored.len(), wanted.len());
    for (key, t, _) in wanted {
        ensure!(weights_file::same(&stored.tensor(&key)?, &t)?, "its {key} is not the network's");
    }
    Ok(())
}

/// The first entries of every description.
fn head(origin: &Origin) -> Map<String, Value> {
    let pairs = [
        ("ganvae", json!(env!("CARGO_PKG_VERSION"))),
        ("libtorch", json!(env!("GANVAE_LIBTORCH_VERSION"))),
        ("model", json!(origin.model)),
        ("preset", json!(origin.preset)),
        ("data", json!(origin.data)),
        ("step", json!(origin.step)),
    ];
    let classes = (!origin.classes.is_empty()).then(|| ("classes", json!(origin.classes)));
    pairs.into_iter().chain(classes).map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The inputs and outputs of a network.
fn port_list(graph: &Graph) -> Result<Map<String, Value>> {
    let port = |p: &Port| {
        let shape: Vec<Value> = [json!("B")].into_iter().chain(p.dims.iter().map(|d| json!(d))).collect();
        let mut about =
            json!({ "name": p.name, "about": p.about, "shape": shape, "range": p.range.map(|(lo, hi)| [lo, hi]) });
        if let Some(classes) = p.classes {
            about["classes"] = json!(classes);
        }
        about
    };
    let inputs: Vec<_> = graph.inputs().iter().map(port).collect();
    let outputs: Vec<_> = graph.outputs().iter().map(|(p, _)| port(p)).collect();
    let count: usize = graph.tensors()?.iter().filter(|(.., trained)| *trained).map(|(_, t, _)| t.numel()).sum();
    let mut about = Map::new();
    // One input is the rule; of several, all are listed.
    match inputs.as_slice() {
        [one] => about.insert("input".into(), one.clone()),
        _ => about.insert("inputs".into(), inputs.into()),
    };
    about.insert("outputs".into(), outputs.into());
    about.insert("parameters".into(), json!(count));
    Ok(about)
}

fn described_file(written: &Written) -> Value {
    let name = written.path.file_name().unwrap_or_default().to_string_lossy();
    match &written.verified {
        Verified::Run(differences) => {
            let at: Map<String, Value> =
                BATCHES.iter().zip(differences).map(|(b, d)| (b.to_string(), json!(d))).collect();
            json!({
                "file": name,
                "verified": "loaded again and compared with the network",
                "largest_difference": differences.iter().copied().fold(0.0, f64::max),
                "difference_at_batch_size": at,
            })
        }
        Verified::Bits => json!({ "file": name, "verified": "read again: equal to the network's weights bit for bit" }),
        Verified::Tests => json!({
            "file": name,
            "verified": "not checked when it was written, as ganvae has no ONNX runtime; its tests run such files in onnxruntime",
        }),
    }
}

#[cfg(test)]
mod tests;
