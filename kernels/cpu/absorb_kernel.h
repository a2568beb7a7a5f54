// Column sums over any instruction set that has sixteen lanes: see
// dot_kernel.h, whose rules hold here too.
//
// Simd, beyond what dot_kernel.h asks for: Broadcast, Multiply; kColumnTokens,
// the most tokens that share registers, and ColumnGroups(tokens), how many
// groups of kLanes columns do.
#ifndef INVAR_KERNELS_CPU_ABSORB_KERNEL_H_
#define INVAR_KERNELS_CPU_ABSORB_KERNEL_H_

#include <algorithm>
#include <type_traits>

#include "kernels/cpu/codes.h"
#include "kernels/cpu/dot_kernel.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/run.h"

namespace invar::cpu {
namespace {

// Decoded weights of a panel: a share of the first-level cache.
constexpr int64_t kColumnPanelValues = 8192;

// Rows of `data`, `stride` bytes apart: sums of kGroups * kLanes columns for
// kTokens tokens, into out[t] + column.
template <typename Simd, typename Code, int kTokens, int kGroups>
void ColumnTile(const ColumnSums& p, const std::byte* data, int64_t stride,
                int64_t column, int64_t token) {
  typename Simd::Vector sum[kTokens][kGroups];
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) sum[t][g] = Simd::Zero();
  }
  const int64_t rows = p.weight->rows;
  const float* const* x = p.x + token;
  for (int64_t n = 0; n < rows; ++n, data += stride) {
    typename Simd::Vector w[kGroups];
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) {
      w[g] = Simd::template Decode<Code>(data + g * kLanes * Code::kBytes);
    }
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) {
      const auto factor = Simd::Broadcast(x[t][n]);
#pragma GCC unroll 16
      for (int g = 0; g < kGroups; ++g) {
        sum[t][g] = Simd::MultiplyAdd(factor, w[g], sum[t][g]);
      }
    }
  }
  const auto scale = Simd::Broadcast(p.weight->scale);
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) {
      Simd::Store(Simd::Multiply(sum[t][g], scale),
                  p.out[token + t] + column + g * kLanes);
    }
  }
}

// Columns [begin, end), the first at `data`, for tokens [token, + kTokens).
template <typename Simd, typename Code, int kTokens>
void ColumnTokens(const ColumnSums& p, const std::byte* data, int64_t stride,
                  int64_t begin, int64_t end, int64_t token) {
  constexpr int kGroups = Simd::ColumnGroups(kTokens);
  constexpr int64_t kColumns = kGroups * kLanes;
  int64_t column = begin;
  for (; column + kColumns <= end; column += kColumns) {
    ColumnTile<Simd, Code, kTokens, kGroups>(p, data, stride, column, token);
    data += kColumns * Code::kBytes;
  }
  for (; column < end; column += kLanes) {
    ColumnTile<Simd, Code, kTokens, 1>(p, data, stride, column, token);
    data += kLanes * Code::kBytes;
  }
}

// panel (rows, width) = columns [begin, end) as fp32.
template <typename Simd, typename Code>
void DecodeColumns(const Weight& weight, int64_t begin, int64_t end,
                   int64_t width, float* panel) {
  using Run = typename Simd::template Run<Code>;
  constexpr int64_t kRun = Run::kVectors * kLanes;
  const std::byte* data = weight.data + begin * Code::kBytes;
  for (int64_t n = 0; n < weight.rows; ++n, panel += width) {
    int64_t k = 0;
    for (; k + kRun <= end - begin; k += kRun) {
      DecodeRun<Simd, Run>(data + k * Code::kBytes, panel + k);
    }
    for (; k < end - begin; k += kLanes) {
      DecodeRun<Simd, OneVector<Simd, Code>>(data + k * Code::kBytes,
                                             panel + k);
    }
    data += weight.columns * Code::kBytes;
  }
}

// Many tokens: a panel of columns is decoded once for all of them.
template <typename Simd, typename Code>
void ColumnSumsDecoded(const ColumnSums& p) {
  constexpr int kTokensMost = Simd::kColumnTokens;
  const int64_t rows = p.weight->rows;
  const int64_t width = std::min<int64_t>(kColumnPanelValues / rows / kLanes,
                                          Simd::ColumnGroups(kTokensMost)) *
                        kLanes;
  alignas(64) float panel[kColumnPanelValues];
  for (int64_t c = p.column_begin; c < p.column_end; c += width) {
    const int64_t end = std::min(c + width, p.column_end);
    DecodeColumns<Simd, Code>(*p.weight, c, end, width, panel);
    // The next panel is beside this one; fetched as PanelPrefetch does it.
    const std::byte* next = p.weight->data + end * Code::kBytes;
    const std::byte* const next_end =
        next + rows * p.weight->columns * Code::kBytes;
    const int64_t tiles = (p.tokens + kTokensMost - 1) / kTokensMost;
    ForTokenTiles<kTokensMost>(p.tokens, [&](int64_t token, auto count) {
      for (int64_t n = 0; n < rows && next < next_end; n += tiles) {
        PrefetchBytes(next, width * Code::kBytes);
        next += p.weight->columns * Code::kBytes;
      }
      ColumnTokens<Simd, Fp32Code, decltype(count)::value>(
          p, reinterpret_cast<const std::byte*>(panel),
          width * Fp32Code::kBytes, c, end, token);
    });
  }
}

template <typename Simd>
void ColumnSumsAll(const ColumnSums& p) {
  DispatchWeight(p.weight->dtype, [&](auto code) {
    using Code = decltype(code);
    if constexpr (!std::is_same_v<Code, Fp32Code>) {
      if (p.tokens > Simd::kColumnTokens &&
          p.weight->rows <= kColumnPanelValues / kLanes) {
        return ColumnSumsDecoded<Simd, Code>(p);
      }
    }
    ForTokenTiles<Simd::kColumnTokens>(
        p.tokens, [&](int64_t token, auto count) {
          ColumnTokens<Simd, Code, decltype(count)::value>(
              p, p.weight->data + p.column_begin * Code::kBytes,
              p.weight->columns * Code::kBytes, p.column_begin, p.column_end,
              token);
        });
  });
}

}  // namespace
}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_ABSORB_KERNEL_H_
