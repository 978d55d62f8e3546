//! Loss curves of one or several runs: reads the logged metrics and draws them as PNG or SVG.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use plotters::style::{BLACK, RGBColor, WHITE};
use serde_json::{Map, Value};

use crate::base::scalar::{self, Scalar};
use crate::base::small_file;
use crate::pictures::chart::{Curve, Figure, GREY, Panel, Style};
use crate::pictures::surface::{self, Pt};
use crate::pictures::ticks::{grouped, scientific};

/// Width and height in pixels of a chart of up to two rows of panels.
pub const SIZE: (u32, u32) = (1200, 800);
/// Additional height of each further row.
const ROW_HEIGHT: u32 = 300;

// The colour-blind safe palette of Okabe and Ito (2008), without its yellow (too faint on white).
pub(super) const BLUE: RGBColor = RGBColor(0, 114, 178);
const VERMILLION: RGBColor = RGBColor(213, 94, 0);
const GREEN: RGBColor = RGBColor(0, 158, 115);
const PURPLE: RGBColor = RGBColor(204, 121, 167);
const ORANGE: RGBColor = RGBColor(230, 159, 0);
const SKY: RGBColor = RGBColor(86, 180, 233);
const COLORS: [RGBColor; 7] = [BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK];

/// The largest number of points of a curve, so that long runs need no more memory and time: two for each half pixel.
const MOST: usize = 8192;

/// The logged metrics of one run, bounded in memory.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    scalars: Vec<Scalar>,
    columns: BTreeMap<String, Column>,
    last_step: Option<f64>,
    /// Lines and bytes of metrics.jsonl that were read.
    read: (usize, u64),
}

/// The (step, value) pairs of a key in the order of the steps: 2^`halvings` neighbours merged into one point, so that there are at
/// most [`MOST`].
#[derive(Clone, Debug, Default)]
struct Column {
    points: Vec<Point>,
    halvings: u32,
}

/// Neighbours: how many, their mean, and those with the lowest and the highest value.
#[derive(Clone, Copy, Debug)]
struct Point {
    count: f64,
    mean: Pt,
    low: Pt,
    high: Pt,
}

impl Point {
    fn merged(self, next: Point) -> Point {
        let count = self.count + next.count;
        // Divided before they are added, so that nothing overflows.
        let mean = |a: f64, b: f64| a * (self.count / count) + b * (next.count / count);
        Point {
            count,
            mean: (mean(self.mean.0, next.mean.0), mean(self.mean.1, next.mean.1)),
            low: if next.low.1 < self.low.1 { next.low } else { self.low },
            high: if next.high.1 > self.high.1 { next.high } else { self.high },
        }
    }
}

impl Column {
    /// Adds a value; a later one of the same step replaces it, where it was not merged.
    fn push(&mut self, at: Pt) {
        let new = Point { count: 1.0, mean: at, low: at, high: at };
        self.points.pop_if(|p| p.count == 1.0 && p.mean.0 == at.0);
        match self.points.last_mut() {
            Some(last) if last.count < 2f64.powi(self.halvings as i32) => *last = last.merged(new),
            _ => self.points.push(new),
        }
        if self.points.len() > MOST {
            self.halvings += 1;
            self.points = self.points.chunks(2).filter_map(|two| two.iter().copied().reduce(Point::merged)).collect();
        }
    }

    /// Removes the values from a step on.
    fn cut(&mut self, step: f64) {
        self.points.truncate(self.points.partition_point(|p| p.low.0.max(p.high.0) < step));
    }
}

impl Metrics {
    /// Reads `scalars.json` and `metrics.jsonl` of a run. Numbers under other keys are kept too; nulls and empty lines are
    /// skipped. A last line that has no newline and is not valid JSON is incomplete and skipped.
    ///
    /// # Errors
    /// When a file cannot be read, or another line is not a JSON object with a step: names the file and the line.
    pub fn read(run: &Path) -> Result<Metrics> {
        let mut metrics = Metrics::default();
        metrics.read_on(run)?;
        Ok(metrics)
    }

    /// Reads the rows that the run has written since; all of them where its file has become shorter.
    ///
    /// # Errors
    /// As [`Metrics::read`].
    pub fn read_on(&mut self, run: &Path) -> Result<()> {
        let (declared, path) = (run.join("scalars.json"), run.join("metrics.jsonl"));
        ensure!(
            declared.exists() || !path.exists(),
            "{0} has no scalars.json, so it was made by ganvae 0.1: draw it with that version's `ganvae plot {0}`",
            run.display()
        );
        let unreadable = || format!("cannot read the metrics {}", path.display());
        let mut file = small_file::open(&path).with_context(unreadable)?;
        if file.metadata().with_context(unreadable)?.len() < self.read.1 {
            *self = Metrics::default();
        }
        self.scalars = scalar::read(&declared)?;
        file.seek(SeekFrom::Start(self.read.1)).with_context(unreadable)?;
        let (mut file, mut line) = (BufReader::new(file), Vec::new());
        while file.read_until(b'\n', &mut line).with_context(unreadable)? > 0 {
            let place = || format!("{} line {}", path.display(), self.read.0 + 1);
            match serde_json::from_slice::<Map<String, Value>>(&line) {
                _ if line.trim_ascii().is_empty() => {}
                Ok(row) => {
                    let place = place();
                    self.push(row).with_context(|| format!("{place} cannot be drawn; correct or remove that line"))?;
                }
                Err(_) if !line.ends_with(b"\n") => break,
                Err(e) => bail!("{} is not a JSON object ({e}); correct or remove that line", place()),
            }
            self.read = (self.read.0 + 1, self.read.1 + line.len() as u64);
            line.clear();
        }
        Ok(())
    }

    fn points(&self, key: &str) -> &[Point] {
        self.columns.get(key).map_or(&[], |column| &column.points)
    }

    /// The (step, value) pairs of a key such as `loss` or `test_kl`: finite values, increasing steps; of a long run, means of equally
    /// many neighbours. Empty if the key was never logged.
    pub fn series(&self, key: &str) -> Vec<Pt> {
        means(self.points(key))
    }

    /// The points of a key without those of partial intervals.
    fn whole(&self, key: &str) -> Vec<Point> {
        without_partial(self.points(key).to_vec(), |p| p.mean.0)
    }

    /// The step of the last row; none without rows.
    pub fn last_step(&self) -> Option<f64> {
        self.last_step
    }

    /// Adds a row. A step smaller than the last one means that the run was resumed from an older checkpoint: the values logged
    /// from that step on are dropped.
    fn push(&mut self, row: Map<String, Value>) -> Result<()> {
        let step = row.get("step").and_then(Value::as_f64).filter(|s| *s >= 0.0).context("no \"step\" of 0 or more")?;
        if self.last_step.is_some_and(|last| step < last) {
            for column in self.columns.values_mut() {
                column.cut(step);
            }
        }
        self.last_step = Some(step);
        for (key, value) in row.into_iter().filter(|(key, _)| key != "step") {
            // A null adds the key without a point.
            let column = self.columns.entry(key).or_default();
            if let Some(value) = value.as_f64() {
                column.push((step, value));
            }
        }
        Ok(())
    }

    /// The scalars to draw: those that have a panel and occur in the rows.
    fn drawn(&self) -> impl Iterator<Item = &Scalar> {
        let known = |key: &str| self.columns.contains_key(key) || self.columns.contains_key(&format!("test_{key}"));
        self.scalars.iter().filter(move |s| !s.panel.is_empty() && known(&s.key))
    }

    /// The scalars by which runs are compared.
    fn compared(&self) -> impl Iterator<Item = &Scalar> {
        let other = |s: &Scalar| self.scalars.iter().find(|other| Some(&other.key) == s.compared_by.as_ref());
        self.drawn().map(move |s| other(s).unwrap_or(s))
    }

    /// Steps per epoch, if the rows agree on it.
    fn steps_per_epoch(&self) -> Option<f64> {
        let epochs = self.series("epoch");
        let rate = |(step, epoch): &Pt| (*epoch > 0.0).then(|| step / epoch);
        let last = epochs.last().and_then(rate)?;
        // Early epochs have few digits, so only the second half is compared.
        let later = &epochs[epochs.len() / 2..];
        let agrees = |r: f64| (r / last - 1.0).abs() < 0.03;
        (last >= 1.0 && later.iter().filter_map(rate).all(agrees)).then_some(last)
    }
}

/// The exponential moving average with bias correction (Kingma and Ba 2015, section 3, arXiv:1412.6980):
/// m_t = `beta`·m_(t−1) + (1−`beta`)·v_t with m_0 = 0, divided by 1−`beta`^t. `beta` lies in [0, 1); 0 changes nothing.
pub fn smooth(values: &[f64], beta: f64) -> Vec<f64> {
    running_sums(values.iter().copied(), beta).iter().map(|(sum, weight)| sum / weight).collect()
}

/// For each t the weighted sum m_t of [`smooth`] and the sum of its weights, 1−`beta`^t.
fn running_sums(values: impl Iterator<Item = f64>, beta: f64) -> Vec<Pt> {
    let next = |last: &mut Pt, value| {
        *last = (beta * last.0 + (1.0 - beta) * value, beta * last.1 + (1.0 - beta));
        Some(*last)
    };
    values.scan((0.0, 0.0), next).collect()
}

/// Draws one run: a panel for each group of scalars, the first panel above the others. Logged values are faint, their moving
/// average is a solid line, held-out values are dots. A run without rows gives an empty chart that says so.
///
/// # Errors
/// If `out` does not end in `.png` or `.svg`, or cannot be written. The write is atomic.
pub fn draw_run(metrics: &Metrics, title: &str, out: &Path) -> Result<()> {
    let mut colors = (0..).map(color);
    let mut panels: Vec<Panel> =
        grouped_by_panel(metrics.drawn()).iter().map(|scalars| run_panel(metrics, scalars, &mut colors)).collect();
    if panels.is_empty() {
        panels.push(Panel { y_label: "loss".to_owned(), curves: Vec::new() });
    }
    let step = metrics.last_step.map(|step| format!("step {}", grouped(step, 0)));
    let rounded = |epoch: f64| (epoch * 100.0).round_ties_even() / 100.0;
    let epoch = extremes(metrics.points("epoch")).last().map(|p| format!(", epoch {}", rounded(p.1)));
    let note = step.into_iter().chain(epoch).collect();
    let figure = Figure { title: title.to_owned(), note, rows: in_rows(panels, 1), ..Figure::default() };
    draw(figure, &[metrics], out)
}

/// Draws several runs on one chart, each in its colour, with a panel for each scalar: the moving average of training as a thin
/// line, held-out values as dots on a dashed line. A single run is drawn by [`draw_run`].
///
/// # Errors
/// As [`draw_run`]; also if there is no run, or if a run has no scalar in common with those before it.
pub fn draw_runs(runs: &[(String, Metrics)], out: &Path) -> Result<()> {
    let [(name, first), others @ ..] = runs else { bail!("there is no run to draw; name at least one run folder") };
    if others.is_empty() {
        return draw_run(first, name, out);
    }
    let mut scalars: Vec<&Scalar> = Vec::new();
    for (name, metrics) in runs {
        let same = |a: &Scalar, b: &Scalar| (&a.key, &a.unit) == (&b.key, &b.unit);
        let (known, new): (Vec<_>, Vec<_>) = metrics.compared().partition(|s| scalars.iter().any(|k| same(k, s)));
        let keys = |list: &[&Scalar]| list.iter().map(|s| s.key.as_str()).collect::<Vec<_>>().join(", ");
        ensure!(
            scalars.is_empty() || new.is_empty() || !known.is_empty(),
            "runs that measure different things cannot share a chart: '{name}' has logged {}, the runs before it {}; plot \
             them separately",
            keys(&new),
            keys(&scalars)
        );
        scalars.extend(new);
    }
    let mut legend = vec![
        curve(Style::Thin, GREY, &[], "training (smoothed)".to_owned()),
        curve(Style::DashedDots, GREY, &[], "test".to_owned()),
    ];
    for (i, (name, metrics)) in runs.iter().enumerate() {
        let missing = if metrics.last_step.is_none() { " (no data yet)" } else { "" };
        legend.push(curve(Style::Line, color(i), &[], format!("{name}{missing}")));
    }
    let first_row = grouped_by_panel(scalars.iter().copied()).first().map_or(1, Vec::len);
    let panels = scalars.iter().map(|s| runs_panel(runs, s)).collect();
    let all: Vec<&Metrics> = runs.iter().map(|r| &r.1).collect();
    let title = format!("{} runs", runs.len());
    draw(Figure { title, legend, rows: in_rows(panels, first_row), ..Figure::default() }, &all, out)
}

/// The scalars of each panel, panels in the order of their first scalars.
fn grouped_by_panel<'a>(scalars: impl Iterator<Item = &'a Scalar>) -> Vec<Vec<&'a Scalar>> {
    let mut groups: Vec<Vec<&Scalar>> = Vec::new();
    for scalar in scalars {
        match groups.iter_mut().find(|g| g[0].panel == scalar.panel) {
            Some(group) => group.push(scalar),
            None => groups.push(vec![scalar]),
        }
    }
    groups
}

/// Panels in rows: `first` of them in the first row, then two in each row, or three if more than four are left.
fn in_rows(panels: Vec<Panel>, first: usize) -> Vec<Vec<Panel>> {
    let mut panels = panels.into_iter();
    let mut rows = vec![panels.by_ref().take(first).collect()];
    let columns = if panels.len() > 4 { 3 } else { 2 };
    while panels.len() > 0 {
        rows.push(panels.by_ref().take(columns).collect());
    }
    rows
}

/// Colour number `i` of runs and scalars.
pub(super) fn color(i: usize) -> RGBColor {
    shade(&COLORS, i)
}

/// Colour number `i` of a palette. Beyond its end the palette repeats darker, then paler.
pub(super) fn shade(colors: &[RGBColor], i: usize) -> RGBColor {
    let base = colors[i % colors.len()];
    let mean = |with: RGBColor| RGBColor(base.0.midpoint(with.0), base.1.midpoint(with.1), base.2.midpoint(with.2));
    match (i / colors.len()) % 3 {
        0 => base,
        1 => mean(RGBColor(40, 40, 40)),
        _ => mean(WHITE),
    }
}

fn curve(style: Style, color: RGBColor, points: &[Pt], label: String) -> Curve {
    Curve { style, color, points: points.to_vec(), label }
}

/// The means of points.
fn means(points: &[Point]) -> Vec<Pt> {
    points.iter().map(|p| p.mean).collect()
}

/// The lowest and the highest values of points, in the order of their steps.
fn extremes(points: &[Point]) -> Vec<Pt> {
    let both = |p: &Point| if p.low.0 <= p.high.0 { [p.low, p.high] } else { [p.high, p.low] };
    let mut all: Vec<Pt> = points.iter().flat_map(both).collect();
    all.dedup();
    all
}

/// Without the points of intervals less than half as long as the longest tenth, as at the end of an epoch: means of so few updates
/// scatter widely. `step` is the step of a point.
fn without_partial<P>(points: Vec<P>, step: fn(&P) -> f64) -> Vec<P> {
    let mut gaps: Vec<f64> = points.windows(2).map(|pair| step(&pair[1]) - step(&pair[0])).collect();
    let rank = gaps.len() * 9 / 10;
    let Some((_, usual, _)) = (!gaps.is_empty()).then(|| gaps.select_nth_unstable_by(rank, f64::total_cmp)) else {
        return points;
    };
    let (least, mut last) = (*usual / 2.0, f64::NEG_INFINITY);
    let long = |p: &P| step(p) - std::mem::replace(&mut last, step(p)) >= least;
    points.into_iter().filter(long).collect()
}

/// A two-sided exponential moving average: weights decrease with the distance in both directions, so a steep curve has no lag.
/// The last value equals that of [`smooth`]. The time constant is 1/60 of the run.
fn smoothed(points: &[Pt]) -> Vec<Pt> {
    let beta = 1.0 - 1.0 / (points.len() as f64 / 60.0).max(1.0);
    let past = running_sums(points.iter().map(|p| p.1), beta);
    let mut future = running_sums(points.iter().rev().map(|p| p.1), beta);
    future.reverse();
    let both = |(i, (step, value)): (usize, &Pt)| {
        let ((before, after), weight) = ((past[i], future[i]), 1.0 - beta);
        // Both sums contain the value itself, which counts once. Divided before it is added, so that nothing overflows.
        let total = before.1 + after.1 - weight;
        (*step, before.0 / total - weight / total * value + after.0 / total)
    };
    points.iter().enumerate().map(both).collect()
}

/// ", last 104.2", or nothing for an empty series.
fn last_value(points: &[Pt]) -> String {
    match points.last() {
        Some((_, v)) if v.abs() >= 1e7 => format!(", last {}", scientific(*v)),
        Some((_, v)) if v.abs() >= 1000.0 => format!(", last {}", grouped(*v, 0)),
        Some((_, v)) if v.abs() >= 10.0 => format!(", last {}", grouped(*v, 1)),
        Some((_, v)) => format!(", last {}", grouped(*v, 3)),
        None => String::new(),
    }
}

/// `text (unit)`, or `text` without a unit.
fn with_unit(text: &str, unit: &str) -> String {
    if unit.is_empty() { text.to_owned() } else { format!("{text} ({unit})") }
}

/// A panel of one run. Each scalar has its colour; a single scalar has one for training and one for held-out values.
fn run_panel(metrics: &Metrics, scalars: &[&Scalar], colors: &mut impl Iterator<Item = RGBColor>) -> Panel {
    let single = scalars.len() == 1;
    let mut curves = Vec::new();
    for scalar in scalars {
        let test = &metrics.series(&format!("test_{}", scalar.key));
        let whole = metrics.whole(&scalar.key);
        let smooth = smoothed(&means(&whole));
        let last = last_value(&smooth);
        let (color, text) = match single {
            true => (BLUE, format!("train (smoothed{last})")),
            false => (colors.next().unwrap_or(BLACK), format!("{} ({}{last})", scalar.name, scalar.key)),
        };
        // A score is of held-out images only.
        if !single || !whole.is_empty() || test.is_empty() {
            curves.push(curve(Style::Raw, color, &extremes(&whole), String::new()));
            curves.push(curve(Style::Line, color, &smooth, text));
        }
        if single && !test.is_empty() {
            curves.push(curve(Style::Dots, VERMILLION, test, format!("test{}", last_value(test))));
        } else if !test.is_empty() {
            curves.push(curve(Style::DashedDots, color, test, String::new()));
        }
        curves.extend(scalar.equilibrium.map(|at| curve(Style::Level, color, &[(0.0, at)], String::new())));
    }
    // One legend entry for the dots of all scalars, and one for their levels.
    for (style, text) in [(Style::DashedDots, "test"), (Style::Level, "equilibrium")] {
        if curves.iter().any(|c| c.style == style) {
            curves.push(curve(style, GREY, &[], text.to_owned()));
        }
    }
    // Faint values are drawn first, then lines, then dots.
    curves.sort_by_key(|c| c.style);
    let unit = if scalars.iter().all(|s| s.unit == scalars[0].unit) { scalars[0].unit.as_str() } else { "" };
    Panel { y_label: with_unit(&scalars[0].panel, unit), curves }
}

/// The panel of one scalar of several runs.
fn runs_panel(runs: &[(String, Metrics)], scalar: &Scalar) -> Panel {
    let of_each = |style, points: &dyn Fn(&Metrics) -> Vec<Pt>| -> Vec<Curve> {
        runs.iter().enumerate().map(|(i, (_, m))| curve(style, color(i), &points(m), String::new())).collect()
    };
    let mut curves = of_each(Style::Thin, &|m| smoothed(&means(&m.whole(&scalar.key))));
    curves.extend(of_each(Style::DashedDots, &|m| m.series(&format!("test_{}", scalar.key))));
    let text = match scalar.panel.is_empty() || scalar.panel.contains(&scalar.name) {
        true => scalar.name.clone(),
        false => format!("{}: {}", scalar.name, scalar.panel),
    };
    Panel { y_label: with_unit(&text, &scalar.unit), curves }
}

/// Adds the x axis of these runs to a figure and draws it.
fn draw(figure: Figure, runs: &[&Metrics], out: &Path) -> Result<()> {
    let last = runs.iter().filter_map(|m| m.last_step).fold(0.0, f64::max);
    let rates: Vec<Option<f64>> = runs.iter().map(|m| m.steps_per_epoch()).collect();
    // Runs with different batch sizes have different epochs.
    let x_label = match rates.split_first() {
        Some((Some(rate), rest)) if rest.iter().all(|r| r.is_some_and(|r| (r / rate - 1.0).abs() < 0.01)) => {
            let sign = if (rate - rate.round()).abs() < 0.02 { "=" } else { "≈" };
            let steps = if rate.round() == 1.0 { "step" } else { "steps" };
            format!("step (1 epoch {sign} {} {steps})", grouped(rate.round(), 0))
        }
        _ => "step".to_owned(),
    };
    let height = SIZE.1 + ROW_HEIGHT * figure.rows.len().saturating_sub(2) as u32;
    surface::write(&Figure { x_label, x_max: if last > 0.0 { last } else { 1.0 }, ..figure }, (SIZE.0, height), out)
}

#[cfg(test)]
mod tests;
