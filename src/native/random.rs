//! Random tensors from a seed, and seeding of libtorch's global generators.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::{cuda, shim};

shim! {
    fn fill_on_cpu(out: &Tensor, seed: u64, normal: bool) -> Result<()> = gv_fill_random, "random numbers";

    fn state() -> Result<Tensor> = gv_rng_state, "generator state";

    fn set_state(state: &Tensor) -> Result<()> = gv_set_rng_state, "generator state";
}

/// Distribution of random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Standard normal.
    Normal,
    /// Uniform in [0,1).
    Uniform,
}

/// Float32 numbers on the CPU: those of `torch.randn` or `torch.rand` after `torch.manual_seed(seed)`. Does not use the global
/// generator.
///
/// # Errors
/// libtorch's, when memory ends.
pub fn random(seed: i64, shape: &[i64], distribution: Distribution) -> Result<Tensor> {
    let out = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?;
    fill(&out, distribution, seed)?;
    Ok(out)
}

/// [`random`] standard normal numbers.
///
/// # Errors
/// As [`random`].
pub fn randn(seed: i64, shape: &[i64]) -> Result<Tensor> {
    random(seed, shape, Distribution::Normal)
}

/// Fills `out` with numbers from `seed`: on the CPU those of [`random`]; on a CUDA device those of its default generator, which is
/// seeded first.
///
/// # Errors
/// libtorch's, and when CUDA is not there.
pub fn fill(out: &Tensor, distribution: Distribution, seed: i64) -> Result<()> {
    if out.device() == Device::Cpu {
        return fill_on_cpu(out, seed as u64, distribution == Distribution::Normal);
    }
    seed_default(out.device(), seed)?;
    let mut out = out.f_detach()?;
    let _ = match distribution {
        Distribution::Normal => out.f_normal_(0.0, 1.0)?,
        Distribution::Uniform => out.f_uniform_(0.0, 1.0)?,
    };
    Ok(())
}

/// Seeds the default generator of a device. A captured step draws from the CUDA one, whose seed each replay reads. On the CPU
/// `torch.randn` then gives the numbers of [`randn`].
///
/// # Errors
/// When CUDA is not there.
pub fn seed_default(device: Device, seed: i64) -> Result<()> {
    match device {
        Device::Cuda(_) => cuda()?.seed(seed),
        _ => {
            tch::manual_seed(seed);
            Ok(())
        }
    }
}

/// Runs `work` with libtorch's global CPU generator seeded, then restores the generator's state.
///
/// # Errors
/// Those of `work`, and libtorch's.
pub fn seeded<T>(seed: i64, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = state()?;
    tch::manual_seed(seed);
    let result = work();
    set_state(&before)?;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That they are libtorch's own numbers is tested in tests/captured.rs, where nothing else draws from the global generator.
    #[test]
    fn tensors_are_filled_with_the_numbers_of_a_seed() {
        let cpu = (Kind::Float, Device::Cpu);
        for distribution in [Distribution::Normal, Distribution::Uniform] {
            let draw = |seed, shape: &[i64]| random(seed, shape, distribution);
            let fill = |out: &Tensor, seed| fill(out, distribution, seed);
            for shape in [vec![], vec![3], vec![5, 30], vec![2, 3, 4, 5]] {
                let want = draw(7, &shape).unwrap();
                assert_ne!(draw(8, &shape).unwrap(), want);
                let parameter = Tensor::zeros(&shape, cpu).set_requires_grad(true);
                fill(&parameter, 7).unwrap();
                assert_eq!(parameter, want);
            }
            let want = draw(7, &[5, 30]).unwrap();
            let (turned, double) =
                (Tensor::zeros([30, 5], cpu).tr(), Tensor::zeros([5, 30], (Kind::Double, Device::Cpu)));
            fill(&turned, 7).unwrap();
            fill(&double, 7).unwrap();
            assert_eq!((turned, double), (want.shallow_clone(), want.to_kind(Kind::Double)));
        }
        let x = random(3, &[10_000], Distribution::Uniform).unwrap();
        let (least, most) = (x.min().double_value(&[]), x.max().double_value(&[]));
        assert!((0.0..0.01).contains(&least) && (0.99..1.0).contains(&most), "{least} to {most}");
    }
}
