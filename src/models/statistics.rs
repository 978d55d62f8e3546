//! Running statistics of batch normalisation, computed anew.

use anyhow::Result;
use tch::{Kind, Tensor};

use crate::nets::graph::{BN_MOMENTUM, Graph, Op};

/// Means of the batch statistics of a network's batch normalisations over some batches, which become its running statistics, as in
/// PyTorch's `torch.optim.swa_utils.update_bn`. The running statistics of training are of its last ten batches or so, each under
/// other weights, and those of averaged weights are of no batch at all.
#[derive(Debug)]
pub struct Statistics {
    running: Vec<Tensor>,
    /// Sums over batches, in double.
    sums: Vec<Tensor>,
    batches: u64,
}

impl Statistics {
    /// Of no batches yet.
    ///
    /// # Errors
    /// libtorch's, when memory ends.
    pub fn new(graph: &Graph) -> Result<Self> {
        let norms =
            graph.nodes().iter().filter_map(|node| if let Op::BatchNorm(norm) = &node.op { Some(norm) } else { None });
        let running: Vec<_> =
            norms.flat_map(|norm| [&norm.running_mean, &norm.running_var]).map(Tensor::shallow_clone).collect();
        let zeros = |t: &Tensor| Ok(Tensor::f_zeros(t.size(), (Kind::Double, t.device()))?);
        Ok(Statistics { sums: running.iter().map(zeros).collect::<Result<_>>()?, running, batches: 0 })
    }

    /// Adds the statistics of the batch of which `forward` is the pass in [`crate::nets::Mode::Train`].
    ///
    /// # Errors
    /// Those of `forward`.
    pub fn add(&mut self, forward: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        // A pass moves them from 0 by the momentum: they are that share of the batch's.
        for t in &mut self.running {
            let _ = t.f_zero_()?;
        }
        let _output = forward()?;
        for (sum, t) in self.sums.iter_mut().zip(&self.running) {
            let _ = sum.f_add_(&t.f_to_kind(Kind::Double)?)?;
        }
        self.batches += 1;
        Ok(())
    }

    /// Makes the means the network's running statistics.
    ///
    /// # Errors
    /// libtorch's.
    pub fn finish(mut self) -> Result<()> {
        for (t, sum) in self.running.iter_mut().zip(&self.sums).filter(|_| self.batches > 0) {
            t.f_copy_(&sum.f_div_scalar(self.batches as f64 * BN_MOMENTUM)?)?;
        }
        Ok(())
    }
}
