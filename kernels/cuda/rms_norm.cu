#include "kernels/cuda/block_sum.cuh"
#include "kernels/cuda/combine.h"
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/input_row.cuh"

namespace invar::cuda {
namespace {

constexpr int kThreads = 256;
// Values of a row that one thread keeps in registers.
constexpr int kMaxPerThread = 64;

// One row a block. Thread j sums the squares of k = j, j + 256, ... ascending;
// then BlockSum: an order that is a function of the row's length alone.
template <int kPerThread>
__global__ void __launch_bounds__(kThreads)
    RmsNormKernel(const RmsNormArguments a) {
  AllowNextKernel();
  WaitForPriorKernel();
  const int64_t row = blockIdx.x;
  const int64_t from = a.row_ids == nullptr ? row : a.row_ids[row];
  float* hidden = a.hidden + from * a.hidden_stride;
  float value[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int k = threadIdx.x + i * kThreads;
    value[i] = k < a.size ? hidden[k] : 0.0f;
  }
  if (a.addend.shared != nullptr) {
    float addend[kPerThread];
    CombinedRow<kPerThread, kThreads>(a.addend, row, a.size, addend);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int k = threadIdx.x + i * kThreads;
      value[i] += addend[i];
      if (k < a.size) hidden[k] = value[i];
    }
  }
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    squares = fmaf(value[i], value[i], squares);
  }
  const float sum = BlockSum<kThreads>(squares);
  const float root = sqrtf(sum / static_cast<float>(a.size) + a.eps);
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int k = threadIdx.x + i * kThreads;
    value[i] = k < a.size ? value[i] / root * a.gain[k] : 0.0f;
    if (k < a.size && a.normed != nullptr)
      a.normed[row * a.size + k] = value[i];
  }
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    if (a.inputs[s].data == nullptr) continue;
    StoreInputRow<kPerThread, kThreads>(a.inputs[s], row,
                                        static_cast<int>(a.size), value);
  }
}

}  // namespace

void RmsNorm(const RmsNormArguments& a, const LaunchOptions& options) {
  if (a.rows == 0) return;
  const LaunchShape shape = {.grid = dim3(a.rows), .threads = kThreads};
  if (a.size <= 2 * kThreads) {
    Launch(RmsNormKernel<2>, shape, options, "RmsNorm", a);
  } else if (a.size <= 8 * kThreads) {
    Launch(RmsNormKernel<8>, shape, options, "RmsNorm", a);
  } else if (a.size <= 20 * kThreads) {
    Launch(RmsNormKernel<20>, shape, options, "RmsNorm", a);
  } else {
    Launch(RmsNormKernel<kMaxPerThread>, shape, options, "RmsNorm", a);
  }
}

}  // namespace invar::cuda
