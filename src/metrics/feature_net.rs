//! Features from a network that ganvae trains itself on the images that are to be scored.
//!
//! A classifier of the set's labels, or without labels of four turns of each image (Gidaris et al. 2018, arXiv 1803.07728). The same set
//! gives the same network on one machine; a cache keeps it. Scores on its features compare runs on the same set with each other, and
//! nothing else.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Reduction, Tensor};

use crate::base::batch::Batch;
use crate::base::hash;
use crate::base::progress::Tally;
use crate::base::seed::{Rng, Stream, epoch_order, seed_for};
use crate::base::shape::Shape;
use crate::base::timer::StepTimer;
use crate::base::weights_file;
use crate::data::cache;
use crate::data::dataset::Dataset;
use crate::models::StepContext;
use crate::models::network::Network;
use crate::models::noise::Noise;
use crate::models::optimizer::{Adam, OptimizerSettings};
use crate::models::tuning::Plan;
use crate::native::{self, AdamSettings};
use crate::nets::graph::{Init, Op, Port, Value};
use crate::nets::{Activation, Arch, Mode, NetSpec, features};

/// D: the width of the layer whose values are the features.
const WIDTH: i64 = 128;
/// Changes with what is trained here: it is part of the key in the cache.
const VERSION: u32 = 1;
const BATCH: usize = 128;
/// Images that the scale of the features is taken from.
const SCALED_BY: usize = 1000;
/// Learning rate at the first step; it falls to 0 on a line.
const LR: f64 = 2e-3;
/// Training images that are seen, of 32×32 pixels: 5 epochs of MNIST give 99.1 %. Larger ones are fewer, within these limits.
const SEEN: usize = 300_000;
const SEEN_LARGE: usize = 60_000;
/// Epochs, at most, on a small set.
const EPOCHS: usize = 60;
/// Images are averaged down until their longer side is at most this many pixels.
const MAX_SIDE: i64 = 64;
/// Images are moved by up to this share of their sides while training.
const SHIFT: i64 = 14;

/// What the network was trained to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// The classes of the labels.
    Labels(i64),
    /// How an image was turned.
    Turns,
}

impl Task {
    fn classes(self) -> i64 {
        match self {
            Task::Labels(classes) => classes,
            Task::Turns => 4,
        }
    }
}

/// A trained network.
#[derive(Debug)]
pub struct FeatureNet {
    network: Network,
    features: Value,
    logits: Value,
    task: Task,
    /// Features are divided by it, so that their mean square over the training images is 1.
    scale: f64,
    /// Share of the held-out images, or of their turns, that it tells right.
    pub accuracy: f64,
    /// SHA-256 of its weights.
    pub sha256: String,
}

impl FeatureNet {
    /// The network for these images: from the folder `cache` if it is there, else trained, which takes a minute or two, and put there.
    /// `data_sha256` is the checksum of the set. It is trained on the CPU, whatever the sets are on. The text is a note for the user.
    ///
    /// # Errors
    /// When the set has fewer than two training images or no held-out ones; libtorch's. What the cache cannot give or take is no error.
    pub fn of(sets: (&Dataset, &Dataset), data_sha256: &str, cache: Option<&Path>) -> Result<(Self, Option<String>)> {
        let (train, test) = sets;
        ensure!(
            train.len() >= 2 && !test.is_empty(),
            "a network for features needs 2 training images and a held-out one, found {} and {}: pass --features FILE.pt",
            train.len(),
            test.len()
        );
        let task = match train.classes()?.max(test.classes()?) {
            classes @ 2.. => Task::Labels(classes),
            _ => Task::Turns,
        };
        let key = hash::sha256([format!("{VERSION} {data_sha256} {task:?} {}", train.shape()).as_bytes()]);
        let file = cache.map(|dir| dir.join(format!("{}{}.safetensors", cache::FEATURES, &key[..32])));
        let seed = seed_for(0, 0, Stream::Init, 0);
        let build = || native::seeded(seed, || FeatureNet::build(train.shape(), task));
        if let Some(file) = file.as_deref().filter(|file| file.is_file()) {
            let mut net = build()?;
            if net.load(file).is_ok() {
                // What is used is not removed; if it cannot be marked so, it is trained again after a month.
                let _ = File::options().append(true).open(file).and_then(|file| file.set_modified(SystemTime::now()));
                return Ok((net, None));
            }
        }
        let mut net = build()?;
        net.train(train)?;
        let some = net.features(&train.spread(SCALED_BY)?.x)?;
        net.scale = some.f_square()?.f_mean(Kind::Double)?.f_double_value(&[])?.sqrt().max(f64::MIN_POSITIVE);
        net.accuracy = net.accuracy_on(test)?;
        net.sha256 = net.checksum()?;
        let note = match file.map(|file| net.save(&file)) {
            Some(Err(e)) => Some(format!("the network for features could not be kept for the next time: {e:#}")),
            _ => None,
        };
        Ok((net, note))
    }

    fn build(shape: Shape, task: Task) -> Result<Self> {
        let Shape { channels, height, width } = shape;
        let fits = |k: &i64| height % k == 0 && width % k == 0 && height.max(width) / k <= MAX_SIDE;
        let pool = (1..=height.min(width)).find(fits).unwrap_or(1);
        let (h, w) = (height / pool, width / pool);
        let halves = h % 2 == 0 && w % 2 == 0 && h.min(w) >= 8;
        let spec = NetSpec {
            arch: if halves { Arch::Conv } else { Arch::Mlp },
            hidden: if halves { vec![WIDTH] } else { vec![512, WIDTH] },
            base_width: Some(32),
            activation: Activation::LeakyRelu,
            batch_norm: halves,
            init: Init::PyTorch,
            ..NetSpec::default()
        };
        let (mut network, (features, logits)) = Network::new("features", Device::Cpu, spec.init, |b| {
            let mut x = b.input(Port::images("x", &[channels, height, width], "images"))?;
            if pool > 1 {
                x = b.op("pool", Op::AveragePool([pool, pool]), &[x])?;
            }
            let centre = b.op("centre", Op::Affine { scale: 2.0, shift: -1.0 }, &[x])?;
            let hidden = features(b, centre, &spec)?;
            let logits = b.linear("out", hidden, task.classes(), true)?;
            b.output(Port::new("logits", &[task.classes()], "above others for the likeliest class"), logits)?;
            Ok((hidden, logits))
        })?;
        // The same on every start, and the fastest on most processors.
        network.graph.compute = Plan::parse("off")?.first(Device::Cpu).compute;
        network.graph.compute.arrange_weights(&network.vars)?;
        Ok(FeatureNet { network, features, logits, task, scale: 1.0, accuracy: 0.0, sha256: String::new() })
    }

    /// Features [B,D], float32 on the CPU, of images [B,C,H,W] in [0,1].
    ///
    /// # Errors
    /// libtorch's, for images of another shape.
    pub fn features(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.f_to_device(Device::Cpu)?;
        let features = tch::no_grad(|| self.network.graph.forward_one(&x, self.features, Mode::Eval))?;
        Ok(features.f_div_scalar(self.scale)?)
    }

    /// What it is, for people and for scores that depend on it.
    pub fn name(&self) -> &'static str {
        match self.task {
            Task::Labels(_) => "own-classifier",
            Task::Turns => "own-turns",
        }
    }

    fn train(&mut self, set: &Dataset) -> Result<()> {
        let shape = set.shape();
        let n = set.len();
        let per_epoch = n / BATCH.min(n);
        let pixels = (shape.height * shape.width) as usize;
        let seen = (SEEN * 32 * 32 / pixels).clamp(SEEN_LARGE, SEEN).min(EPOCHS * n);
        let steps = (seen / BATCH).max(per_epoch) as u64;
        let hyper = OptimizerSettings {
            adam: AdamSettings { lr: LR, ..AdamSettings::default() },
            ..OptimizerSettings::default()
        };
        let mut adam = Adam::new("step", &[&self.network], hyper)?;
        let (noise, timer) = (Noise::new(0, Device::Cpu), StepTimer::off());
        let mut rng = Rng::new(1);
        let mut order = Vec::new();
        let mut tally = Tally::start("images to train the network for features", steps * BATCH as u64);
        for step in 0..steps {
            let at = step as usize % per_epoch;
            if at == 0 {
                order = epoch_order(0, step / per_epoch as u64, n);
            }
            let rows = &order[at * BATCH.min(n)..][..BATCH.min(n)];
            let batch = set.gather(&Tensor::f_from_slice(rows)?.f_to_device(set.device())?)?;
            let (x, labels) = self.task_of(&batch)?;
            let x = shifted(&x, &mut rng)?;
            adam.set_lr(LR * (steps - step) as f64 / steps as f64)?;
            let logits = self.network.graph.forward_one(&x, self.logits, Mode::Train)?;
            let loss = logits.f_cross_entropy_loss::<Tensor>(&labels, None, Reduction::Mean, -100, 0.0)?;
            adam.minimise(&loss, StepContext { noise: &noise, timer: &timer, on_device: false })?;
            tally.advance(BATCH as u64);
        }
        Ok(())
    }

    /// Images and the classes to be told: a batch and its labels, or quarters of the batch in each of four turns.
    fn task_of(&self, batch: &Batch) -> Result<(Tensor, Tensor)> {
        let x = batch.x.f_to_device(Device::Cpu)?;
        if let Task::Labels(_) = self.task {
            let labels = batch.labels.as_ref().context("a batch of a labelled set has no labels")?;
            return Ok((x, labels.f_to_device(Device::Cpu)?));
        }
        let size = x.size();
        let square = size[2] == size[3];
        let (mut all, mut classes) = (Vec::new(), Vec::new());
        for (class, part) in x.f_tensor_split(4, 0)?.into_iter().enumerate() {
            // A rectangle is turned to itself by half a turn and by mirrors.
            all.push(match (class, square) {
                (0, _) => part.shallow_clone(),
                (2, _) => part.f_flip([2, 3])?,
                (_, true) => part.f_rot90(class as i64, [2, 3])?,
                (_, false) => part.f_flip([if class == 1 { 3 } else { 2 }])?,
            });
            classes.push(Tensor::f_full([part.size()[0]], class as i64, (Kind::Int64, Device::Cpu))?);
        }
        Ok((Tensor::f_cat(&all, 0)?, Tensor::f_cat(&classes, 0)?))
    }

    fn accuracy_on(&self, set: &Dataset) -> Result<f64> {
        let (mut right, mut all) = (0, 0);
        for from in (0..set.len()).step_by(BATCH) {
            let (x, labels) = self.task_of(&set.range(from, BATCH)?)?;
            let logits = tch::no_grad(|| self.network.graph.forward_one(&x, self.logits, Mode::Eval))?;
            right += logits.f_argmax(1, false)?.f_eq_tensor(&labels)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
            all += labels.size()[0];
        }
        Ok(right as f64 / all as f64)
    }

    /// SHA-256 of the weights, in the order of their names, and of the scale.
    fn checksum(&self) -> Result<String> {
        let mut all = Vec::new();
        for (name, t) in self.network.variables() {
            all.push(name.into_bytes());
            let values = Vec::<f32>::try_from(t.f_detach()?.f_contiguous()?.f_reshape([-1])?)?;
            all.push(values.into_iter().flat_map(f32::to_le_bytes).collect());
        }
        all.push(self.scale.to_le_bytes().to_vec());
        Ok(hash::sha256(all.iter().map(Vec::as_slice)))
    }

    fn save(&self, file: &Path) -> Result<()> {
        let dir = file.parent().context("a cache is a folder")?;
        std::fs::create_dir_all(dir)?;
        let mut all = self.network.variables();
        all.push((format!("sha256.{}", self.sha256), Tensor::f_from_slice(&[self.accuracy, self.scale])?));
        let part: PathBuf = file.with_extension(format!("{}.part", std::process::id()));
        weights_file::write(&part, all)?;
        std::fs::rename(&part, file)?;
        Ok(())
    }

    /// Loads what [`FeatureNet::save`] wrote. An error may leave some of the weights changed.
    fn load(&mut self, file: &Path) -> Result<()> {
        let stored = Tensor::read_safetensors(file)?;
        let find =
            |name: &str| stored.iter().find(|(key, _)| key == name).map(|(_, t)| t).context("a tensor is missing");
        for (name, t) in self.network.variables() {
            let from = find(&name)?;
            ensure!(from.size() == t.size() && from.kind() == t.kind(), "{name} has another shape");
            tch::no_grad(|| t.shallow_clone().f_copy_(from))?;
        }
        let checked = stored.iter().find_map(|(key, t)| Some((key.strip_prefix("sha256.")?, t)));
        let (wanted, numbers) = checked.context("the checksum is missing")?;
        (self.accuracy, self.scale) = (numbers.f_double_value(&[0])?, numbers.f_double_value(&[1])?);
        self.sha256 = self.checksum()?;
        ensure!(self.sha256 == wanted, "the checksum is another");
        Ok(())
    }
}

/// A batch moved by the same random number of pixels in each direction; what comes in at the sides repeats the border.
fn shifted(x: &Tensor, rng: &mut Rng) -> Result<Tensor> {
    let size = x.size();
    let most = [size[2], size[3]].map(|side| side / SHIFT);
    let padded = x.f_replication_pad2d([most[1], most[1], most[0], most[0]])?;
    let [dy, dx] = most.map(|most| rng.below(2 * most as u64 + 1) as i64);
    Ok(padded.f_narrow(2, dy, size[2])?.f_narrow(3, dx, size[3])?.f_contiguous()?)
}
