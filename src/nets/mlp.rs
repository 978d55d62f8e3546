//! Fully connected networks.

use anyhow::Result;
use tch::nn::Path;

use super::{Layer, Net, NetSpec, Shape, dense_stack, linear};

/// x [B,C,H,W] -> flatten -> `fc1`, `fc2`, ... -> [B,F].
pub fn features(path: &Path, shape: Shape, spec: &NetSpec) -> Result<(Net, i64)> {
    let mut net = Net::default();
    net.push("flatten", Layer::Flatten);
    let width = dense_stack(&mut net, path, shape.numel(), spec)?;
    Ok((net, width))
}

/// z [B,Z] -> `fc1`, `fc2`, ... -> `out` -> [B,C,H,W].
pub fn synthesis(path: &Path, latent: i64, shape: Shape, spec: &NetSpec) -> Result<Net> {
    let mut net = Net::default();
    let width = dense_stack(&mut net, path, latent, spec)?;
    let out = linear(path, "out", width, shape.numel(), true, spec.init)?;
    net.push("out", Layer::Linear(out));
    net.push("image", Layer::Reshape(shape.dims()));
    Ok(net)
}
