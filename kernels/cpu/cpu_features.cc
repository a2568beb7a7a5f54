// Compiled for any x86-64, unlike the rest of the folder: it runs first.
#include <algorithm>
#include <string>

#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/multiply_adds.h"
#include "kernels/ops.h"

namespace invar::cpu {

std::string MissingCpuFeatures() {
  std::string missing;
  const auto need = [&missing](bool present, const char* name) {
    if (present) return;
    if (!missing.empty()) missing += ", ";
    missing += name;
  };
  __builtin_cpu_init();
  need(__builtin_cpu_supports("avx2"), "AVX2");
  need(__builtin_cpu_supports("fma"), "FMA");
  need(__builtin_cpu_supports("bmi2"), "BMI2");
  need(__builtin_cpu_supports("f16c"), "F16C");
  return missing;
}

const char* Name(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "";
}

namespace {

Isa FindBestIsa() {
  __builtin_cpu_init();
  const bool v4 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!v4) return Isa::kAvx2;
  return __builtin_cpu_supports("avx512bf16") &&
                 __builtin_cpu_supports("avx512vbmi") &&
                 PairsAreTwoMultiplyAdds()
             ? Isa::kAvx512Bf16
             : Isa::kAvx512;
}

}  // namespace

bool PairsAreFaster() {
  // The best of some: the first ones find the processor's vector units asleep,
  // and any may be interrupted.
  constexpr int kTrials = 16;
  constexpr int64_t kRounds = 1024;
  static const bool faster = [] {
    double fp32 = 0.0;
    double pairs = 0.0;
    for (int trial = 0; trial < kTrials; ++trial) {
      fp32 = std::max(fp32, RateOf(kFp32MultiplyAdds512, kRounds));
      pairs = std::max(pairs, RateOf(kPairMultiplyAdds512, kRounds));
    }
    return pairs > fp32;
  }();
  return faster;
}

Isa BestIsa() {
  static const Isa best = FindBestIsa();
  return best;
}

}  // namespace invar::cpu
