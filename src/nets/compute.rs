//! How operations are computed: the same mathematics at other speeds.
//!
//! Which choice is faster depends on processor, sizes and threads, and differs several-fold either way, so training measures them
//! at its start (`models/tuning.rs`).

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::nn::{self, VarStore};
use tch::{Device, Tensor};

use super::graph::{BN_MOMENTUM, ConvLayer, NORM_EPS, Op};
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
    /// Ours around libtorch's matmuls and convolutions: activations in one piece with the layer, the bias's gradient as a sum of
    /// its own, and transposed convolutions to few channels as one matmul for each image.
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
pub struct Compute {
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

impl Default for Compute {
    /// What libtorch does by itself.
    fn default() -> Self {
        Compute {
            products: MatmulBackend::Blas,
            layout: Layout::Contiguous,
            kernels: Kernels::Libtorch,
            precision: Precision::Fp32,
        }
    }
}

impl Compute {
    /// x [...,I] -> x Wᵀ + b [...,O], then an activation of this slope for x ≤ 0; 1 is none.
    ///
    /// # Errors
    /// libtorch's.
    pub(super) fn linear(self, x: &Tensor, w: &Tensor, b: Option<&Tensor>, slope: f64) -> Result<Tensor> {
        let (size, from) = (x.size(), w.size()[1]);
        let rows: i64 = size.iter().rev().skip(1).product();
        if self.own(x) || (x.device() == Device::Cpu && self.products != MatmulBackend::Blas) {
            if let [_, _] = size[..] {
                return native::linear(x, w, b, slope, self.products);
            }
            let y = native::linear(&x.f_reshape([rows, from])?, w, b, slope, self.products)?;
            return Ok(y.f_reshape([&size[..size.len() - 1], &[w.size()[0]]].concat())?);
        }
        Ok(x.f_linear(w, b)?)
    }

    /// x [B,I,H,W] -> [B,O,H',W'], then an activation as in [`Compute::linear`] where [`Compute::joins_activation`] says so.
    ///
    /// # Errors
    /// libtorch's.
    pub(super) fn conv(self, x: &Tensor, l: &ConvLayer, slope: f64) -> Result<Tensor> {
        let (x, bias) = (self.arrange(x)?, l.bias.as_ref());
        if self.own(&x) && has_own_kernel(l) {
            return native::strided(&x, &l.weight, bias, l.transposed, slope);
        }
        let (stride, padding) = ([l.stride; 2], [l.padding; 2]);
        Ok(match l.transposed {
            false => x.f_conv2d(&l.weight, bias, stride, padding, [1, 1], l.groups)?,
            true => x.f_conv_transpose2d(&l.weight, bias, stride, padding, [0, 0], l.groups, [1, 1])?,
        })
    }

    /// x [B,C,...] normalised, by the batch's own statistics where `training`, then an activation as in [`Compute::conv`]. The running
    /// statistics follow where `follow`.
    ///
    /// # Errors
    /// libtorch's.
    pub(super) fn batch_norm(
        self,
        x: &Tensor,
        l: &nn::BatchNorm,
        (training, follow): (bool, bool),
        slope: f64,
    ) -> Result<Tensor> {
        let (mean, var) = follow.then_some((&l.running_mean, &l.running_var)).unzip();
        if let (true, true, 4, Some(w), Some(b)) = (training, self.own(x), x.dim(), &l.ws, &l.bs)
            && has_own_norm(self, l)
        {
            return native::norm_relu(&self.arrange(x)?, [w, b], (mean, var), BN_MOMENTUM, NORM_EPS, slope);
        }
        let y = x.f_batch_norm(l.ws.as_ref(), l.bs.as_ref(), mean, var, training, BN_MOMENTUM, NORM_EPS, true)?;
        Ok(match slope {
            1.0 => y,
            0.0 => y.f_relu()?,
            _ => native::leaky_relu(y, slope)?,
        })
    }

    /// An image whose elements lie in the order of its dimensions; anything else as it is.
    pub(super) fn contiguous_image(self, x: &Tensor) -> Result<Tensor> {
        if self.own(x) && x.dim() == 4 { native::contiguous(x) } else { Ok(x.shallow_clone()) }
    }

    /// Whether an operation takes the activation after it into its own kernel.
    pub(super) fn joins_activation(self, op: &Op, device: Device) -> bool {
        let able = match op {
            Op::Linear(_) => true,
            Op::Conv(l) => has_own_kernel(l),
            Op::BatchNorm(l) => has_own_norm(self, l),
            _ => false,
        };
        able && self.kernels == Kernels::Own && device == Device::Cpu
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
    fn own(self, x: &Tensor) -> bool {
        self.kernels == Kernels::Own && x.device() == Device::Cpu
    }

    /// x [B,C,H,W] in the layout that convolutions are to see.
    pub(super) fn arrange(self, x: &Tensor) -> Result<Tensor> {
        match self.layout {
            Layout::Contiguous => Ok(x.shallow_clone()),
            Layout::ChannelsLast => native::channels_last(x),
        }
    }
}

/// Whether our own kernels compute a batch normalisation, of the batch's own statistics.
fn has_own_norm(compute: Compute, l: &nn::BatchNorm) -> bool {
    compute.layout == Layout::ChannelsLast && l.ws.is_some()
}

/// Whether our own kernels compute a convolution.
fn has_own_kernel(l: &ConvLayer) -> bool {
    (l.kernel(), l.stride, l.padding, l.groups) == (4, 2, 1, 1)
}
