//! Networks: graphs of operations, architectures, the forward pass.
//!
//! Every model uses two functions: [`features`] maps an image to a vector (encoder, discriminator), [`synthesis`] maps a vector to
//! an image (decoder, generator). Each architecture has one file with both.

pub mod compute;
mod conv;
pub mod cost;
pub mod forward;
pub mod graph;
mod mlp;

use anyhow::Result;
use clap::ValueEnum;
use toml::Value as Toml;

use crate::base::setting::{Group, Setting, Settings};
pub use crate::base::shape::Shape;
use crate::base::usage::usage;
pub use crate::native::MatmulBackend;
pub use compute::{Compute, Kernels, Layout, Precision};
pub use forward::Mode;
use graph::{Builder, Function, Init, Op, Value};

/// Names of networks: the first part of a model's keys, and the names of exported files.
pub const NETWORKS: [&str; 4] = ["encoder", "decoder", "generator", "discriminator"];

/// The architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// Fully connected layers; images of any size.
    Mlp,
    /// Strided 4×4 convolutions after DCGAN (Radford et al. 2016, arXiv 1511.06434); both sides must be even and at least 8.
    Conv,
}

/// Activation of the hidden layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Activation {
    /// max(x, 0).
    Relu,
    /// x for x > 0, else 0.2·x (the slope of DCGAN, arXiv 1511.06434, section 3).
    LeakyRelu,
    /// Hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// As an operation of a graph.
    pub fn function(self) -> Function {
        match self {
            Activation::Relu => Function::Relu,
            Activation::LeakyRelu => Function::LeakyRelu(0.2),
            Activation::Tanh => Function::Tanh,
        }
    }
}

/// Architecture of a network, without its inputs and outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct NetSpec {
    /// Family of layers.
    pub arch: Arch,
    /// Widths of the fully connected hidden layers: all layers of an MLP, else those between the convolutions and the vector.
    pub hidden: Vec<i64>,
    /// Channels of the convolution next to the image (convolutional networks only).
    pub base_width: i64,
    /// Activation of the hidden layers.
    pub activation: Activation,
    /// Batch normalisation as in DCGAN (convolutional networks only).
    pub batch_norm: bool,
    /// Weight initialisation.
    pub init: Init,
}

/// Architecture of the networks.
pub static ARCH: Setting<Arch> = Setting::choice("arch", "Architecture of the networks");

/// Z.
pub static LATENT: Setting<u64> =
    Setting::whole("latent", "Width of the latent vector z").range(WIDE, width).value_name("DIMENSIONS");

/// See [`NetSpec::base_width`].
pub static BASE_WIDTH: Setting<u64> =
    Setting::whole("base-width", "Channels of the convolution next to the image (--arch conv)")
        .range(WIDE, width)
        .value_name("CHANNELS");

/// See [`NetSpec::activation`].
pub static ACTIVATION: Setting<Activation> = Setting::choice(
    "activation",
    "Activation of the hidden layers: in both networks of a VAE, in the discriminator of a GAN (its generator uses ReLU)",
);

/// The settings of every model.
pub static SETTINGS: Group = Group { heading: "Network", settings: &[&ARCH, &LATENT, &BASE_WIDTH, &ACTIVATION] };

const WIDE: &str = "from 1 to 65536";

fn width(n: &u64) -> bool {
    (1..=65_536).contains(n)
}

/// A list of widths of hidden layers: `512,256`, or `none`.
pub const fn hidden_widths(name: &'static str, help: &'static str) -> Setting<Vec<i64>> {
    let read = |text: &str| match text {
        "none" => Some(Vec::new()),
        _ => text.split(',').map(|w| w.trim().parse().ok()).collect(),
    };
    let write = |widths: &Vec<i64>| Toml::Array(widths.iter().map(|w| Toml::Integer(*w)).collect());
    Setting::new(name, help, "none, or widths such as 512,256, each", read, write)
        .range(WIDE, |widths| widths.iter().all(|w| u64::try_from(*w).is_ok_and(|w| width(&w))))
        .value_name("WIDTHS")
}

impl NetSpec {
    /// A network with these hidden layers; the rest from the settings, without batch normalisation.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] for a setting of another architecture.
    pub fn from_settings(s: &Settings, hidden: &Setting<Vec<i64>>) -> Result<Self> {
        let arch = s.get(&ARCH)?;
        let base_width = match arch {
            Arch::Conv => s.get(&BASE_WIDTH)? as i64,
            Arch::Mlp if s.given(&BASE_WIDTH).is_none() => 1,
            Arch::Mlp => usage!("--base-width is a setting of --arch conv, and this is --arch mlp: leave it out"),
        };
        let (hidden, activation) = (s.get(hidden)?, s.get(&ACTIVATION)?);
        Ok(NetSpec { arch, hidden, base_width, activation, batch_norm: false, init: Init::PyTorch })
    }

    /// With DCGAN's batch normalisation and weight initialisation, if it is convolutional.
    pub fn like_dcgan(self) -> Self {
        match self.arch {
            Arch::Conv => NetSpec { batch_norm: true, init: Init::Dcgan, ..self },
            Arch::Mlp => self,
        }
    }
}

/// The layers from an image to a vector: x [C,H,W] -> features [F].
///
/// # Errors
/// When the architecture does not support this image shape; the error names the shape and what would fit.
pub fn features(b: &mut Builder, x: Value, spec: &NetSpec) -> Result<Value> {
    match spec.arch {
        Arch::Mlp => mlp::features(b, x, spec),
        Arch::Conv => conv::features(b, x, spec),
    }
}

/// The layers from a vector to an image: z [Z] -> [C,H,W], no activation on the output.
///
/// # Errors
/// As [`features`].
pub fn synthesis(b: &mut Builder, z: Value, shape: Shape, spec: &NetSpec) -> Result<Value> {
    match spec.arch {
        Arch::Mlp => mlp::synthesis(b, z, shape, spec),
        Arch::Conv => conv::synthesis(b, z, shape, spec),
    }
}

/// The hidden layers `fc1`, `fc2`, ..., each with its activation.
fn dense_stack(b: &mut Builder, mut x: Value, spec: &NetSpec) -> Result<Value> {
    for (i, &width) in spec.hidden.iter().enumerate() {
        x = b.linear(format!("fc{}", i + 1), x, width, true)?;
        x = b.op(format!("act{}", i + 1), Op::Activation(spec.activation.function()), &[x])?;
    }
    Ok(x)
}

#[cfg(test)]
mod tests;
