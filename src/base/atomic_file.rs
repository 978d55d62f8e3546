//! Atomic writes: a file is written under another name, then renamed, so that it is complete or absent.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// An atomic write in progress. The file gets its final name at [`AtomicFile::commit`]; a drop before that deletes it.
///
/// Every error names the file.
#[derive(Debug)]
pub struct AtomicFile {
    out: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
    committed: bool,
}

impl AtomicFile {
    /// Starts a write of `out`, to the temporary file `out.part`, which is overwritten if it exists.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(out: &Path) -> io::Result<Self> {
        AtomicFile::create_as(out, ".part")
    }

    /// [`AtomicFile::create`] where several processes may write the same file: the temporary name contains the process id.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create_shared(out: &Path) -> io::Result<Self> {
        AtomicFile::create_as(out, &format!(".{}.part", std::process::id()))
    }

    fn create_as(out: &Path, suffix: &str) -> io::Result<Self> {
        let mut part = out.as_os_str().to_owned();
        part.push(suffix);
        let file = BufWriter::with_capacity(
            1 << 18,
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&part)
                .map_err(|e| unwritten(out, &e))?,
        );
        Ok(AtomicFile { out: out.to_owned(), part: part.into(), file, committed: false })
    }

    /// The temporary file, to be mapped into memory.
    pub fn file(&self) -> &File {
        self.file.get_ref()
    }

    /// Syncs the file, renames it to its final name, and syncs the folder: it survives a power failure.
    ///
    /// # Errors
    /// When the file cannot be written or renamed.
    pub fn commit(mut self) -> io::Result<()> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        synced.map_err(|e| unwritten(&self.out, &e))?;
        let out = self.out.clone();
        self.commit_unsynced()?;
        let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync(folder).map_err(|e| unwritten(&out, &e))
    }

    /// Renames the file to its final name without a sync: for files that can be made again.
    ///
    /// # Errors
    /// As [`AtomicFile::commit`].
    pub fn commit_unsynced(mut self) -> io::Result<()> {
        let renamed = self.file.flush().and_then(|()| fs::rename(&self.part, &self.out));
        renamed.map_err(|e| unwritten(&self.out, &e))?;
        self.committed = true;
        Ok(())
    }

    fn write_and(mut self, bytes: &[u8], commit: fn(Self) -> io::Result<()>) -> io::Result<()> {
        self.write_all(bytes)?;
        commit(self)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).map_err(|e| unwritten(&self.out, &e))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush().map_err(|e| unwritten(&self.out, &e))
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// Writes a whole file that survives a power failure.
///
/// # Errors
/// As [`AtomicFile::commit`].
pub fn write(out: &Path, bytes: &[u8]) -> io::Result<()> {
    AtomicFile::create(out)?.write_and(bytes, AtomicFile::commit)
}

/// [`write`] where several processes may write the same file.
///
/// # Errors
/// As [`AtomicFile::commit`].
pub fn write_shared(out: &Path, bytes: &[u8]) -> io::Result<()> {
    AtomicFile::create_shared(out)?.write_and(bytes, AtomicFile::commit)
}

/// Writes a whole file that can be made again.
///
/// # Errors
/// As [`AtomicFile::commit_unsynced`].
pub fn write_unsynced(out: &Path, bytes: &[u8]) -> io::Result<()> {
    AtomicFile::create(out)?.write_and(bytes, AtomicFile::commit_unsynced)
}

/// Renames the complete folder `part` to `out`. An existing `out` is exchanged with it, then removed.
///
/// # Errors
/// The system's.
pub fn replace_folder(part: &Path, out: &Path) -> io::Result<()> {
    if !out.exists() {
        return fs::rename(part, out);
    }
    if exchange(part, out)? {
        return fs::remove_dir_all(part);
    }
    let old = part.with_extension("old");
    fs::rename(out, &old)?;
    fs::rename(part, out)?;
    fs::remove_dir_all(old)
}

/// Exchanges the names of two folders in one step; false where that cannot be done, as of mount points and on some network file systems.
///
/// # Errors
/// When a name holds a zero byte.
pub fn exchange(a: &Path, b: &Path) -> io::Result<bool> {
    let [a, b] = [a, b].map(|path| CString::new(path.as_os_str().as_bytes()));
    let (a, b, here) = (a?, b?, libc::AT_FDCWD);
    // SAFETY: both names outlive the call.
    Ok(unsafe { libc::renameat2(here, a.as_ptr(), here, b.as_ptr(), libc::RENAME_EXCHANGE) } == 0)
}

/// Syncs a file or folder to the disk.
///
/// # Errors
/// The system's.
pub fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn unwritten(out: &Path, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{} could not be written: {e}", out.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_atomic() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a.b");
        let listed = || fs::read_dir(dir.path()).unwrap().count();
        for create in [AtomicFile::create, AtomicFile::create_shared] {
            let mut file = create(&out).unwrap();
            file.write_all(b"half").unwrap();
            assert!(!out.exists() && listed() == 1);
            drop(file);
            assert_eq!(listed(), 0, "an error on the way leaves nothing");
        }
        for commit in [AtomicFile::commit, AtomicFile::commit_unsynced] {
            let mut file = AtomicFile::create(&out).unwrap();
            file.write_all(b"whole").unwrap();
            commit(file).unwrap();
            assert_eq!((fs::read(&out).unwrap(), listed()), (b"whole".to_vec(), 1));
        }
        for write in [write, write_unsynced] {
            write(&out, b"again").unwrap();
            assert_eq!((fs::read(&out).unwrap(), listed()), (b"again".to_vec(), 1));
        }
    }

    #[test]
    fn a_folder_takes_the_place_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let (part, out) = (dir.path().join("part"), dir.path().join("out"));
        for text in ["first", "second"] {
            fs::create_dir(&part).unwrap();
            fs::write(part.join("file"), text).unwrap();
            replace_folder(&part, &out).unwrap();
            assert_eq!(fs::read_to_string(out.join("file")).unwrap(), text);
            assert!(!part.exists());
        }
    }

    #[test]
    fn two_processes_can_write_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a");
        let shared = AtomicFile::create_shared(&out).unwrap();
        assert!(shared.part.to_string_lossy().contains(&std::process::id().to_string()));
    }

    #[test]
    fn every_error_names_the_file() {
        let named = |result: io::Result<()>, name: &str| {
            let e = result.unwrap_err().to_string();
            assert!(e.contains(&format!("{name} could not be written: ")), "{e}");
        };
        named(write(Path::new("/nonexistent/a"), b""), "/nonexistent/a");
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        named(write(&dir.path().join("folder"), b""), "folder");
        for commit in [AtomicFile::commit, AtomicFile::commit_unsynced] {
            let mut file = AtomicFile::create(&dir.path().join("full")).unwrap();
            file.file = BufWriter::new(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
            file.write_all(b"x").unwrap();
            named(commit(file), "full");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the error of the last bytes is not lost");
    }
}
