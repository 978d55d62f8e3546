//! The run folder: its name, its files, the rows of metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::base::atomic_file;
use crate::base::progress::say;
use crate::base::usage::usage;
use crate::config::{ModelKind, Settings};
use crate::models::tuning::Tuning;

/// Paths of one run.
#[derive(Clone, Debug)]
pub struct RunDir {
    root: PathBuf,
}

/// A run's folder taken by this process, while the value lives.
#[derive(Debug)]
pub struct Lock {
    root: PathBuf,
    /// Device and inode of the folder.
    id: (u64, u64),
    _file: fs::File,
}

impl Lock {
    /// Whether the folder is still the one that was taken.
    ///
    /// # Errors
    /// When it has been removed or replaced.
    pub fn check(&self) -> Result<()> {
        match fs::metadata(&self.root) {
            Ok(found) if (found.dev(), found.ino()) == self.id => Ok(()),
            _ => bail!("{} is no longer there: it was removed or replaced while the run trained", self.root.display()),
        }
    }
}

const LOCK: &str = ".lock";
const CONFIG: &str = "config.toml";
/// Where config.toml is while it is written.
const CONFIG_PART: &str = "config.toml.part";

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
    /// C of each image.
    pub channels: i64,
    /// H of each image.
    pub height: i64,
    /// W of each image.
    pub width: i64,
    /// Threads and forms of layers.
    pub tuning: Tuning,
}

impl RunInfo {
    /// `[run.tuning]` by key, each value as in the file.
    ///
    /// # Errors
    /// TOML's, on none of these types.
    pub fn tuning_by_key(&self) -> Result<BTreeMap<String, String>> {
        let table = toml::Table::try_from(self.tuning).context("writing [run.tuning] as TOML")?;
        Ok(table.into_iter().map(|(key, value)| (key, value.to_string())).collect())
    }

    /// Refuses a `[run.tuning]` in `file`, the config.toml of a run, that is not the one (`before`) that its checkpoint was made
    /// with. The threads may also be those that `--threads` has asked for since (`threads`).
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`], which lists each difference.
    pub fn refuse_edited_tuning(
        &self,
        before: &BTreeMap<String, String>,
        threads: Option<u32>,
        file: &Path,
    ) -> Result<()> {
        let mut before = before.clone();
        before.extend(threads.map(|n| ("threads".to_owned(), n.to_string())));
        let now = self.tuning_by_key()?;
        let keys: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
        let shown = |value: Option<&String>| value.map_or("not there", String::as_str).to_owned();
        let differences: Vec<String> = keys
            .into_iter()
            .map(|key| (key, shown(before.get(key)), shown(now.get(key))))
            .filter(|(_, before, now)| before != now)
            .map(|(key, before, now)| format!("{key} is {before} in the checkpoint and {now} in the file"))
            .collect();
        if !differences.is_empty() {
            usage!(
                "[run.tuning] in {} is not what the run began with: {}; put it back, or train a new run with --config",
                file.display(),
                differences.join("; ")
            );
        }
        Ok(())
    }
}

/// Refuses the run at `root` when another version of ganvae than one like this made it: its noise and settings would mean
/// something else here. Versions that differ in the last number only are alike.
fn check_version(root: &Path, made_by: &str) -> Result<()> {
    let alike = |version: &str| version.rsplit_once('.').map(|(most, _)| most.to_owned());
    let own = env!("CARGO_PKG_VERSION");
    if alike(made_by) != alike(own) {
        usage!(
            "{} was made by ganvae {made_by}, whose noise and settings differ from those of this one, {own}: go on with it with \
             ganvae {made_by}, or train anew",
            root.display()
        );
    }
    Ok(())
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

    /// Makes the folders below the run's where they are missing.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn make_folders(&self) -> Result<()> {
        make_folder(&self.samples())?;
        make_folder(&self.checkpoints())
    }

    /// Takes the run for this process alone. The system gives the lock back when the process ends, in whatever way.
    ///
    /// # Errors
    /// When another process has it, or the lock's file cannot be opened.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.path(LOCK);
        let open = || fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = open().with_context(|| format!("{} could not be opened", path.display()))?;
        match file.try_lock() {
            Ok(()) => {
                let write = || file.set_len(0).and_then(|()| write!(&file, "{}", std::process::id()));
                write().with_context(|| format!("{} could not be written", path.display()))?;
            }
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                let _ = file.read_to_string(&mut owner);
                bail!(
                    "{} is in use by another ganvae (process {}): wait until it ends, or stop it first",
                    self.root.display(),
                    if owner.is_empty() { "of an unknown number" } else { &owner }
                );
            }
            // As on some network file systems.
            Err(TryLockError::Error(e)) => {
                say(&format!(
                    "warning: {} cannot be locked ({e}): see to it that no other ganvae uses it",
                    path.display()
                ));
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
        struct File {
            run: RunInfo,
        }
        #[derive(Deserialize)]
        struct MadeBy {
            run: Version,
        }
        #[derive(Deserialize)]
        struct Version {
            ganvae: String,
        }
        let file = self.path(CONFIG);
        let text = fs::read_to_string(&file).with_context(|| format!("{} could not be read", file.display()))?;
        // First of all: the settings of another version may have other names. A broken file is told of below.
        if let Ok(MadeBy { run }) = toml::from_str(&text) {
            check_version(&self.root, &run.ganvae)?;
        }
        let (model, settings) = Settings::from_toml(&text, &file)?;
        let model = model.with_context(|| format!("{} does not say which model it is of", file.display()))?;
        match toml::from_str::<File>(&text) {
            Ok(File { run }) => {
                let sides = 1..=65_536;
                if !(1..=1024).contains(&run.tuning.threads) {
                    bail!(
                        "{} says threads = {} in [run.tuning]: wanted 1 to 1024; it was edited",
                        file.display(),
                        run.tuning.threads
                    );
                }
                if ![1, 3].contains(&run.channels) || !sides.contains(&run.height) || !sides.contains(&run.width) {
                    bail!(
                        "{} says images of {}x{}x{} in [run]: wanted 1 or 3 channels and sides from 1 to 65536; it was edited",
                        file.display(),
                        run.channels,
                        run.height,
                        run.width
                    );
                }
                Ok((model, settings, run))
            }
            Err(e) => {
                bail!("{} has no whole [run] table: {}", file.display(), crate::base::usage::one_line(e.message()))
            }
        }
    }

    /// Writes config.toml: the resolved settings, then what the run was made with.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_config(&self, settings: &str, info: &RunInfo) -> Result<()> {
        let run = toml::Table::from_iter([("run".to_owned(), toml::Value::try_from(info)?)]);
        let text = format!("{settings}\n{}", toml::to_string(&run)?);
        Ok(atomic_file::write(&self.path(CONFIG), text.as_bytes())?)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder as it may be pasted into a shell.
    pub fn shown(&self) -> String {
        let text = self.root.display().to_string();
        let plain = |c: char| c.is_alphanumeric() || "_./-+=:,@".contains(c);
        if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
    }

    /// A file of the run.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where sample grids go.
    pub fn samples(&self) -> PathBuf {
        self.path("samples")
    }

    /// Where reconstructions go.
    pub fn reconstructions(&self) -> PathBuf {
        self.path("reconstructions")
    }

    /// Where checkpoints go.
    pub fn checkpoints(&self) -> PathBuf {
        self.path("checkpoints")
    }
}

/// Whether a new run may be put at `out`, asked before the work that comes first.
///
/// # Errors
/// [`crate::base::usage::Usage`] when something is there already.
pub fn check_free(out: &Path) -> Result<()> {
    if out.as_os_str().is_empty() {
        usage!("--out is empty: name a folder, or leave it out for the next number under runs/");
    }
    match fs::read_dir(out) {
        Ok(entries) => {
            // A process that was killed before its run began leaves these.
            let left = |name: std::ffi::OsString| name == LOCK || name == CONFIG_PART;
            if entries.flatten().any(|entry| !left(entry.file_name())) {
                usage!(
                    "--out {}: the folder is not empty; name another, or go on with `ganvae train --resume {}`",
                    out.display(),
                    out.display()
                );
            }
            Ok(())
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => usage!("--out {}: cannot be a run's folder ({e})", out.display()),
    }
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("the folder {} could not be made", path.display()))
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
        .collect();
    loop {
        let mut last = 0;
        for entry in fs::read_dir(runs).with_context(cannot)? {
            let name = entry?.file_name();
            let number = name.to_string_lossy().split('-').next().and_then(|n| n.parse::<u32>().ok());
            last = last.max(number.unwrap_or(0));
        }
        let root = runs.join(format!("{:04}-{model}-{data}", last + 1));
        match fs::create_dir(&root) {
            Ok(()) => return Ok(root),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).with_context(cannot),
        }
    }
}

/// metrics.jsonl, one object a line, with the kernel as soon as it is known and on the disk before each checkpoint.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: fs::File,
    bytes: u64,
    /// The length that was asked for when the file was opened, and the one that there was.
    opened: (u64, u64),
}

impl MetricsLog {
    /// Opens the file at `path`, keeping its first `bytes`: rows after them belong to steps that will be done again.
    ///
    /// A file that is shorter than that has lost rows: said on stderr, and no reason not to go on training.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: PathBuf, bytes: u64) -> Result<Self> {
        let open = || -> Result<(fs::File, u64)> {
            let file = fs::OpenOptions::new().create(true).append(true).open(&path)?;
            let found = file.metadata()?.len();
            if found < bytes {
                // Up to its last whole line.
                let text = fs::read(&path)?;
                let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at as u64 + 1);
                file.set_len(whole)?;
                say(&format!("warning: {} has lost rows; the run goes on, its curves have a gap", path.display()));
                return Ok((file, whole));
            }
            file.set_len(bytes)?;
            Ok((file, bytes))
        };
        let (file, found) = open().with_context(|| format!("{} could not be opened", path.display()))?;
        Ok(MetricsLog { path, file, bytes: found, opened: (bytes, found) })
    }

    /// Appends one row. A number that is not finite becomes `null`, since JSON has none.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn append(&mut self, row: &[(String, f64)]) -> Result<()> {
        let object: Map<String, Value> = row.iter().map(|(k, v)| (k.clone(), number(*v))).collect();
        let mut line = serde_json::to_vec(&object)?;
        line.push(b'\n');
        self.file.write_all(&line).with_context(|| format!("{} could not be written", self.path.display()))?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Forgets the rows after the first `bytes`: their steps will be done again.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn cut(&mut self, bytes: u64) -> Result<()> {
        let bytes = if bytes == self.opened.0 { self.opened.1 } else { bytes.min(self.bytes) };
        self.file.set_len(bytes).with_context(|| format!("{} could not be cut", self.path.display()))?;
        self.bytes = bytes;
        Ok(())
    }

    /// Puts the rows on the disk and gives the length so far, which a checkpoint may then rely on.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&self) -> Result<u64> {
        self.file.sync_all().with_context(|| format!("{} could not be written", self.path.display()))?;
        Ok(self.bytes)
    }
}

/// Whole numbers without a decimal point; eight significant digits of the rest, which is what a float32 holds.
fn number(v: f64) -> Value {
    if v.fract() == 0.0 && v.abs() < 9e15 {
        return Value::from(v as i64);
    }
    let rounded = format!("{v:.7e}").parse::<f64>().unwrap_or(v);
    serde_json::Number::from_f64(rounded).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_numbered_above_the_highest() {
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

    #[test]
    fn rows_are_lines_and_a_resumed_log_forgets_later_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let row = |step: f64, loss: f64| vec![("step".to_owned(), step), ("loss".to_owned(), loss)];
        let mut log = MetricsLog::open(path.clone(), 0).unwrap();
        log.append(&row(50.0, 123.456_789_12)).unwrap();
        let kept = log.sync().unwrap();
        log.append(&row(100.0, f64::NAN)).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"step\":50,\"loss\":123.45679}\n{\"step\":100,\"loss\":null}\n"
        );
        let mut log = MetricsLog::open(path.clone(), kept).unwrap();
        log.append(&row(100.0, 2.5)).unwrap();
        assert!(fs::read_to_string(&path).unwrap().ends_with("\n{\"step\":100,\"loss\":2.5}\n"));
        log.cut(kept).unwrap();
        log.append(&row(100.0, 3.0)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().last().unwrap(), "{\"step\":100,\"loss\":3}");
        // Rows were lost: whole lines stay, a torn one goes.
        fs::write(&path, "{\"step\":50}\n{\"st").unwrap();
        assert_eq!(MetricsLog::open(path.clone(), 1_000_000).unwrap().sync().unwrap(), 12);
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":50}\n");
    }
}
