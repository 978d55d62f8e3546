//! Fully connected networks.

use anyhow::Result;

use super::graph::{Builder, Op, Value};
use super::{NetSpec, Shape, dense_stack};

/// x [C,H,W] -> flatten -> `fc1`, `fc2`, ... -> [F].
pub fn features(b: &mut Builder, x: Value, spec: &NetSpec) -> Result<Value> {
    let pixels = b.dims(x).iter().product();
    let flat = b.op("flatten", Op::Reshape(vec![pixels]), &[x])?;
    dense_stack(b, flat, spec)
}

/// z [Z] -> `fc1`, `fc2`, ... -> `out` -> [C,H,W].
pub fn synthesis(b: &mut Builder, z: Value, shape: Shape, spec: &NetSpec) -> Result<Value> {
    let hidden = dense_stack(b, z, spec)?;
    let out = b.linear("out", hidden, shape.numel(), true)?;
    b.op("image", Op::Reshape(shape.dims().to_vec()), &[out])
}
