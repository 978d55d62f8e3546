// Layers in the forms that training chooses between, each with its backward pass.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/CPUBlas.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include "guard.h"

using ganvae::guarded;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

namespace {

// The loops over channels below are compiled for each width of vectors there is; the loader picks one.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define GANVAE_VECTOR __attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3", "no-trapping-math")))
#else
#define GANVAE_VECTOR
#endif

// Sums of (x - shift) and its square over rows x [R,C].
GANVAE_VECTOR void sum_rows(const float* __restrict x, const float* __restrict shift, int64_t rows, int64_t c, float* __restrict sums, float* __restrict squares) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * c;
    for (int64_t k = 0; k < c; ++k) {
      const float v = row[k] - shift[k];
      sums[k] += v;
      squares[k] += v * v;
    }
  }
}

// y = a x + b for a x + b > 0, else slope times that.
GANVAE_VECTOR void scale_rows(const float* __restrict x, const float* __restrict a, const float* __restrict b, float slope, int64_t rows, int64_t c, float* __restrict y) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < c; ++k) {
      const float v = x[r * c + k] * a[k] + b[k];
      y[r * c + k] = v > 0 ? v : slope * v;
    }
  }
}

// Sums of g and g (x - mean), where g is the gradient before the activation.
GANVAE_VECTOR void sum_grads(const float* __restrict g, const float* __restrict y, const float* __restrict x, const float* __restrict mean, float slope, int64_t rows,
                             int64_t c, float* __restrict sums, float* __restrict products) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < c; ++k) {
      const int64_t at = r * c + k;
      const float v = y[at] > 0 ? g[at] : slope * g[at];
      sums[k] += v;
      products[k] += v * (x[at] - mean[k]);
    }
  }
}

// dx = p g + q (x - mean) + s.
GANVAE_VECTOR void grad_rows(const float* __restrict g, const float* __restrict y, const float* __restrict x, const float* __restrict mean, const float* __restrict p,
                             const float* __restrict q, const float* __restrict s, float slope, int64_t rows, int64_t c, float* __restrict dx) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < c; ++k) {
      const int64_t at = r * c + k;
      const float v = y[at] > 0 ? g[at] : slope * g[at];
      dx[at] = p[k] * v + q[k] * (x[at] - mean[k]) + s[k];
    }
  }
}

// out = g where y > 0, else slope g; sums of it.
GANVAE_VECTOR void gate_rows(const float* __restrict g, const float* __restrict y, float slope, int64_t rows, int64_t c,
                             float* __restrict out, float* __restrict sums) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < c; ++k) {
      const float v = y[r * c + k] > 0 ? g[r * c + k] : slope * g[r * c + k];
      out[r * c + k] = v;
      sums[k] += v;
    }
  }
}

// Rows summed in float32 before they go into a double.
constexpr int64_t kRows = 64;

// Two sums over all rows, each [C] in double; `part(from, rows, a, b)` adds those of some rows to float a and b.
// Equal parts whatever the number of threads: the result does not depend on it.
template <class F>
std::pair<std::vector<double>, std::vector<double>> sums_over_rows(int64_t rows, int64_t c, const F& part) {
  const int64_t parts = std::min<int64_t>(32, (rows + kRows - 1) / kRows), each = (rows + parts - 1) / parts;
  std::vector<double> first(parts * c, 0.0), second(parts * c, 0.0);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> a(c), b(c);
    for (int64_t p = begin; p < end; ++p) {
      for (int64_t from = p * each; from < std::min(rows, (p + 1) * each); from += kRows) {
        std::fill(a.begin(), a.end(), 0.0f);
        std::fill(b.begin(), b.end(), 0.0f);
        part(from, std::min(kRows, std::min(rows, (p + 1) * each) - from), a.data(), b.data());
        for (int64_t k = 0; k < c; ++k) {
          first[p * c + k] += a[k];
          second[p * c + k] += b[k];
        }
      }
    }
  });
  for (int64_t p = 1; p < parts; ++p) {
    for (int64_t k = 0; k < c; ++k) {
      first[k] += first[p * c + k];
      second[k] += second[p * c + k];
    }
  }
  return {first, second};
}

// In place: x for x > 0, else slope x; 1 is none.
void activate(at::Tensor& x, double slope) {
  if (slope == 0) {
    at::relu_(x);
  } else if (slope != 1) {
    at::leaky_relu_(x, slope);
  }
}

// The layout in which the channels of each row lie side by side.
at::MemoryFormat rows_format(const at::Tensor& t) {
  return t.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

// From the gradient after a layer's activation to that before it, and its sum over all but the channels where a bias wants
// one. `saved` holds the activation's result as its third tensor where slope is not 1.
std::pair<at::Tensor, at::Tensor> before_activation(const at::Tensor& grad, const variable_list& saved, double slope,
                                                    bool biased) {
  const auto sum = [&](const at::Tensor& g) {
    if (!biased) return at::Tensor();
    return g.dim() == 4 ? g.sum({0, 2, 3}) : g.sum(0);
  };
  if (slope == 1) return {grad, sum(grad)};
  const at::Tensor& y = saved[2];
  if (at::GradMode::is_enabled() || !y.is_contiguous(rows_format(y))) {
    const at::Tensor g = slope == 0 ? at::threshold_backward(grad, y, 0) : at::leaky_relu_backward(grad, y, slope, true);
    return {g, sum(g)};
  }
  const at::Tensor after = grad.contiguous(rows_format(y));
  const int64_t c = y.size(1), rows = y.numel() / c;
  at::Tensor g = at::empty_like(y), db = biased ? at::empty({c}, y.options()) : at::Tensor();
  const float *gs = after.const_data_ptr<float>(), *ys = y.const_data_ptr<float>();
  float* out = g.mutable_data_ptr<float>();
  const auto [sums, none] = sums_over_rows(rows, c, [&](int64_t from, int64_t n, float* s, float*) {
    gate_rows(gs + from * c, ys + from * c, slope, n, c, out + from * c, s);
  });
  if (biased) std::copy(sums.begin(), sums.begin() + c, db.mutable_data_ptr<float>());
  return {g, db};
}

// a [M,K], b [N,K], bias [N] or none -> a b^T + bias [M,N], by oneDNN, not recorded; `after` is "none" or "relu".
at::Tensor onednn_product(const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& bias,
                          const char* after) {
  using Op = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, std::string_view,
                        c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_linear_pointwise", "").typed<Op>();
  return op.call(a, b, bias, after, c10::List<std::optional<at::Scalar>>(), "");
}

// y = x W^T + b, then a (leaky) ReLU of `slope`; 1 is none. x [B,I], W [O,I], b [O] -> y [B,O]. Only the gradients that are
// asked for are computed.
struct Linear : Function<Linear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& w,
                            const std::optional<at::Tensor>& b, double slope, bool onednn) {
    at::AutoDispatchBelowADInplaceOrView below;
    at::Tensor y;
    if (onednn) {
      y = onednn_product(x, w, b, slope == 0 ? "relu" : "none");
      if (slope != 0) activate(y, slope);
    } else {
      y = b ? at::addmm(*b, x, w.t()) : at::mm(x, w.t());
      activate(y, slope);
    }
    ctx->save_for_backward(slope == 1 ? variable_list{x, w} : variable_list{x, w, y});
    ctx->saved_data["slope"] = slope;
    ctx->saved_data["onednn"] = onednn;
    ctx->saved_data["bias"] = b.has_value();
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &w = saved[1];
    const bool biased = ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2);
    const auto [g, db] = before_activation(grads[0], saved, ctx->saved_data["slope"].toDouble(), biased);
    // oneDNN's products are not recorded: for a second derivative libtorch's own are.
    const bool onednn = ctx->saved_data["onednn"].toBool() && !at::GradMode::is_enabled();
    at::Tensor dx, dw;
    if (ctx->needs_input_grad(0)) dx = onednn ? onednn_product(g, w.t(), {}, "none") : at::mm(g, w);
    if (ctx->needs_input_grad(1)) dw = onednn ? onednn_product(g.t(), x.t(), {}, "none") : at::mm(g.t(), x);
    return {dx, dw, db, {}, {}};
  }
};

// The transposed 4x4 convolution of stride 2 and padding 1 to few channels, not recorded: x [B,I,H,W], w [I,O,4,4],
// bias [O] or none -> [B,O,2H,2W], channels last. One product for each image, [HW,I] x [I,16 O], whose result stays in the
// cache while its 16 shifted planes are summed (GEMM and col2im).
at::Tensor up_columns(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(input.dim() == 4 && input.size(1) == weight.size(0) && weight.size(2) == 4 && weight.size(3) == 4,
              "a transposed convolution with weights ", weight.sizes(), " cannot take ", input.sizes());
  const at::Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast), w = weight.contiguous();
  const int64_t batch = x.size(0), in = x.size(1), h = x.size(2), wd = x.size(3), out = w.size(1), taps = 16 * out;
  at::Tensor y = at::empty({batch, out, 2 * h, 2 * wd}, x.options(), at::MemoryFormat::ChannelsLast);
  const float *xs = x.const_data_ptr<float>(), *ws = w.const_data_ptr<float>();
  const float* bs = bias ? bias->const_data_ptr<float>() : nullptr;
  float* ys = y.mutable_data_ptr<float>();
  at::parallel_for(0, batch, 1, [&](int64_t from, int64_t to) {
    // A frame of zeros around the H x W columns: every output then has its four terms.
    std::vector<float> columns(h * wd * taps), framed((h + 2) * (wd + 2) * taps, 0.0f);
    for (int64_t b = from; b < to; ++b) {
      at::native::cpublas::brgemm(h * wd, taps, in, in, taps, taps, false, xs + b * h * wd * in, ws, columns.data());
      for (int64_t i = 0; i < h; ++i) {
        std::memcpy(&framed[((i + 1) * (wd + 2) + 1) * taps], &columns[i * wd * taps], wd * taps * sizeof(float));
      }
      float* image = ys + b * 4 * h * wd * out;
      for (int64_t r = 0; r < 2 * h; ++r) {
        // Row r gets tap kh of input row i where r = 2 i - 1 + kh: one of each parity pair.
        const int64_t kh = (r + 1) % 2, i = (r + 1 - kh) / 2;
        for (int64_t c = 0; c < 2 * wd; ++c) {
          const int64_t kw = (c + 1) % 2, j = (c + 1 - kw) / 2;
          const float* low = &framed[((i + 1) * (wd + 2) + j + 1) * taps + kh * 4 + kw];
          const float* high = low - (wd + 2) * taps + 8;
          for (int64_t o = 0; o < out; ++o) {
            const int64_t k = 16 * o;
            image[(r * 2 * wd + c) * out + o] =
                (bs ? bs[o] : 0.0f) + low[k] + low[k - taps + 2] + high[k] + high[k - taps + 2];
          }
        }
      }
    }
  });
  return y;
}

const std::vector<int64_t> kTwo = {2, 2}, kOne = {1, 1}, kNone = {0, 0};

// Channels that are few: libtorch's transposed convolutions to them leave most of a vector unused.
constexpr int64_t kFew = 4;

// The 4x4 convolution of stride 2 and padding 1, [B,I,2H,2W] -> [B,O,H,W], w [O,I,4,4], or its transpose,
// [B,I,H,W] -> [B,O,2H,2W], w [I,O,4,4], then a (leaky) ReLU of `slope`; 1 is none. Differs from libtorch's in speed: `up_columns` upwards to few channels, and the
// bias's gradient as a sum of its own, which oneDNN takes longer over than over the weights'.
template <bool transposed>
struct Strided : Function<Strided<transposed>> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& w,
                            const std::optional<at::Tensor>& b, double slope) {
    at::AutoDispatchBelowADInplaceOrView below;
    at::Tensor y;
    if (transposed) {
      y = w.size(1) <= kFew ? up_columns(x, w, b) : at::conv_transpose2d(x, w, b, kTwo, kOne);
    } else {
      y = at::conv2d(x, w, b, kTwo, kOne);
    }
    activate(y, slope);
    ctx->save_for_backward(slope == 1 ? variable_list{x, w} : variable_list{x, w, y});
    ctx->saved_data["slope"] = slope;
    ctx->saved_data["bias"] = b.has_value();
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &w = saved[1];
    const bool biased = ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2);
    const auto [g, db] = before_activation(grads[0], saved, ctx->saved_data["slope"].toDouble(), biased);
    const bool few = !transposed && w.size(1) <= kFew;
    const std::array<bool, 3> wanted = {ctx->needs_input_grad(0) && !few, ctx->needs_input_grad(1), false};
    at::Tensor dx, dw;
    if (wanted[0] || wanted[1]) {
      std::tie(dx, dw, std::ignore) = at::convolution_backward(g, x, w, {}, kTwo, kOne, kOne, transposed, kNone, 1, wanted);
    }
    if (few && ctx->needs_input_grad(0)) dx = Strided<true>::apply(g, w, std::nullopt, 1.0);
    return {dx, dw, db, {}};
  }
};

// in [rows,cols] -> out [cols,rows], in blocks that stay in the nearest cache.
GANVAE_VECTOR void transpose(const float* __restrict in, int64_t rows, int64_t cols, float* __restrict out) {
  constexpr int64_t block = 16;
  for (int64_t r0 = 0; r0 < rows; r0 += block) {
    const int64_t r1 = std::min(rows, r0 + block);
    for (int64_t c0 = 0; c0 < cols; c0 += block) {
      const int64_t c1 = std::min(cols, c0 + block);
      for (int64_t c = c0; c < c1; ++c) {
        for (int64_t r = r0; r < r1; ++r) out[c * rows + r] = in[r * cols + c];
      }
    }
  }
}

// x [B,C,H,W] in the layout asked for; several times faster than libtorch's copy from one to the other. Not recorded.
at::Tensor relaid(const at::Tensor& x, bool last) {
  const auto wanted = last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  const auto other = last ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast;
  if (x.is_contiguous(wanted) || !x.is_contiguous(other) || !x.is_cpu() || x.scalar_type() != at::kFloat) {
    return x.contiguous(wanted);
  }
  at::Tensor y = at::empty(x.sizes(), x.options(), wanted);
  const int64_t c = x.size(1), s = x.size(2) * x.size(3);
  const float* in = x.const_data_ptr<float>();
  float* out = y.mutable_data_ptr<float>();
  at::parallel_for(0, x.size(0), std::max<int64_t>(1, 16384 / (c * s)), [&](int64_t from, int64_t to) {
    for (int64_t b = from; b < to; ++b) transpose(in + b * c * s, last ? c : s, last ? s : c, out + b * c * s);
  });
  return y;
}

// `relaid`, its gradient laid out the other way round again.
struct Relayout : Function<Relayout> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, bool last) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["last"] = last;
    return relaid(x, last);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return {apply(grads[0], !ctx->saved_data["last"].toBool()), {}};
  }
};

// Batch normalisation over all but the channels, from the batch's statistics, and a (leaky) ReLU of `slope`; 1 is none.
// x [B,C,H,W] channels last, w, b [C]; the running statistics follow with `momentum` where they are given.
// Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm 1, and its gradients in section 3.
struct NormRelu : Function<NormRelu> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& w, const at::Tensor& b,
                            const std::optional<at::Tensor>& running_mean, const std::optional<at::Tensor>& running_var,
                            double momentum, double eps, double slope) {
    at::AutoDispatchBelowADInplaceOrView below;
    TORCH_CHECK(input.dim() == 4 && w.numel() == input.size(1) && b.numel() == input.size(1),
                "batch normalisation of ", w.numel(), " channels cannot take ", input.sizes());
    const at::Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast);
    const int64_t c = x.size(1), rows = x.numel() / c;
    const float* xs = x.const_data_ptr<float>();
    const auto [sums, squares] = sums_over_rows(rows, c, [&](int64_t from, int64_t n, float* s, float* q) {
      sum_rows(xs + from * c, xs, n, c, s, q);  // shifted by the first row, against cancellation
    });
    at::Tensor mean = at::empty({c}, x.options()), invstd = at::empty({c}, x.options());
    at::Tensor y = at::empty_like(x);
    std::vector<float> scale(c), shift(c);
    const float *ws = w.const_data_ptr<float>(), *bs = b.const_data_ptr<float>();
    float* rm = running_mean ? running_mean->mutable_data_ptr<float>() : nullptr;
    float* rv = running_var ? running_var->mutable_data_ptr<float>() : nullptr;
    for (int64_t k = 0; k < c; ++k) {
      const double m = sums[k] / rows, var = std::max(0.0, squares[k] / rows - m * m), full = m + xs[k];
      const double inv = 1 / std::sqrt(var + eps);
      mean.mutable_data_ptr<float>()[k] = full;
      invstd.mutable_data_ptr<float>()[k] = inv;
      scale[k] = ws[k] * inv;
      shift[k] = bs[k] - full * ws[k] * inv;
      if (rm) rm[k] += momentum * (full - rm[k]);
      if (rv) rv[k] += momentum * (var * rows / std::max<int64_t>(rows - 1, 1) - rv[k]);
    }
    float* ys = y.mutable_data_ptr<float>();
    at::parallel_for(0, rows, kRows, [&](int64_t from, int64_t to) {
      scale_rows(xs + from * c, scale.data(), shift.data(), slope, to - from, c, ys + from * c);
    });
    // Without an activation of its own, y may be overwritten by the one that follows; the gate then looks at nothing.
    ctx->save_for_backward({x, slope == 1 ? x : y, w, mean, invstd});
    ctx->saved_data["slope"] = slope;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &y = saved[1], &w = saved[2], &mean = saved[3], &invstd = saved[4];
    const float slope = ctx->saved_data["slope"].toDouble();
    TORCH_CHECK(!at::GradMode::is_enabled(), "this form of batch normalisation has no second derivative");
    const at::Tensor grad = grads[0].contiguous(at::MemoryFormat::ChannelsLast);
    const int64_t c = x.size(1), rows = x.numel() / c;
    const float *g = grad.const_data_ptr<float>(), *ys = y.const_data_ptr<float>(), *xs = x.const_data_ptr<float>();
    const float *m = mean.const_data_ptr<float>(), *inv = invstd.const_data_ptr<float>(), *ws = w.const_data_ptr<float>();
    const auto [sums, products] = sums_over_rows(rows, c, [&](int64_t from, int64_t n, float* s, float* p) {
      sum_grads(g + from * c, ys + from * c, xs + from * c, m, slope, n, c, s, p);
    });
    at::Tensor dw = at::empty_like(w), db = at::empty_like(w), dx = at::empty_like(x);
    std::vector<float> p(c), q(c), s(c);
    for (int64_t k = 0; k < c; ++k) {
      dw.mutable_data_ptr<float>()[k] = products[k] * inv[k];
      db.mutable_data_ptr<float>()[k] = sums[k];
      p[k] = ws[k] * inv[k];
      q[k] = -p[k] * products[k] * inv[k] * inv[k] / rows;
      s[k] = -p[k] * sums[k] / rows;
    }
    float* out = dx.mutable_data_ptr<float>();
    at::parallel_for(0, rows, kRows, [&](int64_t from, int64_t to) {
      const int64_t at = from * c;
      grad_rows(g + at, ys + at, xs + at, m, p.data(), q.data(), s.data(), slope, to - from, c, out + at);
    });
    return {dx, dw, db, {}, {}, {}, {}, {}};
  }
};

}  // namespace

extern "C" {

// x W^T + b, then a leaky ReLU, recorded by autograd; b may be null.
char* gv_linear(at::Tensor** out, at::Tensor* x, at::Tensor* w, at::Tensor* b, double slope, bool onednn) {
  return guarded([&] {
    *out = new at::Tensor(Linear::apply(*x, *w, b ? std::optional(*b) : std::nullopt, slope, onednn));
  });
}

// The 4x4 convolution of stride 2 and padding 1, or its transpose, then a leaky ReLU; b may be null.
char* gv_strided(at::Tensor** out, at::Tensor* x, at::Tensor* w, at::Tensor* b, bool transposed, double slope) {
  return guarded([&] {
    const auto bias = b ? std::optional(*b) : std::nullopt;
    *out = new at::Tensor(transposed ? Strided<true>::apply(*x, *w, bias, slope)
                                     : Strided<false>::apply(*x, *w, bias, slope));
  });
}

// A gradient of that convolution alone, not recorded: of its input or of its weights.
char* gv_strided_gradient(at::Tensor** out, at::Tensor* g, at::Tensor* x, at::Tensor* w, bool transposed, bool of_input) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const auto [dx, dw, db] = at::convolution_backward(*g, *x, *w, {}, kTwo, kOne, kOne, transposed, kNone, 1,
                                                       {of_input, !of_input, false});
    *out = new at::Tensor(of_input ? dx : dw);
  });
}

// Batch normalisation from the batch's statistics, then a leaky ReLU; the running statistics may be null.
char* gv_norm_relu(at::Tensor** out, at::Tensor* x, at::Tensor* w, at::Tensor* b, at::Tensor* mean, at::Tensor* var,
                   double momentum, double eps, double slope) {
  return guarded([&] {
    *out = new at::Tensor(NormRelu::apply(*x, *w, *b, mean ? std::optional(*mean) : std::nullopt,
                                          var ? std::optional(*var) : std::nullopt, momentum, eps, slope));
  });
}

// x for x > 0, else slope * x, in place, recorded by autograd.
char* gv_leaky_relu(at::Tensor* x, double slope) {
  return guarded([&] { at::leaky_relu_(*x, slope); });
}

// x [B,C,H,W] with the channels of a pixel side by side in memory; the same tensor where they are already.
char* gv_channels_last(at::Tensor** out, at::Tensor* x) {
  return guarded([&] {
    if (x->size(1) == 1 && x->is_contiguous()) {
      // One channel lies the same either way; the strides must say so, or convolutions take it for contiguous.
      *out = new at::Tensor(x->as_strided(x->sizes(), {x->stride(0), 1, x->stride(2), 1}));
    } else if (x->is_contiguous(at::MemoryFormat::ChannelsLast)) {
      *out = new at::Tensor(*x);
    } else {
      *out = new at::Tensor(Relayout::apply(*x, true));
    }
  });
}

// x [B,C,H,W] with the pixels of a channel side by side in memory; the same tensor where they are already.
char* gv_contiguous(at::Tensor** out, at::Tensor* x) {
  return guarded([&] { *out = new at::Tensor(x->is_contiguous() ? *x : at::Tensor(Relayout::apply(*x, false))); });
}

}  // extern "C"
