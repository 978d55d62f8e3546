//! The matrix products and convolutions of a network, as a list of shapes: what a step cannot do without.

use super::{Layer, Net};

/// One product or convolution, for one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// [B,from] -> [B,to].
    Linear {
        /// Width of the input.
        from: i64,
        /// Width of the output.
        to: i64,
    },
    /// 4×4, stride 2, padding 1: [B,from,H,W] -> [B,to,H/2,W/2]; transposed: -> [B,to,2H,2W].
    Strided {
        /// Channels of the input.
        from: i64,
        /// Channels of the output.
        to: i64,
        /// H of the input.
        height: i64,
        /// W of the input.
        width: i64,
        /// Whether it is the transposed one.
        transposed: bool,
    },
}

/// Which of its three products an [`Op`] is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The output.
    Forward,
    /// The gradient with respect to the input.
    Input,
    /// The gradient with respect to the weights.
    Weights,
}

/// A piece of a step: an op at a batch size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Work {
    /// What is computed.
    pub op: Op,
    /// Which of its products.
    pub pass: Pass,
    /// B.
    pub batch: i64,
}

impl Work {
    /// Multiplications and additions.
    pub fn flops(&self) -> f64 {
        let each = match self.op {
            Op::Linear { from, to } => from * to,
            Op::Strided { from, to, height, width, transposed } => {
                // 16 taps at each pixel of the smaller side.
                from * to * height * width * if transposed { 16 } else { 4 }
            }
        };
        2.0 * (each * self.batch) as f64
    }
}

impl Net {
    /// The ops of the layers in order; `image` is (H, W) of the input where that is an image.
    pub fn ops(&self, image: Option<(i64, i64)>) -> Vec<Op> {
        let (mut height, mut width) = image.unwrap_or((1, 1));
        let mut ops = Vec::new();
        for (_, layer) in &self.layers {
            match layer {
                Layer::Linear(l) => {
                    let size = l.ws.size();
                    ops.push(Op::Linear { from: size[1], to: size[0] });
                }
                Layer::Conv(l) => {
                    let size = l.ws.size();
                    ops.push(Op::Strided { from: size[1], to: size[0], height, width, transposed: false });
                    (height, width) = (height / 2, width / 2);
                }
                Layer::ConvTranspose(l) => {
                    let size = l.ws.size();
                    ops.push(Op::Strided { from: size[0], to: size[1], height, width, transposed: true });
                    (height, width) = (height * 2, width * 2);
                }
                Layer::Reshape([_, h, w]) => (height, width) = (*h, *w),
                Layer::BatchNorm(_) | Layer::Activation(_) | Layer::Flatten => {}
            }
        }
        ops
    }
}

/// What training through `ops` takes: all forward, and the gradients of all weights; of inputs all but the first's, which is
/// nobody's gradient, unless `to_input`.
pub fn training(ops: &[Op], batch: i64, weights: bool, to_input: bool) -> Vec<Work> {
    let forward = ops.iter().map(|&op| Work { op, pass: Pass::Forward, batch });
    let backward = ops.iter().enumerate().rev().flat_map(|(i, &op)| {
        let input = (i > 0 || to_input).then_some(Pass::Input);
        let weights = weights.then_some(Pass::Weights);
        input.into_iter().chain(weights).map(move |pass| Work { op, pass, batch })
    });
    forward.chain(backward).collect()
}
