//! What ONNX files hold. That they compute what the networks do is tested with onnxruntime (tests/export.rs, tests/blocks.rs).

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::base::setting::Settings;
use crate::base::shape::Shape;
use crate::config;
use crate::config::training::PRESET;
use crate::models::ModelKind;
use crate::models::gan::GENERATOR_HIDDEN;
use crate::models::{ImageSpec, Model, Part, Visit};
use crate::native;
use crate::nets::graph::{Builder, Init};
use crate::nets::{BASE_WIDTH, LATENT};
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
    let model = config.build(ImageSpec { shape, classes: 3 }, 1, Device::Cpu).unwrap();
    model.visit(&mut Shake(0)).unwrap();
    Some(model)
}

fn shape(channels: i64, height: i64, width: i64) -> Shape {
    Shape { channels, height, width }
}

/// One small network that has a layer of most kinds.
fn small() -> Box<dyn Model> {
    let given = Settings::default()
        .with(&PRESET, "dcgan".into())
        .with(&LATENT, 3)
        .with(&BASE_WIDTH, 2)
        .with(&GENERATOR_HIDDEN, vec![4]);
    model(ModelKind::Gan, &given, shape(1, 16, 16)).unwrap()
}

fn written(network: &Graph) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("{}.onnx", network.name()));
    write(network, &[], &path).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    (dir, path)
}

fn decoded(path: &Path) -> ModelProto {
    ModelProto::decode(fs::read(path).unwrap().as_slice()).unwrap()
}

#[test]
fn constants_carry_pytorchs_keys_shapes_and_values() {
    let model = small();
    for network in model.exported() {
        let (_dir, path) = written(network);
        let graph = decoded(&path).graph.unwrap();
        let floats = |t: &&TensorProto| t.data_type == data_type::FLOAT && !t.dims.is_empty();
        let constants: Vec<_> = graph.initializer.iter().filter(floats).collect();
        let tensors = network.tensors().unwrap();
        assert!(tensors.len() > 5);
        assert_eq!(constants.len(), tensors.len());
        for (key, t, _) in tensors {
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
    let networks = model.exported();
    write(networks[0], &[("step", "12".into()), ("model", "gan".into())], &path).unwrap();
    let found = decoded(&path);
    assert_eq!((found.ir_version, found.opset_import[0].version), (8, 17));
    assert_eq!((found.producer_name.as_str(), found.producer_version.as_str()), ("ganvae", env!("CARGO_PKG_VERSION")));
    let props: Vec<_> = found.metadata_props.iter().map(|p| (p.key.as_str(), p.value.as_str())).collect();
    assert_eq!(props, [("step", "12"), ("model", "gan")]);
    let graph = found.graph.unwrap();
    assert_eq!(graph.name, "generator");
    let (x, z) = (&graph.output[0], &graph.input[0]);
    assert_eq!((x.name.as_str(), x.doc_string.as_str()), ("x", "images, from 0 to 1"));
    assert_eq!((z.name.as_str(), z.doc_string.as_str()), ("z", networks[0].inputs()[0].about));
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
    write(networks[0], &[("step", "12".into()), ("model", "gan".into())], &path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), again, "the same network gives the same bytes");
}

#[test]
fn no_byte_of_a_file_is_outside_a_known_field() {
    let model = small();
    for network in model.exported() {
        let (_dir, path) = written(network);
        let (found, length) = (decoded(&path), fs::metadata(&path).unwrap().len());
        assert_eq!(found.encoded_len() as u64, length, "no byte is outside a known field");
    }
}

/// A network z [B,in] -> x [B,out] of this operation; none gives the input back.
fn network(op: Option<Op>, dims: [i64; 2]) -> Graph {
    let vars = nn::VarStore::new(Device::Cpu);
    let mut b = Builder::new(&vars, "decoder", Init::PyTorch);
    let z = b.input(Port::new("z", &dims[..1], "")).unwrap();
    let x = op.map_or(z, |op| b.op("act", op, &[z]).unwrap());
    b.output(Port::new("x", &dims[1..], ""), x).unwrap();
    b.finish().unwrap()
}

#[test]
fn an_output_that_is_an_input_has_its_name_all_the_same() {
    let (_dir, path) = written(&network(None, [3, 3]));
    let graph = decoded(&path).graph.unwrap();
    assert_eq!((graph.node.len(), graph.node[0].op_type.as_str()), (1, "Identity"));
    assert_eq!((&graph.node[0].input, &graph.node[0].output), (&vec!["z".to_owned()], &vec!["x".to_owned()]));
}

#[test]
fn above_two_gigabytes_the_sentence_names_the_other_format_and_nothing_is_written() {
    // One number shown as many: no memory behind it.
    let ws = Tensor::zeros([1, 1], (Kind::Float, Device::Cpu)).expand([40_000, 20_000], false);
    let layer = nn::Linear { ws, bs: None };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("decoder.onnx");
    fs::write(&path, "the one before").unwrap();
    let e = write(&network(Some(Op::Linear(layer)), [20_000, 40_000]), &[], &path).unwrap_err();
    let e = format!("{e:#}");
    assert!(e.contains("3200000") && e.contains("2147483647") && e.contains("torchscript"), "{e}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "the one before");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn names_that_stand_for_two_things_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("decoder.onnx");
    // A port named as a tensor's key would be: refused before there is a graph.
    let vars = nn::VarStore::new(Device::Cpu);
    let mut b = Builder::new(&vars, "decoder", Init::PyTorch);
    let e = b.input(Port::new("fc.weight", &[2], "")).unwrap_err().to_string();
    assert!(e.contains("decoder") && e.contains("fc.weight"), "{e}");
    let once = network(Some(Op::Activation(Function::Sigmoid)), [2, 2]);
    let e = write(&once, &[("a", String::new()), ("a", String::new())], &path).unwrap_err().to_string();
    assert!(e.contains("the key a twice"), "{e}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_cannot_be_written_is_named_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let once = network(Some(Op::Activation(Function::Sigmoid)), [2, 2]);
    let taken = dir.path().join("taken.onnx");
    fs::create_dir(&taken).unwrap();
    for path in [dir.path().join("missing/decoder.onnx"), taken] {
        let e = format!("{:#}", write(&once, &[], &path).unwrap_err());
        assert!(e.contains(&path.display().to_string()) && e.contains("could not be written"), "{e}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the folder in the way");
}
