// 4x4 convolutions of stride 2, their transpose, and the layout of images in memory.
//
// Gain (AMD EPYC, AVX-512, 2 threads, channels-last, ms per step without and with): conv-vae 27.1 and 24.0, dcgan 190 and 176; of this,
// `gemm_col2im` alone 25.7 and 24.0, 182 and 176. On an Intel Xeon, with the other files: 27.4 and 22.5, 172 and 163.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>

#include <array>

#include "guard.h"
#include "layer.h"

using namespace ganvae;

namespace {

// The transposed 4x4 convolution of stride 2 and padding 1 to few channels, without autograd: x [B,I,H,W], w [I,O,4,4],
// bias [O] or none -> [B,O,2H,2W], channels last. Per image one matmul [HW,I] x [I,16 O], then col2im while the result is in
// the cache.
at::Tensor gemm_col2im(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(input.dim() == 4 && input.size(1) == weight.size(0) && weight.size(2) == 4 && weight.size(3) == 4,
              "a transposed convolution with weights ", weight.sizes(), " cannot take ", input.sizes());
  const at::Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast), w = weight.contiguous();
  const int64_t batch = x.size(0), in = x.size(1), h = x.size(2), wd = x.size(3), out = w.size(1), taps = 16 * out;
  at::Tensor y = at::empty({batch, out, 2 * h, 2 * wd}, x.options(), at::MemoryFormat::ChannelsLast);
  const float *xs = x.const_data_ptr<float>(), *ws = w.const_data_ptr<float>();
  const float* bs = bias ? bias->const_data_ptr<float>() : nullptr;
  float* ys = y.mutable_data_ptr<float>();
  at::parallel_for(0, batch, 1, [&](int64_t from, int64_t to) {
    // Zero padding around the H x W columns: every output then has its four terms.
    std::vector<float> columns(h * wd * taps), framed((h + 2) * (wd + 2) * taps, 0.0f);
    for (int64_t b = from; b < to; ++b) {
      at::native::cpublas::brgemm(h * wd, taps, in, in, taps, taps, false, xs + b * h * wd * in, ws, columns.data());
      for (int64_t i = 0; i < h; ++i) {
        std::memcpy(&framed[((i + 1) * (wd + 2) + 1) * taps], &columns[i * wd * taps], wd * taps * sizeof(float));
      }
      float* image = ys + b * 4 * h * wd * out;
      for (int64_t r = 0; r < 2 * h; ++r) {
        // Row r gets tap kh of input row i where r = 2 i - 1 + kh: two taps of equal parity.
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

// With at most this many output channels, libtorch's transposed convolutions leave most of a vector register unused.
constexpr int64_t kFew = 4;

// The 4x4 convolution of stride 2 and padding 1, [B,I,2H,2W] -> [B,O,H,W], w [O,I,4,4], or its transpose,
// [B,I,H,W] -> [B,O,2H,2W], w [I,O,4,4], then an activation. Faster than libtorch's: `gemm_col2im` when upsampling to few
// channels, and the bias gradient as a separate sum (oneDNN takes longer for it than for the weight gradient).
template <bool transposed>
struct Strided : Function<Strided<transposed>> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& w,
                            const std::optional<at::Tensor>& b, double slope) {
    at::AutoDispatchBelowADInplaceOrView below;
    at::Tensor y;
    if (transposed) {
      y = w.size(1) <= kFew ? gemm_col2im(x, w, b) : at::conv_transpose2d(x, w, b, kTwo, kOne);
    } else {
      y = at::conv2d(x, w, b, kTwo, kOne);
    }
    activate(y, slope);
    save(ctx, x, w, b.has_value(), y, slope);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Saved saved(ctx);
    const at::Tensor &x = saved.x, &w = saved.w;
    const auto [g, db] = saved.before_activation(grads[0]);
    const bool few = !transposed && w.size(1) <= kFew;
    const std::array<bool, 3> wanted = {ctx->needs_input_grad(0) && !few, ctx->needs_input_grad(1), false};
    at::Tensor dx, dw;
    if (wanted[0] || wanted[1]) {
      std::tie(dx, dw, std::ignore) =
          at::convolution_backward(g, x, w, {}, kTwo, kOne, kOne, transposed, kNone, 1, wanted);
    }
    if (few && ctx->needs_input_grad(0)) dx = Strided<true>::apply(g, w, std::nullopt, 1.0);
    return {dx, dw, db, {}};
  }
};

at::MemoryFormat format(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

// A copy in the other layout; the backward pass copies the gradient back to the original layout.
struct Relayout : Function<Relayout> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, bool last) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->saved_data["last"] = last;
    return x.contiguous(format(last));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return {apply(grads[0], !ctx->saved_data["last"].toBool()), {}};
  }
};

}  // namespace

extern "C" {

// The 4x4 convolution of stride 2 and padding 1, or its transpose, then a leaky ReLU; b may be null.
Outcome<at::Tensor*> gv_strided(const at::Tensor& x, const at::Tensor& w, const at::Tensor* b, bool transposed, double slope) {
  return guarded([&] {
    return handle(transposed ? Strided<true>::apply(x, w, optional(b), slope)
                             : Strided<false>::apply(x, w, optional(b), slope));
  });
}

// Parameters of a convolution, laid out as ConvSpec in Rust; kernel, stride and padding hold for both dimensions.
struct gv_conv {
  int64_t kernel, stride, padding, groups;
  bool transposed, bias;
};

// One gradient of a convolution, without autograd: of its input or of its weights.
Outcome<at::Tensor*> gv_conv_gradient(const at::Tensor& g, const at::Tensor& x, const at::Tensor& w, gv_conv c, bool of_input) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const auto [dx, dw, db] =
        at::convolution_backward(g, x, w, {}, {c.stride, c.stride}, {c.padding, c.padding}, kOne, c.transposed, kNone,
                                 c.groups, {of_input, !of_input, false});
    return handle(of_input ? dx : dw);
  });
}

// x for x > 0, else slope * x, in place, recorded by autograd.
Outcome<void> gv_leaky_relu(at::Tensor& x, double slope) {
  return guarded([&] { at::leaky_relu_(x, slope); });
}

// scale x + shift in one operation, and one in the backward pass, recorded by autograd.
Outcome<at::Tensor*> gv_affine(const at::Tensor& x, double scale, double shift) {
  return guarded([&] {
    // A CPU scalar is passed to any device as a kernel argument.
    return handle(at::add(at::scalar_tensor(shift, x.options().device(at::kCPU)), x, scale));
  });
}

Outcome<at::Tensor*> gv_channels_last(const at::Tensor& x) {
  return guarded([&] {
    if (x.size(1) == 1 && x.is_contiguous()) {
      // With one channel, both layouts are the same memory; only the strides differ, and convolutions look at them. Not by
      // as_strided: its backward pass copies.
      return handle(x.view({x.size(0), x.size(2), x.size(3), 1}).permute({0, 3, 1, 2}));
    }
    return handle(x.is_contiguous(at::MemoryFormat::ChannelsLast) ? x : at::Tensor(Relayout::apply(x, true)));
  });
}

Outcome<at::Tensor*> gv_contiguous(const at::Tensor& x) {
  return guarded([&] { return handle(x.is_contiguous() ? x : at::Tensor(Relayout::apply(x, false))); });
}

}  // extern "C"
