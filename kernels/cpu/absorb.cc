#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cpu/dot.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

const std::byte* Rows(const KvUpProjection& kv_b, int64_t row) {
  return kv_b.weight.data +
         row * kv_b.weight.columns * WeightElementBytes(kv_b.weight.dtype);
}

}  // namespace

void AbsorbQuery(ThreadPool& pool, const KvUpProjection& kv_b, const float* q,
                 int64_t tokens, float* query) {
  const int64_t latent = kv_b.weight.columns;
  const int64_t q_size = kv_b.nope + kv_b.rope;
  const int64_t query_size = latent + kv_b.rope;
  // A claim: one head's columns, fewer of them the more tokens.
  const int64_t width = tokens > 4 ? 64 : 256;
  const int64_t chunks = (latent + width - 1) / width;
  const IsaKernels& kernels = KernelsOf(pool.isa());
  const auto absorb = [&](int64_t begin, int64_t end) {
    std::vector<const float*> from(tokens);
    std::vector<float*> to(tokens);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t h = unit / chunks;
      const int64_t column = unit % chunks * width;
      Weight k_nope = kv_b.weight;
      k_nope.data = Rows(kv_b, h * (kv_b.nope + kv_b.value));
      k_nope.rows = kv_b.nope;
      for (int64_t t = 0; t < tokens; ++t) {
        from[t] = q + (t * kv_b.heads + h) * q_size;
        to[t] = query + (t * kv_b.heads + h) * query_size;
        if (column == 0) {
          std::memcpy(to[t] + latent, from[t] + kv_b.nope,
                      kv_b.rope * sizeof(float));
        }
      }
      kernels.column_sums({.weight = &k_nope,
                           .column_begin = column,
                           .column_end = std::min(column + width, latent),
                           .x = from.data(),
                           .out = to.data(),
                           .tokens = tokens});
    }
  };
  pool.ParallelFor(kv_b.heads * chunks, 1, absorb);
}

void AbsorbValue(ThreadPool& pool, const KvUpProjection& kv_b,
                 const float* attended, int64_t tokens, float* out) {
  const int64_t latent = kv_b.weight.columns;
  pool.ParallelFor(kv_b.heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<const float*> from(tokens);
    std::vector<float*> to(tokens);
    for (int64_t h = begin; h < end; ++h) {
      Weight v = kv_b.weight;
      v.data = Rows(kv_b, h * (kv_b.nope + kv_b.value) + kv_b.nope);
      v.rows = kv_b.value;
      for (int64_t t = 0; t < tokens; ++t) {
        from[t] = attended + (t * kv_b.heads + h) * latent;
        to[t] = out + (t * kv_b.heads + h) * kv_b.value;
      }
      Dot(pool.isa(), {.weight = &v,
                       .row_begin = 0,
                       .row_end = kv_b.value,
                       .leaf = 0,
                       .scale = v.scale,
                       .x = from.data(),
                       .out = to.data(),
                       .tokens = tokens});
    }
  });
}

}  // namespace invar::cpu
