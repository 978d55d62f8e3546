//! The safe face of the C++ shim (`shim.cpp`) and the few process-wide switches of libc and libtorch.
//!
//! Imports no other module of the crate. Tensors are borrowed for the length of a call; errors carry libtorch's message.

use std::ffi::{CStr, CString, c_char};

use anyhow::{Result, bail, ensure};
use tch::Tensor;

type Handle = *mut torch_sys::C_tensor;

unsafe extern "C" {
    fn gv_free(message: *mut c_char);
    fn gv_fused_adam(
        n: usize,
        params: *const Handle,
        grads: *const Handle,
        exp_avgs: *const Handle,
        exp_avg_sqs: *const Handle,
        step: Handle,
        lr: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
    ) -> *mut c_char;
    fn gv_foreach_lerp(n: usize, averages: *const Handle, current: *const Handle, weight: f64) -> *mut c_char;
    fn gv_linear(out: *mut Handle, x: Handle, w: Handle, b: Handle, slope: f64, onednn: bool) -> *mut c_char;
    fn gv_channels_last(out: *mut Handle, x: Handle) -> *mut c_char;
    fn gv_strided(out: *mut Handle, x: Handle, w: Handle, b: Handle, transposed: bool, slope: f64) -> *mut c_char;
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

/// The numbers of one Adam update (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1).
#[derive(Clone, Copy, Debug)]
pub struct AdamStep {
    /// Step size α.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to √v̂.
    pub eps: f64,
}

/// Updates `params` in place by one fused Adam step, one pass over memory for each tensor.
///
/// `exp_avgs` and `exp_avg_sqs` are the two moments, of the shapes of `params`; `step` is a float32 scalar, the number of
/// updates so far, increased by one here.
///
/// # Errors
/// When the lists differ in length, or libtorch refuses a tensor.
pub fn fused_adam(
    params: &[Tensor],
    grads: &[Tensor],
    exp_avgs: &[Tensor],
    exp_avg_sqs: &[Tensor],
    step: &Tensor,
    c: AdamStep,
) -> Result<()> {
    ensure!(
        [grads.len(), exp_avgs.len(), exp_avg_sqs.len()] == [params.len(); 3],
        "Adam got {} parameters, {} gradients and {}+{} moments: there must be as many of each",
        params.len(),
        grads.len(),
        exp_avgs.len(),
        exp_avg_sqs.len()
    );
    let (p, g, m, v) = (handles(params), handles(grads), handles(exp_avgs), handles(exp_avg_sqs));
    // SAFETY: the four lists hold `params.len()` live tensors each (checked above), borrowed until the call returns.
    check("fused Adam", unsafe {
        gv_fused_adam(
            p.len(),
            p.as_ptr(),
            g.as_ptr(),
            m.as_ptr(),
            v.as_ptr(),
            step.as_ptr() as Handle,
            c.lr,
            c.beta1,
            c.beta2,
            c.eps,
        )
    })
}

/// Moves each of `averages` towards its partner in `current`: a ← a + weight·(c − a).
///
/// # Errors
/// When the lists differ in length, or libtorch refuses a tensor.
pub fn foreach_lerp(averages: &[Tensor], current: &[Tensor], weight: f64) -> Result<()> {
    ensure!(
        averages.len() == current.len(),
        "the moving average holds {} tensors, the network {}: there must be as many of each",
        averages.len(),
        current.len()
    );
    let (a, c) = (handles(averages), handles(current));
    // SAFETY: both lists hold `averages.len()` live tensors (checked above), borrowed until the call returns.
    check("moving average", unsafe { gv_foreach_lerp(a.len(), a.as_ptr(), c.as_ptr(), weight) })
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
    check("leaky ReLU", unsafe { gv_leaky_relu(x.as_ptr() as Handle, slope) })?;
    Ok(x)
}

/// Keeps large blocks in the process between steps.
///
/// glibc returns every block over 32 MB to the kernel on free, so each step would page-fault its large gradients anew;
/// on the article's VAE that is a third of the step. Call once, before any tensor exists. Other systems: no effect.
pub fn keep_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only stores limits of the allocator; it is called before other threads start.
    unsafe {
        // An older glibc refuses a threshold above 32 MB (0 is its no); there, mapping blocks is switched off altogether.
        if libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX) == 0 {
            libc::mallopt(libc::M_MMAP_MAX, 0);
        }
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

/// Loads the CUDA half of libtorch into this process, so that one binary serves both: a CPU run never maps it.
///
/// Must come before the first question about CUDA, because libtorch remembers its answer. Takes 0.2 to 0.5 s.
///
/// # Errors
/// One sentence that names the part that is missing: the NVIDIA driver, or libtorch's CUDA library or one that it needs.
pub fn load_cuda() -> Result<()> {
    if let Err(why) = load("libcuda.so.1") {
        bail!("no NVIDIA driver was found ({why}): install one, or use --device cpu");
    }
    let library = format!("{}/libtorch_cuda.so", env!("GANVAE_LIBTORCH_LIB"));
    // The loader's search path first (LD_LIBRARY_PATH), then the folder that the binary was built with.
    if load("libtorch_cuda.so").is_err()
        && let Err(why) = load(&library)
    {
        bail!("the CUDA half of libtorch did not load ({why}): run scripts/setup --full, or use --device cpu");
    }
    Ok(())
}

/// `dlopen` for the whole process; the error is the loader's own sentence.
fn load(library: &str) -> Result<()> {
    let name = CString::new(library)?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call; the library's initialisers are libtorch's own or
    // the driver's, made to be loaded this way.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if handle.is_null() {
        // SAFETY: dlerror returns null or a NUL-terminated string that stays valid until the next dl call of this thread.
        let why = unsafe {
            let text = libc::dlerror();
            if text.is_null() { "no reason given".into() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };
        bail!(why);
    }
    Ok(())
}

fn handle(t: &Tensor) -> Handle {
    t.as_ptr() as Handle
}

fn maybe(t: Option<&Tensor>) -> Handle {
    t.map_or(std::ptr::null_mut(), handle)
}

/// The tensor that a call of the shim makes.
fn made(what: &str, call: impl FnOnce(*mut Handle) -> *mut c_char) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    check(what, call(&mut out))?;
    // SAFETY: without a message, the shim has put a new handle there, which nothing else owns.
    Ok(unsafe { Tensor::from_ptr(out) })
}

fn handles(tensors: &[Tensor]) -> Vec<Handle> {
    tensors.iter().map(|t| t.as_ptr() as Handle).collect()
}

fn check(what: &str, message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null message is a NUL-terminated string made by the shim, freed once, here.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        gv_free(message);
        text
    };
    bail!("{what}: {}", text.lines().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// Algorithm 1 of the paper in plain tensor operations, double precision.
    fn adam_by_the_paper(p: &Tensor, g: &Tensor, m: &Tensor, v: &Tensor, t: i32, c: AdamStep) -> [Tensor; 3] {
        let (p, g) = (p.to_kind(Kind::Double), g.to_kind(Kind::Double));
        let m = m.to_kind(Kind::Double) * c.beta1 + &g * (1.0 - c.beta1);
        let v = v.to_kind(Kind::Double) * c.beta2 + g.square() * (1.0 - c.beta2);
        let m_hat = &m / (1.0 - c.beta1.powi(t));
        let v_hat = &v / (1.0 - c.beta2.powi(t));
        [p - m_hat / (v_hat.sqrt() + c.eps) * c.lr, m, v]
    }

    #[test]
    fn fused_adam_is_the_papers_algorithm() -> Result<()> {
        tch::manual_seed(1);
        let c = AdamStep { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8 };
        let shapes: [&[i64]; 3] = [&[37, 5], &[3], &[2, 3, 4, 4]];
        let params: Vec<_> = shapes.iter().map(|s| Tensor::randn(*s, CPU)).collect();
        let m: Vec<_> = params.iter().map(Tensor::zeros_like).collect();
        let v: Vec<_> = params.iter().map(Tensor::zeros_like).collect();
        let step = Tensor::zeros([], CPU);
        for t in 1..=3 {
            let grads: Vec<_> = params.iter().map(Tensor::randn_like).collect();
            let want: Vec<_> = (0..3).map(|i| adam_by_the_paper(&params[i], &grads[i], &m[i], &v[i], t, c)).collect();
            fused_adam(&params, &grads, &m, &v, &step, c)?;
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
        let c = AdamStep { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8 };
        let p = [Tensor::randn([2, 3, 4, 4], CPU)];
        let grad = Tensor::randn([2, 3, 4, 4], CPU);
        let last = grad.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
        assert_ne!(last.stride(), p[0].stride());
        let (m, v) = ([p[0].zeros_like()], [p[0].zeros_like()]);
        let [want, ..] = adam_by_the_paper(&p[0], &grad, &m[0], &v[0], 1, c);
        fused_adam(&p, &[last], &m, &v, &Tensor::zeros([], CPU), c)?;
        assert!((p[0].to_kind(Kind::Double) - want).abs().max().double_value(&[]) < 1e-6);
        Ok(())
    }

    #[test]
    fn lerp_is_the_plain_formula() -> Result<()> {
        tch::manual_seed(2);
        let a = [Tensor::randn([7, 3], CPU), Tensor::randn([5], CPU)];
        let c = [Tensor::randn([7, 3], CPU), Tensor::randn([5], CPU)];
        let want: Vec<_> = a.iter().zip(&c).map(|(a, c)| a + (c - a) * 0.125).collect();
        foreach_lerp(&a, &c, 0.125)?;
        for (got, want) in a.iter().zip(&want) {
            assert!(got.allclose(want, 1e-6, 1e-7, false));
        }
        Ok(())
    }

    #[test]
    fn libtorchs_complaints_come_back_as_errors() {
        let (a, b) = ([Tensor::zeros([2], CPU)], [Tensor::zeros([3], CPU)]);
        let text = foreach_lerp(&a, &b, 0.5).map_err(|e| e.to_string()).unwrap_err();
        assert!(text.starts_with("moving average: ") && text.contains('3'), "{text}");
        assert!(foreach_lerp(&a, &[], 0.5).is_err());
    }
}
