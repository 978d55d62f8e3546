//! The files of a data set, wherever they are: in a folder or in an archive.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, anyhow, ensure};
use rayon::prelude::*;

use super::archive::Member;
use super::cache;
use super::picture::MAX_BYTES;
use crate::base::names::printable;
use crate::base::small_file;
use crate::base::usage::usage;

/// A file that can be read.
#[derive(Clone, Debug)]
pub struct DataFile {
    /// Its path below the root of the data set: folders and a name.
    pub name: PathBuf,
    /// Its length in bytes.
    pub len: u64,
    /// What changes when its content does: its time of modification in nanoseconds, or what its archive says about it.
    pub version: u64,
    place: Place,
}

/// What can be read from the start and positioned.
pub trait Input: BufRead + Seek {}
impl<T: BufRead + Seek> Input for T {}

/// Where the bytes are.
#[derive(Clone, Debug)]
enum Place {
    /// A file of its own.
    File(PathBuf),
    /// In an archive.
    Member(Member),
}

impl DataFile {
    /// The file at `path`; its name is relative to `root`.
    ///
    /// # Errors
    /// The system's.
    pub fn new(root: &Path, path: PathBuf) -> Result<Self> {
        let meta = fs::metadata(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let modified = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        Ok(DataFile {
            name: path.strip_prefix(root).unwrap_or(&path).to_owned(),
            len: meta.len(),
            version: modified.map_or(0, |t| t.as_nanos() as u64),
            place: Place::File(path),
        })
    }

    /// A member of an archive.
    pub(super) fn member(name: PathBuf, len: u64, version: u64, place: Member) -> Self {
        DataFile { name, len, version, place: Place::Member(place) }
    }

    /// Its path for messages: in the file system, or in its archive.
    pub fn display(&self) -> impl std::fmt::Display {
        match &self.place {
            Place::File(path) => path.display().to_string(),
            Place::Member(member) => member.archive().join(&self.name).display().to_string(),
        }
    }

    /// Opens it for its first bytes: a header, not all of it.
    ///
    /// # Errors
    /// The system's; when it is larger than a picture may be.
    pub fn open(&self) -> Result<Box<dyn Input + '_>> {
        ensure!(self.len <= MAX_BYTES, "it has {} bytes, more than {MAX_BYTES}", self.len);
        match &self.place {
            Place::File(path) => Ok(Box::new(BufReader::new(small_file::open(path)?))),
            Place::Member(member) => member.open(),
        }
    }

    /// Its bytes from the start, of a file of any length.
    ///
    /// # Errors
    /// The system's; why a member of an archive cannot be read.
    pub fn stream(&self) -> Result<Box<dyn Read + '_>> {
        match &self.place {
            Place::File(path) => Ok(Box::new(small_file::open(path)?)),
            Place::Member(member) => member.stream(),
        }
    }

    /// Its first `n` bytes, or all of them.
    ///
    /// # Errors
    /// The system's.
    pub fn head(&self, n: u64) -> Result<Vec<u8>> {
        let mut head = Vec::new();
        self.stream()?.take(n).read_to_end(&mut head)?;
        Ok(head)
    }

    /// All its bytes.
    ///
    /// # Errors
    /// As [`DataFile::open`].
    pub fn read(&self) -> Result<Vec<u8>> {
        ensure!(self.len <= MAX_BYTES, "it has {} bytes, more than {MAX_BYTES}", self.len);
        let mut file = self.stream()?.take(MAX_BYTES + 1);
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(self.len as usize)
            .map_err(|_| anyhow!("its {} bytes do not fit into memory", self.len))?;
        file.read_to_end(&mut bytes)?;
        ensure!(bytes.len() as u64 <= MAX_BYTES, "it grew to more than {MAX_BYTES} bytes while it was read");
        Ok(bytes)
    }
}

/// Folders that hold no data: what systems and programs put beside pictures. Names that begin with a dot are hidden.
const NO_DATA: [&str; 4] = ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"];

/// All files below a folder, sorted by name, and notes on folders that were left out: runs of ganvae and caches. Hidden ones are left out
/// without a note. Links are followed; a folder that is reached twice is read once.
///
/// # Errors
/// When a folder or the size of a file cannot be read; [`crate::base::usage::Usage`] for a run's folder.
pub fn walk(root: &Path) -> Result<(Vec<DataFile>, Vec<String>)> {
    let (mut paths, mut notes, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
    let mut folders = vec![root.to_owned()];
    while let Some(dir) = folders.pop() {
        let unreadable = || format!("the folder {} cannot be read", dir.display());
        let meta = fs::metadata(&dir).with_context(unreadable)?;
        if !seen.insert((meta.dev(), meta.ino())) {
            continue;
        }
        if let Some(what) = no_data(&dir) {
            if dir == root {
                usage!("{} is {what}, and no data: give a folder of pictures", printable(root));
            }
            notes.push(format!("left out: {}, which is {what}", printable(&dir)));
            continue;
        }
        for entry in fs::read_dir(&dir).with_context(unreadable)? {
            let entry = entry.with_context(unreadable)?;
            let name = entry.file_name();
            if is_hidden(Path::new(&name)) {
                continue;
            }
            let (path, kind) = (entry.path(), entry.file_type().with_context(unreadable)?);
            // Where a link leads; a broken one gives its error when the file is opened.
            let (is_dir, is_file) = match kind.is_symlink() {
                true => fs::metadata(&path).map_or((false, true), |m| (m.is_dir(), m.is_file())),
                false => (kind.is_dir(), kind.is_file()),
            };
            match (is_dir, is_file) {
                (true, _) => folders.push(path),
                (_, true) => paths.push(path),
                // A pipe, socket or device, which could block.
                _ => notes.push(format!("left out: {}, which is no file", printable(&path))),
            }
        }
    }
    let mut files: Vec<DataFile> =
        paths.into_par_iter().map(|path| DataFile::new(root, path)).collect::<Result<_>>()?;
    files.sort_by(|a, b| a.name.cmp(&b.name));
    notes.sort();
    Ok((files, notes))
}

/// Whether a part of a path is hidden, or a folder of the system's.
pub fn is_hidden(path: &Path) -> bool {
    path.iter().any(|part| part.as_encoded_bytes().starts_with(b".") || NO_DATA.iter().any(|n| part == *n))
}

/// What a folder is that holds no data.
fn no_data(dir: &Path) -> Option<&'static str> {
    let has = |name: &str| dir.join(name).exists();
    match () {
        _ if has(cache::TAG) => Some("a cache"),
        _ if has("config.toml") && has("metrics.jsonl") => Some("a run of ganvae"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_walk_finds_files_at_any_depth_and_no_runs_caches_or_hidden_folders() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        };
        let wanted = ["b.txt", "deep/er/and/deeper/c.png", "x/a.png"];
        wanted.iter().for_each(|name| put(name));
        for name in [".hidden", ".git/1.png", "x/.a.png", "__MACOSX/a.png", "x/@eaDir/t.png"] {
            put(name);
        }
        ["runs/1/config.toml", "runs/1/metrics.jsonl", "runs/1/data.png"].iter().for_each(|name| put(name));
        ["pixels/CACHEDIR.TAG", "pixels/1.png"].iter().for_each(|name| put(name));
        symlink(dir.path(), dir.path().join("x/loop")).unwrap();
        symlink("../b.txt", dir.path().join("x/link")).unwrap();
        let (files, notes) = walk(dir.path()).unwrap();
        let names: Vec<_> = files.iter().map(|f| f.name.to_str().unwrap()).collect();
        assert_eq!(names, ["b.txt", "deep/er/and/deeper/c.png", "x/a.png", "x/link"]);
        assert_eq!(files[1].read().unwrap(), b"deep/er/and/deeper/c.png");
        assert!(
            notes[0].contains("pixels, which is a cache") && notes[1].contains("runs/1, which is a run"),
            "{notes:?}"
        );
        let e = walk(&dir.path().join("runs/1")).unwrap_err();
        assert!(
            e.is::<crate::base::usage::Usage>() && e.to_string().contains("is a run of ganvae, and no data"),
            "{e}"
        );
        assert!(format!("{:#}", walk(&dir.path().join("none")).unwrap_err()).contains("none cannot be read"));
    }
}
