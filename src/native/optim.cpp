// Adam, gradient clipping and moving averages of many tensors in one call, none of which tch has, and Adam inside the backward pass.
//
// Gain of the update inside the backward pass (AMD EPYC, AVX-512, 2 threads; with and without): peak memory of the article VAE 429
// and 506 MB, of the article GAN 401 and 478 MB; 73.0 and 75.1, 79.3 and 79.7 ms per step. On an Intel Xeon, for all weights and for
// those above 2^20 only: conv-vae 19.7 and 20.4 ms, 210 and 221 MB; small VAE 0.98 and 1.04 ms.
// Libtorch's fused Adam and the loop over each parameter: small VAE (784-200-50, batch 20) 0.59 and 0.56 ms per step.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>

#include <chrono>
#include <cmath>
#include <memory>
#include <unordered_map>

#include "guard.h"
#include "optim.h"
#include "rows.h"

using namespace ganvae;

namespace {

// Seconds of the updates after the backward pass, and the first parameter without a gradient, or -1. Laid out as in Rust.
struct gv_minimised {
  double seconds;
  int64_t missing;
};

void check_lengths(const std::vector<at::Tensor>& p, const std::vector<at::Tensor>& m, const std::vector<at::Tensor>& v) {
  TORCH_CHECK(m.size() == p.size() && v.size() == p.size(), p.size(), " parameters have ", m.size(), "+", v.size(),
              " moments: there must be as many of each");
}

// The hyper-parameters of Adam, laid out as AdamSettings in Rust.
struct AdamSettings {
  double lr, beta1, beta2, eps, weight_decay;
};

// The factors of an update, the same for every weight: keep = 1 - lr decay, rate = lr / (1 - beta1^t),
// scale = 1 / sqrt(1 - beta2^t).
struct Factors {
  float beta2, rest1, rest2, rate, scale, eps, keep;

  // 1 - beta in double: for a beta2 near 1, float would lose most digits.
  Factors(const AdamSettings& c, double t)
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

// The gradient g in the layout of the parameter p, which the moments m and v must have too: Adam reads all four in memory order,
// and would apply a gradient in another layout (as from channels-last convolutions) to the wrong weights.
at::Tensor in_layout_of(const at::Tensor& g, const at::Tensor& p, const at::Tensor& m, const at::Tensor& v) {
  TORCH_CHECK(m.strides() == p.strides() && v.strides() == p.strides(), "the moments of a parameter ", p.sizes(),
              " have another memory layout than the parameter");
  TORCH_CHECK(g.sizes() == p.sizes(), "a gradient ", g.sizes(), " is not that of a parameter ", p.sizes());
  bool alike = true;
  for (int64_t d = 0; d < p.dim(); ++d) alike &= p.size(d) == 1 || g.stride(d) == p.stride(d);
  if (!alike) return at::empty_like(p).copy_(g);
  // The stride of a dimension of size 1 may differ without changing the layout.
  return g.strides() == p.strides() ? g : g.as_strided(p.sizes(), p.strides());
}

// The gradients of the parameters p in their layouts.
std::vector<at::Tensor> gradients_of(const std::vector<at::Tensor>& p, std::vector<at::Tensor> g, const std::vector<at::Tensor>& m,
                                     const std::vector<at::Tensor>& v) {
  check_lengths(p, m, v);
  TORCH_CHECK(g.size() == p.size(), p.size(), " parameters have ", g.size(), " gradients: there must be one for each");
  for (size_t i = 0; i < p.size(); ++i) g[i] = in_layout_of(g[i], p[i], m[i], v[i]);
  return g;
}

// One Adam update (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1); with a weight decay, AdamW's (Loshchilov and Hutter 2019,
// arXiv 1711.05101, algorithm 2). `step` counts this update already. The learning rate is a double or a scalar on the device.
template <class Rate>
void adam(const std::vector<at::Tensor>& p, std::vector<at::Tensor> g, const std::vector<at::Tensor>& m,
          const std::vector<at::Tensor>& v, const at::Tensor& step, const Rate& lr, const AdamSettings& c) {
  g = gradients_of(p, std::move(g), m, v);
  const auto plain = [](const at::Tensor& t) {
    return t.is_cpu() && t.scalar_type() == at::kFloat && t.is_non_overlapping_and_dense();
  };
  bool loop = std::is_same_v<Rate, double>;
  for (size_t i = 0; i < p.size(); ++i) loop &= plain(p[i]) && plain(g[i]) && plain(m[i]) && plain(v[i]);
  if (loop) {
    const Factors f(c, *step.const_data_ptr<float>());
    for (size_t i = 0; i < p.size(); ++i) {
      float *ps = p[i].mutable_data_ptr<float>(), *ms = m[i].mutable_data_ptr<float>(), *vs = v[i].mutable_data_ptr<float>();
      const float* gs = g[i].const_data_ptr<float>();
      // Smaller chunks take less time than waking a thread, about 10 us.
      at::parallel_for(0, p[i].numel(), 1 << 15, [&](int64_t from, int64_t to) {
        adam_rows(ps + from, gs + from, ms + from, vs + from, to - from, f);
      });
      torch::autograd::impl::bump_version(p[i]);
    }
    return;
  }
  // All share one counter: the kernels only read it.
  const std::vector<at::Tensor> steps(p.size(), step);
  if (c.weight_decay == 0) {
    at::_fused_adam_(p, g, m, v, {}, steps, lr, c.beta1, c.beta2, 0.0, c.eps, /*amsgrad=*/false, /*maximize=*/false);
  } else {
    at::_fused_adamw_(p, g, m, v, {}, steps, lr, c.beta1, c.beta2, c.weight_decay, c.eps, /*amsgrad=*/false,
                      /*maximize=*/false);
  }
}

// What gv_minimise runs on this thread, for `pending_update`.
struct Pending {
  const std::vector<at::Tensor>&params, &exp_avgs, &exp_avg_sqs;
  const Factors factors;
  // Whether a parameter gets its gradient from a single node.
  const std::vector<bool> once;
  std::vector<char>& updated;
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
  if (!pending || !w.is_contiguous()) return std::nullopt;
  for (size_t i = 0; i < pending->params.size(); ++i) {
    if (!pending->params[i].is_same(w) || !pending->once[i]) continue;
    const at::Tensor &ms = pending->exp_avgs[i], &vs = pending->exp_avg_sqs[i];
    in_layout_of(w, w, ms, vs);
    pending->updated[i] = true;
    // As libtorch's in-place operations do: a backward pass that still needs the old weights then fails.
    torch::autograd::impl::bump_version(w);
    float *p = w.mutable_data_ptr<float>(), *m = ms.mutable_data_ptr<float>(), *v = vs.mutable_data_ptr<float>();
    return [=, f = &pending->factors](int64_t from, int64_t n, const float* g) {
      adam_rows(p + from, g, m + from, v + from, n, *f);
    };
  }
  return std::nullopt;
}

}  // namespace ganvae

extern "C" {

// One Adam or AdamW update of all parameters. `step` is a float32 scalar that counts updates; it is increased here.
// `lr`, if given, is a float32 scalar on the device and replaces the host's learning rate, so the update can be captured and replayed.
Outcome<void> gv_fused_adam(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, at::Tensor& step,
                            const at::Tensor* lr, AdamSettings settings) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const auto p = list(params), g = list(grads), m = list(exp_avgs), v = list(exp_avg_sqs);
    step.add_(1);
    lr ? adam(p, g, m, v, step, *lr, settings) : adam(p, g, m, v, step, settings.lr, settings);
  });
}

// gv_fused_adam with 1 - beta2, too, as a float32 scalar on the device, in operations on all parameters: at::_fused_adam_ takes beta2
// from the host alone.
Outcome<void> gv_adam_on_device(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, at::Tensor& step,
                                const at::Tensor& lr, const at::Tensor& beta2_rest, AdamSettings c) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const auto p = list(params), m = list(exp_avgs), v = list(exp_avg_sqs), g = gradients_of(p, list(grads), m, v);
    step.add_(1);
    // 1 - beta^t, by log1p and expm1: for a beta near 1, float would lose most digits.
    const at::Tensor first = (step * std::log(c.beta1)).expm1_().neg_();
    const at::Tensor second = (at::log1p(-beta2_rest) * step).expm1_().neg_();
    if (c.weight_decay != 0) at::_foreach_mul_(p, 1 - lr * c.weight_decay);
    at::_foreach_lerp_(m, g, 1 - c.beta1);
    auto squares = at::_foreach_mul(g, g);
    at::_foreach_mul_(squares, beta2_rest);
    at::_foreach_mul_(v, 1 - beta2_rest);
    at::_foreach_add_(v, squares);
    auto by = at::_foreach_sqrt(v);
    at::_foreach_mul_(by, second.rsqrt());
    at::_foreach_add_(by, c.eps);
    auto moves = at::_foreach_div(m, by);
    at::_foreach_mul_(moves, lr / first);
    at::_foreach_sub_(p, moves);
  });
}

// The backward pass of a scalar loss to the parameters, and one update of each as in gv_fused_adam. The weights of linear layers are
// updated inside the backward pass, block by block (`pending_update`).
Outcome<gv_minimised> gv_minimise(const at::Tensor& loss, Tensors params, Tensors exp_avgs, Tensors exp_avg_sqs,
                                  at::Tensor& step, AdamSettings settings) {
  return guarded([&] {
    const auto p = list(params), m = list(exp_avgs), v = list(exp_avg_sqs);
    check_lengths(p, m, v);
    {
      c10::NoGradGuard no_grad;
      step.add_(1);
    }
    // Whether a parameter was updated in the backward pass.
    std::vector<char> updated(p.size());
    const Pending now{p, m, v, Factors(settings, *step.const_data_ptr<float>()), reached_once(loss, p), updated};
    variable_list grads;
    {
      struct Clear {
        ~Clear() { pending = nullptr; }
      } clear;
      pending = &now;
      grads = ::torch::autograd::grad({loss}, p, {}, /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true);
    }
    const auto began = std::chrono::steady_clock::now();
    int64_t missing = -1;
    std::vector<at::Tensor> rest_p, rest_g, rest_m, rest_v;
    for (size_t i = 0; i < p.size(); ++i) {
      if (grads[i].defined()) {
        rest_p.push_back(p[i]), rest_g.push_back(grads[i]), rest_m.push_back(m[i]), rest_v.push_back(v[i]);
      } else if (!updated[i] && missing < 0) {
        missing = i;
      }
    }
    c10::NoGradGuard no_grad;
    if (!rest_p.empty()) adam(rest_p, rest_g, rest_m, rest_v, step, settings.lr, settings);
    return gv_minimised{std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count(), missing};
  });
}

// The global L2 norm of some gradients, a float32 scalar, and in `scaled` the gradients scaled down to a norm of at most `max_norm`
// (Pascanu et al. 2013, arXiv 1211.5063, section 3.2), without a synchronization. Not in place: two parameters may share one gradient
// tensor.
Outcome<at::Tensor*> gv_clip_grad_norm(Tensors grads, double max_norm, at::Tensor** scaled) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const std::vector<at::Tensor> g = list(grads);
    TORCH_CHECK(!g.empty(), "there are no gradients to take a norm of");
    const at::Tensor norm = at::stack(at::_foreach_norm(g)).norm();
    const std::vector<at::Tensor> clipped = at::_foreach_mul(g, at::reciprocal(norm + 1e-6).mul_(max_norm).clamp_max_(1));
    for (size_t i = 0; i < g.size(); ++i) scaled[i] = handle(clipped[i]);
    return handle(norm);
  });
}

// averages[i] += weight * (current[i] - averages[i]) for each pair; `on_device`, if given, is a float32 scalar that replaces `weight`.
Outcome<void> gv_foreach_lerp(Tensors averages, Tensors current, double weight, const at::Tensor* on_device) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const std::vector<at::Tensor> a = list(averages), c = list(current);
    TORCH_CHECK(a.size() == c.size(), a.size(), " averages of ", c.size(), " tensors: there must be as many of each");
    if (!on_device) return at::_foreach_lerp_(a, c, weight);
    const std::vector<at::Tensor> steps = at::_foreach_sub(c, a);
    at::_foreach_mul_(steps, *on_device);
    at::_foreach_add_(a, steps);
  });
}

}  // extern "C"
