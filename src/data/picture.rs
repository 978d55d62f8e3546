//! One picture: from the bytes of its file to pixels [C,H,W] of the wanted shape.

use std::cell::Cell;
use std::fmt::Display;
use std::io::{BufRead, Cursor, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, PoisonError};

use anyhow::{Result, anyhow, ensure};
use image::imageops::FilterType;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, ImageResult, Limits};

use crate::base::setting::Settings;
use crate::data::{CHANNELS, IMAGE_SIZE};

/// The largest picture in bytes, as a file and decoded: the header of a small file can claim gigabytes.
pub const MAX_BYTES: u64 = 256 << 20;
/// Bytes for the colour profile of a PNG, which a small file can hold in hundreds of megabytes; a larger one is skipped, as none is used.
const MAX_PROFILE: u64 = 8 << 20;
/// Bytes of all pictures that are being decoded, whatever the number of cores: 5 pictures of 24 megapixels at a time, or 1 of 100.
const MEMORY: u64 = 1 << 30;
/// The longest side of a picture in pixels.
const MAX_SIDE: u32 = 1 << 15;

/// How pictures become images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// (H,W); none keeps the size of the pictures.
    pub size: Option<(usize, usize)>,
    /// C; none for 3, or 1 if all pictures are grey.
    pub channels: Option<usize>,
}

impl Fit {
    /// Of the settings.
    ///
    /// # Errors
    /// Those of a setting that cannot be read.
    pub fn of(s: &Settings) -> Result<Self> {
        Ok(Fit { size: s.given(&IMAGE_SIZE), channels: s.given(&CHANNELS).map(|c| c as usize) })
    }
}

/// What the header of a picture says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// (H,W) in pixels, after its orientation.
    pub size: (usize, usize),
    /// Whether it is grey.
    pub grey: bool,
}

/// Reads the header of a picture.
///
/// # Errors
/// Why it is no picture, as a phrase without the name of the file: `it is cut off`.
pub fn header(file: impl BufRead + Seek) -> Result<Header> {
    let (decoder, orientation) = open(file)?;
    let (width, height) = decoder.dimensions();
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    let turned = matches!(orientation, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH);
    let (h, w) = if turned { (width, height) } else { (height, width) };
    Ok(Header { size: (h as usize, w as usize), grey: !decoder.color_type().has_color() })
}

/// A decoder of a picture, after it has read the header and checked the limits.
fn open<'a>(file: impl BufRead + Seek + 'a) -> Result<(impl ImageDecoder + 'a, Orientation)> {
    let mut file = ImageReader::new(file).with_guessed_format().map_err(broken)?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_PROFILE);
    file.limits(limits.clone());
    let mut decoder = guarded(|| file.into_decoder())?;
    limits.max_alloc = Some(MAX_BYTES);
    guarded(|| decoder.set_limits(limits))?;
    let bytes = decoder.total_bytes();
    let (w, h) = decoder.dimensions();
    if w == 0 || h == 0 {
        return Err(broken(format_args!("it is {h}x{w} pixels large")));
    }
    if bytes > MAX_BYTES {
        return Err(broken(format_args!("its {h}x{w} pixels unpack to {bytes} bytes, more than {MAX_BYTES}")));
    }
    let orientation = decoder.orientation().map_err(broken)?;
    Ok((decoder, orientation))
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

/// Runs a decoder of the `image` crate; some of them panic on damaged files.
fn guarded<T>(decode: impl FnOnce() -> ImageResult<T>) -> Result<T> {
    DECODING.set(true);
    let result = catch_unwind(AssertUnwindSafe(decode));
    DECODING.set(false);
    result.map_err(|_| broken("its decoder failed"))?.map_err(broken)
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

/// Decodes one picture to `out`, [C,H,W] of the shape (c, h, w).
///
/// *Size.* With [`Fit::size`], it is scaled to cover H x W (triangle filter, which averages when it shrinks and does not ring) and
/// center-cropped.
///
/// *Values.* Colour is converted to grey by Rec. 709 weights. Transparent pixels are composited on black, the background of MNIST.
/// 16-bit values are rounded to 8 bits, EXIF orientation is applied, and the first frame of an animation is used.
///
/// # Errors
/// Why it cannot be read, as a phrase without the name of the file.
pub fn decode(bytes: &[u8], fit: &Fit, (c, h, w): (usize, usize, usize), out: &mut [u8]) -> Result<()> {
    if !has_end(bytes) {
        return Err(broken("it is cut off"));
    }
    let (decoder, orientation) = open(Cursor::new(bytes))?;
    let (w_all, h_all) = decoder.dimensions();
    // The decoded picture and one copy of it: while it is converted, and then cropped.
    let _share =
        Share::take(bytes.len() as u64 + 2 * decoder.total_bytes().max(4 * u64::from(w_all) * u64::from(h_all)));
    let mut picture = guarded(|| DynamicImage::from_decoder(decoder))?;
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
        ensure!(fit.size.is_some(), "it changed its size while it was read");
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
