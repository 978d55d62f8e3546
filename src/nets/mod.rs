//! Networks as lists of a closed set of layers, built with PyTorch's initialisation.
//!
//! Two families cover every model: [`features`] turns an image into a vector (encoder, discriminator), [`synthesis`] turns a vector into an image (decoder, generator). Each architecture is one
//! file here that knows both. Variable paths (`fc1.weight`, `conv2.bias`, ...) are explicit and unique: exports carry them.

mod conv;
mod cost;
mod kernels;
mod mlp;
mod network;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::nn::{self, Path};
use tch::{Kind, Tensor};

pub use crate::base::shape::Shape;
use crate::native;
pub use crate::native::MatmulBackend;
pub use cost::{Op, Pass, Work, training};
pub use kernels::{Forms, Kernels, Layout, Precision};
pub use network::{Live, NETWORKS, Named, Network, Operation, Port};

/// The architectures there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arch {
    /// Fully connected layers; images of any size.
    Mlp,
    /// Strided 4×4 convolutions after DCGAN (Radford et al. 2016, arXiv 1511.06434); sides must halve evenly.
    Conv,
}

/// What follows each hidden layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// x for x > 0, else 0.2·x (the slope of DCGAN, arXiv 1511.06434, section 3).
    LeakyRelu,
    /// Hyperbolic tangent.
    Tanh,
}

/// Slope of [`Activation::LeakyRelu`].
pub const LEAK: f64 = 0.2;

impl Activation {
    /// Slope for x ≤ 0 of those that are straight on both sides.
    fn slope(self) -> Option<f64> {
        match self {
            Activation::Relu => Some(0.0),
            Activation::LeakyRelu => Some(LEAK),
            Activation::Tanh => None,
        }
    }

    /// Applied in place: the input is a layer's fresh output that nothing else reads, and each of the three keeps only
    /// its result for the backward pass.
    fn apply(self, mut x: Tensor) -> Result<Tensor> {
        Ok(match self {
            Activation::Relu => x.f_relu_()?,
            Activation::LeakyRelu => native::leaky_relu(x, LEAK)?,
            Activation::Tanh => x.f_tanh_()?,
        })
    }
}

/// How weights start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// PyTorch's defaults: weights and biases from U(±1/√fan_in) (Kaiming-uniform with a = √5), BatchNorm 1 and 0.
    /// Differs: tch's own defaults, whose weights are √6 times wider and whose BatchNorm scale is random.
    PyTorch,
    /// DCGAN (arXiv 1511.06434, section 3): weights from N(0, 0.02), biases 0, BatchNorm 1 and 0.
    Dcgan,
}

/// What a network is made of, apart from what goes in and out.
#[derive(Clone, Debug, PartialEq)]
pub struct NetSpec {
    /// Family of layers.
    pub arch: Arch,
    /// Widths of the fully connected hidden layers: all of them for an MLP, those between convolutions and vector else.
    pub hidden: Vec<i64>,
    /// Channels of the convolution nearest to the image (convolutional networks only).
    pub base_width: i64,
    /// What follows each hidden layer.
    pub activation: Activation,
    /// Batch normalisation where DCGAN has it (convolutional networks only).
    pub batch_norm: bool,
    /// How weights start.
    pub init: Init,
}

/// One layer of the closed set that exports know.
#[derive(Debug)]
pub enum Layer {
    /// [B,in] -> [B,out].
    Linear(nn::Linear),
    /// 4×4, stride 2, padding 1: [B,in,H,W] -> [B,out,H/2,W/2].
    Conv(nn::Conv2D),
    /// 4×4 transposed, stride 2, padding 1: [B,in,H,W] -> [B,out,2H,2W].
    ConvTranspose(nn::ConvTranspose2D),
    /// Batch normalisation over B, H and W: epsilon 1e-5, momentum 0.1.
    BatchNorm(nn::BatchNorm),
    /// Elementwise.
    Activation(Activation),
    /// [B,...] -> [B,C,H,W].
    Reshape([i64; 3]),
    /// [B,C,H,W] -> [B,C·H·W].
    Flatten,
}

impl Layer {
    /// `slope` is that of the activation taken into the layer; 1 is none.
    fn forward(&self, x: Tensor, mode: Mode, forms: Forms, slope: f64) -> Result<Tensor> {
        Ok(match self {
            Layer::Linear(l) => forms.linear(&x, &l.ws, l.bs.as_ref(), slope)?,
            Layer::Conv(l) => forms.conv(x, &l.ws, l.bs.as_ref(), slope)?,
            Layer::ConvTranspose(l) => forms.conv_transpose(x, &l.ws, l.bs.as_ref(), slope)?,
            Layer::BatchNorm(l) => {
                let (mean, var) = (mode != Mode::Batch).then_some((&l.running_mean, &l.running_var)).unzip();
                let training = mode != Mode::Eval;
                x.f_batch_norm(l.ws.as_ref(), l.bs.as_ref(), mean, var, training, BN_MOMENTUM, BN_EPS, true)?
            }
            Layer::Activation(a) => a.apply(x)?,
            Layer::Reshape([c, h, w]) => x.f_reshape([-1, *c, *h, *w])?, // [B,C,H,W]
            Layer::Flatten => forms.flatten(&x)?,                        // [B,C·H·W]
        })
    }

    /// Whether an activation may be taken into the layer.
    fn has_kernel(&self) -> bool {
        matches!(self, Layer::Linear(_) | Layer::Conv(_) | Layer::ConvTranspose(_) | Layer::BatchNorm(_))
    }
}

/// Weight of a batch in the running statistics of batch normalisation: PyTorch's.
pub const BN_MOMENTUM: f64 = 0.1;
/// Added to the variance by batch normalisation: PyTorch's.
pub const BN_EPS: f64 = 1e-5;

/// Where batch normalisation takes its statistics from; no other layer cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// From the batch, and the running ones follow.
    Train,
    /// From the batch, as in training, but nothing is changed.
    Batch,
    /// The running ones: each image by itself.
    Eval,
}

/// Layers in the order in which they run.
#[derive(Debug, Default)]
pub struct Net {
    layers: Vec<(String, Layer)>,
    /// How the layers are computed.
    pub forms: Forms,
}

impl Net {
    /// Runs every layer; the result is float32, whatever the layers are computed in.
    ///
    /// # Errors
    /// libtorch's, when x is not of the shape that the network was built for or memory ends.
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        match self.forms.precision {
            Precision::Fp32 | Precision::Tf32 => self.run(x, mode),
            Precision::Bf16 => Ok(native::autocast(x.device(), || self.run(x, mode))?.f_to_kind(Kind::Float)?),
        }
    }

    fn run(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut x = x.shallow_clone();
        let mut layers = self.layers.as_slice();
        while let Some(((name, layer), rest)) = layers.split_first() {
            let shape = x.size();
            let fused = self.fused(&x, layer, rest, mode);
            layers = if fused.is_some() { &rest[1..] } else { rest };
            x = layer
                .forward(x, mode, self.forms, fused.unwrap_or(1.0))
                .with_context(|| format!("layer {name}, given {shape:?}"))?;
        }
        Ok(x)
    }

    /// The slope of the activation that follows, where the layer takes it into its own kernel.
    fn fused(&self, x: &Tensor, layer: &Layer, rest: &[(String, Layer)], mode: Mode) -> Option<f64> {
        let Some((_, Layer::Activation(activation))) = rest.first() else { return None };
        let eval_norm = mode == Mode::Eval && matches!(layer, Layer::BatchNorm(_));
        (layer.has_kernel() && !eval_norm && self.forms.fuses(x, layer)).then(|| activation.slope())?
    }

    /// Whether any layer mixes the images of a batch, so that two batches may not share one pass.
    pub fn has_batch_norm(&self) -> bool {
        self.layers.iter().any(|(_, l)| matches!(l, Layer::BatchNorm(_)))
    }

    fn push(&mut self, name: impl Into<String>, layer: Layer) {
        self.layers.push((name.into(), layer));
    }
}

/// An image-to-vector network under `path`: x [B,C,H,W] -> features [B,F]; also returns F.
///
/// # Errors
/// When the architecture cannot take images of this shape; the sentence names the shape and what would fit.
pub fn features(path: &Path, shape: Shape, spec: &NetSpec) -> Result<(Net, i64)> {
    check_widths(spec)?;
    match spec.arch {
        Arch::Mlp => mlp::features(path, shape, spec),
        Arch::Conv => conv::features(path, shape, spec),
    }
}

/// A vector-to-image network under `path`: z [B,Z] -> [B,C,H,W], no activation on the output.
///
/// # Errors
/// As [`features`].
pub fn synthesis(path: &Path, latent: i64, shape: Shape, spec: &NetSpec) -> Result<Net> {
    check_widths(spec)?;
    match spec.arch {
        Arch::Mlp => mlp::synthesis(path, latent, shape, spec),
        Arch::Conv => conv::synthesis(path, latent, shape, spec),
    }
}

fn check_widths(spec: &NetSpec) -> Result<()> {
    let widths = spec.hidden.iter().chain([&spec.base_width]);
    for &width in widths {
        ensure!(width > 0, "a layer of width {width} cannot exist: widths are 1 or more");
    }
    Ok(())
}

/// A fully connected layer `name`: [B,fan_in] -> [B,fan_out].
///
/// # Errors
/// When it would have more weights than any machine this is for could train.
pub fn linear(path: &Path, name: &str, fan_in: i64, fan_out: i64, bias: bool, init: Init) -> Result<nn::Linear> {
    check_weights(name, &[fan_in, fan_out])?;
    let (ws_init, bs_init) = starts(init, fan_in);
    let config = nn::LinearConfig { ws_init, bs_init: Some(bs_init), bias };
    Ok(nn::linear(path / name, fan_in, fan_out, config))
}

/// The hidden layers `fc1`, `fc2`, ... in turn, each with its activation; returns the last width.
fn dense_stack(net: &mut Net, path: &Path, from: i64, spec: &NetSpec) -> Result<i64> {
    let mut fan_in = from;
    for (i, &width) in spec.hidden.iter().enumerate() {
        let name = format!("fc{}", i + 1);
        let layer = linear(path, &name, fan_in, width, true, spec.init)?;
        net.push(name, Layer::Linear(layer));
        net.push(format!("act{}", i + 1), Layer::Activation(spec.activation));
        fan_in = width;
    }
    Ok(fan_in)
}

/// Refuses a layer of more than 2^31 weights (8 GB, and Adam keeps three more of them) before it is asked of the allocator.
fn check_weights(name: &str, dims: &[i64]) -> Result<()> {
    let weights = dims.iter().try_fold(1i64, |a, &b| a.checked_mul(b)).unwrap_or(i64::MAX);
    ensure!(
        weights <= 1 << 31,
        "the layer {name} would have {} weights: choose smaller --base-width, hidden widths, --latent or --image-size",
        dims.iter().map(i64::to_string).collect::<Vec<_>>().join("x")
    );
    Ok(())
}

/// Where weights and biases of a layer with this fan-in start.
fn starts(init: Init, fan_in: i64) -> (nn::Init, nn::Init) {
    match init {
        Init::PyTorch => {
            let up = 1.0 / (fan_in as f64).sqrt();
            let uniform = nn::Init::Uniform { lo: -up, up };
            (uniform, uniform)
        }
        Init::Dcgan => (nn::Init::Randn { mean: 0.0, stdev: 0.02 }, nn::Init::Const(0.0)),
    }
}

#[cfg(test)]
mod tests;
