// Dot over any instruction set that has sixteen lanes: included by the file of
// each, which is compiled for it. All is in an unnamed namespace, so that no
// other file can be given code that its processor lacks.
//
// Simd: Vector of 16 lanes; Zero, Load, Store, Broadcast, Multiply, MultiplyAdd
// as in lanes.h; Sums, which sums the lanes of a tile; Decode<Code>;
// Rows(tokens), the rows that share registers with so many tokens; kTokens and
// kPanelTokens, the most tokens that do.
#ifndef INVAR_KERNELS_CPU_DOT_KERNEL_H_
#define INVAR_KERNELS_CPU_DOT_KERNEL_H_

#include <immintrin.h>

#include <algorithm>
#include <type_traits>

#include "kernels/cpu/codes.h"
#include "kernels/cpu/isa_kernels.h"

namespace invar::cpu {
namespace {

// Rows that are walked for one block of tokens before the next block, so that
// both stay in the first-level cache.
constexpr int64_t kPanelRows = 32;
// Decoded weights of a panel: a share of the first-level cache.
constexpr int64_t kPanelValues = 8192;

// E4m3 codes with a scale a block of kScaleBlock x kScaleBlock.
struct BlockFp8Code : Fp8E4m3Code {};
template <typename Code>
constexpr bool kHasBlocks = std::is_same_v<Code, BlockFp8Code>;

// leaves[0] = ((0+1)+(2+3))+((4+5)+(6+7)) over the `count` places that exist,
// for each of kSums sums.
template <int kSums>
void FoldLeaves(float (*leaves)[kSums], int64_t count) {
  for (int64_t stride = 1; stride < kMaxLeaves; stride *= 2) {
    for (int64_t i = 0; i + stride < count; i += 2 * stride) {
      for (int s = 0; s < kSums; ++s) leaves[i][s] += leaves[i + stride][s];
    }
  }
}

// out[token + t][row + r] = scale * sums[t * kRows + r]
template <int kRows, int kTokens>
inline void StoreScaled(const DotProducts& p, const float* sums, int64_t row,
                        int64_t token) {
  float* const* const out = p.out + token;
  if (kRows == 4 && p.input_scales == nullptr &&
      p.weight->row_scales == nullptr) {
    const __m128 scale = _mm_set1_ps(p.input_scale * p.weight->RowScale(row));
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      _mm_storeu_ps(out[t] + row,
                    _mm_mul_ps(scale, _mm_loadu_ps(sums + t * kRows)));
    }
    return;
  }
  for (int t = 0; t < kTokens; ++t) {
    const float input_scale =
        p.input_scales == nullptr ? p.input_scale : p.input_scales[token + t];
    for (int r = 0; r < kRows; ++r) {
      out[t][row + r] =
          input_scale * p.weight->RowScale(row + r) * sums[t * kRows + r];
    }
  }
}

// Calls body(token, count), count a constant of at most kMost, for all tokens:
// as few calls as that takes, of about equal counts.
template <int kMost, typename Body>
inline void ForTokenTiles(int64_t tokens, Body body) {
  const auto call = [&]<int kCount>(auto& self, int64_t token, int64_t count,
                                    std::integral_constant<int, kCount>) {
    if (count == kCount) {
      body(token, std::integral_constant<int, kCount>());
    } else if constexpr (kCount > 1) {
      self(self, token, count, std::integral_constant<int, kCount - 1>());
    }
  };
  const int64_t tiles = (tokens + kMost - 1) / kMost;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t token = tokens * i / tiles;
    call(call, token, tokens * (i + 1) / tiles - token,
         std::integral_constant<int, kMost>());
  }
}

// sums[t * kRows + r] = W[row + r, begin:end] . x[t][begin:end]
template <typename Simd, typename Code, int kRows, int kTokens>
inline void DotRange(const std::byte* const* rows,
                     const float* const* block_scales, const float* const* x,
                     int64_t row_bytes, int64_t begin, int64_t end,
                     float* sums) {
  typename Simd::Vector sum[kRows][kTokens];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) sum[r][t] = Simd::Zero();
  }
  for (int64_t k = begin; k < end; k += kLanes) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      auto w = Simd::template Decode<Code>(rows[r] + k * Code::kBytes);
      if constexpr (kHasBlocks<Code>) {
        w = Simd::Multiply(w,
                           Simd::Broadcast(block_scales[r][k / kScaleBlock]));
      }
      if constexpr (kTokens == 1) {
        // A lone token's weights come from memory: fetch the next block's.
        _mm_prefetch(reinterpret_cast<const char*>(rows[r] + k * Code::kBytes +
                                                   kRows * row_bytes),
                     _MM_HINT_T0);
      }
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        sum[r][t] = Simd::MultiplyAdd(w, Simd::Load(x[t] + k), sum[r][t]);
      }
    }
  }
  Simd::Sums(sum, sums);
}

template <typename Simd, typename Code, int kRows, int kTokens>
void DotBlock(const DotProducts& p, const std::byte* data, int64_t row,
              int64_t token) {
  const int64_t columns = p.weight->columns;
  const int64_t row_bytes = columns * Code::kBytes;
  const std::byte* rows[kRows];
  const float* block_scales[kRows] = {};
  for (int r = 0; r < kRows; ++r) {
    rows[r] = data + r * row_bytes;
    if constexpr (kHasBlocks<Code>) {
      block_scales[r] = p.weight->BlockScales(row + r);
    }
  }
  // One a leaf.
  float sums[kMaxLeaves][kRows * kTokens];
  if (p.leaf == 0) {
    DotRange<Simd, Code, kRows, kTokens>(rows, block_scales, p.x + token,
                                         row_bytes, 0, columns, sums[0]);
  } else {
    int64_t count = 0;
    for (int64_t k = 0; k < columns; k += p.leaf, ++count) {
      DotRange<Simd, Code, kRows, kTokens>(
          rows, block_scales, p.x + token, row_bytes, k,
          std::min(k + p.leaf, columns), sums[count]);
    }
    FoldLeaves(sums, count);
  }
  StoreScaled<kRows, kTokens>(p, sums[0], row, token);
}

// Rows [begin, end), the first at `data`, for tokens [token, token + kTokens).
template <typename Simd, typename Code, int kTokens>
void DotRows(const DotProducts& p, const std::byte* data, int64_t begin,
             int64_t end, int64_t token) {
  constexpr int kRows = Simd::Rows(kTokens);
  const int64_t row_bytes = p.weight->columns * Code::kBytes;
  int64_t row = begin;
  for (; row + kRows <= end; row += kRows, data += kRows * row_bytes) {
    DotBlock<Simd, Code, kRows, kTokens>(p, data, row, token);
  }
  for (; row < end; ++row, data += row_bytes) {
    DotBlock<Simd, Code, 1, kTokens>(p, data, row, token);
  }
}

// Rows [begin, end), the first at `data`, for all tokens, up to kMost at a
// time.
template <typename Simd, typename Code, int kMost>
void DotTokens(const DotProducts& p, const std::byte* data, int64_t begin,
               int64_t end) {
  ForTokenTiles<kMost>(p.tokens, [&](int64_t token, auto count) {
    DotRows<Simd, Code, decltype(count)::value>(p, data, begin, end, token);
  });
}

// Rows [begin, end) as fp32, blocks' scales applied.
template <typename Simd, typename Code>
void DecodePanel(const Weight& weight, int64_t begin, int64_t end,
                 float* panel) {
  const int64_t columns = weight.columns;
  const std::byte* data = weight.data + begin * columns * Code::kBytes;
  for (int64_t row = begin; row < end; ++row, panel += columns) {
    for (int64_t k = 0; k < columns;
         k += kLanes, data += kLanes * Code::kBytes) {
      auto w = Simd::template Decode<Code>(data);
      if constexpr (kHasBlocks<Code>) {
        w = Simd::Multiply(
            w, Simd::Broadcast(weight.BlockScales(row)[k / kScaleBlock]));
      }
      Simd::Store(w, panel + k);
    }
  }
}

// Fetches `bytes` of what follows a panel that ends at row `end`.
[[gnu::always_inline]] inline void PrefetchPanel(const DotProducts& p,
                                                 int64_t end, int64_t bytes) {
  const std::byte* next =
      end == p.row_end
          ? p.next
          : p.weight->data +
                end * p.weight->columns * WeightElementBytes(p.weight->dtype);
  if (next != nullptr) PrefetchBytes(next, bytes);
}

// Many tokens: a panel's weights are decoded once for all of them.
template <typename Simd, typename Code>
void DotDecoded(const DotProducts& p) {
  const int64_t columns = p.weight->columns;
  const int64_t panel_rows =
      std::clamp<int64_t>(kPanelValues / columns / 4 * 4, 1, kPanelRows);
  alignas(64) float panel[kPanelValues];
  for (int64_t row = p.row_begin; row < p.row_end; row += panel_rows) {
    const int64_t end = std::min(row + panel_rows, p.row_end);
    DecodePanel<Simd, Code>(*p.weight, row, end, panel);
    PrefetchPanel(p, end, panel_rows * columns * Code::kBytes);
    DotTokens<Simd, Fp32Code, Simd::kPanelTokens>(
        p, reinterpret_cast<const std::byte*>(panel), row, end);
  }
}

template <typename Simd, typename Code>
void DotCode(const DotProducts& p) {
  const int64_t columns = p.weight->columns;
  if constexpr (!std::is_same_v<Code, Fp32Code>) {
    if (p.tokens > Simd::kTokens && columns <= kPanelValues) {
      return DotDecoded<Simd, Code>(p);
    }
  }
  for (int64_t row = p.row_begin; row < p.row_end; row += kPanelRows) {
    DotTokens<Simd, Code, Simd::kTokens>(
        p, p.weight->data + row * columns * Code::kBytes, row,
        std::min(row + kPanelRows, p.row_end));
  }
}

template <typename Simd>
void DotAll(const DotProducts& p) {
  if (p.weight->block_scales != nullptr) return DotCode<Simd, BlockFp8Code>(p);
  DispatchWeight(p.weight->dtype,
                 [&p](auto code) { DotCode<Simd, decltype(code)>(p); });
}

}  // namespace
}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_DOT_KERNEL_H_
