//! Holds the layering that src/lib.rs draws: each file imports only from the layers below its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Height of each module: imports must point to a smaller number.
const HEIGHTS: &[(&str, u32)] = &[
    ("main", 100),
    ("commands", 90),
    ("cli", 80),
    ("generate", 75),
    ("walk", 75),
    ("latents", 75),
    ("doctor", 75),
    ("trained", 72),
    ("train", 70),
    ("bench", 70),
    ("selfcheck", 69),
    ("stepper", 67),
    ("setup", 65),
    ("run", 60),
    ("checkpoint", 60),
    ("export", 60),
    ("init", 62),
    ("output", 55),
    ("data", 50),
    ("device", 50),
    ("config", 40),
    ("tune", 35),
    ("vae", 30),
    ("gan", 30),
    ("optim", 20),
    ("model", 15),
    ("nets", 10),
    ("timelapse", 3),
    ("film", 2),
    ("npy", 2),
    ("grid", 1),
    ("native", 1),
    ("clock", 0),
    ("seed", 0),
    ("weights", 0),
    ("objectives", 0),
    ("hash", 0),
    ("health", 0),
    ("part", 0),
    ("plot", 0),
    ("progress", 0),
    ("signals", 0),
];

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Modules of the crate that a source text names: `crate::x`, and in main `ganvae::x` and `ganvae::{x, y}`.
fn imports(text: &str) -> Vec<String> {
    let code: String = text
        .lines()
        .take_while(|l| !l.contains("#[cfg(test)]"))
        .filter(|l| !l.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut found = Vec::new();
    for root in ["crate::", "ganvae::"] {
        for (at, _) in code.match_indices(root) {
            let rest = &code[at + root.len()..];
            let names: Vec<&str> = match rest.strip_prefix('{') {
                Some(list) => list.split('}').next().unwrap().split(',').collect(),
                None => vec![rest],
            };
            for name in names {
                let word: String = name.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                found.push(word);
            }
        }
    }
    found
}

#[test]
fn imports_point_downwards_only() {
    let heights: BTreeMap<_, _> = HEIGHTS.iter().copied().collect();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut seen = 0;
    for file in files {
        let relative = file.strip_prefix(&src).unwrap();
        let module = relative.components().next().unwrap().as_os_str().to_string_lossy();
        let module = module.trim_end_matches(".rs");
        if module == "lib" || file.ends_with("build.rs") || file.ends_with("tests.rs") {
            continue;
        }
        let own = *heights.get(module).unwrap_or_else(|| panic!("{module} has no height in {}", file!()));
        for import in imports(&fs::read_to_string(&file).unwrap()) {
            seen += 1;
            if import == module {
                continue;
            }
            let other = heights.get(import.as_str());
            assert!(other.is_some_and(|h| *h < own), "{} imports {import}, which is not below it", relative.display());
        }
    }
    assert!(seen > 40, "only {seen} imports were seen: the reader of sources is broken");
}

#[test]
fn every_source_file_opens_with_its_role() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    for file in files {
        assert!(fs::read_to_string(&file).unwrap().starts_with("//! "), "{} has no //! line", file.display());
    }
}

/// Calls that wait for the device: each costs a CUDA step its pipeline.
const READS: &[&str] =
    &["double_value(", "int64_value(", "::try_from(&", "copy_data(", "f_equal(", "nonzero(", "is_nonzero("];

/// A step never waits for the device; elsewhere each read says why it is there.
#[test]
fn a_step_reads_nothing_back() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut marked = 0;
    for file in files.iter().filter(|f| !f.ends_with("tests.rs")) {
        let text = fs::read_to_string(file).unwrap();
        let lines: Vec<&str> = text.lines().take_while(|l| !l.contains("#[cfg(test)]")).collect();
        let relative = file.strip_prefix(&src).unwrap();
        let module = relative.components().next().unwrap().as_os_str().to_string_lossy();
        let in_step =
            ["vae.rs", "gan.rs", "optim.rs", "objectives.rs", "model.rs", "nets", "native"].contains(&&*module);
        for (i, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap();
            // Pixels on their way to a file, and numbers that never were on a device, are no part of training.
            if !READS.iter().any(|r| code.contains(r)) || ["grid.rs", "data", "checkpoint.rs"].contains(&&*module) {
                continue;
            }
            assert!(!in_step, "{}:{} waits for the device within a step: {line}", relative.display(), i + 1);
            let near = lines[i.saturating_sub(3)..=i].iter().any(|l| l.contains("sync:"));
            assert!(
                near,
                "{}:{} waits for the device and has no `// sync:` to say why: {line}",
                relative.display(),
                i + 1
            );
            marked += 1;
        }
    }
    assert!(marked >= 3, "only {marked} reads were seen: the reader of sources is broken");
}

/// Ways to make a tensor of the host's numbers: captured, it would be the same at every replay.
const MAKES: &[&str] =
    &["from_slice(", "from_data_size(", "Tensor::from(", "to_device(", "manual_seed(", "native::randn("];

/// What a step that may be captured runs takes no number of the host's that differs from step to step: in the models not at all, in
/// the stepper not where it may be captured.
#[test]
fn a_captured_step_makes_nothing_of_the_hosts_numbers() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut checked = 0;
    let mut check = |what: &str, code: &str| {
        for line in code.lines().take_while(|l| !l.contains("#[cfg(test)]")) {
            let line = line.split("//").next().unwrap();
            assert!(!MAKES.iter().any(|m| line.contains(m)), "{what}: {line}");
            checked += 1;
        }
    };
    for file in ["vae.rs", "gan.rs", "optim.rs", "objectives.rs", "nets/mod.rs", "nets/forms.rs"] {
        check(file, &fs::read_to_string(src.join(file)).unwrap());
    }
    let stepper = fs::read_to_string(src.join("stepper.rs")).unwrap();
    let (_, update) = stepper.split_once("    fn update(&self").unwrap();
    check("stepper.rs, update", update);
    // The clock of the host's own form, and the same numbers in the other, are told apart by the type `Moment` alone.
    let (_, device) = stepper.split_once("StepCx::device(").unwrap();
    assert!(!device.split(';').next().unwrap().contains("at."), "a captured step is told no number of the host's");
    assert!(checked > 500, "only {checked} lines were read: the reader of sources is broken");
}
