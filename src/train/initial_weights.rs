//! Initial weights from a file: `--init-from`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use safetensors::SafeTensors;
use tch::Tensor;

use crate::base::{torch_file, weights_file};
use crate::models::{Model, Part};
use crate::nets::NETWORKS;
use crate::nets::graph::{Graph, Node};
use crate::run::checkpoint::{self, Selection};

/// Prefixes of every key under PyTorch's wrappers (DataParallel, torch.compile).
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];
/// A counter of PyTorch's batch normalization, without effect at a fixed momentum; our models do not have it.
const UNUSED: &str = ".num_batches_tracked";

/// The result of loading a file's weights into a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Keys of the model that were loaded.
    pub loaded: usize,
    /// Keys of the model that the file does not have: they keep their initialization.
    pub missing: Vec<String>,
    /// Keys of the file that the model did not take, with the reason.
    pub unused: Vec<String>,
}

impl std::fmt::Display for LoadReport {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} of {} tensors of the model loaded", self.loaded, self.loaded + self.missing.len())?;
        if !self.unused.is_empty() {
            write!(f, "; not loaded: {}", checkpoint::shortened(&self.unused, ", "))?;
        }
        Ok(())
    }
}

/// Copies the weights and buffers in `path` into `model` by key: a .safetensors file, or a .pt or .pth file of PyTorch, of a complete model
/// (`decoder.fc1.weight`) or of one network (`fc1.weight`, in a file named after it), a folder of exports, or a run. A moving
/// average that the file does not have starts at the loaded weights, and the vectors of spectral normalisation follow from them.
///
/// # Errors
/// When the file cannot be read, or nothing in it fits the model; the message lists the mismatches.
pub fn init_from(model: &mut dyn Model, path: &Path) -> Result<LoadReport> {
    let mut live = checkpoint::gather(Part::Model, &mut |v| model.visit(v))?;
    let exported = keys_of_operations(model);
    let Contents { tensors, skipped } = read(path)?;
    let mut report = LoadReport { unused: skipped, ..LoadReport::default() };
    let mut pending: BTreeMap<String, Tensor> = BTreeMap::new();
    for (key, t) in tensors {
        let target = match keys_of(&live, &key).as_slice() {
            [] => Err("not in the model".to_owned()),
            [one] => fit(&live[one], &t).map(|()| one.clone()),
            several => bail!(
                "--init-from {}: its {key} could be {}: name the file after its network, such as {}.safetensors",
                path.display(),
                several.join(" or "),
                NETWORKS[0]
            ),
        };
        match target {
            Ok(target) => {
                if pending.insert(target.clone(), t).is_some() {
                    bail!(
                        "--init-from {}: two of its tensors, one of them {key}, fit {target}: keep one",
                        path.display()
                    );
                }
            }
            Err(why) => report.unused.push(format!("{key} ({why})")),
        }
    }
    for key in live.keys().filter(|key| !pending.contains_key(*key)).cloned().collect::<Vec<_>>() {
        // The average of equal weights is those weights.
        match key.strip_prefix("ema.").and_then(|weights| pending.get(weights)) {
            Some(t) => drop(pending.insert(key, t.shallow_clone())),
            None if exported.contains(key.trim_start_matches("ema.")) => report.missing.push(key),
            // A vector of spectral normalisation, or the σ of a likelihood, which follows from the images or is learned anew.
            None => {}
        }
    }
    report.loaded = pending.len();
    if pending.is_empty() {
        let wanted: Vec<_> = live.into_keys().take(3).collect();
        let (path, wanted) = (path.display(), wanted.join(", "));
        bail!("--init-from {path}: none of its tensors fits this model, whose keys are {wanted} and so on; {report}");
    }
    tch::no_grad(|| {
        for (key, stored) in &pending {
            if let Some(t) = live.get_mut(key) {
                t.f_copy_(stored)?;
            }
        }
        // Exports have none: theirs are in the weights.
        model.networks().into_iter().try_for_each(|network| network.graph.find_singular_vectors())?;
        Ok(report)
    })
}

/// Whether all numbers are finite; false also where libtorch cannot say.
fn is_finite(t: &Tensor) -> bool {
    // sync: once for each tensor of a file, on the CPU.
    t.f_isfinite().and_then(|t| t.f_all()).and_then(|t| t.f_int64_value(&[])).is_ok_and(|all| all == 1)
}

/// Keys of the weights and buffers of the networks' operations, which are what an export has.
fn keys_of_operations(model: &dyn Model) -> BTreeSet<String> {
    let of = |graph: &Graph| -> Vec<String> {
        let keyed = |node: &Node| {
            let keys = node.op.tensors().into_iter().map(|(key, ..)| format!("{}.{}.{key}", graph.name(), node.name));
            keys.collect::<Vec<_>>()
        };
        graph.nodes().iter().flat_map(keyed).collect()
    };
    model.networks().into_iter().flat_map(|network| of(&network.graph)).collect()
}

/// The keys of the model that a file's key may mean: itself, or that of one of the networks.
fn keys_of(live: &BTreeMap<String, Tensor>, key: &str) -> Vec<String> {
    match live.contains_key(key) {
        true => vec![key.to_owned()],
        false => NETWORKS.iter().map(|n| format!("{n}.{key}")).filter(|k| live.contains_key(k)).collect(),
    }
}

/// Whether a file's tensor can be loaded into the model's, or why not.
fn fit(live: &Tensor, t: &Tensor) -> std::result::Result<(), String> {
    if live.size() != t.size() {
        return Err(format!("has shape {:?}, the model's {:?}", t.size(), live.size()));
    }
    if is_finite(t) { Ok(()) } else { Err("holds numbers that are not finite".to_owned()) }
}

/// The contents of a file.
#[derive(Default)]
struct Contents {
    /// Tensors of floats by key.
    tensors: Vec<(String, Tensor)>,
    /// Other keys, with the reason why they cannot be weights.
    skipped: Vec<String>,
}

/// The contents of a file, or of each file of a folder; in a file of one network, keys get its name as a prefix.
fn read(path: &Path) -> Result<Contents> {
    if path.is_dir() {
        return read_folder(path);
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let prefix = if NETWORKS.contains(&&*stem) { format!("{stem}.") } else { String::new() };
    let mut contents = Contents::default();
    for (key, tensor, kind) in read_file(path).with_context(|| format!("--init-from {}", path.display()))? {
        let mut key = key.as_str();
        while let Some(inner) = WRAPPERS.iter().find_map(|wrapper| key.strip_prefix(wrapper)) {
            key = inner;
        }
        let key = if key.starts_with(&prefix) { key.to_owned() } else { format!("{prefix}{key}") };
        match tensor.filter(Tensor::is_floating_point) {
            Some(t) => contents.tensors.push((key, t)),
            None if key.ends_with(UNUSED) => {}
            None => contents.skipped.push(format!("{key} (of type {kind}, not floating point)")),
        }
    }
    Ok(contents)
}

/// Key, tensor (none for a type that weights cannot have) and name of the type of each entry.
fn read_file(path: &Path) -> Result<Vec<(String, Option<Tensor>, String)>> {
    ensure!(path.exists(), "there is no such file or folder");
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    match extension.as_deref() {
        Some("safetensors") => {
            weights_file::header(path)?;
            let bytes = fs::read(path).context("the file could not be read")?;
            let stored = SafeTensors::deserialize(&bytes).map_err(|e| anyhow!("not a valid safetensors file: {e}"))?;
            let entry = |(key, view)| (key, weights_file::tensor_of(&view).ok(), format!("{:?}", view.dtype()));
            let mut entries: Vec<_> = stored.tensors().into_iter().map(entry).collect();
            // The library sorts by type and size.
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(entries)
        }
        Some("pt" | "pth" | "ts") => {
            let all = torch_file::read(path)?;
            Ok(all.into_iter().map(|t| (t.key, t.tensor, t.kind)).collect())
        }
        _ => bail!("wanted a .safetensors file, a .pt or .pth file of PyTorch, a folder of exports, or a run"),
    }
}

fn read_folder(dir: &Path) -> Result<Contents> {
    let checkpoints = dir.join("checkpoints");
    if checkpoints.is_dir() || dir.join("config.toml").is_file() {
        return checkpoint::read(&checkpoints, Selection::Latest, |dir, _| read(&dir.join("model.safetensors")))?
            .with_context(|| format!("--init-from {}: the run has no checkpoint yet", dir.display()));
    }
    let mut all = Contents::default();
    for name in NETWORKS {
        let files = ["safetensors", "pt"].map(|e| dir.join(format!("{name}.{e}")));
        if let Some(file) = files.iter().find(|f| f.is_file()) {
            let contents = read(file)?;
            all.tensors.extend(contents.tensors);
            all.skipped.extend(contents.skipped);
        }
    }
    if all.tensors.is_empty() {
        bail!(
            "--init-from {}: the folder is not a run and has no exports (such as decoder.safetensors)",
            dir.display()
        );
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::gan::{Gan, GanSpec};
    use crate::models::losses::adversarial::GanLoss;
    use crate::models::moving_average::Decay;
    use crate::models::optimizer::OptimizerSettings;
    use crate::models::vae::Vae;
    use crate::models::vae::tests::small;
    use crate::nets::graph::Init;
    use crate::nets::{Activation, Arch, NetSpec, Shape};
    use tch::{Device, Kind};

    fn net() -> NetSpec {
        NetSpec {
            arch: Arch::Mlp,
            hidden: vec![4],
            activation: Activation::Relu,
            batch_norm: false,
            init: Init::PyTorch,
            ..NetSpec::default()
        }
    }

    const SHAPE: Shape = Shape { channels: 1, height: 2, width: 3 };

    fn vae() -> Vae {
        small(1.0, 0)
    }

    fn all(model: &mut dyn Model) -> BTreeMap<String, Tensor> {
        let live = checkpoint::gather(Part::Model, &mut |v| model.visit(v)).unwrap();
        live.into_iter().map(|(key, t)| (key, t.detach().copy())).collect()
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
            assert_eq!(taken, LoadReport { loaded: want.len(), ..LoadReport::default() });
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
            ("out.weight".to_owned(), value(&[6, 5])),
            ("head.weight".to_owned(), value(&[1])),
            ("decoder.fc1.bias".to_owned(), Tensor::zeros([4], (Kind::Int, Device::Cpu))),
            ("encoder.fc1.bias".to_owned(), Tensor::from_slice(&[0f32, 1.0, f32::NAN, 2.0])),
        ];
        let (_dir, path) = file("weights.safetensors", tensors);
        let taken = init_from(&mut model, &path).unwrap();
        assert_eq!(taken.loaded, 1, "{taken}");
        assert_eq!(taken.missing.len(), before.len() - 1);
        let text = taken.to_string();
        for part in [
            "1 of 10 tensors",
            "out.weight (has shape [6, 5], the model's [6, 4])",
            "head.weight (not in the model)",
            "decoder.fc1.bias (of type I32, not floating point)",
            "encoder.fc1.bias (holds numbers that are not finite)",
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
    fn a_key_that_could_be_two_is_refused_and_nothing_is_loaded() {
        let mut model = vae();
        let before = all(&mut model);
        let one = || Tensor::ones([4], (Kind::Float, Device::Cpu));
        for (keys, part) in [
            (["mu.bias", "fc1.bias"], "fc1.bias could be encoder.fc1.bias or decoder.fc1.bias: name the file after"),
            (
                ["module.encoder.fc1.bias", "encoder.fc1.bias"],
                "two of its tensors, one of them encoder.fc1.bias, fit encoder.fc1.bias",
            ),
        ] {
            let (_dir, path) = file("weights.safetensors", keys.map(|key| (key.to_owned(), one())).into());
            let e = init_from(&mut model, &path).unwrap_err().to_string();
            assert!(e.contains(part) && e.contains("--init-from"), "{e}");
            assert_eq!(all(&mut model), before);
        }
    }

    #[test]
    fn a_networks_own_file_is_known_by_its_name_and_an_average_starts_at_the_weights() {
        let spec = GanSpec::new(SHAPE, 2, [net(), net()], GanLoss::NonSaturating);
        let spec = GanSpec { ema: Some(Decay::Fixed(0.9)), ..spec };
        let mut gan = Gan::new(spec, OptimizerSettings::default(), Device::Cpu).unwrap();
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
            (path, "none of its tensors fits this model"),
            (at("b.safetensors"), "not a valid safetensors file"),
            (at("c.pt"), "not a file of torch.save"),
            (at("d.txt"), "wanted a .safetensors"),
            (at("e"), "is not a run and has no exports"),
            (at("f.safetensors"), "no such file"),
        ] {
            let e = format!("{:#}", init_from(&mut vae(), &path).unwrap_err());
            assert!(e.contains(part) && e.contains("--init-from"), "{e}");
        }
    }
}
