//! Checkpoints: all state of a run in a folder that is either complete or not there.
//!
//! `checkpoints/step-00000469/` holds model.safetensors (weights, buffers, averages), optimizer.safetensors (moments,
//! counters), state.json (the position of the run, and the checksums of the other two) and state.sha256 (its own checksum). It is
//! written under a temporary name, synced, then renamed. `checkpoints/latest` names the newest, `checkpoints/best` the best.
//!
//! Once a newer checkpoint is on the disk, an older one may lose optimizer.safetensors ([`Retention`]): without this file it is still
//! complete for reading the model, and training cannot be resumed from it. Its state.json stays as it was.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::base::atomic_file::{self, replace_folder, sync};
use crate::base::hash;
use crate::base::names::shell_quoted;
use crate::base::progress;
use crate::base::small_file;
use crate::base::usage::usage;
use crate::base::weights_file;
use crate::config::training::{KeepOptimizer, Retention};
use crate::models::{Part, Visit};
use crate::nets::graph;
use crate::run::folder::ignore_missing;

/// Version of the layout described above.
const FORMAT: u32 = 2;

/// The position of a run when a checkpoint was written: `state.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Version of the layout.
    pub format: u32,
    /// `vae` or `gan`.
    pub model: String,
    /// Updates done.
    pub step: u64,
    /// Seconds of training so far, over all processes.
    pub wall_s: f64,
    /// Images in the running sums of the current log interval.
    pub meter_images: u64,
    /// Length of metrics.jsonl: rows after it belong to steps that a resumed run does again.
    pub metrics_bytes: u64,
    /// Settings that must not change, by key.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// What the run computes with, by key, as in `[run.tuning]` of config.toml.
    #[serde(default)]
    pub tuning: BTreeMap<String, String>,
    /// Whether the evaluation of the epoch that ends here is not done yet.
    #[serde(default)]
    pub epoch_due: bool,
    /// Rollbacks after a divergence so far.
    #[serde(default)]
    pub rollbacks: u32,
    /// The checkpoint with the best held-out value so far.
    #[serde(default)]
    pub best: Option<Best>,
    /// Size and SHA-256 of the other files.
    pub files: BTreeMap<String, FileSum>,
}

/// A checkpoint and its held-out value; lower is better.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Updates done.
    pub step: u64,
    /// Mean over the held-out images.
    pub value: f64,
}

/// Which checkpoint of a run is meant: `--checkpoint`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Selection {
    /// The newest intact one.
    #[default]
    Latest,
    /// The one with the best held-out score.
    Best,
    /// The one after this number of updates.
    Step(u64),
}

impl FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "latest" => Ok(Selection::Latest),
            "best" => Ok(Selection::Best),
            step => step.parse().map(Selection::Step).map_err(|_| "wanted best, latest or the number of a step".into()),
        }
    }
}

/// The size and checksum that a file must have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSum {
    /// Length.
    pub bytes: u64,
    /// Checksum in hexadecimal.
    pub sha256: String,
}

impl std::fmt::Display for FileSum {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} bytes with SHA-256 {:.12}...", self.bytes, self.sha256)
    }
}

impl State {
    /// The state of a run of this model after `step` updates, all other fields empty; [`save`] adds the files.
    pub fn new(model: String, step: u64) -> Self {
        State { format: FORMAT, model, step, ..State::default() }
    }

    /// Refuses a checkpoint of another kind of model than the run.
    pub fn check_model(&self, model: impl std::fmt::Display) -> Result<()> {
        let State { model: found, step, .. } = self;
        ensure!(*found == model.to_string(), "the checkpoint of step {step} is of a {found}, the run of a {model}");
        Ok(())
    }
}

fn file_name(part: Part) -> &'static str {
    match part {
        Part::Model => "model.safetensors",
        Part::Optimizer => "optimizer.safetensors",
    }
}

/// Writes a checkpoint below `folder` (the run's `checkpoints/`), then prunes older ones as [`settle`] does.
///
/// `visit` shows all state to the visitor it is given. Nothing is visible under the checkpoint's name until every file is
/// on the disk.
///
/// # Errors
/// When a file cannot be written; names it. Earlier checkpoints are unchanged.
pub fn save(
    folder: &Path,
    mut state: State,
    keep: Retention,
    visit: &mut dyn FnMut(&mut dyn Visit) -> Result<()>,
) -> Result<PathBuf> {
    let name = folder_name(state.step);
    let (part, target) = (folder.join(format!(".{name}.part")), folder.join(&name));
    let parts = [(Part::Model, gather(Part::Model, visit)?), (Part::Optimizer, gather(Part::Optimizer, visit)?)];
    let write = || -> Result<()> {
        ignore_missing(fs::remove_dir_all(&part))?;
        // Without the parent folders: they exist, or the run has been removed.
        fs::create_dir(&part)?;
        for (kind, tensors) in parts {
            let file = part.join(file_name(kind));
            weights_file::write(&file, tensors.into_iter().collect())?;
            state.files.insert(file_name(kind).to_owned(), sum(&file)?);
        }
        let text = serde_json::to_vec_pretty(&state)?;
        for (name, bytes) in [(STATE, &text[..]), (STATE_SUM, hash::sha256([&text[..]]).as_bytes())] {
            fs::write(part.join(name), bytes)?;
            sync(&part.join(name))?;
        }
        sync(&part)?;
        Ok(replace_folder(&part, &target)?)
    };
    write()
        .inspect_err(|_| drop(fs::remove_dir_all(&part)))
        .with_context(|| format!("the checkpoint {} could not be written", target.display()))?;
    // Later checkpoints were damaged and skipped when the run was resumed: it trains those steps again.
    for (_, old) in list(folder)?.iter().filter(|(step, _)| *step > state.step) {
        remove_old(old)?;
    }
    settle(folder, &state, keep)?;
    Ok(target)
}

/// Updates `latest` and `best`; of the checkpoints before that of `state`, which is on the disk, removes what `keep` does not keep; removes
/// unfinished writes. The best checkpoint is never changed. A resumed run does it again, since the process may have been killed before.
pub fn settle(folder: &Path, state: &State, keep: Retention) -> Result<()> {
    let best = state.best.map(|best| best.step);
    write_pointer(folder, "latest", Some(state.step))?;
    write_pointer(folder, "best", best)?;
    // The newest checkpoint must survive a power failure before older ones lose anything.
    sync(folder).with_context(|| format!("{} could not be synced", folder.display()))?;
    let past = list(folder)?.into_iter().filter(|(step, _)| *step <= state.step);
    for (i, (step, old)) in past.rev().enumerate() {
        if step == state.step || Some(step) == best {
            continue;
        }
        if i >= keep.checkpoints.max(1) {
            remove_old(&old)?;
        } else if keep.optimizer == KeepOptimizer::Newest {
            let file = old.join(file_name(Part::Optimizer));
            ignore_missing(fs::remove_file(&file))
                .with_context(|| format!("{} could not be removed", file.display()))?;
        }
    }
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(".step-") {
            let unfinished = entry.path();
            ignore_missing(fs::remove_dir_all(&unfinished))
                .with_context(|| format!("{} could not be removed", unfinished.display()))?;
        }
    }
    Ok(())
}

/// Removes a checkpoint. It loses its name first: a reader finds it complete or not at all.
fn remove_old(dir: &Path) -> Result<()> {
    let hidden = dir.with_file_name(format!(".{}.old", dir.file_name().unwrap_or_default().to_string_lossy()));
    // Of a removal that was interrupted.
    ignore_missing(fs::remove_dir_all(&hidden))
        .and_then(|()| ignore_missing(fs::rename(dir, &hidden)))
        .and_then(|()| ignore_missing(fs::remove_dir_all(&hidden)))
        .with_context(|| format!("the old checkpoint {} could not be removed", dir.display()))
}

const STATE: &str = "state.json";
const STATE_SUM: &str = "state.sha256";

fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step in the name of a checkpoint's folder.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (folder_name(step) == name).then_some(step)
}

/// Writes the name of the checkpoint of `step` into the file `name`; removes the file where there is no such checkpoint.
fn write_pointer(folder: &Path, name: &str, step: Option<u64>) -> Result<()> {
    let file = folder.join(name);
    let Some(target) = step.map(folder_name) else {
        return ignore_missing(fs::remove_file(&file))
            .with_context(|| format!("{} could not be removed", file.display()));
    };
    if !small_file::read(&file).is_ok_and(|found| found == target.as_bytes()) {
        atomic_file::write(&file, target.as_bytes())?;
    }
    Ok(())
}

/// Checkpoints below `folder` by the number in their name, oldest first: folders called `step-` and digits, no others.
///
/// None where there is no folder.
pub fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("the folder {} could not be read", folder.display()))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let step = step_of(&name.to_string_lossy());
        // By the entry first: a folder that has just been removed is still in the list.
        if let Some(step) = step.filter(|_| entry.file_type().is_ok_and(|t| t.is_dir()) || path.is_dir()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// How long a reader tries again when the run that trains has removed or replaced the checkpoint that it reads.
const PATIENCE: Duration = Duration::from_secs(5);

/// Calls `take` with the checkpoint of a run that is meant and its state; none when there is no checkpoint yet. `take` is called again
/// when the run, which may be training, has removed or replaced that checkpoint meanwhile. `folder` is the run's `checkpoints/`.
///
/// # Errors
/// Those of `take`; [`crate::base::usage::Usage`] when there is no such checkpoint; when it is damaged.
pub fn read<T>(
    folder: &Path,
    selection: Selection,
    mut take: impl FnMut(&Path, &State) -> Result<T>,
) -> Result<Option<T>> {
    let began = Instant::now();
    loop {
        let found = match selection {
            Selection::Latest => newest_intact(folder)?.map(|(dir, state)| (identity(&dir), dir, Ok(state))),
            _ => named(folder, selection)?.map(|dir| {
                let before = identity(&dir);
                let state = verify(&dir, &[Part::Model]);
                (before, dir, state)
            }),
        };
        let Some((before, dir, state)) = found else { return Ok(None) };
        match state.and_then(|state| take(&dir, &state)) {
            Err(_) if was_replaced(&dir, before) && began.elapsed() < PATIENCE => sleep(Duration::from_millis(5)),
            taken => return taken.map(Some),
        }
    }
}

/// The folder of the best checkpoint or of that of a step; none when the run has no checkpoint at all.
fn named(folder: &Path, selection: Selection) -> Result<Option<PathBuf>> {
    let all = list(folder)?;
    let steps: Vec<String> = all.iter().map(|(step, _)| step.to_string()).collect();
    let (place, steps) = (folder.display(), shortened(&steps, ", "));
    if let Selection::Step(step) = selection {
        let found = all.into_iter().find(|(of, _)| *of == step);
        if found.is_none() && !steps.is_empty() {
            usage!(
                "--checkpoint {step}: {place} has no checkpoint of that step; wanted latest, best, or a step of {steps}"
            );
        }
        return Ok(found.map(|(_, dir)| dir));
    }
    // Not by the file `best`: a process that is killed may leave it behind the state.
    let Some((_, state)) = newest_intact(folder)? else { return Ok(None) };
    let Some(best) = state.best else {
        usage!(
            "--checkpoint best: {place} has no best checkpoint (a VAE has one from its first held-out loss on, a GAN with `train --score fid`): \
             wanted latest, or a step of {steps}"
        );
    };
    Ok(Some(folder.join(folder_name(best.step))))
}

/// What tells a folder from another that has taken its name; none when it is gone.
fn identity(dir: &Path) -> Option<(u64, u64)> {
    fs::metadata(dir).ok().map(|folder| (folder.dev(), folder.ino()))
}

fn was_replaced(dir: &Path, before: Option<(u64, u64)>) -> bool {
    let now = identity(dir);
    now.is_none() || now != before
}

/// The newest checkpoint whose weights have the checksum in its state.json; a damaged one gives a warning and is skipped. None when
/// there is no checkpoint yet.
///
/// # Errors
/// When all are damaged.
pub fn newest_intact(folder: &Path) -> Result<Option<(PathBuf, State)>> {
    newest(folder, &[Part::Model])
}

/// The newest checkpoint from which training can be resumed: as [`newest_intact`], and with intact optimizer state.
///
/// # Errors
/// As [`newest_intact`]; when the intact ones hold no optimizer state, the sentence says how to use their weights.
pub fn newest_resumable(folder: &Path) -> Result<Option<(PathBuf, State)>> {
    newest(folder, &[Part::Model, Part::Optimizer])
}

fn newest(folder: &Path, parts: &[Part]) -> Result<Option<(PathBuf, State)>> {
    let began = Instant::now();
    let mut all = list(folder)?;
    let (mut last_error, mut damaged, mut weights_only) = (None, 0, None);
    while let Some((_, dir)) = all.pop() {
        let before = identity(&dir);
        match verify(&dir, parts) {
            Ok(mut state) => {
                if let Some(newer) = weights_only {
                    progress::say(&format!("warning: {newer}; using the newest checkpoint that has it"));
                }
                state.best = state.best.filter(|best| folder.join(folder_name(best.step)).is_dir());
                return Ok(Some((dir.clone(), state)));
            }
            // By the run, which trains on: it has newer ones.
            Err(_) if was_replaced(&dir, before) && began.elapsed() < PATIENCE => all = list(folder)?,
            Err(e) if e.is::<NoOptimizer>() => weights_only = weights_only.or(e.downcast::<NoOptimizer>().ok()),
            Err(e) => {
                damaged += 1;
                progress::say(&format!("warning: {e:#}; trying the checkpoint before it"));
                last_error = Some(e);
            }
        }
    }
    if let Some(found) = weights_only {
        let run = shell_quoted(folder.parent().unwrap_or(folder));
        bail!("{found}: start a new run from its weights with `ganvae train {} --init-from {run}`", found.model);
    }
    let Some(e) = last_error else { return Ok(None) };
    bail!("no intact checkpoint is left in {} ({damaged} damaged): {e:#}", folder.display())
}

/// A checkpoint with intact weights whose optimizer state has been removed.
#[derive(Debug)]
struct NoOptimizer {
    dir: PathBuf,
    model: String,
}

impl std::fmt::Display for NoOptimizer {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let dir = self.dir.display();
        write!(
            f,
            "{dir} holds no optimizer state, so training cannot be resumed from it (--keep-optimizer all keeps the state of every \
             checkpoint)"
        )
    }
}

impl std::error::Error for NoOptimizer {}

/// Reads state.json and checks the files of these parts. An error of a checkpoint without optimizer state is a [`NoOptimizer`].
fn verify(dir: &Path, parts: &[Part]) -> Result<State> {
    let path = dir.join(STATE);
    let file = path.display();
    let text = small_file::read(&path)?;
    let state: State = serde_json::from_slice(&text).with_context(|| format!("{file} is damaged"))?;
    let State { format, step, .. } = state;
    if format != FORMAT {
        bail!(
            "{file} has format {format}, wanted {FORMAT}: use the ganvae that wrote it (config.toml names the version)"
        );
    }
    let want = small_file::read(&dir.join(STATE_SUM))?;
    let (want, found) = (String::from_utf8_lossy(&want), hash::sha256([&text[..]]));
    ensure!(found == want, "{file} is damaged: it has SHA-256 {found:.12}..., wanted {want:.12}... ({STATE_SUM})");
    ensure!(dir.ends_with(folder_name(step)), "{file} says step {step}");
    for part in parts {
        let (name, file) = (file_name(*part), dir.join(file_name(*part)));
        let want = state.files.get(name).with_context(|| format!("{} does not list {name}", path.display()))?;
        let found = match sum(&file) {
            Err(e) if *part == Part::Optimizer && e.kind() == ErrorKind::NotFound => {
                bail!(NoOptimizer { dir: dir.to_owned(), model: state.model })
            }
            found => found.with_context(|| format!("{} could not be read", file.display()))?,
        };
        ensure!(found == *want, "{} is damaged: {found}, wanted {want}", file.display());
    }
    Ok(state)
}

/// Builds the model of the checkpoint `dir`: what is much larger than it is refused before it takes memory.
///
/// # Errors
/// As `build`; when the file of weights cannot be read.
pub fn built_for<T>(dir: &Path, build: impl FnOnce() -> Result<T>) -> Result<T> {
    let file = dir.join(file_name(Part::Model));
    let header = weights_file::header(&file).with_context(|| file.display().to_string())?;
    // No number takes less than a float's 4 bytes.
    graph::built_for(header.data_len() as i64 / 4, build)
}

/// Copies the state in checkpoint `dir` into the tensors that `visit` shows; `parts` are the files to read.
///
/// # Errors
/// When names, shapes or types differ: the sentence lists the differences, and nothing has been copied then.
pub fn load(dir: &Path, parts: &[Part], visit: &mut dyn FnMut(&mut dyn Visit) -> Result<()>) -> Result<()> {
    let mut pending = Vec::new();
    for part in parts {
        let live = gather(*part, visit)?;
        let file = dir.join(file_name(*part));
        let bytes = fs::read(&file).with_context(|| format!("{} could not be read", file.display()))?;
        let stored = SafeTensors::deserialize(&bytes)
            .map_err(|e| anyhow::anyhow!("{} is not a valid safetensors file: {e}", file.display()))?;
        let differences = compare(&live, &stored);
        if !differences.is_empty() {
            bail!("{} does not fit this model: {}", file.display(), shortened(&differences, "; "));
        }
        for (name, t) in live {
            pending.push((t, weights_file::tensor_of(&stored.tensor(&name)?)?));
        }
    }
    tch::no_grad(|| {
        for (mut live, stored) in pending {
            live.f_copy_(&stored)?;
        }
        Ok(())
    })
}

/// The differences between a model's state and a file.
fn compare(live: &BTreeMap<String, Tensor>, stored: &SafeTensors) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, t) in live {
        match stored.tensor(name) {
            Err(_) => differences.push(format!("{name} is missing")),
            Ok(view) => {
                let shape: Vec<i64> = view.shape().iter().map(|&d| d as i64).collect();
                if shape != t.size() {
                    differences.push(format!("{name} has shape {shape:?}, wanted {:?}", t.size()));
                } else if weights_file::dtype(t.kind()).ok() != Some(view.dtype()) {
                    differences.push(format!("{name} has type {:?}, wanted {:?}", view.dtype(), t.kind()));
                }
            }
        }
    }
    let unknown = stored.names().into_iter().filter(|name| !live.contains_key(*name));
    differences.extend(unknown.map(|name| format!("{name} is not in this model")));
    differences
}

/// The first eight entries of a list for a message, and how many more there are.
pub fn shortened(list: &[String], separator: &str) -> String {
    let more = list.len().saturating_sub(8);
    let and = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{and}", list[..list.len() - more].join(separator))
}

/// The tensors of this part of the state that `visit` shows, by name; they share the memory of the originals. Refuses duplicate names.
pub fn gather(part: Part, visit: &mut dyn FnMut(&mut dyn Visit) -> Result<()>) -> Result<BTreeMap<String, Tensor>> {
    let mut gather = Gather { part, tensors: BTreeMap::new() };
    visit(&mut gather)?;
    Ok(gather.tensors)
}

struct Gather {
    part: Part,
    tensors: BTreeMap<String, Tensor>,
}

impl Visit for Gather {
    fn tensor(&mut self, part: Part, name: &str, t: &Tensor) -> Result<()> {
        ensure!(!name.contains("__"), "the variable name {name} has '__' in it: two layers share one path");
        if part == self.part {
            let other = self.tensors.insert(name.to_owned(), t.shallow_clone());
            ensure!(other.is_none(), "two pieces of state are called {name}");
        }
        Ok(())
    }
}

fn sum(file: &Path) -> std::io::Result<FileSum> {
    let (bytes, sha256) = hash::sha256_file(file)?;
    Ok(FileSum { bytes, sha256 })
}

#[cfg(test)]
mod tests;
