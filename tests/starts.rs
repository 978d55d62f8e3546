//! Every preset, however its run was started, goes on from another folder and after its own folder was moved.

mod common;

use std::fs;
use std::path::Path;

use common::{good, text};
use ganvae::config::presets;

/// The flags that make a preset's networks small.
const SMALL: &str = "--base-width 4 --max-width 8 --generator-widths 8 --discriminator-widths 8 --encoder-hidden 8 --decoder-hidden 8 \
     --generator-hidden 8 --discriminator-hidden 8 --schedule constant";

/// How a run is started in the folder `here`, whose parent has the pictures: its flags without those of the preset.
/// `$D` is the parent's path.
const STARTS: &[(&str, &str)] = &[
    ("flags", "$PRESET --data ../pictures --data-dir sets --out flags"),
    ("no-paths", "$PRESET --train-limit 6 --test-limit 2 --image-size 8 --data ../pictures"),
    ("config-file", "--config my.toml --data ../pictures --out config-file"),
    ("config-of-a-run", "--config flags/config.toml --seed 3 --out $D/here/config-of-a-run"),
    ("relative-weights", "$PRESET --data ../pictures --init-from flags --out ./relative-weights"),
    ("absolute-weights", "$PRESET --data $D/pictures --init-from $D/here/flags/export --out $D/here/absolute-weights"),
];

fn line(dir: &Path, line: &str) -> String {
    text(&good(dir, &line.split_whitespace().collect::<Vec<_>>()).stdout)
}

/// The settings that a run keeps, without its length.
fn kept(run: &Path) -> String {
    let config = fs::read_to_string(run.join("config.toml")).unwrap();
    config.lines().filter(|line| !line.starts_with("steps = ")).collect::<Vec<_>>().join("\n")
}

fn each_start(preset: &str, settings: &str, model: &str) {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for folder in ["here", "elsewhere", "pictures"] {
        fs::create_dir(d.join(folder)).unwrap();
    }
    for i in 0..8u8 {
        let picture = image::GrayImage::from_pixel(8, 8, image::Luma([30 * i]));
        picture.save(d.join(format!("pictures/{i}.png"))).unwrap();
    }
    let (here, elsewhere) = (d.join("here"), d.join("elsewhere"));
    // Of the flags that make networks small, those that the preset has.
    let flags = SMALL.split("--").skip(1).map(|flag| flag.split_once(' ').unwrap());
    let flags = flags.filter(|(key, _)| settings.contains(&format!("{key} = ")));
    let flags: String = flags.map(|(key, value)| format!("--{key} {value} ")).collect();
    let preset = format!("{model} --preset {preset} {flags} --batch-size 4 --device cpu --threads 1");
    let full = |text: &str| text.replace("$PRESET", &preset).replace("$D", d.to_str().unwrap());
    fs::write(here.join("my.toml"), line(&here, &full("train $PRESET --print-config"))).unwrap();
    for (name, start) in STARTS {
        line(&here, &full(&format!("train {start} --steps 1")));
        let run = if *name == "no-paths" { here.join(format!("runs/0001-{model}-pictures")) } else { here.join(name) };
        let before = kept(&run);
        if let Some((flags, _)) = start.split_once("--out").filter(|(flags, _)| flags.contains("--init-from")) {
            // The same flags again are no change.
            line(&here, &full(&format!("train {flags} --resume {name} --steps 2")));
        }
        let moved = d.join("elsewhere").join(name);
        fs::rename(&run, &moved).unwrap();
        line(&elsewhere, &format!("train --resume {name} --steps 3"));
        assert_eq!(kept(&moved), before, "{preset}: {name}");
        assert_eq!(fs::read_to_string(moved.join("checkpoints/latest")).unwrap(), "step-00000003", "{preset}: {name}");
        if *name == "flags" {
            // The next ones begin with it.
            fs::rename(&moved, &run).unwrap();
        }
    }
}

#[test]
fn every_preset_goes_on_after_every_kind_of_start() {
    let presets = presets::all().unwrap();
    assert!(presets.len() >= 5);
    std::thread::scope(|threads| {
        for (name, model, settings) in &presets {
            let settings: String = settings.iter().map(|(info, value)| format!("{} = {value}\n", info.name)).collect();
            threads.spawn(move || each_start(name, &settings, &model.to_string()));
        }
    });
}
