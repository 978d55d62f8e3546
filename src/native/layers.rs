//! Layers in the forms that training chooses between.

use std::ffi::c_char;

use anyhow::Result;
use tch::Tensor;

use super::{Handle, check, handle, made, maybe};

unsafe extern "C" {
    fn gv_linear(out: *mut Handle, x: Handle, w: Handle, b: Handle, slope: f64, onednn: bool) -> *mut c_char;
    fn gv_channels_last(out: *mut Handle, x: Handle) -> *mut c_char;
    fn gv_strided(out: *mut Handle, x: Handle, w: Handle, b: Handle, transposed: bool, slope: f64) -> *mut c_char;
    fn gv_strided_gradient(
        out: *mut Handle,
        g: Handle,
        x: Handle,
        w: Handle,
        transposed: bool,
        of_input: bool,
    ) -> *mut c_char;
    fn gv_norm_relu(
        out: *mut Handle,
        x: Handle,
        w: Handle,
        b: Handle,
        mean: Handle,
        var: Handle,
        momentum: f64,
        eps: f64,
        slope: f64,
    ) -> *mut c_char;
    fn gv_leaky_relu(x: Handle, slope: f64) -> *mut c_char;
}

/// x [B,I] -> x Wᵀ + b [B,O], then x for x > 0, else `slope`·x (1 for no activation), seen by autograd; w [O,I], b [O]. The
/// products are oneDNN's or those of libtorch's BLAS.
///
/// # Errors
/// When libtorch refuses, as for shapes that do not fit.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>, slope: f64, onednn: bool) -> Result<Tensor> {
    // SAFETY: the tensors live until the call returns; so in all calls below.
    made("linear layer", |out| unsafe { gv_linear(out, handle(x), handle(w), maybe(b), slope, onednn) })
}

/// The 4×4 convolution of stride 2 and padding 1, w [O,I,4,4], or its transpose, w [I,O,4,4], then an activation as in
/// [`linear`], seen by autograd. Differs from libtorch's in speed alone.
///
/// # Errors
/// As [`linear`].
pub fn strided(x: &Tensor, w: &Tensor, b: Option<&Tensor>, transposed: bool, slope: f64) -> Result<Tensor> {
    // SAFETY: as in `linear`.
    made("strided convolution", |out| unsafe { gv_strided(out, handle(x), handle(w), maybe(b), transposed, slope) })
}

/// A gradient of the convolution of [`strided`] alone, by libtorch and not seen by autograd: of its input x, or of its weights w,
/// given the gradient g of its output.
///
/// # Errors
/// As [`linear`].
pub fn strided_gradient(g: &Tensor, x: &Tensor, w: &Tensor, transposed: bool, of_input: bool) -> Result<Tensor> {
    // SAFETY: as in `linear`.
    made("strided convolution", |out| unsafe {
        gv_strided_gradient(out, handle(g), handle(x), handle(w), transposed, of_input)
    })
}

/// Batch normalisation from the batch's own statistics, then x for x > 0, else `slope`·x, in one piece, seen by autograd once
/// (no second derivative).
///
/// x [B,C,H,W], weight and bias [C]; the `running` mean and variance [C] follow where they are given.
///
/// # Errors
/// As [`linear`].
pub fn norm_relu(
    x: &Tensor,
    [w, b]: [&Tensor; 2],
    (mean, var): (Option<&Tensor>, Option<&Tensor>),
    momentum: f64,
    eps: f64,
    slope: f64,
) -> Result<Tensor> {
    made("batch normalisation", |out| {
        // SAFETY: as in `linear`.
        unsafe { gv_norm_relu(out, handle(x), handle(w), handle(b), maybe(mean), maybe(var), momentum, eps, slope) }
    })
}

/// x [B,C,H,W] with the channels of a pixel side by side in memory; the same tensor where they are already.
///
/// # Errors
/// libtorch's, when memory ends or x has not four dimensions.
pub fn channels_last(x: &Tensor) -> Result<Tensor> {
    // SAFETY: as in `linear`.
    made("channels-last", |out| unsafe { gv_channels_last(out, handle(x)) })
}

/// `x` for x > 0, else `slope`·x, in place and seen by autograd (tch binds only the default slope of 0.01).
///
/// # Errors
/// When libtorch refuses, as for a leaf that requires a gradient.
pub fn leaky_relu(x: Tensor, slope: f64) -> Result<Tensor> {
    // SAFETY: `x` is a live tensor, owned here until it is handed back.
    check("leaky ReLU", unsafe { gv_leaky_relu(handle(&x), slope) })?;
    Ok(x)
}
