//! A program that depends on ganvae by path, in a fresh folder, made as the README says: it builds, runs, trains and samples.
//!
//! Ignored by default: cargo compiles ganvae and every crate below it once more for the other program, minutes on two cores.
//! `cargo test --release --test library -- --ignored` runs it.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use common::{say, text};

/// The blocks of code in a language in the README's section on libraries.
fn blocks<'a>(section: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    section.split(&fence).skip(1).map(|block| block.split("```").next().unwrap()).collect()
}

fn good(command: &mut Command) -> Output {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", text(&out.stderr));
    out
}

#[test]
#[ignore = "compiles ganvae and all that it depends on for another program: minutes"]
fn a_program_that_depends_on_ganvae_builds_and_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let section = readme.split("**As a library.**").nth(1).unwrap().split("\n**").next().unwrap();
    let ([manifest], [build, program]) = (&blocks(section, "toml")[..], &blocks(section, "rust")[..]) else {
        panic!("wanted a manifest, a build script and a program: {section}")
    };
    assert!(manifest.contains("path = \"../ganvae\"") && section.contains("LIBTORCH=../ganvae/.venv/libtorch"));
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    fs::create_dir(d.join("src")).unwrap();
    let manifest = manifest.replace("../ganvae", root.to_str().unwrap());
    fs::write(d.join("Cargo.toml"), format!("[package]\nname = \"mine\"\nedition = \"2024\"\n\n{manifest}")).unwrap();
    fs::write(d.join("build.rs"), build).unwrap();
    fs::write(d.join("src/main.rs"), program).unwrap();
    // The versions that the other tests use; without it cargo takes the newest ones that fit.
    fs::copy(root.join("Cargo.lock"), d.join("Cargo.lock")).unwrap();
    let began = Instant::now();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--quiet", "--target-dir", "target"]).current_dir(d);
    good(cargo.env("LIBTORCH", root.join(".venv/libtorch")).env_remove("LD_LIBRARY_PATH"));
    let built = began.elapsed().as_secs();
    // Without a library path: the rpath is in the program.
    let mut mine = Command::new(d.join("target/release/mine"));
    let out = good(mine.current_dir(d).env_remove("LD_LIBRARY_PATH").env_remove("LIBTORCH"));
    say(&format!("built in {built} s, trained and sampled in {} s", began.elapsed().as_secs() - built));
    assert_eq!(text(&out.stdout).trim(), "[64, 1, 28, 28]");
    assert!(d.join("samples.png").is_file() && d.join("runs/0001-vae-digits/export/decoder.pt").is_file());
}
