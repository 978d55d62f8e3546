// Not for speed: tch does not bind these.
// Process-wide settings: precision, determinism, autocast; the instruction sets of the CPU.

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <ATen/record_function.h>

#include "guard.h"

using namespace ganvae;

namespace {

// Operations that this thread has called since gv_record_ops, one per line.
thread_local std::string ops;

std::unique_ptr<at::ObserverContext> note(const at::RecordFunction& call) {
  ops += call.name();
  ops += '\n';
  return nullptr;
}

}  // namespace

extern "C" {

// The autocast state before a region, restored at its end. Laid out as in Rust.
struct gv_autocast {
  bool cuda, enabled;
  int8_t dtype;
};

// CUDA's numerics, laid out as Math in Rust.
struct gv_numerics {
  bool tf32_matmuls, tf32_convolutions, deterministic, benchmark;
};

// Until gv_autocast_end, matmuls and convolutions run in bfloat16 from float32 weights. The cached bfloat16 weights are dropped at
// the end of the region: weights may be updated between regions, and a copy made inside a CUDA graph must not be used outside.
Outcome<gv_autocast> gv_autocast_begin(bool cuda) {
  return guarded([&] {
    const auto type = cuda ? at::kCUDA : at::kCPU;
    const gv_autocast before{cuda, at::autocast::is_autocast_enabled(type),
                             static_cast<int8_t>(at::autocast::get_autocast_dtype(type))};
    at::autocast::set_autocast_enabled(type, true);
    at::autocast::set_autocast_dtype(type, at::kBFloat16);
    at::autocast::increment_nesting();
    return before;
  });
}

void gv_autocast_end(const gv_autocast* before) {
  const auto type = before->cuda ? at::kCUDA : at::kCPU;
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(type, before->enabled);
  at::autocast::set_autocast_dtype(type, static_cast<at::ScalarType>(before->dtype));
}

// Sets CUDA's numerics: whether float32 matmuls and convolutions may use TF32; whether they must be deterministic. If not, cuDNN
// benchmarks its algorithms.
Outcome<void> gv_set_math(bool tf32, bool deterministic) {
  return guarded([&] {
    auto& context = at::globalContext();
    context.setAllowTF32CuBLAS(tf32);
    context.setAllowTF32CuDNN(tf32);
    context.setBenchmarkCuDNN(!deterministic);
    context.setDeterministicCuDNN(deterministic);
    context.setDeterministicAlgorithms(deterministic, /*warn_only=*/false);
    // Filling every new tensor with NaN costs a launch each and is only for debugging.
    context.setDeterministicFillUninitializedMemory(false);
  });
}

Outcome<gv_numerics> gv_math() {
  return guarded([] {
    const auto& context = at::globalContext();
    return gv_numerics{context.allowTF32CuBLAS(), context.allowTF32CuDNN(),
                       context.deterministicAlgorithms() && context.deterministicCuDNN(), context.benchmarkCuDNN()};
  });
}

Outcome<char*> gv_cpu_capability() {
  return guarded([] { return strdup(at::get_cpu_capability().c_str()); });
}

// In cuDNN's encoding: 91900 is 9.19.
Outcome<int64_t> gv_cudnn_version() {
  return guarded([]() -> int64_t { return at::Context::versionCuDNN(); });
}

// Records every operation that this thread calls from now on, nested calls included; for the tests of captured steps. Returns the
// handle that stops the recording.
Outcome<uint64_t> gv_record_ops() {
  return guarded([]() -> uint64_t {
    ops.clear();
    return at::addThreadLocalCallback(at::RecordFunctionCallback(note).scopes({at::RecordScope::FUNCTION}));
  });
}

// Stops the recording; returns the names, one per line.
Outcome<char*> gv_recorded_ops(uint64_t handle) {
  return guarded([&] {
    at::removeCallback(handle);
    return strdup(ops.c_str());
  });
}

}  // extern "C"
