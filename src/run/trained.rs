//! A trained model put to use, of a run or of exported modules: latents to images and back.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tch::{CModule, Device, IValue, Kind, Tensor};

use crate::base::seed::{Stream, seed_for};
use crate::base::setting::Settings;
use crate::base::shape::Shape;
use crate::base::usage::usage;
use crate::config::device;
use crate::config::{self, Config};
use crate::data::images::Source;
use crate::data::{self, CHANNELS, DATA, DATA_DIR, IMAGE_SIZE};
use crate::models::noise::Noise;
use crate::models::tuning::{THREADS, Tuning};
use crate::models::{Model, ModelKind, Part};
use crate::native;
use crate::nets::graph::Graph;
use crate::run::checkpoint;
use crate::run::folder::RunDir;

/// Latents decoded and images encoded at a time, always as many: large counts need no more memory than small ones, and the
/// bits of an image do not depend on how many others were asked for (products round differently at other sizes).
pub const BATCH: i64 = 64;

/// A trained model in evaluation mode; the [crate's example](crate#from-a-program-of-your-own) opens one.
pub struct Trained {
    root: PathBuf,
    device: Device,
    latent: i64,
    shape: Shape,
    networks: Networks,
}

enum Networks {
    /// Of a run: its model, its configuration, and the updates that the model has seen.
    Live(Box<dyn Model>, Box<Config>, u64),
    /// Of an export.
    Modules { decoder: Option<Box<Module>>, encoder: Option<Box<Module>> },
}

/// An exported network.
struct Module {
    path: PathBuf,
    module: CModule,
    about: About,
}

/// What an exported module says of itself.
#[derive(Debug, Deserialize)]
struct About {
    /// What it was exported of: modules side by side must agree in it.
    #[serde(default)]
    model: String,
    #[serde(default)]
    data: String,
    #[serde(default)]
    step: u64,
    network: String,
    input: PortAbout,
    outputs: Vec<PortAbout>,
}

#[derive(Debug, Deserialize)]
struct PortAbout {
    /// Without the first, which is "B".
    #[serde(rename = "shape", deserialize_with = "after_batch")]
    dims: Vec<i64>,
}

fn after_batch<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Vec<i64>, D::Error> {
    let all = Vec::<serde_json::Value>::deserialize(from)?;
    Ok(all.iter().skip(1).filter_map(serde_json::Value::as_i64).collect())
}

impl Trained {
    /// Opens a run's folder (its newest whole checkpoint), a folder of exported modules, or one exported module, whose partner
    /// is looked for beside it. `device` is `auto`, `cpu`, `cuda` or `cuda:N`.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] when `path` is none of these; when a run has no whole checkpoint, or a module cannot be read.
    pub fn open(path: impl AsRef<Path>, device: &str) -> Result<Self> {
        let (path, over) = (path.as_ref(), device::on(device));
        let modules = ["decoder.pt", "generator.pt", "encoder.pt"].map(|name| path.join(name));
        if is_run(path) {
            return Trained::open_run(path, &over);
        }
        if path.is_file() && path.extension().is_some_and(|e| e == "pt") {
            let partner = partner(path).filter(|p| p.is_file());
            return Trained::open_modules(path, [path.to_owned()].into_iter().chain(partner), &over);
        }
        if modules.iter().any(|m| m.is_file()) {
            return Trained::open_modules(path, modules.into_iter().filter(|m| m.is_file()), &over);
        }
        usage!(
            "{}: {}; wanted a run's folder, such as runs/0001-vae-digits, or exported modules: a folder that holds decoder.pt or \
             generator.pt, or one such file",
            path.display(),
            if path.exists() { "not a run, and no exported modules" } else { "no such file or folder" }
        );
    }

    fn open_run(root: &Path, over: &Settings) -> Result<Self> {
        let run = RunDir::open(root)?;
        let (kind, settings, info) = run.config()?;
        let config = config::resolve(kind, &settings.overlaid(over))?;
        let device = device::open(&config.settings)?;
        let (dir, state) = checkpoint::newest_whole(&run.checkpoints())?.with_context(|| {
            format!("{} has no checkpoint yet: go on with `ganvae train --resume {}`", root.display(), run.shown())
        })?;
        state.check_model(kind)?;
        let shape = Shape { channels: info.channels, height: info.height, width: info.width };
        let per_epoch = config.steps_per_epoch(info.train_images);
        let mut model = config.build(shape, per_epoch, device)?;
        checkpoint::load(&dir, &[Part::Model], &mut |v| model.visit(v))?;
        model.end_training();
        if device == Device::Cpu {
            let threads = config.settings.given(&THREADS).map_or(info.tuning.threads, |n| n as u32);
            Tuning { threads, ..info.tuning }.apply(model.as_mut())?;
        }
        let (root, latent) = (root.to_owned(), model.latent());
        Ok(Trained { root, device, latent, shape, networks: Networks::Live(model, Box::new(config), state.step) })
    }

    fn open_modules(root: &Path, files: impl Iterator<Item = PathBuf>, over: &Settings) -> Result<Self> {
        let device = device::open(over)?;
        // Its optimizer would compile other forms of the same graph after a few calls, whose results round differently.
        tch::jit::f_set_graph_executor_optimize(false)?;
        let (mut decoder, mut encoder) = (None, None);
        let mut dims: Option<(PathBuf, (i64, Shape))> = None;
        for file in files {
            let module = Module::load(&file, device)?;
            let found = module.dims()?;
            if let Some((other, dims)) = &dims
                && *dims != found
            {
                bail!(
                    "{} does not fit {}: latents of {} and images of {} in the one, {} and {} in the other: put modules of one \
                     export side by side",
                    file.display(),
                    other.display(),
                    found.0,
                    found.1,
                    dims.0,
                    dims.1
                );
            }
            dims = Some((file.clone(), found));
            let place = if module.about.network == "encoder" { &mut encoder } else { &mut decoder };
            if let Some(other) = place.replace(Box::new(module)) {
                let other = other.path.display();
                bail!("{other} and {} both make images of latents: name the one that is meant", file.display());
            }
        }
        if let (Some(a), Some(b)) = (&encoder, &decoder)
            && (&a.about.model, &a.about.data, a.about.step) != (&b.about.model, &b.about.data, b.about.step)
        {
            let of = |m: &Module| format!("of a {} on {} after {} steps", m.about.model, m.about.data, m.about.step);
            bail!(
                "{} is {} and {} {}: put modules of one export side by side",
                a.path.display(),
                of(a),
                b.path.display(),
                of(b)
            );
        }
        let Some((_, (latent, shape))) = dims else { bail!("{} holds no exported modules", root.display()) };
        let networks = Networks::Modules { decoder, encoder };
        Ok(Trained { root: root.to_owned(), device, latent, shape, networks })
    }

    /// Z: width of the latent vector.
    pub fn latent(&self) -> i64 {
        self.latent
    }

    /// Shape of each image.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Where the model computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The configuration of a run and the updates that the model has seen; none for exported modules.
    pub fn origin(&self) -> Option<(&Config, u64)> {
        match &self.networks {
            Networks::Live(_, config, step) => Some((config, *step)),
            Networks::Modules { .. } => None,
        }
    }

    /// The networks of a run's model; none of exported modules, which are networks already.
    pub fn networks(&self) -> Option<Vec<&Graph>> {
        match &self.networks {
            Networks::Live(model, ..) => Some(model.exported()),
            Networks::Modules { .. } => None,
        }
    }

    /// Latents number `from` to `from + count` of the prior N(0, I): z [count,Z] on the model's device. They are a function of
    /// the seed and the number alone.
    ///
    /// # Errors
    /// libtorch's, when memory ends.
    pub fn prior(&self, seed: u64, from: i64, count: i64) -> Result<Tensor> {
        let mut parts = Vec::new();
        for batch in from / BATCH..(from + count).div_euclid(BATCH) + 1 {
            let (first, last) = (from.max(batch * BATCH), (from + count).min((batch + 1) * BATCH));
            if first < last {
                let seed = seed_for(seed, 0, Stream::Samples, batch as u64);
                let z = Noise::new(seed, self.device).normal("z", &[BATCH, self.latent])?;
                parts.push(z.f_narrow(0, first - batch * BATCH, last - first)?);
            }
        }
        Ok(Tensor::f_cat(&parts, 0)?)
    }

    /// Images of latents: z [N,Z] -> [N,C,H,W] in [0,1] on the model's device.
    ///
    /// # Errors
    /// When z has another width, or the export has no decoder.
    pub fn decode(&self, z: &Tensor) -> Result<Tensor> {
        let size = z.size();
        ensure!(size.len() == 2 && size[1] == self.latent, "latents of [N,{}] are wanted, found {size:?}", self.latent);
        let mut images = self.in_batches(z, |z| match &self.networks {
            Networks::Live(model, ..) => Ok(vec![model.decode(z)?]),
            Networks::Modules { decoder: Some(decoder), .. } => decoder.call(z),
            Networks::Modules { decoder: None, .. } => usage!(
                "{} is an encoder alone, which makes no images: name the folder that holds decoder.pt too",
                self.root.display()
            ),
        })?;
        images.pop().context("a decoder gives images")
    }

    /// The posterior of images: x [N,C,H,W] in [0,1] -> (mu [N,Z], logvar [N,Z]) on the model's device.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] when the model has no encoder; when x has another shape.
    pub fn encode(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let size = x.size();
        ensure!(
            size.len() == 4 && size[1..] == self.shape.dims(),
            "images of [N,{}] are wanted, found {size:?}",
            self.shape.dims().map(|n| n.to_string()).join(",")
        );
        self.check_encoder()?;
        let mut both = self.in_batches(x, |x| match &self.networks {
            Networks::Live(model, ..) => model.encode(x)?.map(|(mu, logvar)| vec![mu, logvar]).context("no encoder"),
            Networks::Modules { encoder, .. } => encoder.as_ref().context("no encoder")?.call(x),
        })?;
        let (logvar, mu) = (both.pop(), both.pop());
        mu.zip(logvar).context("an encoder gives mu and logvar")
    }

    /// Whether [`Trained::encode`] can work.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] that says why not.
    pub fn check_encoder(&self) -> Result<()> {
        let root = self.root.display();
        match &self.networks {
            Networks::Live(_, config, _) if config.model == ModelKind::Gan => {
                usage!("{root} is a GAN, which has no encoder: images become latents only by a VAE")
            }
            Networks::Modules { encoder: None, decoder } => match decoder {
                Some(module) if module.about.network == "generator" => {
                    usage!("{root} is a GAN's generator, which has no encoder: images become latents only by a VAE")
                }
                _ => usage!("{root} has no encoder.pt beside its decoder, and images become latents only by one"),
            },
            _ => Ok(()),
        }
    }

    /// `count` images of the prior: [N,C,H,W] in [0,1] on the CPU; the same for the same seed, and the first n of more.
    ///
    /// # Errors
    /// As [`Trained::decode`]; `count` must be above 0.
    pub fn sample(&self, count: i64, seed: u64) -> Result<Tensor> {
        ensure!(count > 0, "a count of 1 or more is wanted, found {count}");
        let mut parts = Vec::new();
        for from in (0..count).step_by(BATCH as usize) {
            let z = self.prior(seed, from, BATCH)?;
            parts.push(self.decode(&z)?.f_narrow(0, 0, BATCH.min(count - from))?.f_to_device(Device::Cpu)?);
        }
        Ok(Tensor::f_cat(&parts, 0)?)
    }

    /// The images that `spec` names, or those that the run was trained on; pictures of a folder are brought to the model's
    /// shape.
    ///
    /// # Errors
    /// Those of [`data::open`]; [`crate::base::usage::Usage`] when the images have another shape, or nothing says which they are.
    pub fn source(&self, spec: Option<&str>, data_dir: Option<&Path>) -> Result<Source> {
        let own = self.origin().map(|(config, _)| config.settings.clone());
        let mut settings = match (spec, own) {
            (None, Some(own)) => own,
            (None, None) => usage!("--data is missing: exported modules do not say which images they were trained on"),
            (Some(spec), own) => {
                let mut settings = Settings::default().with(&DATA, spec.to_owned());
                settings = settings.with_some(&DATA_DIR, own.and_then(|s| s.given(&DATA_DIR)));
                if data::resizable(spec) {
                    let Shape { channels, height, width } = self.shape;
                    let size = (height as usize, width as usize);
                    settings = settings.with(&IMAGE_SIZE, size).with(&CHANNELS, channels as u64);
                }
                settings
            }
        };
        settings = settings.with_some(&DATA_DIR, data_dir.map(Path::to_owned));
        let source = data::open(&settings)?;
        let found = [source.train.channels, source.train.height, source.train.width].map(|n| n as i64);
        if found != self.shape.dims() {
            usage!(
                "--data {} has images of {}x{}x{}, and {} takes {}: name images of that shape, or a folder of pictures, which are \
                 brought to it",
                source.name,
                found[0],
                found[1],
                found[2],
                self.root.display(),
                self.shape
            );
        }
        Ok(source)
    }

    /// Gives `work` the rows of a batch [N,...] 64 at a time, the last ones filled up, and joins what it makes of them.
    fn in_batches(&self, rows: &Tensor, work: impl Fn(&Tensor) -> Result<Vec<Tensor>>) -> Result<Vec<Tensor>> {
        let rows = rows.f_to_device(self.device)?.f_to_kind(Kind::Float)?;
        let count = rows.size()[0];
        ensure!(count > 0, "a batch of at least one is wanted, found none");
        let mut parts: Vec<Vec<Tensor>> = Vec::new();
        for from in (0..count).step_by(BATCH as usize) {
            let here = BATCH.min(count - from);
            let mut batch = rows.f_narrow(0, from, here)?;
            if here < BATCH {
                let mut size = rows.size();
                size[0] = BATCH - here;
                batch = Tensor::f_cat(&[batch, rows.f_new_zeros(&size, (Kind::Float, self.device))?], 0)?;
            }
            for (i, out) in work(&batch.f_contiguous()?)?.into_iter().enumerate() {
                if i == parts.len() {
                    parts.push(Vec::new());
                }
                parts[i].push(out.f_narrow(0, 0, here)?);
            }
        }
        parts.iter().map(|p| Ok(Tensor::f_cat(p, 0)?)).collect()
    }
}

impl Module {
    fn load(path: &Path, device: Device) -> Result<Self> {
        let unreadable = || format!("{} is no TorchScript module that can be read", path.display());
        let text = native::script_description(path).with_context(unreadable)?.with_context(|| {
            format!(
                "{} does not say what it is, as modules that `ganvae export` writes do: export the run again",
                path.display()
            )
        })?;
        let about: About = serde_json::from_str(&text).with_context(|| {
            format!("{} has a description that cannot be read: export the run again", path.display())
        })?;
        let module = CModule::load_on_device(path, device).with_context(unreadable)?;
        Ok(Module { path: path.to_owned(), module, about })
    }

    /// Z and the shape of the images.
    fn dims(&self) -> Result<(i64, Shape)> {
        let (input, outputs) = (&self.about.input.dims, &self.about.outputs);
        let (z, x) = match (self.about.network.as_str(), outputs.as_slice()) {
            ("encoder", [mu, _]) => (&mu.dims, input),
            ("decoder" | "generator", [x]) => (input, &x.dims),
            ("discriminator", _) => usage!(
                "{} is a discriminator, which makes no images: name the generator.pt beside it",
                self.path.display()
            ),
            (other, _) => bail!("{} is a {other}, wanted a decoder, a generator or an encoder", self.path.display()),
        };
        match (z.as_slice(), x.as_slice()) {
            (&[latent], &[channels, height, width]) => Ok((latent, Shape { channels, height, width })),
            _ => bail!(
                "{} takes latents of {z:?} and images of {x:?}, wanted [Z] and [C,H,W]: export the run again",
                self.path.display()
            ),
        }
    }

    /// [B,...] -> the outputs, each [B,...] of the shape that the module says.
    fn call(&self, input: &Tensor) -> Result<Vec<Tensor>> {
        let failed = || format!("{} failed on a batch of {:?}", self.path.display(), input.size());
        let out =
            tch::no_grad(|| self.module.forward_is(&[IValue::Tensor(input.shallow_clone())])).with_context(failed)?;
        let out = match out {
            IValue::Tensor(t) => vec![t],
            IValue::Tuple(all) => all
                .into_iter()
                .map(|v| if let IValue::Tensor(t) = v { Ok(t) } else { bail!("it gave something that is no tensor") })
                .collect::<Result<_>>()
                .with_context(failed)?,
            _ => bail!("{}: it gave something that is no tensor", failed()),
        };
        let want: Vec<Vec<i64>> =
            self.about.outputs.iter().map(|o| [&input.size()[..1], &o.dims[..]].concat()).collect();
        let found: Vec<Vec<i64>> = out.iter().map(Tensor::size).collect();
        ensure!(found == want, "{}: it gave {found:?}, wanted {want:?}", failed());
        Ok(out)
    }
}

/// The other half of an exported VAE: `encoder.pt` beside `decoder.pt`.
fn partner(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let other = match name.contains("decoder") {
        true => name.replace("decoder", "encoder"),
        false => name.replace("encoder", "decoder"),
    };
    (other != name).then(|| path.with_file_name(other))
}

fn is_run(path: &Path) -> bool {
    path.join("config.toml").is_file()
}

/// Where a command puts `name` unless told: into this folder of the run, or, of exported modules, where the user stands.
pub fn default_place(root: &Path, folder: &str, name: &str) -> PathBuf {
    if !is_run(root) {
        return PathBuf::from(name);
    }
    let folder = root.join(folder);
    // Where it cannot be made, writing into it will say so.
    let _ = std::fs::create_dir_all(&folder);
    folder.join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::{Submodule, save_script};
    use std::path::Path;

    const SHAPE: Shape = Shape { channels: 1, height: 2, width: 3 };

    /// A network of one linear layer with the weights of `seed`, as an export has it.
    fn save(path: &Path, network: &str, latent: i64, seed: i64) -> Result<Tensor> {
        let (from, to) = if network == "encoder" { (6, latent) } else { (latent, 6) };
        let w = native::randn(seed, &[to, from])?;
        let linear = "def forward(self, x):\n  return torch.linear(x, self.weight)\n";
        let parts = [Submodule { name: "fc".into(), kind: "Linear", methods: linear.into() }];
        let (z, x) =
            (format!("{{\"name\":\"z\",\"shape\":[\"B\",{latent}]}}"), "{\"name\":\"x\",\"shape\":[\"B\",1,2,3]}");
        let (forward, input, outputs) = match network {
            "encoder" => {
                ("mu = self.fc.forward(torch.flatten(x, 1))\n  return (mu, mu - 1.0)", x, format!("[{z},{z}]"))
            }
            _ => ("return torch.reshape(torch.sigmoid(self.fc.forward(x)), [-1, 1, 2, 3])", &*z, format!("[{x}]")),
        };
        let about = format!("{{\"network\":\"{network}\",\"input\":{input},\"outputs\":{outputs}}}");
        let methods = format!("def forward(self, x):\n  {forward}\n");
        save_script(path, "Net", &about, &methods, &parts, &[("fc.weight".into(), w.shallow_clone(), true)])?;
        Ok(w)
    }

    fn open(path: &Path) -> Result<Trained> {
        Trained::open(path, "cpu")
    }

    fn said(result: Result<impl Sized>) -> String {
        result.err().map_or_else(String::new, |e| format!("{e:#}"))
    }

    #[test]
    fn exported_modules_work_by_folder_and_by_file() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (decoder, encoder) = (dir.path().join("decoder.pt"), dir.path().join("encoder.pt"));
        let (w, v) = (save(&decoder, "decoder", 4, 1)?, save(&encoder, "encoder", 4, 2)?);
        for path in [dir.path(), &decoder, &encoder] {
            let trained = open(path)?;
            assert_eq!((trained.latent(), trained.shape(), trained.device()), (4, SHAPE, Device::Cpu));
            assert!(trained.origin().is_none() && trained.networks().is_none());
            let z = trained.prior(3, 0, 70)?;
            let x = trained.decode(&z)?;
            assert!(
                (&x - z.linear(&w, None::<Tensor>).sigmoid().view([70, 1, 2, 3])).abs().max().double_value(&[]) < 1e-6
            );
            let (mu, logvar) = trained.encode(&x)?;
            assert!((&mu - x.flatten(1, -1).linear(&v, None::<Tensor>)).abs().max().double_value(&[]) < 1e-6);
            assert_eq!(logvar, mu - 1.0);
            assert_eq!(trained.sample(70, 3)?, x, "samples are the decoded prior");
            assert_eq!(trained.sample(5, 3)?, x.narrow(0, 0, 5), "the first of more, bit for bit");
            assert_ne!(trained.sample(5, 4)?, x.narrow(0, 0, 5));
        }
        std::fs::rename(&decoder, dir.path().join("my-decoder.pt"))?;
        assert!(said(open(&dir.path().join("my-decoder.pt"))?.check_encoder()).contains("no encoder.pt"));
        std::fs::rename(&encoder, dir.path().join("my-encoder.pt"))?;
        open(&dir.path().join("my-decoder.pt"))?.check_encoder()?;
        Ok(())
    }

    #[test]
    fn every_batch_is_of_one_size_and_keeps_its_rows() -> Result<()> {
        let dir = tempfile::tempdir()?;
        drop(save(&dir.path().join("decoder.pt"), "decoder", 4, 1)?);
        let trained = open(dir.path())?;
        for count in [1, 63, 64, 65, 200] {
            let rows = native::randn(1, &[count, 4])?;
            let twice = trained.in_batches(&rows, |batch| {
                assert_eq!(batch.size(), [BATCH, 4], "{count} rows");
                Ok(vec![batch * 2.0])
            })?;
            assert_eq!(twice, [&rows * 2.0]);
        }
        Ok(())
    }

    #[test]
    fn what_cannot_be_used_is_named() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let file = |name: &str| dir.path().join(name);
        drop(save(&file("encoder.pt"), "encoder", 4, 1)?);
        let alone = open(&file("encoder.pt"))?;
        assert!(said(alone.sample(1, 0)).contains("an encoder alone"));
        assert!(said(alone.source(None, None)).contains("--data is missing"));
        drop(save(&file("decoder.pt"), "decoder", 5, 1)?);
        let e = said(open(dir.path()));
        assert!(e.contains("does not fit") && e.contains("latents of 4 and") && e.contains("the one, 5 and"), "{e}");
        drop(save(&file("generator.pt"), "generator", 4, 1)?);
        let gan = open(&file("generator.pt"))?;
        assert!(said(gan.encode(&Tensor::zeros([1, 1, 2, 3], (Kind::Float, Device::Cpu)))).contains("no encoder"));
        assert!(said(gan.decode(&Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)))).contains("[N,4]"));
        drop(save(&file("discriminator.pt"), "discriminator", 4, 1)?);
        assert!(said(open(&file("discriminator.pt"))).contains("makes no images"));
        let both = tempfile::tempdir()?;
        for name in ["decoder", "generator"] {
            drop(save(&both.path().join(format!("{name}.pt")), name, 4, 1)?);
        }
        let e = said(open(both.path()));
        assert!(e.contains("decoder.pt") && e.contains("generator.pt both make images"), "{e}");
        std::fs::write(file("bad.pt"), "no module")?;
        assert!(said(open(&file("bad.pt"))).contains("bad.pt is no TorchScript module"));
        let foreign = file("foreign.pt");
        tch::CModule::create_by_tracing("M", "forward", &[Tensor::from(1f32)], &mut |x| vec![&x[0] * 2])?
            .save(&foreign)?;
        assert!(said(open(&foreign)).contains("does not say what it is"));
        for nothing in [file("nowhere"), file("bad"), tempfile::tempdir()?.keep()] {
            let e = open(&nothing).err().unwrap();
            assert!(e.is::<crate::base::usage::Usage>() && e.to_string().contains("wanted a run's folder"), "{e}");
        }
        Ok(())
    }

    #[test]
    fn latents_of_the_prior_are_a_function_of_seed_and_number() -> Result<()> {
        let dir = tempfile::tempdir()?;
        drop(save(&dir.path().join("decoder.pt"), "decoder", 4, 1)?);
        let trained = open(dir.path())?;
        let all = trained.prior(9, 0, 300)?;
        for (from, count) in [(0, 1), (0, 64), (63, 2), (64, 64), (100, 150), (299, 1)] {
            assert_eq!(trained.prior(9, from, count)?, all.narrow(0, from, count), "{count} from {from}");
        }
        assert_ne!(trained.prior(8, 0, 1)?, all.narrow(0, 0, 1));
        Ok(())
    }
}
