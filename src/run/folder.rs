//! The run folder: its name, its paths, its lock, its config.toml.

use std::collections::BTreeMap;
use std::fs::{self, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::base::atomic_file;
use crate::base::classes::Classes;
use crate::base::names::shell_quoted;
use crate::base::progress::say;
use crate::base::setting::Settings;
use crate::base::shape::Shape;
use crate::base::small_file;
use crate::base::usage::{one_line, usage};
use crate::config::{differences, file};
use crate::models::ModelKind;
use crate::models::tuning::Tuning;

/// Paths of one run.
#[derive(Clone, Debug)]
pub struct RunDir {
    root: PathBuf,
}

/// The lock on a run's folder, held until the value is dropped.
#[derive(Debug)]
pub struct Lock {
    root: PathBuf,
    /// Device and inode of the folder.
    id: (u64, u64),
    _file: fs::File,
}

impl Lock {
    /// Refuses a folder that has been removed or replaced since it was locked.
    pub fn check(&self) -> Result<()> {
        match fs::metadata(&self.root) {
            Ok(found) if (found.dev(), found.ino()) == self.id => Ok(()),
            _ => bail!("{} is no longer there: it was removed or replaced while the run trained", self.root.display()),
        }
    }
}

const LOCK: &str = ".lock";
const CONFIG: &str = "config.toml";
/// The temporary name of config.toml while it is written.
const CONFIG_PART: &str = "config.toml.part";

/// The longest path of a run below its folder, of a step with the most digits.
const LONGEST: &str = "checkpoints/.step-0000000000000000.part/optimizer.safetensors";

/// The `[run]` table of config.toml: what a run was made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RunInfo {
    /// Version of ganvae.
    pub ganvae: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// Device it started on.
    pub device: String,
    /// Checksum of the images and labels.
    pub data_sha256: String,
    /// Images trained on.
    pub train_images: usize,
    /// Images held out.
    pub test_images: usize,
    /// Shape of each image.
    #[serde(flatten)]
    pub shape: Shape,
    /// The classes of a conditional model's images; none for another.
    #[serde(default, skip_serializing_if = "Classes::is_empty")]
    pub classes: Classes,
    /// What the run computes with: threads, kernels, layout.
    pub tuning: Tuning,
}

impl RunInfo {
    /// `[run.tuning]` by key, each value as in the file.
    pub fn tuning_by_key(&self) -> Result<BTreeMap<String, String>> {
        let table = toml::Table::try_from(self.tuning).context("writing [run.tuning] as TOML")?;
        Ok(table.into_iter().map(|(key, value)| (key, value.to_string())).collect())
    }

    /// Refuses, as a usage error that lists the differences, a `[run.tuning]` in `file` that is not the one (`before`) of the checkpoint.
    /// The threads may also be those of a later `--threads` (`threads`).
    pub fn refuse_edited_tuning(
        &self,
        before: &BTreeMap<String, String>,
        threads: Option<u32>,
        file: &Path,
    ) -> Result<()> {
        let mut before = before.clone();
        before.extend(threads.map(|n| ("threads".to_owned(), n.to_string())));
        if let Some(list) = differences(&before, ("in the checkpoint", "in the file"), &self.tuning_by_key()?) {
            let file = file.display();
            usage!(
                "[run.tuning] in {file} has changed since the run began: {list}; change it back, or train a new run with --config"
            );
        }
        Ok(())
    }
}

impl RunDir {
    /// Makes the folder of a new run: `out`, or the next number below `runs/` with the model and data in its name.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] when `out` exists and is not an empty folder; else when it cannot be made or written to.
    pub fn create(out: Option<&Path>, model: ModelKind, data: &str) -> Result<Self> {
        let root = match out {
            Some(out) => {
                check_free(out)?;
                make_folder(out)?;
                out.to_owned()
            }
            None => next_numbered(Path::new("runs"), model, data)?,
        };
        Ok(RunDir { root })
    }

    /// Locks the run for this process. The system releases the lock when the process ends, however it ends.
    ///
    /// # Errors
    /// When another process has it, or the lock's file cannot be opened.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.path(LOCK);
        let mut options = fs::OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.with_context(|| format!("{} could not be opened", path.display()))?;
        match file.try_lock() {
            Ok(()) => {
                let write = || file.set_len(0).and_then(|()| write!(&file, "{}", std::process::id()));
                write().with_context(|| format!("{} could not be written", path.display()))?;
            }
            Err(TryLockError::WouldBlock) => {
                let owner = small_file::read_text(&path).unwrap_or_default();
                let owner = if owner.is_empty() { "of an unknown number" } else { &owner };
                let root = self.root.display();
                bail!("{root} is in use by another ganvae (process {owner}): wait until it ends, or stop it first");
            }
            // As on some network file systems.
            Err(TryLockError::Error(e)) => {
                say(&format!("warning: {} cannot be locked ({e}): let no other ganvae use the run", path.display()));
            }
        }
        let folder = fs::metadata(&self.root).with_context(|| format!("{} could not be read", self.root.display()))?;
        Ok(Lock { root: self.root.clone(), id: (folder.dev(), folder.ino()), _file: file })
    }

    /// The folder of a run that exists.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] when it does not, or is no run.
    pub fn open(root: &Path) -> Result<Self> {
        if !root.is_dir() {
            usage!("{}: no such folder; a run is a folder such as runs/0001-vae-digits", root.display());
        }
        if !root.join(CONFIG).is_file() {
            usage!("{} is not a run: it has no config.toml", root.display());
        }
        Ok(RunDir { root: root.to_owned() })
    }

    /// The settings and the `[run]` table of config.toml.
    ///
    /// # Errors
    /// When the file cannot be read or is not what a run writes; [`crate::base::usage::Usage`] when another version wrote it.
    pub fn config(&self) -> Result<(ModelKind, Settings, RunInfo)> {
        #[derive(Deserialize)]
        struct RunTable<T> {
            run: T,
        }
        #[derive(Deserialize)]
        struct Version {
            ganvae: String,
        }
        let path = self.path(CONFIG);
        let text = small_file::read_text(&path)?;
        let file = path.display();
        // First: the settings of another version may have other names. A damaged file fails below.
        if let Ok(RunTable { run: Version { ganvae } }) = toml::from_str(&text)
            && minor_version(&ganvae) != minor_version(env!("CARGO_PKG_VERSION"))
        {
            let (root, own) = (self.root.display(), env!("CARGO_PKG_VERSION"));
            usage!(
                "{root} was made by ganvae {ganvae}, whose noise and settings differ from those of this one, {own}: go on with it with \
                 ganvae {ganvae}, or train a new run"
            );
        }
        let (model, settings) = file::parse(&text, &path)?;
        let model = model.with_context(|| format!("{file} does not say which model it is of"))?;
        let RunTable::<RunInfo> { run } = toml::from_str(&text)
            .map_err(|e| anyhow!("{file} has no complete [run] table: {}", one_line(e.message())))?;
        let (Shape { channels, height, width }, threads) = (run.shape, run.tuning.threads);
        if !(1..=1024).contains(&threads) {
            bail!("{file} says threads = {threads} in [run.tuning]: wanted 1 to 1024; it was edited");
        }
        if run.classes.names.len() != run.classes.shares.len() {
            bail!("{file} has names and shares of different numbers of classes in [run.classes]: it was edited");
        }
        if ![1, 3, 4].contains(&channels) || [height, width].iter().any(|side| !(1..=65_536).contains(side)) {
            bail!(
                "{file} says images of {channels}x{height}x{width} in [run]: wanted 1, 3 or 4 channels and sides from 1 to 65536; it \
                 was edited"
            );
        }
        Ok((model, settings, run))
    }

    /// Writes config.toml: the resolved settings, then what the run was made with.
    pub fn write_config(&self, settings: &str, info: &RunInfo) -> Result<()> {
        let run = toml::Table::from_iter([("run".to_owned(), toml::Value::try_from(info)?)]);
        let text = format!("{settings}\n{}", toml::to_string(&run)?);
        Ok(atomic_file::write(&self.path(CONFIG), text.as_bytes())?)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder, quoted for a shell where necessary.
    pub fn shell_quoted(&self) -> String {
        shell_quoted(&self.root)
    }

    /// A file of the run.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where sample grids go.
    pub fn samples(&self) -> PathBuf {
        self.path("samples")
    }

    /// Where checkpoints go.
    pub fn checkpoints(&self) -> PathBuf {
        self.path("checkpoints")
    }
}

/// Refuses, as a usage error, an `out` that cannot be the folder of a new run.
pub fn check_free(out: &Path) -> Result<()> {
    check_length("--out", out)?;
    match fs::read_dir(out) {
        Ok(entries) => {
            // A process that was killed before its run began leaves these two.
            if entries.flatten().any(|entry| ![LOCK, CONFIG_PART].iter().any(|name| entry.file_name() == *name)) {
                let (out, quoted) = (out.display(), shell_quoted(out));
                usage!(
                    "--out {out}: the folder is not empty; name another, or go on with `ganvae train --resume {quoted}`"
                );
            }
            Ok(())
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => usage!("--out {}: cannot be a run's folder ({e})", out.display()),
    }
}

/// Refuses, as a usage error, a folder of `flag` below which the system does not allow the longest path of a run.
pub fn check_length(flag: &str, root: &Path) -> Result<()> {
    // Absolute, because the library that writes weights makes its paths so.
    let longest = std::path::absolute(root).map(|root| root.join(LONGEST));
    match longest.and_then(fs::symlink_metadata) {
        Err(e) if e.kind() == ErrorKind::InvalidFilename => usage!(
            "{flag} {}: paths in a run's folder are up to {} bytes longer than its own, and that is too long ({e}): name a folder \
             with a shorter path",
            root.display(),
            LONGEST.len() + 1
        ),
        _ => Ok(()),
    }
}

/// Major and minor number of a version: the noise and the settings of versions that share them are the same.
fn minor_version(version: &str) -> Option<&str> {
    version.rsplit_once('.').map(|(minor, _)| minor)
}

/// Makes a folder and its parents where they are missing.
pub fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("the folder {} could not be made", path.display()))
}

/// The result of a removal; success where there was nothing to remove.
pub fn ignore_missing(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

/// `runs/0007-vae-mnist`: one above the highest number there; two processes at once get two numbers.
fn next_numbered(runs: &Path, model: ModelKind, data: &str) -> Result<PathBuf> {
    let cannot = || format!("no folder could be made in {} (use --out for another place)", runs.display());
    fs::create_dir_all(runs).with_context(cannot)?;
    let data: String = Path::new(data)
        .file_name()
        .map_or(data.into(), |n| n.to_string_lossy())
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(64)
        .collect();
    loop {
        let entries = fs::read_dir(runs).and_then(Iterator::collect::<io::Result<Vec<_>>>).with_context(cannot)?;
        let number = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().split('-').next()?.parse::<u64>().ok();
        let last = entries.iter().filter_map(number).max().unwrap_or(0);
        let Some(next) = last.checked_add(1) else {
            bail!(
                "{} holds a folder of the number {last}, and none comes after it: rename that one, or use --out",
                runs.display()
            );
        };
        let root = runs.join(format!("{next:04}-{model}-{data}"));
        match fs::create_dir(&root) {
            Ok(()) => return Ok(root),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).with_context(cannot),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_numbered_above_the_highest() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("4294967295-x")).unwrap();
        let next = next_numbered(dir.path(), ModelKind::Vae, &"long".repeat(60)).unwrap();
        assert!(next.file_name().unwrap().to_str().unwrap().starts_with("4294967296-vae-longlong"), "{next:?}");
        fs::create_dir(dir.path().join(format!("{}-x", u64::MAX))).unwrap();
        assert!(
            next_numbered(dir.path(), ModelKind::Vae, "digits").unwrap_err().to_string().contains("rename that one")
        );
        let dir = tempfile::tempdir().unwrap();
        let first = next_numbered(dir.path(), ModelKind::Vae, "/data/My Pictures").unwrap();
        assert!(first.ends_with("0001-vae-my-pictures"), "{first:?}");
        fs::create_dir(dir.path().join("0041-gan-x")).unwrap();
        let next = next_numbered(dir.path(), ModelKind::Gan, "mnist").unwrap();
        assert!(next.ends_with("0042-gan-mnist"), "{next:?}");
    }

    #[test]
    fn a_folder_with_something_in_it_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_free(dir.path()).is_ok());
        fs::write(dir.path().join("x"), "").unwrap();
        let e = RunDir::create(Some(dir.path()), ModelKind::Vae, "digits").unwrap_err();
        assert!(e.is::<crate::base::usage::Usage>() && e.to_string().contains("--resume"), "{e}");
        assert!(check_free(&dir.path().join("x")).is_err(), "a file is no folder");
    }

    #[test]
    fn a_run_is_one_processs_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(Some(dir.path()), ModelKind::Vae, "digits").unwrap();
        let lock = run.lock().unwrap();
        let e = run.lock().unwrap_err().to_string();
        assert!(e.contains(&format!("in use by another ganvae (process {})", std::process::id())), "{e}");
        assert!(check_free(dir.path()).is_ok(), "a lock alone is no run");
        drop(lock);
        run.lock().unwrap();
    }
}
