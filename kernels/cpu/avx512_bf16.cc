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

// The bf16 of an e4m3 code's magnitude; that of NaN is 480, as everywhere here.
constexpr uint16_t MagnitudeBits(int magnitude) {
  const int exponent = magnitude >> 3;
  if (exponent > 0) {
    return static_cast<uint16_t>((exponent - 7 + 127) << 7 | (magnitude & 7)
                                                                 << 4);
  }
  // Multiples of 2^-9.
  if (magnitude == 0) return 0;
  const int top = magnitude >= 4 ? 2 : magnitude >= 2 ? 1 : 0;
  return static_cast<uint16_t>((top - 9 + 127) << 7 |
                               ((magnitude << (7 - top)) & 0x7f));
}

// Decodes e4m3 to bf16 by table: the two bytes of a magnitude are looked up
// apart.
struct PairTables {
  alignas(64) uint8_t high[128];
  alignas(64) uint8_t low[128];
  // Codes 16 + l and l of the first 32, four such pairs of them in a block of
  // 16 bytes, then as many of the second 32.
  alignas(64) uint8_t order[64];
};

constexpr PairTables MakePairTables() {
  PairTables tables = {};
  for (int magnitude = 0; magnitude < 128; ++magnitude) {
    tables.high[magnitude] = MagnitudeBits(magnitude) >> 8;
    tables.low[magnitude] = MagnitudeBits(magnitude) & 0xff;
  }
  for (int i = 0; i < 64; ++i) {
    tables.order[i] = static_cast<uint8_t>(i % 16 / 8 * 32 + (1 - i % 2) * 16 +
                                           i / 16 * 4 + i % 8 / 2);
  }
  return tables;
}

constexpr PairTables kPairTables = MakePairTables();

class PairDecoder {
 public:
  // 32 codes from p as kVectorPairs pairs each to `first` and `second`; those
  // not in `present` are zeros.
  void Decode(const std::byte* p, __mmask64 present, __m512i* first,
              __m512i* second) const {
    const __m512i codes =
        _mm512_permutexvar_epi8(order_, _mm512_maskz_loadu_epi8(present, p));
    // high | (codes & 0x80); the look-up ignores a code's sign.
    const __m512i high = _mm512_ternarylogic_epi32(
        _mm512_permutex2var_epi8(high_[0], codes, high_[1]), codes,
        _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);
    const __m512i low = _mm512_permutex2var_epi8(low_[0], codes, low_[1]);
    *first = _mm512_unpacklo_epi8(low, high);
    *second = _mm512_unpackhi_epi8(low, high);
  }

 private:
  const __m512i high_[2] = {_mm512_load_si512(kPairTables.high),
                            _mm512_load_si512(kPairTables.high + 64)};
  const __m512i low_[2] = {_mm512_load_si512(kPairTables.low),
                           _mm512_load_si512(kPairTables.low + 64)};
  const __m512i order_ = _mm512_load_si512(kPairTables.order);
};

// Rows [begin, end) of e4m3 codes, whole groups of kPairRows, as pairs: vector
// i of a group's rows behind each other, then vector i + 1 of them.
void DecodePairs(const Weight& weight, int64_t begin, int64_t end,
                 uint32_t* panel) {
  constexpr int64_t kStep = kPairRows * kVectorPairs;
  const PairDecoder decoder;
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
      decoder.Decode(data + k, ~__mmask64{0}, &first, &second);
      _mm512_store_si512(to, first);
      _mm512_store_si512(to + kStep, second);
    }
    if (k == columns) continue;
    const __mmask64 present = (__mmask64{1} << (columns - k)) - 1;
    decoder.Decode(data + k, present, &first, &second);
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
    DecodePairs(*p.weight, begin, end, panel);
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
