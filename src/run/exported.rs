//! Exported modules, loaded again.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tch::{CModule, Device, IValue, Kind, Tensor};

use crate::base::classes::Classes;
use crate::base::names::{escaped, unescaped};
use crate::base::shape::Shape;
use crate::base::usage::usage;
use crate::native;

/// An exported decoder or generator, an exported encoder, or both halves of one VAE.
pub struct Exported {
    /// z, and the class numbers of a conditional model -> x.
    pub decoder: Option<Module>,
    /// x -> mu and logvar.
    pub encoder: Option<Module>,
    /// Z: width of the latent vector.
    pub latent: i64,
    /// Shape of the images.
    pub shape: Shape,
}

impl Exported {
    /// Loads these files, one or more.
    ///
    /// # Errors
    /// When a file is no module of ganvae, or they are not of one export.
    pub fn load(files: &[PathBuf], device: Device) -> Result<Self> {
        // TorchScript's optimizer would compile the graph differently after a few calls, and those results round differently.
        tch::jit::f_set_graph_executor_optimize(false)?;
        let modules = files.iter().map(|file| Module::load(file, device)).collect::<Result<Vec<_>>>()?;
        let (latent, shape) = modules.first().context("no module")?.dims()?;
        let first = files[0].display();
        let (mut decoder, mut encoder) = (None::<Module>, None::<Module>);
        for module in modules {
            let (file, (z, x)) = (module.path.clone(), module.dims()?);
            let file = file.display();
            if (z, x) != (latent, shape) {
                bail!(
                    "{file} does not fit {first}: it has latents of {z} and images of {x}, the other {latent} and {shape}: use modules \
                     of one export"
                );
            }
            let slot = if module.info.network == "encoder" { &mut encoder } else { &mut decoder };
            if let Some(other) = slot.replace(module) {
                bail!("{} and {file} both generate images: name one of the two", other.path.display());
            }
        }
        if let (Some(a), Some(b)) = (&encoder, &decoder)
            && a.origin() != b.origin()
        {
            let (a, b, of_a, of_b) = (a.path.display(), b.path.display(), a.origin(), b.origin());
            bail!("{a} is {of_a} and {b} {of_b}: use modules of one export");
        }
        Ok(Exported { decoder, encoder, latent, shape })
    }

    /// Whether the decoder is the generator of a GAN.
    pub fn is_gan(&self) -> bool {
        self.decoder.as_ref().is_some_and(|decoder| decoder.info.network == "generator")
    }

    /// The classes of a conditional model: equally often, as an export does not know how often they are drawn.
    pub fn classes(&self) -> Option<Classes> {
        let info = &self.decoder.as_ref()?.info;
        let count = info.inputs.iter().find_map(|port| port.classes)?;
        let names = match info.classes.len() as i64 == count {
            true => info.classes.clone(),
            false => (0..count).map(|class| class.to_string()).collect(),
        };
        Some(Classes::equal(names))
    }
}

/// An exported network.
pub struct Module {
    path: PathBuf,
    module: CModule,
    info: ModuleInfo,
}

/// The description in an exported module.
#[derive(Debug, Deserialize)]
struct ModuleInfo {
    /// The origin: modules of one export agree in model, data and step.
    #[serde(default)]
    model: String,
    #[serde(default)]
    data: String,
    #[serde(default)]
    step: u64,
    network: String,
    /// Names of the classes.
    #[serde(default)]
    classes: Vec<String>,
    /// One is written as `input`.
    #[serde(alias = "input", deserialize_with = "one_or_more")]
    inputs: Vec<PortInfo>,
    outputs: Vec<PortInfo>,
}

#[derive(Debug, Deserialize)]
struct PortInfo {
    /// Without the batch dimension, which comes first as "B".
    #[serde(rename = "shape", deserialize_with = "after_batch")]
    dims: Vec<i64>,
    /// Number of classes, of class numbers.
    #[serde(default)]
    classes: Option<i64>,
}

fn one_or_more<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Vec<PortInfo>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Ports {
        One(PortInfo),
        More(Vec<PortInfo>),
    }
    Ok(match Ports::deserialize(from)? {
        Ports::One(port) => vec![port],
        Ports::More(ports) => ports,
    })
}

fn after_batch<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Vec<i64>, D::Error> {
    let all = Vec::<serde_json::Value>::deserialize(from)?;
    Ok(all.iter().skip(1).filter_map(serde_json::Value::as_i64).collect())
}

impl Module {
    fn load(path: &Path, device: Device) -> Result<Self> {
        let file = path.display();
        let unreadable = || format!("{file} is no TorchScript module that can be read");
        let text = native::script_description(path).with_context(unreadable)?.with_context(|| {
            format!("{file} has no description, which modules of `ganvae export` have (torch.jit.freeze removes it): export the run again")
        })?;
        let info: ModuleInfo = serde_json::from_str(&text)
            .with_context(|| format!("{file} has a description that cannot be read: export the run again"))?;
        let module = native::load_script(path, device).with_context(unreadable)?;
        Ok(Module { path: path.to_owned(), module, info })
    }

    /// What it was exported from.
    fn origin(&self) -> String {
        let ModuleInfo { model, data, step, .. } = &self.info;
        format!("of a {model} on {data} after {step} steps")
    }

    /// Z and the shape of the images.
    fn dims(&self) -> Result<(i64, Shape)> {
        let (file, input) = (self.path.display(), self.info.inputs.first().map(|port| &port.dims));
        let input = input.with_context(|| format!("{file} has a description without inputs: export the run again"))?;
        let (z, x) = match (self.info.network.as_str(), self.info.outputs.as_slice()) {
            ("encoder", [mu, _]) => (&mu.dims, input),
            ("decoder" | "generator", [x]) => (input, &x.dims),
            ("discriminator", _) => {
                usage!("{file} is a discriminator, which generates no images: name the generator.pt next to it")
            }
            (other, _) => bail!("{file} is a {other}, wanted a decoder, a generator or an encoder"),
        };
        let (&[latent], &[channels, height, width]) = (z.as_slice(), x.as_slice()) else {
            bail!("{file} takes latents of {z:?} and images of {x:?}, wanted [Z] and [C,H,W]: export the run again");
        };
        Ok((latent, Shape { channels, height, width }))
    }

    /// The input [B,...], with class numbers [B] or weights of one class each [B,K] -> the outputs, each [B,...] of the shape in the
    /// module's description.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] for weights of several classes; when the module fails.
    pub fn call(&self, input: &Tensor, classes: Option<&Tensor>) -> Result<Vec<Tensor>> {
        let failed = || format!("{} failed on a batch of {:?}", self.path.display(), input.size());
        let classes = classes.map(|classes| self.numbers(classes)).transpose()?;
        let inputs: Vec<_> = [input.shallow_clone()].into_iter().chain(classes).map(IValue::Tensor).collect();
        let values = match self.module.forward_is(&inputs).with_context(failed)? {
            IValue::Tuple(values) => values,
            value => vec![value],
        };
        let tensor = |value| if let IValue::Tensor(t) = value { Some(t) } else { None };
        let out: Option<Vec<Tensor>> = values.into_iter().map(tensor).collect();
        let out = out.with_context(|| format!("{}: it gave something that is no tensor", failed()))?;
        let want: Vec<_> = self.info.outputs.iter().map(|o| [&input.size()[..1], &o.dims[..]].concat()).collect();
        let found: Vec<_> = out.iter().map(Tensor::size).collect();
        ensure!(found == want, "{}: it gave {found:?}, wanted {want:?}", failed());
        Ok(out)
    }

    /// Class numbers [B] of class numbers, or of weights [B,K] of one class each.
    fn numbers(&self, classes: &Tensor) -> Result<Tensor> {
        if classes.kind() == Kind::Int64 {
            return Ok(classes.shallow_clone());
        }
        let (most, numbers) = classes.f_max_dim(1, false)?;
        // sync: once for a batch of a path between classes.
        if most.f_min()?.f_double_value(&[])? < 1.0 {
            let file = self.path.display();
            usage!(
                "{file} takes one class for each image, and images between two classes were asked for: name the run"
            );
        }
        Ok(numbers)
    }
}

/// The other half of an exported VAE: `encoder.pt` beside `decoder.pt`.
pub fn partner(path: &Path) -> Option<PathBuf> {
    let name = escaped(path.file_name()?);
    let other = match name.contains("decoder") {
        true => name.replace("decoder", "encoder"),
        false => name.replace("encoder", "decoder"),
    };
    (other != name).then(|| path.with_file_name(unescaped(&other)))
}
