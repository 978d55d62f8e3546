//! Figures of panels with curves: axes and grids by plotters, robust ranges, legends above the frames.

use std::ops::Range;

use anyhow::Result;
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::CoordTranslate;
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::drawing::DrawingArea;
use plotters::element::{Circle, DashedPathElement, PathElement};
use plotters::style::text_anchor::HPos;
use plotters::style::{Color, RGBColor, ShapeStyle, TRANSPARENT, WHITE};

use crate::pictures::surface::{Backend, Drawing, Pt, Surface, shorten, text_width, units};
use crate::pictures::ticks::{grouped, tick_texts, ticks};

pub(super) const INK: RGBColor = RGBColor(38, 38, 38);
pub(super) const GREY: RGBColor = RGBColor(110, 110, 110);
const GRID: RGBColor = RGBColor(232, 232, 232);
const BORDER: RGBColor = RGBColor(160, 160, 160);

pub(super) const TITLE_SIZE: f64 = 19.0;
pub(super) const LABEL_SIZE: f64 = 14.0;
pub(super) const TICK_SIZE: f64 = 13.0;
pub(super) const MARGIN: f64 = 20.0;
/// Space below a frame for its ticks and its label.
pub(super) const BELOW: f64 = 50.0;
/// Space to the left of a frame besides its widest tick, for its label and gaps.
pub(super) const LEFT: f64 = 46.0;
/// Height of a row of a legend.
const LEGEND_ROW: f64 = 22.0;
/// Length of the line before an entry's text, the gap after the line, and the gap after the text.
const SAMPLE: f64 = 26.0;
const SAMPLE_GAP: f64 = 7.0;
const ENTRY_GAP: f64 = 22.0;
/// More rows would leave no room for the curves.
const MAX_LEGEND_ROWS: usize = 4;

/// How a curve is drawn; in the order of drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Style {
    /// Every logged value, faint.
    Raw,
    /// A solid line.
    Line,
    /// A solid thin line.
    Thin,
    /// Dots joined by a line.
    Dots,
    /// Dots joined by a dashed line.
    DashedDots,
    /// A faint dashed horizontal line at the value of the only point, labelled at the right edge.
    Level,
}

impl Style {
    /// Draws the line through `points`.
    pub(super) fn line<DB: Backend, C>(
        self,
        on: &DrawingArea<DB, C>,
        color: RGBColor,
        points: Vec<C::From>,
    ) -> Result<()>
    where
        C: CoordTranslate<From: Clone + 'static>,
    {
        let (alpha, width, dash) = match self {
            Style::Raw => (0.35, 1.0, None),
            Style::Line => (1.0, 7.0 / 3.0, None),
            Style::Thin | Style::Dots => (1.0, 5.0 / 3.0, None),
            Style::DashedDots => (1.0, 5.0 / 3.0, Some((4.5, 4.5))),
            Style::Level => (0.8, 1.0, Some((3.0, 4.0))),
        };
        let style = ShapeStyle { color: color.mix(alpha), filled: false, stroke_width: units(width) as u32 };
        match dash {
            Some((dash, gap)) => on.draw(&DashedPathElement::new(points, units(dash), units(gap), style))?,
            None => on.draw(&PathElement::new(points, style))?,
        }
        Ok(())
    }

    fn has_dots(self) -> bool {
        matches!(self, Style::Dots | Style::DashedDots)
    }
}

/// Points (step, value): finite, with increasing steps; may be empty.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    pub style: Style,
    pub color: RGBColor,
    pub points: Vec<Pt>,
    /// Text in the legend; empty for no entry.
    pub label: String,
}

/// Curves on one pair of axes.
pub(super) struct Panel {
    pub y_label: String,
    pub curves: Vec<Curve>,
}

/// A picture: rows of panels with the same x axis.
#[derive(Default)]
pub(super) struct Figure {
    pub title: String,
    /// A short text to the right of the title.
    pub note: String,
    /// Legend of all panels; may be empty.
    pub legend: Vec<Curve>,
    pub rows: Vec<Vec<Panel>>,
    pub x_label: String,
    pub x_max: f64,
}

/// A rectangle in pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub x0: f64,
    pub y0: f64,
    pub x1: f64,
    pub y1: f64,
}

/// One axis of a panel.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub label: String,
    pub range: Pt,
    pub ticks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.range.0) / (self.range.1 - self.range.0);
        from + (share * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // plotters asks for light points between the ticks first, then for the ticks.
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.0..self.range.1
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let texts = std::iter::zip(&self.ticks, tick_texts(&self.ticks));
        texts.into_iter().find(|(tick, _)| *tick == value).map_or_else(String::new, |(_, text)| text)
    }
}

/// A plotters chart: elements are placed by their values.
pub(super) type Axes<'a, DB> = ChartContext<'a, DB, Cartesian2d<Axis, Axis>>;

impl<DB: Backend> Surface<DB> {
    /// A title, and a note to its right.
    pub(super) fn title(&self, title: &str, note: &str) -> Result<()> {
        let room = self.size.0 - 2.0 * MARGIN - text_width(note, LABEL_SIZE) - 30.0;
        self.text(&shorten(title, TITLE_SIZE, room), (MARGIN, 27.0), (TITLE_SIZE, INK), HPos::Left)?;
        self.text(note, (self.size.0 - MARGIN, 29.0), (LABEL_SIZE, GREY), HPos::Right)
    }

    /// Draws a grid in `frame`, with ticks and labels around it. Elements on it are not clipped to the frame.
    pub(super) fn axes(&self, frame: Frame, x: Axis, y: Axis) -> Result<Axes<'_, DB>> {
        let (x_label, y_label) = (x.label.clone(), y.label.clone());
        let left = widest(&y.ticks) + LEFT - 13.0;
        let mut plot = ChartBuilder::on(&self.root)
            .margin_left(units(frame.x0 - left))
            .margin_right(units(self.size.0 - frame.x1))
            .margin_top(units(frame.y0))
            .margin_bottom(units(self.size.1 - frame.y1 - 44.0))
            .y_label_area_size(units(left))
            .x_label_area_size(units(44.0))
            .build_cartesian_2d(x, y)?;
        plot.configure_mesh()
            .bold_line_style(GRID)
            .axis_style(TRANSPARENT)
            .set_all_tick_mark_size(units(4.0))
            .label_style(self.font(TICK_SIZE, INK))
            .axis_desc_style(self.font(LABEL_SIZE, INK))
            .x_desc(x_label)
            .y_desc(shorten(&y_label, LABEL_SIZE, frame.y1 - frame.y0 + 40.0))
            .draw()?;
        // Centred on whole pixels, so that it is sharp.
        let [x0, y0, x1, y1] = [frame.x0, frame.y0, frame.x1, frame.y1].map(|v| units(v) + 1);
        let corners = vec![(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)];
        self.root.draw(&PathElement::new(corners, BORDER.stroke_width(units(1.0) as u32)))?;
        Ok(plot)
    }

    fn panel(&self, panel: &Panel, area: Frame, figure: &Figure) -> Result<()> {
        let range = y_range(panel);
        let legend = legend_rows(&panel.curves, area.x1 - area.x0 - 110.0);
        let (y0, y1) = ((area.y0 + 8.0 + legend.len() as f64 * LEGEND_ROW).round(), (area.y1 - BELOW).round());
        // An empty panel has no range, so it gets no ticks.
        let empty = panel.curves.iter().all(|c| c.points.is_empty() || c.style == Style::Level);
        let mut y_ticks = ticks(range.0, range.1, ((y1 - y0) / 40.0).clamp(2.0, 9.0) as usize);
        y_ticks.retain(|_| !empty);
        let levels = panel.curves.iter().any(|c| c.style == Style::Level);
        let x0 = (area.x0 + widest(&y_ticks) + LEFT).round();
        let frame = Frame { x0, y0, x1: (area.x1 - if levels { 44.0 } else { 16.0 }).round(), y1 };
        let x_range = (0.0, figure.x_max * 1.015);
        let mut x_ticks = ticks(x_range.0, x_range.1, ((frame.x1 - frame.x0) / 95.0).max(2.0) as usize);
        // Steps are integers.
        x_ticks.retain(|t| !empty && (t - t.round()).abs() < 1e-9);
        let mut plot = self.axes(
            frame,
            Axis { label: figure.x_label.clone(), range: x_range, ticks: x_ticks },
            Axis { label: panel.y_label.clone(), range, ticks: y_ticks },
        )?;
        self.legend(&legend, (frame.x0, area.y0 + 2.0))?;
        self.levels(&plot, panel, (range, frame.x1))?;
        for curve in panel.curves.iter().filter(|c| c.style != Style::Level) {
            // Half a pixel, so that dense noise has no gaps.
            let column = x_range.1 / (frame.x1 - frame.x0) / 2.0;
            let lines = within(&thinned(&curve.points, column), range);
            lines.into_iter().try_for_each(|line| curve.style.line(plot.plotting_area(), curve.color, line))?;
            // Many dots are drawn smaller, so that they stay distinct; a line of one point is a small dot.
            let (dots, single) = (curve.style.has_dots(), curve.points.len() == 1);
            let gap = (frame.x1 - frame.x0) / curve.points.len().max(1) as f64;
            let radius = if dots { (gap * 0.35).clamp(1.6, 4.5) } else { 3.0 };
            if dots || single {
                let inside = curve.points.iter().filter(|p| (range.0..=range.1).contains(&p.1));
                plot.draw_series(inside.flat_map(|p| dot(*p, radius, curve.color)))?;
            }
        }
        if empty {
            let middle = ((frame.x0 + frame.x1) / 2.0, (y0 + y1) / 2.0 - 10.0);
            self.text("no data yet", middle, (1.3 * TITLE_SIZE, GREY), HPos::Center)?;
        }
        Ok(())
    }

    /// Draws the levels of a panel that lie in its range, with labels to the right of the frame.
    fn levels(&self, plot: &Axes<DB>, panel: &Panel, (range, right): (Pt, f64)) -> Result<()> {
        let levels = panel.curves.iter().filter(|c| c.style == Style::Level);
        let levels = levels.flat_map(|c| c.points.iter().map(|p| (p.1, c.color)));
        let mut levels: Vec<_> = levels.filter(|(v, _)| *v > range.0 && *v < range.1).collect();
        levels.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut free_below = f64::INFINITY;
        for (value, color) in levels {
            let x = plot.x_range();
            Style::Level.line(plot.plotting_area(), color, vec![(x.start, value), (x.end, value)])?;
            // The label of a level close above another moves up.
            let y = f64::from(plot.backend_coord(&(x.end, value)).1) / f64::from(units(1.0));
            let at = y.min(free_below);
            free_below = at - TICK_SIZE - 1.0;
            self.text(&level_name(value), (right + 6.0, at), (TICK_SIZE, color), HPos::Left)?;
        }
        Ok(())
    }

    pub(super) fn legend(&self, rows: &[Vec<Entry>], (x0, y0): Pt) -> Result<()> {
        for (i, row) in rows.iter().enumerate() {
            let y = y0 + (i as f64 + 0.5) * LEGEND_ROW;
            for entry in row {
                let (from, to) = (x0 + entry.x, x0 + entry.x + SAMPLE);
                let at = |x| (units(x), units(y));
                if let Some((style, color)) = entry.line {
                    style.line(&self.root, color, vec![at(from), at(to)])?;
                    if style.has_dots() {
                        dot(at((from + to) / 2.0), 4.5, color).iter().try_for_each(|d| self.root.draw(d))?;
                    }
                }
                self.text(&entry.text, (to + SAMPLE_GAP, y), (LABEL_SIZE, INK), HPos::Left)?;
            }
        }
        Ok(())
    }
}

impl Drawing for Figure {
    fn draw<DB: Backend>(&self, on: &Surface<DB>) -> Result<()> {
        let (width, height) = on.size;
        on.title(&self.title, &self.note)?;
        let legend = legend_rows(&self.legend, width - 2.0 * MARGIN);
        on.legend(&legend, (MARGIN, 50.0))?;
        let top = 50.0 + legend.len() as f64 * LEGEND_ROW;
        // The first row is higher: it shows the most important curves.
        let weight = |row: usize| if row == 0 { 1.17 } else { 1.0 };
        let weights: f64 = (0..self.rows.len()).map(weight).sum();
        let mut y = top;
        for (i, row) in self.rows.iter().enumerate() {
            let bottom = y + weight(i) / weights * (height - 8.0 - top);
            let wide = (width - 8.0) / row.len() as f64;
            for (j, panel) in row.iter().enumerate() {
                let area = Frame { x0: j as f64 * wide, y0: y, x1: (j + 1) as f64 * wide, y1: bottom };
                on.panel(panel, area, self)?;
            }
            y = bottom;
        }
        Ok(())
    }
}

/// The width of the widest tick text.
fn widest(ticks: &[f64]) -> f64 {
    tick_texts(ticks).iter().map(|t| text_width(t, TICK_SIZE)).fold(30.0, f64::max)
}

/// A dot, hollow where it is large enough.
fn dot<P: Clone>(at: P, radius: f64, color: RGBColor) -> Vec<Circle<P, i32>> {
    let disc = |radius, color: RGBColor| Circle::new(at.clone(), units(radius), color.filled());
    if radius > 3.0 { vec![disc(radius, color), disc(radius - 1.8, WHITE)] } else { vec![disc(radius, color)] }
}

/// The label of a level: ln 2, −ln 4, or its decimals.
fn level_name(value: f64) -> String {
    let sign = if value < 0.0 { "−" } else { "" };
    let log = (2..10).find(|n| (f64::from(*n).ln() - value.abs()).abs() < 1e-6);
    log.map_or_else(|| grouped(value, 2), |n| format!("{sign}ln {n}"))
}

/// The first, lowest, highest and last point of each column: as many as are visible.
fn thinned(points: &[Pt], column: f64) -> Vec<Pt> {
    let columns = points.chunk_by(|a, b| (a.0 / column).floor() == (b.0 / column).floor());
    let extremes = |c: &[Pt]| {
        let by_value = |a: &usize, b: &usize| c[*a].1.total_cmp(&c[*b].1);
        let mut kept =
            [0, (0..c.len()).min_by(by_value).unwrap_or(0), (0..c.len()).max_by(by_value).unwrap_or(0), c.len() - 1];
        kept.sort_unstable();
        kept.map(|i| c[i])
    };
    let mut kept: Vec<Pt> = columns.flat_map(extremes).collect();
    kept.dedup();
    kept
}

/// Clips a line to a range of values; gives the parts inside.
fn within(line: &[Pt], (low, high): Pt) -> Vec<Vec<Pt>> {
    let mut parts: Vec<Vec<Pt>> = Vec::new();
    for (a, b) in line.iter().zip(line.iter().skip(1)) {
        if a.1.max(b.1) < low || a.1.min(b.1) > high {
            continue;
        }
        let cut = |p: &Pt| match p.1.clamp(low, high) {
            y if y == p.1 => *p,
            // Halved first, so that the difference of two large values does not overflow.
            y => (a.0 + (b.0 - a.0) * ((y / 2.0 - a.1 / 2.0) / (b.1 / 2.0 - a.1 / 2.0)), y),
        };
        let (from, to) = (cut(a), cut(b));
        match parts.last_mut().filter(|part| part.last() == Some(&from)) {
            Some(part) => part.push(to),
            None => parts.push(vec![from, to]),
        }
    }
    parts
}

/// The range of values that a panel shows: of each curve those from the 2nd to the 98th percentile after the first 5 % of the steps,
/// and not far from its quartiles (Tukey 1977: outer fences, 3 interquartile ranges beyond), because first values and outliers, of few
/// dots too, would flatten the rest.
fn y_range(panel: &Panel) -> Pt {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    // Clamped, so that the difference of any two values is finite.
    let mut hold = |v: f64| {
        let v = v.clamp(-1e300, 1e300);
        (low, high) = (low.min(v), high.max(v));
    };
    let (levels, curves): (Vec<_>, Vec<_>) = panel.curves.iter().partition(|c| c.style == Style::Level);
    for curve in curves {
        let Some((last_step, last)) = curve.points.last().copied() else { continue };
        let skip = curve.points.partition_point(|p| p.0 < 0.05 * last_step);
        let start = if curve.points.len() - skip < 5 { 0 } else { skip };
        let mut values: Vec<f64> = curve.points[start..].iter().map(|p| p.1).collect();
        // Selection takes linear time: a long run has many values.
        let end = values.len() - 1;
        let mut ranked = |i: usize| *values.select_nth_unstable_by(i, f64::total_cmp).1;
        let (from, to) = (ranked(end * 2 / 100), ranked((end * 98).div_ceil(100)));
        // Values just outside the percentiles are shown.
        let near = 0.2 * (to - from);
        let (first, third) = (ranked(end / 4), ranked(end - end / 4));
        let far = 3.0 * (third - first).max(0.05 * third.abs().max(first.abs()));
        let fences = first - far..=third + far;
        let inside = (from - near).max(first - far)..=(to + near).min(third + far);
        values.iter().filter(|v| inside.contains(v)).for_each(|v| hold(*v));
        // The last value of a line, unless it is an outlier.
        if curve.style != Style::Raw && fences.contains(&last) {
            hold(last);
        }
    }
    if low > high {
        return (0.0, 1.0);
    }
    let span = high - low;
    // A level is inside if the curves keep at least half of the height.
    for value in levels.iter().flat_map(|l| &l.points).map(|p| p.1) {
        if value > high - 2.0 * span && value < low + 2.0 * span {
            (low, high) = (low.min(value), high.max(value));
        }
    }
    let size = low.abs().max(high.abs());
    let pad = match high - low {
        // Constant values up to rounding: ±10 % of their magnitude.
        flat if flat <= size * 1e-9 => (size * 0.1).max(f64::MIN_POSITIVE.sqrt()),
        span => span * 0.06,
    };
    if size == 0.0 { (-1.0, 1.0) } else { (low - pad, high + pad) }
}

/// An entry of a legend: a text and the line that it explains.
#[derive(Debug)]
pub(super) struct Entry {
    x: f64,
    text: String,
    line: Option<(Style, RGBColor)>,
}

/// The legend of curves in rows of this width. Entries beyond the last row are replaced by their number.
pub(super) fn legend_rows(curves: &[Curve], width: f64) -> Vec<Vec<Entry>> {
    let named: Vec<&Curve> = curves.iter().filter(|c| !c.label.is_empty()).collect();
    let mut rows: Vec<Vec<Entry>> = Vec::new();
    let mut x = f64::INFINITY;
    for (i, curve) in named.iter().enumerate() {
        let text = shorten(&curve.label, LABEL_SIZE, width - SAMPLE - SAMPLE_GAP);
        let wide = SAMPLE + SAMPLE_GAP + text_width(&text, LABEL_SIZE);
        let more = format!("and {} more", named.len() - i);
        let last_row = rows.len() == MAX_LEGEND_ROWS;
        let tail = if last_row && i + 1 < named.len() { text_width(&more, LABEL_SIZE) + ENTRY_GAP } else { 0.0 };
        let fits = x + wide + tail <= width;
        if !fits && !last_row {
            rows.push(Vec::new());
            x = 0.0;
        }
        let Some(row) = rows.last_mut() else { break };
        if !fits && last_row {
            row.push(Entry { x: x - SAMPLE - SAMPLE_GAP, text: more, line: None });
            break;
        }
        row.push(Entry { x, text, line: Some((curve.style, curve.color)) });
        x += wide + ENTRY_GAP;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(style: Style, points: Vec<Pt>) -> Curve {
        Curve { style, color: RGBColor(1, 2, 3), points, label: String::new() }
    }

    fn panel(curves: Vec<Curve>) -> Panel {
        Panel { y_label: String::new(), curves }
    }

    #[test]
    fn the_range_leaves_out_the_start_and_keeps_what_must_be_seen() {
        let mut points: Vec<Pt> = (0..1000).map(|i| (i as f64, 100.0 + (i % 10) as f64)).collect();
        points.iter_mut().take(20).for_each(|p| p.1 = 5000.0);
        points[500].1 = -4000.0;
        let line = || curve(Style::Line, points.clone());
        let (low, high) = y_range(&panel(vec![line()]));
        assert!(low > 95.0 && low < 100.0 && high > 109.0 && high < 114.0, "{low} {high}");

        let dots = |values: &[f64]| {
            let at = |(i, v): (usize, &f64)| (100.0 * (i + 1) as f64, *v);
            curve(Style::Dots, values.iter().enumerate().map(at).collect())
        };
        let (low, high) = y_range(&panel(vec![line(), dots(&[125.0, 90.0])]));
        assert!(low < 90.0 && high > 125.0, "dots are shown: {low} {high}");
        for wild in [&[9e4, 110.0, 106.0, 104.0, 103.0, 102.5][..], &[110.0, 106.0, -9e4, 104.0, 103.0, 102.5]] {
            let (low, high) = y_range(&panel(vec![line(), dots(wild)]));
            assert!(low > 90.0 && high < 130.0, "one of the dots is wild: {low} {high}");
        }
        points[999].1 = 118.0;
        let (_, high) = y_range(&panel(vec![curve(Style::Line, points.clone())]));
        assert!(high > 118.0, "the last value of a line is shown");
        points[999].1 = 4e4;
        let (_, high) = y_range(&panel(vec![curve(Style::Line, points.clone())]));
        assert!(high < 130.0, "but for an outlier: {high}");
    }

    #[test]
    fn odd_ranges_are_usable() {
        let range = |v: &[f64]| {
            let points = v.iter().enumerate().map(|(i, v)| (i as f64, *v)).collect();
            y_range(&panel(vec![curve(Style::Line, points)]))
        };
        for values in [vec![], vec![0.0], vec![-7.0, -7.0], vec![1e6], vec![1e308, -1e308], vec![1e-300]] {
            let (low, high) = range(&values);
            assert!(low < high && (high - low).is_finite(), "{values:?}: {low} {high}");
            assert!(ticks(low, high, 6).len() >= 2, "{values:?}");
        }
    }

    #[test]
    fn a_level_is_shown_if_it_is_near() {
        let points = vec![(0.0, 1.0), (1.0, 2.0)];
        let level = |value| curve(Style::Level, vec![(0.0, value)]);
        let (low, high) = y_range(&panel(vec![curve(Style::Line, points), level(2.5), level(9.0)]));
        assert!(high > 2.5 && high < 3.0 && low < 1.0, "{low} {high}");
        let names = [2f64.ln(), -(4f64.ln()), 0.5, 0.0].map(level_name);
        assert_eq!(names, ["ln 2", "−ln 4", "0.50", "0.00"]);
    }

    #[test]
    fn legends_break_into_rows_and_count_the_rest() {
        let entry = |i: usize| Curve { label: format!("run-{i:04}"), ..curve(Style::Line, Vec::new()) };
        let rows = legend_rows(&(0..100).map(entry).collect::<Vec<_>>(), 600.0);
        assert_eq!(rows.len(), MAX_LEGEND_ROWS);
        let shown = rows.iter().map(Vec::len).sum::<usize>() - 1;
        let last = &rows[MAX_LEGEND_ROWS - 1].last().unwrap().text;
        assert_eq!(*last, format!("and {} more", 100 - shown));
        for e in rows.iter().flatten() {
            assert!(e.x + SAMPLE + SAMPLE_GAP + text_width(&e.text, LABEL_SIZE) <= 600.0);
        }
        let few = legend_rows(&[entry(1), curve(Style::Raw, Vec::new()), entry(2)], 600.0);
        assert_eq!(few.iter().map(Vec::len).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn lines_are_cut_at_the_frame() {
        let line = [(0.0, 50.0), (100.0, 150.0), (200.0, 150.0), (300.0, -50.0), (400.0, 50.0)];
        let want =
            [vec![(0.0, 50.0), (50.0, 100.0)], vec![(225.0, 100.0), (275.0, 0.0)], vec![(350.0, 0.0), (400.0, 50.0)]];
        assert_eq!(within(&line, (0.0, 100.0)), want);
        assert!(within(&[(0.0, -0.5), (9.0, -0.5)], (0.0, 100.0)).is_empty() && within(&[], (0.0, 1.0)).is_empty());
        let steep = within(&[(0.0, 1e308), (10.0, -1e308)], (-1.0, 1.0));
        assert!(steep.iter().flatten().all(|p| p.0 == 5.0 && p.1.abs() <= 1.0), "{steep:?}");
    }

    #[test]
    fn thinning_keeps_the_extremes_of_each_column() {
        let line: Vec<Pt> = (0..100_000).map(|i| (f64::from(i) / 1000.0, f64::from((i * 7919) % 1009))).collect();
        let kept = thinned(&line, 1.0);
        assert!(kept.len() <= 400, "{}", kept.len());
        for (all, kept) in line.chunks(1000).zip(kept.chunk_by(|a, b| a.0.floor() == b.0.floor())) {
            let reach = |points: &[Pt]| points.iter().fold((f64::MAX, f64::MIN), |r, p| (r.0.min(p.1), r.1.max(p.1)));
            assert_eq!(reach(all), reach(kept));
            assert_eq!((all[0], all[999]), (kept[0], kept[kept.len() - 1]));
        }
        assert_eq!(thinned(&[(3.0, 1.0)], 1.0), [(3.0, 1.0)]);
    }
}
