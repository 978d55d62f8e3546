//! Presets of networks and hyper-parameters: the TOML files in presets/.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

use super::training::{INIT_FROM, PRESET};
use super::{device, file};
use crate::base::progress::say;
use crate::base::setting::{Settings, choice_name};
use crate::base::shape::Shape;
use crate::base::small_file;
use crate::base::usage::{nearest, usage};
use crate::data::{self, DATA};
use crate::models::ModelKind;
use crate::nets::{ARCH, Arch};

/// Every preset: name and file. The first preset of a model is its default; the first of an architecture is the default for it.
const FILES: [(&str, &str); 10] = [
    ("pytorch-vae", include_str!("presets/pytorch-vae.toml")),
    ("conv-vae", include_str!("presets/conv-vae.toml")),
    ("residual-vae", include_str!("presets/residual-vae.toml")),
    ("dcgan", include_str!("presets/dcgan.toml")),
    ("small", include_str!("presets/small.toml")),
    ("r3gan", include_str!("presets/r3gan.toml")),
    ("sngan", include_str!("presets/sngan.toml")),
    ("wgan-gp", include_str!("presets/wgan-gp.toml")),
    ("article", include_str!("presets/article-vae.toml")),
    ("article", include_str!("presets/article-gan.toml")),
];

/// Name, model and settings of every preset.
///
/// # Errors
/// None for the built-in files.
pub fn all() -> Result<Vec<(&'static str, ModelKind, Settings)>> {
    let read = |(name, text): (&'static str, &str)| {
        let (model, settings) = file::parse(text, Path::new(name))?;
        let model = model.with_context(|| format!("preset {name} does not say which model it is of"))?;
        Ok((name, model, settings.with(&PRESET, name.to_owned())))
    };
    FILES.into_iter().map(read).collect()
}

/// The settings below those in `given`: a preset, or, unless `given` names a preset or an architecture, the networks and the loss of
/// the run that it takes its weights from.
///
/// # Errors
/// Those of [`preset`], and when that run's config.toml cannot be read.
pub fn below(model: ModelKind, given: &Settings) -> Result<Settings> {
    let source = given.given(&INIT_FROM).map(|run| run.join("config.toml")).filter(|file| file.is_file());
    let asked = given.given(&PRESET).is_some() || given.given(&ARCH).is_some();
    if let (Some(file), false) = (source, asked)
        && let (Some(of), run) =
            small_file::read_text(&file).and_then(|text| file::parse(&text, &file)).with_context(|| {
                format!(
                    "--init-from {}: the networks of that run could not be read; name them with --preset or --arch",
                    file.display()
                )
            })?
        && of == model
    {
        let [network, own, _] = model.settings();
        let names: Vec<_> = [network, own].iter().flat_map(|g| g.settings.iter().map(|s| s.info().name)).collect();
        let base = preset(model, &Settings::default().with_some(&PRESET, run.given(&PRESET)))?;
        return Ok(base.overlaid(&run.only(&names)));
    }
    preset(model, given)
}

/// The name of no preset: one is chosen by the images.
const AUTO: &str = "auto";

/// The preset of a GAN for these images, and why.
///
/// Few images need augmentation, and a processor a small network; R3GAN's network and penalties are for many images on a GPU.
pub(super) fn for_images(count: usize, shape: Shape, on_cpu: bool) -> (&'static str, &'static str) {
    match () {
        () if count >= MANY && shape.channels == 1 && shape.height.max(shape.width) <= 32 => {
            ("dcgan", "many small grey images")
        }
        () if count >= MANY && !on_cpu => ("r3gan", "many images, on a GPU"),
        () if count >= MANY => ("small", "on a CPU"),
        () => ("small", "few images"),
    }
}

/// From so many images on, a discriminator does not soon know each of them.
const MANY: usize = 10_000;

/// Whether the preset is chosen by the images: where it is asked for, and for a GAN of someone's own pictures.
fn is_automatic(model: ModelKind, given: &Settings) -> bool {
    let unasked = || given.given(&PRESET).is_none() && given.given(&ARCH).is_none();
    let of_pictures = || given.given(&DATA).is_some_and(|spec| data::is_of_pictures(&spec));
    model == ModelKind::Gan && (given.given(&PRESET).as_deref() == Some(AUTO) || unasked() && of_pictures())
}

/// The preset that `given` names, else the first one of its architecture, else the model's first; for pictures of a folder, from which
/// an MLP learns blurs only, the first convolutional one. A GAN's may be chosen by the images: then it says which, and why.
///
/// # Errors
/// [`crate::base::usage::Usage`] for an unknown preset of this model, and for one that contradicts the architecture in `given`.
fn preset(model: ModelKind, given: &Settings) -> Result<Settings> {
    let (mut named, mut arch) = (given.given(&PRESET).filter(|name| name != AUTO), given.given(&ARCH));
    if is_automatic(model, given) {
        let (count, shape) = data::size(given)?;
        let (name, why) = for_images(count, shape, device::open(given)? == tch::Device::Cpu);
        say(&format!("--preset {name}, as there are {count} images of {shape}: {why}"));
        named = Some(name.to_owned());
    }
    if named.is_none() && arch.is_none() && given.given(&DATA).is_some_and(|spec| data::is_of_pictures(&spec)) {
        arch = Some(Arch::Conv);
    }
    let all = all()?;
    let own = || all.iter().filter(|(_, of, _)| *of == model);
    let fits = |s: &Settings| arch.is_none_or(|arch| s.given(&ARCH) == Some(arch));
    let found = match &named {
        Some(wanted) => own().find(|(name, ..)| name == wanted),
        None => own().find(|(_, _, settings)| fits(settings)),
    };
    match (found, &named) {
        (Some((.., settings)), _) if fits(settings) => Ok(settings.clone()),
        (Some((name, ..)), _) => {
            usage!("--arch contradicts --preset {name}, which has the other architecture: leave one of the two out")
        }
        (None, None) => {
            let has: BTreeSet<_> = own().filter_map(|(.., s)| Some(choice_name(&s.given(&ARCH)?))).collect();
            let (arch, has) =
                (arch.map_or_else(String::new, |arch| choice_name(&arch)), Vec::from_iter(has).join(", "));
            usage!("--arch {arch}: no preset of `train {model}` has this architecture, wanted one of {has}")
        }
        (None, Some(name)) => {
            let names = own().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ");
            if let Some((_, other, _)) = all.iter().find(|(other, ..)| name == other) {
                usage!(
                    "--preset {name} is a preset of `train {other}`: wanted one of `train {model}`, which are {names}"
                )
            }
            let near = nearest(name, all.iter().map(|(other, ..)| *other));
            let near = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
            usage!("--preset {name}: wanted one of {names}{near}")
        }
    }
}
