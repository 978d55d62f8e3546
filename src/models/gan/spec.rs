//! Architecture and loss of a GAN, and the settings that they come from.

use anyhow::Result;
use clap::ValueEnum;

use crate::base::setting::{AnySetting, Group, Setting, Settings};
use crate::base::shape::Shape;
use crate::base::usage::usage;
use crate::models::augment::{AUGMENT, AUGMENT_P, AugmentSpec};
use crate::models::losses::adversarial::{GAN_LOSS, GanLoss};
use crate::models::losses::penalty::{
    FIRST_ORDER, GRADIENT_PENALTY, LECAM, PENALTY_EVERY, Penalties, R1, R1_END, R2, R2_END,
};
use crate::models::moving_average::Decay;
use crate::models::{ImageSpec, Length};
use crate::nets::{Activation, Arch, LATENT, NetSpec, channels, hidden_widths};

/// Architecture and loss of a GAN.
#[derive(Clone, Debug, PartialEq)]
pub struct GanSpec {
    /// Shape of the images.
    pub shape: Shape,
    /// Z, the latent width.
    pub latent: i64,
    /// Number of classes that the networks are told; none for a GAN that is told none.
    pub classes: Option<i64>,
    /// The generator's layers.
    pub generator: NetSpec,
    /// The discriminator's layers.
    pub discriminator: NetSpec,
    /// The loss of both networks.
    pub loss: GanLoss,
    /// The penalties of the discriminator.
    pub penalties: Penalties,
    /// N, the discriminator's updates for each of the generator (arXiv 1406.2661, algorithm 1, k; 5 in arXiv 1704.00028).
    pub d_steps: u64,
    /// The discriminator's learning rate; none for that of the generator (two learning rates: arXiv 1706.08500).
    pub d_lr: Option<f64>,
    /// N, the first layers of the discriminator that keep their weights (Mo et al. 2020, arXiv 2002.10964).
    pub freeze_d: u64,
    /// The generator's moving average; none keeps none.
    pub ema: Option<Decay>,
    /// Augmentation of the images that the discriminator sees.
    pub augment: Option<AugmentSpec>,
}

/// See [`GanSpec::classes`].
pub static CONDITIONAL: Setting<bool> = Setting::switch(
    "conditional",
    "Tell both networks the classes of the images, so that images of a class can be made: for folders of classes and other data with labels",
)
.default("false", "a class of fewer images is learned worse");

/// Hidden layers of the generator.
pub static GENERATOR_HIDDEN: Setting<Vec<i64>> =
    hidden_widths("generator-hidden", "Units of the hidden layers of the generator, such as 512,256, or none");

/// Hidden layers of the discriminator.
pub static DISCRIMINATOR_HIDDEN: Setting<Vec<i64>> =
    hidden_widths("discriminator-hidden", "Units of the hidden layers of the discriminator");

/// Channels of the generator.
pub static GENERATOR_WIDTHS: Setting<Vec<i64>> = channels(
    "generator-widths",
    "Channels of the generator at each resolution, from the image's on, in place of --base-width; the last number holds for all further ones",
);

/// Channels of the discriminator.
pub static DISCRIMINATOR_WIDTHS: Setting<Vec<i64>> =
    channels("discriminator-widths", "The same of the discriminator [default: those of --base-width]");

/// Normalisation in the generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GeneratorNorm {
    /// Of the features, before each activation.
    Batch,
    /// Nothing.
    None,
}

/// Normalisation in the generator.
pub static GENERATOR_NORM: Setting<GeneratorNorm> =
    Setting::choice("generator-norm", "Normalisation in the generator [default: batch for --arch conv, else none]");

/// Normalisation in the discriminator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DiscriminatorNorm {
    /// Of the features, as in DCGAN.
    Batch,
    /// Of the weights, by their largest singular value (Miyato et al. 2018, arXiv 1802.05957).
    Spectral,
    /// Nothing.
    None,
}

/// Normalisation in the discriminator.
pub static DISCRIMINATOR_NORM: Setting<DiscriminatorNorm> = Setting::choice(
    "discriminator-norm",
    "Normalisation in the discriminator; penalties of its slope take none but spectral [default: batch for --arch conv, else none]",
);

/// See [`GanSpec::d_steps`].
pub static D_STEPS: Setting<u64> = Setting::whole(
    "d-steps",
    "Updates of the discriminator for each of the generator; a step then takes so many batches",
)
.range("from 1 to 1000", |n| (1..=1000).contains(n))
.default("1", "Goodfellow et al. 2014, section 4")
.value_name("UPDATES");

/// See [`GanSpec::d_lr`].
pub static D_LR: Setting<f64> =
    Setting::number("d-lr", "Adam's learning rate of the discriminator [default: that of --lr]")
        .range("above 0 and at most 1", |v| *v > 0.0 && *v <= 1.0);

/// See [`GanSpec::freeze_d`].
pub static FREEZE_D: Setting<u64> = Setting::whole(
    "freeze-d",
    "Linear and convolutional layers of the discriminator, from the image on, that keep the weights of --init-from, with their \
     normalisations; for few images",
)
.default("0", "all layers learn")
.value_name("LAYERS");

/// See [`GanSpec::ema`].
pub static EMA: Setting<f64> =
    Setting::number("ema", "Decay of the generator's moving average, used for sample grids and exports; 0 for none")
        .range("from 0 to below 1", |v| (0.0..1.0).contains(v))
        .default("0", "Goodfellow et al. 2014 have none")
        .value_name("DECAY")
        .in_place_of("ema-half-life");

/// See [`Decay::HalfLife`].
pub static EMA_HALF_LIFE: Setting<f64> = Setting::number(
    "ema-half-life",
    "Half-life of that average, instead of --ema: a weight counts half after so many images; early in a run that has no --init-from, after \
     a twentieth of the images seen",
)
.range("from 1 to 1e12", |v| (1.0..=1e12).contains(v))
.value_name("IMAGES")
.in_place_of("ema");

/// The settings of a GAN.
pub static SETTINGS: Group = Group {
    heading: "GAN",
    settings: &[
        &CONDITIONAL,
        &GENERATOR_HIDDEN,
        &DISCRIMINATOR_HIDDEN,
        &GENERATOR_WIDTHS,
        &DISCRIMINATOR_WIDTHS,
        &GENERATOR_NORM,
        &DISCRIMINATOR_NORM,
        &GAN_LOSS,
        &R1,
        &R1_END,
        &R2,
        &R2_END,
        &GRADIENT_PENALTY,
        &LECAM,
        &FIRST_ORDER,
        &PENALTY_EVERY,
        &D_STEPS,
        &D_LR,
        &FREEZE_D,
        &EMA,
        &EMA_HALF_LIFE,
        &AUGMENT,
        &AUGMENT_P,
    ],
};

impl GanSpec {
    /// A GAN without penalties, moving average and augmentation.
    pub fn new(shape: Shape, latent: i64, [generator, discriminator]: [NetSpec; 2], loss: GanLoss) -> Self {
        GanSpec {
            shape,
            latent,
            classes: None,
            generator,
            discriminator,
            loss,
            penalties: Penalties::default(),
            d_steps: 1,
            d_lr: None,
            freeze_d: 0,
            ema: None,
            augment: None,
        }
    }

    /// The GAN that the settings describe, for such images.
    ///
    /// # Errors
    /// [`crate::base::usage::Usage`] for contradictory settings, and for a conditional GAN of images without classes.
    pub fn from_settings(s: &Settings, ImageSpec { shape, classes }: ImageSpec, length: Length) -> Result<Self> {
        let mut generator = NetSpec::from_settings(s, &GENERATOR_HIDDEN)?.like_dcgan();
        let mut discriminator = NetSpec::from_settings(s, &DISCRIMINATOR_HIDDEN)?.like_dcgan();
        for (net, widths) in [(&mut generator, &GENERATOR_WIDTHS), (&mut discriminator, &DISCRIMINATOR_WIDTHS)] {
            net.widths = s.given(widths).unwrap_or_default();
            if net.arch == Arch::Mlp && !net.widths.is_empty() {
                usage!(
                    "--{} is a setting of --arch conv and residual, and this is --arch mlp: leave it out",
                    widths.info().name
                );
            }
        }
        if let Some(norm) = s.given(&GENERATOR_NORM) {
            generator.batch_norm = norm == GeneratorNorm::Batch;
        }
        if let Some(norm) = s.given(&DISCRIMINATOR_NORM) {
            discriminator.batch_norm = norm == DiscriminatorNorm::Batch;
            discriminator.spectral = norm == DiscriminatorNorm::Spectral;
        }
        for (net, name) in [(&generator, "generator"), (&discriminator, "discriminator")] {
            if net.arch == Arch::Mlp && net.batch_norm {
                usage!(
                    "--{name}-norm batch is a setting of --arch conv and residual, and this is --arch mlp: leave it out"
                );
            }
        }
        let conditional = s.get(&CONDITIONAL)?;
        if conditional && classes < 2 {
            usage!(
                "--conditional needs images of two classes or more, found {}: put the pictures into a folder for each class, or leave it out",
                if classes == 0 { "images without classes".into() } else { format!("{classes} class") }
            );
        }
        Ok(GanSpec {
            shape,
            classes: conditional.then_some(classes),
            latent: s.get(&LATENT)? as i64,
            generator: NetSpec { activation: Activation::Relu, ..generator },
            penalties: Penalties::from_settings(s, discriminator.batch_norm, length)?,
            discriminator,
            loss: s.get(&GAN_LOSS)?,
            d_steps: s.get(&D_STEPS)?,
            d_lr: s.given(&D_LR),
            freeze_d: s.get(&FREEZE_D)?,
            ema: match s.given(&EMA_HALF_LIFE) {
                Some(images) => Some(Decay::HalfLife { images, batch: length.batch_size as f64 }),
                None => Some(s.get(&EMA)?).filter(|decay| *decay > 0.0).map(Decay::Fixed),
            },
            augment: AugmentSpec::from_settings(s)?,
        })
    }

    /// Whether the generator's images are trained on without a limit, and limited to [0,1] where they are shown and exported, as in
    /// StyleGAN2 and R3GAN (arXiv 1912.04958, 2501.05441): those of residual networks without batch normalisation, else tanh. Without
    /// normalisation, tanh saturates for images that are mostly black or white, and no gradient leads back: on MNIST, with the
    /// non-saturating loss and R1, one of three seeds had collapsed after 20 updates.
    pub(super) fn has_linear_images(&self) -> bool {
        self.generator.arch == Arch::Residual && !self.generator.batch_norm
    }

    /// Batches of a step: one for each update of the discriminator, and one for the generator's if its loss reads real images.
    pub fn batches(&self) -> u64 {
        self.d_steps + u64::from(self.loss.pairs())
    }

    /// The images of a step of `images`, as (from, count): of each update of the discriminator, then of the generator's, which
    /// may be those of the last one before it.
    pub(super) fn parts(&self, images: i64) -> Vec<(i64, i64)> {
        let batches = self.batches() as i64;
        let each = ((images + batches - 1) / batches).max(1);
        let mut parts: Vec<_> =
            (0..images).step_by(each as usize).map(|from| (from, each.min(images - from))).collect();
        if !self.loss.pairs() || parts.len() == 1 {
            parts.extend(parts.last().copied());
        }
        parts
    }
}
