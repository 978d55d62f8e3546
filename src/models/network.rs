//! A graph and its variables.

use anyhow::Result;
use tch::nn::VarStore;
use tch::{Device, Tensor};

use crate::nets::graph::{Builder, Graph, Init};

/// One network of a model.
#[derive(Debug)]
pub struct Network {
    /// Its operations.
    pub graph: Graph,
    /// Its parameters and buffers.
    pub vars: VarStore,
    /// Whether its weights are the moving average of another network's.
    pub average: bool,
}

impl Network {
    /// A network with fresh weights from libtorch's current random state, and the result of `build`.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn new<T>(
        name: &'static str,
        device: Device,
        init: Init,
        build: impl FnOnce(&mut Builder) -> Result<T>,
    ) -> Result<(Self, T)> {
        let vars = VarStore::new(device);
        let mut builder = Builder::new(&vars, name, init);
        let made = build(&mut builder)?;
        let graph = builder.finish()?;
        Ok((Network { graph, vars, average: false }, made))
    }

    /// Parameters and buffers with their keys in a checkpoint (`decoder.fc1.weight`), sorted.
    pub fn variables(&self) -> Vec<(String, Tensor)> {
        let prefix = if self.average { "ema." } else { "" };
        let mut all: Vec<_> =
            self.vars.variables().into_iter().map(|(name, t)| (format!("{prefix}{name}"), t)).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}
