//! Loss curves and latents: reads a run's `metrics.jsonl`, or takes points, and draws them as PNG or SVG.

mod canvas;
mod chart;
mod scale;
mod scatter;

use anyhow::{Context, Result, bail};
use canvas::Drawing;
use chart::{Entry, Figure, Layer, Level, Panel, Style};
use plotters::style::{BLACK, RGBColor, WHITE};
use scale::{Pt, grouped};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

use crate::base::atomic_file;

pub use scatter::Scatter;

/// Width and height of every chart of curves in pixels.
pub const SIZE: (u32, u32) = (1200, 800);

// The palette of Okabe and Ito (2008), which colour-blind readers can tell apart, without its yellow
// (too faint on white).
const BLUE: RGBColor = RGBColor(0, 114, 178);
const VERMILLION: RGBColor = RGBColor(213, 94, 0);
const GREEN: RGBColor = RGBColor(0, 158, 115);
const PURPLE: RGBColor = RGBColor(204, 121, 167);
const ORANGE: RGBColor = RGBColor(230, 159, 0);
const SKY: RGBColor = RGBColor(86, 180, 233);
const GREY: RGBColor = RGBColor(110, 110, 110);
const RUN_COLORS: [RGBColor; 7] = [BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK];

/// What one run has logged: for each key the (step, value) pairs in the order of the steps.
#[derive(Clone, Debug)]
pub struct Metrics {
    columns: BTreeMap<String, Vec<(f64, f64)>>,
    last_step: Option<f64>,
    /// True (the default) draws the levels ln 4 (`d_loss`) and ln 2 (`g_loss`) at which the standard GAN with the
    /// non-saturating generator loss stands when the critic cannot tell real from generated images. For losses
    /// whose equilibrium lies elsewhere (hinge, Wasserstein, least squares, minimax) set it to false.
    pub equilibrium: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Vae,
    Gan,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let (columns, last_step) = (BTreeMap::new(), None);
        Metrics { columns, last_step, equilibrium: true }
    }
}

impl Metrics {
    /// The (step, value) pairs of a key such as `loss` or `test_kl`: finite values, steps rising. Empty if the
    /// key was never logged.
    pub fn series(&self, key: &str) -> &[(f64, f64)] {
        self.columns.get(key).map_or(&[], Vec::as_slice)
    }

    /// The step of the last row, if there is a row.
    pub fn last_step(&self) -> Option<f64> {
        self.last_step
    }

    /// Takes in one row. A step before the last one means that a run was resumed from an older checkpoint
    /// and repeats itself: what had been logged from that step on is dropped.
    fn push(&mut self, row: Map<String, Value>) -> Result<()> {
        let step = row.get("step").and_then(Value::as_f64);
        let Some(step) = step.filter(|s| *s >= 0.0) else {
            bail!("has no \"step\" of 0 or more");
        };
        if self.last_step.is_some_and(|last| step < last) {
            for column in self.columns.values_mut() {
                column.truncate(column.partition_point(|p| p.0 < step));
            }
        }
        self.last_step = Some(step);
        for (key, value) in row.into_iter().filter(|(key, _)| key != "step") {
            // A key with null stays known (it tells a VAE from a GAN), but gets no point.
            let column = self.columns.entry(key).or_default();
            if let Some(value) = value.as_f64() {
                column.pop_if(|p| p.0 == step);
                column.push((step, value));
            }
        }
        Ok(())
    }

    /// VAE or GAN, by the keys; none for a run that has not logged anything yet.
    fn kind(&self) -> Option<Kind> {
        let has = |keys: &[&str]| {
            let name = |k: &String| k.strip_prefix("test_").unwrap_or(k).to_string();
            self.columns.keys().any(|k| keys.contains(&name(k).as_str()))
        };
        if has(&["d_loss", "g_loss", "d_real", "d_fake"]) {
            Some(Kind::Gan)
        } else if has(&["loss", "recon", "kl", "elbo"]) {
            Some(Kind::Vae)
        } else {
            None
        }
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

/// Reads a run's `metrics.jsonl`. Numbers under unknown keys are kept too; nulls are skipped, as are empty lines.
/// A last line without its newline that is not valid JSON was being written and is skipped.
///
/// # Errors
/// If the file cannot be read, or another line is not a JSON object with a step: the error names file and line.
pub fn read_metrics(path: &Path) -> Result<Metrics> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read the metrics {}", path.display()))?;
    let mut metrics = Metrics::default();
    let lines = bytes.split_inclusive(|b| *b == b'\n');
    for (number, line) in lines.enumerate().map(|(i, line)| (i + 1, line)) {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let place = || format!("{} line {number}", path.display());
        match serde_json::from_slice::<Map<String, Value>>(line) {
            Ok(row) => metrics.push(row).map_err(|e| anyhow::anyhow!("{} {e}; mend or remove that line", place()))?,
            Err(_) if !line.ends_with(b"\n") => {}
            Err(e) => bail!("{} is not a JSON object ({e}); mend or remove that line", place()),
        }
    }
    Ok(metrics)
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

/// Draws one run: losses above, below what they consist of (VAE: reconstruction and KL) or stand for (GAN: mean critic outputs, and
/// where they were logged the critic's accuracy and the images' diversity).
/// Logged values are faint, their moving average is solid, held-out values are dots. A run without rows gives
/// an empty chart that says so.
///
/// # Errors
/// If `out` does not end in `.png` or `.svg`, or cannot be written. The file is replaced as a whole or not at all.
pub fn draw_run(metrics: &Metrics, title: &str, out: &Path) -> Result<()> {
    let rows = match metrics.kind() {
        Some(Kind::Vae) => vec![
            vec![vae_panel(metrics, "loss", "loss (nats per image)")],
            vec![
                vae_panel(metrics, "recon", "reconstruction (nats per image)"),
                vae_panel(metrics, "kl", "KL (nats per image)"),
            ],
        ],
        Some(Kind::Gan) => {
            let loss = [("d_loss", "discriminator", BLUE), ("g_loss", "generator", VERMILLION)];
            let logits = [("d_real", "real images", GREEN), ("d_fake", "generated images", PURPLE)];
            let mut upper = gan_panel(metrics, &loss, "loss (nats)");
            add_equilibrium(metrics, &mut upper);
            let mut lower = vec![gan_panel(metrics, &logits, "mean critic output (logit)")];
            // Runs of other programs may have the losses alone.
            if !metrics.series("d_accuracy").is_empty() {
                let health = [("d_accuracy", "accuracy", ORANGE), ("diversity", "diversity", SKY)];
                lower.push(gan_panel(metrics, &health, "accuracy and diversity"));
            }
            vec![vec![upper], lower]
        }
        None => vec![vec![panel("loss", Vec::new())]],
    };
    let note = match (metrics.last_step, metrics.series("epoch").last()) {
        (Some(step), Some((_, epoch))) => {
            let epoch = format!("{:.2}", epoch);
            let epoch = epoch.trim_end_matches('0').trim_end_matches('.');
            format!("step {}, epoch {epoch}", grouped(step, 0))
        }
        (Some(step), None) => format!("step {}", grouped(step, 0)),
        (None, _) => String::new(),
    };
    let title = title.to_string();
    let legend = Vec::new();
    write(&figure(title, note, legend, rows, &[metrics]), SIZE, out)
}

/// Draws several runs on one chart, each in its colour: training (smoothed) as a thin line, held-out values as
/// dots on a dashed line. One run alone is drawn as by [`draw_run`].
///
/// # Errors
/// As [`draw_run`]; also if there is no run, or if VAE and GAN runs are mixed.
pub fn draw_runs(runs: &[(String, Metrics)], out: &Path) -> Result<()> {
    if let [(name, metrics)] = runs {
        return draw_run(metrics, name, out);
    }
    let first = |kind| runs.iter().find(|r| r.1.kind() == Some(kind));
    let rows = match (first(Kind::Vae), first(Kind::Gan)) {
        _ if runs.is_empty() => bail!("there is no run to draw; name at least one run folder"),
        (Some((vae, _)), Some((gan, _))) => bail!(
            "VAE and GAN runs cannot share a chart, as their losses measure different things: '{vae}' is a VAE, \
             '{gan}' a GAN; plot them separately"
        ),
        (None, Some(_)) => vec![
            vec![
                runs_panel(runs, "d_loss", "discriminator loss (nats)"),
                runs_panel(runs, "g_loss", "generator loss (nats)"),
            ],
            vec![
                runs_panel(runs, "d_real", "critic on real images (logit)"),
                runs_panel(runs, "d_fake", "critic on generated (logit)"),
            ],
        ],
        _ => vec![
            vec![runs_panel(runs, "loss", "loss (nats per image)")],
            vec![
                runs_panel(runs, "recon", "reconstruction (nats per image)"),
                runs_panel(runs, "kl", "KL (nats per image)"),
            ],
        ],
    };
    let mut legend: Vec<Entry> =
        vec![entry("training (smoothed)", GREY, Style::Thin), entry("test", GREY, Style::DashedDots)];
    for (i, (name, metrics)) in runs.iter().enumerate() {
        let missing = if metrics.last_step.is_none() { " (no data yet)" } else { "" };
        legend.push(entry(&format!("{name}{missing}"), run_color(i), Style::Line));
    }
    let all: Vec<&Metrics> = runs.iter().map(|r| &r.1).collect();
    let title = format!("{} runs", runs.len());
    write(&figure(title, String::new(), legend, rows, &all), SIZE, out)
}

/// Draws points in the plane.
///
/// # Errors
/// As [`draw_run`].
pub fn draw_scatter(scatter: &Scatter, out: &Path) -> Result<()> {
    write(scatter, scatter::SIZE, out)
}

/// A number with commas between thousands, as charts write it.
pub fn thousands(n: usize) -> String {
    grouped(n as f64, 0)
}

fn run_color(i: usize) -> RGBColor {
    shade(&RUN_COLORS, i)
}

/// Colour number `i`: colours come round darker, then paler.
fn shade(colors: &[RGBColor], i: usize) -> RGBColor {
    let base = colors[i % colors.len()];
    match (i / colors.len()) % 3 {
        0 => base,
        1 => mean(base, RGBColor(40, 40, 40)),
        _ => mean(base, WHITE),
    }
}

fn mean(a: RGBColor, b: RGBColor) -> RGBColor {
    RGBColor(a.0.midpoint(b.0), a.1.midpoint(b.1), a.2.midpoint(b.2))
}

fn entry(text: &str, color: RGBColor, style: Style) -> Entry {
    let text = text.to_string();
    Entry { text, color, style }
}

fn panel(y_label: &str, legend: Vec<Entry>) -> Panel {
    Panel { y_label: y_label.to_string(), layers: Vec::new(), levels: Vec::new(), legend }
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
        Some((_, v)) if v.abs() >= 1e7 => {
            format!(", last {}", format!("{v:.2e}").replace('-', "−"))
        }
        Some((_, v)) if v.abs() >= 1000.0 => format!(", last {}", grouped(*v, 0)),
        Some((_, v)) if v.abs() >= 10.0 => format!(", last {}", grouped(*v, 1)),
        Some((_, v)) => format!(", last {}", grouped(*v, 3)),
        None => String::new(),
    }
}

/// One quantity of a VAE: training and test.
fn vae_panel(metrics: &Metrics, key: &str, y_label: &str) -> Panel {
    let train = metrics.series(key);
    let test = metrics.series(&format!("test_{key}"));
    let smooth = smoothed(train);
    let train_text = format!("train (smoothed{})", last_value(&smooth));
    let test_text = format!("test{}", last_value(test));
    let mut panel = panel(y_label, vec![entry(&train_text, BLUE, Style::Line)]);
    if !test.is_empty() {
        panel.legend.push(entry(&test_text, VERMILLION, Style::Dots));
    }
    panel.layers = vec![
        layer(BLUE, Style::Raw, train.to_vec()),
        layer(BLUE, Style::Line, smooth),
        layer(VERMILLION, Style::Dots, test.to_vec()),
    ];
    panel
}

fn layer(color: RGBColor, style: Style, points: Vec<Pt>) -> Layer {
    Layer { color, style, points }
}

/// Quantities of a GAN (key, name, colour) on one set of axes.
fn gan_panel(metrics: &Metrics, keys: &[(&str, &str, RGBColor)], y_label: &str) -> Panel {
    let mut panel = panel(y_label, Vec::new());
    let (mut lines, mut dots, mut tested) = (Vec::new(), Vec::new(), false);
    for (key, name, color) in keys {
        let train = metrics.series(key);
        let test = metrics.series(&format!("test_{key}"));
        let smooth = smoothed(train);
        let text = format!("{name} ({key}{})", last_value(&smooth));
        panel.legend.push(entry(&text, *color, Style::Line));
        panel.layers.push(layer(*color, Style::Raw, train.to_vec()));
        lines.push(layer(*color, Style::Line, smooth));
        dots.push(layer(*color, Style::DashedDots, test.to_vec()));
        tested |= !test.is_empty();
    }
    // All faint values lie below all lines, and these below all dots.
    panel.layers.extend(lines.into_iter().chain(dots));
    if tested {
        panel.legend.push(entry("test", GREY, Style::DashedDots));
    }
    panel
}

/// Adds the levels at which a standard GAN's losses come to rest (Goodfellow et al. 2014, theorem 1,
/// arXiv:1406.2661): the critic's two terms are ln 2 each, the non-saturating generator's is ln 2.
fn add_equilibrium(metrics: &Metrics, panel: &mut Panel) {
    // Standard losses are sums of softplus terms, so a negative one betrays another kind.
    let negative = |key: &str| metrics.series(key).iter().any(|p| p.1 < 0.0);
    if !metrics.equilibrium || negative("d_loss") || negative("g_loss") {
        return;
    }
    let level = |value: f64, text, color: RGBColor| Level { value, text, color };
    panel.levels = vec![level(4f64.ln(), "ln 4", BLUE), level(2f64.ln(), "ln 2", VERMILLION)];
    panel.legend.push(entry("equilibrium", GREY, Style::Level));
}

/// One quantity of several runs.
fn runs_panel(runs: &[(String, Metrics)], key: &str, y_label: &str) -> Panel {
    let mut panel = panel(y_label, Vec::new());
    for (i, (_, metrics)) in runs.iter().enumerate() {
        let line = smoothed(metrics.series(key));
        panel.layers.push(layer(run_color(i), Style::Thin, line));
    }
    for (i, (_, metrics)) in runs.iter().enumerate() {
        let dots = metrics.series(&format!("test_{key}")).to_vec();
        panel.layers.push(layer(run_color(i), Style::DashedDots, dots));
    }
    panel
}

fn figure(title: String, note: String, legend: Vec<Entry>, rows: Vec<Vec<Panel>>, runs: &[&Metrics]) -> Figure {
    let last = runs.iter().filter_map(|m| m.last_step).fold(0.0, f64::max);
    let rates: Vec<Option<f64>> = runs.iter().map(|m| m.steps_per_epoch()).collect();
    // Runs with different batch sizes have no epoch in common.
    let x_label = match rates.split_first() {
        Some((Some(rate), rest)) if rest.iter().all(|r| r.is_some_and(|r| (r / rate - 1.0).abs() < 0.01)) => {
            let sign = if (rate - rate.round()).abs() < 0.02 { "=" } else { "≈" };
            let steps = if rate.round() == 1.0 { "step" } else { "steps" };
            format!("step (1 epoch {sign} {} {steps})", grouped(rate.round(), 0))
        }
        _ => "step".to_string(),
    };
    Figure { title, note, legend, rows, x_label, x_max: if last > 0.0 { last } else { 1.0 } }
}

/// Draws in memory, writes to a neighbouring file and renames it, so that a viewer never sees half a chart.
fn write(drawing: &impl Drawing, size: (u32, u32), out: &Path) -> Result<()> {
    let extension = out.extension().map(|e| e.to_string_lossy().to_lowercase());
    let svg = match extension.as_deref() {
        Some("png") => false,
        Some("svg") => true,
        found => bail!(
            "cannot draw to {}: its ending is {}, and charts are written as .png or .svg; \
             name the file, for example, {}",
            out.display(),
            found.map_or("missing".to_string(), |e| format!("'.{e}'")),
            out.with_extension("png").display()
        ),
    };
    let bytes = match svg {
        true => canvas::svg(size, |canvas| drawing.on(canvas))?,
        false => canvas::png(size, |canvas| drawing.on(canvas))?,
    };
    Ok(atomic_file::write_unsynced(out, &bytes)?)
}

#[cfg(test)]
mod tests;
