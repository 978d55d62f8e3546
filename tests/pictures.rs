//! Pictures read by ganvae and by Pillow, pixel by pixel.

mod common;

use std::fs;
use std::io::Cursor;
use std::process::Command;

use common::python::root;
use common::say;
use ganvae::base::seed::Rng;
use ganvae::base::setting::Settings;
use ganvae::data::picture::{self, Fit};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};

/// Python with Pillow, to make pictures and read them; none, said aloud, where there is not.
fn python() -> Option<std::path::PathBuf> {
    let ours = root().join(".venv/bin/python");
    let python = if ours.exists() { ours } else { "python3".into() };
    let found = Command::new(&python).args(["-c", "import numpy, PIL"]).output();
    if found.as_ref().is_ok_and(|o| o.status.success()) {
        return Some(python);
    }
    say("SKIPPED: no Python with numpy and Pillow (scripts/setup --full installs them)");
    None
}

#[test]
fn pixels_are_those_of_pillow() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = Command::new(python).arg(root().join("scripts/pictures.py")).arg(dir.path()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let cases = fs::read_to_string(dir.path().join("cases.txt")).unwrap();
    let (mut wrong, mut count) = (Vec::new(), 0);
    for case in cases.lines() {
        let words: Vec<&str> = case.split(' ').collect();
        let number = |i: usize| words[i].parse::<usize>().unwrap();
        let (h, w, c, most, mean) = (number(1), number(2), number(3), number(7), words[8].parse::<f64>().unwrap());
        let mut fit = Fit { channels: Some(c), ..Fit::default() };
        if words[4] != "-" {
            fit.size = Some((h, w));
        }
        fit.shape = clap::ValueEnum::from_str(words[5], false).unwrap();
        fit.filter = clap::ValueEnum::from_str(words[6], false).unwrap();
        let bytes = fs::read(dir.path().join(words[0])).unwrap();
        let want = fs::read(dir.path().join(format!("{}.raw", words[0]))).unwrap();
        let mut found = vec![0; c * h * w]; // [C,H,W]
        if let Err(e) = picture::decode(&bytes, &fit, (c, h, w), &mut found) {
            wrong.push(format!("{case}: {e:#}"));
            continue;
        }
        let difference = |i: usize| found[i % c * h * w + i / c].abs_diff(want[i]);
        let largest = (0..want.len()).map(difference).max().unwrap();
        let average = (0..want.len()).map(|i| f64::from(difference(i))).sum::<f64>() / want.len() as f64;
        count += 1;
        if std::env::var_os("SHOW").is_some() {
            say(&format!("{case}: {largest} {average:.3}"));
        }
        if usize::from(largest) > most || average > mean.max(0.0) {
            wrong.push(format!("{case}: differs by {largest}, {average:.3} on average"));
        }
    }
    assert!(
        count > 100 && wrong.is_empty(),
        "of {count} pictures {} are not Pillow's:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// Decodes to C x H x W with everything else as it is by default.
fn read(bytes: &[u8], shape: (usize, usize, usize)) -> Result<Vec<u8>, String> {
    read_as(bytes, shape, &Fit { size: Some((shape.1, shape.2)), ..Fit::default() })
}

fn read_as(bytes: &[u8], (c, h, w): (usize, usize, usize), fit: &Fit) -> Result<Vec<u8>, String> {
    let mut out = vec![0; c * h * w];
    picture::decode(bytes, fit, (c, h, w), &mut out).map(|()| out).map_err(|e| format!("{e:#}"))
}

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    picture.write_to(&mut out, format).unwrap();
    out.into_inner()
}

/// 48x64 pixels of noise.
fn noise() -> DynamicImage {
    let mut rng = Rng::new(3);
    RgbImage::from_fn(64, 48, |_, _| Rgb([rng.next_u64() as u8, rng.next_u64() as u8, rng.next_u64() as u8])).into()
}

const ALL: (usize, usize, usize) = (3, 48, 64);

#[test]
fn a_cut_picture_is_told_from_one_with_something_behind_it() {
    let jpeg = encoded(&noise(), ImageFormat::Jpeg);
    let good = read(&jpeg, ALL).unwrap();
    for length in (3..jpeg.len() - 2).step_by(5) {
        assert_eq!(read(&jpeg[..length], ALL).unwrap_err(), "it is cut off", "at {length} of {}", jpeg.len());
    }
    // All pixels are there without the end marker.
    assert_eq!(read(&jpeg[..jpeg.len() - 2], ALL).unwrap(), good);
    let video = [&b"\0\0\0\x18ftypmp42"[..], &[0x55; 3000], b"\xff\xd8\xff\xd9"].concat();
    for (name, behind) in [("a motion photo", &video[..]), ("padding", &[0; 70_000]), ("a second picture", &jpeg)] {
        assert_eq!(read(&[&jpeg, behind].concat(), ALL).unwrap(), good, "{name}");
    }
    let padded = [&jpeg[..jpeg.len() - 2], &[0; 33], b"\xff\xd9"].concat();
    assert_eq!(read(&padded, ALL).unwrap(), good, "padding before the end marker");
    // A thumbnail, which has an end marker of its own.
    let thumbnail = [&b"\xff\xe1"[..], &(jpeg.len() as u16 + 8).to_be_bytes(), b"Exif\0\0", &jpeg].concat();
    let with = [&jpeg[..2], &thumbnail, &jpeg[2..]].concat();
    assert_eq!(read(&with, ALL).unwrap(), good);
    for length in [with.len() - 1000, with.len() - 40, thumbnail.len() + 10, 500] {
        assert_eq!(read(&with[..length], ALL).unwrap_err(), "it is cut off");
    }
    // At a part of its size too.
    for length in (700..jpeg.len() - 2).step_by(50) {
        assert_eq!(read(&jpeg[..length], (3, 2, 2)).unwrap_err(), "it is cut off");
    }
}

#[test]
fn damaged_data_of_a_jpeg_are_reported() {
    let jpeg = encoded(&noise(), ImageFormat::Jpeg);
    let scan = jpeg.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap() + 14;
    let middle = (scan + jpeg.len()) / 2;
    let with = |range: std::ops::Range<usize>, new: &[u8]| [&jpeg[..range.start], new, &jpeg[range.end..]].concat();
    for (name, bytes) in [
        ("bytes are gone", with(middle..middle + 40, b"")),
        ("bytes are added", with(middle..middle, &[0x35; 40])),
        ("bytes are ones", with(middle..middle + 40, &[0xff, 0].repeat(20))),
        ("a sector is empty", with(middle..middle + 512, &[0; 512])),
        ("a marker stands in the data", with(middle..middle + 2, b"\xff\xd0")),
        ("it ends early", with(middle..jpeg.len(), b"\xff\xd9")),
    ] {
        for shape in [ALL, (3, 16, 16), (3, 2, 2)] {
            assert_eq!(read(&bytes, shape).unwrap_err(), "its data is damaged", "{name}, {shape:?}");
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let text: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    text.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

/// 12x20 pixels (12x, 20y, 8(x + y)), clipped to 255, as `cjpeg -quality 60 -sample 2x2 -baseline -optimize -scans` writes
/// them, each component in a scan of its own.
const SEPARATE: &str = "
    ffd8ffe000104a46494600010100000100010000ffdb0043000d090a0b0a080d0b0a0b0e0e0d0f13201513121213271c1e17202e2931302e292d
    2c333a4a3e333646372c2d405741464c4e525352323e5a615a50604a51524fffdb0043010e0e0e131113261515264f352d354f4f4f4f4f4f4f4f
    4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4f4fffc0001108000c001403012200021101
    031101ffc400160001010100000000000000000000000000050406ffc4001c1000010403010000000000000000000000040003052201213112ff
    da0008010100003f00ca8d11caa58688e5526dc45715560c335aaa58619ad5526d8cd78c557fffc4001501010100000000000000000000000000
    000204ffc400161101010100000000000000000000000000010300ffda0008010211003f0032abad2aefffc40015010101000000000000000000
    00000000000406ffc400191100030003000000000000000000000000000205041121ffda0008010311003f001e0d27e144b4df47ffd9";

/// The same pixels as `cjxl -d 0` writes them.
const JPEG_XL: &str = "
    ff0a5800268080e242080201008c014b2835c6de42e1f0565050121460ac40513563264d4363440c168e8e3122c6882d44800180a8cfa40305e8
    f35fd5c17f559958714d45500e40e6b074422e1e66f22a8a153c98f0f0c387039dc0661300cc1d14d7a84c954f77edcb8c7c8ab36d236200";

fn ramp(channel: usize, y: usize, x: usize) -> u8 {
    [12 * x, 20 * y, 8 * (x + y)][channel].min(255) as u8
}

#[test]
fn components_in_separate_scans_and_jpeg_xl() {
    let (separate, xl) = (unhex(SEPARATE), unhex(JPEG_XL));
    let [lossy, exact] = [&separate, &xl].map(|bytes| read(bytes, (3, 12, 20)).unwrap());
    for (i, (lossy, exact)) in lossy.iter().zip(&exact).enumerate() {
        let want = ramp(i / 240, i / 20 % 12, i % 20);
        assert_eq!(*exact, want);
        assert!(lossy.abs_diff(want) < 40, "{i}: {lossy} for {want}");
    }
    let mean = |i: usize| lossy[240 * i..][..240].iter().map(|v| f64::from(*v)).sum::<f64>() / 240.0;
    for (i, want) in [114.0, 110.0, 120.0].into_iter().enumerate() {
        assert!((mean(i) - want).abs() < 2.0, "channel {i}: {} for {want}", mean(i));
    }
    // Without its last component.
    let last = separate.windows(2).rposition(|pair| pair == [0xff, 0xda]).unwrap();
    let without = [&separate[..last], b"\xff\xd9"].concat();
    assert_eq!(read(&without, (3, 12, 20)).unwrap_err(), "it is cut off: a colour component is missing");
    for length in (20..xl.len()).step_by(10) {
        assert!(read(&xl[..length], (3, 12, 20)).is_err(), "{length}");
    }
}

#[test]
fn what_is_not_read_is_named() {
    let jpeg = encoded(&noise(), ImageFormat::Jpeg);
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    let with = |at: usize, value: u8| {
        let mut bytes = jpeg.clone();
        bytes[frame + at] = value;
        read(&bytes, ALL).unwrap_err()
    };
    for (found, want) in [
        (with(1, 0xc9), "a JPEG with arithmetic coding, which is not supported: convert it (jpegtran -optimize)"),
        (with(1, 0xca), "a JPEG with arithmetic coding"),
        (with(1, 0xc3), "a lossless JPEG, which is not supported: convert it"),
        (with(1, 0xc5), "a hierarchical JPEG"),
        (with(4, 12), "a JPEG of 12 bits, and only 8 are supported"),
        (with(9, 2), "2 colour components"),
    ] {
        assert!(found.contains(want), "{found}");
    }
    for (head, want) in [
        (&b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"[..], "it is HEIC, which is not read: convert it (heif-convert"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "it is AVIF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "it is JPEG 2000"),
        (b"\0\0\0\x18ftypisom", "it is a video (MP4)"),
        (b"RIFF\0\0\0\0AVI LIST", "it is a video (AVI)"),
        (b"\x1a\x45\xdf\xa3\x01", "it is a video (Matroska or WebM)"),
        (b"%PDF-1.7", "it is PDF"),
        (b"<?xml version='1.0'?>\n<svg xmlns='x'", "it is SVG"),
        (b"8BPS\0\x01", "it is a Photoshop document"),
        (b"II*\0\x10\0\0\0CR\x02\0", "it is a raw photograph (Canon)"),
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>", "its content is of no known picture format"),
        (b"BMW is no bitmap, but this text is long enough", "its content is of no known picture format"),
    ] {
        let found = read(head, ALL).unwrap_err();
        assert!(found.starts_with(want), "{found}");
        assert_eq!(picture::header(Cursor::new(head)).unwrap_err().to_string(), found);
    }
    let formats = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Gif, ImageFormat::WebP, ImageFormat::Bmp];
    for format in formats.into_iter().chain([ImageFormat::Tiff, ImageFormat::Pnm]) {
        let bytes = encoded(&noise(), format);
        let kind = picture::recognise(&bytes[..picture::HEAD]);
        assert!(matches!(kind, picture::Kind::Picture(_)), "{format:?}: {kind:?}");
        let header = picture::header(Cursor::new(&bytes)).unwrap();
        assert_eq!((header.size, header.grey), ((48, 64), false), "{format:?}");
        assert!(read(&bytes, ALL).is_ok(), "{format:?}");
        assert!(read(&bytes[..bytes.len() * 2 / 3], ALL).is_err(), "{format:?}");
    }
}

/// A JPEG of h x w pixels of middle grey: all its codes are zeros, two for a block.
fn plain_jpeg(h: u16, w: u16) -> Vec<u8> {
    let mut bytes = b"\xff\xd8\xff\xdb\0\x43\0".to_vec();
    bytes.extend([1; 64]);
    let [[h1, h0], [w1, w0]] = [h, w].map(u16::to_be_bytes);
    bytes.extend([0xff, 0xc0, 0, 17, 8, h1, h0, w1, w0, 3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0]);
    for class in [0, 0x10] {
        bytes.extend([0xff, 0xc4, 0, 20, class, 1]);
        bytes.extend([0; 16]);
    }
    bytes.extend([0xff, 0xda, 0, 12, 3, 1, 0, 2, 0, 3, 0, 0, 63, 0]);
    let blocks = usize::from(h).div_ceil(8) * usize::from(w).div_ceil(8) * 3;
    bytes.extend(vec![0; (2 * blocks).div_ceil(8)]);
    bytes.extend(b"\xff\xd9");
    bytes
}

#[test]
fn large_pictures_are_read_up_to_a_limit() {
    // 108 megapixels.
    assert_eq!(read(&plain_jpeg(9000, 12000), (1, 4, 4)).unwrap(), [128; 16]);
    let larger = plain_jpeg(13000, 14000);
    let said = read(&larger, (1, 4, 4)).unwrap_err();
    assert_eq!(said, "its 13000x14000 pixels unpack to 546000000 bytes, more than the 512000000 of --max-picture 128");
    let fit = |megapixels| Fit { size: Some((4, 4)), megapixels, ..Fit::default() };
    assert_eq!(read_as(&larger, (1, 4, 4), &fit(200)).unwrap(), [128; 16]);
    assert!(read_as(&plain_jpeg(1000, 1400), (1, 4, 4), &fit(1)).is_err());
    let bomb = plain_jpeg(60000, 60000);
    assert!(read(&bomb, (1, 4, 4)).unwrap_err().contains("60000x60000"));
    assert!(picture::header(Cursor::new(&bomb)).is_err());
    for bomb in [&b"P6 30000 30000 255\n"[..], b"P7\nWIDTH 20000\nHEIGHT 20000\nDEPTH 4\nMAXVAL 65535\nENDHDR\n"] {
        assert!(read(bomb, (1, 4, 4)).unwrap_err().contains("unpack to"));
    }
}

#[test]
fn transparent_pixels_lie_on_the_background_or_stay() {
    // The left half is transparent, and its hidden colour is red.
    let picture =
        RgbaImage::from_fn(8, 4, |x, _| Rgba([if x < 4 { 255 } else { 0 }, 40, 0, if x < 4 { 0 } else { 255 }]));
    let bytes = encoded(&picture.into(), ImageFormat::Png);
    let on = |text: &str| {
        let mut settings = Settings::default();
        settings.set(&picture::BACKGROUND, &toml::Value::String(text.into())).unwrap();
        Fit { size: Some((4, 8)), ..Fit::of(&settings).unwrap() }
    };
    for (text, colour) in [("auto", [0; 3]), ("black", [0; 3]), ("white", [255; 3]), ("9,8,7", [9, 8, 7])] {
        let pixels = read_as(&bytes, (3, 4, 8), &on(text)).unwrap();
        for (channel, plane) in pixels.chunks(32).enumerate() {
            assert_eq!((plane[0], plane[31]), (colour[channel], [0, 40, 0][channel]), "{text}");
        }
    }
    let kept = read_as(&bytes, (4, 4, 8), &on("white")).unwrap();
    assert_eq!([0, 32, 64, 96].map(|i| (kept[i], kept[i + 31])), [(255, 0), (40, 40), (0, 0), (0, 255)]);
    // Hidden colours do not bleed into visible ones when the picture shrinks.
    let small = read(&bytes, (4, 1, 2)).unwrap();
    assert!(small[1] < 3 && small[3].abs_diff(40) < 3, "{small:?}");
    // Around a padded picture.
    let pad =
        |c| read_as(&bytes, (c, 8, 8), &Fit { size: Some((8, 8)), shape: picture::Shape::Pad, ..on("9,8,7") }).unwrap();
    assert_eq!((pad(3)[0], pad(3)[64], pad(3)[63], pad(3)[2 * 8 + 7], pad(3)[64 + 2 * 8 + 7]), (9, 8, 9, 0, 40));
    assert_eq!((pad(4)[3 * 64], pad(4)[3 * 64 + 2 * 8 + 7], pad(1)[0]), (0, 255, 8));
    // 20 border pixels, of which the left 12 - 2 are transparent.
    assert_eq!(picture::border(&bytes, &Fit::default()).unwrap(), Some((10, 20)));
    for format in [ImageFormat::Png, ImageFormat::Jpeg] {
        assert_eq!(picture::border(&encoded(&noise(), format), &Fit::default()).unwrap(), None);
    }
    for wrong in ["grey", "1,2", "1,2,256", "1,2,3,4", ""] {
        assert!(Settings::default().set(&picture::BACKGROUND, &toml::Value::String(wrong.into())).is_err(), "{wrong}");
    }
}

#[test]
fn a_damaged_profile_is_ignored_and_counted() {
    let jpeg = encoded(&noise(), ImageFormat::Jpeg);
    let good = read(&jpeg, ALL).unwrap();
    let mut header = [0u8; 140];
    header[..4].copy_from_slice(&140u32.to_be_bytes());
    header[36..40].copy_from_slice(b"acsp");
    for profile in [&b"no profile"[..], &[0xff; 300], &header] {
        let before = picture::ignored_profiles();
        let length = (profile.len() as u16 + 16).to_be_bytes();
        let segment = [&b"\xff\xe2"[..], &length, b"ICC_PROFILE\0\x01\x01", profile].concat();
        assert_eq!(read(&[&jpeg[..2], &segment, &jpeg[2..]].concat(), ALL).unwrap(), good);
        assert_eq!(picture::ignored_profiles(), before + 1);
    }
}
