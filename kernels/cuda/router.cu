#include <algorithm>
#include <climits>

#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/router.cuh"

namespace invar::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

using Arguments = RouterArguments;

// Steps of 128 along K whose weights are loaded together.
constexpr int kAheadSteps = 16;

// The first of those of expert e, or of as many as there are.
template <typename Element>
__device__ void LoadAhead(const Arguments& a, int e,
                          Four<Element> (&ahead)[kAheadSteps]) {
  const auto* row = static_cast<const Element*>(a.weight) + e * a.hidden;
#pragma unroll
  for (int i = 0; i < kAheadSteps; ++i) {
    const int k = threadIdx.x % 32 * 4 + 128 * i;
    if (k < a.hidden) {
      ahead[i] = *reinterpret_cast<const Four<Element>*>(row + k);
    }
  }
}

template <int kTokens>
__device__ void AddProducts(float4 w, const float* x, int64_t stride,
                            int tokens, float (&sum)[kTokens]) {
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const float4 v = Load4(x + min(t, tokens - 1) * stride);
    sum[t] = fmaf(w.x, v.x, sum[t]);
    sum[t] = fmaf(w.y, v.y, sum[t]);
    sum[t] = fmaf(w.z, v.z, sum[t]);
    sum[t] = fmaf(w.w, v.w, sum[t]);
  }
}

// As Logits, of one expert, whose first weights are there.
template <typename Element, int kTokens, typename Store>
__device__ void LogitsOfOne(const Arguments& a, int e,
                            const Four<Element> (&ahead)[kAheadSteps],
                            const float* x, int tokens, Store store) {
  const auto* row = static_cast<const Element*>(a.weight) + e * a.hidden;
  float sum[kTokens] = {};
  const int first = threadIdx.x % 32 * 4;
#pragma unroll
  for (int i = 0; i < kAheadSteps; ++i) {
    const int k = first + 128 * i;
    if (k < a.hidden) {
      AddProducts<kTokens>(ToFloat4(ahead[i]), x + k, a.hidden, tokens, sum);
    }
  }
  for (int64_t k = first + 128 * kAheadSteps; k < a.hidden; k += 128) {
    const auto w = *reinterpret_cast<const Four<Element>*>(row + k);
    AddProducts<kTokens>(ToFloat4(w), x + k, a.hidden, tokens, sum);
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const float all = WarpSum(sum[t]);
    if (threadIdx.x % 32 == 0) store(t, e, all);
  }
}

// Logits of kTokens tokens and of kExperts experts `stride` apart, from `first`
// on. Lane j of the warp sums k = 4j to 4j + 3, then 128 on; then a butterfly:
// hidden alone decides the order.
template <typename Element, int kTokens, int kExperts, typename Store>
__device__ void Logits(const Arguments& a, int first, int stride,
                       const float* x, int tokens, Store store) {
  const int experts = static_cast<int>(a.options.experts);
  const auto* rows = static_cast<const Element*>(a.weight);
  float sum[kExperts][kTokens] = {};
#pragma unroll(kExperts* kTokens <= 8 ? 4 : 1)
  for (int64_t k = threadIdx.x % 32 * 4; k < a.hidden; k += 128) {
    float4 v[kTokens];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      v[t] = Load4(x + min(t, tokens - 1) * a.hidden + k);
    }
#pragma unroll
    for (int i = 0; i < kExperts; ++i) {
      const int e = min(first + i * stride, experts - 1);
      const float4 w = ToFloat4(
          *reinterpret_cast<const Four<Element>*>(rows + e * a.hidden + k));
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
  for (int i = 0; i < kExperts; ++i) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const float all = WarpSum(sum[i][t]);
      const int e = first + i * stride;
      if (threadIdx.x % 32 == 0 && e < experts) store(t, e, all);
    }
  }
}

// What a block needs to choose experts for its tokens, a warp each.
template <int kWidth>
struct ChoiceShared {
  float scores[kWidth][kMaxExperts];
  float choice[kWidth][kMaxExperts];
};

struct PlanShared {
  int32_t begin[kWarps][kMaxExperts];
  int32_t total[kMaxExperts];
};

// Groups the slots by expert, stably, and cuts the groups into tiles. By one
// block: warp w owns a run of slots and counts it, then places it.
__device__ void Plan(const Arguments& a, PlanShared& shared) {
  constexpr int kAhead = 8;  // loads that wait for memory together
  auto& begin = shared.begin;
  auto& total = shared.total;
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
    for (int base = first; base < last; base += 32 * kAhead) {
      int ids[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int slot = base + 32 * i + lane;
        ids[i] = slot < last ? __ldcg(&a.ids[slot]) : -1;
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (base + 32 * i >= last) break;
        const int e = ids[i];
        const unsigned same = __match_any_sync(kAll, e);
        const int before = __popc(same & ((1u << lane) - 1));
        const int at = e >= 0 ? begin[warp][e] : 0;
        __syncwarp();
        if (e >= 0) {
          if (place == 1) a.plan.order[at + before] = base + 32 * i + lane;
          if (before == 0) begin[warp][e] = at + __popc(same);
        }
        __syncwarp();
      }
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

// Plan of at most 32 slots, each expert's in one tile, by one warp: lane i has
// slot i.
__device__ void PlanFew(const Arguments& a) {
  const int lane = threadIdx.x % 32;
  const int slots = static_cast<int>(a.tokens * a.options.top_k);
  const int e = lane < slots ? __ldcg(&a.ids[lane]) : INT_MAX;
  const unsigned same = __match_any_sync(kAll, e);
  const bool first = (same & ((1u << lane) - 1)) == 0;
  int place = 0;
  int item = 0;
  for (int i = 0; i < slots; ++i) {
    const int other = __shfl_sync(kAll, e, i);
    const bool other_first = __shfl_sync(kAll, first, i);
    place += other < e || (other == e && i < lane);
    item += other < e && other_first;
  }
  if (lane < slots) {
    a.plan.order[place] = lane;
    if (first) a.plan.work[item] = {e, place, __popc(same), 0};
  }
  const unsigned firsts = __ballot_sync(kAll, first && lane < slots);
  if (lane == 0) a.plan.counts[0] = __popc(firsts);
}

// A cluster of kCluster blocks has kTokens tokens and shares the experts,
// kAtOnce a warp at a time; each block then chooses for kTokens / kCluster of
// them (one, if that is less), a warp each. The block that finishes last of all
// makes the plan.
template <typename Element, int kTokens, int kCluster, int kAtOnce>
__global__ void __launch_bounds__(kThreads) RouterKernel(const Arguments a) {
  constexpr int kWidth = kCluster == 1 ? kTokens : 1;
  static_assert(kWidth <= kWarps && (kCluster == 1 || kTokens <= kCluster));
  __shared__ float part[kCluster == 1 ? 1 : kTokens][kMaxExperts / kCluster];
  __shared__ union {
    ChoiceShared<kWidth> choice;
    PlanShared plan;
  } shared;
  __shared__ bool last;
  const int first = blockIdx.x / kCluster * kTokens;
  const int tokens = min(kTokens, a.tokens - first);
  const int rank = kCluster == 1 ? 0 : static_cast<int>(ClusterRank());
  const int warp = threadIdx.x / 32;
  const int experts = static_cast<int>(a.options.experts);
  AllowNextKernel();
  // Weights are constant: they come while the kernel ahead ends.
  Four<Element> ahead[kAheadSteps];
  if constexpr (kAtOnce == 1) {
    LoadAhead<Element>(a, min(warp * kCluster + rank, experts - 1), ahead);
  }
  WaitForPriorKernel();
  auto& choice = shared.choice;
  if (threadIdx.x == 0) last = false;
  constexpr int kStride = kWarps * kCluster;
  for (int e = warp * kCluster + rank; e < experts; e += kStride * kAtOnce) {
    const auto store = [&](int t, int expert, float logit) {
      if constexpr (kCluster == 1) {
        choice.scores[t][expert] = logit;
      } else {
        part[t][expert / kCluster] = logit;
      }
    };
    const float* x = a.x + first * a.hidden;
    if constexpr (kAtOnce == 1) {
      if (e >= kStride) LoadAhead<Element>(a, e, ahead);
      LogitsOfOne<Element, kTokens>(a, e, ahead, x, tokens, store);
    } else {
      Logits<Element, kTokens, kAtOnce>(a, e, kStride, x, tokens, store);
    }
  }
  int mine = tokens;  // tokens that this block chooses for
  if constexpr (kCluster == 1) {
    __syncthreads();
  } else {
    ClusterSync();
    mine = rank < tokens;
    for (int e = threadIdx.x; mine == 1 && e < experts; e += kThreads) {
      choice.scores[0][e] =
          LoadFromRank(&part[rank][e / kCluster], e % kCluster);
    }
    ClusterSync();  // no block leaves while its logits are being read
  }
  if (warp < mine) {
    ChooseToken(a, first + rank + warp, choice.scores[warp],
                choice.choice[warp]);
    if (a.tokens == 1) {
      last = true;
    } else if (threadIdx.x % 32 == 0) {
      __threadfence();
      if (atomicAdd(&a.plan.counts[1], 1) == a.tokens - 1) last = true;
      __threadfence();
    }
  }
  __syncthreads();
  if (!last) return;
  if (threadIdx.x == 0) a.plan.counts[1] = 0;
  if (a.tokens * a.options.top_k <= 32 && a.tokens <= a.tile) {
    if (warp == 0) PlanFew(a);
  } else {
    Plan(a, shared.plan);
  }
}

template <typename Element, int kTokens, int kCluster, int kAtOnce>
void RunShape(const Arguments& a, const LaunchOptions& options) {
  const int clusters = (a.tokens + kTokens - 1) / kTokens;
  Launch(RouterKernel<Element, kTokens, kCluster, kAtOnce>,
         {.grid = dim3(clusters * kCluster),
          .threads = kThreads,
          .cluster = kCluster},
         options, "Router", a);
}

// Few tokens spread; several of a cluster, or of a block, read the weights
// once.
template <typename Element>
void Run(const Arguments& a, const LaunchOptions& options) {
  if (a.tokens <= 64) return RunShape<Element, 1, 8, 1>(a, options);
  if (a.tokens <= 128) return RunShape<Element, 4, 8, 1>(a, options);
  if (a.tokens <= 512) return RunShape<Element, 4, 4, 2>(a, options);
  return RunShape<Element, 8, 1, 8>(a, options);
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
  if (PromptRouterTakes(a)) {
    PromptRouter(a, dtype, options);
  } else if (dtype == WeightDtype::kBf16) {
    Run<__nv_bfloat16>(a, options);
  } else {
    Run<float>(a, options);
  }
}

}  // namespace invar::cuda
