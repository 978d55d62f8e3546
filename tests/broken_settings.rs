//! Harmed files of text: config files, and the rows of metrics that a run has logged.

#[path = "common/harm.rs"]
mod harm;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ganvae::base::seed::Rng;
use ganvae::base::usage::Usage;
use ganvae::config::{self, file};
use ganvae::models::ModelKind;
use ganvae::pictures::curves::Metrics;
use harm::*;

/// The config file, and what is resolved from it.
struct ConfigFile {
    path: PathBuf,
    seeds: Vec<String>,
    model: ModelKind,
}

impl ConfigFile {
    fn new(dir: &Path) -> Self {
        let mut seeds: Vec<String> = Vec::new();
        for (model, preset) in [
            (ModelKind::Vae, "article"),
            (ModelKind::Vae, "pytorch-vae"),
            (ModelKind::Vae, "conv-vae"),
            (ModelKind::Gan, "article"),
            (ModelKind::Gan, "dcgan"),
        ] {
            let text = format!("model = '{model}'\npreset = '{preset}'\n");
            let (_, given) = file::parse(&text, Path::new("seed")).unwrap();
            let full = config::resolve(model, &given).unwrap().to_toml();
            seeds.push(format!("{full}\n[run]\nganvae = '0.1.0'\nstarted = 'now'\n"));
        }
        seeds.push("# mine\nlr = 1e-3 # small\nbatch-size = 1_000\n".into());
        seeds.push("model = \"gan\"\nimage-size = '32x32'\nchannels = 1\ndata = '/no/é'\nthreads = 2\n".into());
        seeds.push("tune = 'threads=2,products=by-size'\ndeterministic = true\nencoder-hidden = [64, 32]\n".into());
        ConfigFile { path: dir.join("my.toml"), seeds, model: ModelKind::Vae }
    }
}

impl Target for ConfigFile {
    fn seeds(&self) -> usize {
        self.seeds.len()
    }

    fn put(&mut self, seed: usize, rng: Option<&mut Rng>) -> Input {
        let good = self.seeds[seed].as_bytes();
        let bytes = match rng {
            None => good.to_vec(),
            Some(rng) => {
                self.model = [ModelKind::Vae, ModelKind::Gan][pick(rng, 2)];
                let other = self.seeds[pick(rng, self.seeds.len())].as_bytes();
                harm(rng, good, other, Some(CONFIG_WORDS))
            }
        };
        fs::write(&self.path, &bytes).unwrap();
        // The list of all flags that is made to know the keys; a parser's tables, which are larger than its text.
        Input { path: self.path.clone(), bytes: bytes.len(), most: (2 << 20) + 256 * bytes.len() }
    }

    fn read(&mut self) -> Result<()> {
        let (kind, given) = file::read(&self.path).inspect_err(usage)?;
        let model = kind.unwrap_or(self.model);
        // What is refused here is a value, by the name of its flag: which file it came from is the caller's to know.
        let named = |e: &anyhow::Error| assert!(format!("{e:#}").contains("--"), "no flag is named: {e:#}");
        let resolved = config::resolve(model, &given).inspect_err(usage).inspect_err(named);
        let resolved = resolved.with_context(|| self.path.display().to_string())?;
        // What is accepted is kept in the run's folder, and has to come back from there as it was.
        let text = resolved.to_toml();
        let (kind, again) = file::parse(&text, &self.path).expect("what was written can be read");
        assert_eq!(kind, Some(model));
        let again = config::resolve(model, &again).expect("what was resolved resolves again");
        assert_eq!(again.to_toml(), text);
        Ok(())
    }
}

/// Every mistake in a config file is the caller's: exit code 2.
fn usage(e: &anyhow::Error) {
    assert!(e.is::<Usage>(), "not a usage error: {e:#}");
}

/// The rows that a run has logged.
struct MetricsFile {
    path: PathBuf,
    seeds: Vec<String>,
}

const METRICS_WORDS: &str =
    "step epoch loss recon kl test_loss d_loss g_loss null true \"5\" {} [] , : }\n{ \n {\"step\":0}\n \"\"";

impl MetricsFile {
    fn new(dir: &Path) -> Self {
        let row = |model: &str, i: u64| match (model, i % 3) {
            ("vae", 2) => format!("{{\"step\":{i},\"epoch\":{},\"test_loss\":105.5,\"test_kl\":null}}\n", i / 3),
            ("vae", _) => {
                format!("{{\"step\":{i},\"epoch\":0.5,\"loss\":1.5e2,\"recon\":100,\"kl\":-0.0,\"lr\":1e-3}}\n")
            }
            _ => format!("{{\"step\":{},\"d_loss\":1.3,\"g_loss\":0.7,\"d_real\":0.1,\"d_fake\":null}}\n", 50 * i),
        };
        let rows = |model| (1..7).map(|i| row(model, i)).collect::<String>();
        let resumed = rows("vae") + &rows("vae")[..rows("vae").len() / 2] + "\n\n{\"step\":9,\"lo";
        fs::write(dir.join("scalars.json"), "{}").unwrap();
        MetricsFile { path: dir.join("metrics.jsonl"), seeds: vec![rows("vae"), rows("gan"), resumed, String::new()] }
    }
}

impl Target for MetricsFile {
    fn seeds(&self) -> usize {
        self.seeds.len()
    }

    fn put(&mut self, seed: usize, rng: Option<&mut Rng>) -> Input {
        let good = self.seeds[seed].as_bytes();
        let bytes = match rng {
            None => good.to_vec(),
            Some(rng) => {
                let other = self.seeds[pick(rng, self.seeds.len())].as_bytes();
                harm(rng, good, other, Some(METRICS_WORDS))
            }
        };
        fs::write(&self.path, &bytes).unwrap();
        // A number of two characters is a JSON value of dozens of bytes, in a list that doubles as it grows.
        Input { path: self.path.clone(), bytes: bytes.len(), most: (64 << 10) + 256 * bytes.len() }
    }

    fn read(&mut self) -> Result<()> {
        let metrics = Metrics::read(self.path.parent().unwrap())?;
        for key in ["loss", "recon", "kl", "test_loss", "epoch", "d_loss", "g_loss", "d_real", "step", "lr"] {
            let series = metrics.series(key);
            assert!(series.iter().all(|p| p.0.is_finite() && p.1.is_finite()), "{key} is not finite");
            assert!(series.windows(2).all(|w| w[0].0 < w[1].0), "the steps of {key} do not rise");
        }
        Ok(())
    }
}

#[test]
fn config_files() {
    fuzz(3, ConfigFile::new);
}

#[test]
fn rows_of_metrics() {
    fuzz(6, MetricsFile::new);
}
