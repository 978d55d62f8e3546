//! From the size of a picture to the size that is wanted, in the same steps as Pillow: across, rounded to 8 bits, then down.
//!
//! Of our own, because crates that do it faster (`fast_image_resize` 6.1) differ from Pillow by up to 8 levels with Lanczos and by
//! 15 with a box.

use std::f64::consts::PI;
use std::ops::Range;

use clap::ValueEnum;

use super::Pixels;

/// The filter of a resize. When a picture shrinks, all but `nearest` widen with the ratio and so average over all pixels, as
/// Pillow's do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Filter {
    /// Windowed sinc over three lobes: the sharpest.
    #[default]
    Lanczos,
    /// Cubic of Catmull and Rom.
    Bicubic,
    /// Triangle: softer, and never beyond the values of the picture.
    Bilinear,
    /// The average of what a pixel covers.
    Box,
    /// The pixel at the middle, for drawings of few pixels.
    Nearest,
}

impl Filter {
    /// Its value at `x` pixels of the coarser of both pictures, and from where on it is 0.
    fn kernel(self) -> (fn(f64) -> f64, f64) {
        match self {
            Filter::Lanczos => (|x| if x.abs() < 3.0 { sinc(x) * sinc(x / 3.0) } else { 0.0 }, 3.0),
            Filter::Bicubic => (
                |x| match x.abs() {
                    x if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
                    x if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
                    _ => 0.0,
                },
                2.0,
            ),
            Filter::Bilinear => (|x| (1.0 - x.abs()).max(0.0), 1.0),
            Filter::Box | Filter::Nearest => (|x| if x > -0.5 && x <= 0.5 { 1.0 } else { 0.0 }, 0.5),
        }
    }
}

/// How a picture of another aspect ratio is brought to the size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// Scaled to cover it; what stands over on two sides is cut off.
    #[default]
    Crop,
    /// Scaled to lie in it, with the background around.
    Pad,
    /// Scaled in each direction by itself.
    Stretch,
}

/// What of a picture goes where.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Left, top, width and height in the picture, in parts of its width and height.
    from: [f64; 4],
    /// Left, top, width and height in the result, in pixels.
    pub to: [usize; 4],
    /// Pixels of the picture for one of the result, the smaller of both directions.
    pub ratio: f64,
}

impl Window {
    /// For a picture of `(w, h)` pixels and a result of `(w, h)`.
    pub fn new((width, height): (usize, usize), (w, h): (usize, usize), shape: Shape) -> Self {
        let (fw, fh) = (width as f64, height as f64);
        let (mut from, mut to) = ([0.0, 0.0, 1.0, 1.0], [0, 0, w, h]);
        // The picture is wider than the result, or higher; exact, so that the same ratio cuts nothing.
        let (wider, higher) = (width * h > height * w, width * h < height * w);
        match shape {
            Shape::Crop if wider => from[2] = (fh * w as f64 / h as f64) / fw,
            Shape::Crop if higher => from[3] = (fw * h as f64 / w as f64) / fh,
            Shape::Pad if wider => to[3] = ((w as f64 * fh / fw).round() as usize).clamp(1, h),
            Shape::Pad if higher => to[2] = ((h as f64 * fw / fh).round() as usize).clamp(1, w),
            _ => {}
        }
        (from[0], from[1]) = ((1.0 - from[2]) / 2.0, (1.0 - from[3]) / 2.0);
        (to[0], to[1]) = ((w - to[2]) / 2, (h - to[3]) / 2);
        let ratio = (from[2] * fw / to[2] as f64).min(from[3] * fh / to[3] as f64);
        Window { from, to, ratio }
    }

    /// For a picture that has its size already.
    pub fn whole((w, h): (usize, usize)) -> Self {
        Window { from: [0.0, 0.0, 1.0, 1.0], to: [0, 0, w, h], ratio: 1.0 }
    }

    /// For a picture that is turned by a quarter.
    pub fn turned(self) -> Self {
        let turn = |[x, y, w, h]: [f64; 4]| [y, x, h, w];
        let [x, y, w, h] = self.to;
        Window { from: turn(self.from), to: [y, x, h, w], ratio: self.ratio }
    }
}

/// Products that a processor adds up at once.
const LANES: usize = 16;

/// The weights of one direction.
struct Weights {
    /// For each pixel of the result the first of the picture that counts, and how many do.
    spans: Vec<(usize, usize)>,
    /// `most` weights for each pixel of the result, times 2^`bits`; a whole number of [`LANES`], the last ones 0.
    all: Vec<i16>,
    most: usize,
    bits: u32,
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) }
}

/// For each of `count` pixels that `from` to `from + length` of a line of `size` pixels becomes, the first pixel that counts, and the
/// weights of it and those after it, of the sum 1: those of Pillow.
pub fn taps(size: usize, from: f64, length: f64, count: usize, filter: Filter) -> Vec<(usize, Vec<f64>)> {
    let (kernel, support) = filter.kernel();
    let scale = length / count as f64;
    let wide = scale.max(1.0);
    (0..count)
        .map(|i| {
            let center = from + (i as f64 + 0.5) * scale;
            if filter == Filter::Nearest {
                return ((center as usize).min(size - 1), vec![1.0]);
            }
            let first = (center - support * wide + 0.5).max(0.0) as usize;
            let end = ((center + support * wide + 0.5) as usize).min(size);
            let weights: Vec<f64> = (first..end).map(|x| kernel((x as f64 - center + 0.5) / wide)).collect();
            let sum: f64 = weights.iter().sum();
            (first, weights.iter().map(|w| if sum == 0.0 { 0.0 } else { w / sum }).collect())
        })
        .collect()
}

impl Weights {
    /// For `from` to `from + length` of a line of `size` pixels, as `count` pixels.
    fn new(size: usize, from: f64, length: f64, count: usize, filter: Filter) -> Self {
        let lines = taps(size, from, length, count, filter);
        let most = lines.iter().map(|(_, weights)| weights.len()).max().unwrap_or(0).next_multiple_of(LANES).max(LANES);
        let largest = lines.iter().flat_map(|(_, weights)| weights).fold(0.0, |all: f64, w| all.max(w.abs()));
        // As many bits as 16 hold; and no sum of weights times pixels passes 2^30.
        let bits = (0..22).take_while(|bits| largest * f64::from(1u32 << bits) < 16_383.0).last().unwrap_or(0);
        let mut all = vec![0; most * count];
        for ((_, weights), to) in lines.iter().zip(all.chunks_mut(most)) {
            // What rounding leaves goes to the next weight, so that their sum stays 1.
            let mut left = 0.0;
            for (weight, to) in weights.iter().zip(to) {
                let exact = weight * f64::from(1u32 << bits) + left;
                *to = exact.round() as i16;
                left = exact - exact.round();
            }
        }
        Weights { spans: lines.into_iter().map(|(first, weights)| (first, weights.len())).collect(), all, most, bits }
    }

    /// The first and last pixel that count for anything, and one.
    fn range(&self) -> Range<usize> {
        let first = self.spans.iter().map(|span| span.0).min().unwrap_or(0);
        first..self.spans.iter().map(|(first, count)| first + count).max().unwrap_or(0)
    }

    fn of(&self, i: usize) -> (usize, &[i16]) {
        let (first, count) = self.spans[i];
        (first, &self.all[i * self.most..][..count])
    }

    fn rounded(&self, sum: i32) -> u8 {
        ((sum + (1 << self.bits >> 1)) >> self.bits).clamp(0, 255) as u8
    }
}

/// The window of a picture in the size that it has in the result. `span` is the picture's width and height in pixels of `pixels`,
/// which may be a little more than that: a whole number of blocks.
///
/// Colours of transparent pixels count by their alpha.
pub fn resize(mut pixels: Pixels, span: (f64, f64), window: &Window, filter: Filter) -> Pixels {
    let [.., w, h] = window.to;
    // What is a whole number but for rounding is one: then pixels are copied.
    let exact = |v: f64| if (v - v.round()).abs() < 1e-6 { v.round() } else { v };
    let [x, y, width, height] = window.from;
    let [x, y, width, height] = [x * span.0, y * span.1, width * span.0, height * span.1].map(exact);
    // Whether a direction is only cut, or not even that.
    let cut = |from: f64, length: f64, count: usize| from == from.round() && length == count as f64;
    let (cut_x, cut_y) = (cut(x, width, w), cut(y, height, h));
    if cut_x && cut_y && (pixels.width, pixels.height) == (w, h) {
        return pixels;
    }
    let by_alpha = pixels.colours.have_alpha() && filter != Filter::Nearest && !(cut_x && cut_y);
    if by_alpha {
        multiply(&mut pixels);
    }
    let down = Weights::new(pixels.height, y, height, h, if cut_y { Filter::Nearest } else { filter });
    let rows = down.range();
    let across = Weights::new(pixels.width, x, width, w, if cut_x { Filter::Nearest } else { filter });
    let mut narrow = scale_across(&pixels, rows.clone(), &across);
    std::mem::take(&mut pixels.data);
    if !cut_y || rows != (0..h) {
        narrow = scale_down(&narrow, w * pixels.colours.channels(), rows.start, &down);
    }
    let mut pixels = Pixels { width: w, height: h, colours: pixels.colours, data: narrow };
    if by_alpha {
        divide(&mut pixels);
    }
    pixels
}

for_this_processor! {
    /// These rows of a picture, scaled across.
    fn scale_across(pixels: &Pixels, rows: Range<usize>, weights: &Weights) -> Vec<u8> {
        let (channels, count) = (pixels.colours.channels(), weights.spans.len());
        let mut out = vec![0; rows.len() * count * channels];
        // The part of a row that counts, one channel of it: products of 16-bit numbers in a line are what processors add up fastest.
        let part = weights.range();
        let mut line = vec![0i16; part.len() + weights.most];
        let rows = pixels.data.chunks_exact(channels * pixels.width).take(rows.end).skip(rows.start);
        for (row, out) in rows.zip(out.chunks_exact_mut(count * channels)) {
            let row = &row[channels * part.start..channels * part.end];
            for channel in 0..channels {
                for (to, pixel) in line.iter_mut().zip(row.chunks_exact(channels)) {
                    *to = pixel[channel].into();
                }
                for (i, out) in out.chunks_exact_mut(channels).enumerate() {
                    let (first, taps) = weights.spans[i];
                    let values = line[first - part.start..].as_chunks::<LANES>().0;
                    let weights_of = weights.all[i * weights.most..][..weights.most].as_chunks::<LANES>().0;
                    let mut sum = 0i32;
                    for (v, w) in values.iter().zip(weights_of).take(taps.div_ceil(LANES)) {
                        for lane in 0..LANES {
                            sum += i32::from(v[lane]) * i32::from(w[lane]);
                        }
                    }
                    out[channel] = weights.rounded(sum);
                }
            }
        }
        out
    }
}

for_this_processor! {
    /// Rows of `width` bytes, of which the first is number `start`, scaled down the columns.
    fn scale_down(rows: &[u8], width: usize, start: usize, weights: &Weights) -> Vec<u8> {
        let mut out = vec![0; width * weights.spans.len()];
        let mut sums = vec![0i32; width];
        for (i, out) in out.chunks_exact_mut(width).enumerate() {
            let (first, of) = weights.of(i);
            sums.fill(0);
            for (row, weight) in rows.chunks_exact(width).skip(first - start).zip(of) {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += i32::from(i16::from(*value)) * i32::from(*weight);
                }
            }
            for (to, sum) in out.iter_mut().zip(&sums) {
                *to = weights.rounded(*sum);
            }
        }
        out
    }
}

/// Multiplies colours by their alpha.
fn multiply(pixels: &mut Pixels) {
    for pixel in pixels.data.chunks_exact_mut(pixels.colours.channels()) {
        if let Some((alpha, colours)) = pixel.split_last_mut() {
            colours.iter_mut().for_each(|v| *v = ((u16::from(*v) * u16::from(*alpha) + 127) / 255) as u8);
        }
    }
}

/// Divides colours by their alpha again.
fn divide(pixels: &mut Pixels) {
    for pixel in pixels.data.chunks_exact_mut(pixels.colours.channels()) {
        if let Some((alpha @ 1..=254, colours)) = pixel.split_last_mut() {
            colours.iter_mut().for_each(|v| *v = (u16::from(*v) * 255 / u16::from(*alpha)).min(255) as u8);
        }
    }
}
