//! A network as TorchScript source: what `torch.jit.load` compiles again.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;

use crate::native::{self, Submodule};
use crate::nets::{Activation, BN_EPS, BN_MOMENTUM, LEAK, Named, Network, Operation};

/// Writes `network` as a TorchScript module whose sub-modules, parameters and buffers have PyTorch's names, with `description`
/// among its extra files as `ganvae.json`.
///
/// # Errors
/// libtorch's, when the file cannot be written.
pub fn write(network: &Network, description: &str, path: &Path) -> Result<()> {
    let all = network.trunk.iter().chain(network.outputs.iter().flat_map(|(_, ops)| ops));
    let parts: Vec<Submodule> = all.filter_map(|(name, op)| part(name, op)).collect();
    let class = network.name[..1].to_uppercase() + &network.name[1..];
    native::save_script(path, &class, description, &methods(network), &parts, &network.tensors())
}

/// The sub-module of an operation that has tensors.
fn part(name: &str, op: &Operation) -> Option<Submodule> {
    let bias = if op.tensors().iter().any(|(key, ..)| *key == "bias") { "self.bias" } else { "None" };
    let (kind, result) = match op {
        Operation::Linear(_) => ("Linear", format!("torch.linear(x, self.weight, {bias})")),
        Operation::Conv(_) => ("Conv2d", format!("torch.conv2d(x, self.weight, {bias}, [2, 2], [1, 1], [1, 1], 1)")),
        Operation::ConvTranspose(_) => (
            "ConvTranspose2d",
            format!("torch.conv_transpose2d(x, self.weight, {bias}, [2, 2], [1, 1], [0, 0], 1, [1, 1])"),
        ),
        Operation::BatchNorm(_) => (
            "BatchNorm2d",
            // In training mode statistics are the batch's, and the running ones follow, as in PyTorch: for fine-tuning.
            format!(
                "torch.batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var, self.training, {BN_MOMENTUM:?}, \
                 {BN_EPS:?}, True)"
            ),
        ),
        _ => return None,
    };
    Some(Submodule { name: name.to_owned(), kind, methods: format!("def forward(self, x):\n  return {result}\n") })
}

/// `forward` of the whole.
fn methods(network: &Network) -> String {
    let input = network.input.name;
    let mut text = format!("def forward(self, {input}):\n  h = {input}\n");
    apply(&mut text, "h", "h", &network.trunk);
    for (port, ops) in &network.outputs {
        // The shared result stays as it is for the next output.
        let out = port.name;
        apply(&mut text, "h", &format!("out_{out}"), ops);
    }
    let outs: Vec<_> = network.outputs.iter().map(|(port, _)| format!("out_{}", port.name)).collect();
    let result = match outs.as_slice() {
        [one] => one.clone(),
        several => format!("({})", several.join(", ")),
    };
    let _ = writeln!(text, "  return {result}");
    text
}

/// Lines that take `from` through `ops` into `to`.
fn apply(text: &mut String, from: &str, to: &str, ops: &[Named]) {
    let mut x = from;
    for (name, op) in ops {
        let result = match op {
            Operation::Linear(_) | Operation::Conv(_) | Operation::ConvTranspose(_) | Operation::BatchNorm(_) => {
                format!("self.{name}.forward({x})")
            }
            Operation::Activation(Activation::Relu) => format!("torch.relu({x})"),
            Operation::Activation(Activation::LeakyRelu) => format!("torch.leaky_relu({x}, {LEAK:?})"),
            Operation::Activation(Activation::Tanh) => format!("torch.tanh({x})"),
            Operation::Sigmoid => format!("torch.sigmoid({x})"),
            Operation::Affine { scale, shift } => format!("{x} * {scale:?} + {shift:?}"),
            Operation::Reshape([c, h, w]) => format!("torch.reshape({x}, [-1, {c}, {h}, {w}])"),
            Operation::Flatten => format!("torch.flatten({x}, 1)"),
            Operation::Squeeze => format!("torch.squeeze({x}, 1)"),
        };
        let _ = writeln!(text, "  {to} = {result}");
        x = to;
    }
    if ops.is_empty() && from != to {
        let _ = writeln!(text, "  {to} = {from}");
    }
}
