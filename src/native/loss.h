// What both forms of the loss share: loss.cpp (loops) and loss_ops.cpp (operations).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

namespace ganvae {

inline void refuse_second_derivative() {
  TORCH_CHECK(!c10::GradMode::is_enabled(), "this form of the loss has no second derivative");
}

// Whether t is float32 numbers of the shape and on the device of `like`.
inline void check_like(const at::Tensor& t, const at::Tensor& like) {
  TORCH_CHECK(t.sizes() == like.sizes() && t.scalar_type() == at::kFloat && t.device() == like.device(), "wanted float32 ",
              like.sizes(), " on ", like.device(), ", found ", t.scalar_type(), " ", t.sizes(), " on ", t.device());
}

// Whether t is a float32 scalar on the device of `like`.
inline void check_scalar(const at::Tensor& t, const at::Tensor& like) {
  TORCH_CHECK(t.dim() == 0 && t.scalar_type() == at::kFloat && t.device() == like.device(), "wanted a float32 scalar on ",
              like.device(), ", found ", t.scalar_type(), " ", t.sizes(), " on ", t.device());
}

}  // namespace ganvae
