//! Precedence, round trips and refusals.

use std::path::Path;

use super::training::PRESET;
use super::*;
use crate::base::usage::Usage;
use crate::models::vae::DECODER_HIDDEN;
use crate::nets::{ARCH, Arch, BASE_WIDTH, LATENT};

fn toml(text: &str) -> Result<(Option<ModelKind>, Settings)> {
    file::parse(text, Path::new("my.toml"))
}

fn given(text: &str) -> Settings {
    toml(text).unwrap().1
}

fn refusal(model: ModelKind, text: &str) -> String {
    let e = match toml(text) {
        Err(e) => e,
        Ok((_, given)) => resolve(model, &given).unwrap_err(),
    };
    assert!(e.is::<Usage>(), "{e} is a usage error");
    e.to_string()
}

#[test]
fn flags_override_the_file_and_the_file_the_preset() {
    let file = given("preset = 'article'\nlr = 0.01\nbatch-size = 32");
    let config = resolve(ModelKind::Vae, &file.overlaid(&given("lr = 0.5"))).unwrap();
    assert_eq!((config.lr, config.batch_size, config.settings.given(&LATENT)), (0.5, 32, Some(100)));
    assert_eq!(config.settings.given(&DECODER_HIDDEN), Some(vec![512, 12544]));
}

#[test]
fn steps_and_epochs_replace_each_other_across_layers() {
    let file = given("steps = 7");
    assert_eq!(resolve(ModelKind::Vae, &file).unwrap().budget, Budget::Steps(7));
    let both = file.overlaid(&given("epochs = 2"));
    assert_eq!(resolve(ModelKind::Vae, &both).unwrap().budget, Budget::Epochs(2));
}

#[test]
fn a_stored_config_resolves_to_itself() {
    for (preset, model, _) in presets::all().unwrap() {
        let given = given(&format!("preset = '{preset}'\nseed = 3"));
        let text = resolve(model, &given).unwrap().to_toml();
        let (kind, again) = toml(&format!("{text}\n[run]\nganvae = 'x'\n")).unwrap();
        assert_eq!(kind, Some(model));
        assert_eq!(resolve(model, &again).unwrap().to_toml(), text, "{model} {preset}");
    }
}

#[test]
fn a_preset_of_the_other_model_is_refused() {
    for (preset, model) in [("conv-vae", ModelKind::Gan), ("dcgan", ModelKind::Vae), ("none", ModelKind::Vae)] {
        let e = refusal(model, &format!("preset = '{preset}'"));
        assert!(e.contains(&format!("--preset {preset}")) && e.contains("article"), "{e}");
    }
}

#[test]
fn an_architecture_selects_its_preset_and_must_not_contradict_one() {
    for (model, arch, preset) in [
        (ModelKind::Vae, Arch::Conv, "conv-vae"),
        (ModelKind::Vae, Arch::Mlp, "pytorch-vae"),
        (ModelKind::Gan, Arch::Conv, "dcgan"),
        (ModelKind::Gan, Arch::Mlp, "article"),
    ] {
        let config = resolve(model, &Settings::default().with(&ARCH, arch)).unwrap();
        assert_eq!(config.settings.given(&PRESET).as_deref(), Some(preset));
        assert_eq!(config.settings.given(&BASE_WIDTH).is_some(), arch == Arch::Conv);
    }
    let e = refusal(ModelKind::Vae, "preset = 'article'\narch = 'conv'");
    assert!(e.contains("--arch contradicts --preset article"), "{e}");
}

#[test]
fn every_default_is_valid() {
    let mut seen = 0;
    for (_, setting) in all_settings() {
        let about = setting.info();
        if let Some((text, _)) = about.default {
            assert!(setting.check(&Value::String(text.into())).is_ok(), "{}: {text}", about.name);
            seen += 1;
        }
    }
    assert!(seen > 10, "only {seen} defaults were seen");
}

#[test]
fn equal_values_in_different_notation_are_equal() {
    let run = resolve(ModelKind::Vae, &given("lr = 1e-3\nimage-size = 16")).unwrap();
    refuse_changes(&run, &given("lr = 0.001\nimage-size = '16x16'")).unwrap();
    assert!(refuse_changes(&run, &given("image-size = '16x17'")).is_err());
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    for (text, part) in [
        ("batch_size = 3", "did you mean 'batch-size'?"),
        ("latnet = 3", "did you mean 'latent'?"),
        ("qqqq = 3", "lists the keys"),
        ("lr = 'fast'", "lr = \"fast\": wanted a number above 0"),
        ("gan-loss = 'vae'", "gan-loss = \"vae\": wanted non-saturating or minimax"),
        ("model = 'diffusion'", "wanted vae or gan"),
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
        // Names the key of the file if the value is wrong, the flag if the combination is.
        let e = refusal(model, text);
        assert!(
            e.contains(flag) || e.contains(&format!("my.toml: {} = ", flag.trim_start_matches('-'))),
            "{text:?}: {e}"
        );
    }
}

#[test]
fn sizes_are_height_by_width() {
    use crate::data::IMAGE_SIZE;
    let size = |text: &str| toml(text).map(|(_, s)| s.given(&IMAGE_SIZE));
    assert_eq!(size("image-size = '64x48'").unwrap(), Some((64, 48)));
    assert_eq!(size("image-size = 32").unwrap(), Some((32, 32)));
    assert!(size("image-size = '64x'").is_err() && size("image-size = 5000").is_err());
}
