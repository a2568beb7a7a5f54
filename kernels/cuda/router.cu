#include <algorithm>

#include "kernels/cuda/block_sum.cuh"
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/silu_mul.h"

namespace invar::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxExperts = 512;
constexpr int kPerLane = kMaxExperts / 32;
// Blocks that share the experts of the same tokens.
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

__device__ float4 Load4(const float* p) {
  return *reinterpret_cast<const float4*>(p);
}
__device__ float4 Load4(const __nv_bfloat16* p) {
  const uint2 pair = *reinterpret_cast<const uint2*>(p);
  return {__uint_as_float(pair.x << 16), __uint_as_float(pair.x & 0xffff0000u),
          __uint_as_float(pair.y << 16), __uint_as_float(pair.y & 0xffff0000u)};
}

// One expert's logits of kTokens tokens. Lane j of the warp sums k = 4j to
// 4j + 3, then 128 on; then a butterfly: hidden alone decides the order.
template <typename Element, int kTokens>
__device__ void Logits(const Element* row, const float* x, int64_t hidden,
                       int tokens, float (&sum)[kTokens]) {
#pragma unroll
  for (int t = 0; t < kTokens; ++t) sum[t] = 0.0f;
#pragma unroll 4
  for (int64_t k = threadIdx.x % 32 * 4; k < hidden; k += 128) {
    const float4 w = Load4(row + k);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (t >= tokens) break;
      const float4 v = Load4(x + t * hidden + k);
      sum[t] = fmaf(w.x, v.x, sum[t]);
      sum[t] = fmaf(w.y, v.y, sum[t]);
      sum[t] = fmaf(w.z, v.z, sum[t]);
      sum[t] = fmaf(w.w, v.w, sum[t]);
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) sum[t] = WarpSum(sum[t]);
}

// logits -> 1 / (1 + exp(-logit)), by one warp.
__device__ void Sigmoid(float* logits, int experts) {
  for (int e = threadIdx.x % 32; e < experts; e += 32) {
    logits[e] = 1.0f / (1.0f + Exponential(-logits[e]));
  }
  __syncwarp();
}

// (score, id) as one integer: larger is better, a NaN the worst.
__device__ uint64_t Key(float score, int id) {
  if (score != score) score = __int_as_float(0xff800000);
  if (score == 0.0f) score = 0.0f;  // one zero
  const uint32_t bits = __float_as_uint(score);
  const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | static_cast<uint32_t>(~id);
}

__device__ int KeyId(uint64_t key) {
  return static_cast<int>(~static_cast<uint32_t>(key));
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
// by `scores`.
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
    if (warp == 0) CutIntoTiles(a, total);
    __syncthreads();
    for (int e = lane; e < experts; e += 32) begin[warp][e] += total[e];
    __syncwarp();
  }
}

// A cluster has kTokens tokens: its blocks share the experts, one a warp at a
// time; then block t chooses for token t. The block that finishes last of all
// makes the plan.
template <typename Element, int kTokens>
__global__ void __launch_bounds__(kThreads) RouterKernel(const Arguments a) {
  static_assert(kTokens <= kCluster);
  __shared__ float part[kTokens][kMaxExperts / kCluster];
  __shared__ float scores[kMaxExperts];
  __shared__ float choice[kMaxExperts];
  __shared__ bool last;
  AllowNextKernel();
  WaitForPriorKernel();
  const int first = blockIdx.x / kCluster * kTokens;
  const int tokens = min(kTokens, a.tokens - first);
  const int rank = static_cast<int>(ClusterRank());
  const int warp = threadIdx.x / 32;
  const int experts = static_cast<int>(a.options.experts);
  for (int i = warp; i * kCluster + rank < experts; i += kWarps) {
    float sum[kTokens];
    Logits<Element, kTokens>(static_cast<const Element*>(a.weight) +
                                 (i * kCluster + rank) * a.hidden,
                             a.x + first * a.hidden, a.hidden, tokens, sum);
    if (threadIdx.x % 32 == 0) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) part[t][i] = sum[t];
    }
  }
  ClusterSync();
  const bool chooses = rank < tokens;
  if (chooses) {
    for (int e = threadIdx.x; e < experts; e += kThreads) {
      scores[e] = LoadFromRank(&part[rank][e / kCluster], e % kCluster);
    }
  }
  ClusterSync();  // no block leaves while its logits are being read
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
    Choose(a, first + rank, scores, choice);
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
  constexpr int kTokens = 4;
  const bool few = a.tokens <= 64;
  const int clusters = few ? a.tokens : (a.tokens + kTokens - 1) / kTokens;
  Launch(few ? RouterKernel<Element, 1> : RouterKernel<Element, kTokens>,
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
