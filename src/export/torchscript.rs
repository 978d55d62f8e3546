//! A graph as TorchScript source: what `torch.jit.load` compiles again.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::native::{self, Submodule};
use crate::nets::graph::{BN_MOMENTUM, CB_SERIES, CB_SERIES_BELOW, Function, Graph, NORM_EPS, Node, Op, Value};

/// Writes `graph` as a TorchScript module whose sub-modules, parameters and buffers have PyTorch's names, with `description`
/// among its extra files as `ganvae.json`.
///
/// # Errors
/// libtorch's, when the file cannot be written.
pub fn write(graph: &Graph, description: &str, path: &Path) -> Result<()> {
    let names: Vec<&str> = graph.inputs().iter().map(|port| port.name).collect();
    let mut forward = format!("def forward(self, {}):\n", names.join(", "));
    let mut values: HashMap<Value, String> =
        names.iter().enumerate().map(|(i, name)| (graph.input(i), (*name).to_owned())).collect();
    let mut layers = Vec::new();
    for (value, node) in graph.needed() {
        let inputs: Vec<&str> = node.inputs.iter().filter_map(|v| values.get(v).map(String::as_str)).collect();
        let (class, source) = expression(node, &inputs);
        let (name, result) = (&node.name, format!("{}_out", node.name));
        if let Some(kind) = class {
            let _ = writeln!(forward, "  {result} = self.{name}.forward({})", inputs.join(", "));
            layers.push(Submodule {
                name: name.clone(),
                kind,
                methods: format!("def forward(self, x):\n  return {source}\n"),
            });
        } else {
            let _ = writeln!(forward, "  {result} = {source}");
        }
        values.insert(value, result);
    }
    let results: Option<Vec<_>> = graph.outputs().iter().map(|(_, v)| values.get(v).cloned()).collect();
    let results = results.context("an output is of another graph")?.join(", ");
    let _ = if graph.outputs().len() == 1 {
        writeln!(forward, "  return {results}")
    } else {
        writeln!(forward, "  return ({results})")
    };
    let class = graph.name()[..1].to_uppercase() + &graph.name()[1..];
    native::save_script(path, &class, description, &forward, &layers, &graph.tensors()?)
}

/// The result of a node as an expression in its inputs' names; for a layer, whose class is the first value, in its sub-module's `x`.
fn expression(node: &Node, inputs: &[&str]) -> (Option<&'static str>, String) {
    let has = |key: &str| node.op.tensors().iter().any(|(k, ..)| *k == key);
    let own = |key| if has(key) { format!("self.{key}") } else { "None".to_owned() };
    let (weight, bias) = (own("weight"), own("bias"));
    let x = inputs[0];
    let class = match &node.op {
        Op::Linear(_) => "Linear",
        Op::Conv(l) if l.spec.transposed => "ConvTranspose2d",
        Op::Conv(_) => "Conv2d",
        Op::BatchNorm(_) => "BatchNorm2d",
        Op::GroupNorm(_) => "GroupNorm",
        Op::LayerNorm(_) => "LayerNorm",
        Op::Embedding(_) => "Embedding",
        _ => "",
    };
    let source = match &node.op {
        Op::Linear(_) => format!("torch.linear(x, {weight}, {bias})"),
        Op::Conv(l) => {
            let (s, p, groups) = ([l.spec.stride; 2], [l.spec.padding; 2], l.spec.groups);
            if l.spec.transposed {
                format!("torch.conv_transpose2d(x, {weight}, {bias}, {s:?}, {p:?}, [0, 0], {groups}, [1, 1])")
            } else {
                format!("torch.conv2d(x, {weight}, {bias}, {s:?}, {p:?}, [1, 1], {groups})")
            }
        }
        // In training mode statistics are the batch's, and the running ones follow, as in PyTorch: for fine-tuning.
        Op::BatchNorm(_) => format!(
            "torch.batch_norm(x, {weight}, {bias}, self.running_mean, self.running_var, self.training, {BN_MOMENTUM:?}, \
             {NORM_EPS:?}, True)"
        ),
        Op::GroupNorm(l) => format!("torch.group_norm(x, {}, {weight}, {bias}, {NORM_EPS:?}, True)", l.num_groups),
        Op::LayerNorm(l) => {
            format!("torch.layer_norm(x, {:?}, {weight}, {bias}, {NORM_EPS:?}, True)", l.normalized_shape)
        }
        Op::Embedding(_) => format!("torch.embedding({weight}, x)"),
        Op::Activation(Function::Relu) => format!("torch.relu({x})"),
        Op::Activation(Function::LeakyRelu(slope)) => format!("torch.leaky_relu({x}, {slope:?})"),
        Op::Activation(Function::Tanh) => format!("torch.tanh({x})"),
        Op::Activation(Function::Sigmoid) => format!("torch.sigmoid({x})"),
        Op::Activation(Function::Silu) => format!("torch.silu({x})"),
        Op::Activation(Function::ContinuousBernoulliMean) => {
            let ([a, b, c], small) = (CB_SERIES, format!("torch.lt(torch.abs({x}), {CB_SERIES_BELOW:?})"));
            let far = format!("torch.where({small}, torch.ones_like({x}), {x})");
            let formula = format!("-(torch.reciprocal(torch.expm1(-{far})) + torch.reciprocal({far}))");
            let series = format!("{x} * ({x} * {x} * ({x} * {x} * {c:?} + {b:?}) + {a:?}) + 0.5");
            format!("torch.where({small}, {series}, {formula})")
        }
        Op::Add => inputs.join(" + "),
        Op::Multiply => inputs.join(" * "),
        Op::Affine { scale, shift } => format!("{x} * {scale:?} + {shift:?}"),
        Op::Concat => format!("torch.cat([{}], 1)", inputs.join(", ")),
        Op::Upsample => format!("torch.upsample_bilinear2d({x}, {:?}, False)", &node.dims[1..]),
        Op::Pad { left, right, top, bottom } => {
            format!("torch.constant_pad_nd({x}, [{left}, {right}, {top}, {bottom}], 0.0)")
        }
        Op::AveragePool(block) => format!("torch.avg_pool2d({x}, {block:?}, {block:?})"),
        Op::MatMul { transpose_a, transpose_b } => {
            let turned = |x: &str, turn| if turn { format!("torch.transpose({x}, -2, -1)") } else { x.to_owned() };
            format!("torch.matmul({}, {})", turned(x, *transpose_a), turned(inputs[1], *transpose_b))
        }
        Op::Softmax => format!("torch.softmax({x}, -1)"),
        Op::Reshape(dims) => {
            let dims: String = dims.iter().map(|d| format!(", {d}")).collect();
            format!("torch.reshape({x}, [{x}.size(0){dims}])")
        }
    };
    ((!class.is_empty()).then_some(class), source)
}
