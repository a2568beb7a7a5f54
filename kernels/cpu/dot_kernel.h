// Dot over any instruction set that has sixteen lanes: included by the file of
// each, which is compiled for it. All is in an unnamed namespace, so that no
// other file can be given code that its processor lacks.
//
// Simd: Vector of 16 lanes; Zero, Load, Store, Broadcast, Multiply, MultiplyAdd
// as in lanes.h; Sums, which sums the lanes of a tile; Decode<Code> and
// Run<Code> (run.h); Rows(tokens), the rows that share registers with so many
// tokens; kTokens and kPanelTokens, the most tokens that do.
#ifndef INVAR_KERNELS_CPU_DOT_KERNEL_H_
#define INVAR_KERNELS_CPU_DOT_KERNEL_H_

#include <immintrin.h>

#include <algorithm>
#include <type_traits>

#include "kernels/cpu/codes.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/run.h"

namespace invar::cpu {
namespace {

// Rows that are walked for one block of tokens before the next block, so that
// both stay in the first-level cache.
constexpr int64_t kPanelRows = 32;
// Rows that share registers on the widest instruction sets.
constexpr int64_t kPanelRowsLeast = 4;
// Decoded weights of a panel, beside the tokens in the first-level cache; more
// where a row is so long that kPanelRowsLeast of them take it.
constexpr int64_t kPanelValues = 4096;
constexpr int64_t kPanelValuesMost = 4 * kPanelValues;

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

// Rows of a weight that share registers.
template <typename Code, int kRows>
struct RowBlock {
  const std::byte* rows[kRows];
  const float* block_scales[kRows];
  int64_t row_bytes;
};

// sum[r][t] += W[row + r] . x[t] over the Run's vectors from column k on.
template <typename Simd, typename Run, typename Code, int kRows, int kTokens>
inline void AddProducts(const RowBlock<Code, kRows>& block,
                        const float* const* x, int64_t k,
                        typename Simd::Vector (&sum)[kRows][kTokens]) {
  if constexpr (kTokens == 1) {
    // A lone token's weights come from memory: fetch the next rows' as they
    // lie, so many bytes as are used here. Rows of two bytes an element would
    // push these rows and the token out of the first-level cache.
    constexpr auto kHint = Code::kBytes == 1 ? _MM_HINT_T0 : _MM_HINT_T1;
    constexpr int64_t kUsed = kRows * Run::kVectors * kLanes * Code::kBytes;
    const std::byte* next =
        block.rows[0] + kRows * block.row_bytes + k * kRows * Code::kBytes;
#pragma GCC unroll 8
    for (int64_t i = 0; i < kUsed; i += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(next + i), kHint);
    }
  }
  Run run[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    run[r].Load(block.rows[r] + k * Code::kBytes);
  }
#pragma GCC unroll 4
  for (int v = 0; v < Run::kVectors; ++v) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      auto w = run[r].Decode(v);
      if constexpr (kHasBlocks<Code>) {
        // A run lies in one block of columns.
        w = Simd::Multiply(
            w, Simd::Broadcast(block.block_scales[r][k / kScaleBlock]));
      }
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        sum[r][t] =
            Simd::MultiplyAdd(w, Simd::Load(x[t] + k + v * kLanes), sum[r][t]);
      }
    }
  }
}

// sums[t * kRows + r] = W[row + r, begin:end] . x[t][begin:end]
template <typename Simd, typename Code, int kRows, int kTokens>
inline void DotRange(const RowBlock<Code, kRows>& block, const float* const* x,
                     int64_t begin, int64_t end, float* sums) {
  using One = OneVector<Simd, Code>;
  // Few tokens are bound by decoding; many have no registers left for a run.
  using Run =
      std::conditional_t<kTokens <= 2, typename Simd::template Run<Code>, One>;
  constexpr int64_t kRun = Run::kVectors * kLanes;
  static_assert(kScaleBlock % kRun == 0);
  typename Simd::Vector sum[kRows][kTokens];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) sum[r][t] = Simd::Zero();
  }
  int64_t k = begin;
  for (; k + kRun <= end; k += kRun) {
    AddProducts<Simd, Run>(block, x, k, sum);
  }
  for (; k < end; k += kLanes) AddProducts<Simd, One>(block, x, k, sum);
  Simd::Sums(sum, sums);
}

template <typename Simd, typename Code, int kRows, int kTokens>
void DotBlock(const DotProducts& p, const std::byte* data, int64_t row,
              int64_t token) {
  const int64_t columns = p.weight->columns;
  const int64_t row_bytes = columns * Code::kBytes;
  RowBlock<Code, kRows> block;
  block.row_bytes = row_bytes;
  for (int r = 0; r < kRows; ++r) {
    block.rows[r] = data + r * row_bytes;
    if constexpr (kHasBlocks<Code>) {
      block.block_scales[r] = p.weight->BlockScales(row + r);
    }
  }
  // One a leaf.
  float sums[kMaxLeaves][kRows * kTokens];
  if (p.leaf == 0) {
    DotRange<Simd, Code, kRows, kTokens>(block, p.x + token, 0, columns,
                                         sums[0]);
  } else {
    int64_t count = 0;
    for (int64_t k = 0; k < columns; k += p.leaf, ++count) {
      DotRange<Simd, Code, kRows, kTokens>(
          block, p.x + token, k, std::min(k + p.leaf, columns), sums[count]);
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
  using Run = typename Simd::template Run<Code>;
  constexpr int64_t kRun = Run::kVectors * kLanes;
  const int64_t columns = weight.columns;
  const std::byte* data = weight.data + begin * columns * Code::kBytes;
  for (int64_t row = begin; row < end; ++row, panel += columns) {
    int64_t k = 0;
    for (; k + kRun <= columns; k += kRun, data += kRun * Code::kBytes) {
      DecodeRun<Simd, Run>(data, panel + k);
    }
    for (; k < columns; k += kLanes, data += kLanes * Code::kBytes) {
      DecodeRun<Simd, OneVector<Simd, Code>>(data, panel + k);
    }
    if constexpr (kHasBlocks<Code>) {
      for (k = 0; k < columns; k += kLanes) {
        const auto scale =
            Simd::Broadcast(weight.BlockScales(row)[k / kScaleBlock]);
        Simd::Store(Simd::Multiply(Simd::Load(panel + k), scale), panel + k);
      }
    }
  }
}

// Fetches what follows a panel that ends at row `end`, evenly between the tiles
// that use the panel: in one go it would fill the queues of loads.
class PanelPrefetch {
 public:
  PanelPrefetch(const DotProducts& p, int64_t end, int64_t bytes, int64_t tiles)
      : next_(end == p.row_end
                  ? p.next
                  : p.weight->data + end * p.weight->columns *
                                         WeightElementBytes(p.weight->dtype)),
        tile_bytes_((bytes / kCacheLine + tiles - 1) / tiles * kCacheLine) {}

  [[gnu::always_inline]] void Tile() {
    if (next_ == nullptr) return;
    PrefetchBytes(next_, tile_bytes_);
    next_ += tile_bytes_;
  }

 private:
  const std::byte* next_;
  const int64_t tile_bytes_;
};

// Many tokens: a panel's weights are decoded once for all of them.
template <typename Simd, typename Code>
void DotDecoded(const DotProducts& p) {
  const int64_t columns = p.weight->columns;
  const int64_t panel_rows =
      std::clamp(kPanelValues / columns / kPanelRowsLeast * kPanelRowsLeast,
                 kPanelRowsLeast, kPanelRows);
  alignas(64) float panel[kPanelValuesMost];
  for (int64_t row = p.row_begin; row < p.row_end; row += panel_rows) {
    const int64_t end = std::min(row + panel_rows, p.row_end);
    DecodePanel<Simd, Code>(*p.weight, row, end, panel);
    PanelPrefetch prefetch(
        p, end, panel_rows * columns * Code::kBytes,
        (p.tokens + Simd::kPanelTokens - 1) / Simd::kPanelTokens);
    ForTokenTiles<Simd::kPanelTokens>(p.tokens, [&](int64_t token, auto count) {
      prefetch.Tile();
      DotRows<Simd, Fp32Code, decltype(count)::value>(
          p, reinterpret_cast<const std::byte*>(panel), row, end, token);
    });
  }
}

template <typename Simd, typename Code>
void DotCode(const DotProducts& p) {
  const int64_t columns = p.weight->columns;
  if constexpr (!std::is_same_v<Code, Fp32Code>) {
    if (p.tokens > Simd::kTokens &&
        kPanelRowsLeast * columns <= kPanelValuesMost) {
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
