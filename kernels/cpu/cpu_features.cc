// Compiled for any x86-64, unlike the rest of the folder: it runs first.
#include <string>

#include "kernels/cpu/isa.h"
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

Isa BestIsa() {
  __builtin_cpu_init();
  const bool v4 =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return v4 ? Isa::kAvx512 : Isa::kAvx2;
}

}  // namespace invar::cpu
