// Linear layers whose matrices are multiplied by libtorch's BLAS, by oneDNN's matmul or by oneDNN's kernel for blocks (brgemm).
//
// What it gives (AMD EPYC, AVX-512, 2 threads, ms a step): BLAS, and oneDNN by size: article VAE 94.2, 73.0; article GAN 107.6, 79.3;
// small VAE (784-200-50, batch 20) 0.85, 0.56. All by brgemm: 76.3, 79.4, 0.56; all by oneDNN's matmul: 74.5, 77.8, 0.78.
// On an Intel Xeon: article VAE 62.8 and 60.9, article GAN 69.3 and 69.7, small VAE 1.20 and 1.23: there the choice is tuned.

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

// As layers.rs numbers them.
enum class Products : int32_t { blas, onednn, brgemm };

// a [M,K], b [N,K], bias [N] or none -> a b^T + bias [M,N], by oneDNN, not recorded.
at::Tensor onednn_product(const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& bias) {
  using Op = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, std::string_view,
                        c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_linear_pointwise", "").typed<Op>();
  return op.call(a, b, bias, "none", c10::List<std::optional<at::Scalar>>(), "");
}

// A range cut into equal pieces, each a multiple of `unit` long.
struct Pieces {
  int64_t all, each, count;

  // As many as keep every thread busy with pieces no longer than `most`, yet none of less than about 5 us of work, where one
  // element of the range is `work` multiplications.
  Pieces(int64_t range, int64_t unit, int64_t most, int64_t work) : all(range) {
    const int64_t threads = at::get_num_threads();
    const int64_t wanted = threads * ((range + threads * most - 1) / (threads * most));
    const int64_t pieces = std::clamp<int64_t>(range * work >> 18, (range + most - 1) / most, wanted);
    each = ((range + pieces - 1) / pieces + unit - 1) / unit * unit;
    count = (range + each - 1) / each;
  }

  // Calls f(from, length) for each, on all threads.
  template <class F>
  void run(const F& f) const {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(i * each, std::min(each, all - i * each));
    });
  }
};

// Summed terms at a time: what a block of theirs takes fits the second cache.
constexpr int64_t kTerms = 512;

// c [m,n] = a [m,k] b [k,n], each with the distance of its rows, on this thread. Sums in the same order for any m and n:
// results do not depend on how a product is cut into blocks.
void block(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row, const float* b, int64_t b_row, float* c,
           int64_t c_row) {
  for (int64_t from = 0; from < k;) {
    const int64_t terms = k - from < 2 * kTerms ? k - from : kTerms;
    at::native::cpublas::brgemm(m, n, terms, a_row, b_row, c_row, from > 0, a + from, b + from * b_row, c);
    from += terms;
  }
}

// [R,C] -> [C,R].
std::vector<float> turned(const float* in, int64_t rows, int64_t cols) {
  std::vector<float> out(rows * cols);
  Pieces(cols, 16, 64, rows * 8).run([&](int64_t from, int64_t n) {
    transpose(in + from, rows, n, cols, out.data() + from * rows, rows);
  });
  return out;
}

// x [B,I], w [O,I], bias [O] or none -> x w^T + bias, then an activation [B,O]. Turned around, w x^T: so w is read in place.
at::Tensor brgemm_forward(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                          double slope) {
  const at::Tensor x = input.contiguous(), w = weight.contiguous();
  const int64_t b = x.size(0), i = x.size(1), o = w.size(0);
  at::Tensor y = at::empty({b, o}, x.options());
  const std::vector<float> xt = turned(x.const_data_ptr<float>(), b, i);
  const float *ws = w.const_data_ptr<float>(), *bs = bias ? bias->const_data_ptr<float>() : nullptr;
  float* ys = y.mutable_data_ptr<float>();
  const float leak = slope;
  Pieces(o, 1, 64, b * i).run([&](int64_t from, int64_t n) {
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
  Pieces(i, 16, 256, b * o).run([&](int64_t from, int64_t n) { block(b, n, o, gs, o, ws + from, i, out + from, i); });
  return dx;
}

// g [B,O], x [B,I] -> g^T x [O,I].
at::Tensor brgemm_weight_gradient(const at::Tensor& grad, const at::Tensor& input) {
  const at::Tensor g = grad.contiguous(), x = input.contiguous();
  const int64_t b = g.size(0), o = g.size(1), i = x.size(1);
  at::Tensor dw = at::empty({o, i}, g.options());
  const std::vector<float> gt = turned(g.const_data_ptr<float>(), b, o);
  const float* xs = x.const_data_ptr<float>();
  float* out = dw.mutable_data_ptr<float>();
  Pieces(o, 1, 64, b * i).run([&](int64_t from, int64_t n) {
    block(n, i, b, gt.data() + from * b, b, xs, i, out + from * i, i);
  });
  return dw;
}

// Columns of a block of weights whose gradient stays in the second cache until it is used.
constexpr int64_t kColumns = 1024;

// The gradient g^T x as above, each block of it used for the update of its weights while it is still in the cache.
void brgemm_weight_update(const at::Tensor& grad, const at::Tensor& input, const BlockUpdate& update) {
  const at::Tensor g = grad.contiguous(), x = input.contiguous();
  const int64_t b = g.size(0), o = g.size(1), i = x.size(1);
  const std::vector<float> gt = turned(g.const_data_ptr<float>(), b, o);
  const float* xs = x.const_data_ptr<float>();
  Pieces(o, 1, 64, b * i).run([&](int64_t from, int64_t n) {
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

at::Tensor input_gradient(const at::Tensor& g, const at::Tensor& w, Products products) {
  switch (products) {
    case Products::onednn:
      return onednn_product(g, w.t(), {});
    case Products::brgemm:
      return brgemm_input_gradient(g, w);
    default:
      return at::mm(g, w);
  }
}

at::Tensor weight_gradient(const at::Tensor& g, const at::Tensor& x, Products products) {
  switch (products) {
    case Products::onednn:
      return onednn_product(g.t(), x.t(), {});
    case Products::brgemm:
      return brgemm_weight_gradient(g, x);
    default:
      return at::mm(g.t(), x);
  }
}

// y = x W^T + b, then an activation. x [B,I], W [O,I], b [O] -> y [B,O]. Only the gradients that are asked for are computed.
struct Linear : Function<Linear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& w,
                            const std::optional<at::Tensor>& b, double slope, int64_t products) {
    at::AutoDispatchBelowADInplaceOrView below;
    TORCH_CHECK(x.dim() == 2 && w.dim() == 2 && x.size(1) == w.size(1) && (!b || b->numel() == w.size(0)),
                "weights ", w.sizes(), " cannot take ", x.sizes());
    at::Tensor y;
    switch (static_cast<Products>(products)) {
      case Products::onednn:
        // Its own ReLU would turn NaN into 0, and hide a divergence.
        y = onednn_product(x, w, b);
        activate(y, slope);
        break;
      case Products::brgemm:
        y = brgemm_forward(x, w, b, slope);
        break;
      case Products::blas:
        y = b ? at::addmm(*b, x, w.t()) : at::mm(x, w.t());
        activate(y, slope);
    }
    save(ctx, x, w, b.has_value(), y, slope);
    ctx->saved_data["products"] = products;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Saved saved(ctx);
    const auto [g, db] = saved.before_activation(grads[0]);
    auto products = static_cast<Products>(ctx->saved_data["products"].toInt());
    // Only libtorch's own are recorded, as a second derivative needs.
    if (at::GradMode::is_enabled()) products = Products::blas;
    at::Tensor dx, dw;
    if (ctx->needs_input_grad(0)) dx = input_gradient(g, saved.w, products);
    if (ctx->needs_input_grad(1)) {
      // After the gradient of x, which is that of the weights before their update.
      if (const auto update = products == Products::blas ? std::nullopt : pending_update(saved.w)) {
        brgemm_weight_update(g, saved.x, *update);
      } else {
        dw = weight_gradient(g, saved.x, products);
      }
    }
    return {dx, dw, db, {}, {}};
  }
};

}  // namespace

extern "C" {

// The gradient of x W^T alone, not recorded: of x, or of W, given g, that of the result.
char* gv_linear_gradient(at::Tensor** out, at::Tensor* g, at::Tensor* x, at::Tensor* w, bool of_input, int32_t products) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    *out = new at::Tensor(of_input ? input_gradient(*g, *w, static_cast<Products>(products))
                                   : weight_gradient(*g, *x, static_cast<Products>(products)));
  });
}

// x W^T + b, then a leaky ReLU, recorded by autograd; b may be null.
char* gv_linear(at::Tensor** out, at::Tensor* x, at::Tensor* w, at::Tensor* b, double slope, int32_t products) {
  return guarded([&] {
    *out = new at::Tensor(Linear::apply(*x, *w, b ? std::optional(*b) : std::nullopt, slope, int64_t{products}));
  });
}

}  // extern "C"
