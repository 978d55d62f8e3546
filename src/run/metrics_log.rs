//! The log of a run's metrics.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};

use crate::base::progress::say;

/// metrics.jsonl: one object a line, written at once and synced before each checkpoint.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: fs::File,
    bytes: u64,
    /// The length that was asked for when the file was opened, and the length that was kept.
    opened: (u64, u64),
}

impl MetricsLog {
    /// Opens the file at `path` and cuts it to its first `bytes`: rows after them belong to steps that will be done again. A shorter
    /// file has lost rows: this gives a warning.
    pub fn open(path: PathBuf, bytes: u64) -> Result<Self> {
        let open = || -> Result<(fs::File, u64)> {
            ensure!(path.is_file() || !path.exists(), "it is a pipe or a device: wanted a file");
            let file = fs::OpenOptions::new().create(true).append(true).open(&path)?;
            let mut kept = bytes;
            if file.metadata()?.len() < bytes {
                // Up to its last complete line.
                kept = fs::read(&path)?.iter().rposition(|b| *b == b'\n').map_or(0, |at| at as u64 + 1);
                say(&format!("warning: {} has lost rows; the run goes on, its curves have a gap", path.display()));
            }
            file.set_len(kept)?;
            Ok((file, kept))
        };
        let (file, kept) = open().with_context(|| format!("{} could not be opened", path.display()))?;
        Ok(MetricsLog { path, file, bytes: kept, opened: (bytes, kept) })
    }

    /// Appends one row. A number that is not finite becomes `null`, since JSON has none.
    pub fn append(&mut self, row: &[(String, f64)]) -> Result<()> {
        let object: Map<String, Value> = row.iter().map(|(k, v)| (k.clone(), number(*v))).collect();
        let mut line = serde_json::to_vec(&object)?;
        line.push(b'\n');
        self.file.write_all(&line).with_context(|| format!("{} could not be written", self.path.display()))?;
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Removes the rows after the first `bytes`: their steps will be done again.
    pub fn cut(&mut self, bytes: u64) -> Result<()> {
        let bytes = if bytes == self.opened.0 { self.opened.1 } else { bytes.min(self.bytes) };
        self.file.set_len(bytes).with_context(|| format!("{} could not be cut", self.path.display()))?;
        self.bytes = bytes;
        Ok(())
    }

    /// Syncs the rows and gives the length so far, which a checkpoint may then rely on.
    pub fn sync(&self) -> Result<u64> {
        self.file.sync_all().with_context(|| format!("{} could not be written", self.path.display()))?;
        Ok(self.bytes)
    }
}

/// Whole numbers without a decimal point; eight significant digits of the rest, which is what a float32 holds.
fn number(v: f64) -> Value {
    if v.fract() == 0.0 && v.abs() < 9e15 {
        return Value::from(v as i64);
    }
    let rounded = format!("{v:.7e}").parse::<f64>().unwrap_or(v);
    serde_json::Number::from_f64(rounded).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_lines_and_a_resumed_log_forgets_later_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let row = |step: f64, loss: f64| vec![("step".to_owned(), step), ("loss".to_owned(), loss)];
        let mut log = MetricsLog::open(path.clone(), 0).unwrap();
        log.append(&row(50.0, 123.456_789_12)).unwrap();
        let kept = log.sync().unwrap();
        log.append(&row(100.0, f64::NAN)).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"step\":50,\"loss\":123.45679}\n{\"step\":100,\"loss\":null}\n"
        );
        let mut log = MetricsLog::open(path.clone(), kept).unwrap();
        log.append(&row(100.0, 2.5)).unwrap();
        assert!(fs::read_to_string(&path).unwrap().ends_with("\n{\"step\":100,\"loss\":2.5}\n"));
        log.cut(kept).unwrap();
        log.append(&row(100.0, 3.0)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().last().unwrap(), "{\"step\":100,\"loss\":3}");
        // Rows were lost: complete lines are kept, an incomplete one is removed.
        fs::write(&path, "{\"step\":50}\n{\"st").unwrap();
        assert_eq!(MetricsLog::open(path.clone(), 1_000_000).unwrap().sync().unwrap(), 12);
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":50}\n");
    }
}
