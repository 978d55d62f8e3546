//! The forms in which layers can be computed: the same mathematics, other speeds.
//!
//! Which is faster depends on processor, sizes and threads, and differs several-fold either way, so training measures them
//! at its start (`tune.rs`).

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::nn::VarStore;
use tch::{Device, Tensor};

use super::Layer;
use crate::native::{self, MatmulBackend};

/// Order of images in memory inside convolutional networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Channel after channel.
    Contiguous,
    /// The channels of a pixel side by side.
    ChannelsLast,
}

/// Whose layers run (CPU).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kernels {
    /// libtorch's.
    Libtorch,
    /// Ours around libtorch's products and convolutions: activations in one piece with the layer, the bias's gradient as a sum of
    /// its own, and transposed convolutions to few channels as one matrix product for each image.
    Own,
}

/// How many bits the factors of products and convolutions have. Not one of the choices that give the same numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 24, IEEE's.
    #[default]
    Fp32,
    /// CUDA: float32 tensors, whose factors the tensor cores round to 11 bits.
    Tf32,
    /// CUDA: the layers of the networks in bfloat16 (8 bits) from float32 weights; heads, losses and updates as with tf32.
    Bf16,
}

/// One choice of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Forms {
    /// Who multiplies matrices.
    pub products: MatmulBackend,
    /// Order of images in memory.
    pub layout: Layout,
    /// Whose layers run.
    pub kernels: Kernels,
    /// What the layers are computed in: a setting of its own, not kept with the choices.
    #[serde(skip)]
    pub precision: Precision,
}

impl Default for Forms {
    /// What libtorch does by itself.
    fn default() -> Self {
        Forms {
            products: MatmulBackend::Blas,
            layout: Layout::Contiguous,
            kernels: Kernels::Libtorch,
            precision: Precision::Fp32,
        }
    }
}

impl Forms {
    /// x [B,I] -> x Wᵀ + b [B,O], then an activation of this slope for x ≤ 0; 1 is none.
    ///
    /// # Errors
    /// libtorch's.
    pub fn linear(self, x: &Tensor, w: &Tensor, b: Option<&Tensor>, slope: f64) -> Result<Tensor> {
        if self.own(x) || (x.device() == Device::Cpu && self.products != MatmulBackend::Blas) {
            return native::linear(x, w, b, slope, self.products);
        }
        Ok(x.f_linear(w, b)?)
    }

    /// The convolution of 4×4, stride 2, padding 1: x [B,I,2H,2W] -> [B,O,H,W]; w [O,I,4,4]. `slope` as in `linear`.
    pub(super) fn conv(self, x: Tensor, w: &Tensor, b: Option<&Tensor>, slope: f64) -> Result<Tensor> {
        let x = self.arrange(x)?;
        if self.own(&x) {
            return native::strided(&x, w, b, false, slope);
        }
        Ok(x.f_conv2d(w, b, [2, 2], [1, 1], [1, 1], 1)?)
    }

    /// Its transpose: x [B,I,H,W] -> [B,O,2H,2W]; w [I,O,4,4].
    pub(super) fn conv_transpose(self, x: Tensor, w: &Tensor, b: Option<&Tensor>, slope: f64) -> Result<Tensor> {
        let x = self.arrange(x)?;
        if self.own(&x) {
            return native::strided(&x, w, b, true, slope);
        }
        Ok(x.f_conv_transpose2d(w, b, [2, 2], [1, 1], [0, 0], 1, [1, 1])?)
    }

    /// x [B,C,H,W] -> [B,C·H·W].
    pub(super) fn flatten(self, x: &Tensor) -> Result<Tensor> {
        if self.own(x) && x.dim() == 4 {
            return Ok(native::contiguous(x)?.f_flatten(1, -1)?);
        }
        Ok(x.f_flatten(1, -1)?)
    }

    /// Whether a layer takes the activation after it into its own kernel.
    pub(super) fn fuses(self, x: &Tensor, layer: &Layer) -> bool {
        self.own(x) && !matches!(layer, Layer::BatchNorm(_))
    }

    /// Lays out the weights of convolutions in `vars` as the convolutions want them, so that no step has to.
    ///
    /// # Errors
    /// libtorch's, when memory ends.
    pub fn arrange_weights(self, vars: &VarStore) -> Result<()> {
        tch::no_grad(|| {
            for mut w in vars.variables().into_values().filter(|w| w.dim() == 4) {
                let laid = match self.layout {
                    // Of one channel, both layouts are the same.
                    Layout::ChannelsLast if w.size()[1] > 1 => native::channels_last(&w.detach())?,
                    _ => w.detach().f_contiguous()?,
                };
                w.f_set_data(&laid)?;
            }
            Ok(())
        })
    }

    /// Whether our own kernels take x.
    pub fn own(self, x: &Tensor) -> bool {
        self.kernels == Kernels::Own && x.device() == Device::Cpu
    }

    /// x [B,C,H,W] in the layout that convolutions are to see.
    pub(super) fn arrange(self, x: Tensor) -> Result<Tensor> {
        match self.layout {
            Layout::Contiguous => Ok(x),
            Layout::ChannelsLast => native::channels_last(&x),
        }
    }
}
