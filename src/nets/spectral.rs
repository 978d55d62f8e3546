//! Spectral normalisation of weights.

use anyhow::Result;
use tch::nn::Path;
use tch::{Device, Kind, Tensor};

/// Divides a weight by its largest singular value (Miyato et al. 2018, arXiv 1802.05957), which makes the layer 1-Lipschitz.
///
/// The weight [O,...] counts as a matrix [O,I]. Its singular vectors are found by power iteration, one step for each forward pass in
/// training mode, as in the paper; they are buffers.
#[derive(Debug)]
pub struct SpectralNorm {
    /// [O], of norm 1.
    left: Tensor,
    /// [I], of norm 1.
    right: Tensor,
}

/// Power iterations of new weights: as many as PyTorch's `torch.nn.utils.parametrizations.spectral_norm` makes.
const ITERATIONS: usize = 15;
/// Names of the buffers.
const VECTORS: [&str; 2] = ["spectral_left", "spectral_right"];

impl SpectralNorm {
    /// Buffers under `path`, from a random start.
    ///
    /// # Errors
    /// libtorch's, when memory ends.
    pub fn new(path: Path, weight: &Tensor) -> Result<Self> {
        let rows = weight.size()[0];
        let columns = (weight.numel() as i64 / rows.max(1)).max(1);
        let [left, right] = VECTORS;
        let (left, right) = (path.f_zeros_no_train(left, &[rows])?, path.f_zeros_no_train(right, &[columns])?);
        let spectral = SpectralNorm { left, right };
        tch::no_grad(|| {
            // Drawn on the CPU, so that a seed means the same weights on every device.
            let start = Tensor::f_randn([rows], (Kind::Float, Device::Cpu))?;
            spectral.left.shallow_clone().f_copy_(&start).map_err(anyhow::Error::from)
        })?;
        spectral.find(weight)?;
        Ok(spectral)
    }

    /// The singular vectors of another weight, from those of the last one.
    ///
    /// # Errors
    /// libtorch's.
    pub fn find(&self, weight: &Tensor) -> Result<()> {
        tch::no_grad(|| (0..ITERATIONS).try_for_each(|_| self.iterate(&matrix(weight)?)))
    }

    /// One step of the power iteration on w [O,I].
    fn iterate(&self, w: &Tensor) -> Result<()> {
        unit(&w.f_transpose(0, 1)?.f_mv(&self.left)?, &self.right)?;
        unit(&w.f_mv(&self.right)?, &self.left)
    }

    /// The weight over its largest singular value, with autograd (the singular vectors count as constants); a step of the power
    /// iteration comes before it if `follow`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn normalise(&self, weight: &Tensor, follow: bool) -> Result<Tensor> {
        let w = matrix(weight)?;
        if follow {
            tch::no_grad(|| self.iterate(&w))?;
        }
        // Copies: a later pass changes the vectors while the backward pass of this one may still need them.
        let largest = self.left.f_detach_copy()?.f_dot(&w.f_mv(&self.right.f_detach_copy()?)?)?;
        Ok(weight.f_div(&largest)?)
    }
}

/// A weight [O,...] as a matrix [O,I].
fn matrix(weight: &Tensor) -> Result<Tensor> {
    Ok(weight.f_reshape([weight.size()[0], -1])?)
}

/// Writes x over its norm to `to`.
fn unit(x: &Tensor, to: &Tensor) -> Result<()> {
    let norm = x.f_norm()?.f_clamp_min(1e-12)?;
    to.shallow_clone().f_copy_(&x.f_div(&norm)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::nn::VarStore;

    #[test]
    fn the_largest_singular_value_of_a_normalised_weight_is_1() {
        tch::manual_seed(3);
        for size in [&[7, 5, 3, 3][..], &[1, 40], &[12, 4]] {
            let vars = VarStore::new(Device::Cpu);
            let w = Tensor::randn(size, (Kind::Float, Device::Cpu)) * 3.0;
            let spectral = SpectralNorm::new(vars.root() / "layer", &w).unwrap();
            (0..200).for_each(|_| drop(spectral.normalise(&w, true).unwrap()));
            let normal = matrix(&spectral.normalise(&w, false).unwrap()).unwrap();
            let (_, values, _) = normal.to_kind(Kind::Double).svd(true, true);
            let largest = values.max().double_value(&[]);
            assert!((largest - 1.0).abs() < 1e-4, "{size:?}: {largest}");
            assert_eq!(vars.trainable_variables().len(), 0);
        }
    }

    /// Of weights that were loaded without the vectors.
    #[test]
    fn the_vectors_of_other_weights_are_found() {
        tch::manual_seed(4);
        let vars = VarStore::new(Device::Cpu);
        let random = || Tensor::randn([6, 30], (Kind::Float, Device::Cpu));
        let (w, spectral) = (random(), SpectralNorm::new(vars.root() / "layer", &random()).unwrap());
        spectral.find(&w).unwrap();
        let (_, values, _) = spectral.normalise(&w, false).unwrap().svd(true, true);
        assert!((values.max().double_value(&[]) - 1.0).abs() < 0.05, "{values}");
    }

    #[test]
    fn only_training_moves_the_singular_vectors() {
        tch::manual_seed(3);
        let vars = VarStore::new(Device::Cpu);
        let w = Tensor::randn([9, 8], (Kind::Float, Device::Cpu));
        let spectral = SpectralNorm::new(vars.root() / "layer", &w).unwrap();
        let other = Tensor::randn([9, 8], (Kind::Float, Device::Cpu));
        let before = spectral.left.copy();
        drop(spectral.normalise(&other, false).unwrap());
        assert!(spectral.left.equal(&before));
        drop(spectral.normalise(&other, true).unwrap());
        assert!(!spectral.left.equal(&before));
    }
}
