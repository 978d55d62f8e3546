// Random numbers that leave libtorch's global generator alone, and that generator's state.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

#include "guard.h"

using ganvae::guarded;

extern "C" {

// Standard normal float32 numbers on the CPU from a generator of their own: those that the global one would give after
// being seeded so.
char* gv_randn(at::Tensor** out, uint64_t seed, const int64_t* sizes, size_t dims) {
  return guarded([&] {
    auto generator = at::detail::createCPUGenerator(seed);
    *out = new at::Tensor(at::randn(at::IntArrayRef(sizes, dims), generator, at::TensorOptions(at::kFloat)));
  });
}

// State of libtorch's global CPU generator: bytes, of the form that torch.get_rng_state() has.
char* gv_rng_state(at::Tensor** out) {
  return guarded([&] {
    auto generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard<std::mutex> lock(generator.mutex());
    *out = new at::Tensor(generator.get_state());
  });
}

char* gv_set_rng_state(at::Tensor* state) {
  return guarded([&] {
    auto generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(*state);
  });
}

}  // extern "C"
