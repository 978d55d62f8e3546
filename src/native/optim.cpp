// Updates of many tensors in one call.

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/empty_like.h>

#include "guard.h"

using ganvae::guarded;
using ganvae::list;

extern "C" {

void gv_free(char* message) { std::free(message); }

// One Adam update (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1) of n parameters in one pass over memory.
// `step` is a float32 scalar that counts updates; it is increased here, before its use in the bias corrections.
char* gv_fused_adam(size_t n, at::Tensor* const* params, at::Tensor* const* grads, at::Tensor* const* exp_avgs,
                    at::Tensor* const* exp_avg_sqs, at::Tensor* step, double lr, double beta1, double beta2,
                    double eps) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    step->add_(1);
    const std::vector<at::Tensor> steps(n, *step);
    // The fused kernel walks both in memory order and does not look at strides: a gradient in another layout than its
    // parameter's (channels-last convolutions give such) would be applied to the wrong weights.
    std::vector<at::Tensor> aligned = list(grads, n);
    for (size_t i = 0; i < n; ++i) {
      if (aligned[i].strides() != params[i]->strides()) {
        aligned[i] = at::empty_like(*params[i]).copy_(aligned[i]);
      }
    }
    at::_fused_adam_(list(params, n), aligned, list(exp_avgs, n), list(exp_avg_sqs, n), {}, steps, lr, beta1,
                     beta2, /*weight_decay=*/0.0, eps, /*amsgrad=*/false, /*maximize=*/false);
  });
}

// averages[i] += weight * (current[i] - averages[i]) for n pairs.
char* gv_foreach_lerp(size_t n, at::Tensor* const* averages, at::Tensor* const* current, double weight) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    at::_foreach_lerp_(list(averages, n), list(current, n), weight);
  });
}

}  // extern "C"
