//! Decoded pictures on disk: a file of pixels that is mapped into memory, so that the next start decodes nothing and a set may be larger
//! than memory.
//!
//! A file is named by the hash of what it was made from. It holds a page for its header, the pixels, and a description in JSON. Another
//! file of the same name replaces it as a whole; a process that has mapped the old one keeps it.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use memmap2::{Advice, Mmap, MmapMut, MmapOptions};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::images::{Images, Pixels, Source};
use crate::base::atomic_file::AtomicFile;
use crate::base::hash;
use crate::base::process::available_memory;

/// The first bytes of a file; another version has others.
const MAGIC: &[u8; 16] = b"ganvae pixels 1\n";
/// Bytes before the pixels, which begin on a page.
const HEADER: usize = 4096;
const ENDING: &str = "pixels";
/// Files that nothing has read for so long are removed when another one is written.
const UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);
/// Tells backup programs, and ganvae itself, that a folder holds a cache (bford.info/cachedir).
pub const TAG: &str = "CACHEDIR.TAG";
const TAG_TEXT: &str =
    "Signature: 8a477f597d28d172789f06886806bc55\n# Decoded pictures of ganvae: may be deleted at any time.\n";

/// A mapped file of pixels.
#[derive(Debug)]
pub struct Mapped {
    map: Mmap,
    path: PathBuf,
    image_len: usize,
    /// CRC-32 of each image.
    crcs: Vec<u32>,
    /// Which images were found to be undamaged. All of them, for a set that fits into memory.
    checked: Vec<AtomicBool>,
    /// Whether it may not fit into memory: pages are read when they are needed.
    large: bool,
}

impl Mapped {
    /// The pixels of some images, [N,C,H,W].
    pub fn pixels_of(&self, images: Range<usize>) -> &[u8] {
        &self.map[HEADER + images.start * self.image_len..HEADER + images.end * self.image_len]
    }

    /// Whether it may not fit into memory.
    pub fn is_large(&self) -> bool {
        self.large
    }

    /// Starts to read these images from the disk, without waiting.
    pub fn will_need(&self, images: impl Iterator<Item = usize>) {
        for i in images {
            // A hint: without it, the pages are read when they are used.
            let _ = self.map.advise_range(Advice::WillNeed, HEADER + i * self.image_len, self.image_len);
        }
    }

    /// Checks these images, each once.
    ///
    /// # Errors
    /// When one is damaged; the file is removed, so that the next start makes it again.
    pub fn check(&self, images: impl Iterator<Item = usize>) -> Result<()> {
        for i in images {
            if !self.checked[i].load(Ordering::Relaxed) {
                if let Err(e) = self.check_image(i) {
                    let _ = fs::remove_file(&self.path);
                    return Err(e.context("start again, or go on with --resume: the pictures are decoded again"));
                }
                self.checked[i].store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn check_image(&self, i: usize) -> Result<()> {
        let crc = crc32fast::hash(self.pixels_of(i..i + 1));
        ensure!(crc == self.crcs[i], "the cache {} is damaged at image {i}", self.path.display());
        Ok(())
    }
}

/// What the file says about its pixels.
#[derive(Serialize, Deserialize)]
struct Description {
    name: String,
    classes: Vec<String>,
    /// Training, held-out.
    counts: [usize; 2],
    /// C, H, W.
    shape: [usize; 3],
    /// Of both; empty without labels.
    labels: Vec<u32>,
    names: Vec<String>,
    crcs: Vec<u32>,
    sha256: String,
    notes: Vec<String>,
}

/// The file for data with this key in the folder of the cache.
fn file(dir: &Path, key: &str) -> PathBuf {
    dir.join(format!("{}.{ENDING}", &key[..32.min(key.len())]))
}

/// The set with this key and its notes; none where the cache has none, or a damaged one, which is said and removed.
pub fn open(dir: &Path, key: &str) -> Result<Option<(Source, Vec<String>)>> {
    let path = file(dir, key);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("the cache {} cannot be read", path.display())),
    };
    match map(&file, &path, key, memory()) {
        Ok(found) => {
            // When it was last used, for `prune`; a cache that cannot be written is still good.
            let _ = file.set_modified(SystemTime::now());
            Ok(Some(found))
        }
        Err(e) => {
            crate::base::progress::say(&format!("{e:#}: the pictures are decoded again"));
            fs::remove_file(&path).with_context(|| format!("{} could not be removed", path.display()))?;
            Ok(None)
        }
    }
}

/// The first page: where the description begins, its checksum, and the key.
fn header(end: usize, description: &[u8], key: &str) -> Vec<u8> {
    let mut page = MAGIC.to_vec();
    page.extend(format!("{end} {} {key}\n", hash::sha256([description])).bytes());
    page.resize(HEADER, 0);
    page
}

/// What there is for a set, as far as the system says.
fn memory() -> u64 {
    available_memory().unwrap_or(u64::MAX)
}

fn map(file: &File, path: &Path, key: &str, memory: u64) -> Result<(Source, Vec<String>)> {
    let damaged = || format!("the cache {} is damaged", path.display());
    // SAFETY: files of the cache are never written in place, only replaced or removed.
    let map = unsafe { Mmap::map(file) }.with_context(damaged)?;
    let page = map.get(..HEADER).with_context(damaged)?;
    let end = page[MAGIC.len()..].split(|b| *b == b' ').next().and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
    let end: usize = end.with_context(damaged)?;
    let description = map.get(end..).with_context(damaged)?;
    ensure!(*page == header(end, description, key), damaged());
    let d: Description = serde_json::from_slice(description).with_context(damaged)?;
    let ([train, test], [c, h, w]) = (d.counts, d.shape);
    let image_len = c * h * w;
    let count = train + test;
    ensure!(d.crcs.len() == count && HEADER + count * image_len <= end, damaged());
    let large = (count * image_len) as u64 > memory / 2;
    let mapped = Mapped {
        map,
        path: path.to_owned(),
        image_len,
        checked: d.crcs.iter().map(|_| AtomicBool::new(!large)).collect(),
        crcs: d.crcs,
        large,
    };
    if large {
        // Batches are read at random: what lies around an image is not needed.
        let _ = mapped.map.advise(Advice::Random);
    } else {
        (0..count).into_par_iter().try_for_each(|i| mapped.check_image(i))?;
    }
    let mapped = Arc::new(mapped);
    let images = |from: usize, n: usize| -> Result<Images> {
        let labels = d.labels.get(from..from + n).unwrap_or_default().to_vec();
        let pixels = Pixels::Mapped(mapped.clone(), from..from + n);
        Ok(Images { names: d.names[from..from + n].to_vec(), ..Images::new([n, c, h, w], pixels, labels)? })
    };
    ensure!(d.names.len() == count, damaged());
    let (train, test) = (images(0, train)?, images(train, test)?);
    Ok((Source { name: d.name, train, test, classes: d.classes, sha256: Some(d.sha256) }, d.notes))
}

/// A new file of the cache, whose pixels are written in place.
#[derive(Debug)]
pub struct Builder {
    file: AtomicFile,
    path: PathBuf,
    map: MmapMut,
}

impl Builder {
    /// A file for this many bytes of pixels. The space is reserved now, so that a full disk is an error here.
    ///
    /// # Errors
    /// The system's.
    pub fn new(dir: &Path, key: &str, bytes: usize) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        if !dir.join(TAG).exists() {
            fs::write(dir.join(TAG), TAG_TEXT)?;
        }
        prune(dir, UNUSED);
        let path = file(dir, key);
        let file = AtomicFile::create_shared(&path)?;
        let len = i64::try_from(HEADER + bytes).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open.
        let failed = unsafe { libc::posix_fallocate(file.file().as_raw_fd(), 0, len) };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        // SAFETY: the temporary file is this process's own.
        let map = unsafe { MmapOptions::new().map_mut(file.file())? };
        Ok(Builder { file, path, map })
    }

    /// The pixels to be written.
    pub fn pixels(&mut self) -> &mut [u8] {
        &mut self.map[HEADER..]
    }

    /// Completes the file for the pixels of the set at the start of [`Builder::pixels`], and gives the set read from it.
    ///
    /// # Errors
    /// The system's.
    pub fn finish(mut self, key: &str, set: SetOf, notes: Vec<String>) -> Result<(Source, Vec<String>)> {
        let [c, h, w] = set.shape;
        let (count, image_len) = (set.counts[0] + set.counts[1], c * h * w);
        let end = HEADER + count * image_len;
        let pixels = &self.map[HEADER..end];
        let crcs = pixels.par_chunks_exact(image_len).map(crc32fast::hash).collect();
        let sha256 = super::checksum_of(
            (&pixels[..set.counts[0] * image_len], &pixels[set.counts[0] * image_len..]),
            set.labels.split_at(if set.labels.is_empty() { 0 } else { set.counts[0] }),
            set.classes.len(),
        );
        let SetOf { name, classes, counts, shape, labels, names } = set;
        let description = Description { name, classes, counts, shape, labels, names, crcs, sha256, notes };
        let description = serde_json::to_vec(&description)?;
        self.map[..HEADER].copy_from_slice(&header(end, &description, key));
        drop(self.map);
        let file = self.file.file();
        file.set_len(end as u64)?;
        std::os::unix::fs::FileExt::write_all_at(file, &description, end as u64)?;
        self.file.commit_unsynced()?;
        map(&File::open(&self.path)?, &self.path, key, memory())
    }
}

/// A set without its pixels.
#[derive(Debug)]
pub struct SetOf {
    /// As in [`Source`].
    pub name: String,
    /// As in [`Source`].
    pub classes: Vec<String>,
    /// The numbers of training and held-out images.
    pub counts: [usize; 2],
    /// C, H, W.
    pub shape: [usize; 3],
    /// Of all images; empty without labels.
    pub labels: Vec<u32>,
    /// Of all images.
    pub names: Vec<String>,
}

/// How the names of networks for features begin, which are kept in the same folder.
pub const FEATURES: &str = "features-";

/// Removes the files of the cache that nothing has read for `unused`, and what killed processes left; gives their number and bytes.
pub fn prune(dir: &Path, unused: Duration) -> (usize, u64) {
    let mut removed = (0, 0);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, meta) = (entry.path(), entry.metadata());
        let name = entry.file_name().to_string_lossy().into_owned();
        // A file that is being written has been changed lately.
        let part = name.ends_with(".part");
        let unused = if part { Duration::from_secs(24 * 3600) } else { unused };
        let Ok(meta) = meta else { continue };
        let old = meta.modified().ok().and_then(|t| t.elapsed().ok()).is_some_and(|age| age >= unused);
        let ours = name.ends_with(&format!(".{ENDING}")) || name.starts_with(FEATURES);
        if old && (part || ours) && fs::remove_file(&path).is_ok() {
            removed = (removed.0 + 1, removed.1 + meta.len());
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::{TempDir, tempdir};

    const KEY: &str = "0123456789abcdef0123456789abcdef0123";

    /// A cache of three images of 1x1x2 pixels, two of them training images.
    fn cached() -> (TempDir, PathBuf) {
        let dir = tempdir().unwrap();
        let mut file = Builder::new(dir.path(), KEY, 100).unwrap();
        file.pixels()[..6].copy_from_slice(&[1, 2, 3, 4, 5, 6]);
        let set = SetOf {
            name: "set".into(),
            classes: vec!["a".into(), "b".into()],
            counts: [2, 1],
            shape: [1, 1, 2],
            labels: vec![0, 1, 1],
            names: ["x", "y", "z"].map(String::from).to_vec(),
        };
        let (source, notes) = file.finish(KEY, set, vec!["a note".into()]).unwrap();
        is_the_set(&source);
        assert_eq!(notes, ["a note"]);
        let path = super::file(dir.path(), KEY);
        (dir, path)
    }

    fn is_the_set(source: &Source) {
        assert_eq!((&source.train.pixels[..], &source.test.pixels[..]), (&[1, 2, 3, 4][..], &[5, 6][..]));
        assert_eq!((&source.train.labels[..], &source.test.labels[..]), (&[0, 1][..], &[1][..]));
        assert_eq!((source.train.names.join(" "), source.test.names.join(" ")), ("x y".into(), "z".into()));
        assert_eq!((source.name.as_str(), source.classes.join(" ")), ("set", "a b".into()));
        let computed = super::super::checksum(&Source { sha256: None, ..source.clone() });
        assert_eq!(source.sha256.as_ref(), Some(&computed));
    }

    #[test]
    fn a_set_is_read_back_and_another_key_finds_nothing() {
        let (dir, _) = cached();
        let (source, notes) = open(dir.path(), KEY).unwrap().unwrap();
        is_the_set(&source);
        assert_eq!(notes, ["a note"]);
        assert!(open(dir.path(), &KEY.replace('0', "1")).unwrap().is_none());
        assert!(dir.path().join(TAG).exists());
    }

    #[test]
    fn damage_of_any_byte_is_noticed_and_the_file_removed() {
        let (dir, path) = cached();
        let good = fs::read(&path).unwrap();
        for at in (0..150).chain(HEADER..good.len()) {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert!(open(dir.path(), KEY).unwrap().is_none() && !path.exists(), "{at}");
        }
        for len in [0, 10, HEADER - 1, HEADER + 3, good.len() - 1] {
            fs::write(&path, &good[..len]).unwrap();
            assert!(open(dir.path(), KEY).unwrap().is_none() && !path.exists(), "{len}");
        }
    }

    #[test]
    fn a_set_larger_than_memory_is_checked_when_it_is_read() {
        let (_dir, path) = cached();
        let mut bytes = fs::read(&path).unwrap();
        bytes[HEADER + 3] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let (source, _) = map(&File::open(&path).unwrap(), &path, KEY, 10).unwrap();
        let data = super::super::dataset::Dataset::new(&source.train, tch::Device::Cpu).unwrap();
        let gather = |i: i64| data.gather(&tch::Tensor::from_slice(&[i]));
        assert_eq!(Vec::<f32>::try_from((gather(0).unwrap().x * 255.0).flatten(0, -1)).unwrap(), [1.0, 2.0]);
        let e = format!("{:#}", gather(1).unwrap_err());
        assert!(e.contains("start again") && e.contains("is damaged at image 1") && !path.exists(), "{e}");
    }

    #[test]
    fn a_file_that_is_not_complete_is_none() {
        let dir = tempdir().unwrap();
        let file = Builder::new(dir.path(), KEY, 100).unwrap();
        assert!(open(dir.path(), KEY).unwrap().is_none());
        drop(file);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the tag is left");
    }

    #[test]
    fn files_that_nothing_has_read_for_long_are_removed() {
        let (dir, path) = cached();
        assert_eq!(prune(dir.path(), UNUSED), (0, 0));
        File::open(&path).unwrap().set_modified(SystemTime::now() - UNUSED * 2).unwrap();
        let part = dir.path().join("x.pixels.1.part");
        fs::write(&part, "x").unwrap();
        let size = fs::metadata(&path).unwrap().len();
        assert_eq!(prune(dir.path(), UNUSED), (1, size));
        assert!(part.exists(), "another process may be writing it");
        assert!(dir.path().join(TAG).exists());
    }
}
