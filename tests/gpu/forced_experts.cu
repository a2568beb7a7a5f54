#include <cstdio>
#include <cstdlib>

#include "kernels/cuda/check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/divisor.cuh"
#include "kernels/cuda/ops_linear.h"
#include "tests/gpu/forced_experts.h"

#define Router RouterAsItIs
#include "kernels/cuda/router.cu"
#undef Router

namespace invar {
namespace cuda {
namespace {

// Of the process, since Router's callers hand nothing through.
struct Forced {
  // (layers, positions, experts): added to a token's scores before its experts
  // are chosen, and so much that nothing else counts.
  float* corrections = nullptr;
  float* normed = nullptr;  // (positions, hidden), made by the first call
  int64_t layers = 0;
  int64_t positions = 0;
  int64_t experts = 0;
  int64_t calls = 0;
} forced;

// RouterInput's equation; a block a token.
__global__ void NormKernel(const float* x, const float* roots,
                           const float* gain, int64_t hidden, float* normed) {
  const int64_t row = blockIdx.x * hidden;
  const Divisor root(roots[blockIdx.x]);
  for (int64_t k = 4 * threadIdx.x; k < hidden; k += 4 * blockDim.x) {
    *reinterpret_cast<float4*>(normed + row + k) =
        Normed(root, Load4(x + row + k), Load4(gain + k));
  }
}

// x as the router of one token takes it.
const float* Plain(const RouterInput& x, int64_t tokens, int64_t hidden,
                   cudaStream_t stream) {
  if (x.gain == nullptr) return x.x;
  if (forced.normed == nullptr) {
    Check(cudaMalloc(&forced.normed, tokens * hidden * sizeof(float)),
          "forcing experts");
  }
  NormKernel<<<static_cast<unsigned>(tokens), 256, 0, stream>>>(
      x.x, x.roots, x.gain, hidden, forced.normed);
  CheckLaunch("the norm of forced experts");
  return forced.normed;
}

// The plan of all tokens' slots, by one block; thread e has expert e.
__global__ void PlanKernel(const int32_t* ids, int slots, int experts, int tile,
                           ExpertPlan plan) {
  extern __shared__ int32_t count[];
  const int e = threadIdx.x;
  count[e] = 0;
  for (int s = 0; s < slots; ++s) count[e] += ids[s] == e;
  __syncthreads();
  int place = 0;
  int item = 0;
  for (int other = 0; other < e; ++other) {
    place += count[other];
    item += (count[other] + tile - 1) / tile;
  }
  for (int done = 0; done < count[e]; done += tile) {
    plan.work[item++] = {e, place + done, min(tile, count[e] - done), 0};
  }
  if (e == experts - 1) plan.counts[0] = item;
  for (int s = 0; s < slots; ++s) {
    if (ids[s] == e) plan.order[place++] = s;
  }
}

}  // namespace

void ForceExperts(const std::vector<int32_t>& ids, int64_t positions,
                  int64_t top_k, int64_t experts) {
  const int64_t rows = static_cast<int64_t>(ids.size()) / top_k;
  std::vector<float> corrections(rows * experts, 0.0f);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t rank = 0; rank < top_k; ++rank) {
      corrections[i * experts + ids[i * top_k + rank]] =
          1000.0f - 10.0f * static_cast<float>(rank);
    }
  }
  forced.layers = rows / positions;
  forced.positions = positions;
  forced.experts = experts;
  Check(cudaMalloc(&forced.corrections, corrections.size() * sizeof(float)),
        "forcing experts");
  Check(CopyToDevice(forced.corrections, corrections.data(),
                     corrections.size() * sizeof(float)),
        "forcing experts");
}

bool ExpertsWereForced() { return forced.calls == forced.layers; }

}  // namespace cuda

// Qualified, so that it is the declared one or does not compile.
void cuda::Router(const cpu::RouterOptions& router, WeightDtype dtype,
                  const void* weight, int64_t hidden, const RouterInput& input,
                  int64_t tokens, int32_t* ids, float* weights,
                  const ExpertPlan& plan, const LaunchOptions& options,
                  int tile, const float* correction) {
  if (tokens != forced.positions || correction != nullptr ||
      router.experts != forced.experts) {
    std::fprintf(stderr, "experts are forced for other steps than this\n");
    std::abort();
  }
  const int64_t layer = forced.calls++ % forced.layers;
  const int64_t top_k = router.top_k;
  const float* const x = Plain(input, tokens, hidden, options.stream);
  for (int64_t t = 0; t < tokens; ++t) {
    RouterAsItIs(router, dtype, weight, hidden, x + t * hidden, 1,
                 ids + t * top_k, weights + t * top_k, plan, options, 0,
                 forced.corrections + (layer * tokens + t) * router.experts);
  }
  if (tile == 0) tile = ExpertTile(tokens, top_k, router.experts);
  PlanKernel<<<1, static_cast<unsigned>(router.experts),
               router.experts * sizeof(int32_t), options.stream>>>(
      ids, static_cast<int>(tokens * top_k), static_cast<int>(router.experts),
      tile, plan);
  CheckLaunch("the plan of forced experts");
}

}  // namespace invar
