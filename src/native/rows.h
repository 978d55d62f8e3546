// Loops over float32 rows in memory, compiled for each width of vectors there is; what they mean stands in rows.cpp.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

// The loader picks the widest that the processor has.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define GANVAE_VECTOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define GANVAE_VECTOR
#endif

namespace ganvae {

// The gradient before a (leaky) ReLU of `slope`, from that after it, g, and the activation's result y. A slope of 1 is no
// activation.
[[gnu::always_inline]] inline float gate(float g, float y, float slope) { return y > 0 ? g : slope * g; }

void sum_rows(const float* x, const float* shift, int64_t rows, int64_t c, float* sums, float* squares);
void add_rows(const float* x, int64_t rows, int64_t c, float* sums);
void gate_rows(const float* g, const float* y, float slope, int64_t rows, int64_t c, float* out, float* sums);
void shift_rows(float* x, const float* bias, float slope, int64_t rows, int64_t c);
void transpose(const float* in, int64_t rows, int64_t cols, int64_t stride, float* out, int64_t out_stride);

// Rows summed in float32 before they go into a double.
constexpr int64_t kRows = 64;

// Two sums over all rows, each [C] in double; `part(from, rows, a, b)` adds those of some rows to float a and b.
// Equal parts whatever the number of threads: the result does not depend on it.
template <class F>
std::pair<std::vector<double>, std::vector<double>> sums_over_rows(int64_t rows, int64_t c, const F& part) {
  const int64_t parts = std::clamp<int64_t>((rows + kRows - 1) / kRows, 1, 32), each = (rows + parts - 1) / parts;
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

}  // namespace ganvae
