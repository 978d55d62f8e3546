//! A trained model of a run or of exported modules: images from latents, and latents from images.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tch::{Device, Kind, Tensor};

use crate::base::classes::Classes;
use crate::base::seed::{Stream, seed_for};
use crate::base::setting::Settings;
use crate::base::shape::Shape;
use crate::base::usage::usage;
use crate::config::device;
use crate::config::{self, Config};
use crate::data::images::{Images, Source};
use crate::data::{self, CHANNELS, DATA, DATA_DIR, IMAGE_SIZE};
use crate::models::inversion::{Inverter, Search, Sizes};
use crate::models::noise::Noise;
use crate::models::tuning::{THREADS, Tuning};
use crate::models::{ImageSpec, LatentVariable, Model, ModelKind, Part};
use crate::nets::graph::Graph;
use crate::run::checkpoint::{self, Selection};
use crate::run::exported::{Exported, partner};
use crate::run::folder::RunDir;

/// Batch size of decoding and encoding, always the same: large counts need no more memory than small ones, and the bits of an image
/// do not depend on the count (matrix products round differently at other sizes).
pub const BATCH: i64 = 64;

/// A trained model in evaluation mode; the [crate's example](crate#use-as-a-library) opens one.
pub struct Trained {
    root: PathBuf,
    device: Device,
    latent: i64,
    shape: Shape,
    /// The classes of a conditional model.
    classes: Option<Classes>,
    loaded: LoadedModel,
}

enum LoadedModel {
    /// The model of a run, its configuration, and the updates that the model has had.
    Run(Box<dyn Model>, Box<Config>, u64),
    /// Exported modules.
    Modules(Box<Exported>),
}

impl Trained {
    /// [`Trained::open_checkpoint`] with a run's newest intact checkpoint.
    ///
    /// # Errors
    /// As [`Trained::open_checkpoint`].
    pub fn open(path: impl AsRef<Path>, device: &str) -> Result<Self> {
        Trained::open_checkpoint(path, Selection::Latest, device)
    }

    /// Opens a checkpoint of a run by the run's folder, a folder of exported modules, or one exported module, with the encoder or decoder
    /// in the same folder. `device` is `auto`, `cpu`, `cuda` or `cuda:N`.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] when `path` is none of these, or the run has no such checkpoint; when the checkpoint is damaged, or a
    /// module cannot be read.
    pub fn open_checkpoint(path: impl AsRef<Path>, selection: Selection, device: &str) -> Result<Self> {
        let (path, over) = (path.as_ref(), device::on(device));
        if is_run(path) {
            return Trained::open_run(path, selection, &over);
        }
        if selection != Selection::Latest {
            usage!("--checkpoint: {} is no run, and only a run has checkpoints: leave it out", path.display());
        }
        let candidates: Vec<PathBuf> = match path.is_file() && path.extension().is_some_and(|e| e == "pt") {
            true => [path.to_owned()].into_iter().chain(partner(path)).collect(),
            false => ["decoder.pt", "generator.pt", "encoder.pt"].map(|name| path.join(name)).into(),
        };
        let files: Vec<PathBuf> = candidates.into_iter().filter(|file| file.is_file()).collect();
        if !files.is_empty() {
            let device = device::open(&over)?;
            let modules = Exported::load(&files, device)?;
            let (root, latent, shape, classes) = (path.to_owned(), modules.latent, modules.shape, modules.classes());
            return Ok(Trained {
                root,
                device,
                latent,
                shape,
                classes,
                loaded: LoadedModel::Modules(Box::new(modules)),
            });
        }
        usage!(
            "{}: {}; wanted a run's folder, such as runs/0001-vae-digits, or exported modules: a folder that holds decoder.pt or \
             generator.pt, or one such file",
            path.display(),
            if path.exists() { "not a run, and no exported modules" } else { "no such file or folder" }
        );
    }

    fn open_run(root: &Path, selection: Selection, over: &Settings) -> Result<Self> {
        let run = RunDir::open(root)?;
        let (kind, settings, info) = run.config()?;
        let config = config::resolve(kind, &settings.overlaid(over))?;
        let device = device::open(&config.settings)?;
        let read = checkpoint::read(&run.checkpoints(), selection, |dir, state| {
            state.check_model(kind)?;
            let images = ImageSpec { shape: info.shape, classes: info.classes.len() };
            let build = || config.build(images, config.steps_per_epoch(info.train_images), device);
            let model = checkpoint::built_for(dir, build)?;
            checkpoint::load(dir, &[Part::Model], &mut |v| model.visit(v))?;
            Ok((model, state.step))
        })?;
        let (mut model, step) = read.with_context(|| {
            let (root, quoted) = (root.display(), run.shell_quoted());
            format!("{root} has no checkpoint yet: go on with `ganvae train --resume {quoted}`")
        })?;
        model.end_training();
        // Gradients pass through the networks to latents, and to no weight.
        model.networks_mut().into_iter().for_each(|network| network.vars.freeze());
        if device == Device::Cpu {
            let threads = config.settings.given(&THREADS).map_or(info.tuning.threads, |n| n as u32);
            Tuning { threads, ..info.tuning }.apply(model.as_mut())?;
        }
        let (root, latent, shape) = (root.to_owned(), model.latent(), info.shape);
        let classes = model.classes().map(|_| info.classes);
        Ok(Trained { root, device, latent, shape, classes, loaded: LoadedModel::Run(model, Box::new(config), step) })
    }

    /// Z: width of the latent vector.
    pub fn latent(&self) -> i64 {
        self.latent
    }

    /// Shape of each image.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The classes of a conditional model, whose images need one; none for another.
    pub fn classes(&self) -> Option<&Classes> {
        self.classes.as_ref()
    }

    /// The device that the model is on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The configuration of a run and the updates that the model has seen; none for exported modules.
    pub fn origin(&self) -> Option<(&Config, u64)> {
        match &self.loaded {
            LoadedModel::Run(_, config, step) => Some((config, *step)),
            LoadedModel::Modules(_) => None,
        }
    }

    /// The networks of a run's model; none of exported modules, which are networks already.
    pub fn networks(&self) -> Option<Vec<&Graph>> {
        match &self.loaded {
            LoadedModel::Run(model, ..) => Some(model.exported()),
            LoadedModel::Modules(_) => None,
        }
    }

    /// The model of a run as one whose log p(x) has a bound; none for a GAN and for exported modules, which give means alone.
    pub fn latent_variable(&self) -> Option<&dyn LatentVariable> {
        match &self.loaded {
            LoadedModel::Run(model, ..) => model.latent_variable(),
            LoadedModel::Modules(_) => None,
        }
    }

    /// Latents `from` to `from + count` of the prior N(0, I): z [count,Z] on the model's device, a function of the seed and the index
    /// alone.
    pub fn prior(&self, seed: u64, from: i64, count: i64) -> Result<Tensor> {
        self.batches_of_noise(seed, from, count, |noise| noise.normal("z", &[BATCH, self.latent]))
    }

    /// Classes of the latents of [`Trained::prior`], as often as in training: [count], int64; none where the model is not conditional.
    ///
    /// # Errors
    /// libtorch's.
    pub fn drawn_classes(&self, seed: u64, from: i64, count: i64) -> Result<Option<Tensor>> {
        let Some(classes) = &self.classes else { return Ok(None) };
        let uniform = self.batches_of_noise(seed, from, count, |noise| noise.uniform("class", &[BATCH]))?;
        Ok(Some(classes.drawn(&uniform)?))
    }

    /// `count` rows from row `from` on of noise that is drawn in batches of [`BATCH`].
    fn batches_of_noise(
        &self,
        seed: u64,
        from: i64,
        count: i64,
        draw: impl Fn(&Noise) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let first = from / BATCH;
        let batches = (first..=(from + count - 1) / BATCH)
            .map(|batch| draw(&Noise::new(seed_for(seed, 0, Stream::Samples, batch as u64), self.device)));
        let all = Tensor::f_cat(&batches.collect::<Result<Vec<_>>>()?, 0)?;
        Ok(all.f_narrow(0, from - first * BATCH, count)?)
    }

    /// Images of latents: z [N,Z] -> [N,C,H,W] in [0,1] on the model's device. Those of a conditional model have `classes`: numbers [N]
    /// (int64), or weights of the classes [N,K] (float32), which exported modules do not take.
    ///
    /// # Errors
    /// When z has another width, the classes are missing or not wanted, or the export has no decoder.
    pub fn decode(&self, z: &Tensor, classes: Option<&Tensor>) -> Result<Tensor> {
        let size = z.size();
        ensure!(size.len() == 2 && size[1] == self.latent, "latents of [N,{}] are wanted, found {size:?}", self.latent);
        match (&self.classes, classes) {
            (Some(_), None) => bail!("the model is conditional: a class of each image is wanted"),
            (None, Some(_)) => bail!("the model is not conditional: it takes no classes"),
            _ => {}
        }
        let mut images = self.in_batches(z, classes, |z, classes| match &self.loaded {
            LoadedModel::Run(model, ..) => Ok(vec![model.decode(z, classes)?]),
            LoadedModel::Modules(modules) => match &modules.decoder {
                Some(decoder) => decoder.call(z, classes),
                None => {
                    let root = self.root.display();
                    usage!(
                        "{root} is an encoder alone, which generates no images: name the folder that also holds decoder.pt"
                    )
                }
            },
        })?;
        images.pop().context("a decoder gives images")
    }

    /// The posterior of images: x [N,C,H,W] in [0,1] -> (mu [N,Z], logvar [N,Z]) on the model's device.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] when the model has no encoder; when x has another shape.
    pub fn encode(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        self.check_shape(x)?;
        self.check_encoder()?;
        let mut both = self.in_batches(x, None, |x, _| match &self.loaded {
            LoadedModel::Run(model, ..) => model.encode(x)?.map(|(mu, logvar)| vec![mu, logvar]).context("no encoder"),
            LoadedModel::Modules(modules) => modules.encoder.as_ref().context("no encoder")?.call(x, None),
        })?;
        let (logvar, mu) = (both.pop(), both.pop());
        mu.zip(logvar).context("an encoder gives mu and logvar")
    }

    /// Latents of images: x [N,C,H,W] in [0,1] -> [N,Z] on the model's device, and the classes [N] (int64) of a conditional model. Those of
    /// a VAE are the means mu. Those of a GAN are searched for ([`crate::models::inversion`]), one image after the other, so that they do not depend on the other images; `each` is
    /// called after every update of the search. For an exported generator, the search compares pixels alone: a discriminator's export
    /// gives no features.
    ///
    /// # Errors
    /// As [`Trained::encode`], for a VAE's decoder alone; when the weights of a GAN are not finite.
    pub fn latents(&self, x: &Tensor, search: &Search, each: &mut dyn FnMut()) -> Result<(Tensor, Option<Tensor>)> {
        let inverter = match &self.loaded {
            LoadedModel::Run(_, config, _) if config.model == ModelKind::Gan => {
                let graphs = self.networks().unwrap_or_default();
                let named = |name| graphs.iter().find(|g| g.name() == name).copied().context("a network is missing");
                Inverter::new(named("generator")?, named("discriminator")?)
            }
            LoadedModel::Modules(modules) => match &modules.decoder {
                Some(generator) if modules.is_gan() => Inverter::of_pixels(|z, classes| {
                    generator.call(z, classes)?.pop().context("a generator gives images")
                }),
                _ => return Ok((self.encode(x)?.0, None)),
            },
            LoadedModel::Run(..) => return Ok((self.encode(x)?.0, None)),
        };
        let latents = Sizes { latent: self.latent, classes: self.classes.as_ref().map(Classes::len) };
        self.check_shape(x)?;
        let x = x.f_to_device(self.device)?.f_to_kind(Kind::Float)?;
        let each_image = (0..x.size()[0]).map(|i| {
            let (z, class) = inverter.invert(&x.f_narrow(0, i, 1)?, latents, search, each)?;
            // sync: once for an image.
            ensure!(
                z.f_isfinite()?.f_all()?.f_double_value(&[])? != 0.0,
                "no latent was found: the weights are not finite"
            );
            Ok((z, class))
        });
        let (z, classes): (Vec<_>, Vec<_>) = each_image.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let classes = classes.into_iter().collect::<Option<Vec<_>>>();
        Ok((Tensor::f_cat(&z, 0)?, classes.map(|all| Tensor::f_cat(&all, 0)).transpose()?))
    }

    /// Whether it is a GAN, which has no encoder: [`Trained::latents`] are searched for.
    pub fn is_gan(&self) -> bool {
        match &self.loaded {
            LoadedModel::Run(_, config, _) => config.model == ModelKind::Gan,
            LoadedModel::Modules(modules) => modules.is_gan(),
        }
    }

    /// Whether it makes images of latents: an encoder alone does not.
    pub fn generates(&self) -> bool {
        match &self.loaded {
            LoadedModel::Run(..) => true,
            LoadedModel::Modules(modules) => modules.decoder.is_some(),
        }
    }

    /// Refuses, as a usage error, a model without an encoder.
    pub fn check_encoder(&self) -> Result<()> {
        let root = self.root.display();
        if self.is_gan() {
            usage!(
                "{root} is a GAN, whose latents have to be searched for image by image (`ganvae encode`): use a VAE"
            );
        }
        if let LoadedModel::Modules(modules) = &self.loaded
            && modules.encoder.is_none()
        {
            usage!("{root} has no encoder.pt next to its decoder: wanted both");
        }
        Ok(())
    }

    /// Refuses, as a usage error, a model without [`Trained::latents`]: a VAE's decoder alone.
    pub fn check_latents(&self) -> Result<()> {
        if self.is_gan() { Ok(()) } else { self.check_encoder() }
    }

    fn check_shape(&self, x: &Tensor) -> Result<()> {
        let size = x.size();
        let wanted = self.shape.dims();
        ensure!(
            size.len() == 4 && size[1..] == wanted,
            "images of [N,{}] are wanted, found {size:?}",
            wanted.map(|n| n.to_string()).join(",")
        );
        Ok(())
    }

    /// `count` images of the prior: [N,C,H,W] in [0,1] on the CPU; the same for the same seed, and the first n of more.
    ///
    /// # Errors
    /// As [`Trained::decode`]; `count` must be above 0.
    pub fn sample(&self, count: i64, seed: u64) -> Result<Tensor> {
        ensure!(count > 0, "a count of 1 or more is wanted, found {count}");
        let mut parts = Vec::new();
        for from in (0..count).step_by(BATCH as usize) {
            let (z, classes) = (self.prior(seed, from, BATCH)?, self.drawn_classes(seed, from, BATCH)?);
            parts.push(
                self.decode(&z, classes.as_ref())?.f_narrow(0, 0, BATCH.min(count - from))?.f_to_device(Device::Cpu)?,
            );
        }
        Ok(Tensor::f_cat(&parts, 0)?)
    }

    /// The images that `spec` names, or those that the run was trained on; `whole`: all as `train`, with nothing held out. Pictures of a folder are converted to the shape of the model.
    ///
    /// # Errors
    /// Those of [`data::open`]; [`crate::base::usage::Usage`] when the images have another shape, or nothing says which they are.
    pub fn source(&self, spec: Option<&str>, data_dir: Option<&Path>, whole: bool) -> Result<Source> {
        let own = self.origin().map(|(config, _)| config.settings.clone());
        let mut settings = match (spec, own) {
            (None, Some(own)) => own,
            (None, None) => usage!("--data is missing: exported modules do not say which images they were trained on"),
            (Some(spec), _) => {
                let settings = self.fitting(data::resizable(spec));
                settings.with(&DATA, spec.to_owned())
            }
        };
        settings = settings.with_some(&DATA_DIR, data_dir.map(Path::to_owned));
        let source = if whole { data::open_whole(&settings) } else { data::open(&settings) }?;
        let found = source.train.shape();
        if found != self.shape {
            usage!(
                "--data {} has images of {found}, and {} takes {}: name images of that shape, or a folder of pictures, which are \
                 converted to it",
                source.name,
                self.root.display(),
                self.shape
            );
        }
        Ok(source)
    }

    /// These pictures, converted to the shape of the model.
    ///
    /// # Errors
    /// As [`data::open_files`].
    pub fn pictures(&self, paths: &[PathBuf]) -> Result<Images> {
        data::open_files(&self.fitting(true), paths)
    }

    /// Whether `spec` names the data that the run was trained on, as none does.
    pub fn is_own_data(&self, spec: Option<&str>) -> bool {
        let own = || self.origin().and_then(|(config, _)| config.settings.get(&DATA).ok());
        let same = |own: String| spec.is_some_and(|spec| own == spec || same_path(&own, spec));
        spec.is_none() || own().is_some_and(same)
    }

    /// The settings of the run's data that hold for other data: where it is kept, and how pictures are fitted; with `sized`, to the shape
    /// of the model.
    fn fitting(&self, sized: bool) -> Settings {
        let own = self.origin().map(|(config, _)| config.settings.clone()).unwrap_or_default();
        let settings = own.only(data::FOR_OTHER_DATA);
        if !sized {
            return settings;
        }
        let Shape { channels, height, width } = self.shape;
        settings.with(&IMAGE_SIZE, (height as usize, width as usize)).with(&CHANNELS, channels as u64)
    }

    /// Calls `network` on the rows of a batch [N,...] and their classes 64 at a time, the last ones padded with zeros, and concatenates
    /// its outputs.
    fn in_batches(
        &self,
        rows: &Tensor,
        classes: Option<&Tensor>,
        network: impl Fn(&Tensor, Option<&Tensor>) -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Tensor>> {
        let rows = rows.f_to_device(self.device)?.f_to_kind(Kind::Float)?;
        let classes = classes.map(|classes| classes.f_to_device(self.device)).transpose()?;
        let count = rows.size()[0];
        ensure!(count > 0, "a batch of at least one is wanted, found none");
        let mut parts: Vec<Vec<Tensor>> = Vec::new();
        for from in (0..count).step_by(BATCH as usize) {
            let len = BATCH.min(count - from);
            let batch = |rows: &Tensor| -> Result<Tensor> {
                let mut size = rows.size();
                size[0] = BATCH - len;
                let padding = rows.f_new_zeros(&size, (rows.kind(), self.device))?;
                Ok(Tensor::f_cat(&[rows.f_narrow(0, from, len)?, padding], 0)?.f_contiguous()?)
            };
            let (rows, classes) = (batch(&rows)?, classes.as_ref().map(batch).transpose()?);
            let outputs = tch::no_grad(|| network(&rows, classes.as_ref()))?;
            parts.resize_with(outputs.len(), Vec::new);
            for (part, output) in parts.iter_mut().zip(outputs) {
                part.push(output.f_narrow(0, 0, len)?);
            }
        }
        parts.iter().map(|part| Ok(Tensor::f_cat(part, 0)?)).collect()
    }
}

fn is_run(path: &Path) -> bool {
    path.join("config.toml").is_file()
}

/// Where a command writes `name` without --out: into this folder of the run, or, for exported modules, into the current folder.
pub fn default_place(root: &Path, folder: &str, name: &str) -> PathBuf {
    if !is_run(root) {
        return PathBuf::from(name);
    }
    let folder = root.join(folder);
    // If this fails, writing the file reports it.
    let _ = std::fs::create_dir_all(&folder);
    folder.join(name)
}

/// Whether two texts of `--data` name the same file or folder.
fn same_path(a: &str, b: &str) -> bool {
    let real = |spec: &str| data::path_of(spec).and_then(|path| path.canonicalize().ok());
    real(a).is_some_and(|a| Some(a) == real(b))
}

#[cfg(test)]
mod tests;
