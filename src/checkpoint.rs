//! Checkpoints: all state of a run in a folder that is either complete or not there. Imports model, hash and progress (to warn).
//!
//! `checkpoints/step-00000469/` holds model.safetensors (weights, buffers, averages), optimizer.safetensors (moments,
//! counters) and state.json (where the run stands, and the checksum of the other two). It is written under another name,
//! synced, then renamed; `checkpoints/latest` names the newest.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::hash;
use crate::model::{Part, Visit};
use crate::progress;

/// Version of the layout described above.
const FORMAT: u32 = 1;

/// Where a run stood when a checkpoint was written: `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Version of the layout.
    pub format: u32,
    /// `vae` or `gan`.
    pub model: String,
    /// Updates done.
    pub step: u64,
    /// Seconds of training so far, over all processes.
    pub wall_s: f64,
    /// Images in the running sums of the log interval under way.
    pub meter_images: u64,
    /// Length of metrics.jsonl: rows after it belong to steps that a resumed run does again.
    pub metrics_bytes: u64,
    /// Size and SHA-256 of the other files.
    pub files: BTreeMap<String, FileSum>,
}

/// What a file must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    /// Length.
    pub bytes: u64,
    /// Checksum in hexadecimal.
    pub sha256: String,
}

impl State {
    /// A state without files, for [`save`] to complete.
    pub fn new(model: String, step: u64, wall_s: f64, meter_images: u64, metrics_bytes: u64) -> Self {
        State { format: FORMAT, model, step, wall_s, meter_images, metrics_bytes, files: BTreeMap::new() }
    }

    /// Refuses a checkpoint of another kind of model than the run says it is.
    ///
    /// # Errors
    /// When they differ.
    pub fn check_model(&self, model: impl std::fmt::Display) -> Result<()> {
        let wanted = model.to_string();
        ensure!(
            self.model == wanted,
            "the checkpoint of step {} is of a {}, the run of a {wanted}",
            self.step,
            self.model
        );
        Ok(())
    }
}

fn file_name(part: Part) -> &'static str {
    match part {
        Part::Model => "model.safetensors",
        Part::Optimizer => "optimizer.safetensors",
    }
}

/// Writes a checkpoint below `folder` (the run's `checkpoints/`) and prunes all but the `keep` newest.
///
/// `visit` shows all state to the visitor it is given. Nothing is visible under the checkpoint's name until every file is
/// on the disk.
///
/// # Errors
/// When a file cannot be written; names it. The checkpoints before stay as they were.
pub fn save(
    folder: &Path,
    mut state: State,
    keep: usize,
    visit: &mut dyn FnMut(&mut dyn Visit) -> Result<()>,
) -> Result<PathBuf> {
    let name = format!("step-{:08}", state.step);
    let (part, target) = (folder.join(format!(".{name}.part")), folder.join(&name));
    let mut gather = Gather::default();
    visit(&mut gather)?;
    let write = || -> Result<()> {
        remove_dir(&part)?;
        fs::create_dir_all(&part)?;
        for (kind, tensors) in [(Part::Model, gather.model), (Part::Optimizer, gather.optimizer)] {
            let file = part.join(file_name(kind));
            write_tensors(&file, tensors)?;
            state.files.insert(file_name(kind).to_owned(), sum(&file)?);
        }
        write_synced(&part.join("state.json"), &serde_json::to_vec_pretty(&state)?)?;
        sync(&part)?;
        remove_dir(&target)?;
        fs::rename(&part, &target)?;
        write_synced(&folder.join(".latest.part"), name.as_bytes())?;
        fs::rename(folder.join(".latest.part"), folder.join("latest"))?;
        sync(folder)
    };
    write()
        .inspect_err(|_| drop(fs::remove_dir_all(&part)))
        .with_context(|| format!("the checkpoint {} could not be written", target.display()))?;
    // A later one than this is of a branch that was left: damaged, and passed over when the run was resumed.
    let (past, later): (Vec<_>, Vec<_>) = list(folder)?.into_iter().partition(|(step, _)| *step <= state.step);
    for (_, old) in later.iter().chain(past.iter().rev().skip(keep.max(1))) {
        remove_dir(old).with_context(|| format!("the old checkpoint {} could not be removed", old.display()))?;
    }
    Ok(target)
}

/// Checkpoints below `folder` by the number in their name, oldest first: folders called `step-` and digits, no others.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = fs::read_dir(folder).with_context(|| format!("the folder {} could not be read", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let digits = name.strip_prefix("step-").filter(|d| d.len() >= 8 && d.bytes().all(|b| b.is_ascii_digit()));
        if let (Some(step), true) = (digits.and_then(|d| d.parse().ok()), path.is_dir()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The newest checkpoint whose files have the checksums that its state.json gives; a damaged one is named on stderr and
/// passed over.
///
/// # Errors
/// When there is none, or none that is whole.
pub fn newest_whole(folder: &Path) -> Result<(PathBuf, State)> {
    let all = list(folder)?;
    ensure!(
        !all.is_empty(),
        "{} holds no checkpoint yet: the run ended before its first, so remove its folder and train anew",
        folder.display()
    );
    let mut last_error = None;
    for (_, dir) in all.iter().rev() {
        match verify(dir) {
            Ok(state) => return Ok((dir.clone(), state)),
            Err(e) => {
                progress::say(&format!("warning: {e:#}; trying the checkpoint before it"));
                last_error = Some(e);
            }
        }
    }
    bail!(
        "no whole checkpoint is left in {} ({} damaged){}",
        folder.display(),
        all.len(),
        last_error.map_or_else(String::new, |e| format!(": {e:#}"))
    )
}

/// Reads state.json and checks the files it lists.
fn verify(dir: &Path) -> Result<State> {
    let path = dir.join("state.json");
    let text = fs::read(&path).with_context(|| format!("{} could not be read", path.display()))?;
    let state: State = serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    ensure!(
        state.format == FORMAT,
        "{} has format {}, this ganvae reads format {FORMAT}: use the version that wrote it (config.toml names it)",
        path.display(),
        state.format
    );
    for part in [Part::Model, Part::Optimizer] {
        let (name, file) = (file_name(part), dir.join(file_name(part)));
        let want = state.files.get(name).with_context(|| format!("{} does not list {name}", path.display()))?;
        let found = sum(&file).with_context(|| format!("{} could not be read", file.display()))?;
        ensure!(
            found == *want,
            "{} is damaged: {} bytes with SHA-256 {}..., wanted {} bytes with {}...",
            file.display(),
            found.bytes,
            head(&found.sha256),
            want.bytes,
            head(&want.sha256)
        );
    }
    Ok(state)
}

fn head(sum: &str) -> &str {
    sum.get(..12).unwrap_or(sum)
}

/// Copies the state in checkpoint `dir` into what `visit` shows; `parts` says which files are wanted.
///
/// # Errors
/// When names, shapes or types differ: the sentence lists the differences, and nothing has been copied then.
pub fn load(dir: &Path, parts: &[Part], visit: &mut dyn FnMut(&mut dyn Visit) -> Result<()>) -> Result<()> {
    let mut gather = Gather::default();
    visit(&mut gather)?;
    let mut pending = Vec::new();
    for part in parts {
        let live = match part {
            Part::Model => &gather.model,
            Part::Optimizer => &gather.optimizer,
        };
        let file = dir.join(file_name(*part));
        let bytes = fs::read(&file).with_context(|| format!("{} could not be read", file.display()))?;
        let stored = SafeTensors::deserialize(&bytes)
            .map_err(|e| anyhow::anyhow!("{} is not a whole safetensors file: {e}", file.display()))?;
        let differences = compare(live, &stored);
        ensure!(differences.is_empty(), "{} does not fit this model: {}", file.display(), differences.join("; "));
        for (name, t) in live {
            pending.push((t.shallow_clone(), tensor_of(&stored.tensor(name)?)?));
        }
    }
    tch::no_grad(|| {
        for (mut live, stored) in pending {
            live.f_copy_(&stored)?;
        }
        Ok(())
    })
}

fn compare(live: &[(String, Tensor)], stored: &SafeTensors) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, t) in live {
        match stored.tensor(name) {
            Err(_) => differences.push(format!("{name} is missing")),
            Ok(view) => {
                let shape: Vec<i64> = view.shape().iter().map(|&d| d as i64).collect();
                if shape != t.size() {
                    differences.push(format!("{name} has shape {shape:?}, wanted {:?}", t.size()));
                } else if dtype(t.kind()).ok() != Some(view.dtype()) {
                    differences.push(format!("{name} has type {:?}, wanted {:?}", view.dtype(), t.kind()));
                }
            }
        }
    }
    for name in stored.names() {
        if !live.iter().any(|(n, _)| n == name) {
            differences.push(format!("{name} is not in this model"));
        }
    }
    let more = differences.len().saturating_sub(8);
    differences.truncate(8);
    if more > 0 {
        differences.push(format!("and {more} more"));
    }
    differences
}

/// Collects what is visited, by file.
#[derive(Default)]
struct Gather {
    model: Vec<(String, Tensor)>,
    optimizer: Vec<(String, Tensor)>,
}

impl Visit for Gather {
    fn tensor(&mut self, part: Part, name: &str, t: &Tensor) -> Result<()> {
        let list = match part {
            Part::Model => &mut self.model,
            Part::Optimizer => &mut self.optimizer,
        };
        ensure!(!name.contains("__"), "the variable name {name} has '__' in it: two layers share one path");
        ensure!(list.iter().all(|(n, _)| n != name), "two pieces of state are called {name}");
        list.push((name.to_owned(), t.shallow_clone()));
        Ok(())
    }
}

/// Writes tensors as safetensors, synced, lending their own memory to the writer: on the CPU nothing is copied.
fn write_tensors(file: &Path, tensors: Vec<(String, Tensor)>) -> Result<()> {
    let mut held = Vec::with_capacity(tensors.len());
    for (name, t) in tensors {
        held.push((name, t.detach().f_to_device(Device::Cpu)?.f_contiguous()?));
    }
    let mut views = Vec::with_capacity(held.len());
    for (name, t) in &held {
        let shape = t.size().iter().map(|&d| d as usize).collect();
        views.push((name, TensorView::new(dtype(t.kind())?, shape, bytes_of(t))?));
    }
    safetensors::serialize_to_file(views, None, file)?;
    sync(file)
}

/// The memory of a contiguous tensor on the CPU.
fn bytes_of(t: &Tensor) -> &[u8] {
    let bytes = t.numel() * t.kind().elt_size_in_bytes();
    // SAFETY: `write_tensors` made the tensor contiguous and moved it to the CPU, where `data_ptr` is the start of exactly
    // `bytes` bytes that live as long as the tensor; a slice may not start at null, which an empty tensor's memory may.
    match bytes {
        0 => &[],
        _ => unsafe { std::slice::from_raw_parts(t.data_ptr() as *const u8, bytes) },
    }
}

fn dtype(kind: Kind) -> Result<Dtype> {
    Ok(match kind {
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::Int64 => Dtype::I64,
        other => bail!("state of type {other:?} has no place in a checkpoint"),
    })
}

fn tensor_of(view: &TensorView) -> Result<Tensor> {
    let kind = match view.dtype() {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::I64 => Kind::Int64,
        other => bail!("a tensor of type {other:?} has no place in a checkpoint"),
    };
    let shape: Vec<i64> = view.shape().iter().map(|&d| d as i64).collect();
    Ok(Tensor::f_from_data_size(view.data(), &shape, kind)?)
}

fn sum(file: &Path) -> Result<FileSum> {
    let (bytes, sha256) = hash::sha256_file(file)?;
    Ok(FileSum { bytes, sha256 })
}

fn write_synced(file: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(file, bytes)?;
    sync(file)
}

/// Waits until a file or folder is on the disk.
fn sync(path: &Path) -> Result<()> {
    Ok(fs::File::open(path)?.sync_all()?)
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(step: u64) -> State {
        State::new("vae".into(), step, 1.5, 0, 0)
    }

    fn tensors(seed: i64) -> Vec<(Part, String, Tensor)> {
        tch::manual_seed(seed);
        let f = (Kind::Float, Device::Cpu);
        vec![
            (Part::Model, "a.weight".into(), Tensor::randn([3, 4], f)),
            (Part::Model, "a.bias".into(), Tensor::randn([4], f)),
            (Part::Optimizer, "step".into(), Tensor::from(seed as f64)),
        ]
    }

    fn show(list: &[(Part, String, Tensor)]) -> impl FnMut(&mut dyn Visit) -> Result<()> + '_ {
        move |v| list.iter().try_for_each(|(part, name, t)| v.tensor(*part, name, t))
    }

    const BOTH: [Part; 2] = [Part::Model, Part::Optimizer];

    #[test]
    fn what_is_saved_comes_back_and_old_ones_are_pruned() {
        let dir = tempfile::tempdir().unwrap();
        for step in [1, 2, 3, 10] {
            save(dir.path(), state(step), 2, &mut show(&tensors(step as i64))).unwrap();
        }
        assert_eq!(fs::read_to_string(dir.path().join("latest")).unwrap(), "step-00000010");
        assert_eq!(list(dir.path()).unwrap().len(), 2);
        let (newest, found) = newest_whole(dir.path()).unwrap();
        assert_eq!(found.step, 10);
        let (live, want) = (tensors(0), tensors(10));
        load(&newest, &BOTH, &mut show(&live)).unwrap();
        for (l, w) in live.iter().zip(&want) {
            assert!(l.2.equal(&w.2), "{}", l.1);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "no temporary folder is left");
    }

    #[test]
    fn any_damaged_file_sends_us_to_the_one_before() {
        for (file, change) in
            [("model.safetensors", 0), ("optimizer.safetensors", 1), ("state.json", 2), ("model.safetensors", 3)]
        {
            let dir = tempfile::tempdir().unwrap();
            save(dir.path(), state(1), 5, &mut show(&tensors(1))).unwrap();
            let path = save(dir.path(), state(2), 5, &mut show(&tensors(2))).unwrap().join(file);
            let mut bytes = fs::read(&path).unwrap();
            match change {
                0 => {
                    let n = bytes.len();
                    bytes[n - 1] ^= 1
                }
                1 => {
                    bytes.pop();
                }
                2 => bytes.clear(),
                _ => {
                    fs::remove_file(&path).unwrap();
                }
            }
            if change != 3 {
                fs::write(&path, &bytes).unwrap();
            }
            let (found, state_1) = newest_whole(dir.path()).unwrap();
            assert_eq!(state_1.step, 1, "{file}, change {change}");
            assert!(found.ends_with("step-00000001"));
            fs::remove_dir_all(dir.path().join("step-00000001")).unwrap();
            let e = format!("{:#}", newest_whole(dir.path()).unwrap_err());
            assert!(e.contains("no whole checkpoint") && e.contains(file), "{e}");
        }
    }

    #[test]
    fn only_numbered_folders_count_and_they_sort_by_number() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("step-notes.txt"), "mine").unwrap();
        fs::write(dir.path().join("step-99999999"), "a file").unwrap();
        fs::create_dir(dir.path().join("step-00000001.bak")).unwrap();
        for step in [99_999_998, 100_000_000, 100_000_001] {
            save(dir.path(), state(step), 2, &mut show(&tensors(1))).unwrap();
        }
        let steps: Vec<_> = list(dir.path()).unwrap().into_iter().map(|(step, _)| step).collect();
        assert_eq!(steps, [100_000_000, 100_000_001]);
        assert_eq!(newest_whole(dir.path()).unwrap().1.step, 100_000_001);
        assert!(dir.path().join("step-notes.txt").exists() && dir.path().join("step-00000001.bak").exists());
    }

    #[test]
    fn checkpoints_of_a_branch_that_was_left_go() {
        let dir = tempfile::tempdir().unwrap();
        for step in [10, 20, 30, 15] {
            save(dir.path(), state(step), 2, &mut show(&tensors(1))).unwrap();
        }
        let steps: Vec<_> = list(dir.path()).unwrap().into_iter().map(|(step, _)| step).collect();
        assert_eq!(steps, [15], "10 was pruned before, 20 and 30 are later than the one just written");
    }

    #[test]
    fn another_models_checkpoint_is_refused_whole_with_the_differences() {
        let dir = tempfile::tempdir().unwrap();
        let path = save(dir.path(), state(1), 1, &mut show(&tensors(1))).unwrap();
        let mut live = tensors(5);
        live[1].2 = Tensor::zeros([5], (Kind::Float, Device::Cpu));
        live[2].1 = "other".into();
        live.push((Part::Model, "b".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu))));
        let before = live[0].2.copy();
        let e = load(&path, &BOTH, &mut show(&live)).unwrap_err().to_string();
        assert!(e.contains("a.bias has shape [4], wanted [5]") && e.contains("b is missing"), "{e}");
        let e = load(&path, &[Part::Optimizer], &mut show(&live)).unwrap_err().to_string();
        assert!(e.contains("other is missing") && e.contains("step is not in this model"), "{e}");
        assert!(live[0].2.equal(&before), "nothing was copied");
    }

    #[test]
    fn a_header_that_lies_about_sizes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = save(dir.path(), state(1), 1, &mut show(&tensors(1))).unwrap();
        fs::write(path.join("model.safetensors"), [0xff; 16]).unwrap();
        let e = load(&path, &[Part::Model], &mut show(&tensors(1))).unwrap_err().to_string();
        assert!(e.contains("not a whole safetensors file"), "{e}");
    }

    #[test]
    fn two_pieces_of_state_never_share_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut twice = tensors(1);
        twice[1].1 = "a.weight".into();
        assert!(save(dir.path(), state(1), 1, &mut show(&twice)).is_err());
    }
}
