// RmsNorm, with what a layer adds to the residual stream before it and with the
// products' inputs after it: the row is read once. Few rows have a block each;
// of many a block goes from row to row, the next one's loads on their way.
#include <algorithm>

#include "kernels/cuda/block_sum.cuh"
#include "kernels/cuda/combine.h"
#include "kernels/cuda/divisor.cuh"
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

// From so many rows on a block takes one after the other.
constexpr int kManyRows = 1024;

template <int kQuads>
__device__ void LoadRow(const float* row, int size, float4 (&to)[kQuads]) {
  constexpr float4 kZero = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const int k = RowPlace<kThreads>(i);
    to[i] = k < size ? Load4(row + k) : kZero;
  }
}
template <int kQuads>
__device__ void StoreRow(const float4 (&from)[kQuads], int size, float* row) {
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const int k = RowPlace<kThreads>(i);
    if (k < size) *reinterpret_cast<float4*>(row + k) = from[i];
  }
}

// The norm of `value`, to row `row` of all outputs. Thread j squares its fours
// at RowPlace(0), (1), ... in ascending order; then BlockSum: an order that is
// a function of the row's length alone.
template <int kQuads>
__device__ void StoreNorm(const RmsNormArguments& a, int64_t row,
                          const float4 (&gain)[kQuads],
                          float4 (&value)[kQuads]) {
  const int size = static_cast<int>(a.size);
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    squares = fmaf(value[i].x, value[i].x, squares);
    squares = fmaf(value[i].y, value[i].y, squares);
    squares = fmaf(value[i].z, value[i].z, squares);
    squares = fmaf(value[i].w, value[i].w, squares);
  }
  const float sum = BlockSum<kThreads>(squares);
  const float divisor = sqrtf(sum / static_cast<float>(size) + a.eps);
  if (a.roots != nullptr && threadIdx.x == 0) a.roots[row] = divisor;
  const Divisor root(divisor);
#pragma unroll
  for (int i = 0; i < kQuads; ++i) value[i] = Normed(root, value[i], gain[i]);
  if (a.normed != nullptr) StoreRow(value, size, a.normed + row * size);
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    if (a.inputs[s].data == nullptr) continue;
    StoreInputRow<kQuads, kThreads>(a.inputs[s], row, size, value);
  }
}

// One row a block.
template <int kQuads, bool kFew>
__global__ void __launch_bounds__(kThreads, kFew ? 2 : 1)
    RmsNormKernel(const RmsNormArguments a) {
  AllowNextKernel();
  const int size = static_cast<int>(a.size);
  float4 gain[kQuads];
  LoadRow(a.gain, size, gain);
  WaitForPriorKernel();
  const int64_t row = blockIdx.x;
  const int64_t from = a.row_ids == nullptr ? row : a.row_ids[row];
  float* const hidden = a.hidden + from * a.hidden_stride;
  float4 value[kQuads];
  LoadRow(hidden, size, value);
  if (a.addend.shared != nullptr) {
    // All of them before the first store, which the compiler cannot tell from
    // what is loaded.
    float4 addend[kQuads] = {};
    if (kFew && a.addend.top_k <= kRanksAhead) {
      AddendRow<kQuads, kRanksAhead, kThreads> all;
      all.Load(a.addend, row, size);
#pragma unroll
      for (int i = 0; i < kQuads; ++i) addend[i] = all.Sum(a.addend, i);
    } else {
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        const int k = RowPlace<kThreads>(i);
        if (k < size) addend[i] = Combined4(a.addend, row, size, k);
      }
    }
#pragma unroll
    for (int i = 0; i < kQuads; ++i) value[i] = Added(value[i], addend[i]);
    StoreRow(value, size, hidden);
  }
  StoreNorm(a, row, gain, value);
}

// Blocks of a multiprocessor that go from row to row.
template <int kRanks>
inline constexpr int kRowsBlocks = kRanks == 0 ? 4 : 2;

// Many rows with addends: a block goes on from one to the next, whose loads are
// on their way while this one is summed and stored.
template <int kQuads, int kRanks>
__global__ void __launch_bounds__(kThreads, kRowsBlocks<kRanks>)
    RmsNormRowsKernel(const RmsNormArguments a) {
  AllowNextKernel();
  const int size = static_cast<int>(a.size);
  float4 gain[kQuads];
  LoadRow(a.gain, size, gain);
  WaitForPriorKernel();
  float4 hidden[kQuads];
  AddendRow<kQuads, kRanks, kThreads> addend;
  const auto load = [&](int64_t row) {
    LoadRow(a.hidden + row * a.hidden_stride, size, hidden);
    addend.Load(a.addend, row, size);
  };
  int64_t row = blockIdx.x;
  load(row);
  for (int64_t next; row < a.rows; row = next) {
    float4 value[kQuads];
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      value[i] = Added(hidden[i], addend.Sum(a.addend, i));
    }
    next = row + gridDim.x;
    if (next < a.rows) load(next);
    StoreRow(value, size, a.hidden + row * a.hidden_stride);
    StoreNorm(a, row, gain, value);
    __syncthreads();  // for the next BlockSum
  }
}

template <int kRanks>
void RunRows(const RmsNormArguments& a, const LaunchOptions& options) {
  const int64_t blocks = int64_t{kRowsBlocks<kRanks>} * Multiprocessors();
  Launch(RmsNormRowsKernel<2, kRanks>,
         {.grid = dim3(static_cast<unsigned>(std::min(a.rows, blocks))),
          .threads = kThreads},
         options, "RmsNorm", a);
}

}  // namespace

void RmsNorm(const RmsNormArguments& arguments, const LaunchOptions& options) {
  RmsNormArguments a = arguments;
  if (a.rows == 0) return;
  if (a.addend.slots == nullptr) a.addend.top_k = 0;
  if (a.rows >= kManyRows && a.size > kStep && a.size <= 2 * kStep &&
      a.addend.shared != nullptr && a.row_ids == nullptr) {
    if (a.addend.top_k == 0) return RunRows<0>(a, options);
    if (a.addend.top_k <= 6) return RunRows<6>(a, options);
    if (a.addend.top_k <= kRanksAhead) return RunRows<kRanksAhead>(a, options);
  }
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
