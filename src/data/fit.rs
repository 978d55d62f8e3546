//! Images of an array in another size or with other channels, by the rules of pictures.

use anyhow::{Result, anyhow};
use image::imageops::FilterType;
use image::{DynamicImage, GrayImage, RgbImage, RgbaImage};
use rayon::prelude::*;

use super::idx::reserve;
use super::images::Images;
use super::picture::Fit;

/// The images in the size and with the channels that `fit` asks for; as they are where it asks for none.
///
/// *Size.* Scaled to cover H x W (triangle filter) and center-cropped. *Channels.* Colour becomes grey by Rec. 709 weights, and grey
/// becomes three equal channels.
///
/// # Errors
/// When they do not fit into memory.
pub fn fit_pixels(images: Images, fit: &Fit) -> Result<Images> {
    let (h, w) = fit.size.unwrap_or((images.height, images.width));
    let c = fit.channels.unwrap_or(images.channels);
    if (c, h, w) == (images.channels, images.height, images.width) {
        return Ok(images);
    }
    let len = c * h * w;
    let total = images.count.checked_mul(len).ok_or_else(|| anyhow!("too many pixels: pass a smaller --image-size"))?;
    let mut pixels = Vec::new(); // [N,C,H,W]
    reserve(&mut pixels, total)?;
    pixels.resize(total, 0);
    let from = images.pixels.par_chunks_exact(images.image_len());
    let shape = (images.channels, images.height, images.width);
    pixels.par_chunks_exact_mut(len).zip(from).try_for_each(|(to, from)| resize_one(from, shape, (c, h, w), to))?;
    Images::new([images.count, c, h, w], pixels, images.labels)
}

/// One image [C,H,W] in another shape.
fn resize_one(
    from: &[u8],
    (c, h, w): (usize, usize, usize),
    (c_to, h_to, w_to): (usize, usize, usize),
    to: &mut [u8],
) -> Result<()> {
    let pixel = |i: usize| (0..c).map(move |channel| from[channel * h * w + i]);
    let bytes: Vec<u8> = (0..h * w).flat_map(pixel).collect(); // [H,W,C]
    let (width, height) = (u32::try_from(w)?, u32::try_from(h)?);
    let picture = match c {
        1 => GrayImage::from_raw(width, height, bytes).map(DynamicImage::ImageLuma8),
        4 => RgbaImage::from_raw(width, height, bytes).map(DynamicImage::ImageRgba8),
        _ => RgbImage::from_raw(width, height, bytes).map(DynamicImage::ImageRgb8),
    };
    let mut picture = picture.ok_or_else(|| anyhow!("an image of {c}x{h}x{w} cannot be resized"))?;
    if c_to == 1 {
        picture = DynamicImage::ImageLuma8(picture.into_luma8());
    }
    if (h, w) != (h_to, w_to) {
        let (cut_h, cut_w) =
            if w * h_to > h * w_to { (h, (h * w_to).div_ceil(h_to)) } else { ((w * h_to).div_ceil(w_to), w) };
        let [x, y, cut_w, cut_h, w_to, h_to] =
            [(w - cut_w) / 2, (h - cut_h) / 2, cut_w, cut_h, w_to, h_to].map(|n| n as u32);
        picture = picture.crop_imm(x, y, cut_w, cut_h).resize_exact(w_to, h_to, FilterType::Lanczos3);
    }
    picture = match c_to {
        3 => DynamicImage::ImageRgb8(picture.into_rgb8()),
        4 => DynamicImage::ImageRgba8(picture.into_rgba8()),
        _ => picture,
    };
    for (channel, plane) in to.chunks_exact_mut(h_to * w_to).enumerate() {
        plane.iter_mut().zip(picture.as_bytes().chunks_exact(c_to)).for_each(|(to, pixel)| *to = pixel[channel]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_cropped_scaled_and_converted() {
        let fit = |size, channels| Fit { size, channels, ..Fit::default() };
        // A white quarter in the middle columns of 2x4: cropped to 2x2, it is one value.
        let wide = Images::new([1, 1, 2, 4], vec![9, 50, 50, 9, 9, 50, 50, 9], vec![3]).unwrap();
        let small = fit_pixels(wide.clone(), &fit(Some((1, 1)), Some(3))).unwrap();
        assert_eq!((small.pixels.to_vec(), small.labels.clone()), (vec![50, 50, 50], vec![3]));
        assert_eq!(fit_pixels(wide.clone(), &fit(None, None)).unwrap(), wide);
        // Rec. 709: 0.2126 red, 0.7152 green, 0.0722 blue.
        let colour = Images::new([2, 3, 1, 1], vec![255, 0, 0, 0, 255, 0], vec![]).unwrap();
        assert_eq!(fit_pixels(colour, &fit(None, Some(1))).unwrap().pixels, [54, 182]);
    }
}
