//! A set of pictures, in folders or in archives: which files they are, what belongs to which split and class, and their pixels.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rayon::prelude::*;

use super::cache::{Builder, SetOf};
use super::files::{DataFile, is_hidden, walk};
use super::images::{Images, Source, reserve, spread};
use super::layout::{Layout, layout};
use super::picture::{self, Background, Fit, Header};
use super::subset::Subset;
use super::{archive, cache, kinds, shards};
use crate::base::hash::Sum;
use crate::base::names::{escaped, printable};
use crate::base::progress::Tally;

/// Broken pictures that an error names.
const NAMED: usize = 20;
/// Pictures whose borders are looked at.
const BORDERS: usize = 200;
/// Pictures of a common size from which the others are brought to it: this share of all.
const COMMON: f64 = 0.9;

/// Files that may be pictures.
#[derive(Debug)]
pub struct PictureSet {
    /// Its name for messages: the folder or archive.
    name: String,
    files: Vec<DataFile>,
    /// Their classes, where names do not say it.
    labels: Option<Vec<u32>>,
    /// Whether they are the members of an archive.
    archive: bool,
    /// What was left out so far.
    notes: Vec<String>,
}

/// How a set is read.
#[derive(Debug)]
pub struct ReadOptions<'a> {
    /// How pictures become images.
    pub fit: Fit,
    /// Which are used.
    pub subset: Subset,
    /// Whether broken pictures are left out; else they are an error.
    pub skip_broken: bool,
    /// Whether all broken pictures are named, not only the first twenty.
    pub list_broken: bool,
    /// The folder of the cache; none for no cache.
    pub cache: Option<&'a Path>,
}

/// A picture that cannot be read, and why.
type Broken = (usize, anyhow::Error);

impl PictureSet {
    /// The files below a folder.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub fn of_folder(dir: &Path) -> Result<Self> {
        let (files, notes) = walk(dir)?;
        Ok(PictureSet { name: escaped(dir), files, labels: None, archive: false, notes })
    }

    /// These files.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn of_files(paths: &[PathBuf]) -> Result<Self> {
        let one = |path: &PathBuf| DataFile::new(path.parent().unwrap_or(Path::new("")), path.clone());
        let files = paths.iter().map(one).collect::<Result<_>>()?;
        let name = paths.iter().map(escaped).collect::<Vec<_>>().join(" ");
        Ok(PictureSet { name, files, labels: None, archive: false, notes: Vec::new() })
    }

    /// The members of a zip or tar file.
    ///
    /// # Errors
    /// When the archive cannot be read.
    pub fn of_archive(path: &Path) -> Result<Self> {
        let mut files = archive::list(path)?;
        files.retain(|file| !is_hidden(&file.name));
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(PictureSet { name: escaped(path), files, labels: None, archive: true, notes: Vec::new() })
    }

    /// The pictures of WebDataset's shards, in their order, with their classes.
    ///
    /// # Errors
    /// When a shard cannot be read.
    pub fn of_shards(spec: &Path, paths: &[PathBuf]) -> Result<Self> {
        let (files, labels) = shards::list(paths)?;
        Ok(PictureSet { name: escaped(spec), files, labels, archive: true, notes: Vec::new() })
    }

    /// Reads the pictures as images; also what a user should know about it, a line each.
    ///
    /// # Errors
    /// When there are no pictures or only one; when some are broken; the errors of [`Subset::choose`].
    pub fn read(self, options: &ReadOptions) -> Result<(Source, Vec<String>)> {
        let key = self.key(options);
        if let Some(dir) = options.cache
            && let Some(found) = cache::open(dir, &key)?
        {
            return Ok(found);
        }
        let PictureSet { name, files, labels: known, archive, mut notes } = self;
        let (kept, left_out) = kinds::pictures(&files);
        let pictures: Vec<&DataFile> = kept.iter().map(|i| &files[*i]).collect();
        notes.extend(left_out);
        if pictures.is_empty() {
            bail!("{}", [vec![format!("{name} holds no pictures")], notes].concat().join("; "));
        }
        if let ([only], false) = (&pictures[..], options.subset.whole) {
            bail!("{} is the only picture: give at least two, one to train on and one to hold out", only.display());
        }
        let names: Vec<PathBuf> = pictures.iter().map(|file| file.name.clone()).collect();
        let Layout { splits, mut classes, mut labels, notes: chosen } = layout(&names, archive);
        notes.extend(chosen);
        if let Some(known) = known {
            labels = kept.iter().map(|i| known[*i]).collect();
            classes = (0..=labels.iter().copied().max().unwrap_or(0)).map(|class| class.to_string()).collect();
        }
        let chosen = options.subset.choose(&name, pictures.len(), (&classes, &labels), splits.as_deref())?;
        let order = chosen.splits.concat();
        let files: Vec<&DataFile> = order.iter().map(|i| pictures[*i]).collect();
        let mut set = SetOf {
            name,
            classes: chosen.classes,
            counts: [chosen.splits[0].len(), chosen.splits[1].len()],
            shape: [0; 3],
            labels: if chosen.labels.is_empty() {
                Vec::new()
            } else {
                order.iter().map(|i| chosen.labels[*i]).collect()
            },
            names: files.iter().map(|file| escaped(&file.name)).collect(),
        };
        let (fit, note, broken) = common_fit(&files, &options.fit);
        notes.extend(note);
        let Some(Fit { size: Some((h, w)), channels: Some(c), .. }) = fit else {
            return Err(broken_pictures(&files, broken, options));
        };
        set.shape = [c, h, w];
        let mut fit = fit.unwrap_or_default();
        notes.extend(choose_background(&files, &mut fit));
        let image_len = c * h * w;
        let bytes = files.len().checked_mul(image_len).context("too many pixels: pass a smaller --image-size")?;
        let mut built = None;
        if let Some(dir) = options.cache {
            match Builder::new(dir, &key, bytes) {
                Ok(file) => built = Some(file),
                Err(e) => notes.push(format!("the pictures are not cached in {} ({e}): see --cache", dir.display())),
            }
        }
        let mut memory = Vec::new();
        if built.is_none() {
            reserve(&mut memory, bytes)?;
            memory.resize(bytes, 0);
        }
        let pixels = built.as_mut().map_or(&mut memory[..], |file| &mut file.pixels()[..bytes]);
        let broken = decode_all(&files, &fit, [c, h, w], pixels);
        if !broken.is_empty() {
            if !options.skip_broken {
                return Err(broken_pictures(&files, broken, options));
            }
            notes.push(format!("left out: {}", list_of(&files, &broken, options.list_broken)));
            set.leave_out(&broken, pixels, image_len);
            ensure!(
                set.counts[0] > 0 && (set.counts[1] > 0 || options.subset.whole),
                "{} has {} training and {} held-out pictures that can be read: there must be at least one of each",
                set.name,
                set.counts[0],
                set.counts[1]
            );
        }
        if let Some(file) = built {
            return file
                .finish(&key, set, notes)
                .context("the cache of the pictures could not be written (--cache off reads without it)");
        }
        memory.truncate((set.counts[0] + set.counts[1]) * image_len);
        Ok((set.into_source(memory)?, notes))
    }

    /// What the pixels follow from, hashed.
    fn key(&self, options: &ReadOptions) -> String {
        let mut sum = Sum::default();
        let ReadOptions { fit, subset, skip_broken, .. } = options;
        sum.add(format!("{} {fit:?} {subset:?} {skip_broken}", self.name).as_bytes());
        for file in &self.files {
            sum.add(file.name.as_os_str().as_encoded_bytes());
            sum.add(format!("\0{} {}\0", file.len, file.version).as_bytes());
        }
        sum.hex()
    }
}

impl SetOf {
    /// Without these pictures, which are in ascending order; the pixels of the others move together.
    fn leave_out(&mut self, broken: &[Broken], pixels: &mut [u8], image_len: usize) {
        let mut is_broken = vec![false; self.names.len()];
        broken.iter().for_each(|(i, _)| is_broken[*i] = true);
        let kept: Vec<usize> = (0..is_broken.len()).filter(|i| !is_broken[*i]).collect();
        for (to, from) in kept.iter().enumerate() {
            pixels.copy_within(from * image_len..(from + 1) * image_len, to * image_len);
        }
        let train = kept.iter().filter(|i| **i < self.counts[0]).count();
        self.counts = [train, kept.len() - train];
        self.names = kept.iter().map(|i| self.names[*i].clone()).collect();
        self.labels = kept.iter().filter_map(|i| self.labels.get(*i)).copied().collect();
    }

    fn into_source(self, pixels: Vec<u8>) -> Result<Source> {
        let ([train, test], [c, h, w]) = (self.counts, self.shape);
        let all = Images { names: self.names, ..Images::new([train + test, c, h, w], pixels, self.labels)? };
        let (train, test) = all.split_at(train);
        Ok(Source { name: self.name, train, test, classes: self.classes, sha256: None })
    }
}

/// The fit with a size and channels for all pictures, and a note on what was chosen; none where no picture's header can be read. Also the
/// broken ones that were met.
///
/// Without `--image-size`, the size is that of the pictures; where they differ, that of nine tenths of them, or else the largest power of
/// two up to 64 that is at most half of the pictures' shorter side.
fn common_fit(files: &[&DataFile], fit: &Fit) -> (Option<Fit>, Option<String>, Vec<Broken>) {
    if fit.size.is_some() && fit.channels.is_some() {
        return (Some(*fit), None, Vec::new());
    }
    let headers: Vec<Result<Header>> = files.par_iter().map(|f| f.open().and_then(picture::header)).collect();
    let (mut good, mut broken) = (Vec::new(), Vec::new());
    for (i, header) in headers.into_iter().enumerate() {
        match header {
            Ok(header) => good.push(header),
            Err(e) => broken.push((i, e)),
        }
    }
    let Some(first) = good.first().map(|h| h.size) else { return (None, None, broken) };
    let channels = fit.channels.unwrap_or(if good.iter().all(|h| h.grey) { 1 } else { 3 });
    let mut note = None;
    let size = fit.size.unwrap_or_else(|| {
        let mut sizes: Vec<(usize, usize)> = good.iter().map(|h| h.size).collect();
        sizes.sort_unstable();
        if sizes.first() == sizes.last() {
            return first;
        }
        let runs = sizes.chunk_by(|a, b| a == b);
        let (common, count) = runs.map(|run| (run[0], run.len())).max_by_key(|(_, n)| *n).unwrap_or((first, 0));
        if count as f64 >= COMMON * sizes.len() as f64 {
            let others = sizes.len() - count;
            note = Some(format!(
                "{others} of {} pictures are not {}x{} pixels (height x width): they are fitted to that size (--image-size chooses another)",
                sizes.len(),
                common.0,
                common.1
            ));
            return common;
        }
        let mut sides: Vec<usize> = sizes.iter().map(|(h, w)| *h.min(w)).collect();
        sides.sort_unstable();
        let middle = sides[sides.len() / 2];
        let size = [64, 32, 16].into_iter().find(|size| *size <= middle).unwrap_or(8);
        let text = format!("the pictures have {} sizes: all are fitted to {size}x{size} pixels", runs_of(&sizes));
        note = Some(text + " (--image-size chooses another)");
        (size, size)
    });
    (Some(Fit { size: Some(size), channels: Some(channels), ..*fit }), note, broken)
}

/// Chooses what transparent pixels lie on where the settings do not say: white where more than half of the borders of some of the
/// pictures is transparent, as in drawings, else black. Gives a note where there are any.
fn choose_background(files: &[&DataFile], fit: &mut Fit) -> Option<String> {
    if fit.background != Background::Auto || fit.channels == Some(4) {
        return None;
    }
    let some = spread(files.len(), BORDERS);
    // What cannot be read is found when it is decoded.
    let borders = some.par_iter().filter_map(|i| picture::border(&files[*i].read().ok()?, fit).ok()?);
    fit.choose_background(borders.reduce(|| (0, 0), |a, b| (a.0 + b.0, a.1 + b.1)))
}

fn runs_of(sorted: &[(usize, usize)]) -> usize {
    sorted.chunk_by(|a, b| a == b).count()
}

/// Decodes all pictures to `pixels` [N,C,H,W] on every core; gives the broken ones.
fn decode_all(files: &[&DataFile], fit: &Fit, [c, h, w]: [usize; 3], pixels: &mut [u8]) -> Vec<Broken> {
    let tally = Mutex::new(Tally::start("pictures read", files.len() as u64));
    let decode = |out: &mut [u8], file: &DataFile| picture::decode(&file.read()?, fit, (c, h, w), out);
    let each = pixels.par_chunks_exact_mut(c * h * w).zip(files).enumerate().with_max_len(16);
    let mut broken: Vec<Broken> = each
        .filter_map(|(i, (out, file))| {
            let result = decode(out, file);
            if let Ok(mut tally) = tally.lock() {
                tally.advance(1);
            }
            result.err().map(|e| (i, e))
        })
        .collect();
    broken.sort_by_key(|(i, _)| *i);
    broken
}

/// `a.png (it is cut off), b.jpg (...) and 3 more`.
fn list_of(files: &[&DataFile], broken: &[Broken], all: bool) -> String {
    let named = if all { broken.len() } else { NAMED };
    let one = |(i, why): &Broken| format!("{} ({why:#})", printable(files[*i].display().to_string()));
    let mut text = broken.iter().take(named).map(one).collect::<Vec<_>>().join(", ");
    if broken.len() > named {
        // Writing to a String cannot fail.
        let _ = write!(text, " and {} more (--list-broken names all)", broken.len() - named);
    }
    format!("{} broken of {} pictures: {text}", broken.len(), files.len())
}

fn broken_pictures(files: &[&DataFile], broken: Vec<Broken>, options: &ReadOptions) -> anyhow::Error {
    if let [(i, why)] = &broken[..] {
        return anyhow!(
            "{} cannot be read as a picture ({why:#}): replace it, delete it, or use the others with --skip-broken",
            files[*i].display()
        );
    }
    let list = list_of(files, &broken, options.list_broken);
    anyhow!("{list}: replace them, delete them, or use the others with --skip-broken")
}

#[cfg(test)]
mod tests;
