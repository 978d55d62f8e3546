//! Tests of folders of pictures.

use std::fs;

use super::*;
use crate::data::picture::MAX_BYTES;
use std::fs::File;

use image::{GrayImage, ImageBuffer, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use tempfile::{TempDir, tempdir};

/// Writes a picture whose pixel (x, y) is (x, y, value), and makes the folders above it.
fn put(dir: &TempDir, name: &str, (h, w): (u32, u32), value: u8) {
    let path = dir.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let picture = RgbImage::from_fn(w, h, |x, y| Rgb([x as u8, y as u8, value]));
    picture.save(path).unwrap();
}

fn fit(size: Option<(usize, usize)>, channels: Option<usize>) -> Fit {
    Fit { size, channels, ..Fit::default() }
}

/// No limits.
const ALL: (usize, usize) = (usize::MAX, usize::MAX);

/// Reads the pictures below a folder without a cache.
fn load_folder(dir: &Path, fit: &Fit, limits: (usize, usize)) -> Result<Source> {
    Ok(read(dir, fit, limits, false)?.0)
}

fn read(dir: &Path, fit: &Fit, limits: (usize, usize), skip_broken: bool) -> Result<(Source, Vec<String>)> {
    let subset = Subset { holdout: None, classes: Vec::new(), limits: limits.into(), whole: false };
    let options = ReadOptions { fit: *fit, subset, skip_broken, list_broken: false, cache: None };
    PictureSet::of_folder(dir)?.read(&options)
}

fn load(dir: &TempDir) -> Result<Source> {
    load_folder(dir.path(), &fit(None, None), ALL)
}

#[track_caller]
fn fails(dir: &TempDir, parts: &[&str]) {
    let text = format!("{:#}", load(dir).unwrap_err());
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    assert!(!text.contains('\n'), "{text}");
}

/// Found by tests/broken_images.rs and its author.
#[test]
fn pictures_without_pixels_and_long_thin_ones() {
    let dir = tempdir().unwrap();
    for name in ["a.pbm", "b.pbm"] {
        fs::write(dir.path().join(name), "P1 8 0\n").unwrap();
    }
    fails(&dir, &["2 broken of 2 pictures: ", "a.pbm (it is 0x8 pixels large)"]);
    assert!(load_folder(dir.path(), &fit(Some((4, 4)), None), ALL).is_err());
    let dir = tempdir().unwrap();
    // Scaled as a whole to 512 rows, it would be 16 million pixels wide.
    let thin: Vec<u8> = b"P5 32768 1 255\n".iter().copied().chain((0..32768).map(|x| (x / 256) as u8)).collect();
    for name in ["a.pgm", "b.pgm"] {
        fs::write(dir.path().join(name), &thin).unwrap();
    }
    let set = load_folder(dir.path(), &fit(Some((512, 512)), None), ALL).unwrap();
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
    assert_eq!((set.train.count, set.test.count), (26, 3));
    assert_eq!((set.train.channels, set.train.height, set.train.width), (3, 2, 3));
    assert_eq!((set.train.labels[7], set.train.labels[8]), (0, 1));
    // The last of each third of all 29.
    assert_eq!(set.test.labels, [0, 1, 1]);
    assert_eq!(set.test.names, ["a/08.PNG", "b/09.png", "b/19.png"]);
    // Planes of x, of y and of the number of the picture.
    let first = [0, 1, 2, 0, 1, 2, 0, 0, 0, 1, 1, 1, 108, 108, 108, 108, 108, 108];
    assert_eq!(set.test.pixels[..18], first);
    assert_eq!((set.test.pixels[35], set.test.pixels[53]), (9, 19));
    assert_eq!((set.train.pixels[17], set.train.pixels[8 * 18 + 17]), (100, 0));
}

#[test]
fn train_and_test_folders_give_the_split() {
    let dir = tempdir().unwrap();
    for name in ["train/x/1.png", "train/y/1.png", "val/y/1.png"] {
        put(&dir, name, (2, 2), 0);
    }
    let set = load(&dir).unwrap();
    assert_eq!((set.train.labels, set.test.labels), (vec![0, 1], vec![1]));
    put(&dir, "stray.png", (2, 2), 0);
    let (set, notes) = read(dir.path(), &Fit::default(), ALL, false).unwrap();
    assert_eq!((set.train.count, set.test.count), (2, 1));
    assert!(notes[0].contains("left out: 1 pictures in no folder"), "{notes:?}");
    let dir = tempdir().unwrap();
    put(&dir, "train/1.png", (2, 2), 0);
    put(&dir, "test/1.png", (2, 2), 0);
    let set = load(&dir).unwrap();
    assert_eq!((set.train.count, set.test.count, set.classes.len()), (1, 1, 0));
    assert!(set.train.labels.is_empty() && set.test.labels.is_empty());
}

#[test]
fn folders_without_usable_pictures_are_refused() {
    let dir = tempdir().unwrap();
    fails(&dir, &["holds no pictures"]);
    fs::write(dir.path().join("a.txt"), "text").unwrap();
    fails(&dir, &["holds no pictures; left out: 1 files that are no pictures"]);
    put(&dir, "one.png", (2, 2), 0);
    fails(&dir, &["one.png is the only picture", "give at least two"]);
    put(&dir, "class/two.png", (2, 2), 0);
    let (set, notes) = read(dir.path(), &Fit::default(), ALL, false).unwrap();
    assert!(set.train.labels.is_empty() && notes.iter().any(|n| n.contains("no picture gets a class")), "{notes:?}");
    let dir = tempdir().unwrap();
    for i in 0..300 {
        put(&dir, &format!("{i:03}/1.png"), (1, 1), 0);
    }
    let set = load(&dir).unwrap();
    // Every tenth of the classes is held out.
    assert_eq!((set.classes.len(), set.train.labels[269], set.test.labels[29]), (300, 298, 299));
    let missing = dir.path().join("nowhere");
    let text = format!("{:#}", load_folder(&missing, &fit(None, None), ALL).unwrap_err());
    assert!(text.contains("nowhere cannot be read"), "{text}");
}

#[test]
fn broken_pictures_are_named() {
    let dir = tempdir().unwrap();
    put(&dir, "a.png", (8, 8), 0);
    put(&dir, "b.png", (8, 8), 0);
    let good = fs::read(dir.path().join("a.png")).unwrap();
    fs::write(dir.path().join("c.png"), &good[..good.len() - 30]).unwrap();
    fails(
        &dir,
        &["c.png cannot be read as a picture (", "replace it, delete it, or use the others with --skip-broken"],
    );
    fs::write(dir.path().join("c.png"), "no picture at all").unwrap();
    fails(&dir, &["c.png cannot be read as a picture ("]);
    put(&dir, "d.jpg", (64, 64), 0);
    let jpeg = fs::read(dir.path().join("d.jpg")).unwrap();
    fs::remove_file(dir.path().join("d.jpg")).unwrap();
    fs::write(dir.path().join("c.png"), &jpeg[..jpeg.len() - 40]).unwrap();
    let size = Some((8, 8));
    let text = load_folder(dir.path(), &fit(size, None), ALL).unwrap_err().to_string();
    assert!(text.contains("c.png cannot be read as a picture (it is cut off)"), "{text}");
    fs::write(dir.path().join("c.png"), &jpeg).unwrap();
    assert!(load_folder(dir.path(), &fit(size, None), ALL).is_ok());
    // A bomb: 30000 x 30000 pixels by its header.
    let bomb = b"P6 30000 30000 255\n";
    fs::write(dir.path().join("c.png"), bomb).unwrap();
    fails(&dir, &["c.png cannot be read as a picture (", "30000x30000", "2700000000 bytes"]);
    fs::write(dir.path().join("c.png"), b"P6 90000 1 255\n").unwrap();
    fails(&dir, &["c.png cannot be read as a picture ("]);
    // The content decides what a file is, not its extension.
    fs::remove_file(dir.path().join("c.png")).unwrap();
    fs::write(dir.path().join("c.jpg"), &good).unwrap();
    assert_eq!(load(&dir).unwrap().train.count, 2);
}

#[test]
fn all_broken_pictures_are_counted_and_can_be_left_out() {
    let dir = tempdir().unwrap();
    for i in 0..60 {
        put(&dir, &format!("{}/{i:02}.png", if i < 30 { "a" } else { "b" }), (2, 2), i);
    }
    let broken = |i: u8| i.is_multiple_of(2) && i < 50;
    for i in (0..60).filter(|i| broken(*i)) {
        fs::write(dir.path().join(format!("{}/{i:02}.png", if i < 30 { "a" } else { "b" })), "no picture").unwrap();
    }
    fails(&dir, &["25 broken of 60 pictures: ", "a/00.png (", "b/38.png (", " and 5 more (--list-broken names all)"]);
    let (set, notes) = read(dir.path(), &Fit::default(), ALL, true).unwrap();
    assert_eq!(set.train.count + set.test.count, 35);
    assert!(notes.iter().any(|n| n.contains("left out: 25 broken of 60 pictures")), "{notes:?}");
    // Pixels, labels and names still belong together, in both splits.
    for part in [&set.train, &set.test] {
        for i in 0..part.count {
            let number: u8 = part.names[i][2..4].parse().unwrap();
            assert_eq!((part.pixels[i * 12 + 11], part.labels[i]), (number, u32::from(number >= 30)));
            assert!(!broken(number));
        }
    }
}

#[test]
fn pictures_of_several_sizes_are_brought_to_one() {
    let dir = tempdir().unwrap();
    for i in 0..30 {
        put(&dir, &format!("{i:02}.png"), if i == 3 { (5, 9) } else { (10, 12) }, i);
    }
    let (set, notes) = read(dir.path(), &Fit::default(), ALL, false).unwrap();
    assert_eq!((set.train.height, set.train.width), (10, 12));
    assert!(notes[0].contains("1 of 30 pictures are not 10x12"), "{notes:?}");
    for i in 0..15 {
        put(&dir, &format!("{i:02}.png"), (40 + i, 50), 0);
    }
    let (set, notes) = read(dir.path(), &Fit::default(), ALL, false).unwrap();
    assert_eq!((set.train.height, set.train.width), (32, 32));
    assert!(notes[0].contains("have 16 sizes: all are fitted to 32x32 pixels"), "{notes:?}");
}

#[test]
fn pictures_are_cropped_and_scaled() {
    let dir = tempdir().unwrap();
    put(&dir, "a.png", (4, 6), 0);
    put(&dir, "b.png", (8, 6), 0);
    put(&dir, "c.png", (4, 12), 200);
    let set = load_folder(dir.path(), &fit(Some((4, 6)), Some(3)), ALL).unwrap();
    assert_eq!((set.train.count, set.train.height, set.train.width), (2, 4, 6));
    // c: 4x12 already covers 4x6, so columns 3 to 8 are kept as they are.
    assert_eq!(set.test.pixels[..6], [3, 4, 5, 6, 7, 8]);
    // b: rows 2 to 5 of 8.
    let rows: Vec<u8> = (0..4).map(|y| set.train.pixels[72 + 24 + 6 * y]).collect();
    assert_eq!(rows, [2, 3, 4, 5]);
    // At half the size the third channel, the same everywhere, stays what it is.
    let small = load_folder(dir.path(), &fit(Some((2, 3)), None), ALL).unwrap();
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
    let rgb = load_folder(dir.path(), &fit(None, Some(3)), ALL).unwrap();
    assert_eq!((rgb.train.channels, rgb.train.pixels.to_vec()), (3, vec![77; 12]));
    let clear = RgbaImage::from_pixel(2, 2, Rgba([200, 100, 50, 128]));
    clear.save(at("c.png")).unwrap();
    let set = load(&dir).unwrap();
    assert_eq!(set.train.channels, 3);
    assert_eq!(set.test.pixels, [100, 100, 100, 100, 50, 50, 50, 50, 25, 25, 25, 25]);
    let grey = load_folder(dir.path(), &fit(None, Some(1)), ALL).unwrap();
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
    let set = load_folder(&dir, &fit(None, None), ALL).unwrap();
    eprintln!("4,000 pictures loaded in {:?}", start.elapsed());
    assert_eq!((set.train.count, set.test.count), (3600, 400));
    assert_eq!((set.train.channels, set.train.height, set.train.width), (3, 32, 32));
    assert_eq!((set.classes.len(), set.classes[9].as_str()), (10, "truck"));
    assert_eq!((set.train.labels[3599], set.test.labels[399]), (9, 9));
}

/// The names of the files below `dir` that `work` opens, in order, each as often as it does.
fn opened(dir: &Path, work: impl FnOnce()) -> Vec<String> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(dir.as_os_str().as_bytes()).unwrap();
    let mut events = [0u8; 1 << 16];
    // SAFETY: the name and the buffer outlive the calls that take them.
    let read = unsafe {
        let watch = libc::inotify_init1(libc::IN_NONBLOCK);
        assert!(libc::inotify_add_watch(watch, name.as_ptr(), libc::IN_OPEN) >= 0);
        work();
        let read = libc::read(watch, events.as_mut_ptr().cast(), events.len());
        libc::close(watch);
        usize::try_from(read).unwrap()
    };
    let (mut names, mut at) = (Vec::new(), 0);
    while at < read {
        let word = |from: usize| u32::from_ne_bytes(events[at + from..][..4].try_into().unwrap());
        let (mask, length) = (word(4), word(12) as usize);
        let name = events[at + 16..][..length].split(|b| *b == 0).next().unwrap();
        if mask & libc::IN_ISDIR == 0 {
            names.push(String::from_utf8(name.to_vec()).unwrap());
        }
        at += 16 + length;
    }
    names.sort();
    names
}

#[test]
fn only_the_pictures_that_are_wanted_are_decoded_and_those_once() {
    let dir = tempdir().unwrap();
    for i in 0..40 {
        put(&dir, &format!("{i:02}.png"), (4, 4), i);
    }
    let whole = load(&dir).unwrap();
    let size = Some((4, 4));
    // Pictures 9, 19, 29 and 39 are held out; of the others the first of each third, of these the first half. Each file is opened once to
    // see what it is.
    let wanted = ["00.png", "09.png", "13.png", "26.png", "29.png"];
    // Read for its border, its header where that is wanted, and its pixels.
    for (channels, times) in [(Some(3), 2), (None, 3)] {
        let mut set = None;
        let opened = opened(dir.path(), || set = Some(load_folder(dir.path(), &fit(size, channels), (3, 2)).unwrap()));
        let once = (0..40).map(|i| format!("{i:02}.png"));
        let again = wanted.iter().flat_map(|name| std::iter::repeat_n(name.to_string(), times));
        let mut each: Vec<_> = once.chain(again).collect();
        each.sort();
        assert_eq!(opened, each, "{channels:?}");
        let set = set.unwrap();
        assert_eq!((set.train, set.test), (whole.train.clone().take(3), whole.test.clone().take(2)));
    }
    // Others are not looked at, broken or of another size though they be.
    fs::write(dir.path().join("01.png"), "no picture").unwrap();
    put(&dir, "02.png", (9, 9), 0);
    assert!(load_folder(dir.path(), &fit(None, None), (3, 2)).is_ok());
    assert!(load_folder(dir.path(), &fit(None, None), ALL).is_err());
}

#[test]
fn a_profile_of_any_size_changes_nothing_and_a_huge_file_is_not_read() {
    use image::{ImageEncoder, codecs::png::PngEncoder};
    let dir = tempdir().unwrap();
    for (name, profile) in [("a.png", 0), ("b.png", 1000), ("c.png", 16 << 20)] {
        let mut encoder = PngEncoder::new(File::create(dir.path().join(name)).unwrap());
        encoder.set_icc_profile(vec![0; profile]).unwrap();
        encoder.write_image(&[7; 12], 2, 2, image::ExtendedColorType::Rgb8).unwrap();
    }
    let set = load(&dir).unwrap();
    assert_eq!((set.train.pixels.to_vec(), set.test.pixels.to_vec()), (vec![7; 24], vec![7; 12]));
    File::create(dir.path().join("d.png")).unwrap().set_len(MAX_BYTES + 1).unwrap();
    fails(&dir, &["d.png cannot be read as a picture (it has 268435457 bytes, more than 268435456)"]);
}
