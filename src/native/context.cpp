// Not for speed: tch does not bind these.
// Process-wide settings: precision, determinism, autocast; the instruction sets of the CPU.

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <ATen/record_function.h>

#include "guard.h"

using ganvae::guarded;

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

// The autocast state before a region, restored at its end.
struct gv_autocast {
  bool cuda, enabled;
  int8_t dtype;
};

// Until gv_autocast_end, matmuls and convolutions run in bfloat16 from float32 weights. The cached bfloat16 weights are dropped at
// the end of the region: weights may be updated between regions, and a copy made inside a CUDA graph must not be used outside.
char* gv_autocast_begin(bool cuda, gv_autocast* before) {
  return guarded([&] {
    const auto type = cuda ? at::kCUDA : at::kCPU;
    *before = {cuda, at::autocast::is_autocast_enabled(type),
               static_cast<int8_t>(at::autocast::get_autocast_dtype(type))};
    at::autocast::set_autocast_enabled(type, true);
    at::autocast::set_autocast_dtype(type, at::kBFloat16);
    at::autocast::increment_nesting();
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
char* gv_set_math(bool tf32, bool deterministic) {
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

// The current settings: TF32 in matmuls, TF32 in convolutions, deterministic, cuDNN benchmark.
char* gv_math(bool* out) {
  return guarded([&] {
    const auto& context = at::globalContext();
    out[0] = context.allowTF32CuBLAS();
    out[1] = context.allowTF32CuDNN();
    out[2] = context.deterministicAlgorithms() && context.deterministicCuDNN();
    out[3] = context.benchmarkCuDNN();
  });
}

// The instruction set of libtorch's CPU kernels: AVX512, AVX2, DEFAULT.
char* gv_cpu_capability(char* out, size_t size) {
  return guarded([&] {
    const std::string name = at::get_cpu_capability();
    TORCH_CHECK(name.size() < size, "the name ", name, " is too long");
    std::memcpy(out, name.c_str(), name.size() + 1);
  });
}

// The cuDNN version that libtorch was built with, in cuDNN's encoding; libtorch's CUDA half must be loaded.
char* gv_cudnn_version(int64_t* out) {
  return guarded([&] { *out = at::Context::versionCuDNN(); });
}

// Records every operation that this thread calls from now on, nested calls included; for the tests of captured steps. Returns the
// handle that stops the recording.
char* gv_record_ops(uint64_t* handle) {
  return guarded([&] {
    ops.clear();
    *handle = at::addThreadLocalCallback(at::RecordFunctionCallback(note).scopes({at::RecordScope::FUNCTION}));
  });
}

// Stops the recording; returns the names, one per line, valid until the next recording.
char* gv_recorded_ops(uint64_t handle, const char** out) {
  return guarded([&] {
    at::removeCallback(handle);
    *out = ops.c_str();
  });
}

}  // extern "C"
