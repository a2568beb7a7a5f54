// Neighbouring vectors of a row that are decoded together, since an instruction
// set may do that faster: Simd::Run<Code> is one of these or its own. In an
// unnamed namespace: see dot_kernel.h.
#ifndef INVAR_KERNELS_CPU_RUN_H_
#define INVAR_KERNELS_CPU_RUN_H_

#include <cstddef>
#include <cstdint>

#include "kernels/types.h"

namespace invar::cpu {
namespace {

// kCount vectors of a row, decoded one by one.
template <typename Simd, typename Code, int kCount>
struct Vectors {
  static constexpr int kVectors = kCount;
  static constexpr int64_t kBytes = Code::kBytes;

  void Load(const std::byte* from) { p = from; }
  typename Simd::Vector Decode(int i) const {
    return Simd::template Decode<Code>(p + i * kLanes * kBytes);
  }

  const std::byte* p;
};
template <typename Simd, typename Code>
using OneVector = Vectors<Simd, Code, 1>;

// out = the run's vectors at `data`.
template <typename Simd, typename Run>
inline void DecodeRun(const std::byte* data, float* out) {
  Run run;
  run.Load(data);
#pragma GCC unroll 4
  for (int v = 0; v < Run::kVectors; ++v) {
    Simd::Store(run.Decode(v), out + v * kLanes);
  }
}

}  // namespace
}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_RUN_H_
