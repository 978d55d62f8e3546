// A batch gathered from images that stay bytes.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "guard.h"
#include "rows.h"

using ganvae::guarded;

namespace {

GANVAE_VECTOR void to_unit(const uint8_t* __restrict bytes, int64_t n, float* __restrict out) {
  // In double, the product rounds to the same float as the quotient for each of the 256 bytes, and takes a third of its time.
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(bytes[i] * (1.0 / 255.0));
}

void fetch(const uint8_t* bytes, int64_t n) {
  for (int64_t i = 0; i < n; i += 64) __builtin_prefetch(bytes + i);
}

}  // namespace

extern "C" {

// Rows `index` [B] (int64) of `images` [N,...] (bytes) as floats, each byte divided by 255, in one pass; on the CPU.
char* gv_gather_unit(at::Tensor** out, at::Tensor* images, at::Tensor* index) {
  return guarded([&] {
    TORCH_CHECK(images->is_contiguous() && images->device().is_cpu(), "the images must lie on the CPU without gaps");
    TORCH_CHECK(index->dim() == 1, "the index must have one dimension, found ", index->dim());
    const at::Tensor rows = index->contiguous();
    const int64_t count = images->size(0), batch = rows.size(0), each = count == 0 ? 0 : images->numel() / count;
    const uint8_t* bytes = images->const_data_ptr<uint8_t>();
    const int64_t* at = rows.const_data_ptr<int64_t>();
    std::vector<int64_t> sizes = images->sizes().vec();
    sizes[0] = batch;
    at::Tensor x = at::empty(sizes, images->options().dtype(at::kFloat));
    float* xs = x.mutable_data_ptr<float>();
    for (int64_t i = 0; i < batch; ++i) {
      TORCH_CHECK_INDEX(at[i] >= 0 && at[i] < count, "image ", at[i], " of ", count);
    }
    // A thread is worth waking for about 8 KB, most of which come from far in memory.
    at::parallel_for(0, batch, std::max<int64_t>(1, 8192 / std::max<int64_t>(each, 1)), [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        // The next image lies anywhere: on its way from memory while this one is turned into floats.
        if (i + 1 < to) fetch(bytes + at[i + 1] * each, each);
        to_unit(bytes + at[i] * each, each, xs + i * each);
      }
    });
    *out = new at::Tensor(x);
  });
}

}  // extern "C"
