//! A drawing surface with four primitives (rectangle, polyline, disc, text) that ends as PNG or SVG.
//! Private to `plot`; imports no other module of the crate (and no tch).
//!
//! It stands in for a plotting library because the pure-Rust ones place glyphs on whole pixels without
//! their side bearings and do not smooth the edges of wide lines, which shows at 100 %.

use ab_glyph::{Font, FontRef, GlyphId, PxScale, ScaleFont, point};
use anyhow::{Context, Result};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use std::fmt::Write as _;

/// A subset of DejaVu Sans; see `src/assets/plot-sans.LICENSE.txt`.
const FONT: &[u8] = include_bytes!("../assets/plot-sans.ttf");

/// A position in pixels: x to the right, y downwards.
pub(super) type Pt = (f64, f64);

/// An sRGB colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rgb(pub u8, pub u8, pub u8);

pub(super) const WHITE: Rgb = Rgb(255, 255, 255);

impl Rgb {
    /// The colour `share` of the way (0 to 1) to `other`.
    pub(super) fn mix(self, other: Rgb, share: f64) -> Rgb {
        let f = |a: u8, b: u8| (f64::from(a) * (1.0 - share) + f64::from(b) * share).round() as u8;
        Rgb(f(self.0, other.0), f(self.1, other.1), f(self.2, other.2))
    }

    fn hex(self) -> String {
        format!("#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }
}

/// How a polyline is drawn. Ends and corners are round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stroke {
    pub color: Rgb,
    /// Opacity from 0 to 1; where a line crosses itself it does not get darker.
    pub alpha: f64,
    pub width: f64,
    /// Lengths of dash and gap, without the round ends.
    pub dash: Option<(f64, f64)>,
}

/// Which part of a text stands at its position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// How a text is drawn; its position is on the baseline.
#[derive(Clone, Copy, Debug)]
pub(super) struct TextStyle {
    pub size: f64,
    pub color: Rgb,
    pub anchor: Anchor,
    /// Reads upwards, turned a quarter to the left.
    pub upwards: bool,
}

enum Output {
    /// RGB bytes, row after row.
    Raster(Vec<u8>),
    /// The elements inside the `<svg>` element.
    Svg(String),
}

/// A drawing of a fixed size on white.
pub(super) struct Canvas {
    width: usize,
    height: usize,
    font: FontRef<'static>,
    out: Output,
}

impl Canvas {
    pub(super) fn new(width: usize, height: usize, svg: bool) -> Result<Canvas> {
        let font = FontRef::try_from_slice(FONT).context("the embedded font is damaged")?;
        let out = match svg {
            true => Output::Svg(String::new()),
            false => Output::Raster(vec![255; width * height * 3]),
        };
        Ok(Canvas { width, height, font, out })
    }

    pub(super) fn size(&self) -> (f64, f64) {
        (self.width as f64, self.height as f64)
    }

    /// The file's bytes.
    pub(super) fn encode(self) -> Result<Vec<u8>> {
        let (w, h) = (self.width, self.height);
        match self.out {
            Output::Svg(body) => Ok(format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" \
                 font-family=\"'DejaVu Sans', Verdana, sans-serif\">\n\
                 <rect width=\"{w}\" height=\"{h}\" fill=\"#ffffff\"/>\n{body}</svg>\n"
            )
            .into_bytes()),
            Output::Raster(pixels) => {
                let mut png = Vec::new();
                // Measured: 15 times faster than the default compression; files a third larger to a third smaller.
                PngEncoder::new_with_quality(&mut png, CompressionType::Fast, FilterType::Adaptive)
                    .write_image(&pixels, w as u32, h as u32, ExtendedColorType::Rgb8)
                    .context("cannot encode the chart as PNG")?;
                Ok(png)
            }
        }
    }

    /// Fills a rectangle, its corners rounded to whole pixels.
    pub(super) fn rect(&mut self, from: Pt, to: Pt, color: Rgb) {
        let (x0, y0, x1, y1) = (from.0.round(), from.1.round(), to.0.round(), to.1.round());
        match &mut self.out {
            Output::Svg(s) => {
                let (w, h, fill) = (x1 - x0, y1 - y0, color.hex());
                let _ = writeln!(s, "<rect x=\"{x0}\" y=\"{y0}\" width=\"{w}\" height=\"{h}\" fill=\"{fill}\"/>");
            }
            Output::Raster(_) => {
                for y in y0.max(0.0) as usize..y1.max(0.0) as usize {
                    for x in x0.max(0.0) as usize..x1.max(0.0) as usize {
                        self.blend(x as i64, y as i64, color, 1.0);
                    }
                }
            }
        }
    }

    /// Draws a line through the points; one point alone gives a dot as wide as the line.
    pub(super) fn polyline(&mut self, points: &[Pt], stroke: &Stroke) {
        if points.is_empty() {
            return;
        }
        match &mut self.out {
            Output::Svg(s) => svg_polyline(s, points, stroke),
            Output::Raster(_) => match stroke.dash {
                None => self.raster_lines(&[points.to_vec()], stroke),
                Some((on, off)) => self.raster_lines(&dashes(points, on, off), stroke),
            },
        }
    }

    pub(super) fn disc(&mut self, center: Pt, radius: f64, color: Rgb) {
        match &mut self.out {
            Output::Svg(s) => {
                let ((x, y), fill) = (center, color.hex());
                let _ = writeln!(s, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{fill}\"/>");
            }
            Output::Raster(_) => {
                let (alpha, width, dash) = (1.0, radius * 2.0, None);
                let stroke = Stroke { color, alpha, width, dash };
                self.raster_lines(&[vec![center]], &stroke);
            }
        }
    }

    /// The advance width of a text in pixels, in the embedded font.
    pub(super) fn text_width(&self, text: &str, size: f64) -> f64 {
        self.layout(text, size).1
    }

    pub(super) fn text(&mut self, text: &str, at: Pt, style: &TextStyle) {
        if let Output::Svg(s) = &mut self.out {
            return svg_text(s, text, at, style);
        }
        let (glyphs, width) = self.layout(text, style.size);
        let shift = match style.anchor {
            Anchor::Start => 0.0,
            Anchor::Middle => width / 2.0,
            Anchor::End => width,
        };
        // A baseline on a whole pixel keeps the feet of the letters sharp.
        let (x, y) = (at.0.round(), at.1.round());
        let scale = self.scale(style.size);
        for (id, pen) in glyphs {
            // The fraction goes into the outline, the whole pixels into the placing: letters keep their distances.
            let along = pen - shift;
            let glyph = id.with_scale_and_position(scale, point(along.fract() as f32, 0.0));
            let Some(outline) = self.font.outline_glyph(glyph) else {
                continue;
            };
            let (bounds, whole) = (outline.px_bounds(), along.trunc());
            outline.draw(|gx, gy, cover| {
                let dx = whole as i64 + bounds.min.x as i64 + i64::from(gx);
                let dy = bounds.min.y as i64 + i64::from(gy);
                // Turned to the left, what ran to the right runs upwards.
                let (px, py) = match style.upwards {
                    true => (x as i64 + dy, y as i64 - 1 - dx),
                    false => (x as i64 + dx, y as i64 + dy),
                };
                self.blend(px, py, style.color, f64::from(cover));
            });
        }
    }

    /// ab_glyph counts a font's whole height, the world its em: this turns the second into the first.
    fn scale(&self, size: f64) -> PxScale {
        let em = self.font.units_per_em().unwrap_or(1000.0);
        PxScale::from(size as f32 * self.font.height_unscaled() / em)
    }

    /// Glyphs with the x of their pens, and the width of all.
    fn layout(&self, text: &str, size: f64) -> (Vec<(GlyphId, f64)>, f64) {
        let font = self.font.as_scaled(self.scale(size));
        let (mut x, mut last, mut glyphs) = (0.0, None, Vec::new());
        for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
            let id = font.glyph_id(c);
            x += last.map_or(0.0, |l| f64::from(font.kern(l, id)));
            glyphs.push((id, x));
            x += f64::from(font.h_advance(id));
            last = Some(id);
        }
        (glyphs, x)
    }

    fn blend(&mut self, x: i64, y: i64, color: Rgb, cover: f64) {
        let (w, h) = (self.width as i64, self.height as i64);
        if let (Output::Raster(p), true) = (&mut self.out, x >= 0 && y >= 0 && x < w && y < h) {
            let at = (y * w + x) as usize * 3;
            for (old, new) in p[at..at + 3].iter_mut().zip([color.0, color.1, color.2]) {
                let cover = cover.clamp(0.0, 1.0);
                *old = (f64::from(*old) * (1.0 - cover) + f64::from(new) * cover).round() as u8;
            }
        }
    }

    /// Gathers the coverage of all lines first, so that neither corners nor crossings are painted twice.
    fn raster_lines(&mut self, lines: &[Vec<Pt>], stroke: &Stroke) {
        let radius = stroke.width / 2.0;
        let all = || lines.iter().flatten();
        let side = |f: fn(f64, f64) -> f64, start: f64, axis: fn(&Pt) -> f64| all().map(axis).fold(start, f);
        let (w, h) = self.size();
        let low = |v: f64, end: f64| (v - radius - 1.0).floor().clamp(0.0, end) as usize;
        let high = |v: f64, end: f64| (v + radius + 1.0).ceil().clamp(0.0, end) as usize;
        let x0 = low(side(f64::min, f64::INFINITY, |p| p.0), w);
        let x1 = high(side(f64::max, f64::NEG_INFINITY, |p| p.0), w);
        let y0 = low(side(f64::min, f64::INFINITY, |p| p.1), h);
        let y1 = high(side(f64::max, f64::NEG_INFINITY, |p| p.1), h);
        if x0 >= x1 || y0 >= y1 {
            return;
        }
        let mut mask = Mask { x0, y0, width: x1 - x0, cover: vec![0.0; (x1 - x0) * (y1 - y0)] };
        for line in lines {
            match line.as_slice() {
                [one] => mask.segment(*one, *one, radius),
                more => more.windows(2).for_each(|s| mask.segment(s[0], s[1], radius)),
            }
        }
        for (i, cover) in mask.cover.iter().enumerate().filter(|(_, c)| **c > 0.0) {
            let (x, y) = (x0 + i % mask.width, y0 + i / mask.width);
            self.blend(x as i64, y as i64, stroke.color, f64::from(*cover) * stroke.alpha);
        }
    }
}

/// How far each pixel of a rectangle is covered, from 0 to 1.
struct Mask {
    x0: usize,
    y0: usize,
    width: usize,
    cover: Vec<f32>,
}

impl Mask {
    /// Covers the pixels within `radius` of the segment a-b. A pixel's coverage is taken from its centre's
    /// distance to the segment, which is exact to a few per cent for lines wider than a pixel.
    fn segment(&mut self, a: Pt, b: Pt, radius: f64) {
        let (dx, dy) = (b.0 - a.0, b.1 - a.1);
        let (length2, reach) = (dx * dx + dy * dy, radius + 0.5);
        let rows = self.cover.len() / self.width;
        let inside = |v: f64, start: usize, len: usize| (v - start as f64).floor().clamp(0.0, len as f64) as usize;
        let top = inside(a.1.min(b.1) - reach, self.y0, rows);
        let bottom = inside(a.1.max(b.1) + reach + 1.0, self.y0, rows);
        for row in top..bottom {
            let y = (self.y0 + row) as f64 + 0.5;
            // Only the part of the segment near this row can touch it: long steep lines stay cheap.
            let (mut t0, mut t1) = (0.0, 1.0);
            if dy != 0.0 {
                let (u, v) = ((y - reach - a.1) / dy, (y + reach - a.1) / dy);
                (t0, t1) = (u.min(v).clamp(0.0, 1.0), u.max(v).clamp(0.0, 1.0));
            }
            let (xa, xb) = (a.0 + t0 * dx, a.0 + t1 * dx);
            let left = inside(xa.min(xb) - reach, self.x0, self.width);
            let right = inside(xa.max(xb) + reach + 1.0, self.x0, self.width);
            for column in left..right {
                let x = (self.x0 + column) as f64 + 0.5;
                let along =
                    if length2 > 0.0 { (((x - a.0) * dx + (y - a.1) * dy) / length2).clamp(0.0, 1.0) } else { 0.0 };
                let (ex, ey) = (x - a.0 - along * dx, y - a.1 - along * dy);
                let cover = (reach - (ex * ex + ey * ey).sqrt()).clamp(0.0, 1.0) as f32;
                let cell = &mut self.cover[row * self.width + column];
                *cell = cell.max(cover);
            }
        }
    }
}

/// Cuts a line into dashes of length `on` with gaps of length `off` between.
fn dashes(points: &[Pt], on: f64, off: f64) -> Vec<Vec<Pt>> {
    let (mut pieces, mut piece) = (Vec::new(), vec![points[0]]);
    let (mut drawing, mut left) = (true, on);
    for pair in points.windows(2) {
        let (mut a, b) = (pair[0], pair[1]);
        let mut rest = (b.0 - a.0).hypot(b.1 - a.1);
        while rest > left {
            let t = left / rest;
            a = (a.0 + (b.0 - a.0) * t, a.1 + (b.1 - a.1) * t);
            rest -= left;
            if drawing {
                piece.push(a);
                pieces.push(std::mem::take(&mut piece));
            } else {
                piece = vec![a];
            }
            drawing = !drawing;
            left = if drawing { on } else { off };
        }
        left -= rest;
        if drawing {
            piece.push(b);
        }
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

fn svg_polyline(s: &mut String, points: &[Pt], stroke: &Stroke) {
    let mut path = String::with_capacity(points.len() * 14);
    for (x, y) in points.iter().chain((points.len() == 1).then(|| &points[0])) {
        let _ = write!(path, "{x:.1},{y:.1} ");
    }
    let dash = stroke.dash.map_or(String::new(), |(on, off)| format!(" stroke-dasharray=\"{on} {off}\""));
    let _ = writeln!(
        s,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-opacity=\"{}\" stroke-width=\"{}\"{dash} \
         stroke-linecap=\"round\" stroke-linejoin=\"round\"/>",
        path.trim_end(),
        stroke.color.hex(),
        stroke.alpha,
        stroke.width
    );
}

fn svg_text(s: &mut String, text: &str, (x, y): Pt, style: &TextStyle) {
    let anchor = match style.anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    let turn = match style.upwards {
        true => format!(" transform=\"rotate(-90 {x:.1} {y:.1})\""),
        false => String::new(),
    };
    let (size, fill) = (style.size, style.color.hex());
    let _ = write!(
        s,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" fill=\"{fill}\" text-anchor=\"{anchor}\"{turn}>"
    );
    for c in text.chars() {
        match c {
            '&' => s.push_str("&amp;"),
            '<' => s.push_str("&lt;"),
            '>' => s.push_str("&gt;"),
            // XML 1.0 has no way to write these.
            c if c.is_control() || c == '\u{fffe}' || c == '\u{ffff}' => s.push(' '),
            c => s.push(c),
        }
    }
    s.push_str("</text>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn black(width: f64, dash: Option<(f64, f64)>) -> Stroke {
        let (color, alpha) = (Rgb(0, 0, 0), 1.0);
        Stroke { color, alpha, width, dash }
    }

    /// Ink in units of one black pixel.
    fn ink(canvas: &Canvas) -> f64 {
        match &canvas.out {
            Output::Raster(p) => p.chunks(3).map(|c| 1.0 - f64::from(c[0]) / 255.0).sum(),
            Output::Svg(_) => f64::NAN,
        }
    }

    #[test]
    fn a_line_has_the_ink_of_its_area_at_any_angle() {
        for (dx, dy) in [(100.0, 0.0), (0.0, 100.0), (60.0, 80.0), (-96.0, 28.0)] {
            for width in [2.0, 3.0, 8.0] {
                let mut canvas = Canvas::new(300, 300, false).unwrap();
                canvas.polyline(&[(150.3, 150.7), (150.3 + dx, 150.7 + dy)], &black(width, None));
                // The line and its two round ends.
                let area = 100.0 * width + std::f64::consts::PI * width * width / 4.0;
                let error = ink(&canvas) / area - 1.0;
                assert!(error.abs() < 0.03, "({dx}, {dy}) width {width}: off by {error}");
            }
        }
    }

    #[test]
    fn a_crossing_is_not_painted_twice() {
        let mut canvas = Canvas::new(40, 40, false).unwrap();
        let mut stroke = black(6.0, None);
        stroke.alpha = 0.5;
        let cross = [(5.0, 20.0), (35.0, 20.0), (35.0, 5.0), (20.0, 5.0), (20.0, 35.0)];
        canvas.polyline(&cross, &stroke);
        let Output::Raster(p) = &canvas.out else { panic!() };
        assert_eq!(p.iter().min(), Some(&128));
    }

    #[test]
    fn dashes_keep_their_lengths_round_corners() {
        let pieces = dashes(&[(0.0, 0.0), (7.0, 0.0), (7.0, 9.0)], 5.0, 3.0);
        assert_eq!(pieces, [[(0.0, 0.0), (5.0, 0.0)], [(7.0, 1.0), (7.0, 6.0)]]);
        assert_eq!(dashes(&[(1.0, 2.0)], 5.0, 3.0), vec![vec![(1.0, 2.0)]]);
    }

    #[test]
    fn text_is_as_wide_as_measured_and_turns_to_the_left() {
        for upwards in [false, true] {
            let mut canvas = Canvas::new(200, 200, false).unwrap();
            let width = canvas.text_width("Hβ−²H", 20.0);
            let (color, anchor, size) = (Rgb(0, 0, 0), Anchor::Start, 20.0);
            let style = TextStyle { size, color, anchor, upwards };
            canvas.text("Hβ−²H", (100.0, 100.0), &style);
            let Output::Raster(p) = &canvas.out else { panic!() };
            let dark = (0..200 * 200).filter(|i| p[i * 3] < 128);
            let (x, y): (Vec<_>, Vec<_>) = dark.map(|i| (i % 200, i / 200)).unzip();
            let (along, across) = if upwards { (y, x) } else { (x, y) };
            let reach = |v: &[usize]| (*v.iter().min().unwrap(), *v.iter().max().unwrap());
            let (from, to) = reach(&along);
            let start = if upwards { 100.0 - width } else { 100.0 };
            assert!((from as f64 - start).abs() < 4.0, "{from} {start}");
            assert!((to as f64 - start - width).abs() < 4.0, "{to} {start}");
            // Above the baseline (turned: left of it) stands nearly all; only beta's foot hangs below.
            let (top, foot) = reach(&across);
            assert!((84..=87).contains(&top) && (100..=105).contains(&foot));
        }
    }

    #[test]
    fn every_sign_that_charts_use_has_a_glyph() {
        let canvas = Canvas::new(1, 1, false).unwrap();
        let signs = "(+,-./:=_%'\"0123456789 AZaz−–—…·×²≈≤≥βλμσΔΩ∞éüß";
        for c in signs.chars() {
            assert_ne!(canvas.font.glyph_id(c), GlyphId(0), "no glyph for {c:?}: it would show as a box");
        }
    }

    #[test]
    fn svg_text_is_escaped() {
        let mut canvas = Canvas::new(10, 10, true).unwrap();
        let (color, anchor, size, upwards) = (Rgb(0, 0, 0), Anchor::Start, 9.0, true);
        let style = TextStyle { size, color, anchor, upwards };
        canvas.text("a<b>&\u{1}c", (1.0, 2.0), &style);
        let svg = String::from_utf8(canvas.encode().unwrap()).unwrap();
        assert!(svg.contains(">a&lt;b&gt;&amp; c</text>"), "{svg}");
        assert!(svg.contains("rotate(-90 1.0 2.0)"));
    }
}
