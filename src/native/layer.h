// Shared by layers with weights, bias and activation. The activation is a (leaky) ReLU of `slope` (1: none).
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <utility>

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
  // By libtorch's operations, which autograd records for a second derivative.
  std::pair<at::Tensor, at::Tensor> before_activation(const at::Tensor& grad) const {
    const at::Tensor g = ganvae::before_activation(grad, y, slope);
    return {g, !biased ? at::Tensor() : g.dim() == 4 ? g.sum({0, 2, 3}) : g.sum(0)};
  }
};

}  // namespace ganvae
