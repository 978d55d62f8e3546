//! What can be known of CUDA on a machine without a GPU: the CUDA half is built, all that it calls exists, and what is missing is
//! said. A process of its own: libtorch_cuda stays loaded, and precision is the whole process's.

use std::path::Path;

use ganvae::commands::doctor;
use ganvae::native;

/// The headers' folder beside the libtorch that this program was built with.
fn headers() -> std::path::PathBuf {
    let lib = Path::new(env!("GANVAE_LIBTORCH_LIB"));
    lib.join("../../nvidia/cu13/include").canonicalize().unwrap_or_default()
}

/// Built wherever it can be, so that it cannot rot; and where CI runs (`scripts/setup --full`), it can be.
#[test]
fn the_cuda_half_is_built_where_cudas_headers_are() {
    let whole = ["cuda.h", "cuda_runtime_api.h", "crt/host_defines.h"].iter().all(|h| headers().join(h).is_file());
    assert_eq!(native::cuda_half_built(), whole, "headers in {}", headers().display());
    let setup =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/ganvae-setup")).unwrap_or_default();
    assert!(whole || !setup.contains("full 4"), "scripts/setup --full must bring CUDA's headers");
}

/// Loading it resolves every symbol of libtorch_cuda, c10_cuda and CUDA's runtime that it names: none is missing or of another type.
#[test]
fn every_call_of_the_cuda_half_exists_in_libtorch_and_cuda() {
    if !native::cuda_half_built() || !native::libtorch_folder().join("libtorch_cuda.so").is_file() {
        eprintln!("not checked: this libtorch has no CUDA half");
        return;
    }
    native::load_libtorch_cuda().unwrap();
    native::resolve_cuda_half().unwrap();
}

#[test]
fn what_is_missing_for_cuda_is_said_in_one_sentence_each() {
    let report = doctor::examine(Some("cuda")).unwrap();
    if report.works {
        assert!(report.text.contains("--device cuda works"), "{}", report.text);
        return;
    }
    let (_, todo) = report.text.split_once("--device cuda would fail\n").unwrap();
    assert!(!todo.is_empty() && todo.lines().all(|l| l.starts_with("  - ") && l.contains(": ")), "{}", report.text);
    if native::load_driver().is_err() {
        assert!(todo.contains("no NVIDIA driver was found"), "{}", report.text);
        let e = native::cuda().unwrap_err().to_string();
        assert!(e.contains("no NVIDIA driver") && e.contains("--device cpu"), "{e}");
    }
    assert!(doctor::examine(None).unwrap().works, "nothing was asked");
}

#[test]
fn precision_and_determinism_are_set_as_a_whole() {
    use native::{Math, math, set_math};
    set_math(true, false).unwrap();
    let tf32 = Math { tf32_matmuls: true, tf32_convolutions: true, deterministic: false, benchmark: true };
    assert_eq!(math().unwrap(), tf32);
    set_math(false, true).unwrap();
    let exact = Math { tf32_matmuls: false, tf32_convolutions: false, deterministic: true, benchmark: false };
    assert_eq!(math().unwrap(), exact);
    assert!(["AVX512", "AVX2", "DEFAULT"].contains(&native::cpu_capability().unwrap().as_str()));
}
