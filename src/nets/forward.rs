//! The forward pass of a graph. A plan is made first: it fuses activations with the layers before them where a kernel computes both,
//! and finds the operations that can run in place.

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};

use super::compute::Precision;
use super::graph::{CB_SERIES, CB_SERIES_BELOW, Function, Graph, NORM_EPS, Node, Op, Value};
use crate::native;

/// Statistics used by batch normalisation; no other operation depends on the mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics; updates the running statistics.
    Train,
    /// Batch statistics; does not update the running ones.
    Batch,
    /// Running statistics: images do not depend on each other.
    Eval,
}

/// One operation to run.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Call {
    /// The node.
    node: usize,
    /// Index of its result: the activation's if one is fused.
    result: usize,
    /// Slope of the fused (leaky) ReLU; 1 for none.
    slope: f64,
    /// Whether the input may be overwritten.
    in_place: bool,
}

impl Function {
    /// Slope for x ≤ 0 of a (leaky) ReLU; none for other functions.
    fn slope(self) -> Option<f64> {
        match self {
            Function::Relu => Some(0.0),
            Function::LeakyRelu(slope) => Some(slope),
            _ => None,
        }
    }

    /// Elementwise; overwrites x if `in_place`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn apply(self, mut x: Tensor, in_place: bool) -> Result<Tensor> {
        Ok(match (self, in_place) {
            (Function::Relu, true) => x.f_relu_()?,
            (Function::Relu, false) => x.f_relu()?,
            (Function::LeakyRelu(slope), in_place) => {
                x = if in_place { x } else { x.f_mul_scalar(1.0)? };
                native::leaky_relu_(&x, slope)?;
                x
            }
            (Function::Tanh, true) => x.f_tanh_()?,
            (Function::Tanh, false) => x.f_tanh()?,
            (Function::Sigmoid, true) => x.f_sigmoid_()?,
            (Function::Sigmoid, false) => x.f_sigmoid()?,
            (Function::Silu, _) => x.f_silu()?,
            (Function::ContinuousBernoulliMean, _) => {
                let small = x.f_abs()?.f_lt(CB_SERIES_BELOW)?;
                // Each branch sees only arguments at which its gradient is finite.
                let far = x.f_ones_like()?.f_where_self(&small, &x)?;
                let formula = far.f_neg()?.f_expm1()?.f_reciprocal()?.f_add(&far.f_reciprocal()?)?.f_neg()?;
                let [first, third, fifth] = CB_SERIES;
                let near = x.f_clamp(-CB_SERIES_BELOW, CB_SERIES_BELOW)?;
                let square = near.f_square()?;
                let series = square.f_mul_scalar(fifth)?.f_add_scalar(third)?.f_mul(&square)?.f_add_scalar(first)?;
                series.f_mul(&near)?.f_add_scalar(0.5)?.f_where_self(&small, &formula)?
            }
        })
    }
}

impl Graph {
    /// The values `outputs` for these inputs, float32 in every precision. Computes only the nodes that they depend on.
    ///
    /// # Errors
    /// libtorch's, when an input has the wrong shape or when out of memory.
    pub fn forward(&self, inputs: &[&Tensor], outputs: &[Value], mode: Mode) -> Result<Vec<Tensor>> {
        ensure!(
            inputs.len() == self.inputs().len(),
            "the {} takes {} inputs, found {}",
            self.name(),
            self.inputs().len(),
            inputs.len()
        );
        let device = inputs.first().map_or(Device::Cpu, |x| x.device());
        let (calls, readers) = self.plan(outputs, device);
        let mut values = Values::new(inputs, readers);
        let low = calls.iter().take_while(|call| call.node < self.float32_from).count();
        let (low, high) = calls.split_at(low);
        let run = |values: &mut Values, calls: &[Call]| -> Result<()> {
            for call in calls {
                self.run(call, values, mode)?;
            }
            Ok(())
        };
        match self.compute.precision {
            Precision::Fp32 | Precision::Tf32 => run(&mut values, low)?,
            Precision::Bf16 => {
                native::autocast(device, || run(&mut values, low))?;
                values.make_float()?;
            }
        }
        run(&mut values, high)?;
        outputs.iter().map(|v| values.take(*v)).collect()
    }

    /// [`Graph::forward`] of a graph with one input to one value.
    ///
    /// # Errors
    /// As [`Graph::forward`].
    pub fn forward_one(&self, x: &Tensor, output: Value, mode: Mode) -> Result<Tensor> {
        self.forward(&[x], &[output], mode)?.pop().context("one output was asked for")
    }

    /// The graph's outputs in evaluation mode, without gradients, as in an export.
    ///
    /// # Errors
    /// As [`Graph::forward`].
    pub fn evaluate(&self, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let outputs: Vec<Value> = self.outputs().iter().map(|(_, v)| *v).collect();
        tch::no_grad(|| self.forward(inputs, &outputs, Mode::Eval))
    }

    /// The calls that compute `outputs`, in order, and the number of readers of each value.
    fn plan(&self, outputs: &[Value], device: Device) -> (Vec<Call>, Vec<u32>) {
        let first = self.inputs().len();
        // An output counts as a reader, so no node overwrites it.
        let readers = self.readers(outputs);
        let mut calls: Vec<Call> = Vec::with_capacity(self.nodes().len());
        for (i, node) in self.nodes().iter().enumerate() {
            let result = first + i;
            if readers[result] == 0 {
                continue;
            }
            let mut in_place = false;
            if let Op::Activation(function) = node.op {
                let before = node.inputs[0];
                let alone = readers[before.0] == 1;
                let producer = self.node_of(before).map(|b| &self.nodes()[b].op);
                if let (true, Some(op), Some(s)) = (alone, producer, function.slope())
                    && self.compute.fuses_activation(op, device)
                    && let Some(call) = calls.iter_mut().rfind(|call| call.result == before.0)
                {
                    (call.result, call.slope) = (result, s);
                    continue;
                }
                // In place if the producer's backward pass does not need its output.
                in_place = alone
                    && producer.is_some_and(|op| {
                        use Op::{Add, BatchNorm, Conv, GroupNorm, LayerNorm, Linear};
                        matches!(op, Linear(_) | Conv(_) | BatchNorm(_) | GroupNorm(_) | LayerNorm(_) | Add)
                    });
            }
            calls.push(Call { node: i, result, slope: 1.0, in_place });
        }
        (calls, readers)
    }

    fn run(&self, call: &Call, values: &mut Values, mode: Mode) -> Result<()> {
        let node = &self.nodes()[call.node];
        let inputs: Vec<Tensor> = node.inputs.iter().map(|v| values.take(*v)).collect::<Result<_>>()?;
        let shapes = || inputs.iter().map(|x| format!("{:?}", x.size())).collect::<Vec<_>>().join(" and ");
        let result = self.call(node, call, &inputs, mode);
        let result = result.with_context(|| format!("layer {}, given {}", node.name, shapes()))?;
        values.put(call.result, result);
        Ok(())
    }

    fn call(&self, node: &Node, call: &Call, inputs: &[Tensor], mode: Mode) -> Result<Tensor> {
        let (x, compute) = (&inputs[0], self.compute);
        let weight = |w: &Tensor| match &node.spectral {
            Some(spectral) => spectral.normalise(w, mode == Mode::Train),
            None => Ok(w.shallow_clone()),
        };
        Ok(match &node.op {
            Op::Linear(l) => compute.linear(x, &weight(&l.ws)?, l.bs.as_ref(), call.slope)?,
            Op::Conv(l) => compute.conv(x, l, &weight(&l.weight)?, call.slope)?,
            Op::BatchNorm(l) => compute.batch_norm(x, l, (mode != Mode::Eval, mode != Mode::Batch), call.slope)?,
            Op::GroupNorm(l) => x.f_group_norm(l.num_groups, l.ws.as_ref(), l.bs.as_ref(), NORM_EPS, true)?,
            Op::LayerNorm(l) => {
                x.f_layer_norm(&l.normalized_shape[..], l.ws.as_ref(), l.bs.as_ref(), NORM_EPS, true)?
            }
            Op::Activation(function) => function.apply(x.shallow_clone(), call.in_place)?,
            Op::Add => x.f_add(&inputs[1])?,
            Op::Multiply => x.f_mul(&inputs[1])?,
            Op::Affine { scale, shift } => native::affine(x, *scale, *shift)?,
            Op::Concat => Tensor::f_cat(inputs, 1)?,
            Op::Embedding(l) if x.is_floating_point() => x.f_matmul(&weight(&l.ws)?)?,
            Op::Embedding(l) => Tensor::f_embedding(&weight(&l.ws)?, x, -1, false, false)?,
            Op::Upsample if x.device() == Device::Cpu => {
                x.f_upsample_bilinear2d([node.dims[1], node.dims[2]], false, None::<f64>, None::<f64>)?
            }
            Op::Upsample => upsample(x)?,
            Op::Pad { left, right, top, bottom } => x.f_constant_pad_nd([*left, *right, *top, *bottom])?,
            Op::AveragePool(block) => x.f_avg_pool2d(block, block, [0, 0], false, true, None)?,
            Op::MatMul { transpose_a, transpose_b } => {
                let side = |t: &Tensor, turn: bool| if turn { t.f_transpose(-2, -1) } else { Ok(t.shallow_clone()) };
                side(x, *transpose_a)?.f_matmul(&side(&inputs[1], *transpose_b)?)?
            }
            Op::Softmax => x.f_softmax(-1, None::<Kind>)?,
            Op::Reshape(dims) => {
                // Not −1: images of a wrong size must not change the batch size.
                let batch = x.size().first().copied().unwrap_or(1);
                compute.contiguous_image(x)?.f_reshape([&[batch], dims.as_slice()].concat())?
            }
        })
    }
}

/// [B,C,H,W] -> [B,C,2H,2W] as `upsample_bilinear2d`, from operations whose gradients are the same bits each time on a GPU, which those
/// of `upsample_bilinear2d` are not there: each pixel becomes two of ¾ its own value and ¼ that of the neighbour on their side.
fn upsample(x: &Tensor) -> Result<Tensor> {
    let mut x = x.shallow_clone();
    for dim in [2, 3] {
        let n = x.size()[dim as usize];
        let [first, most, rest, last] =
            [(0, 1), (0, n - 1), (1, n - 1), (n - 1, 1)].map(|(from, len)| x.f_narrow(dim, from, len));
        let before = Tensor::f_cat(&[first?, most?], dim)?;
        let after = Tensor::f_cat(&[rest?, last?], dim)?;
        let both = [before, after].map(|neighbour| x.f_lerp(&neighbour, 0.25));
        let [before, after] = both;
        x = Tensor::f_stack(&[before?, after?], dim + 1)?.f_flatten(dim, dim + 1)?;
    }
    Ok(x)
}

/// The values that are still to be read.
struct Values {
    held: Vec<Option<Tensor>>,
    readers: Vec<u32>,
}

impl Values {
    fn new(inputs: &[&Tensor], readers: Vec<u32>) -> Self {
        let mut held: Vec<Option<Tensor>> = inputs.iter().map(|x| Some(x.shallow_clone())).collect();
        held.resize_with(readers.len(), || None);
        Values { held, readers }
    }

    /// A value for one reader. The last reader gets the only handle, so its memory is freed early.
    fn take(&mut self, value: Value) -> Result<Tensor> {
        self.readers[value.0] -= 1;
        let place = &mut self.held[value.0];
        let tensor = if self.readers[value.0] == 0 { place.take() } else { place.as_ref().map(Tensor::shallow_clone) };
        tensor.context("a value is read before it is computed")
    }

    fn put(&mut self, value: usize, tensor: Tensor) {
        self.held[value] = Some(tensor);
    }

    fn make_float(&mut self) -> Result<()> {
        for t in self.held.iter_mut().flatten().filter(|t| t.is_floating_point()) {
            *t = t.f_to_kind(Kind::Float)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form for GPUs, whose gradients come from the same operations.
    #[test]
    fn upsampling_by_elementary_operations_is_bilinear() {
        tch::manual_seed(1);
        for size in [[2, 3, 4, 5], [1, 2, 1, 7], [3, 1, 2, 1]] {
            let x = Tensor::randn(size, (Kind::Float, Device::Cpu)).set_requires_grad(true);
            let want = x.upsample_bilinear2d([2 * size[2], 2 * size[3]], false, None::<f64>, None::<f64>);
            let got = upsample(&x).unwrap();
            assert!(got.allclose(&want, 1e-5, 1e-6, false), "{size:?}");
            let weight = Tensor::randn_like(&want);
            let grad = |y: &Tensor| Tensor::run_backward(&[(y * &weight).sum(Kind::Float)], &[&x], false, false);
            assert!(grad(&got)[0].allclose(&grad(&want)[0], 1e-5, 1e-5, false), "{size:?}");
        }
    }
}
