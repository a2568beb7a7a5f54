#include <algorithm>

#include "kernels/cuda/block_sum.cuh"
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/silu_mul.h"

namespace invar::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxExperts = 512;
constexpr int kPerLane = kMaxExperts / 32;
constexpr unsigned kAll = 0xffffffffu;

struct Arguments {
  cpu::RouterOptions options;
  const void* weight;
  int64_t hidden;
  const float* x;
  int tokens;
  int32_t* ids;
  float* weights;
  ExpertPlan plan;
  int tile;
};

__device__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float ToFloat(float x) { return x; }

// Lane j of the warp sums k = 2j, 2j + 1, 64 + 2j, ...; then a butterfly.
template <typename Element>
__device__ float Logit(const Element* row, const float* x, int64_t hidden) {
  float sum = 0.0f;
#pragma unroll 8
  for (int64_t k = threadIdx.x % 32 * 2; k < hidden; k += 64) {
    sum = fmaf(ToFloat(row[k]), x[k], sum);
    sum = fmaf(ToFloat(row[k + 1]), x[k + 1], sum);
  }
  return WarpSum(sum);
}

// (score, id) as one integer: larger is better, a NaN the worst.
__device__ uint64_t Key(float score, int id) {
  if (score != score) score = __int_as_float(0xff800000);
  if (score == 0.0f) score = 0.0f;  // one zero
  const uint32_t bits = __float_as_uint(score);
  const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | static_cast<uint32_t>(~id);
}

__device__ uint64_t WarpMax(uint64_t key) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const uint64_t other = __shfl_xor_sync(kAll, key, offset);
    key = other > key ? other : key;
  }
  return key;
}

// logits -> softmax, by one warp; lane j holds experts j, j + 32, ...
__device__ void Softmax(float* logits, int experts) {
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

// Scores outside the best groups become -1, below any softmax. Lane g judges
// group g.
__device__ void KeepBestGroups(const cpu::RouterOptions& o, float* scores) {
  const int lane = threadIdx.x % 32;
  const int size = static_cast<int>(o.experts / o.groups);
  uint64_t best = 0;
  if (lane < o.groups) {
    float highest = scores[lane * size];
    for (int i = 1; i < size; ++i) {
      const float score = scores[lane * size + i];
      if (highest < score) highest = score;
    }
    best = Key(highest, lane);
  }
  int better = 0;
  for (int g = 0; g < o.groups; ++g) {
    better += __shfl_sync(kAll, best, g) > best;
  }
  if (lane < o.groups && better >= o.top_groups) {
    for (int i = 0; i < size; ++i) scores[lane * size + i] = -1.0f;
  }
  __syncwarp();
}

// One warp chooses a token's experts, best first.
__device__ void Choose(const Arguments& a, int token, const float* scores) {
  const int lane = threadIdx.x % 32;
  const int experts = static_cast<int>(a.options.experts);
  uint64_t key[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + 32 * i;
    key[i] = e < experts ? Key(scores[e], e) : 0;
  }
  for (int rank = 0; rank < a.options.top_k; ++rank) {
    uint64_t best = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) best = key[i] > best ? key[i] : best;
    best = WarpMax(best);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (key[i] == best) key[i] = 0;
    }
    if (lane == 0) {
      const int e = static_cast<int>(~static_cast<uint32_t>(best));
      const int64_t slot = token * a.options.top_k + rank;
      a.ids[slot] = e;
      a.weights[slot] = scores[e] * a.options.scaling_factor;
    }
  }
}

// Groups the slots by expert, stably, and cuts the groups into tiles. By one
// block: warp w owns a run of slots and counts it, then places it.
__device__ void Plan(const Arguments& a) {
  __shared__ int32_t begin[kWarps][kMaxExperts];
  __shared__ int32_t total[kMaxExperts];
  const int experts = static_cast<int>(a.options.experts);
  const int slots = static_cast<int>(a.tokens * a.options.top_k);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int run = (slots + kThreads - 1) / kThreads * 32;
  const int first = warp * run;
  const int last = min(first + run, slots);
  for (int e = lane; e < experts; e += 32) begin[warp][e] = 0;
  __syncwarp();
  for (int place = 0; place < 2; ++place) {
    for (int base = first; base < last; base += 32) {
      const int slot = base + lane;
      const int e = slot < last ? __ldcg(&a.ids[slot]) : -1;
      const unsigned same = __match_any_sync(kAll, e);
      const int before = __popc(same & ((1u << lane) - 1));
      const int at = e >= 0 ? begin[warp][e] : 0;
      __syncwarp();
      if (e >= 0) {
        if (place == 1) a.plan.order[at + before] = slot;
        if (before == 0) begin[warp][e] = at + __popc(same);
      }
      __syncwarp();
    }
    if (place == 1) break;
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += kThreads) {
      int sum = 0;
      for (int w = 0; w < kWarps; ++w) {
        const int count = begin[w][e];
        begin[w][e] = sum;
        sum += count;
      }
      total[e] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int sum = 0;
      int items = 0;
      for (int e = 0; e < experts; ++e) {
        const int count = total[e];
        total[e] = sum;
        for (int i = 0; i < count; i += a.tile) {
          a.plan.work[items++] = {e, sum + i, min(a.tile, count - i), 0};
        }
        sum += count;
      }
      a.plan.counts[0] = items;
    }
    __syncthreads();
    for (int e = lane; e < experts; e += 32) begin[warp][e] += total[e];
    __syncwarp();
  }
}

// One token a block: its logits, one expert a warp at a time; its choice; and
// in the block that finishes last the plan of all.
template <typename Element>
__global__ void __launch_bounds__(kThreads) RouterKernel(const Arguments a) {
  __shared__ float scores[kMaxExperts];
  __shared__ bool last;
  AllowNextKernel();
  WaitForPriorKernel();
  const int token = blockIdx.x;
  const int warp = threadIdx.x / 32;
  const int experts = static_cast<int>(a.options.experts);
  for (int e = warp; e < experts; e += kWarps) {
    const float logit =
        Logit(static_cast<const Element*>(a.weight) + e * a.hidden,
              a.x + token * a.hidden, a.hidden);
    if (threadIdx.x % 32 == 0) scores[e] = logit;
  }
  __syncthreads();
  if (warp == 0) {
    Softmax(scores, experts);
    if (a.options.method == cpu::RouterMethod::kGroupLimitedGreedy) {
      KeepBestGroups(a.options, scores);
    }
    Choose(a, token, scores);
    if (threadIdx.x == 0) {
      __threadfence();
      last = atomicAdd(&a.plan.counts[1], 1) == a.tokens - 1;
      __threadfence();
    }
  }
  __syncthreads();
  if (!last) return;
  if (threadIdx.x == 0) a.plan.counts[1] = 0;
  Plan(a);
}

}  // namespace

void Router(const cpu::RouterOptions& router, WeightDtype dtype,
            const void* weight, int64_t hidden, const float* x, int64_t tokens,
            int32_t* ids, float* weights, const ExpertPlan& plan,
            const LaunchOptions& options, int tile) {
  if (tokens == 0) return;
  if (tile == 0) tile = ExpertTile(tokens, router.top_k, router.experts);
  const Arguments a = {router, weight,  hidden, x,   static_cast<int>(tokens),
                       ids,    weights, plan,   tile};
  const LaunchShape shape = {.grid = dim3(tokens), .threads = kThreads};
  if (dtype == WeightDtype::kBf16) {
    Launch(RouterKernel<__nv_bfloat16>, shape, options, "Router", a);
  } else {
    Launch(RouterKernel<float>, shape, options, "Router", a);
  }
}

}  // namespace invar::cuda
