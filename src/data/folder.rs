//! Reads a folder of pictures, with or without class sub-folders.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Cursor, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::imageops::FilterType;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};
use rayon::prelude::*;

use super::idx::zeroed;
use super::images::{self, Images, Source};

/// Files with another extension are ignored; what a file really is, its content decides.
pub const EXTENSIONS: [&str; 10] = ["png", "jpg", "jpeg", "bmp", "gif", "webp", "pbm", "pgm", "ppm", "pnm"];

/// A picture that unpacks to more than this is refused: a file of a few kilobytes can claim gigabytes.
const MAX_BYTES: u64 = 256 << 20;
/// The longest side of a picture in pixels.
const MAX_SIDE: u32 = 1 << 15;
/// One image in this many is held out when the folder has no split of its own.
const HOLD_OUT: usize = 10;

/// Pictures by class; a folder without classes is one group without a name.
type Groups = Vec<(Option<String>, Vec<PathBuf>)>;

/// One split: the pictures in order, with their class numbers or none.
#[derive(Default)]
struct Split {
    paths: Vec<PathBuf>,
    labels: Vec<u8>,
}

/// The pictures of `dir` as images [N,C,H,W].
///
/// *Layout.* Pictures lie in `dir` itself (no labels) or in its sub-folders, one for each class, numbered in the
/// order of their names; deeper folders are not searched. When `dir` has a folder `train` and a folder `test` (or
/// `val`), they are laid out so each and give the split, and other folders beside them are ignored. Otherwise every tenth picture of each class, in the order
/// of the file names, is held out, and when that is none at all, the last picture is. Hidden files and files with
/// other extensions are ignored.
///
/// *Size.* `size` is (H,W): each picture is scaled until it just covers H x W (triangle filter, which averages when
/// it shrinks and never rings) and the rest is cut off evenly on both sides. Without it all pictures must have one
/// size already.
///
/// *Values.* `channels` is 1 or 3; without it 3, or 1 when every picture is grey. Colour becomes grey by Rec. 709
/// weights. Transparent pixels lie on black, which is 0 as the ground of MNIST is. 16-bit values are
/// rounded to 8 bits, EXIF orientation is applied, and of an animation the first frame counts.
///
/// *Limits.* At most so many training and held-out pictures, evenly spread over the list; no other is opened.
///
/// # Errors
/// When there are no pictures, fewer than two without a split, or more than 256 classes; when pictures lie both beside
/// and in class folders; when a picture is broken, too large to be decoded (256 MiB or 32768 pixels on a side), or of
/// another size than the first; when `size` or `channels` is out of range.
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
        name: dir.display().to_string(),
        train: decode_all(train, size, (c, h, w))?,
        test: decode_all(test, size, (c, h, w))?,
        classes,
    })
}

/// Lists both splits and the names of the classes.
fn list(dir: &Path) -> Result<(Split, Split, Vec<String>)> {
    let (pictures, folders) = scan(dir)?;
    let named = |name: &str| folders.iter().find(|f| f.file_name() == Some(name.as_ref()));
    let Some(train) = named("train") else {
        return hold_out(groups(dir)?);
    };
    let Some(test) = named("test").or_else(|| named("val")) else {
        ensure!(
            folders.len() > 1,
            "{} has a folder train but neither test nor val: add one, or give {} itself to hold out a tenth of it",
            dir.display(),
            train.display()
        );
        return hold_out(groups(dir)?); // `train` is the name of a class among others
    };
    if let Some(stray) = pictures.first() {
        bail!(
            "{}: next to the folder {} no pictures may lie: move it into one of the splits",
            stray.display(),
            train.display()
        );
    }
    let (train_groups, test_groups) = (groups(train)?, groups(test)?);
    let classes: Vec<String> = train_groups.iter().filter_map(|(name, _)| name.clone()).collect();
    let mut splits = (Split::default(), Split::default());
    for (i, (_, paths)) in train_groups.iter().enumerate() {
        splits.0.add(i, paths, !classes.is_empty())?;
    }
    for (name, paths) in &test_groups {
        let same = |(known, _): &(Option<String>, _)| known == name;
        let Some(i) = train_groups.iter().position(same) else {
            let name = name.as_deref().unwrap_or("(pictures without a class)");
            bail!(
                "{}: class {name} is not in {}: both splits must have the same classes",
                test.display(),
                train.display()
            );
        };
        splits.1.add(i, paths, !classes.is_empty())?;
    }
    Ok((splits.0, splits.1, classes))
}

impl Split {
    /// `n` of the pictures, evenly spread.
    fn take(self, n: usize) -> Self {
        let chosen = images::spread(self.paths.len(), n);
        Split {
            paths: chosen.iter().map(|&i| self.paths[i].clone()).collect(),
            labels: chosen.iter().filter_map(|&i| self.labels.get(i)).copied().collect(),
        }
    }

    fn add(&mut self, class: usize, paths: &[PathBuf], labelled: bool) -> Result<()> {
        self.paths.extend_from_slice(paths);
        if labelled {
            let label = u8::try_from(class).context("class numbers end at 255")?;
            self.labels.resize(self.paths.len(), label);
        }
        Ok(())
    }
}

fn hold_out(groups: Groups) -> Result<(Split, Split, Vec<String>)> {
    let classes: Vec<String> = groups.iter().filter_map(|(name, _)| name.clone()).collect();
    let (mut train, mut test) = (Split::default(), Split::default());
    for (class, (_, paths)) in groups.iter().enumerate() {
        for (i, path) in paths.iter().enumerate() {
            let held = i % HOLD_OUT == HOLD_OUT - 1;
            let split = if held { &mut test } else { &mut train };
            split.add(class, std::slice::from_ref(path), !classes.is_empty())?;
        }
    }
    if test.paths.is_empty() {
        test.paths.extend(train.paths.pop());
        test.labels.extend(train.labels.pop());
    }
    if train.paths.is_empty() {
        let only = test.paths.first().map(|p| p.display().to_string());
        bail!(
            "{} is the only picture: give at least two, one to train on and one to hold out",
            only.unwrap_or_default()
        );
    }
    Ok((train, test, classes))
}

/// The pictures of one split by class, at least one.
fn groups(dir: &Path) -> Result<Groups> {
    let (pictures, folders) = scan(dir)?;
    let mut classes: Groups = Vec::new();
    for folder in &folders {
        let (inside, _) = scan(folder)?;
        if !inside.is_empty() {
            let name = folder.file_name().unwrap_or_default();
            classes.push((Some(name.to_string_lossy().into_owned()), inside));
        }
    }
    if let (Some(picture), Some((_, inside))) = (pictures.first(), classes.first()) {
        bail!(
            "{} holds pictures both directly ({}) and in class folders ({}): put all or none of them into class folders",
            dir.display(),
            picture.display(),
            inside.first().map(|p| p.display().to_string()).unwrap_or_default()
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

/// The pictures and the folders in `dir`, each in the order of their names; hidden ones are left out.
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
        } else if extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str())) && !is_special(&path) {
            pictures.push(path);
        }
    }
    pictures.sort();
    folders.sort();
    Ok((pictures, folders))
}

/// [C,H,W] of every image to come, from the headers of all pictures where it does not follow from the arguments.
fn common_shape(
    train: &Split,
    test: &Split,
    size: Option<(usize, usize)>,
    channels: Option<usize>,
) -> Result<(usize, usize, usize)> {
    if let (Some((h, w)), Some(c)) = (size, channels) {
        return Ok((c, h, w));
    }
    let all: Vec<&PathBuf> = train.paths.iter().chain(&test.paths).collect();
    let headers: Vec<Result<Header>> = all.par_iter().map(|path| header(path)).collect();
    let mut first: Option<(usize, usize)> = None;
    let mut grey = true;
    for (path, header) in all.iter().zip(headers) {
        let header = header?;
        grey &= header.grey;
        let (h, w) = *first.get_or_insert((header.height, header.width));
        ensure!(
            size.is_some() || (h, w) == (header.height, header.width),
            "{} is {}x{} pixels (height x width), but the first picture, {}, is {h}x{w}: \
             all must have one size, so pass --image-size HxW (such as --image-size {h}x{w}) to scale and crop them",
            path.display(),
            header.height,
            header.width,
            all[0].display()
        );
    }
    let (h, w) = size.or(first).unwrap_or_default();
    Ok((channels.unwrap_or(if grey { 1 } else { 3 }), h, w))
}

struct Header {
    height: usize,
    width: usize,
    grey: bool,
}

fn header(path: &Path) -> Result<Header> {
    let file = File::open(path).map_err(|e| broken(path, e))?;
    let (decoder, orientation) = open(path, BufReader::new(file))?;
    let (mut width, mut height) = decoder.dimensions();
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    if matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH) {
        (width, height) = (height, width);
    }
    Ok(Header { height: height as usize, width: width as usize, grey: !decoder.color_type().has_color() })
}

/// A decoder of the picture at `path` that has read the header and found it within the limits.
fn open<'a>(path: &Path, file: impl BufRead + Seek + 'a) -> Result<(impl ImageDecoder + 'a, Orientation)> {
    let mut file = ImageReader::new(file).with_guessed_format().map_err(|e| broken(path, e))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    file.limits(limits);
    let decoder = guarded(|| file.into_decoder()).ok_or_else(|| broken(path, "its decoder failed"))?;
    let mut decoder = decoder.map_err(|e| broken(path, e))?;
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

fn decode_all(split: Split, size: Option<(usize, usize)>, (c, h, w): (usize, usize, usize)) -> Result<Images> {
    let count = split.paths.len();
    let image_len = c * h * w;
    let total = count.checked_mul(image_len).context("too many pixels: pass a smaller --image-size")?;
    let mut pixels = zeroed(total)?; // [N,C,H,W]
    let first_error = pixels
        .par_chunks_exact_mut(image_len)
        .zip(&split.paths)
        .map(|(out, path)| decode(path, size, (c, h, w), out))
        .find_map_first(Result::err);
    if let Some(e) = first_error {
        return Err(e);
    }
    Images::new([count, c, h, w], pixels, split.labels)
}

thread_local! {
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is within a picture's decoder, whose panics are an error of the picture's and need not be told as ours.
pub fn decoding() -> bool {
    DECODING.get()
}

/// What `decode` gives; none when it panics, as decoders of the `image` crate do on some damaged files.
fn guarded<T>(decode: impl FnOnce() -> T) -> Option<T> {
    DECODING.set(true);
    let result = catch_unwind(AssertUnwindSafe(decode));
    DECODING.set(false);
    result.ok()
}

/// Decodes one picture into its place, [C,H,W].
fn decode(path: &Path, size: Option<(usize, usize)>, (c, h, w): (usize, usize, usize), out: &mut [u8]) -> Result<()> {
    let bytes = fs::read(path).map_err(|e| broken(path, e))?;
    if !has_end(&bytes) {
        return Err(broken(path, "it is cut off"));
    }
    let (decoder, orientation) = open(path, Cursor::new(&bytes))?;
    let mut picture = guarded(|| DynamicImage::from_decoder(decoder))
        .ok_or_else(|| broken(path, "its decoder failed"))?
        .map_err(|e| broken(path, e))?;
    picture.apply_orientation(orientation);
    if picture.color().has_alpha() {
        picture = on_black(picture);
    }
    picture = match c {
        1 => DynamicImage::ImageLuma8(picture.into_luma8()),
        _ => DynamicImage::ImageRgb8(picture.into_rgb8()),
    };
    let (height, width) = (picture.height() as usize, picture.width() as usize);
    if (height, width) != (h, w) {
        ensure!(size.is_some(), "{} changed its size while it was read: start again", path.display());
        // Cut to the wanted shape around the middle before it is scaled: the whole of a long thin picture would become gigabytes.
        let (cut_h, cut_w) =
            if width * h > height * w { (height, (height * w).div_ceil(h)) } else { ((width * h).div_ceil(w), width) };
        let [x, y, cut_w, cut_h] = [(width - cut_w) / 2, (height - cut_h) / 2, cut_w, cut_h].map(|n| n as u32);
        picture = picture.crop_imm(x, y, cut_w, cut_h).resize_exact(w as u32, h as u32, FilterType::Triangle);
    }
    let bytes = picture.as_bytes(); // [H,W,C]
    for (channel, plane) in out.chunks_exact_mut(h * w).enumerate() {
        for (to, pixel) in plane.iter_mut().zip(bytes.chunks_exact(c)) {
            *to = pixel[channel];
        }
    }
    Ok(())
}

/// Whether a picture has an end, which the decoders of all formats but JPEG check themselves: that one fills what is missing with
/// grey. The end marker is looked for in the last 64 KiB, because some cameras write after it.
fn has_end(bytes: &[u8]) -> bool {
    let tail = &bytes[bytes.len().saturating_sub(1 << 16)..];
    !bytes.starts_with(&[0xff, 0xd8]) || tail.windows(2).any(|pair| pair == [0xff, 0xd9])
}

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

/// Whether a path is a pipe, socket or device, which could be read from for ever. What cannot be asked is no such thing:
/// opening it will say what is wrong.
fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| !meta.is_file() && !meta.is_dir())
}

#[cfg(test)]
mod tests;
