//! Shapes, names and initial weights of every architecture.

use super::graph::{Graph, Port};
use super::*;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

fn spec(arch: Arch, batch_norm: bool, init: Init) -> NetSpec {
    let hidden = vec![20, 30];
    let residual = Residual { block: Block::Plain, blocks: vec![1, 2], attention: 0 };
    let activation = Activation::LeakyRelu;
    NetSpec { arch, hidden, base_width: Some(6), activation, batch_norm, init, residual, ..NetSpec::default() }
}

fn shape(channels: i64, height: i64, width: i64) -> Shape {
    Shape { channels, height, width }
}

/// The features of images under `name`, and their width.
fn features_of(vars: &VarStore, name: &'static str, shape: Shape, spec: &NetSpec) -> Result<(Graph, i64)> {
    let mut b = Builder::new(vars, name, spec.init);
    let x = b.input(Port::images("x", &shape.dims(), "images"))?;
    let hidden = features(&mut b, x, spec)?;
    let width = b.dims(hidden).to_vec();
    b.output(Port::new("features", &width, "features"), hidden)?;
    Ok((b.finish()?, width[0]))
}

/// The images of latents under `name`.
fn synthesis_of(vars: &VarStore, name: &'static str, latent: i64, shape: Shape, spec: &NetSpec) -> Result<Graph> {
    let mut b = Builder::new(vars, name, spec.init);
    let z = b.input(Port::new("z", &[latent], "latents"))?;
    let image = synthesis(&mut b, z, shape, spec)?;
    b.output(Port::new("x", &shape.dims(), "images"), image)?;
    b.finish()
}

fn run(graph: &Graph, x: &Tensor, mode: Mode) -> Tensor {
    graph.forward_one(x, graph.outputs()[0].1, mode).unwrap()
}

#[test]
fn every_architecture_supports_many_image_sizes() {
    // With the longer side of some of the features.
    let sizes = [
        (1, 28, 28, 7),
        (3, 32, 32, 8),
        (3, 8, 8, 4),
        (1, 64, 48, 8),
        (3, 96, 64, 6),
        (1, 30, 10, 4),
        (3, 218, 178, 7),
        (4, 7, 3, 7),
    ];
    let kinds =
        [(Arch::Mlp, false), (Arch::Conv, false), (Arch::Conv, true), (Arch::Residual, false), (Arch::Residual, true)];
    for (c, h, w, side) in sizes {
        for (arch, norm) in kinds {
            if arch == Arch::Conv && h % 2 == 1 {
                continue;
            }
            let vars = VarStore::new(Device::Cpu);
            let (mut s, shape) = (spec(arch, norm, Init::PyTorch), shape(c, h, w));
            s.residual.attention = side;
            let (net, width) = features_of(&vars, "f", shape, &s).unwrap();
            let x = Tensor::rand([2, c, h, w], (Kind::Float, Device::Cpu));
            assert_eq!(run(&net, &x, Mode::Train).size(), [2, width], "{arch:?} on {shape}");
            let net = synthesis_of(&vars, "s", 5, shape, &s).unwrap();
            let z = Tensor::randn([3, 5], (Kind::Float, Device::Cpu));
            assert_eq!(run(&net, &z, Mode::Train).size(), [3, c, h, w], "{arch:?} on {shape}");
            assert_eq!(net.has_batch_norm(), norm && arch != Arch::Mlp);
        }
    }
}

#[test]
fn sides_that_cannot_be_halved_are_refused() {
    for (h, w) in [(27, 28), (28, 27), (6, 6), (1, 28), (7, 7)] {
        let vars = VarStore::new(Device::Cpu);
        let s = spec(Arch::Conv, false, Init::PyTorch);
        let e = features_of(&vars, "f", shape(1, h, w), &s).unwrap_err().to_string();
        assert!(e.contains(&format!("{h}x{w}")) && e.contains("--image-size") && e.contains("mlp"), "{e}");
        assert!(synthesis_of(&vars, "s", 4, shape(1, h, w), &s).is_err());
    }
}

#[test]
fn sides_that_soon_become_odd_are_warned_of() {
    for (h, w, good) in [(250, 250, "256x256"), (218, 178, "224x192"), (36, 20, "40x20"), (72, 50, "72x48")] {
        let warning = size_warning(Arch::Conv, shape(3, h, w)).unwrap_or_default();
        assert_eq!(warning.contains(&format!("--image-size {good} ")), (h, w) != (36, 20), "{h}x{w}: {warning}");
        assert_eq!(size_warning(Arch::Residual, shape(3, h, w)), None);
    }
    for side in [8, 28, 32, 48, 64, 96, 256] {
        assert_eq!(size_warning(Arch::Conv, shape(1, side, side)), None, "{side}");
    }
}

/// Channels from the image's resolution on: doubled up to the most, or as given.
#[test]
fn channels_are_limited() {
    let vars = VarStore::new(Device::Cpu);
    let s = NetSpec { hidden: vec![], base_width: Some(8), max_width: 20, ..spec(Arch::Conv, true, Init::Dcgan) };
    features_of(&vars, "f", shape(3, 64, 64), &s).unwrap();
    synthesis_of(&vars, "s", 5, shape(3, 64, 64), &s).unwrap();
    let given = NetSpec { widths: vec![8, 24, 16], ..spec(Arch::Residual, false, Init::PyTorch) };
    features_of(&vars, "given", shape(3, 64, 64), &given).unwrap();
    synthesis_of(&vars, "made", 5, shape(3, 64, 64), &given).unwrap();
    let sizes = |name: &str| vars.variables()[name].size()[..2].to_vec();
    for (name, want) in [
        ("f.conv1.weight", [8, 3]),
        ("f.conv2.weight", [16, 8]),
        ("f.conv3.weight", [20, 16]),
        ("f.conv4.weight", [20, 20]),
        ("s.convt1.weight", [20, 20]),
        ("s.convt2.weight", [20, 20]),
        ("s.convt3.weight", [20, 16]),
        ("s.convt4.weight", [16, 3]),
        ("given.stem.weight", [8, 3]),
        ("given.down0_conv.weight", [24, 8]),
        ("given.down1_conv.weight", [16, 24]),
        ("given.block4_1_conv2.weight", [16, 16]),
        ("made.up2_conv.weight", [24, 16]),
        ("made.up1_conv.weight", [8, 24]),
        ("made.image.weight", [3, 8]),
    ] {
        assert_eq!(sizes(name), want, "{name}");
    }
    let from_most = NetSpec { base_width: None, max_width: 128, widths: vec![], ..given };
    features_of(&vars, "most", shape(3, 64, 64), &from_most).unwrap();
    let channels = [0, 1, 2, 3, 4].map(|i| vars.variables()[&format!("most.block{i}_0_conv1.weight")].size()[0]);
    assert_eq!(channels, [16, 16, 32, 64, 128]);
    assert!(!vars.variables().contains_key("given.down2_conv.weight"), "equal channels need no convolution");
}

#[test]
fn self_attention_where_there_are_no_such_features_is_refused() {
    let vars = VarStore::new(Device::Cpu);
    let mut s = spec(Arch::Residual, false, Init::PyTorch);
    s.residual.attention = 8;
    features_of(&vars, "there", shape(3, 32, 16), &s).unwrap();
    s.residual.attention = 12;
    let e = features_of(&vars, "f", shape(3, 32, 16), &s).unwrap_err().to_string();
    assert!(e.starts_with("--attention 12: ") && e.contains("are 4, 8, 16, 32: name one of them"), "{e}");
    assert_eq!(synthesis_of(&vars, "s", 5, shape(3, 32, 16), &s).unwrap_err().to_string(), e);
}

/// Without normalisation a residual network begins as if it had no blocks, and what its blocks add grows slowly (Fixup).
#[test]
fn residual_blocks_begin_at_zero_unless_something_normalises() {
    tch::manual_seed(1);
    let vars = VarStore::new(Device::Cpu);
    let mut s = NetSpec { widths: vec![64], ..spec(Arch::Residual, false, Init::PyTorch) };
    s.residual.attention = 8;
    features_of(&vars, "f", shape(3, 32, 32), &s).unwrap();
    let leaky = f64::sqrt(2.0 / 1.04);
    // Blocks: 1 at 32 pixels, 2 each at 16, 8 and 4.
    let (mean, std, _) = spread(&vars, "f.block1_1_conv1.weight");
    let want = leaky / f64::sqrt(7.0) / f64::sqrt(64.0 * 9.0);
    assert!(mean.abs() < 0.02 * want && (std / want - 1.0).abs() < 0.02, "{mean}, {std}, wanted {want}");
    for zero in ["f.block0_0_conv2.weight", "f.block3_1_conv2.weight", "f.attention_out.weight", "f.stem.bias"] {
        assert_eq!(spread(&vars, zero).2, 0.0, "{zero}");
    }
    features_of(&vars, "n", shape(3, 32, 32), &NetSpec { batch_norm: true, ..s.clone() }).unwrap();
    features_of(&vars, "p", shape(3, 32, 32), &NetSpec { spectral: true, ..s }).unwrap();
    for name in ["n.block1_1_conv1.weight", "n.block0_0_conv2.weight", "p.block3_1_conv2.weight"] {
        let (_, std, _) = spread(&vars, name);
        assert!((std / (leaky / 24.0) - 1.0).abs() < 0.02, "{name}: {std}");
    }
}

#[test]
fn dcgan_has_the_papers_channels_at_28_pixels() {
    let vars = VarStore::new(Device::Cpu);
    let s = NetSpec { hidden: vec![], base_width: Some(64), ..spec(Arch::Conv, true, Init::Dcgan) };
    synthesis_of(&vars, "generator", 100, shape(1, 28, 28), &s).unwrap();
    let (_, width) = features_of(&vars, "discriminator", shape(1, 28, 28), &s).unwrap();
    assert_eq!(width, 128 * 7 * 7);
    let sizes = |name: &str| vars.variables().get(name).map(Tensor::size);
    for (name, want) in [
        ("generator.base.weight", vec![256 * 49, 100]),
        ("generator.bn0.running_mean", vec![256]),
        ("generator.convt1.weight", vec![256, 128, 4, 4]),
        ("generator.bn1.weight", vec![128]),
        ("generator.convt2.weight", vec![128, 1, 4, 4]),
        ("generator.convt2.bias", vec![1]),
        ("discriminator.conv1.weight", vec![64, 1, 4, 4]),
        ("discriminator.conv1.bias", vec![64]),
        ("discriminator.conv2.weight", vec![128, 64, 4, 4]),
        ("discriminator.bn2.running_var", vec![128]),
    ] {
        assert_eq!(sizes(name), Some(want), "{name}");
    }
    for absent in
        ["generator.base.bias", "generator.convt1.bias", "discriminator.conv2.bias", "discriminator.bn1.weight"]
    {
        assert_eq!(sizes(absent), None, "{absent}: batch normalisation has the bias already");
    }
    assert!(vars.variables().keys().all(|name| !name.contains("__")));
}

/// (mean, standard deviation, largest magnitude) of a variable.
fn spread(vars: &VarStore, name: &str) -> (f64, f64, f64) {
    let t = &vars.variables()[name];
    (t.mean(Kind::Double).double_value(&[]), t.std(true).double_value(&[]), t.abs().max().double_value(&[]))
}

/// Weights as in PyTorch, not as in tch: its Linear is √6 times wider and its BatchNorm scale random.
#[test]
fn initial_weights_have_pytorchs_distribution() {
    tch::manual_seed(1);
    let vars = VarStore::new(Device::Cpu);
    let s = NetSpec { hidden: vec![400], base_width: Some(32), ..spec(Arch::Conv, true, Init::PyTorch) };
    features_of(&vars, "f", shape(1, 28, 28), &s).unwrap();
    synthesis_of(&vars, "s", 50, shape(1, 28, 28), &s).unwrap();
    // (variable, fan-in as torch.nn.init counts it: of a transposed convolution on its output side)
    for (name, fan_in) in [
        ("f.fc1.weight", 64.0 * 49.0),
        ("f.fc1.bias", 64.0 * 49.0),
        ("f.conv2.weight", 32.0 * 16.0),
        ("s.fc1.weight", 50.0),
        ("s.convt1.weight", 64.0 * 16.0),
    ] {
        let bound = 1.0 / f64::sqrt(fan_in);
        let (mean, std, most) = spread(&vars, name);
        // The bound is rounded to float32 before the draw.
        let rounded = f64::from(bound as f32);
        assert!(most <= rounded && most > 0.97 * bound, "{name}: {most} against {rounded}");
        assert!(
            (std / (bound / f64::sqrt(3.0)) - 1.0).abs() < 0.1 && mean.abs() < 0.1 * bound,
            "{name}: {mean}, {std}"
        );
    }
    let scale = &vars.variables()["s.bn1.weight"];
    assert!(scale.equal(&scale.ones_like()) && vars.variables()["s.bn1.bias"].equal(&scale.zeros_like()));
}

#[test]
fn dcgan_weights_have_the_papers_distribution() {
    tch::manual_seed(1);
    let vars = VarStore::new(Device::Cpu);
    synthesis_of(&vars, "s", 100, shape(1, 28, 28), &spec(Arch::Conv, true, Init::Dcgan)).unwrap();
    for name in ["s.base.weight", "s.convt1.weight"] {
        let (mean, std, most) = spread(&vars, name);
        assert!(mean.abs() < 0.002 && (std - 0.02).abs() < 0.002 && most > 0.045, "{name}: {mean}, {std}, {most}");
    }
}

#[test]
fn activations_and_their_gradients_are_correct() {
    let values = [-2.0f32, -0.5, 0.25, 3.0];
    for (activation, f, df) in [
        (Activation::Relu, (|v| v.max(0.0)) as fn(f64) -> f64, (|v| f64::from(v > 0.0)) as fn(f64) -> f64),
        (Activation::LeakyRelu, |v| if v > 0.0 { v } else { 0.2 * v }, |v| if v > 0.0 { 1.0 } else { 0.2 }),
        (Activation::Tanh, f64::tanh, |v| 1.0 - v.tanh().powi(2)),
    ] {
        let leaf = Tensor::from_slice(&values).set_requires_grad(true);
        // In place on a layer's output, as in a network.
        let y = activation.function().apply(&leaf * 1.0, true).unwrap();
        let grad = Tensor::run_backward(&[y.sum(Kind::Float)], &[&leaf], false, false);
        for (i, v) in values.iter().enumerate() {
            let (v, i) = (f64::from(*v), i as i64);
            assert!((y.double_value(&[i]) - f(v)).abs() < 1e-6, "{activation:?}({v})");
            assert!((grad[0].double_value(&[i]) - df(v)).abs() < 1e-6, "{activation:?}'({v})");
        }
    }
}

#[test]
fn each_mode_uses_the_right_statistics() {
    tch::manual_seed(1);
    let vars = VarStore::new(Device::Cpu);
    let (net, _) = features_of(&vars, "f", shape(1, 16, 16), &spec(Arch::Conv, true, Init::PyTorch)).unwrap();
    let x = Tensor::rand([6, 1, 16, 16], (Kind::Float, Device::Cpu)) * 3.0;
    let running = || vars.variables()["f.bn2.running_mean"].copy();
    let start = running();
    let batch = run(&net, &x, Mode::Batch);
    let eval = run(&net, &x, Mode::Eval);
    assert!(running().equal(&start), "only training moves the running statistics");
    let train = run(&net, &x, Mode::Train);
    assert!(!running().equal(&start));
    assert!(train.allclose(&batch, 1e-6, 1e-6, false) && !train.allclose(&eval, 1e-2, 1e-2, false));
    let alone = run(&net, &x.narrow(0, 2, 1), Mode::Eval);
    let among = run(&net, &x, Mode::Eval);
    assert!(alone.allclose(&among.narrow(0, 2, 1), 1e-4, 1e-5, false), "in evaluation an image stands by itself");
}

/// Layers in bfloat16, weights and outputs in float32: results and gradients are near those of float32, but not equal.
#[test]
fn bfloat16_results_are_float32_and_near_those_of_float32() {
    for (arch, norm) in [(Arch::Mlp, false), (Arch::Conv, true)] {
        let vars = VarStore::new(Device::Cpu);
        let (mut net, _) = features_of(&vars, "f", shape(1, 28, 28), &spec(arch, norm, Init::PyTorch)).unwrap();
        // Not from the global generator, which other tests share: the error of a gradient depends on the numbers.
        let x = crate::native::randn(1, &[8, 1, 28, 28]).unwrap().sigmoid();
        let mut params: Vec<_> = vars.variables().into_iter().filter(|(_, t)| t.requires_grad()).collect();
        params.sort_by(|a, b| a.0.cmp(&b.0));
        let params: Vec<Tensor> = params.into_iter().map(|(_, t)| t).collect();
        for (i, p) in params.iter().enumerate() {
            let (size, draw) = (p.size(), crate::native::randn(i as i64, &p.size()).unwrap());
            let fan_in: i64 = size[1..].iter().product();
            let value = if size.len() > 1 { draw / (fan_in as f64).sqrt() } else { draw * 0.1 + 1.0 };
            tch::no_grad(|| p.shallow_clone().copy_(&value));
        }
        let mut results = Vec::new();
        for precision in [Precision::Fp32, Precision::Bf16] {
            net.compute.precision = precision;
            let y = run(&net, &x, Mode::Batch);
            let grads = Tensor::run_backward(&[y.square().mean(Kind::Float)], &params, false, false);
            results.push((y, grads));
        }
        let [(y, grads), (y16, grads16)] = &results[..] else { panic!("two precisions") };
        let pairs = [(y, y16)].into_iter().chain(grads.iter().zip(grads16));
        for (want, got) in pairs {
            assert_eq!(got.kind(), Kind::Float, "{arch:?}");
            let off = ((got - want).norm() / want.norm()).double_value(&[]);
            assert!(off > 0.0 && off < 0.1, "{arch:?}, {:?}: off by {off}", want.size());
        }
    }
}
