#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cpu/codes.h"
#include "kernels/cpu/dot.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

// Latent columns whose sums are in registers together, for kTokens tokens.
constexpr int kGroups = 2;  // of kLanes columns

// out[t][column ...] = scale * sum_n q[t][n] K[n, column ...], n ascending.
// A scale of row n, or of its block at the column, multiplies q[t][n] instead.
template <typename Code, int kTokens, bool kRowScales>
void AbsorbColumns(const Weight& k_nope, int64_t column, const float* const* q,
                   float* const* out) {
  constexpr int kColumnGroups = kTokens == 1 ? 2 * kGroups : kGroups;
  static_assert(kScaleBlock % (kColumnGroups * kLanes) == 0,
                "columns that are summed together share a block");
  const int64_t latent = k_nope.columns;
  const int64_t groups =
      std::min<int64_t>(kColumnGroups, (latent - column) / kLanes);
  Lanes sum[kTokens][kColumnGroups];
  for (int t = 0; t < kTokens; ++t) {
    for (int g = 0; g < kColumnGroups; ++g) sum[t][g] = Zero();
  }
  const auto accumulate = [&](int count) {
    for (int64_t n = 0; n < k_nope.rows; ++n) {
      const std::byte* row = k_nope.data + (n * latent + column) * Code::kBytes;
      float scale = 1.0f;
      if constexpr (kRowScales) {
        scale = k_nope.block_scales != nullptr
                    ? k_nope.BlockScales(n)[column / kScaleBlock]
                    : k_nope.row_scales[n];
      }
#pragma GCC unroll 4
      for (int g = 0; g < count; ++g) {
        const Lanes w = Code::Decode(row + g * kLanes * Code::kBytes);
#pragma GCC unroll 4
        for (int t = 0; t < kTokens; ++t) {
          const float value = kRowScales ? q[t][n] * scale : q[t][n];
          sum[t][g] = MultiplyAdd(Broadcast(value), w, sum[t][g]);
        }
      }
    }
  };
  if (groups == kColumnGroups) {
    accumulate(kColumnGroups);
  } else {
    accumulate(static_cast<int>(groups));
  }
  const Lanes scale = Broadcast(kRowScales ? 1.0f : k_nope.scale);
  for (int t = 0; t < kTokens; ++t) {
    for (int64_t g = 0; g < groups; ++g) {
      Store(Multiply(sum[t][g], scale), out[t] + column + g * kLanes);
    }
  }
}

template <typename Code, int kTokens>
void AbsorbTokens(const Weight& k_nope, const float* const* q,
                  float* const* out) {
  constexpr int kColumns = (kTokens == 1 ? 2 * kGroups : kGroups) * kLanes;
  const bool row_scales =
      k_nope.row_scales != nullptr || k_nope.block_scales != nullptr;
  for (int64_t c = 0; c < k_nope.columns; c += kColumns) {
    if (row_scales) {
      AbsorbColumns<Code, kTokens, true>(k_nope, c, q, out);
    } else {
      AbsorbColumns<Code, kTokens, false>(k_nope, c, q, out);
    }
  }
}

}  // namespace

void AbsorbQuery(ThreadPool& pool, const KvUpProjection& kv_b, const float* q,
                 int64_t tokens, float* query) {
  const int64_t latent = kv_b.weight.columns;
  const int64_t q_size = kv_b.nope + kv_b.rope;
  const int64_t query_size = latent + kv_b.rope;
  constexpr int64_t kChunk = 16;  // tokens a claim
  const int64_t chunks = (tokens + kChunk - 1) / kChunk;
  const auto absorb = [&](int64_t unit) {
    const int64_t h = unit % kv_b.heads;
    const int64_t first = unit / kv_b.heads * kChunk;
    const int64_t end = std::min(first + kChunk, tokens);
    const Weight k_nope =
        kv_b.weight.Slice(h * (kv_b.nope + kv_b.value), kv_b.nope);
    const float* from[kChunk];
    float* to[kChunk];
    for (int64_t t = first; t < end; ++t) {
      from[t - first] = q + (t * kv_b.heads + h) * q_size;
      to[t - first] = query + (t * kv_b.heads + h) * query_size;
      std::memcpy(to[t - first] + latent, from[t - first] + kv_b.nope,
                  kv_b.rope * sizeof(float));
    }
    DispatchWeight(kv_b.weight.dtype, [&](auto code) {
      using Code = decltype(code);
      int64_t t = 0;
      for (; t + 3 <= end - first; t += 3) {
        AbsorbTokens<Code, 3>(k_nope, from + t, to + t);
      }
      for (; t < end - first; ++t) {
        AbsorbTokens<Code, 1>(k_nope, from + t, to + t);
      }
    });
  };
  pool.ParallelFor(kv_b.heads * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) absorb(unit);
  });
}

void AbsorbValue(ThreadPool& pool, const KvUpProjection& kv_b,
                 const float* attended, int64_t tokens, float* out) {
  const int64_t latent = kv_b.weight.columns;
  pool.ParallelFor(kv_b.heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<const float*> from(tokens);
    std::vector<float*> to(tokens);
    for (int64_t h = begin; h < end; ++h) {
      const Weight v = kv_b.weight.Slice(
          h * (kv_b.nope + kv_b.value) + kv_b.nope, kv_b.value);
      for (int64_t t = 0; t < tokens; ++t) {
        from[t] = attended + (t * kv_b.heads + h) * latent;
        to[t] = out + (t * kv_b.heads + h) * kv_b.value;
      }
      Dot(pool.isa(), {.weight = &v,
                       .row_begin = 0,
                       .row_end = kv_b.value,
                       .leaf = 0,
                       .input_scale = kv_b.latent_scale,
                       .x = from.data(),
                       .out = to.data(),
                       .tokens = tokens});
    }
  });
}

}  // namespace invar::cpu
