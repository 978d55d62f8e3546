//! Draws the images of a tensor: all in one grid, or each as a picture.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{DynamicImage, Rgb, RgbImage, RgbaImage, imageops};
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::base::atomic_file;

/// Pixels between two tiles of a grid and around it.
const GAP: usize = 2;
/// The shorter side of a tile is enlarged to at least about this many pixels, by nearest neighbour, so that 28×28 digits are
/// easy to see.
const MIN_SIDE: usize = 56;
/// Colour of the gaps: neither black nor white, so that the edges of black and white tiles are visible.
const BACKGROUND: Rgb<u8> = Rgb([40, 44, 52]);

/// Side in pixels of the squares that transparent images are shown over, and their two greys.
const CHECKERBOARD: (i64, [i64; 2]) = (8, [153, 204]);

/// An RGB picture in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture(pub RgbImage);

impl Picture {
    /// Writes the picture as a PNG, atomically.
    ///
    /// # Errors
    /// When the file cannot be written; names it.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut png = Vec::new();
        self.0.write_with_encoder(png_encoder(&mut png))?;
        Ok(atomic_file::write_unsynced(path, &png)?)
    }
}

/// The encoder's own default is fast and writes files twice as large.
fn png_encoder(to: &mut Vec<u8>) -> PngEncoder<&mut Vec<u8>> {
    PngEncoder::new_with_quality(to, CompressionType::Default, FilterType::Adaptive)
}

/// The number of columns that makes a grid of `n` tiles of h×w pixels about square.
pub fn columns_for(n: usize, h: usize, w: usize) -> usize {
    let ideal = (n as f64 * h as f64 / w as f64).sqrt();
    (ideal.round() as usize).clamp(1, n.max(1))
}

/// Draws images [N,C,H,W] (floats in [0,1] or bytes; C is 1, 3 or 4) as a grid of `columns`, row by row from the top left.
///
/// Values outside [0,1] are clamped. All images are drawn: the last row may be partly empty. Images with alpha are shown over a
/// checkerboard.
///
/// # Errors
/// When the shape is another, a dimension is 0, or `columns` is 0.
pub fn draw(images: &Tensor, columns: usize) -> Result<Picture> {
    ensure!(columns > 0, "a grid needs at least one column");
    let [n, h, w] = dims(images)?;
    // The longer side of a thin image stays below 8 * MIN_SIDE.
    let scale = MIN_SIDE.div_ceil(h.min(w)).min(8 * MIN_SIDE / h.max(w)).max(1);
    let (columns, rows) = (columns.min(n), n.div_ceil(columns));
    let (step_x, step_y) = (w * scale + GAP, h * scale + GAP);
    let [width, height] = [columns * step_x + GAP, rows * step_y + GAP].map(|side| side as u32);
    let mut grid = RgbImage::from_pixel(width, height, BACKGROUND);
    for (i, tile) in enlarged(images, scale)?.iter().enumerate() {
        let (x, y) = (GAP + i % columns * step_x, GAP + i / columns * step_y);
        imageops::replace(&mut grid, &tile.0, x as i64, y as i64);
    }
    Ok(Picture(grid))
}

/// Each of the images [N,C,H,W] as a PNG of W×H pixels in RGB, or RGBA with four channels.
///
/// # Errors
/// When the shape is another, or a dimension is 0.
pub fn singles(images: &Tensor) -> Result<Vec<Vec<u8>>> {
    let [n, h, w] = dims(images)?.map(|side| side as i64);
    let c = images.size()[1].max(3);
    let pixels = bytes(images)?.f_expand([n, c, h, w], false)?.f_permute([0, 2, 3, 1])?.f_reshape([n, -1])?; // [N,HWC]
    let encode = |data: Vec<u8>| {
        let image = match c {
            4 => RgbaImage::from_raw(w as u32, h as u32, data).map(DynamicImage::from),
            _ => RgbImage::from_raw(w as u32, h as u32, data).map(DynamicImage::from),
        };
        let mut png = Vec::new();
        image.context("too few bytes")?.write_with_encoder(png_encoder(&mut png))?;
        Ok(png)
    };
    Vec::<Vec<u8>>::try_from(&pixels)?.into_par_iter().map(encode).collect()
}

/// Images [N,C,H,W] of floats in [0,1] as bytes on the CPU, a quarter of the memory and the same picture. Values outside are
/// clamped; bytes stay unchanged.
///
/// # Errors
/// libtorch's.
pub fn bytes(images: &Tensor) -> Result<Tensor> {
    if images.kind() == Kind::Uint8 {
        return Ok(images.f_to_device(Device::Cpu)?);
    }
    // A part at a time and in place: floats of large images in several copies are more than the images themselves.
    let part = |images: &Tensor| {
        let mut unit = images.f_to_kind(Kind::Float)?.f_nan_to_num(0.0, 1.0, 0.0)?;
        let _ = unit.f_clamp_(0.0, 1.0)?.f_mul_scalar_(255.0)?.f_round_()?;
        Ok(unit.f_to_kind(Kind::Uint8)?.f_to_device(Device::Cpu)?)
    };
    let parts: Vec<Tensor> = images.f_detach()?.f_split(16, 0)?.iter().map(part).collect::<Result<_>>()?;
    Ok(Tensor::f_cat(&parts, 0)?)
}

/// N, H and W of images [N,C,H,W].
fn dims(images: &Tensor) -> Result<[usize; 3]> {
    match images.size()[..] {
        [n, 1 | 3 | 4, h, w] if n.min(h).min(w) > 0 => Ok([n, h, w].map(|side| side as usize)),
        ref size => bail!("images must be [N,C,H,W] with C of 1, 3 or 4 and no dimension of 0, found {size:?}"),
    }
}

/// Images [N,C,H,W] as N pictures, each pixel a square of `scale` pixels.
fn enlarged(images: &Tensor, scale: usize) -> Result<Vec<Picture>> {
    let [n, h, w] = dims(images)?.map(|side| side as i64);
    let s = scale as i64;
    let large = bytes(images)?.f_repeat_interleave_self_int(s, 2, None)?.f_repeat_interleave_self_int(s, 3, None)?; // [N,C,sH,sW]
    let rgb = if large.size()[1] == 4 { over_checkerboard(&large)? } else { large };
    let rgb = rgb.f_expand([n, 3, s * h, s * w], false)?.f_permute([0, 2, 3, 1])?.f_reshape([n, -1])?; // [N,3sHsW]
    let pictures = Vec::<Vec<u8>>::try_from(&rgb)?.into_iter();
    let picture = |rgb| RgbImage::from_raw((w * s) as u32, (h * s) as u32, rgb).map(Picture).context("too few bytes");
    pictures.map(picture).collect()
}

/// Bytes [N,4,H,W] laid over a checkerboard: [N,3,H,W].
fn over_checkerboard(rgba: &Tensor) -> Result<Tensor> {
    let (side, [dark, light]) = CHECKERBOARD;
    let squares = |length| -> Result<Tensor> {
        Ok(Tensor::f_arange(length, (Kind::Int64, Device::Cpu))?.f_divide_scalar_mode(side, "floor")?)
    };
    let [h, w] = [rgba.size()[2], rgba.size()[3]];
    let odd = squares(h)?.f_unsqueeze(1)?.f_add(&squares(w)?)?.f_remainder(2)?; // [H,W]
    let board = odd.f_mul_scalar(light - dark)?.f_add_scalar(dark)?.f_to_kind(Kind::Float)?;
    let pixels = rgba.f_to_kind(Kind::Float)?;
    let alpha = pixels.f_narrow(1, 3, 1)?.f_div_scalar(255.0)?; // [N,1,H,W]
    let behind = board.f_mul(&alpha.f_neg()?.f_add_scalar(1.0)?)?; // [N,1,H,W]
    Ok(pixels.f_narrow(1, 0, 3)?.f_mul(&alpha)?.f_add(&behind)?.f_round()?.f_to_kind(Kind::Uint8)?)
}

/// Rows of `columns` originals, each row followed by the row of their reconstructions: both [N,C,H,W] -> one tensor for
/// [`draw`].
///
/// # Errors
/// libtorch's, when the shapes differ.
pub fn alternate(originals: &Tensor, images: &Tensor, columns: usize) -> Result<Tensor> {
    let (n, columns) = (originals.size()[0], columns as i64);
    let mut rows = Vec::new();
    for from in (0..n).step_by(columns as usize) {
        let count = columns.min(n - from);
        for set in [originals, images] {
            // A short last row is padded with black images, so that each reconstruction is below its original.
            let padding = [0, 0, 0, 0, 0, 0, 0, columns - count];
            rows.push(set.f_narrow(0, from, count)?.f_constant_pad_nd(padding)?);
        }
    }
    Ok(Tensor::f_cat(&rows, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pixel(p: &Picture, x: usize, y: usize) -> [u8; 3] {
        p.0.get_pixel(x as u32, y as u32).0
    }

    /// A known bug elsewhere: a grid that shows 36 of 64 samples, or drops those after the last full row.
    #[test]
    fn every_image_is_in_the_grid_in_order() {
        for (n, columns) in [(1, 8), (7, 3), (10, 4), (13, 13), (64, 8), (65, 8)] {
            let levels: Vec<f32> = (0..n).map(|i| (i + 1) as f32 / 255.0).collect();
            let images = Tensor::from_slice(&levels).view([n, 1, 1, 1]).expand([n, 1, 28, 20], false);
            let p = draw(&images, columns).unwrap();
            let (tile_h, tile_w) = (28 * 3, 20 * 3);
            let across = columns.min(n as usize);
            for i in 0..n as usize {
                let x = GAP + i % across * (tile_w + GAP);
                let y = GAP + i / across * (tile_h + GAP);
                for (dx, dy) in [(0, 0), (tile_w - 1, 0), (0, tile_h - 1), (tile_w - 1, tile_h - 1)] {
                    assert_eq!(pixel(&p, x + dx, y + dy), [(i + 1) as u8; 3], "image {i} of {n}");
                }
            }
            assert_eq!(p.0.width() as usize, across * (tile_w + GAP) + GAP);
            assert_eq!(p.0.height() as usize, (n as usize).div_ceil(across) * (tile_h + GAP) + GAP);
        }
    }

    #[test]
    fn colour_keeps_its_channels_and_values_are_clipped() {
        let image = Tensor::from_slice(&[2.0f32, 0.5, -1.0]).view([1, 3, 1, 1]).expand([1, 3, 64, 64], false);
        let p = draw(&image, 1).unwrap();
        assert_eq!(pixel(&p, 10, 10), [255, 128, 0]);
        assert_eq!(p.0.dimensions(), (68, 68));
    }

    #[test]
    fn single_pictures_are_the_images_pixel_by_pixel() {
        let images = Tensor::from_slice(&[0.0f32, 1.0, 0.2, 0.4, 0.6, 0.8, 0.1, 0.36]).view([2, 1, 2, 2]);
        let all = singles(&images).unwrap();
        assert_eq!(all.len(), 2);
        let second = image::load_from_memory(&all[1]).unwrap().into_rgb8();
        assert_eq!(second.dimensions(), (2, 2));
        let greys: Vec<u8> = second.pixels().map(|p| p[0]).collect();
        assert_eq!(greys, [153, 204, 26, 92]);
        assert_eq!(singles(&bytes(&images).unwrap()).unwrap(), all, "bytes are the same picture");
        assert!(singles(&Tensor::zeros([1, 2, 4, 4], (Kind::Float, Device::Cpu))).is_err());
    }

    #[test]
    fn columns_make_it_about_square() {
        assert_eq!(columns_for(64, 28, 28), 8);
        assert_eq!(columns_for(10, 28, 28), 3);
        assert_eq!(columns_for(32, 64, 32), 8);
        assert_eq!(columns_for(1, 28, 28), 1);
    }

    #[test]
    fn transparent_images_are_shown_over_a_checkerboard_and_saved_with_their_alpha() {
        // Red, of alpha 0, 1/5 and 1 from left to right; 16x48 pixels become 56x168.
        let alpha = Tensor::from_slice(&[0u8, 51, 255]).repeat_interleave_self_int(16, 0, None).view([1, 1, 1, 48]);
        let full = |v: i64| Tensor::full([1, 1, 16, 48], v, (Kind::Uint8, Device::Cpu));
        let images = Tensor::cat(&[full(250), full(0), full(0), alpha.expand([1, 1, 16, 48], true)], 1);
        let p = draw(&images, 1).unwrap();
        let at = |x, y| pixel(&p, GAP + x, GAP + y);
        assert_eq!((at(0, 0), at(8, 0), at(0, 8), at(15, 15)), ([153; 3], [204; 3], [204; 3], [153; 3]));
        // Squares 8 and 9 of the row; 4/5 of the grey and 1/5 of the red.
        assert_eq!((at(64, 0), at(72, 0)), ([172, 122, 122], [213, 163, 163]));
        assert_eq!((at(150, 0), at(158, 9)), ([250, 0, 0], [250, 0, 0]));
        let single = image::load_from_memory(&singles(&images).unwrap()[0]).unwrap();
        assert_eq!((single.color(), single.width()), (image::ColorType::Rgba8, 48));
        let single = single.into_rgba8();
        let at = |x| single.get_pixel(x, 3).0;
        assert_eq!([at(0), at(20), at(47)], [[250, 0, 0, 0], [250, 0, 0, 51], [250, 0, 0, 255]]);
    }

    #[test]
    fn nothing_and_two_channels_are_refused() {
        let cpu = (Kind::Float, Device::Cpu);
        assert!(draw(&Tensor::zeros([0, 1, 4, 4], cpu), 2).is_err());
        assert!(draw(&Tensor::zeros([2, 2, 4, 4], cpu), 2).is_err());
    }

    #[test]
    fn a_saved_picture_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let p = draw(&Tensor::ones([3, 1, 8, 8], (Kind::Float, Device::Cpu)), 2).unwrap();
        p.save(&path).unwrap();
        let back = image::open(&path).unwrap();
        assert_eq!((back.color(), back.into_rgb8()), (image::ColorType::Rgb8, p.0.clone()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(p.save(Path::new("/nonexistent/a.png")).is_err());
    }

    #[test]
    fn reconstructions_stand_below_their_originals() {
        let originals = (Tensor::arange(11, (Kind::Float, Device::Cpu)) + 1.0).view([11, 1, 1, 1]);
        let all = alternate(&originals, &(&originals + 100.0), 8).unwrap();
        let bytes = alternate(&originals.to_kind(Kind::Uint8), &originals.to_kind(Kind::Uint8), 8).unwrap();
        assert_eq!(bytes.kind(), Kind::Uint8, "bytes stay bytes");
        let values = Vec::<f32>::try_from(all.flatten(0, -1)).unwrap();
        let mut want: Vec<f32> = (1..=8).chain(101..=108).chain(9..=11).map(|v| v as f32).collect();
        want.extend([0.0; 5]);
        want.extend([109.0, 110.0, 111.0]);
        want.extend([0.0; 5]);
        assert_eq!(values, want);
    }
}
