// Random numbers from a separate generator, and the state of libtorch's global one. Not for speed: tch does not bind these.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

#include "guard.h"

using namespace ganvae;

extern "C" {

// Fills a CPU tensor from a separate generator: standard normal, or uniform in [0,1). The numbers equal those of torch.randn and
// torch.rand after torch.manual_seed(seed).
Outcome<void> gv_fill_random(at::Tensor& out, uint64_t seed, bool normal) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const auto generator = at::detail::createCPUGenerator(seed);
    // For another layout or type, libtorch draws other numbers.
    const bool direct = out.is_contiguous() && out.scalar_type() == at::kFloat;
    at::Tensor numbers = direct ? out : at::empty(out.sizes(), at::kFloat);
    normal ? numbers.normal_(0, 1, generator) : numbers.uniform_(0, 1, generator);
    if (!direct) out.copy_(numbers);
  });
}

// State of libtorch's global CPU generator, as torch.get_rng_state().
Outcome<at::Tensor*> gv_rng_state() {
  return guarded([] {
    auto generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard<std::mutex> lock(generator.mutex());
    return handle(generator.get_state());
  });
}

Outcome<void> gv_set_rng_state(const at::Tensor& state) {
  return guarded([&] {
    auto generator = at::detail::getDefaultCPUGenerator();
    const std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(state);
  });
}

}  // extern "C"
