// Compiled for x86-64-v4 with AVX512_BF16: runs only where BestIsa() says so.
//
// vdpbf16ps multiplies two bf16 pairs a lane and adds both products, at the
// rate at which vfmadd does one. It is two fused multiply-adds, the pair's high
// half first, each rounded to nearest even, with denormals taken as zeros. An
// e4m3 value is a bf16 exactly, and products of two are multiples of 2^-18, so
// nothing here is ever denormal: with element k in the high half and k + 16 in
// the low one, each lane sees the additions that the other instruction sets
// make, in their order. The processor is asked whether it is so
// (PairsAreTwoMultiplyAdds), since manuals disagree about the order.
#include <cstring>

#include "kernels/cpu/absorb_kernel.h"
#include "kernels/cpu/avx512_simd.h"
#include "kernels/cpu/dot_kernel.h"
#include "kernels/cpu/mla_attention_kernel.h"

namespace invar::cpu {
namespace {

// A panel of weights as pairs: a share of the first-level cache.
constexpr int64_t kPanelPairs = 4096;
constexpr int kPairRows = 4;
// With four rows, 24 sums, four weights and an input fit in 32 registers.
constexpr int kPairTokens = 6;
constexpr int64_t kVectorPairs = 16;

__m512i LoadPairs(const uint32_t* p) { return _mm512_loadu_si512(p); }

__m512 MultiplyAddPairs(__m512i a, __m512i b, __m512 sum) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a),
                          reinterpret_cast<__m512bh>(b));
}

// Rows [begin, end) of e4m3 codes as pairs; behind an odd half, zeros.
void DecodePairs(const Weight& weight, int64_t begin, int64_t end,
                 uint32_t* panel) {
  const int64_t columns = weight.columns;
  const std::byte* data = weight.data + begin * columns;
  for (int64_t row = begin; row < end; ++row, data += columns) {
    for (int64_t k = 0; k < columns; k += 2 * kLanes, panel += kVectorPairs) {
      const __m512i high =
          _mm512_castps_si512(Avx512::Decode<Fp8E4m3Code>(data + k));
      const __m512i low = k + kLanes < columns
                              ? _mm512_castps_si512(Avx512::Decode<Fp8E4m3Code>(
                                    data + k + kLanes))
                              : _mm512_setzero_si512();
      // The low halves of both are zeros.
      _mm512_store_si512(panel,
                         _mm512_or_si512(high, _mm512_srli_epi32(low, 16)));
    }
  }
}

// Of a panel's rows, the first of which is row `first` of the weight.
struct PairPanel {
  const uint32_t* pairs;
  int64_t stride;  // pairs a row
  int64_t first;
};

// out[token + t][panel.first + row + r], for kRows rows and kTokens tokens.
template <int kRows, int kTokens>
void DotPairs(const DotProducts& p, const PairPanel& panel, int64_t row,
              int64_t token) {
  const int64_t leaf = p.leaf == 0 ? panel.stride : p.leaf / 2;
  float sums[kMaxLeaves][kRows * kTokens];
  int64_t count = 0;
  for (int64_t begin = 0; begin < panel.stride; begin += leaf, ++count) {
    const int64_t end = std::min(begin + leaf, panel.stride);
    __m512 sum[kRows][kTokens];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) sum[r][t] = _mm512_setzero_ps();
    }
    for (int64_t k = begin; k < end; k += kVectorPairs) {
      __m512i w[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        w[r] = LoadPairs(panel.pairs + (row + r) * panel.stride + k);
      }
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const __m512i x = LoadPairs(p.pairs[token + t] + k);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          sum[r][t] = MultiplyAddPairs(w[r], x, sum[r][t]);
        }
      }
    }
    Avx512::Sums(sum, sums[count]);
  }
  FoldLeaves(sums, count);
  for (int t = 0; t < kTokens; ++t) {
    const float input_scale =
        p.input_scales == nullptr ? p.input_scale : p.input_scales[token + t];
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = panel.first + row + r;
      p.out[token + t][at] =
          input_scale * p.weight->RowScale(at) * sums[0][t * kRows + r];
    }
  }
}

// All rows of a panel, for tokens kTokens at a time and the rest in one go.
template <int kTokens>
void DotPanel(const DotProducts& p, const PairPanel& panel, int64_t rows,
              int64_t token) {
  for (; token + kTokens <= p.tokens; token += kTokens) {
    int64_t row = 0;
    for (; row + kPairRows <= rows; row += kPairRows) {
      DotPairs<kPairRows, kTokens>(p, panel, row, token);
    }
    for (; row < rows; ++row) DotPairs<1, kTokens>(p, panel, row, token);
  }
  if constexpr (kTokens > 1) {
    if (token < p.tokens) DotPanel<kTokens - 1>(p, panel, rows, token);
  }
}

void DotWithPairs(const DotProducts& p) {
  const int64_t stride = PairsOf(p.weight->columns);
  if (p.pairs == nullptr || stride > kPanelPairs) return DotAll<Avx512>(p);
  const int64_t panel_rows = std::clamp<int64_t>(
      kPanelPairs / stride / kPairRows * kPairRows, 1, kPanelRows);
  alignas(64) uint32_t pairs[kPanelPairs];
  for (int64_t row = p.row_begin; row < p.row_end; row += panel_rows) {
    const int64_t end = std::min(row + panel_rows, p.row_end);
    DecodePairs(*p.weight, row, end, pairs);
    DotPanel<kPairTokens>(p, {pairs, stride, row}, end - row, 0);
  }
}

}  // namespace

constexpr IsaKernels kAvx512Bf16Kernels = {
    .dot = DotWithPairs,
    .column_sums = ColumnSumsAll<Avx512>,
    .tile_scores = TileScoresAll<Avx512>,
    .tile_values = TileValuesAll<Avx512>,
};

bool PairsAreTwoMultiplyAdds() {
  constexpr int kTrials = 4096;
  uint64_t state = 1;
  const auto draw = [&state] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
  };
  alignas(64) uint32_t pairs[2][kVectorPairs];
  alignas(64) float sum[kVectorPairs];
  for (int trial = 0; trial < kTrials; ++trial) {
    alignas(64) float values[2][2][kVectorPairs];  // operand, half
    for (int lane = 0; lane < kVectorPairs; ++lane) {
      // Sums of the size of the products, so that both roundings show.
      sum[lane] = (static_cast<float>(draw() % (1 << 24)) - 8388608.0f) *
                  (1.0f / static_cast<float>(1 << (draw() % 24)));
      for (int operand = 0; operand < 2; ++operand) {
        alignas(16) std::byte codes[kLanes] = {};
        for (int half = 0; half < 2; ++half) {
          const uint64_t code = draw() % 0x7f | (draw() & 0x80);
          codes[half] = static_cast<std::byte>(code);
        }
        alignas(64) float decoded[kLanes];
        _mm512_store_ps(decoded, Avx512::Decode<Fp8E4m3Code>(codes));
        for (int half = 0; half < 2; ++half) {
          values[operand][half][lane] = decoded[half];
        }
        uint32_t high, low;
        std::memcpy(&high, &decoded[0], sizeof(high));
        std::memcpy(&low, &decoded[1], sizeof(low));
        pairs[operand][lane] = high | low >> 16;
      }
    }
    const __m512 start = _mm512_load_ps(sum);
    const __m512 once = _mm512_fmadd_ps(_mm512_load_ps(values[0][0]),
                                        _mm512_load_ps(values[1][0]), start);
    const __m512 twice = _mm512_fmadd_ps(_mm512_load_ps(values[0][1]),
                                         _mm512_load_ps(values[1][1]), once);
    const __m512 got =
        MultiplyAddPairs(LoadPairs(pairs[0]), LoadPairs(pairs[1]), start);
    if (_mm512_cmpneq_epi32_mask(_mm512_castps_si512(twice),
                                 _mm512_castps_si512(got)) != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace invar::cpu
