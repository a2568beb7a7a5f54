// What the router's kernels share: operands, a token's choice of experts, the
// cutting of their groups into tiles.
#ifndef INVAR_KERNELS_CUDA_ROUTER_CUH_
#define INVAR_KERNELS_CUDA_ROUTER_CUH_

#include <type_traits>

#include "kernels/cuda/block_sum.cuh"
#include "kernels/cuda/input_row.cuh"
#include "kernels/cuda/ops_linear.h"
#include "kernels/cuda/silu_mul.h"
#include "kernels/cuda/total_order.cuh"

namespace invar::cuda {

inline constexpr int kMaxExperts = 512;
inline constexpr unsigned kAll = 0xffffffffu;

struct RouterArguments {
  cpu::RouterOptions options;
  const void* weight;
  int64_t hidden;
  const float* x;
  const float* roots;  // RouterInput's, or null
  const float* gain;
  int tokens;
  int32_t* ids;
  float* weights;
  ExpertPlan plan;
  int tile;
  const float* correction;
  bool gate;  // LaunchOptions
};

// Four weights as they lie in memory, and as fp32.
template <typename Element>
using Four = std::conditional_t<sizeof(Element) == 2, uint2, float4>;
__device__ inline float4 ToFloat4(float4 v) { return v; }

// logits -> 1 / (1 + exp(-logit)), by one warp.
__device__ inline void Sigmoid(float* logits, int experts) {
  for (int e = threadIdx.x % 32; e < experts; e += 32) {
    logits[e] = 1.0f / (1.0f + Exponential(-logits[e]));
  }
  __syncwarp();
}

// logits -> softmax, by one warp; lane j holds experts j, j + 32, ...
__device__ inline void Softmax(float* logits, int experts) {
  const int lane = threadIdx.x % 32;
  float highest = __int_as_float(0xff800000);
  for (int e = lane; e < experts; e += 32) {
    highest = fmaxf(highest, logits[e]);
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    highest = fmaxf(highest, __shfl_xor_sync(kAll, highest, offset));
  }
  float sum = 0.0f;
  for (int e = lane; e < experts; e += 32) {
    logits[e] = Exponential(logits[e] - highest);
    sum += logits[e];
  }
  sum = WarpSum(sum);
  for (int e = lane; e < experts; e += 32) logits[e] /= sum;
  __syncwarp();
}

// What a group is chosen by: its best value, or the sum of its two best.
__device__ inline float GroupScore(cpu::RouterMethod method,
                                   const float* values, int size) {
  if (method == cpu::RouterMethod::kGroupLimitedGreedy || size == 1) {
    float highest = values[0];
    for (int i = 1; i < size; ++i) {
      if (highest < values[i]) highest = values[i];
    }
    return highest;
  }
  uint64_t best = 0;
  uint64_t second = 0;
  for (int i = 0; i < size; ++i) {
    const uint64_t key = Key(values[i], i);
    if (key > best) {
      second = best;
      best = key;
    } else if (key > second) {
      second = key;
    }
  }
  return values[KeyId(best)] + values[KeyId(second)];
}

// Values outside the best groups become -inf. Lane g judges group g.
__device__ inline void KeepBestGroups(const cpu::RouterOptions& o,
                                      float* values) {
  const int lane = threadIdx.x % 32;
  const int size = static_cast<int>(o.experts / o.groups);
  const uint64_t best =
      lane < o.groups
          ? Key(GroupScore(o.method, values + lane * size, size), lane)
          : 0;
  int better = 0;
  for (int g = 0; g < o.groups; ++g) {
    better += __shfl_sync(kAll, best, g) > best;
  }
  if (lane < o.groups && better >= o.top_groups) {
    for (int i = 0; i < size; ++i) {
      values[lane * size + i] = __int_as_float(0xff800000);
    }
  }
  __syncwarp();
}

// One warp chooses a token's experts by `choice`, best first, and weighs them
// by `scores`. A lane has at most kPerLane experts. Returns what is chosen in
// the lane's rank, or in the last of its ranks.
template <int kPerLane>
__device__ int Choose(const RouterArguments& a, int token, const float* scores,
                      const float* choice) {
  const int lane = threadIdx.x % 32;
  const int experts = static_cast<int>(a.options.experts);
  const int top_k = static_cast<int>(a.options.top_k);
  uint64_t key[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + 32 * i;
    key[i] = e < experts ? Key(choice[e], e) : 0;
  }
  int32_t* ids = a.ids + static_cast<int64_t>(token) * top_k;
  float* weights = a.weights + static_cast<int64_t>(token) * top_k;
  float sum = 0.0f;
  float mine = 0.0f;  // the score that this lane chose last
  int my_id = 0;
  for (int rank = 0; rank < top_k; ++rank) {
    uint64_t best = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) best = key[i] > best ? key[i] : best;
    best = WarpMax(best);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (key[i] == best) key[i] = 0;
    }
    const int e = KeyId(best);
    const float score = scores[e];
    sum = sum + score;
    if (lane == rank % 32) {
      ids[rank] = e;
      mine = score;
      my_id = e;
    }
  }
  for (int rank = lane; rank < top_k; rank += 32) {
    const float score = top_k <= 32 ? mine : scores[ids[rank]];
    weights[rank] = (a.options.normalise ? score / (sum + 1e-20f) : score) *
                    a.options.scaling_factor;
  }
  __syncwarp();
  return my_id;
}

// logits (E), by one warp, for `token`. Returns as Choose does.
__device__ inline int ChooseToken(const RouterArguments& a, int token,
                                  float* scores, float* choice) {
  const int experts = static_cast<int>(a.options.experts);
  if (a.options.scoring == cpu::RouterScoring::kSigmoid) {
    Sigmoid(scores, experts);
  } else {
    Softmax(scores, experts);
  }
  for (int e = threadIdx.x % 32; e < experts; e += 32) {
    choice[e] =
        a.correction == nullptr ? scores[e] : scores[e] + a.correction[e];
  }
  __syncwarp();
  if (a.options.method != cpu::RouterMethod::kGreedy) {
    KeepBestGroups(a.options, choice);
  }
  return experts <= 64 ? Choose<2>(a, token, scores, choice)
                       : Choose<kMaxExperts / 32>(a, token, scores, choice);
}

// total[e] slots of each expert -> the first place of each, and the work. By
// one warp; lane j has a run of neighbouring experts.
__device__ inline void CutIntoTiles(const RouterArguments& a, int32_t* total) {
  const int lane = threadIdx.x % 32;
  const int experts = static_cast<int>(a.options.experts);
  const int run = (experts + 31) / 32;
  const int first = min(lane * run, experts);
  const int last = min(first + run, experts);
  int sum = 0;
  int items = 0;
  for (int e = first; e < last; ++e) {
    sum += total[e];
    items += (total[e] + a.tile - 1) / a.tile;
  }
  const int my_sum = sum;
  const int my_items = items;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int more = __shfl_up_sync(kAll, sum, offset);
    const int more_items = __shfl_up_sync(kAll, items, offset);
    if (lane >= offset) {
      sum += more;
      items += more_items;
    }
  }
  if (lane == 31) a.plan.counts[0] = items;
  sum -= my_sum;
  items -= my_items;
  for (int e = first; e < last; ++e) {
    const int count = total[e];
    total[e] = sum;
    for (int i = 0; i < count; i += a.tile) {
      a.plan.work[items++] = {e, sum + i, min(a.tile, count - i), 0};
    }
    sum += count;
  }
}

// Router of many tokens: the same bits.
bool PromptRouterTakes(const RouterArguments& a);
void PromptRouter(const RouterArguments& a, WeightDtype dtype,
                  const LaunchOptions& options);

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_ROUTER_CUH_
