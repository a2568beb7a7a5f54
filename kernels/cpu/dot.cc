#include "kernels/cpu/dot.h"

#include <algorithm>

#include "kernels/cpu/codes.h"
#include "kernels/cpu/lanes.h"

namespace invar::cpu {

const IsaKernels& KernelsOf(Isa isa) {
  switch (isa) {
    case Isa::kAvx512Bf16:
      return kAvx512Bf16Kernels;
    case Isa::kAvx512:
      return kAvx512Kernels;
    case Isa::kAvx2:
      break;
  }
  return kAvx2Kernels;
}

void Dot(Isa isa, const DotProducts& products) { KernelsOf(isa).dot(products); }

namespace {

constexpr int64_t kRowsMost = 128;
// Whole cache lines of outputs, so that no two threads write to one.
constexpr int64_t kLineRows = 16;

}  // namespace

int64_t DotGrain(const Weight& weight, int64_t tokens) {
  constexpr int64_t kProductsWorthAClaim = 1 << 15;
  const int64_t rows =
      kProductsWorthAClaim / std::max<int64_t>(1, weight.columns * tokens);
  return std::clamp((rows + kLineRows - 1) / kLineRows * kLineRows,
                    2 * kLineRows, kRowsMost);
}

int64_t EvenDotGrain(const Weight& weight, int64_t tokens, int threads) {
  // The rows of the thread that takes the most.
  const auto longest = [&](int64_t grain) {
    const int64_t claims = (weight.rows + grain - 1) / grain;
    return (claims + threads - 1) / threads * grain;
  };
  int64_t best = DotGrain(weight, tokens);
  for (int64_t grain = best; grain <= kRowsMost; grain += kLineRows) {
    if (longest(grain) < longest(best)) best = grain;
  }
  return best;
}

namespace {

// max|x| over `count` values; a NaN may be lost, and shows in the codes.
float LargestMagnitude(const float* x, int64_t count) {
  Lanes largest = Zero();
  for (int64_t k = 0; k < count; k += kLanes) {
    const Lanes v = Load(x + k);
    largest = Max(largest, Max(v, Subtract(Zero(), v)));
  }
  return Max(largest);
}

// out = e4m3(x / scale)
void Divided(const float* x, float scale, int64_t count, float* out) {
  const Lanes divisor = Broadcast(scale);
  for (int64_t k = 0; k < count; k += kLanes) {
    Store(Fp8E4m3Code::Round(cpu::Divide(Load(x + k), divisor)), out + k);
  }
}

float DynamicScale(const float* x, int64_t count) {
  const float scale = LargestMagnitude(x, count) / Fp8E4m3Code::kMax;
  return scale > 0.0f ? scale : 1.0f;
}

// out = s * e4m3(x / s), a run at a time.
void QuantizeGroups(const float* x, int64_t columns, float* out) {
  for (int64_t begin = 0; begin < columns; begin += kScaleBlock) {
    const int64_t count = std::min(kScaleBlock, columns - begin);
    const float scale = DynamicScale(x + begin, count);
    Divided(x + begin, scale, count, out + begin);
    for (int64_t k = begin; k < begin + count; k += kLanes) {
      Store(Multiply(Load(out + k), Broadcast(scale)), out + k);
    }
  }
}

// As DotProducts::pairs has them.
void PackPairs(const float* x, int64_t columns, uint32_t* pairs) {
  const __m256i high_half = _mm256_set1_epi32(-0x10000);
  for (int64_t k = 0; k < columns; k += 2 * kLanes) {
    for (int64_t l = 0; l < kLanes; l += 8, pairs += 8) {
      const auto at = [x](int64_t i) {
        return _mm256_castps_si256(_mm256_loadu_ps(x + i));
      };
      const __m256i high = _mm256_and_si256(at(k + l), high_half);
      const __m256i low = k + kLanes < columns
                              ? _mm256_srli_epi32(at(k + kLanes + l), 16)
                              : _mm256_setzero_si256();
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs),
                          _mm256_or_si256(high, low));
    }
  }
}

// Fewer tokens are bound by the decoding of weights, not by products.
constexpr int64_t kPairTokens = 8;

}  // namespace

QuantizedInput QuantizeInput(ThreadPool& pool, const Weight& weight,
                             const float* x, int64_t tokens) {
  const int64_t columns = weight.columns;
  const bool is_static = weight.input_scale > 0.0f;
  QuantizedInput input;
  input.values = x;
  if (!is_static && weight.dynamic_inputs == DynamicInputs::kNone) return input;
  input.storage.resize(tokens * columns);
  input.values = input.storage.data();
  if (is_static) {
    input.scale = weight.input_scale;
  } else if (weight.dynamic_inputs == DynamicInputs::kToken) {
    input.scales.resize(tokens);
  }
  const bool packs = pool.isa() == Isa::kAvx512Bf16 && PairsAreFaster() &&
                     tokens >= kPairTokens &&
                     weight.dtype == WeightDtype::kFp8E4m3 &&
                     weight.block_scales == nullptr &&
                     weight.dynamic_inputs != DynamicInputs::kGroup;
  if (packs) input.pairs.resize(tokens * PairsOf(columns));
  pool.ParallelForRows(tokens, 2 * columns, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = x + t * columns;
      float* out = input.storage.data() + t * columns;
      if (is_static) {
        Divided(row, input.scale, columns, out);
      } else if (weight.dynamic_inputs == DynamicInputs::kToken) {
        input.scales[t] = DynamicScale(row, columns);
        Divided(row, input.scales[t], columns, out);
      } else {
        QuantizeGroups(row, columns, out);
      }
      if (packs) {
        PackPairs(out, columns, input.pairs.data() + t * PairsOf(columns));
      }
    }
  });
  return input;
}

}  // namespace invar::cpu
