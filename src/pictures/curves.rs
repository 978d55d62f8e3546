//! Loss curves of a run, or of several: reads what was logged and what it means, and draws it as PNG or SVG.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use plotters::style::{BLACK, RGBColor, WHITE};
use serde_json::{Map, Value};

use crate::base::scalar::{self, Scalar};
use crate::pictures::chart::{Curve, Figure, GREY, Panel, Style};
use crate::pictures::surface::{self, Pt};
use crate::pictures::ticks::{grouped, scientific};

/// Width and height of a chart of up to two rows of panels in pixels.
pub const SIZE: (u32, u32) = (1200, 800);
/// What every further row adds to its height.
const ROW_HEIGHT: u32 = 300;

// The palette of Okabe and Ito (2008), which colour-blind readers can tell apart, without its yellow (too faint on white).
pub(super) const BLUE: RGBColor = RGBColor(0, 114, 178);
const VERMILLION: RGBColor = RGBColor(213, 94, 0);
const GREEN: RGBColor = RGBColor(0, 158, 115);
const PURPLE: RGBColor = RGBColor(204, 121, 167);
const ORANGE: RGBColor = RGBColor(230, 159, 0);
const SKY: RGBColor = RGBColor(86, 180, 233);
const COLORS: [RGBColor; 7] = [BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK];

/// What one run has logged.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    scalars: Vec<Scalar>,
    /// For each key the (step, value) pairs in the order of the steps.
    columns: BTreeMap<String, Vec<Pt>>,
    last_step: Option<f64>,
}

impl Metrics {
    /// Reads a run's `scalars.json` and `metrics.jsonl`. Numbers under keys that are no scalars are kept too; nulls are
    /// skipped, as are empty lines. A last line without its newline that is not valid JSON was being written and is skipped.
    ///
    /// # Errors
    /// If a file cannot be read, or another line is not a JSON object with a step: the error names file and line.
    pub fn read(run: &Path) -> Result<Metrics> {
        let (declared, path) = (run.join("scalars.json"), run.join("metrics.jsonl"));
        ensure!(
            declared.exists() || !path.exists(),
            "{0} has no scalars.json, so it was made by ganvae 0.1: draw it with that version's `ganvae plot {0}`",
            run.display()
        );
        let mut metrics = Metrics { scalars: scalar::read(&declared)?, ..Metrics::default() };
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read the metrics {}", path.display()))?;
        for (i, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
            if line.trim_ascii().is_empty() {
                continue;
            }
            let place = format!("{} line {}", path.display(), i + 1);
            match serde_json::from_slice::<Map<String, Value>>(line) {
                Ok(row) => {
                    metrics.push(row).with_context(|| format!("{place} cannot be drawn; mend or remove that line"))?
                }
                Err(_) if !line.ends_with(b"\n") => {}
                Err(e) => bail!("{place} is not a JSON object ({e}); mend or remove that line"),
            }
        }
        Ok(metrics)
    }

    /// The (step, value) pairs of a key such as `loss` or `test_kl`: finite values, steps rising. Empty if the
    /// key was never logged.
    pub fn series(&self, key: &str) -> &[Pt] {
        self.columns.get(key).map_or(&[], Vec::as_slice)
    }

    /// The values of a key on held-out images.
    fn held_out(&self, key: &str) -> &[Pt] {
        self.series(&format!("test_{key}"))
    }

    /// The step of the last row, if there is a row.
    pub fn last_step(&self) -> Option<f64> {
        self.last_step
    }

    /// Takes in one row. A step before the last one means that a run was resumed from an older checkpoint
    /// and repeats itself: what had been logged from that step on is dropped.
    fn push(&mut self, row: Map<String, Value>) -> Result<()> {
        let step = row.get("step").and_then(Value::as_f64).filter(|s| *s >= 0.0).context("no \"step\" of 0 or more")?;
        if self.last_step.is_some_and(|last| step < last) {
            for column in self.columns.values_mut() {
                column.truncate(column.partition_point(|p| p.0 < step));
            }
        }
        self.last_step = Some(step);
        for (key, value) in row.into_iter().filter(|(key, _)| key != "step") {
            // A key with null stays known, but gets no point.
            let column = self.columns.entry(key).or_default();
            if let Some(value) = value.as_f64() {
                column.pop_if(|p| p.0 == step);
                column.push((step, value));
            }
        }
        Ok(())
    }

    /// The scalars that are drawn: those with a panel that occur in the rows.
    fn drawn(&self) -> impl Iterator<Item = &Scalar> {
        let known = |key: &str| self.columns.contains_key(key) || self.columns.contains_key(&format!("test_{key}"));
        self.scalars.iter().filter(move |s| !s.panel.is_empty() && known(&s.key))
    }

    /// Steps per epoch, if the rows agree on it.
    fn steps_per_epoch(&self) -> Option<f64> {
        let epochs = self.series("epoch");
        let rate = |(step, epoch): &Pt| (*epoch > 0.0).then(|| step / epoch);
        let last = epochs.last().and_then(rate)?;
        // Early epochs are logged with few digits, so only the later half can contradict.
        let later = &epochs[epochs.len() / 2..];
        let agrees = |r: f64| (r / last - 1.0).abs() < 0.03;
        (last >= 1.0 && later.iter().filter_map(rate).all(agrees)).then_some(last)
    }
}

/// The exponential moving average with bias correction (Kingma and Ba 2015, section 3, arXiv:1412.6980):
/// m_t = `beta`·m_(t−1) + (1−`beta`)·v_t from m_0 = 0, divided by 1−`beta`^t. The division makes the first result
/// the first value and leaves a constant as it is. `beta` lies in [0, 1); 0 changes nothing.
pub fn smooth(values: &[f64], beta: f64) -> Vec<f64> {
    let (mut mean, mut weight) = (0.0, 0.0);
    let next = |v: &f64| {
        mean = beta * mean + (1.0 - beta) * v;
        weight = beta * weight + (1.0 - beta);
        mean / weight
    };
    values.iter().map(next).collect()
}

/// Draws one run: the scalars of each panel together, the first panel above the others.
/// Logged values are faint, their moving average is solid, held-out values are dots. A run without rows gives
/// an empty chart that says so.
///
/// # Errors
/// If `out` does not end in `.png` or `.svg`, or cannot be written. The file is replaced as a whole or not at all.
pub fn draw_run(metrics: &Metrics, title: &str, out: &Path) -> Result<()> {
    let mut colors = (0..).map(color);
    let mut panels: Vec<Panel> =
        grouped_by_panel(metrics.drawn()).iter().map(|scalars| run_panel(metrics, scalars, &mut colors)).collect();
    if panels.is_empty() {
        panels.push(Panel { y_label: "loss".to_owned(), curves: Vec::new() });
    }
    let note = match (metrics.last_step, metrics.series("epoch").last()) {
        (Some(step), Some((_, epoch))) => {
            let epoch = format!("{epoch:.2}");
            format!("step {}, epoch {}", grouped(step, 0), epoch.trim_end_matches('0').trim_end_matches('.'))
        }
        (Some(step), None) => format!("step {}", grouped(step, 0)),
        (None, _) => String::new(),
    };
    draw(title.to_owned(), note, Vec::new(), in_rows(panels, 1), &[metrics], out)
}

/// Draws several runs on one chart, each in its colour, a panel for each scalar: training (smoothed) as a thin line,
/// held-out values as dots on a dashed line. One run alone is drawn as by [`draw_run`].
///
/// # Errors
/// As [`draw_run`]; also if there is no run, or if two runs have no scalar in common.
pub fn draw_runs(runs: &[(String, Metrics)], out: &Path) -> Result<()> {
    let [(name, first), others @ ..] = runs else { bail!("there is no run to draw; name at least one run folder") };
    if others.is_empty() {
        return draw_run(first, name, out);
    }
    let mut scalars: Vec<&Scalar> = Vec::new();
    for (name, metrics) in runs {
        let own: Vec<&Scalar> = metrics.drawn().collect();
        let keys = |list: &[&Scalar]| list.iter().map(|s| s.key.as_str()).collect::<Vec<_>>().join(", ");
        let known = |s: &&&Scalar| scalars.iter().any(|k| (&k.key, &k.unit) == (&s.key, &s.unit));
        ensure!(
            scalars.is_empty() || own.is_empty() || own.iter().any(|s| known(&s)),
            "runs that measure different things cannot share a chart: '{name}' has logged {}, the runs before it {}; plot \
             them separately",
            keys(&own),
            keys(&scalars)
        );
        let new: Vec<&Scalar> = own.iter().filter(|s| !known(s)).copied().collect();
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
    draw(format!("{} runs", runs.len()), String::new(), legend, in_rows(panels, first_row), &all, out)
}

/// A number with commas between thousands, as charts write it.
pub fn thousands(n: usize) -> String {
    grouped(n as f64, 0)
}

/// Scalars of one panel together, panels in the order of their first scalars.
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

/// Panels in rows: `first` of them in the upper one, the others in rows of two, or of three where they are many.
fn in_rows(mut panels: Vec<Panel>, first: usize) -> Vec<Vec<Panel>> {
    let mut others = panels.split_off(first.min(panels.len())).into_iter();
    let columns = if others.len() > 4 { 3 } else { 2 };
    let mut rows = vec![panels];
    while others.len() > 0 {
        rows.push(others.by_ref().take(columns).collect());
    }
    rows
}

/// Colour number `i` of runs and scalars.
fn color(i: usize) -> RGBColor {
    shade(&COLORS, i)
}

/// Colour number `i` of a palette, which comes round darker, then paler.
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

/// A series smoothed for the eye: the weight of a value falls off exponentially with its distance to either
/// side. Looking both ways keeps a steep curve from lagging behind its own values; the last value has only a
/// past and equals [`smooth`]'s. The memory is a share of the run, so that short and long runs look equally calm.
fn smoothed(points: &[Pt]) -> Vec<Pt> {
    let memory = (points.len() as f64 / 60.0).max(1.0);
    let beta = 1.0 - 1.0 / memory;
    let mut values: Vec<f64> = points.iter().map(|p| p.1).collect();
    let past = smooth(&values, beta);
    values.reverse();
    let future = smooth(&values, beta);
    // How much weight i values have together, in units of the newest one's: 1 + beta + beta² + ...
    let mut weights = vec![0.0; points.len() + 1];
    for i in 0..points.len() {
        weights[i + 1] = 1.0 + beta * weights[i];
    }
    let count = points.len();
    let both = |(i, (step, value)): (usize, &Pt)| {
        let (before, after) = (weights[i + 1], weights[count - i]);
        let total = before + after - 1.0;
        // The value itself is in both averages and counts once. In this order nothing overflows.
        let own = past[i] * (before / total) - value / total;
        (*step, own + future[count - 1 - i] * (after / total))
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

/// `text (unit)`, or the text alone.
fn with_unit(text: &str, unit: &str) -> String {
    if unit.is_empty() { text.to_owned() } else { format!("{text} ({unit})") }
}

/// The scalars of one panel of a run, each in its colour; a scalar alone has one colour for training and one for held-out values.
fn run_panel(metrics: &Metrics, scalars: &[&Scalar], colors: &mut impl Iterator<Item = RGBColor>) -> Panel {
    let alone = scalars.len() == 1;
    let (mut raw, mut lines, mut dots, mut levels) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for scalar in scalars {
        let (train, test) = (metrics.series(&scalar.key), metrics.held_out(&scalar.key));
        let smooth = smoothed(train);
        let last = last_value(&smooth);
        let (color, text) = match alone {
            true => (BLUE, format!("train (smoothed{last})")),
            false => (colors.next().unwrap_or(BLACK), format!("{} ({}{last})", scalar.name, scalar.key)),
        };
        raw.push(curve(Style::Raw, color, train, String::new()));
        lines.push(curve(Style::Line, color, &smooth, text));
        if alone && !test.is_empty() {
            dots.push(curve(Style::Dots, VERMILLION, test, format!("test{}", last_value(test))));
        } else if !test.is_empty() {
            dots.push(curve(Style::DashedDots, color, test, String::new()));
        }
        levels.extend(scalar.equilibrium.map(|at| curve(Style::Level, color, &[(0.0, at)], String::new())));
    }
    // What explains the curves of all scalars stands last in the legend.
    if !alone && !dots.is_empty() {
        dots.push(curve(Style::DashedDots, GREY, &[], "test".to_owned()));
    }
    if !levels.is_empty() {
        dots.push(curve(Style::Level, GREY, &[], "equilibrium".to_owned()));
    }
    let unit = if scalars.iter().all(|s| s.unit == scalars[0].unit) { scalars[0].unit.as_str() } else { "" };
    // All faint values lie below all lines, and these below all dots.
    let curves = raw.into_iter().chain(lines).chain(dots).chain(levels).collect();
    Panel { y_label: with_unit(&scalars[0].panel, unit), curves }
}

/// One scalar of several runs.
fn runs_panel(runs: &[(String, Metrics)], scalar: &Scalar) -> Panel {
    let of_each = |style, points: &dyn Fn(&Metrics) -> Vec<Pt>| -> Vec<Curve> {
        runs.iter().enumerate().map(|(i, (_, m))| curve(style, color(i), &points(m), String::new())).collect()
    };
    let mut curves = of_each(Style::Thin, &|m| smoothed(m.series(&scalar.key)));
    curves.extend(of_each(Style::DashedDots, &|m| m.held_out(&scalar.key).to_vec()));
    let text = match scalar.panel.contains(&scalar.name) {
        true => scalar.name.clone(),
        false => format!("{}: {}", scalar.name, scalar.panel),
    };
    Panel { y_label: with_unit(&text, &scalar.unit), curves }
}

fn draw(
    title: String,
    note: String,
    legend: Vec<Curve>,
    rows: Vec<Vec<Panel>>,
    runs: &[&Metrics],
    out: &Path,
) -> Result<()> {
    let last = runs.iter().filter_map(|m| m.last_step).fold(0.0, f64::max);
    let rates: Vec<Option<f64>> = runs.iter().map(|m| m.steps_per_epoch()).collect();
    // Runs with different batch sizes have no epoch in common.
    let x_label = match rates.split_first() {
        Some((Some(rate), rest)) if rest.iter().all(|r| r.is_some_and(|r| (r / rate - 1.0).abs() < 0.01)) => {
            let sign = if (rate - rate.round()).abs() < 0.02 { "=" } else { "≈" };
            let steps = if rate.round() == 1.0 { "step" } else { "steps" };
            format!("step (1 epoch {sign} {} {steps})", grouped(rate.round(), 0))
        }
        _ => "step".to_owned(),
    };
    let height = SIZE.1 + ROW_HEIGHT * rows.len().saturating_sub(2) as u32;
    let figure = Figure { title, note, legend, rows, x_label, x_max: if last > 0.0 { last } else { 1.0 } };
    surface::write(&figure, (SIZE.0, height), out)
}

#[cfg(test)]
mod tests;
