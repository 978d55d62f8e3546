// Updates made inside a layer's backward pass.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>

namespace ganvae {

// Takes the n weights from number `from` on one Adam update further, given their gradient. Any thread may call it.
using BlockUpdate = std::function<void(int64_t from, int64_t n, const float* g)>;

// The update of the weights w that the training step under way on this thread waits for, if the caller is the only one to
// give them a gradient. Whoever takes it must apply it to all of w, once, and give autograd no gradient of w.
std::optional<BlockUpdate> pending_update(const at::Tensor& w);

}  // namespace ganvae
