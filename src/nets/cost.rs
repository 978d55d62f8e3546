//! What operations cost: the shapes that they give, and the matrix products and convolutions that a step cannot do without.

use super::graph::{Graph, Op};

/// A matrix product or convolution, for one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Product {
    /// [rows,from] · [from,to].
    Linear {
        /// Rows for each image.
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
        /// Sides of the kernel.
        kernel: i64,
        /// Stride.
        stride: i64,
        /// Padding.
        padding: i64,
        /// Groups.
        groups: i64,
        /// Whether it is the transposed one.
        transposed: bool,
    },
    /// `batch` products [m,k] · [k,n] of two computed values.
    MatMul {
        /// Products for each image.
        batch: i64,
        /// Rows.
        m: i64,
        /// Summed over.
        k: i64,
        /// Columns.
        n: i64,
    },
}

/// Which of its three products an operation is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The output.
    Forward,
    /// The gradient with respect to the input.
    Input,
    /// The gradient with respect to the weights (of a product of two values, the second).
    Weights,
}

/// A piece of a step: a product at a batch size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Work {
    /// What is computed.
    pub product: Product,
    /// Which of its products.
    pub pass: Pass,
    /// B.
    pub batch: i64,
}

impl Work {
    /// Multiplications and additions.
    pub fn flops(&self) -> f64 {
        let each = match self.product {
            Product::Linear { rows, from, to } => rows * from * to,
            Product::Conv { from, to, height, width, kernel, stride, padding, groups, transposed } => {
                // Each weight once for each pixel of the side that the kernel steps over.
                let pixels = match transposed {
                    true => height * width,
                    false => conv_side(height, kernel, stride, padding) * conv_side(width, kernel, stride, padding),
                };
                from * to / groups * kernel * kernel * pixels
            }
            Product::MatMul { batch, m, k, n } => batch * m * k * n,
        };
        2.0 * (each * self.batch) as f64
    }
}

fn conv_side(side: i64, kernel: i64, stride: i64, padding: i64) -> i64 {
    (side + 2 * padding - kernel) / stride + 1
}

/// Dimensions after the batch of what `op` makes of inputs with these; none when it cannot take them.
pub(super) fn result_dims(op: &Op, inputs: &[&[i64]]) -> Option<Vec<i64>> {
    let image = |dims: &[i64]| <[i64; 3]>::try_from(dims).ok();
    let result = match (op, inputs) {
        (Op::Linear(l), [[rest @ .., from]]) if *from == l.ws.size()[1] => [rest, &[l.ws.size()[0]]].concat(),
        (Op::Conv(l), [x]) => {
            let [_, h, w] = image(x)?;
            let (kernel, stride, padding) = (l.kernel(), l.stride, l.padding);
            let side = |side: i64| match l.transposed {
                true => (side - 1) * stride - 2 * padding + kernel,
                false => conv_side(side, kernel, stride, padding),
            };
            vec![l.out_channels(), side(h), side(w)]
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
        (Op::Upsample(k), [x]) => image(x).map(|[c, h, w]| vec![c, k * h, k * w])?,
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
    /// The products of one pass through all nodes, in order, and whether the gradient with respect to each's input is wanted when
    /// the gradient with respect to the graph's own inputs is not.
    pub fn products(&self) -> Vec<(Product, bool)> {
        let mut products = Vec::new();
        // Whether a value depends on parameters.
        let mut trained = vec![false; self.inputs().len()];
        for node in self.nodes() {
            let below = node.inputs.iter().any(|v| trained[v.0]);
            let dims = self.dims(node.inputs[0]);
            let product = match &node.op {
                Op::Linear(l) => {
                    let (size, rows) = (l.ws.size(), dims[..dims.len() - 1].iter().product());
                    Some(Product::Linear { rows, from: size[1], to: size[0] })
                }
                Op::Conv(l) => Some(Product::Conv {
                    from: dims[0],
                    to: l.out_channels(),
                    height: dims[1],
                    width: dims[2],
                    kernel: l.kernel(),
                    stride: l.stride,
                    padding: l.padding,
                    groups: l.groups,
                    transposed: l.transposed,
                }),
                Op::MatMul { transpose_a, .. } => {
                    let [batch @ .., m, n] = node.dims.as_slice() else { continue };
                    let k = if *transpose_a { dims[dims.len() - 2] } else { dims[dims.len() - 1] };
                    Some(Product::MatMul { batch: batch.iter().product(), m: *m, k, n: *n })
                }
                _ => None,
            };
            products.extend(product.map(|product| (product, below)));
            trained.push(below || !node.op.tensors().is_empty());
        }
        products
    }

    /// Multiplications and additions of one forward pass on one image.
    pub fn flops(&self) -> f64 {
        let forward = |(product, _): (Product, bool)| Work { product, pass: Pass::Forward, batch: 1 }.flops();
        self.products().into_iter().map(forward).sum()
    }

    /// What training through the graph takes at a batch size: all forward, the gradients of all weights if `weights`, and of the
    /// inputs all that lead to weights, or to the graph's own inputs if `to_input`.
    pub fn training_work(&self, batch: i64, weights: bool, to_input: bool) -> Vec<Work> {
        let products = self.products();
        let work = |product, pass| Work { product, pass, batch };
        let forward = products.iter().map(|&(product, _)| work(product, Pass::Forward));
        let backward = products.iter().rev().flat_map(|&(product, below)| {
            let input = (below || to_input).then_some(Pass::Input);
            let second = (weights || matches!(product, Product::MatMul { .. })).then_some(Pass::Weights);
            input.into_iter().chain(second).map(move |pass| work(product, pass))
        });
        forward.chain(backward).collect()
    }
}
