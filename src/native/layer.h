// What layers with weights, a bias and an activation share; the activation is a (leaky) ReLU of `slope`, 1 for none.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

namespace ganvae {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// In place: x for x > 0, else slope x.
void activate(at::Tensor& x, double slope);

// Keeps what `Saved` gives back in the backward pass. Where there is no activation, y is not kept: the next layer may
// overwrite it.
void save(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& w, bool biased, const at::Tensor& y, double slope);

struct Saved {
  at::Tensor x, w, y;
  double slope;
  // Whether the bias, the third input, wants a gradient.
  bool biased;

  explicit Saved(AutogradContext* ctx);

  // The gradient before the activation from that after it, and its sum over all but the channels, for the bias.
  std::pair<at::Tensor, at::Tensor> before_activation(const at::Tensor& grad) const;
};

// x [B,C,H,W] in the layout asked for; several times faster than libtorch's copy from one to the other. Not recorded.
at::Tensor relaid(const at::Tensor& x, bool channels_last);

}  // namespace ganvae
