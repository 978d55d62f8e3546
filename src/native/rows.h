// Loops over float32 rows, compiled for each vector width; the loader picks the widest that the CPU supports.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define GANVAE_VECTOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define GANVAE_VECTOR
#endif

namespace ganvae {

// In place on rows x [R,C]: adds bias[r] (if given), then a (leaky) ReLU.
GANVAE_VECTOR static void shift_rows(float* __restrict x, const float* __restrict bias, float slope, int64_t rows,
                                     int64_t c) {
  for (int64_t r = 0; r < rows; ++r) {
    const float add = bias ? bias[r] : 0.0f;
    for (int64_t k = 0; k < c; ++k) {
      const float v = x[r * c + k] + add;
      x[r * c + k] = v > 0 ? v : slope * v;
    }
  }
}

// The gradient g [R,C] before a (leaky) ReLU with output y: out = y <= 0 ? slope g : g; without y, out is g. Adds the sum over rows to
// sums [C] (if given).
GANVAE_VECTOR static void gate_rows(const float* __restrict g, const float* __restrict y, float slope, int64_t rows, int64_t c,
                                    float* __restrict out, float* __restrict sums) {
  for (int64_t r = 0; r < rows; ++r, g += c) {
    const float* before = g;
    if (y) {
      for (int64_t k = 0; k < c; ++k) out[k] = y[k] <= 0 ? slope * g[k] : g[k];
      before = out;
      y += c;
      out += c;
    }
    if (sums) {
      for (int64_t k = 0; k < c; ++k) sums[k] += before[k];
    }
  }
}

// in [rows,cols], rows `stride` apart -> out [cols,rows], rows `out_stride` apart, in blocks that fit the L1 cache.
GANVAE_VECTOR static void transpose(const float* __restrict in, int64_t rows, int64_t cols, int64_t stride,
                             float* __restrict out, int64_t out_stride) {
  constexpr int64_t block = 16;
  for (int64_t r0 = 0; r0 < rows; r0 += block) {
    const int64_t r1 = std::min(rows, r0 + block);
    for (int64_t c0 = 0; c0 < cols; c0 += block) {
      const int64_t c1 = std::min(cols, c0 + block);
      for (int64_t c = c0; c < c1; ++c) {
        for (int64_t r = r0; r < r1; ++r) out[c * out_stride + r] = in[r * stride + c];
      }
    }
  }
}

}  // namespace ganvae
