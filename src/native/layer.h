// Shared by layers with weights, bias and activation. The activation is a (leaky) ReLU of `slope` (1: none).
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <utility>

#include "rows.h"

namespace ganvae {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// In place: x for x > 0, else slope x.
inline void activate(at::Tensor& x, double slope) {
  if (slope == 0) {
    at::relu_(x);
  } else if (slope != 1) {
    at::leaky_relu_(x, slope);
  }
}

// The gradient before an activation from the gradient after it and the activation's output y, by operations that autograd records.
inline at::Tensor before_activation(const at::Tensor& grad, const at::Tensor& y, double slope) {
  if (slope == 0) return at::threshold_backward(grad, y, 0);
  return slope == 1 ? grad : at::leaky_relu_backward(grad, y, slope, /*self_is_result=*/true);
}

// Saves the tensors for the backward pass (`Saved`). Without an activation y is not saved: the next layer may overwrite it.
inline void save(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& w, bool biased, const at::Tensor& y,
                 double slope) {
  ctx->save_for_backward(slope == 1 ? variable_list{x, w} : variable_list{x, w, y});
  ctx->saved_data["slope"] = slope;
  ctx->saved_data["bias"] = biased;
}

struct Saved {
  at::Tensor x, w, y;
  double slope;
  // Whether the bias, the third input, needs a gradient.
  bool biased;

  explicit Saved(AutogradContext* ctx) {
    const variable_list saved = ctx->get_saved_variables();
    slope = ctx->saved_data["slope"].toDouble();
    biased = ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2);
    x = saved[0];
    w = saved[1];
    if (slope != 1) y = saved[2];
  }

  // From the gradient after the activation: the gradient before it, and the bias gradient (its sum over all but the channels).
  // By libtorch's operations, which autograd records for a second derivative; for small rows [B,C], whose time is that of the calls,
  // in one loop.
  std::pair<at::Tensor, at::Tensor> before_activation(const at::Tensor& grad) const {
    if (grad.dim() == 2 && grad.numel() <= kSmall && !at::GradMode::is_enabled() && grad.is_cpu()) return gated(grad.contiguous());
    const at::Tensor g = ganvae::before_activation(grad, y, slope);
    return {g, !biased ? at::Tensor() : g.dim() == 4 ? g.sum({0, 2, 3}) : g.sum(0)};
  }

 private:
  static constexpr int64_t kSmall = 1 << 15;

  std::pair<at::Tensor, at::Tensor> gated(const at::Tensor& grad) const {
    const int64_t rows = grad.size(0), c = grad.size(1);
    const at::Tensor g = slope == 1 ? grad : at::empty_like(grad);
    const at::Tensor db = biased ? at::zeros({c}, grad.options()) : at::Tensor();
    const at::Tensor after = slope == 1 ? at::Tensor() : y.contiguous();
    const float* ys = slope == 1 ? nullptr : after.const_data_ptr<float>();
    gate_rows(grad.const_data_ptr<float>(), ys, static_cast<float>(slope), rows, c,
              ys ? g.mutable_data_ptr<float>() : nullptr, biased ? db.mutable_data_ptr<float>() : nullptr);
    return {g, db};
  }
};

}  // namespace ganvae
