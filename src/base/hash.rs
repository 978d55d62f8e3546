//! SHA-256 as text.

use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

/// Bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A SHA-256 in progress.
#[derive(Clone, Debug, Default)]
pub struct Sum(Sha256);

impl Sum {
    /// Adds a piece.
    pub fn add(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The sum, in hexadecimal.
    pub fn hex(self) -> String {
        hex(&self.0.finalize())
    }
}

/// SHA-256 of several pieces one after another, in hexadecimal.
pub fn sha256<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut sum = Sum::default();
    pieces.into_iter().for_each(|p| sum.add(p));
    sum.hex()
}

/// Length and SHA-256 of a file, read in pieces.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_file(file: &Path) -> std::io::Result<(u64, String)> {
    let mut reader = super::small_file::open(file)?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok((bytes, hex(&hash.finalize()))),
            n => {
                hash.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_the_published_ones() {
        // FIPS 180-4's example, whole, in pieces and from a file.
        let want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256([&b"abc"[..]]), want);
        assert_eq!(sha256([&b"a"[..], b"", b"bc"]), want);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "abc").unwrap();
        assert_eq!(sha256_file(&dir.path().join("f")).unwrap(), (3, want.to_owned()));
    }
}
