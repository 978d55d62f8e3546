//! A file that appears whole or not at all: written beside its place, then renamed.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

/// The place of a file that is being written. Dropped before [`Part::place`], it leaves nothing behind.
#[derive(Debug)]
pub struct Part {
    out: PathBuf,
    part: PathBuf,
    placed: bool,
}

impl Part {
    /// A file that will be `out`, and where its bytes go until then.
    ///
    /// # Errors
    /// When the file beside `out` cannot be made.
    pub fn create(out: &Path) -> io::Result<(Self, BufWriter<File>)> {
        let mut part = out.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = BufWriter::with_capacity(1 << 18, File::create(&part)?);
        Ok((Part { out: out.to_owned(), part, placed: false }, file))
    }

    /// Puts the file in its place; `file` is what [`Part::create`] gave.
    ///
    /// # Errors
    /// When the last bytes cannot be written, which dropping the buffer would not tell, or the file cannot be renamed.
    pub fn place(self, file: BufWriter<File>) -> io::Result<()> {
        drop(file.into_inner().map_err(io::IntoInnerError::into_error)?);
        self.rename()
    }

    /// Puts the file in its place after its last byte has been written.
    ///
    /// # Errors
    /// When the file cannot be renamed.
    pub fn rename(mut self) -> io::Result<()> {
        std::fs::rename(&self.part, &self.out)?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.placed {
            let _ = std::fs::remove_file(&self.part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a.b");
        let listed = || std::fs::read_dir(dir.path()).unwrap().count();
        let (part, mut file) = Part::create(&out).unwrap();
        file.write_all(b"half").unwrap();
        assert!(!out.exists() && listed() == 1);
        drop((part, file));
        assert_eq!(listed(), 0, "an error on the way leaves nothing");
        let (part, mut file) = Part::create(&out).unwrap();
        file.write_all(b"whole").unwrap();
        part.place(file).unwrap();
        assert_eq!((std::fs::read(&out).unwrap(), listed()), (b"whole".to_vec(), 1));
        assert!(Part::create(Path::new("/nonexistent/a")).is_err());
        let full = Part::create(&dir.path().join("full")).unwrap();
        let device = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut file = BufWriter::new(device);
        file.write_all(b"x").unwrap();
        assert!(full.0.place(file).is_err(), "the error of the last bytes is not lost");
        assert_eq!(listed(), 1);
    }
}
