//! Animated GIFs, among them training as a sequence of its sample grids.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use gif::EncodingError;

use crate::base::atomic_file::AtomicFile;
use crate::pictures::grid::Picture;

/// Speed of reducing a frame to 256 colours, 1 (best) to 30 (fastest). At 10 a frame takes a tenth of the time that it takes at
/// 1, and looks the same.
const SPEED: i32 = 10;
/// The largest number of training frames: longer animations are not watched to the end.
const MAX_FRAMES: usize = 100;
/// Total duration in hundredths of a second of all training frames but the last, within [`FRAME_DELAYS`].
const DURATION: usize = 800;
/// Shortest and longest delay of a training frame in hundredths of a second.
const FRAME_DELAYS: (usize, usize) = (10, 50);
/// Delay of the last training frame.
const LAST_DELAY: u16 = 250;
/// Training frames with a longer side than this many pixels are scaled down to it.
const MAX_SIDE: u32 = 720;

/// Whether the file extension is `.gif`.
pub fn is_gif(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gif"))
}

/// Writes frames with their delays in hundredths of a second as a GIF that repeats forever. The file appears when it is complete.
///
/// # Errors
/// A frame that is an error, differs in size from the first, or has a side above 65535 pixels; no frames; a failed write.
pub fn write_gif(out: &Path, frames: impl IntoIterator<Item = Result<(Picture, u16)>>) -> Result<()> {
    // Errors of the file name it.
    let unwritten = |e| match e {
        EncodingError::Io(e) => anyhow::Error::from(e),
        e => anyhow!("the animation {} could not be written: {e}", out.display()),
    };
    let file = AtomicFile::create(out)?;
    let mut frames = frames.into_iter();
    let first = frames.next().with_context(|| format!("{} has no frames", out.display()))??;
    let (w, h) = first.0.0.dimensions();
    let too_large = || {
        let (out, most) = (out.display(), u16::MAX);
        format!("the animation {out} could not be written: {w}x{h} pixels, and a GIF has at most {most} a side")
    };
    let [gif_w, gif_h] = [w, h].map(|side| u16::try_from(side).with_context(too_large));
    let mut encoder = gif::Encoder::new(file, gif_w?, gif_h?, &[]).map_err(unwritten)?;
    encoder.set_repeat(gif::Repeat::Infinite).map_err(unwritten)?;
    for (i, frame) in std::iter::once(Ok(first)).chain(frames).enumerate() {
        let (picture, delay) = frame?;
        check_size(&picture, (w, h), || format!("frame {} of {}", i + 1, out.display()))?;
        encoder.write_frame(&gif::Frame { delay, ..frame_of(picture) }).map_err(unwritten)?;
    }
    Ok(encoder.into_inner()?.commit_unsynced()?)
}

/// Checks that a picture, called `name` in the error, has as many pixels across and down as those before it.
fn check_size(picture: &Picture, (w, h): (u32, u32), name: impl Fn() -> String) -> Result<()> {
    let (found_w, found_h) = picture.0.dimensions();
    ensure!(
        (found_w, found_h) == (w, h),
        "{} has {found_w}x{found_h} pixels, those before it {w}x{h}: all frames of an animation must have one size",
        name()
    );
    Ok(())
}

/// A picture in at most 256 colours.
fn frame_of(Picture(mut image): Picture) -> gif::Frame<'static> {
    // 256 greys and the background of a grid are one colour too many, and would be dithered: half of the greys are enough.
    for pixel in image.pixels_mut().map(|p| &mut p.0).filter(|p| p[0] == p[1] && p[1] == p[2]) {
        *pixel = [(u16::from(pixel[0] >> 1) * 255 / 127) as u8; 3];
    }
    gif::Frame::from_rgb_speed(image.width() as u16, image.height() as u16, &image, SPEED)
}

/// Writes the pictures `epoch-*.png` and `step-*.png` of the folder `samples`, in the order of their steps, as an animation to
/// `out`. An epoch has `per_epoch` steps. False when there are fewer than two pictures, and nothing was written.
///
/// # Errors
/// A picture that cannot be read; as [`write_gif`].
pub fn draw_training(samples: &Path, per_epoch: u64, out: &Path) -> Result<bool> {
    let pictures = sample_pictures(samples, per_epoch)?;
    if pictures.len() < 2 {
        return Ok(false);
    }
    let (last, frames) = (pictures.len() - 1, pictures.len().min(MAX_FRAMES));
    let delay = (DURATION / frames).clamp(FRAME_DELAYS.0, FRAME_DELAYS.1) as u16;
    let mut size = None;
    let frame = |i: usize| {
        // Evenly spaced from the first picture to the last.
        let (_, path) = &pictures[i * last / (frames - 1)];
        let picture = read_picture(path)?;
        let size = *size.get_or_insert(picture.0.dimensions());
        check_size(&picture, size, || format!("the picture {}", path.display()))?;
        Ok((picture, if i + 1 == frames { LAST_DELAY } else { delay }))
    };
    write_gif(out, (0..frames).map(frame))?;
    Ok(true)
}

/// The sample pictures and their steps, in the order of the steps.
fn sample_pictures(samples: &Path, per_epoch: u64) -> Result<Vec<(u64, PathBuf)>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(samples).with_context(|| format!("{} cannot be read", samples.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = |prefix: &str| name.strip_prefix(prefix)?.strip_suffix(".png")?.parse::<u64>().ok();
        let step = number("epoch-").map(|e| e.saturating_mul(per_epoch)).or_else(|| number("step-"));
        all.extend(step.map(|step| (step, path.clone())));
    }
    all.sort();
    Ok(all)
}

fn read_picture(path: &Path) -> Result<Picture> {
    let image = image::open(path).with_context(|| format!("the picture {} cannot be read", path.display()))?;
    let large = image.width().max(image.height()) > MAX_SIDE;
    Ok(Picture(if large { image.thumbnail(MAX_SIDE, MAX_SIDE) } else { image }.into_rgb8()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::gif::GifDecoder;
    use image::{AnimationDecoder, RgbImage};
    use std::fs::File;
    use std::io::BufReader;

    /// Frame i of an animation: greys of every level, which fill a palette, and one colour more, which says which frame it is.
    fn picture(i: u8) -> Picture {
        let greys = (0..=255u8).flat_map(|v| [v; 3]);
        let rgb = [40, 44, 200 + i].repeat(32).into_iter().chain(greys).collect();
        Picture(RgbImage::from_raw(32, 9, rgb).unwrap())
    }

    fn decoded(path: &Path) -> Vec<image::Frame> {
        let file = BufReader::new(File::open(path).unwrap());
        GifDecoder::new(file).unwrap().into_frames().collect_frames().unwrap()
    }

    #[test]
    fn an_animation_reads_back_frame_by_frame() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a.GIF");
        assert!(is_gif(&out) && !is_gif(Path::new("a.png")) && !is_gif(Path::new("a.apng")));
        let frames = (0..3).map(|i| {
            assert!(!out.exists(), "nothing half-written is ever seen");
            Ok((picture(i), if i == 2 { 150 } else { 8 }))
        });
        write_gif(&out, frames).unwrap();
        let frames = decoded(&out);
        let delays: Vec<_> = frames.iter().map(|f| f.delay().numer_denom_ms()).collect();
        assert_eq!(delays.iter().map(|d| d.0 / d.1).collect::<Vec<_>>(), [80, 80, 1500]);
        for (i, frame) in frames.iter().enumerate() {
            assert_eq!(frame.buffer().dimensions(), (32, 9));
            let want = picture(i as u8).0;
            for (got, want) in frame.buffer().pixels().zip(want.pixels()) {
                let near = got.0.iter().zip(&want.0).all(|(g, w)| g.abs_diff(*w) <= 1);
                assert!(near, "frame {i}: {got:?}, not {want:?}");
            }
            assert_eq!(frame.buffer().get_pixel(0, 0).0, [40, 44, 200 + i as u8, 255], "other colours are exact");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let bytes = std::fs::read(&out).unwrap();
        assert!(bytes.windows(16).any(|w| w == b"NETSCAPE2.0\x03\x01\x00\x00\x00"), "it repeats for ever");
    }

    #[test]
    fn an_animation_that_is_not_whole_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |frames: Vec<Result<Picture>>| {
            let frames = frames.into_iter().map(|f| Ok((f?, 8)));
            format!("{:#}", write_gif(&dir.path().join("a.gif"), frames).unwrap_err())
        };
        assert!(refused(vec![]).contains("no frames"));
        assert!(refused(vec![Ok(picture(0)), Err(anyhow::anyhow!("lost"))]).contains("lost"));
        let small = Picture(RgbImage::new(1, 1));
        assert!(refused(vec![Ok(picture(0)), Ok(small)]).contains("1x1 pixels, those before it 32x9"));
        let wide = Picture(RgbImage::new(70_000, 1));
        assert!(refused(vec![Ok(wide)]).contains("70000x1"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(write_gif(Path::new("/nonexistent/a.gif"), [Ok((picture(0), 8))]).is_err());
    }

    fn save(dir: &Path, name: &str, level: u8, (width, height): (u32, u32)) {
        Picture(RgbImage::from_pixel(width, height, image::Rgb([level; 3]))).save(&dir.join(name)).unwrap();
    }

    /// The level of each frame's first pixel, its size, and how long it is shown in ms.
    fn frames(path: &Path) -> Vec<(u8, (u32, u32), u32)> {
        let frames = decoded(path);
        let ms = |f: &image::Frame| f.delay().numer_denom_ms().0 / f.delay().numer_denom_ms().1;
        frames.iter().map(|f| (f.buffer().get_pixel(0, 0).0[0], f.buffer().dimensions(), ms(f))).collect()
    }

    #[test]
    fn pictures_follow_each_other_by_step_and_the_last_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        let out = d.join("progress.gif");
        save(d, "epoch-0010.png", 255, (40, 20));
        assert!(!draw_training(d, 5, &out).unwrap() && !out.exists(), "one picture does not move");
        // Step 12 lies between epochs 2 (step 10) and 10 (step 50); the rest is not of the run.
        save(d, "step-00000012.png", 102, (40, 20));
        save(d, "epoch-0002.png", 0, (40, 20));
        save(d, "sample-0.png", 9, (1, 1));
        std::fs::write(d.join("epoch-0003.png.part"), "half").unwrap();
        assert!(draw_training(d, 5, &out).unwrap());
        let all = frames(&out);
        assert_eq!(all.iter().map(|f| f.2).collect::<Vec<_>>(), [500, 500, 2500]);
        let near = all.iter().zip([0u8, 102, 255]).all(|(f, want)| f.0.abs_diff(want) <= 1 && f.1 == (40, 20));
        assert!(near, "{all:?}");
        save(d, "epoch-0011.png", 0, (41, 20));
        let e = format!("{:#}", draw_training(d, 5, &out).unwrap_err());
        assert!(e.contains("epoch-0011.png") && e.contains("41x20"), "{e}");
        std::fs::write(d.join("epoch-0011.png"), "no picture").unwrap();
        assert!(format!("{:#}", draw_training(d, 5, &out).unwrap_err()).contains("epoch-0011.png"));
        assert_eq!(frames(&out), all, "the animation that was there stays");
    }

    #[test]
    fn long_runs_are_cut_to_a_hundred_frames_and_large_pictures_brought_down() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..=250u32 {
            save(dir.path(), &format!("epoch-{i:04}.png"), i as u8, (2, 2));
        }
        let out = dir.path().join("progress.gif");
        assert!(draw_training(dir.path(), 1, &out).unwrap());
        let all = frames(&out);
        assert_eq!((all.len(), all[0].0, all[0].2), (100, 0, 100));
        assert!(all[99].0.abs_diff(250) <= 1 && all.windows(2).all(|w| w[0].0 <= w[1].0));
        let dir = tempfile::tempdir().unwrap();
        for i in 0..2 {
            save(dir.path(), &format!("epoch-{i:04}.png"), 50, (2000, 1000));
        }
        let out = dir.path().join("progress.gif");
        assert!(draw_training(dir.path(), 1, &out).unwrap());
        assert_eq!(frames(&out)[0].1, (720, 360));
    }
}
