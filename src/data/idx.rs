//! Reads IDX files (the format of MNIST), plain or gzip, and checks every header field against the data.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::bufread::MultiGzDecoder;

use super::archive::MAX_RATIO;
use super::arrays::{Arrays, Layout, Split};
use crate::base::names::escaped;
use crate::base::small_file;

/// The four files of a set without `.gz`: training images and labels, test images and labels.
pub const STEMS: [&str; 4] =
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];

const AGAIN: &str = "the file is incomplete or damaged, so fetch it again";

/// The images of one IDX file: [N,C,H,W] and N·C·H·W bytes, 0 = black.
///
/// Gzip is detected by its first two bytes, not by the file name. Three dimensions of unsigned bytes are N x H x W grey images; four are
/// N x H x W x C or N x C x H x W, as [`super::arrays`] tells them apart.
///
/// # Errors
/// When the file cannot be read, a header field is wrong, or the data is shorter or longer than the header says. Memory grows
/// with the bytes read, not with the header.
pub fn read_images(path: &Path) -> Result<([usize; 4], Vec<u8>)> {
    let (layout, pixels) = read_laid_out(path)?;
    Ok((layout.shape, layout.arrange(pixels)?))
}

fn read_laid_out(path: &Path) -> Result<(Layout, Vec<u8>)> {
    let (sizes, pixels) = read(path, &[3, 4])?;
    let layout = match sizes[..] {
        [n, h, w] => Layout::grey(n, h, w),
        _ => Layout::of(&sizes, false),
    };
    Ok((layout.with_context(|| format!("{}: found at byte 4", path.display()))?, pixels))
}

/// The labels of one IDX file: N class numbers, 0..=255.
///
/// # Errors
/// As [`read_images`].
pub fn read_labels(path: &Path) -> Result<Vec<u8>> {
    read(path, &[1]).map(|(_, labels)| labels)
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

/// The name of a file of a set: `emnist-letters-train-images-idx3-ubyte.gz`.
struct Name<'a> {
    /// What comes before: `emnist-letters-`.
    set: &'a str,
    train: bool,
    images: bool,
}

/// The parts of a name; none for another name.
fn parsed(name: &str) -> Option<Name<'_>> {
    let name = name.strip_suffix(".gz").unwrap_or(name).strip_suffix("-ubyte")?;
    let (name, dims) = name.rsplit_once("idx")?;
    let name = name.strip_suffix(['-', '.'])?;
    let (name, images) = match name.strip_suffix("-images") {
        Some(name) if matches!(dims, "3" | "4") => (name, true),
        _ => (name.strip_suffix("-labels").filter(|_| dims == "1")?, false),
    };
    let known =
        ["train", "test", "t10k"].into_iter().find_map(|part| Some((name.strip_suffix(part)?, part == "train")));
    known.map(|(set, train)| Name { set, train, images })
}

/// The files of a set.
#[derive(Debug, Default)]
pub struct Set {
    /// Images and labels for training, images and labels held out.
    files: [Option<PathBuf>; 4],
    /// Whether images lie on their side, as those of EMNIST do.
    transposed: bool,
    /// The names of the classes: lines of a number and a code point.
    mapping: Option<PathBuf>,
    /// What is missing.
    notes: Vec<String>,
}

/// Whether these are the first unpacked bytes of an IDX file.
pub(super) fn is_idx(start: &[u8]) -> bool {
    matches!(start, [0, 0, 0x08 | 0x09 | 0x0b..=0x0e, 1..=4, ..])
}

/// The set in `dir`, or below it where torchvision puts it (`MNIST/raw`); none without one. The files are found by their names: those of
/// [`STEMS`], plain or with `.gz`, also with `test` for `t10k`, a dot for the last dash, and a prefix as of EMNIST.
///
/// # Errors
/// When a folder cannot be read, or there are several sets: names them.
pub(super) fn in_folder(dir: &Path) -> Result<Option<Set>> {
    let (mut found, folders) = sets(dir)?;
    if found.is_empty() {
        for folder in folders {
            let raw = if folder.ends_with("raw") { folder } else { folder.join("raw") };
            found.extend(if raw.is_dir() { sets(&raw)?.0 } else { Vec::new() });
        }
    }
    ensure!(
        found.len() <= 1,
        "{} holds {} sets of IDX files: give the file of the training images of one, such as {}",
        dir.display(),
        found.len(),
        found.first().map(|path| path.display().to_string()).unwrap_or_default()
    );
    found.first().map(|first| around(first)).transpose()
}

/// One file of each set in a folder, that of the training images if there is one; and the folders in it. Both sorted.
fn sets(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let unreadable = || format!("the folder {} cannot be read", dir.display());
    let (mut found, mut folders) = (BTreeMap::<String, (bool, PathBuf)>::new(), Vec::new());
    for entry in fs::read_dir(dir).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let kind = entry.file_type().with_context(unreadable)?;
        // Folders of pictures have many files: only links are looked at.
        if kind.is_dir() || kind.is_symlink() && path.is_dir() {
            folders.push(path);
        } else if let Some(Name { set, train, images }) = parsed(&name).filter(|_| path.is_file()) {
            let best = (train && images, path);
            found.entry(set.to_owned()).and_modify(|old| *old = best.clone().max(old.clone())).or_insert(best);
        }
    }
    folders.sort();
    Ok((found.into_values().map(|(_, path)| path).collect(), folders))
}

/// A file of images, with those beside it that its name says belong to it: the labels, and held-out images beside those for training.
/// Another file is images without labels.
pub(super) fn of_file(path: &Path) -> Set {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match parsed(&name) {
        Some(Name { train: true, images: true, .. }) => around(path).unwrap_or_else(|_| Set::single(path, None)),
        Some(Name { images: true, .. }) => Set::single(path, sibling(path, &name, false, false)),
        _ => Set::single(path, None),
    }
}

/// The file of the same set as `path`.
fn sibling(path: &Path, name: &str, train: bool, images: bool) -> Option<PathBuf> {
    let Name { set, .. } = parsed(name)?;
    let dir = path.parent().unwrap_or(Path::new(""));
    let parts = if train { &["train"][..] } else { &["t10k", "test"] };
    let kinds = if images { &["images-idx3", "images-idx4"][..] } else { &["labels-idx1"] };
    parts.iter().find_map(|part| kinds.iter().find_map(|kind| find_file(dir, &format!("{set}{part}-{kind}-ubyte"))))
}

/// The set that the file `path` is of.
fn around(path: &Path) -> Result<Set> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let files = [(true, true), (true, false), (false, true), (false, false)];
    let files = files.map(|(train, images)| sibling(path, &name, train, images));
    let set = parsed(&name).map_or("", |name| name.set);
    let missing: Vec<String> =
        STEMS.iter().zip(&files).filter(|(_, file)| file.is_none()).map(|(stem, _)| format!("{set}{stem}")).collect();
    let dir = path.parent().unwrap_or(Path::new(""));
    let missing = missing.join(" and no ");
    ensure!(
        files[0].is_some(),
        "{} has no {missing}: an IDX folder needs at least the training images {set}{} (plain or with .gz), so put the missing there",
        dir.display(),
        STEMS[0]
    );
    let mapping = dir.join(format!("{set}mapping.txt"));
    Ok(Set {
        notes: if missing.is_empty() { Vec::new() } else { vec![format!("{} has no {missing}", dir.display())] },
        transposed: set.starts_with("emnist"),
        mapping: (!set.is_empty() && mapping.is_file()).then_some(mapping),
        files,
    })
}

impl Set {
    fn single(path: &Path, labels: Option<PathBuf>) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let set = parsed(&name).map_or("", |name| name.set);
        Set {
            files: [Some(path.to_owned()), labels, None, None],
            transposed: set.starts_with("emnist"),
            ..Set::default()
        }
    }

    /// Reads the files. Without labels of all images, none has one. Classes are named by `emnist-...-mapping.txt`, or by their numbers.
    ///
    /// # Errors
    /// When a file is wrong, when the numbers of images and labels differ, or when training and test images differ in size.
    pub(super) fn load(self) -> Result<Arrays> {
        let [train_x, train_y, test_x, test_y] = &self.files;
        let split = |images: &Option<PathBuf>, labels: &Option<PathBuf>| {
            images.as_ref().map(|images| read_split(images, labels.as_deref(), self.transposed)).transpose()
        };
        let (train, test) = rayon::join(|| split(train_x, train_y), || split(test_x, test_y));
        let train = train?.context("a set of IDX files needs training images")?;
        let names = self.mapping.as_deref().map(mapped).transpose()?;
        Arrays::new(train, test?, names, self.notes)
    }
}

/// The names of classes in a file of EMNIST: a line for each, its number and the code points that it stands for, of which the first counts.
fn mapped(path: &Path) -> Result<Vec<String>> {
    let text = small_file::read_text(path)?;
    let mut names: Vec<String> = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        let class = words.next().and_then(|word| word.parse::<u8>().ok());
        let name = words.next().and_then(|word| char::from_u32(word.parse().ok()?));
        let (Some(class), Some(name)) = (class.map(usize::from), name) else {
            bail!(
                "{}: found {line:?} on line {}, wanted a class and a code point; delete the file to use numbers",
                path.display(),
                i + 1
            )
        };
        // Classes may start at 1.
        (names.len()..=class).for_each(|class| names.push(class.to_string()));
        names[class] = escaped(name.to_string());
    }
    Ok(names)
}

fn read_split(images: &Path, labels: Option<&Path>, transposed: bool) -> Result<Split> {
    let (mut layout, pixels) = read_laid_out(images)?;
    if transposed {
        layout = layout.transposed();
    }
    let labels = labels.map(|labels| -> Result<Vec<u32>> {
        let numbers = read_labels(labels)?;
        ensure!(
            numbers.len() == layout.shape[0],
            "{} holds {} labels but {} holds {} images: there must be one label for each image, \
             so put files of the same set together",
            labels.display(),
            numbers.len(),
            images.display(),
            layout.shape[0]
        );
        Ok(numbers.into_iter().map(u32::from).collect())
    });
    let labels = labels.transpose()?;
    Ok(Split { name: images.display().to_string(), shape: layout.shape, pixels: layout.arrange(pixels)?, labels })
}

/// Allocates memory for `len` bytes in all, or fails when there is not enough.
pub(super) fn reserve(bytes: &mut Vec<u8>, len: usize) -> Result<()> {
    let reserved = bytes.try_reserve_exact(len.saturating_sub(bytes.len()));
    reserved.map_err(|_| anyhow!("{len} bytes of images do not fit into memory: use fewer or smaller images"))
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

/// The sizes of the dimensions, as many as `dims` allows, and the data: images have 3 or 4 dimensions, labels 1.
fn read(path: &Path, dims: &[u8]) -> Result<(Vec<usize>, Vec<u8>)> {
    let mut input = Input::open(path)?;
    let sizes = read_header(&mut input, dims)?;
    let start = 4 + 4 * sizes.len();
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
fn read_header(input: &mut Input, dims: &[u8]) -> Result<Vec<usize>> {
    let mut header = Vec::new();
    input.fill(&mut header, 0, 4)?;
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
    let images = dims.contains(&3);
    if let Some(&count) = header.get(3).filter(|&count| !dims.contains(count)) {
        let wanted = if images { "3 (N x H x W grey images) or 4" } else { "1 (one label for each image)" };
        let (what, todo) = match (images, count) {
            (true, 1) => (" (this is a label file)", "give the file of images"),
            (false, 3) => (" (this is a file of images)", "give the label file"),
            _ => ("", "check where the file came from"),
        };
        return Err(input.fault(3, format!("{count} dimensions{what}"), wanted, todo));
    }
    let len = 4 + 4 * usize::from(header.get(3).copied().unwrap_or(dims[0]));
    input.fill(&mut header, 0, len)?;
    if header.len() < len {
        return Err(input.fault(header.len(), "the end of the data", format!("an IDX header of {len} bytes"), AGAIN));
    }
    let word = |bytes: &[u8; 4]| u32::from_be_bytes(*bytes) as usize;
    let sizes: Vec<usize> = header[4..].as_chunks().0.iter().map(word).collect();
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
mod tests;
