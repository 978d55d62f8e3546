//! Arrays in NumPy's `.npy` format, written batch by batch.
//!
//! The format (NumPy Enhancement Proposal 1, version 1.0): a magic string, a header line, and the numbers in C order.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tch::{Kind, Tensor};

use crate::base::atomic_file::AtomicFile;

/// Writes an array of known shape. The file appears at [`NpyWriter::finish`].
#[derive(Debug)]
pub struct NpyWriter {
    out: PathBuf,
    file: AtomicFile,
    kind: Kind,
    left: usize,
}

impl NpyWriter {
    /// Starts an array of this shape, float32 or int64.
    ///
    /// # Errors
    /// When the file cannot be created (names it), or for another `kind`.
    pub fn create(out: &Path, shape: &[usize], kind: Kind) -> Result<Self> {
        let descr = match kind {
            Kind::Float => "<f4",
            Kind::Int64 => "<i8",
            _ => bail!("a .npy file holds Float or Int64, not {kind:?}"),
        };
        let mut file = AtomicFile::create(out).with_context(|| format!("--out {}", out.display()))?;
        file.write_all(&header(descr, shape))?;
        Ok(NpyWriter { out: out.to_owned(), file, kind, left: shape.iter().product() })
    }

    /// Appends the numbers of a tensor of any shape and device, in C order.
    ///
    /// # Errors
    /// When there are more than the shape has room for, or they cannot be written.
    pub fn push(&mut self, values: &Tensor) -> Result<()> {
        let count = values.numel();
        ensure!(count <= self.left, "{} has room for {} more numbers", self.out.display(), self.left);
        self.left -= count;
        let mut bytes = vec![0; count * self.kind.elt_size_in_bytes()];
        // sync: to a file. Little-endian, as every machine that libtorch is built for.
        values.f_to_kind(self.kind)?.f_copy_data_u8(&mut bytes, count)?;
        Ok(self.file.write_all(&bytes)?)
    }

    /// Renames the file to its final name.
    ///
    /// # Errors
    /// When numbers are missing, or the file cannot be written.
    pub fn finish(self) -> Result<()> {
        ensure!(self.left == 0, "{} lacks {} numbers", self.out.display(), self.left);
        Ok(self.file.commit_unsynced()?)
    }
}

/// The header as `numpy.save` writes it. Its length is a multiple of 64, so that the numbers can be memory-mapped.
fn header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let sides = match shape {
        [n] => format!("{n},"),
        _ => shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
    };
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sides}), }}");
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
        let mut file = NpyWriter::create(&floats, &[2, 3], Kind::Float).unwrap();
        file.push(&Tensor::from_slice(&[0.5f32, -1.25])).unwrap();
        assert!(!floats.exists(), "nothing half-written is ever seen");
        file.push(&Tensor::from_slice(&[f32::MIN_POSITIVE, 3.0, 4.0, 1e30])).unwrap();
        file.finish().unwrap();
        let back = Tensor::read_npy(&floats).unwrap();
        assert_eq!(back.size(), [2, 3]);
        assert_eq!(Vec::<f32>::try_from(back.flatten(0, 1)).unwrap(), [0.5, -1.25, f32::MIN_POSITIVE, 3.0, 4.0, 1e30]);
        let mut file = NpyWriter::create(&labels, &[3], Kind::Int64).unwrap();
        file.push(&Tensor::from_slice(&[9i64, -1, 1 << 40])).unwrap();
        file.finish().unwrap();
        assert_eq!(Vec::<i64>::try_from(Tensor::read_npy(&labels).unwrap()).unwrap(), [9, -1, 1 << 40]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn too_few_or_too_many_numbers_are_refused_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a.npy");
        let mut file = NpyWriter::create(&out, &[2, 2], Kind::Float).unwrap();
        file.push(&Tensor::from_slice(&[1f32; 3])).unwrap();
        assert!(file.push(&Tensor::from_slice(&[1f32; 2])).unwrap_err().to_string().contains("room for 1"));
        assert!(file.finish().unwrap_err().to_string().contains("lacks 1"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let e = NpyWriter::create(Path::new("/nonexistent/a.npy"), &[1], Kind::Float).unwrap_err();
        assert!(e.to_string().contains("--out /nonexistent/a.npy"), "{e}");
    }
}
