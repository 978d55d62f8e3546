//! ONNX files of every kind of network against the live ones, and what becomes of bad files.

use std::fs;
use std::path::PathBuf;

use clap::ValueEnum;
use prost::Message;

use super::*;
use crate::config::{self, ModelKind, ModelSpec, Preset, Settings};
use crate::models::gan::Gan;
use crate::models::vae::Vae;
use crate::models::{Model, Part, Visit};
use crate::native;
use crate::nets::{Arch, Forms, Kernels, Layout, MatmulBackend, Shape};
use tch::{Device, nn};

/// Numbers that depend on `seed` alone, also with other tests beside: images in [0,1], or N(0, 1).
fn random(seed: i64, size: &[i64], image: bool) -> Tensor {
    let x = native::randn(seed, size).unwrap();
    if image { x.sigmoid() } else { x }
}

/// Makes all of a model random: fresh vectors are zeros and ones, behind which a mistake could hide.
struct Shake(i64);

impl Visit for Shake {
    fn tensor(&mut self, part: Part, name: &str, t: &Tensor) -> Result<()> {
        if part == Part::Model {
            self.0 += 1;
            let (size, draw) = (t.size(), random(self.0, &t.size(), false));
            let value = match size.len() {
                // From about 0.05 to 1: so small that a wrong epsilon shows, and not so small that layer upon layer of it
                // blows float32's own rounding up to the size of a mistake.
                1 if name.ends_with("running_var") => (draw.sigmoid() * -3.0).exp(),
                1 => draw * 0.5 + if name.ends_with("weight") { 1.0 } else { 0.0 },
                // Half of what would keep the scale, because the statistics above double it.
                _ => draw * 0.5 / (size[1..].iter().product::<i64>() as f64).sqrt(),
            };
            tch::no_grad(|| t.shallow_clone().copy_(&value));
        }
        Ok(())
    }
}

fn model(kind: ModelKind, given: &Settings, shape: Shape) -> Option<Box<dyn Model>> {
    let config = config::resolve(kind, given).ok()?;
    let mut model = match config.model_spec(shape, 1) {
        ModelSpec::Vae(spec) => Box::new(Vae::new(spec, config.hyper, Device::Cpu).unwrap()) as Box<dyn Model>,
        ModelSpec::Gan(spec) => Box::new(Gan::new(spec, config.hyper, Device::Cpu).unwrap()),
    };
    model.visit(&mut Shake(0)).unwrap();
    Some(model)
}

fn shape(channels: i64, height: i64, width: i64) -> Shape {
    Shape { channels, height, width }
}

/// One small network that has a layer of most kinds.
fn small() -> Box<dyn Model> {
    let given = Settings {
        preset: Some(Preset::Dcgan),
        latent: Some(3),
        base_width: Some(2),
        generator_hidden: Some(config::Widths(vec![4])),
        ..Settings::default()
    };
    model(ModelKind::Gan, &given, shape(1, 16, 16)).unwrap()
}

fn written(network: &Network) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("{}.onnx", network.name));
    write(network, &[], &path).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    (dir, path)
}

fn decoded(path: &Path) -> ModelProto {
    ModelProto::decode(fs::read(path).unwrap().as_slice()).unwrap()
}

fn input(network: &Network, batch: i64) -> Tensor {
    let size: Vec<i64> = [batch].into_iter().chain(network.input.dims.iter().copied()).collect();
    random(batch, &size, network.input.range.is_some())
}

/// Every network of the model runs from its file as it does live.
fn compare(case: &str, model: &dyn Model) {
    for network in model.networks() {
        let (_dir, path) = written(&network);
        let loaded = Loaded::read(&path).unwrap();
        assert_eq!(loaded.input(), network.input.name);
        assert_eq!(loaded.outputs(), network.outputs.iter().map(|(p, _)| p.name).collect::<Vec<_>>());
        for batch in [1, 7, 64] {
            let x = input(&network, batch);
            let (got, want) = (loaded.run(&x).unwrap(), (network.live)(&x).unwrap());
            assert_eq!(got.len(), want.len());
            for ((got, want), name) in got.iter().zip(&want).zip(loaded.outputs()) {
                assert_eq!(got.size(), want.size());
                let off = (got - want).abs().max().double_value(&[]) / want.abs().max().double_value(&[]);
                assert!(off < 1e-5, "{case}, {}: {name} of a batch of {batch} is off by {off}", network.name);
            }
        }
    }
}

#[test]
fn every_preset_runs_from_its_files_as_it_does_live() {
    let mut seen = 0;
    for &kind in ModelKind::value_variants() {
        for &preset in Preset::value_variants() {
            for shape in [shape(1, 8, 8), shape(3, 16, 24)] {
                let given = Settings { preset: Some(preset), ..Settings::default() };
                let Some(model) = model(kind, &given, shape) else { continue };
                compare(&format!("{kind} {preset:?} {shape}"), model.as_ref());
                seen += 1;
            }
        }
    }
    assert!(seen >= 10, "only {seen} models were compared");
}

#[test]
fn every_architecture_activation_and_layout_runs_from_its_files_as_it_does_live() {
    for &kind in ModelKind::value_variants() {
        for &arch in Arch::value_variants() {
            for &activation in Activation::value_variants() {
                for &layout in Layout::value_variants() {
                    let hidden = |w: &[i64]| Some(config::Widths(w.to_vec()));
                    let (vae, gan) = (kind == ModelKind::Vae, kind == ModelKind::Gan);
                    let given = Settings {
                        arch: Some(arch),
                        activation: Some(activation),
                        latent: Some(5),
                        base_width: (arch == Arch::Conv).then_some(3),
                        encoder_hidden: vae.then(|| hidden(&[6, 4])).flatten(),
                        decoder_hidden: vae.then(|| hidden(&[])).flatten(),
                        generator_hidden: gan.then(|| hidden(&[6, 4])).flatten(),
                        discriminator_hidden: gan.then(|| hidden(&[7])).flatten(),
                        ..Settings::default()
                    };
                    let mut model = model(kind, &given, shape(3, 32, 16)).unwrap();
                    model
                        .set_forms(Forms {
                            products: MatmulBackend::Blas,
                            layout,
                            kernels: Kernels::Own,
                            ..Forms::default()
                        })
                        .unwrap();
                    compare(&format!("{kind} {arch:?} {activation:?} {layout:?}"), model.as_ref());
                }
            }
        }
    }
}

#[test]
fn constants_carry_pytorchs_keys_shapes_and_values() {
    let model = small();
    for network in model.networks() {
        let (_dir, path) = written(&network);
        let graph = decoded(&path).graph.unwrap();
        let floats = |t: &&TensorProto| t.data_type == data_type::FLOAT && !t.dims.is_empty();
        let constants: Vec<_> = graph.initializer.iter().filter(floats).collect();
        assert!(network.tensors().len() > 5);
        assert_eq!(constants.len(), network.tensors().len());
        for (key, t, _) in network.tensors() {
            let found = constants.iter().find(|c| c.name == key).unwrap_or_else(|| panic!("{key} is not there"));
            assert_eq!(found.dims, t.size(), "{key}");
            let bytes: Vec<u8> =
                Vec::<f32>::try_from(t.detach().reshape([-1])).unwrap().iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(found.raw_data.as_deref(), Some(bytes.as_slice()), "{key}");
        }
        for node in graph.node.iter().filter(|n| n.op_type == "Gemm") {
            assert_eq!(node.attribute, [int("transB", 1)]);
            assert_eq!(node.input[1], format!("{}.weight", node.name));
        }
    }
}

#[test]
fn a_file_says_what_it_holds() {
    let model = small();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.b.onnx");
    let networks = model.networks();
    write(&networks[0], &[("step", "12".into()), ("model", "gan".into())], &path).unwrap();
    let found = decoded(&path);
    assert_eq!((found.ir_version, found.opset_import[0].version), (8, 17));
    assert_eq!((found.producer_name.as_str(), found.producer_version.as_str()), ("ganvae", env!("CARGO_PKG_VERSION")));
    let props: Vec<_> = found.metadata_props.iter().map(|p| (p.key.as_str(), p.value.as_str())).collect();
    assert_eq!(props, [("step", "12"), ("model", "gan")]);
    let graph = found.graph.unwrap();
    assert_eq!(graph.name, "generator");
    let (x, z) = (&graph.output[0], &graph.input[0]);
    assert_eq!((x.name.as_str(), x.doc_string.as_str()), ("x", "images, from 0 to 1"));
    assert_eq!((z.name.as_str(), z.doc_string.as_str()), ("z", networks[0].input.about));
    let dims = |v: &ValueInfoProto| v.r#type.clone().unwrap().tensor_type.unwrap().shape.unwrap().dim;
    assert_eq!(dims(x)[0].dim_param.as_deref(), Some("batch"));
    assert_eq!(dims(x)[1..].iter().map(|d| d.dim_value.unwrap()).collect::<Vec<_>>(), [1, 16, 16]);
    let nodes: Vec<_> = graph.node.iter().map(|n| format!("{} {}", n.op_type, n.name)).collect();
    assert_eq!(
        nodes,
        [
            "Gemm fc1",
            "Relu act1",
            "Gemm base",
            "Reshape grid",
            "BatchNormalization bn0",
            "Relu base_act",
            "ConvTranspose convt1",
            "BatchNormalization bn1",
            "Relu conv_act1",
            "ConvTranspose convt2",
            "Tanh tanh",
            "Mul unit.scaled",
            "Add unit"
        ]
    );
    let again = fs::read(&path).unwrap();
    write(&networks[0], &[("step", "12".into()), ("model", "gan".into())], &path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), again, "the same network gives the same bytes");
}

#[test]
fn a_streamed_file_is_what_encoding_the_whole_message_gives_but_for_the_order_of_fields() {
    let model = small();
    for network in model.networks() {
        let (_dir, path) = written(&network);
        let (found, length) = (decoded(&path), fs::metadata(&path).unwrap().len());
        assert_eq!(found.encoded_len() as u64, length, "no byte is outside a known field");
    }
}

#[test]
fn a_file_cut_short_anywhere_is_refused_and_a_damaged_one_never_panics() {
    let model = small();
    let networks = model.networks();
    let (_dir, path) = written(&networks[0]);
    let whole = fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(7).chain(whole.len() - 40..whole.len()) {
        fs::write(&path, &whole[..length]).unwrap();
        let e = format!("{:#}", Loaded::read(&path).unwrap_err());
        assert!(e.contains("generator.onnx") && e.contains("export it again"), "{e}");
    }
    // The weights' own bytes are most of the file, and any value of theirs is a number.
    let z = input(&networks[0], 2);
    let (mut refused, mut changed) = (0, 0);
    let want = (networks[0].live)(&z).unwrap();
    for at in (0..1500).chain((1500..whole.len()).step_by(197)) {
        for mask in [1, 0x10, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= mask;
            match Loaded::parse(bytes.into()).and_then(|l| l.run(&z)) {
                Err(_) => refused += 1,
                Ok(got) => changed += usize::from(!got[0].allclose(&want[0], 1e-5, 1e-6, false)),
            }
        }
    }
    assert!(refused > 500 && changed > 100, "{refused} refused, {changed} changed");
}

/// The file with a change, run on two latents.
fn run_changed(change: impl Fn(&mut ModelProto)) -> String {
    let model = small();
    let networks = model.networks();
    let (_dir, path) = written(&networks[0]);
    let mut proto = decoded(&path);
    change(&mut proto);
    let loaded = Loaded::parse(proto.encode_to_vec().into());
    format!("{:#}", loaded.and_then(|l| l.run(&input(&networks[0], 2))).unwrap_err())
}

#[test]
fn what_a_file_should_not_hold_is_named() {
    let node =
        |i: usize, change: &dyn Fn(&mut NodeProto)| run_changed(|m| change(&mut m.graph.as_mut().unwrap().node[i]));
    let e = node(1, &|n| n.op_type = "Gelu".into());
    assert!(e.contains("act1") && e.contains("'Gelu' is no operator"), "{e}");
    let e = node(0, &|n| n.attribute.push(int("fast", 1)));
    assert!(e.contains("fc1") && e.contains("fast"), "{e}");
    let e = node(0, &|n| n.attribute[0].r#type = attribute_type::FLOAT);
    assert!(e.contains("transB") && e.contains("type 1, wanted 2"), "{e}");
    let e = node(0, &|n| n.attribute.clear());
    assert!(e.contains("'fc1' (Gemm)"), "{e}");
    let e = node(2, &|n| n.input[1] = "nowhere".into());
    assert!(e.contains("'nowhere' is not there yet"), "{e}");
    let e = node(2, &|n| n.output[0] = "z".into());
    assert!(e.contains("two of its values have the name 'z'"), "{e}");
    let e = node(6, &|n| n.attribute[1].ints = vec![1, 1, 0, 1]);
    assert!(e.contains("pads"), "{e}");
    let e = node(4, &|n| n.attribute.push(int("training_mode", 1)));
    assert!(e.contains("training mode"), "{e}");
    let e = run_changed(|m| m.opset_import[0].version = 12);
    assert!(e.contains("12") && e.contains("wanted ONNX's own of version 17"), "{e}");
    let e = run_changed(|m| m.graph = None);
    assert!(e.contains("no graph"), "{e}");
    let e = run_changed(|m| m.graph.as_mut().unwrap().initializer[0].dims[0] += 1);
    assert!(e.contains("fc1.weight") && e.contains("bytes"), "{e}");
    let e = run_changed(|m| m.graph.as_mut().unwrap().output[0].name = "y".into());
    assert!(e.contains("no node gives the output 'y'"), "{e}");
    let e = run_changed(|m| {
        let graph = m.graph.as_mut().unwrap();
        let tensor = graph.output[0].r#type.as_mut().unwrap().tensor_type.as_mut().unwrap();
        tensor.shape.as_mut().unwrap().dim[1].dim_value = Some(3);
    });
    assert!(e.contains("[2, 1, 16, 16]") && e.contains("[2, 3, 16, 16]"), "{e}");
}

#[test]
fn an_input_of_other_dimensions_is_refused() {
    let model = small();
    let networks = model.networks();
    let (_dir, path) = written(&networks[0]);
    let loaded = Loaded::read(&path).unwrap();
    for size in [vec![2i64, 4], vec![3], vec![2, 3, 1], vec![]] {
        let e = loaded.run(&Tensor::zeros(&size, (Kind::Float, Device::Cpu))).unwrap_err().to_string();
        assert!(e.contains("batch"), "{e}");
    }
    assert!(loaded.run(&Tensor::zeros([2, 3], (Kind::Double, Device::Cpu))).is_err());
    assert!(loaded.run(&Tensor::zeros([2, 3], (Kind::Float, Device::Cpu))).is_ok());
}

/// A network z [B,in] -> x [B,out] of these operations.
fn network<'a>(trunk: Vec<(&str, Operation<'a>)>, dims: [i64; 2]) -> Network<'a> {
    let port = |name, d| Port { name, dims: vec![d], range: None, about: "" };
    Network {
        name: "decoder",
        input: port("z", dims[0]),
        trunk: trunk.into_iter().map(|(name, op)| (name.to_owned(), op)).collect(),
        outputs: vec![(port("x", dims[1]), Vec::new())],
        live: Box::new(|z| Ok(vec![z.shallow_clone()])),
    }
}

#[test]
fn an_output_without_operations_of_its_own_has_its_name_all_the_same() {
    let (_dir, path) = written(&network(vec![], [3, 3]));
    let z = random(1, &[5, 3], false);
    assert!(Loaded::read(&path).unwrap().run(&z).unwrap()[0].equal(&z));
}

#[test]
fn above_two_gigabytes_the_sentence_names_the_other_format_and_nothing_is_written() {
    // One number shown as many: no memory behind it.
    let ws = Tensor::zeros([1, 1], (Kind::Float, Device::Cpu)).expand([40_000, 20_000], false);
    let layer = nn::Linear { ws, bs: None };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("decoder.onnx");
    fs::write(&path, "the one before").unwrap();
    let e = write(&network(vec![("fc1", Operation::Linear(&layer))], [20_000, 40_000]), &[], &path).unwrap_err();
    let e = format!("{e:#}");
    assert!(e.contains("3200000") && e.contains("2147483647") && e.contains("torchscript"), "{e}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "the one before");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn names_that_stand_for_two_things_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("decoder.onnx");
    let twice = network(vec![("act", Operation::Sigmoid), ("act", Operation::Sigmoid)], [2, 2]);
    let e = write(&twice, &[], &path).unwrap_err().to_string();
    assert!(e.contains("decoder") && e.contains("act.output"), "{e}");
    let once = network(vec![("act", Operation::Sigmoid)], [2, 2]);
    let e = write(&once, &[("a", String::new()), ("a", String::new())], &path).unwrap_err().to_string();
    assert!(e.contains("the key a twice"), "{e}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_cannot_be_written_is_named_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let once = network(vec![("act", Operation::Sigmoid)], [2, 2]);
    let taken = dir.path().join("taken.onnx");
    fs::create_dir(&taken).unwrap();
    for path in [dir.path().join("missing/decoder.onnx"), taken] {
        let e = format!("{:#}", write(&once, &[], &path).unwrap_err());
        assert!(e.contains(&path.display().to_string()) && e.contains("could not be written"), "{e}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the folder in the way");
    let e = format!("{:#}", Loaded::read(&dir.path().join("none.onnx")).unwrap_err());
    assert!(e.contains("none.onnx") && e.contains("export it again"), "{e}");
}
