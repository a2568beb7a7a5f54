// Compiled for x86-64-v4 with AVX512_BF16 and VBMI: runs only where BestIsa()
// says so.
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

// The bf16 of an FP8 code's magnitude. E4m3's NaN is 480, as in codes.h.
template <typename Code>
constexpr uint16_t MagnitudeBits(int magnitude) {
  constexpr bool kIsE4m3 = std::is_base_of_v<Fp8E4m3Code, Code>;
  constexpr int kMantissa = kIsE4m3 ? 3 : 2;
  constexpr int kBias = kIsE4m3 ? 7 : 15;
  constexpr int kOne = 1 << kMantissa;
  int exponent = magnitude / kOne;
  int fraction = magnitude % kOne;
  if (!kIsE4m3 && exponent == 31) {  // infinity and NaN
    return static_cast<uint16_t>(0x7f80 | fraction << (7 - kMantissa));
  }
  if (magnitude == 0) return 0;
  if (exponent == 0) {  // subnormal
    for (exponent = 1; fraction < kOne; --exponent) fraction *= 2;
  }
  return static_cast<uint16_t>((exponent - kBias + 127) << 7 |
                               fraction % kOne << (7 - kMantissa));
}

// The bytes of a magnitude's bf16, looked up apart.
struct ByteTables {
  alignas(64) uint8_t high[128];
  alignas(64) uint8_t low[128];
};

template <typename Code>
constexpr ByteTables MakeByteTables() {
  ByteTables tables = {};
  for (int magnitude = 0; magnitude < 128; ++magnitude) {
    tables.high[magnitude] = MagnitudeBits<Code>(magnitude) >> 8;
    tables.low[magnitude] = MagnitudeBits<Code>(magnitude) & 0xff;
  }
  return tables;
}
template <typename Code>
constexpr ByteTables kByteTables = MakeByteTables<Code>();

// Codes 16 + l and l of the first 32, four such pairs of them in a block of 16
// bytes, then as many of the second 32.
struct PairOrder {
  alignas(64) uint8_t order[64];
};
constexpr PairOrder MakePairOrder() {
  PairOrder order = {};
  for (int i = 0; i < 64; ++i) {
    order.order[i] = static_cast<uint8_t>(i % 16 / 8 * 32 + (1 - i % 2) * 16 +
                                          i / 16 * 4 + i % 8 / 2);
  }
  return order;
}
constexpr PairOrder kPairOrder = MakePairOrder();

// 64 FP8 codes as kVectorPairs pairs and then as many again.
template <typename Code>
inline void DecodePairs(__m512i codes, __m512i* first, __m512i* second) {
  const ByteTables& tables = kByteTables<Code>;
  codes = _mm512_permutexvar_epi8(_mm512_load_si512(kPairOrder.order), codes);
  // The look-up ignores a code's sign: high | (codes & 0x80).
  const __m512i high = _mm512_ternarylogic_epi32(
      _mm512_permutex2var_epi8(_mm512_load_si512(tables.high), codes,
                               _mm512_load_si512(tables.high + 64)),
      codes, _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);
  const __m512i low = _mm512_permutex2var_epi8(
      _mm512_load_si512(tables.low), codes, _mm512_load_si512(tables.low + 64));
  *first = _mm512_unpacklo_epi8(low, high);
  *second = _mm512_unpackhi_epi8(low, high);
}

// Four vectors of a cached row, FP8 by table.
template <typename Code>
struct PairRun {
  static constexpr int kVectors = 4;
  static constexpr int64_t kBytes = 1;

  void Load(const std::byte* p) {
    DecodePairs<Code>(_mm512_loadu_si512(p), &pairs[0], &pairs[1]);
  }
  __m512 Decode(int i) const {
    return _mm512_castsi512_ps(
        i % 2 == 0 ? _mm512_and_si512(pairs[i / 2], _mm512_set1_epi32(-0x10000))
                   : _mm512_slli_epi32(pairs[i / 2], 16));
  }

  __m512i pairs[2];
};

struct Avx512Bf16 : Avx512 {
  template <typename Code>
  using Run = std::conditional_t<std::is_same_v<Code, Fp8E5m2Code> ||
                                     std::is_same_v<Code, Fp8E4m3Code>,
                                 PairRun<Code>, Vectors<Avx512, Code, 4>>;
};

// Rows [begin, end) of e4m3 codes, whole groups of kPairRows, as pairs: vector
// i of a group's rows behind each other, then vector i + 1 of them.
void DecodePairPanel(const Weight& weight, int64_t begin, int64_t end,
                     uint32_t* panel) {
  constexpr int64_t kStep = kPairRows * kVectorPairs;
  const int64_t columns = weight.columns;
  const std::byte* data = weight.data + begin * columns;
  for (int64_t row = begin; row < end; ++row, data += columns) {
    uint32_t* to = panel +
                   (row - begin) / kPairRows * kPairRows * PairsOf(columns) +
                   (row - begin) % kPairRows * kVectorPairs;
    __m512i first;
    __m512i second;
    int64_t k = 0;
    for (; k + 4 * kLanes <= columns; k += 4 * kLanes, to += 2 * kStep) {
      DecodePairs<Fp8E4m3Code>(_mm512_loadu_si512(data + k), &first, &second);
      _mm512_store_si512(to, first);
      _mm512_store_si512(to + kStep, second);
    }
    if (k == columns) continue;
    const __mmask64 present = (__mmask64{1} << (columns - k)) - 1;
    DecodePairs<Fp8E4m3Code>(_mm512_maskz_loadu_epi8(present, data + k), &first,
                             &second);
    _mm512_store_si512(to, first);
    if (columns - k > 2 * kLanes) _mm512_store_si512(to + kStep, second);
  }
}

// sums[t * kPairRows + r] = the group's row r at `panel` times x[t], over
// `pairs` pairs.
template <int kTokens>
inline void DotPairs(const uint32_t* panel, const uint32_t* const* x,
                     int64_t begin, int64_t end, float* sums) {
  __m512 sum[kPairRows][kTokens];
#pragma GCC unroll 8
  for (int r = 0; r < kPairRows; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) sum[r][t] = _mm512_setzero_ps();
  }
  panel += begin * kPairRows;
  for (int64_t k = begin; k < end; k += kVectorPairs) {
    __m512i w[kPairRows];
#pragma GCC unroll 8
    for (int r = 0; r < kPairRows; ++r) {
      w[r] = LoadPairs(panel + r * kVectorPairs);
    }
    panel += kPairRows * kVectorPairs;
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      const __m512i input = LoadPairs(x[t] + k);
#pragma GCC unroll 8
      for (int r = 0; r < kPairRows; ++r) {
        sum[r][t] = MultiplyAddPairs(w[r], input, sum[r][t]);
      }
    }
  }
  Avx512::Sums(sum, sums);
}

// out[token + t][row + r] of the kPairRows rows at `panel`.
template <int kTokens>
inline void PairTile(const DotProducts& p, const uint32_t* panel, int64_t row,
                     int64_t token) {
  const int64_t pairs = PairsOf(p.weight->columns);
  const uint32_t* x[kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) x[t] = p.pairs[token + t];
  constexpr int kSums = kPairRows * kTokens;
  alignas(64) float sums[kMaxLeaves][(kSums + 15) / 16 * 16];
  if (p.leaf == 0) {
    DotPairs<kTokens>(panel, x, 0, pairs, sums[0]);
  } else {
    int64_t count = 0;
    for (int64_t k = 0; k < pairs; k += p.leaf / 2, ++count) {
      DotPairs<kTokens>(panel, x, k, std::min(k + p.leaf / 2, pairs),
                        sums[count]);
    }
    FoldLeaves(sums, count);
  }
  StoreScaled<kPairRows, kTokens>(p, sums[0], row, token);
}

void DotWithPairs(const DotProducts& p) {
  const int64_t pairs = PairsOf(p.weight->columns);
  const int64_t panel_rows = std::min<int64_t>(
      kPanelPairs / pairs / kPairRows * kPairRows, kPanelRows);
  if (p.pairs == nullptr || panel_rows == 0) return DotAll<Avx512>(p);
  alignas(64) uint32_t panel[kPanelPairs];
  const int64_t whole_end =
      p.row_begin + (p.row_end - p.row_begin) / kPairRows * kPairRows;
  for (int64_t begin = p.row_begin; begin < whole_end; begin += panel_rows) {
    const int64_t end = std::min(begin + panel_rows, whole_end);
    DecodePairPanel(*p.weight, begin, end, panel);
    PrefetchPanel(p, end, panel_rows * p.weight->columns);
    ForTokenTiles<kPairTokens>(p.tokens, [&](int64_t token, auto count) {
      for (int64_t row = begin; row < end; row += kPairRows) {
        PairTile<decltype(count)::value>(p, panel + (row - begin) * pairs, row,
                                         token);
      }
    });
  }
  if (whole_end == p.row_end) return;
  DotProducts rest = p;
  rest.row_begin = whole_end;
  DotAll<Avx512>(rest);
}

}  // namespace

constexpr IsaKernels kAvx512Bf16Kernels = {
    .dot = DotWithPairs,
    .column_sums = ColumnSumsAll<Avx512>,
    .tile_scores = TileScoresAll<Avx512Bf16>,
    .tile_values = TileValuesAll<Avx512Bf16>,
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
