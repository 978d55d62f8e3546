//! A new model's weights from a file of another making.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use safetensors::SafeTensors;
use tch::Tensor;

use crate::base::weights_file;
use crate::models::{Model, Part, Visit};
use crate::native;
use crate::nets::NETWORKS;
use crate::run::checkpoint;

/// What PyTorch's wrappers put before every key (DataParallel, torch.compile).
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];
/// Batches seen by a PyTorch batch normalisation, of no effect with a fixed momentum; no key of ours.
const UNUSED: &str = ".num_batches_tracked";
/// Names listed of each kind of mismatch.
const LISTED: usize = 8;

/// What came of putting a file's weights into a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Keys of the model that were set.
    pub taken: usize,
    /// Keys of the model that the file does not have: they stay as they began.
    pub missing: Vec<String>,
    /// What the file has and the model does not take, with the reason.
    pub unused: Vec<String>,
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} of {} tensors of the model taken", self.taken, self.taken + self.missing.len())?;
        for (what, list) in [("not in the file, so as they began", &self.missing), ("not taken", &self.unused)] {
            if !list.is_empty() {
                let more = list.len().saturating_sub(LISTED);
                let and = if more > 0 { format!(" and {more} more") } else { String::new() };
                write!(f, "; {what}: {}{and}", list[..list.len() - more].join(", "))?;
            }
        }
        Ok(())
    }
}

/// Copies the weights and buffers in `path` into `model` by key: a .safetensors or TorchScript .pt file of a whole model
/// (`decoder.fc1.weight`) or of one network (`fc1.weight`, in a file named after it), a folder of exports, or a run. A moving
/// average that the file does not have starts at the weights taken.
///
/// # Errors
/// When the file cannot be read, or nothing in it fits the model: the sentence lists what did not.
pub fn init_from(model: &mut dyn Model, path: &Path) -> Result<Taken> {
    let mut live = Live::default();
    model.visit(&mut live)?;
    let mut result = Taken::default();
    let mut pending: BTreeMap<String, Tensor> = BTreeMap::new();
    let (all, skipped) = read(path)?;
    result.unused = skipped;
    for (key, t) in all {
        match live.place(&key, &t) {
            Ok(place) => {
                if pending.insert(place.clone(), t).is_some() {
                    result.unused.push(format!("{key} ({place} was there already)"));
                }
            }
            Err(why) => result.unused.push(format!("{key} ({why})")),
        }
    }
    result.missing = live.0.keys().filter(|key| !pending.contains_key(*key)).cloned().collect();
    result.missing.retain(|key| {
        // The average of weights that are all alike is those weights.
        let weights = key.strip_prefix("ema.").and_then(|k| pending.get(k)).map(Tensor::shallow_clone);
        weights.map(|t| pending.insert(key.clone(), t)).is_none()
    });
    result.taken = pending.len();
    if pending.is_empty() {
        let wanted: Vec<_> = live.0.keys().take(3).cloned().collect();
        bail!(
            "--init-from {}: nothing in it fits this model, whose keys are {} and so on; {result}",
            path.display(),
            wanted.join(", ")
        );
    }
    tch::no_grad(|| {
        for (key, stored) in &pending {
            if let Some(t) = live.0.get_mut(key) {
                t.f_copy_(stored)?;
            }
        }
        anyhow::Ok(())
    })?;
    Ok(result)
}

/// A model's weights and buffers by key.
#[derive(Default)]
struct Live(BTreeMap<String, Tensor>);

impl Visit for Live {
    fn tensor(&mut self, part: Part, name: &str, t: &Tensor) -> Result<()> {
        if part == Part::Model {
            self.0.insert(name.to_owned(), t.shallow_clone());
        }
        Ok(())
    }
}

impl Live {
    /// The key that a file's tensor is for, or why there is none.
    fn place(&self, key: &str, t: &Tensor) -> std::result::Result<String, String> {
        let candidates: Vec<String> = if self.0.contains_key(key) {
            vec![key.to_owned()]
        } else {
            NETWORKS.iter().map(|n| format!("{n}.{key}")).filter(|k| self.0.contains_key(k)).collect()
        };
        match candidates.as_slice() {
            [] => Err("not in the model".to_owned()),
            [one] if self.0[one].size() != t.size() => {
                Err(format!("has shape {:?}, the model's {:?}", t.size(), self.0[one].size()))
            }
            // sync: once for each tensor of a file, on the CPU.
            [_] if t.isfinite().all().int64_value(&[]) == 0 => Err("holds numbers that are not finite".to_owned()),
            [one] => Ok(one.clone()),
            several => Err(format!("could be {}: name the file after its network", several.join(" or "))),
        }
    }
}

/// What a file holds: keys and tensors of floats, and what else there is, with the reason why it cannot be a weight.
type Read = (Vec<(String, Tensor)>, Vec<String>);

/// Keys and tensors of a file, or of each file of a folder; of one network's file, the keys begin with its name.
fn read(path: &Path) -> Result<Read> {
    if path.is_dir() {
        return read_folder(path);
    }
    if !path.exists() {
        bail!("--init-from {}: there is no such file or folder", path.display());
    }
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    let (mut all, mut skipped) = match extension.as_deref() {
        Some("safetensors") => read_safetensors(path)?,
        Some("pt" | "pth" | "ts") => {
            let all = native::script_tensors(path).with_context(|| {
                format!(
                    "--init-from {} is no TorchScript module that can be read (of a state_dict made by torch.save, make a .safetensors \
                     first: safetensors.torch.save_file(state_dict, FILE))",
                    path.display()
                )
            })?;
            let (floats, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, t, _)| t.is_floating_point());
            let skipped = others.into_iter().map(|(key, t, _)| not_floats(&key, t.kind())).collect();
            (floats.into_iter().map(|(key, t, _)| (key, t)).collect(), skipped)
        }
        _ => bail!(
            "--init-from {}: wanted a .safetensors or TorchScript .pt file, a folder of exports, or a run",
            path.display()
        ),
    };
    for (key, _) in &mut all {
        while let Some(inner) = WRAPPERS.iter().find_map(|wrapper| key.strip_prefix(wrapper)) {
            *key = inner.to_owned();
        }
    }
    skipped.retain(|entry| !entry.contains(UNUSED));
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    if NETWORKS.contains(&stem.as_str()) {
        for (key, _) in &mut all {
            if !key.starts_with(&format!("{stem}.")) {
                *key = format!("{stem}.{key}");
            }
        }
    }
    Ok((all, skipped))
}

fn not_floats(key: &str, kind: impl std::fmt::Debug) -> String {
    format!("{key} (of type {kind:?}, no floats)")
}

fn read_folder(dir: &Path) -> Result<Read> {
    let checkpoints = dir.join("checkpoints");
    if checkpoints.is_dir() || dir.join("config.toml").is_file() {
        let (newest, _) = checkpoint::newest_whole(&checkpoints)?
            .with_context(|| format!("--init-from {}: the run has no checkpoint yet", dir.display()))?;
        return read(&newest.join("model.safetensors"));
    }
    let (mut all, mut skipped) = (Vec::new(), Vec::new());
    for name in NETWORKS {
        let files = ["safetensors", "pt"].map(|e| dir.join(format!("{name}.{e}")));
        if let Some(file) = files.iter().find(|f| f.is_file()) {
            let (floats, others) = read(file)?;
            all.extend(floats);
            skipped.extend(others);
        }
    }
    if all.is_empty() {
        bail!("--init-from {}: the folder is no run and holds no exports (such as decoder.safetensors)", dir.display());
    }
    Ok((all, skipped))
}

fn read_safetensors(path: &Path) -> Result<Read> {
    let bytes = fs::read(path).with_context(|| format!("--init-from {} could not be read", path.display()))?;
    let stored = SafeTensors::deserialize(&bytes)
        .map_err(|e| anyhow::anyhow!("--init-from {} is not a whole safetensors file: {e}", path.display()))?;
    let (mut all, mut skipped) = (Vec::new(), Vec::new());
    for (key, view) in stored.tensors() {
        match weights_file::tensor_of(&view) {
            Ok(t) if t.is_floating_point() => all.push((key, t)),
            _ => skipped.push(not_floats(&key, view.dtype())),
        }
    }
    // The file's order is by type and size; a person reads names.
    all.sort_by(|a, b| a.0.cmp(&b.0));
    skipped.sort();
    Ok((all, skipped))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::gan::{Gan, GanSpec};
    use crate::models::losses::adversarial::GanLoss;
    use crate::models::optimizer::Hyper;
    use crate::models::vae::{Vae, small};
    use crate::nets::graph::Init;
    use crate::nets::{Activation, Arch, NetSpec, Shape};
    use tch::{Device, Kind};

    fn net() -> NetSpec {
        NetSpec {
            arch: Arch::Mlp,
            hidden: vec![4],
            base_width: 1,
            activation: Activation::Relu,
            batch_norm: false,
            init: Init::PyTorch,
        }
    }

    const SHAPE: Shape = Shape { channels: 1, height: 2, width: 3 };

    fn vae() -> Vae {
        small(1.0, 0)
    }

    fn all(model: &mut dyn Model) -> BTreeMap<String, Tensor> {
        let mut live = Live::default();
        model.visit(&mut live).unwrap();
        live.0.into_iter().map(|(key, t)| (key, t.detach().copy())).collect()
    }

    fn file(name: &str, tensors: Vec<(String, Tensor)>) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        Tensor::write_safetensors(&tensors, &path).unwrap();
        (dir, path)
    }

    #[test]
    fn a_whole_models_file_sets_every_tensor_whatever_wraps_its_keys() {
        let want = all(&mut vae());
        for wrapper in ["", "module.", "_orig_mod.", "_orig_mod.module."] {
            let mut tensors: Vec<_> = want.iter().map(|(k, t)| (format!("{wrapper}{k}"), t.shallow_clone())).collect();
            tensors.push((format!("{wrapper}encoder.bn.num_batches_tracked"), Tensor::from(3i64)));
            let (_dir, path) = file("any.safetensors", tensors);
            let mut model = vae();
            assert_ne!(all(&mut model), want);
            let taken = init_from(&mut model, &path).unwrap();
            assert_eq!(taken, Taken { taken: want.len(), ..Taken::default() });
            assert_eq!(all(&mut model), want);
        }
    }

    #[test]
    fn what_does_not_match_is_listed_and_stays_as_it_began() {
        let mut model = vae();
        let before = all(&mut model);
        let value = |shape: &[i64]| Tensor::full(shape, 0.5, (Kind::Half, Device::Cpu));
        let tensors = vec![
            ("mu.bias".to_owned(), value(&[2])),
            ("fc1.bias".to_owned(), value(&[4])),
            ("out.weight".to_owned(), value(&[6, 5])),
            ("head.weight".to_owned(), value(&[1])),
            ("decoder.fc1.bias".to_owned(), Tensor::zeros([4], (Kind::Int, Device::Cpu))),
            ("encoder.fc1.bias".to_owned(), Tensor::from_slice(&[0f32, 1.0, f32::NAN, 2.0])),
        ];
        let (_dir, path) = file("weights.safetensors", tensors);
        let taken = init_from(&mut model, &path).unwrap();
        assert_eq!(taken.taken, 1, "{taken}");
        assert_eq!(taken.missing.len(), before.len() - 1);
        let text = taken.to_string();
        for part in [
            "1 of 10 tensors",
            "encoder.fc1.bias or decoder.fc1.bias",
            "fc1.bias (could be",
            "out.weight (has shape [6, 5], the model's [6, 4])",
            "head.weight (not in the model)",
            "decoder.fc1.bias (of type I32, no floats)",
            "encoder.fc1.bias (holds numbers that are not finite)",
            "and 1 more",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let after = all(&mut model);
        for (key, t) in &before {
            let want = if key == "encoder.mu.bias" { &Tensor::from_slice(&[0.5f32, 0.5]) } else { t };
            assert_eq!(&after[key], want, "{key}");
        }
    }

    #[test]
    fn a_networks_own_file_is_known_by_its_name_and_an_average_starts_at_the_weights() {
        let spec = GanSpec {
            shape: SHAPE,
            latent: 2,
            generator: net(),
            discriminator: net(),
            loss: GanLoss::NonSaturating,
            ema: 0.9,
        };
        let mut gan = Gan::new(spec, Hyper::default(), Device::Cpu).unwrap();
        let before = all(&mut gan);
        let of = |key: &str| key.strip_prefix("generator.").map(str::to_owned);
        let tensors = before.iter().filter_map(|(k, t)| Some((of(k)?, t + 1.0))).collect();
        let (_dir, path) = file("generator.safetensors", tensors);
        let taken = init_from(&mut gan, &path).unwrap();
        assert!(taken.unused.is_empty() && taken.missing.iter().all(|k| k.starts_with("discriminator.")), "{taken}");
        for (key, t) in all(&mut gan) {
            let moved = if key.starts_with("discriminator.") { 0.0 } else { 1.0 };
            assert_eq!(t, &before[&key] + moved, "{key}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_one_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (_other, path) = file("a.safetensors", vec![("x".to_owned(), Tensor::from(1f32))]);
        fs::write(at("b.safetensors"), "no").unwrap();
        fs::write(at("c.pt"), "no").unwrap();
        fs::write(at("d.txt"), "no").unwrap();
        fs::create_dir(at("e")).unwrap();
        for (path, part) in [
            (path, "nothing in it fits this model"),
            (at("b.safetensors"), "not a whole safetensors file"),
            (at("c.pt"), "no TorchScript module"),
            (at("d.txt"), "wanted a .safetensors"),
            (at("e"), "no run and holds no exports"),
            (at("f.safetensors"), "no such file"),
        ] {
            let e = format!("{:#}", init_from(&mut vae(), &path).unwrap_err());
            assert!(e.contains(part) && e.contains("--init-from"), "{e}");
        }
    }
}
