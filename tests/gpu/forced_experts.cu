#include <cstdio>
#include <cstdlib>

#include "tests/gpu/forced_experts.h"

#define Router RouterAsItIs
#include "kernels/cuda/router.cu"
#undef Router

#include "kernels/cuda/check.h"

namespace invar::cuda {
namespace {

// Of the process, since Router's callers hand nothing through.
struct Forced {
  // (layers, positions, experts): added to a token's scores before its experts
  // are chosen, and so much that nothing else counts.
  float* corrections = nullptr;
  int64_t layers = 0;
  int64_t positions = 0;
  int64_t experts = 0;
  int64_t calls = 0;
} forced;

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
  Check(cudaMemcpy(forced.corrections, corrections.data(),
                   corrections.size() * sizeof(float), cudaMemcpyHostToDevice),
        "forcing experts");
}

void Router(const cpu::RouterOptions& router, WeightDtype dtype,
            const void* weight, int64_t hidden, const float* x, int64_t tokens,
            int32_t* ids, float* weights, const ExpertPlan& plan,
            const LaunchOptions& options, int tile, const float* correction) {
  if (tokens != forced.positions || correction != nullptr ||
      router.experts != forced.experts) {
    std::fprintf(stderr, "experts are forced for other steps than this\n");
    std::abort();
  }
  const int64_t layer = forced.calls++ % forced.layers;
  const int64_t top_k = router.top_k;
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

}  // namespace invar::cuda
