// The instruction sets that the hottest loops are compiled for. All give the
// same bits: sixteen lanes are two AVX2 registers or one of AVX-512.
#ifndef INVAR_KERNELS_CPU_ISA_H_
#define INVAR_KERNELS_CPU_ISA_H_

namespace invar::cpu {

enum class Isa {
  kAvx2,    // x86-64-v3
  kAvx512,  // x86-64-v4
  // And AVX512_BF16 and VBMI, where products of pairs have the bits
  // of two fused multiply-adds.
  kAvx512Bf16,
};

// "avx512_bf16"
const char* Name(Isa isa);

// The widest that this processor has.
Isa BestIsa();

}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_ISA_H_
