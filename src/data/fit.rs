//! Images of an array in another size or with other channels, by the rules of pictures.

use anyhow::{Context, Result};
use rayon::prelude::*;

use super::idx::reserve;
use super::images::Images;
use super::picture::{self, Background, Fit};

/// Images whose borders are looked at for the background.
const BORDERS: usize = 500;

/// `fit` with what it leaves open chosen for these images; and a note where the user should know of it. Images with alpha lose it
/// where the channels are not asked for, as pictures do.
pub fn choose(images: &Images, fit: &Fit) -> (Fit, Option<String>) {
    let mut fit = *fit;
    if images.channels != 4 || fit.channels == Some(4) {
        return (fit, None);
    }
    fit.channels = fit.channels.or(Some(3));
    if fit.background != Background::Auto {
        return (fit, None);
    }
    let (size, area) = ((images.height, images.width), images.height * images.width);
    let alphas =
        images.pixels.chunks_exact(4 * area).step_by(images.count.div_ceil(BORDERS).max(1)).map(|x| &x[3 * area..]);
    let borders = alphas.map(|alpha| picture::border_of(size, |i| alpha[i]));
    let note = fit.choose_background(borders.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)));
    (fit, note)
}

/// The images in the size and with the channels that `fit` asks for, as [`picture::convert`] makes them; as they are where it asks for
/// none.
///
/// # Errors
/// When they do not fit into memory.
pub fn fit_pixels(images: Images, fit: &Fit) -> Result<Images> {
    let (h, w) = fit.size.unwrap_or((images.height, images.width));
    let c = fit.channels.unwrap_or(images.channels);
    let (from_shape, shape) = ((images.channels, images.height, images.width), (c, h, w));
    if shape == from_shape {
        return Ok(images);
    }
    let len = c * h * w;
    let total = images.count.checked_mul(len).context("too many pixels: pass a smaller --image-size")?;
    let mut pixels = Vec::new(); // [N,C,H,W]
    reserve(&mut pixels, total)?;
    pixels.resize(total, 0);
    let from = images.pixels.par_chunks_exact(images.image_len());
    let convert = |(to, from): (&mut [u8], &[u8])| picture::convert(from, from_shape, fit, shape, to);
    pixels.par_chunks_exact_mut(len).zip(from).try_for_each(convert)?;
    Images::new([images.count, c, h, w], pixels, images.labels)
}

#[cfg(test)]
mod tests {
    use super::picture::{Filter, Shape};
    use super::*;

    #[test]
    fn images_are_cropped_scaled_and_converted() {
        let fit = |size, channels| Fit { size, channels, filter: Filter::Box, ..Fit::default() };
        // A white quarter in the middle columns of 2x4: cropped to 2x2, it is one value.
        let wide = Images::new([1, 1, 2, 4], vec![9, 50, 50, 9, 9, 50, 50, 9], vec![3]).unwrap();
        let small = fit_pixels(wide.clone(), &fit(Some((1, 1)), Some(3))).unwrap();
        assert_eq!((small.pixels.to_vec(), small.labels.clone()), (vec![50, 50, 50], vec![3]));
        assert_eq!(fit_pixels(wide.clone(), &fit(None, None)).unwrap(), wide);
        // Rec. 709: 0.2126 red, 0.7152 green, 0.0722 blue.
        let colour = Images::new([2, 3, 1, 1], vec![255, 0, 0, 0, 255, 0], vec![]).unwrap();
        assert_eq!(fit_pixels(colour, &fit(None, Some(1))).unwrap().pixels, [54, 182]);
    }

    #[test]
    fn arrays_are_padded_stretched_and_filtered_as_pictures_are() {
        let wide = || Images::new([1, 1, 2, 4], vec![0, 100, 200, 40, 0, 100, 200, 40], vec![]).unwrap();
        let fit = Fit { size: Some((2, 2)), ..Fit::default() };
        let made = |shape, filter, background| {
            fit_pixels(wide(), &Fit { shape, filter, background, ..fit }).unwrap().pixels.to_vec()
        };
        let grey = Background::Colour([7; 3]);
        assert_eq!(made(Shape::Stretch, Filter::Box, grey), [50, 120, 50, 120]);
        // One row of pixels in the middle would be between two: the picture lies on the first.
        assert_eq!(made(Shape::Pad, Filter::Box, grey), [50, 120, 7, 7]);
        assert_eq!(made(Shape::Crop, Filter::Nearest, grey), [100, 200, 100, 200]);
    }

    #[test]
    fn arrays_with_alpha_are_laid_over_the_background_unless_it_is_kept() {
        // One pixel each: red and half transparent, green and transparent, blue and opaque.
        let images = || Images::new([3, 4, 1, 1], vec![200, 0, 0, 128, 0, 200, 0, 0, 0, 0, 200, 255], vec![]).unwrap();
        let fitted = |fit: &Fit| {
            let (fit, note) = choose(&images(), fit);
            (fit_pixels(images(), &fit).unwrap().pixels.to_vec(), note)
        };
        // One of three borders is transparent, so the background is black.
        let (pixels, note) = fitted(&Fit::default());
        assert_eq!(pixels, [100, 0, 0, 0, 0, 0, 0, 0, 200]);
        assert!(note.unwrap().contains("become black (33 %"));
        let white = Fit { background: Background::Colour([255; 3]), ..Fit::default() };
        assert_eq!(fitted(&white), (vec![227, 127, 127, 255, 255, 255, 0, 0, 200], None));
        let kept = fitted(&Fit { channels: Some(4), ..Fit::default() });
        assert_eq!(kept, (images().pixels.to_vec(), None));
        let padded = Fit { channels: Some(4), size: Some((1, 3)), shape: Shape::Pad, ..Fit::default() };
        assert_eq!(fitted(&padded).0[..12], [0, 200, 0, 0, 0, 0, 0, 0, 0, 0, 128, 0]);
    }
}
