//! The scores of all contestants as a table, JSON, CSV and a bar chart.

use serde_json::{Map, Value, json};

use crate::commands::arguments::SplitChoice;
use crate::metrics::sample_scores::Distances;
use crate::pictures::score_bars::{ScoreBars, ScorePanel};

/// A score in the order of the table: its key, its value, the value of real images, and its digits after the point.
pub(super) struct Row {
    pub(super) key: &'static str,
    pub(super) value: f64,
    pub(super) real: Option<f64>,
    pub(super) digits: usize,
}

/// The scores of a run, or of another program's images.
pub(super) struct Scored {
    pub(super) name: String,
    pub(super) step: Option<u64>,
    pub(super) data: String,
    pub(super) data_sha256: String,
    pub(super) split: SplitChoice,
    pub(super) n: usize,
    pub(super) k: Option<i64>,
    pub(super) seed: u64,
    pub(super) features: (String, String),
    pub(super) rows: Vec<Row>,
    /// What the numbers do not say.
    pub(super) notes: Vec<String>,
}

impl Row {
    pub(super) fn new(key: &'static str, value: f64, digits: usize) -> Self {
        Row { key, value, real: None, digits }
    }
}

pub(super) fn distance_rows(found: &Distances, real: &Distances) -> Vec<Row> {
    let row = |key, digits, of: &dyn Fn(&Distances) -> f64| Row { key, value: of(found), real: Some(of(real)), digits };
    vec![
        row("fid", 3, &|d| d.fid),
        row("kid", 5, &|d| d.kid.mean),
        row("kid_se", 5, &|d| d.kid.standard_error),
        row("precision", 4, &|d| d.manifold.precision),
        row("recall", 4, &|d| d.manifold.recall),
        row("density", 4, &|d| d.manifold.density),
        row("coverage", 4, &|d| d.manifold.coverage),
    ]
}

impl Scored {
    fn split_name(&self) -> &'static str {
        if self.split == SplitChoice::Train { "train" } else { "test" }
    }

    /// What the real images that samples are compared with are called.
    fn split_noun(&self) -> &'static str {
        if self.split == SplitChoice::Train { "training" } else { "held-out" }
    }

    pub(super) fn json(&self) -> Value {
        let mut all = Map::new();
        let (features, sha256) = &self.features;
        all.insert("run".into(), json!(self.name));
        all.insert("step".into(), json!(self.step));
        all.insert("data".into(), json!(self.data));
        all.insert("data_sha256".into(), json!(self.data_sha256));
        all.insert("split".into(), json!(self.split_name()));
        all.insert("n".into(), json!(self.n));
        if let Some(k) = self.k {
            all.insert("k".into(), json!(k));
        }
        all.insert("seed".into(), json!(self.seed));
        all.insert("features".into(), json!({"name": features, "sha256": sha256}));
        for row in &self.rows {
            all.insert(row.key.into(), json!(row.value));
            if let Some(real) = row.real {
                all.insert(format!("{}_real", row.key), json!(real));
            }
        }
        Value::Object(all)
    }
}

/// The scores as text: a row for each score, a column for each run and one for real images.
pub(super) fn table(all: &[Scored], extractor: &str) -> String {
    let Some(first) = all.first() else { return String::new() };
    let other = if first.split == SplitChoice::Train { "held-out" } else { "training" };
    let of = first.split_noun();
    let mut text = String::new();
    for (i, scored) in all.iter().enumerate() {
        let name = if all.len() == 1 { "run      ".to_owned() } else { format!("run {}    ", i + 1) };
        let step = scored.step.map_or_else(String::new, |step| format!(", step {step}"));
        text.push_str(&format!("{name} {}{step}\n", scored.name));
    }
    let k = all.iter().find_map(|scored| scored.k).map_or_else(String::new, |k| format!("; nll with K = {k}"));
    text.push_str(&format!("data      {}: {} {of} images; seed {}{k}\n", first.data, first.n, first.seed));
    text.push_str(&format!("features  {extractor}\n\n"));
    let heads: Vec<String> = match all.len() {
        1 => vec!["samples".into()],
        n => (1..=n).map(|i| format!("run {i}")).collect(),
    };
    let real = format!("real ({other})");
    text.push_str(&format!("{:20}", ""));
    heads.iter().chain([&real]).for_each(|head| text.push_str(&format!("{head:>17}")));
    text.push('\n');
    let mut keys: Vec<&str> = Vec::new();
    all.iter().flat_map(|scored| &scored.rows).for_each(|row| {
        if !keys.contains(&row.key) {
            keys.push(row.key);
        }
    });
    for key in keys {
        text.push_str(&format!("{key:20}"));
        let mut real = String::new();
        for scored in all {
            let found = scored.rows.iter().find(|row| row.key == key);
            let shown = found.map_or_else(String::new, |row| format!("{:.*}", row.digits, row.value));
            text.push_str(&format!("{shown:>17}"));
            if let Some((row, value)) = found.and_then(|row| Some((row, row.real?))) {
                real = format!("{value:.*}", row.digits);
            }
        }
        text.push_str(&format!("{real:>17}\n"));
    }
    for (i, scored) in all.iter().enumerate() {
        let of = if all.len() == 1 { String::new() } else { format!("run {}: ", i + 1) };
        scored.notes.iter().for_each(|note| text.push_str(&format!("{of}{note}\n")));
    }
    text
}

/// A line for each run: what its scores depend on, then the scores.
pub(super) fn csv_of(all: &[Scored]) -> String {
    let mut keys: Vec<String> = Vec::new();
    let objects: Vec<Map<String, Value>> = all
        .iter()
        .filter_map(|scored| match scored.json() {
            Value::Object(mut object) => {
                let (name, sha256) = scored.features.clone();
                object.insert("features".into(), json!(name));
                object.insert("features_sha256".into(), json!(sha256));
                Some(object)
            }
            _ => None,
        })
        .collect();
    for key in objects.iter().flat_map(Map::keys) {
        if !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    let mut text = format!("{}\n", keys.join(","));
    for object in &objects {
        let cells = keys.iter().map(|key| match object.get(key) {
            Some(Value::String(s)) => format!("\"{}\"", s.replace('"', "\"\"")),
            Some(Value::Null) | None => String::new(),
            Some(value) => value.to_string(),
        });
        text.push_str(&format!("{}\n", cells.collect::<Vec<_>>().join(",")));
    }
    text
}

/// The scores that are drawn: the key, the key of its standard error, and what is better.
const DRAWN: [(&str, &str, &str); 14] = [
    ("fid", "", LOWER),
    ("kid", "kid_se", LOWER),
    ("precision", "", HIGHER),
    ("recall", "", HIGHER),
    ("density", "", HIGHER),
    ("coverage", "", HIGHER),
    ("copied", "", LOWER),
    ("psnr", "", HIGHER),
    ("ssim", "", HIGHER),
    ("rfid", "", LOWER),
    ("nll", "nll_se", LOWER),
    ("bits_per_dim", "", LOWER),
    ("active_units", "", ""),
    ("mig", "", HIGHER),
];
const LOWER: &str = "lower is better";
const HIGHER: &str = "higher is better";

/// A panel for each score that at least one contestant has.
pub(super) fn bars(all: &[Scored], features: &str) -> ScoreBars {
    let Some(first) = all.first() else { return ScoreBars::default() };
    let find = |scored: &Scored, key: &str| {
        scored.rows.iter().find(|row| row.key == key).map(|row| (row.value, row.real, row.digits))
    };
    let mut panels = Vec::new();
    for (key, error, better) in DRAWN {
        let Some((_, real, digits)) = all.iter().find_map(|scored| find(scored, key)) else { continue };
        let bar = |scored: &Scored| {
            find(scored, key).map(|(value, ..)| (value, find(scored, error).map(|(value, ..)| value)))
        };
        panels.push(ScorePanel { name: key.to_owned(), better, bars: all.iter().map(bar).collect(), real, digits });
    }
    ScoreBars {
        title: format!("{}: {} {} images", first.data, first.n, first.split_noun()),
        note: format!("features {features}, seed {}", first.seed),
        names: all.iter().map(|scored| scored.name.clone()).collect(),
        panels,
    }
}
