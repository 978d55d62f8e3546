//! A network as a graph of named operations, which [`Builder`] makes.
//!
//! A network is built once. Four places match on its operations: the forward pass (`forward.rs`), shapes and flops (`cost.rs`),
//! TorchScript and ONNX (`export/`). The name of a node is the path of its parameters, in exports too.

use anyhow::Result;
use tch::Tensor;
use tch::nn;

pub use super::builder::{Builder, Init, built_for};
use super::compute::Compute;
use super::spectral::SpectralNorm;
pub use crate::native::ConvSpec;

/// Momentum of the running statistics of batch normalisation: PyTorch's default.
pub const BN_MOMENTUM: f64 = 0.1;
/// ε of every normalisation: PyTorch's default.
pub const NORM_EPS: f64 = 1e-5;

/// A value of a graph: an input or the result of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub(super) usize);

/// Elementwise functions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    /// max(x, 0).
    Relu,
    /// x for x > 0, else this slope times x.
    LeakyRelu(f64),
    /// Hyperbolic tangent.
    Tanh,
    /// 1 / (1 + e^−x).
    Sigmoid,
    /// x·sigmoid(x).
    Silu,
    /// 1 / (1 − e^−x) − 1/x, in (0,1): the mean of a continuous Bernoulli distribution with the logit x. A series where |x| is below
    /// [`CB_SERIES_BELOW`].
    ContinuousBernoulliMean,
}

/// |x| below which [`Function::ContinuousBernoulliMean`] is ½ + x/12 − x³/720 + x⁵/30240, to 7e-9.
pub const CB_SERIES_BELOW: f64 = 0.5;
/// The coefficients of that series: of x, of x³ and of x⁵.
pub const CB_SERIES: [f64; 3] = [1.0 / 12.0, -1.0 / 720.0, 1.0 / 30_240.0];

/// A convolution with its weights: [O, I/groups, k, k], transposed [I, O/groups, k, k].
#[derive(Debug)]
pub struct ConvLayer {
    /// The kernels.
    pub weight: Tensor,
    /// [O].
    pub bias: Option<Tensor>,
    /// The rest.
    pub spec: ConvSpec,
}

impl ConvLayer {
    /// Channels of the output.
    pub fn out_channels(&self) -> i64 {
        let size = self.weight.size();
        if self.spec.transposed { size[1] * self.spec.groups } else { size[0] }
    }
}

/// One operation on a batch. Shapes omit the batch dimension, which is always the first.
#[derive(Debug)]
pub enum Op {
    /// [..., in] -> [..., out].
    Linear(nn::Linear),
    /// [I,H,W] -> [O,H',W'].
    Conv(ConvLayer),
    /// Over B, H and W of each channel; running statistics in evaluation mode.
    BatchNorm(nn::BatchNorm),
    /// Over H, W and the channels of a group, per image.
    GroupNorm(nn::GroupNorm),
    /// Over the last dimension.
    LayerNorm(nn::LayerNorm),
    /// Elementwise.
    Activation(Function),
    /// a + b, with broadcasting.
    Add,
    /// a · b, elementwise, with broadcasting.
    Multiply,
    /// x·scale + shift.
    Affine {
        /// Factor.
        scale: f64,
        /// Offset.
        shift: f64,
    },
    /// Along the first dimension after the batch.
    Concat,
    /// Class numbers [] (int64) -> [width]; in [`Graph::forward`] also weights of the classes [K] (float32) -> the weighted sum.
    Embedding(nn::Embedding),
    /// [C,H,W] -> [C,2H,2W], bilinear, with pixels as squares (PyTorch's align_corners=False).
    Upsample,
    /// [C,H,W] -> [C,H/k,W/l], means over blocks of k×l pixels.
    AveragePool([i64; 2]),
    /// [C,H,W] -> [C,H+top+bottom,W+left+right]: rows and columns of zeros around the image; negative numbers remove some.
    Pad {
        /// Columns.
        left: i64,
        /// Columns.
        right: i64,
        /// Rows.
        top: i64,
        /// Rows.
        bottom: i64,
    },
    /// [...,M,K] · [...,K,N] -> [...,M,N]; either may be transposed first.
    MatMul {
        /// Whether a is given as [...,K,M].
        transpose_a: bool,
        /// Whether b is given as [...,N,K].
        transpose_b: bool,
    },
    /// Over the last dimension.
    Softmax,
    /// To these dimensions after the batch.
    Reshape(Vec<i64>),
}

impl Op {
    /// Parameters and buffers by their PyTorch names; true for a parameter, false for a buffer.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor, bool)> {
        let (weight, bias) = match self {
            Op::Linear(l) => (Some(&l.ws), l.bs.as_ref()),
            Op::Conv(l) => (Some(&l.weight), l.bias.as_ref()),
            Op::BatchNorm(l) => (l.ws.as_ref(), l.bs.as_ref()),
            Op::GroupNorm(l) => (l.ws.as_ref(), l.bs.as_ref()),
            Op::LayerNorm(l) => (l.ws.as_ref(), l.bs.as_ref()),
            Op::Embedding(l) => (Some(&l.ws), None),
            _ => (None, None),
        };
        let mut all: Vec<_> =
            [("weight", weight), ("bias", bias)].into_iter().filter_map(|(k, t)| Some((k, t?, true))).collect();
        if let Op::BatchNorm(l) = self {
            all.push(("running_mean", &l.running_mean, false));
            all.push(("running_var", &l.running_var, false));
        }
        all
    }
}

/// An operation in a graph.
#[derive(Debug)]
pub struct Node {
    /// Unique; also the path of its parameters.
    pub name: String,
    /// The operation.
    pub op: Op,
    /// Its inputs.
    pub inputs: Vec<Value>,
    /// Dimensions of the result after the batch.
    pub dims: Vec<i64>,
    /// Spectral normalisation of its weights.
    pub spectral: Option<SpectralNorm>,
}

impl Node {
    /// Parameters and buffers for use without training, by their PyTorch names; true for a parameter. Spectral normalisation is in the
    /// weight.
    ///
    /// # Errors
    /// libtorch's.
    pub fn tensors(&self) -> Result<Vec<(&'static str, Tensor, bool)>> {
        let of = |(key, t, parameter): (&'static str, &Tensor, bool)| {
            let t = match &self.spectral {
                Some(spectral) if key == "weight" => tch::no_grad(|| spectral.normalise(t, false))?,
                _ => t.shallow_clone(),
            };
            Ok((key, t, parameter))
        };
        self.op.tensors().into_iter().map(of).collect()
    }
}

/// An input or output of a network. The batch is its first dimension, of any size.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Its name in every export format.
    pub name: &'static str,
    /// The dimensions after the batch.
    pub dims: Vec<i64>,
    /// Smallest and largest value, if bounded.
    pub range: Option<(f64, f64)>,
    /// Number of classes, for int64 class numbers; none for float32.
    pub classes: Option<i64>,
    /// Description.
    pub about: &'static str,
}

impl Port {
    /// Unbounded float32 values.
    pub fn new(name: &'static str, dims: &[i64], about: &'static str) -> Self {
        Port { name, dims: dims.to_vec(), range: None, classes: None, about }
    }

    /// Images [C,H,W] in [0,1].
    pub fn images(name: &'static str, dims: &[i64], about: &'static str) -> Self {
        Port { range: Some((0.0, 1.0)), ..Port::new(name, dims, about) }
    }

    /// Class numbers [] from 0 to `classes` − 1.
    pub fn labels(name: &'static str, classes: i64) -> Self {
        Port { classes: Some(classes), ..Port::new(name, &[], "class numbers") }
    }
}

/// A network: named operations from inputs to outputs.
#[derive(Debug)]
pub struct Graph {
    pub(super) name: &'static str,
    pub(super) inputs: Vec<Port>,
    pub(super) nodes: Vec<Node>,
    pub(super) outputs: Vec<(Port, Value)>,
    /// Nodes from this one on (the heads) are computed in float32 in every precision.
    pub(super) float32_from: usize,
    /// Compute options.
    pub compute: Compute,
}

impl Graph {
    /// Name of the network (`encoder`): the first part of its keys and the name of its exports.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The inputs.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// The operations in topological order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The outputs and their values.
    pub fn outputs(&self) -> &[(Port, Value)] {
        &self.outputs
    }

    /// Input number `i` of the graph.
    pub fn input(&self, i: usize) -> Value {
        Value(i)
    }

    /// Result of node number `i`.
    pub fn result(&self, i: usize) -> Value {
        Value(self.inputs.len() + i)
    }

    /// Index of the node that computes `value`; none for an input.
    pub fn node_of(&self, value: Value) -> Option<usize> {
        value.0.checked_sub(self.inputs.len())
    }

    /// Dimensions of a value after the batch.
    pub fn dims(&self, value: Value) -> &[i64] {
        match self.node_of(value) {
            Some(i) => &self.nodes[i].dims,
            None => &self.inputs[value.0].dims,
        }
    }

    /// Number of readers of each value when computing `outputs`; an output counts as a reader itself; 0 for unused values.
    pub(super) fn readers(&self, outputs: &[Value]) -> Vec<u32> {
        let first = self.inputs.len();
        let mut readers = vec![0; first + self.nodes.len()];
        outputs.iter().for_each(|v| readers[v.0] += 1);
        for (i, node) in self.nodes.iter().enumerate().rev() {
            if readers[first + i] > 0 {
                node.inputs.iter().for_each(|v| readers[v.0] += 1);
            }
        }
        readers
    }

    /// The nodes that the outputs depend on, in order, each with its result.
    pub fn needed(&self) -> Vec<(Value, &Node)> {
        let outputs: Vec<Value> = self.outputs.iter().map(|(_, v)| *v).collect();
        let readers = self.readers(&outputs);
        let all = self.nodes.iter().enumerate().map(|(i, node)| (self.result(i), node));
        all.filter(|(value, _)| readers[value.0] > 0).collect()
    }

    /// Parameters and buffers of the nodes that the outputs depend on ([`Node::tensors`]) with their keys (`fc1.weight`), in the order of
    /// the nodes; true for a parameter.
    ///
    /// # Errors
    /// libtorch's.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor, bool)>> {
        let mut all = Vec::new();
        for (_, node) in self.needed() {
            let keyed = |(key, t, parameter)| (format!("{}.{key}", node.name), t, parameter);
            all.extend(node.tensors()?.into_iter().map(keyed));
        }
        Ok(all)
    }

    /// Finds the singular vectors of spectral normalisation after weights have been loaded without them.
    ///
    /// # Errors
    /// libtorch's.
    pub fn find_singular_vectors(&self) -> Result<()> {
        for node in &self.nodes {
            if let (Some(spectral), Some((_, weight, _))) = (&node.spectral, node.op.tensors().first()) {
                spectral.find(weight)?;
            }
        }
        Ok(())
    }

    /// Whether the graph has batch normalisation, so that two batches must not share one pass.
    pub fn has_batch_norm(&self) -> bool {
        self.nodes.iter().any(|node| matches!(node.op, Op::BatchNorm(_)))
    }
}
