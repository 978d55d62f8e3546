//! Compute options of the layers: memory layout, kernels, matmul backend, precision.
//!
//! The fastest choice depends on processor, sizes and threads, by several-fold either way, so training measures them at its start
//! (`models/tuning.rs`).

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::nn::{self, VarStore};
use tch::{Device, Tensor};

use super::graph::{BN_MOMENTUM, ConvLayer, NORM_EPS, Op};
use crate::native::{self, MatmulBackend};

/// Memory layout of images inside convolutional networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// NCHW.
    Contiguous,
    /// NHWC.
    ChannelsLast,
}

/// Kernels of the layers (CPU).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kernels {
    /// libtorch's.
    Libtorch,
    /// ganvae's own, around libtorch's matmuls and convolutions: activations fused with the layer, the bias gradient as a separate
    /// sum, transposed convolutions to few channels as one matmul per image.
    Own,
}

/// Precision of the operands of matmuls and convolutions. Unlike the other options, it changes the results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// IEEE float32.
    #[default]
    Fp32,
    /// CUDA: float32 tensors; tensor cores round the operands to 11 bits of mantissa.
    Tf32,
    /// CUDA: layers in bfloat16 (8 bits of mantissa) from float32 weights; heads, losses and updates as with tf32.
    Bf16,
}

/// Compute options of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Compute {
    /// Backend of the matmuls of linear layers (CPU).
    #[serde(rename = "products")]
    pub matmul: MatmulBackend,
    /// Memory layout of images.
    pub layout: Layout,
    /// Kernels of the layers.
    pub kernels: Kernels,
    /// Precision of the layers: a separate setting, not stored with the others.
    #[serde(skip)]
    pub precision: Precision,
}

impl Default for Compute {
    /// libtorch's defaults.
    fn default() -> Self {
        Compute {
            matmul: MatmulBackend::Blas,
            layout: Layout::Contiguous,
            kernels: Kernels::Libtorch,
            precision: Precision::Fp32,
        }
    }
}

impl Compute {
    /// x [...,I] -> x Wᵀ + b [...,O], then a leaky ReLU of this slope (1: none).
    ///
    /// # Errors
    /// libtorch's.
    pub(super) fn linear(self, x: &Tensor, w: &Tensor, b: Option<&Tensor>, slope: f64) -> Result<Tensor> {
        let (size, from) = (x.size(), w.size()[1]);
        let rows: i64 = size.iter().rev().skip(1).product();
        if self.own(x) || (x.device() == Device::Cpu && self.matmul != MatmulBackend::Blas) {
            if let [_, _] = size[..] {
                return native::linear(x, w, b, slope, self.matmul);
            }
            let y = native::linear(&x.f_reshape([rows, from])?, w, b, slope, self.matmul)?;
            return Ok(y.f_reshape([&size[..size.len() - 1], &[w.size()[0]]].concat())?);
        }
        Ok(x.f_linear(w, b)?)
    }

    /// x [B,I,H,W] -> [B,O,H',W'] with the weights w, then an activation as in [`Compute::linear`] if [`Compute::fuses_activation`].
    ///
    /// # Errors
    /// libtorch's.
    pub(super) fn conv(self, x: &Tensor, l: &ConvLayer, w: &Tensor, slope: f64) -> Result<Tensor> {
        let (x, bias) = (self.arrange(x)?, l.bias.as_ref());
        if self.own(&x) && has_own_kernel(l) {
            return native::strided(&x, w, bias, l.spec.transposed, slope);
        }
        l.spec.apply(&x, w, bias)
    }

    /// Batch normalisation of x [B,C,...], with batch statistics if `training`, then an activation as in [`Compute::conv`]. Updates the
    /// running statistics if `follow`.
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
            return native::norm_relu(&self.arrange(x)?, w, b, mean, var, BN_MOMENTUM, NORM_EPS, slope);
        }
        let y = x.f_batch_norm(l.ws.as_ref(), l.bs.as_ref(), mean, var, training, BN_MOMENTUM, NORM_EPS, true)?;
        Ok(match slope {
            1.0 => y,
            0.0 => y.f_relu()?,
            _ => native::leaky_relu_(&y, slope).map(|()| y)?,
        })
    }

    /// An image in contiguous layout; any other tensor unchanged.
    pub(super) fn contiguous_image(self, x: &Tensor) -> Result<Tensor> {
        if self.own(x) && x.dim() == 4 { native::contiguous(x) } else { Ok(x.shallow_clone()) }
    }

    /// Whether the kernel of an operation is fused with the activation after it.
    pub(super) fn fuses_activation(self, op: &Op, device: Device) -> bool {
        let able = match op {
            Op::Linear(_) => true,
            Op::Conv(l) => has_own_kernel(l),
            Op::BatchNorm(l) => has_own_norm(self, l),
            _ => false,
        };
        able && self.kernels == Kernels::Own && device == Device::Cpu
    }

    /// Converts the convolution weights in `vars` to the layout, so that no step has to.
    ///
    /// # Errors
    /// libtorch's, when out of memory.
    pub fn arrange_weights(self, vars: &VarStore) -> Result<()> {
        tch::no_grad(|| {
            for mut w in vars.variables().into_values().filter(|w| w.dim() == 4) {
                let laid = match self.layout {
                    // With one channel, both layouts are the same.
                    Layout::ChannelsLast if w.size()[1] > 1 => native::channels_last(&w.detach())?,
                    _ => w.detach().f_contiguous()?,
                };
                w.f_set_data(&laid)?;
            }
            Ok(())
        })
    }

    /// Whether ganvae's own kernels are used for x.
    fn own(self, x: &Tensor) -> bool {
        self.kernels == Kernels::Own && x.device() == Device::Cpu
    }

    /// x [B,C,H,W] in the layout of the convolutions.
    pub(super) fn arrange(self, x: &Tensor) -> Result<Tensor> {
        match self.layout {
            Layout::Contiguous => Ok(x.shallow_clone()),
            Layout::ChannelsLast => native::channels_last(x),
        }
    }
}

/// Whether there is an own kernel for a batch normalisation with batch statistics.
fn has_own_norm(compute: Compute, l: &nn::BatchNorm) -> bool {
    compute.layout == Layout::ChannelsLast && l.ws.is_some()
}

/// Whether there is an own kernel for a convolution.
fn has_own_kernel(l: &ConvLayer) -> bool {
    (l.spec.kernel, l.spec.stride, l.spec.padding, l.spec.groups) == (4, 2, 1, 1)
}
