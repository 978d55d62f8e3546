//! Holds the layering that src/lib.rs draws, and what a training step may do. Every source file is found by walking src/.

use std::fs;
use std::path::{Path, PathBuf};

/// The folders of src/ from the bottom up: a file imports from its own folder and from those before it.
const FOLDERS: &[&str] = &[
    "base", "native", "pictures", "nets", "export", "models", "data", "metrics", "config", "run", "train", "commands",
];
/// What may stand in src/ beside them.
const OTHERS: &[&str] = &["assets", "lib.rs", "main.rs"];

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

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file below src/, with the folder of src/ that it is in (or its own name).
fn all_sources() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    sources(&src(), &mut files);
    let first = |f: &Path| f.strip_prefix(src()).unwrap().components().next().unwrap().as_os_str().to_owned();
    files.into_iter().map(|f| (f.clone(), first(&f).to_str().unwrap().to_owned())).collect()
}

#[test]
fn src_lists_the_folders_and_nothing_else() {
    let mut found: Vec<String> =
        fs::read_dir(src()).unwrap().map(|e| e.unwrap().file_name().to_str().unwrap().to_owned()).collect();
    let mut wanted: Vec<&str> = FOLDERS.iter().chain(OTHERS).copied().collect();
    found.sort();
    wanted.sort_unstable();
    assert_eq!(found, wanted);
    assert!(found.len() <= 15, "a listing that a newcomer reads has 15 entries at the most");
}

#[test]
fn imports_point_downwards_only() {
    let height = |name: &str| FOLDERS.iter().position(|f| *f == name);
    let mut seen = 0;
    for (file, folder) in all_sources() {
        if ["lib.rs", "main.rs"].contains(&folder.as_str()) || file.ends_with("build.rs") || file.ends_with("tests.rs")
        {
            continue;
        }
        let own = height(&folder).unwrap_or_else(|| panic!("{} is in no known folder", file.display()));
        for import in imports(&fs::read_to_string(&file).unwrap()) {
            seen += 1;
            let below = height(&import).is_some_and(|h| h <= own);
            assert!(below, "{} imports {import}, which is not below {folder}", file.display());
        }
    }
    assert!(seen > 200, "only {seen} imports were seen: the reader of sources is broken");
}

#[test]
fn every_source_file_opens_with_its_role() {
    for (file, _) in all_sources() {
        assert!(fs::read_to_string(&file).unwrap().starts_with("//! "), "{} has no //! line", file.display());
    }
}

/// Calls that wait for the device: each costs a CUDA step its pipeline.
const READS: &[&str] =
    &["double_value(", "int64_value(", "::try_from(&", "copy_data(", "f_equal(", "nonzero(", "is_nonzero("];

/// A step never waits for the device; elsewhere each read says why it is there.
#[test]
fn a_step_reads_nothing_back() {
    let mut marked = 0;
    for (file, folder) in all_sources().iter().filter(|(f, _)| !f.ends_with("tests.rs")) {
        let text = fs::read_to_string(file).unwrap();
        let lines: Vec<&str> = text.lines().take_while(|l| !l.contains("#[cfg(test)]")).collect();
        let relative = file.strip_prefix(src()).unwrap();
        let in_step = ["models", "nets", "native"].contains(&folder.as_str()) && !file.ends_with("tuning.rs");
        // Pixels on their way to a file, scores, and numbers that never were on a device, are no part of a step.
        let exempt =
            folder == "data" || folder == "metrics" || file.ends_with("grid.rs") || file.ends_with("checkpoint.rs");
        for (i, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap();
            if exempt || !READS.iter().any(|r| code.contains(r)) {
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
    let src = src();
    let mut checked = 0;
    let mut check = |what: &str, code: &str| {
        for line in code.lines().take_while(|l| !l.contains("#[cfg(test)]")) {
            let line = line.split("//").next().unwrap();
            assert!(!MAKES.iter().any(|m| line.contains(m)), "{what}: {line}");
            checked += 1;
        }
    };
    let in_step = |file: &Path| {
        let name = file.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        let host_only = ["models/noise.rs", "models/schedule.rs", "models/tuning.rs"];
        let in_step = name.starts_with("models/") || name.starts_with("nets/");
        in_step && !host_only.contains(&name.as_str()) && !name.ends_with("tests.rs")
    };
    for (file, _) in all_sources().iter().filter(|(file, _)| in_step(file)) {
        check(&file.display().to_string(), &fs::read_to_string(file).unwrap());
    }
    let stepper = fs::read_to_string(src.join("train/stepper.rs")).unwrap();
    let (_, update) = stepper.split_once("    fn update(&self").unwrap();
    check("stepper.rs, update", update);
    assert!(!update.contains("position"), "a captured step is told no number of the host's");
    assert!(checked > 500, "only {checked} lines were read: the reader of sources is broken");
}
