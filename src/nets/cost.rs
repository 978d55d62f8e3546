//! Shape inference, and the matmuls and convolutions of a step with their flops.

use super::graph::{ConvSpec, Graph, Op};

/// A matmul or convolution, for one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatmulOp {
    /// x [rows,from] -> [rows,to].
    Linear {
        /// Rows per image.
        rows: i64,
        /// Width of the input.
        from: i64,
        /// Width of the output.
        to: i64,
    },
    /// [from,height,width] -> [to,H',W'].
    Conv {
        /// Channels of the input.
        from: i64,
        /// Channels of the output.
        to: i64,
        /// H of the input.
        height: i64,
        /// W of the input.
        width: i64,
        /// The rest.
        spec: ConvSpec,
    },
    /// `batch` matmuls [m,k] · [k,n] of two activations.
    MatMul {
        /// Matmuls per image.
        batch: i64,
        /// Rows.
        m: i64,
        /// Inner dimension.
        k: i64,
        /// Columns.
        n: i64,
    },
}

/// Forward or one of the two backward computations of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The output.
    Forward,
    /// The gradient with respect to the input.
    Input,
    /// The gradient with respect to the weights (of a matmul of two activations: the second).
    Weights,
}

/// A matmul or convolution of a step, at a batch size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Work {
    /// The operation.
    pub op: MatmulOp,
    /// Forward or backward.
    pub pass: Pass,
    /// B.
    pub batch: i64,
}

impl Work {
    /// Flops: multiplications and additions.
    pub fn flops(&self) -> f64 {
        let each = match self.op {
            MatmulOp::Linear { rows, from, to } => rows * from * to,
            MatmulOp::Conv { from, to, height, width, spec } => {
                // Each weight is used once per pixel of the output (transposed: of the input).
                let pixels = match spec.transposed {
                    true => height * width,
                    false => side_after(height, spec) * side_after(width, spec),
                };
                from * to / spec.groups * spec.kernel * spec.kernel * pixels
            }
            MatmulOp::MatMul { batch, m, k, n } => batch * m * k * n,
        };
        2.0 * (each * self.batch) as f64
    }
}

/// H or W after a convolution.
fn side_after(side: i64, ConvSpec { kernel, stride, padding, transposed, .. }: ConvSpec) -> i64 {
    if transposed { (side - 1) * stride - 2 * padding + kernel } else { (side + 2 * padding - kernel) / stride + 1 }
}

/// Output dimensions of `op` for these input dimensions, without the batch; none if they do not fit.
pub(super) fn result_dims(op: &Op, inputs: &[&[i64]]) -> Option<Vec<i64>> {
    let image = |dims: &[i64]| <[i64; 3]>::try_from(dims).ok();
    let result = match (op, inputs) {
        (Op::Linear(l), [[rest @ .., from]]) if *from == l.ws.size()[1] => [rest, &[l.ws.size()[0]]].concat(),
        (Op::Conv(l), [x]) => {
            let [_, h, w] = image(x)?;
            vec![l.out_channels(), side_after(h, l.spec), side_after(w, l.spec)]
        }
        (Op::BatchNorm(l), [x]) if image(x)?[0] == l.running_mean.size()[0] => x.to_vec(),
        (Op::GroupNorm(l), [x]) if image(x)?[0] == l.num_channels => x.to_vec(),
        (Op::LayerNorm(l), [x]) if x.ends_with(&l.normalized_shape) => x.to_vec(),
        (Op::Activation(_) | Op::Affine { .. }, [x]) => x.to_vec(),
        (Op::Softmax, [x]) if !x.is_empty() => x.to_vec(),
        (Op::Add | Op::Multiply, [a, b]) if a.len() == b.len() => {
            let side = |(a, b): (&i64, &i64)| if a == b || *b == 1 { Some(*a) } else { (*a == 1).then_some(*b) };
            a.iter().zip(*b).map(side).collect::<Option<_>>()?
        }
        (Op::Concat, [[first, rest @ ..], others @ ..]) => {
            let mut sum = *first;
            for other in others {
                let (more, same) = other.split_first()?;
                sum += if same == rest { *more } else { return None };
            }
            [&[sum], rest].concat()
        }
        (Op::Embedding(l), [[]]) => vec![l.ws.size()[1]],
        (Op::Upsample, [x]) => image(x).map(|[c, h, w]| vec![c, 2 * h, 2 * w])?,
        (Op::Pad { left, right, top, bottom }, [x]) => {
            image(x).map(|[c, h, w]| vec![c, h + top + bottom, w + left + right])?
        }
        (Op::AveragePool([k, l]), [x]) => {
            let [c, h, w] = image(x)?;
            if h % k != 0 || w % l != 0 {
                return None;
            }
            vec![c, h / k, w / l]
        }
        (Op::MatMul { transpose_a, transpose_b }, [[batch @ .., a0, a1], [others @ .., b0, b1]]) => {
            let (m, k) = if *transpose_a { (a1, a0) } else { (a0, a1) };
            let (inner, n) = if *transpose_b { (b1, b0) } else { (b0, b1) };
            if k != inner || batch != others {
                return None;
            }
            [batch, &[*m, *n]].concat()
        }
        (Op::Reshape(dims), [x]) if x.iter().product::<i64>() == dims.iter().product::<i64>() => dims.clone(),
        _ => return None,
    };
    result.iter().all(|d| *d > 0).then_some(result)
}

impl Graph {
    /// The matmuls and convolutions of one forward pass, in order, and whether each needs the gradient of its input to train the
    /// layers before it.
    pub fn matmuls(&self) -> Vec<(MatmulOp, bool)> {
        let mut matmuls = Vec::new();
        // Whether each value depends on parameters.
        let mut trained = vec![false; self.inputs().len()];
        for node in self.nodes() {
            let below = node.inputs.iter().any(|v| trained[v.0]);
            let dims = self.dims(node.inputs[0]);
            let op = match &node.op {
                Op::Linear(l) => {
                    let (size, rows) = (l.ws.size(), dims[..dims.len() - 1].iter().product());
                    Some(MatmulOp::Linear { rows, from: size[1], to: size[0] })
                }
                Op::Conv(l) => Some(MatmulOp::Conv {
                    from: dims[0],
                    to: l.out_channels(),
                    height: dims[1],
                    width: dims[2],
                    spec: l.spec,
                }),
                Op::MatMul { transpose_a, .. } => {
                    let [batch @ .., m, n] = node.dims.as_slice() else { continue };
                    let k = if *transpose_a { dims[dims.len() - 2] } else { dims[dims.len() - 1] };
                    Some(MatmulOp::MatMul { batch: batch.iter().product(), m: *m, k, n: *n })
                }
                _ => None,
            };
            matmuls.extend(op.map(|op| (op, below)));
            trained.push(below || !node.op.tensors().is_empty());
        }
        matmuls
    }

    /// Flops of one forward pass on one image.
    pub fn flops(&self) -> f64 {
        let forward = |(op, _): (MatmulOp, bool)| Work { op, pass: Pass::Forward, batch: 1 }.flops();
        self.matmuls().into_iter().map(forward).sum()
    }

    /// The work of a forward pass at a batch size.
    pub fn forward_work(&self, batch: i64) -> Vec<Work> {
        self.matmuls().into_iter().map(|(op, _)| Work { op, pass: Pass::Forward, batch }).collect()
    }

    /// The work of a training step at a batch size: the forward pass, the weight gradients if `weights`, and the input gradients that
    /// lead to weights, or to the graph's inputs if `to_input`.
    pub fn training_work(&self, batch: i64, weights: bool, to_input: bool) -> Vec<Work> {
        let matmuls = self.matmuls();
        let work = |op, pass| Work { op, pass, batch };
        let forward = matmuls.iter().map(|&(op, _)| work(op, Pass::Forward));
        let backward = matmuls.iter().rev().flat_map(|&(op, below)| {
            let input = (below || to_input).then_some(Pass::Input);
            let second = (weights || matches!(op, MatmulOp::MatMul { .. })).then_some(Pass::Weights);
            input.into_iter().chain(second).map(move |pass| work(op, pass))
        });
        forward.chain(backward).collect()
    }
}
