//! Build script: finds the libtorch that torch-sys uses, checks its version, compiles the shim, sets the rpath.
//!
//! Plain `cargo build` and editors need no environment variable: .cargo/config.toml points LIBTORCH at the link that
//! scripts/setup makes. A LIBTORCH of the user's own wins.

use std::path::{Path, PathBuf};

/// The libtorch that tch 0.24 binds and that the tests verify.
const WANTED: &str = "2.11.0";

/// The C++ calls into libtorch that tch does not bind.
const SHIM: &[&str] = &[
    "src/native/batch.cpp",
    "src/native/conv.cpp",
    "src/native/guard.cpp",
    "src/native/layer.cpp",
    "src/native/linear.cpp",
    "src/native/loss.cpp",
    "src/native/norm.cpp",
    "src/native/optim.cpp",
    "src/native/random.cpp",
    "src/native/rows.cpp",
    "src/native/script.cpp",
];
const HEADERS: &[&str] = &["src/native/guard.h", "src/native/layer.h", "src/native/optim.h", "src/native/rows.h"];

fn main() {
    for file in SHIM.iter().chain(HEADERS) {
        println!("cargo:rerun-if-changed={file}");
    }
    println!("cargo:rerun-if-changed=src/native/build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_BYPASS_VERSION_CHECK");
    let Some(root) = std::env::var_os("LIBTORCH").map(PathBuf::from) else {
        fail(
            "LIBTORCH is not set: run scripts/setup, or set it to the folder of a libtorch 2.11.0 (the one that holds lib/ and include/)",
        );
    };
    // Where the version stands: 2.9 and later, then earlier ones (which are refused by name).
    let headers = ["include/torch/headeronly/version.h", "include/torch/csrc/api/include/torch/version.h"];
    let Some(header) = headers.iter().map(|h| root.join(h)).find(|h| h.is_file()) else {
        fail(&format!(
            "no libtorch at {} (no {} in it): run scripts/setup, or set LIBTORCH to the folder of a libtorch {WANTED}",
            root.display(),
            headers[0]
        ));
    };
    // The venv behind the link may be replaced: the rpath follows it.
    println!("cargo:rerun-if-changed={}", header.display());
    let found = version_in(&header);
    if found != WANTED && std::env::var_os("LIBTORCH_BYPASS_VERSION_CHECK").is_none() {
        fail(&format!(
            "libtorch at {} is version {found}, ganvae needs {WANTED}: point LIBTORCH at that version, or unset it and run scripts/setup",
            root.display()
        ));
    }
    let lib = match std::env::var_os("DEP_TCH_LIBTORCH_LIB") {
        Some(lib) => PathBuf::from(lib),
        None => root.join("lib"),
    };
    // The real folder, so that the binary still starts when the link under .venv has been replaced by another.
    let lib = lib.canonicalize().unwrap_or(lib);
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(false) // libtorch's own headers are full of them
        .opt_level(3)
        .flag("-fopenmp")
        // Square roots, comparisons and rounding in vectors: nobody reads errno or the floating-point exceptions.
        .flag("-fno-math-errno")
        .flag("-fno-trapping-math")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .files(SHIM)
        .compile("ganvae_shim");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    // libtorch brings its own libgomp, which the rpath puts first: one OpenMP in the process.
    println!("cargo:rustc-link-lib=gomp");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rustc-env=GANVAE_LIBTORCH_LIB={}", lib.display());
    println!("cargo:rustc-env=GANVAE_LIBTORCH_VERSION={found}");
}

/// `MAJOR.MINOR.PATCH` from libtorch's version header; what is missing there shows as `?`.
fn version_in(header: &Path) -> String {
    let text = std::fs::read_to_string(header).unwrap_or_default();
    let part = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(&format!("#define TORCH_VERSION_{name} ")))
            .map_or("?", str::trim)
    };
    format!("{}.{}.{}", part("MAJOR"), part("MINOR"), part("PATCH"))
}

fn fail(message: &str) -> ! {
    println!("cargo:warning={message}");
    eprintln!("error: {message}");
    std::process::exit(1);
}
