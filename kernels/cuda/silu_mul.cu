// SwiGLU alone, of gate and up that a library's product has left in fp32.
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/silu_mul.h"

namespace invar::cuda {
namespace {

__global__ void SiluMulKernel(const float* gate_up, int64_t size,
                              const InputSink out) {
  AllowNextKernel();
  WaitForPriorKernel();
  const int64_t token = blockIdx.y;
  const int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= size) return;
  const float* gate = gate_up + token * 2 * size;
  StoreInput(out, token * size + k, SwiGlu(gate[k], gate[size + k]));
}

}  // namespace

void SiluMul(const float* gate_up, int64_t tokens, int64_t size,
             const InputSink& out, const LaunchOptions& options) {
  if (tokens == 0) return;
  Launch(SiluMulKernel,
         {.grid = dim3((size + 255) / 256, tokens), .threads = 256}, options,
         "SiluMul", gate_up, size, out);
}

}  // namespace invar::cuda
