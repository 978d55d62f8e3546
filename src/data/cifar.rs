//! Reads the binary version of CIFAR-10.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::images::{Images, Source};
use crate::base::names::escaped;
use crate::base::small_file;

/// Bytes of a record: a label, then an image [3,32,32].
const RECORD: usize = 1 + PIXELS;
const PIXELS: usize = 3 * 32 * 32;

const TRAIN: [&str; 5] =
    ["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"];
const TEST: &str = "test_batch.bin";

/// The folder that the published archive unpacks to.
const ARCHIVE_FOLDER: &str = "cifar-10-batches-bin";
const AGAIN: &str = "so unpack cifar-10-binary.tar.gz again";

/// The ten classes by label, as Krizhevsky (2009) names them.
pub const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Whether `dir` (or the folder `cifar-10-batches-bin` in it) holds a binary batch of CIFAR-10.
pub fn is_cifar(dir: &Path) -> bool {
    let dir = root(dir);
    dir.join(TRAIN[0]).is_file() || dir.join(TEST).is_file()
}

/// CIFAR-10 from `dir` or from `dir/cifar-10-batches-bin`: training and test images [N,3,32,32] with labels 0..=9.
///
/// `batches.meta.txt` names the classes; [`CLASSES`] without that file. A batch holds any number of records above 0.
///
/// # Errors
/// When one of the six batches is missing, is not a whole number of records long, or holds a label above 9, or when
/// `batches.meta.txt` does not hold ten names.
pub fn load_folder(dir: &Path) -> Result<Source> {
    let root = root(dir);
    let missing: Vec<&str> = TRAIN.into_iter().chain([TEST]).filter(|name| !root.join(name).is_file()).collect();
    ensure!(
        missing.is_empty(),
        "{} has no {}: CIFAR-10 needs data_batch_1.bin to data_batch_5.bin and {TEST}, {AGAIN}",
        root.display(),
        missing.join(" and no ")
    );
    let classes = class_names(&root)?;
    let paths = TRAIN.map(|name| root.join(name));
    Ok(Source { name: escaped(dir), train: read(&paths)?, test: read(&[root.join(TEST)])?, classes, sha256: None })
}

fn root(dir: &Path) -> PathBuf {
    let inner = dir.join(ARCHIVE_FOLDER);
    if inner.is_dir() { inner } else { dir.to_owned() }
}

fn class_names(root: &Path) -> Result<Vec<String>> {
    let path = root.join("batches.meta.txt");
    if !path.is_file() {
        return Ok(CLASSES.map(String::from).to_vec());
    }
    let text = small_file::read_text(&path)?;
    let names: Vec<String> = text.lines().map(|line| escaped(line.trim())).filter(|line| !line.is_empty()).collect();
    ensure!(
        names.len() == CLASSES.len(),
        "{} holds {} names, wanted 10 (one class on each line): delete it to use the standard names",
        path.display(),
        names.len()
    );
    Ok(names)
}

/// The records of several batches, concatenated.
fn read(paths: &[PathBuf]) -> Result<Images> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new()); // [N,C,H,W], [N]
    for path in paths {
        let unreadable = || format!("{} cannot be read", path.display());
        let len = fs::metadata(path).with_context(unreadable)?.len() as usize;
        ensure!(
            len > 0 && len.is_multiple_of(RECORD),
            "{}: found {len} bytes, wanted a whole number of records of {RECORD} bytes and at least one \
             (the last whole record ends at byte {}); the file is incomplete or not CIFAR-10's binary version, {AGAIN}",
            path.display(),
            len - len % RECORD
        );
        let bytes = fs::read(path).with_context(unreadable)?;
        pixels.reserve_exact(len);
        for (i, record) in bytes.chunks_exact(RECORD).enumerate() {
            ensure!(
                record[0] <= 9,
                "{}: found label {} at byte {}, wanted 0 to 9; the file is damaged or not CIFAR-10's binary version, {AGAIN}",
                path.display(),
                record[0],
                i * RECORD
            );
            labels.push(record[0].into());
            pixels.extend_from_slice(&record[1..]);
        }
    }
    Images::new([labels.len(), 3, 32, 32], pixels, labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Record `i` of a batch: label i mod 10, red = i, green = i + 1, blue = i + 2.
    fn batch(n: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for i in 0..n {
            bytes.push((i % 10) as u8);
            for plane in 0..3 {
                bytes.extend([(i + plane) as u8; 1024]);
            }
        }
        bytes
    }

    fn folder(root: &Path) {
        for (i, name) in TRAIN.iter().enumerate() {
            fs::write(root.join(name), batch(i + 1)).unwrap();
        }
        fs::write(root.join(TEST), batch(12)).unwrap();
    }

    fn error(dir: &Path) -> String {
        format!("{:#}", load_folder(dir).unwrap_err())
    }

    #[test]
    fn batches_are_joined_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join(ARCHIVE_FOLDER);
        fs::create_dir(&inner).unwrap();
        assert!(!is_cifar(dir.path()));
        folder(&inner);
        assert!(is_cifar(dir.path()) && is_cifar(&inner));
        let set = load_folder(dir.path()).unwrap();
        assert_eq!(set.train.count, 15);
        assert_eq!(set.test.count, 12);
        assert_eq!(set.train.labels, [0, 0, 1, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4]);
        // Image 13 is record 3 of the last batch: planes 3, 4, 5.
        let image = &set.train.pixels[13 * PIXELS..14 * PIXELS];
        assert_eq!([image[0], image[1023], image[1024], image[3071]], [3, 3, 4, 5]);
        assert_eq!(set.classes[9], "truck");
    }

    #[test]
    fn class_names_come_from_the_meta_file() {
        let dir = tempfile::tempdir().unwrap();
        folder(dir.path());
        let meta = dir.path().join("batches.meta.txt");
        fs::write(&meta, "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n").unwrap();
        assert_eq!(load_folder(dir.path()).unwrap().classes.concat(), "abcdefghij");
        fs::write(&meta, "a\nb\n").unwrap();
        assert!(error(dir.path()).contains("batches.meta.txt holds 2 names, wanted 10"));
    }

    #[test]
    fn bad_batches_are_named() {
        let dir = tempfile::tempdir().unwrap();
        folder(dir.path());
        let mut bytes = batch(3);
        bytes[2 * RECORD] = 10;
        fs::write(dir.path().join(TRAIN[1]), &bytes).unwrap();
        let text = error(dir.path());
        assert!(text.contains("data_batch_2.bin: found label 10 at byte 6146, wanted 0 to 9"), "{text}");

        bytes.truncate(3 * RECORD - 1);
        fs::write(dir.path().join(TRAIN[1]), &bytes).unwrap();
        let text = error(dir.path());
        assert!(text.contains("data_batch_2.bin: found 9218 bytes, wanted a whole number"), "{text}");
        assert!(text.contains("ends at byte 6146"), "{text}");

        fs::write(dir.path().join(TRAIN[1]), b"").unwrap();
        assert!(error(dir.path()).contains("found 0 bytes"));

        fs::remove_file(dir.path().join(TRAIN[1])).unwrap();
        let text = error(dir.path());
        assert!(text.contains("has no data_batch_2.bin: CIFAR-10 needs"), "{text}");
    }
}
