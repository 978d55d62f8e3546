//! Tests of exports that need no other program: what is compared, what is refused, what stays.

use super::*;
use crate::models::optimizer::OptimizerSettings;
use crate::models::vae::{Vae, VaeSpec};
use crate::nets::graph::Init;
use crate::nets::{Activation, Arch, NetSpec, Shape};
use tch::Device;

use crate::models::Model;

fn vae() -> Vae {
    let net = NetSpec {
        arch: Arch::Mlp,
        hidden: vec![6],
        activation: Activation::Tanh,
        batch_norm: false,
        init: Init::PyTorch,
        ..NetSpec::default()
    };
    let shape = Shape { channels: 1, height: 4, width: 3 };
    Vae::new(VaeSpec::new(shape, 2, [net.clone(), net]), OptimizerSettings::default(), Device::Cpu).unwrap()
}

fn origin() -> Origin {
    Origin { model: "vae".into(), preset: "none".into(), data: "digits".into(), step: 7, classes: Vec::new() }
}

fn files(dir: &Path) -> Vec<String> {
    let mut all: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    all.sort();
    all
}

#[test]
fn every_format_is_written_compared_and_described() {
    let (dir, vae) = (tempfile::tempdir().unwrap(), vae());
    let out = dir.path().join("new/export");
    let all = export(&vae.exported(), &origin(), Format::value_variants(), &out).unwrap();
    let want = ["decoder.onnx", "decoder.pt", "decoder.safetensors"];
    let want: Vec<_> =
        want.iter().copied().chain(["encoder.onnx", "encoder.pt", "encoder.safetensors", ABOUT]).collect();
    assert_eq!(files(&out), want);
    assert_eq!(all.len(), 6);
    for written in &all {
        assert!(written.path.is_file());
        match (&written.verified, written.format) {
            (Verified::Run(off), Format::Torchscript) => assert!(off.len() == 3 && off.iter().all(|d| *d < 1e-5)),
            (Verified::Bits, Format::Safetensors) | (Verified::Tests, Format::Onnx) => {}
            other => panic!("{other:?}"),
        }
    }
    let about: Value = serde_json::from_slice(&fs::read(out.join(ABOUT)).unwrap()).unwrap();
    assert_eq!((&about["model"], &about["step"], &about["data"]), (&json!("vae"), &json!(7), &json!("digits")));
    let decoder = &about["networks"]["decoder"];
    assert_eq!(decoder["input"]["shape"], json!(["B", 2]));
    assert_eq!(decoder["outputs"][0]["shape"], json!(["B", 1, 4, 3]));
    assert_eq!(decoder["outputs"][0]["range"], json!([0.0, 1.0]));
    assert_eq!(decoder["parameters"], json!(2 * 6 + 6 + 6 * 12 + 12));
    assert_eq!(decoder["files"]["torchscript"]["file"], json!("decoder.pt"));
    let compared: Vec<_> =
        decoder["files"]["torchscript"]["difference_at_batch_size"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(compared, ["1", "7", "64"]);
    let in_file: Value =
        serde_json::from_str(&native::script_description(&out.join("decoder.pt")).unwrap().unwrap()).unwrap();
    assert_eq!((&in_file["network"], &in_file["input"]), (&json!("decoder"), &decoder["input"]));
    let outputs = &about["networks"]["encoder"]["outputs"];
    assert_eq!((&outputs[0]["name"], &outputs[1]["name"]), (&json!("mu"), &json!("logvar")));

    // Another export into the same folder leaves nothing of the one before.
    export(&vae.exported(), &origin(), &[Format::Onnx], &out).unwrap();
    assert_eq!(files(&out), ["decoder.onnx", "encoder.onnx", ABOUT]);
}

#[test]
fn how_each_file_was_verified_is_said() {
    let (dir, vae) = (tempfile::tempdir().unwrap(), vae());
    export(&vae.exported(), &origin(), Format::value_variants(), dir.path()).unwrap();
    let about: Value = serde_json::from_slice(&fs::read(dir.path().join(ABOUT)).unwrap()).unwrap();
    for network in ["encoder", "decoder"] {
        let files = &about["networks"][network]["files"];
        for (format, part) in [
            ("torchscript", "loaded again"),
            ("safetensors", "bit for bit"),
            ("onnx", "tests run such files in onnxruntime"),
        ] {
            let said = files[format]["verified"].as_str().unwrap();
            assert!(said.contains(part), "{format}: {said}");
        }
        assert!(files["onnx"].get("largest_difference").is_none(), "nothing is claimed that was not measured");
    }
}

/// Sets one weight of the decoder.
fn set(vae: &Vae, value: f64) {
    let decoder = vae.exported()[1].tensors().unwrap();
    let (_, t, _) = decoder.iter().find(|(key, ..)| key == "fc1.bias").unwrap();
    let _ = tch::no_grad(|| t.get(0).fill_(value));
}

#[test]
fn what_differs_from_the_live_network_is_noticed_at_every_batch_size() {
    let (dir, vae) = (tempfile::tempdir().unwrap(), vae());
    export(&vae.exported(), &origin(), &[Format::Torchscript], dir.path()).unwrap();
    let module = CModule::load(dir.path().join("decoder.pt")).unwrap();
    assert!(compare(vae.exported()[1], &module).unwrap().iter().all(|off| *off < 1e-5));
    set(&vae, 1.0);
    let e = compare(vae.exported()[1], &module).unwrap_err().to_string();
    assert!(e.contains("its x differs by") && e.contains("batch size 1,"), "{e}");
    let e = compare(vae.exported()[0], &module).unwrap_err().to_string();
    assert!(e.contains("sizes") || e.contains("shape") || e.contains("outputs"), "{e}");
    let (got, want) = (Tensor::from_slice(&[1f32, 2.0]), Tensor::from_slice(&[1f32, 2.001]));
    assert!(difference("x", 7, &got, &want).unwrap_err().to_string().contains("batch size 7,"));
    assert!(difference("x", 7, &got, &got).unwrap() == 0.0);
    assert!(difference("x", 7, &got, &got.view([1, 2])).unwrap_err().to_string().contains("shape"));
}

#[test]
fn a_network_that_is_not_finite_is_not_exported_and_the_folder_stays() {
    let (dir, vae) = (tempfile::tempdir().unwrap(), vae());
    export(&vae.exported(), &origin(), &[Format::Torchscript], dir.path()).unwrap();
    let before = fs::read(dir.path().join(ABOUT)).unwrap();
    set(&vae, f64::NAN);
    let e = format!("{:#}", export(&vae.exported(), &origin(), &[Format::Torchscript], dir.path()).unwrap_err());
    assert!(e.contains("decoder.pt failed its check and was deleted") && e.contains("not finite"), "{e}");
    assert_eq!(files(dir.path()), ["decoder.pt", "encoder.pt", ABOUT]);
    assert_eq!(fs::read(dir.path().join(ABOUT)).unwrap(), before);
}

#[test]
fn a_folder_with_other_files_is_refused_and_ones_own_is_not() {
    let (dir, vae) = (tempfile::tempdir().unwrap(), vae());
    let at = |name: &str| dir.path().join(name);
    fs::write(at("decoder.pt"), "mine").unwrap();
    let e = check_folder(dir.path()).unwrap_err();
    assert!(e.is::<crate::base::usage::Usage>() && e.to_string().contains("name another"), "{e}");
    assert!(check_folder(&at("decoder.pt")).is_err() && check_folder(&at("none")).is_ok());
    assert!(export(&vae.exported(), &origin(), &[Format::Onnx], &at("decoder.pt")).is_err());
    // What an export leaves may be exported into again; a run's own folder also when its description is gone.
    let (own, formats) = (at("own"), [Format::Onnx, Format::Safetensors, Format::Onnx]);
    assert_eq!(export(&vae.exported(), &origin(), &formats, &own).unwrap().len(), 4, "each format once");
    check_folder(&own).unwrap();
    fs::remove_file(own.join(ABOUT)).unwrap();
    assert!(check_folder(&own).is_err());
    export(&vae.exported(), &origin(), &formats, &own).unwrap();
    let held = lock(&own).unwrap();
    let e = export(&vae.exported(), &origin(), &formats, &own).unwrap_err().to_string();
    assert!(e.contains("another ganvae is exporting"), "{e}");
    drop(held);
    export(&vae.exported(), &origin(), &formats, &own).unwrap();
}

/// What a person keeps in the folder stays: over an export, after one that was killed before or after the folders changed places, and
/// where they cannot.
#[test]
fn files_of_ones_own_stay_in_the_folder() {
    let (dir, vae) = (tempfile::tempdir().unwrap(), vae());
    let out = dir.path().join("out");
    let write = || export(&vae.exported(), &origin(), &[Format::Onnx], &out).unwrap();
    let kept = ["decoder.onnx", "encoder.onnx", ABOUT, "mine", "notes.txt"];
    write();
    fs::create_dir(out.join("mine")).unwrap();
    fs::write(out.join("notes.txt"), "a").unwrap();
    write();
    assert_eq!(files(&out), kept);
    // Killed after the folders changed places: what is not an export's is still in the old one.
    for left in [beside(&out), out.join(PART)] {
        fs::create_dir(&left).unwrap();
        fs::rename(out.join("notes.txt"), left.join("notes.txt")).unwrap();
        fs::write(left.join("encoder.pt"), "old").unwrap();
        write();
        assert_eq!(files(&out), kept, "{}", left.display());
        assert_eq!(files(dir.path()), ["out"]);
    }
    // Where no folder can be made beside it.
    fs::write(beside(&out), "").unwrap();
    let all = export(&vae.exported(), &origin(), &[Format::Safetensors], &out).unwrap();
    assert!(all.iter().all(|written| written.path.is_file()));
    assert_eq!(files(&out), ["decoder.safetensors", "encoder.safetensors", ABOUT, "mine", "notes.txt"]);
}

#[test]
fn weights_that_are_not_the_live_ones_are_noticed() {
    let (dir, vae) = (tempfile::tempdir().unwrap(), vae());
    let path = dir.path().join("w.safetensors");
    let decoder = vae.exported()[1];
    let mut tensors: Vec<_> = decoder.tensors().unwrap().into_iter().map(|(key, t, _)| (key, t)).collect();
    tensors[0].1 = tensors[0].1.detach() + 1e-7;
    weights_file::write(&path, tensors).unwrap();
    assert!(same_bits(decoder, &path).unwrap_err().to_string().contains("fc1.weight"));
}
