//! The builder of graphs: layers with their initial weights.

use std::cell::Cell;

use anyhow::{Result, bail, ensure};
use tch::Tensor;
use tch::nn::{self, Path, VarStore};

use super::compute::Compute;
use super::cost;
use super::graph::{ConvLayer, ConvSpec, Graph, Node, Op, Port, Value};
use super::spectral::SpectralNorm;

/// Names that a Python sub-module cannot have: keywords and attributes of every module.
const RESERVED: [&str; 37] = [
    "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del",
    "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is", "lambda", "nonlocal",
    "not", "or", "pass", "raise", "return", "try", "while", "with", "yield", "forward", "training",
];

/// Weight initialisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// PyTorch's defaults: weights and biases from U(±1/√fan_in) (Kaiming-uniform with a = √5), normalisations 1 and 0.
    /// tch's own defaults differ: weights √6 times wider, random BatchNorm scale.
    PyTorch,
    /// DCGAN (arXiv 1511.06434, section 3): weights from N(0, 0.02), biases 0, normalisations 1 and 0.
    Dcgan,
    /// Weights from N(0, gain²/fan_in), biases 0, normalisations 1 and 0 (He et al. 2015, arXiv 1502.01852).
    He {
        /// √2 before a ReLU, 1 before nothing, 0 for weights of 0.
        gain: f64,
    },
}

impl Init {
    /// Initialisation of weights and biases of a layer with this fan-in.
    fn of(self, fan_in: i64) -> (nn::Init, nn::Init) {
        match self {
            Init::PyTorch => {
                let up = 1.0 / (fan_in as f64).sqrt();
                let uniform = nn::Init::Uniform { lo: -up, up };
                (uniform, uniform)
            }
            Init::Dcgan => (nn::Init::Randn { mean: 0.0, stdev: 0.02 }, nn::Init::Const(0.0)),
            Init::He { gain: 0.0 } => (nn::Init::Const(0.0), nn::Init::Const(0.0)),
            Init::He { gain } => {
                (nn::Init::Randn { mean: 0.0, stdev: gain / (fan_in as f64).sqrt() }, nn::Init::Const(0.0))
            }
        }
    }
}

thread_local! {
    /// Numbers in the checkpoint that the networks are built for.
    static STORED: Cell<i64> = const { Cell::new(i64::MAX) };
}

/// Builds networks for a checkpoint of `stored` numbers: a layer of more weights is refused before it takes memory.
pub fn built_for<T>(stored: i64, build: impl FnOnce() -> T) -> T {
    let before = STORED.replace(stored);
    let built = build();
    STORED.set(before);
    built
}

/// Builds a graph: each method adds one node and returns its result.
#[derive(Debug)]
pub struct Builder<'a> {
    path: Path<'a>,
    graph: Graph,
    /// Initialisation of the layers added next.
    pub init: Init,
    /// Whether the linear layers, convolutions and embeddings added next have spectral normalisation.
    pub spectral: bool,
}

impl<'a> Builder<'a> {
    /// A network `name`; its variables are created in `vars` under that name.
    pub fn new(vars: &'a VarStore, name: &'static str, init: Init) -> Self {
        let (inputs, nodes, outputs) = (Vec::new(), Vec::new(), Vec::new());
        let graph = Graph { name, inputs, nodes, outputs, float32_from: usize::MAX, compute: Compute::default() };
        Builder { path: vars.root() / name, graph, init, spectral: false }
    }

    /// Adds an input. All inputs must be added before the first operation.
    ///
    /// # Errors
    /// After an operation, or when the name is taken.
    pub fn input(&mut self, port: Port) -> Result<Value> {
        ensure!(self.graph.nodes.is_empty(), "the input {} comes after operations: add inputs first", port.name);
        self.check_port(&port)?;
        self.graph.inputs.push(port);
        Ok(Value(self.graph.inputs.len() - 1))
    }

    /// Names a value as an output. Its dimensions must be those of the port.
    ///
    /// # Errors
    /// When they differ, or the name is taken.
    pub fn output(&mut self, port: Port, value: Value) -> Result<()> {
        let found = self.graph.dims(value);
        ensure!(found == port.dims, "the output {} has dimensions {found:?}, wanted {:?}", port.name, port.dims);
        self.check_port(&port)?;
        self.graph.outputs.push((port, value));
        Ok(())
    }

    /// All nodes added from now on are computed in float32 in every precision.
    pub fn begin_float32(&mut self) {
        self.graph.float32_from = self.graph.float32_from.min(self.graph.nodes.len());
    }

    /// Dimensions of a value after the batch.
    pub fn dims(&self, value: Value) -> &[i64] {
        self.graph.dims(value)
    }

    /// The finished graph.
    ///
    /// # Errors
    /// When it has no output.
    pub fn finish(self) -> Result<Graph> {
        ensure!(!self.graph.outputs.is_empty(), "the network {} has no output: name one", self.graph.name);
        Ok(self.graph)
    }

    /// A number or several beside the operations, which a loss uses: part of checkpoints, not of exports. A parameter if it is `trained`.
    ///
    /// # Errors
    /// When the name is taken or invalid.
    pub fn variable(&self, name: &str, dims: &[i64], value: f64, trained: bool) -> Result<Tensor> {
        self.check_name(name)?;
        if trained {
            return Ok(self.path.f_var(name, dims, nn::Init::Const(value))?);
        }
        let mut t = self.path.f_zeros_no_train(name, dims)?;
        let _ = t.f_fill_(value)?;
        Ok(t)
    }

    /// Adds an operation without parameters, or with existing ones.
    ///
    /// # Errors
    /// When the name is taken or invalid, or the inputs do not fit the operation.
    pub fn op(&mut self, name: impl Into<String>, op: Op, inputs: &[Value]) -> Result<Value> {
        let name = name.into();
        self.check_name(&name)?;
        let dims: Vec<&[i64]> = inputs.iter().map(|v| self.graph.dims(*v)).collect();
        let Some(result) = cost::result_dims(&op, &dims) else {
            bail!("the operation {name} cannot take values of dimensions {dims:?} (after the batch)");
        };
        let spectral = match &op {
            Op::Linear(nn::Linear { ws, .. })
            | Op::Conv(ConvLayer { weight: ws, .. })
            | Op::Embedding(nn::Embedding { ws, .. })
                if self.spectral =>
            {
                Some(SpectralNorm::new(&self.path / &name, ws)?)
            }
            _ => None,
        };
        self.graph.nodes.push(Node { name, op, inputs: inputs.to_vec(), dims: result, spectral });
        Ok(self.graph.result(self.graph.nodes.len() - 1))
    }

    fn check_name(&self, name: &str) -> Result<()> {
        let taken = self.graph.nodes.iter().any(|node| node.name == name);
        ensure!(!taken, "two operations of the {} are named {name}: each needs its own name", self.graph.name);
        self.check_word("an operation", name)
    }

    fn check_port(&self, port: &Port) -> Result<()> {
        let mut ports = self.graph.inputs.iter().chain(self.graph.outputs.iter().map(|(port, _)| port));
        ensure!(
            ports.all(|other| other.name != port.name),
            "two inputs or outputs of the {} are named {}: each needs its own name",
            self.graph.name,
            port.name
        );
        self.check_word("an input or output", port.name)
    }

    /// Refuses a name that is invalid in an export.
    fn check_word(&self, what: &str, name: &str) -> Result<()> {
        ensure!(
            !RESERVED.contains(&name),
            "{what} of the {} is named {name}, which is reserved in Python and TorchScript: choose another name",
            self.graph.name
        );
        let word = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        ensure!(
            word && name.starts_with(|c: char| c.is_ascii_alphabetic()) && !name.contains("__"),
            "{what} of the {} is named {name:?}: a name is a letter, then letters, digits and single '_'",
            self.graph.name
        );
        Ok(())
    }

    /// Fully connected: [..., in] -> [..., `to`].
    ///
    /// # Errors
    /// As [`Builder::op`]; when the layer would have more than 2^31 weights, or more than its checkpoint ([`built_for`]).
    pub fn linear(&mut self, name: impl Into<String>, x: Value, to: i64, bias: bool) -> Result<Value> {
        let name = name.into();
        let Some(&from) = self.dims(x).last() else {
            bail!("the layer {name} needs an input of at least one dimension")
        };
        self.check_weights(&name, &[from, to])?;
        let (ws_init, bs_init) = self.init.of(from);
        let config = nn::LinearConfig { ws_init, bs_init: Some(bs_init), bias };
        let layer = nn::linear(&self.path / &name, from, to, config);
        self.op(name, Op::Linear(layer), &[x])
    }

    /// A convolution: [I,H,W] -> [`to`,H',W'].
    ///
    /// # Errors
    /// As [`Builder::linear`]; when the groups do not divide the channels.
    pub fn conv(&mut self, name: impl Into<String>, x: Value, to: i64, spec: ConvSpec) -> Result<Value> {
        let name = name.into();
        let from = self.channels(&name, x)?;
        let ConvSpec { kernel, stride, padding, groups, transposed, bias } = spec;
        ensure!(
            from % groups == 0 && to % groups == 0,
            "the layer {name} has {groups} groups, which must divide its {from} and {to} channels"
        );
        // PyTorch counts the fan-in of a transposed convolution on its output side: weights are [in,out/groups,k,k].
        let (rows, columns) = if transposed { (from, to / groups) } else { (to, from / groups) };
        self.check_weights(&name, &[rows, columns, kernel * kernel])?;
        let (ws_init, bs_init) = self.init.of(columns * kernel * kernel);
        let path = &self.path / &name;
        let (weight, bias) = if transposed {
            let config =
                nn::ConvTransposeConfig { stride, padding, groups, bias, ws_init, bs_init, ..Default::default() };
            let layer = nn::conv_transpose2d(path, from, to, kernel, config);
            (layer.ws, layer.bs)
        } else {
            let config = nn::ConvConfig { stride, padding, groups, bias, ws_init, bs_init, ..Default::default() };
            let layer = nn::conv2d(path, from, to, kernel, config);
            (layer.ws, layer.bs)
        };
        self.op(name, Op::Conv(ConvLayer { weight, bias, spec }), &[x])
    }

    /// Batch normalisation; without `affine` it has no scale and shift (for conditional normalisation).
    ///
    /// # Errors
    /// As [`Builder::op`].
    pub fn batch_norm(&mut self, name: impl Into<String>, x: Value, affine: bool) -> Result<Value> {
        let name = name.into();
        let channels = self.channels(&name, x)?;
        let config = nn::BatchNormConfig { ws_init: nn::Init::Const(1.0), affine, ..Default::default() };
        let layer = nn::batch_norm2d(&self.path / &name, channels, config);
        self.op(name, Op::BatchNorm(layer), &[x])
    }

    /// Group normalisation (Wu and He 2018, arXiv 1803.08494); one group is layer normalisation of images.
    ///
    /// # Errors
    /// As [`Builder::op`]; when the groups do not divide the channels.
    pub fn group_norm(&mut self, name: impl Into<String>, x: Value, groups: i64, affine: bool) -> Result<Value> {
        let name = name.into();
        let channels = self.channels(&name, x)?;
        ensure!(
            channels % groups == 0,
            "the layer {name} has {groups} groups, which must divide its {channels} channels"
        );
        let config = nn::GroupNormConfig { affine, ..Default::default() };
        let layer = nn::group_norm(&self.path / &name, groups, channels, config);
        self.op(name, Op::GroupNorm(layer), &[x])
    }

    /// Layer normalisation over the last dimension (Ba et al. 2016, arXiv 1607.06450).
    ///
    /// # Errors
    /// As [`Builder::op`].
    pub fn layer_norm(&mut self, name: impl Into<String>, x: Value) -> Result<Value> {
        let name = name.into();
        let width = self.dims(x).last().copied().unwrap_or_default();
        let layer = nn::layer_norm(&self.path / &name, vec![width], nn::LayerNormConfig::default());
        self.op(name, Op::LayerNorm(layer), &[x])
    }

    /// An embedding initialised from N(0, `stdev`²): class numbers [] below `classes` -> [`width`].
    ///
    /// # Errors
    /// As [`Builder::linear`].
    pub fn embedding(
        &mut self,
        name: impl Into<String>,
        labels: Value,
        [classes, width]: [i64; 2],
        stdev: f64,
    ) -> Result<Value> {
        let name = name.into();
        self.check_weights(&name, &[classes, width])?;
        let config = nn::EmbeddingConfig { ws_init: nn::Init::Randn { mean: 0.0, stdev }, ..Default::default() };
        let layer = nn::embedding(&self.path / &name, classes, width, config);
        self.op(name, Op::Embedding(layer), &[labels])
    }

    fn channels(&self, name: &str, x: Value) -> Result<i64> {
        match self.dims(x) {
            [channels, _, _] => Ok(*channels),
            other => bail!("the layer {name} takes images [C,H,W], found dimensions {other:?}"),
        }
    }

    /// Refuses a layer of no weights, and one of more than 2^31 (8 GB, and three times as much for gradients and moments), before it
    /// is allocated.
    fn check_weights(&self, name: &str, dims: &[i64]) -> Result<()> {
        if let Some(width) = dims.iter().find(|d| **d <= 0) {
            bail!("a layer of width {width} cannot exist: widths are 1 or more");
        }
        let weights = dims.iter().try_fold(1i64, |a, &b| a.checked_mul(b)).unwrap_or(i64::MAX);
        let shown = dims.iter().map(i64::to_string).collect::<Vec<_>>().join("x");
        ensure!(
            weights <= 1 << 31,
            "the layer {name} would have {shown} weights: choose smaller --base-width, hidden widths, --latent or --image-size"
        );
        let stored = STORED.get();
        ensure!(
            weights <= stored,
            "the layer {name} would have {shown} weights, and the checkpoint has {stored} in all: give the run the config.toml and the \
             images that it began with"
        );
        self.check_name(name)
    }
}
