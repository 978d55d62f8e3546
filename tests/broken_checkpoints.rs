//! Harmed checkpoints: their weights, and the state that says where a run stood.

#[path = "common/harm.rs"]
mod harm;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use ganvae::base::hash;
use ganvae::base::seed::Rng;
use ganvae::config::training::{KeepOptimizer, Retention};
use ganvae::models::{Part, Visit};
use ganvae::run::checkpoint::{self, State};
use harm::*;
use tch::{Device, Kind, Tensor};

/// A model without networks: pieces of state under names.
struct Pieces(Vec<(Part, &'static str, Tensor)>);

impl Pieces {
    fn new() -> Self {
        let on = |kind| (kind, Device::Cpu);
        Pieces(vec![
            (Part::Model, "a.weight", Tensor::ones([2, 3], on(Kind::Float))),
            (Part::Model, "a.bias", Tensor::ones([2], on(Kind::Double))),
            (Part::Model, "count", Tensor::ones([0; 0], on(Kind::Int64))),
            (Part::Optimizer, "step", Tensor::ones([0; 0], on(Kind::Double))),
        ])
    }

    fn visit(&self, v: &mut dyn Visit) -> Result<()> {
        self.0.iter().try_for_each(|(part, name, t)| v.tensor(*part, name, t))
    }

    /// A checkpoint of these below `dir`; its folder.
    fn save(&self, dir: &Path) -> PathBuf {
        let keep = Retention { checkpoints: 3, optimizer: KeepOptimizer::All };
        checkpoint::save(dir, State::new("vae".into(), 1), keep, &mut |v| self.visit(v)).unwrap()
    }
}

/// Weights of a checkpoint.
struct Weights {
    folder: Folder,
    seeds: Vec<Vec<u8>>,
    pieces: Pieces,
}

const SAFETENSORS_WORDS: &str = "F32 F64 I64 BF16 U8 F4 dtype shape data_offsets __metadata__ a.weight a.bias count \
    [0,0] [0,24] [18446744073709551615,2] [4294967296,4294967296] [] {} null \"\" , :";

impl Weights {
    fn new(dir: &Path) -> Self {
        let pieces = Pieces::new();
        let dir = pieces.save(dir);
        let saved = fs::read(dir.join("model.safetensors")).unwrap();
        // The same by another writer: metadata, another order, no padding.
        let header = "{\"__metadata__\":{\"format\":\"pt\"},\
            \"a.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},\
            \"a.bias\":{\"dtype\":\"F64\",\"shape\":[2],\"data_offsets\":[24,40]},\
            \"count\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[40,48]}}";
        let other = with_header(header.as_bytes(), &noise(3, 48));
        let folder = Folder::new(dir, vec![("model.safetensors".into(), saved.clone())]);
        Weights { folder, seeds: vec![saved, other], pieces }
    }
}

fn with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
}

impl Target for Weights {
    fn seeds(&self) -> usize {
        self.seeds.len()
    }

    fn put(&mut self, seed: usize, rng: Option<&mut Rng>) -> Input {
        let good = &self.seeds[seed];
        let bytes = match rng {
            None => good.clone(),
            Some(rng) => {
                let other = &self.seeds[pick(rng, self.seeds.len())];
                if rng.below(3) == 0 {
                    harm(rng, good, other, None)
                } else {
                    // The header harmed as text, its length right again.
                    let end = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
                    with_header(&harm(rng, &good[8..end], &other[8..], Some(SAFETENSORS_WORDS)), &good[end..])
                }
            }
        };
        let path = self.folder.put(0, &bytes);
        // The file, and the tables of its header, which are larger than their text.
        Input { path, bytes: bytes.len(), most: (64 << 10) + 256 * bytes.len() }
    }

    fn read(&mut self) -> Result<()> {
        checkpoint::load(&self.folder.dir, &[Part::Model], &mut |v| self.pieces.visit(v))
    }
}

/// Where a checkpoint's run stood.
struct StateFile {
    checkpoints: PathBuf,
    folder: Folder,
    seeds: Vec<Vec<u8>>,
    /// What state.sha256 holds for the first of them.
    sum: String,
}

const STATE_WORDS: &str = "format model step wall_s meter_images metrics_bytes files bytes sha256 settings rollbacks \
    best value model.safetensors optimizer.safetensors ../../../etc/passwd vae gan null true {} [] \"\" , :";

impl StateFile {
    fn new(dir: &Path) -> Self {
        let step = Pieces::new().save(dir);
        let saved = fs::read(step.join("state.json")).unwrap();
        let mut value: serde_json::Value = serde_json::from_slice(&saved).unwrap();
        let short = value.to_string().into_bytes();
        // What is not always there, and what a later version may add.
        value["best"] = serde_json::json!({"step": 1, "value": 9.5});
        value["settings"] = serde_json::json!({"lr": "0.001"});
        value["added"] = serde_json::json!([1, {"a": null}]);
        let folder = Folder::new(step, vec![("state.json".into(), saved.clone())]);
        let seeds = vec![saved, short, value.to_string().into_bytes()];
        let sum = fs::read_to_string(folder.dir.join("state.sha256")).unwrap();
        StateFile { checkpoints: dir.to_owned(), folder, seeds, sum }
    }
}

impl Target for StateFile {
    fn seeds(&self) -> usize {
        self.seeds.len()
    }

    fn put(&mut self, seed: usize, rng: Option<&mut Rng>) -> Input {
        let good = &self.seeds[seed];
        let (bytes, honest) = match rng {
            None => (good.clone(), true),
            Some(rng) => {
                let other = &self.seeds[pick(rng, self.seeds.len())];
                (harm(rng, good, other, Some(STATE_WORDS)), rng.below(8) > 0)
            }
        };
        let sum = hash::sha256([&bytes[..]]);
        // Harm that the checksum gives away is not looked at any further, so mostly it is made right again.
        let sum = if honest { sum } else { self.sum.clone() };
        fs::write(self.folder.dir.join("state.sha256"), sum).unwrap();
        self.folder.put(0, &bytes);
        // The checksum that state.json gives is held against its neighbour, and the sentence is about that one then.
        let path = self.folder.dir.clone();
        // Files are summed through a buffer of 1 MiB.
        Input { path, bytes: bytes.len(), most: (1 << 20) + (64 << 10) + 256 * bytes.len() }
    }

    fn read(&mut self) -> Result<()> {
        let (dir, state) = checkpoint::newest_resumable(&self.checkpoints)?.expect("there is a checkpoint");
        assert_eq!(dir, self.folder.dir);
        assert!(state.files.contains_key("model.safetensors") && state.files.contains_key("optimizer.safetensors"));
        Ok(())
    }
}

#[test]
fn weights_of_checkpoints() {
    fuzz(4, Weights::new);
}

#[test]
fn states_of_checkpoints() {
    fuzz(5, StateFile::new);
}
