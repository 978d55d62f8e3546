//! Networks: graphs of operations, architectures, the forward pass.
//!
//! Every model uses two functions: [`features`] maps an image to a vector (encoder, discriminator), [`synthesis`] maps a vector to
//! an image (decoder, generator). Each architecture has one file with both.

pub mod builder;
pub mod compute;
mod conv;
pub mod cost;
pub mod forward;
pub mod graph;
mod mlp;
mod residual;
pub mod spectral;

use anyhow::Result;
use clap::ValueEnum;
use toml::Value as Toml;

use crate::base::setting::{AnySetting, Group, Setting, Settings, choice_name};
pub use crate::base::shape::Shape;
use crate::base::usage::usage;
pub use crate::native::MatmulBackend;
pub use compute::{Compute, Kernels, Layout, Precision};
pub use forward::Mode;
use graph::{Builder, Function, Init, Op, Value};
pub use residual::{Block, Residual};

/// Names of networks: the first part of a model's keys, and the names of exported files.
pub const NETWORKS: [&str; 4] = ["encoder", "decoder", "generator", "discriminator"];

/// The architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// Fully connected layers; images of any size.
    Mlp,
    /// Strided 4×4 convolutions after DCGAN (Radford et al. 2016, arXiv 1511.06434); both sides must be even and at least 8.
    Conv,
    /// Residual blocks of 3×3 convolutions (He et al. 2016, arXiv 1512.03385); images of any size.
    Residual,
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
    /// Channels next to the image (convolutional networks only), which double at each halving of the sides; none to begin with
    /// `max_width` at the smallest features, and halve towards the image, down to [`LEAST_WIDTH`].
    pub base_width: Option<i64>,
    /// Most channels.
    pub max_width: i64,
    /// Channels after 0, 1, ... halvings, the last for all further ones; empty for those of the two widths above.
    pub widths: Vec<i64>,
    /// Activation of the hidden layers.
    pub activation: Activation,
    /// Batch normalisation (convolutional networks only).
    pub batch_norm: bool,
    /// Spectral normalisation of all weights.
    pub spectral: bool,
    /// Weight initialisation.
    pub init: Init,
    /// What only a residual network reads.
    pub residual: Residual,
}

impl Default for NetSpec {
    /// An MLP without hidden layers, with PyTorch's weights.
    fn default() -> Self {
        NetSpec {
            arch: Arch::Mlp,
            hidden: Vec::new(),
            base_width: None,
            max_width: 1024,
            widths: Vec::new(),
            activation: Activation::Relu,
            batch_norm: false,
            spectral: false,
            init: Init::PyTorch,
            residual: Residual::default(),
        }
    }
}

/// Channels next to the image where [`NetSpec::base_width`] is none.
const LEAST_WIDTH: i64 = 16;

/// Architecture of the networks.
pub static ARCH: Setting<Arch> = Setting::choice("arch", "Architecture of the networks");

/// Z.
pub static LATENT: Setting<u64> =
    Setting::whole("latent", "Width of the latent vector z").range(WIDE, width).value_name("DIMENSIONS");

/// See [`NetSpec::base_width`].
pub static BASE_WIDTH: Setting<u64> = Setting::whole(
    "base-width",
    "Channels next to the image, which double where the sides halve (--arch conv and residual; without it, residual begins with \
     --max-width at the smallest features)",
)
.range(WIDE, width)
.value_name("CHANNELS");

/// See [`NetSpec::max_width`].
pub static MAX_WIDTH: Setting<u64> =
    Setting::whole("max-width", "Most channels of a convolution (--arch conv and residual) [default: 1024]")
        .range(WIDE, width)
        .value_name("CHANNELS");

/// See [`Residual::block`].
pub static BLOCK: Setting<Block> = Setting::choice("block", "The residual block (--arch residual) [default: plain]");

/// See [`Residual::blocks`].
pub static BLOCKS: Setting<Vec<i64>> = Setting::new(
    "blocks",
    "Residual blocks at each resolution, from the image's on, such as 1,2; the last number holds for all further ones [default: 1]",
    "numbers such as 1,2, each",
    numbers,
    write_numbers,
)
.range("from 0 to 64", |all| !all.is_empty() && all.iter().all(|n| (0..=64).contains(n)))
.value_name("BLOCKS");

/// See [`Residual::attention`].
pub static ATTENTION: Setting<u64> = Setting::whole(
    "attention",
    "Self-attention where the longer side of the features is this (--arch residual); 0 for none [default: 0]",
)
.range("from 0 to 64", |n| *n <= 64)
.value_name("PIXELS");

/// See [`NetSpec::activation`].
pub static ACTIVATION: Setting<Activation> = Setting::choice(
    "activation",
    "Activation of the hidden layers: in both networks of a VAE, in the discriminator of a GAN (its generator uses ReLU)",
);

/// The settings of every model.
pub static SETTINGS: Group = Group {
    heading: "Network",
    settings: &[&ARCH, &LATENT, &BASE_WIDTH, &MAX_WIDTH, &BLOCK, &BLOCKS, &ATTENTION, &ACTIVATION],
};

const WIDE: &str = "from 1 to 65536";

fn width(n: &u64) -> bool {
    (1..=65_536).contains(n)
}

fn numbers(text: &str) -> Option<Vec<i64>> {
    text.split(',').map(|w| w.trim().parse().ok()).collect()
}

#[allow(clippy::ptr_arg, reason = "the type of Setting's functions")]
fn write_numbers(all: &Vec<i64>) -> Toml {
    Toml::Array(all.iter().map(|w| Toml::Integer(*w)).collect())
}

/// A list of channels: `64,128`; see [`NetSpec::widths`].
pub const fn channels(name: &'static str, help: &'static str) -> Setting<Vec<i64>> {
    Setting::new(name, help, "numbers such as 64,128, each", numbers, write_numbers)
        .range(WIDE, |widths| !widths.is_empty() && widths.iter().all(|w| u64::try_from(*w).is_ok_and(|w| width(&w))))
        .value_name("CHANNELS")
}

/// A list of widths of hidden layers: `512,256`, or `none`.
pub const fn hidden_widths(name: &'static str, help: &'static str) -> Setting<Vec<i64>> {
    let read = |text: &str| if text == "none" { Some(Vec::new()) } else { numbers(text) };
    Setting::new(name, help, "none, or widths such as 512,256, each", read, write_numbers)
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
        let (convolutions, blocks) = (arch != Arch::Mlp, arch == Arch::Residual);
        for (name, given, of, fits) in [
            (BASE_WIDTH.info().name, s.given(&BASE_WIDTH).is_some(), "conv and residual", convolutions),
            (MAX_WIDTH.info().name, s.given(&MAX_WIDTH).is_some(), "conv and residual", convolutions),
            (BLOCK.info().name, s.given(&BLOCK).is_some(), "residual", blocks),
            (BLOCKS.info().name, s.given(&BLOCKS).is_some(), "residual", blocks),
            (ATTENTION.info().name, s.given(&ATTENTION).is_some(), "residual", blocks),
        ] {
            if given && !fits {
                usage!("--{name} is a setting of --arch {of}, and this is --arch {}: leave it out", choice_name(&arch));
            }
        }
        let default = NetSpec::default();
        let (base, most) = (s.given(&BASE_WIDTH), s.given(&MAX_WIDTH).unwrap_or(default.max_width as u64));
        if let Some(base) = base.filter(|base| *base > most) {
            usage!("--base-width {base} is more than --max-width {most}: make it smaller, or --max-width larger");
        }
        Ok(NetSpec {
            arch,
            hidden: s.get(hidden)?,
            base_width: match arch {
                Arch::Conv => Some(s.get(&BASE_WIDTH)? as i64),
                Arch::Mlp | Arch::Residual => base.map(|w| w as i64),
            },
            max_width: most as i64,
            activation: s.get(&ACTIVATION)?,
            residual: Residual {
                block: s.given(&BLOCK).unwrap_or(default.residual.block),
                blocks: s.given(&BLOCKS).unwrap_or(default.residual.blocks),
                attention: s.given(&ATTENTION).map_or(default.residual.attention, |side| side as i64),
            },
            ..default
        })
    }

    /// With DCGAN's batch normalisation and weight initialisation, if it is of --arch conv.
    pub fn like_dcgan(self) -> Self {
        match self.arch {
            Arch::Conv => NetSpec { batch_norm: true, init: Init::Dcgan, ..self },
            Arch::Mlp | Arch::Residual => self,
        }
    }

    /// Channels after `i` of so many halvings of the sides.
    fn width(&self, i: usize, halvings: usize) -> i64 {
        match (self.widths.last(), self.base_width) {
            (Some(last), _) => *self.widths.get(i).unwrap_or(last),
            // No image has sides of 2^32.
            (None, Some(base)) => base.saturating_mul(1 << i.min(32)).min(self.max_width),
            (None, None) => (self.max_width >> halvings.saturating_sub(i).min(32)).max(LEAST_WIDTH).min(self.max_width),
        }
    }
}

/// The layers from an image to a vector: x [C,H,W] -> features [F].
///
/// # Errors
/// When the architecture does not support this image shape; the error names the shape and what would fit.
pub fn features(b: &mut Builder, x: Value, spec: &NetSpec) -> Result<Value> {
    b.spectral = spec.spectral;
    match spec.arch {
        Arch::Mlp => mlp::features(b, x, spec),
        Arch::Conv => conv::features(b, x, spec),
        Arch::Residual => residual::features(b, x, spec),
    }
}

/// The layers from a vector to an image: z [Z] -> [C,H,W], no activation on the output.
///
/// # Errors
/// As [`features`].
pub fn synthesis(b: &mut Builder, z: Value, shape: Shape, spec: &NetSpec) -> Result<Value> {
    b.spectral = spec.spectral;
    match spec.arch {
        Arch::Mlp => mlp::synthesis(b, z, shape, spec),
        Arch::Conv => conv::synthesis(b, z, shape, spec),
        Arch::Residual => residual::synthesis(b, z, shape, spec),
    }
}

/// A warning of an image size that does not suit the architecture.
pub fn size_warning(arch: Arch, shape: Shape) -> Option<String> {
    if arch == Arch::Conv { conv::warning(shape) } else { None }
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
