//! Networks and hyper-parameters that belong together (README, "presets").

use anyhow::Result;
use clap::ValueEnum;

use super::{CudaGraph, ModelKind, OnDivergence, Preset, Settings, Widths};
use crate::base::usage::usage;
use crate::models::losses::adversarial::GanLoss;
use crate::nets::{Activation, Arch};

fn widths(list: &[i64]) -> Option<Widths> {
    Some(Widths(list.to_vec()))
}

/// The settings of a preset; what it leaves out has a default of the model's kind.
pub fn preset(model: ModelKind, preset: Preset) -> Result<Settings> {
    let common = Settings {
        preset: Some(preset),
        epochs: Some(10),
        batch_size: Some(128),
        beta1: Some(0.9),
        beta2: Some(0.999),
        adam_eps: Some(1e-8),
        weight_decay: Some(0.0),
        clip_norm: Some(0.0),
        deterministic: Some(false),
        seed: Some(0),
        device: Some("auto".into()),
        cuda_graph: Some(CudaGraph::Auto),
        data: Some("digits".into()),
        log_every: Some(50),
        sample_every: Some(1),
        eval_every: Some(1),
        keep: Some(3),
        on_divergence: Some(OnDivergence::Stop),
        rollbacks: Some(3),
        ..Settings::default()
    };
    let common = match model {
        ModelKind::Vae => {
            Settings { activation: Some(Activation::Relu), beta: Some(1.0), kl_warmup: Some(0.0), ..common }
        }
        ModelKind::Gan => Settings {
            activation: Some(Activation::LeakyRelu),
            gan_loss: Some(GanLoss::NonSaturating),
            ema: Some(0.0),
            ..common
        },
    };
    Ok(match (model, preset) {
        // The article, section 4, its output layer mended (see the README's table).
        (ModelKind::Vae, Preset::Article) => Settings {
            arch: Some(Arch::Mlp),
            latent: Some(100),
            encoder_hidden: widths(&[512]),
            decoder_hidden: widths(&[512, 12544]),
            lr: Some(1e-4),
            ..common
        },
        (ModelKind::Gan, Preset::Article) => Settings {
            arch: Some(Arch::Mlp),
            latent: Some(100),
            generator_hidden: widths(&[256, 512, 12544]),
            discriminator_hidden: widths(&[512, 256]),
            lr: Some(1e-4),
            ..common
        },
        // pytorch/examples, vae/main.py.
        (ModelKind::Vae, Preset::PytorchVae) => Settings {
            arch: Some(Arch::Mlp),
            latent: Some(20),
            encoder_hidden: widths(&[400]),
            decoder_hidden: widths(&[400]),
            lr: Some(1e-3),
            ..common
        },
        (ModelKind::Vae, Preset::ConvVae) => Settings {
            arch: Some(Arch::Conv),
            latent: Some(64),
            encoder_hidden: widths(&[256]),
            decoder_hidden: widths(&[256]),
            base_width: Some(32),
            lr: Some(1e-3),
            ..common
        },
        // Radford et al. 2016, arXiv 1511.06434, section 3: Adam 2e-4 with a first moment of 0.5. Differs: pictures show a
        // moving average over about 200 steps (Yazici et al. 2019, arXiv 1806.04498), which training itself never sees.
        (ModelKind::Gan, Preset::Dcgan) => Settings {
            arch: Some(Arch::Conv),
            latent: Some(100),
            generator_hidden: widths(&[]),
            discriminator_hidden: widths(&[]),
            base_width: Some(64),
            lr: Some(2e-4),
            beta1: Some(0.5),
            ema: Some(0.995),
            ..common
        },
        (ModelKind::Gan, Preset::PytorchVae | Preset::ConvVae) => {
            usage!("--preset {} is a VAE's: use `train vae`, or a GAN's preset (article, dcgan)", name(preset))
        }
        (ModelKind::Vae, Preset::Dcgan) => {
            usage!("--preset dcgan is a GAN's: use `train gan`, or a VAE's preset (article, pytorch-vae, conv-vae)")
        }
    })
}

/// The preset when none is named.
pub fn default(model: ModelKind, arch: Option<Arch>) -> Preset {
    match (model, arch) {
        (ModelKind::Vae, None | Some(Arch::Mlp)) => Preset::PytorchVae,
        (ModelKind::Vae, Some(Arch::Conv)) => Preset::ConvVae,
        (ModelKind::Gan, None | Some(Arch::Conv)) => Preset::Dcgan,
        (ModelKind::Gan, Some(Arch::Mlp)) => Preset::Article,
    }
}

/// How a value of an enum is written on the command line.
pub fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
}
