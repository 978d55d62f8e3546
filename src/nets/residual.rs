//! Residual networks (He et al. 2016, arXiv 1512.03385) for images of any size.
//!
//! Blocks at the image's resolution, then at half of it and so on, until the longer side is less than 8: 28×28 ends at 7×7, 32×32 and
//! 64×64 at 4×4. Between them, images shrink by means of 2×2 pixels and grow by bilinear interpolation, which do not alias, and 1×1
//! convolutions change the channels. Sides that do not halve so often get a border first, which is cut off from made images.
//!
//! Without normalisation, the last layer of each block begins at 0 and the others with smaller weights the more blocks there are (Zhang et
//! al. 2019, arXiv 1901.09321; as in R3GAN, Huang et al. 2024, arXiv 2501.05441), so that a deep network begins as a shallow one.

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;

use super::graph::{Builder, ConvSpec, Function, Init, Op, Value};
use super::{NetSpec, Shape, dense_stack};
use crate::base::usage::usage;

/// The longer side of the smallest features is less than this.
const SMALL: i64 = 8;
/// Channels of a group of a [`Block::Grouped`] (arXiv 2501.05441, section 4).
const GROUP: i64 = 16;

/// The residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Block {
    /// Activation, 3×3, activation, 3×3 (He et al. 2016, arXiv 1603.05027), the block of SNGAN.
    Plain,
    /// 1×1 to twice the channels, activation, 3×3 in groups of 16 channels, activation, 1×1, the block of R3GAN (arXiv 2501.05441).
    Grouped,
}

/// What only residual networks have.
#[derive(Clone, Debug, PartialEq)]
pub struct Residual {
    /// The blocks.
    pub block: Block,
    /// Blocks at each resolution, from the image's on; the last number holds for all further ones.
    pub blocks: Vec<i64>,
    /// Self-attention where the longer side of the features is this; 0 for none.
    pub attention: i64,
}

impl Default for Residual {
    fn default() -> Self {
        Residual { block: Block::Plain, blocks: vec![1], attention: 0 }
    }
}

/// The resolutions of a network.
struct Resolutions {
    /// How often the sides halve.
    halvings: usize,
    /// H and W of the smallest features.
    smallest: [i64; 2],
    /// The border around the image.
    border: [i64; 2],
}

impl Resolutions {
    fn of(shape: Shape) -> Self {
        let sides = [shape.height, shape.width];
        let mut halvings = 0;
        let after = |halvings: usize| sides.map(|side| (side + (1 << halvings) - 1) >> halvings);
        while after(halvings).into_iter().max() >= Some(SMALL) {
            halvings += 1;
        }
        let smallest = after(halvings);
        let border = [0, 1].map(|i| (smallest[i] << halvings) - sides[i]);
        Resolutions { halvings, smallest, border }
    }

    /// The longer side of the features after `i` halvings.
    fn longer(&self, i: usize) -> i64 {
        self.smallest[0].max(self.smallest[1]) << (self.halvings - i)
    }

    /// Puts the border around an image, or removes it.
    fn bordered(&self, b: &mut Builder, name: &str, x: Value, sign: i64) -> Result<Value> {
        let [rows, columns] = self.border;
        if rows == 0 && columns == 0 {
            return Ok(x);
        }
        let (top, left) = (rows / 2, columns / 2);
        let pad =
            Op::Pad { left: sign * left, right: sign * (columns - left), top: sign * top, bottom: sign * (rows - top) };
        b.op(name, pad, &[x])
    }
}

/// Adds the layers of one network.
struct Layers<'a> {
    spec: &'a NetSpec,
    /// Blocks in all.
    count: i64,
}

impl Layers<'_> {
    fn of<'a>(spec: &'a NetSpec, resolutions: &Resolutions) -> Result<Layers<'a>> {
        let sides: Vec<i64> = (0..=resolutions.halvings).rev().map(|i| resolutions.longer(i)).collect();
        let attention = spec.residual.attention;
        if attention != 0 && !sides.contains(&attention) {
            let sides = sides.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
            usage!(
                "--attention {attention}: the longer sides of the features of these images are {sides}: name one of them"
            );
        }
        let layers = Layers { spec, count: 0 };
        let count = (0..=resolutions.halvings).map(|i| layers.blocks(i)).sum();
        Ok(Layers { count, ..layers })
    }

    /// Number of blocks after `i` halvings.
    fn blocks(&self, i: usize) -> i64 {
        let all = &self.spec.residual.blocks;
        all.get(i).or(all.last()).copied().unwrap_or(1)
    }

    /// What a layer's weights begin with: `gain` of [`Init::He`].
    fn gain(&self, gain: f64, b: &mut Builder) {
        b.init = Init::He { gain };
    }

    /// √2 for a ReLU (He et al. 2015, eq. 15).
    fn activation_gain(&self) -> f64 {
        match self.spec.activation.function() {
            Function::Relu => f64::sqrt(2.0),
            Function::LeakyRelu(slope) => f64::sqrt(2.0 / (1.0 + slope * slope)),
            _ => 1.0,
        }
    }

    /// Whether nothing normalises values or weights.
    fn is_free(&self) -> bool {
        !self.spec.batch_norm && !self.spec.spectral
    }

    fn activation(&self, b: &mut Builder, name: String, x: Value) -> Result<Value> {
        b.op(name, Op::Activation(self.spec.activation.function()), &[x])
    }

    /// Batch normalisation, if the network has it.
    fn norm(&self, b: &mut Builder, name: String, x: Value) -> Result<Value> {
        if self.spec.batch_norm { b.batch_norm(name, x, true) } else { Ok(x) }
    }

    /// A 1×1 convolution, unless the channels are `to` already.
    fn channels(&self, b: &mut Builder, name: String, x: Value, to: i64) -> Result<Value> {
        if b.dims(x)[0] == to {
            return Ok(x);
        }
        self.gain(1.0, b);
        b.conv(name, x, to, ConvSpec { bias: false, ..ConvSpec::same(1) })
    }

    /// The blocks after `i` halvings, and the self-attention.
    fn stage(&self, b: &mut Builder, i: usize, mut x: Value) -> Result<Value> {
        for j in 0..self.blocks(i) {
            let name = format!("block{i}_{j}");
            x = match self.spec.residual.block {
                Block::Plain => self.plain(b, &name, x)?,
                Block::Grouped => self.grouped(b, &name, x)?,
            };
        }
        let longer = b.dims(x)[1..].iter().copied().max();
        if longer == Some(self.spec.residual.attention) { self.attention(b, x) } else { Ok(x) }
    }

    /// See [`Block::Plain`].
    fn plain(&self, b: &mut Builder, name: &str, x: Value) -> Result<Value> {
        let (channels, gain) = (b.dims(x)[0], self.activation_gain());
        // Of two layers, n blocks: n^(−1/(2·2−2)) (arXiv 1901.09321, section 3).
        let first = if self.is_free() { gain * (self.count as f64).powf(-0.5) } else { gain };
        let mut h = x;
        for (k, gain) in [(1, first), (2, if self.is_free() { 0.0 } else { gain })] {
            h = self.norm(b, format!("{name}_norm{k}"), h)?;
            h = self.activation(b, format!("{name}_act{k}"), h)?;
            self.gain(gain, b);
            h = b.conv(format!("{name}_conv{k}"), h, channels, ConvSpec::same(3))?;
        }
        b.op(format!("{name}_sum"), Op::Add, &[x, h])
    }

    /// See [`Block::Grouped`].
    fn grouped(&self, b: &mut Builder, name: &str, x: Value) -> Result<Value> {
        let (channels, gain) = (b.dims(x)[0], self.activation_gain());
        let inner = 2 * channels;
        ensure!(
            inner % GROUP == 0,
            "--block grouped takes channels that are multiples of {}, found {channels}: change --base-width, --max-width or the widths",
            GROUP / 2
        );
        // Of three layers: n^(−1/(2·3−2)).
        let scale = if self.is_free() { (self.count as f64).powf(-0.25) } else { 1.0 };
        self.gain(gain * scale, b);
        let mut h = b.conv(format!("{name}_conv1"), x, inner, ConvSpec::same(1))?;
        h = self.norm(b, format!("{name}_norm1"), h)?;
        h = self.activation(b, format!("{name}_act1"), h)?;
        h = b.conv(format!("{name}_conv2"), h, inner, ConvSpec { groups: inner / GROUP, ..ConvSpec::same(3) })?;
        h = self.norm(b, format!("{name}_norm2"), h)?;
        h = self.activation(b, format!("{name}_act2"), h)?;
        self.gain(if self.is_free() { 0.0 } else { 1.0 }, b);
        h = b.conv(format!("{name}_conv3"), h, channels, ConvSpec { bias: false, ..ConvSpec::same(1) })?;
        b.op(format!("{name}_sum"), Op::Add, &[x, h])
    }

    /// Self-attention over the pixels (Zhang et al. 2019, arXiv 1805.08318), with softmax(qᵀk/√d).
    ///
    /// Differs: scores are divided by √d (Vaswani et al. 2017, arXiv 1706.03762); the last convolution begins at 0 in place of a factor.
    fn attention(&self, b: &mut Builder, x: Value) -> Result<Value> {
        let &[channels, height, width] = b.dims(x) else { bail!("wanted features [C,H,W], found {:?}", b.dims(x)) };
        let (narrow, half, pixels) = ((channels / 8).max(1), (channels / 2).max(1), height * width);
        self.gain(1.0, b);
        let mut flat = |name: &str, to: i64| {
            let all = b.conv(format!("attention_{name}"), x, to, ConvSpec { bias: false, ..ConvSpec::same(1) })?;
            b.op(format!("attention_{name}_flat"), Op::Reshape(vec![to, pixels]), &[all])
        };
        let (q, k, v) = (flat("q", narrow)?, flat("k", narrow)?, flat("v", half)?);
        // Row i of the scores: pixel i with every pixel j.
        let scores = b.op("attention_scores", Op::MatMul { transpose_a: true, transpose_b: false }, &[q, k])?;
        let scale = 1.0 / (narrow as f64).sqrt();
        let scaled = b.op("attention_scaled", Op::Affine { scale, shift: 0.0 }, &[scores])?;
        let weights = b.op("attention_weights", Op::Softmax, &[scaled])?;
        let mixed = b.op("attention_mixed", Op::MatMul { transpose_a: false, transpose_b: true }, &[v, weights])?;
        let image = b.op("attention_image", Op::Reshape(vec![half, height, width]), &[mixed])?;
        self.gain(if self.spec.spectral { 1.0 } else { 0.0 }, b);
        let out = b.conv("attention_out", image, channels, ConvSpec { bias: false, ..ConvSpec::same(1) })?;
        b.op("attention_sum", Op::Add, &[x, out])
    }
}

/// x [C,H,W] -> `stem` -> blocks, halving, blocks, ... -> flatten -> `fc1`, ... -> [F].
pub fn features(b: &mut Builder, x: Value, spec: &NetSpec) -> Result<Value> {
    let &[channels, height, width] = b.dims(x) else { bail!("wanted images [C,H,W], found {:?}", b.dims(x)) };
    let resolutions = Resolutions::of(Shape { channels, height, width });
    let layers = Layers::of(spec, &resolutions)?;
    let x = resolutions.bordered(b, "border", x, 1)?;
    layers.gain(1.0, b);
    let mut x = b.conv("stem", x, spec.width(0, resolutions.halvings), ConvSpec::same(3))?;
    for i in 0..=resolutions.halvings {
        x = layers.stage(b, i, x)?;
        if i < resolutions.halvings {
            x = b.op(format!("down{i}"), Op::AveragePool([2, 2]), &[x])?;
            x = layers.channels(b, format!("down{i}_conv"), x, spec.width(i + 1, resolutions.halvings))?;
        }
    }
    x = layers.norm(b, "last_norm".to_owned(), x)?;
    x = layers.activation(b, "last_act".to_owned(), x)?;
    let pixels = b.dims(x).iter().product();
    let flat = b.op("flatten", Op::Reshape(vec![pixels]), &[x])?;
    layers.gain(layers.activation_gain(), b);
    let out = dense_stack(b, flat, spec)?;
    layers.gain(1.0, b);
    Ok(out)
}

/// z [Z] -> `fc1`, ... -> `base` -> [K,H0,W0] -> blocks, doubling, blocks, ... -> `image` -> [C,H,W].
pub fn synthesis(b: &mut Builder, z: Value, shape: Shape, spec: &NetSpec) -> Result<Value> {
    let resolutions = Resolutions::of(shape);
    let layers = Layers::of(spec, &resolutions)?;
    let ([height, width], channels) = (resolutions.smallest, spec.width(resolutions.halvings, resolutions.halvings));
    layers.gain(layers.activation_gain(), b);
    let hidden = dense_stack(b, z, spec)?;
    layers.gain(1.0, b);
    let base = b.linear("base", hidden, channels * height * width, true)?;
    let mut x = b.op("grid", Op::Reshape(vec![channels, height, width]), &[base])?;
    for i in (0..=resolutions.halvings).rev() {
        x = layers.stage(b, i, x)?;
        if i > 0 {
            x = layers.channels(b, format!("up{i}_conv"), x, spec.width(i - 1, resolutions.halvings))?;
            x = b.op(format!("up{i}"), Op::Upsample, &[x])?;
        }
    }
    x = layers.norm(b, "last_norm".to_owned(), x)?;
    x = layers.activation(b, "last_act".to_owned(), x)?;
    layers.gain(1.0, b);
    let image = b.conv("image", x, shape.channels, ConvSpec::same(3))?;
    resolutions.bordered(b, "cut", image, -1)
}
