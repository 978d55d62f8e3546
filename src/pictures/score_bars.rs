//! A bar chart of scores: a panel for each score, a bar for each model.

use std::path::Path;

use anyhow::Result;
use plotters::element::{PathElement, Rectangle};
use plotters::style::Color;
use plotters::style::text_anchor::HPos;

use crate::pictures::chart::{Axis, Curve, Frame, GREY, INK, LABEL_SIZE, MARGIN, Style, TICK_SIZE, legend_rows};
use crate::pictures::curves::color;
use crate::pictures::surface::{self, Backend, Drawing, Pt, Surface, text_width, units};
use crate::pictures::ticks::{grouped, ticks};

/// Panels beside each other.
const COLUMNS: usize = 4;
/// Width and height of a panel with its texts, in pixels.
const PANEL: (f64, f64) = (250.0, 200.0);
/// Above the panels, without the legend, and below them: an axis needs this much.
const TOP: f64 = 58.0;
const BOTTOM: f64 = 28.0;
const LEGEND_ROW: f64 = 22.0;

/// One score of all models.
#[derive(Clone, Debug, Default)]
pub struct ScorePanel {
    /// The score's name.
    pub name: String,
    /// What is better, in words.
    pub better: &'static str,
    /// The value of each model and its standard error, where there is one; none for a model without this score.
    pub bars: Vec<Option<(f64, Option<f64>)>>,
    /// The value of real images, drawn as a dashed line.
    pub real: Option<f64>,
    /// Digits after the point.
    pub digits: usize,
}

/// Scores of several models.
#[derive(Clone, Debug, Default)]
pub struct ScoreBars {
    /// Above the panels.
    pub title: String,
    /// A short text to the right of the title.
    pub note: String,
    /// The models' names, in the order of the bars.
    pub names: Vec<String>,
    /// The panels, row by row.
    pub panels: Vec<ScorePanel>,
}

impl ScoreBars {
    /// Draws the chart to `out`.
    ///
    /// # Errors
    /// If `out` does not end in `.png` or `.svg`, or cannot be written. The write is atomic.
    pub fn draw_to(&self, out: &Path) -> Result<()> {
        let rows = self.panels.len().div_ceil(COLUMNS).max(1) as f64;
        let width = PANEL.0 * COLUMNS as f64 + MARGIN;
        let legend = legend_rows(&self.legend(), width - 2.0 * MARGIN).len() as f64 * LEGEND_ROW;
        let height = TOP + legend + rows * PANEL.1 + BOTTOM;
        surface::write(self, (width as u32, height as u32), out)
    }

    fn legend(&self) -> Vec<Curve> {
        let entry = |(style, color, label)| Curve { style, color, points: Vec::new(), label };
        let models = self.names.iter().enumerate().map(|(i, name)| (Style::Line, color(i), name.clone()));
        let real = self.panels.iter().any(|panel| panel.real.is_some());
        models.chain(real.then(|| (Style::Level, INK, "real images".to_owned()))).map(entry).collect()
    }
}

impl ScorePanel {
    /// From 0 to beyond all bars, their errors and the line of real images.
    fn range(&self) -> Pt {
        let ends = self.bars.iter().flatten().flat_map(|(v, e)| [v - e.unwrap_or(0.0), v + e.unwrap_or(0.0)]);
        let (low, high) = ends.chain(self.real).fold((0.0, 0.0), |(l, h): Pt, v| (l.min(v), h.max(v)));
        let room = if high > low { 0.14 * (high - low) } else { 1.0 };
        (if low < 0.0 { low - room } else { 0.0 }, high + room)
    }

    /// A value with three significant digits, at most as many after the point as it has.
    fn text(&self, value: f64) -> String {
        let before = if value == 0.0 { 3.0 } else { value.abs().log10().floor() + 1.0 };
        grouped(value, ((3.0 - before).max(0.0) as usize).min(self.digits))
    }

    fn draw<DB: Backend>(&self, on: &Surface<DB>, (left, top): Pt) -> Result<()> {
        let frame = Frame { x0: left + 66.0, y0: top + 26.0, x1: left + PANEL.0, y1: top + PANEL.1 - 18.0 };
        on.text(&self.name, (frame.x0, top + 12.0), (LABEL_SIZE, INK), HPos::Left)?;
        on.text(self.better, (frame.x1, top + 12.0), (TICK_SIZE - 1.0, GREY), HPos::Right)?;
        let (range, count) = (self.range(), self.bars.len() as f64);
        let axis = |range, ticks| Axis { label: String::new(), range, ticks };
        let mut plot = on.axes(frame, axis((0.0, count), Vec::new()), axis(range, ticks(range.0, range.1, 4)))?;
        let width = (frame.x1 - frame.x0) / count.max(1.0);
        for (i, bar) in self.bars.iter().enumerate() {
            let Some((value, error)) = *bar else { continue };
            let middle = i as f64 + 0.5;
            let style = color(i).filled();
            plot.draw_series([Rectangle::new([(middle - 0.36, 0.0), (middle + 0.36, value)], style)])?;
            let mut end = value.max(0.0);
            if let Some(error) = error {
                let line = vec![(middle, value - error), (middle, value + error)];
                plot.draw_series([PathElement::new(line, INK.stroke_width(units(1.3) as u32))])?;
                end = end.max(value + error);
            }
            let text = self.text(value);
            if text_width(&text, TICK_SIZE - 1.0) < width {
                let (x, y) = plot.backend_coord(&(middle, end));
                let at = (f64::from(x) / f64::from(units(1.0)), f64::from(y) / f64::from(units(1.0)) - 8.0);
                on.text(&text, at, (TICK_SIZE - 1.0, INK), HPos::Center)?;
            }
        }
        if let Some(real) = self.real {
            Style::Level.line(plot.plotting_area(), INK, vec![(0.0, real), (count, real)])?;
        }
        Ok(())
    }
}

impl Drawing for ScoreBars {
    fn draw<DB: Backend>(&self, on: &Surface<DB>) -> Result<()> {
        on.title(&self.title, &self.note)?;
        let legend = legend_rows(&self.legend(), on.size.0 - 2.0 * MARGIN);
        on.legend(&legend, (MARGIN, 44.0))?;
        let top = TOP + legend.len() as f64 * LEGEND_ROW;
        for (i, panel) in self.panels.iter().enumerate() {
            panel.draw(on, ((i % COLUMNS) as f64 * PANEL.0, top + (i / COLUMNS) as f64 * PANEL.1))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panel_shows_zero_all_bars_their_errors_and_real_images() {
        let range = |bars: &[(f64, Option<f64>)], real| {
            ScorePanel { bars: bars.iter().map(|b| Some(*b)).collect(), real, ..ScorePanel::default() }.range()
        };
        let (low, high) = range(&[(2.0, Some(0.5)), (1.0, None)], Some(3.0));
        assert!(low == 0.0 && high > 3.0 && high < 3.6, "{low} {high}");
        let (low, high) = range(&[(0.2, None)], Some(-0.1));
        assert!(low < -0.1 && high > 0.2, "{low} {high}");
        assert_eq!(range(&[], None), (0.0, 1.0), "an axis needs a length");
        let missing = ScorePanel { bars: vec![None, Some((4.0, None))], ..ScorePanel::default() };
        assert!(missing.range().1 > 4.0);
    }

    #[test]
    fn a_bar_is_labelled_with_three_digits() {
        let panel = ScorePanel { digits: 5, ..ScorePanel::default() };
        let texts = [94.285, 1.59005, 0.0021349, 180.017, 4321.9, 0.0, -0.00115, 0.7].map(|v| panel.text(v));
        assert_eq!(texts, ["94.3", "1.59", "0.00213", "180", "4,322", "0", "−0.00115", "0.700"]);
        assert_eq!(ScorePanel::default().text(20.0), "20", "a count has none after the point");
    }
}
