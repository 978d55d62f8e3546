//! Files of users: opened only where that cannot block, and small ones (settings, states, lists of names) read whole.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// No file of settings or state is larger than this in bytes.
const MOST: u64 = 64 << 20;

/// Opens a file to be read, but no pipe, socket or device, which could block.
///
/// # Errors
/// The system's; when it is no regular file.
pub fn open(path: &Path) -> io::Result<File> {
    match fs::metadata(path)?.is_file() {
        true => File::open(path),
        false => Err(io::Error::other("it is a folder, a pipe or a device: give a file")),
    }
}

/// All bytes of a small file.
///
/// # Errors
/// When it cannot be read, or is too large to be such a file; names it.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = open(path).and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes));
    read.with_context(|| format!("{} could not be read", path.display()))?;
    ensure!(bytes.len() as u64 <= MOST, "{} has more than {MOST} bytes: it cannot be the right file", path.display());
    Ok(bytes)
}

/// All of a small file as text.
///
/// # Errors
/// As [`read`]; when it is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let text = String::from_utf8(read(path)?);
    text.map_err(|e| e.utf8_error()).with_context(|| format!("{} cannot be read as text", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_file_is_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        std::fs::write(&path, "text").unwrap();
        assert_eq!(read_text(&path).unwrap(), "text");
        std::fs::write(&path, b"\xff").unwrap();
        assert!(read_text(&path).unwrap_err().to_string().contains("a.toml cannot be read as text"));
        File::create(&path).unwrap().set_len(MOST + 1).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("a.toml has more than 67108864 bytes"));
        let e = format!("{:#}", read(dir.path()).unwrap_err());
        assert!(e.contains("could not be read: it is a folder, a pipe or a device"), "{e}");
        let e = read(&dir.path().join("none")).unwrap_err();
        assert!(e.to_string().contains("none could not be read"), "{e}");
    }
}
