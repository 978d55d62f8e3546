// Updates of many tensors in one call.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <chrono>
#include <cmath>
#include <memory>
#include <unordered_map>

#include "guard.h"
#include "optim.h"
#include "rows.h"

using ganvae::guarded;
using ganvae::list;

namespace {

// The numbers of an update, as the Rust side lays them out.
struct Numbers {
  double lr, beta1, beta2, eps, weight_decay;
};

// What an update multiplies and adds, the same for every weight: keep = 1 - lr decay, rate = lr / (1 - beta1^t),
// scale = 1 / sqrt(1 - beta2^t).
struct Factors {
  float beta2, rest1, rest2, rate, scale, eps, keep;

  // 1 - beta in double: of a beta2 near 1 little would be left in float.
  Factors(const Numbers& c, double t)
      : beta2(c.beta2),
        rest1(1 - c.beta1),
        rest2(1 - c.beta2),
        rate(c.lr / (1 - std::pow(c.beta1, t))),
        scale(1 / std::sqrt(1 - std::pow(c.beta2, t))),
        eps(c.eps),
        keep(1 - c.lr * c.weight_decay) {}
};

// One Adam update of n weights.
GANVAE_VECTOR void adam_rows(float* __restrict p, const float* __restrict g, float* __restrict m, float* __restrict v,
                             int64_t n, const Factors& f) {
  const Factors c = f;
  for (int64_t i = 0; i < n; ++i) {
    m[i] += c.rest1 * (g[i] - m[i]);
    v[i] = c.beta2 * v[i] + c.rest2 * g[i] * g[i];
    p[i] = c.keep * p[i] - c.rate * m[i] / (__builtin_sqrtf(v[i]) * c.scale + c.eps);
  }
}

// Whether the loop above may walk through t.
bool plain(const at::Tensor& t) {
  return t.is_cpu() && t.scalar_type() == at::kFloat && t.is_non_overlapping_and_dense();
}

// The gradient g as the parameter p lies in memory, for which the moments m and v must lie alike: all four are walked in memory
// order, and a gradient in another layout (channels-last convolutions give such) would be applied to the wrong weights.
at::Tensor laid_as(const at::Tensor& g, const at::Tensor& p, const at::Tensor& m, const at::Tensor& v) {
  TORCH_CHECK(m.strides() == p.strides() && v.strides() == p.strides(), "the moments of a parameter ", p.sizes(),
              " lie in memory otherwise than the parameter");
  TORCH_CHECK(g.sizes() == p.sizes(), "a gradient ", g.sizes(), " is not that of a parameter ", p.sizes());
  bool alike = true;
  for (int64_t d = 0; d < p.dim(); ++d) alike &= p.size(d) == 1 || g.stride(d) == p.stride(d);
  if (!alike) return at::empty_like(p).copy_(g);
  // A dimension of one says nothing about memory, but its stride may differ.
  return g.strides() == p.strides() ? g : g.as_strided(p.sizes(), p.strides());
}

// One Adam update (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1) in one pass over memory; with a weight decay, AdamW's
// (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2). `step` counts this update already. On the CPU by the loop
// above: libtorch's call takes longer than the update of a small tensor does, and divides where it could multiply.
void adam(const at::Tensor& p, at::Tensor g, const at::Tensor& m, const at::Tensor& v, const at::Tensor& step,
          const Numbers& c) {
  g = laid_as(g, p, m, v);
  if (!(plain(p) && plain(g) && plain(m) && plain(v))) {
    if (c.weight_decay == 0) {
      at::_fused_adam_({p}, {g}, {m}, {v}, {}, {step}, c.lr, c.beta1, c.beta2, 0.0, c.eps, /*amsgrad=*/false,
                       /*maximize=*/false);
    } else {
      at::_fused_adamw_({p}, {g}, {m}, {v}, {}, {step}, c.lr, c.beta1, c.beta2, c.weight_decay, c.eps,
                        /*amsgrad=*/false, /*maximize=*/false);
    }
    return;
  }
  const Factors f(c, *step.const_data_ptr<float>());
  float *ps = p.mutable_data_ptr<float>(), *ms = m.mutable_data_ptr<float>(), *vs = v.mutable_data_ptr<float>();
  const float* gs = g.const_data_ptr<float>();
  // A thread is worth waking for about 10 us.
  at::parallel_for(0, p.numel(), 1 << 15, [&](int64_t from, int64_t to) {
    adam_rows(ps + from, gs + from, ms + from, vs + from, to - from, f);
  });
  // As an operation of libtorch's would: a backward pass that still wants the old weights must not get the new ones.
  torch::autograd::impl::bump_version(p);
}

// Updates a parameter as soon as its gradient is complete, and frees the gradient.
struct Update : torch::autograd::PostAccumulateGradHook {
  at::Tensor m, v, step;
  Numbers numbers;
  bool* reached;
  double* seconds;

  void operator()(const at::Tensor& p) override {
    // Nothing has arrived, as when the layer has made the update already.
    if (!p.grad().defined()) return;
    const auto began = std::chrono::steady_clock::now();
    c10::NoGradGuard no_grad;
    adam(p, p.grad(), m, v, step, numbers);
    p.mutable_grad().reset();
    *reached = true;
    *seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  }
};

// What `minimise` has under way on this thread, for `pending_update`.
struct Pending {
  const std::vector<at::Tensor>& params;
  const std::vector<Update*>& updates;
  // Whether one node alone gives a parameter its gradient.
  std::vector<bool> alone;
};
thread_local const Pending* pending = nullptr;

// For each parameter, whether exactly one edge of the graph behind `loss` leads to it.
std::vector<bool> reached_once(const at::Tensor& loss, const std::vector<at::Tensor>& params) {
  std::unordered_map<const torch::autograd::Node*, int> edges;
  std::vector<const torch::autograd::Node*> open = {loss.grad_fn().get()};
  while (!open.empty()) {
    const auto* node = open.back();
    open.pop_back();
    if (!node) continue;
    for (const auto& edge : node->next_edges()) {
      if (edge.is_valid() && edges[edge.function.get()]++ == 0) open.push_back(edge.function.get());
    }
  }
  std::vector<bool> once;
  for (const auto& p : params) once.push_back(edges[torch::autograd::impl::grad_accumulator(p).get()] == 1);
  return once;
}

}  // namespace

namespace ganvae {

std::optional<BlockUpdate> pending_update(const at::Tensor& w) {
  if (!pending) return std::nullopt;
  for (size_t i = 0; i < pending->params.size(); ++i) {
    if (!pending->params[i].is_same(w)) continue;
    const Update& u = *pending->updates[i];
    if (!pending->alone[i] || !w.is_contiguous() || !plain(w) || !plain(u.m) || !plain(u.v)) return std::nullopt;
    TORCH_CHECK(u.m.strides() == w.strides() && u.v.strides() == w.strides(), "the moments of a parameter ", w.sizes(),
                " lie in memory otherwise than the parameter");
    *u.reached = true;
    torch::autograd::impl::bump_version(w);
    const auto f = std::make_shared<const Factors>(u.numbers, *u.step.const_data_ptr<float>());
    float *p = w.mutable_data_ptr<float>(), *m = u.m.mutable_data_ptr<float>(), *v = u.v.mutable_data_ptr<float>();
    return [=](int64_t from, int64_t n, const float* g) { adam_rows(p + from, g, m + from, v + from, n, *f); };
  }
  return std::nullopt;
}

}  // namespace ganvae

extern "C" {

// One Adam or AdamW update of n parameters. `step` is a float32 scalar that counts updates; it is increased here.
char* gv_fused_adam(size_t n, at::Tensor* const* params, at::Tensor* const* grads, at::Tensor* const* exp_avgs,
                    at::Tensor* const* exp_avg_sqs, at::Tensor* step, const Numbers* numbers) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    step->add_(1);
    for (size_t i = 0; i < n; ++i) adam(*params[i], *grads[i], *exp_avgs[i], *exp_avg_sqs[i], *step, *numbers);
  });
}

// The same with the learning rate, too, on the device, a float32 scalar, and all parameters in as few launches as there can be: the
// host knows no number that changes, so the update can be captured once and replayed.
char* gv_fused_adam_on_device(size_t n, at::Tensor* const* params, at::Tensor* const* grads, at::Tensor* const* exp_avgs,
                              at::Tensor* const* exp_avg_sqs, at::Tensor* step, at::Tensor* lr, const Numbers* numbers) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const Numbers& c = *numbers;
    const std::vector<at::Tensor> p = list(params, n), m = list(exp_avgs, n), v = list(exp_avg_sqs, n);
    std::vector<at::Tensor> g = list(grads, n);
    for (size_t i = 0; i < n; ++i) g[i] = laid_as(g[i], p[i], m[i], v[i]);
    step->add_(1);
    // One counter for all: the kernels only read it.
    const std::vector<at::Tensor> steps(n, *step);
    if (c.weight_decay == 0) {
      at::_fused_adam_(p, g, m, v, {}, steps, *lr, c.beta1, c.beta2, 0.0, c.eps, /*amsgrad=*/false, /*maximize=*/false);
    } else {
      at::_fused_adamw_(p, g, m, v, {}, steps, *lr, c.beta1, c.beta2, c.weight_decay, c.eps, /*amsgrad=*/false,
                        /*maximize=*/false);
    }
  });
}

// The backward pass of a scalar loss to n parameters and no further, each updated as in gv_fused_adam the moment its gradient
// is complete: the gradient is still in the cache, and is freed before the next one is made; that of a linear layer's weights
// is never whole in memory (`pending_update`). `reached[i]` says whether the loss has a gradient with respect to parameter i;
// `seconds` is the time that went into updates by themselves.
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
    std::vector<Update*> updates;
    for (size_t i = 0; i < n; ++i) {
      auto hook = std::make_unique<Update>();
      hook->m = *exp_avgs[i];
      hook->v = *exp_avg_sqs[i];
      hook->step = *step;
      hook->numbers = *numbers;
      hook->reached = &reached[i];
      hook->seconds = seconds;
      updates.push_back(hook.get());
      torch::autograd::impl::set_post_acc_grad_hooks(p[i], std::move(hook));
    }
    {
      c10::NoGradGuard no_grad;
      step->add_(1);
    }
    const Pending now{p, updates, reached_once(*loss, p)};
    struct Clear {
      ~Clear() { pending = nullptr; }
    } clear;
    pending = &now;
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

// The same with the weight, a float32 scalar, on the device: three calls, each of a launch for some tens of pairs.
char* gv_foreach_lerp_on_device(size_t n, at::Tensor* const* averages, at::Tensor* const* current, at::Tensor* weight) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const std::vector<at::Tensor> a = list(averages, n), steps = at::_foreach_sub(list(current, n), a);
    at::_foreach_mul_(steps, *weight);
    at::_foreach_add_(a, steps);
  });
}

}  // extern "C"
