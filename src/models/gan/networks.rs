//! The graphs of generator and discriminator.

use anyhow::Result;
use tch::Device;

use super::GanSpec;
use crate::base::usage::usage;
use crate::models::network::Network;
use crate::nets::graph::{Builder, Function, Op, Port, Value};
use crate::nets::{features, synthesis};

/// z [B,Z] -> x [B,C,H,W] in [0,1]: tanh, rescaled from [−1,1]; see [`GanSpec::has_linear_images`]. Of a conditional GAN, z and an
/// embedding of the class, as wide as z, enter the first layer together. Gives the images of training.
pub(super) fn generator(spec: &GanSpec, device: Device) -> Result<(Network, Value)> {
    Network::new("generator", device, spec.generator.init, |b| {
        let z = b.input(Port::new("z", &[spec.latent], "latents, from N(0, I)"))?;
        let latents = match labels(b, spec)? {
            // From N(0, 1), as z is.
            Some((labels, classes)) => {
                let class = b.embedding("class_embedding", labels, [classes, spec.latent], 1.0)?;
                b.op("z_and_class", Op::Concat, &[z, class])?
            }
            None => z,
        };
        let image = synthesis(b, latents, spec.shape, &spec.generator)?;
        b.begin_float32();
        let unit = |b: &mut Builder, image| b.op("unit", Op::Affine { scale: 0.5, shift: 0.5 }, &[image]);
        let (trained, shown) = if spec.has_linear_images() {
            let trained = unit(b, image)?;
            (trained, limited(b, trained)?)
        } else {
            let tanh = b.op("tanh", Op::Activation(Function::Tanh), &[image])?;
            let both = unit(b, tanh)?;
            (both, both)
        };
        b.output(Port::images("x", &spec.shape.dims(), "images"), shown)?;
        Ok(trained)
    })
}

/// x limited to [0,1]: 1 − relu(1 − relu(x)).
fn limited(b: &mut Builder, x: Value) -> Result<Value> {
    let mut relu_then_rest = |names: [&str; 2], x| {
        let positive = b.op(names[0], Op::Activation(Function::Relu), &[x])?;
        b.op(names[1], Op::Affine { scale: -1.0, shift: 1.0 }, &[positive])
    };
    let rest = relu_then_rest(["not_negative", "rest"], x)?;
    relu_then_rest(["rest_not_negative", "limited"], rest)
}

/// x [B,C,H,W] in [0,1] -> logits [B]; the images are rescaled to [−1,1] before the first layer. Of a conditional GAN, the projection of
/// the features φ on an embedding of the class y is added: w·φ + b + v_y·φ (Miyato and Koyama 2018, arXiv 1802.05637, section 3).
pub(super) fn discriminator(spec: &GanSpec, device: Device) -> Result<(Network, Value)> {
    Network::new("discriminator", device, spec.discriminator.init, |b| {
        let x = b.input(Port::images("x", &spec.shape.dims(), "images"))?;
        let labels = labels(b, spec)?;
        let centre = b.op("centre", Op::Affine { scale: 2.0, shift: -1.0 }, &[x])?;
        let hidden = features(b, centre, &spec.discriminator)?;
        b.begin_float32();
        let mut out = b.linear("out", hidden, 1, true)?;
        if let Some((labels, classes)) = labels {
            let width = b.dims(hidden)[0];
            // As large as w·φ.
            let stdev = (width as f64).powf(-0.5);
            let class = b.embedding("class_embedding", labels, [classes, width], stdev)?;
            let [row, column] = [("class_row", class, [1, width]), ("features_column", hidden, [width, 1])]
                .map(|(name, value, dims)| b.op(name, Op::Reshape(dims.to_vec()), &[value]));
            let product = Op::MatMul { transpose_a: false, transpose_b: false };
            let product = b.op("class_product", product, &[row?, column?])?;
            let projection = b.op("projection", Op::Reshape(vec![1]), &[product])?;
            out = b.op("out_of_class", Op::Add, &[out, projection])?;
        }
        let logits = b.op("squeeze", Op::Reshape(Vec::new()), &[out])?;
        b.output(Port::new("logits", &[], "above 0 for images taken to be real"), logits)?;
        Ok(logits)
    })
}

/// The input of class numbers and their number, of a conditional GAN.
fn labels(b: &mut Builder, spec: &GanSpec) -> Result<Option<(Value, i64)>> {
    let input = |classes| Ok((b.input(Port::labels("labels", classes))?, classes));
    spec.classes.map(input).transpose()
}

/// Excludes the first `count` linear and convolutional layers, and the normalisations after them, from training. The running statistics
/// of batch normalisation go on.
pub(super) fn freeze_first(network: &Network, count: u64) -> Result<()> {
    let is_layer = |op: &Op| matches!(op, Op::Linear(_) | Op::Conv(_));
    let nodes = network.graph.nodes();
    let layers = nodes.iter().filter(|node| is_layer(&node.op)).count() as u64;
    if count >= layers {
        usage!(
            "--freeze-d {count} leaves the {} nothing to learn, which has {layers} layers: freeze fewer",
            network.graph.name()
        );
    }
    let mut begun = 0;
    for node in nodes {
        begun += u64::from(is_layer(&node.op));
        if begun > count {
            break;
        }
        for (_, t, _) in node.op.tensors() {
            let _same = t.set_requires_grad(false);
        }
    }
    Ok(())
}
