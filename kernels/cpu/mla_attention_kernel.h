// The attention's walk over a tile of the cache, for any instruction set that
// has sixteen lanes: see dot_kernel.h, whose rules hold here too.
//
// Simd, beyond what dot_kernel.h asks for: Broadcast; kTileRows, the rows whose
// scores share registers; Run<Code>, neighbouring vectors of a row that are
// decoded together: Vectors below, or what is faster.
#ifndef INVAR_KERNELS_CPU_MLA_ATTENTION_KERNEL_H_
#define INVAR_KERNELS_CPU_MLA_ATTENTION_KERNEL_H_

#include <immintrin.h>

#include <algorithm>
#include <type_traits>

#include "kernels/cpu/codes.h"
#include "kernels/cpu/isa_kernels.h"

namespace invar::cpu {
namespace {

// kCount vectors of a row, decoded one by one.
template <typename Simd, typename Code, int kCount>
struct Vectors {
  static constexpr int kVectors = kCount;
  static constexpr int64_t kBytes = Code::kBytes;

  void Load(const std::byte* from) { p = from; }
  typename Simd::Vector Decode(int i) const {
    return Simd::template Decode<Code>(p + i * kLanes * kBytes);
  }

  const std::byte* p;
};
template <typename Simd, typename Code>
using OneVector = Vectors<Simd, Code, 1>;

// How many of the next rows' lines are fetched between this tile's scores; the
// others between its values, one a row of a run of columns.
inline int64_t LinesWithScores(const KvTile& tile) {
  const int64_t with_values = tile.latent / (4 * kLanes) * tile.rows;
  return std::max(tile.next_lines / 2, tile.next_lines - with_values);
}

// sum[r][h] += key[r] . query[h] over the Run's vectors from element k on.
template <typename Simd, typename Run, int kHeads, int kRows>
inline void AddScores(const std::byte* keys, int64_t row_bytes,
                      int64_t elements, const float* query, int64_t k,
                      typename Simd::Vector (&sum)[kRows][kHeads]) {
  Run key[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    key[r].Load(keys + r * row_bytes + k * Run::kBytes);
  }
#pragma GCC unroll 4
  for (int v = 0; v < Run::kVectors; ++v) {
    typename Simd::Vector values[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) values[r] = key[r].Decode(v);
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const auto q = Simd::Load(query + h * elements + k + v * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        sum[r][h] = Simd::MultiplyAdd(values[r], q, sum[r][h]);
      }
    }
  }
}

template <typename Simd, typename Code, int kHeads, int kRows>
inline void RowScores(const KvTile& tile, const float* query, int64_t row,
                      float scale, float* scores) {
  using Run = typename Simd::template Run<Code>;
  using One = OneVector<Simd, Code>;
  const int64_t elements = tile.row_elements;
  const int64_t row_bytes = elements * Code::kBytes;
  const std::byte* keys = tile.data + row * row_bytes;
  typename Simd::Vector sum[kRows][kHeads];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) sum[r][h] = Simd::Zero();
  }
  constexpr int64_t kRun = Run::kVectors * kLanes;
  int64_t k = 0;
  for (; k + kRun <= elements; k += kRun) {
    AddScores<Simd, Run>(keys, row_bytes, elements, query, k, sum);
  }
  for (; k < elements; k += kLanes) {
    AddScores<Simd, One>(keys, row_bytes, elements, query, k, sum);
  }
  float sums[kRows * kHeads];
  Simd::Sums(sum, sums);
  if constexpr (kRows == 4) {
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      _mm_storeu_ps(
          scores + h * kAttentionTile + row,
          _mm_mul_ps(_mm_loadu_ps(sums + h * kRows), _mm_set1_ps(scale)));
    }
    return;
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      scores[h * kAttentionTile + row + r] = sums[h * kRows + r] * scale;
    }
  }
}

template <typename Simd, typename Code, int kHeads>
void TileScores(const KvTile& tile, const float* query, float scale,
                float* scores) {
  // Half of the next rows, or what the values will not get to.
  const int64_t lines = LinesWithScores(tile);
  int64_t line = 0;
  int64_t row = 0;
  for (; row + Simd::kTileRows <= tile.rows; row += Simd::kTileRows) {
    const int64_t end = lines * (row + Simd::kTileRows) / tile.rows;
    PrefetchBytes(tile.next + line * kCacheLine, (end - line) * kCacheLine);
    line = end;
    RowScores<Simd, Code, kHeads, Simd::kTileRows>(tile, query, row, scale,
                                                   scores);
  }
  for (; row < tile.rows; ++row) {
    RowScores<Simd, Code, kHeads, 1>(tile, query, row, scale, scores);
  }
}

// Columns [c, c + Run's vectors).
template <typename Simd, typename Run, int kHeads>
inline void RunValues(const KvTile& tile, const float* weights, int64_t c,
                      float* const* latents) {
  constexpr int kGroups = Run::kVectors;
  const int64_t row_bytes = tile.row_elements * Run::kBytes;
  const std::byte* column = tile.data + c * Run::kBytes;
  // This run's share of the next rows: none of them left, its own again.
  const int64_t line = LinesWithScores(tile) + c / kLanes / kGroups * tile.rows;
  const std::byte* next =
      line < tile.next_lines ? tile.next + line * kCacheLine : tile.data;
  typename Simd::Vector sum[kHeads][kGroups];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      sum[h][g] = Simd::Load(latents[h] + c + g * kLanes);
    }
  }
  for (int64_t row = 0; row < tile.rows; ++row, column += row_bytes) {
    _mm_prefetch(reinterpret_cast<const char*>(next + row * kCacheLine),
                 _MM_HINT_T1);
    Run run;
    run.Load(column);
    typename Simd::Vector value[kGroups];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) value[g] = run.Decode(g);
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const auto weight = Simd::Broadcast(weights[h * kAttentionTile + row]);
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
        sum[h][g] = Simd::MultiplyAdd(weight, value[g], sum[h][g]);
      }
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      Simd::Store(sum[h][g], latents[h] + c + g * kLanes);
    }
  }
}

template <typename Simd, typename Code, int kHeads>
void TileValues(const KvTile& tile, const float* weights,
                float* const* latents) {
  using Run = typename Simd::template Run<Code>;
  constexpr int64_t kColumns = Run::kVectors * kLanes;
  int64_t c = 0;
  for (; c + kColumns <= tile.latent; c += kColumns) {
    RunValues<Simd, Run, kHeads>(tile, weights, c, latents);
  }
  for (; c < tile.latent; c += kLanes) {
    RunValues<Simd, OneVector<Simd, Code>, kHeads>(tile, weights, c, latents);
  }
}

// Calls body with `heads` as a constant.
template <typename Body>
void DispatchHeads(int heads, Body body) {
  switch (heads) {
    case 1:
      return body(std::integral_constant<int, 1>());
    case 2:
      return body(std::integral_constant<int, 2>());
    case kHeadsAtOnce:
      return body(std::integral_constant<int, kHeadsAtOnce>());
  }
}

template <typename Simd>
void TileScoresAll(const KvTile& tile, const float* query, int heads,
                   float scale, float* scores) {
  DispatchKv(tile.dtype, [&](auto code) {
    DispatchHeads(heads, [&](auto count) {
      TileScores<Simd, decltype(code), decltype(count)::value>(tile, query,
                                                               scale, scores);
    });
  });
}

template <typename Simd>
void TileValuesAll(const KvTile& tile, const float* weights, int heads,
                   float* const* latents) {
  DispatchKv(tile.dtype, [&](auto code) {
    DispatchHeads(heads, [&](auto count) {
      TileValues<Simd, decltype(code), decltype(count)::value>(tile, weights,
                                                               latents);
    });
  });
}

}  // namespace
}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_MLA_ATTENTION_KERNEL_H_
