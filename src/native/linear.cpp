// Linear layers with three matmul backends: libtorch's BLAS, oneDNN's matmul, oneDNN's block kernel (brgemm).
//
// Gain (AMD EPYC, AVX-512, 2 threads, ms per step with BLAS and with oneDNN by size): article VAE 94.2, 73.0; article GAN 107.6, 79.3;
// small VAE (784-200-50, batch 20) 0.85, 0.56. All by brgemm: 76.3, 79.4, 0.56; all by oneDNN's matmul: 74.5, 77.8, 0.78.
// On an Intel Xeon: article VAE 62.8 and 60.9, article GAN 69.3 and 69.7, small VAE 1.20 and 1.23: hence the choice is tuned.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>

#include "guard.h"
#include "layer.h"
#include "optim.h"
#include "rows.h"

using namespace ganvae;

namespace {

// Numbered as in layers.rs.
enum class Matmul : int32_t { blas, onednn, brgemm };

// a [M,K], b [N,K], bias [N] or none -> a b^T + bias [M,N], by oneDNN, without autograd.
at::Tensor onednn_matmul(const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& bias) {
  using Op = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, std::string_view,
                        c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_linear_pointwise", "").typed<Op>();
  return op.call(a, b, bias, "none", c10::List<std::optional<at::Scalar>>(), "");
}

// A range split into equal chunks; their length is a multiple of `unit`.
struct Chunks {
  int64_t all, each, count;

  // A multiple of the thread count, with chunks of at most `longest`, but fewer if a chunk had less than about 5 us of work. One
  // element of the range takes `work` multiplications.
  Chunks(int64_t range, int64_t unit, int64_t longest, int64_t work) : all(range) {
    const int64_t threads = at::get_num_threads();
    const int64_t wanted = threads * ((range + threads * longest - 1) / (threads * longest));
    const int64_t chunks = std::clamp<int64_t>(range * work >> 18, (range + longest - 1) / longest, wanted);
    each = ((range + chunks - 1) / chunks + unit - 1) / unit * unit;
    count = (range + each - 1) / each;
  }

  // Calls f(from, length) for each chunk, on all threads.
  template <class F>
  void run(const F& f) const {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i * each, std::min(each, all - i * each));
    });
  }
};

// Depth of a block in k: its operands fit the L2 cache.
constexpr int64_t kDepth = 512;

// c [m,n] = a [m,k] b [k,n], each with its row stride, on this thread. The order of summation is the same for any m and n, so
// results do not depend on the block size.
void block(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row, const float* b, int64_t b_row, float* c,
           int64_t c_row) {
  for (int64_t from = 0; from < k;) {
    const int64_t depth = k - from < 2 * kDepth ? k - from : kDepth;
    at::native::cpublas::brgemm(m, n, depth, a_row, b_row, c_row, from > 0, a + from, b + from * b_row, c);
    from += depth;
  }
}

// [R,C] -> [C,R].
std::vector<float> transposed(const float* in, int64_t rows, int64_t cols) {
  std::vector<float> out(rows * cols);
  Chunks(cols, 16, 64, rows * 8).run([&](int64_t from, int64_t n) {
    transpose(in + from, rows, n, cols, out.data() + from * rows, rows);
  });
  return out;
}

// x [B,I], w [O,I], bias [O] or none -> x w^T + bias [B,O], then an activation. Computed as (w x^T)^T, so w is read in place.
at::Tensor brgemm_forward(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                          double slope) {
  const at::Tensor x = input.contiguous(), w = weight.contiguous();
  const int64_t b = x.size(0), i = x.size(1), o = w.size(0);
  at::Tensor y = at::empty({b, o}, x.options());
  const std::vector<float> xt = transposed(x.const_data_ptr<float>(), b, i);
  const float *ws = w.const_data_ptr<float>(), *bs = bias ? bias->const_data_ptr<float>() : nullptr;
  float* ys = y.mutable_data_ptr<float>();
  const float leak = slope;
  Chunks(o, 1, 64, b * i).run([&](int64_t from, int64_t n) {
    std::vector<float> yt(n * b);
    block(n, b, i, ws + from * i, i, xt.data(), b, yt.data(), b);
    shift_rows(yt.data(), bs ? bs + from : nullptr, leak, n, b);
    transpose(yt.data(), n, b, b, ys + from, o);
  });
  return y;
}

// g [B,O], w [O,I] -> g w [B,I].
at::Tensor brgemm_input_gradient(const at::Tensor& grad, const at::Tensor& weight) {
  const at::Tensor g = grad.contiguous(), w = weight.contiguous();
  const int64_t b = g.size(0), o = g.size(1), i = w.size(1);
  at::Tensor dx = at::empty({b, i}, g.options());
  const float *gs = g.const_data_ptr<float>(), *ws = w.const_data_ptr<float>();
  float* out = dx.mutable_data_ptr<float>();
  Chunks(i, 16, 256, b * o).run([&](int64_t from, int64_t n) { block(b, n, o, gs, o, ws + from, i, out + from, i); });
  return dx;
}

// g [B,O], x [B,I] -> g^T x [O,I].
at::Tensor brgemm_weight_gradient(const at::Tensor& grad, const at::Tensor& input) {
  const at::Tensor g = grad.contiguous(), x = input.contiguous();
  const int64_t b = g.size(0), o = g.size(1), i = x.size(1);
  at::Tensor dw = at::empty({o, i}, g.options());
  const std::vector<float> gt = transposed(g.const_data_ptr<float>(), b, o);
  const float* xs = x.const_data_ptr<float>();
  float* out = dw.mutable_data_ptr<float>();
  Chunks(o, 1, 64, b * i).run([&](int64_t from, int64_t n) {
    block(n, i, b, gt.data() + from * b, b, xs, i, out + from * i, i);
  });
  return dw;
}

// Columns of a block of weights: its gradient fits the L2 cache.
constexpr int64_t kColumns = 1024;

// The gradient g^T x as above; each block updates its weights while it is in the cache.
void brgemm_weight_update(const at::Tensor& grad, const at::Tensor& input, const BlockUpdate& update) {
  const at::Tensor g = grad.contiguous(), x = input.contiguous();
  const int64_t b = g.size(0), o = g.size(1), i = x.size(1);
  const std::vector<float> gt = transposed(g.const_data_ptr<float>(), b, o);
  const float* xs = x.const_data_ptr<float>();
  Chunks(o, 1, 64, b * i).run([&](int64_t from, int64_t n) {
    std::vector<float> dw(n * std::min(i, kColumns));
    for (int64_t column = 0; column < i; column += kColumns) {
      const int64_t columns = std::min(kColumns, i - column);
      block(n, columns, b, gt.data() + from * b, b, xs + column, i, dw.data(), columns);
      if (columns == i) {
        update(from * i, n * i, dw.data());
      } else {
        for (int64_t r = 0; r < n; ++r) update((from + r) * i + column, columns, dw.data() + r * columns);
      }
    }
  });
}

at::Tensor input_gradient(const at::Tensor& g, const at::Tensor& w, Matmul matmul) {
  switch (matmul) {
    case Matmul::onednn:
      return onednn_matmul(g, w.t(), {});
    case Matmul::brgemm:
      return brgemm_input_gradient(g, w);
    default:
      return at::mm(g, w);
  }
}

at::Tensor weight_gradient(const at::Tensor& g, const at::Tensor& x, Matmul matmul) {
  switch (matmul) {
    case Matmul::onednn:
      return onednn_matmul(g.t(), x.t(), {});
    case Matmul::brgemm:
      return brgemm_weight_gradient(g, x);
    default:
      return at::mm(g.t(), x);
  }
}

// y = x W^T + b, then an activation. x [B,I], W [O,I], b [O] -> y [B,O]. Computes only the gradients that autograd needs.
struct Linear : Function<Linear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& w,
                            const std::optional<at::Tensor>& b, double slope, int64_t backend) {
    at::AutoDispatchBelowADInplaceOrView below;
    TORCH_CHECK(x.dim() == 2 && w.dim() == 2 && x.size(1) == w.size(1) && (!b || b->numel() == w.size(0)),
                "weights ", w.sizes(), " cannot take ", x.sizes());
    at::Tensor y;
    switch (static_cast<Matmul>(backend)) {
      case Matmul::onednn:
        // oneDNN's fused ReLU would turn NaN into 0 and hide a divergence.
        y = onednn_matmul(x, w, b);
        activate(y, slope);
        break;
      case Matmul::brgemm:
        y = brgemm_forward(x, w, b, slope);
        break;
      case Matmul::blas:
        y = b ? at::addmm(*b, x, w.t()) : at::mm(x, w.t());
        activate(y, slope);
    }
    save(ctx, x, w, b.has_value(), y, slope);
    ctx->saved_data["matmul"] = backend;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Saved saved(ctx);
    const auto [g, db] = saved.before_activation(grads[0]);
    auto matmul = static_cast<Matmul>(ctx->saved_data["matmul"].toInt());
    // A second derivative needs operations that autograd records: libtorch's.
    if (at::GradMode::is_enabled()) matmul = Matmul::blas;
    at::Tensor dx, dw;
    if (ctx->needs_input_grad(0)) dx = input_gradient(g, saved.w, matmul);
    if (ctx->needs_input_grad(1)) {
      // After the gradient of x, which needs the weights before their update.
      if (const auto update = matmul == Matmul::blas ? std::nullopt : pending_update(saved.w)) {
        brgemm_weight_update(g, saved.x, *update);
      } else {
        dw = weight_gradient(g, saved.x, matmul);
      }
    }
    return {dx, dw, db, {}, {}};
  }
};

}  // namespace

extern "C" {

// One gradient of x W^T, without autograd: of x or of W, given the gradient g of the result.
Outcome<at::Tensor*> gv_linear_gradient(const at::Tensor& g, const at::Tensor& x, const at::Tensor& w, bool of_input,
                                        int32_t backend) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const auto matmul = static_cast<Matmul>(backend);
    return handle(of_input ? input_gradient(g, w, matmul) : weight_gradient(g, x, matmul));
  });
}

// x W^T + b, then a leaky ReLU, recorded by autograd; b may be null.
Outcome<at::Tensor*> gv_linear(const at::Tensor& x, const at::Tensor& w, const at::Tensor* b, double slope, int32_t backend) {
  return guarded([&] { return handle(Linear::apply(x, w, optional(b), slope, int64_t{backend})); });
}

}  // extern "C"
