// Compiled for x86-64-v3.
#include "kernels/cpu/absorb_kernel.h"
#include "kernels/cpu/dot_kernel.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/mla_attention_kernel.h"

namespace invar::cpu {
namespace {

struct Avx2 {
  using Vector = Lanes;
  // Two registers a sum: six sums and one decoded weight fit in sixteen.
  static constexpr int kTokens = 6;
  static constexpr int kPanelTokens = 3;
  static constexpr int Rows(int tokens) {
    return tokens == 1 ? 4 : tokens <= 3 ? 2 : 1;
  }
  static constexpr int kColumnTokens = 3;
  static constexpr int ColumnGroups(int tokens) { return tokens == 1 ? 4 : 2; }
  static constexpr int kTileRows = 1;
  template <typename Code>
  using Run = OneVector<Avx2, Code>;

  static Lanes Zero() { return cpu::Zero(); }
  static Lanes Broadcast(float value) { return cpu::Broadcast(value); }
  static Lanes Load(const float* p) { return cpu::Load(p); }
  static void Store(Lanes a, float* p) { cpu::Store(a, p); }
  static Lanes Multiply(Lanes a, Lanes b) { return cpu::Multiply(a, b); }
  static Lanes MultiplyAdd(Lanes a, Lanes b, Lanes c) {
    return cpu::MultiplyAdd(a, b, c);
  }
  // sums[t * kRows + r] = the 16-lane sum of sum[r][t].
  template <int kRows, int kTokens>
  static void Sums(const Lanes (&sum)[kRows][kTokens], float* sums) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        sums[t * kRows + r] = cpu::Sum(sum[r][t]);
      }
    }
  }
  template <typename Code>
  static Lanes Decode(const std::byte* p) {
    return Code::Decode(p);
  }
};

}  // namespace

constexpr IsaKernels kAvx2Kernels = {
    .dot = DotAll<Avx2>,
    .column_sums = ColumnSumsAll<Avx2>,
    .tile_scores = TileScoresAll<Avx2>,
    .tile_values = TileValuesAll<Avx2>,
};

}  // namespace invar::cpu
