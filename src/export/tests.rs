//! Tests of exports that need no other program: what is compared, what is refused, what stays.

use super::*;
use crate::models::optimizer::Hyper;
use crate::models::vae::{Vae, VaeSpec};
use crate::nets::{Activation, Arch, Init, NetSpec, Shape};
use tch::Device;

use crate::models::Model;

fn vae() -> Vae {
    let net = NetSpec {
        arch: Arch::Mlp,
        hidden: vec![6],
        base_width: 1,
        activation: Activation::Tanh,
        batch_norm: false,
        init: Init::PyTorch,
    };
    let shape = Shape { channels: 1, height: 4, width: 3 };
    let spec = VaeSpec { shape, latent: 2, encoder: net.clone(), decoder: net, beta: 1.0, kl_warmup_steps: 0 };
    Vae::new(spec, Hyper::default(), Device::Cpu).unwrap()
}

fn origin() -> Origin {
    Origin { model: "vae".into(), preset: "none".into(), data: "digits".into(), step: 7 }
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
    let all = export(&vae.networks(), &origin(), Format::value_variants(), &out).unwrap();
    let want = ["decoder.onnx", "decoder.pt", "decoder.safetensors"];
    let want: Vec<_> =
        want.iter().copied().chain(["encoder.onnx", "encoder.pt", "encoder.safetensors", ABOUT]).collect();
    assert_eq!(files(&out), want);
    assert_eq!(all.len(), 6);
    assert!(all.iter().all(|w| w.path.is_file() && w.differences.iter().all(|d| *d < 1e-5)));
    let about: Value = serde_json::from_slice(&fs::read(out.join(ABOUT)).unwrap()).unwrap();
    assert_eq!((&about["model"], &about["step"], &about["data"]), (&json!("vae"), &json!(7), &json!("digits")));
    let decoder = &about["networks"]["decoder"];
    assert_eq!(decoder["input"]["shape"], json!(["B", 2]));
    assert_eq!(decoder["outputs"][0]["shape"], json!(["B", 1, 4, 3]));
    assert_eq!(decoder["outputs"][0]["range"], json!([0.0, 1.0]));
    assert_eq!(decoder["parameters"], json!(2 * 6 + 6 + 6 * 12 + 12));
    assert_eq!(decoder["files"]["torchscript"]["file"], json!("decoder.pt"));
    let compared: Vec<_> =
        decoder["files"]["onnx"]["difference_at_batch_size"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(compared, ["1", "7", "64"]);
    let in_file: Value =
        serde_json::from_str(&native::script_description(&out.join("decoder.pt")).unwrap().unwrap()).unwrap();
    assert_eq!((&in_file["network"], &in_file["input"]), (&json!("decoder"), &decoder["input"]));
    let outputs = &about["networks"]["encoder"]["outputs"];
    assert_eq!((&outputs[0]["name"], &outputs[1]["name"]), (&json!("mu"), &json!("logvar")));

    // Another export into the same folder leaves nothing of the one before.
    export(&vae.networks(), &origin(), &[Format::Onnx], &out).unwrap();
    assert_eq!(files(&out), ["decoder.onnx", "encoder.onnx", ABOUT]);
}

/// A copy of a network whose live outputs are `off` from its true ones at one batch size.
fn lying(network: Network<'_>, off: f64, batch: i64) -> Network<'_> {
    let live = network.live;
    let off = move |x: &Tensor| if x.size()[0] == batch { off } else { 0.0 };
    Network { live: Box::new(move |x| Ok(live(x)?.into_iter().map(|t| t + off(x)).collect())), ..network }
}

#[test]
fn what_differs_from_the_live_network_is_thrown_away_and_the_folder_stays() {
    let (dir, vae) = (tempfile::tempdir().unwrap(), vae());
    let write = |off: f64, batch, format| {
        let networks: Vec<_> = vae.networks().into_iter().map(|n| lying(n, off, batch)).collect();
        export(&networks, &origin(), &[format], dir.path())
    };
    write(0.0, 1, Format::Torchscript).unwrap();
    let before = fs::read(dir.path().join(ABOUT)).unwrap();
    for (format, batch) in [(Format::Torchscript, 1), (Format::Onnx, 7), (Format::Torchscript, 64), (Format::Onnx, 64)]
    {
        let e = format!("{:#}", write(1e-3, batch, format).unwrap_err());
        assert!(e.contains("thrown away") && e.contains(&format!("batch size {batch},")), "{e}");
        assert_eq!(files(dir.path()), ["decoder.pt", "encoder.pt", ABOUT]);
        assert_eq!(fs::read(dir.path().join(ABOUT)).unwrap(), before);
    }
    let e = format!("{:#}", write(f64::NAN, 7, Format::Onnx).unwrap_err());
    assert!(e.contains("not finite"), "{e}");
}

#[test]
fn a_folder_with_other_files_is_refused_and_ones_own_is_not() {
    let (dir, vae) = (tempfile::tempdir().unwrap(), vae());
    let at = |name: &str| dir.path().join(name);
    fs::write(at("decoder.pt"), "mine").unwrap();
    let e = check_folder(dir.path()).unwrap_err();
    assert!(e.is::<crate::base::usage::Usage>() && e.to_string().contains("name another"), "{e}");
    assert!(check_folder(&at("decoder.pt")).is_err() && check_folder(&at("none")).is_ok());
    assert!(export(&vae.networks(), &origin(), &[Format::Onnx], &at("decoder.pt")).is_err());
    // What an export leaves may be exported into again; a run's own folder also when its description is gone.
    let (own, formats) = (at("own"), [Format::Onnx, Format::Safetensors, Format::Onnx]);
    assert_eq!(export(&vae.networks(), &origin(), &formats, &own).unwrap().len(), 4, "each format once");
    check_folder(&own).unwrap();
    fs::remove_file(own.join(ABOUT)).unwrap();
    assert!(check_folder(&own).is_err());
    export(&vae.networks(), &origin(), &formats, &own).unwrap();
    let held = lock(&own).unwrap();
    let e = export(&vae.networks(), &origin(), &formats, &own).unwrap_err().to_string();
    assert!(e.contains("another ganvae is exporting"), "{e}");
    drop(held);
    export(&vae.networks(), &origin(), &formats, &own).unwrap();
}

#[test]
fn weights_that_are_not_the_live_ones_are_noticed() {
    let (dir, vae) = (tempfile::tempdir().unwrap(), vae());
    let path = dir.path().join("w.safetensors");
    let networks = vae.networks();
    let decoder = &networks[1];
    let mut tensors: Vec<_> = decoder.tensors().into_iter().map(|(key, t, _)| (key, t)).collect();
    tensors[0].1 = tensors[0].1.detach() + 1e-7;
    weights_file::write(&path, tensors).unwrap();
    assert!(weights_difference(decoder, &path).unwrap_err().to_string().contains("fc1.weight"));
}
