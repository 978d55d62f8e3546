//! Runs an ONNX file from what stands in it, with plain tensor operations.
//!
//! A second account of the operators that `write` uses, after ONNX's specification and not after the networks: what a file says
//! wrongly comes out wrong here. Anything in a node that is not understood is an error, never passed over.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use prost::Message;
use prost::bytes::Bytes;
use tch::{Device, Kind, Tensor};

use super::proto::{AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, attribute_type, data_type};
use super::{BATCH, OPSET};

/// A model read from an ONNX file, on the CPU.
#[derive(Debug)]
pub struct Loaded {
    constants: HashMap<String, Tensor>,
    nodes: Vec<NodeProto>,
    input: ValueInfoProto,
    outputs: Vec<ValueInfoProto>,
}

impl Loaded {
    /// Reads a file that [`super::write`] wrote.
    ///
    /// # Errors
    /// When it cannot be read, is cut short or damaged, or is of another opset; names it.
    pub fn read(path: &Path) -> Result<Self> {
        let read = || Self::parse(std::fs::read(path)?.into());
        read().with_context(|| format!("the ONNX file {} cannot be used, export it again", path.display()))
    }

    /// As [`Loaded::read`], from the bytes of a file.
    pub(super) fn parse(bytes: Bytes) -> Result<Self> {
        let length = bytes.len();
        let model = ModelProto::decode(bytes).with_context(|| format!("its {length} bytes are no whole ONNX model"))?;
        let opsets: Vec<_> =
            model.opset_import.iter().map(|o| (o.domain.as_deref().unwrap_or(""), o.version)).collect();
        ensure!(
            opsets == [("", OPSET)],
            "its operator sets are {opsets:?}, wanted ONNX's own of version {OPSET} alone"
        );
        let Some(graph) = model.graph else { bail!("there is no graph in its {length} bytes") };
        let mut constants = HashMap::new();
        for constant in &graph.initializer {
            let value = tensor(constant).with_context(|| format!("the constant '{}'", constant.name))?;
            let before = constants.insert(constant.name.clone(), value);
            ensure!(before.is_none(), "the constant '{}' is there twice", constant.name);
        }
        let found = graph.input.len();
        let Ok([input]) = <[_; 1]>::try_from(graph.input) else { bail!("it has {found} inputs, wanted 1") };
        ensure!(!graph.output.is_empty(), "it has no output");
        let mut names: HashSet<&str> = constants.keys().map(String::as_str).collect();
        let made = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str));
        if let Some(name) = [input.name.as_str()].into_iter().chain(made).find(|name| !names.insert(name)) {
            bail!("two of its values have the name '{name}'");
        }
        Ok(Loaded { constants, nodes: graph.node, input, outputs: graph.output })
    }

    /// Name of the input.
    pub fn input(&self) -> &str {
        &self.input.name
    }

    /// Names of the outputs, in the order in which [`Loaded::run`] gives them.
    pub fn outputs(&self) -> Vec<&str> {
        self.outputs.iter().map(|o| o.name.as_str()).collect()
    }

    /// The outputs of an input [B,...] float32 of any B, on the CPU.
    ///
    /// # Errors
    /// When the input, or an output, is not of the type and dimensions that the file declares, or the file holds an operator or
    /// a setting of one that networks here do not have; names the node.
    pub fn run(&self, input: &Tensor) -> Result<Vec<Tensor>> {
        tch::no_grad(|| self.evaluate(input.f_to_device(Device::Cpu)?))
    }

    fn evaluate(&self, input: Tensor) -> Result<Vec<Tensor>> {
        let batch = input.size().first().copied().context("the input has no batch dimension")?;
        check_port(&self.input, &input, batch)?;
        let last_use = self.last_use();
        let mut values = HashMap::from([(self.input.name.as_str(), input)]);
        for (i, node) in self.nodes.iter().enumerate() {
            let step = || -> Result<(&str, Tensor)> {
                let [output] = node.output.as_slice() else {
                    bail!("it has {} outputs, wanted 1", node.output.len());
                };
                let known = |name: &String| values.get(name.as_str()).or_else(|| self.constants.get(name));
                let inputs: Result<Vec<_>> = node
                    .input
                    .iter()
                    .map(|name| known(name).ok_or_else(|| anyhow!("its input '{name}' is not there yet")))
                    .collect();
                Ok((output, apply(node, &inputs?)?))
            };
            let (name, value) = step().with_context(|| format!("node '{}' ({})", node.name, node.op_type))?;
            values.insert(name, value);
            // A value is given back after its last use: the layers' outputs together may be far larger than any one.
            values.retain(|name, _| last_use.get(name).is_some_and(|&last| last > i));
        }
        self.outputs
            .iter()
            .map(|port| {
                let value = values.get(port.name.as_str()).or_else(|| self.constants.get(&port.name));
                let value = value.with_context(|| format!("no node gives the output '{}'", port.name))?;
                check_port(port, value, batch)?;
                Ok(value.shallow_clone())
            })
            .collect()
    }

    /// For each value the index of the last node that takes it; the outputs live on.
    fn last_use(&self) -> HashMap<&str, usize> {
        let mut last = HashMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            last.extend(node.input.iter().map(|name| (name.as_str(), i)));
        }
        last.extend(self.outputs.iter().map(|o| (o.name.as_str(), usize::MAX)));
        last
    }
}

/// A constant of the file. Its bytes are checked against its dimensions before libtorch sees either.
fn tensor(constant: &TensorProto) -> Result<Tensor> {
    let kind = match constant.data_type {
        data_type::FLOAT => Kind::Float,
        data_type::INT64 => Kind::Int64,
        other => bail!("is of ONNX's type {other}, wanted {} or {}", data_type::FLOAT, data_type::INT64),
    };
    let count =
        constant.dims.iter().try_fold(kind.elt_size_in_bytes(), |n, &d| n.checked_mul(usize::try_from(d).ok()?));
    let raw = constant.raw_data.as_deref().unwrap_or_default();
    ensure!(
        count == Some(raw.len()),
        "has {} bytes, which are not those of a {kind:?} tensor of {:?}",
        raw.len(),
        constant.dims
    );
    if cfg!(target_endian = "big") {
        let mut own = raw.to_vec();
        own.chunks_exact_mut(kind.elt_size_in_bytes()).for_each(<[u8]>::reverse);
        return Ok(Tensor::f_from_data_size(&own, &constant.dims, kind)?);
    }
    Ok(Tensor::f_from_data_size(raw, &constant.dims, kind)?)
}

/// Refuses a value that is not what the file declares: float32, its dimensions, the batch where it says so.
fn check_port(port: &ValueInfoProto, value: &Tensor, batch: i64) -> Result<()> {
    let declared = port.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
    let dims: Option<Vec<i64>> = declared.and_then(|t| t.shape.as_ref()).and_then(|shape| {
        let size = |d: &super::DimensionProto| match (&d.dim_value, &d.dim_param) {
            (Some(value), None) => Some(*value),
            (None, Some(name)) if name == BATCH => Some(batch),
            _ => None,
        };
        shape.dim.iter().map(size).collect()
    });
    let float = declared.is_some_and(|t| t.elem_type == data_type::FLOAT);
    ensure!(
        float && value.kind() == Kind::Float && dims.as_ref() == Some(&value.size()),
        "'{}' is {:?} of {:?}, and the file declares {} of {} with a batch of {batch}",
        port.name,
        value.kind(),
        value.size(),
        if float { "Float" } else { "another type" },
        dims.map_or_else(|| "unknown dimensions".to_owned(), |d| format!("{d:?}"))
    );
    Ok(())
}

/// The settings of a node, each taken once.
struct Attributes<'a>(BTreeMap<&'a str, &'a AttributeProto>);

impl<'a> Attributes<'a> {
    fn of(node: &'a NodeProto) -> Self {
        Attributes(node.attribute.iter().map(|a| (a.name.as_str(), a)).collect())
    }

    fn take(&mut self, name: &str, wanted: i32) -> Result<Option<&'a AttributeProto>> {
        let found = self.0.remove(name);
        if let Some(a) = found {
            ensure!(a.r#type == wanted, "its setting {name} is of ONNX's type {}, wanted {wanted}", a.r#type);
        }
        Ok(found)
    }

    fn float(&mut self, name: &str, default: f32) -> Result<f64> {
        Ok(self.take(name, attribute_type::FLOAT)?.map_or(default, |a| a.f.unwrap_or_default()).into())
    }

    fn int(&mut self, name: &str, default: i64) -> Result<i64> {
        Ok(self.take(name, attribute_type::INT)?.map_or(default, |a| a.i.unwrap_or_default()))
    }

    fn flag(&mut self, name: &str) -> Result<bool> {
        Ok(self.int(name, 0)? != 0)
    }

    fn ints(&mut self, name: &str, default: &[i64]) -> Result<Vec<i64>> {
        Ok(self.take(name, attribute_type::INTS)?.map_or_else(|| default.to_vec(), |a| a.ints.clone()))
    }

    fn none_left(&self) -> Result<()> {
        match self.0.keys().next() {
            Some(name) => bail!("its setting {name} is none that networks here have"),
            None => Ok(()),
        }
    }
}

/// The output of one node, by ONNX's specification of its operator.
fn apply(node: &NodeProto, inputs: &[&Tensor]) -> Result<Tensor> {
    ensure!(node.domain.is_empty(), "its operator is of the domain '{}', wanted ONNX's own", node.domain);
    let mut settings = Attributes::of(node);
    let operator = match node.op_type.as_str() {
        "Gemm" => gemm,
        "Conv" => conv,
        "ConvTranspose" => conv_transpose,
        "BatchNormalization" => batch_normalization,
        "Reshape" => reshape,
        "Flatten" => flatten,
        "Squeeze" => squeeze,
        "Mul" | "Add" => pairwise,
        "Relu" | "LeakyRelu" | "Tanh" | "Sigmoid" | "Identity" => elementwise,
        other => bail!("'{other}' is no operator that networks here have: export the model again"),
    };
    let output = operator(&node.op_type, inputs, &mut settings)?;
    settings.none_left()?;
    Ok(output)
}

/// Exactly N inputs.
fn exactly<'a, const N: usize>(inputs: &[&'a Tensor]) -> Result<[&'a Tensor; N]> {
    inputs.try_into().map_err(|_| anyhow!("it has {} inputs, wanted {N}", inputs.len()))
}

/// Two inputs, and a third that may be left out.
fn with_bias<'a>(inputs: &[&'a Tensor]) -> Result<(&'a Tensor, &'a Tensor, Option<&'a Tensor>)> {
    match inputs {
        [x, w] => Ok((x, w, None)),
        [x, w, b] => Ok((x, w, Some(b))),
        _ => bail!("it has {} inputs, wanted 2 or 3", inputs.len()),
    }
}

/// alpha·A·B + beta·C, A and B transposed where it says so: [M,K], [K,N] -> [M,N].
fn gemm(_: &str, inputs: &[&Tensor], settings: &mut Attributes) -> Result<Tensor> {
    let (a, b, c) = with_bias(inputs)?;
    let turn = |t: &Tensor, flag| -> Result<Tensor> {
        ensure!(t.dim() == 2, "an input has the dimensions {:?}, wanted two", t.size());
        Ok(if flag { t.f_transpose(0, 1)? } else { t.shallow_clone() })
    };
    let (a, b) = (turn(a, settings.flag("transA")?)?, turn(b, settings.flag("transB")?)?);
    let (alpha, beta) = (settings.float("alpha", 1.0)?, settings.float("beta", 1.0)?);
    let product = a.f_matmul(&b)?.f_mul_scalar(alpha)?;
    Ok(match c {
        Some(c) => product.f_add(&c.f_mul_scalar(beta)?)?,
        None => product,
    })
}

/// What both convolutions share.
struct Window {
    strides: Vec<i64>,
    /// Rows and columns added on both sides.
    padding: [i64; 2],
    dilations: Vec<i64>,
    groups: i64,
}

impl Window {
    fn of(x: &Tensor, w: &Tensor, settings: &mut Attributes) -> Result<Self> {
        ensure!(
            x.dim() == 4 && w.dim() == 4,
            "it is given {:?} and weights of {:?}, wanted 4 each",
            x.size(),
            w.size()
        );
        let kernel = settings.ints("kernel_shape", &w.size()[2..])?;
        ensure!(kernel == w.size()[2..], "its kernel_shape is {kernel:?} and its weights are of {:?}", w.size());
        let pads = settings.ints("pads", &[0; 4])?;
        let padding = match pads.as_slice() {
            [top, left, bottom, right] if (top, left) == (bottom, right) => [*top, *left],
            _ => bail!("its pads are {pads:?}, wanted the same at both ends of each side"),
        };
        Ok(Window {
            strides: settings.ints("strides", &[1, 1])?,
            padding,
            dilations: settings.ints("dilations", &[1, 1])?,
            groups: settings.int("group", 1)?,
        })
    }
}

/// x [B,I,H,W], w [O,I,K,K], b [O].
fn conv(_: &str, inputs: &[&Tensor], settings: &mut Attributes) -> Result<Tensor> {
    let (x, w, b) = with_bias(inputs)?;
    let Window { strides, padding, dilations, groups } = Window::of(x, w, settings)?;
    Ok(x.f_conv2d(w, b, strides, padding, dilations, groups)?)
}

/// x [B,I,H,W], w [I,O,K,K], b [O].
fn conv_transpose(_: &str, inputs: &[&Tensor], settings: &mut Attributes) -> Result<Tensor> {
    let (x, w, b) = with_bias(inputs)?;
    let Window { strides, padding, dilations, groups } = Window::of(x, w, settings)?;
    Ok(x.f_conv_transpose2d(w, b, strides, padding, [0, 0], groups, dilations)?)
}

/// (x − mean) / √(variance + epsilon) · scale + shift along the second dimension; inputs in the order x, scale, shift, mean, variance.
fn batch_normalization(_: &str, inputs: &[&Tensor], settings: &mut Attributes) -> Result<Tensor> {
    let [x, scale, shift, mean, variance] = exactly(inputs)?;
    ensure!(!settings.flag("training_mode")?, "it is in training mode, and exports are in evaluation mode");
    // The weight of a batch in the running statistics, which evaluation does not change.
    settings.float("momentum", 0.9)?;
    let epsilon = settings.float("epsilon", 1e-5)?;
    let mut along = vec![1; x.dim()];
    *along.get_mut(1).context("its input has one dimension, wanted two or more")? = -1;
    let [scale, shift, mean, variance] = [scale, shift, mean, variance].map(|t| t.f_reshape(&along)); // [1,C,1,1]
    let factor = scale?.f_div(&variance?.f_add_scalar(epsilon)?.f_sqrt()?)?;
    Ok(x.f_sub(&mean?)?.f_mul(&factor)?.f_add(&shift?)?)
}

/// To the dimensions that the second input lists: 0 is the input's own, −1 what is left.
fn reshape(_: &str, inputs: &[&Tensor], _: &mut Attributes) -> Result<Tensor> {
    let [x, dims] = exactly(inputs)?;
    let (from, mut to) = (x.size(), numbers(dims)?);
    for (i, d) in to.iter_mut().enumerate().filter(|(_, d)| **d == 0) {
        *d = *from.get(i).with_context(|| format!("its shape copies dimension {i} of {from:?}"))?;
    }
    Ok(x.f_reshape(to)?)
}

/// [d0,d1,...] -> [the product of those before the axis, that of the rest].
fn flatten(_: &str, inputs: &[&Tensor], settings: &mut Attributes) -> Result<Tensor> {
    let [x] = exactly(inputs)?;
    let (size, axis) = (x.size(), settings.int("axis", 1)?);
    let split = usize::try_from(axis).ok().and_then(|at| size.split_at_checked(at));
    let Some((before, after)) = split else { bail!("its axis is {axis} and its input of {size:?}") };
    Ok(x.f_reshape([before.iter().product::<i64>(), after.iter().product()])?)
}

/// Without the dimensions that the second input lists, each of which must be 1.
fn squeeze(_: &str, inputs: &[&Tensor], _: &mut Attributes) -> Result<Tensor> {
    let [x, axes] = exactly(inputs)?;
    let (size, axes) = (x.size(), numbers(axes)?);
    let axes: HashSet<usize> = axes.iter().filter_map(|&a| usize::try_from(a).ok()).collect();
    let ones = axes.iter().all(|&a| size.get(a) == Some(&1));
    ensure!(ones && !axes.is_empty(), "it removes the dimensions {axes:?} of {size:?}, and only those of 1 can go");
    let kept: Vec<i64> = size.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| *d).collect();
    Ok(x.f_reshape(kept)?)
}

/// Of two tensors, the smaller repeated to the larger.
fn pairwise(operator: &str, inputs: &[&Tensor], _: &mut Attributes) -> Result<Tensor> {
    let [a, b] = exactly(inputs)?;
    Ok(if operator == "Mul" { a.f_mul(b)? } else { a.f_add(b)? })
}

/// Of one tensor.
fn elementwise(operator: &str, inputs: &[&Tensor], settings: &mut Attributes) -> Result<Tensor> {
    let [x] = exactly(inputs)?;
    Ok(match operator {
        "Relu" => x.f_relu()?,
        "LeakyRelu" => {
            let below = x.f_clamp_max(0.0)?.f_mul_scalar(settings.float("alpha", 0.01)?)?;
            x.f_clamp_min(0.0)?.f_add(&below)?
        }
        "Tanh" => x.f_tanh()?,
        "Sigmoid" => x.f_sigmoid()?,
        _ => x.shallow_clone(),
    })
}

/// The numbers of a constant such as a shape: int64 [N].
fn numbers(t: &Tensor) -> Result<Vec<i64>> {
    ensure!(t.kind() == Kind::Int64 && t.dim() == 1, "a list of dimensions is {:?} of {:?}", t.kind(), t.size());
    // sync: a constant of the file, on the CPU from the start.
    Ok(Vec::<i64>::try_from(t)?)
}
