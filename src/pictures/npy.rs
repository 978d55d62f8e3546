//! Arrays in NumPy's `.npy` format, written row after row without ever being whole in memory.
//!
//! The format (NumPy Enhancement Proposal 1, version 1.0) is a magic string, one line of text and the numbers.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::base::atomic_file::AtomicFile;

/// A number that an array can hold, as it stands in the file.
pub trait Number: Copy {
    /// NumPy's name of the type.
    const DESCR: &'static str;
    /// Appends its bytes, least significant first.
    fn put(self, out: &mut Vec<u8>);
}

impl Number for f32 {
    const DESCR: &'static str = "<f4";
    fn put(self, out: &mut Vec<u8>) {
        out.extend(self.to_le_bytes());
    }
}

impl Number for i64 {
    const DESCR: &'static str = "<i8";
    fn put(self, out: &mut Vec<u8>) {
        out.extend(self.to_le_bytes());
    }
}

/// An array of known shape that is being written; its file appears when all of it is there.
#[derive(Debug)]
pub struct NpyWriter<T: Number> {
    out: PathBuf,
    file: AtomicFile,
    left: usize,
    bytes: Vec<u8>,
    of: std::marker::PhantomData<T>,
}

impl<T: Number> NpyWriter<T> {
    /// Begins an array of this shape.
    ///
    /// # Errors
    /// When the file cannot be made; names it.
    pub fn create(out: &Path, shape: &[usize]) -> Result<Self> {
        let mut file = AtomicFile::create(out).with_context(|| format!("--out {}", out.display()))?;
        file.write_all(&header(T::DESCR, shape))?;
        let left = shape.iter().product();
        Ok(NpyWriter { out: out.to_owned(), file, left, bytes: Vec::new(), of: std::marker::PhantomData })
    }

    /// The next numbers, in C order.
    ///
    /// # Errors
    /// When there are more than the shape has room for, or the disk refuses.
    pub fn push(&mut self, values: &[T]) -> Result<()> {
        ensure!(values.len() <= self.left, "{} has room for {} more numbers", self.out.display(), self.left);
        self.left -= values.len();
        self.bytes.clear();
        values.iter().for_each(|v| v.put(&mut self.bytes));
        Ok(self.file.write_all(&self.bytes)?)
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// When numbers are missing, or the disk refuses.
    pub fn finish(self) -> Result<()> {
        ensure!(self.left == 0, "{} lacks {} numbers", self.out.display(), self.left);
        Ok(self.file.commit_unsynced()?)
    }
}

/// What stands before the numbers, as `numpy.save` writes it: its length is a multiple of 64, so that the numbers can be
/// memory-mapped.
fn header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let mut sides: Vec<String> = shape.iter().map(usize::to_string).collect();
    if sides.len() == 1 {
        sides.push(String::new());
    }
    let sides = sides.join(", ");
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", sides.trim_end());
    // Magic, version and length take ten bytes, the newline one.
    let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(format!("{text:<0$}\n", length - 1).into_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    #[test]
    fn the_header_is_the_one_that_numpy_writes() {
        // numpy 2.4: numpy.save of float32 zeros (7, 1, 28, 28), of int64 zeros (10,)
        for (got, text) in [
            (header("<f4", &[7, 1, 28, 28]), "{'descr': '<f4', 'fortran_order': False, 'shape': (7, 1, 28, 28), }"),
            (header("<i8", &[10]), "{'descr': '<i8', 'fortran_order': False, 'shape': (10,), }"),
        ] {
            assert_eq!(got.len(), 128);
            assert_eq!(&got[..10], b"\x93NUMPY\x01\x00\x76\x00");
            assert_eq!(std::str::from_utf8(&got[10..]).unwrap().trim_end(), text);
            assert_eq!(got[127], b'\n');
        }
    }

    #[test]
    fn another_reader_finds_the_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let (floats, labels) = (dir.path().join("a.npy"), dir.path().join("b.npy"));
        let mut file = NpyWriter::<f32>::create(&floats, &[2, 3]).unwrap();
        file.push(&[0.5, -1.25]).unwrap();
        assert!(!floats.exists(), "nothing half-written is ever seen");
        file.push(&[f32::MIN_POSITIVE, 3.0, 4.0, 1e30]).unwrap();
        file.finish().unwrap();
        let back = Tensor::read_npy(&floats).unwrap();
        assert_eq!(back.size(), [2, 3]);
        assert_eq!(Vec::<f32>::try_from(back.flatten(0, 1)).unwrap(), [0.5, -1.25, f32::MIN_POSITIVE, 3.0, 4.0, 1e30]);
        let mut file = NpyWriter::<i64>::create(&labels, &[3]).unwrap();
        file.push(&[9, -1, 1 << 40]).unwrap();
        file.finish().unwrap();
        assert_eq!(Vec::<i64>::try_from(Tensor::read_npy(&labels).unwrap()).unwrap(), [9, -1, 1 << 40]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn too_few_or_too_many_numbers_are_refused_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a.npy");
        let mut file = NpyWriter::<f32>::create(&out, &[2, 2]).unwrap();
        file.push(&[1.0; 3]).unwrap();
        assert!(file.push(&[1.0; 2]).unwrap_err().to_string().contains("room for 1"));
        assert!(file.finish().unwrap_err().to_string().contains("lacks 1"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let e = NpyWriter::<f32>::create(Path::new("/nonexistent/a.npy"), &[1]).unwrap_err();
        assert!(e.to_string().contains("--out /nonexistent/a.npy"), "{e}");
    }
}
