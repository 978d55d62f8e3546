// Updates made inside the backward pass of a linear layer.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>

namespace ganvae {

// Applies one Adam update to the n weights from number `from` on, given their gradient. Any thread may call it.
using BlockUpdate = std::function<void(int64_t from, int64_t n, const float* g)>;

// The update of the weights w, if gv_minimise runs on this thread and wants it made here. The caller must then apply it to all of
// w, once, and give autograd no gradient of w.
std::optional<BlockUpdate> pending_update(const at::Tensor& w);

}  // namespace ganvae
