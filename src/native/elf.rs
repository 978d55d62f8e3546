//! Which libraries a shared library asks for, read from the file itself: loading it would stop at the first that is missing.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Names of the libraries that `file` needs, and the folders in which it looks for them first.
///
/// # Errors
/// When it is no 64-bit little-endian shared library, or not whole.
pub fn needs(file: &Path) -> Result<(Vec<String>, Vec<PathBuf>)> {
    read(file).with_context(|| format!("{} could not be read as a shared library", file.display()))
}

// System V ABI, "Object Files" and "Program Loading and Dynamic Linking": types of program headers and of dynamic entries.
const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// A file of which only a few blocks are read: libtorch_cuda has 450 MB.
struct File(std::fs::File);

impl File {
    fn bytes(&self, at: u64, n: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; n];
        std::os::unix::fs::FileExt::read_exact_at(&self.0, &mut bytes, at)?;
        Ok(bytes)
    }

    /// The text at `at`, up to its NUL, at most 4096 bytes.
    fn text(&self, at: u64) -> Result<String> {
        let mut bytes = vec![0; 4096];
        let n = std::os::unix::fs::FileExt::read_at(&self.0, &mut bytes, at)?;
        let text = bytes[..n].split(|b| *b == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}

fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    bytes[at..at + size].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn read(path: &Path) -> Result<(Vec<String>, Vec<PathBuf>)> {
    let file = File(std::fs::File::open(path)?);
    let head = file.bytes(0, 64)?;
    ensure!(head.starts_with(b"\x7fELF\x02\x01"), "it does not begin as one");
    let (table, size, count) = (number(&head, 32, 8), number(&head, 54, 2), number(&head, 56, 2));
    ensure!(size >= 56 && count < 4096, "its table of segments is damaged");
    let headers = (0..count).map(|i| file.bytes(table.saturating_add(i * size), 56)).collect::<Result<Vec<_>>>()?;
    // (type, place in the file, address, length)
    let segments: Vec<_> =
        headers.iter().map(|h| (number(h, 0, 4), number(h, 8, 8), number(h, 16, 8), number(h, 32, 8))).collect();
    let (_, at, _, length) = *segments.iter().find(|s| s.0 == PT_DYNAMIC).context("it needs nothing")?;
    ensure!(length < 1 << 20, "its dynamic section is damaged");
    let dynamic = file.bytes(at, length as usize)?;
    let entries: Vec<_> = dynamic.chunks_exact(16).map(|e| (number(e, 0, 8), number(e, 8, 8))).collect();
    let strings = entries.iter().find(|e| e.0 == DT_STRTAB).context("it has no names")?.1;
    let load = segments
        .iter()
        .find(|(kind, _, from, length)| *kind == PT_LOAD && strings.checked_sub(*from).is_some_and(|d| d < *length));
    let (_, place, from, _) = *load.context("its names are in no segment")?;
    let strings = strings - from + place;
    let of = |kinds: &[u64]| -> Result<Vec<String>> {
        let found = entries.iter().filter(|e| kinds.contains(&e.0));
        found.map(|e| file.text(strings.checked_add(e.1).context("its names are damaged")?)).collect()
    };
    let origin = path.canonicalize()?.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
    let folders = of(&[DT_RPATH, DT_RUNPATH])?;
    let folders = folders.iter().flat_map(|list| list.split(':'));
    Ok((of(&[DT_NEEDED])?, folders.map(|f| PathBuf::from(f.replace("$ORIGIN", &origin))).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_program_needs_is_read_from_its_file() {
        let (needed, folders) = needs(&std::env::current_exe().unwrap()).unwrap();
        assert!(needed.iter().any(|n| n == "libtorch_cpu.so"), "{needed:?}");
        assert!(folders.iter().any(|f| f.join("libtorch_cpu.so").is_file()), "{folders:?}");
    }

    #[test]
    fn what_is_no_library_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.so");
        for bytes in [&b""[..], b"\x7fELF", &[b"\x7fELF\x02\x01".as_slice(), &[0xff; 80]].concat()] {
            std::fs::write(&file, bytes).unwrap();
            assert!(needs(&file).unwrap_err().to_string().contains("x.so could not be read"));
        }
    }
}
