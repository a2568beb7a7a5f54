#include "kernels/cpu/dot_kernel.h"
#include "kernels/cpu/lanes.h"

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

  static Lanes Zero() { return cpu::Zero(); }
  static Lanes Load(const float* p) { return cpu::Load(p); }
  static void Store(Lanes a, float* p) { cpu::Store(a, p); }
  static Lanes MultiplyAdd(Lanes a, Lanes b, Lanes c) {
    return cpu::MultiplyAdd(a, b, c);
  }
  static Lanes Scale(Lanes a, float scale) {
    return Multiply(a, Broadcast(scale));
  }
  static float Sum(Lanes a) { return cpu::Sum(a); }
  template <typename Code>
  static Lanes Decode(const std::byte* p) {
    return Code::Decode(p);
  }
};

}  // namespace

void DotAvx2(const DotProducts& products) { DotAll<Avx2>(products); }

}  // namespace invar::cpu
