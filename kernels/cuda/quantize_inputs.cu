#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/input_row.cuh"

namespace invar::cuda {
namespace {

constexpr int kThreads = 256;
// Values of a row that one thread keeps in registers.
constexpr int kMaxPerThread = 64;

// One row a block.
template <int kPerThread>
__global__ void __launch_bounds__(kThreads)
    QuantizeInputsKernel(const float* x, int columns, const InputSink inputs) {
  AllowNextKernel();
  WaitForPriorKernel();
  const int64_t row = blockIdx.x;
  float value[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int k = threadIdx.x + i * kThreads;
    value[i] = k < columns ? x[row * columns + k] : 0.0f;
  }
  StoreInputRow<kPerThread, kThreads>(inputs, row, columns, value);
}

}  // namespace

void QuantizeInputs(const float* x, int64_t rows, int64_t columns,
                    const InputSink& inputs, const LaunchOptions& options) {
  if (rows == 0) return;
  const LaunchShape shape = {.grid = dim3(rows), .threads = kThreads};
  const int size = static_cast<int>(columns);
  if (size <= 2 * kThreads) {
    Launch(QuantizeInputsKernel<2>, shape, options, "QuantizeInputs", x, size,
           inputs);
  } else if (size <= 8 * kThreads) {
    Launch(QuantizeInputsKernel<8>, shape, options, "QuantizeInputs", x, size,
           inputs);
  } else {
    Launch(QuantizeInputsKernel<kMaxPerThread>, shape, options,
           "QuantizeInputs", x, size, inputs);
  }
}

}  // namespace invar::cuda
