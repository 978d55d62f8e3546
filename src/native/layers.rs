//! Layers with own kernels: linear, 4×4 convolutions of stride 2, batch normalisation, memory layouts, leaky ReLU, affine. All
//! support second derivatives.

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{same_in_shim, shim};

/// Matmul backend of a [`linear`] layer (CPU).
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MatmulBackend {
    /// The BLAS that libtorch was built with (MKL).
    Blas,
    /// oneDNN: its matmul for large sizes, its block kernel (brgemm), which has no setup cost per call, for small ones.
    BySize,
}

/// Multiplications from which oneDNN's matmul is faster than its block kernel.
const LARGE: i64 = 1 << 23;

impl MatmulBackend {
    /// Whether every start gives the same bits. BLAS with several threads sometimes rounds differently from one start to the next
    /// (MKL 2024, in about one start in ten).
    pub fn is_deterministic(self) -> bool {
        self != MatmulBackend::Blas
    }

    /// The kernel, numbered as in linear.cpp, for x [B,I] and weights w.
    fn kernel(self, x: &Tensor, w: &Tensor) -> i32 {
        let multiplications = x.size().first().map_or(0, |b| b.saturating_mul(w.numel() as i64));
        match self {
            MatmulBackend::Blas => 0,
            MatmulBackend::BySize if multiplications >= LARGE => 1,
            MatmulBackend::BySize => 2,
        }
    }
}

/// Parameters of a convolution, laid out as in C++; kernel, stride and padding hold for both dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ConvSpec {
    /// Kernel size.
    pub kernel: i64,
    /// As in PyTorch.
    pub stride: i64,
    /// As in PyTorch.
    pub padding: i64,
    /// As in PyTorch.
    pub groups: i64,
    /// Whether it is a transposed convolution.
    pub transposed: bool,
    /// Whether it has a bias.
    pub bias: bool,
}

impl ConvSpec {
    /// 4×4, stride 2, padding 1, as in DCGAN: both sides halve.
    pub fn halving() -> Self {
        ConvSpec { kernel: 4, stride: 2, padding: 1, groups: 1, transposed: false, bias: true }
    }

    /// Its transpose: both sides double.
    pub fn doubling() -> Self {
        ConvSpec { transposed: true, ..ConvSpec::halving() }
    }

    /// An odd kernel of stride 1 that keeps the sides.
    pub fn same(kernel: i64) -> Self {
        ConvSpec { kernel, stride: 1, padding: kernel / 2, groups: 1, transposed: false, bias: true }
    }

    /// The convolution by libtorch: x [B,I,H,W] -> [B,O,H',W'], weights [O, I/groups, k, k], transposed [I, O/groups, k, k].
    ///
    /// # Errors
    /// As [`linear`].
    pub fn apply(self, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        Ok(match self.transposed {
            false => x.f_conv2d(w, b, stride, padding, [1, 1], self.groups)?,
            true => x.f_conv_transpose2d(w, b, stride, padding, [0, 0], self.groups, [1, 1])?,
        })
    }
}

same_in_shim!(ConvSpec);

shim! {
    fn linear_by(x: &Tensor, w: &Tensor, b: Option<&Tensor>, slope: f64, kernel: i32) -> Result<Tensor> = gv_linear, "linear layer";

    fn linear_gradient_by(g: &Tensor, x: &Tensor, w: &Tensor, of_input: bool, kernel: i32) -> Result<Tensor> =
        gv_linear_gradient, "linear layer";

    /// The 4×4 convolution of stride 2 and padding 1, w [O,I,4,4], or its transpose, w [I,O,4,4], then an activation as in
    /// [`linear`], with autograd. Equals libtorch's to rounding.
    ///
    /// # Errors
    /// As [`linear`].
    pub fn strided(x: &Tensor, w: &Tensor, b: Option<&Tensor>, transposed: bool, slope: f64) -> Result<Tensor> =
        gv_strided, "strided convolution";

    /// One gradient of a convolution, by libtorch, without autograd: of its input x or its weights w, given the gradient g of its output.
    ///
    /// # Errors
    /// As [`linear`].
    pub fn conv_gradient(g: &Tensor, x: &Tensor, w: &Tensor, spec: ConvSpec, of_input: bool) -> Result<Tensor> =
        gv_conv_gradient, "convolution";

    /// Batch normalisation with batch statistics, fused with a leaky ReLU of `slope` (1: none), with autograd.
    ///
    /// x [B,C,H,W], weight w and bias b [C]; updates the running mean and variance [C] if given.
    ///
    /// # Errors
    /// As [`linear`].
    #[allow(clippy::too_many_arguments, reason = "as many as batch normalisation has")]
    pub fn norm_relu(
        x: &Tensor, w: &Tensor, b: &Tensor, mean: Option<&Tensor>, var: Option<&Tensor>, momentum: f64, eps: f64, slope: f64,
    ) -> Result<Tensor> = gv_norm_relu, "batch normalisation";

    /// x [B,C,H,W] in channels-last layout; the same tensor if it already is.
    ///
    /// # Errors
    /// libtorch's, when out of memory or x does not have four dimensions.
    pub fn channels_last(x: &Tensor) -> Result<Tensor> = gv_channels_last, "channels-last";

    /// x [B,C,H,W] in contiguous layout; the same tensor if it already is.
    ///
    /// # Errors
    /// libtorch's, when out of memory.
    pub fn contiguous(x: &Tensor) -> Result<Tensor> = gv_contiguous, "contiguous";

    /// Leaky ReLU in place, with autograd (tch binds only the default slope of 0.01).
    ///
    /// # Errors
    /// When libtorch refuses, as for a leaf that requires a gradient.
    pub fn leaky_relu_(x: &Tensor, slope: f64) -> Result<()> = gv_leaky_relu, "leaky ReLU";

    /// `scale`·x + `shift` in one pass over memory, on a GPU one launch; with autograd.
    ///
    /// # Errors
    /// libtorch's, when out of memory.
    pub fn affine(x: &Tensor, scale: f64, shift: f64) -> Result<Tensor> = gv_affine, "scaling";
}

/// x [B,I] -> x Wᵀ + b [B,O], then a leaky ReLU of `slope` (1: none), with autograd; w [O,I], b [O].
///
/// # Errors
/// When libtorch refuses, as for shapes that do not fit.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>, slope: f64, matmul: MatmulBackend) -> Result<Tensor> {
    linear_by(x, w, b, slope, matmul.kernel(x, w))
}

/// One gradient of x Wᵀ, without autograd: of x [B,I] or of w [O,I], given the gradient g [B,O] of the result.
///
/// # Errors
/// As [`linear`].
pub fn linear_gradient(g: &Tensor, x: &Tensor, w: &Tensor, of_input: bool, matmul: MatmulBackend) -> Result<Tensor> {
    linear_gradient_by(g, x, w, of_input, matmul.kernel(x, w))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn leak(x: Tensor, slope: f64) -> Tensor {
        x.maximum(&(&x * slope))
    }

    /// Values and gradients with respect to `inputs` of two ways to compute the same, to float32 accuracy.
    fn same(what: &str, inputs: &[Tensor], ours: impl Fn(&[Tensor]) -> Tensor, plain: impl Fn(&[Tensor]) -> Tensor) {
        let inputs: Vec<_> = inputs.iter().map(|t| t.detach().set_requires_grad(true)).collect();
        let (got, want) = (ours(&inputs), plain(&inputs));
        assert_eq!(got.size(), want.size(), "{what}");
        // Weights of a scalar that no gradient cancels in.
        let weights = Tensor::randn_like(&want);
        let grads = |y: &Tensor| Tensor::run_backward(&[(y * &weights).sum(Kind::Float)], &inputs, true, false);
        let (got_grads, want_grads) = (grads(&got), grads(&want));
        let pairs = got_grads.iter().zip(&want_grads).enumerate();
        let mut all = vec![("its value".to_owned(), &got, &want)];
        all.extend(pairs.map(|(i, (g, w))| (format!("gradient {i}"), g, w)));
        for (part, got, want) in all {
            let off = (got - want).abs().max().double_value(&[]);
            let most = want.abs().max().double_value(&[]);
            assert!(off <= 1e-5 * most + 3e-5, "{what}, {part}: off by {off} where the largest value is {most}");
        }
        // The gradients of a function of the gradients, by autograd twice.
        let twice = |y: &Tensor| {
            let once = Tensor::run_backward(&[(y.square() * &weights).sum(Kind::Float)], &inputs, true, true);
            let sum: Tensor = once.iter().map(|g| g.square().mean(Kind::Float)).sum();
            Tensor::run_backward(&[&sum], &inputs, true, false)
        };
        for (i, (got, want)) in twice(&ours(&inputs)).iter().zip(twice(&plain(&inputs))).enumerate() {
            let off = (got - &want).abs().max().double_value(&[]);
            let most = want.abs().max().double_value(&[]);
            assert!(most > 0.0 && off <= 2e-4 * most, "{what}, second derivative {i}: off by {off} of {most}");
        }
        // Asked for one gradient alone, it is the same.
        for (i, input) in inputs.iter().enumerate() {
            let one = Tensor::run_backward(&[(ours(&inputs) * &weights).sum(Kind::Float)], &[input], false, false);
            assert!(one[0].allclose(&got_grads[i], 1e-5, 1e-5, false), "{what}, gradient {i} alone");
        }
    }

    #[test]
    fn a_linear_layer_is_the_plain_formula() {
        tch::manual_seed(1);
        for (batch, from, to) in
            [(7, 5, 3), (1, 9, 4), (128, 300, 260), (33, 1100, 530), (20, 1024, 17), (7, 1100, 530)]
        {
            let (x, w, b) = (random(&[batch, from]), random(&[to, from]), random(&[to]));
            for matmul in [MatmulBackend::Blas, MatmulBackend::BySize] {
                for slope in [1.0, 0.0, 0.2] {
                    let what = format!("[{batch},{from}] to {to}, slope {slope}, {matmul:?}");
                    same(
                        &what,
                        &[x.copy(), w.copy(), b.copy()],
                        |t| linear(&t[0], &t[1], Some(&t[2]), slope, matmul).unwrap(),
                        |t| leak(t[0].matmul(&t[1].tr()) + &t[2], slope),
                    );
                    let g = random(&[batch, to]);
                    for (of_input, want) in [(true, g.matmul(&w)), (false, g.tr().matmul(&x))] {
                        let got = linear_gradient(&g, &x, &w, of_input, matmul).unwrap();
                        assert!(got.allclose(&want, 1e-4, 1e-4, false), "{what}, gradient of the input {of_input}");
                    }
                    same(
                        &format!("{what}, no bias"),
                        &[x.copy(), w.copy()],
                        |t| linear(&t[0], &t[1], None, slope, matmul).unwrap(),
                        |t| leak(t[0].matmul(&t[1].tr()), slope),
                    );
                }
            }
        }
    }

    #[test]
    fn nan_passes_through_a_linear_layer() {
        let x = Tensor::full([3, 4], f64::NAN, (Kind::Float, Device::Cpu));
        for matmul in [MatmulBackend::Blas, MatmulBackend::BySize] {
            for slope in [1.0, 0.0, 0.2] {
                let y = linear(&x, &random(&[5, 4]), Some(&random(&[5])), slope, matmul).unwrap();
                assert!(y.isnan().all().int64_value(&[]) == 1, "{matmul:?}, slope {slope}: {y}");
            }
        }
    }

    #[test]
    fn strided_convolutions_are_libtorchs() {
        tch::manual_seed(2);
        for (from, to, transposed) in
            [(1, 6, false), (3, 8, false), (6, 5, false), (6, 1, true), (5, 3, true), (4, 7, true)]
        {
            let x = random(&[3, from, 6, 8]);
            let w = random(&if transposed { [from, to, 4, 4] } else { [to, from, 4, 4] });
            let b = random(&[to]);
            for (slope, last) in [(1.0, false), (1.0, true), (0.0, false), (0.0, true), (0.2, true)] {
                let lay = |t: &Tensor| if last { channels_last(t).unwrap() } else { t.shallow_clone() };
                let plain = |t: &[Tensor], b: Option<&Tensor>| {
                    if transposed {
                        leak(t[0].conv_transpose2d(&t[1], b, [2, 2], [1, 1], [0, 0], 1, [1, 1]), slope)
                    } else {
                        leak(t[0].conv2d(&t[1], b, [2, 2], [1, 1], [1, 1], 1), slope)
                    }
                };
                let what = format!("{from} to {to}, transposed {transposed}, slope {slope}, channels last {last}");
                same(
                    &what,
                    &[x.copy(), w.copy(), b.copy()],
                    |t| strided(&lay(&t[0]), &t[1], Some(&t[2]), transposed, slope).unwrap(),
                    |t| plain(t, Some(&t[2])),
                );
                same(
                    &format!("{what}, no bias"),
                    &[x.copy(), w.copy()],
                    |t| strided(&lay(&t[0]), &t[1], None, transposed, slope).unwrap(),
                    |t| plain(t, None),
                );
            }
            let y = strided(&x, &w, None, transposed, 1.0).unwrap();
            let (x, w) = (x.set_requires_grad(true), w.set_requires_grad(true));
            let again = strided(&x, &w, None, transposed, 1.0).unwrap();
            let want = Tensor::run_backward(&[(again * &y).sum(Kind::Float)], &[&x, &w], false, false);
            for (of_input, want) in [(true, &want[0]), (false, &want[1])] {
                let got = conv_gradient(&y, &x, &w, ConvSpec { transposed, ..ConvSpec::halving() }, of_input).unwrap();
                assert!(got.allclose(want, 1e-4, 1e-4, false), "{from} to {to}, of the input {of_input}");
            }
        }
    }

    #[test]
    fn batch_normalisation_with_its_activation_is_libtorchs() {
        tch::manual_seed(3);
        for (shape, scale, shift) in [([9, 5, 4, 6], 1.0, 0.0), ([2, 3, 1, 2], 0.1, 50.0), ([40, 17, 8, 8], 3.0, -2.0)]
        {
            let c = shape[1];
            let x = random(&shape) * scale + shift;
            let (w, b) = (random(&[c]), random(&[c]));
            for slope in [1.0, 0.0, 0.2] {
                let running = || (Tensor::ones([c], (Kind::Float, Device::Cpu)) * 0.5, random(&[c]).square());
                let (m, v) = running();
                let (m2, v2) = (m.copy(), v.copy());
                let plain = |t: &[Tensor], m: Option<&Tensor>, v: Option<&Tensor>| {
                    leak(t[0].batch_norm(Some(&t[1]), Some(&t[2]), m, v, true, 0.1, 1e-5, false), slope)
                };
                // The statistics first, once each: every call moves them.
                tch::no_grad(|| {
                    let t = [x.shallow_clone(), w.shallow_clone(), b.shallow_clone()];
                    let _ = norm_relu(&t[0], &t[1], &t[2], Some(&m), Some(&v), 0.1, 1e-5, slope).unwrap();
                    let _ = plain(&t, Some(&m2), Some(&v2));
                });
                assert!(
                    m.allclose(&m2, 1e-5, 1e-5, false) && v.allclose(&v2, 1e-4, 1e-5, false),
                    "{shape:?}: {v} {v2}"
                );
                if shift == 0.0 || scale > 1.0 {
                    same(
                        &format!("{shape:?}, slope {slope}"),
                        &[x.copy(), w.copy(), b.copy()],
                        |t| {
                            let x = channels_last(&t[0]).unwrap();
                            norm_relu(&x, &t[1], &t[2], None, None, 0.1, 1e-5, slope).unwrap()
                        },
                        |t| plain(t, None, None),
                    );
                }
            }
        }
    }

    #[test]
    fn elementwise_layers_and_layouts_have_libtorchs_derivatives() {
        tch::manual_seed(5);
        let x = [random(&[3, 4, 5, 6])];
        let leaky = |x: Tensor| leaky_relu_(&x, 0.2).map(|()| x).unwrap();
        same("affine", &x, |t| affine(&t[0], 2.0, -1.0).unwrap(), |t| &t[0] * 2.0 - 1.0);
        same("leaky ReLU", &x, |t| leaky(&t[0] * 1.0), |t| leak(&t[0] * 1.0, 0.2));
        let back = |t: &[Tensor]| contiguous(&(channels_last(&t[0]).unwrap() * 2.0)).unwrap();
        same("layouts", &x, back, |t| &t[0] * 2.0);
    }

    #[test]
    fn affine_is_the_plain_formula_to_the_bit_for_powers_of_two() {
        let x = random(&[3, 1, 5, 7]).set_requires_grad(true);
        for (scale, shift) in [(2.0, -1.0), (0.5, 0.5), (-3.0, 0.25)] {
            let (got, want) = (affine(&x, scale, shift).unwrap(), &x * scale + shift);
            assert!((&got - &want).abs().max().double_value(&[]) <= if scale > 0.0 { 0.0 } else { 1e-6 });
            let grad = Tensor::run_backward(&[got.sum(Kind::Float)], &[&x], false, false);
            assert_eq!(grad[0], x.full_like(scale));
        }
        let last = channels_last(&random(&[2, 3, 4, 5])).unwrap();
        assert_eq!(affine(&last, 2.0, -1.0).unwrap().stride(), last.stride());
    }

    /// With one channel, the layouts differ in strides only; gradients pass through.
    #[test]
    fn one_channel_is_channels_last_by_its_strides_alone() {
        let x = random(&[2, 1, 4, 5]).set_requires_grad(true);
        let laid = channels_last(&x).unwrap();
        assert_eq!((laid.stride(), laid.data_ptr()), (vec![20, 1, 5, 1], x.data_ptr()));
        let weights = random(&[2, 1, 4, 5]);
        let grad = Tensor::run_backward(&[(laid * &weights).sum(Kind::Float)], &[&x], false, false);
        assert_eq!(grad[0], weights);
    }

    #[test]
    fn channels_last_changes_only_the_layout() {
        let x = random(&[2, 3, 4, 5]);
        let laid = channels_last(&x).unwrap();
        assert_eq!(laid, x);
        assert_eq!(laid.stride(), [60, 1, 15, 3]);
        let x = x.set_requires_grad(true);
        let back = contiguous(&channels_last(&x).unwrap()).unwrap();
        assert_eq!((&back, back.stride()), (&x, vec![60, 20, 5, 1]));
        let weights = random(&[2, 3, 4, 5]);
        let grad = Tensor::run_backward(&[(back * &weights).sum(Kind::Float)], &[&x], false, false);
        assert_eq!(grad[0], weights);
        let (wide, laid) = (random(&[3, 37, 9, 11]), |t: &Tensor| channels_last(t).unwrap());
        assert_eq!(laid(&wide), wide, "sizes that are no multiple of a block");
        assert_eq!(contiguous(&laid(&wide)).unwrap(), wide);
        let one = channels_last(&random(&[2, 1, 4, 5])).unwrap();
        assert_eq!(one.stride(), [20, 1, 5, 1], "one channel: the strides alone");
        assert!(channels_last(&random(&[2, 3])).is_err());
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        for matmul in [MatmulBackend::Blas, MatmulBackend::BySize] {
            let e = linear(&random(&[2, 3]), &random(&[4, 5]), None, 1.0, matmul).unwrap_err().to_string();
            assert!(e.starts_with("linear layer: weights [4, 5] cannot take [2, 3]"), "{e}");
        }
        assert!(strided(&random(&[2, 3, 4, 4]), &random(&[4, 5, 4, 4]), None, false, 1.0).is_err());
        assert!(strided(&random(&[2, 3, 4, 4]), &random(&[4, 1, 4, 4]), None, true, 1.0).is_err(), "3 channels, not 4");
    }
}
