//! Points in the plane, a colour for each class: latents as a picture.

use super::canvas::{Canvas, Drawing, Stroke, text_width};
use super::chart::{FRAME, GREY, GRID, INK, LABEL_SIZE, TICK_SIZE, TITLE_SIZE, shorten};
use super::scale::{Pt, grouped, tick_texts, ticks};
use super::{BLUE, shade};
use anyhow::Result;
use plotters::backend::DrawingBackend;
use plotters::style::text_anchor::HPos;
use plotters::style::{RGBColor, WHITE};

/// Width and height of a scatter plot in pixels.
pub(super) const SIZE: (u32, u32) = (1000, 800);

/// Ten colours that readers with any kind of colour vision can tell apart: Petroff 2021 (arXiv 2107.02270). Of the palettes
/// of ten in use, the one whose two closest colours lie farthest apart in simulated colour blindness.
const PALETTE: [RGBColor; 10] = [
    RGBColor(63, 144, 218),
    RGBColor(255, 169, 14),
    RGBColor(189, 31, 1),
    RGBColor(148, 164, 162),
    RGBColor(131, 45, 182),
    RGBColor(169, 107, 89),
    RGBColor(231, 99, 0),
    RGBColor(185, 172, 112),
    RGBColor(113, 117, 129),
    RGBColor(146, 218, 221),
];

const MARGIN: f64 = 20.0;
/// The frame's corner, and how much is left free to the right (the legend) and below (numbers and a label).
const TOP: f64 = 54.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 190.0;
const BELOW: f64 = 62.0;
const ROW: f64 = 24.0;
/// Standard deviations of the prior that are drawn as circles.
const RINGS: [f64; 3] = [1.0, 2.0, 3.0];
const RING: RGBColor = RGBColor(150, 150, 150);

/// Points, their classes, and what stands beside them.
#[derive(Clone, Debug, Default)]
pub struct Scatter {
    /// Above the picture.
    pub title: String,
    /// A short fact at the right end of the title's line.
    pub note: String,
    /// Below the picture.
    pub x_label: String,
    /// To its left.
    pub y_label: String,
    /// The points, finite.
    pub points: Vec<(f64, f64)>,
    /// A class number for each point, or empty where there are no classes.
    pub classes: Vec<usize>,
    /// Names of the classes by number; one without a name is called by its number.
    pub names: Vec<String>,
    /// The mean of a standard normal prior, of which circles show one, two and three standard deviations.
    pub prior: (f64, f64),
}

/// Maps points to pixels, as many to a unit across as upwards.
struct View {
    from: Pt,
    to: Pt,
    middle: Pt,
    scale: f64,
}

impl View {
    /// A frame from pixel `from` to pixel `to` that shows all of `points`.
    fn of(points: impl Iterator<Item = Pt>, from: Pt, to: Pt) -> View {
        let whole = (f64::INFINITY, f64::NEG_INFINITY);
        let (x, y) = points
            .fold((whole, whole), |(x, y): (Pt, Pt), p| ((x.0.min(p.0), x.1.max(p.0)), (y.0.min(p.1), y.1.max(p.1))));
        let middle = ((x.0 + x.1) / 2.0, (y.0 + y.1) / 2.0);
        // A little air, so that no point lies on the frame.
        let fits = |pixels: f64, span: f64| pixels / (span * 1.06).max(1e-9);
        let scale = fits(to.0 - from.0, x.1 - x.0).min(fits(to.1 - from.1, y.1 - y.0));
        View { from, to, middle, scale }
    }

    fn place(&self, (x, y): Pt) -> Pt {
        let centre = ((self.from.0 + self.to.0) / 2.0, (self.from.1 + self.to.1) / 2.0);
        (centre.0 + (x - self.middle.0) * self.scale, centre.1 - (y - self.middle.1) * self.scale)
    }

    /// Least and greatest x and y that the frame shows.
    fn ranges(&self) -> (Pt, Pt) {
        let half = ((self.to.0 - self.from.0) / 2.0 / self.scale, (self.to.1 - self.from.1) / 2.0 / self.scale);
        let (x, y) = self.middle;
        ((x - half.0, x + half.0), (y - half.1, y + half.1))
    }
}

impl Scatter {
    fn name(&self, class: usize) -> String {
        self.names.get(class).cloned().unwrap_or_else(|| format!("class {class}"))
    }

    fn color(&self, class: Option<&usize>) -> RGBColor {
        class.map_or(BLUE, |c| shade(&PALETTE, *c))
    }

    /// Class numbers that occur, and how often.
    fn counts(&self) -> Vec<(usize, usize)> {
        let mut counts = vec![0; self.classes.iter().max().map_or(0, |c| c + 1)];
        self.classes.iter().for_each(|c| counts[*c] += 1);
        counts.into_iter().enumerate().filter(|(_, n)| *n > 0).collect()
    }
}

impl Drawing for Scatter {
    fn on<DB: DrawingBackend>(&self, canvas: &Canvas<DB>) -> Result<()> {
        let (width, height) = canvas.size;
        let (from, to) = ((LEFT, TOP), (width - RIGHT, height - BELOW));
        let room = width - 2.0 * MARGIN - text_width(&self.note, LABEL_SIZE) - 30.0;
        canvas.text(&shorten(&self.title, TITLE_SIZE, room), (MARGIN, 34.0), (TITLE_SIZE, INK), HPos::Left, false)?;
        canvas.text(&self.note, (width - MARGIN, 34.0), (LABEL_SIZE, GREY), HPos::Right, false)?;
        // Two standard deviations of the prior are always in sight: latents that have collapsed show as such.
        let (x, y) = self.prior;
        let around = [(x - 2.0, y), (x + 2.0, y), (x, y - 2.0), (x, y + 2.0)];
        let view = View::of(self.points.iter().copied().chain(around), from, to);
        canvas.scatter_axes(&view, self)?;
        canvas.scatter_points(&view, self)?;
        canvas.scatter_rings(&view, self.prior)?;
        canvas.scatter_legend((to.0 + 20.0, TOP + 4.0), self)
    }
}

impl<DB: DrawingBackend> Canvas<DB> {
    fn scatter_axes(&self, view: &View, scatter: &Scatter) -> Result<()> {
        let (from, to) = (view.from, view.to);
        let (xs, ys) = view.ranges();
        let marks = |range: Pt| ticks(range.0, range.1, 7);
        for (tick, name) in marks(xs).iter().zip(tick_texts(&marks(xs))) {
            let x = view.place((*tick, 0.0)).0;
            self.crisp_line((x, from.1), (x, to.1), GRID)?;
            self.text(&name, (x, to.1 + 19.0), (TICK_SIZE, INK), HPos::Center, false)?;
        }
        for (tick, name) in marks(ys).iter().zip(tick_texts(&marks(ys))) {
            let y = view.place((0.0, *tick)).1;
            self.crisp_line((from.0, y), (to.0, y), GRID)?;
            self.text(&name, (from.0 - 8.0, y + TICK_SIZE * 0.36), (TICK_SIZE, INK), HPos::Right, false)?;
        }
        for (a, b) in [((from.0, from.1), (to.0, from.1)), ((from.0, to.1), (to.0, to.1))] {
            self.crisp_line(a, b, FRAME)?;
        }
        for x in [from.0, to.0] {
            self.crisp_line((x, from.1), (x, to.1), FRAME)?;
        }
        let middle = ((from.0 + to.0) / 2.0, (from.1 + to.1) / 2.0);
        self.text(&scatter.x_label, (middle.0, to.1 + 44.0), (LABEL_SIZE, INK), HPos::Center, false)?;
        self.text(&scatter.y_label, (28.0, middle.1), (LABEL_SIZE, INK), HPos::Center, true)
    }

    fn scatter_points(&self, view: &View, scatter: &Scatter) -> Result<()> {
        let count = scatter.points.len();
        let root = (count as f64).sqrt().max(1.0);
        let (radius, alpha) = ((150.0 / root).clamp(2.0, 5.0), (25.0 / root).clamp(0.45, 0.85));
        // Data may stand class by class, and the last class would hide the others: a stride that has no factor in common with
        // any likely count mixes them, the same way every time.
        let stride = if count.is_multiple_of(7919) { 1 } else { 7919 };
        for i in (0..count).map(|i| i * stride % count) {
            let color = scatter.color(scatter.classes.get(i));
            self.faint_disc(view.place(scatter.points[i]), radius, color, alpha)?;
        }
        Ok(())
    }

    /// Circles around the prior's mean, as far as they lie in the frame.
    fn scatter_rings(&self, view: &View, (x, y): Pt) -> Result<()> {
        let stroke = Stroke { color: RING, alpha: 0.9, width: 1.2, dash: None };
        let cut = (view.from.1, view.to.1);
        for radius in RINGS {
            for side in [1.0, -1.0] {
                let at = |i: u32| {
                    let angle = std::f64::consts::PI * (1.0 - f64::from(i) / 180.0);
                    view.place((x + radius * angle.cos(), y + side * radius * angle.sin()))
                };
                let inside = |p: &Pt| p.0 >= view.from.0 && p.0 <= view.to.0;
                self.line(&(0..=180).map(at).filter(inside).collect::<Vec<_>>(), &stroke, cut)?;
            }
            let top = view.place((x, y + radius));
            let name = format!("{radius}σ");
            if top.1 > cut.0 + 14.0 && top.1 < cut.1 && top.0 > view.from.0 && top.0 < view.to.0 {
                let half = text_width(&name, TICK_SIZE) / 2.0;
                self.rect((top.0 - half - 3.0, top.1 - 7.0), (top.0 + half + 3.0, top.1 + 8.0), WHITE)?;
                self.text(&name, (top.0, top.1 + TICK_SIZE * 0.36), (TICK_SIZE, GREY), HPos::Center, false)?;
            }
        }
        Ok(())
    }

    fn scatter_legend(&self, (x, y): Pt, scatter: &Scatter) -> Result<()> {
        let counts = scatter.counts();
        let most = ((self.size.1 - y - BELOW) / ROW) as usize - 3;
        let shown = if counts.len() > most { most - 1 } else { counts.len() };
        let right = self.size.0 - MARGIN;
        let mut row = y + ROW / 2.0;
        for (class, count) in &counts[..shown] {
            self.disc((x + 6.0, row), 6.0, scatter.color(Some(class)))?;
            let count = grouped(*count as f64, 0);
            let room = right - x - 20.0 - text_width(&count, TICK_SIZE) - 8.0;
            let base = row + LABEL_SIZE * 0.36;
            let name = shorten(&scatter.name(*class), LABEL_SIZE, room);
            self.text(&name, (x + 20.0, base), (LABEL_SIZE, INK), HPos::Left, false)?;
            self.text(&count, (right, base), (TICK_SIZE, GREY), HPos::Right, false)?;
            row += ROW;
        }
        if shown < counts.len() {
            let more = format!("and {} more", counts.len() - shown);
            self.text(&more, (x + 20.0, row + LABEL_SIZE * 0.36), (LABEL_SIZE, GREY), HPos::Left, false)?;
            row += ROW;
        }
        row += if counts.is_empty() { 0.0 } else { ROW / 2.0 };
        for (i, text) in ["circles: 1, 2, 3 standard", "deviations of the prior"].into_iter().enumerate() {
            let at = (x, row + 18.0 * i as f64 + TICK_SIZE * 0.36);
            self.text(text, at, (TICK_SIZE - 0.5, GREY), HPos::Left, false)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_as_long_across_as_upwards_and_all_points_are_inside() {
        let points = [(-3.0, 1.0), (9.0, 1.5), (0.0, -2.0)];
        let (from, to) = ((100.0, 50.0), (700.0, 500.0));
        let view = View::of(points.into_iter(), from, to);
        for p in points {
            let (x, y) = view.place(p);
            assert!(x > from.0 && x < to.0 && y > from.1 && y < to.1, "{p:?} at {x}, {y}");
        }
        let (a, b, c) = (view.place((0.0, 0.0)), view.place((1.0, 0.0)), view.place((0.0, 1.0)));
        assert!((b.0 - a.0 - (a.1 - c.1)).abs() < 1e-9 && b.0 > a.0 && c.1 < a.1);
        let (xs, ys) = view.ranges();
        assert!(
            (view.place((xs.0, ys.1)).0 - from.0).abs() < 1e-9 && (view.place((xs.0, ys.1)).1 - from.1).abs() < 1e-9
        );
    }

    #[test]
    fn classes_are_counted_and_named() {
        let scatter = Scatter { classes: vec![2, 0, 2, 5], names: vec!["cat".into()], ..Scatter::default() };
        assert_eq!(scatter.counts(), [(0, 1), (2, 2), (5, 1)]);
        assert_eq!((scatter.name(0), scatter.name(2)), ("cat".to_owned(), "class 2".to_owned()));
        assert_ne!(scatter.color(Some(&0)), scatter.color(Some(&10)), "colours come round in another shade");
    }
}
