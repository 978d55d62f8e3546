//! The files of a data set, wherever they are: in a folder or in an archive.

use std::fs;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, anyhow, ensure};

use super::archive::Member;
use super::picture::MAX_BYTES;
use crate::base::small_file;

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
