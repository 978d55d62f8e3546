//! Strided convolutional networks after DCGAN (Radford et al. 2016, arXiv 1511.06434).
//!
//! Both sides are halved as long as they stay even and the result is at least 4: 28×28 ends at 7×7, 32×32 and 64×64 at
//! 4×4. Differs: where DCGAN has a convolution that covers its whole input, a linear layer of the same arithmetic stands.

use anyhow::{Result, bail};
use tch::nn::{self, Path};

use super::{Init, Layer, Net, NetSpec, Shape, check_weights, dense_stack, linear, starts};

/// The smallest side that a halving may give.
const SMALLEST: i64 = 4;

/// How often both sides halve, and what is left of them.
fn halvings(shape: Shape) -> Result<(u32, i64, i64)> {
    let (mut n, mut h, mut w) = (0, shape.height, shape.width);
    while h % 2 == 0 && w % 2 == 0 && h.min(w) / 2 >= SMALLEST {
        (n, h, w) = (n + 1, h / 2, w / 2);
    }
    if n == 0 {
        bail!(
            "--arch conv cannot take images of {}x{} pixels: it halves both sides at least once, so they must be even and at \
             least 8; give --image-size (folders of images), or use --arch mlp",
            shape.height,
            shape.width
        );
    }
    Ok((n, h, w))
}

/// x [B,C,H,W] -> `conv1`, `conv2`, ... (width, 2·width, ...) -> flatten -> `fc1`, ... -> [B,F].
///
/// Batch normalisation after every convolution but the first, as in the paper.
pub fn features(path: &Path, shape: Shape, spec: &NetSpec) -> Result<(Net, i64)> {
    let (stages, h, w) = halvings(shape)?;
    let mut net = Net::default();
    let mut channels = shape.channels;
    for i in 1..=stages {
        let out = spec.base_width << (i - 1);
        let norm = spec.batch_norm && i > 1;
        let name = format!("conv{i}");
        check_weights(&name, &[channels, out, 16])?;
        let (ws_init, bs_init) = starts(spec.init, channels * 16);
        let config = nn::ConvConfig { stride: 2, padding: 1, bias: !norm, ws_init, bs_init, ..Default::default() };
        net.push(&name, Layer::Conv(nn::conv2d(path / &name, channels, out, 4, config)));
        if norm {
            push_batch_norm(&mut net, path, &format!("bn{i}"), out);
        }
        net.push(format!("conv_act{i}"), Layer::Activation(spec.activation));
        channels = out;
    }
    net.push("flatten", Layer::Flatten);
    let width = dense_stack(&mut net, path, channels * h * w, spec)?;
    Ok((net, width))
}

/// z [B,Z] -> `fc1`, ... -> `base` -> [B,K,H0,W0] -> `convt1`, `convt2`, ... -> [B,C,H,W].
///
/// Channels halve from the base to the image side's `base_width`, then to C. With batch normalisation (generators) the
/// base has twice the channels, as the paper's generator against its discriminator: 256 at 7×7 for a width of 64.
pub fn synthesis(path: &Path, latent: i64, shape: Shape, spec: &NetSpec) -> Result<Net> {
    let (stages, h, w) = halvings(shape)?;
    let mut net = Net::default();
    let width = dense_stack(&mut net, path, latent, spec)?;
    let mut channels = spec.base_width << (stages - 1);
    if spec.batch_norm {
        channels *= 2;
    }
    let base = linear(path, "base", width, channels * h * w, !spec.batch_norm, spec.init)?;
    net.push("base", Layer::Linear(base));
    if spec.batch_norm {
        net.push("grid", Layer::Reshape([channels, h, w]));
        push_batch_norm(&mut net, path, "bn0", channels);
        net.push("base_act", Layer::Activation(spec.activation));
    } else {
        // The activation before the reshape: in place on a view would cost a copy.
        net.push("base_act", Layer::Activation(spec.activation));
        net.push("grid", Layer::Reshape([channels, h, w]));
    }
    for i in 1..=stages {
        let last = i == stages;
        let out = if last { shape.channels } else { channels / 2 };
        let norm = spec.batch_norm && !last;
        let name = format!("convt{i}");
        check_weights(&name, &[channels, out, 16])?;
        push_conv_transpose(&mut net, path, &name, channels, out, !norm, spec.init);
        if norm {
            push_batch_norm(&mut net, path, &format!("bn{i}"), out);
        }
        if !last {
            net.push(format!("conv_act{i}"), Layer::Activation(spec.activation));
        }
        channels = out;
    }
    Ok(net)
}

fn push_conv_transpose(net: &mut Net, path: &Path, name: &str, from: i64, to: i64, bias: bool, init: Init) {
    // PyTorch counts the fan-in of a transposed convolution on its output side: weights are [in,out,4,4].
    let (ws_init, bs_init) = starts(init, to * 16);
    let config = nn::ConvTransposeConfig { stride: 2, padding: 1, bias, ws_init, bs_init, ..Default::default() };
    net.push(name, Layer::ConvTranspose(nn::conv_transpose2d(path / name, from, to, 4, config)));
}

fn push_batch_norm(net: &mut Net, path: &Path, name: &str, channels: i64) {
    let config = nn::BatchNormConfig { ws_init: nn::Init::Const(1.0), ..Default::default() };
    net.push(name, Layer::BatchNorm(nn::batch_norm2d(path / name, channels, config)));
}
