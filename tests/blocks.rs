//! Blocks of networks to come, built with the public builder and read by all four readers of a graph: the forward pass against the
//! same in elementary operations in double precision, TorchScript and ONNX as exported, costs against counts by hand.

mod common;

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use common::python::{python, run_script, write_expected};
use ganvae::export::{self, Format, Origin, example};
use ganvae::native::{self, MatmulBackend};
use ganvae::nets::cost::MatmulOp;
use ganvae::nets::graph::{Builder, CB_SERIES_BELOW, ConvSpec, Function, Graph, Init, Op, Port, Value};
use ganvae::nets::{Kernels, Layout, Mode};
use tch::nn::VarStore;
use tch::{CModule, Device, IValue, Kind, Tensor};

const BATCH: i64 = 5;

/// A graph, the same computation written out, and what it costs.
struct Block {
    vars: VarStore,
    graph: Graph,
    plain: fn(&Plain, &[Tensor]) -> Vec<Tensor>,
    matmuls: Vec<MatmulOp>,
    /// Multiplications and additions for one image, counted by hand.
    flops: i64,
}

impl Block {
    fn new(
        name: &'static str,
        build: impl FnOnce(&mut Builder) -> Result<()>,
        plain: fn(&Plain, &[Tensor]) -> Vec<Tensor>,
        matmuls: Vec<MatmulOp>,
        flops: i64,
    ) -> Block {
        tch::manual_seed(3);
        let vars = VarStore::new(Device::Cpu);
        let mut b = Builder::new(&vars, name, Init::PyTorch);
        build(&mut b).unwrap();
        let graph = b.finish().unwrap();
        // Fresh vectors are zeros and ones, behind which a mistake could hide.
        for (i, (key, t, _)) in graph.tensors().unwrap().iter().enumerate().filter(|(_, (_, t, _))| t.dim() == 1) {
            let noise = native::randn(i as i64, &t.size()).unwrap() * 0.5;
            let value = match key.rsplit('.').next() {
                Some("running_var") => noise.exp(),
                Some("weight") => noise + 1.0,
                _ => noise,
            };
            tch::no_grad(|| t.shallow_clone().copy_(&value));
        }
        Block { vars, graph, plain, matmuls, flops }
    }

    fn name(&self) -> &'static str {
        self.graph.name()
    }

    fn inputs(&self, batch: i64) -> Vec<Tensor> {
        self.graph.inputs().iter().map(|port| example(port, batch).unwrap()).collect()
    }

    fn outputs(&self) -> Vec<Value> {
        self.graph.outputs().iter().map(|(_, v)| *v).collect()
    }

    /// Outputs of the plain computation, and the gradients of their squares with respect to parameters and float inputs.
    fn wanted(&self, batch: i64, training: bool) -> (Vec<Tensor>, Vec<Tensor>) {
        let double = |t: &Tensor| t.detach().to_kind(Kind::Double).set_requires_grad(true);
        let tensors = self.graph.tensors().unwrap();
        let weights = tensors.iter().map(|(key, t, _)| (key.clone(), double(t))).collect();
        let plain = Plain { weights, training };
        let inputs: Vec<_> = self
            .inputs(batch)
            .iter()
            .map(|x| if x.is_floating_point() { double(x) } else { x.shallow_clone() })
            .collect();
        let outputs = (self.plain)(&plain, &inputs);
        let parameters = tensors.iter().filter(|(.., parameter)| *parameter).map(|(key, ..)| &plain.weights[key]);
        let of: Vec<_> = parameters.chain(inputs.iter().filter(|x| x.is_floating_point())).collect();
        let gradients = Tensor::run_backward(&[loss(&outputs)], &of, false, false);
        (outputs, gradients)
    }

    /// The same of the graph.
    fn found(&self, batch: i64, mode: Mode) -> (Vec<Tensor>, Vec<Tensor>) {
        let inputs: Vec<_> = self
            .inputs(batch)
            .into_iter()
            .map(|x| if x.is_floating_point() { x.set_requires_grad(true) } else { x })
            .collect();
        let outputs = self.graph.forward(&inputs.iter().collect::<Vec<_>>(), &self.outputs(), mode).unwrap();
        let tensors = self.graph.tensors().unwrap();
        let parameters = tensors.iter().filter(|(.., parameter)| *parameter).map(|(_, t, _)| t);
        let of: Vec<_> = parameters.chain(inputs.iter().filter(|x| x.is_floating_point())).collect();
        let gradients = Tensor::run_backward(&[loss(&outputs)], &of, false, false);
        (outputs, gradients)
    }
}

fn loss(outputs: &[Tensor]) -> Tensor {
    outputs.iter().map(|y| y.square().sum(y.kind())).sum()
}

/// Refuses tensors that differ by more than rounding, as a share of the largest value of all.
fn agree(what: &str, got: &[Tensor], want: &[Tensor]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().map(|t| t.abs().max().double_value(&[])).fold(0.0, f64::max);
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.size(), want.size(), "{what}, number {i}");
        let off = (got.to_kind(Kind::Double) - want).abs().max().double_value(&[]) / scale;
        assert!(off < 2e-6, "{what}, number {i}: off by {off:.1e}");
    }
}

/// The computation without the graph: elementary operations in double precision.
struct Plain {
    weights: HashMap<String, Tensor>,
    training: bool,
}

impl Plain {
    fn get(&self, key: &str) -> &Tensor {
        self.weights.get(key).unwrap_or_else(|| panic!("no {key}"))
    }

    fn bias(&self, layer: &str) -> Option<&Tensor> {
        self.weights.get(&format!("{layer}.bias"))
    }

    fn linear(&self, layer: &str, x: &Tensor) -> Tensor {
        let product = x.matmul(&self.get(&format!("{layer}.weight")).transpose(0, 1));
        self.bias(layer).map_or(product.shallow_clone(), |b| product + b)
    }

    fn conv(&self, layer: &str, x: &Tensor, stride: i64, padding: i64, groups: i64) -> Tensor {
        let w = self.get(&format!("{layer}.weight"));
        x.conv2d(w, self.bias(layer), [stride; 2], [padding; 2], [1, 1], groups)
    }

    fn conv_transpose(&self, layer: &str, x: &Tensor, stride: i64, padding: i64, groups: i64) -> Tensor {
        let w = self.get(&format!("{layer}.weight"));
        x.conv_transpose2d(w, self.bias(layer), [stride; 2], [padding; 2], [0, 0], groups, [1, 1])
    }

    /// (x − mean) / √(variance + 1e-5) with statistics over `dims`.
    fn standard(x: &Tensor, dims: &[i64]) -> Tensor {
        let mean = x.mean_dim(dims, true, None::<Kind>);
        let variance = (x - &mean).square().mean_dim(dims, true, None::<Kind>);
        (x - mean) / (variance + 1e-5).sqrt()
    }

    /// x·weight + bias by channel, where the layer has them.
    fn affine(&self, layer: &str, x: Tensor) -> Tensor {
        let channel = |key: &str| self.weights.get(&format!("{layer}.{key}")).map(|t| t.reshape([1, -1, 1, 1]));
        match (channel("weight"), channel("bias")) {
            (Some(weight), Some(bias)) => x * weight + bias,
            _ => x,
        }
    }

    fn batch_norm(&self, layer: &str, x: &Tensor) -> Tensor {
        let along = |key: &str| self.get(&format!("{layer}.{key}")).reshape([1, -1, 1, 1]);
        let normal = if self.training {
            Self::standard(x, &[0, 2, 3])
        } else {
            (x - along("running_mean")) / (along("running_var") + 1e-5).sqrt()
        };
        self.affine(layer, normal)
    }

    fn group_norm(&self, layer: &str, x: &Tensor, groups: i64) -> Tensor {
        let grouped = x.reshape([x.size()[0], groups, -1]);
        self.affine(layer, Self::standard(&grouped, &[2]).reshape(x.size()))
    }

    fn layer_norm(&self, layer: &str, x: &Tensor) -> Tensor {
        let weight = self.get(&format!("{layer}.weight"));
        Self::standard(x, &[-1]) * weight + self.get(&format!("{layer}.bias"))
    }
}

fn silu(x: &Tensor) -> Tensor {
    x / ((-x).exp() + 1.0)
}

fn sigmoid(x: &Tensor) -> Tensor {
    ((-x).exp() + 1.0).reciprocal()
}

fn softmax(x: &Tensor) -> Tensor {
    let e = x.exp();
    &e / e.sum_dim_intlist([-1i64].as_slice(), true, None::<Kind>)
}

/// Twice as many pixels in each direction: each new one is ¾ of the old one that it lies in and ¼ of the next nearest.
fn doubled(x: &Tensor) -> Tensor {
    let along = |x: &Tensor, dim: i64| {
        let n = x.size()[dim as usize];
        let pixel = |i: i64| x.select(dim, i.clamp(0, n - 1));
        let all: Vec<_> = (0..2 * n).map(|i| pixel(i / 2) * 0.75 + pixel(i / 2 + 2 * (i % 2) - 1) * 0.25).collect();
        Tensor::stack(&all, dim)
    };
    along(&along(x, 2), 3)
}

fn act(b: &mut Builder, name: &str, function: Function, x: Value) -> Result<Value> {
    b.op(name, Op::Activation(function), &[x])
}

fn reshape(b: &mut Builder, name: &str, dims: &[i64], x: Value) -> Result<Value> {
    b.op(name, Op::Reshape(dims.to_vec()), &[x])
}

/// A convolution of stride 1 that keeps the sides, of this many groups.
fn same(kernel: i64, groups: i64) -> ConvSpec {
    ConvSpec { groups, ..ConvSpec::same(kernel) }
}

fn conv_op([from, to]: [i64; 2], side: i64, spec: ConvSpec) -> MatmulOp {
    MatmulOp::Conv { from, to, height: side, width: side, spec }
}

/// Group normalisation, SiLU, grouped convolution, twice, beside a convolution that changes the channels.
fn residual() -> Block {
    let skip = ConvSpec { bias: false, ..same(1, 1) };
    let build = |b: &mut Builder| {
        let x = b.input(Port::new("x", &[8, 6, 6], "features"))?;
        let mut h = b.group_norm("norm1", x, 4, true)?;
        h = act(b, "act1", Function::Silu, h)?;
        h = b.conv("conv1", h, 12, same(3, 4))?;
        h = b.group_norm("norm2", h, 3, true)?;
        h = act(b, "act2", Function::Relu, h)?;
        h = b.conv("conv2", h, 12, same(3, 2))?;
        let skip = b.conv("skip", x, 12, skip)?;
        let sum = b.op("sum", Op::Add, &[h, skip])?;
        let out = act(b, "act3", Function::LeakyRelu(0.2), sum)?;
        b.output(Port::new("y", &[12, 6, 6], "features"), out)
    };
    let plain = |p: &Plain, x: &[Tensor]| {
        let h = silu(&p.group_norm("norm1", &x[0], 4));
        let h = p.group_norm("norm2", &p.conv("conv1", &h, 1, 1, 4), 3).clamp_min(0.0);
        let sum = p.conv("conv2", &h, 1, 1, 2) + p.conv("skip", &x[0], 1, 0, 1);
        vec![sum.clamp_min(0.0) + sum.clamp_max(0.0) * 0.2]
    };
    let matmuls = vec![conv_op([8, 12], 6, same(3, 4)), conv_op([12, 12], 6, same(3, 2)), conv_op([8, 12], 6, skip)];
    // 36 pixels of 12 channels: 2 inputs of 9 pixels each, 6 of 9, 8 of 1.
    Block::new("residual", build, plain, matmuls, 2 * 36 * 12 * (2 * 9 + 6 * 9 + 8))
}

/// The generator's block of SNGAN: batch normalisation and upsampling, beside an upsampled convolution.
fn upsampling() -> Block {
    let build = |b: &mut Builder| {
        let x = b.input(Port::new("x", &[6, 4, 4], "features"))?;
        let mut h = b.batch_norm("norm1", x, true)?;
        h = act(b, "act1", Function::LeakyRelu(0.2), h)?;
        h = b.op("up", Op::Upsample, &[h])?;
        h = b.conv("conv1", h, 5, same(3, 1))?;
        h = b.batch_norm("norm2", h, true)?;
        h = act(b, "act2", Function::Relu, h)?;
        h = b.conv("conv2", h, 3, same(5, 1))?;
        let skip = b.op("skip_up", Op::Upsample, &[x])?;
        let skip = b.conv("skip", skip, 3, same(1, 1))?;
        let sum = b.op("sum", Op::Add, &[h, skip])?;
        let sum = b.op("again", Op::Upsample, &[sum])?;
        let cut = b.op("cut", Op::Pad { left: 0, right: -2, top: -1, bottom: -2 }, &[sum])?;
        let padded = b.op("padded", Op::Pad { left: 0, right: 1, top: 0, bottom: 0 }, &[cut])?;
        let tanh = act(b, "tanh", Function::Tanh, padded)?;
        // On both sides of where the series of the mean ends.
        let logits = b.op("logits", Op::Affine { scale: 2.0, shift: 0.3 }, &[tanh])?;
        let mean = act(b, "mean", Function::ContinuousBernoulliMean, logits)?;
        b.output(Port::images("image", &[3, 13, 15], "images"), mean)
    };
    let plain = |p: &Plain, x: &[Tensor]| {
        let h = p.batch_norm("norm1", &x[0]);
        let h = doubled(&(h.clamp_min(0.0) + h.clamp_max(0.0) * 0.2));
        let h = p.batch_norm("norm2", &p.conv("conv1", &h, 1, 1, 1)).clamp_min(0.0);
        let sum = p.conv("conv2", &h, 1, 2, 1) + p.conv("skip", &doubled(&x[0]), 1, 0, 1);
        let image = doubled(&sum).narrow(2, 1, 13).narrow(3, 0, 14).constant_pad_nd([0, 1, 0, 0]);
        let logits = image.tanh() * 2.0 + 0.3;
        let inside = logits.abs().lt(CB_SERIES_BELOW).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        assert!(inside > 0.05 && inside < 0.95, "{inside} of the logits are in the series");
        vec![((-&logits).exp().neg() + 1.0).reciprocal() - logits.reciprocal()]
    };
    let matmuls = vec![conv_op([6, 5], 8, same(3, 1)), conv_op([5, 3], 8, same(5, 1)), conv_op([6, 3], 8, same(1, 1))];
    Block::new("upsampling", build, plain, matmuls, 2 * 64 * (5 * 6 * 9 + 3 * 5 * 25 + 3 * 6))
}

/// Self-attention over the pixels of an image with two heads of four channels.
fn attention() -> Block {
    let build = |b: &mut Builder| {
        let x = b.input(Port::new("x", &[8, 4, 4], "features"))?;
        let h = b.group_norm("norm", x, 1, true)?;
        let mut heads = Vec::new();
        for name in ["q", "k", "v"] {
            let all = b.conv(name, h, 8, same(1, 1))?;
            heads.push(reshape(b, &format!("{name}_heads"), &[2, 4, 16], all)?);
        }
        let scores = b.op("scores", Op::MatMul { transpose_a: true, transpose_b: false }, &heads[..2])?;
        let scaled = b.op("scaled", Op::Affine { scale: 0.5, shift: 0.0 }, &[scores])?;
        let weights = b.op("weights", Op::Softmax, &[scaled])?;
        let mixed = b.op("mixed", Op::MatMul { transpose_a: false, transpose_b: true }, &[heads[2], weights])?;
        let image = reshape(b, "image", &[8, 4, 4], mixed)?;
        let out = b.conv("out", image, 8, same(1, 1))?;
        let sum = b.op("sum", Op::Add, &[x, out])?;
        b.output(Port::new("y", &[8, 4, 4], "features"), sum)
    };
    let plain = |p: &Plain, x: &[Tensor]| {
        let h = p.group_norm("norm", &x[0], 1);
        let [q, k, v] = ["q", "k", "v"].map(|name| p.conv(name, &h, 1, 0, 1).reshape([-1, 2, 4, 16]));
        // For each pixel i the mean of v over pixels j, weighted by its similarity to each.
        let scores = Tensor::einsum("bhci,bhcj->bhij", &[q, k], None::<i64>) * 0.5;
        let mixed = Tensor::einsum("bhcj,bhij->bhci", &[v, softmax(&scores)], None::<i64>);
        vec![&x[0] + p.conv("out", &mixed.reshape([-1, 8, 4, 4]), 1, 0, 1)]
    };
    let conv = conv_op([8, 8], 4, same(1, 1));
    let matmuls = vec![
        conv,
        conv,
        conv,
        MatmulOp::MatMul { batch: 2, m: 16, k: 4, n: 16 },
        MatmulOp::MatMul { batch: 2, m: 4, k: 16, n: 16 },
        conv,
    ];
    // Four convolutions of 64 weights at 16 pixels; twice, for two heads, 256 pairs of pixels with 4 channels.
    Block::new("attention", build, plain, matmuls, 2 * (4 * 64 * 16 + 2 * 2 * 256 * 4))
}

/// A generator of a class: batch normalisation whose scale and shift follow from an embedding of the label.
fn conditional() -> Block {
    let up = ConvSpec { kernel: 3, stride: 2, padding: 1, groups: 2, transposed: true, bias: true };
    let build = |b: &mut Builder| {
        let z = b.input(Port::new("z", &[5], "latents"))?;
        let labels = b.input(Port::labels("labels", 3))?;
        let class = b.embedding("embedding", labels, [3, 4], 1.0)?;
        let grid = b.linear("base", z, 54, false)?;
        let grid = reshape(b, "grid", &[6, 3, 3], grid)?;
        let normal = b.batch_norm("norm", grid, false)?;
        let mut by_class = Vec::new();
        for name in ["scale", "shift"] {
            let all = b.linear(name, class, 6, true)?;
            by_class.push(reshape(b, &format!("{name}_by_channel"), &[6, 1, 1], all)?);
        }
        let scale = b.op("one_more", Op::Affine { scale: 1.0, shift: 1.0 }, &[by_class[0]])?;
        let scaled = b.op("scaled", Op::Multiply, &[normal, scale])?;
        let shifted = b.op("shifted", Op::Add, &[scaled, by_class[1]])?;
        let h = act(b, "act", Function::Relu, shifted)?;
        let image = b.conv("image", h, 4, up)?;
        let image = act(b, "sigmoid", Function::Sigmoid, image)?;
        b.output(Port::images("x", &[4, 5, 5], "images"), image)
    };
    let plain = |p: &Plain, x: &[Tensor]| {
        let class = p.get("embedding.weight").index_select(0, &x[1]);
        let normal = p.batch_norm("norm", &p.linear("base", &x[0]).reshape([-1, 6, 3, 3]));
        let [scale, shift] = ["scale", "shift"].map(|name| p.linear(name, &class).reshape([-1, 6, 1, 1]));
        let h = (normal * (scale + 1.0) + shift).clamp_min(0.0);
        vec![sigmoid(&p.conv_transpose("image", &h, 2, 1, 2))]
    };
    let linear = |from, to| MatmulOp::Linear { rows: 1, from, to };
    let matmuls = vec![linear(5, 54), linear(4, 6), linear(4, 6), conv_op([6, 4], 3, up)];
    // Each of the 9 pixels of the transposed convolution's input meets 6 times 2 kernels of 9.
    Block::new("conditional", build, plain, matmuls, 2 * (5 * 54 + 2 * 4 * 6 + 9 * 6 * 2 * 9))
}

/// Features of two images side by side, pooled, to one number; features are outputs too, one of them twice.
fn joined() -> Block {
    let wide = ConvSpec { stride: 2, ..ConvSpec::same(5) };
    let halved = ConvSpec { kernel: 2, stride: 2, padding: 0, ..ConvSpec::same(1) };
    let build = |b: &mut Builder| {
        let left = b.input(Port::new("left", &[3, 4, 4], "features"))?;
        let right = b.input(Port::new("right", &[2, 4, 4], "features"))?;
        let a = b.conv("a", left, 4, wide)?;
        let c = b.conv("c", right, 5, halved)?;
        let c = act(b, "c_act", Function::Tanh, c)?;
        let both = b.op("both", Op::Concat, &[a, c])?;
        let again = act(b, "again", Function::Relu, a)?;
        let pooled = b.op("pooled", Op::AveragePool([2, 1]), &[both])?;
        let flat = reshape(b, "flat", &[18], pooled)?;
        let score = b.linear("score", flat, 1, true)?;
        let score = reshape(b, "logits", &[], score)?;
        b.output(Port::new("logits", &[], "logits"), score)?;
        b.output(Port::new("features", &[9, 2, 2], "features"), both)?;
        b.output(Port::new("features_too", &[9, 2, 2], "features"), both)?;
        b.output(Port::new("again", &[4, 2, 2], "features"), again)
    };
    let plain = |p: &Plain, x: &[Tensor]| {
        let a = p.conv("a", &x[0], 2, 2, 1);
        let both = Tensor::cat(&[&a, &p.conv("c", &x[1], 2, 0, 1).tanh()], 1);
        let pooled = (both.narrow(2, 0, 1) + both.narrow(2, 1, 1)) / 2.0;
        let logits = p.linear("score", &pooled.reshape([-1, 18])).reshape([-1]);
        vec![logits, both.shallow_clone(), both, a.clamp_min(0.0)]
    };
    let matmuls =
        vec![conv_op([3, 4], 4, wide), conv_op([2, 5], 4, halved), MatmulOp::Linear { rows: 1, from: 18, to: 1 }];
    Block::new("joined", build, plain, matmuls, 2 * (4 * 4 * 3 * 25 + 4 * 5 * 2 * 4 + 18))
}

/// Six tokens of ten numbers: layer normalisation, two linear layers on each, and products of all four kinds of transposition.
fn tokens() -> Block {
    let build = |b: &mut Builder| {
        let x = b.input(Port::new("x", &[6, 10], "tokens"))?;
        let h = b.layer_norm("norm", x)?;
        let h = b.linear("wide", h, 16, true)?;
        let h = act(b, "act", Function::Relu, h)?;
        let h = b.linear("narrow", h, 10, false)?;
        let sum = b.op("sum", Op::Add, &[x, h])?;
        let turned = reshape(b, "turned", &[10, 6], sum)?;
        let kind = |transpose_a, transpose_b| Op::MatMul { transpose_a, transpose_b };
        let like = b.op("like", kind(false, true), &[sum, sum])?;
        let weights = b.op("weights", Op::Softmax, &[like])?;
        let mean = b.op("mean", kind(false, false), &[weights, sum])?;
        let across = b.op("across", kind(true, false), &[mean, sum])?;
        let both = b.op("both_turned", kind(true, true), &[turned, mean])?;
        b.output(Port::new("across", &[10, 10], "products"), across)?;
        b.output(Port::new("both", &[6, 6], "products"), both)
    };
    let plain = |p: &Plain, x: &[Tensor]| {
        let h = p.linear("wide", &p.layer_norm("norm", &x[0])).clamp_min(0.0);
        let sum = &x[0] + p.linear("narrow", &h);
        let mean = softmax(&sum.bmm(&sum.transpose(1, 2))).bmm(&sum);
        let turned = sum.reshape([-1, 10, 6]).transpose(1, 2);
        vec![mean.transpose(1, 2).bmm(&sum), turned.bmm(&mean.transpose(1, 2))]
    };
    let matmul = |m, k, n| MatmulOp::MatMul { batch: 1, m, k, n };
    let matmuls = vec![
        MatmulOp::Linear { rows: 6, from: 10, to: 16 },
        MatmulOp::Linear { rows: 6, from: 16, to: 10 },
        matmul(6, 10, 6),
        matmul(6, 6, 10),
        matmul(10, 6, 10),
        matmul(6, 10, 6),
    ];
    Block::new("tokens", build, plain, matmuls, 2 * (6 * 160 * 2 + 360 + 360 + 600 + 360))
}

/// Convolutions of other kernels, strides and groups, both ways, and those that have kernels of their own.
fn kernels() -> Block {
    let grouped = ConvSpec { groups: 2, ..ConvSpec::halving() };
    let large = ConvSpec { kernel: 7, stride: 3, padding: 2, ..ConvSpec::same(1) };
    let patch = ConvSpec { kernel: 2, padding: 0, ..ConvSpec::doubling() };
    let kept = ConvSpec { kernel: 3, stride: 1, groups: 2, bias: false, ..ConvSpec::doubling() };
    let build = move |b: &mut Builder| {
        let x = b.input(Port::images("x", &[2, 16, 16], "images"))?;
        let mut h = b.conv("halving", x, 6, ConvSpec::halving())?;
        h = act(b, "act1", Function::LeakyRelu(0.1), h)?;
        h = b.group_norm("norm1", h, 2, false)?;
        h = b.conv("grouped", h, 4, grouped)?;
        h = b.batch_norm("norm2", h, true)?;
        h = act(b, "act2", Function::Relu, h)?;
        h = b.conv("doubling", h, 4, ConvSpec::doubling())?;
        h = act(b, "act3", Function::Silu, h)?;
        let large = b.conv("large", h, 3, large)?;
        h = b.conv("patch", large, 4, patch)?;
        h = act(b, "act4", Function::Sigmoid, h)?;
        h = b.conv("kept", h, 2, kept)?;
        b.output(Port::new("y", &[2, 4, 4], "features"), h)
    };
    let plain = |p: &Plain, x: &[Tensor]| {
        let h = p.conv("halving", &x[0], 2, 1, 1);
        let h = p.group_norm("norm1", &(h.clamp_min(0.0) + h.clamp_max(0.0) * 0.1), 2);
        let h = p.batch_norm("norm2", &p.conv("grouped", &h, 2, 1, 2)).clamp_min(0.0);
        let h = p.conv("large", &silu(&p.conv_transpose("doubling", &h, 2, 1, 1)), 3, 2, 1);
        vec![p.conv_transpose("kept", &sigmoid(&p.conv_transpose("patch", &h, 2, 0, 1)), 1, 1, 2)]
    };
    let matmuls = vec![
        conv_op([2, 6], 16, ConvSpec::halving()),
        conv_op([6, 4], 8, grouped),
        conv_op([4, 4], 4, ConvSpec::doubling()),
        conv_op([4, 3], 8, large),
        conv_op([3, 4], 2, patch),
        conv_op([4, 2], 4, kept),
    ];
    let halving = 64 * 6 * 2 * 16 + 16 * 4 * 3 * 16;
    let other = 16 * 4 * 4 * 16 + 4 * 3 * 4 * 49 + 4 * 3 * 4 * 4 + 16 * 4 * 9;
    Block::new("kernels", build, plain, matmuls, 2 * (halving + other))
}

fn blocks() -> Vec<Block> {
    vec![residual(), upsampling(), attention(), conditional(), joined(), tokens(), kernels()]
}

/// Calls `work` with the graph set to every way of computing it.
fn every_way(block: &mut Block, mut work: impl FnMut(&Block, &str)) {
    for &kernels in Kernels::value_variants() {
        for &layout in Layout::value_variants() {
            for &matmul in MatmulBackend::value_variants() {
                let compute = &mut block.graph.compute;
                (compute.kernels, compute.layout, compute.matmul) = (kernels, layout, matmul);
                compute.arrange_weights(&block.vars).unwrap();
                work(block, &format!("{} by {kernels:?}, {layout:?}, {matmul:?}", block.name()));
            }
        }
    }
}

/// Outputs and gradients in this mode are the wanted ones.
fn agrees(block: &Block, way: &str, mode: Mode, (outputs, gradients): &(Vec<Tensor>, Vec<Tensor>)) {
    let (got, got_gradients) = block.found(BATCH, mode);
    agree(&format!("{way}, {mode:?}"), &got, outputs);
    agree(&format!("gradients of {way}, {mode:?}"), &got_gradients, gradients);
}

#[test]
fn the_forward_pass_and_its_gradients_are_those_of_elementary_operations() {
    for mut block in blocks() {
        let wanted = [false, true].map(|training| block.wanted(BATCH, training));
        every_way(&mut block, |block, way| {
            for (mode, wanted) in [(Mode::Eval, &wanted[0]), (Mode::Batch, &wanted[1])] {
                agrees(block, way, mode, wanted);
            }
        });
    }
}

#[test]
fn training_moves_running_statistics_by_a_tenth() {
    for block in [upsampling(), conditional()] {
        let key = if block.name() == "upsampling" { "norm1" } else { "norm" };
        let held = |what: &str| {
            let all = block.graph.tensors().unwrap();
            all.into_iter().find(|(k, ..)| *k == format!("{key}.{what}")).unwrap().1.to_kind(Kind::Double)
        };
        let (mean, var) = (held("running_mean"), held("running_var"));
        let inputs = block.inputs(BATCH);
        let x = match block.name() {
            "upsampling" => inputs[0].to_kind(Kind::Double),
            _ => {
                let (_, w, _) = &block.graph.tensors().unwrap().into_iter().find(|(k, ..)| k == "base.weight").unwrap();
                inputs[0].matmul(&w.detach().tr()).reshape([-1, 6, 3, 3]).to_kind(Kind::Double)
            }
        };
        let dims: &[i64] = &[0, 2, 3];
        let batch_mean = x.mean_dim(dims, false, None::<Kind>);
        let batch_var = x.var_dim(dims, true, false);
        tch::no_grad(|| block.graph.forward(&inputs.iter().collect::<Vec<_>>(), &block.outputs(), Mode::Batch))
            .unwrap();
        assert!(held("running_mean").equal(&mean), "Mode::Batch changes nothing");
        tch::no_grad(|| block.graph.forward(&inputs.iter().collect::<Vec<_>>(), &block.outputs(), Mode::Train))
            .unwrap();
        agree(block.name(), &[held("running_mean")], &[mean * 0.9 + batch_mean * 0.1]);
        agree(block.name(), &[held("running_var")], &[var * 0.9 + batch_var * 0.1]);
    }
}

#[test]
fn costs_are_those_counted_by_hand() {
    for block in blocks() {
        let matmuls: Vec<MatmulOp> = block.graph.matmuls().into_iter().map(|(op, _)| op).collect();
        assert_eq!(matmuls, block.matmuls, "{}", block.name());
        assert_eq!(block.graph.flops(), block.flops as f64, "{}", block.name());
    }
}

fn write(graphs: &[&Graph], formats: &[Format], folder: &Path) {
    let origin =
        Origin { model: "blocks".into(), preset: "none".into(), data: "none".into(), step: 0, classes: Vec::new() };
    export::export(graphs, &origin, formats, folder).unwrap();
}

fn run(module: &CModule, inputs: Vec<Tensor>) -> Vec<Tensor> {
    match module.forward_is(&inputs.into_iter().map(IValue::Tensor).collect::<Vec<_>>()).unwrap() {
        IValue::Tensor(t) => vec![t],
        IValue::Tuple(all) => all.into_iter().map(|v| Tensor::try_from(v).unwrap()).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn modules_compute_the_same_in_evaluation_and_in_training() {
    let dir = tempfile::tempdir().unwrap();
    for block in blocks() {
        write(&[&block.graph], &[Format::Torchscript], dir.path());
        let mut module = CModule::load(dir.path().join(format!("{}.pt", block.name()))).unwrap();
        for batch in [1, BATCH] {
            agree(block.name(), &run(&module, block.inputs(batch)), &block.wanted(batch, false).0);
        }
        module.set_train();
        agree(block.name(), &run(&module, block.inputs(BATCH)), &block.wanted(BATCH, true).0);
        let keys = |all: Vec<(String, Tensor)>| {
            let mut keys: Vec<String> = all.into_iter().map(|(key, _)| key).collect();
            keys.sort();
            keys
        };
        let parameters =
            block.graph.tensors().unwrap().into_iter().filter(|(.., p)| *p).map(|(key, t, _)| (key, t)).collect();
        assert_eq!(keys(module.named_parameters().unwrap()), keys(parameters), "{}", block.name());
    }
}

#[test]
fn python_and_onnxruntime_compute_the_same() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let blocks = blocks();
    let graphs: Vec<&Graph> = blocks.iter().map(|block| &block.graph).collect();
    write(&graphs, Format::value_variants(), dir.path());
    write_expected(&graphs, dir.path()).unwrap();
    let folder = [dir.path().to_owned()];
    run_script(&python, "check_exports.py", "check", &folder);
    run_script(&python, "check_onnx.py", "", &folder);
}

#[test]
fn what_no_output_needs_is_neither_computed_nor_exported() {
    let vars = VarStore::new(Device::Cpu);
    let mut b = Builder::new(&vars, "partial", Init::PyTorch);
    let x = b.input(Port::new("x", &[3], "numbers")).unwrap();
    let used = b.linear("used", x, 2, true).unwrap();
    let spare = b.linear("spare", x, 4, true).unwrap();
    act(&mut b, "spare_act", Function::Relu, spare).unwrap();
    b.output(Port::new("y", &[2], "numbers"), used).unwrap();
    let graph = b.finish().unwrap();
    let needed: Vec<&str> = graph.needed().into_iter().map(|(_, node)| node.name.as_str()).collect();
    assert_eq!(needed, ["used"]);
    let dir = tempfile::tempdir().unwrap();
    write(&[&graph], Format::value_variants(), dir.path());
    for extension in ["pt", "safetensors", "onnx"] {
        let bytes = std::fs::read(dir.path().join(format!("partial.{extension}"))).unwrap();
        let holds = |word: &str| bytes.windows(word.len()).any(|w| w == word.as_bytes());
        assert!(holds("used") && !holds("spare"), "{extension}");
    }
    // A spare weight that is not finite leaves no trace.
    let spare = &vars.variables()["partial.spare.weight"];
    let _ = tch::no_grad(|| spare.shallow_clone().fill_(f64::NAN));
    let y = graph.evaluate(&[&Tensor::ones([2, 3], (Kind::Float, Device::Cpu))]).unwrap();
    assert!(bool::try_from(y[0].isfinite().all()).unwrap());
}

#[test]
fn names_that_no_export_could_carry_are_refused_when_the_network_is_built() {
    let vars = VarStore::new(Device::Cpu);
    let mut b = Builder::new(&vars, "named", Init::PyTorch);
    let x = b.input(Port::new("x", &[3], "numbers")).unwrap();
    assert!(b.input(Port::new("x", &[3], "numbers")).unwrap_err().to_string().contains("two inputs or outputs"));
    act(&mut b, "first", Function::Relu, x).unwrap();
    for name in ["class", "training", "first", "a.b", "a__b", "1st", "", "a-b", "a b"] {
        let e = act(&mut b, name, Function::Relu, x).unwrap_err().to_string();
        assert!(e.contains("named") && (name.is_empty() || e.contains(name)), "{name}: {e}");
    }
    assert!(b.linear("return", x, 2, true).is_err() && vars.is_empty(), "nothing is left of a layer that was refused");
    b.output(Port::new("y", &[3], "numbers"), x).unwrap();
    assert!(b.output(Port::new("x", &[3], "numbers"), x).unwrap_err().to_string().contains("two inputs or outputs"));
}

/// Values with several readers, whose activations could be joined with their layer or computed in place if they had one.
fn shared(b: &mut Builder) -> Result<()> {
    let x = b.input(Port::new("x", &[3, 8, 8], "features"))?;
    let c = b.conv("conv", x, 4, ConvSpec::halving())?;
    let positive = act(b, "positive", Function::Relu, c)?;
    let bent = act(b, "bent", Function::Tanh, c)?;
    let n = b.batch_norm("norm", c, true)?;
    let n_act = act(b, "norm_act", Function::LeakyRelu(0.3), n)?;
    let view = reshape(b, "view", &[64], c)?;
    let sum = b.op("sum", Op::Add, &[positive, bent])?;
    let sum_act = act(b, "sum_act", Function::Relu, sum)?;
    let twice = act(b, "sum_act_twice", Function::Tanh, sum_act)?;
    let all = b.op("all", Op::Multiply, &[twice, n_act])?;
    let alone = b.conv("alone", all, 4, ConvSpec::same(3))?;
    let alone = act(b, "alone_act", Function::Sigmoid, alone)?;
    let flat = reshape(b, "flat", &[64], alone)?;
    let dense = b.linear("dense", flat, 64, true)?;
    let dense_act = act(b, "dense_act", Function::LeakyRelu(0.2), dense)?;
    let end = b.op("end", Op::Add, &[dense_act, view])?;
    let end_act = act(b, "end_act", Function::Relu, end)?;
    b.output(Port::new("conv", &[4, 4, 4], "before its activations"), c)?;
    b.output(Port::new("norm", &[4, 4, 4], "before its activation"), n)?;
    b.output(Port::new("dense", &[64], "before its activation"), dense)?;
    b.output(Port::new("sum", &[4, 4, 4], "after its activations"), twice)?;
    b.output(Port::new("end", &[64], "the end"), end_act)
}

fn shared_plain(p: &Plain, x: &[Tensor]) -> Vec<Tensor> {
    let leaky = |t: &Tensor, slope: f64| t.clamp_min(0.0) + t.clamp_max(0.0) * slope;
    let c = p.conv("conv", &x[0], 2, 1, 1);
    let n = p.batch_norm("norm", &c);
    let twice = (c.clamp_min(0.0) + c.tanh()).clamp_min(0.0).tanh();
    let alone = sigmoid(&p.conv("alone", &(&twice * leaky(&n, 0.3)), 1, 1, 1));
    let dense = p.linear("dense", &alone.reshape([-1, 64]));
    let end = (leaky(&dense, 0.2) + c.reshape([-1, 64])).clamp_min(0.0);
    vec![c, n, dense, twice, end]
}

#[test]
fn joined_activations_and_results_in_place_change_nothing() {
    let mut block = Block::new("shared", shared, shared_plain, Vec::new(), 0);
    let wanted = [false, true].map(|training| block.wanted(BATCH, training));
    every_way(&mut block, |block, way| {
        for (mode, wanted) in [(Mode::Eval, &wanted[0]), (Mode::Batch, &wanted[1])] {
            agrees(block, way, mode, wanted);
            // Of fewer outputs other values are computed in place: each alone must be the same.
            let inputs = block.inputs(BATCH);
            for (value, want) in block.outputs().into_iter().zip(&wanted.0) {
                let one = tch::no_grad(|| block.graph.forward_one(&inputs[0], value, mode)).unwrap();
                agree(&format!("{way}, {mode:?}, alone"), &[one], &[want.shallow_clone()]);
            }
            assert!(inputs[0].equal(&block.inputs(BATCH)[0]), "inputs stay as they are");
        }
    });
}

#[test]
fn images_of_another_size_do_not_pass_as_more_images() {
    let vars = VarStore::new(Device::Cpu);
    let mut b = Builder::new(&vars, "flat", Init::PyTorch);
    let x = b.input(Port::new("x", &[1, 4, 4], "images")).unwrap();
    let flat = reshape(&mut b, "flat", &[16], x).unwrap();
    let y = b.linear("score", flat, 2, true).unwrap();
    b.output(Port::new("y", &[2], "scores"), y).unwrap();
    let graph = b.finish().unwrap();
    let dir = tempfile::tempdir().unwrap();
    write(&[&graph], &[Format::Torchscript], dir.path());
    let module = CModule::load(dir.path().join("flat.pt")).unwrap();
    // Twice the pixels of an image.
    let large = Tensor::zeros([3, 1, 8, 4], (Kind::Float, Device::Cpu));
    assert!(graph.evaluate(&[&large]).is_err());
    assert!(module.forward_is(&[IValue::Tensor(large.shallow_clone())]).is_err());
    let e = graph.evaluate(&[&large, &large]).unwrap_err().to_string();
    assert!(e.contains("takes 1 inputs, found 2"), "{e}");
}
