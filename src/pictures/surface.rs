//! The surface that charts are drawn on: a PNG or an SVG with the same lines and texts.
//!
//! The PNG backend of plotters rounds to whole pixels, draws spikes at sharp turns of wide lines, and misplaces the baseline of
//! text. So plotters works in units of a third of a pixel here, and our backend [`Pixels`] draws with a round pen; each pixel of
//! the PNG is the mean of 3x3 units.

use std::convert::Infallible;
use std::path::Path;

use anyhow::{Context, Result, bail};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, Pixel, Rgb, RgbImage};
use plotters::coord::Shift;
use plotters::element::Text;
use plotters::prelude::{DrawingArea, FontDesc, FontFamily, FontStyle, IntoDrawingArea, RGBColor, SVGBackend, WHITE};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{TextStyle, register_font};
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind};

use crate::base::atomic_file;

/// A position: x to the right, y downwards; or a (step, value) pair.
pub(super) type Pt = (f64, f64);

/// A subset of DejaVu Sans; see `src/assets/plot-sans.LICENSE.txt`.
const FONT: &[u8] = include_bytes!("../assets/plot-sans.ttf");
/// Its font family in plotters and in an SVG.
const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";
/// Height of the font from its lowest to its highest point in ems: the unit of plotters' font sizes on a bitmap.
const FONT_HEIGHT: f64 = 1.164;
/// plotters divides the font sizes of an SVG by this.
const SVG_FONT_HEIGHT: f64 = 1.24;
/// Distance from the middle of capitals to the baseline in ems.
const HALF_CAPITAL: f64 = 0.36;
/// plotters' units per pixel.
const FINE: u32 = 3;

/// Converts pixels to units.
pub(super) fn units(pixels: f64) -> i32 {
    (pixels * f64::from(FINE)).round() as i32
}

/// A plotters backend whose errors convert to [`anyhow::Error`].
pub(super) trait Backend: DrawingBackend<ErrorType: 'static> {}

impl<DB: DrawingBackend<ErrorType: 'static>> Backend for DB {}

/// A chart that can be drawn on either kind of surface.
pub(super) trait Drawing {
    fn draw<DB: Backend>(&self, on: &Surface<DB>) -> Result<()>;
}

/// A surface to draw on. Sizes and positions are in pixels.
pub(super) struct Surface<DB: DrawingBackend> {
    /// The plotters drawing area, in units.
    pub root: DrawingArea<DB, Shift>,
    /// Width and height.
    pub size: Pt,
    /// plotters' font size for an em of one unit.
    em: f64,
}

impl<DB: Backend> Surface<DB> {
    fn new(backend: DB, em: f64) -> Self {
        let (w, h) = backend.get_size();
        Surface { root: backend.into_drawing_area(), size: (f64::from(w / FINE), f64::from(h / FINE)), em }
    }

    /// A text style of this many pixels per em.
    pub(super) fn font(&self, size: f64, color: RGBColor) -> TextStyle<'static> {
        font(size * self.em).color(&color)
    }

    /// Draws a text: its `side` is at `at`, its capitals are vertically centred there.
    pub(super) fn text(&self, text: &str, at: Pt, (size, color): (f64, RGBColor), side: HPos) -> Result<()> {
        let style = self.font(size, color).pos(Pos::new(side, VPos::Center));
        // XML 1.0 does not allow these characters.
        let unwritable = |c: char| c.is_control() || c == '\u{fffe}' || c == '\u{ffff}';
        Ok(self.root.draw(&Text::new(text.replace(unwritable, " "), (units(at.0), units(at.1)), style))?)
    }
}

/// The embedded font at this plotters font size.
fn font(size: f64) -> FontDesc<'static> {
    static ONCE: std::sync::Once = std::sync::Once::new();
    // An error shows when text is drawn with the font.
    ONCE.call_once(|| drop(register_font(FAMILY, FontStyle::Normal, FONT)));
    // An even size puts the baseline on a whole unit.
    FontDesc::new(FontFamily::Name(FAMILY), (size * f64::from(FINE) / 2.0).round() * 2.0, FontStyle::Normal)
}

/// The advance width of a text in pixels, in the embedded font.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    font(size * FONT_HEIGHT).box_size(text).map_or(0.0, |(w, _)| f64::from(w) / f64::from(FINE))
}

/// Shortens the middle of a text until it fits: run names differ at their ends.
pub(super) fn shorten(text: &str, size: f64, width: f64) -> String {
    if text_width(text, size) <= width {
        return text.to_owned();
    }
    let letters: Vec<char> = text.chars().collect();
    let ends =
        |keep: usize| letters[..keep].iter().chain(&['…']).chain(&letters[letters.len() - keep..]).collect::<String>();
    let keeps: Vec<usize> = (0..=letters.len() / 2).collect();
    let fitting = keeps.partition_point(|keep| text_width(&ends(*keep), size) <= width);
    ends(fitting.saturating_sub(1))
}

/// Draws a chart of this many pixels to `out`, with an atomic write.
///
/// # Errors
/// When `out` ends in neither `.png` nor `.svg`, or cannot be written.
pub(super) fn write(drawing: &impl Drawing, size: (u32, u32), out: &Path) -> Result<()> {
    let extension = out.extension().map(|e| e.to_string_lossy().to_lowercase());
    let bytes = match extension.as_deref() {
        Some("png") => png(drawing, size)?,
        Some("svg") => svg(drawing, size)?,
        found => bail!(
            "cannot draw to {}: its ending is {}, and charts are written as .png or .svg; name the file, for example, {}",
            out.display(),
            found.map_or("missing".to_owned(), |e| format!("'.{e}'")),
            out.with_extension("png").display()
        ),
    };
    Ok(atomic_file::write_unsynced(out, &bytes)?)
}

fn png(drawing: &impl Drawing, (w, h): (u32, u32)) -> Result<Vec<u8>> {
    let mut large = RgbImage::from_pixel(w * FINE, h * FINE, Rgb([255; 3]));
    drawing.draw(&Surface::new(Pixels(&mut large), FONT_HEIGHT))?;
    let image = image::imageops::thumbnail(&large, w, h);
    let mut out = Vec::new();
    // Measured: 15 times faster than the default compression; files from a third smaller to a third larger.
    PngEncoder::new_with_quality(&mut out, CompressionType::Fast, FilterType::Adaptive)
        .write_image(&image, w, h, ExtendedColorType::Rgb8)
        .context("cannot encode the chart as PNG")?;
    Ok(out)
}

fn svg(drawing: &impl Drawing, (w, h): (u32, u32)) -> Result<Vec<u8>> {
    let mut out = String::new();
    let (large_w, large_h) = (w * FINE, h * FINE);
    let surface = Surface::new(SVGBackend::with_string(&mut out, (large_w, large_h)), SVG_FONT_HEIGHT);
    surface.root.fill(&WHITE)?;
    drawing.draw(&surface)?;
    drop(surface);
    // Scales units to pixels, puts coordinates at the centre of a unit, and rounds joins and ends of lines as in a PNG.
    let head = |w, h, from| format!("width=\"{w}\" height=\"{h}\" viewBox=\"{from} {from} {large_w} {large_h}\"");
    let round = " stroke-linejoin=\"round\" stroke-linecap=\"round\"";
    Ok(out
        .replacen(&head(large_w, large_h, "0"), &(head(w, h, "-0.5") + round), 1)
        .replace("<line ", "<line shape-rendering=\"crispEdges\" ")
        .replace("dy=\"0.5ex\"", &format!("dy=\"{HALF_CAPITAL}em\""))
        .into_bytes())
}

/// A plotters backend that draws on an image.
struct Pixels<'a>(&'a mut RgbImage);

type Drawn = Result<(), DrawingErrorKind<Infallible>>;

impl Pixels<'_> {
    fn paint(&mut self, (x, y): BackendCoord, BackendColor { alpha, rgb: (r, g, b) }: BackendColor) {
        let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
        let blend = |old, new| (f64::from(old) + alpha * (f64::from(new) - f64::from(old))).round() as u8;
        if let Some(pixel) = self.0.get_pixel_mut_checked(x, y) {
            pixel.apply2(&Rgb([r, g, b]), blend);
        }
    }

    /// Draws a path with a round pen. Each pixel is painted once, also where the path crosses itself.
    fn pen(&mut self, path: &[BackendCoord], radius: f64, color: BackendColor) {
        let (xs, ys) = (path.iter().map(|p| p.0), path.iter().map(|p| p.1));
        let (Some(left), Some(top)) = (xs.clone().min(), ys.clone().min()) else { return };
        let (Some(right), Some(bottom)) = (xs.max(), ys.max()) else { return };
        let reach = radius.ceil() as i32;
        let width = (right - left + 2 * reach + 1) as usize;
        let mut painted = vec![false; width * (bottom - top + 2 * reach + 1) as usize];
        for i in 0..(path.len() - 1).max(1) {
            let (a, b) = (path[i], path[(i + 1).min(path.len() - 1)]);
            let (dx, dy) = (f64::from(b.0 - a.0), f64::from(b.1 - a.1));
            for y in a.1.min(b.1) - reach..=a.1.max(b.1) + reach {
                for x in a.0.min(b.0) - reach..=a.0.max(b.0) + reach {
                    let (px, py) = (f64::from(x - a.0), f64::from(y - a.1));
                    // The nearest point of the segment is a + t·(b − a).
                    let t = ((px * dx + py * dy) / (dx * dx + dy * dy).max(1.0)).clamp(0.0, 1.0);
                    let covered = (px - t * dx).powi(2) + (py - t * dy).powi(2) <= radius * radius;
                    let pixel = (y - top + reach) as usize * width + (x - left + reach) as usize;
                    if covered && !std::mem::replace(&mut painted[pixel], true) {
                        self.paint((x, y), color);
                    }
                }
            }
        }
    }
}

impl DrawingBackend for Pixels<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.0.dimensions()
    }

    fn ensure_prepared(&mut self) -> Drawn {
        Ok(())
    }

    fn present(&mut self) -> Drawn {
        Ok(())
    }

    fn draw_pixel(&mut self, at: BackendCoord, color: BackendColor) -> Drawn {
        self.paint(at, color);
        Ok(())
    }

    /// Fills the whole pixels that a line of a grid or a row of a rectangle touches, so that it is sharp.
    fn draw_line<S: BackendStyle>(&mut self, a: BackendCoord, b: BackendCoord, style: &S) -> Drawn {
        let fine = FINE as i32;
        let first = |v: i32| v - v.rem_euclid(fine);
        for y in first(a.1.min(b.1))..first(a.1.max(b.1)) + fine {
            for x in first(a.0.min(b.0))..first(a.0.max(b.0)) + fine {
                self.paint((x, y), style.color());
            }
        }
        Ok(())
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(&mut self, path: I, style: &S) -> Drawn {
        let path: Vec<BackendCoord> = path.into_iter().collect();
        self.pen(&path, f64::from(style.stroke_width()) / 2.0, style.color());
        Ok(())
    }

    fn draw_circle<S: BackendStyle>(&mut self, at: BackendCoord, radius: u32, style: &S, _filled: bool) -> Drawn {
        self.pen(&[at], f64::from(radius), style.color());
        Ok(())
    }

    /// Places text as an SVG viewer does.
    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, at: BackendCoord) -> Drawn {
        let unknown = |e| DrawingErrorKind::FontError(Box::new(e));
        let ((left, _), (right, _)) = style.layout_box(text).map_err(unknown)?;
        let aside = match style.anchor().h_pos {
            HPos::Left => 0,
            HPos::Center => (left - right) / 2,
            HPos::Right => left - right,
        };
        let baseline = match style.anchor().v_pos {
            VPos::Top => 0.76,
            VPos::Center => HALF_CAPITAL,
            VPos::Bottom => -0.27,
        };
        let down = (baseline * style.size() / FONT_HEIGHT).round() as i32;
        let turn = style.transform();
        let (x, y) = turn.transform(aside, down);
        // Rounded to a whole pixel, so that text is sharp.
        let whole = |v: i32| units((f64::from(v) / f64::from(FINE)).round());
        let start = (whole(at.0 + x), whole(at.1 + y));
        let put = |x, y, color| {
            // The baseline of plotters is half of the font size below the top.
            let (x, y) = turn.transform(x, y - (style.size() / 2.0) as i32);
            self.paint((start.0 + x, start.1 + y), color);
            Ok(())
        };
        style.draw(text, (0, 0), put).map_err(unknown)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plotters::element::PathElement;
    use plotters::style::{BLACK, Color, ShapeStyle};

    fn ink(draw: impl FnOnce(&Surface<Pixels>) -> Result<()>) -> Vec<f64> {
        let mut large = RgbImage::from_pixel(300 * FINE, 300 * FINE, Rgb([255; 3]));
        draw(&Surface::new(Pixels(&mut large), FONT_HEIGHT)).unwrap();
        let image = image::imageops::thumbnail(&large, 300, 300);
        image.pixels().map(|p| 1.0 - f64::from(p.0[0]) / 255.0).collect()
    }

    fn line(on: &Surface<Pixels>, path: &[Pt], width: u32, alpha: f64) -> Result<()> {
        let path: Vec<_> = path.iter().map(|p| (units(p.0), units(p.1))).collect();
        let style = ShapeStyle { color: BLACK.mix(alpha), filled: false, stroke_width: width * FINE };
        Ok(on.root.draw(&PathElement::new(path, style))?)
    }

    #[test]
    fn a_line_has_the_ink_of_its_area_at_any_angle() {
        for (dx, dy) in [(100.0, 0.0), (0.0, 100.0), (60.0, 80.0), (96.0, -28.0)] {
            for width in [1, 3, 7] {
                let ends = [(150.0, 150.0), (150.0 + dx, 150.0 + dy)];
                let sum: f64 = ink(|s| line(s, &ends, width, 1.0)).iter().sum();
                // The line and its two round ends.
                let width = f64::from(width);
                let area = 100.0 * width + std::f64::consts::PI * width * width / 4.0;
                // Edges lie on whole units, a third of a pixel.
                assert!((sum - area).abs() < 30.0, "({dx}, {dy}) width {width}: {sum}, not {area}");
            }
        }
    }

    #[test]
    fn a_crossing_is_not_painted_twice_and_turns_have_no_spikes() {
        let zigzag: Vec<Pt> = (0..200).map(|i| (20.0 + f64::from(i) / 4.0, [40.0, 60.0][i as usize % 2])).collect();
        let pixels = ink(|s| line(s, &zigzag, 3, 0.5));
        assert!((pixels.iter().copied().fold(0.0, f64::max) - 0.5).abs() < 0.01);
        let rows: Vec<usize> = (0..300).filter(|y| pixels[y * 300..][..300].iter().any(|v| *v > 0.2)).collect();
        assert_eq!((rows[0], rows[rows.len() - 1]), (39, 61));
    }

    #[test]
    fn lines_of_a_grid_are_sharp() {
        struct Grid;
        impl BackendStyle for Grid {
            fn color(&self) -> BackendColor {
                BackendColor { alpha: 1.0, rgb: (0, 0, 0) }
            }
        }
        for x in 300..303 {
            let mut large = RgbImage::from_pixel(300 * FINE, 300 * FINE, Rgb([255; 3]));
            Pixels(&mut large).draw_line((x, 200), (x, 100), &Grid).unwrap();
            let image = image::imageops::thumbnail(&large, 300, 300);
            let dark: Vec<_> = image.enumerate_pixels().filter(|p| p.2.0[0] < 255).map(|p| (p.0, p.2.0[0])).collect();
            assert!(dark.len() == 34 && dark.iter().all(|d| *d == (100, 0)), "{dark:?}");
        }
    }

    #[test]
    fn text_is_as_wide_as_measured_and_centred() {
        let width = text_width("Hβ−²H", 20.0);
        let p = ink(|s| s.text("Hβ−²H", (100.0, 100.0), (20.0, BLACK), HPos::Left));
        let (x, y): (Vec<_>, Vec<_>) = (0..300 * 300).filter(|i| p[*i] > 0.5).map(|i| (i % 300, i / 300)).unzip();
        let reach = |v: &[usize]| (*v.iter().min().unwrap() as f64, *v.iter().max().unwrap() as f64);
        let ((from, to), (top, foot)) = (reach(&x), reach(&y));
        // plotters leaves out the space to the left of each sign.
        assert!((from - 100.0).abs() < 5.0 && (to - 100.0 - width).abs() < 5.0, "{from} {to} {width}");
        // Capitals reach as far up as down; only beta's foot hangs below them.
        assert!((92.0..=94.0).contains(&top) && (107.0..=112.0).contains(&foot), "{top} {foot}");
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
        struct Words;
        impl Drawing for Words {
            fn draw<DB: Backend>(&self, on: &Surface<DB>) -> Result<()> {
                on.text("a<b>&\u{1}c", (1.0, 2.0), (9.0, BLACK), HPos::Left)
            }
        }
        let svg = String::from_utf8(svg(&Words, (10, 10)).unwrap()).unwrap();
        assert!(svg.contains(">\na&lt;b&gt;&amp; c\n</text>") && svg.contains("dy=\"0.36em\""), "{svg}");
        assert!(
            svg.starts_with("<svg width=\"10\" height=\"10\" viewBox=\"-0.5 -0.5 30 30\" stroke-linejoin"),
            "{svg}"
        );
        assert!(svg.contains("fill=\"#FFFFFF\""), "the ground is white: {svg}");
        assert!(svg.trim_end().ends_with("</svg>"), "{svg}");
    }

    #[test]
    fn long_names_lose_their_middle() {
        let name = "0007-a-very-long-name-of-a-run-with-seed-12";
        let short = shorten(name, 14.0, 150.0);
        assert!(text_width(&short, 14.0) <= 150.0, "{short}");
        assert!(short.starts_with("0007-") && short.ends_with("-12") && short.contains('…'));
        assert_eq!(shorten("short", 14.0, 150.0), "short");
    }
}
