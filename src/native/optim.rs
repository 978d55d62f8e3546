//! Updates of many tensors in one call: Adam, gradient clipping, moving averages.

use anyhow::Result;
use tch::Tensor;

use super::{Factor, Handle, handles, same_in_shim, shim};

/// Adam's hyper-parameters (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1); PyTorch's defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct AdamSettings {
    /// Learning rate α.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to √v̂.
    pub eps: f64,
    /// Decoupled weight decay (AdamW: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2): each update multiplies the weights by
    /// 1 − lr·decay; 0 is plain Adam.
    pub weight_decay: f64,
}

impl Default for AdamSettings {
    fn default() -> Self {
        AdamSettings { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// What [`minimise`] tells, laid out as in C++.
#[repr(C)]
struct Minimised {
    seconds: f64,
    /// Or -1.
    missing: i64,
}

same_in_shim!(AdamSettings, Minimised, *mut Handle);

shim! {
    fn adam(
        params: &[Handle], grads: &[Handle], exp_avgs: &[Handle], exp_avg_sqs: &[Handle], step: &Tensor, lr: Option<&Tensor>,
        settings: AdamSettings,
    ) -> Result<()> = gv_fused_adam, "fused Adam";

    #[allow(clippy::too_many_arguments, reason = "as many as an update has")]
    fn by_tensors(
        params: &[Handle], grads: &[Handle], exp_avgs: &[Handle], exp_avg_sqs: &[Handle], step: &Tensor, lr: &Tensor,
        beta2_rest: &Tensor, settings: AdamSettings,
    ) -> Result<()> = gv_adam_on_device, "Adam";

    fn backward_and_adam(
        loss: &Tensor, params: &[Handle], exp_avgs: &[Handle], exp_avg_sqs: &[Handle], step: &Tensor, settings: AdamSettings,
    ) -> Result<Minimised> = gv_minimise, "training step";

    fn clip(grads: &[Handle], most: f64, scaled: *mut Handle) -> Result<Tensor> = gv_clip_grad_norm, "gradient norm";

    fn lerp(averages: &[Handle], current: &[Handle], weight: f64, on_device: Option<&Tensor>) -> Result<()> =
        gv_foreach_lerp, "moving average";
}

/// Updates `params` in place by one fused Adam or AdamW step, one pass over memory for each tensor.
///
/// `moments` are the first and the second, of the shapes and layouts of `params`; `step` is a float32 scalar, the number of updates so
/// far, increased by one here. A learning rate `lr` on the device, a float32 scalar, replaces `c.lr`: then all numbers that change
/// between steps are in device memory, and the update can be captured and replayed.
///
/// # Errors
/// When the lists differ in length, or libtorch refuses a tensor.
pub fn fused_adam(
    params: &[Tensor],
    grads: &[Tensor],
    moments: [&[Tensor]; 2],
    step: &Tensor,
    lr: Option<&Tensor>,
    c: AdamSettings,
) -> Result<()> {
    let [m, v] = moments.map(handles);
    adam(&handles(params), &handles(grads), &m, &v, step, lr, c)
}

/// [`fused_adam`] with the learning rate and 1 − β₂ on the device, float32 scalars, in place of those of `c`: libtorch's fused kernels
/// take β₂ from the host, so that a captured update could not change it. Some operations on all tensors in place of one.
///
/// # Errors
/// As [`fused_adam`].
pub fn adam_on_device(
    params: &[Tensor],
    grads: &[Tensor],
    moments: [&[Tensor]; 2],
    step: &Tensor,
    [lr, beta2_rest]: [&Tensor; 2],
    c: AdamSettings,
) -> Result<()> {
    let [m, v] = moments.map(handles);
    by_tensors(&handles(params), &handles(grads), &m, &v, step, lr, beta2_rest, c)
}

/// The backward pass of the scalar `loss` to `params`, and one update of each as in [`fused_adam`]. Weights of linear layers may be
/// updated inside the backward pass, so that their full gradient is never in memory.
///
/// Returns the seconds of the updates after the backward pass, and the first parameter without a gradient, if any (it is not
/// changed).
///
/// # Errors
/// As [`fused_adam`]; also when a layer used a parameter again after its update.
pub fn minimise(
    loss: &Tensor,
    params: &[Tensor],
    moments: [&[Tensor]; 2],
    step: &Tensor,
    c: AdamSettings,
) -> Result<(f64, Option<usize>)> {
    let [m, v] = moments.map(handles);
    let Minimised { seconds, missing } = backward_and_adam(loss, &handles(params), &m, &v, step, c)?;
    Ok((seconds, usize::try_from(missing).ok()))
}

/// `grads` scaled down to a global L2 norm of at most `most`, and the norm before, a float32 scalar on the device (Pascanu et al. 2013,
/// arXiv 1211.5063, section 3.2).
///
/// # Errors
/// When there is no gradient, or libtorch refuses one.
pub fn clip_grad_norm(grads: &[Tensor], most: f64) -> Result<(Vec<Tensor>, Tensor)> {
    let mut scaled: Vec<Handle> = vec![std::ptr::null_mut(); grads.len()];
    let norm = clip(&handles(grads), most, scaled.as_mut_ptr())?;
    // SAFETY: without an error every place holds a new handle, which nothing else owns.
    Ok((scaled.into_iter().map(|t| unsafe { Tensor::from_ptr(t) }).collect(), norm))
}

/// Updates each moving average: a ← a + weight·(c − a). With a weight on the device, the update can be captured and replayed.
///
/// # Errors
/// When the lists differ in length, or libtorch refuses a tensor.
pub fn foreach_lerp(averages: &[Tensor], current: &[Tensor], weight: Factor) -> Result<()> {
    let (weight, on_device) = match weight {
        Factor::Host(weight) => (weight, None),
        Factor::Device(weight) => (0.0, Some(weight)),
    };
    lerp(&handles(averages), &handles(current), weight, on_device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::{MatmulBackend, channels_last, linear};
    use tch::{Device, Kind};

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// Algorithm 1 of the paper, and algorithm 2 of AdamW's, in plain tensor operations, double precision.
    fn adam_by_the_paper(p: &Tensor, g: &Tensor, m: &Tensor, v: &Tensor, t: i32, c: AdamSettings) -> [Tensor; 3] {
        let (p, g) = (p.to_kind(Kind::Double), g.to_kind(Kind::Double));
        let m = m.to_kind(Kind::Double) * c.beta1 + &g * (1.0 - c.beta1);
        let v = v.to_kind(Kind::Double) * c.beta2 + g.square() * (1.0 - c.beta2);
        let m_hat = &m / (1.0 - c.beta1.powi(t));
        let v_hat = &v / (1.0 - c.beta2.powi(t));
        [p * (1.0 - c.lr * c.weight_decay) - m_hat / (v_hat.sqrt() + c.eps) * c.lr, m, v]
    }

    #[test]
    fn fused_adam_is_the_papers_algorithm() -> Result<()> {
        let c = AdamSettings { lr: 0.01, ..AdamSettings::default() };
        follows_the_paper(c, false)?;
        follows_the_paper(c, true)?;
        // As R3GAN has them.
        follows_the_paper(AdamSettings { beta1: 0.0, beta2: 0.99, ..c }, true)
    }

    #[test]
    fn with_a_weight_decay_it_is_adamw() -> Result<()> {
        let c = AdamSettings { lr: 0.01, weight_decay: 0.3, ..AdamSettings::default() };
        follows_the_paper(c, false)?;
        follows_the_paper(c, true)
    }

    fn follows_the_paper(c: AdamSettings, on_device: bool) -> Result<()> {
        // The update on the device ignores this learning rate.
        let other = AdamSettings { lr: 7.0, ..c };
        tch::manual_seed(1);
        let shapes: [&[i64]; 3] = [&[37, 5], &[3], &[2, 3, 4, 4]];
        let params: Vec<_> = shapes.iter().map(|s| Tensor::randn(*s, CPU)).collect();
        let m: Vec<_> = params.iter().map(Tensor::zeros_like).collect();
        let v: Vec<_> = params.iter().map(Tensor::zeros_like).collect();
        let step = Tensor::zeros([], CPU);
        for t in 1..=3 {
            let grads: Vec<_> = params.iter().map(Tensor::randn_like).collect();
            let want: Vec<_> = (0..3).map(|i| adam_by_the_paper(&params[i], &grads[i], &m[i], &v[i], t, c)).collect();
            if on_device {
                let twins = [&params, &m, &v].map(|all| all.iter().map(Tensor::copy).collect::<Vec<_>>());
                let [lr, rest] = [c.lr, 1.0 - c.beta2].map(|v| Tensor::from(v).to_kind(Kind::Float));
                fused_adam(&params, &grads, [&m, &v], &step, Some(&lr), other)?;
                // The update whose second decay is on the device too.
                let other = AdamSettings { beta2: 0.5, ..other };
                let step = Tensor::from((t - 1) as f32);
                adam_on_device(&twins[0], &grads, [&twins[1], &twins[2]], &step, [&lr, &rest], other)?;
                assert_eq!(step.double_value(&[]), f64::from(t));
                for (twins, kind) in twins.iter().zip(0..) {
                    for (twin, want) in twins.iter().zip(&want) {
                        let off = (twin.to_kind(Kind::Double) - &want[kind]).abs().max().double_value(&[]);
                        assert!(off < 1e-6, "tensor of kind {kind}, update {t}: off by {off}");
                    }
                }
            } else {
                fused_adam(&params, &grads, [&m, &v], &step, None, c)?;
            }
            for i in 0..3 {
                for (got, want) in [&params[i], &m[i], &v[i]].iter().zip(&want[i]) {
                    let off = (got.to_kind(Kind::Double) - want).abs().max().double_value(&[]);
                    assert!(off < 1e-6, "tensor {i}, update {t}: off by {off}");
                }
            }
        }
        assert_eq!(step.double_value(&[]), 3.0);
        Ok(())
    }

    #[test]
    fn a_gradient_in_another_layout_moves_the_right_weights() -> Result<()> {
        tch::manual_seed(3);
        let c = AdamSettings { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, ..AdamSettings::default() };
        // Of one channel, both layouts are the same memory under other strides.
        for channels in [3, 1] {
            let p = [Tensor::randn([2, channels, 4, 4], CPU)];
            let grad = Tensor::randn([2, channels, 4, 4], CPU);
            let last = channels_last(&grad)?;
            assert_ne!(last.stride(), p[0].stride());
            let (m, v) = ([p[0].zeros_like()], [p[0].zeros_like()]);
            let [want, ..] = adam_by_the_paper(&p[0], &grad, &m[0], &v[0], 1, c);
            let twin = [p[0].copy()];
            fused_adam(&p, &[last.shallow_clone()], [&m, &v], &Tensor::zeros([], CPU), None, c)?;
            let (m, v) = ([p[0].zeros_like()], [p[0].zeros_like()]);
            fused_adam(&twin, &[last], [&m, &v], &Tensor::zeros([], CPU), Some(&Tensor::from(0.01f32)), c)?;
            for p in [p, twin] {
                assert!((p[0].to_kind(Kind::Double) - &want).abs().max().double_value(&[]) < 1e-6);
            }
        }
        Ok(())
    }

    /// Weights updated block by block, larger than a block; weights shared by two layers; a parameter without a gradient.
    #[test]
    fn minimise_equals_a_backward_pass_and_an_update() -> Result<()> {
        tch::manual_seed(4);
        let leaf = |shape: &[i64]| (Tensor::randn(shape, CPU) * 0.05).set_requires_grad(true);
        for matmul in [MatmulBackend::Blas, MatmulBackend::BySize] {
            let params = [leaf(&[430, 2500]), leaf(&[430]), leaf(&[430, 430]), leaf(&[2500, 430]), leaf(&[3])];
            let c = AdamSettings { lr: 0.01, weight_decay: 0.1, ..AdamSettings::default() };
            let loss = |p: &[Tensor], x: &Tensor| {
                let h = linear(x, &p[0], Some(&p[1]), 0.0, matmul).unwrap();
                let h = linear(&h, &p[2], None, 0.2, matmul).unwrap();
                let h = linear(&h, &p[2], None, 1.0, matmul).unwrap();
                linear(&h, &p[3], None, 1.0, matmul).unwrap().square().sum(Kind::Float)
            };
            let twins: Vec<_> = params.iter().map(|p| p.detach().copy().set_requires_grad(true)).collect();
            let zeros = |p: &[Tensor]| p.iter().map(Tensor::zeros_like).collect::<Vec<_>>();
            let (m, v, step) = (zeros(&params), zeros(&params), Tensor::zeros([], CPU));
            let (m2, v2, step2) = (zeros(&twins), zeros(&twins), Tensor::zeros([], CPU));
            for _ in 0..3 {
                let x = Tensor::randn([33, 2500], CPU);
                let (_, missing) = minimise(&loss(&params, &x), &params, [&m, &v], &step, c)?;
                assert_eq!(missing, Some(4), "{matmul:?}");
                let grads = Tensor::run_backward(&[loss(&twins, &x)], &twins[..4], false, false);
                tch::no_grad(|| fused_adam(&twins[..4], &grads, [&m2[..4], &v2[..4]], &step2, None, c))?;
            }
            for i in 0..5 {
                for (what, got, want) in
                    [("weights", &params[..], &twins[..]), ("first moment", &m, &m2), ("second", &v, &v2)]
                {
                    let (off, most) = ((&got[i] - &want[i]).abs().max(), want[i].abs().max());
                    let (off, most) = (off.double_value(&[]), most.double_value(&[]));
                    assert!(off <= 2e-4 * most, "{matmul:?}, parameter {i}, {what}: off by {off} of {most}");
                }
                assert!(!params[i].grad().defined(), "no gradient is left behind");
            }
            assert_eq!(params[4], twins[4], "what no gradient reaches stays as it is");
            assert_eq!(step.double_value(&[]), 3.0);
        }
        Ok(())
    }

    #[test]
    fn moments_in_another_layout_are_refused() {
        let p = [Tensor::zeros([2, 3, 4, 4], CPU)];
        let last = [channels_last(&p[0]).unwrap()];
        let e = fused_adam(&p, &p, [&last, &p], &Tensor::zeros([], CPU), None, AdamSettings::default())
            .unwrap_err()
            .to_string();
        assert!(e.contains("the moments of a parameter [2, 3, 4, 4]"), "{e}");
    }

    #[test]
    fn gradients_above_the_norm_are_scaled_down_to_it() -> Result<()> {
        let grads = || [Tensor::from_slice(&[3f32, 0.0]), Tensor::from_slice(&[0f32, 4.0, 0.0]).view([3, 1])];
        for (most, want) in [(2.5, 2.5), (1.0, 1.0), (5.1, 5.0)] {
            let g = grads();
            let (scaled, norm) = clip_grad_norm(&g, most)?;
            assert!((norm.double_value(&[]) - 5.0).abs() < 1e-6, "the norm before");
            assert_eq!(g, grads(), "the gradients themselves stay");
            let after = scaled.iter().map(|g| g.square().sum(Kind::Double).double_value(&[])).sum::<f64>().sqrt();
            assert!((after - want).abs() < 1e-5, "{after} instead of {want}");
        }
        assert!(clip_grad_norm(&[], 1.0).is_err());
        Ok(())
    }

    #[test]
    fn lerp_is_the_plain_formula() -> Result<()> {
        tch::manual_seed(2);
        let a = [Tensor::randn([7, 3], CPU), Tensor::randn([5], CPU)];
        let c = [Tensor::randn([7, 3], CPU), Tensor::randn([5], CPU)];
        let want: Vec<_> = a.iter().zip(&c).map(|(a, c)| a + (c - a) * 0.125).collect();
        let twin = a.each_ref().map(Tensor::copy);
        foreach_lerp(&a, &c, Factor::Host(0.125))?;
        foreach_lerp(&twin, &c, Factor::Device(&Tensor::from(0.125f32)))?;
        for (got, want) in a.iter().zip(&want).chain(twin.iter().zip(&want)) {
            assert!(got.allclose(want, 1e-6, 1e-7, false));
        }
        Ok(())
    }

    #[test]
    fn libtorch_errors_are_returned() {
        let (a, b) = ([Tensor::zeros([2], CPU)], [Tensor::zeros([3], CPU)]);
        let text = foreach_lerp(&a, &b, Factor::Host(0.5)).map_err(|e| e.to_string()).unwrap_err();
        assert!(text.starts_with("moving average: ") && text.contains('3'), "{text}");
        assert!(foreach_lerp(&a, &[], Factor::Host(0.5)).is_err());
    }
}
