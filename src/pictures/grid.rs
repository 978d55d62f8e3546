//! Images in a tensor drawn as one picture, or each as its own.

use std::path::Path;

use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

use crate::base::atomic_file;

/// Pixels between two images of a grid and around it.
const GAP: usize = 2;
/// A tile's shorter side is enlarged (each pixel to a square) to at least about this many pixels, so that 28×28 digits can
/// be seen without a magnifier.
const LEGIBLE: usize = 56;
/// Colour of the gaps: neither black nor white, so that the edge of a black or white tile can be seen.
const BACKGROUND: [u8; 3] = [40, 44, 52];

/// A picture in memory: `rgb` holds height·width·3 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels across.
    pub width: usize,
    /// Pixels down.
    pub height: usize,
    /// Red, green, blue for each pixel, row by row.
    pub rgb: Vec<u8>,
}

/// Columns that make a grid of `n` tiles of h×w pixels about square; every image is shown, whatever `n`.
pub fn columns_for(n: usize, h: usize, w: usize) -> usize {
    let ideal = (n as f64 * h as f64 / w as f64).sqrt();
    (ideal.round() as usize).clamp(1, n.max(1))
}

/// Draws images [N,C,H,W] (floats in [0,1] or bytes; C of 1 or 3) in rows of `columns`, left to right, top to bottom.
///
/// Values outside [0,1] are clipped. The last row may be part empty; no image is left out.
///
/// # Errors
/// When there is no image, C is neither 1 nor 3, or `columns` is 0.
pub fn draw(images: &Tensor, columns: usize) -> Result<Picture> {
    let size = images.size();
    ensure!(
        size.len() == 4 && size[0] > 0 && (size[1] == 1 || size[1] == 3) && columns > 0,
        "a grid takes [N,C,H,W] with N above 0 and C of 1 or 3 in at least one column, found {size:?} in {columns}"
    );
    let (n, h, w) = (size[0] as usize, size[2] as usize, size[3] as usize);
    // A long thin image stays thin: its longer side is not blown up past eight legible tiles.
    let scale = LEGIBLE.div_ceil(h.min(w)).min(8 * LEGIBLE / h.max(w)).max(1);
    let tiles = rgb_tiles(images, scale)?;
    let (tile_h, tile_w) = (h * scale, w * scale);
    let (columns, rows) = (columns.min(n), n.div_ceil(columns));
    let width = columns * (tile_w + GAP) + GAP;
    let height = rows * (tile_h + GAP) + GAP;
    let mut rgb = BACKGROUND.repeat(width * height);
    for (i, tile) in tiles.chunks_exact(tile_h * tile_w * 3).enumerate() {
        let (x, y) = (GAP + i % columns * (tile_w + GAP), GAP + i / columns * (tile_h + GAP));
        for (row, pixels) in tile.chunks_exact(tile_w * 3).enumerate() {
            let at = ((y + row) * width + x) * 3;
            rgb[at..at + tile_w * 3].copy_from_slice(pixels);
        }
    }
    Ok(Picture { width, height, rgb })
}

/// Each of the images [N,C,H,W] as it is: no frame, no enlargement.
///
/// # Errors
/// As [`draw`].
pub fn singles(images: &Tensor) -> Result<Vec<Picture>> {
    let size = images.size();
    ensure!(
        size.len() == 4 && size.iter().all(|n| *n > 0) && (size[1] == 1 || size[1] == 3),
        "single pictures take [N,C,H,W] with C of 1 or 3, found {size:?}"
    );
    let (width, height) = (size[3] as usize, size[2] as usize);
    let tiles = rgb_tiles(images, 1)?;
    Ok(tiles.chunks_exact(width * height * 3).map(|rgb| Picture { width, height, rgb: rgb.to_vec() }).collect())
}

/// Images [N,C,H,W] of floats in [0,1] as bytes on the CPU, a quarter of the memory and the same picture; values outside are
/// clipped, bytes stay as they are.
///
/// # Errors
/// libtorch's.
pub fn bytes(images: &Tensor) -> Result<Tensor> {
    let bytes = if images.kind() == Kind::Uint8 {
        images.shallow_clone()
    } else {
        let unit = images.detach().to_kind(Kind::Float).f_nan_to_num(0.0, 1.0, 0.0)?;
        (unit.f_clamp(0.0, 1.0)? * 255.0).f_round()?.to_kind(Kind::Uint8)
    };
    Ok(bytes.f_to_device(Device::Cpu)?)
}

/// [N,C,H,W] -> N enlarged tiles of H·W RGB pixels, one after another.
fn rgb_tiles(images: &Tensor, scale: usize) -> Result<Vec<u8>> {
    let bytes = bytes(images)?;
    let s = scale as i64;
    let size = bytes.size();
    let rgb = bytes
        .f_expand([size[0], 3, size[2], size[3]], false)?
        .f_permute([0, 2, 3, 1])? // [N,H,W,3]
        .f_repeat_interleave_self_int(s, 1, None)?
        .f_repeat_interleave_self_int(s, 2, None)? // [N,sH,sW,3]
        .f_contiguous()?
        .f_reshape([-1])?;
    Ok(Vec::<u8>::try_from(&rgb)?)
}

impl Picture {
    /// Writes the picture as a PNG, atomically.
    ///
    /// # Errors
    /// When the file cannot be written; names it.
    pub fn save(&self, path: &Path) -> Result<()> {
        // Encoded in memory: dropping an encoder on a file would lose the error of its last bytes.
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.rgb)?;
        writer.finish()?;
        Ok(atomic_file::write_unsynced(path, &bytes)?)
    }
}

/// Rows of `columns` originals, each row followed by one of their reconstructions: both [N,C,H,W] -> [2N,C,H,W].
///
/// # Errors
/// libtorch's, when the shapes differ.
pub fn alternate(originals: &Tensor, images: &Tensor, columns: usize) -> Result<Tensor> {
    let (n, columns) = (originals.size()[0], columns as i64);
    let mut rows = Vec::new();
    for from in (0..n).step_by(columns as usize) {
        let count = columns.min(n - from);
        for set in [originals, images] {
            let row = set.f_narrow(0, from, count)?;
            // A short last row is filled with black, so that the reconstructions still stand below their originals.
            let mut size = row.size();
            size[0] = columns - count;
            let black = Tensor::f_zeros(&size, (row.kind(), row.device()))?;
            rows.push(Tensor::f_cat(&[row, black], 0)?);
        }
    }
    Ok(Tensor::f_cat(&rows, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pixel(p: &Picture, x: usize, y: usize) -> [u8; 3] {
        let i = (y * p.width + x) * 3;
        [p.rgb[i], p.rgb[i + 1], p.rgb[i + 2]]
    }

    /// A known mistake of peers: a grid that shows 36 of 64 samples, or drops those after the last full row.
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
            assert_eq!(p.width, across * (tile_w + GAP) + GAP);
            assert_eq!(p.height, (n as usize).div_ceil(across) * (tile_h + GAP) + GAP);
        }
    }

    #[test]
    fn colour_keeps_its_channels_and_values_are_clipped() {
        let image = Tensor::from_slice(&[2.0f32, 0.5, -1.0]).view([1, 3, 1, 1]).expand([1, 3, 64, 64], false);
        let p = draw(&image, 1).unwrap();
        assert_eq!(pixel(&p, 10, 10), [255, 128, 0]);
        assert_eq!((p.width, p.height), (68, 68));
    }

    #[test]
    fn single_pictures_are_the_images_pixel_by_pixel() {
        let images = Tensor::from_slice(&[0.0f32, 1.0, 0.2, 0.4, 0.6, 0.8, 0.1, 0.36]).view([2, 1, 2, 2]);
        let all = singles(&images).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!((all[1].width, all[1].height), (2, 2));
        let greys: Vec<u8> = all[1].rgb.chunks(3).map(|p| p[0]).collect();
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
        let mut reader =
            png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).unwrap())).read_info().unwrap();
        let mut back = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut back).unwrap();
        assert_eq!(back, p.rgb);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(p.save(Path::new("/nonexistent/a.png")).is_err());
    }

    #[test]
    fn reconstructions_stand_below_their_originals() {
        let originals = (Tensor::arange(11, (Kind::Float, Device::Cpu)) + 1.0).view([11, 1, 1, 1]);
        let all = alternate(&originals, &(&originals + 100.0), 8).unwrap();
        let bytes = alternate(&originals.to_kind(Kind::Uint8), &originals.to_kind(Kind::Uint8), 8).unwrap();
        assert_eq!(bytes.kind(), Kind::Uint8, "as floats, bytes would be far too bright");
        let values = Vec::<f32>::try_from(all.flatten(0, -1)).unwrap();
        let mut want: Vec<f32> = (1..=8).chain(101..=108).chain(9..=11).map(|v| v as f32).collect();
        want.extend([0.0; 5]);
        want.extend([109.0, 110.0, 111.0]);
        want.extend([0.0; 5]);
        assert_eq!(values, want);
    }
}
