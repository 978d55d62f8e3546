//! Colours: from embedded profiles and inks to sRGB, transparency onto a background, grey.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, anyhow};
use moxcms::{ColorProfile, DataColorSpace, Layout, Transform8BitExecutor, TransformOptions};

use super::{Colours, Pixels, guarded};

/// Profiles whose conversion is kept; the pictures of a set have few.
const KEPT: usize = 8;
/// The largest colour profile in bytes.
pub const MAX_PROFILE: u64 = 8 << 20;
/// Pixels that are converted at a time.
const STRETCH: usize = 4096;

static IGNORED: AtomicU64 = AtomicU64::new(0);

/// How many pictures were read as sRGB because their colour profile is damaged or does not fit them.
pub fn ignored_profiles() -> u64 {
    IGNORED.load(Ordering::Relaxed)
}

/// How colours of a profile become sRGB.
#[derive(Clone)]
enum Conversion {
    /// They are sRGB, within one level.
    Same,
    Grey(Arc<[u8; 256]>),
    Colour(Arc<Transform8BitExecutor>),
}

/// Converts pixels to sRGB: by their profile, or without one CMYK as Pillow does and others not at all.
pub fn to_srgb(pixels: Pixels, profile: Option<&[u8]>) -> Pixels {
    let conversion = profile.and_then(|profile| {
        let found = conversion(profile, pixels.colours);
        if found.is_none() {
            IGNORED.fetch_add(1, Ordering::Relaxed);
        }
        found
    });
    let mut pixels = pixels;
    match conversion {
        Some(Conversion::Grey(table)) => {
            for pixel in pixels.data.chunks_exact_mut(pixels.colours.channels()) {
                pixel[0] = table[usize::from(pixel[0])];
            }
            pixels
        }
        Some(Conversion::Colour(transform)) => coloured(pixels, &*transform),
        None if pixels.colours == Colours::Cmyk => without_profile(pixels),
        None | Some(Conversion::Same) => pixels,
    }
}

/// The conversion of a profile; none where it is damaged or is not one of these colours.
fn conversion(profile: &[u8], colours: Colours) -> Option<Conversion> {
    type Known = Vec<(Vec<u8>, Colours, Option<Conversion>)>;
    static KNOWN: Mutex<Known> = Mutex::new(Vec::new());
    if let Some((.., known)) =
        KNOWN.lock().unwrap_or_else(PoisonError::into_inner).iter().find(|(p, c, _)| p == profile && *c == colours)
    {
        return known.clone();
    }
    let made = guarded(|| make(profile, colours)).ok();
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if known.len() >= KEPT {
        known.remove(0);
    }
    known.push((profile.to_vec(), colours, made.clone()));
    made
}

fn make(profile: &[u8], colours: Colours) -> Result<Conversion> {
    let (space, from, to) = match colours {
        Colours::Grey | Colours::GreyAlpha => (DataColorSpace::Gray, Layout::Gray, Layout::Rgb),
        Colours::Rgb => (DataColorSpace::Rgb, Layout::Rgb, Layout::Rgb),
        Colours::Rgba => (DataColorSpace::Rgb, Layout::Rgba, Layout::Rgba),
        Colours::Cmyk => (DataColorSpace::Cmyk, Layout::Rgba, Layout::Rgb),
    };
    let wrong = |e: &dyn std::fmt::Debug| anyhow!("{e:?}");
    let profile = ColorProfile::new_from_slice(profile).map_err(|e| wrong(&e))?;
    if profile.color_space != space {
        return Err(wrong(&profile.color_space));
    }
    let srgb = ColorProfile::new_srgb();
    let options = TransformOptions::default();
    let transform = profile.create_transform_8bit(from, &srgb, to, options).map_err(|e| wrong(&e))?;
    if colours == Colours::Cmyk {
        return Ok(Conversion::Colour(transform));
    }
    // A few colours show whether it is sRGB already; of grey there are no more.
    let levels: Vec<u8> = if from == Layout::Gray { (0..=255).collect() } else { (0..=255).step_by(15).collect() };
    let before: Vec<u8> = match from {
        Layout::Gray => levels,
        _ => {
            let each = |f: &dyn Fn(u8) -> Vec<u8>| levels.iter().flat_map(|v| f(*v)).collect::<Vec<u8>>();
            let alpha = if from == Layout::Rgba { &[255][..] } else { &[] };
            each(&|r| each(&|g| each(&|b| [&[r, g, b], alpha].concat())))
        }
    };
    let channels = if to == Layout::Rgba { 4 } else { 3 };
    let mut after = vec![0; before.len() / from.channels() * channels];
    transform.transform(&before, &mut after).map_err(|e| wrong(&e))?;
    let near = |(a, b): (&u8, &u8)| a.abs_diff(*b) <= 1;
    if from == Layout::Gray {
        let mut table = [0; 256];
        after.chunks_exact(3).zip(&mut table).for_each(|(rgb, to)| *to = rgb[1]);
        let same = before.iter().zip(&table).all(near);
        return Ok(if same { Conversion::Same } else { Conversion::Grey(Arc::new(table)) });
    }
    Ok(if before.iter().zip(&after).all(near) { Conversion::Same } else { Conversion::Colour(transform) })
}

/// Converts RGB, RGBA or CMYK.
fn coloured(mut pixels: Pixels, transform: &Transform8BitExecutor) -> Pixels {
    let from = pixels.colours.channels();
    let (colours, to) = if pixels.colours == Colours::Cmyk { (Colours::Rgb, 3) } else { (pixels.colours, from) };
    let count = pixels.width * pixels.height;
    let (mut stretch, mut done) = (vec![0; STRETCH * from], 0);
    // In place: what is written never passes what was read.
    while done < count {
        let n = STRETCH.min(count - done);
        let before = &mut stretch[..n * from];
        before.copy_from_slice(&pixels.data[done * from..][..n * from]);
        if pixels.colours == Colours::Cmyk {
            before.iter_mut().for_each(|v| *v = 255 - *v);
        }
        let after = &mut pixels.data[done * to..][..n * to];
        if guarded(|| transform.transform(before, after).map_err(|e| anyhow!("{e:?}"))).is_err() {
            IGNORED.fetch_add(1, Ordering::Relaxed);
        }
        done += n;
    }
    pixels.data.truncate(count * to);
    Pixels { colours, ..pixels }
}

/// CMYK, where 255 is no ink, to RGB: each ink takes its part of what black leaves, as Pillow does it.
fn without_profile(mut pixels: Pixels) -> Pixels {
    for at in 0..pixels.width * pixels.height {
        let [c, m, y, k] = [0, 1, 2, 3].map(|i| pixels.data[4 * at + i]);
        for (i, ink) in [c, m, y].into_iter().enumerate() {
            pixels.data[3 * at + i] = scaled(ink, k);
        }
    }
    pixels.data.truncate(3 * pixels.width * pixels.height);
    Pixels { colours: Colours::Rgb, ..pixels }
}

/// a·b/255, rounded.
fn scaled(a: u8, b: u8) -> u8 {
    ((u16::from(a) * u16::from(b) + 127) / 255) as u8
}

/// Lays pixels over a background and so removes their transparency.
pub fn over(mut pixels: Pixels, background: [u8; 3]) -> Pixels {
    let from = pixels.colours.channels();
    let grey = pixels.colours == Colours::GreyAlpha;
    // A grey picture stays grey on a grey background only.
    if grey && background != [background[0]; 3] {
        let rgba = pixels.data.chunks_exact(2).flat_map(|p| [p[0], p[0], p[0], p[1]]).collect();
        return over(Pixels { colours: Colours::Rgba, data: rgba, ..pixels }, background);
    }
    let to = from - 1;
    for at in 0..pixels.width * pixels.height {
        let alpha = u16::from(pixels.data[from * at + to]);
        for (i, behind) in background.into_iter().enumerate().take(to) {
            let both = u16::from(pixels.data[from * at + i]) * alpha + u16::from(behind) * (255 - alpha);
            pixels.data[to * at + i] = ((both + 127) / 255) as u8;
        }
    }
    pixels.data.truncate(to * pixels.width * pixels.height);
    Pixels { colours: if grey { Colours::Grey } else { Colours::Rgb }, ..pixels }
}

/// RGB to grey by the weights of Rec. 709.
pub fn to_grey(mut pixels: Pixels) -> Pixels {
    if pixels.colours == Colours::Rgb {
        for at in 0..pixels.width * pixels.height {
            let [r, g, b] = [0, 1, 2].map(|i| pixels.data[3 * at + i]);
            pixels.data[at] = grey([r, g, b]);
        }
        pixels.data.truncate(pixels.width * pixels.height);
        pixels.colours = Colours::Grey;
    }
    pixels
}

/// The grey of a colour by the weights of Rec. 709.
pub fn grey([r, g, b]: [u8; 3]) -> u8 {
    ((2126 * u32::from(r) + 7152 * u32::from(g) + 722 * u32::from(b)) / 10_000) as u8
}
