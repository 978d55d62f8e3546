// Updates of many tensors in one call.

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/empty_like.h>

#include "guard.h"

using ganvae::guarded;
using ganvae::list;

extern "C" {

void gv_free(char* message) { std::free(message); }

// One Adam update (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1) of n parameters in one pass over memory; with a
// weight decay, AdamW's (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2).
// `step` is a float32 scalar that counts updates; it is increased here, before its use in the bias corrections.
char* gv_fused_adam(size_t n, at::Tensor* const* params, at::Tensor* const* grads, at::Tensor* const* exp_avgs,
                    at::Tensor* const* exp_avg_sqs, at::Tensor* step, double lr, double beta1, double beta2,
                    double eps, double weight_decay) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const std::vector<at::Tensor> p = list(params, n), m = list(exp_avgs, n), v = list(exp_avg_sqs, n);
    std::vector<at::Tensor> g = list(grads, n);
    // The fused kernel walks all four in memory order and does not look at strides: a gradient in another layout than its
    // parameter's (channels-last convolutions give such) would be applied to the wrong weights.
    for (size_t i = 0; i < n; ++i) {
      TORCH_CHECK(m[i].strides() == p[i].strides() && v[i].strides() == p[i].strides(),
                  "the moments of parameter ", i, " lie in memory otherwise than the parameter");
      if (g[i].strides() != p[i].strides()) g[i] = at::empty_like(p[i]).copy_(g[i]);
    }
    step->add_(1);
    const std::vector<at::Tensor> steps(n, *step);
    if (weight_decay == 0) {
      at::_fused_adam_(p, g, m, v, {}, steps, lr, beta1, beta2, 0.0, eps, /*amsgrad=*/false, /*maximize=*/false);
    } else {
      at::_fused_adamw_(p, g, m, v, {}, steps, lr, beta1, beta2, weight_decay, eps, /*amsgrad=*/false,
                        /*maximize=*/false);
    }
  });
}

// The Euclidean norm of n gradients taken as one vector, float32 scalar; they are scaled down in place to `most` where it is
// above that (Pascanu et al. 2013, arXiv 1211.5063, section 3.2), without waiting for the device.
char* gv_clip_grad_norm(at::Tensor** out, size_t n, at::Tensor* const* grads, double most) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const std::vector<at::Tensor> g = list(grads, n);
    const at::Tensor norm = at::stack(at::_foreach_norm(g)).norm();
    at::_foreach_mul_(g, at::reciprocal(norm + 1e-6).mul_(most).clamp_max_(1));
    *out = new at::Tensor(norm);
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
