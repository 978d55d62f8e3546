#include "rows.h"

namespace ganvae {

// Adds the sums of (x - shift) and of its square over rows x [R,C].
GANVAE_VECTOR void sum_rows(const float* __restrict x, const float* __restrict shift, int64_t rows, int64_t c,
                            float* __restrict sums, float* __restrict squares) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * c;
    for (int64_t k = 0; k < c; ++k) {
      const float v = row[k] - shift[k];
      sums[k] += v;
      squares[k] += v * v;
    }
  }
}

// Adds the sums of rows x [R,C].
GANVAE_VECTOR void add_rows(const float* __restrict x, int64_t rows, int64_t c, float* __restrict sums) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < c; ++k) sums[k] += x[r * c + k];
  }
}

// out [R,C] = the gradient before an activation, from g [R,C] after it; adds its sums over rows.
GANVAE_VECTOR void gate_rows(const float* __restrict g, const float* __restrict y, float slope, int64_t rows, int64_t c,
                             float* __restrict out, float* __restrict sums) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < c; ++k) {
      const float v = gate(g[r * c + k], y[r * c + k], slope);
      out[r * c + k] = v;
      sums[k] += v;
    }
  }
}

// In place, rows x [R,C]: bias[r] is added (none: nothing), then a (leaky) ReLU.
GANVAE_VECTOR void shift_rows(float* __restrict x, const float* __restrict bias, float slope, int64_t rows, int64_t c) {
  for (int64_t r = 0; r < rows; ++r) {
    const float add = bias ? bias[r] : 0.0f;
    for (int64_t k = 0; k < c; ++k) {
      const float v = x[r * c + k] + add;
      x[r * c + k] = v > 0 ? v : slope * v;
    }
  }
}

// in [rows,cols], rows `stride` apart -> out [cols,rows], rows `out_stride` apart, in blocks that stay in the nearest cache.
GANVAE_VECTOR void transpose(const float* __restrict in, int64_t rows, int64_t cols, int64_t stride,
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
