//! ONNX files of networks, written natively: one for each network, of any batch size.
//!
//! [`write`] turns a [`Network`]'s operations into the nodes of opset 17; constants carry the keys that the weights have in
//! PyTorch (`fc1.weight`). [`Loaded`] reads such a file back and runs it from what stands in it alone, so that an export can be
//! compared with the live network before anyone is told that it worked.

mod check;
mod proto;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use tch::{Kind, Tensor};

use crate::base::atomic_file::AtomicFile;
use crate::nets::{Activation, BN_EPS, LEAK, Network, Operation, Port};
pub use check::Loaded;
use proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, Stream,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, attribute_type,
    data_type,
};

/// Version of the operators: the newest that needs no newer operator than networks here have, so that runtimes of the last
/// years take it (onnxruntime from 1.12).
const OPSET: i64 = 17;
/// Version of the file format that came with [`OPSET`].
const IR_VERSION: i64 = 8;
/// Name of the first dimension of every input and output, which is of any size.
const BATCH: &str = "batch";
/// Protocol buffers end here, in bytes.
const MOST_BYTES: usize = i32::MAX as usize;

/// Writes `network` to `path` as an ONNX model (opset 17, float32), `about` as its metadata: to a file beside it first, then
/// renamed, so that no half model is ever seen.
///
/// The input and the outputs have the names and dimensions of their [`Port`]s after a first dimension `batch` of any size. Only
/// one weight at a time is copied.
///
/// # Errors
/// When the file cannot be written, or would be above the 2 GB that the format allows; names it. When the network has two
/// operations of one name, or `about` a key twice.
pub fn write(network: &Network, about: &[(&str, String)], path: &Path) -> Result<()> {
    let graph = Builder::default().graph(network)?;
    let model = ModelProto {
        ir_version: IR_VERSION,
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: OPSET }],
        producer_name: env!("CARGO_PKG_NAME").to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: None,
        metadata_props: metadata(about)?,
    };
    save(&model, &graph, path)
}

fn metadata(about: &[(&str, String)]) -> Result<Vec<StringStringEntryProto>> {
    let mut seen = BTreeSet::new();
    for (key, _) in about {
        ensure!(seen.insert(key), "the metadata of an ONNX file would have the key {key} twice: give each once");
    }
    Ok(about.iter().map(|(k, v)| StringStringEntryProto { key: (*k).to_owned(), value: v.clone() }).collect())
}

fn save(model: &ModelProto, built: &Built, path: &Path) -> Result<()> {
    let headers: Vec<_> = built.constants.iter().map(|c| c.header()).collect::<Result<_>>()?;
    let stream = Stream { model, graph: &built.graph, constants: &headers };
    ensure!(
        stream.len() <= MOST_BYTES,
        "the {} is too large for ONNX: {} would have {} bytes, and the format allows {MOST_BYTES}; use the TorchScript export \
         (--format torchscript), which has no such limit",
        built.graph.name,
        path.display(),
        stream.len()
    );
    let mut file = AtomicFile::create(path)?;
    stream.write(&mut file, |i| built.constants[i].bytes())?;
    Ok(file.commit()?)
}

/// A named constant, as it lies on its device.
struct Constant {
    name: String,
    value: Tensor,
}

impl Constant {
    /// What stands before its bytes, and how many these are. Floating point of any width becomes float32.
    fn header(&self) -> Result<(TensorProto, usize)> {
        let (data_type, width) = match self.value.kind() {
            Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16 => (data_type::FLOAT, size_of::<f32>()),
            Kind::Int64 => (data_type::INT64, size_of::<i64>()),
            other => bail!("{} is of type {other:?}, and an ONNX export takes floating point and Int64", self.name),
        };
        let header = TensorProto { dims: self.value.size(), data_type, name: self.name.clone(), raw_data: None };
        Ok((header, self.value.numel() * width))
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let (header, len) = self.header()?;
        let kind = if header.data_type == data_type::INT64 { Kind::Int64 } else { Kind::Float };
        let value = self.value.detach().f_to_kind(kind)?;
        let mut bytes = vec![0; len];
        // sync: on their way to a file; from any device, and in the order of the dimensions however they lie in memory.
        value.f_copy_data_u8(&mut bytes, value.numel())?;
        // The format is little-endian wherever it is written.
        if cfg!(target_endian = "big") {
            bytes.chunks_exact_mut(kind.elt_size_in_bytes()).for_each(<[u8]>::reverse);
        }
        Ok(bytes)
    }
}

/// A graph whose constants are still tensors.
struct Built {
    graph: GraphProto,
    constants: Vec<Constant>,
}

/// A graph under construction.
#[derive(Default)]
struct Builder {
    nodes: Vec<NodeProto>,
    constants: Vec<Constant>,
}

impl Builder {
    fn graph(mut self, network: &Network) -> Result<Built> {
        let mut shared = network.input.name.to_owned();
        for (name, op) in &network.trunk {
            shared = self.operation(name, op, shared, None)?;
        }
        for (port, ops) in &network.outputs {
            let mut value = shared.clone();
            for (i, (name, op)) in ops.iter().enumerate() {
                let last = (i + 1 == ops.len()).then_some(port.name);
                value = self.operation(name, op, value, last)?;
            }
            if ops.is_empty() {
                // Two outputs may be one value, and the input one of them: each still has its own name.
                self.node(port.name, "Identity", vec![shared.clone()], vec![], Some(port.name));
            }
        }
        let graph = GraphProto {
            node: self.nodes,
            name: network.name.to_owned(),
            initializer: Vec::new(),
            input: vec![value_info(&network.input)],
            output: network.outputs.iter().map(|(port, _)| value_info(port)).collect(),
        };
        check_names(&graph, &self.constants)?;
        Ok(Built { graph, constants: self.constants })
    }

    /// Adds the node or nodes of an operation on `input`; returns the name of what comes out: `output`, or one made of the
    /// operation's, which can be no tensor's key and no port's name.
    fn operation(&mut self, name: &str, op: &Operation, input: String, output: Option<&str>) -> Result<String> {
        let mut inputs = vec![input];
        for (key, t, _) in op.tensors() {
            inputs.push(self.constant(name, key, t.shallow_clone()));
        }
        let (op_type, attributes) = match op {
            // Weights stay [out,in], as PyTorch has them.
            Operation::Linear(_) => ("Gemm", vec![int("transB", 1)]),
            Operation::Conv(_) => ("Conv", halving()),
            Operation::ConvTranspose(_) => ("ConvTranspose", halving()),
            Operation::BatchNorm(_) => {
                ensure!(
                    inputs.len() == 5,
                    "{name} has no scale or no shift, and ONNX's batch normalisation takes both: export TorchScript"
                );
                ("BatchNormalization", vec![float("epsilon", BN_EPS)])
            }
            Operation::Activation(Activation::Relu) => ("Relu", vec![]),
            Operation::Activation(Activation::LeakyRelu) => ("LeakyRelu", vec![float("alpha", LEAK)]),
            Operation::Activation(Activation::Tanh) => ("Tanh", vec![]),
            Operation::Sigmoid => ("Sigmoid", vec![]),
            Operation::Affine { scale, shift } => {
                inputs.push(self.constant(name, "scale", Tensor::from(*scale as f32)));
                let shift = self.constant(name, "shift", Tensor::from(*shift as f32));
                inputs = vec![self.node(&format!("{name}.scaled"), "Mul", inputs, vec![], None), shift];
                ("Add", vec![])
            }
            Operation::Reshape([c, h, w]) => {
                // 0 takes the input's own first dimension: unlike −1 it tells shape inference that the batch stays the batch.
                inputs.push(self.constant(name, "shape", Tensor::f_from_slice(&[0, *c, *h, *w])?));
                ("Reshape", vec![])
            }
            Operation::Flatten => ("Flatten", vec![int("axis", 1)]),
            Operation::Squeeze => {
                inputs.push(self.constant(name, "axes", Tensor::f_from_slice(&[1i64])?));
                ("Squeeze", vec![])
            }
        };
        Ok(self.node(name, op_type, inputs, attributes, output))
    }

    /// Adds a constant of an operation; returns its name.
    fn constant(&mut self, operation: &str, key: &str, value: Tensor) -> String {
        let name = format!("{operation}.{key}");
        self.constants.push(Constant { name: name.clone(), value });
        name
    }

    /// Adds a node; returns the name of what comes out.
    fn node(
        &mut self,
        name: &str,
        op_type: &str,
        input: Vec<String>,
        attribute: Vec<AttributeProto>,
        output: Option<&str>,
    ) -> String {
        let output = output.map_or_else(|| format!("{name}.output"), str::to_owned);
        self.nodes.push(NodeProto {
            input,
            output: vec![output.clone()],
            name: name.to_owned(),
            op_type: op_type.to_owned(),
            attribute,
            domain: String::new(),
        });
        output
    }
}

/// Refuses a graph in which one name stands for two values or two nodes: ONNX reads such a file wrongly or not at all.
fn check_names(graph: &GraphProto, constants: &[Constant]) -> Result<()> {
    let (mut values, mut nodes) = (BTreeSet::new(), BTreeSet::new());
    let given = graph.input.iter().map(|v| v.name.as_str()).chain(constants.iter().map(|c| c.name.as_str()));
    let made = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str));
    let twice = given.chain(made).find(|name| !values.insert(*name));
    let twice = twice.or_else(|| graph.node.iter().map(|n| n.name.as_str()).find(|name| !nodes.insert(*name)));
    match twice {
        Some(name) => bail!("the {} has two layers or values named {name}: each name may stand for one", graph.name),
        None => Ok(()),
    }
}

/// The settings of a convolution of 4×4, stride 2, padding 1, either way.
fn halving() -> Vec<AttributeProto> {
    vec![ints("kernel_shape", &[4, 4]), ints("pads", &[1, 1, 1, 1]), ints("strides", &[2, 2])]
}

fn float(name: &str, value: f64) -> AttributeProto {
    let r#type = attribute_type::FLOAT;
    AttributeProto { name: name.to_owned(), f: Some(value as f32), r#type, ..Default::default() }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), i: Some(value), r#type: attribute_type::INT, ..Default::default() }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    let r#type = attribute_type::INTS;
    AttributeProto { name: name.to_owned(), ints: values.to_vec(), r#type, ..Default::default() }
}

/// A port as ONNX describes it: float32 [batch,dims].
fn value_info(port: &Port) -> ValueInfoProto {
    let batch = DimensionProto { dim_value: None, dim_param: Some(BATCH.to_owned()) };
    let fixed = port.dims.iter().map(|&d| DimensionProto { dim_value: Some(d), dim_param: None });
    let shape = TensorShapeProto { dim: [batch].into_iter().chain(fixed).collect() };
    let tensor = TensorTypeProto { elem_type: data_type::FLOAT, shape: Some(shape) };
    let range = port.range.map_or_else(String::new, |(low, high)| format!(", from {low} to {high}"));
    ValueInfoProto {
        name: port.name.to_owned(),
        r#type: Some(TypeProto { tensor_type: Some(tensor) }),
        doc_string: format!("{}{range}", port.about),
    }
}

#[cfg(test)]
mod tests;
