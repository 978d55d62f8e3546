//! Precedence, round trips and refusals.

use std::path::Path;

use super::training::PRESET;
use super::*;
use crate::base::shape::Shape;
use crate::base::usage::Usage;
use crate::models::losses::penalty::{PENALTY_EVERY, R1, R2};
use crate::models::optimizer::LR;
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
    assert_eq!(
        (config.settings.given(&LR), config.batch_size, config.settings.given(&LATENT)),
        (Some(0.5), 32, Some(100))
    );
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
        (ModelKind::Vae, Arch::Residual, "residual-vae"),
        (ModelKind::Gan, Arch::Conv, "dcgan"),
        (ModelKind::Gan, Arch::Mlp, "article"),
        (ModelKind::Gan, Arch::Residual, "small"),
    ] {
        let config = resolve(model, &Settings::default().with(&ARCH, arch)).unwrap();
        assert_eq!(config.settings.given(&PRESET).as_deref(), Some(preset));
        assert_eq!(
            config.settings.given(&BASE_WIDTH).is_some(),
            ["conv-vae", "dcgan", "residual-vae"].contains(&preset)
        );
    }
    let e = refusal(ModelKind::Vae, "preset = 'article'\narch = 'conv'");
    assert!(e.contains("--arch contradicts --preset article"), "{e}");
}

/// What a preset says of a penalty goes with the penalty; what is asked for is refused without it.
#[test]
fn a_presets_penalties_are_switched_off_by_their_weights() {
    let small = Settings::default().with(&PRESET, "small".to_owned());
    let names = |given: &Settings| resolve(ModelKind::Gan, given).map(|config| config.settings);
    let off = small.clone().with(&R1, 0.0).with(&R2, 0.0);
    let s = names(&off).unwrap();
    let has = |s: &Settings| ["r1-end", "r2-end", "penalty-every"].map(|name| s.value(name).is_some());
    assert_eq!((has(&names(&small).unwrap()), has(&s)), ([true; 3], [false; 3]));
    assert_eq!(has(&names(&small.clone().with(&R2, 0.0)).unwrap()), [true, false, true]);
    let e = names(&off.with(&PENALTY_EVERY, 4)).unwrap_err().to_string();
    assert!(e.starts_with("--penalty-every 4 has no penalty to delay"), "{e}");
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
        ("gan-loss = 'vae'", "gan-loss = \"vae\": wanted non-saturating or minimax or least-squares or hinge or"),
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
        (Vae, "binarize = 'fixed'\nlikelihood = 'logistic'", "--binarize"),
        (Vae, "sigma = 'learned'", "--sigma"),
        (Vae, "likelihood = 'gaussian'\nsigma = 0.001", "--sigma"),
        (Vae, "likelihood = 'gaussian'\nmicro-batch = 8", "--sigma optimal"),
        (Vae, "tc = 6.0\nmicro-batch = 8", "--micro-batch"),
        (Vae, "tc = 6.0\nmmd = 1.0", "--tc and --mmd both"),
        (Vae, "iwae = true\nfree-bits = 0.1", "--iwae and --free-bits both"),
        (Vae, "kl-cycle = 2.0", "--kl-warmup"),
        (Vae, "kl-warmup = 3.0\nkl-cycle = 2.0", "--kl-cycle 2"),
        (Vae, "z-samples = 0", "--z-samples"),
        (Vae, "capacity = 0.0", "--capacity"),
        (Gan, "ema = 1.0", "--ema"),
        (Gan, "micro-batch-norm = true", "--micro-batch-norm"),
        (Vae, "micro-batch = 0", "--micro-batch"),
        (Gan, "freeze-d = 2", "--init-from"),
        (Vae, "schedule = 'linear'", "--schedule"),
        (Vae, "r1-end = 1.0", "--r1-end"),
        (Gan, "r2-end = 1.0", "--r2-end"),
        (Gan, "lr-end = -1.0", "--lr-end"),
        (Gan, "beta2-end = 1.0", "--beta2-end"),
        (Gan, "ema = 0.9\nema-half-life = 10000", "ema and ema-half-life set the same thing"),
        (Gan, "ema-half-life = 0", "--ema-half-life"),
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

/// The long page of `train`, each option's entry in one line of words, by name.
fn long_help() -> BTreeMap<String, String> {
    use clap::Args;
    let mut page = flags::Flags::<true>::augment_args(clap::Command::new("train")).term_width(10_000);
    let page = page.render_long_help().to_string();
    let entries = page.split("\n      --").skip(1);
    let entry = |text: &str| {
        (text.split([' ', '[', '\n']).next().unwrap().to_owned(), text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    entries.map(entry).collect()
}

#[test]
fn the_help_shows_unit_range_and_the_default_of_every_preset() {
    let (help, presets) = (long_help(), presets::all().unwrap());
    let mut differing = 0;
    for (_, setting) in all_settings() {
        let (info, entry) = (setting.info(), &help[setting.info().name]);
        assert!(entry.contains(&format!("<{}>", info.value_name)), "{entry}");
        assert!(entry.contains(&setting.range()), "{entry}");
        if let Some((default, _)) = info.default {
            assert!(entry.contains(&format!("[default: {default} (")), "{entry}");
        }
        for (preset, model, settings) in presets.iter().filter(|_| info.name != PRESET.name()) {
            let Some(value) = settings.value(info.name) else { continue };
            // As it would be given on the command line.
            let text = value.to_string().replace(['"', '[', ']', ' '], "");
            let text = if text.is_empty() { "none" } else { &text };
            if info.default.is_some_and(|(default, _)| default == text) {
                continue;
            }
            differing += 1;
            let of_model = format!("{preset} {} {text}", model.to_string().to_uppercase());
            let found = [format!("{preset} {text}"), of_model]
                .iter()
                .any(|want| [";", "]"].iter().any(|end| entry.contains(&format!("{want}{end}"))));
            assert!(found, "{preset} has {text}: {entry}");
        }
        // A number has a unit, named by its placeholder or by its text, or is known to have none.
        let pure = ["NUMBER", "DECAY", "NORM", "TIMES", "1|3"].contains(&info.value_name);
        let numeric = !setting.range().is_empty();
        let units = [
            "dimensions",
            "channels",
            "units",
            "epochs",
            "steps",
            "images",
            "checkpoints",
            "threads",
            "pixels",
            "scores",
            "updates",
            "blocks",
            "nats",
        ];
        let shown = format!("{} {}", entry.split('[').next().unwrap(), setting.range()).to_lowercase();
        assert!(!numeric || pure || units.iter().any(|unit| shown.contains(unit)), "no unit: {entry}");
    }
    assert!(differing > 20, "only {differing} values of presets were seen");
    assert!(
        help["lr"].contains("pytorch-vae 0.001; conv-vae 0.001; residual-vae 0.001; dcgan 0.0002; small 0.001; r3gan 0.0002; sngan 0.0002; wgan-gp 0.0002; article 0.0001]"),
        "{}",
        help["lr"]
    );
    assert!(help["activation"].contains("article VAE relu; article GAN leaky-relu]"), "{}", help["activation"]);
}

/// What likelihood the images choose, through [`resolve`]: what is given, or stated by a preset, stays.
#[test]
fn a_vae_takes_the_likelihood_that_suits_the_pictures() {
    let dir = tempfile::tempdir().unwrap();
    for (name, header, pixels) in [
        ("colour", "P6", vec![200u8; 3 * 81]),
        ("grey", "P5", vec![128; 81]),
        ("ink", "P5", [vec![0; 70], vec![255; 11]].concat()),
    ] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        for i in 0..12 {
            let bytes = [format!("{header} 9 9 255 ").as_bytes(), &pixels].concat();
            std::fs::write(dir.path().join(name).join(format!("{i}.pnm")), bytes).unwrap();
        }
    }
    let of = |name: &str, text: &str| {
        let data = dir.path().join(name);
        let given = given(&format!("{text}\ndata = '{}'\ncache = 'off'\ndevice = 'cpu'", data.display()));
        resolve(ModelKind::Vae, &given).unwrap().settings.given(&LIKELIHOOD).unwrap()
    };
    use LikelihoodName::{Bernoulli, Gaussian, Logistic};
    assert_eq!([of("colour", ""), of("grey", ""), of("ink", "")], [Gaussian, Gaussian, Bernoulli]);
    assert_eq!(of("colour", "preset = 'pytorch-vae'"), Bernoulli);
    assert_eq!(of("ink", "likelihood = 'logistic'"), Logistic);
    assert_eq!([of("ink", "sigma = 'learned'"), of("colour", "binarize = 'fixed'")], [Gaussian, Bernoulli]);
}

/// What presets the images choose, through [`resolve`]: pictures only, and what is given stays.
#[test]
fn a_gan_of_pictures_takes_the_preset_that_suits_them() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..12u8 {
        let file = dir.path().join(format!("{i}.pgm"));
        std::fs::write(file, [b"P5 9 9 255 ".as_slice(), &[20 * i; 81]].concat()).unwrap();
    }
    let of_pictures = |text: &str| {
        let given = given(&format!("{text}\ndata = '{}'\ncache = 'off'\ndevice = 'cpu'", dir.path().display()));
        let config = resolve(ModelKind::Gan, &given).unwrap();
        (config.preset(), config)
    };
    let (name, config) = of_pictures("");
    assert_eq!((name.as_str(), config.budget), ("small", Budget::Steps(20_000)));
    let (name, config) = of_pictures("preset = 'auto'\nepochs = 3\nlr = 0.5");
    assert_eq!((name.as_str(), config.budget, config.settings.given(&LR)), ("small", Budget::Epochs(3), Some(0.5)));
    assert_eq!(of_pictures("arch = 'conv'").0, "dcgan");
    assert_eq!(of_pictures("preset = 'sngan'").0, "sngan");
    let grey = |count, side, cpu| presets::for_images(count, Shape { channels: 1, height: side, width: side }, cpu).0;
    assert_eq!([grey(60_000, 28, true), grey(60_000, 64, true), grey(60_000, 64, false)], ["dcgan", "small", "r3gan"]);
    assert_eq!([grey(9_999, 28, true), grey(9_999, 28, false)], ["small", "small"]);
}
