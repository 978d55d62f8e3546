//! Reads a folder of pictures, with or without class sub-folders.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Cursor, Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::imageops::FilterType;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, ImageResult, Limits};
use rayon::prelude::*;

use super::idx::reserve;
use super::images::{self, Images, Source};
use crate::base::names::escaped;
use crate::base::small_file;

/// Extensions of picture files; others are ignored. The format is detected from the content.
pub const EXTENSIONS: [&str; 10] = ["png", "jpg", "jpeg", "bmp", "gif", "webp", "pbm", "pgm", "ppm", "pnm"];

/// The largest picture in bytes, as a file and decoded: the header of a small file can claim gigabytes.
const MAX_BYTES: u64 = 256 << 20;
/// Bytes for the colour profile of a PNG, which a small file can hold in hundreds of megabytes; a larger one is skipped, as none is used.
const MAX_PROFILE: u64 = 8 << 20;
/// Bytes of all pictures that are being decoded, whatever the number of cores: 5 pictures of 24 megapixels at a time, or 1 of 100.
const MEMORY: u64 = 1 << 30;
/// The longest side of a picture in pixels.
const MAX_SIDE: u32 = 1 << 15;
/// Without a split, one image in this many is held out.
const HOLD_OUT: usize = 10;

/// Paths by class. A folder without classes has one group without a name.
type Groups = Vec<(Option<String>, Vec<PathBuf>)>;

/// One split: paths in order, with a class number each or none.
#[derive(Default)]
struct PictureList {
    paths: Vec<PathBuf>,
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
pub fn load_folder(
    dir: &Path,
    size: Option<(usize, usize)>,
    channels: Option<usize>,
    limits: (usize, usize),
) -> Result<Source> {
    if let Some(c) = channels {
        ensure!(c == 1 || c == 3, "images have 1 or 3 channels, not {c}: give one of these");
    }
    if let Some((h, w)) = size {
        let ok = 1..=MAX_SIDE as usize;
        ensure!(
            ok.contains(&h) && ok.contains(&w),
            "--image-size {h}x{w} is out of range: give a height and a width of 1 to {MAX_SIDE} pixels"
        );
    }
    let (train, test, classes) = list(dir)?;
    let (train, test) = (train.take(limits.0), test.take(limits.1));
    let (c, h, w) = common_shape(&train, &test, size, channels)?;
    Ok(Source {
        name: escaped(dir),
        train: decode_all(train, size, (c, h, w))?,
        test: decode_all(test, size, (c, h, w))?,
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
        return hold_out(groups(dir)?);
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
        paths.iter().for_each(|path| splits.0.push(path, class, &classes));
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
        paths.iter().for_each(|path| splits.1.push(path, class, &classes));
    }
    Ok((splits.0, splits.1, classes))
}

fn class_names(groups: &Groups) -> Vec<String> {
    groups.iter().filter_map(|(name, _)| name.clone()).collect()
}

impl PictureList {
    /// `n` of the pictures, evenly spaced.
    fn take(self, n: usize) -> Self {
        let chosen = images::spread(self.paths.len(), n);
        PictureList {
            paths: chosen.iter().map(|&i| self.paths[i].clone()).collect(),
            labels: chosen.iter().filter_map(|&i| self.labels.get(i)).copied().collect(),
        }
    }

    /// Adds a picture; `class` is ignored without `classes`.
    fn push(&mut self, path: &Path, class: usize, classes: &[String]) {
        self.paths.push(path.to_owned());
        self.labels.extend((!classes.is_empty()).then_some(class as u32));
    }
}

fn hold_out(groups: Groups) -> Result<(PictureList, PictureList, Vec<String>)> {
    let classes = class_names(&groups);
    let (mut train, mut test) = (PictureList::default(), PictureList::default());
    for (class, (_, paths)) in groups.iter().enumerate() {
        for (i, path) in paths.iter().enumerate() {
            let held_out = i % HOLD_OUT == HOLD_OUT - 1;
            if held_out { &mut test } else { &mut train }.push(path, class, &classes);
        }
    }
    if test.paths.is_empty() {
        test.paths.extend(train.paths.pop());
        test.labels.extend(train.labels.pop());
    }
    if let (true, Some(only)) = (train.paths.is_empty(), test.paths.first()) {
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
fn common_shape(
    train: &PictureList,
    test: &PictureList,
    size: Option<(usize, usize)>,
    channels: Option<usize>,
) -> Result<(usize, usize, usize)> {
    if let (Some((h, w)), Some(c)) = (size, channels) {
        return Ok((c, h, w));
    }
    let all: Vec<&PathBuf> = train.paths.iter().chain(&test.paths).collect();
    let headers: Vec<Result<_>> = all.par_iter().map(|path| header(path)).collect();
    let (mut first, mut all_grey) = (None, true);
    for (path, header) in all.iter().zip(headers) {
        let ((height, width), grey) = header?;
        all_grey &= grey;
        let (h, w) = *first.get_or_insert((height, width));
        ensure!(
            size.is_some() || (h, w) == (height, width),
            "{} is {height}x{width} pixels (height x width), but the first picture, {}, is {h}x{w}: \
             all must have one size, so pass --image-size N to scale and crop them to N x N (such as --image-size {})",
            path.display(),
            all[0].display(),
            suggested_size([h, w, height, width])
        );
    }
    let (h, w) = size.or(first).unwrap_or_default();
    Ok((channels.unwrap_or(if all_grey { 1 } else { 3 }), h, w))
}

/// (H,W) of a picture after its EXIF orientation, and whether it is grey.
fn header(path: &Path) -> Result<((usize, usize), bool)> {
    let (file, _) = open_file(path)?;
    let (decoder, orientation) = open(path, BufReader::new(file))?;
    let (width, height) = decoder.dimensions();
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    let turned = matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH);
    let (h, w) = if turned { (width, height) } else { (height, width) };
    Ok(((h as usize, w as usize), !decoder.color_type().has_color()))
}

/// The file of a picture, and its length in bytes.
fn open_file(path: &Path) -> Result<(File, u64)> {
    let file = small_file::open(path).map_err(|e| broken(path, e))?;
    let bytes = file.metadata().map_err(|e| broken(path, e))?.len();
    if bytes > MAX_BYTES {
        return Err(broken(path, format_args!("it has {bytes} bytes, more than {MAX_BYTES}")));
    }
    Ok((file, bytes))
}

/// A decoder of the picture at `path`, after it has read the header and checked the limits.
fn open<'a>(path: &Path, file: impl BufRead + Seek + 'a) -> Result<(impl ImageDecoder + 'a, Orientation)> {
    let mut file = ImageReader::new(file).with_guessed_format().map_err(|e| broken(path, e))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_PROFILE);
    file.limits(limits.clone());
    let mut decoder = guarded(path, || file.into_decoder())?;
    limits.max_alloc = Some(MAX_BYTES);
    guarded(path, || decoder.set_limits(limits))?;
    let bytes = decoder.total_bytes();
    let (w, h) = decoder.dimensions();
    if w == 0 || h == 0 {
        return Err(broken(path, format_args!("it is {h}x{w} pixels large")));
    }
    if bytes > MAX_BYTES {
        return Err(broken(path, format_args!("its {h}x{w} pixels unpack to {bytes} bytes, more than {MAX_BYTES}")));
    }
    let orientation = decoder.orientation().map_err(|e| broken(path, e))?;
    Ok((decoder, orientation))
}

fn broken(path: &Path, why: impl std::fmt::Display) -> anyhow::Error {
    let why = why.to_string().replace('\n', " ");
    anyhow!("{} cannot be read as a picture ({why}): replace it or delete it", path.display())
}

fn decode_all(split: PictureList, size: Option<(usize, usize)>, (c, h, w): (usize, usize, usize)) -> Result<Images> {
    let count = split.paths.len();
    let image_len = c * h * w;
    let total = count.checked_mul(image_len).context("too many pixels: pass a smaller --image-size")?;
    let mut pixels = Vec::new(); // [N,C,H,W]
    reserve(&mut pixels, total)?;
    pixels.resize(total, 0);
    let images = pixels.par_chunks_exact_mut(image_len).zip(&split.paths);
    let first_error = images.map(|(out, path)| decode(path, size, (c, h, w), out)).find_map_first(Result::err);
    first_error.map_or(Ok(()), Err)?;
    Images::new([count, c, h, w], pixels, split.labels)
}

thread_local! {
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in a picture decoder, whose panics are reported as errors of the picture.
pub fn decoding() -> bool {
    DECODING.get()
}

/// Runs a decoder of the `image` crate; some of them panic on damaged files.
fn guarded<T>(path: &Path, decode: impl FnOnce() -> ImageResult<T>) -> Result<T> {
    DECODING.set(true);
    let result = catch_unwind(AssertUnwindSafe(decode));
    DECODING.set(false);
    result.map_err(|_| broken(path, "its decoder failed"))?.map_err(|e| broken(path, e))
}

/// A picture's share of [`MEMORY`].
struct Share(u64);

static FREE: (Mutex<u64>, Condvar) = (Mutex::new(MEMORY), Condvar::new());

impl Share {
    /// Waits until this much is free.
    fn take(bytes: u64) -> Self {
        let bytes = bytes.min(MEMORY);
        let free = FREE.0.lock().unwrap_or_else(PoisonError::into_inner);
        *FREE.1.wait_while(free, |free| *free < bytes).unwrap_or_else(PoisonError::into_inner) -= bytes;
        Share(bytes)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        *FREE.0.lock().unwrap_or_else(PoisonError::into_inner) += self.0;
        FREE.1.notify_all();
    }
}

/// Decodes one picture to `out`, [C,H,W].
fn decode(path: &Path, size: Option<(usize, usize)>, (c, h, w): (usize, usize, usize), out: &mut [u8]) -> Result<()> {
    let (mut file, len) = open_file(path)?;
    let mut bytes = Vec::with_capacity(len as usize);
    file.read_to_end(&mut bytes).map_err(|e| broken(path, e))?;
    if !has_end(&bytes) {
        return Err(broken(path, "it is cut off"));
    }
    let (decoder, orientation) = open(path, Cursor::new(&bytes))?;
    let (w_all, h_all) = decoder.dimensions();
    // The decoded picture and one copy of it: while it is converted, and then cropped.
    let _share = Share::take(len + 2 * decoder.total_bytes().max(4 * u64::from(w_all) * u64::from(h_all)));
    let mut picture = guarded(path, || DynamicImage::from_decoder(decoder))?;
    picture.apply_orientation(orientation);
    if picture.color().has_alpha() {
        picture = on_black(picture);
    }
    // A grey one gets its colours when it is small.
    picture = match c == 1 || !picture.color().has_color() {
        true => DynamicImage::ImageLuma8(picture.into_luma8()),
        false => DynamicImage::ImageRgb8(picture.into_rgb8()),
    };
    let (height, width) = (picture.height() as usize, picture.width() as usize);
    if (height, width) != (h, w) {
        ensure!(size.is_some(), "{} changed its size while it was read: start again", path.display());
        // Center-cropped to the aspect ratio before it is scaled: a scaled thin picture could take gigabytes.
        let (cut_h, cut_w) =
            if width * h > height * w { (height, (height * w).div_ceil(h)) } else { ((width * h).div_ceil(w), width) };
        let [x, y, cut_w, cut_h] = [(width - cut_w) / 2, (height - cut_h) / 2, cut_w, cut_h].map(|n| n as u32);
        // A copy of a large picture only where something is cut.
        if (picture.width(), picture.height()) != (cut_w, cut_h) {
            picture = picture.crop_imm(x, y, cut_w, cut_h);
        }
        picture = picture.resize_exact(w as u32, h as u32, FilterType::Triangle);
    }
    if c == 3 {
        picture = DynamicImage::ImageRgb8(picture.into_rgb8());
    }
    let bytes = picture.as_bytes(); // [H,W,C]
    for (channel, plane) in out.chunks_exact_mut(h * w).enumerate() {
        for (to, pixel) in plane.iter_mut().zip(bytes.chunks_exact(c)) {
            *to = pixel[channel];
        }
    }
    Ok(())
}

/// Whether a JPEG has its end marker: the decoder fills missing data with grey. The decoders of other formats check this. The
/// last 64 KiB are searched, because some cameras append data.
fn has_end(bytes: &[u8]) -> bool {
    let tail = &bytes[bytes.len().saturating_sub(1 << 16)..];
    !bytes.starts_with(&[0xff, 0xd8]) || tail.windows(2).any(|pair| pair == [0xff, 0xd9])
}

/// Composites a picture with transparency on black.
fn on_black(picture: DynamicImage) -> DynamicImage {
    let mut rgba = picture.into_rgba8();
    for pixel in rgba.pixels_mut() {
        let alpha = u16::from(pixel[3]);
        for value in &mut pixel.0[..3] {
            *value = ((u16::from(*value) * alpha + 127) / 255) as u8;
        }
        pixel[3] = 255;
    }
    DynamicImage::ImageRgba8(rgba)
}

#[cfg(test)]
mod tests;
