//! Animations: pictures one after another as a GIF or an APNG that repeats for ever.

use std::cell::RefCell;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};

use crate::base::atomic_file::AtomicFile;
use crate::pictures::grid::Picture;

/// How thoroughly a frame with more than 256 colours is brought down to them: 1 the best, 30 the fastest. At 10 a frame takes
/// a tenth of the time that it takes at 1, and differs by no eye's measure.
const SPEED: i32 = 10;
/// A GIF counts pixels in 16 bits.
const WIDEST: usize = 65_535;

/// The kinds of animation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// At most 256 colours in a frame; every viewer shows it.
    Gif,
    /// Every colour; browsers show it.
    Apng,
}

impl Kind {
    /// The kind that a file's ending asks for.
    pub fn of(path: &Path) -> Option<Kind> {
        match path.extension()?.to_string_lossy().to_lowercase().as_str() {
            "gif" => Some(Kind::Gif),
            "apng" => Some(Kind::Apng),
            _ => None,
        }
    }
}

/// An animation that is being written; its file appears when all frames are there.
pub struct Film {
    out: PathBuf,
    kind: Kind,
    frames: usize,
    done: usize,
    size: (usize, usize),
    writer: Writer,
}

enum Writer {
    /// The first frame says how large all are.
    Waiting(AtomicFile),
    Gif(Box<gif::Encoder<AtomicFile>>),
    Apng(Box<png::Writer<Shared>>, Shared),
    Broken,
}

/// A file that its encoder does not give back.
#[derive(Clone)]
struct Shared(Rc<RefCell<AtomicFile>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.borrow_mut().flush()
    }
}

impl Film {
    /// An animation of `frames` pictures at `out`.
    ///
    /// # Errors
    /// When its file cannot be made.
    pub fn start(out: &Path, kind: Kind, frames: usize) -> Result<Self> {
        let writer = Writer::Waiting(AtomicFile::create(out).with_context(|| unwritten(out))?);
        Ok(Film { out: out.to_owned(), kind, frames, done: 0, size: (0, 0), writer })
    }

    /// The next frame, shown for `hundredths` of a second.
    ///
    /// # Errors
    /// When it is of another size than those before, one too many, too large for a GIF, or cannot be written.
    pub fn push(&mut self, picture: &Picture, hundredths: u16) -> Result<()> {
        let size = (picture.width, picture.height);
        if self.done == 0 {
            self.size = size;
        }
        ensure!(
            self.size == size,
            "frame {} of {} has {}x{} pixels, those before it {}x{}: they must be of one size",
            self.done + 1,
            self.out.display(),
            size.0,
            size.1,
            self.size.0,
            self.size.1
        );
        ensure!(self.done < self.frames, "{} is made for {} frames, there are more", self.out.display(), self.frames);
        self.done += 1;
        self.write(picture, hundredths).with_context(|| unwritten(&self.out))
    }

    fn write(&mut self, picture: &Picture, hundredths: u16) -> Result<()> {
        self.writer = match std::mem::replace(&mut self.writer, Writer::Broken) {
            Writer::Waiting(file) => self.begin(file)?,
            begun => begun,
        };
        match &mut self.writer {
            Writer::Gif(encoder) => encoder.write_frame(&gif::Frame { delay: hundredths, ..frame(picture) })?,
            Writer::Apng(writer, _) => {
                writer.set_frame_delay(hundredths, 100)?;
                writer.write_image_data(&picture.rgb)?;
            }
            Writer::Waiting(_) | Writer::Broken => {}
        }
        Ok(())
    }

    fn begin(&self, file: AtomicFile) -> Result<Writer> {
        let (width, height) = self.size;
        ensure!(width.max(height) <= WIDEST, "{width}x{height} pixels, and no side may have more than {WIDEST}");
        Ok(match self.kind {
            Kind::Gif => {
                let mut encoder = gif::Encoder::new(file, width as u16, height as u16, &[])?;
                encoder.set_repeat(gif::Repeat::Infinite)?;
                Writer::Gif(Box::new(encoder))
            }
            Kind::Apng => {
                let file = Shared(Rc::new(RefCell::new(file)));
                let mut encoder = png::Encoder::new(file.clone(), width as u32, height as u32);
                encoder.set_color(png::ColorType::Rgb);
                encoder.set_animated(u32::try_from(self.frames)?, 0)?;
                Writer::Apng(Box::new(encoder.write_header()?), file)
            }
        })
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// When frames are missing, or the disk refuses.
    pub fn finish(self) -> Result<()> {
        let (done, frames, out) = (self.done, self.frames, &self.out);
        ensure!(done == frames && done > 0, "{} has {done} of {frames} frames", out.display());
        let end = || -> Result<()> {
            match self.writer {
                Writer::Gif(encoder) => encoder.into_inner()?.commit_unsynced()?,
                Writer::Apng(writer, file) => {
                    writer.finish()?;
                    let file = Rc::into_inner(file.0).context("its encoder has not ended")?;
                    file.into_inner().commit_unsynced()?;
                }
                Writer::Waiting(_) | Writer::Broken => {}
            }
            Ok(())
        };
        end().with_context(|| unwritten(out))
    }
}

fn unwritten(out: &Path) -> String {
    format!("the animation {} could not be written", out.display())
}

/// A picture in at most 256 colours.
fn frame(picture: &Picture) -> gif::Frame<'static> {
    let mut rgb = picture.rgb.clone();
    // The greys of images and the colour between them are one too many for a palette, and choosing among them would dither:
    // every second grey is enough for the eye.
    for pixel in rgb.chunks_exact_mut(3).filter(|p| p[0] == p[1] && p[1] == p[2]) {
        pixel.fill((u16::from(pixel[0] >> 1) * 255 / 127) as u8);
    }
    gif::Frame::from_rgb_speed(picture.width as u16, picture.height as u16, &rgb, SPEED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::AnimationDecoder;
    use image::codecs::gif::GifDecoder;
    use image::codecs::png::PngDecoder;
    use std::fs::File;
    use std::io::BufReader;

    /// Frame i of a film: greys of every level, which fill a palette, and one colour more, which says which frame it is.
    fn picture(i: u8) -> Picture {
        let greys = (0..=255u8).flat_map(|v| [v; 3]);
        let rgb = [40, 44, 200 + i].repeat(32).into_iter().chain(greys).collect();
        Picture { width: 32, height: 9, rgb }
    }

    fn decoded(path: &Path, kind: Kind) -> Vec<image::Frame> {
        let file = BufReader::new(File::open(path).unwrap());
        let frames = match kind {
            Kind::Gif => GifDecoder::new(file).unwrap().into_frames(),
            Kind::Apng => PngDecoder::new(file).unwrap().apng().unwrap().into_frames(),
        };
        frames.collect_frames().unwrap()
    }

    #[test]
    fn a_film_reads_back_frame_by_frame() {
        let dir = tempfile::tempdir().unwrap();
        for (name, kind, off) in [("a.gif", Kind::Gif, 1), ("a.APNG", Kind::Apng, 0)] {
            let out = dir.path().join(name);
            assert_eq!(Kind::of(&out), Some(kind));
            let mut film = Film::start(&out, kind, 3).unwrap();
            for i in 0..3 {
                film.push(&picture(i), if i == 2 { 150 } else { 8 }).unwrap();
            }
            assert!(!out.exists(), "nothing half-written is ever seen");
            film.finish().unwrap();
            let frames = decoded(&out, kind);
            let delays: Vec<_> = frames.iter().map(|f| f.delay().numer_denom_ms()).collect();
            assert_eq!(delays.iter().map(|d| d.0 / d.1).collect::<Vec<_>>(), [80, 80, 1500]);
            for (i, frame) in frames.iter().enumerate() {
                assert_eq!(frame.buffer().dimensions(), (32, 9));
                let want = picture(i as u8).rgb;
                for (got, want) in frame.buffer().pixels().zip(want.chunks_exact(3)) {
                    let near = got.0.iter().zip(want).all(|(g, w)| g.abs_diff(*w) <= off);
                    assert!(near, "{kind:?}, frame {i}: {got:?}, not {want:?}");
                }
                assert_eq!(frame.buffer().get_pixel(0, 0).0, [40, 44, 200 + i as u8, 255], "other colours are exact");
            }
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        let bytes = std::fs::read(dir.path().join("a.gif")).unwrap();
        assert!(bytes.windows(16).any(|w| w == b"NETSCAPE2.0\x03\x01\x00\x00\x00"), "it repeats for ever");
        assert_eq!(Kind::of(Path::new("a.png")), None);
    }

    #[test]
    fn a_film_that_is_not_whole_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for kind in [Kind::Gif, Kind::Apng] {
            let start = |frames| Film::start(&dir.path().join("a"), kind, frames).unwrap();
            let mut film = start(2);
            film.push(&picture(0), 8).unwrap();
            assert!(film.finish().unwrap_err().to_string().contains("1 of 2 frames"));
            assert!(start(0).finish().is_err());
            let mut film = start(1);
            film.push(&picture(0), 8).unwrap();
            assert!(film.push(&picture(1), 8).unwrap_err().to_string().contains("made for 1"));
            let small = Picture { width: 1, height: 1, rgb: vec![0; 3] };
            assert!(film.push(&small, 8).unwrap_err().to_string().contains("1x1 pixels, those before it 32x9"));
            let wide = Picture { width: 70_000, height: 1, rgb: vec![0; 210_000] };
            assert!(format!("{:#}", start(1).push(&wide, 8).unwrap_err()).contains("70000x1"));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(Film::start(Path::new("/nonexistent/a.gif"), Kind::Gif, 1).is_err());
    }
}
