// Updates made inside the backward pass of a linear layer.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>

namespace ganvae {

// Applies one Adam update to the n weights from index `from`, given their gradient. Any thread may call it.
using BlockUpdate = std::function<void(int64_t from, int64_t n, const float* g)>;

// The update of the weights w, if gv_minimise runs on this thread and w can be updated in the backward pass. The caller must then
// apply it to all of w exactly once and return no gradient of w to autograd.
std::optional<BlockUpdate> pending_update(const at::Tensor& w);

}  // namespace ganvae
