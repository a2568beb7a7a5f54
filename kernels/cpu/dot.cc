#include "kernels/cpu/dot.h"

#include <algorithm>

#include "kernels/cpu/codes.h"
#include "kernels/cpu/lanes.h"

namespace invar::cpu {
namespace {

// Tokens whose sums are in registers together: 2 x 6 accumulators and one
// decoded weight fit in the 16 registers of AVX2.
constexpr int kTokensAtOnce = 6;
// Rows together when there is one token to hide the latency of its sums.
constexpr int kRowsAtOnce = 4;
// Rows that are walked for one block of tokens before the next block, so that
// both stay in the first-level cache.
constexpr int64_t kPanelRows = 32;

// ((0+1)+(2+3))+((4+5)+(6+7)) over the places that exist.
float FoldLeaves(float* leaves, int64_t count) {
  for (int64_t stride = 1; stride < kMaxLeaves; stride *= 2) {
    for (int64_t i = 0; i + stride < count; i += 2 * stride) {
      leaves[i] = leaves[i] + leaves[i + stride];
    }
  }
  return leaves[0];
}

// sums[r * kTokens + t] = W[row + r, begin:end] . x[t][begin:end]
template <typename Code, int kRows, int kTokens>
inline void DotRange(const std::byte* const* rows, const float* const* x,
                     int64_t begin, int64_t end, float* sums) {
  Lanes sum[kRows][kTokens];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) sum[r][t] = Zero();
  }
  for (int64_t k = begin; k < end; k += kLanes) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Lanes w = Code::Decode(rows[r] + k * Code::kBytes);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        sum[r][t] = MultiplyAdd(w, Load(x[t] + k), sum[r][t]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) sums[r * kTokens + t] = Sum(sum[r][t]);
  }
}

template <typename Code, int kRows, int kTokens>
void DotBlock(const DotProducts& p, int64_t row, int64_t token) {
  const int64_t columns = p.weight->columns;
  const std::byte* rows[kRows];
  for (int r = 0; r < kRows; ++r) {
    rows[r] = p.weight->data + (row + r) * columns * Code::kBytes;
  }
  float sums[kRows * kTokens];
  if (p.leaf == 0) {
    DotRange<Code, kRows, kTokens>(rows, p.x + token, 0, columns, sums);
  } else {
    float leaves[kRows * kTokens][kMaxLeaves];
    int64_t count = 0;
    for (int64_t k = 0; k < columns; k += p.leaf, ++count) {
      DotRange<Code, kRows, kTokens>(rows, p.x + token, k,
                                     std::min(k + p.leaf, columns), sums);
      for (int i = 0; i < kRows * kTokens; ++i) leaves[i][count] = sums[i];
    }
    for (int i = 0; i < kRows * kTokens; ++i) {
      sums[i] = FoldLeaves(leaves[i], count);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTokens; ++t) {
      p.out[token + t][row + r] = p.scale * sums[r * kTokens + t];
    }
  }
}

template <typename Code, int kTokens>
void DotPanel(const DotProducts& p, int64_t begin, int64_t end, int64_t token) {
  int64_t row = begin;
  if constexpr (kTokens == 1) {
    for (; row + kRowsAtOnce <= end; row += kRowsAtOnce) {
      DotBlock<Code, kRowsAtOnce, 1>(p, row, token);
    }
  }
  if constexpr (kTokens == 2 || kTokens == 3) {
    for (; row + 2 <= end; row += 2) DotBlock<Code, 2, kTokens>(p, row, token);
  }
  for (; row < end; ++row) DotBlock<Code, 1, kTokens>(p, row, token);
}

template <typename Code>
void DotAll(const DotProducts& p) {
  for (int64_t row = p.row_begin; row < p.row_end; row += kPanelRows) {
    const int64_t end = std::min(row + kPanelRows, p.row_end);
    int64_t t = 0;
    for (; t + kTokensAtOnce <= p.tokens; t += kTokensAtOnce) {
      DotPanel<Code, kTokensAtOnce>(p, row, end, t);
    }
    switch (p.tokens - t) {
      case 5:
        DotPanel<Code, 5>(p, row, end, t);
        break;
      case 4:
        DotPanel<Code, 4>(p, row, end, t);
        break;
      case 3:
        DotPanel<Code, 3>(p, row, end, t);
        break;
      case 2:
        DotPanel<Code, 2>(p, row, end, t);
        break;
      case 1:
        DotPanel<Code, 1>(p, row, end, t);
        break;
      default:
        break;
    }
  }
}

}  // namespace

void Dot(const DotProducts& products) {
  DispatchWeight(products.weight->dtype,
                 [&](auto code) { DotAll<decltype(code)>(products); });
}

int64_t DotGrain(const Weight& weight, int64_t tokens) {
  constexpr int64_t kProductsWorthAClaim = 1 << 15;
  const int64_t rows =
      kProductsWorthAClaim / std::max<int64_t>(1, weight.columns * tokens);
  return std::clamp<int64_t>((rows + 3) / 4 * 4, 4, 4 * kPanelRows);
}

float OutputScale(const Weight& weight) {
  return weight.input_scale > 0.0f ? weight.input_scale * weight.scale
                                   : weight.scale;
}

void QuantizeInput(ThreadPool& pool, const float* x, float input_scale,
                   int64_t count, float* out) {
  const Lanes scale = Broadcast(input_scale);
  pool.ParallelFor(count / kLanes, 512, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin * kLanes; k < end * kLanes; k += kLanes) {
      Store(Fp8E4m3Code::Round(Divide(Load(x + k), scale)), out + k);
    }
  });
}

}  // namespace invar::cpu
