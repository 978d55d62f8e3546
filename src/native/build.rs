//! Build script: finds the libtorch that torch-sys uses, checks its version, compiles the shim, sets the rpath; where CUDA's
//! headers are, also the shim's CUDA half, a shared library that the binary carries as bytes.
//!
//! Plain `cargo build` and editors need no environment variable: .cargo/config.toml points LIBTORCH at the link that
//! scripts/setup makes. A LIBTORCH of the user's own wins.

use std::path::{Path, PathBuf};

/// The libtorch that tch 0.24 binds and that the tests verify.
const WANTED: &str = "2.11.0";

/// The C++ calls into libtorch that tch does not bind: one translation unit that includes the others, because libtorch's headers
/// take most of a compilation (24 s of processor time in place of 280).
const SHIM: &str = "src/native/shim.cpp";
/// Its CUDA half, never linked: a run on a GPU loads it after libtorch_cuda.
const CUDA_SHIM: &[&str] = &["src/native/cuda/device.cpp", "src/native/cuda/graph.cpp"];
/// What it is compiled with; of the three wheels that bring CUDA's headers, `crt` is the one that a slim install lacks.
const CUDA_HEADERS: &[&str] = &["cuda.h", "cuda_runtime_api.h", "crt/host_defines.h"];
fn main() {
    println!("cargo:rerun-if-changed=src/native/build.rs");
    for folder in ["src/native", "src/native/cuda"] {
        let files = std::fs::read_dir(folder).unwrap_or_else(|e| fail(&format!("{folder} could not be read: {e}")));
        let sources =
            files.flatten().map(|f| f.path()).filter(|f| f.extension().is_some_and(|e| e == "cpp" || e == "h"));
        sources.for_each(|file| println!("cargo:rerun-if-changed={}", file.display()));
    }
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_BYPASS_VERSION_CHECK");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
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
    build_cuda_half(&root);
    compiler(&root)
        .opt_level(3)
        .flag("-fopenmp")
        // Square roots, comparisons and rounding in vectors: nobody reads errno or the floating-point exceptions.
        .flag("-fno-math-errno")
        .flag("-fno-trapping-math")
        .file(SHIM)
        .compile("ganvae_shim");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    // libtorch brings its own libgomp, which the rpath puts first: one OpenMP in the process.
    println!("cargo:rustc-link-lib=gomp");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    // For the build script of a program that depends on ganvae, which must set the rpath itself: cargo hands on no link arguments.
    println!("cargo:libtorch_lib={}", lib.display());
    println!("cargo:rustc-env=GANVAE_LIBTORCH_LIB={}", lib.display());
    println!("cargo:rustc-env=GANVAE_LIBTORCH_VERSION={found}");
}

/// How both halves of the shim are compiled.
fn compiler(root: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .pic(true)
        .warnings(false) // libtorch's own headers are full of them
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"));
    build
}

/// Compiles the CUDA half to `ganvae_cuda.so` in the output folder; an empty file where CUDA's headers are missing, which the
/// program says when it is asked for a GPU.
fn build_cuda_half(root: &Path) {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("ganvae_cuda.so");
    let Some(headers) = cuda_headers(root) else {
        if let Err(e) = std::fs::write(&out, []) {
            fail(&format!("{} could not be written: {e}", out.display()));
        }
        return;
    };
    // Its symbols of libtorch and CUDA stay open: they are those of the libraries in the process that loads it.
    let status = compiler(root)
        .opt_level(2)
        .cargo_metadata(false)
        .include(headers)
        .get_compiler()
        .to_command()
        .args(["-shared", "-s", "-o"])
        .arg(&out)
        .args(CUDA_SHIM)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(_) => fail("the CUDA half of the shim did not compile: the compiler's messages are above"),
        Err(e) => fail(&format!("the C++ compiler did not start ({e}): install g++")),
    }
}

/// The folder of CUDA's headers: that of the wheels beside libtorch, else of `CUDA_HOME`; none where there is no whole one, or
/// libtorch itself comes without its CUDA headers.
fn cuda_headers(root: &Path) -> Option<PathBuf> {
    let beside = root.canonicalize().ok()?.parent()?.join("nvidia/cu13/include");
    let home = std::env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("include"));
    let own = root.join("include/c10/cuda/impl/cuda_cmake_macros.h");
    let whole = |dir: &PathBuf| own.is_file() && CUDA_HEADERS.iter().all(|h| dir.join(h).is_file());
    let found = [Some(beside.clone()), home].into_iter().flatten().find(whole);
    // Installing what is missing builds the half at the next build; only what exists may be watched, or every build is one.
    let watched = found.as_ref().map_or(beside, |dir| dir.join(CUDA_HEADERS[2]));
    if watched.exists() {
        println!("cargo:rerun-if-changed={}", watched.display());
    }
    found
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
