//! Reads IDX files (the format of MNIST), plain or gzip, and checks every header field against the data.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::bufread::MultiGzDecoder;

use super::images::{Images, Source, reserve};
use crate::base::names::escaped;

/// The four files of a set without `.gz`: training images and labels, test images and labels.
pub const STEMS: [&str; 4] =
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];

/// An upper bound of the compression ratio of deflate, which is 1032: a header that claims more is wrong.
const MAX_RATIO: u64 = 1040;

const AGAIN: &str = "the file is incomplete or damaged, so fetch it again";

/// The images of one IDX file: the shape [N,1,H,W] and N·H·W bytes, 0 = black.
///
/// Gzip is detected by its first two bytes, not by the file name. Only grey images are accepted: three dimensions, N x H x W, of
/// unsigned bytes. Four dimensions have no standard order of channels.
///
/// # Errors
/// When the file cannot be read, a header field is wrong, or the data is shorter or longer than the header says. Memory grows
/// with the bytes read, not with the header.
pub fn read_images(path: &Path) -> Result<([usize; 4], Vec<u8>)> {
    let ([n, h, w], pixels) = read(path)?;
    Ok(([n, 1, h, w], pixels))
}

/// The labels of one IDX file: N class numbers, 0..=255.
///
/// # Errors
/// As [`read_images`].
pub fn read_labels(path: &Path) -> Result<Vec<u8>> {
    read::<1>(path).map(|(_, labels)| labels)
}

/// The path of `stem` in `dir`: plain, with `.gz`, or in the spelling with a dot (`train-images.idx3-ubyte`). An unpacked file is
/// preferred, because it reads faster.
pub fn find_file(dir: &Path, stem: &str) -> Option<PathBuf> {
    let dotted = stem.replace("-idx", ".idx");
    [stem.to_owned(), dotted.clone(), format!("{stem}.gz"), format!("{dotted}.gz")]
        .into_iter()
        .map(|name| dir.join(name))
        .find(|path| path.is_file())
}

/// Whether `dir` holds at least one of the four files, so that [`load_folder`] can name the missing ones.
pub fn is_idx_folder(dir: &Path) -> bool {
    STEMS.iter().any(|stem| find_file(dir, stem).is_some())
}

/// Reads the set in `dir`. Classes are named by their numbers, 0..=max.
///
/// # Errors
/// When one of the four files is missing or wrong, when the numbers of images and labels differ, or when training and test
/// images differ in size.
pub fn load_folder(dir: &Path) -> Result<Source> {
    let paths = STEMS.map(|stem| find_file(dir, stem));
    let [Some(train_x), Some(train_y), Some(test_x), Some(test_y)] = &paths else {
        let missing: Vec<&str> =
            STEMS.into_iter().zip(&paths).filter_map(|(stem, path)| path.is_none().then_some(stem)).collect();
        bail!(
            "{} has no {}: an IDX folder needs all of {} (plain or with .gz), so put the missing there",
            dir.display(),
            missing.join(" and no "),
            STEMS.join(", ")
        );
    };
    let (train, test) = rayon::join(|| read_split(train_x, train_y), || read_split(test_x, test_y));
    let (train, test) = (train?, test?);
    ensure!(
        (train.height, train.width) == (test.height, test.width),
        "{} holds images of {}x{} pixels but {} of {}x{}: training and test images must have one size, \
         so put files of the same set together",
        train_x.display(),
        train.height,
        train.width,
        test_x.display(),
        test.height,
        test.width
    );
    let most = train.labels.iter().chain(&test.labels).max();
    let classes = most.map_or(0, |&label| label as usize + 1);
    Ok(Source { name: escaped(dir), train, test, classes: (0..classes).map(|c| c.to_string()).collect(), sha256: None })
}

fn read_split(images: &Path, labels: &Path) -> Result<Images> {
    let (shape, pixels) = read_images(images)?;
    let numbers = read_labels(labels)?;
    ensure!(
        numbers.len() == shape[0],
        "{} holds {} labels but {} holds {} images: there must be one label for each image, \
         so put files of the same set together",
        labels.display(),
        numbers.len(),
        images.display(),
        shape[0]
    );
    Images::new(shape, pixels, numbers.into_iter().map(u32::from).collect())
}

/// An open file. Offsets count unpacked bytes.
struct Input<'a> {
    path: &'a Path,
    file_len: u64,
    gzip: bool,
    reader: Box<dyn Read>,
}

impl<'a> Input<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let open = || -> io::Result<(File, u64, [u8; 2])> {
            let mut file = File::open(path)?;
            let meta = file.metadata()?;
            if !meta.is_file() {
                return Err(io::Error::other("it is not a regular file"));
            }
            let mut magic = [0u8; 2];
            // The header check reports a file without magic number.
            if meta.len() >= 2 {
                file.read_exact(&mut magic)?;
                file.rewind()?;
            }
            Ok((file, meta.len(), magic))
        };
        let (file, file_len, magic) = open().with_context(|| format!("{} cannot be read", path.display()))?;
        let gzip = magic == [0x1f, 0x8b];
        let file = BufReader::with_capacity(1 << 18, file);
        let reader: Box<dyn Read> = if gzip { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        Ok(Input { path, file_len, gzip, reader })
    }

    /// Reads until `data` has `len` bytes or the file ends; `start` is the offset of `data` in the file.
    fn fill(&mut self, data: &mut Vec<u8>, start: usize, len: usize) -> Result<()> {
        match self.reader.by_ref().take((len - data.len()) as u64).read_to_end(data) {
            Err(e) if e.kind() != ErrorKind::UnexpectedEof => Err(self.damaged(start + data.len(), &e)),
            _ => Ok(()),
        }
    }

    /// Checks that the data ends at offset `at`. The checksum of gzip is verified here.
    fn end(&mut self, at: usize) -> Result<()> {
        match self.reader.read(&mut [0u8; 1]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.fault(at, "more bytes", "the end that its header promises", AGAIN)),
            Err(e) => Err(self.damaged(at, &e)),
        }
    }

    fn damaged(&self, at: usize, e: &io::Error) -> anyhow::Error {
        let found = format_args!("damaged data ({e})");
        self.fault(at, found, "data that can be read to its end", AGAIN)
    }

    /// An error with file, offset, what was found, what was wanted, and what to do.
    fn fault(&self, at: usize, found: impl Display, wanted: impl Display, todo: &str) -> anyhow::Error {
        let unpacked = if self.gzip { " of the unpacked data" } else { "" };
        let path = self.path.display();
        anyhow!("{path}: found {found} at byte {at}{unpacked}, wanted {wanted}; {todo}")
    }
}

/// The sizes of the `DIMS` dimensions, and the data: images have 3 dimensions, labels 1.
fn read<const DIMS: usize>(path: &Path) -> Result<([usize; DIMS], Vec<u8>)> {
    let mut input = Input::open(path)?;
    let sizes = read_header(&mut input)?;
    let start = 4 + 4 * DIMS;
    let total = sizes.iter().try_fold(1usize, |a, &b| a.checked_mul(b));
    let Some(total) = total.filter(|&n| plausible(&input, start, n)) else {
        let len = input.file_len;
        let found = format!("sizes {sizes:?}, too much for a file of {len} bytes,");
        return Err(input.fault(4, found, "sizes that fit the data", AGAIN));
    };
    let (mut data, mut room) = (Vec::new(), first_len(&input, total));
    while data.len() < total {
        reserve(&mut data, room).with_context(|| path.display().to_string())?;
        input.fill(&mut data, start, room)?;
        if data.len() < room {
            let wanted = format!("{} bytes in all, as its header says", start + total);
            return Err(input.fault(start + data.len(), "the end of the data", wanted, AGAIN));
        }
        room = room.saturating_mul(2).min(total);
    }
    input.end(start + total)?;
    Ok((sizes, data))
}

/// Whether a file of this length can hold `total` bytes of data; checked before memory is allocated.
fn plausible(input: &Input, start: usize, total: usize) -> bool {
    let most = if input.gzip { input.file_len.saturating_mul(MAX_RATIO) } else { input.file_len };
    start.checked_add(total).is_some_and(|n| n as u64 <= most)
}

/// The bytes to allocate at first: all of a plain file, up to 16 times the length of a gzip file (the ratio of MNIST is 5).
fn first_len(input: &Input, total: usize) -> usize {
    if !input.gzip {
        return total;
    }
    let trusted = input.file_len.saturating_mul(16).max(1 << 16);
    total.min(usize::try_from(trusted).unwrap_or(usize::MAX))
}

/// Checks the magic number and returns the sizes, each at least 1.
fn read_header<const DIMS: usize>(input: &mut Input) -> Result<[usize; DIMS]> {
    let len = 4 + 4 * DIMS;
    let mut header = Vec::with_capacity(len);
    input.fill(&mut header, 0, len)?;
    // Checked before the length, so that a file of another format is reported as such.
    if header.len() >= 2 && header[..2] != [0, 0] {
        let found = format!("{:02x} {:02x}", header[0], header[1]);
        let todo = "this is not an IDX file, so check where it came from";
        return Err(input.fault(0, found, "00 00 (IDX) or 1f 8b (gzip)", todo));
    }
    if let Some(&code) = header.get(2).filter(|&&code| code != 0x08) {
        let found = format!("type 0x{code:02x} ({})", type_name(code));
        return Err(input.fault(2, found, "0x08 (unsigned byte)", "convert the values to bytes 0..255"));
    }
    if let Some(&dims) = header.get(3).filter(|&&dims| usize::from(dims) != DIMS) {
        let wanted = if DIMS == 3 { "3 (N x H x W grey images)" } else { "1 (one label for each image)" };
        let (what, todo) = match (DIMS, dims) {
            (3, 1) => (" (this is a label file)", "give the file of images"),
            (1, 3) => (" (this is a file of images)", "give the label file"),
            (3, 4) => ("", "give colour images as a folder of pictures"),
            _ => ("", "check where the file came from"),
        };
        return Err(input.fault(3, format!("{dims} dimensions{what}"), wanted, todo));
    }
    if header.len() < len {
        return Err(input.fault(header.len(), "the end of the data", format!("an IDX header of {len} bytes"), AGAIN));
    }
    let word = |i: usize| u32::from_be_bytes(std::array::from_fn(|byte| header[4 + 4 * i + byte])) as usize;
    let sizes: [usize; DIMS] = std::array::from_fn(word);
    if let Some(i) = sizes.iter().position(|&size| size == 0) {
        return Err(input.fault(4 + 4 * i, "size 0", "a size of at least 1", AGAIN));
    }
    Ok(sizes)
}

fn type_name(code: u8) -> &'static str {
    match code {
        0x09 => "signed byte",
        0x0b => "16-bit integer",
        0x0c => "32-bit integer",
        0x0d => "32-bit float",
        0x0e => "64-bit float",
        _ => "no IDX type",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::fs;
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
        assert!(is_idx_folder(dir.path()));
        let set = load_folder(dir.path()).unwrap();
        assert_eq!((set.train.count, set.train.channels), (2, 1));
        assert_eq!((set.train.height, set.train.width), (2, 3));
        assert_eq!(set.train.pixels, (0..12).collect::<Vec<u8>>());
        assert_eq!(set.train.labels, [0, 3]);
        assert_eq!((set.test.pixels.to_vec(), set.test.labels), (vec![9; 6], vec![1]));
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
        has(&error(), "of 2x3 pixels but .. of 3x2: training");
        fs::remove_file(dir.path().join("t10k-images-idx3-ubyte.gz")).unwrap();
        fs::remove_file(dir.path().join("train-labels-idx1-ubyte")).unwrap();
        has(&error(), "no train-labels-idx1-ubyte and no t10k-images");
    }

    #[test]
    fn wrong_headers_are_named_with_their_byte() {
        let empty = |sizes: &[u32]| idx(8, sizes, &[]);
        for (file, parts) in [
            (b"PK\x03\x04".to_vec(), "50 4b at byte 0 .. wanted 00"),
            (b"<!doctype".to_vec(), "3c 21 at byte 0 .. (gzip)"),
            (idx(0x0d, &[1, 1, 1], &[0; 4]), "float) at byte 2"),
            (idx(8, &[1], &[1]), "a label file) at byte 3"),
            (idx(8, &[1; 4], &[1]), "4 dimensions .. folder of"),
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
        assert_eq!((set.train.count, set.test.count), (60_000, 10_000));
        assert_eq!((set.train.height, set.train.width, set.classes.len()), (28, 28, 10));
        assert_eq!(set.train.labels[..5], [5, 0, 4, 1, 9]);
        assert_eq!(set.test.labels[..5], [7, 2, 1, 0, 4]);
        let mean = set.train.pixels.iter().map(|&p| u64::from(p)).sum::<u64>() as f64 / 47_040_000.0;
        assert!((mean / 255.0 - 0.1307).abs() < 1e-4, "{mean}");
    }
}
