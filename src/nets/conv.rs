//! Strided convolutional networks after DCGAN (Radford et al. 2016, arXiv 1511.06434).
//!
//! Both sides are halved while they are even and the result is at least 4: 28×28 ends at 7×7, 32×32 and 64×64 at 4×4.
//! Differs from DCGAN: a convolution over its whole input is an equivalent linear layer here.

use anyhow::{Result, bail};

use super::graph::{Builder, ConvSpec, Op, Value};
use super::{NetSpec, Shape, dense_stack};

/// The smallest side after halving.
const SMALLEST: i64 = 4;

/// Number of halvings, and the sides after them.
fn halvings(shape: Shape) -> Result<(u32, i64, i64)> {
    let (mut n, mut h, mut w) = (0, shape.height, shape.width);
    while h % 2 == 0 && w % 2 == 0 && h.min(w) / 2 >= SMALLEST {
        (n, h, w) = (n + 1, h / 2, w / 2);
    }
    if n == 0 {
        // Multiples of 8 are halved several times.
        let [good_h, good_w] = [shape.height, shape.width].map(|side| ((side + 4) / 8 * 8).max(8));
        bail!(
            "--arch conv (the default for folders of pictures) cannot take images of {}x{} pixels: it halves both sides at least \
             once, so they must be even and at least 8; use --image-size {good_h}x{good_w} (folders of pictures) or --arch mlp",
            shape.height,
            shape.width
        );
    }
    Ok((n, h, w))
}

/// A warning of sides that soon become odd, so that few convolutions are left and the linear layer beside them is very large.
pub fn warning(shape: Shape) -> Option<String> {
    let (_, h, w) = halvings(shape).ok()?;
    if h.min(w) / 2 < SMALLEST {
        return None;
    }
    let often = (shape.height.min(shape.width) / SMALLEST).ilog2();
    let [good_h, good_w] = [shape.height, shape.width].map(|side| (side + (1 << often) / 2) >> often << often);
    Some(format!(
        "warning: --arch conv halves the sides while they are even, and {}x{} ends at {h}x{w}: few convolutions and a very large linear \
         layer; use --image-size {good_h}x{good_w} or --arch residual",
        shape.height, shape.width
    ))
}

/// x [C,H,W] -> `conv1`, `conv2`, ... (width, 2·width, ...) -> flatten -> `fc1`, ... -> [F].
///
/// Batch normalisation after every convolution but the first, as in the paper.
pub fn features(b: &mut Builder, mut x: Value, spec: &NetSpec) -> Result<Value> {
    let &[channels, height, width] = b.dims(x) else { bail!("wanted images [C,H,W], found {:?}", b.dims(x)) };
    let (stages, ..) = halvings(Shape { channels, height, width })?;
    for i in 1..=stages {
        let norm = spec.batch_norm && i > 1;
        let channels = spec.width(i as usize - 1, stages as usize);
        x = b.conv(format!("conv{i}"), x, channels, ConvSpec { bias: !norm, ..ConvSpec::halving() })?;
        if norm {
            x = b.batch_norm(format!("bn{i}"), x, true)?;
        }
        x = b.op(format!("conv_act{i}"), Op::Activation(spec.activation.function()), &[x])?;
    }
    let pixels = b.dims(x).iter().product();
    let flat = b.op("flatten", Op::Reshape(vec![pixels]), &[x])?;
    dense_stack(b, flat, spec)
}

/// z [Z] -> `fc1`, ... -> `base` -> [K,H0,W0] -> `convt1`, `convt2`, ... -> [C,H,W].
///
/// Channels halve from the base to `base_width` next to the image, then go to C. With batch normalisation (generators) the base has
/// twice the channels, as in the paper's generator compared with its discriminator: 256 at 7×7 for a width of 64.
pub fn synthesis(b: &mut Builder, z: Value, shape: Shape, spec: &NetSpec) -> Result<Value> {
    let (stages, h, w) = halvings(shape)?;
    let activation = || Op::Activation(spec.activation.function());
    let mut x = dense_stack(b, z, spec)?;
    // After `i` layers.
    let channels_after = |i: u32| match i == stages {
        true => shape.channels,
        false => spec.width((stages - 1 - i + u32::from(spec.batch_norm)) as usize, stages as usize),
    };
    let channels = channels_after(0);
    x = b.linear("base", x, channels * h * w, !spec.batch_norm)?;
    let grid = Op::Reshape(vec![channels, h, w]);
    if spec.batch_norm {
        x = b.op("grid", grid, &[x])?;
        x = b.batch_norm("bn0", x, true)?;
        x = b.op("base_act", activation(), &[x])?;
    } else {
        // The activation comes before the reshape: in place on a view would cost a copy.
        x = b.op("base_act", activation(), &[x])?;
        x = b.op("grid", grid, &[x])?;
    }
    for i in 1..=stages {
        let last = i == stages;
        let norm = spec.batch_norm && !last;
        x = b.conv(format!("convt{i}"), x, channels_after(i), ConvSpec { bias: !norm, ..ConvSpec::doubling() })?;
        if norm {
            x = b.batch_norm(format!("bn{i}"), x, true)?;
        }
        if !last {
            x = b.op(format!("conv_act{i}"), activation(), &[x])?;
        }
    }
    Ok(x)
}
