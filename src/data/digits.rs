//! The built-in data set: 28x28 synthetic handwritten digits with known generative factors.
//!
//! A digit is a set of splines through fixed points. The factors jitter and transform the points, the splines are split into
//! short segments, and the segments are drawn as anti-aliased strokes. Image `i` is a function of (seed, stream, i) only, so the
//! result does not depend on the number of images or threads.

use rayon::prelude::*;

use super::images::Images;
use crate::base::seed::{Rng, Stream, seed_for};

/// Height and width of an image in pixels.
pub const SIDE: usize = 28;
/// Bytes of an image, [1,28,28].
pub const PIXELS: usize = SIDE * SIDE;
/// Number of classes: the digits 0 to 9.
pub const CLASSES: usize = 10;
/// Shapes of each digit (a 7 with or without a bar, an open or a closed 4, ...).
pub const STYLES: usize = 3;

/// Half the height of a digit's centre line at scale 1, in pixels.
const HALF_HEIGHT: f32 = 8.3;
/// Half the width of the anti-aliased edge of a stroke in pixels.
const SOFT: f32 = 0.6;

/// Points of a stroke in hundredths of the half height: x to the right, y down, both from the digit's middle.
type Stroke = &'static [[i8; 2]];
type Glyph = &'static [Stroke];

/// The strokes of every class and style. A spline interpolates the points of a stroke; corners are between strokes; a stroke
/// whose last point equals its first is a smooth loop. Equal points get equal jitter, so joined strokes stay joined.
#[rustfmt::skip] // a stroke per line reads as a drawing; a number per line does not
const GLYPHS: [[Glyph; STYLES]; CLASSES] = [
    [   // 0: oval; round; not quite closed at the top
        &[&[[4, -100], [-36, -74], [-54, 0], [-36, 74], [2, 100], [40, 72], [54, -2], [40, -74], [4, -100]]],
        &[&[[0, -96], [-48, -68], [-68, 0], [-46, 70], [2, 96], [50, 68], [68, 0], [48, -70], [0, -96]]],
        &[&[[24, -96], [-16, -94], [-50, -48], [-54, 18], [-28, 82], [10, 98], [46, 62], [56, -6], [42, -66]]],
    ],
    [   // 1: bare; with a flag; with a flag and a base
        &[&[[4, -100], [1, -30], [-2, 30], [-4, 100]]],
        &[&[[-34, -62], [-12, -78], [8, -100]], &[[8, -100], [7, -30], [5, 30], [4, 100]]],
        &[&[[-34, -64], [-12, -80], [6, -100]], &[[6, -100], [6, 0], [6, 98]], &[[-42, 100], [6, 98], [50, 97]]],
    ],
    [   // 2: flat base; looped; waved base
        &[&[[-50, -56], [-30, -90], [8, -100], [42, -78], [42, -34], [8, 24], [-54, 96]], &[[-54, 96], [2, 94], [60, 92]]],
        &[&[[-48, -66], [-20, -96], [20, -98], [46, -68], [36, -20], [8, 32], [-22, 82], [-48, 98], [-60, 74], [-40, 52], [-6, 70], [24, 92], [60, 76]]],
        &[&[[-52, -70], [-16, -99], [28, -90], [44, -50], [20, 6], [-20, 54], [-54, 92]], &[[-54, 92], [-24, 78], [14, 90], [38, 98], [62, 84]]],
    ],
    [   // 3: two bowls; flat top; a curl in the middle
        &[&[[-50, -74], [-14, -100], [30, -88], [38, -50], [-10, -10]], &[[-10, -10], [36, 8], [52, 48], [24, 90], [-18, 99], [-54, 76]]],
        &[&[[-46, -96], [0, -97], [46, -98]], &[[46, -98], [20, -58], [-8, -20]], &[[-8, -20], [34, -8], [52, 34], [34, 80], [-8, 99], [-54, 80]]],
        &[&[[-44, -82], [-8, -100], [34, -84], [34, -40], [4, -10], [-18, -2], [-8, 6], [30, 10], [48, 46], [24, 88], [-16, 98], [-52, 84]]],
    ],
    [   // 4: open; closed; open and curved
        &[&[[-34, -94], [-44, -40], [-56, 14]], &[[-56, 14], [2, 12], [62, 8]], &[[34, -70], [28, 12], [22, 100]]],
        &[&[[26, -100], [-16, -36], [-62, 30]], &[[-62, 30], [0, 30], [62, 28]], &[[26, -100], [26, 0], [24, 100]]],
        &[&[[-46, -92], [-54, -44], [-36, -8], [4, -2], [44, -14]], &[[52, -100], [44, -14], [36, 40], [28, 100]]],
    ],
    [   // 5: square shoulder; flowing waist; rising bar and an open bowl
        &[&[[54, -99], [8, -97], [-38, -96]], &[[-38, -96], [-42, -56], [-46, -14]], &[[-46, -14], [-4, -32], [40, -12], [52, 34], [28, 84], [-14, 99], [-56, 82]]],
        &[&[[58, -99], [8, -96], [-38, -90]], &[[-38, -90], [-48, -46], [-16, -26], [30, -8], [50, 36], [28, 84], [-14, 99], [-54, 82]]],
        &[&[[-28, -92], [14, -94], [60, -100]], &[[-28, -92], [-34, -58], [-40, -22]], &[[-40, -22], [10, -26], [46, 8], [44, 58], [10, 94], [-48, 96]]],
    ],
    [   // 6: leaning stem; upright with a small bowl; hooked top
        &[&[[34, -100], [-8, -66], [-38, -14], [-48, 40], [-26, 88], [14, 98], [46, 68], [40, 22], [4, 6], [-30, 26], [-46, 60]]],
        &[&[[2, -100], [-30, -48], [-46, 6], [-46, 56], [-20, 94], [20, 94], [44, 62], [30, 26], [-4, 22], [-34, 44], [-44, 70]]],
        &[&[[46, -78], [20, -99], [-20, -78], [-46, -24], [-52, 30], [-34, 82], [6, 99], [44, 74], [46, 22], [12, -8], [-28, 6], [-50, 46]]],
    ],
    [   // 7: plain; with a bar; with a tick and a curved stem
        &[&[[-54, -92], [0, -94], [54, -96]], &[[54, -96], [28, -40], [4, 24], [-12, 100]]],
        &[&[[-54, -94], [0, -94], [54, -96]], &[[54, -96], [24, -34], [-2, 32], [-18, 100]], &[[-32, 6], [4, 2], [42, -4]]],
        &[&[[-56, -62], [-52, -92]], &[[-52, -92], [-20, -84], [16, -86], [52, -98]], &[[52, -98], [18, -44], [0, 20], [-2, 100]]],
    ],
    [   // 8: one crossing stroke; two rounds; open at the top right
        &[&[[2, -100], [-40, -82], [-38, -42], [2, -8], [42, 28], [46, 74], [0, 100], [-46, 74], [-42, 28], [2, -8], [40, -42], [42, -82], [2, -100]]],
        &[&[[0, -100], [-36, -84], [-40, -48], [0, -10], [40, -48], [36, -84], [0, -100]], &[[0, -10], [-42, 14], [-48, 56], [0, 100], [48, 56], [42, 14], [0, -10]]],
        &[&[[36, -82], [4, -99], [-38, -84], [-40, -46], [2, -10], [42, 30], [42, 78], [-2, 99], [-44, 76], [-40, 30], [2, -10], [36, -44], [58, -90]]],
    ],
    [   // 9: straight tail; hooked tail; one leaning stroke
        &[&[[44, -66], [12, -98], [-30, -86], [-46, -46], [-22, -10], [18, -18], [44, -66]], &[[47, -88], [44, -66], [38, 10], [30, 100]]],
        &[&[[46, -62], [14, -98], [-30, -88], [-48, -46], [-26, -6], [16, -8], [46, -62]], &[[46, -62], [48, 6], [36, 68], [0, 99], [-42, 84]]],
        &[&[[44, -72], [16, -99], [-28, -86], [-46, -42], [-26, -8], [14, -14], [42, -48], [44, -72]], &[[44, -72], [32, -2], [10, 52], [-16, 100]]],
    ],
];

/// The generative factors of one image, drawn independently. `class` and `style` are uniform, the others have a symmetric
/// triangular distribution over their range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// The digit, 0..=9.
    pub class: u8,
    /// The shape of the digit, 0..=2; its meaning depends on the class.
    pub style: u8,
    /// Width of the stroke in pixels, 1.8..=3.8; it varies by up to 15 % along the strokes.
    pub thickness: f32,
    /// Shear to the right, the tangent of its angle, -0.15..=0.4.
    pub slant: f32,
    /// Rotation after the shear in degrees, clockwise, -12..=12.
    pub rotation: f32,
    /// Height of the centre lines before the rotation in units of 16.6 pixels, 0.85..=1.1; the width is proportional.
    pub scale: f32,
    /// Horizontal stretch at constant height (no unit), 0.8..=1.2.
    pub aspect: f32,
    /// Offset of the centre of the bounding box to the right in pixels, -1.8..=1.8.
    pub shift_x: f32,
    /// Offset of the centre of the bounding box downwards in pixels, -1.8..=1.8.
    pub shift_y: f32,
    /// Seed of the jitter of the points.
    pub jitter: u64,
}

impl Factors {
    /// The factors in the order of [`Factors::values`], and whether each is one of a few classes; the others are continuous.
    pub const NAMES: [(&'static str, bool); 9] = [
        ("class", true),
        ("style", true),
        ("thickness", false),
        ("slant", false),
        ("rotation", false),
        ("scale", false),
        ("aspect", false),
        ("shift_x", false),
        ("shift_y", false),
    ];

    /// The factors as numbers; the jitter is noise, not a factor.
    pub fn values(&self) -> [f64; 9] {
        let Factors { class, style, thickness, slant, rotation, scale, aspect, shift_x, shift_y, jitter: _ } = *self;
        [class.into(), style.into(), thickness, slant, rotation, scale, aspect, shift_x, shift_y].map(f64::from)
    }
}

/// The factors of image `index` of a set. `stream` is `DigitsTrain` or `DigitsTest`; another stream gives another set.
pub fn factors(seed: u64, stream: Stream, index: u64) -> Factors {
    // The order of the draws is part of the data set: append new factors at the end.
    let mut rng = Rng::new(seed_for(seed, 0, stream, index) as u64);
    let class = rng.below(CLASSES as u64) as u8;
    let style = rng.below(STYLES as u64) as u8;
    let mut triangular = |lo, hi| 0.5 * (rng.range(lo, hi) + rng.range(lo, hi));
    Factors {
        class,
        style,
        thickness: triangular(1.8, 3.8),
        slant: triangular(-0.15, 0.4),
        rotation: triangular(-12.0, 12.0),
        scale: triangular(0.85, 1.1),
        aspect: triangular(0.8, 1.2),
        shift_x: triangular(-1.8, 1.8),
        shift_y: triangular(-1.8, 1.8),
        jitter: rng.next_u64(),
    }
}

/// The first `count` images of the set of (`seed`, `stream`): [count,1,28,28], white (255) on black (0), with their classes as
/// labels. Image i is `draw(&factors(seed, stream, i))`, so a smaller set is a prefix of a larger one.
pub fn generate(seed: u64, stream: Stream, count: usize) -> Images {
    let mut pixels = vec![0u8; count * PIXELS];
    let mut labels = vec![0u32; count];
    pixels.par_chunks_exact_mut(PIXELS).zip(&mut labels).with_min_len(64).enumerate().for_each(
        |(i, (image, label))| {
            let factors = factors(seed, stream, i as u64);
            draw(&factors, image);
            *label = factors.class.into();
        },
    );
    Images { count, channels: 1, height: SIDE, width: SIDE, pixels: pixels.into(), labels, names: Vec::new() }
}

/// Draws one image to `out`, [28,28] row-major ([`PIXELS`] bytes).
///
/// The outermost pixels stay black: a digit that would touch them is moved back, about four in a million by a tenth of a pixel.
/// `class` and `style` are taken modulo the numbers of classes and styles.
pub fn draw(factors: &Factors, out: &mut [u8]) {
    let mut path = DigitPath::trace(factors);
    path.place(factors);
    let mut ink = [0f32; PIXELS];
    for segment in &path.segments {
        segment.stamp(&mut ink);
    }
    for (byte, ink) in out.iter_mut().zip(&ink) {
        *byte = (ink.min(1.0) * 255.0 + 0.5) as u8;
    }
}

/// The jitter of one image: a smooth deformation of the plane, and an independent offset of each point.
///
/// The norm of the derivative of the deformation's displacement is below 1, so it is invertible and keeps loops and crossings.
struct Jitter {
    seed: u64,
    /// Two sine waves for x, two for y and one for the stroke width: amplitude, wave numbers along x and y, phase.
    waves: [[f32; 4]; 5],
}

impl Jitter {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let waves = [0.09, 0.09, 0.08, 0.08, 0.15].map(|size| {
            let (along_x, along_y) = (rng.range(-2.4, 2.4), rng.range(-2.4, 2.4));
            let phase = rng.range(0.0, std::f32::consts::TAU);
            [size * rng.range(0.3, 1.0), along_x, along_y, phase]
        });
        Jitter { seed, waves }
    }

    fn wave(&self, i: usize, [x, y]: [f32; 2]) -> f32 {
        let [size, along_x, along_y, phase] = self.waves[i];
        size * (along_x * x + along_y * y + phase).sin()
    }

    /// The jittered point and its relative stroke width: x, y, width.
    fn apply(&self, point: [i8; 2]) -> [f32; 3] {
        let p = point.map(|v| f32::from(v) * 0.01);
        // Seeded by the point, so that equal points get equal offsets.
        let key = u64::from(u16::from_le_bytes(point.map(|v| v as u8)));
        let mut slip = Rng::new(self.seed ^ ((key + 1) << 32));
        [
            p[0] + self.wave(0, p) + self.wave(1, p) + slip.range(-0.04, 0.04),
            p[1] + self.wave(2, p) + self.wave(3, p) + slip.range(-0.04, 0.04),
            1.0 + self.wave(4, p),
        ]
    }
}

/// A straight piece of a stroke in pixels.
struct Segment {
    from: [f32; 2],
    to: [f32; 2],
    /// Half the stroke width.
    radius: f32,
}

impl Segment {
    /// Draws the segment: each pixel keeps the maximum over all segments; 1 and above is full ink.
    ///
    /// Linear in the squared distance, which needs no square root and is close to linear in the distance within the edge.
    fn stamp(&self, ink: &mut [f32; PIXELS]) {
        let ([ax, ay], [bx, by]) = (self.from, self.to);
        let (dx, dy) = (bx - ax, by - ay);
        let per_length = 1.0 / (dx * dx + dy * dy).max(1e-6);
        let reach = self.radius + SOFT;
        let gain = 1.0 / (4.0 * SOFT * self.radius);
        // The centre of pixel i is i + 0.5.
        let first = |a: f32, b: f32| (a.min(b) - reach) as usize;
        let end = |a: f32, b: f32| ((a.max(b) + reach) as usize + 1).min(SIDE);
        let (left, right) = (first(ax, bx), end(ax, bx));
        if left >= right {
            return;
        }
        for row in first(ay, by)..end(ay, by) {
            let py = row as f32 + 0.5 - ay;
            for (i, ink) in ink[row * SIDE..][left..right].iter_mut().enumerate() {
                let px = (left + i) as f32 + 0.5 - ax;
                let t = ((px * dx + py * dy) * per_length).clamp(0.0, 1.0);
                let (ex, ey) = (px - t * dx, py - t * dy);
                *ink = ink.max((reach * reach - ex * ex - ey * ey) * gain);
            }
        }
    }
}

/// The centre lines of one digit as segments.
struct DigitPath {
    segments: Vec<Segment>,
}

impl DigitPath {
    /// The digit with its jitter, size, shear and rotation, centred at the origin.
    fn trace(f: &Factors) -> Self {
        let jitter = Jitter::new(f.jitter);
        let glyph = GLYPHS[usize::from(f.class) % CLASSES][usize::from(f.style) % STYLES];
        let stroke = |stroke: &Stroke| -> Vec<[f32; 3]> { stroke.iter().map(|p| jitter.apply(*p)).collect() };
        let mut strokes: Vec<_> = glyph.iter().map(stroke).collect();
        let ys = strokes.iter().flatten().map(|p| p[1]);
        let height = ys.clone().fold(f32::MIN, f32::max) - ys.fold(f32::MAX, f32::min);
        // Normalised by the height after the jitter, so that `scale` is exact.
        let size = 2.0 * HALF_HEIGHT * f.scale / height;
        let (sin, cos) = f.rotation.to_radians().sin_cos();
        for [x, y, radius] in strokes.iter_mut().flatten() {
            let (u, v) = (size * (*x * f.aspect - *y * f.slant), size * *y);
            (*x, *y) = (u * cos - v * sin, u * sin + v * cos);
            *radius *= 0.5 * f.thickness;
        }
        let mut path = DigitPath { segments: Vec::new() };
        strokes.iter().for_each(|points| path.spline(points));
        path
    }

    /// Moves the centre of the bounding box from the origin to the centre of the image plus the shift.
    fn place(&mut self, f: &Factors) {
        let middle = 0.5 * SIDE as f32;
        for (axis, shift) in [f.shift_x, f.shift_y].into_iter().enumerate() {
            let (lo, hi) = self.span(axis);
            // The outermost pixels stay black if the ink ends half a pixel inside the image.
            let room = (middle - 0.5 - 0.5 * (hi - lo)).max(0.0);
            let by = middle + shift.max(-room).min(room) - 0.5 * (lo + hi);
            for segment in &mut self.segments {
                segment.from[axis] += by;
                segment.to[axis] += by;
            }
        }
    }

    /// The range of the ink along x (axis 0) or y (axis 1) in pixels.
    fn span(&self, axis: usize) -> (f32, f32) {
        let mut span = (f32::MAX, f32::MIN);
        for segment in &self.segments {
            let (a, b, reach) = (segment.from[axis], segment.to[axis], segment.radius + SOFT);
            span = (span.0.min(a.min(b) - reach), span.1.max(a.max(b) + reach));
        }
        span
    }

    /// Appends the centripetal Catmull-Rom spline through `points` (x, y, radius), which has no cusps or self-intersections within
    /// a segment (Yuksel, Schaefer and Keyser 2011).
    fn spline(&mut self, points: &[[f32; 3]]) {
        let last = points.len().saturating_sub(1);
        let closed = last > 2 && points[0] == points[last];
        for i in 0..last {
            let (b, c) = (points[i], points[i + 1]);
            // The neighbour beyond an end: extrapolated, or around the loop.
            let beyond = |near: [f32; 3], far: [f32; 3]| [2.0 * near[0] - far[0], 2.0 * near[1] - far[1], 0.0];
            let a = match (i, closed) {
                (0, true) => points[last - 1],
                (0, false) => beyond(b, c),
                _ => points[i - 1],
            };
            let d = match (i + 1 == last, closed) {
                (true, true) => points[1],
                (true, false) => beyond(c, b),
                _ => points[i + 2],
            };
            self.curve(a, b, c, d);
        }
    }

    /// Appends the spline from `b` to `c` with the neighbours `a` and `d`.
    fn curve(&mut self, a: [f32; 3], b: [f32; 3], c: [f32; 3], d: [f32; 3]) {
        let length = |p: [f32; 3], q: [f32; 3]| {
            let (x, y) = (q[0] - p[0], q[1] - p[1]);
            (x * x + y * y).sqrt().max(1e-3)
        };
        let chord = length(b, c);
        let (before, here, after) = (length(a, b).sqrt(), chord.sqrt(), length(c, d).sqrt());
        let slope = |p: f32, q: f32, r: f32, s: f32, t: f32| here * ((q - p) / s - (r - p) / (s + t) + (r - q) / t);
        // Steps of about two pixels: the error is below an eighth of a pixel.
        let steps = (chord * 0.5).ceil().clamp(1.0, 8.0);
        let radius = 0.5 * (b[2] + c[2]);
        let mut from = [b[0], b[1]];
        for step in 1..=steps as usize {
            let u = step as f32 / steps;
            let v = 1.0 - u;
            let at = |k: usize| {
                let enter = slope(a[k], b[k], c[k], before, here);
                let leave = slope(b[k], c[k], d[k], here, after);
                v * v * ((1.0 + 2.0 * u) * b[k] + u * enter) + u * u * ((1.0 + 2.0 * v) * c[k] - v * leave)
            };
            let to = [at(0), at(1)];
            self.segments.push(Segment { from, to, radius });
            from = to;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Stream::{DigitsTest as Test, DigitsTrain as Train};
    use std::collections::HashSet;

    /// Name, range and value of each factor.
    fn ranges(f: &Factors) -> [(&'static str, (f32, f32), f32); 9] {
        [
            ("class", (0.0, 9.0), f32::from(f.class)),
            ("style", (0.0, 2.0), f32::from(f.style)),
            ("thickness", (1.8, 3.8), f.thickness),
            ("slant", (-0.15, 0.4), f.slant),
            ("rotation", (-12.0, 12.0), f.rotation),
            ("scale", (0.85, 1.1), f.scale),
            ("aspect", (0.8, 1.2), f.aspect),
            ("shift_x", (-1.8, 1.8), f.shift_x),
            ("shift_y", (-1.8, 1.8), f.shift_y),
        ]
    }

    fn drawn(factors: &Factors) -> Vec<u8> {
        let mut out = vec![7; PIXELS];
        draw(factors, &mut out);
        out
    }

    fn ink(image: &[u8]) -> f64 {
        image.iter().map(|&p| f64::from(p) / 255.0).sum()
    }

    /// Centre of mass along x and y, and the slope of the regression of x on y.
    fn moments(image: &[u8]) -> [f64; 3] {
        let total = 255.0 * ink(image);
        let sum = |f: &dyn Fn(f64, f64) -> f64| {
            let at = |i: usize| f64::from(image[i]) * f((i % SIDE) as f64, (i / SIDE) as f64);
            (0..PIXELS).map(at).sum::<f64>() / total
        };
        let (x0, y0) = (sum(&|x, _| x), sum(&|_, y| y));
        let lean = sum(&|x, y| (x - x0) * (y - y0)) / sum(&|_, y| (y - y0).powi(2));
        [x0, y0, lean]
    }

    #[test]
    fn an_image_depends_on_seed_stream_and_index_alone() {
        let large = generate(5, Train, 500);
        let small = generate(5, Train, 100);
        assert!(large.pixels.starts_with(&small.pixels) && large.labels.starts_with(&small.labels));
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        assert_eq!(large, one.unwrap().install(|| generate(5, Train, 500)));
        let last = &large.pixels[499 * PIXELS..];
        assert_eq!(last, drawn(&factors(5, Train, 499)));
        assert_ne!(large.pixels, generate(6, Train, 500).pixels);
        assert_ne!(large.pixels, generate(5, Test, 500).pixels);
        assert_eq!(generate(5, Train, 0).count, 0);
    }

    #[test]
    fn images_are_bright_soft_framed_and_all_different() {
        let set = generate(1, Train, 2000);
        let again = Images::new([2000, 1, 28, 28], set.pixels.clone(), set.labels.clone());
        assert_eq!(again.unwrap(), set);
        let images: Vec<&[u8]> = set.pixels.chunks(PIXELS).collect();
        assert_eq!(images.iter().collect::<HashSet<_>>().len(), 2000);
        let mut middle = [0.0; 2];
        for image in images {
            let [x, y, _] = moments(image);
            middle = [middle[0] + x / 2000.0, middle[1] + y / 2000.0];
            let edge = |k: usize| [k, 27 * 28 + k, k * 28, k * 28 + 27].map(|i| image[i]);
            assert!((0..28).all(|k| edge(k) == [0; 4]), "ink at the frame");
            assert_eq!(image.iter().max(), Some(&255));
        }
        assert!(middle.iter().all(|m| (m - 13.5).abs() < 0.5), "{middle:?}");
        let share = |f: fn(u8) -> bool| set.pixels.iter().filter(|&&p| f(p)).count() as f64;
        let soft = share(|p| p > 0 && p < 255) / share(|p| p > 0);
        let mean = ink(&set.pixels) / set.pixels.len() as f64;
        println!("mean pixel {mean:.4}, grey among the lit {soft:.3}");
        assert!((0.10..0.18).contains(&mean) && (0.25..0.75).contains(&soft));
    }

    #[test]
    fn factors_are_in_range_balanced_and_true() {
        let (mut classes, mut styles) = ([0; CLASSES], [0; STYLES]);
        for i in 0..20_000 {
            let f = factors(3, Test, i);
            classes[usize::from(f.class)] += 1;
            styles[usize::from(f.style)] += 1;
            for (name, (lo, hi), v) in ranges(&f) {
                assert!((lo..=hi).contains(&v), "{name} is {v}");
            }
            assert_eq!(ranges(&f).map(|(name, ..)| name), Factors::NAMES.map(|(name, _)| name));
            assert_eq!(ranges(&f).map(|(.., v)| f64::from(v)), f.values());
            // Were a digit slid back into the frame, its shift would not be true.
            let path = DigitPath::trace(&f);
            for (axis, shift) in [f.shift_x, f.shift_y].into_iter().enumerate() {
                let (lo, hi) = path.span(axis);
                assert!(0.5 * (hi - lo) + shift.abs() <= 13.5, "image {i}: {f:?}");
            }
        }
        assert!(classes.iter().all(|n| (1800..2200).contains(n)), "{classes:?}");
        assert!(styles.iter().all(|n| (6400..6950).contains(n)), "{styles:?}");
    }

    #[test]
    fn each_factor_does_what_it_says() {
        for i in 0..200 {
            let mut base = factors(9, Train, i);
            (base.thickness, base.slant, base.rotation) = (2.4, 0.1, 0.0);
            (base.scale, base.aspect, base.shift_x, base.shift_y) = (0.95, 1.0, 0.0, 0.0);
            let but = |change: fn(&mut Factors)| {
                let mut f = base;
                change(&mut f);
                f
            };
            let was = drawn(&base);
            assert_eq!(was, drawn(&base));
            assert_ne!(was, drawn(&but(|f| f.jitter ^= 1)));
            assert_ne!(was, drawn(&but(|f| f.style = (f.style + 1) % 3)));
            assert!(ink(&drawn(&but(|f| f.thickness = 3.0))) > 1.1 * ink(&was));
            let after = |change| moments(&drawn(&but(change)));
            let [x, y, lean] = moments(&was);
            let moved = after(|f| (f.shift_x, f.shift_y) = (1.25, -1.5));
            let error = (moved[0] - x - 1.25).abs().max((moved[1] - y + 1.5).abs());
            assert!(error < 0.15, "image {i} moved to {moved:?}");
            // y points down, so x falls with y where a digit leans right.
            let slanted = after(|f| f.slant = 0.3)[2];
            assert!((lean - slanted - 0.2).abs() < 0.06, "{lean} {slanted}");
            assert!(after(|f| f.rotation = 10.0)[2] < lean - 0.02);
            let size = |change, axis| {
                let (lo, hi) = DigitPath::trace(&but(change)).span(axis);
                hi - lo
            };
            let taller = size(|f| f.scale = 1.05, 1) - size(|_| (), 1);
            assert!((taller - 0.2 * HALF_HEIGHT).abs() < 0.15, "{taller}");
            let same = size(|f| f.aspect = 1.2, 1) - size(|_| (), 1);
            assert!(same.abs() < 0.25, "{same}");
            let wider = size(|f| f.aspect = 1.2, 0) - size(|_| (), 0);
            assert!(wider > 0.5 || base.class == 1, "{wider}");
        }
    }

    #[test]
    fn values_beyond_the_ranges_do_no_harm_and_the_tables_fit() {
        let mut f = factors(1, Train, 0);
        (f.class, f.style, f.shift_x, f.shift_y) = (250, 250, 90.0, -90.0);
        let far = drawn(&f);
        assert!((0..28).all(|k| far[k] == 0 && far[k * 28 + 27] == 0) && ink(&far) > 20.0);
        (f.scale, f.thickness, f.slant) = (50.0, f32::NAN, f32::INFINITY);
        drawn(&f);
        for (i, glyph) in GLYPHS.iter().flatten().enumerate() {
            let points: usize = glyph.iter().map(|stroke| stroke.len()).sum();
            assert!(points <= 24, "glyph {i}");
        }
        for i in 0..5000 {
            let mut f = factors(2, Train, i);
            (f.scale, f.aspect, f.slant) = (1.1, 1.2, 0.4);
            assert!(DigitPath::trace(&f).segments.len() < 64, "{f:?}");
        }
    }

    #[test]
    fn the_nearest_training_image_names_the_digit() {
        let (train, test) = (generate(1, Train, 2000), generate(1, Test, 500));
        let mut right = 0;
        for (image, label) in test.pixels.chunks(PIXELS).zip(&test.labels) {
            let mut best = (i32::MAX, 0);
            for (other, name) in train.pixels.chunks(PIXELS).zip(&train.labels) {
                let gap = |(&p, &q): (&u8, &u8)| (i32::from(p) - i32::from(q)).pow(2);
                best = best.min((image.iter().zip(other).map(gap).sum(), *name));
            }
            right += usize::from(best.1 == *label);
        }
        println!("nearest neighbour: {right} of 500 right");
        assert!(right > 480, "{right} of 500");
    }
}
