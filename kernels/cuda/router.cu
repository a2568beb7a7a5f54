#include <algorithm>

#include "kernels/cuda/block_sum.cuh"
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/silu_mul.h"
#include "kernels/cuda/total_order.cuh"

namespace invar::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxExperts = 512;
// Blocks that share K for the same tokens.
constexpr int kCluster = 8;
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
  const float* correction;
};

// The part of K that one block of a cluster sums: a multiple of 4.
__device__ int SliceWidth(int hidden) {
  return (hidden + 4 * kCluster - 1) / (4 * kCluster) * 4;
}

__device__ void PrefetchLine(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

__device__ float4 Load4(const float* p) {
  return *reinterpret_cast<const float4*>(p);
}
__device__ float4 Load4(const __nv_bfloat16* p) {
  const uint2 pair = *reinterpret_cast<const uint2*>(p);
  return {__uint_as_float(pair.x << 16), __uint_as_float(pair.x & 0xffff0000u),
          __uint_as_float(pair.y << 16), __uint_as_float(pair.y & 0xffff0000u)};
}

// The logits of kTokens tokens over this block's slice of K, into part. Lane j
// of a warp sums k = 4j to 4j + 3 of the slice, then 128 on; then a butterfly:
// hidden alone decides the order. A warp has up to eight experts at a time.
template <typename Element, int kTokens>
__device__ void PartialLogits(const Arguments& a, int first_token, int tokens,
                              int slice, float (*part)[kMaxExperts]) {
  constexpr int kAtOnce = 8;
  const int experts = static_cast<int>(a.options.experts);
  const int warp = threadIdx.x / 32;
  const int hidden = static_cast<int>(a.hidden);
  const int width = SliceWidth(hidden);
  const int begin = slice * width;
  const int end = min(begin + width, hidden);
  const auto* weight = static_cast<const Element*>(a.weight);
  const float* x = a.x + static_cast<int64_t>(first_token) * hidden;
  for (int first = 0; first < experts; first += kAtOnce * kWarps) {
    float sum[kAtOnce][kTokens] = {};
    for (int k = begin + threadIdx.x % 32 * 4; k < end; k += 128) {
      float4 v[kTokens];
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        v[t] = t < tokens ? Load4(x + int64_t{t} * hidden + k)
                          : float4{0.0f, 0.0f, 0.0f, 0.0f};
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int e = first + i * kWarps + warp;
        if (e >= experts) break;
        const float4 w = Load4(weight + static_cast<int64_t>(e) * hidden + k);
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
          sum[i][t] = fmaf(w.x, v[t].x, sum[i][t]);
          sum[i][t] = fmaf(w.y, v[t].y, sum[i][t]);
          sum[i][t] = fmaf(w.z, v[t].z, sum[i][t]);
          sum[i][t] = fmaf(w.w, v[t].w, sum[i][t]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int e = first + i * kWarps + warp;
      if (e >= experts) break;
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const float all = WarpSum(sum[i][t]);
        if (threadIdx.x % 32 == 0) part[t][e] = all;
      }
    }
  }
}

// Weights are constant: they may come while the kernel ahead still runs.
template <typename Element>
__device__ void PrefetchWeights(const Arguments& a, int slice) {
  constexpr int kLine = 128 / sizeof(Element);
  const int hidden = static_cast<int>(a.hidden);
  const int width = SliceWidth(hidden);
  const int begin = slice * width;
  const int end = min(begin + width, hidden);
  const int lines = (end - begin + kLine - 1) / kLine;
  const auto* weight = static_cast<const Element*>(a.weight);
  for (int i = threadIdx.x; i < a.options.experts * lines; i += kThreads) {
    PrefetchLine(weight + static_cast<int64_t>(i / lines) * hidden + begin +
                 i % lines * kLine);
  }
}

// logits -> 1 / (1 + exp(-logit)), by one warp.
__device__ void Sigmoid(float* logits, int experts) {
  for (int e = threadIdx.x % 32; e < experts; e += 32) {
    logits[e] = 1.0f / (1.0f + Exponential(-logits[e]));
  }
  __syncwarp();
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

// What a group is chosen by: its best value, or the sum of its two best.
__device__ float GroupScore(cpu::RouterMethod method, const float* values,
                            int size) {
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
__device__ void KeepBestGroups(const cpu::RouterOptions& o, float* values) {
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
// by `scores`. A lane has kPerLane experts at most.
template <int kPerLane>
__device__ void Choose(const Arguments& a, int token, const float* scores,
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
    sum = sum + scores[e];
    if (lane == 0) ids[rank] = e;
  }
  __syncwarp();
  for (int rank = lane; rank < top_k; rank += 32) {
    const float score = scores[ids[rank]];
    weights[rank] = (a.options.normalise ? score / (sum + 1e-20f) : score) *
                    a.options.scaling_factor;
  }
  __syncwarp();
}

// total[e] slots of each expert -> the first place of each, and the work. By
// one warp; lane j has a run of neighbouring experts.
__device__ void CutIntoTiles(const Arguments& a, int32_t* total) {
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

// Plan for at most 32 slots, by one warp: each slot counts those before it.
__device__ void PlanFew(const Arguments& a, int slots) {
  const int lane = threadIdx.x % 32;
  const int expert = lane < slots ? __ldcg(&a.ids[lane]) : kMaxExperts;
  int place = 0;
  for (int other = 0; other < 32; ++other) {
    const int e = __shfl_sync(kAll, expert, other);
    place += e < expert || (e == expert && other < lane);
  }
  // From here on a lane is a place in the order.
  __shared__ int slot_at[32];
  slot_at[place] = lane;
  __syncwarp();
  const int slot = slot_at[lane];
  const int mine = __shfl_sync(kAll, expert, slot);
  const unsigned group = __match_any_sync(kAll, mine);
  const int first = __ffs(group) - 1;
  const int count = __popc(group);
  const bool starts = lane < slots && (lane - first) % a.tile == 0;
  const unsigned items = __ballot_sync(kAll, starts);
  if (lane < slots) a.plan.order[lane] = slot;
  if (starts) {
    a.plan.work[__popc(items & ((1u << lane) - 1))] = {
        mine, lane, min(a.tile, count - (lane - first)), 0};
  }
  if (lane == 0) a.plan.counts[0] = __popc(items);
}

// Groups the slots by expert, stably, and cuts the groups into tiles. By one
// block: warp w owns a run of slots and counts it, then places it.
__device__ void Plan(const Arguments& a) {
  __shared__ int32_t begin[kWarps][kMaxExperts];
  __shared__ int32_t total[kMaxExperts];
  const int experts = static_cast<int>(a.options.experts);
  const int slots = static_cast<int>(a.tokens * a.options.top_k);
  if (slots <= 32) {
    if (threadIdx.x < 32) PlanFew(a, slots);
    return;
  }
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
    if (warp == 0) CutIntoTiles(a, total);
    __syncthreads();
    for (int e = lane; e < experts; e += 32) begin[warp][e] += total[e];
    __syncwarp();
  }
}

// A cluster has kTokens tokens: its blocks share K; then block t adds up the
// parts, in their order, and chooses for token t. The block that finishes last
// of all makes the plan.
template <typename Element, int kTokens>
__global__ void __launch_bounds__(kThreads) RouterKernel(const Arguments a) {
  static_assert(kTokens <= kCluster);
  __shared__ float part[kTokens][kMaxExperts];
  __shared__ float scores[kMaxExperts];
  __shared__ float choice[kMaxExperts];
  __shared__ bool last;
  AllowNextKernel();
  const int first = blockIdx.x / kCluster * kTokens;
  const int tokens = min(kTokens, a.tokens - first);
  const int rank = static_cast<int>(ClusterRank());
  const int warp = threadIdx.x / 32;
  const int experts = static_cast<int>(a.options.experts);
  PrefetchWeights<Element>(a, rank);
  WaitForPriorKernel();
  PartialLogits<Element, kTokens>(a, first, tokens, rank, part);
  ClusterSync();
  const bool chooses = rank < tokens;
  if (chooses) {
    for (int e = threadIdx.x; e < experts; e += kThreads) {
      float slice[kCluster];
#pragma unroll
      for (int r = 0; r < kCluster; ++r) {
        slice[r] = LoadFromRank(&part[rank][e], r);
      }
      float sum = slice[0];
#pragma unroll
      for (int r = 1; r < kCluster; ++r) sum += slice[r];
      scores[e] = sum;
    }
  }
  ClusterSync();  // no block leaves while its parts are being read
  if (!chooses) return;
  if (warp == 0) {
    if (a.options.scoring == cpu::RouterScoring::kSigmoid) {
      Sigmoid(scores, experts);
    } else {
      Softmax(scores, experts);
    }
    for (int e = threadIdx.x; e < experts; e += 32) {
      choice[e] =
          a.correction == nullptr ? scores[e] : scores[e] + a.correction[e];
    }
    __syncwarp();
    if (a.options.method != cpu::RouterMethod::kGreedy) {
      KeepBestGroups(a.options, choice);
    }
    if (experts <= 64) {
      Choose<2>(a, first + rank, scores, choice);
    } else {
      Choose<kMaxExperts / 32>(a, first + rank, scores, choice);
    }
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

template <typename Element>
void Run(const Arguments& a, const LaunchOptions& options) {
  // Several tokens a cluster read the weights once; few tokens spread.
  const int tokens = a.tokens <= 16 ? 1 : a.tokens <= 64 ? 4 : 8;
  const int clusters = (a.tokens + tokens - 1) / tokens;
  const auto kernel = tokens == 1   ? RouterKernel<Element, 1>
                      : tokens == 4 ? RouterKernel<Element, 4>
                                    : RouterKernel<Element, 8>;
  Launch(kernel,
         {.grid = dim3(clusters * kCluster),
          .threads = kThreads,
          .cluster = kCluster},
         options, "Router", a);
}

}  // namespace

void Router(const cpu::RouterOptions& router, WeightDtype dtype,
            const void* weight, int64_t hidden, const float* x, int64_t tokens,
            int32_t* ids, float* weights, const ExpertPlan& plan,
            const LaunchOptions& options, int tile, const float* correction) {
  if (tokens == 0) return;
  if (tile == 0) tile = ExpertTile(tokens, router.top_k, router.experts);
  const Arguments a = {router, weight,  hidden, x,    static_cast<int>(tokens),
                       ids,    weights, plan,   tile, correction};
  if (dtype == WeightDtype::kBf16) {
    Run<__nv_bfloat16>(a, options);
  } else {
    Run<float>(a, options);
  }
}

}  // namespace invar::cuda
