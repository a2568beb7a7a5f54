// The instructions of the matrix units and of asynchronous copies that the
// kernels use, one function each.
#ifndef INVAR_KERNELS_CUDA_MMA_CUH_
#define INVAR_KERNELS_CUDA_MMA_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/gemm_async.h"

namespace invar::cuda {

// c (16, 8) += a (16, 16) b (16, 8) in fp32. With g = lane / 4 and t = lane % 4
// a thread has of a: rows g, g + 8 at columns 2t, 2t+1, then at 2t+8, 2t+9; of
// b: rows 2t, 2t+1, then 2t+8, 2t+9, at column g; of c: rows g, then g + 8, at
// columns 2t, 2t+1.
template <typename Operand>
__device__ inline void Mma(float (&c)[4], const uint4& a, uint32_t b0,
                           uint32_t b1) {
  if constexpr (std::is_same_v<Operand, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
  }
}

// Four 8x8 matrices of 16-bit elements, transposed; lane i gives the address of
// row i % 8 of matrix i / 8.
__device__ inline void LoadTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
      : "r"(address)
      : "memory");
}

// The way back: four 8x8 matrices of 16-bit elements, of which a lane has two
// neighbours of row lane / 4, to shared memory, transposed. Lane i gives the
// address of what is then row i % 8 of matrix i / 8.
__device__ inline void StoreTransposed(uint32_t address,
                                       const uint32_t (&r)[4]) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::
          "r"(address),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
}

// 16 bytes to shared memory, or 16 zeros.
__device__ inline void CopyAsync(uint32_t to, const void* from, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
               "l"(from), "r"(real ? 16 : 0)
               : "memory");
}
__device__ inline void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Returns once at most the last kPending groups are unfinished.
template <int kPending = 0>
__device__ inline void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// 2^x by the machine's own instruction.
__device__ inline float Exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Two values rounded to nearest even, the first in the low half.
template <typename Operand>
__device__ inline uint32_t Pack(float low, float high) {
  if constexpr (std::is_same_v<Operand, __half>) {
    return __half_as_ushort(__float2half_rn(low)) |
           static_cast<uint32_t>(__half_as_ushort(__float2half_rn(high))) << 16;
  } else {
    return __bfloat16_as_ushort(__float2bfloat16_rn(low)) |
           static_cast<uint32_t>(
               __bfloat16_as_ushort(__float2bfloat16_rn(high)))
               << 16;
  }
}

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_MMA_CUH_
