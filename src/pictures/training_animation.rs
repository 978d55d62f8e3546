//! Training as an animation, from the sample pictures that a run has drawn.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::pictures::animation::{Film, Kind};
use crate::pictures::grid::Picture;

/// Frames at the most: longer films are not watched to the end.
const MOST: usize = 100;
/// Seconds that all frames but the last take together, as far as each is seen long enough and no longer than it takes to look.
const LENGTH_S: usize = 8;
/// Hundredths of a second for a frame at the least and at the most, and for the last one.
const SHOWN: (usize, usize, u16) = (10, 50, 250);
/// Pixels of a frame's longer side at the most; larger pictures are brought to it.
const LARGEST: usize = 720;

/// Draws the pictures `epoch-*.png` and `step-*.png` of folder `samples`, first to last, as an animation at `out`; epochs have
/// `per_epoch` steps. True when there is one: a single picture does not move.
///
/// # Errors
/// A picture that cannot be read; an animation that cannot be written.
pub fn draw(samples: &Path, per_epoch: u64, out: &Path) -> Result<bool> {
    let pictures = pictures(samples, per_epoch)?;
    if pictures.len() < 2 {
        return Ok(false);
    }
    let last = pictures.len() - 1;
    let frames = pictures.len().min(MOST);
    let shown = (100 * LENGTH_S / frames).clamp(SHOWN.0, SHOWN.1) as u16;
    let mut film = Film::start(out, Kind::of(out).unwrap_or(Kind::Gif), frames)?;
    for i in 0..frames {
        // The first and the last of them, and evenly between.
        let path = &pictures[i * last / (frames - 1)];
        film.push(&read(path)?, if i + 1 == frames { SHOWN.2 } else { shown })
            .with_context(|| format!("{} does not fit the pictures before it", path.display()))?;
    }
    film.finish()?;
    Ok(true)
}

/// The pictures in the order of their steps.
fn pictures(samples: &Path, per_epoch: u64) -> Result<Vec<PathBuf>> {
    let mut all: Vec<(u64, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(samples).with_context(|| format!("{} cannot be read", samples.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number = |prefix: &str| name.strip_prefix(prefix)?.strip_suffix(".png")?.parse::<u64>().ok();
        let step = number("epoch-").map(|e| e.saturating_mul(per_epoch)).or_else(|| number("step-"));
        all.extend(step.map(|step| (step, path)));
    }
    all.sort();
    Ok(all.into_iter().map(|(_, path)| path).collect())
}

fn read(path: &Path) -> Result<Picture> {
    let image = image::open(path).with_context(|| format!("the picture {} cannot be read", path.display()))?;
    let most = LARGEST as u32;
    let image = if image.width().max(image.height()) > most { image.thumbnail(most, most) } else { image };
    let image = image.into_rgb8();
    Ok(Picture { width: image.width() as usize, height: image.height() as usize, rgb: image.into_raw() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::AnimationDecoder;
    use image::codecs::gif::GifDecoder;

    fn save(dir: &Path, name: &str, level: u8, (width, height): (usize, usize)) {
        Picture { width, height, rgb: vec![level; width * height * 3] }.save(&dir.join(name)).unwrap();
    }

    /// The level of each frame's first pixel, its size, and how long it is shown in ms.
    fn frames(path: &Path) -> Vec<(u8, (u32, u32), u32)> {
        let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
        let frames = GifDecoder::new(file).unwrap().into_frames().collect_frames().unwrap();
        let ms = |f: &image::Frame| f.delay().numer_denom_ms().0 / f.delay().numer_denom_ms().1;
        frames.iter().map(|f| (f.buffer().get_pixel(0, 0).0[0], f.buffer().dimensions(), ms(f))).collect()
    }

    #[test]
    fn pictures_follow_each_other_by_step_and_the_last_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        let out = d.join("progress.gif");
        save(d, "epoch-0010.png", 255, (40, 20));
        assert!(!draw(d, 5, &out).unwrap() && !out.exists(), "one picture does not move");
        // Step 12 lies between epochs 2 (step 10) and 10 (step 50); the rest is not of the run.
        save(d, "step-00000012.png", 102, (40, 20));
        save(d, "epoch-0002.png", 0, (40, 20));
        save(d, "sample-0.png", 9, (1, 1));
        std::fs::write(d.join("epoch-0003.png.part"), "half").unwrap();
        assert!(draw(d, 5, &out).unwrap());
        let all = frames(&out);
        assert_eq!(all.iter().map(|f| f.2).collect::<Vec<_>>(), [500, 500, 2500]);
        let near = all.iter().zip([0u8, 102, 255]).all(|(f, want)| f.0.abs_diff(want) <= 1 && f.1 == (40, 20));
        assert!(near, "{all:?}");
        save(d, "epoch-0011.png", 0, (41, 20));
        let e = format!("{:#}", draw(d, 5, &out).unwrap_err());
        assert!(e.contains("epoch-0011.png") && e.contains("41x20"), "{e}");
        std::fs::write(d.join("epoch-0011.png"), "no picture").unwrap();
        assert!(format!("{:#}", draw(d, 5, &out).unwrap_err()).contains("epoch-0011.png"));
        assert_eq!(frames(&out), all, "the animation that was there stays");
    }

    #[test]
    fn long_runs_are_cut_to_a_hundred_frames_and_large_pictures_brought_down() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..=250u32 {
            save(dir.path(), &format!("epoch-{i:04}.png"), i as u8, (2, 2));
        }
        let out = dir.path().join("progress.gif");
        assert!(draw(dir.path(), 1, &out).unwrap());
        let all = frames(&out);
        assert_eq!((all.len(), all[0].0, all[0].2), (100, 0, 100));
        assert!(all[99].0.abs_diff(250) <= 1 && all.windows(2).all(|w| w[0].0 <= w[1].0));
        let dir = tempfile::tempdir().unwrap();
        for i in 0..2 {
            save(dir.path(), &format!("epoch-{i:04}.png"), 50, (2000, 1000));
        }
        let out = dir.path().join("progress.gif");
        assert!(draw(dir.path(), 1, &out).unwrap());
        assert_eq!(frames(&out)[0].1, (720, 360));
    }
}
