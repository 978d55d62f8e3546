//! One picture: from the bytes of its file to pixels [C,H,W] of the wanted shape.

/// Compiles a function twice, for any processor and for those with AVX2 and BMI2, and calls the one that runs here.
macro_rules! for_this_processor {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $result:ty $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) -> $result {
            #[inline(always)]
            fn plain($($arg: $type),*) -> $result $body
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2") {
                #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
                fn vectors($($arg: $type),*) -> $result {
                    plain($($arg),*)
                }
                // SAFETY: the processor has these instructions.
                return unsafe { vectors($($arg),*) };
            }
            plain($($arg),*)
        }
    };
}

mod colour;
mod fit;
mod jpeg;
mod kind;
mod metadata;
mod resize;

use std::cell::Cell;
use std::fmt::Display;
use std::io::{BufRead, Cursor, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use jxl_oxide::integration::JxlDecoder;
use jxl_oxide::{AllocTracker, JxlImage};

pub use colour::ignored_profiles;
pub use fit::{BACKGROUND, Background, FIT, Fit, MAX_PICTURE, RESIZE};
pub use kind::{Format, HEAD, Kind, recognise};
use resize::Window;
pub use resize::{Filter, Shape, taps};

/// The largest file of a picture in bytes.
pub const MAX_BYTES: u64 = 256 << 20;
/// Bytes for a pixel of the largest picture: a small file can claim gigabytes in its header.
const PIXEL_BYTES: u64 = 4;
/// The largest value of [`MAX_PICTURE`], and its default.
const MEGAPIXELS: (u64, u64) = (512, 128);
/// Bytes of all pictures that are being decoded, whatever the number of cores. The largest picture of the default fits: its
/// file, its pixels and one copy of them. One that `--max-picture` allows beyond that is decoded alone.
const MEMORY: u64 = MAX_BYTES + 2 * PIXEL_BYTES * MEGAPIXELS.1 * 1_000_000;
/// Bytes that the decoder of JPEG XL takes for a pixel, floats of three or four channels in several copies; and for any picture.
const JXL_MEMORY: (u64, u64) = (64, 16 << 20);
/// Bytes that a decoder may take beyond twice the pixels.
const SPARE_BYTES: u64 = 1 << 20;
/// The longest side of a picture in pixels.
const MAX_SIDE: u32 = 1 << 15;
/// A JPEG is decoded at a part of its size if this is at least so many times what is wanted: the filter averages over the rest. With
/// 1.4 the result is within 8 levels of the full decode, 0.75 on average, on pictures made to be hard (scripts/pictures.py), where
/// 2 gives 3 and 0.5 and takes twice as long; what Pillow's draft mode gives is 17 and 1 away.
const SPARE: f64 = 1.4;
/// A pixel with less alpha is transparent for [`border`].
const OPAQUE: u8 = 128;

/// What the header of a picture says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// (H,W) in pixels, after its orientation.
    pub size: (usize, usize),
    /// Whether it is grey.
    pub grey: bool,
}

/// The meaning of a pixel's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Colours {
    Grey,
    GreyAlpha,
    Rgb,
    Rgba,
    /// 255 is no ink, as Adobe stores it.
    Cmyk,
}

impl Colours {
    fn channels(self) -> usize {
        match self {
            Colours::Grey => 1,
            Colours::GreyAlpha => 2,
            Colours::Rgb => 3,
            Colours::Rgba | Colours::Cmyk => 4,
        }
    }

    fn have_alpha(self) -> bool {
        matches!(self, Colours::GreyAlpha | Colours::Rgba)
    }
}

/// Pixels [H,W,C].
struct Pixels {
    width: usize,
    height: usize,
    colours: Colours,
    data: Vec<u8>,
}

/// Reads the header of a picture.
///
/// # Errors
/// Why it is no picture, as a phrase without the name of the file: `it is cut off`; also when no [`MAX_PICTURE`] allows its size.
pub fn header(mut file: impl BufRead + Seek) -> Result<Header> {
    let mut head = Vec::new();
    file.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    file.seek(SeekFrom::Start(0))?;
    let format = format_of(&head)?;
    let (size, grey, orientation) = match format {
        Format::Jpeg => {
            let head = jpeg::head(file)?;
            let size = (head.width, head.height);
            check_size(size, head.bytes(), MEGAPIXELS.0)?;
            (size, head.grey(), head.orientation)
        }
        _ => {
            let (decoder, orientation) = open(format, file)?;
            check_size(size_of(&*decoder), decoder.total_bytes(), MEGAPIXELS.0)?;
            (size_of(&*decoder), !decoder.color_type().has_color(), orientation)
        }
    };
    let (w, h) = if orientation.is_some_and(turns) { (size.1, size.0) } else { size };
    Ok(Header { size: (h, w), grey })
}

fn turns(orientation: Orientation) -> bool {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH)
}

/// The format of a file that starts with `head`, if it is read.
fn format_of(head: &[u8]) -> Result<Format> {
    match recognise(head) {
        Kind::Picture(format) => Ok(format),
        Kind::Unsupported { name, what_to_do } => bail!("it is {name}, which is not read: {what_to_do}"),
        Kind::NotAPicture if head.is_empty() => bail!("it is empty"),
        Kind::NotAPicture => bail!("its content is of no known picture format"),
    }
}

/// Checks what a picture claims to be, (w,h) pixels and `bytes` when unpacked, against a limit in megapixels.
fn check_size((w, h): (usize, usize), bytes: u64, megapixels: u64) -> Result<()> {
    ensure!(w > 0 && h > 0, "it is {h}x{w} pixels large");
    ensure!(w.max(h) <= MAX_SIDE as usize, "it is {h}x{w} pixels large, and a side of {MAX_SIDE} is the most");
    let most = megapixels * 1_000_000 * PIXEL_BYTES;
    ensure!(
        bytes <= most,
        "its {h}x{w} pixels unpack to {bytes} bytes, more than the {most} of --max-picture {megapixels}"
    );
    Ok(())
}

type AnyDecoder<'a> = Box<dyn ImageDecoder + 'a>;

fn size_of(decoder: &dyn ImageDecoder) -> (usize, usize) {
    let (w, h) = decoder.dimensions();
    (w as usize, h as usize)
}

/// A decoder of a picture of any format but JPEG, which has read the header; and the picture's orientation.
fn open<'a>(format: Format, mut file: impl BufRead + Seek + 'a) -> Result<(AnyDecoder<'a>, Option<Orientation>)> {
    let orientation = match format {
        Format::Png => metadata::of_png(&mut file),
        Format::WebP => metadata::of_webp(&mut file),
        // TIFF's decoder knows it; that of JPEG XL applies it; the others have none.
        _ => None,
    };
    file.seek(SeekFrom::Start(0))?;
    let format = match format {
        Format::Jpeg => ImageFormat::Jpeg,
        Format::Png => ImageFormat::Png,
        Format::Gif => ImageFormat::Gif,
        Format::WebP => ImageFormat::WebP,
        Format::Bmp => ImageFormat::Bmp,
        Format::Pnm => ImageFormat::Pnm,
        Format::Tiff => ImageFormat::Tiff,
        Format::JpegXl => {
            let mut decoder = guarded(|| JxlDecoder::new(file).map_err(broken))?;
            let (w, h) = size_of(&decoder);
            let most = jxl_memory((w as u64).saturating_mul(h as u64));
            guarded(|| decoder.set_limits(limits(most)).map_err(broken))?;
            return Ok((Box::new(decoder), None));
        }
    };
    let mut reader = ImageReader::with_format(file, format);
    reader.limits(limits(colour::MAX_PROFILE));
    let mut decoder: AnyDecoder = Box::new(guarded(|| reader.into_decoder().map_err(broken))?);
    // For parts of the file that claim more than the whole, such as frames of an animation.
    let most = 2 * decoder.total_bytes() + SPARE_BYTES;
    guarded(|| decoder.set_limits(limits(most)).map_err(broken))?;
    let orientation = match format {
        ImageFormat::Tiff => guarded(|| decoder.orientation().map_err(broken)).ok(),
        _ => orientation,
    };
    Ok((decoder, orientation))
}

/// Bytes that a JPEG XL picture of this many pixels may take.
fn jxl_memory(area: u64) -> u64 {
    JXL_MEMORY.0.saturating_mul(area).saturating_add(JXL_MEMORY.1)
}

fn limits(bytes: u64) -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(bytes);
    limits
}

fn broken(why: impl Display) -> anyhow::Error {
    anyhow!("{}", why.to_string().replace('\n', " "))
}

thread_local! {
    static DECODING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in a picture decoder, whose panics are reported as errors of the picture.
pub fn decoding() -> bool {
    DECODING.get()
}

/// Runs code of another crate; some decoders panic on damaged files.
fn guarded<T>(decode: impl FnOnce() -> Result<T>) -> Result<T> {
    DECODING.set(true);
    let result = catch_unwind(AssertUnwindSafe(decode));
    DECODING.set(false);
    result.map_err(|_| broken("its decoder failed"))?
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

/// A decoded picture.
struct Picture {
    pixels: Pixels,
    /// Width and height in pixels of the picture and of `pixels`, which may be smaller.
    size: (usize, usize),
    span: (f64, f64),
    orientation: Option<Orientation>,
    profile: Option<Vec<u8>>,
    _share: Share,
}

impl Picture {
    /// Decodes a picture; `enough` gives for its size how many pixels there are for each that is wanted, in each direction.
    fn read(
        bytes: &[u8],
        megapixels: u64,
        enough: impl Fn((usize, usize), Option<Orientation>) -> f64,
    ) -> Result<Self> {
        let length = bytes.len() as u64;
        let format = format_of(&bytes[..bytes.len().min(HEAD)])?;
        if format == Format::Jpeg {
            let head = jpeg::head(Cursor::new(bytes))?;
            let size = (head.width, head.height);
            check_size(size, head.bytes(), megapixels)?;
            let ratio = enough(size, head.orientation) / SPARE;
            let side = [1usize, 2, 4].into_iter().find(|side| ratio * *side as f64 >= 8.0).unwrap_or(8);
            let share = Share::take(2 * length + head.memory(side));
            let (pixels, head) = jpeg::decode(bytes, side)?;
            let span = |size: usize| (size * side) as f64 / 8.0;
            return Ok(Picture {
                pixels,
                size,
                span: (span(size.0), span(size.1)),
                orientation: head.orientation,
                profile: head.profile(),
                _share: share,
            });
        }
        let (mut decoder, orientation) = open(format, Cursor::new(bytes))?;
        let (size, total) = (size_of(&*decoder), decoder.total_bytes());
        check_size(size, total, megapixels)?;
        let area = (size.0 * size.1) as u64;
        // The decoded picture, and one copy of it while it is converted or scaled.
        let each = if format == Format::JpegXl { jxl_memory(area) } else { 2 * total.max(PIXEL_BYTES * area) };
        let share = Share::take(length + each);
        if format == Format::JpegXl {
            // Its decoder fills in what is missing.
            let image = guarded(|| {
                let tracker = AllocTracker::with_limit(jxl_memory(area) as usize);
                JxlImage::builder().alloc_tracker(tracker).read(bytes).map_err(broken)
            })?;
            ensure!(image.is_loading_done(), "it is cut off");
        }
        let profile = guarded(|| decoder.icc_profile().map_err(broken)).unwrap_or_default();
        let profile = profile.filter(|p| p.len() as u64 <= colour::MAX_PROFILE);
        let colours = match decoder.color_type() {
            ColorType::L8 | ColorType::L16 => Colours::Grey,
            ColorType::La8 | ColorType::La16 => Colours::GreyAlpha,
            kind if kind.has_alpha() => Colours::Rgba,
            _ => Colours::Rgb,
        };
        let picture = guarded(|| DynamicImage::from_decoder(decoder).map_err(broken))?;
        let data = match colours {
            Colours::Grey => picture.into_luma8().into_raw(),
            Colours::GreyAlpha => picture.into_luma_alpha8().into_raw(),
            Colours::Rgba => picture.into_rgba8().into_raw(),
            Colours::Rgb | Colours::Cmyk => picture.into_rgb8().into_raw(),
        };
        let pixels = Pixels { width: size.0, height: size.1, colours, data };
        Ok(Picture { pixels, size, span: (size.0 as f64, size.1 as f64), orientation, profile, _share: share })
    }
}

/// Decodes one picture to `out`, [C,H,W] of the shape (c, h, w); c is 1, 3, or 4 (RGBA, where alpha multiplies no colour).
///
/// *Size.* With [`Fit::size`], it is scaled by [`Fit::filter`] and brought to the shape by [`Fit::shape`].
///
/// *Values.* sRGB; an embedded colour profile is converted, and one that is damaged ignored and counted
/// ([`ignored_profiles`]). Colour becomes grey by Rec. 709 weights. With fewer than 4 channels transparent pixels are laid over
/// [`Fit::background`]; with 4, what [`Shape::Pad`] adds is transparent. 16-bit values are rounded to 8 bits, the orientation of
/// the file is applied, and the first frame of an animation is used.
///
/// # Errors
/// Why it cannot be read, as a phrase without the name of the file.
pub fn decode(bytes: &[u8], fit: &Fit, (c, h, w): (usize, usize, usize), out: &mut [u8]) -> Result<()> {
    // In the directions of the result.
    let window = |size: (usize, usize), orientation: Option<Orientation>| {
        let (width, height) = if orientation.is_some_and(turns) { (size.1, size.0) } else { size };
        match fit.size {
            None => Window::whole((width, height)),
            Some(_) => Window::new((width, height), (w, h), fit.shape),
        }
    };
    let ratio = |size, orientation| if fit.filter == Filter::Nearest { 1.0 } else { window(size, orientation).ratio };
    let picture = Picture::read(bytes, fit.megapixels, ratio)?;
    let pixels = colour::to_srgb(picture.pixels, picture.profile.as_deref());
    let orientation = picture.orientation;
    let window = window(picture.size, orientation);
    place(pixels, picture.span, orientation, &window, fit, (c, h, w), out)
}

/// One image [C,H,W] of an array in another shape and with other channels, by the rules of [`decode`]; its channels are 1, 3 or 4.
///
/// # Errors
/// When an image has another number of channels.
pub fn convert(
    image: &[u8],
    (c, h, w): (usize, usize, usize),
    fit: &Fit,
    (c_to, h_to, w_to): (usize, usize, usize),
    out: &mut [u8],
) -> Result<()> {
    let colours = match c {
        1 => Colours::Grey,
        3 => Colours::Rgb,
        4 => Colours::Rgba,
        _ => bail!("images of {c} channels, wanted 1 (grey), 3 (colour) or 4 (colour with alpha)"),
    };
    let area = h * w;
    let data = (0..area).flat_map(|i| image.iter().skip(i).step_by(area).copied()).collect(); // [H,W,C]
    let pixels = Pixels { width: w, height: h, colours, data };
    let window = match fit.size {
        None => Window::whole((w, h)),
        Some(_) => Window::new((w, h), (w_to, h_to), fit.shape),
    };
    place(pixels, (w as f64, h as f64), None, &window, fit, (c_to, h_to, w_to), out)
}

/// Brings pixels to the channels and the shape of `out`, [C,H,W]: `window` is what of them goes where, in the directions of the result,
/// and `span` as [`resize::resize`] says.
fn place(
    mut pixels: Pixels,
    span: (f64, f64),
    orientation: Option<Orientation>,
    window: &Window,
    fit: &Fit,
    (c, h, w): (usize, usize, usize),
    out: &mut [u8],
) -> Result<()> {
    if pixels.colours.have_alpha() && c != 4 {
        pixels = colour::over(pixels, fit.colour());
    }
    if c == 1 {
        pixels = colour::to_grey(pixels);
    }
    let stored = if orientation.is_some_and(turns) { window.turned() } else { *window };
    pixels = resize::resize(pixels, span, &stored, fit.filter);
    if let Some(orientation) = orientation {
        pixels = turned(pixels, orientation)?;
    }
    let [left, top, width, height] = window.to;
    ensure!(
        (pixels.width, pixels.height) == (width, height) && left + width <= w && top + height <= h,
        "it changed its size while it was read"
    );
    ensure!(fit.size.is_some() || (width, height) == (w, h), "it changed its size while it was read");
    let colour = fit.colour();
    for (channel, plane) in out.chunks_exact_mut(h * w).enumerate() {
        if (width, height) != (w, h) {
            plane.fill(match c {
                1 => colour::grey(colour),
                4 => 0,
                _ => colour[channel],
            });
        }
        // Which byte of a pixel it is; none for the alpha of a picture without.
        let (each, alpha) = (pixels.colours.channels(), channel == 3);
        let byte = match pixels.colours {
            Colours::Grey => (!alpha).then_some(0),
            Colours::GreyAlpha => Some(usize::from(alpha)),
            _ => (channel < each).then_some(channel),
        };
        for (to, from) in plane.chunks_exact_mut(w).skip(top).zip(pixels.data.chunks_exact(each * width)) {
            let to = to[left..left + width].iter_mut();
            match byte {
                Some(byte) => to.zip(from.chunks_exact(each)).for_each(|(to, pixel)| *to = pixel[byte]),
                None => to.for_each(|to| *to = 255),
            }
        }
    }
    Ok(())
}

/// Applies an orientation.
fn turned(pixels: Pixels, orientation: Orientation) -> Result<Pixels> {
    let Pixels { width, height, colours, data } = pixels;
    let (w, h) = (width as u32, height as u32);
    let picture = match colours {
        Colours::Grey => image::GrayImage::from_raw(w, h, data).map(DynamicImage::from),
        Colours::GreyAlpha => image::GrayAlphaImage::from_raw(w, h, data).map(DynamicImage::from),
        Colours::Rgb => image::RgbImage::from_raw(w, h, data).map(DynamicImage::from),
        Colours::Rgba | Colours::Cmyk => image::RgbaImage::from_raw(w, h, data).map(DynamicImage::from),
    };
    let mut picture = picture.context("its pixels are not as many as its size says")?;
    picture.apply_orientation(orientation);
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Ok(Pixels { width, height, colours, data: picture.into_bytes() })
}

/// How many pixels of a picture's border, one pixel wide, are transparent, and how many it has; none for a picture without alpha.
///
/// The background of a set whose `--background` is `auto` is white where more than half of the border pixels of all its pictures
/// with alpha are transparent, and else black: drawings that end within the picture are meant for paper. A picture without alpha is
/// known by its header and costs little; some hundred pictures, evenly spread, are enough.
///
/// # Errors
/// As [`decode`].
pub fn border(bytes: &[u8], fit: &Fit) -> Result<Option<(u64, u64)>> {
    let format = format_of(&bytes[..bytes.len().min(HEAD)])?;
    if format == Format::Jpeg || !open(format, Cursor::new(bytes))?.0.color_type().has_alpha() {
        return Ok(None);
    }
    let Pixels { width, height, colours, data } = Picture::read(bytes, fit.megapixels, |_, _| 1.0)?.pixels;
    let channels = colours.channels();
    Ok(Some(border_of((height, width), |i| data[i * channels + channels - 1])))
}

/// [`border`] for an image of (H,W) pixels whose alpha at a place is known.
pub fn border_of((h, w): (usize, usize), alpha: impl Fn(usize) -> u8) -> (u64, u64) {
    let at_border = |i: &usize| {
        let (y, x) = (i / w, i % w);
        y == 0 || x == 0 || y == h - 1 || x == w - 1
    };
    (0..h * w).filter(at_border).fold((0, 0), |(some, all), i| (some + u64::from(alpha(i) < OPAQUE), all + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_share_the_memory_for_decoding() {
        use std::sync::atomic::{AtomicU64, Ordering};
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for bytes in [MEMORY / 2, MEMORY / 3, MEMORY / 2, 5 * MEMORY, MEMORY / 3] {
                let (now, most) = (&now, &most);
                scope.spawn(move || {
                    let share = Share::take(bytes);
                    most.fetch_max(now.fetch_add(share.0, Ordering::SeqCst) + share.0, Ordering::SeqCst);
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    now.fetch_sub(share.0, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(most.into_inner(), MEMORY, "the largest takes all of it");
    }
}
