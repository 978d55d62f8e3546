//! Files that are cut, wrong or of other kinds.

use super::*;
use flate2::{Compression, write::GzEncoder};
use std::io::Write;
use tempfile::TempDir;

fn idx(code: u8, sizes: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, code, sizes.len() as u8];
    bytes.extend(sizes.iter().flat_map(|s| s.to_be_bytes()));
    bytes.extend(data);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// The error of reading `bytes` as images from a file of that name; it must be one sentence that names the file.
fn error_as(name: &str, bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    let text = format!("{:#}", read_images(&path).unwrap_err());
    assert!(text.contains(name) && !text.contains('\n'), "{text}");
    text
}

/// Bytes that gzip cannot shrink.
fn noise(len: usize) -> Vec<u8> {
    let mut x = 1u32;
    let next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        (x >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn load_folder(dir: &Path) -> Result<Arrays> {
    in_folder(dir)?.context("no set")?.load()
}

#[track_caller]
fn has(text: &str, parts: &str) {
    for part in parts.split(" .. ") {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

/// A folder with two training images of classes 0 and 3 and one test image of class 1, 2x3 pixels each.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    let pixels: Vec<u8> = (0..12).collect();
    put("train-images.idx3-ubyte", &idx(8, &[2, 2, 3], &pixels));
    put("train-labels-idx1-ubyte", &gzip(&idx(8, &[2], &[0, 3]))); // gzip without .gz in its name
    put("t10k-images-idx3-ubyte.gz", &gzip(&idx(8, &[1, 2, 3], &[9; 6])));
    put("t10k-labels-idx1-ubyte.gz", &idx(8, &[1], &[1])); // .gz in its name but not gzip
    dir
}

#[test]
fn plain_and_gzip_are_read_whatever_their_names() {
    let dir = folder();
    let set = load_folder(dir.path()).unwrap();
    assert_eq!((set.train.count, set.train.channels), (2, 1));
    assert_eq!((set.train.height, set.train.width), (2, 3));
    assert_eq!(set.train.pixels, (0..12).collect::<Vec<u8>>());
    assert_eq!(set.train.labels, [0, 3]);
    let test = set.test.unwrap();
    assert_eq!((test.pixels.to_vec(), test.labels), (vec![9; 6], vec![1]));
    assert_eq!(set.classes, ["0", "1", "2", "3"]);
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let dir = folder();
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    let error = || format!("{:#}", load_folder(dir.path()).unwrap_err());
    put("train-labels-idx1-ubyte", &idx(8, &[3], &[0, 1, 2]));
    has(&error(), "ubyte holds 3 labels .. ubyte holds 2 images");
    put("train-labels-idx1-ubyte", &idx(8, &[2], &[0, 1]));
    put("t10k-images-idx3-ubyte.gz", &gzip(&idx(8, &[1, 3, 2], &[9; 6])));
    has(&error(), "of 1x2x3 but .. of 1x3x2 (channels x height x width): training");
    fs::remove_file(dir.path().join("train-images.idx3-ubyte")).unwrap();
    fs::remove_file(dir.path().join("train-labels-idx1-ubyte")).unwrap();
    has(&error(), "no train-images-idx3-ubyte and no train-labels-idx1-ubyte:");
}

#[test]
fn wrong_headers_are_named_with_their_byte() {
    let empty = |sizes: &[u32]| idx(8, sizes, &[]);
    for (file, parts) in [
        (b"PK\x03\x04".to_vec(), "50 4b at byte 0 .. wanted 00"),
        (b"<!doctype".to_vec(), "3c 21 at byte 0 .. (gzip)"),
        (idx(0x0d, &[1, 1, 1], &[0; 4]), "float) at byte 2"),
        (idx(8, &[1], &[1]), "a label file) at byte 3"),
        (idx(8, &[1; 4], &[1]), "byte 4: shape 1x1x1x1, which may be .. reshape"),
        (idx(8, &[1; 5], &[1]), "5 dimensions at byte 3, wanted 3"),
        (empty(&[0, 2, 2]), "size 0 at byte 4, .. at least 1"),
        (empty(&[1, 2, 0]), "size 0 at byte 12, .. at least 1"),
        (idx(8, &[1, 2], &[])[..9].to_vec(), "2 dimensions .. byte 3"),
        (empty(&[1, 2, 2])[..9].to_vec(), "end of the data at byte 9"),
        (Vec::new(), "end of the data at byte 0 .. again"),
    ] {
        has(&error_as("file", &file), parts);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("images");
    fs::write(&path, idx(8, &[1, 2, 2], &[0; 4])).unwrap();
    let text = format!("{:#}", read_labels(&path).unwrap_err());
    has(&text, "a file of images) at byte 3, wanted 1");
    let text = format!("{:#}", read_labels(dir.path()).unwrap_err());
    has(&text, "cannot be read .. not a regular file");
}

#[test]
fn short_and_long_data_are_refused() {
    let file = |len: usize| idx(8, &[2, 100, 2], &noise(len));
    let packed = gzip(&file(400));
    let len = packed.len();
    let mut wrong_sum = packed.clone();
    wrong_sum[len - 8] ^= 1;
    for (bytes, parts) in [
        (file(399), "sizes [2, 100, 2], .. 415 bytes"),
        (file(401), "more bytes at byte 416, .. again"),
        (gzip(&file(401)), "more bytes at byte 416 of"),
        (gzip(&file(399)), "end of the data at byte 415 of"),
        (packed[..len / 2].to_vec(), "end of .. 416 bytes in all"),
        // All the data is there, but the checksum behind it is cut off, wrong or not the last thing.
        (packed[..len - 5].to_vec(), "damaged data ( .. byte 416 of"),
        (wrong_sum, "damaged data ( .. byte 416 of"),
        ([packed, vec![7; 9]].concat(), "damaged data ( .. byte 416 of"),
    ] {
        has(&error_as("file", &bytes), parts);
    }
}

#[test]
fn a_lying_header_costs_no_memory() {
    // 2^96, 2^62 and 2^40 bytes: refused from the length of the file, before any of them is asked for.
    for sizes in [[u32::MAX; 3], [1 << 31, 1 << 31, 1], [1 << 20, 1 << 10, 1 << 10]] {
        let file = idx(8, &sizes, &[0; 1000]);
        has(&error_as("a", &file), "found sizes [ .. at byte 4, wanted");
        has(&error_as("a.gz", &gzip(&file)), "sizes [ .. byte 4 of");
    }
    // A promise that a gzip file could keep is still only believed up to 16 times its length.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gz");
    fs::write(&path, gzip(&idx(8, &[100, 1000, 1000], &noise(1 << 18)))).unwrap();
    let input = Input::open(&path).unwrap();
    assert!(plausible(&input, 16, 100_000_000));
    assert!(first_len(&input, 100_000_000) as u64 <= 16 * input.file_len);
    let text = format!("{:#}", read_images(&path).unwrap_err());
    has(&text, "the end of the data at byte 262160 of");
}

#[test]
fn highly_packed_data_grows_as_it_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gz");
    let mut pixels = vec![5u8; 1 << 20];
    pixels[(1 << 20) - 1] = 6;
    fs::write(&path, gzip(&idx(8, &[16, 256, 256], &pixels))).unwrap();
    assert!(first_len(&Input::open(&path).unwrap(), 1 << 20) < 1 << 20);
    assert_eq!(read_images(&path).unwrap(), ([16, 1, 256, 256], pixels));
}

#[test]
fn the_real_mnist_loads() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/mnist");
    if !dir.is_dir() {
        eprintln!("SKIPPED: no {}", dir.display());
        return;
    }
    let start = std::time::Instant::now();
    let set = load_folder(&dir).unwrap();
    eprintln!("MNIST loaded in {:?}", start.elapsed());
    let test = set.test.unwrap();
    assert_eq!((set.train.count, test.count), (60_000, 10_000));
    assert_eq!((set.train.height, set.train.width, set.classes.len()), (28, 28, 10));
    assert_eq!(set.train.labels[..5], [5, 0, 4, 1, 9]);
    assert_eq!(test.labels[..5], [7, 2, 1, 0, 4]);
    let mean = set.train.pixels.iter().map(|&p| u64::from(p)).sum::<u64>() as f64 / 47_040_000.0;
    assert!((mean / 255.0 - 0.1307).abs() < 1e-4, "{mean}");
}
