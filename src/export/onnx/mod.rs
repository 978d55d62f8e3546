//! ONNX files of graphs, written natively: one for each network, of any batch size.
//!
//! [`write`] turns the nodes of a [`Graph`] into operators of opset 17; constants carry the keys that the weights have in PyTorch
//! (`fc1.weight`). The tests run such files in onnxruntime: this program has no ONNX runtime of its own.

mod proto;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use tch::{Kind, Tensor};

use crate::base::atomic_file;
use crate::nets::graph::{CB_SERIES, CB_SERIES_BELOW, ConvSpec, Function, Graph, NORM_EPS, Node, Op, Port, Value};
use proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, attribute_type, data_type,
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
/// Bytes of a file besides its weights, at most: nodes and names.
const REST: usize = 1 << 20;

/// Writes `graph` to `path` as an ONNX model (opset 17, float32), `about` as its metadata, atomically.
///
/// The input and the outputs have the names and dimensions of their [`Port`]s after a first dimension `batch` of any size.
///
/// # Errors
/// When the file cannot be written, or would be above the 2 GB that the format allows; names it. When `about` has a key twice.
pub fn write(graph: &Graph, about: &[(&str, String)], path: &Path) -> Result<()> {
    let weights: usize = graph.tensors()?.iter().map(|(_, t, _)| t.numel() * size_of::<f32>()).sum();
    ensure!(
        weights + REST <= MOST_BYTES,
        "the {} is too large for ONNX: {} would have {weights} bytes of weights, and the format allows {MOST_BYTES} in all; use the \
         TorchScript export (--format torchscript), which has no such limit",
        graph.name(),
        path.display()
    );
    let model = ModelProto {
        ir_version: IR_VERSION,
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: OPSET }],
        producer_name: env!("CARGO_PKG_NAME").to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(OnnxBuilder::default().graph(graph)?),
        metadata_props: metadata(about)?,
    };
    Ok(atomic_file::write(path, &model.encode_to_vec())?)
}

fn metadata(about: &[(&str, String)]) -> Result<Vec<StringStringEntryProto>> {
    let mut seen = BTreeSet::new();
    for (key, _) in about {
        ensure!(seen.insert(key), "the metadata of an ONNX file would have the key {key} twice: give each once");
    }
    Ok(about.iter().map(|(k, v)| StringStringEntryProto { key: (*k).to_owned(), value: v.clone() }).collect())
}

/// A graph under construction.
#[derive(Default)]
struct OnnxBuilder {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    /// What values are called.
    names: BTreeMap<Value, String>,
}

impl OnnxBuilder {
    fn graph(mut self, graph: &Graph) -> Result<GraphProto> {
        for (i, port) in graph.inputs().iter().enumerate() {
            self.names.insert(graph.input(i), port.name.to_owned());
        }
        // A value that is an output has the output's name.
        let mut outputs: BTreeMap<Value, &str> = BTreeMap::new();
        for (port, value) in graph.outputs() {
            outputs.entry(*value).or_insert(port.name);
        }
        let mut infos = Vec::new();
        for (value, node) in graph.needed() {
            let output = outputs.get(&value).map_or_else(|| format!("{}.output", node.name), |name| (*name).to_owned());
            self.operation(node, &output)?;
            if let Op::Upsample = node.op
                && !outputs.contains_key(&value)
            {
                // The only operator through which shape inference loses the batch.
                infos.push(value_info(output.clone(), data_type::FLOAT, &node.dims, String::new()));
            }
            self.names.insert(value, output);
        }
        for (port, value) in graph.outputs() {
            let name = self.name(*value)?;
            if name != port.name {
                // Two outputs may be one value, and an input one of them: each still has its own name.
                self.push(&format!("{}.copy", port.name), "Identity", vec![name], vec![], port.name);
            }
        }
        Ok(GraphProto {
            node: self.nodes,
            name: graph.name().to_owned(),
            initializer: self.constants,
            input: graph.inputs().iter().map(port_info).collect(),
            output: graph.outputs().iter().map(|(port, _)| port_info(port)).collect(),
            value_info: infos,
        })
    }

    fn name(&self, value: Value) -> Result<String> {
        self.names.get(&value).cloned().context("a value is read before it is computed")
    }

    /// Adds the node or nodes of an operation; the last one gives `output`.
    fn operation(&mut self, node: &Node, output: &str) -> Result<()> {
        let name = node.name.as_str();
        let mut inputs = node.inputs.iter().map(|v| self.name(*v)).collect::<Result<Vec<_>>>()?;
        let x = inputs[0].clone();
        let mut tensors: BTreeMap<&str, String> = BTreeMap::new();
        for (key, t, _) in node.tensors()? {
            tensors.insert(key, self.constant(name, key, &t)?);
        }
        let mut tensor = |key| tensors.remove(key);
        let (op_type, attributes) = match &node.op {
            Op::Linear(_) if node.dims.len() == 1 => {
                // Weights stay [out,in], as PyTorch has them.
                inputs.extend(tensor("weight").into_iter().chain(tensor("bias")));
                ("Gemm", vec![int("transB", 1)])
            }
            Op::Linear(_) => {
                let weight = tensor("weight").into_iter().collect();
                let turned = self.node(name, "turned", "Transpose", weight, vec![ints("perm", &[1, 0])]);
                match tensor("bias") {
                    None => {
                        inputs.push(turned);
                        ("MatMul", vec![])
                    }
                    Some(bias) => {
                        inputs = vec![self.node(name, "product", "MatMul", vec![x, turned], vec![]), bias];
                        ("Add", vec![])
                    }
                }
            }
            Op::Conv(l) => {
                inputs.extend(tensor("weight").into_iter().chain(tensor("bias")));
                (if l.spec.transposed { "ConvTranspose" } else { "Conv" }, conv_attributes(l.spec))
            }
            Op::BatchNorm(l) => {
                let channels = l.running_mean.size()[0];
                for (key, value) in [("weight", 1.0), ("bias", 0.0)] {
                    let given = tensor(key);
                    inputs.push(given.map_or_else(|| self.filled(name, key, channels, value), Ok)?);
                }
                inputs.extend(tensor("running_mean").into_iter().chain(tensor("running_var")));
                ("BatchNormalization", vec![float("epsilon", NORM_EPS)])
            }
            Op::GroupNorm(l) => {
                let (groups, channels) = (l.num_groups, l.num_channels);
                let elements = node.dims.iter().product::<i64>() / groups;
                let grouped = self.reshaped(name, "grouped", x, &[0, groups, elements])?;
                let (one, zero) = (self.filled(name, "one", groups, 1.0)?, self.filled(name, "zero", groups, 0.0)?);
                let epsilon = vec![float("epsilon", NORM_EPS)];
                let normal = self.node(name, "normal", "InstanceNormalization", vec![grouped, one, zero], epsilon);
                let shape = [&[0], node.dims.as_slice()].concat();
                match (tensor("weight"), tensor("bias")) {
                    (Some(weight), Some(bias)) => {
                        let image = self.reshaped(name, "image", normal, &shape)?;
                        let weight = self.reshaped(name, "scale", weight, &[channels, 1, 1])?;
                        let bias = self.reshaped(name, "shift", bias, &[channels, 1, 1])?;
                        inputs = vec![self.node(name, "scaled", "Mul", vec![image, weight], vec![]), bias];
                        ("Add", vec![])
                    }
                    _ => {
                        inputs = vec![normal, self.constant(name, "shape", &Tensor::f_from_slice(&shape)?)?];
                        ("Reshape", vec![])
                    }
                }
            }
            Op::LayerNorm(l) => {
                let one = Tensor::f_ones(&l.normalized_shape, (Kind::Float, tch::Device::Cpu))?;
                inputs.push(tensor("weight").map_or_else(|| self.constant(name, "weight", &one), Ok)?);
                inputs.extend(tensor("bias"));
                let axis = -(l.normalized_shape.len() as i64);
                ("LayerNormalization", vec![int("axis", axis), float("epsilon", NORM_EPS)])
            }
            Op::Activation(Function::Relu) => ("Relu", vec![]),
            Op::Activation(Function::LeakyRelu(slope)) => ("LeakyRelu", vec![float("alpha", *slope)]),
            Op::Activation(Function::Tanh) => ("Tanh", vec![]),
            Op::Activation(Function::Sigmoid) => ("Sigmoid", vec![]),
            Op::Activation(Function::Silu) => {
                inputs.push(self.node(name, "gate", "Sigmoid", vec![x], vec![]));
                ("Mul", vec![])
            }
            Op::Activation(Function::ContinuousBernoulliMean) => {
                inputs = self.continuous_bernoulli_mean(name, &x)?;
                ("Where", vec![])
            }
            Op::Add => ("Add", vec![]),
            Op::Multiply => ("Mul", vec![]),
            Op::Affine { scale, shift } => {
                let scale = self.constant(name, "scale", &Tensor::from(*scale as f32))?;
                let shift = self.constant(name, "shift", &Tensor::from(*shift as f32))?;
                inputs = vec![self.node(name, "scaled", "Mul", vec![x, scale], vec![]), shift];
                ("Add", vec![])
            }
            Op::Concat => ("Concat", vec![int("axis", 1)]),
            Op::Embedding(_) => {
                inputs = tensor("weight").into_iter().chain([x]).collect();
                ("Gather", vec![int("axis", 0)])
            }
            Op::Upsample => {
                // With the operator's default, half-pixel centres.
                let scales = Tensor::f_from_slice(&[1.0f32, 1.0, 2.0, 2.0])?;
                inputs.extend([String::new(), self.constant(name, "scales", &scales)?]);
                ("Resize", vec![string("mode", "linear")])
            }
            Op::Pad { left, right, top, bottom } => {
                let pads = Tensor::f_from_slice(&[0, 0, *top, *left, 0, 0, *bottom, *right])?;
                inputs.push(self.constant(name, "pads", &pads)?);
                ("Pad", vec![])
            }
            Op::AveragePool(block) => ("AveragePool", vec![ints("kernel_shape", block), ints("strides", block)]),
            Op::MatMul { transpose_a, transpose_b } => {
                let rank = node.dims.len() as i64 + 1;
                let perm: Vec<i64> = (0..rank - 2).chain([rank - 1, rank - 2]).collect();
                for (i, (turn, key)) in [(transpose_a, "a_turned"), (transpose_b, "b_turned")].into_iter().enumerate() {
                    if *turn {
                        inputs[i] =
                            self.node(name, key, "Transpose", vec![inputs[i].clone()], vec![ints("perm", &perm)]);
                    }
                }
                ("MatMul", vec![])
            }
            Op::Softmax => ("Softmax", vec![int("axis", -1)]),
            Op::Reshape(dims) => {
                // 0 takes the input's own first dimension: unlike −1 it tells shape inference that the batch stays the batch.
                let shape = [&[0], dims.as_slice()].concat();
                inputs.push(self.constant(name, "shape", &Tensor::f_from_slice(&shape)?)?);
                ("Reshape", vec![])
            }
        };
        self.push(name, op_type, inputs, attributes, output);
        Ok(())
    }

    /// Adds a constant of an operation, float32 or int64; returns its name.
    fn constant(&mut self, operation: &str, key: &str, value: &Tensor) -> Result<String> {
        let name = format!("{operation}.{key}");
        let (data_type, kind) = match value.kind() {
            Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16 => (data_type::FLOAT, Kind::Float),
            Kind::Int64 => (data_type::INT64, Kind::Int64),
            other => bail!("{name} is of type {other:?}, and an ONNX export takes floating point and Int64"),
        };
        let mut bytes = vec![0; value.numel() * kind.elt_size_in_bytes()];
        // sync: on its way to a file. Little-endian, as every machine that libtorch is built for.
        value.detach().f_to_kind(kind)?.f_copy_data_u8(&mut bytes, value.numel())?;
        let raw_data = Some(bytes.into());
        self.constants.push(TensorProto { dims: value.size(), data_type, name: name.clone(), raw_data });
        Ok(name)
    }

    /// Adds a constant vector of one number.
    fn filled(&mut self, operation: &str, key: &str, width: i64, value: f64) -> Result<String> {
        self.constant(operation, key, &Tensor::f_full([width], value, (Kind::Float, tch::Device::Cpu))?)
    }

    /// Adds a reshape on the way to an operation's result; 0 keeps a dimension.
    fn reshaped(&mut self, operation: &str, key: &str, input: String, dims: &[i64]) -> Result<String> {
        let shape = self.constant(operation, &format!("{key}_shape"), &Tensor::f_from_slice(dims)?)?;
        Ok(self.node(operation, key, "Reshape", vec![input, shape], vec![]))
    }

    /// Adds a node on the way to an operation's result; returns the name of what comes out.
    fn node(
        &mut self,
        operation: &str,
        key: &str,
        op_type: &str,
        input: Vec<String>,
        attribute: Vec<AttributeProto>,
    ) -> String {
        let (name, output) = (format!("{operation}.{key}"), format!("{operation}.{key}.output"));
        self.push(&name, op_type, input, attribute, &output);
        output
    }

    /// The inputs of the Where that is [`Function::ContinuousBernoulliMean`].
    fn continuous_bernoulli_mean(&mut self, name: &str, x: &str) -> Result<Vec<String>> {
        let constant = |this: &mut Self, key: &str, v: f64| this.constant(name, key, &Tensor::from(v as f32));
        let [a, b, c] = CB_SERIES;
        let (one, half, below) =
            (constant(self, "one", 1.0)?, constant(self, "half", 0.5)?, constant(self, "below", CB_SERIES_BELOW)?);
        let (a, b, c) = (constant(self, "a", a)?, constant(self, "b", b)?, constant(self, "c", c)?);
        let mut node = |key: &str, op: &str, of: &[&str]| {
            self.node(name, key, op, of.iter().map(|s| (*s).to_owned()).collect(), vec![])
        };
        let size = node("size", "Abs", &[x]);
        let small = node("small", "Less", &[&size, &below]);
        let far = node("far", "Where", &[&small, &one, x]);
        let minus = node("minus", "Neg", &[&far]);
        let exp = node("exp", "Exp", &[&minus]);
        let rest = node("rest", "Sub", &[&one, &exp]);
        let (first, second) = (node("first", "Reciprocal", &[&rest]), node("second", "Reciprocal", &[&far]));
        let formula = node("formula", "Sub", &[&first, &second]);
        let square = node("square", "Mul", &[x, x]);
        let fifth = node("fifth", "Mul", &[&square, &c]);
        let inner = node("inner", "Add", &[&fifth, &b]);
        let inner = node("inner_square", "Mul", &[&inner, &square]);
        let inner = node("with_first", "Add", &[&inner, &a]);
        let odd = node("odd", "Mul", &[&inner, x]);
        let series = node("series", "Add", &[&odd, &half]);
        Ok(vec![small, series, formula])
    }

    fn push(&mut self, name: &str, op_type: &str, input: Vec<String>, attribute: Vec<AttributeProto>, output: &str) {
        self.nodes.push(NodeProto {
            input,
            output: vec![output.to_owned()],
            name: name.to_owned(),
            op_type: op_type.to_owned(),
            attribute,
            domain: String::new(),
        });
    }
}

/// The settings of a convolution, either way.
fn conv_attributes(spec: ConvSpec) -> Vec<AttributeProto> {
    let mut all = vec![
        ints("kernel_shape", &[spec.kernel; 2]),
        ints("pads", &[spec.padding; 4]),
        ints("strides", &[spec.stride; 2]),
    ];
    if spec.groups > 1 {
        all.push(int("group", spec.groups));
    }
    all
}

fn float(name: &str, value: f64) -> AttributeProto {
    let r#type = attribute_type::FLOAT;
    AttributeProto { name: name.to_owned(), f: Some(value as f32), r#type, ..Default::default() }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), i: Some(value), r#type: attribute_type::INT, ..Default::default() }
}

fn string(name: &str, value: &'static str) -> AttributeProto {
    let s = Some(value.as_bytes().into());
    AttributeProto { name: name.to_owned(), s, r#type: attribute_type::STRING, ..Default::default() }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    let r#type = attribute_type::INTS;
    AttributeProto { name: name.to_owned(), ints: values.to_vec(), r#type, ..Default::default() }
}

/// A port as ONNX describes it: float32, or int64 class numbers.
fn port_info(port: &Port) -> ValueInfoProto {
    let elem_type = if port.classes.is_some() { data_type::INT64 } else { data_type::FLOAT };
    let range = port.range.map_or_else(String::new, |(low, high)| format!(", from {low} to {high}"));
    value_info(port.name.to_owned(), elem_type, &port.dims, format!("{}{range}", port.about))
}

/// A value [batch,dims].
fn value_info(name: String, elem_type: i32, dims: &[i64], doc_string: String) -> ValueInfoProto {
    let batch = DimensionProto { dim_value: None, dim_param: Some(BATCH.to_owned()) };
    let fixed = dims.iter().map(|&d| DimensionProto { dim_value: Some(d), dim_param: None });
    let shape = TensorShapeProto { dim: [batch].into_iter().chain(fixed).collect() };
    let tensor = TensorTypeProto { elem_type, shape: Some(shape) };
    ValueInfoProto { name, r#type: Some(TypeProto { tensor_type: Some(tensor) }), doc_string }
}

#[cfg(test)]
mod tests;
