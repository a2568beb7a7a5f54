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
#include "kernels/cpu/isa_kernels.h"

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

// Tokens [token, end) of columns [begin, end of them), the first at `data`.
template <typename Simd, typename Code, int kTokens>
void ColumnTokens(const ColumnSums& p, const std::byte* data, int64_t stride,
                  int64_t begin, int64_t end, int64_t token) {
  constexpr int kGroups = Simd::ColumnGroups(kTokens);
  constexpr int64_t kColumns = kGroups * kLanes;
  for (; token + kTokens <= p.tokens; token += kTokens) {
    const std::byte* from = data;
    int64_t column = begin;
    for (; column + kColumns <= end; column += kColumns) {
      ColumnTile<Simd, Code, kTokens, kGroups>(p, from, stride, column, token);
      from += kColumns * Code::kBytes;
    }
    for (; column < end; column += kLanes) {
      ColumnTile<Simd, Code, kTokens, 1>(p, from, stride, column, token);
      from += kLanes * Code::kBytes;
    }
  }
  if constexpr (kTokens > 1) {
    if (token < p.tokens) {
      ColumnTokens<Simd, Code, kTokens - 1>(p, data, stride, begin, end, token);
    }
  }
}

// Many tokens: a panel of columns is decoded once for all of them.
template <typename Simd, typename Code>
void ColumnSumsDecoded(const ColumnSums& p) {
  const int64_t rows = p.weight->rows;
  const int64_t width =
      std::min<int64_t>(kColumnPanelValues / rows / kLanes,
                        Simd::ColumnGroups(Simd::kColumnTokens)) *
      kLanes;
  alignas(64) float panel[kColumnPanelValues];
  for (int64_t c = p.column_begin; c < p.column_end; c += width) {
    const int64_t end = std::min(c + width, p.column_end);
    const std::byte* data = p.weight->data + c * Code::kBytes;
    for (int64_t n = 0; n < rows; ++n) {
      // The next panel is beside this one.
      PrefetchBytes(data + width * Code::kBytes, width * Code::kBytes);
      for (int64_t k = 0; k < end - c; k += kLanes) {
        Simd::Store(Simd::template Decode<Code>(data + k * Code::kBytes),
                    panel + n * width + k);
      }
      data += p.weight->columns * Code::kBytes;
    }
    ColumnTokens<Simd, Fp32Code, Simd::kColumnTokens>(
        p, reinterpret_cast<const std::byte*>(panel), width * Fp32Code::kBytes,
        c, end, 0);
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
    ColumnTokens<Simd, Code, Simd::kColumnTokens>(
        p, p.weight->data + p.column_begin * Code::kBytes,
        p.weight->columns * Code::kBytes, p.column_begin, p.column_end, 0);
  });
}

}  // namespace
}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_ABSORB_KERNEL_H_
