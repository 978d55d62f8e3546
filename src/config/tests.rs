//! Precedence, round trips and refusals.

use std::path::Path;

use clap::ValueEnum;

use super::*;
use crate::base::usage::Usage;

fn toml(text: &str) -> Result<(Option<ModelKind>, Settings)> {
    Settings::from_toml(text, Path::new("my.toml"))
}

fn refusal(model: ModelKind, text: &str) -> String {
    let (_, given) = toml(text).unwrap();
    let e = resolve(model, &given).unwrap_err();
    assert!(e.is::<Usage>(), "{e} is a usage error");
    e.to_string()
}

#[test]
fn flags_win_over_the_file_and_the_file_over_the_preset() {
    let (_, file) = toml("preset = 'article'\nlr = 0.01\nbatch-size = 32").unwrap();
    let flags = Settings { lr: Some(0.5), ..Settings::default() };
    let config = resolve(ModelKind::Vae, &file.overlaid(&flags).unwrap()).unwrap();
    assert_eq!((config.hyper.adam.lr, config.batch_size, config.settings.latent), (0.5, 32, Some(100)));
    assert_eq!(config.settings.decoder_hidden, Some(Widths(vec![512, 12544])));
}

#[test]
fn steps_and_epochs_replace_each_other_across_layers() {
    let (_, file) = toml("steps = 7").unwrap();
    assert_eq!(resolve(ModelKind::Vae, &file).unwrap().budget, Budget::Steps(7));
    let flags = Settings { epochs: Some(2), ..Settings::default() };
    assert_eq!(resolve(ModelKind::Vae, &file.overlaid(&flags).unwrap()).unwrap().budget, Budget::Epochs(2));
}

#[test]
fn what_a_run_keeps_resolves_to_the_same_again() {
    for (model, preset) in [
        (ModelKind::Vae, Preset::Article),
        (ModelKind::Vae, Preset::PytorchVae),
        (ModelKind::Vae, Preset::ConvVae),
        (ModelKind::Gan, Preset::Article),
        (ModelKind::Gan, Preset::Dcgan),
    ] {
        let given = Settings { preset: Some(preset), seed: Some(3), ..Settings::default() };
        let text = resolve(model, &given).unwrap().to_toml().unwrap();
        let (kind, again) = toml(&format!("{text}\n[run]\nganvae = 'x'\n")).unwrap();
        assert_eq!(kind, Some(model));
        assert_eq!(resolve(model, &again).unwrap().to_toml().unwrap(), text, "{model} {preset:?}");
    }
}

#[test]
fn every_preset_belongs_to_a_model() {
    for preset in Preset::value_variants() {
        let fits = |m| resolve(m, &Settings { preset: Some(*preset), ..Settings::default() });
        let (vae, gan) = (fits(ModelKind::Vae), fits(ModelKind::Gan));
        assert!(vae.is_ok() || gan.is_ok(), "{preset:?}");
        for e in [vae, gan].into_iter().filter_map(Result::err) {
            assert!(e.is::<Usage>() && e.to_string().contains("--preset"), "{e}");
        }
    }
}

#[test]
fn an_architecture_brings_its_preset_and_may_not_contradict_one() {
    for (model, arch, preset) in [
        (ModelKind::Vae, Arch::Conv, Preset::ConvVae),
        (ModelKind::Vae, Arch::Mlp, Preset::PytorchVae),
        (ModelKind::Gan, Arch::Conv, Preset::Dcgan),
        (ModelKind::Gan, Arch::Mlp, Preset::Article),
    ] {
        let config = resolve(model, &Settings { arch: Some(arch), ..Settings::default() }).unwrap();
        assert_eq!(config.settings.preset, Some(preset));
        assert_eq!(config.settings.base_width.is_some(), arch == Arch::Conv);
    }
    let e = refusal(ModelKind::Vae, "preset = 'article'\narch = 'conv'");
    assert!(e.contains("--arch contradicts --preset article"), "{e}");
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    for (text, part) in [
        ("batch_size = 3", "did you mean 'batch-size'?"),
        ("latnet = 3", "did you mean 'latent'?"),
        ("qqqq = 3", "lists the keys"),
        ("lr = 'fast'", "lr = \"fast\""),
        ("preset = 'vae'", "preset = \"vae\""),
        ("model = 'diffusion'", "wanted \"vae\" or \"gan\""),
        ("seed = -1", "seed = -1"),
        ("lr = 1\nlr = 2", "line 2"),
        ("a b", "line 1"),
    ] {
        let e = toml(text).unwrap_err();
        assert!(e.is::<Usage>() && e.to_string().contains(part), "{text:?}: {e}");
        assert!(e.to_string().starts_with("my.toml") && !e.to_string().contains('\n'), "{e}");
    }
}

#[test]
fn values_out_of_range_name_the_flag_and_the_range() {
    use ModelKind::{Gan, Vae};
    for (model, text, flag) in [
        (Vae, "lr = 0.0", "--lr"),
        (Vae, "lr = nan", "--lr"),
        (Vae, "lr = 2.0", "--lr"),
        (Vae, "beta1 = 1.0", "--beta1"),
        (Vae, "beta2 = -0.1", "--beta2"),
        (Vae, "adam-eps = 0.0", "--adam-eps"),
        (Vae, "batch-size = 0", "--batch-size"),
        (Vae, "epochs = 0", "--epochs"),
        (Vae, "steps = 0", "--steps"),
        (Vae, "latent = 0", "--latent"),
        (Vae, "latent = 100000000", "--latent"),
        (Vae, "encoder-hidden = [0]", "--encoder-hidden"),
        (Vae, "beta = -1.0", "--beta"),
        (Vae, "kl-warmup = inf", "--kl-warmup"),
        (Vae, "log-every = 0", "--log-every"),
        (Vae, "keep = 0", "--keep"),
        (Vae, "channels = 2", "--channels"),
        (Vae, "threads = 0", "--threads"),
        (Vae, "image-size = '0x3'", "--image-size"),
        (Vae, "train-limit = 0", "--train-limit"),
        (Vae, "train-limit = 5\ntest-limit = 0", "--test-limit"),
        (Vae, "base-width = 8", "--base-width"),
        (Vae, "ema = 0.9", "--ema"),
        (Vae, "gan-loss = 'minimax'", "--gan-loss"),
        (Gan, "ema = 1.0", "--ema"),
        (Gan, "base-width = 0", "--base-width"),
        (Gan, "beta = 1.0", "--beta"),
        (Gan, "kl-warmup = 1.0", "--kl-warmup"),
        (Gan, "preset = 'conv-vae'", "--preset"),
    ] {
        let e = refusal(model, text);
        assert!(e.contains(flag), "{text:?}: {e}");
    }
}

#[test]
fn sizes_are_height_by_width() {
    assert_eq!(parse_size(Some("64x48")).unwrap(), Some((64, 48)));
    assert_eq!(parse_size(Some("32")).unwrap(), Some((32, 32)));
    assert_eq!(parse_size(None).unwrap(), None);
    assert!(parse_size(Some("64x")).is_err() && parse_size(Some("5000")).is_err());
}
