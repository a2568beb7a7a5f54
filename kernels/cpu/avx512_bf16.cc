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

// Rows that share registers, four in each: a quad. Row 4 r + q of a block lies
// in quad q, its lanes 4 g to 4 g + 3, a group of lanes, in block r of the
// register. A sum's lanes then fold mostly as whole registers, and the sums of
// sixteen rows come out in one, in order.
constexpr int64_t kBlockRows = 16;
constexpr int kQuads = 4;
constexpr int kGroups = 4;
// Two groups of lanes, four quads and three tokens are 24 sums: with four
// weights and an input they fit in 32 registers.
constexpr int kPairTokens = 3;
// A block's pairs are in a cache: those of rows of up to so many.
constexpr int64_t kRowPairsMost = 6144;
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
struct ByteOrder {
  alignas(64) uint8_t order[64];
};
constexpr ByteOrder MakePairOrder() {
  ByteOrder order = {};
  for (int i = 0; i < 64; ++i) {
    order.order[i] = static_cast<uint8_t>(i % 16 / 8 * 32 + (1 - i % 2) * 16 +
                                          i / 16 * 4 + i % 8 / 2);
  }
  return order;
}
constexpr ByteOrder kPairOrder = MakePairOrder();

// The bytes of 64 codes' bf16s.
template <typename Code>
inline void LookUp(__m512i codes, __m512i* low, __m512i* high) {
  const ByteTables& tables = kByteTables<Code>;
  // The look-up ignores a code's sign: high | (codes & 0x80).
  *high = _mm512_ternarylogic_epi32(
      _mm512_permutex2var_epi8(_mm512_load_si512(tables.high), codes,
                               _mm512_load_si512(tables.high + 64)),
      codes, _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);
  *low = _mm512_permutex2var_epi8(_mm512_load_si512(tables.low), codes,
                                  _mm512_load_si512(tables.low + 64));
}

// 64 FP8 codes as kVectorPairs pairs and then as many again.
template <typename Code>
inline void DecodePairs(__m512i codes, __m512i* first, __m512i* second) {
  __m512i low;
  __m512i high;
  LookUp<Code>(
      _mm512_permutexvar_epi8(_mm512_load_si512(kPairOrder.order), codes), &low,
      &high);
  *first = _mm512_unpacklo_epi8(low, high);
  *second = _mm512_unpackhi_epi8(low, high);
}

// Four vectors of FP8 elements, by table.
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

// Of two rows of 64 codes the `half`th 32 each: 16 bytes of the first row, of
// the second, and the next 16 of both. Such 16 are codes 16 + l and l for eight
// lanes l.
constexpr ByteOrder MakeRowsOrder(int half) {
  ByteOrder order = {};
  for (int i = 0; i < 64; ++i) {
    const int row = i / 16 % 2;
    const int lane = i / 32 * 8 + i % 16 / 2;
    order.order[i] =
        static_cast<uint8_t>(row * 64 + half * 32 + (1 - i % 2) * 16 + lane);
  }
  return order;
}
constexpr ByteOrder kRowsOrder[2] = {MakeRowsOrder(0), MakeRowsOrder(1)};

// Ordered codes of four rows, 16 bytes each, as the pairs of two groups.
inline void StoreGroups(__m512i codes, uint32_t* first, uint32_t* second) {
  __m512i low;
  __m512i high;
  LookUp<Fp8E4m3Code>(codes, &low, &high);
  _mm512_store_si512(first, _mm512_unpacklo_epi8(low, high));
  _mm512_store_si512(second, _mm512_unpackhi_epi8(low, high));
}

// Columns [begin, end) of a block's e4m3 codes, the first row at `data`, as
// pairs: of each group of lanes, vectors ascending, the quads of each.
void DecodeBlock(const std::byte* data, int64_t columns, int64_t begin,
                 int64_t end, uint32_t* panel) {
  const int64_t group = PairsOf(end - begin) * kQuads;
  for (int64_t k = begin; k < end; k += 4 * kLanes) {
    const __mmask64 present =
        end - k >= 4 * kLanes ? ~__mmask64{0} : (__mmask64{1} << (end - k)) - 1;
    for (int q = 0; q < kQuads; ++q, panel += kVectorPairs) {
      __m512i rows[4];
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        rows[r] = _mm512_maskz_loadu_epi8(
            present, data + (kQuads * r + q) * columns + k);
      }
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        if (half == 1 && end - k <= 2 * kLanes) break;
        const __m512i order = _mm512_load_si512(kRowsOrder[half].order);
        const __m512i upper = _mm512_permutex2var_epi8(rows[0], order, rows[1]);
        const __m512i lower = _mm512_permutex2var_epi8(rows[2], order, rows[3]);
        uint32_t* to = panel + half * kQuads * kVectorPairs;
        StoreGroups(_mm512_shuffle_i64x2(upper, lower, _MM_SHUFFLE(1, 0, 1, 0)),
                    to, to + group);
        StoreGroups(_mm512_shuffle_i64x2(upper, lower, _MM_SHUFFLE(3, 2, 3, 2)),
                    to + 2 * group, to + 3 * group);
      }
    }
    panel += kQuads * kVectorPairs;
  }
}

// sum[q][t] += a group of lanes of quad q times x[t]'s pairs from k on.
template <int kTokens>
[[gnu::always_inline]] inline void AddProducts(const uint32_t* weights,
                                               const uint32_t* const* x,
                                               int64_t k,
                                               __m512 (&sum)[kQuads][kTokens]) {
  static_assert(kQuads == 4);
  __m512i w0 = LoadPairs(weights);
  __m512i w1 = LoadPairs(weights + kVectorPairs);
  __m512i w2 = LoadPairs(weights + 2 * kVectorPairs);
  __m512i w3 = LoadPairs(weights + 3 * kVectorPairs);
  // Loaded once: GCC 12 would do it again for each token.
  asm("" : "+v"(w0), "+v"(w1), "+v"(w2), "+v"(w3));
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    const __m512i input = _mm512_broadcast_i32x4(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(x[t] + k)));
    sum[0][t] = MultiplyAddPairs(w0, input, sum[0][t]);
    sum[1][t] = MultiplyAddPairs(w1, input, sum[1][t]);
    sum[2][t] = MultiplyAddPairs(w2, input, sum[2][t]);
    sum[3][t] = MultiplyAddPairs(w3, input, sum[3][t]);
  }
}

// sums[t] = the block's rows times x[t], over `pairs` pairs.
template <int kTokens>
inline void DotPairs(const uint32_t* panel, int64_t pairs,
                     const uint32_t* const* x, __m512 (&sums)[kTokens]) {
  // Groups g and g + 2 together, whose lanes fold first.
  __m512 folded[2][kQuads][kTokens];
#pragma GCC unroll 2
  for (int g = 0; g < 2; ++g) {
    __m512 sum[2][kQuads][kTokens];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
#pragma GCC unroll 4
      for (int q = 0; q < kQuads; ++q) {
#pragma GCC unroll 8
        for (int t = 0; t < kTokens; ++t) sum[i][q][t] = _mm512_setzero_ps();
      }
    }
    const uint32_t* weights = panel + g * pairs * kQuads;
    for (int64_t k = 4 * g; k < pairs; k += kVectorPairs) {
      AddProducts<kTokens>(weights, x, k, sum[0]);
      AddProducts<kTokens>(weights + 2 * pairs * kQuads, x, k + 8, sum[1]);
      weights += kQuads * kVectorPairs;
    }
#pragma GCC unroll 4
    for (int q = 0; q < kQuads; ++q) {
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        folded[g][q][t] = _mm512_add_ps(sum[0][q][t], sum[1][q][t]);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    __m512 quads[kQuads];
#pragma GCC unroll 4
    for (int q = 0; q < kQuads; ++q) {
      quads[q] = _mm512_add_ps(folded[0][q][t], folded[1][q][t]);
    }
    sums[t] = FoldPairs(FoldToPairs(quads[0], quads[1]),
                        FoldToPairs(quads[2], quads[3]));
  }
}

// The sums of kTokens tokens, each in leaves or in one go.
template <int kTokens>
inline void PairSums(const DotProducts& p, const uint32_t* panel, int64_t token,
                     __m512 (&sums)[kTokens]) {
  const int64_t pairs = PairsOf(p.weight->columns);
  const uint32_t* x[kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) x[t] = p.pairs[token + t];
  if (p.leaf == 0) return DotPairs<kTokens>(panel, pairs, x, sums);
  __m512 leaves[kMaxLeaves][kTokens];
  int64_t count = 0;
  for (int64_t k = 0; k < pairs; k += p.leaf / 2, ++count) {
    DotPairs<kTokens>(panel + k * kBlockRows, std::min(p.leaf / 2, pairs - k),
                      x, leaves[count]);
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) x[t] += p.leaf / 2;
  }
  for (int64_t stride = 1; stride < kMaxLeaves; stride *= 2) {
    for (int64_t i = 0; i + stride < count; i += 2 * stride) {
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        leaves[i][t] = _mm512_add_ps(leaves[i][t], leaves[i + stride][t]);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) sums[t] = leaves[0][t];
}

void DotWithPairs(const DotProducts& p) {
  const Weight& weight = *p.weight;
  const int64_t columns = weight.columns;
  const int64_t pairs = PairsOf(columns);
  if (p.pairs == nullptr || pairs > kRowPairsMost) {
    return DotAll<Avx512Bf16>(p);
  }
  alignas(64) uint32_t panel[kBlockRows * kRowPairsMost];
  const int64_t whole_end =
      p.row_begin + (p.row_end - p.row_begin) / kBlockRows * kBlockRows;
  const int64_t leaf = p.leaf == 0 ? columns : p.leaf;
  for (int64_t row = p.row_begin; row < whole_end; row += kBlockRows) {
    for (int64_t k = 0; k < columns; k += leaf) {
      DecodeBlock(weight.data + row * columns, columns, k,
                  std::min(k + leaf, columns), panel + k / 2 * kBlockRows);
    }
    const __m512 row_scales = weight.row_scales != nullptr
                                  ? _mm512_loadu_ps(weight.row_scales + row)
                                  : _mm512_set1_ps(weight.scale);
    PanelPrefetch prefetch(p, row + kBlockRows, kBlockRows * columns,
                           (p.tokens + kPairTokens - 1) / kPairTokens);
    ForTokenTiles<kPairTokens>(p.tokens, [&](int64_t token, auto count) {
      constexpr int kTokens = decltype(count)::value;
      prefetch.Tile();
      __m512 sums[kTokens];
      PairSums<kTokens>(p, panel, token, sums);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const float input_scale = p.input_scales == nullptr
                                      ? p.input_scale
                                      : p.input_scales[token + t];
        const __m512 scale =
            _mm512_mul_ps(_mm512_set1_ps(input_scale), row_scales);
        _mm512_storeu_ps(p.out[token + t] + row, _mm512_mul_ps(scale, sums[t]));
      }
    });
  }
  if (whole_end == p.row_end) return;
  DotProducts rest = p;
  rest.row_begin = whole_end;
  DotAll<Avx512Bf16>(rest);
}

}  // namespace

constexpr IsaKernels kAvx512Bf16Kernels = {
    .dot = DotWithPairs,
    .column_sums = ColumnSumsAll<Avx512Bf16>,
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
