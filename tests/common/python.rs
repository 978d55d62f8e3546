//! Exports in Python: where it is, its scripts, and what they compare with.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use ganvae::base::weights_file;
use ganvae::export::example;
use ganvae::nets::graph::Graph;

/// Batch sizes of the fixed inputs.
const BATCHES: [i64; 3] = [1, 5, 64];

pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Python with torch, onnx and onnxruntime; none, said aloud, where there is not.
pub fn python() -> Option<PathBuf> {
    having("import torch, onnx, onnxruntime, safetensors")
}

/// Any Python, for its standard library; none, said aloud, where there is not.
pub fn stdlib() -> Option<PathBuf> {
    having("")
}

/// Python with NumPy; none, said aloud, where there is not.
pub fn numpy() -> Option<PathBuf> {
    having("import numpy")
}

/// Python with the reference implementations of scores; none, said aloud, where there is not.
pub fn scores() -> Option<PathBuf> {
    having("import torch_fidelity, prdc, scipy, safetensors")
}

fn having(imports: &str) -> Option<PathBuf> {
    let ours = root().join(".venv/bin/python");
    let python = if ours.exists() { ours } else { "python3".into() };
    let found = Command::new(&python).args(["-c", imports]).output();
    if found.as_ref().is_ok_and(|o| o.status.success()) {
        return Some(python);
    }
    super::say(&format!("SKIPPED: no Python ({imports}) (scripts/setup --full installs what is missing)"));
    None
}

/// Runs a program in a folder.
pub fn run(python: &Path, program: &str, dir: &Path) {
    let out = Command::new(python).args(["-c", program]).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

pub fn run_script(python: &Path, script: &str, command: &str, folders: &[PathBuf]) {
    let mut run = Command::new(python);
    run.arg(root().join("scripts").join(script)).args((!command.is_empty()).then_some(command)).args(folders);
    let out = run.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{script} {command}: {text}");
    println!("{text}");
}

/// Writes inputs and the networks' outputs as `expected.safetensors` into a folder of exports, for the scripts to compare with.
pub fn write_expected(graphs: &[&Graph], folder: &Path) -> Result<()> {
    let mut all = Vec::new();
    for graph in graphs {
        for batch in BATCHES {
            let inputs = graph.inputs().iter().map(|port| example(port, batch)).collect::<Result<Vec<_>>>()?;
            let outputs = graph.evaluate(&inputs.iter().collect::<Vec<_>>())?;
            let ports = graph.inputs().iter().chain(graph.outputs().iter().map(|(port, _)| port));
            let named = |port: &ganvae::nets::graph::Port| format!("{}.{batch}.{}", graph.name(), port.name);
            all.extend(ports.map(named).zip(inputs.into_iter().chain(outputs)));
        }
    }
    weights_file::write(&folder.join("expected.safetensors"), all)
}
