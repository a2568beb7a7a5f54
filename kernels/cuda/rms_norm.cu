#include "kernels/cuda/block_sum.cuh"
#include "kernels/cuda/combine.h"
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/input_row.cuh"

namespace invar::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kStep = 4 * kThreads;  // values that a block takes at a time
// Up to so many rows, all that counts is how soon one is done: its loads wait
// for memory together. More of them hide each other's waiting, and need the
// registers.
constexpr int kFewRows = 16;

// One row a block. Thread j squares its fours at RowPlace(0), (1), ... in
// ascending order; then BlockSum: an order that is a function of the row's
// length alone.
template <int kQuads, bool kFew>
__global__ void __launch_bounds__(kThreads, kFew ? 2 : 1)
    RmsNormKernel(const RmsNormArguments a) {
  constexpr float4 kZero = {0.0f, 0.0f, 0.0f, 0.0f};
  AllowNextKernel();
  const int size = static_cast<int>(a.size);
  float4 gain[kQuads];
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const int k = RowPlace<kThreads>(i);
    gain[i] = k < size ? Load4(a.gain + k) : kZero;
  }
  WaitForPriorKernel();
  const int64_t row = blockIdx.x;
  const int64_t from = a.row_ids == nullptr ? row : a.row_ids[row];
  float* hidden = a.hidden + from * a.hidden_stride;
  float4 value[kQuads];
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const int k = RowPlace<kThreads>(i);
    value[i] = k < size ? Load4(hidden + k) : kZero;
  }
  if (a.addend.shared != nullptr) {
    // All of them before the first store, which the compiler cannot tell from
    // what is loaded.
    float4 addend[kQuads];
    if constexpr (kFew && kQuads == 2) {
      CombinedRow<kQuads, kThreads, 2>(a.addend, row, size, addend);
    } else {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        const int k = RowPlace<kThreads>(i);
        if (k < size) addend[i] = Combined4(a.addend, row, size, k);
      }
    }
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int k = RowPlace<kThreads>(i);
      if (k >= size) continue;
      float4& v = value[i];
      v = {v.x + addend[i].x, v.y + addend[i].y, v.z + addend[i].z,
           v.w + addend[i].w};
      *reinterpret_cast<float4*>(hidden + k) = v;
    }
  }
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    squares = fmaf(value[i].x, value[i].x, squares);
    squares = fmaf(value[i].y, value[i].y, squares);
    squares = fmaf(value[i].z, value[i].z, squares);
    squares = fmaf(value[i].w, value[i].w, squares);
  }
  const float sum = BlockSum<kThreads>(squares);
  const float root = sqrtf(sum / static_cast<float>(size) + a.eps);
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    float4& v = value[i];
    const float4& g = gain[i];
    v = {v.x / root * g.x, v.y / root * g.y, v.z / root * g.z,
         v.w / root * g.w};
    const int k = RowPlace<kThreads>(i);
    if (k < size && a.normed != nullptr) {
      *reinterpret_cast<float4*>(a.normed + row * size + k) = v;
    }
  }
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    if (a.inputs[s].data == nullptr) continue;
    StoreInputRow<kQuads, kThreads>(a.inputs[s], row, size, value);
  }
}

}  // namespace

void RmsNorm(const RmsNormArguments& a, const LaunchOptions& options) {
  if (a.rows == 0) return;
  const auto kernel = a.size <= kStep       ? RmsNormKernel<1, false>
                      : a.size <= 2 * kStep ? a.rows <= kFewRows
                                                  ? RmsNormKernel<2, true>
                                                  : RmsNormKernel<2, false>
                      : a.size <= 5 * kStep ? RmsNormKernel<5, false>
                                            : RmsNormKernel<16, false>;
  Launch(kernel, {.grid = dim3(a.rows), .threads = kThreads}, options,
         "RmsNorm", a);
}

}  // namespace invar::cuda
