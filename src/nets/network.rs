//! A trained network as exports see it: named operations from one input to its outputs.

use anyhow::Result;
use tch::Tensor;
use tch::nn;

use super::{Activation, Layer, Net};

/// Names of networks: the first part of a model's keys, and the names of exported files.
pub const NETWORKS: [&str; 4] = ["encoder", "decoder", "generator", "discriminator"];

/// One operation on a batch, of a closed set that every export format knows; all in evaluation mode.
#[derive(Debug)]
pub enum Operation<'a> {
    /// [B,in] -> [B,out].
    Linear(&'a nn::Linear),
    /// 4×4, stride 2, padding 1: [B,in,H,W] -> [B,out,H/2,W/2].
    Conv(&'a nn::Conv2D),
    /// 4×4 transposed, stride 2, padding 1: [B,in,H,W] -> [B,out,2H,2W].
    ConvTranspose(&'a nn::ConvTranspose2D),
    /// Batch normalisation by the running statistics: epsilon [`super::BN_EPS`], momentum [`super::BN_MOMENTUM`].
    BatchNorm(&'a nn::BatchNorm),
    /// Elementwise.
    Activation(Activation),
    /// 1 / (1 + e^−x), elementwise.
    Sigmoid,
    /// x·scale + shift, elementwise.
    Affine {
        /// Factor.
        scale: f64,
        /// Added after it.
        shift: f64,
    },
    /// [B,...] -> [B,C,H,W].
    Reshape([i64; 3]),
    /// [B,C,H,W] -> [B,C·H·W].
    Flatten,
    /// [B,1] -> [B].
    Squeeze,
}

/// An operation and its name, which is also the path of its tensors.
pub type Named<'a> = (String, Operation<'a>);

/// What goes in or comes out: B is the first dimension, of any size.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Its name in every format.
    pub name: &'static str,
    /// The dimensions after B.
    pub dims: Vec<i64>,
    /// Least and greatest value, where there are such.
    pub range: Option<(f64, f64)>,
    /// What it is, for people.
    pub about: &'static str,
}

/// The live network, given one batch.
pub type Live<'a> = Box<dyn Fn(&Tensor) -> Result<Vec<Tensor>> + 'a>;

/// One network of a model.
pub struct Network<'a> {
    /// One of [`NETWORKS`].
    pub name: &'static str,
    /// What it takes.
    pub input: Port,
    /// The operations that all outputs share, in order.
    pub trunk: Vec<Named<'a>>,
    /// What it gives, each by the operations that follow the trunk.
    pub outputs: Vec<(Port, Vec<Named<'a>>)>,
    /// The network itself: the input -> the outputs, to compare exports with.
    pub live: Live<'a>,
}

impl Network<'_> {
    /// Parameters and buffers with their keys (`fc1.weight`), in the order of the operations; whether each is a parameter.
    pub fn tensors(&self) -> Vec<(String, Tensor, bool)> {
        let mut all = Vec::new();
        for (name, op) in self.trunk.iter().chain(self.outputs.iter().flat_map(|(_, ops)| ops)) {
            for (key, t, parameter) in op.tensors() {
                all.push((format!("{name}.{key}"), t.shallow_clone(), parameter));
            }
        }
        all
    }
}

impl Operation<'_> {
    /// The tensors by their PyTorch names within the layer; whether each is a parameter, else it is a buffer.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor, bool)> {
        let (weight, bias) = match self {
            Operation::Linear(l) => (Some(&l.ws), l.bs.as_ref()),
            Operation::Conv(l) => (Some(&l.ws), l.bs.as_ref()),
            Operation::ConvTranspose(l) => (Some(&l.ws), l.bs.as_ref()),
            Operation::BatchNorm(l) => (l.ws.as_ref(), l.bs.as_ref()),
            _ => (None, None),
        };
        let mut all: Vec<_> =
            [("weight", weight), ("bias", bias)].into_iter().filter_map(|(k, t)| Some((k, t?, true))).collect();
        if let Operation::BatchNorm(l) = self {
            all.push(("running_mean", &l.running_mean, false));
            all.push(("running_var", &l.running_var, false));
        }
        all
    }
}

impl Net {
    /// The layers as operations.
    pub fn operations(&self) -> Vec<Named<'_>> {
        self.layers.iter().map(|(name, layer)| (name.clone(), layer.operation())).collect()
    }
}

impl Layer {
    fn operation(&self) -> Operation<'_> {
        match self {
            Layer::Linear(l) => Operation::Linear(l),
            Layer::Conv(l) => Operation::Conv(l),
            Layer::ConvTranspose(l) => Operation::ConvTranspose(l),
            Layer::BatchNorm(l) => Operation::BatchNorm(l),
            Layer::Activation(a) => Operation::Activation(*a),
            Layer::Reshape(dims) => Operation::Reshape(*dims),
            Layer::Flatten => Operation::Flatten,
        }
    }
}
