#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cpu/aligned.h"
#include "kernels/cpu/dot.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

// scaled[t][n] = q[t][n] times the scale of row n, or of its block at the
// column; q[t] points there afterwards.
void ScaleByRow(const Weight& k_nope, int64_t column,
                std::vector<const float*>& q, float* scaled) {
  for (const float*& row : q) {
    for (int64_t n = 0; n < k_nope.rows; ++n) {
      scaled[n] = row[n] * (k_nope.block_scales != nullptr
                                ? k_nope.BlockScales(n)[column / kScaleBlock]
                                : k_nope.row_scales[n]);
    }
    row = scaled;
    scaled += k_nope.rows;
  }
}

}  // namespace

void AbsorbQuery(ThreadPool& pool, const KvUpProjection& kv_b, const float* q,
                 int64_t tokens, float* query) {
  const int64_t latent = kv_b.weight.columns;
  const int64_t q_size = kv_b.nope + kv_b.rope;
  const int64_t query_size = latent + kv_b.rope;
  const Weight& weight = kv_b.weight;
  const bool row_scales =
      weight.row_scales != nullptr || weight.block_scales != nullptr;
  // A claim: one head's columns, fewer of them the more tokens. Columns with
  // scales of their rows share a block.
  const int64_t width = tokens > 4 ? 64 : row_scales ? kScaleBlock : 256;
  static_assert(kScaleBlock % 64 == 0);
  const int64_t chunks = (latent + width - 1) / width;
  const IsaKernels& kernels = KernelsOf(pool.isa());
  const auto absorb = [&](int64_t begin, int64_t end) {
    std::vector<const float*> from(tokens);
    std::vector<float*> to(tokens);
    AlignedVector<float> scaled(row_scales ? tokens * kv_b.nope : 0);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t h = unit / chunks;
      const int64_t column = unit % chunks * width;
      Weight k_nope = weight.Slice(h * (kv_b.nope + kv_b.value), kv_b.nope);
      for (int64_t t = 0; t < tokens; ++t) {
        from[t] = q + (t * kv_b.heads + h) * q_size;
        to[t] = query + (t * kv_b.heads + h) * query_size;
        if (column == 0) {
          std::memcpy(to[t] + latent, from[t] + kv_b.nope,
                      kv_b.rope * sizeof(float));
        }
      }
      if (row_scales) {
        ScaleByRow(k_nope, column, from, scaled.data());
        k_nope.scale = 1.0f;
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
  // A claim: one head's rows, or some of them where heads do not come out even.
  const int64_t height = kv_b.heads % pool.threads() == 0
                             ? kv_b.value
                             : DotGrain(kv_b.weight, tokens);
  const int64_t chunks = (kv_b.value + height - 1) / height;
  const auto head = [&](int64_t h) {
    return kv_b.weight.Slice(h * (kv_b.nope + kv_b.value) + kv_b.nope,
                             kv_b.value);
  };
  const auto absorb = [&](int64_t begin, int64_t end) {
    std::vector<const float*> from(tokens);
    std::vector<float*> to(tokens);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t h = unit / chunks;
      const int64_t row = unit % chunks * height;
      const Weight v = head(h);
      for (int64_t t = 0; t < tokens; ++t) {
        from[t] = attended + (t * kv_b.heads + h) * latent;
        to[t] = out + (t * kv_b.heads + h) * kv_b.value;
      }
      const std::byte* next = nullptr;
      if (unit + 1 < end) {
        next = head((unit + 1) / chunks).data + (unit + 1) % chunks * height *
                                                    latent *
                                                    WeightElementBytes(v.dtype);
      }
      Dot(pool.isa(), {.weight = &v,
                       .row_begin = row,
                       .row_end = std::min(row + height, kv_b.value),
                       .leaf = 0,
                       .input_scale = kv_b.latent_scale,
                       .x = from.data(),
                       .out = to.data(),
                       .tokens = tokens,
                       .next = next});
    }
  };
  pool.ParallelFor(kv_b.heads * chunks, 1, absorb);
}

}  // namespace invar::cpu
