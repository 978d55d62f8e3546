//! A number that training logs, described where it is computed: charts, reports and checks know no model.

use serde::{Deserialize, Serialize};

/// Which way a scalar gets better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
}

/// One key of `metrics.jsonl`: what it is and how it is drawn. A run keeps the list in `scalars.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scalar {
    /// Its key; held-out values have the prefix `test_`.
    pub key: String,
    /// What a legend calls it.
    pub name: String,
    /// Its unit, such as `nats per image`; empty for a pure number.
    pub unit: String,
    /// Title of the panel of the chart that it is drawn in.
    pub panel: String,
    /// Which way is better; none where neither is.
    pub better: Option<Better>,
    /// The largest magnitude of training that works, far above that of a model which has learned nothing; none for no limit.
    pub limit: Option<f64>,
    /// Where a game stands when neither player can win: a dashed line of the chart.
    pub equilibrium: Option<f64>,
}

impl Scalar {
    /// A scalar with no better direction, no limit and no equilibrium.
    pub fn new(key: &str, name: &str, unit: &str, panel: &str) -> Self {
        let [key, name, unit, panel] = [key, name, unit, panel].map(str::to_owned);
        Scalar { key, name, unit, panel, better: None, limit: None, equilibrium: None }
    }

    /// Less is better.
    #[must_use]
    pub fn lower(self) -> Self {
        Scalar { better: Some(Better::Lower), ..self }
    }

    /// More is better.
    #[must_use]
    pub fn higher(self) -> Self {
        Scalar { better: Some(Better::Higher), ..self }
    }

    /// Training whose value is larger in magnitude has diverged.
    #[must_use]
    pub fn limit(self, limit: f64) -> Self {
        Scalar { limit: Some(limit), ..self }
    }

    /// Where a game stands when neither player can win; none draws no line.
    #[must_use]
    pub fn equilibrium(self, at: Option<f64>) -> Self {
        Scalar { equilibrium: at, ..self }
    }
}
