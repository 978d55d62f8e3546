//! Where images are written: a grid in one picture, a folder of single pictures, or an array for NumPy.
//!
//! Images arrive in batches. All outputs but a grid write each batch at once, so memory does not grow with the number of images.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use crate::base::atomic_file;
use crate::base::progress::Tally;
use crate::base::shape::Shape;
use crate::base::usage::usage;
use crate::pictures::grid;
use crate::pictures::npy::NpyWriter;

/// The largest number of images in one grid.
const MAX_GRID: usize = 10_000;

/// The kind of output, chosen by the file extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputFormat {
    /// `.png`: all images in one picture.
    Grid,
    /// `.npy`: a float32 array [N,C,H,W].
    Npy,
    /// No extension: a folder with a picture for each image.
    Folder,
    /// `.gif`: an animation.
    Gif,
}

impl OutputFormat {
    /// The format of `out` for `count` images; `animated` allows a `.gif`.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] for another extension, too many images for a grid, or a folder that is not empty.
    pub fn of(out: &Path, count: usize, animated: bool) -> Result<Self> {
        let extension = out.extension().map(|e| e.to_string_lossy().to_lowercase());
        let format = match extension.as_deref() {
            Some("png") => OutputFormat::Grid,
            Some("npy") => OutputFormat::Npy,
            None => OutputFormat::Folder,
            Some("gif") if animated => OutputFormat::Gif,
            _ => {
                let gif = if animated { " a .gif for an animation," } else { "" };
                usage!(
                    "--out {}: wanted a .png for a grid,{gif} a .npy for the numbers, or a folder for single pictures",
                    out.display()
                );
            }
        };
        if matches!(format, OutputFormat::Grid | OutputFormat::Gif) && count > MAX_GRID {
            usage!(
                "{count} images are too many for one grid (at most {MAX_GRID}): give --out a folder or a .npy, or ask for fewer"
            );
        }
        if format == OutputFormat::Folder && std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
            usage!("--out {}: the folder is not empty, and files could be overwritten: name another", out.display());
        }
        Ok(format)
    }
}

/// Writes images batch by batch.
#[derive(Debug)]
pub struct ImageWriter {
    out: PathBuf,
    output: Output,
    columns: usize,
    count: usize,
    /// From the first images on: what comes before has a bar of its own.
    tally: Option<Tally>,
}

#[derive(Debug)]
enum Output {
    /// Batches as bytes: a quarter of the memory of floats.
    Grid(Vec<Tensor>),
    Npy(NpyWriter),
    /// The number of the next picture.
    Folder(usize),
}

impl ImageWriter {
    /// Opens `out` for `count` images of this shape. A grid has `columns`; by default it is about square.
    ///
    /// # Errors
    /// As [`OutputFormat::of`]; when the file or folder cannot be created.
    pub fn open(out: &Path, count: usize, shape: Shape, columns: Option<usize>) -> Result<Self> {
        let [c, h, w] = shape.dims().map(|n| n as usize);
        let output = match OutputFormat::of(out, count, false)? {
            OutputFormat::Npy => Output::Npy(NpyWriter::create(out, &[count, c, h, w], Kind::Float)?),
            OutputFormat::Folder => {
                std::fs::create_dir_all(out)
                    .with_context(|| format!("--out {}: the folder could not be made", out.display()))?;
                Output::Folder(0)
            }
            OutputFormat::Grid | OutputFormat::Gif => Output::Grid(Vec::new()),
        };
        let columns = columns.unwrap_or_else(|| grid::columns_for(count, h, w));
        Ok(ImageWriter { out: out.to_owned(), output, columns, count, tally: None })
    }

    /// Writes the next images, [B,C,H,W] in [0,1] on any device.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn push(&mut self, images: &Tensor) -> Result<()> {
        let tally = self.tally.get_or_insert_with(|| Tally::start("images", self.count as u64));
        match &mut self.output {
            Output::Grid(batches) => batches.push(grid::bytes(images)?),
            Output::Npy(file) => file.push(images)?,
            Output::Folder(next) => {
                let pictures = grid::singles(images)?;
                for (i, png) in pictures.iter().enumerate() {
                    atomic_file::write_unsynced(&self.out.join(format!("{:06}.png", *next + i)), png)?;
                }
                *next += pictures.len();
            }
        }
        tally.advance(images.size()[0] as u64);
        Ok(())
    }

    /// Completes the output after the last batch.
    ///
    /// # Errors
    /// When a file cannot be written, or an array lacks images.
    pub fn finish(self) -> Result<()> {
        match self.output {
            Output::Grid(batches) => grid::draw(&Tensor::f_cat(&batches, 0)?, self.columns)?.save(&self.out),
            Output::Npy(file) => file.finish(),
            Output::Folder(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { channels: 3, height: 4, width: 5 };

    /// Images 0, 1, ... of level i/100, in batches of 3.
    fn write(out: &Path, count: usize, columns: Option<usize>) -> Result<Tensor> {
        let levels: Vec<f32> = (0..count).map(|i| i as f32 / 100.0).collect();
        let images = Tensor::from_slice(&levels).view([count as i64, 1, 1, 1]).repeat([1, 3, 4, 5]);
        let mut writer = ImageWriter::open(out, count, SHAPE, columns)?;
        for from in (0..count).step_by(3) {
            writer.push(&images.narrow(0, from as i64, 3.min(count - from) as i64))?;
        }
        writer.finish()?;
        Ok(images)
    }

    #[test]
    fn all_images_arrive_in_every_format() {
        let dir = tempfile::tempdir().unwrap();
        let images = write(&dir.path().join("a.npy"), 7, None).unwrap();
        assert_eq!(Tensor::read_npy(dir.path().join("a.npy")).unwrap(), images);
        drop(write(&dir.path().join("single"), 7, None).unwrap());
        for i in 0..7u8 {
            let picture = image::open(dir.path().join(format!("single/{i:06}.png"))).unwrap().to_rgb8();
            assert_eq!(picture.dimensions(), (5, 4));
            let level = (f32::from(i) / 100.0 * 255.0).round() as u8;
            assert!(picture.pixels().all(|p| p.0 == [level; 3]), "image {i}");
        }
        assert_eq!(std::fs::read_dir(dir.path().join("single")).unwrap().count(), 7);
        for (columns, name) in [(None, "a.png"), (Some(4), "rows.PNG")] {
            drop(write(&dir.path().join(name), 7, columns).unwrap());
            let want = dir.path().join("want.png");
            grid::draw(&images, columns.unwrap_or(2)).unwrap().save(&want).unwrap();
            assert!(std::fs::read(dir.path().join(name)).unwrap() == std::fs::read(&want).unwrap(), "{name}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 5, "nothing else");
    }

    #[test]
    fn what_cannot_be_written_is_a_usage_error_before_any_work() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x"), "").unwrap();
        let refused = |out: &Path, count, animated| {
            let e = OutputFormat::of(out, count, animated).unwrap_err();
            assert!(e.is::<crate::base::usage::Usage>(), "{e}");
            e.to_string()
        };
        assert!(refused(Path::new("a.jpg"), 1, true).contains(".gif for an animation"));
        assert!(refused(Path::new("a.apng"), 1, true).contains("a.apng: wanted a .png for a grid, a .gif"));
        assert!(!refused(Path::new("a.gif"), 1, false).contains("animation"));
        assert!(refused(Path::new("a.png"), 10_001, false).contains("10001 images are too many"));
        assert!(refused(dir.path(), 1, false).contains("not empty"));
        assert_eq!(OutputFormat::of(Path::new("a.npy"), 1 << 40, false).unwrap(), OutputFormat::Npy);
        assert_eq!(OutputFormat::of(Path::new("a.GIF"), 9, true).unwrap(), OutputFormat::Gif);
        assert!(ImageWriter::open(Path::new("/dev/null/x"), 1, SHAPE, None).is_err());
    }

    #[test]
    fn an_array_that_lacks_images_is_no_array() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ImageWriter::open(&dir.path().join("a.npy"), 3, SHAPE, None).unwrap();
        writer.push(&Tensor::zeros([2, 3, 4, 5], (Kind::Float, tch::Device::Cpu))).unwrap();
        assert!(writer.finish().is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
