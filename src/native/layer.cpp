#include "layer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "rows.h"

namespace ganvae {

void activate(at::Tensor& x, double slope) {
  if (slope == 0) {
    at::relu_(x);
  } else if (slope != 1) {
    at::leaky_relu_(x, slope);
  }
}

void save(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& w, bool biased, const at::Tensor& y,
          double slope) {
  ctx->save_for_backward(slope == 1 ? variable_list{x, w} : variable_list{x, w, y});
  ctx->saved_data["slope"] = slope;
  ctx->saved_data["bias"] = biased;
}

Saved::Saved(AutogradContext* ctx) {
  const variable_list saved = ctx->get_saved_variables();
  slope = ctx->saved_data["slope"].toDouble();
  biased = ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2);
  x = saved[0];
  w = saved[1];
  if (slope != 1) y = saved[2];
}

std::pair<at::Tensor, at::Tensor> Saved::before_activation(const at::Tensor& grad) const {
  const bool image = grad.dim() == 4, gated = slope != 1;
  const auto rows_format = image ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  if (!gated && !biased) return {grad, {}};
  // Where a second derivative is recorded, or channels do not lie side by side, libtorch's own operations.
  if (at::GradMode::is_enabled() || !(gated ? y : grad).is_contiguous(rows_format)) {
    at::Tensor g = grad;
    if (gated) g = slope == 0 ? at::threshold_backward(grad, y, 0) : at::leaky_relu_backward(grad, y, slope, true);
    return {g, !biased ? at::Tensor() : image ? g.sum({0, 2, 3}) : g.sum(0)};
  }
  const at::Tensor after = image ? relaid(grad, true) : grad.contiguous();
  const int64_t c = after.size(1), rows = after.numel() / std::max<int64_t>(c, 1);
  const at::Tensor g = gated ? at::empty_like(y) : after;
  const float* in = after.const_data_ptr<float>();
  std::vector<double> sums;
  if (gated) {
    const float* ys = y.const_data_ptr<float>();
    float* out = g.mutable_data_ptr<float>();
    const float leak = slope;
    sums = sums_over_rows(rows, c, [&](int64_t from, int64_t n, float* s, float*) {
             gate_rows(in + from * c, ys + from * c, leak, n, c, out + from * c, s);
           }).first;
  } else {
    sums = sums_over_rows(rows, c, [&](int64_t from, int64_t n, float* s, float*) {
             add_rows(in + from * c, n, c, s);
           }).first;
  }
  if (!biased) return {g, {}};
  at::Tensor db = at::empty({c}, g.options());
  std::copy(sums.begin(), sums.begin() + c, db.mutable_data_ptr<float>());
  return {g, db};
}

at::Tensor relaid(const at::Tensor& x, bool channels_last) {
  const auto wanted = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  const auto other = channels_last ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast;
  if (x.is_contiguous(wanted) || !x.is_contiguous(other) || !x.is_cpu() || x.scalar_type() != at::kFloat) {
    return x.contiguous(wanted);
  }
  at::Tensor y = at::empty(x.sizes(), x.options(), wanted);
  const int64_t c = x.size(1), pixels = x.size(2) * x.size(3);
  const int64_t rows = channels_last ? c : pixels, cols = channels_last ? pixels : c;
  const float* in = x.const_data_ptr<float>();
  float* out = y.mutable_data_ptr<float>();
  at::parallel_for(0, x.size(0), std::max<int64_t>(1, 16384 / (c * pixels)), [&](int64_t from, int64_t to) {
    for (int64_t b = from; b < to; ++b) transpose(in + b * c * pixels, rows, cols, cols, out + b * c * pixels, rows);
  });
  return y;
}

}  // namespace ganvae
