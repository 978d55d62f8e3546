// The VAE loss in two passes over memory, and two more for its gradient; float32 on the CPU.
//
// Gain (AMD EPYC, AVX-512, ms per step without and with): small VAE (784-200-50, batch 20) 0.63 and 0.56 with 2 threads, 0.81
// and 0.75 with one; under 3 % on the article VAE and conv-vae.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <array>

#include "guard.h"
#include "layer.h"
#include "rows.h"

using namespace ganvae;

namespace {

struct Exponential {
  float value;     // e^x
  float less_one;  // e^x - 1, without cancellation
};

// e^x to 2 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, and the Taylor series of e^r to degree 7. Written out because a libm call prevents
// vectorization.
[[gnu::always_inline]] inline Exponential exponentials(float x) {
  const float y = x > 90.0f ? 90.0f : x < -104.0f ? -104.0f : x;  // e^90 is infinite, e^-104 zero; NaN stays NaN
  const float shifted = y * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;  // rounds to an integer
  const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  const float q = p * r;  // e^r - 1
  // 2^n in two halves: n runs from -150 to 130, the exponent of a float from -126 to 127.
  const int32_t whole = static_cast<int32_t>(n), half = whole >> 1;
  const int32_t low = (half + 127) << 23, high = (whole - half + 127) << 23;
  float a, b;
  std::memcpy(&a, &low, sizeof a);
  std::memcpy(&b, &high, sizeof b);
  return {(q + 1.0f) * a * b, q * a * b + (a * b - 1.0f)};
}

[[gnu::always_inline]] inline float exponential(float x) { return exponentials(x).value; }

[[gnu::always_inline]] inline float minus_abs(float x) { return x < 0 ? x : -x; }

// log(1 + t) for t in [0,1]: 2 artanh(s), s = t / (2 + t) <= 1/3, by its series.
[[gnu::always_inline]] inline float log_one_plus(float t) {
  const float s = t / (2.0f + t), q = s * s;
  float p = 1.0f / 15;
  p = p * q + 1.0f / 13;
  p = p * q + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  p = p * q + 1.0f;
  return 2.0f * s * p;
}

constexpr int64_t kLanes = 16;

// Binary cross entropy of one pixel from its logit, max(l, 0) - l x + log(1 + e^-|l|).
[[gnu::always_inline]] inline float cross_entropy(float l, float x) {
  return (l > 0 ? l : 0.0f) - l * x + log_one_plus(exponential(minus_abs(l)));
}

// The sum over n pixels, in the same order for every vector width.
GANVAE_VECTOR double cross_entropies(const float* __restrict l, const float* __restrict x, int64_t n) {
  double sum = 0;
  for (int64_t from = 0; from < n; from += 64 * kLanes) {
    const int64_t to = std::min(n, from + 64 * kLanes);
    float lanes[kLanes] = {};
    int64_t i = from;
    for (; i + kLanes <= to; i += kLanes) {
      for (int64_t k = 0; k < kLanes; ++k) lanes[k] += cross_entropy(l[i + k], x[i + k]);
    }
    for (int64_t k = 0; i + k < to; ++k) lanes[k] += cross_entropy(l[i + k], x[i + k]);
    for (int64_t k = 0; k < kLanes; ++k) sum += lanes[k];
  }
  return sum;
}

// out = scale (sigmoid(l) - x).
GANVAE_VECTOR void cross_entropy_gradients(const float* __restrict l, const float* __restrict x, float scale, int64_t n,
                                           float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    const float e = exponential(minus_abs(l[i])), r = 1.0f / (1.0f + e);
    out[i] = scale * ((l[i] > 0 ? r : e * r) - x[i]);
  }
}

// z = mu + exp(logvar / 2) eps; returns the sum of (mu^2 + exp(logvar) - 1 - logvar) / 2.
GANVAE_VECTOR double draw(const float* __restrict mu, const float* __restrict logvar, const float* __restrict eps,
                          int64_t n, float* __restrict z) {
  double sum = 0;
  for (int64_t from = 0; from < n; from += 64 * kLanes) {
    const int64_t to = std::min(n, from + 64 * kLanes);
    float lanes[kLanes] = {};
    int64_t i = from;
    const auto one = [&](int64_t k) __attribute__((always_inline)) {
      const float m = mu[i + k], lv = logvar[i + k];
      const Exponential deviation = exponentials(0.5f * lv);
      z[i + k] = m + deviation.value * eps[i + k];
      // exp(logvar) - 1 = (d - 1)(d + 1), d = exp(logvar / 2); the difference is 0 at the least, but for rounding.
      const float of_variance = deviation.less_one * (deviation.less_one + 2.0f) - lv;
      lanes[k] += m * m + (of_variance < 0.0f ? 0.0f : of_variance);
    };
    for (; i + kLanes <= to; i += kLanes) {
      for (int64_t k = 0; k < kLanes; ++k) one(k);
    }
    for (int64_t k = 0; i + k < to; ++k) one(k);
    for (int64_t k = 0; k < kLanes; ++k) sum += lanes[k];
  }
  return sum / 2;
}

// The gradients of mu and logvar from the gradient g of z and the gradient `kl` of the sum that `draw` returns.
GANVAE_VECTOR void draw_gradients(const float* __restrict mu, const float* __restrict logvar, const float* __restrict eps,
                                  const float* __restrict g, float kl, int64_t n, float* __restrict dmu,
                                  float* __restrict dlogvar) {
  for (int64_t i = 0; i < n; ++i) {
    const float deviation = exponential(0.5f * logvar[i]);
    dmu[i] = g[i] + kl * mu[i];
    dlogvar[i] = 0.5f * (g[i] * eps[i] * deviation + kl * (deviation * deviation - 1.0f));
  }
}

// Minimum elements per thread.
constexpr int64_t kGrain = 8192;

at::Tensor scalar(double value, const at::Tensor& like) { return at::full({}, value, like.options()); }

// mu, logvar, eps [B,Z] -> z = mu + exp(logvar / 2) eps [B,Z] and KL(N(mu, exp(logvar)) || N(0, I)), summed over Z, mean over
// B. Kingma and Welling 2014 (arXiv 1312.6114), section 2.4 and appendix B.
struct Draw : Function<Draw> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& mean, const at::Tensor& log_variance,
                               const at::Tensor& noise) {
    at::AutoDispatchBelowADInplaceOrView below;
    const at::Tensor mu = mean.contiguous(), logvar = log_variance.contiguous(), eps = noise.contiguous();
    at::Tensor z = at::empty_like(mu);
    const double sum = draw(mu.const_data_ptr<float>(), logvar.const_data_ptr<float>(), eps.const_data_ptr<float>(),
                            mu.numel(), z.mutable_data_ptr<float>());
    ctx->save_for_backward({mu, logvar, eps});
    ctx->set_materialize_grads(false);
    return {z, scalar(sum / mu.size(0), mu)};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &mu = saved[0], &logvar = saved[1], &eps = saved[2];
    const at::Tensor g = grads[0].defined() ? grads[0].contiguous() : at::zeros_like(mu);
    // For a second derivative or a gradient of the noise: libtorch's operations, which autograd records.
    if (at::GradMode::is_enabled() || ctx->needs_input_grad(2)) {
      const at::Tensor deviation = at::exp(0.5 * logvar), share = grads[1].defined() ? grads[1] / mu.size(0) : scalar(0, mu);
      return {g + share * mu, 0.5 * (g * eps * deviation + share * (deviation * deviation - 1)), g * deviation};
    }
    const float kl = grads[1].defined() ? *grads[1].const_data_ptr<float>() / mu.size(0) : 0.0f;
    at::Tensor dmu = at::empty_like(mu), dlogvar = at::empty_like(mu);
    draw_gradients(mu.const_data_ptr<float>(), logvar.const_data_ptr<float>(), eps.const_data_ptr<float>(),
                   g.const_data_ptr<float>(), kl, mu.numel(), dmu.mutable_data_ptr<float>(),
                   dlogvar.mutable_data_ptr<float>());
    return {dmu, dlogvar, {}};
  }
};

// logits, x [B,...], kl scalar -> recon + beta kl, and recon: the binary cross entropy summed over an image, mean over B.
struct Bernoulli : Function<Bernoulli> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& logits, const at::Tensor& images,
                               const at::Tensor& kl, double beta) {
    at::AutoDispatchBelowADInplaceOrView below;
    const at::Tensor l = logits.contiguous(), x = images.contiguous();
    const int64_t batch = l.size(0), each = l.numel() / batch;
    const float *ls = l.const_data_ptr<float>(), *xs = x.const_data_ptr<float>();
    std::vector<double> sums(batch);
    at::parallel_for(0, batch, std::max<int64_t>(1, kGrain / each), [&](int64_t from, int64_t to) {
      for (int64_t b = from; b < to; ++b) sums[b] = cross_entropies(ls + b * each, xs + b * each, each);
    });
    double sum = 0;
    for (const double s : sums) sum += s;
    ctx->save_for_backward({l, x});
    ctx->saved_data["beta"] = beta;
    ctx->set_materialize_grads(false);
    const double recon = sum / batch;
    return {scalar(recon + beta * *kl.const_data_ptr<float>(), l), scalar(recon, l)};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &l = saved[0], &x = saved[1];
    const double beta = ctx->saved_data["beta"].toDouble();
    // For a second derivative or a gradient of the images: libtorch's operations, which autograd records.
    if (at::GradMode::is_enabled() || ctx->needs_input_grad(1)) {
      const at::Tensor loss = grads[0].defined() ? grads[0] : scalar(0, l);
      const at::Tensor scale = (grads[1].defined() ? loss + grads[1] : loss) / l.size(0);
      return {scale * (at::sigmoid(l) - x), -scale * l, beta * loss, {}};
    }
    const auto value = [](const at::Tensor& g) { return g.defined() ? *g.const_data_ptr<float>() : 0.0f; };
    const float loss = value(grads[0]), scale = (loss + value(grads[1])) / l.size(0);
    const float *ls = l.const_data_ptr<float>(), *xs = x.const_data_ptr<float>();
    at::Tensor g = at::empty_like(l);
    float* out = g.mutable_data_ptr<float>();
    at::parallel_for(0, l.numel(), kGrain, [&](int64_t from, int64_t to) {
      cross_entropy_gradients(ls + from, xs + from, scale, to - from, out + from);
    });
    return {g, {}, scalar(beta * loss, l), {}};
  }
};

// The binary cross entropy of logits [B,K,D] given x [B,D], summed over D: float64 [B,K].
at::Tensor cross_entropy_rows(const at::Tensor& logits, const at::Tensor& images) {
  const at::Tensor l = logits.contiguous(), x = images.contiguous();
  const int64_t samples = l.size(1), each = l.size(2);
  at::Tensor out = at::empty({l.size(0), samples}, l.options().dtype(at::kDouble));
  const float *ls = l.const_data_ptr<float>(), *xs = x.const_data_ptr<float>();
  double* sums = out.mutable_data_ptr<double>();
  at::parallel_for(0, out.numel(), std::max<int64_t>(1, kGrain / std::max<int64_t>(1, each)), [&](int64_t from, int64_t to) {
    for (int64_t row = from; row < to; ++row) sums[row] = cross_entropies(ls + row * each, xs + row / samples * each, each);
  });
  return out;
}

using Two = std::array<at::Tensor*, 2>;

Two two(const variable_list& tensors) { return {handle(tensors[0]), handle(tensors[1])}; }

}  // namespace

extern "C" {

// z and the KL term of mu, logvar and eps, recorded by autograd.
Outcome<Two> gv_gaussian_draw(const at::Tensor& mu, const at::Tensor& logvar, const at::Tensor& eps) {
  return guarded([&] { return two(Draw::apply(mu, logvar, eps)); });
}

// The binary cross entropy of each row; no gradient.
Outcome<at::Tensor*> gv_bernoulli_nll(const at::Tensor& logits, const at::Tensor& x) {
  return guarded([&] { return handle(cross_entropy_rows(logits, x)); });
}

// recon + beta kl and recon, recorded by autograd.
Outcome<Two> gv_bernoulli_bound(const at::Tensor& logits, const at::Tensor& x, const at::Tensor& kl, double beta) {
  return guarded([&] { return two(Bernoulli::apply(logits, x, kl, beta)); });
}

}  // extern "C"
