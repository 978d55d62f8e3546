// Updates of many tensors in one call.

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/empty_like.h>

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <chrono>
#include <memory>

#include "guard.h"

using ganvae::guarded;
using ganvae::list;

namespace {

// The numbers of an update, as the Rust side lays them out.
struct Numbers {
  double lr, beta1, beta2, eps, weight_decay;
};

// One Adam update (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1) in one pass over memory; with a weight decay, AdamW's
// (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2). `step` counts this update already.
void adam(const std::vector<at::Tensor>& p, std::vector<at::Tensor> g, const std::vector<at::Tensor>& m,
          const std::vector<at::Tensor>& v, const at::Tensor& step, const Numbers& c) {
  // The fused kernel walks all four in memory order and does not look at strides: a gradient in another layout than its
  // parameter's (channels-last convolutions give such) would be applied to the wrong weights.
  for (size_t i = 0; i < p.size(); ++i) {
    TORCH_CHECK(m[i].strides() == p[i].strides() && v[i].strides() == p[i].strides(),
                "the moments of parameter ", i, " lie in memory otherwise than the parameter");
    if (g[i].strides() != p[i].strides()) g[i] = at::empty_like(p[i]).copy_(g[i]);
  }
  const std::vector<at::Tensor> steps(p.size(), step);
  if (c.weight_decay == 0) {
    at::_fused_adam_(p, g, m, v, {}, steps, c.lr, c.beta1, c.beta2, 0.0, c.eps, /*amsgrad=*/false, /*maximize=*/false);
  } else {
    at::_fused_adamw_(p, g, m, v, {}, steps, c.lr, c.beta1, c.beta2, c.weight_decay, c.eps, /*amsgrad=*/false,
                      /*maximize=*/false);
  }
}

// Updates a parameter as soon as its gradient is complete, and frees the gradient.
struct Update : torch::autograd::PostAccumulateGradHook {
  at::Tensor m, v, step;
  Numbers numbers;
  bool* reached;
  double* seconds;

  void operator()(const at::Tensor& p) override {
    const auto began = std::chrono::steady_clock::now();
    c10::NoGradGuard no_grad;
    adam({p}, {p.grad()}, {m}, {v}, step, numbers);
    p.mutable_grad().reset();
    *reached = true;
    *seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  }
};

}  // namespace

extern "C" {

// Takes back a message of any of the shim's functions.
void gv_free(char* message) { std::free(message); }

// One Adam or AdamW update of n parameters. `step` is a float32 scalar that counts updates; it is increased here.
char* gv_fused_adam(size_t n, at::Tensor* const* params, at::Tensor* const* grads, at::Tensor* const* exp_avgs,
                    at::Tensor* const* exp_avg_sqs, at::Tensor* step, const Numbers* numbers) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    step->add_(1);
    adam(list(params, n), list(grads, n), list(exp_avgs, n), list(exp_avg_sqs, n), *step, *numbers);
  });
}

// The backward pass of a scalar loss to n parameters and no further, each updated as in gv_fused_adam the moment its gradient
// is complete: the gradient is still in the cache, and is freed before the next one is made. `reached[i]` says whether the
// loss has a gradient with respect to parameter i; `seconds` is the time that went into the updates.
char* gv_minimise(at::Tensor* loss, size_t n, at::Tensor* const* params, at::Tensor* const* exp_avgs,
                  at::Tensor* const* exp_avg_sqs, at::Tensor* step, const Numbers* numbers, bool* reached,
                  double* seconds) {
  return guarded([&] {
    const std::vector<at::Tensor> p = list(params, n);
    // The hooks point at what is on this stack: they go whatever happens.
    struct Unhook {
      const std::vector<at::Tensor>& params;
      ~Unhook() {
        for (const auto& p : params) {
          torch::autograd::impl::post_acc_grad_hooks(p).reset();
          p.mutable_grad().reset();
        }
      }
    } unhook{p};
    for (size_t i = 0; i < n; ++i) {
      auto hook = std::make_unique<Update>();
      hook->m = *exp_avgs[i];
      hook->v = *exp_avg_sqs[i];
      hook->step = *step;
      hook->numbers = *numbers;
      hook->reached = &reached[i];
      hook->seconds = seconds;
      torch::autograd::impl::set_post_acc_grad_hooks(p[i], std::move(hook));
    }
    {
      c10::NoGradGuard no_grad;
      step->add_(1);
    }
    torch::autograd::backward({*loss}, {}, /*retain_graph=*/false, /*create_graph=*/false, p);
  });
}

// The Euclidean norm of n gradients taken as one vector, float32 scalar, and the gradients scaled down to `most` where it is
// above that (Pascanu et al. 2013, arXiv 1211.5063, section 3.2), without waiting for the device. Not in place: two
// parameters may have been given the same tensor as their gradient.
char* gv_clip_grad_norm(at::Tensor** out, at::Tensor** scaled, size_t n, at::Tensor* const* grads, double most) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const std::vector<at::Tensor> g = list(grads, n);
    const at::Tensor norm = at::stack(at::_foreach_norm(g)).norm();
    const std::vector<at::Tensor> clipped = at::_foreach_mul(g, at::reciprocal(norm + 1e-6).mul_(most).clamp_max_(1));
    for (size_t i = 0; i < n; ++i) scaled[i] = new at::Tensor(clipped[i]);
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
