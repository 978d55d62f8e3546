//! Exports in the programs that they are made for: Python's torch and onnxruntime, C++ libtorch, and back in Rust.
//!
//! `scripts/check_exports.py` and `scripts/check_onnx.py` are what Python does with them; `tests/cpp/run_module.cpp` is a program of somebody else's.

mod common;

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;
use common::python::{python, root, run_script, write_expected};
use ganvae::base::classes::Classes;
use ganvae::base::setting::Settings;
use ganvae::config::training::PRESET;
use ganvae::config::{self, presets};
use ganvae::export::{self, Format, Origin};
use ganvae::models::gan::CONDITIONAL;
use ganvae::models::{ImageSpec, Model, ModelKind, Part, Visit};
use ganvae::nets::Shape;
use ganvae::run::trained::Trained;
use ganvae::train::initial_weights::init_from;
use tch::{CModule, Device, IValue, Kind, Tensor};

struct Case {
    name: String,
    kind: ModelKind,
    settings: Settings,
    shape: Shape,
    model: Box<dyn Model>,
    origin: Origin,
}

fn build(kind: ModelKind, settings: &Settings, shape: Shape) -> Result<(Box<dyn Model>, Origin)> {
    let config = config::resolve(kind, settings)?;
    let model = config.build(ImageSpec { shape, classes: 3 }, 10, Device::Cpu)?;
    model.visit(&mut Scramble)?;
    let names = model.classes().map_or(Vec::new(), |_| ["cat", "dog", "owl"].map(String::from).into());
    Ok((model, config.origin(3, &Classes::equal(names))?))
}

/// Gives batch normalisation statistics that a mistake would show in, and values to weights that begin at 0.
struct Scramble;

impl Visit for Scramble {
    fn tensor(&mut self, _: Part, name: &str, t: &Tensor) -> Result<()> {
        if name.contains("running_") {
            let seed = name.bytes().map(i64::from).sum();
            let noise = ganvae::native::randn(seed, &t.size())?;
            tch::no_grad(|| t.shallow_clone().copy_(&if name.ends_with("var") { noise.exp() } else { noise }));
        } else if t.dim() > 1 && t.abs().max().double_value(&[]) == 0.0 {
            let noise = ganvae::native::randn(1, &t.size())? * 0.01;
            tch::no_grad(|| t.shallow_clone().copy_(&noise));
        }
        Ok(())
    }
}

/// Every preset on grey digits and, of each architecture, one on colour pictures; a conditional GAN.
fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (preset, kind, _) in presets::all().unwrap() {
        for (channels, side) in [(1, 28), (3, 32)] {
            // More of the same: 0.2 GB of the article's networks, and minutes of large residual ones beside `small`.
            if channels == 3 && ["article", "r3gan", "sngan", "wgan-gp"].contains(&preset) {
                continue;
            }
            let settings = Settings::default().with(&PRESET, preset.to_owned());
            let shape = Shape { channels, height: side, width: side };
            let (model, origin) = build(kind, &settings, shape).unwrap();
            all.push(Case { name: format!("{kind}-{preset}-{channels}"), kind, settings, shape, model, origin });
        }
    }
    assert!(all.len() >= 8, "only {} presets were built", all.len());
    let (kind, shape) = (ModelKind::Gan, Shape { channels: 3, height: 16, width: 16 });
    let settings = Settings::default().with(&PRESET, "small".to_owned()).with(&CONDITIONAL, true);
    let (model, origin) = build(kind, &settings, shape).unwrap();
    all.push(Case { name: "gan-conditional".to_owned(), kind, settings, shape, model, origin });
    all
}

#[test]
fn python_loads_runs_converts_and_trains_every_export() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut folders = Vec::new();
    for case in cases() {
        let out = dir.path().join(&case.name);
        export::export(&case.model.exported(), &case.origin, Format::value_variants(), &out).unwrap();
        write_expected(&case.model.exported(), &out).unwrap();
        folders.push(out);
    }
    run_script(&python, "check_exports.py", "check", &folders);
    run_script(&python, "check_onnx.py", "", &folders);
}

#[test]
fn weights_go_to_pytorch_and_back_without_losing_a_bit() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let formats = [Format::Torchscript, Format::Safetensors];
    // An export has spectrally normalised weights, of which other ones are made again.
    let goes_back = |c: &Case| !c.name.contains("article") && !c.name.contains("sngan");
    let cases: Vec<_> = cases().into_iter().filter(goes_back).collect();
    let folders: Vec<_> = cases.iter().map(|c| dir.path().join(&c.name)).collect();
    for (case, folder) in cases.iter().zip(&folders) {
        export::export(&case.model.exported(), &case.origin, &formats, folder).unwrap();
    }
    // Python changes every number, and writes both kinds of file.
    run_script(&python, "check_exports.py", "change", &folders);
    for extension in ["safetensors", "pt"] {
        for (case, folder) in cases.iter().zip(&folders) {
            let (from, back) = (folder.join(extension), folder.join("back"));
            std::fs::create_dir_all(&from).unwrap();
            for network in case.model.exported() {
                let file = format!("{}.{extension}", network.name());
                std::fs::copy(folder.join("changed").join(&file), from.join(&file)).unwrap();
            }
            let (mut fresh, origin) = build(case.kind, &case.settings, case.shape).unwrap();
            let taken = init_from(fresh.as_mut(), &from).unwrap();
            assert!(taken.missing.is_empty() && taken.unused.is_empty(), "{}: {taken}", case.name);
            if extension == "pt" {
                // As Python's torch.jit.save writes them.
                let (saved, z) = (Trained::open(&from, "cpu").unwrap(), ganvae::native::randn(1, &[3, fresh.latent()]));
                let z = z.unwrap();
                let labels = fresh.classes().map(|_| Tensor::from_slice(&[2i64, 0, 1]));
                let [saved, fresh] =
                    [saved.decode(&z, labels.as_ref()).unwrap(), fresh.decode(&z, labels.as_ref()).unwrap()];
                assert!(off(&saved, &fresh) < 1e-5, "{}", case.name);
            }
            export::export(&fresh.exported(), &origin, &formats, &back).unwrap();
        }
        run_script(&python, "check_exports.py", "same", &folders);
    }
}

/// Every Python block of the README, as a reader would paste it, beside a run that was trained as it says.
#[test]
fn the_readmes_snippets_run() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let blocks: Vec<&str> = readme.split("```python\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 3 && blocks.iter().all(|b| b.trim().lines().count() <= 3), "{blocks:?}");
    for extension in ["pt", "safetensors", "onnx"] {
        assert!(blocks.iter().any(|b| b.contains(&format!(".{extension}\""))), "no snippet loads a .{extension}");
    }
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let trained = Command::new(env!("CARGO_BIN_EXE_ganvae"))
        .args(["train", "vae", "--train-limit", "64", "--test-limit", "16", "--steps", "2", "--threads", "1"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
    for block in blocks {
        let out = Command::new(&python).arg("-c").arg(block).current_dir(dir.path()).output().unwrap();
        assert!(out.status.success(), "{block}\n{}", String::from_utf8_lossy(&out.stderr));
    }
}

/// Largest difference, relative to the largest value.
fn off(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.size(), want.size());
    (got - want).abs().max().double_value(&[]) / want.abs().max().double_value(&[]).max(1.0)
}

#[test]
fn cpp_and_rust_run_every_module() {
    let dir = tempfile::tempdir().unwrap();
    let lib = PathBuf::from(env!("GANVAE_LIBTORCH_LIB"));
    let include = lib.parent().unwrap().join("include");
    let program = dir.path().join("run_module");
    let built = Command::new("g++")
        .args(["-std=c++17", "-O0", "-D_GLIBCXX_USE_CXX11_ABI=1", "-Wl,--no-as-needed", "-o"])
        .arg(&program)
        .arg(root().join("tests/cpp/run_module.cpp"))
        .arg("-I")
        .arg(&include)
        .arg("-I")
        .arg(include.join("torch/csrc/api/include"))
        .arg("-L")
        .arg(&lib)
        .args(["-ltorch_cpu", "-lc10"])
        .arg(format!("-Wl,-rpath,{}", lib.display()))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    for case in cases() {
        let out = dir.path().join(&case.name);
        export::export(&case.model.exported(), &case.origin, &[Format::Torchscript], &out).unwrap();
        for network in case.model.exported() {
            let module = out.join(format!("{}.pt", network.name()));
            let inputs: Vec<Tensor> = network.inputs().iter().map(|port| export::example(port, 3).unwrap()).collect();
            let want = network.evaluate(&inputs.iter().collect::<Vec<_>>()).unwrap();

            let rust = CModule::load(&module).unwrap();
            assert_eq!(
                rust.named_parameters().unwrap().len(),
                network.tensors().unwrap().iter().filter(|(.., parameter)| *parameter).count(),
                "{} has its parameters",
                case.name
            );
            let given: Vec<IValue> = inputs.iter().map(|x| IValue::Tensor(x.shallow_clone())).collect();
            let got = match rust.forward_is(&given).unwrap() {
                IValue::Tensor(t) => vec![t],
                IValue::Tuple(all) => all.into_iter().map(|v| Tensor::try_from(v).unwrap()).collect(),
                other => panic!("{other:?}"),
            };
            let prefix = dir.path().join("y");
            let files: Vec<PathBuf> = (0..inputs.len()).map(|i| dir.path().join(format!("x{i}.pt"))).collect();
            inputs.iter().zip(&files).for_each(|(x, file)| x.save(file).unwrap());
            let ran = Command::new(&program).arg(&module).arg(&prefix).args(&files).output().unwrap();
            assert!(ran.status.success(), "{}: {}", case.name, String::from_utf8_lossy(&ran.stderr));
            assert_eq!(got.len(), want.len());
            for (i, (want, got)) in want.iter().zip(&got).enumerate() {
                assert!(off(got, want) < 1e-5, "{}.{} in Rust", case.name, network.name());
                let cpp = Tensor::load(format!("{}{i}.pt", prefix.display())).unwrap();
                assert!(off(&cpp, want) < 1e-5, "{}.{} in C++", case.name, network.name());
                assert_eq!(cpp.kind(), Kind::Float);
            }
        }
        std::fs::remove_dir_all(out).unwrap();
    }
}
