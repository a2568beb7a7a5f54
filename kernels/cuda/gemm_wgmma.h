// Hopper's warpgroup products, D (64 rows of weights, N tokens) += A B^T, both
// operands in shared memory, K-major, in rows of 128 swizzled bytes.
//
// Fragment of D in thread t of the warpgroup's 128, register i:
//   row   = 16 (t / 32) + (t % 32) / 4 + 8 ((i / 2) % 2)
//   token = 8 (i / 4) + 2 (t % 4) + i % 2
#ifndef INVAR_KERNELS_CUDA_GEMM_WGMMA_H_
#define INVAR_KERNELS_CUDA_GEMM_WGMMA_H_

#include <cstdint>

namespace invar::cuda {

// Bytes of one row of an operand tile: the widest swizzle.
inline constexpr int kTileRowBytes = 128;
// Rows of weights of one product.
inline constexpr int kProductRows = 64;
// Bytes along K of one product: 16 half-precision elements or 32 of FP8.
inline constexpr int kProductBytes = 32;

__device__ inline int FragmentRow(int thread, int i) {
  return 16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2 % 2);
}
__device__ inline int FragmentToken(int thread, int i) {
  return 8 * (i / 4) + 2 * (thread % 4) + i % 2;
}

// Shared-memory matrix descriptor of a tile that begins at a multiple of 1,024
// bytes: groups of eight rows follow each other at 1,024 bytes.
__device__ inline uint64_t TileDescriptor(uint32_t address) {
  constexpr uint64_t kGroupStride = 8 * kTileRowBytes;
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | (kGroupStride >> 4) << 32 | uint64_t{1} << 16 |
         (address & 0x3ffff) >> 4;
}

// The same for a warp, all of whose lanes give one address; [i] is that of what
// lies 16 i bytes further. Kept where the products read it, in the warp's
// uniform registers: counting on in each lane's took as many instructions as
// a product has cycles.
class UniformDescriptor {
 public:
  __device__ explicit UniformDescriptor(uint32_t address) {
    const uint64_t descriptor = TileDescriptor(address);
    low_ = __shfl_sync(~0u, static_cast<uint32_t>(descriptor), 0);
    high_ = static_cast<uint32_t>(descriptor >> 32);
  }
  __device__ uint64_t operator[](int sixteens) const {
    return static_cast<uint64_t>(high_) << 32 | (low_ + sixteens);
  }

 private:
  uint32_t low_;
  uint32_t high_;
};

// Orders registers and shared memory before the first product of a batch.
__device__ inline void ProductFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void ProductCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Returns once at most kPending committed batches are unfinished.
template <int kPending>
__device__ inline void ProductWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Gives registers of a warpgroup back, and takes as many as there are.
template <int kCount>
__device__ inline void ReduceRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ inline void RaiseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// Product<Format, N>::Run: one product. `accumulate` 0 forgets what D held.
struct Bf16Format;
struct Fp16Format;
struct E4m3Format;
template <typename Format, int kTokens>
struct Product;

#define INVAR_PRODUCT(FORMAT, TOKENS, SHAPE, TYPES, REGISTERS, A, B, P, TAIL, \
                      ...)                                                   \
  template <>                                                                \
  struct Product<FORMAT, TOKENS> {                                           \
    __device__ static void Run(float (&d)[TOKENS / 2], uint64_t a,           \
                               uint64_t b, int accumulate) {                 \
      asm volatile(                                                          \
          "{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n"                     \
          "wgmma.mma_async.sync.aligned." SHAPE ".f32." TYPES                \
          " {" REGISTERS "}, " A ", " B ", p, 1, 1" TAIL ";\n}\n"            \
          : __VA_ARGS__                                                      \
          : "l"(a), "l"(b), "r"(accumulate));                                \
    }                                                                        \
  };
#define INVAR_PRODUCTS(TOKENS, REGISTERS, A, B, P, ...)                      \
  INVAR_PRODUCT(Bf16Format, TOKENS, "m64n" #TOKENS "k16", "bf16.bf16", REGISTERS,  \
                A, B, P, ", 0, 0", __VA_ARGS__)                              \
  INVAR_PRODUCT(Fp16Format, TOKENS, "m64n" #TOKENS "k16", "f16.f16", REGISTERS, A, \
                B, P, ", 0, 0", __VA_ARGS__)                                 \
  INVAR_PRODUCT(E4m3Format, TOKENS, "m64n" #TOKENS "k32", "e4m3.e4m3",          \
                REGISTERS, A, B, P, "", __VA_ARGS__)
#define INVAR_D4(I) "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3])
#define INVAR_D16(I) \
  INVAR_D4(I), INVAR_D4(I + 4), INVAR_D4(I + 8), INVAR_D4(I + 12)

// clang-format off
INVAR_PRODUCTS(8,
               "%0, %1, %2, %3",
               "%4", "%5", "%6",
               INVAR_D4(0))
INVAR_PRODUCTS(16,
               "%0, %1, %2, %3, %4, %5, %6, %7",
               "%8", "%9", "%10",
               INVAR_D4(0), INVAR_D4(4))
INVAR_PRODUCTS(32,
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, "
               "%14, %15",
               "%16", "%17", "%18",
               INVAR_D16(0))
INVAR_PRODUCTS(64,
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, "
               "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, "
               "%26, %27, %28, %29, %30, %31",
               "%32", "%33", "%34",
               INVAR_D16(0), INVAR_D16(16))
INVAR_PRODUCTS(96,
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
               "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
               "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, "
               "%35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "
               "%46, %47",
               "%48", "%49", "%50",
               INVAR_D16(0), INVAR_D16(16), INVAR_D16(32))
INVAR_PRODUCTS(128,
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, "
               "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, "
               "%26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "
               "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
               "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
               "%62, %63",
               "%64", "%65", "%66",
               INVAR_D16(0), INVAR_D16(16), INVAR_D16(32), INVAR_D16(48))
// Only FP8 has room for its sums.
INVAR_PRODUCT(E4m3Format, 192, "m64n192k32", "e4m3.e4m3",
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, "
               "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, "
               "%26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "
               "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
               "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
               "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, "
               "%74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, "
               "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95",
               "%96", "%97", "%98", "",
               INVAR_D16(0), INVAR_D16(16), INVAR_D16(32), INVAR_D16(48),
               INVAR_D16(64), INVAR_D16(80))
// clang-format on

#undef INVAR_D16
#undef INVAR_D4
#undef INVAR_PRODUCTS
#undef INVAR_PRODUCT

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_GEMM_WGMMA_H_
