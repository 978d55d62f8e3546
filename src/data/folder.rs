//! Reads a folder of pictures, with or without class sub-folders.
//!
//! Imports `super::images`, and from `super::idx` only the allocation that fails with an error.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::imageops::FilterType;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};
use rayon::prelude::*;

use super::idx::zeroed;
use super::images::{Images, Source};

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
/// # Errors
/// When there are no pictures, fewer than two without a split, or more than 256 classes; when pictures lie both beside
/// and in class folders; when a picture is broken, too large to be decoded (256 MiB or 32768 pixels on a side), or of
/// another size than the first; when `size` or `channels` is out of range.
pub fn load_folder(dir: &Path, size: Option<(usize, usize)>, channels: Option<usize>) -> Result<Source> {
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
    let (decoder, orientation) = open(path)?;
    let (mut width, mut height) = decoder.dimensions();
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    if matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH) {
        (width, height) = (height, width);
    }
    Ok(Header { height: height as usize, width: width as usize, grey: !decoder.color_type().has_color() })
}

/// A decoder that has read the header and found it within the limits.
fn open(path: &Path) -> Result<(impl ImageDecoder, Orientation)> {
    let file = ImageReader::open(path).map_err(|e| broken(path, e))?;
    let mut file = file.with_guessed_format().map_err(|e| broken(path, e))?;
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
    if !ends(path).map_err(|e| broken(path, e))? {
        return Err(broken(path, "it is cut off"));
    }
    let (decoder, orientation) = open(path)?;
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

/// Whether the picture has an end, which the decoders of all formats but JPEG check themselves: that one fills what
/// is missing with grey. The end marker is looked for in the last 64 KiB, because some cameras write after it.
fn ends(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let mut start = Vec::new();
    file.by_ref().take(2).read_to_end(&mut start)?;
    if start != [0xff, 0xd8] {
        return Ok(true);
    }
    let from = file.metadata()?.len().saturating_sub(1 << 16);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(1 << 16).read_to_end(&mut tail)?;
    Ok(tail.windows(2).any(|pair| pair == [0xff, 0xd9]))
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
mod tests {
    use super::*;
    use image::{GrayImage, ImageBuffer, Luma, Rgb, RgbImage, Rgba, RgbaImage};
    use tempfile::{TempDir, tempdir};

    /// Writes a picture whose pixel (x, y) is (x, y, value), and makes the folders above it.
    fn put(dir: &TempDir, name: &str, (h, w): (u32, u32), value: u8) {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let picture = RgbImage::from_fn(w, h, |x, y| Rgb([x as u8, y as u8, value]));
        picture.save(path).unwrap();
    }

    fn load(dir: &TempDir) -> Result<Source> {
        load_folder(dir.path(), None, None)
    }

    #[track_caller]
    fn fails(dir: &TempDir, parts: &[&str]) {
        let text = format!("{:#}", load(dir).unwrap_err());
        for part in parts {
            assert!(text.contains(part), "`{part}` is not in: {text}");
        }
        assert!(!text.contains('\n'), "{text}");
    }

    /// Found by tests/fuzz.rs and its author.
    #[test]
    fn pictures_without_pixels_and_long_thin_ones() {
        let dir = tempdir().unwrap();
        for name in ["a.pbm", "b.pbm"] {
            fs::write(dir.path().join(name), "P1 8 0\n").unwrap();
        }
        fails(&dir, &["a.pbm cannot be read as a picture (it is 0x8 pixels large)"]);
        assert!(load_folder(dir.path(), Some((4, 4)), None).is_err());
        let dir = tempdir().unwrap();
        // Scaled as a whole to 512 rows, it would be 16 million pixels wide.
        let thin: Vec<u8> = b"P5 32768 1 255\n".iter().copied().chain((0..32768).map(|x| (x / 256) as u8)).collect();
        for name in ["a.pgm", "b.pgm"] {
            fs::write(dir.path().join(name), &thin).unwrap();
        }
        let set = load_folder(dir.path(), Some((512, 512)), None).unwrap();
        assert!(set.train.pixels.iter().all(|&v| v == 64 || v == 63), "the middle, {:?}", &set.train.pixels[..4]);
    }

    #[test]
    fn classes_are_sorted_and_every_tenth_picture_is_held_out() {
        let dir = tempdir().unwrap();
        for i in 0..20 {
            put(&dir, &format!("b/{i:02}.png"), (2, 3), i);
        }
        for i in 0..9 {
            put(&dir, &format!("a/{i:02}.PNG"), (2, 3), 100 + i);
        }
        fs::write(dir.path().join("notes.txt"), "ignored").unwrap();
        fs::write(dir.path().join("a/.hidden.png"), "ignored").unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        let set = load(&dir).unwrap();
        assert_eq!(set.classes, ["a", "b"]);
        assert_eq!((set.train.count, set.test.count), (27, 2));
        assert_eq!((set.train.channels, set.train.height, set.train.width), (3, 2, 3));
        assert_eq!((set.train.labels[8], set.train.labels[9]), (0, 1));
        assert_eq!(set.test.labels, [1, 1]);
        // Planes of x, of y and of the number of the picture: 9 and 19 are the held-out ones.
        let first = [0, 1, 2, 0, 1, 2, 0, 0, 0, 1, 1, 1, 9, 9, 9, 9, 9, 9];
        assert_eq!(set.test.pixels[..18], first);
        assert_eq!(set.test.pixels[35], 19);
        assert_eq!((set.train.pixels[17], set.train.pixels[9 * 18 + 17]), (100, 0));
    }

    #[test]
    fn train_and_test_folders_give_the_split() {
        let dir = tempdir().unwrap();
        for name in ["train/x/1.png", "train/y/1.png", "val/y/1.png"] {
            put(&dir, name, (2, 2), 0);
        }
        let set = load(&dir).unwrap();
        assert_eq!((set.train.labels, set.test.labels), (vec![0, 1], vec![1]));
        put(&dir, "val/z/1.png", (2, 2), 0);
        fails(&dir, &["val: class z is not in", "same classes"]);
        put(&dir, "stray.png", (2, 2), 0);
        fails(&dir, &["stray.png: next to the folder"]);
        let dir = tempdir().unwrap();
        put(&dir, "train/1.png", (2, 2), 0);
        fails(&dir, &["a folder train but neither test nor val: add one"]);
        put(&dir, "test/1.png", (2, 2), 0);
        let set = load(&dir).unwrap();
        assert_eq!((set.train.count, set.test.count, set.classes.len()), (1, 1, 0));
        assert!(set.train.labels.is_empty() && set.test.labels.is_empty());
    }

    #[test]
    fn folders_without_usable_pictures_are_refused() {
        let dir = tempdir().unwrap();
        fails(&dir, &["holds no pictures", ".png, .jpg, .jpeg"]);
        fs::write(dir.path().join("a.tiff"), "").unwrap();
        fails(&dir, &["holds no pictures"]);
        put(&dir, "one.png", (2, 2), 0);
        fails(&dir, &["one.png is the only picture"]);
        put(&dir, "class/two.png", (2, 2), 0);
        fails(&dir, &["both directly (", "one.png) and in class folders (", "two.png)"]);
        let dir = tempdir().unwrap();
        for i in 0..257 {
            put(&dir, &format!("{i}/1.png"), (1, 1), 0);
        }
        fails(&dir, &["has 257 class folders, at most 256"]);
        let missing = dir.path().join("nowhere");
        let text = format!("{:#}", load_folder(&missing, None, None).unwrap_err());
        assert!(text.contains("nowhere cannot be read"), "{text}");
        assert!(load_folder(dir.path(), None, Some(2)).is_err());
        assert!(load_folder(dir.path(), Some((0, 4)), None).is_err());
    }

    #[test]
    fn broken_pictures_are_named() {
        let dir = tempdir().unwrap();
        put(&dir, "a.png", (8, 8), 0);
        put(&dir, "b.png", (8, 8), 0);
        let good = fs::read(dir.path().join("a.png")).unwrap();
        fs::write(dir.path().join("c.png"), &good[..good.len() - 30]).unwrap();
        fails(&dir, &["c.png cannot be read as a picture (", "replace it or delete it"]);
        fs::write(dir.path().join("c.png"), "no picture at all").unwrap();
        fails(&dir, &["c.png cannot be read as a picture ("]);
        put(&dir, "d.jpg", (64, 64), 0);
        let jpeg = fs::read(dir.path().join("d.jpg")).unwrap();
        fs::remove_file(dir.path().join("d.jpg")).unwrap();
        fs::write(dir.path().join("c.png"), &jpeg[..jpeg.len() - 40]).unwrap();
        let size = Some((8, 8));
        let text = load_folder(dir.path(), size, None).unwrap_err().to_string();
        assert!(text.contains("c.png cannot be read as a picture (it is cut off)"), "{text}");
        fs::write(dir.path().join("c.png"), &jpeg).unwrap();
        assert!(load_folder(dir.path(), size, None).is_ok());
        // A bomb: 30000 x 30000 pixels by its header.
        let bomb = b"P6 30000 30000 255\n";
        fs::write(dir.path().join("c.png"), bomb).unwrap();
        fails(&dir, &["c.png cannot be read as a picture (", "30000x30000", "2700000000 bytes"]);
        fs::write(dir.path().join("c.png"), b"P6 90000 1 255\n").unwrap();
        fails(&dir, &["c.png cannot be read as a picture ("]);
        // The content decides what a file is, not its extension.
        fs::write(dir.path().join("c.jpg"), &good).unwrap();
        fs::remove_file(dir.path().join("c.png")).unwrap();
        assert_eq!(load(&dir).unwrap().train.count, 2);
    }

    #[test]
    fn an_odd_size_is_named_and_image_size_mends_it() {
        let dir = tempdir().unwrap();
        put(&dir, "a.png", (4, 6), 0);
        put(&dir, "b.png", (8, 6), 0);
        put(&dir, "c.png", (4, 12), 200);
        fails(&dir, &["b.png is 8x6 pixels", "a.png, is 4x6", "--image-size HxW"]);
        let set = load_folder(dir.path(), Some((4, 6)), Some(3)).unwrap();
        assert_eq!((set.train.count, set.train.height, set.train.width), (2, 4, 6));
        // c: 4x12 already covers 4x6, so columns 3 to 8 are kept as they are.
        assert_eq!(set.test.pixels[..6], [3, 4, 5, 6, 7, 8]);
        // b: rows 2 to 5 of 8.
        let rows: Vec<u8> = (0..4).map(|y| set.train.pixels[72 + 24 + 6 * y]).collect();
        assert_eq!(rows, [2, 3, 4, 5]);
        // At half the size the third channel, the same everywhere, stays what it is.
        let small = load_folder(dir.path(), Some((2, 3)), None).unwrap();
        assert_eq!(small.test.pixels[12..], [200; 6]);
        assert_eq!(small.test.channels, 3);
    }

    #[test]
    fn grey_alpha_and_sixteen_bits() {
        let dir = tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        GrayImage::from_pixel(2, 2, Luma([77])).save(at("a.png")).unwrap();
        let deep = ImageBuffer::<Luma<u16>, _>::from_pixel(2, 2, Luma([257 * 5]));
        deep.save(at("b.png")).unwrap();
        let set = load(&dir).unwrap();
        assert_eq!((set.train.channels, set.train.pixels[0], set.test.pixels[0]), (1, 77, 5));
        let rgb = load_folder(dir.path(), None, Some(3)).unwrap();
        assert_eq!((rgb.train.channels, &rgb.train.pixels), (3, &vec![77; 12]));
        let clear = RgbaImage::from_pixel(2, 2, Rgba([200, 100, 50, 128]));
        clear.save(at("c.png")).unwrap();
        let set = load(&dir).unwrap();
        assert_eq!(set.train.channels, 3);
        assert_eq!(set.test.pixels, [100, 100, 100, 100, 50, 50, 50, 50, 25, 25, 25, 25]);
        let grey = load_folder(dir.path(), None, Some(1)).unwrap();
        assert_eq!(grey.test.channels, 1);
    }

    #[test]
    fn exif_orientation_is_applied() {
        let dir = tempdir().unwrap();
        for name in ["a.jpg", "b.jpg"] {
            let path = dir.path().join(name);
            let picture = GrayImage::from_fn(16, 8, |x, _| Luma([if x < 8 { 255 } else { 0 }]));
            picture.save(&path).unwrap();
            // An APP1 segment right after the start marker: big-endian TIFF, one entry, orientation 6 (turn right).
            let tiff = b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
            let mut bytes = fs::read(&path).unwrap();
            bytes.splice(2..2, tiff.iter().copied());
            fs::write(&path, bytes).unwrap();
        }
        let set = load(&dir).unwrap();
        assert_eq!((set.train.height, set.train.width), (16, 8));
        assert!(set.train.pixels[0] > 200 && set.train.pixels[15 * 8] < 50);
    }

    #[test]
    fn the_real_cifar_pictures_load() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/cifar10-images");
        if !dir.is_dir() {
            eprintln!("SKIPPED: no {}", dir.display());
            return;
        }
        let start = std::time::Instant::now();
        let set = load_folder(&dir, None, None).unwrap();
        eprintln!("4,000 pictures loaded in {:?}", start.elapsed());
        assert_eq!((set.train.count, set.test.count), (3600, 400));
        assert_eq!((set.train.channels, set.train.height, set.train.width), (3, 32, 32));
        assert_eq!((set.classes.len(), set.classes[9].as_str()), (10, "truck"));
        assert_eq!((set.train.labels[3599], set.test.labels[399]), (9, 9));
    }
}
