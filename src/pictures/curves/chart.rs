//! Panels with axes, ranges, legends and curves that never leave their frame.

use super::canvas::{Canvas, Drawing, Stroke, text_width};
use super::scale::{Pt, tick_texts, ticks};
use anyhow::Result;
use plotters::backend::DrawingBackend;
use plotters::style::text_anchor::HPos;
use plotters::style::{RGBColor, WHITE};

pub(super) const INK: RGBColor = RGBColor(38, 38, 38);
pub(super) const GREY: RGBColor = RGBColor(110, 110, 110);
pub(super) const GRID: RGBColor = RGBColor(232, 232, 232);
pub(super) const FRAME: RGBColor = RGBColor(160, 160, 160);

pub(super) const TITLE_SIZE: f64 = 19.0;
pub(super) const LABEL_SIZE: f64 = 14.0;
pub(super) const TICK_SIZE: f64 = 13.0;
const LEGEND_ROW: f64 = 22.0;
/// Length of the line drawn before a legend text, and the gaps after it and after the text.
const SAMPLE: f64 = 26.0;
const SAMPLE_GAP: f64 = 7.0;
const ENTRY_GAP: f64 = 22.0;
/// Legends beyond this many rows would eat the chart.
const LEGEND_ROWS_MAX: usize = 4;

/// How a layer is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// A faint dashed level.
    Level,
    /// No line at all: a text in a legend.
    Bare,
}

impl Style {
    fn stroke(self, color: RGBColor) -> Stroke {
        let (alpha, width, dash) = match self {
            Style::Raw => (0.32, 1.2, None),
            Style::Line => (1.0, 2.2, None),
            Style::Thin => (1.0, 1.6, None),
            Style::Dots => (1.0, 1.6, None),
            Style::DashedDots => (1.0, 1.7, Some((5.4, 3.6))),
            Style::Level => (0.75, 1.2, Some((3.2, 2.8))),
            Style::Bare => (0.0, 0.0, None),
        };
        Stroke { color, alpha, width, dash }
    }

    fn has_dots(self) -> bool {
        matches!(self, Style::Dots | Style::DashedDots)
    }
}

/// One curve; `points` are (step, value), finite, with rising steps.
pub(super) struct Layer {
    pub color: RGBColor,
    pub style: Style,
    pub points: Vec<Pt>,
}

/// One line of a legend.
#[derive(Clone)]
pub(super) struct Entry {
    pub text: String,
    pub color: RGBColor,
    pub style: Style,
}

/// A value worth knowing, such as an equilibrium: a faint dashed level, named at the right edge.
pub(super) struct Level {
    pub value: f64,
    pub text: &'static str,
    pub color: RGBColor,
}

/// One set of axes.
pub(super) struct Panel {
    pub y_label: String,
    pub layers: Vec<Layer>,
    pub levels: Vec<Level>,
    pub legend: Vec<Entry>,
}

/// A whole picture: rows of panels that share the x axis.
pub(super) struct Figure {
    pub title: String,
    /// Short facts at the right end of the title's line.
    pub note: String,
    /// Describes all panels; may be empty.
    pub legend: Vec<Entry>,
    pub rows: Vec<Vec<Panel>>,
    pub x_label: String,
    pub x_max: f64,
}

#[derive(Clone, Copy)]
struct Area {
    x0: f64,
    y0: f64,
    x1: f64,
    y1: f64,
}

impl Drawing for Figure {
    fn on<DB: DrawingBackend>(&self, canvas: &Canvas<DB>) -> Result<()> {
        canvas.draw(self)
    }
}

impl<DB: DrawingBackend> Canvas<DB> {
    /// Draws the whole picture.
    fn draw(&self, figure: &Figure) -> Result<()> {
        let (width, height) = self.size;
        let margin = 20.0;
        let note_width = text_width(&figure.note, LABEL_SIZE);
        let room = width - 2.0 * margin - note_width - 30.0;
        let title = shorten(&figure.title, TITLE_SIZE, room);
        self.text(&title, (margin, 34.0), (TITLE_SIZE, INK), HPos::Left, false)?;
        let at = (width - margin, 34.0);
        self.text(&figure.note, at, (LABEL_SIZE, GREY), HPos::Right, false)?;

        let legend = legend_rows(&figure.legend, width - 2.0 * margin);
        self.draw_legend(&legend, (margin, 50.0))?;
        let top = 50.0 + legend.len() as f64 * LEGEND_ROW;
        let count = figure.rows.len();
        // The first row is the one people look at: it gets more of the height than those below.
        let share = |row: usize| match (count, row) {
            (2, 0) => 0.54,
            (2, _) => 0.46,
            _ => 1.0 / count as f64,
        };
        let mut y = top;
        for (i, row) in figure.rows.iter().enumerate() {
            let bottom = y + share(i) * (height - 8.0 - top);
            let wide = (width - 8.0) / row.len() as f64;
            for (j, panel) in row.iter().enumerate() {
                let area = Area { x0: j as f64 * wide, y0: y, x1: (j + 1) as f64 * wide, y1: bottom };
                self.draw_panel(panel, area, figure)?;
            }
            y = bottom;
        }
        Ok(())
    }

    fn draw_panel(&self, panel: &Panel, area: Area, figure: &Figure) -> Result<()> {
        let (low, high) = y_range(panel);
        let legend = legend_rows(&panel.legend, area.x1 - area.x0 - 110.0);
        let head = 8.0 + legend.len() as f64 * LEGEND_ROW;
        let (y0, y1) = ((area.y0 + head).round(), (area.y1 - 50.0).round());
        // The range of an empty panel is made up: it gets no marks.
        let empty = panel.layers.iter().all(|l| l.points.is_empty());
        let wanted = ((y1 - y0) / 52.0).clamp(2.0, 9.0) as usize;
        let ticks = if empty { Vec::new() } else { ticks(low, high, wanted) };
        let names = tick_texts(&ticks);
        let measure = |s: &String| text_width(s, TICK_SIZE);
        let widest = names.iter().map(measure).fold(30.0, f64::max);
        let right = if panel.levels.is_empty() { 16.0 } else { 44.0 };
        let frame = Area { x0: (area.x0 + widest + 46.0).round(), y0, x1: (area.x1 - right).round(), y1 };
        let view = View { frame, x: (0.0, figure.x_max * 1.015), y: (low, high) };

        self.draw_axes(&view, &ticks, !empty, &figure.x_label)?;
        let middle = (frame.y0 + frame.y1) / 2.0;
        self.text(&panel.y_label, (area.x0 + 24.0, middle), (LABEL_SIZE, INK), HPos::Center, true)?;
        self.draw_legend(&legend, (frame.x0, area.y0 + 2.0))?;

        self.draw_levels(panel, &view)?;
        for layer in &panel.layers {
            self.draw_layer(layer, &view)?;
        }
        if empty {
            let at = ((frame.x0 + frame.x1) / 2.0, middle);
            self.text("no data yet", at, (TITLE_SIZE, GREY), HPos::Center, false)?;
        }
        Ok(())
    }

    /// Grid, frame, the given marks on the y axis and round ones on the x axis.
    fn draw_axes(&self, view: &View, y_ticks: &[f64], x_ticks: bool, x_label: &str) -> Result<()> {
        let frame = view.frame;
        for (tick, name) in y_ticks.iter().zip(tick_texts(y_ticks)) {
            let y = view.place((0.0, *tick)).1;
            self.crisp_line((frame.x0, y), (frame.x1, y), GRID)?;
            let at = (frame.x0 - 8.0, y + TICK_SIZE * 0.36);
            self.text(&name, at, (TICK_SIZE, INK), HPos::Right, false)?;
        }
        let wanted = ((frame.x1 - frame.x0) / 95.0).max(2.0) as usize;
        let mut marks = ticks(view.x.0, view.x.1, wanted);
        // Steps are whole, so marks between them would mean nothing.
        marks.retain(|t| x_ticks && (t - t.round()).abs() < 1e-9);
        for (tick, name) in marks.iter().zip(tick_texts(&marks)) {
            let x = view.place((*tick, 0.0)).0;
            self.crisp_line((x, frame.y0), (x, frame.y1), GRID)?;
            let at = (x, frame.y1 + 19.0);
            self.text(&name, at, (TICK_SIZE, INK), HPos::Center, false)?;
        }
        let at = ((frame.x0 + frame.x1) / 2.0, frame.y1 + 40.0);
        self.text(x_label, at, (LABEL_SIZE, INK), HPos::Center, false)?;
        let (a, b, c, d) = ((frame.x0, frame.y0), (frame.x1, frame.y0), (frame.x1, frame.y1), (frame.x0, frame.y1));
        for (from, to) in [(a, b), (d, c), (a, d), (b, c)] {
            self.crisp_line(from, to, FRAME)?;
        }
        Ok(())
    }

    fn draw_levels(&self, panel: &Panel, view: &View) -> Result<()> {
        let mut free_below = f64::INFINITY;
        let mut levels: Vec<_> = panel.levels.iter().filter(|l| view.shows(l.value)).collect();
        levels.sort_by(|a, b| a.value.total_cmp(&b.value));
        for level in levels {
            let y = view.place((0.0, level.value)).1;
            let ends = [(view.frame.x0, y), (view.frame.x1, y)];
            self.line(&ends, &Style::Level.stroke(level.color), (y, y))?;
            // Two close levels: the upper one's name moves up, not onto the lower one's.
            let base = (y + TICK_SIZE * 0.36).min(free_below);
            free_below = base - TICK_SIZE - 1.0;
            let at = (view.frame.x1 + 6.0, base);
            self.text(level.text, at, (TICK_SIZE, level.color), HPos::Left, false)?;
        }
        Ok(())
    }

    fn draw_layer(&self, layer: &Layer, view: &View) -> Result<()> {
        let pixels: Vec<Pt> = layer.points.iter().map(|p| view.place(*p)).collect();
        let stroke = layer.style.stroke(layer.color);
        if let [one] = pixels.as_slice() {
            // A line of one point would be a speck.
            if view.inside(*one) {
                self.disc(*one, 3.5, layer.color)?;
            }
        }
        self.line(&pixels, &stroke, (view.frame.y0, view.frame.y1))?;
        if layer.style.has_dots() {
            // With many points the dots shrink, or they would melt into a sausage.
            let gap = (view.frame.x1 - view.frame.x0) / pixels.len().max(1) as f64;
            let radius = (gap * 0.35).clamp(1.6, 4.5);
            for at in pixels.into_iter().filter(|p| view.inside(*p)) {
                self.dot(at, radius, layer.color)?;
            }
        }
        Ok(())
    }

    fn dot(&self, at: Pt, radius: f64, color: RGBColor) -> Result<()> {
        self.disc(at, radius, color)?;
        if radius > 3.0 {
            self.disc(at, radius - 1.8, WHITE)?;
        }
        Ok(())
    }

    fn draw_legend(&self, rows: &[Vec<(f64, Entry)>], (x0, y0): Pt) -> Result<()> {
        for (i, row) in rows.iter().enumerate() {
            let y = y0 + (i as f64 + 0.5) * LEGEND_ROW;
            for (x, entry) in row {
                let (from, to) = ((x0 + x, y), (x0 + x + SAMPLE, y));
                if entry.style != Style::Bare {
                    self.line(&[from, to], &entry.style.stroke(entry.color), (y - 9.0, y + 9.0))?;
                }
                if entry.style.has_dots() {
                    self.dot((x0 + x + SAMPLE / 2.0, y), 4.5, entry.color)?;
                }
                let at = (to.0 + SAMPLE_GAP, y + LABEL_SIZE * 0.36);
                self.text(&entry.text, at, (LABEL_SIZE, INK), HPos::Left, false)?;
            }
        }
        Ok(())
    }

    /// A level or upright line one pixel wide, on whole pixels so that it stays sharp.
    pub(super) fn crisp_line(&self, from: Pt, to: Pt, color: RGBColor) -> Result<()> {
        let (x0, y0) = (from.0.floor(), from.1.floor());
        let (x1, y1) = (to.0.floor() + 1.0, to.1.floor() + 1.0);
        self.rect((x0, y0), (x1, y1), color)
    }
}

/// Maps (step, value) to pixels.
struct View {
    frame: Area,
    x: (f64, f64),
    y: (f64, f64),
}

impl View {
    fn place(&self, (x, y): Pt) -> Pt {
        let f = self.frame;
        let across = (x - self.x.0) / (self.x.1 - self.x.0);
        let up = (y - self.y.0) / (self.y.1 - self.y.0);
        let y = f.y1 - up * (f.y1 - f.y0);
        // Far outside is far enough: products of larger numbers could overflow.
        (f.x0 + across * (f.x1 - f.x0), y.clamp(-1e7, 1e7))
    }

    fn shows(&self, value: f64) -> bool {
        value >= self.y.0 && value <= self.y.1
    }

    fn inside(&self, (_, y): Pt) -> bool {
        y >= self.frame.y0 && y <= self.frame.y1
    }
}

/// The values that a panel shows. The first steps of a training are often far off and would flatten
/// everything after them, and so would a few outliers: lines count from the 2nd to the 98th percentile
/// of what follows the first 5 % of the steps. Their last values and all dots are always inside.
fn y_range(panel: &Panel) -> (f64, f64) {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    // Clamped so that the span of any two values stays finite.
    let mut hold = |v: f64| {
        let v = v.clamp(-1e300, 1e300);
        (low, high) = (low.min(v), high.max(v));
    };
    for layer in &panel.layers {
        let Some((last_step, last)) = layer.points.last().copied() else {
            continue;
        };
        if layer.style.has_dots() {
            layer.points.iter().for_each(|p| hold(p.1));
            continue;
        }
        if layer.style != Style::Raw {
            hold(last);
        }
        let skip = layer.points.partition_point(|p| p.0 < 0.05 * last_step);
        let start = if layer.points.len() - skip < 5 { 0 } else { skip };
        let mut values: Vec<f64> = layer.points[start..].iter().map(|p| p.1).collect();
        // Selecting instead of sorting: a long run has many values.
        let end = values.len() - 1;
        let mut ranked = |i: usize| *values.select_nth_unstable_by(i, f64::total_cmp).1;
        let (from, to) = (ranked(end * 2 / 100), ranked((end * 98).div_ceil(100)));
        // Ordinary noise just beyond the percentiles need not be cut off.
        let near = 0.2 * (to - from);
        hold(ranked(0).max(from - near));
        hold(ranked(end).min(to + near));
    }
    if low > high {
        return (0.0, 1.0);
    }
    let span = high - low;
    // A level is shown if that leaves the curves at least half of the height.
    for level in &panel.levels {
        if level.value > high - 2.0 * span && level.value < low + 2.0 * span {
            (low, high) = (low.min(level.value), high.max(level.value));
        }
    }
    let size = low.abs().max(high.abs());
    let pad = match high - low {
        // Constant values, apart from rounding: a range of a tenth of their size.
        flat if flat <= size * 1e-9 => (size * 0.1).max(f64::MIN_POSITIVE.sqrt()),
        span => span * 0.06,
    };
    if size == 0.0 {
        return (-1.0, 1.0);
    }
    (low - pad, high + pad)
}

/// Breaks a legend into rows of the given width; what needs too many rows is counted, not shown.
fn legend_rows(entries: &[Entry], width: f64) -> Vec<Vec<(f64, Entry)>> {
    let mut rows: Vec<Vec<(f64, Entry)>> = Vec::new();
    let mut x = f64::INFINITY;
    for (i, entry) in entries.iter().enumerate() {
        let mut entry = entry.clone();
        entry.text = shorten(&entry.text, LABEL_SIZE, width - SAMPLE - SAMPLE_GAP);
        let wide = SAMPLE + SAMPLE_GAP + text_width(&entry.text, LABEL_SIZE);
        let more = format!("and {} more", entries.len() - i);
        let last_row = rows.len() == LEGEND_ROWS_MAX && i + 1 < entries.len();
        let tail = if last_row { text_width(&more, LABEL_SIZE) + ENTRY_GAP } else { 0.0 };
        if x + wide + tail > width {
            if rows.len() == LEGEND_ROWS_MAX {
                let style = Style::Bare;
                let rest = Entry { text: more, color: WHITE, style };
                rows.last_mut().into_iter().for_each(|r| r.push((x - SAMPLE - SAMPLE_GAP, rest.clone())));
                break;
            }
            rows.push(Vec::new());
            x = 0.0;
        }
        rows.last_mut().into_iter().for_each(|r| r.push((x, entry.clone())));
        x += wide + ENTRY_GAP;
    }
    rows
}

/// Takes letters out of the middle of a text until it fits: the ends of names tell runs apart.
pub(super) fn shorten(text: &str, size: f64, width: f64) -> String {
    if text_width(text, size) <= width {
        return text.to_string();
    }
    let letters: Vec<char> = text.chars().collect();
    let half = |keep: usize| {
        let head: String = letters[..keep].iter().collect();
        let tail: String = letters[letters.len() - keep..].iter().collect();
        format!("{head}…{tail}")
    };
    // A bisection, as a name may be any length.
    let (mut fits, mut too_long) = (0, letters.len() / 2 + 1);
    while too_long - fits > 1 {
        let keep = (fits + too_long) / 2;
        match text_width(&half(keep), size) <= width {
            true => fits = keep,
            false => too_long = keep,
        }
    }
    half(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(layers: Vec<Layer>) -> Panel {
        let (y_label, levels, legend) = (String::new(), Vec::new(), Vec::new());
        Panel { y_label, layers, levels, legend }
    }

    fn layer(style: Style, points: Vec<Pt>) -> Layer {
        let color = RGBColor(1, 2, 3);
        Layer { color, style, points }
    }

    #[test]
    fn the_range_leaves_out_the_start_and_keeps_what_must_be_seen() {
        let mut points: Vec<Pt> = (0..1000).map(|i| (i as f64, 100.0 + (i % 10) as f64)).collect();
        points.iter_mut().take(20).for_each(|p| p.1 = 5000.0);
        points[500].1 = -4000.0;
        let line = || layer(Style::Line, points.clone());
        let (low, high) = y_range(&panel(vec![line()]));
        assert!(low > 95.0 && low < 100.0 && high > 109.0 && high < 114.0, "{low} {high}");

        let dots = layer(Style::Dots, vec![(1.0, 300.0), (999.0, 90.0)]);
        let (low, high) = y_range(&panel(vec![line(), dots]));
        assert!(low < 90.0 && high > 300.0, "{low} {high}");

        points[999].1 = 400.0;
        let (_, high) = y_range(&panel(vec![layer(Style::Line, points.clone())]));
        assert!(high > 400.0, "the last value of a line is always shown");
    }

    #[test]
    fn odd_ranges_are_usable() {
        let range = |v: &[f64]| {
            let points = v.iter().enumerate().map(|(i, v)| (i as f64, *v)).collect();
            y_range(&panel(vec![layer(Style::Line, points)]))
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
        let mut panel = panel(vec![layer(Style::Line, points)]);
        let color = RGBColor(0, 0, 0);
        panel.levels = vec![Level { value: 2.5, text: "near", color }, Level { value: 9.0, text: "far", color }];
        let (low, high) = y_range(&panel);
        assert!(high > 2.5 && high < 3.0 && low < 1.0, "{low} {high}");
    }

    #[test]
    fn long_names_lose_their_middle() {
        let name = "0007-a-very-long-name-of-a-run-with-seed-12";
        let short = shorten(name, 14.0, 150.0);
        assert!(text_width(&short, 14.0) <= 150.0, "{short}");
        assert!(short.starts_with("0007-") && short.ends_with("-12") && short.contains('…'));
        assert_eq!(shorten("short", 14.0, 150.0), "short");
    }

    #[test]
    fn legends_break_into_rows_and_count_the_rest() {
        let entry = |i: usize| Entry { text: format!("run-{i:04}"), color: WHITE, style: Style::Line };
        let rows = legend_rows(&(0..100).map(entry).collect::<Vec<_>>(), 600.0);
        assert_eq!(rows.len(), LEGEND_ROWS_MAX);
        let shown = rows.iter().map(Vec::len).sum::<usize>() - 1;
        let last = &rows[LEGEND_ROWS_MAX - 1].last().unwrap().1.text;
        assert_eq!(*last, format!("and {} more", 100 - shown));
        for (x, e) in rows.iter().flatten() {
            assert!(x + SAMPLE + SAMPLE_GAP + text_width(&e.text, LABEL_SIZE) <= 600.0);
        }
        let few = legend_rows(&[entry(1), entry(2)], 600.0);
        assert_eq!(few.iter().map(Vec::len).collect::<Vec<_>>(), [2]);
    }
}
