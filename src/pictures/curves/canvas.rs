//! A thin layer over plotters: whole-figure PNG and SVG surfaces in pixels, with curves, dots, boxes and text.
//!
//! It mends what shows at 100 % in plotters' own pictures: whole-pixel positions (everything is drawn three times
//! as large), the spikes of its wide lines at sharp turns (lines are given as outlines), unequal baselines.

use super::scale::{Pt, outlines};
use anyhow::{Context, Result, anyhow};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use plotters::coord::Shift;
use plotters::element::{DashedPathElement, Drawable, PointCollection};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontDesc, RGBColor, register_font};

/// A subset of DejaVu Sans; see `src/assets/plot-sans.LICENSE.txt`.
const FONT: &[u8] = include_bytes!("../../assets/plot-sans.ttf");
/// The name under which plotters knows it: what an SVG asks its viewer for.
const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";
/// plotters' whole units per pixel, to either side.
const FINE: usize = 3;
const UNIT: f64 = FINE as f64;

/// What a backend makes of sizes.
struct Habits {
    /// plotters' font size per em.
    em: f64,
    /// How far below the top of a text its baseline lies, per font size.
    depth: f64,
    /// How much wider than asked a shape becomes, in units to each side.
    edge: f64,
}

/// Pixels take a font size for the font's whole height and put half of it above the baseline; what an edge touches
/// is filled. The second edge is for outlines, whose columns are a unit wide where a curve is steep.
const PIXELS: Habits = Habits { em: 1.164, depth: 0.5, edge: 0.5 };
const VECTORS: Habits = Habits { em: 1.24, depth: 0.76 / 1.24, edge: 0.25 };

/// How a curve is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stroke {
    pub color: RGBColor,
    /// Opacity from 0 to 1; where a line crosses itself it does not get darker.
    pub alpha: f64,
    pub width: f64,
    /// Lengths of dash and gap.
    pub dash: Option<(f64, f64)>,
}

/// What can be drawn on a canvas of either kind.
pub(super) trait Drawing {
    fn on<DB: DrawingBackend>(&self, canvas: &Canvas<DB>) -> Result<()>;
}

/// A drawing on white. Positions are in pixels, x to the right and y downwards.
pub(super) struct Canvas<DB: DrawingBackend> {
    area: DrawingArea<DB, Shift>,
    pub size: (f64, f64),
    habits: Habits,
}

/// Draws a PNG: large, then each pixel is the mean of its `FINE`² parts.
pub(super) fn png((w, h): (u32, u32), draw: impl FnOnce(&Canvas<BitMapBackend>) -> Result<()>) -> Result<Vec<u8>> {
    let row = w as usize * FINE * 3;
    let mut large = vec![0; row * h as usize * FINE];
    draw(&Canvas::new(BitMapBackend::with_buffer(&mut large, (w * FINE as u32, h * FINE as u32)), PIXELS)?)?;
    let mut small = Vec::with_capacity(large.len() / FINE / FINE);
    let mut sums = vec![0u16; row];
    for rows in large.chunks_exact(row * FINE) {
        sums.fill(0);
        for line in rows.chunks_exact(row) {
            sums.iter_mut().zip(line).for_each(|(sum, v)| *sum += u16::from(*v));
        }
        let parts = (FINE * FINE) as u16;
        for pixel in sums.chunks_exact(3 * FINE) {
            small.extend((0..3).map(|c| ((pixel.iter().skip(c).step_by(3).sum::<u16>() + parts / 2) / parts) as u8));
        }
    }
    let mut out = Vec::new();
    // Measured: 15 times faster than the default compression; files a third larger to a third smaller.
    PngEncoder::new_with_quality(&mut out, CompressionType::Fast, FilterType::Adaptive)
        .write_image(&small, w, h, ExtendedColorType::Rgb8)
        .context("cannot encode the chart as PNG")?;
    Ok(out)
}

/// Draws an SVG in `FINE` units per pixel, shown at its true size.
pub(super) fn svg((w, h): (u32, u32), draw: impl FnOnce(&Canvas<SVGBackend>) -> Result<()>) -> Result<Vec<u8>> {
    let large = (w * FINE as u32, h * FINE as u32);
    let mut out = String::new();
    draw(&Canvas::new(SVGBackend::with_string(&mut out, large), VECTORS)?)?;
    let size = |(w, h)| format!("width=\"{w}\" height=\"{h}\"");
    Ok(out.replacen(&size(large), &size((w, h)), 1).into_bytes())
}

fn font(em: f64) -> FontDesc<'static> {
    static ONCE: std::sync::Once = std::sync::Once::new();
    // A font that cannot be read fails where text is drawn with it, and is reported there.
    ONCE.call_once(|| drop(register_font(FAMILY, FontStyle::Normal, FONT)));
    // An even size puts the baseline on a whole unit.
    FontDesc::new(FontFamily::Name(FAMILY), (em * UNIT / 2.0).round() * 2.0, FontStyle::Normal)
}

/// The advance width of a text in pixels, in the embedded font.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    font(size * PIXELS.em).box_size(text).map_or(0.0, |(w, _)| f64::from(w) / UNIT)
}

fn unit(pixels: f64) -> i32 {
    (pixels * UNIT).round() as i32
}

/// Rounded to whole pixels.
fn crisp((x, y): Pt) -> (i32, i32) {
    (unit(x.round()), unit(y.round()))
}

impl<DB: DrawingBackend> Canvas<DB> {
    fn new(backend: DB, habits: Habits) -> Result<Canvas<DB>> {
        let (w, h) = backend.get_size();
        let size = (f64::from(w) / UNIT, f64::from(h) / UNIT);
        let canvas = Canvas { area: backend.into_drawing_area(), size, habits };
        canvas.rect((0.0, 0.0), size, WHITE)?;
        Ok(canvas)
    }

    fn put<E>(&self, element: &E) -> Result<()>
    where
        for<'b> &'b E: PointCollection<'b, (i32, i32)>,
        E: Drawable<DB>,
    {
        self.area.draw(element).map_err(|e| anyhow!("cannot draw the chart: {e}"))
    }

    /// Fills a rectangle, its corners rounded to whole pixels.
    pub(super) fn rect(&self, from: Pt, to: Pt, color: RGBColor) -> Result<()> {
        self.put(&Rectangle::new([crisp(from), crisp(to)], color.filled()))
    }

    pub(super) fn disc(&self, at: Pt, radius: f64, color: RGBColor) -> Result<()> {
        self.faint_disc(at, radius, color, 1.0)
    }

    /// A disc through which what lies below is seen: `alpha` is its opacity from 0 to 1.
    pub(super) fn faint_disc(&self, (x, y): Pt, radius: f64, color: RGBColor, alpha: f64) -> Result<()> {
        let color = color.mix(alpha);
        self.put(&Circle::new((unit(x), unit(y)), unit(radius - self.habits.edge / UNIT), color.filled()))
    }

    /// Draws a line through points whose x never falls, cut at the heights `top` and `bottom`.
    pub(super) fn line(&self, points: &[Pt], stroke: &Stroke, (top, bottom): Pt) -> Result<()> {
        let color = stroke.color.mix(stroke.alpha);
        let radius = stroke.width * UNIT / 2.0 - self.habits.edge;
        if let Some((on, off)) = stroke.dash {
            let at = |p: &Pt| (unit(p.0), unit(p.1.max(top).min(bottom)));
            let style = color.stroke_width((radius * 2.0).round().max(1.0) as u32);
            let points: Vec<(i32, i32)> = points.iter().map(at).collect();
            return self.put(&DashedPathElement::new(points, unit(on), unit(off), style));
        }
        let points: Vec<Pt> = points.iter().map(|p| (p.0 * UNIT, p.1 * UNIT)).collect();
        for outline in outlines(&points, radius, (top * UNIT, bottom * UNIT)) {
            let corners: Vec<_> = outline.iter().map(|p| (p.0.round() as i32, p.1.round() as i32)).collect();
            self.put(&Polygon::new(corners, color))?;
        }
        Ok(())
    }

    /// Writes a text; `at` is on its baseline, at its `side`. `upwards` turns it a quarter to the left.
    pub(super) fn text(
        &self,
        text: &str,
        at: Pt,
        (size, color): (f64, RGBColor),
        side: HPos,
        upwards: bool,
    ) -> Result<()> {
        let font = font(size * self.habits.em);
        let depth = (font.get_size() * self.habits.depth).round() as i32;
        let (x, y) = crisp(at);
        let (at, turn) = match upwards {
            true => ((x - depth, y), FontTransform::Rotate270),
            false => ((x, y - depth), FontTransform::None),
        };
        let style = font.transform(turn).color(&color).pos(Pos::new(side, VPos::Top));
        // XML 1.0 has no way to write these.
        let odd = |c: char| c.is_control() || c == '\u{fffe}' || c == '\u{ffff}';
        self.put(&Text::new(text.replace(odd, " "), at, style))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ink(draw: impl FnOnce(&Canvas<BitMapBackend>) -> Result<()>) -> Vec<f64> {
        let png = png((300, 300), draw).unwrap();
        let image = image::load_from_memory(&png).unwrap().to_luma8();
        image.into_raw().iter().map(|v| 1.0 - f64::from(*v) / 255.0).collect()
    }

    const OPEN: Pt = (f64::NEG_INFINITY, f64::INFINITY);

    fn black(width: f64, alpha: f64) -> Stroke {
        Stroke { color: BLACK, alpha, width, dash: None }
    }

    #[test]
    fn a_line_has_the_ink_of_its_area_at_any_angle() {
        for (dx, dy) in [(100.0, 0.0), (0.0, 100.0), (60.0, 80.0), (96.0, -28.0)] {
            for width in [1.2, 2.2, 8.0] {
                let ends = [(150.3, 150.7), (150.3 + dx, 150.7 + dy)];
                let sum: f64 = ink(|c| c.line(&ends, &black(width, 1.0), OPEN)).iter().sum();
                // The line and its two round ends.
                let area = 100.0 * width + std::f64::consts::PI * width * width / 4.0;
                // Edges lie on whole units, a third of a pixel.
                assert!((sum - area).abs() < 30.0, "({dx}, {dy}) width {width}: {sum}, not {area}");
            }
        }
    }

    #[test]
    fn a_crossing_is_not_painted_twice_and_a_frame_cuts() {
        let zigzag: Vec<Pt> = (0..200).map(|i| (20.0 + f64::from(i) / 4.0, [20.0, 90.0][i as usize % 2])).collect();
        let pixels = ink(|c| c.line(&zigzag, &black(3.0, 0.5), (40.0, 60.0)));
        assert!((pixels.iter().copied().fold(0.0, f64::max) - 0.5).abs() < 0.01);
        let rows: Vec<usize> = (0..300).filter(|y| pixels[y * 300..][..300].iter().any(|v| *v > 0.2)).collect();
        assert_eq!((rows[0], rows[rows.len() - 1]), (40, 59));
    }

    #[test]
    fn text_is_as_wide_as_measured_and_turns_to_the_left() {
        for upwards in [false, true] {
            let width = text_width("Hβ−²H", 20.0);
            let p = ink(|c| c.text("Hβ−²H", (100.0, 100.0), (20.0, BLACK), HPos::Left, upwards));
            let dark = (0..300 * 300).filter(|i| p[*i] > 0.5);
            let (x, y): (Vec<_>, Vec<_>) = dark.map(|i| (i % 300, i / 300)).unzip();
            let (along, across) = if upwards { (y, x) } else { (x, y) };
            let reach = |v: &[usize]| (*v.iter().min().unwrap(), *v.iter().max().unwrap());
            let (from, to) = reach(&along);
            let start = if upwards { 100.0 - width } else { 100.0 };
            // plotters leaves out the space to the left of each sign.
            assert!((from as f64 - start).abs() < 5.0, "{from} {start}");
            assert!((to as f64 - start - width).abs() < 5.0, "{to} {start}");
            // Above the baseline (turned: left of it) stands nearly all; only beta's foot hangs below.
            let (top, foot) = reach(&across);
            assert!((84..=87).contains(&top) && (100..=105).contains(&foot), "{top} {foot}");
        }
    }

    #[test]
    fn every_sign_that_charts_use_has_a_glyph() {
        let shape = |c: char| {
            let mut dots = Vec::new();
            let drawn = font(20.0).draw(&c.to_string(), (0, 0), |x, y, cover| {
                dots.push((x, y, (cover * 255.0) as u8));
                Ok::<(), ()>(())
            });
            drawn.unwrap().unwrap();
            dots
        };
        let missing = shape('\u{10ffff}');
        assert!(!missing.is_empty());
        for c in "(+,-./:=_%'\"0123456789 AZaz−–—…·×²≈≤≥βλμσΔΩ∞éüß".chars() {
            assert_ne!(shape(c), missing, "no glyph for {c:?}: it would show as a box");
        }
    }

    #[test]
    fn svg_text_is_escaped() {
        let text = |c: &Canvas<SVGBackend>| c.text("a<b>&\u{1}c", (1.0, 2.0), (9.0, BLACK), HPos::Left, true);
        let svg = String::from_utf8(svg((10, 10), text).unwrap()).unwrap();
        assert!(svg.contains(">\na&lt;b&gt;&amp; c\n</text>") && svg.contains("rotate(270"), "{svg}");
        assert!(svg.starts_with("<svg width=\"10\" height=\"10\" viewBox=\"0 0 30 30\""), "{svg}");
        assert!(
            svg.contains("width=\"30\" height=\"30\" opacity=\"1\" fill=\"#FFFFFF\""),
            "the ground is white: {svg}"
        );
    }
}
