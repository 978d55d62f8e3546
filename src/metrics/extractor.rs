//! Features of images: from a TorchScript file of the user's, or from ganvae's own network.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use tch::{Device, Kind, Tensor};

use super::feature_net::FeatureNet;
use crate::base::hash;
use crate::base::names::printable;
use crate::base::progress::say;
use crate::base::setting::{Group, Setting, Settings};
use crate::base::shape::Shape;
use crate::base::usage::usage;
use crate::data::dataset::Dataset;
use crate::data::picture::{Filter, taps};
use crate::native::{self, ScriptModule};

/// A TorchScript file.
pub static FEATURES: Setting<PathBuf> = Setting::path(
    "features",
    "TorchScript file that gives features of images for scores, such as NVIDIA's inception-2015-12-05.pt [default: a small network \
     that ganvae trains on the same data]",
)
.value_name("FILE.pt")
.may_change_on_resume();

/// Who resizes images for Inception.
pub static FEATURES_RESIZE: Setting<InceptionResize> = Setting::choice(
    "features-resize",
    "How NVIDIA's Inception file gets its 299x299 pixels: by the file itself, as in most papers, or as clean-fid does [default: legacy]",
)
.value_name("HOW")
.may_change_on_resume();

/// The size of the input of another file.
pub static FEATURES_SIZE: Setting<u64> =
    Setting::whole("features-size", "Pixels of each side of the images that the file of --features takes")
        .range("from 8 to 4096", |n| (8..=4096).contains(n))
        .value_name("PIXELS")
        .may_change_on_resume();

/// The range of the input of another file.
pub static FEATURES_RANGE: Setting<InputRange> =
    Setting::choice("features-range", "Values of the images that the file of --features takes [default: unit, 0 to 1]")
        .value_name("RANGE")
        .may_change_on_resume();

/// The settings of features.
pub static SETTINGS: Group =
    Group { heading: "Features", settings: &[&FEATURES, &FEATURES_RESIZE, &FEATURES_SIZE, &FEATURES_RANGE] };

/// The two protocols of Inception's distances. They give different numbers (Parmar et al. 2022, arXiv 2104.11222).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum InceptionResize {
    /// The file resizes, as TensorFlow 1 did: bilinear without averaging.
    #[default]
    Legacy,
    /// Pillow's bicubic filter on floats, each channel by itself, clipped to 0..255 and not rounded.
    Clean,
}

/// Ranges of pixel values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum InputRange {
    /// 0 to 1.
    #[default]
    Unit,
    /// −1 to 1.
    Symmetric,
    /// 0 to 255.
    Bytes,
    /// 0 to 1, less ImageNet's mean, divided by its deviation, for each channel.
    Imagenet,
}

/// Mean and standard deviation of ImageNet's channels at 0 to 1, as torchvision's models take them.
const IMAGENET: [[f32; 3]; 2] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];
/// Side of Inception's input.
const INCEPTION: i64 = 299;
/// The parameter by which Inception's file gives features instead of classes.
const RETURN_FEATURES: &str = "return_features";

/// Something that gives features.
#[derive(Debug)]
pub enum Extractor {
    /// Trained by ganvae on the data set.
    Own(Box<FeatureNet>),
    /// Of a file.
    Script(ScriptExtractor),
}

/// A TorchScript file and how its input is made.
#[derive(Debug)]
pub struct ScriptExtractor {
    module: ScriptModule,
    device: Device,
    input: Input,
    name: String,
    sha256: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Input {
    /// Bytes of the images' own size.
    InceptionLegacy,
    InceptionClean,
    /// Floats of this size, if any, in this range, with this many channels.
    Plain(Option<i64>, InputRange, i64),
}

impl Extractor {
    /// The file that `s` names, else ganvae's own network for the training and held-out images `sets` with the checksum `data_sha256`,
    /// kept in the folder `cache`.
    ///
    /// # Errors
    /// As [`ScriptExtractor::of`] and [`FeatureNet::of`].
    pub fn open(s: &Settings, sets: (&Dataset, &Dataset), data_sha256: &str, cache: Option<&Path>) -> Result<Self> {
        if let Some(script) = ScriptExtractor::of(s, sets.0.shape(), sets.0.device())? {
            return Ok(Extractor::Script(script));
        }
        let (net, note) = FeatureNet::of(sets, data_sha256, cache)?;
        note.iter().for_each(|note| say(&format!("note: {note}")));
        Ok(Extractor::Own(Box::new(net)))
    }

    /// Features [B,D], float32 on the CPU, of images [B,C,H,W] as bytes.
    ///
    /// # Errors
    /// libtorch's.
    pub fn features(&self, images: &Tensor) -> Result<Tensor> {
        match self {
            Extractor::Own(net) => net.features(&images.f_to_kind(Kind::Float)?.f_div_scalar(255.0)?),
            Extractor::Script(script) => script.features(images),
        }
    }

    /// Name and protocol.
    pub fn name(&self) -> &str {
        match self {
            Extractor::Own(net) => net.name(),
            Extractor::Script(script) => &script.name,
        }
    }

    /// SHA-256 of the weights or of the file.
    pub fn sha256(&self) -> &str {
        match self {
            Extractor::Own(net) => &net.sha256,
            Extractor::Script(script) => &script.sha256,
        }
    }

    /// One line about the features, and what scores on them may be compared with.
    pub fn describe(&self) -> String {
        let hash = &self.sha256()[..12];
        match self {
            Extractor::Own(net) => format!(
                "{} (sha256 {hash}, {:.1} % of the held-out {} right): compare its scores only with each other",
                net.name(),
                100.0 * net.accuracy,
                if net.name() == "own-classifier" { "images" } else { "turns" }
            ),
            Extractor::Script(script) => {
                let input = match script.input {
                    Input::InceptionLegacy => "takes bytes and resizes them itself".to_owned(),
                    Input::InceptionClean => "takes 299x299 by Pillow's bicubic filter, (x - 128) / 128".to_owned(),
                    Input::Plain(size, range, channels) => format!(
                        "takes {channels} channels of {}, {}",
                        size.map_or("the images' own size".to_owned(), |s| format!("{s}x{s}")),
                        match range {
                            InputRange::Unit => "0 to 1",
                            InputRange::Symmetric => "-1 to 1",
                            InputRange::Bytes => "0 to 255",
                            InputRange::Imagenet => "normalised as ImageNet",
                        }
                    ),
                };
                format!("{} (sha256 {hash}, {input})", script.name)
            }
        }
    }
}

impl ScriptExtractor {
    /// The file of the settings, if they name one, checked on images of this shape.
    ///
    /// # Errors
    /// When it cannot be read, does not take such images, or gives no features: one sentence.
    pub fn of(s: &Settings, shape: Shape, device: Device) -> Result<Option<Self>> {
        let Some(path) = s.given(&FEATURES) else {
            for name in ["features-size", "features-range", "features-resize"] {
                if s.value(name).is_some() {
                    usage!("--{name} describes the file of --features, and none is given: leave it out");
                }
            }
            return Ok(None);
        };
        let shown = printable(&path);
        ensure!(path.is_file(), "--features {shown}: no such file");
        let open = |part: Option<&str>| {
            ScriptModule::open(&path, part, device)
                .with_context(|| format!("--features {shown}: wanted a TorchScript module (torch.jit.save)"))
        };
        // TorchScript's optimizer would compile the graph differently after a few calls, and those results round differently.
        tch::jit::f_set_graph_executor_optimize(false)?;
        let module = open(None)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let inception = module.takes(RETURN_FEATURES)?;
        let (given_size, given_range) = (s.given(&FEATURES_SIZE), s.given(&FEATURES_RANGE));
        if inception && (given_size.is_some() || given_range.is_some()) {
            usage!(
                "--features {shown} is Inception, whose input is known: leave --features-size and --features-range out"
            );
        }
        if !inception && s.given(&FEATURES_RESIZE).is_some() {
            usage!(
                "--features-resize is for NVIDIA's Inception file, and {shown} is not: give --features-size instead"
            );
        }
        let (input, name) = match (inception, s.given(&FEATURES_RESIZE).unwrap_or_default()) {
            (true, InceptionResize::Legacy) => (Input::InceptionLegacy, format!("{stem}/legacy")),
            (true, InceptionResize::Clean) => (Input::InceptionClean, format!("{stem}/clean")),
            (false, _) => {
                let (size, range) = (given_size.map(|n| n as i64), given_range.unwrap_or_default());
                (Input::Plain(size, range, shape.channels), stem)
            }
        };
        let module = if input == Input::InceptionClean { open(Some("layers"))? } else { module };
        let sha256 = hash::sha256_file(&path)?.1;
        let mut script = ScriptExtractor { module, device, input, name, sha256 };
        script.check(shape).with_context(|| format!("--features {shown}"))?;
        Ok(Some(script))
    }

    /// Tries the module on images, with three channels where it does not take those of the images.
    fn check(&mut self, shape: Shape) -> Result<()> {
        let dims = [&[3], &shape.dims()[..]].concat();
        let images = native::random(5, &dims, native::Distribution::Uniform)?;
        let images = images.f_mul_scalar(255.0)?.f_to_kind(Kind::Uint8)?;
        let mut found = self.features(&images);
        if let (Err(_), Input::Plain(size, range, channels @ (1 | 4))) = (&found, self.input) {
            self.input = Input::Plain(size, range, 3);
            if self.features(&images).is_ok() {
                found = self.features(&images);
            } else {
                self.input = Input::Plain(size, range, channels);
            }
        }
        let takes = "wanted a module whose forward takes images and gives features [B,D]; --features-size and --features-range say \
                     which images";
        let all = found.with_context(|| format!("it fails on images of {shape}: {takes}"))?;
        let one =
            self.features(&images.f_narrow(0, 1, 1)?).with_context(|| format!("it fails on one image: {takes}"))?;
        let size = all.size();
        ensure!(size.len() == 2 && size[0] == 3, "it gives {size:?} for three images: {takes}");
        ensure!(one.size() == [1, size[1]], "it gives {:?} for one image and {size:?} for three: {takes}", one.size());
        let sum = all.f_sum(Kind::Double)?.f_double_value(&[])?;
        ensure!(sum.is_finite(), "its features of random images are not finite: see --features-range");
        let second = all.f_narrow(0, 1, 1)?;
        let scale = all.f_abs()?.f_max()?.f_double_value(&[])?;
        let far = |a: &Tensor, b: &Tensor| -> Result<f64> { Ok(a.f_sub(b)?.f_abs()?.f_max()?.f_double_value(&[])?) };
        ensure!(
            far(&second, &one)? <= 1e-3 * scale,
            "an image's features depend on the other images of its batch: save the module after .eval()"
        );
        ensure!(far(&second, &all.f_narrow(0, 0, 1)?)? > 0.0, "its features are the same for different images");
        Ok(())
    }

    /// As [`Extractor::features`].
    fn features(&self, images: &Tensor) -> Result<Tensor> {
        let features = match self.input {
            Input::InceptionLegacy => {
                self.module.call(&rgb(images)?.f_to_device(self.device)?, Some(RETURN_FEATURES))?
            }
            Input::InceptionClean => {
                let large = resized(&rgb(images)?, INCEPTION, INCEPTION)?;
                let x = large.f_add_scalar(-128.0)?.f_div_scalar(128.0)?;
                self.module.call(&x.f_to_device(self.device)?, None)?
            }
            Input::Plain(size, range, channels) => {
                let x = if channels == 3 { rgb(images)? } else { images.shallow_clone() };
                let x = match size {
                    Some(size) => resized(&x, size, size)?,
                    None => x.f_to_kind(Kind::Float)?,
                };
                let unit = x.f_div_scalar(255.0)?;
                let x = match range {
                    InputRange::Unit => unit,
                    InputRange::Symmetric => unit.f_mul_scalar(2.0)?.f_add_scalar(-1.0)?,
                    InputRange::Bytes => x,
                    InputRange::Imagenet => {
                        ensure!(
                            channels == 3,
                            "--features-range imagenet is for colour images, and these have {channels} channels"
                        );
                        let [mean, deviation] = IMAGENET.map(|v| Tensor::from_slice(&v).view([1, 3, 1, 1]));
                        unit.f_sub(&mean)?.f_div(&deviation)?
                    }
                };
                self.module.call(&x.f_to_device(self.device)?, None)?
            }
        };
        let size = features.size();
        ensure!(!size.is_empty() && size[0] == images.size()[0], "it gives {size:?} for {} images", images.size()[0]);
        // [B,D], also from [B,D,1,1].
        ensure!(size.iter().skip(2).all(|n| *n == 1), "it gives {size:?}, wanted [B,D]: pool over the positions");
        Ok(features.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_reshape([size[0], -1])?)
    }
}

/// Images [B,C,H,W] of bytes as [B,3,H,W]: grey in all three channels, transparent ones over white.
fn rgb(images: &Tensor) -> Result<Tensor> {
    let size = images.size();
    match size[..] {
        [b, 1, h, w] => Ok(images.f_expand([b, 3, h, w], false)?.f_contiguous()?),
        [_, 3, ..] => Ok(images.shallow_clone()),
        [_, 4, ..] => {
            let x = images.f_to_kind(Kind::Float)?;
            let alpha = x.f_narrow(1, 3, 1)?.f_div_scalar(255.0)?;
            let white = alpha.f_neg()?.f_add_scalar(1.0)?.f_mul_scalar(255.0)?;
            Ok(x.f_narrow(1, 0, 3)?.f_mul(&alpha)?.f_add(&white)?.f_round()?.f_to_kind(Kind::Uint8)?)
        }
        _ => bail!("images of {size:?}, wanted [B,C,H,W] with 1, 3 or 4 channels"),
    }
}

/// Images [B,C,H,W] of any numbers from 0 to 255 -> floats [B,C,h,w]: Pillow's bicubic filter for pictures of mode F, channel by channel,
/// clipped to 0..255 (clean-fid, Parmar et al. 2022, arXiv 2104.11222).
///
/// # Errors
/// libtorch's.
pub fn resized(images: &Tensor, h: i64, w: i64) -> Result<Tensor> {
    let size = images.size();
    // [to, from]
    let matrix = |from: i64, to: i64| -> Result<Tensor> {
        let mut all = vec![0f64; (from * to) as usize];
        let rows = all.chunks_exact_mut(from as usize);
        for (row, (first, weights)) in rows.zip(taps(from as usize, 0.0, from as f64, to as usize, Filter::Bicubic)) {
            row[first..first + weights.len()].copy_from_slice(&weights);
        }
        Ok(Tensor::f_from_slice(&all)?.f_reshape([to, from])?)
    };
    // In double precision, rounded to float between the two directions, as Pillow does.
    let x = images.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
    let across = x.f_matmul(&matrix(size[3], w)?.f_tr()?)?.f_to_kind(Kind::Float)?;
    let both = matrix(size[2], h)?.f_matmul(&across.f_to_kind(Kind::Double)?)?;
    Ok(both.f_to_kind(Kind::Float)?.f_clamp(0.0, 255.0)?)
}
