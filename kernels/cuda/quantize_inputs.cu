// Rows in fp32 as a product's inputs, a row a block: for what is made in
// pieces, by kernels that cannot know a row's scale.
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/input_row.cuh"

namespace invar::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kStep = 4 * kThreads;  // values that a block takes at a time

// One row a block.
template <int kQuads>
__global__ void __launch_bounds__(kThreads)
    QuantizeInputsKernel(const float* x, int columns, const InputSink inputs) {
  AllowNextKernel();
  WaitForPriorKernel();
  const int64_t row = blockIdx.x;
  float4 value[kQuads];
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const int k = RowPlace<kThreads>(i);
    value[i] = k < columns
                   ? *reinterpret_cast<const float4*>(x + row * columns + k)
                   : float4{0.0f, 0.0f, 0.0f, 0.0f};
  }
  StoreInputRow<kQuads, kThreads>(inputs, row, columns, value);
}

}  // namespace

void QuantizeInputs(const float* x, int64_t rows, int64_t columns,
                    const InputSink& inputs, const LaunchOptions& options) {
  if (rows == 0) return;
  const auto kernel = columns <= kStep       ? QuantizeInputsKernel<1>
                      : columns <= 2 * kStep ? QuantizeInputsKernel<2>
                      : columns <= 4 * kStep ? QuantizeInputsKernel<4>
                                             : QuantizeInputsKernel<16>;
  Launch(kernel, {.grid = dim3(rows), .threads = kThreads}, options,
         "QuantizeInputs", x, static_cast<int>(columns), inputs);
}

}  // namespace invar::cuda
