//! Reads a folder of pictures, with or without class sub-folders.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rayon::prelude::*;

use super::files::DataFile;
use super::idx::reserve;
use super::images::{self, Images, Source};
use super::picture::{self, Fit, Header};
use crate::base::names::escaped;

/// Extensions of picture files; others are ignored. The format is detected from the content.
pub const EXTENSIONS: [&str; 10] = ["png", "jpg", "jpeg", "bmp", "gif", "webp", "pbm", "pgm", "ppm", "pnm"];

/// Without a split, one image in this many is held out.
const HOLD_OUT: usize = 10;

/// Paths by class. A folder without classes has one group without a name.
type Groups = Vec<(Option<String>, Vec<PathBuf>)>;

/// One split: paths in order, with a class number each or none.
#[derive(Default)]
struct PictureList {
    files: Vec<DataFile>,
    labels: Vec<u32>,
}

/// Reads the pictures of `dir` as images [N,C,H,W].
///
/// *Layout.* Pictures are in `dir` (no labels) or in its sub-folders, one for each class, numbered in the order of their names;
/// deeper folders are not searched. If `dir` has a folder `train` and a folder `test` (or `val`), these give the split, and other
/// folders are ignored. Otherwise every tenth picture of each class is held out, in the order of the file names; at least the last
/// picture of all. Hidden files and other extensions are ignored.
///
/// *Size.* `size` is (H,W): each picture is scaled to cover H x W (triangle filter, which averages when it shrinks and does not
/// ring) and center-cropped. Without `size` all pictures must have the same size.
///
/// *Values.* `channels` is 1 or 3; by default 3, or 1 if all pictures are grey. Colour is converted to grey by Rec. 709 weights.
/// Transparent pixels are composited on black, the background of MNIST. 16-bit values are rounded to 8 bits, EXIF orientation is
/// applied, and the first frame of an animation is used.
///
/// *Limits.* The largest numbers of training and held-out pictures, evenly spaced in the list; no others are opened.
///
/// # Errors
/// When there are no pictures, fewer than two without a split, or more than 256 classes; when pictures are both beside and in
/// class folders; when a picture is damaged, too large (256 MiB, as a file or decoded, or 32768 pixels on a side), or differs in size
/// from the first; when `size` or `channels` is out of range.
pub fn load_folder(dir: &Path, fit: &Fit, limits: (usize, usize)) -> Result<Source> {
    let (train, test, classes) = list(dir)?;
    let (train, test) = (train.take(limits.0), test.take(limits.1));
    let shape = common_shape(&train, &test, fit)?;
    Ok(Source {
        name: escaped(dir),
        train: decode_all(train, fit, shape)?,
        test: decode_all(test, fit, shape)?,
        classes,
    })
}

/// The training split, the held-out split, and the names of the classes.
fn list(dir: &Path) -> Result<(PictureList, PictureList, Vec<String>)> {
    let (pictures, folders) = scan(dir)?;
    let named = |name: &str| folders.iter().find(|f| f.file_name() == Some(name.as_ref()));
    let (Some(train), Some(test)) = (named("train"), named("test").or_else(|| named("val"))) else {
        // A folder `train` beside others is a class.
        if let (Some(train), 1) = (named("train"), folders.len()) {
            bail!(
                "{} has a folder train but neither test nor val: add one, or give {} itself to hold out a tenth of it",
                dir.display(),
                train.display()
            );
        }
        return hold_out(dir, groups(dir)?);
    };
    if let Some(stray) = pictures.first() {
        bail!(
            "{}: next to the folder {} no pictures may lie: move it into one of the splits",
            stray.display(),
            train.display()
        );
    }
    let (train_groups, test_groups) = (groups(train)?, groups(test)?);
    let classes = class_names(&train_groups);
    let mut splits = (PictureList::default(), PictureList::default());
    for (class, (_, paths)) in train_groups.iter().enumerate() {
        paths.iter().try_for_each(|path| splits.0.push(dir, path, class, &classes))?;
    }
    for (name, paths) in &test_groups {
        let Some(class) = train_groups.iter().position(|(known, _)| known == name) else {
            let name = name.as_deref().unwrap_or("(pictures without a class)");
            bail!(
                "{}: class {name} is not in {}: both splits must have the same classes",
                test.display(),
                train.display()
            );
        };
        paths.iter().try_for_each(|path| splits.1.push(dir, path, class, &classes))?;
    }
    Ok((splits.0, splits.1, classes))
}

fn class_names(groups: &Groups) -> Vec<String> {
    groups.iter().filter_map(|(name, _)| name.clone()).collect()
}

impl PictureList {
    /// `n` of the pictures, evenly spaced.
    fn take(self, n: usize) -> Self {
        let chosen = images::spread(self.files.len(), n);
        PictureList {
            files: chosen.iter().map(|&i| self.files[i].clone()).collect(),
            labels: chosen.iter().filter_map(|&i| self.labels.get(i)).copied().collect(),
        }
    }

    /// Adds a picture; `class` is ignored without `classes`.
    fn push(&mut self, dir: &Path, path: &Path, class: usize, classes: &[String]) -> Result<()> {
        self.files.push(DataFile::new(dir, path.to_owned())?);
        self.labels.extend((!classes.is_empty()).then_some(class as u32));
        Ok(())
    }
}

fn hold_out(dir: &Path, groups: Groups) -> Result<(PictureList, PictureList, Vec<String>)> {
    let classes = class_names(&groups);
    let (mut train, mut test) = (PictureList::default(), PictureList::default());
    for (class, (_, paths)) in groups.iter().enumerate() {
        for (i, path) in paths.iter().enumerate() {
            let held_out = i % HOLD_OUT == HOLD_OUT - 1;
            if held_out { &mut test } else { &mut train }.push(dir, path, class, &classes)?;
        }
    }
    if test.files.is_empty() {
        test.files.extend(train.files.pop());
        test.labels.extend(train.labels.pop());
    }
    if let (true, Some(only)) = (train.files.is_empty(), test.files.first()) {
        bail!("{} is the only picture: give at least two, one to train on and one to hold out", only.display());
    }
    Ok((train, test, classes))
}

/// The pictures of one split by class, at least one picture.
fn groups(dir: &Path) -> Result<Groups> {
    let (pictures, folders) = scan(dir)?;
    let mut classes: Groups = Vec::new();
    for folder in &folders {
        let (inside, _) = scan(folder)?;
        if !inside.is_empty() {
            let name = folder.file_name().unwrap_or_default();
            classes.push((Some(escaped(name)), inside));
        }
    }
    if let (Some(picture), Some((_, inside))) = (pictures.first(), classes.first()) {
        bail!(
            "{} holds pictures both directly ({}) and in class folders ({}): put all or none of them into class folders",
            dir.display(),
            picture.display(),
            inside[0].display()
        );
    }
    ensure!(
        classes.len() <= 256,
        "{} has {} class folders, at most 256 are possible: merge some, or put all pictures into one folder",
        dir.display(),
        classes.len()
    );
    if !pictures.is_empty() {
        classes.push((None, pictures));
    }
    ensure!(
        !classes.is_empty(),
        "{} holds no pictures, neither directly nor in class folders: a picture's name must end in .{}",
        dir.display(),
        EXTENSIONS.join(", .")
    );
    Ok(classes)
}

/// The pictures and the folders in `dir`, sorted by name, without hidden ones.
fn scan(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let unreadable = || format!("the folder {} cannot be read", dir.display());
    let (mut pictures, mut folders) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') {
            continue;
        }
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        if path.is_dir() {
            folders.push(path);
        } else if extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str()))
            // Not a pipe, socket or device, which could block. Without metadata, opening the file gives the error.
            && fs::metadata(&path).map_or(true, |meta| meta.is_file())
        {
            pictures.push(path);
        }
    }
    pictures.sort();
    folders.sort();
    Ok((pictures, folders))
}

/// A size to train on for pictures of these sides: the largest power of two that fits, at most 64, where training takes minutes.
fn suggested_size(sides: [usize; 4]) -> usize {
    [64, 32, 16, 8].into_iter().find(|size| sides.iter().all(|side| size <= side)).unwrap_or(8)
}

/// (C,H,W) of all images: from the arguments, or else from the headers of all pictures.
fn common_shape(train: &PictureList, test: &PictureList, fit: &Fit) -> Result<(usize, usize, usize)> {
    if let (Some((h, w)), Some(c)) = (fit.size, fit.channels) {
        return Ok((c, h, w));
    }
    let all: Vec<&DataFile> = train.files.iter().chain(&test.files).collect();
    let header = |file: &DataFile| file.open().and_then(picture::header).map_err(|e| broken(file, e));
    let headers: Vec<Result<Header>> = all.par_iter().map(|file| header(file)).collect();
    let (mut first, mut all_grey) = (None, true);
    for (file, header) in all.iter().zip(headers) {
        let Header { size: (height, width), grey } = header?;
        all_grey &= grey;
        let (h, w) = *first.get_or_insert((height, width));
        ensure!(
            fit.size.is_some() || (h, w) == (height, width),
            "{} is {height}x{width} pixels (height x width), but the first picture, {}, is {h}x{w}: \
             all must have one size, so pass --image-size N to scale and crop them to N x N (such as --image-size {})",
            file.display(),
            all[0].display(),
            suggested_size([h, w, height, width])
        );
    }
    let (h, w) = fit.size.or(first).unwrap_or_default();
    Ok((fit.channels.unwrap_or(if all_grey { 1 } else { 3 }), h, w))
}

fn broken(file: &DataFile, why: anyhow::Error) -> anyhow::Error {
    anyhow!("{} cannot be read as a picture ({why:#}): replace it or delete it", file.display())
}

fn decode_all(split: PictureList, fit: &Fit, (c, h, w): (usize, usize, usize)) -> Result<Images> {
    let count = split.files.len();
    let image_len = c * h * w;
    let total = count.checked_mul(image_len).context("too many pixels: pass a smaller --image-size")?;
    let mut pixels = Vec::new(); // [N,C,H,W]
    reserve(&mut pixels, total)?;
    pixels.resize(total, 0);
    let images = pixels.par_chunks_exact_mut(image_len).zip(&split.files);
    let decode = |out: &mut [u8], file: &DataFile| picture::decode(&file.read()?, fit, (c, h, w), out);
    let first_error =
        images.map(|(out, file)| decode(out, file).map_err(|e| broken(file, e))).find_map_first(Result::err);
    first_error.map_or(Ok(()), Err)?;
    Images::new([count, c, h, w], pixels, split.labels)
}

#[cfg(test)]
mod tests;
