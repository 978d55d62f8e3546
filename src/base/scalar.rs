//! Description of a logged number: charts, reports and checks use it and do not depend on the model.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::base::{atomic_file, small_file};

/// Which way a scalar gets better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
}

/// One key of `metrics.jsonl`: what it is and how it is drawn. A run keeps the list in `scalars.json`, an object by key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scalar {
    /// Its key; held-out values have the prefix `test_`.
    #[serde(skip)]
    pub key: String,
    /// What a legend calls it.
    pub name: String,
    /// Its unit, such as `nats per image`; empty for a pure number.
    pub unit: String,
    /// Title of the panel of the chart that it is drawn in; empty for a scalar that is logged and not drawn.
    pub panel: String,
    /// Which way is better; none where neither is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub better: Option<Better>,
    /// Upper bound on the magnitude in stable training, far above that of an untrained model; none for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<f64>,
    /// Value at the equilibrium of a GAN: a dashed line in the chart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equilibrium: Option<f64>,
    /// Whether NaN stands for a value that these images cannot give: it is not logged, and no sign of divergence.
    #[serde(skip)]
    pub may_be_unknown: bool,
    /// The key that runs are compared by in its place, as it depends on a run's weights of the terms of the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared_by: Option<String>,
}

impl Scalar {
    /// A scalar with no better direction, no limit and no equilibrium, by which runs can be compared.
    pub fn new(key: &str, name: &str, unit: &str, panel: &str) -> Self {
        let [key, name, unit, panel] = [key, name, unit, panel].map(str::to_owned);
        Scalar {
            key,
            name,
            unit,
            panel,
            better: None,
            limit: None,
            equilibrium: None,
            may_be_unknown: false,
            compared_by: None,
        }
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

    /// A larger magnitude means that training has diverged.
    #[must_use]
    pub fn limit(self, limit: f64) -> Self {
        Scalar { limit: Some(limit), ..self }
    }

    /// NaN stands for a value that these images cannot give.
    #[must_use]
    pub fn may_be_unknown(self) -> Self {
        Scalar { may_be_unknown: true, ..self }
    }

    /// Runs are compared by the scalar of this key instead.
    #[must_use]
    pub fn compared_by(self, key: &str) -> Self {
        Scalar { compared_by: Some(key.to_owned()), ..self }
    }

    /// Value at the equilibrium of a GAN; none draws no line.
    #[must_use]
    pub fn equilibrium(self, at: Option<f64>) -> Self {
        Scalar { equilibrium: at, ..self }
    }
}

/// Writes the list as one JSON object, in its order.
///
/// # Errors
/// When the file cannot be written; names it.
pub fn write(path: &Path, scalars: &[Scalar]) -> Result<()> {
    let entry = |s: &Scalar| Ok((s.key.clone(), serde_json::to_value(s)?));
    let object = scalars.iter().map(entry).collect::<Result<Map<String, Value>>>()?;
    let text = format!("{:#}\n", Value::from(object));
    Ok(atomic_file::write_unsynced(path, text.as_bytes())?)
}

/// Reads what [`write`] wrote.
///
/// # Errors
/// When the file cannot be read, or is no list of scalars; names it, and the scalar.
pub fn read(path: &Path) -> Result<Vec<Scalar>> {
    let text = small_file::read(path)?;
    let object: Map<String, Value> = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a JSON object of scalars by key", path.display()))?;
    let scalar = |(key, value): (String, Value)| match serde_json::from_value::<Scalar>(value) {
        Ok(scalar) => Ok(Scalar { key, ..scalar }),
        Err(e) => Err(e).with_context(|| format!("{} describes no scalar under \"{key}\"", path.display())),
    };
    object.into_iter().map(scalar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_reads_back_in_its_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scalars.json");
        let all = [
            Scalar::new("loss", "loss", "nats per image", "loss").lower().limit(1e6),
            Scalar::new("g_loss", "generator", "nats", "loss").equilibrium(Some(2f64.ln())),
            Scalar::new("elbo", "ELBO", "nats per image", "").higher(),
        ];
        write(&path, &all).unwrap();
        assert_eq!(read(&path).unwrap(), all);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let text = std::fs::read_to_string(&path).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["loss"]["better"], "lower");
        assert_eq!(json["elbo"].get("equilibrium"), None, "what a scalar has not is not written");
    }

    #[test]
    fn an_invalid_list_is_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scalars.json");
        for (text, part) in [
            ("[]", "not a JSON object"),
            ("{\"kl\":{\"name\":\"KL\",\"unit\":\"\"}}", "\"kl\""),
            ("{\"kl\":{\"name\":\"\",\"unit\":\"\",\"panel\":\"\",\"better\":\"up\"}}", "\"kl\""),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("scalars.json") && error.contains(part), "{error}");
        }
        assert!(write(Path::new("/nonexistent/a.json"), &[]).unwrap_err().to_string().contains("/nonexistent/a.json"));
    }
}
