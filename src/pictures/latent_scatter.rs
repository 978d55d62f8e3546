//! A scatter plot of latents in two dimensions, with a colour for each class and circles for the prior.

use std::path::Path;

use anyhow::Result;
use plotters::element::{Circle, PathElement, Rectangle};
use plotters::style::text_anchor::HPos;
use plotters::style::{Color, RGBColor, WHITE};

use crate::pictures::chart::{Axis, BELOW, Frame, GREY, INK, LABEL_SIZE, MARGIN, TICK_SIZE};
use crate::pictures::curves::{BLUE, shade};
use crate::pictures::surface::{self, Backend, Drawing, Pt, Surface, shorten, text_width, units};
use crate::pictures::ticks::{grouped, ticks};

/// Width and height of the picture in pixels.
const SIZE: (u32, u32) = (1000, 800);
/// The frame of the axes; the legend is to its right.
const FRAME: Frame = Frame { x0: 78.0, y0: 54.0, x1: 810.0, y1: 738.0 };
/// Height of a row of the legend.
const ROW: f64 = 24.0;
const CIRCLE: RGBColor = RGBColor(150, 150, 150);

/// The ten-colour palette of Petroff 2021 (arXiv 2107.02270) as 0xRRGGBB, distinct under every kind of colour vision deficiency.
const PALETTE: [u32; 10] =
    [0x3f90da, 0xffa90e, 0xbd1f01, 0x94a4a2, 0x832db6, 0xa96b59, 0xe76300, 0xb9ac70, 0x717581, 0x92dadd];

/// A scatter plot of latents.
#[derive(Clone, Debug, Default)]
pub struct LatentScatter {
    /// Above the plot.
    pub title: String,
    /// A short text to the right of the title.
    pub note: String,
    /// Below the plot.
    pub x_label: String,
    /// To the left of the plot.
    pub y_label: String,
    /// The points, finite.
    pub points: Vec<(f64, f64)>,
    /// The class number of each point; empty without classes.
    pub classes: Vec<usize>,
    /// Names of the classes by number. A class without a name is labelled by its number.
    pub names: Vec<String>,
    /// The mean of a standard normal prior, the centre of circles at one, two and three standard deviations.
    pub prior: (f64, f64),
}

impl LatentScatter {
    /// Draws the plot to `out`.
    ///
    /// # Errors
    /// If `out` does not end in `.png` or `.svg`, or cannot be written. The write is atomic.
    pub fn draw_to(&self, out: &Path) -> Result<()> {
        surface::write(self, SIZE, out)
    }

    fn name(&self, class: usize) -> String {
        self.names.get(class).cloned().unwrap_or_else(|| format!("class {class}"))
    }

    fn color(&self, class: Option<&usize>) -> RGBColor {
        let rgb = |hex: u32| RGBColor((hex >> 16) as u8, (hex >> 8) as u8, hex as u8);
        class.map_or(BLUE, |c| shade(&PALETTE.map(rgb), *c))
    }

    /// Class numbers that occur, and how often.
    fn counts(&self) -> Vec<(usize, usize)> {
        let mut counts = vec![0; self.classes.iter().max().map_or(0, |c| c + 1)];
        self.classes.iter().for_each(|c| counts[*c] += 1);
        counts.into_iter().enumerate().filter(|(_, n)| *n > 0).collect()
    }

    /// Ranges of x and y that contain all points, with the same scale on both axes.
    fn ranges(&self) -> (Pt, Pt) {
        // Three standard deviations of the prior are always inside, so that collapsed latents look collapsed.
        let (x, y) = self.prior;
        let points = || self.points.iter().copied().chain([(x - 3.0, y - 3.0), (x + 3.0, y + 3.0)]);
        let span = |of: fn(Pt) -> f64| {
            let (low, high) =
                points().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |r, v| (r.0.min(v), r.1.max(v)));
            ((low + high) / 2.0, high - low)
        };
        let ((x, wide), (y, tall)) = (span(|p| p.0), span(|p| p.1));
        let (across, upwards) = (FRAME.x1 - FRAME.x0, FRAME.y1 - FRAME.y0);
        // A margin of 3 % on each side, so that no point lies on the frame.
        let unit = 1.06 / 2.0 * (wide / across).max(tall / upwards);
        ((x - unit * across, x + unit * across), (y - unit * upwards, y + unit * upwards))
    }

    fn legend<DB: Backend>(&self, on: &Surface<DB>) -> Result<()> {
        let counts = self.counts();
        let (x, y, right) = (FRAME.x1 + 20.0, FRAME.y0 + 4.0, on.size.0 - MARGIN);
        let most = ((on.size.1 - y - BELOW) / ROW) as usize - 3;
        let shown = if counts.len() > most { most - 1 } else { counts.len() };
        let mut row = y + ROW / 2.0;
        for (class, count) in &counts[..shown] {
            on.root.draw(&Circle::new((units(x + 6.0), units(row)), units(6.0), self.color(Some(class)).filled()))?;
            let count = grouped(*count as f64, 0);
            let room = right - x - 28.0 - text_width(&count, TICK_SIZE);
            let name = shorten(&self.name(*class), LABEL_SIZE, room);
            on.text(&name, (x + 20.0, row), (LABEL_SIZE, INK), HPos::Left)?;
            on.text(&count, (right, row), (TICK_SIZE, GREY), HPos::Right)?;
            row += ROW;
        }
        if shown < counts.len() {
            let more = format!("and {} more", counts.len() - shown);
            on.text(&more, (x + 20.0, row), (LABEL_SIZE, GREY), HPos::Left)?;
            row += ROW;
        }
        row += if counts.is_empty() { 0.0 } else { ROW / 2.0 };
        on.text("circles: 1, 2, 3 standard", (x, row), (TICK_SIZE - 0.5, GREY), HPos::Left)?;
        on.text("deviations of the prior", (x, row + 18.0), (TICK_SIZE - 0.5, GREY), HPos::Left)
    }
}

impl Drawing for LatentScatter {
    fn draw<DB: Backend>(&self, on: &Surface<DB>) -> Result<()> {
        on.title(&self.title, &self.note)?;
        let (x_range, y_range) = self.ranges();
        let axis = |label: &String, range: Pt| Axis { label: label.clone(), range, ticks: ticks(range.0, range.1, 7) };
        let mut plot = on.axes(FRAME, axis(&self.x_label, x_range), axis(&self.y_label, y_range))?;

        let count = self.points.len();
        let root = (count as f64).sqrt().max(1.0);
        let (radius, alpha) = ((150.0 / root).clamp(2.0, 5.0), (25.0 / root).clamp(0.45, 0.85));
        // Data sorted by class would hide all classes but the last: a stride coprime to the count gives a fixed permutation.
        let stride = if count.is_multiple_of(7919) { 1 } else { 7919 };
        plot.draw_series(
            (0..count).map(|i| i * stride % count).map(|i| {
                Circle::new(self.points[i], units(radius), self.color(self.classes.get(i)).mix(alpha).filled())
            }),
        )?;

        let (x, y) = self.prior;
        let inside = |p: &Pt| (x_range.0..x_range.1).contains(&p.0) && (y_range.0..y_range.1).contains(&p.1);
        for sigmas in [1.0, 2.0, 3.0] {
            let at = |degrees: i32| {
                let (sin, cos) = f64::from(degrees).to_radians().sin_cos();
                (x + sigmas * sin, y + sigmas * cos)
            };
            let points: Vec<Pt> = (0..=360).map(at).collect();
            let parts = points.chunk_by(|a, b| inside(a) == inside(b)).filter(|part| inside(&part[0]));
            plot.draw_series(parts.map(|part| PathElement::new(part, CIRCLE.stroke_width(units(1.0) as u32))))?;
            if inside(&at(0)) {
                let name = format!("{sigmas}σ");
                let (mid_x, mid_y) = plot.backend_coord(&at(0));
                let (half_w, half_h) = (units(text_width(&name, TICK_SIZE)) / 2 + units(3.0), units(8.0));
                let corners = [(mid_x - half_w, mid_y - half_h), (mid_x + half_w, mid_y + half_h)];
                on.root.draw(&Rectangle::new(corners, WHITE.filled()))?;
                let [mid_x, mid_y] = [mid_x, mid_y].map(|v| f64::from(v) / f64::from(units(1.0)));
                on.text(&name, (mid_x, mid_y), (TICK_SIZE, GREY), HPos::Center)?;
            }
        }
        self.legend(on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_as_long_across_as_upwards_and_all_points_are_inside() {
        let points = vec![(-3.0, 1.0), (9.0, 1.5), (0.0, -2.0)];
        let scatter = LatentScatter { points: points.clone(), ..LatentScatter::default() };
        let (xs, ys) = scatter.ranges();
        for (x, y) in points.into_iter().chain([(-3.0, -3.0), (3.0, 3.0)]) {
            assert!(x > xs.0 && x < xs.1 && y > ys.0 && y < ys.1, "{x}, {y}");
        }
        let unit = |frame: f64, range: Pt| frame / (range.1 - range.0);
        let (across, upwards) = (unit(FRAME.x1 - FRAME.x0, xs), unit(FRAME.y1 - FRAME.y0, ys));
        assert!((across - upwards).abs() < 1e-9 && xs.1 - xs.0 < 13.0, "{xs:?} {ys:?}");
    }

    #[test]
    fn classes_are_counted_and_named() {
        let scatter =
            LatentScatter { classes: vec![2, 0, 2, 5], names: vec!["cat".into()], ..LatentScatter::default() };
        assert_eq!(scatter.counts(), [(0, 1), (2, 2), (5, 1)]);
        assert_eq!((scatter.name(0), scatter.name(2)), ("cat".to_owned(), "class 2".to_owned()));
        assert_ne!(scatter.color(Some(&0)), scatter.color(Some(&10)), "colours come round in another shade");
    }
}
