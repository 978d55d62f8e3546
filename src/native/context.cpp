// Not for speed: tch does not bind these.
// What the whole process computes with: precision, determinism, mixed precision; and what the processor offers.

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <ATen/record_function.h>

#include "guard.h"

using ganvae::guarded;

namespace {

// Operations that this thread has called since gv_record_ops, a line each.
thread_local std::string ops;

std::unique_ptr<at::ObserverContext> note(const at::RecordFunction& call) {
  ops += call.name();
  ops += '\n';
  return nullptr;
}

}  // namespace

extern "C" {

// What a region of mixed precision has found, to be put back at its end.
struct gv_autocast {
  bool cuda, enabled;
  int8_t dtype;
};

// From here to gv_autocast_end, products and convolutions are computed in bfloat16 from float32 weights. The copies of the
// weights live to the end of the region and no longer: the weights may be updated between two regions, and a copy made within a
// CUDA graph must not be met outside.
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

// How CUDA computes from now on: whether products and convolutions of float32 may round their factors to TF32; whether one seed
// must give the same bits, or else cuDNN may time its algorithms and take the fastest.
char* gv_set_math(bool tf32, bool deterministic) {
  return guarded([&] {
    auto& context = at::globalContext();
    context.setAllowTF32CuBLAS(tf32);
    context.setAllowTF32CuDNN(tf32);
    context.setBenchmarkCuDNN(!deterministic);
    context.setDeterministicCuDNN(deterministic);
    context.setDeterministicAlgorithms(deterministic, /*warn_only=*/false);
    // Filling every new tensor with NaN would find reads of what was never written, at the price of a launch each.
    context.setDeterministicFillUninitializedMemory(false);
  });
}

// The same as it stands: TF32 in products, TF32 in convolutions, deterministic, cuDNN's timing.
char* gv_math(bool* out) {
  return guarded([&] {
    const auto& context = at::globalContext();
    out[0] = context.allowTF32CuBLAS();
    out[1] = context.allowTF32CuDNN();
    out[2] = context.deterministicAlgorithms() && context.deterministicCuDNN();
    out[3] = context.benchmarkCuDNN();
  });
}

// Which of libtorch's kernels for the CPU run here: AVX512, AVX2, DEFAULT.
char* gv_cpu_capability(char* out, size_t size) {
  return guarded([&] {
    const std::string name = at::get_cpu_capability();
    TORCH_CHECK(name.size() < size, "the name ", name, " is too long");
    std::memcpy(out, name.c_str(), name.size() + 1);
  });
}

// The versions of cuDNN and of CUDA that libtorch's CUDA half was built with, as they count them; it must be loaded.
char* gv_cudnn_version(int64_t* out) {
  return guarded([&] { *out = at::Context::versionCuDNN(); });
}

// Writes down every operation that this thread calls from now on, those of libtorch's own inner calls too; for the test of what
// a captured step must not do. Gives the handle that ends it.
char* gv_record_ops(uint64_t* handle) {
  return guarded([&] {
    ops.clear();
    *handle = at::addThreadLocalCallback(at::RecordFunctionCallback(note).scopes({at::RecordScope::FUNCTION}));
  });
}

// Ends it; their names, a line each, valid until the next call.
char* gv_recorded_ops(uint64_t handle, const char** out) {
  return guarded([&] {
    at::removeCallback(handle);
    *out = ops.c_str();
  });
}

}  // extern "C"
