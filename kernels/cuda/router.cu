// The router of few tokens, and the plan that groups slots by expert. A cluster
// shares the experts of one to eight tokens, so that few tokens still read the
// weights with many multiprocessors; the block that finishes last makes the
// plan, which saves a launch.
#include <algorithm>
#include <climits>

#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/mma.cuh"
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

__device__ float AddProducts(float4 w, float4 v, float sum) {
  sum = fmaf(w.x, v.x, sum);
  sum = fmaf(w.y, v.y, sum);
  sum = fmaf(w.z, v.z, sum);
  return fmaf(w.w, v.w, sum);
}

// As Logits, of one token and one expert, whose first weights are there.
template <typename Element>
__device__ float LogitOfOne(const Arguments& a, int e,
                            const Four<Element> (&ahead)[kAheadSteps],
                            const float* x) {
  const auto* row = static_cast<const Element*>(a.weight) + e * a.hidden;
  float sum = 0.0f;
  const int first = threadIdx.x % 32 * 4;
#pragma unroll
  for (int i = 0; i < kAheadSteps; ++i) {
    const int k = first + 128 * i;
    if (k < a.hidden) {
      sum = AddProducts(ToFloat4(ahead[i]), Load4(x + k), sum);
    }
  }
  for (int64_t k = first + 128 * kAheadSteps; k < a.hidden; k += 128) {
    const auto w = *reinterpret_cast<const Four<Element>*>(row + k);
    sum = AddProducts(ToFloat4(w), Load4(x + k), sum);
  }
  return WarpSum(sum);
}

// Until what this kernel reads has been written, and, in a cluster, until its
// blocks all run, so that their memory can be written.
template <int kCluster>
__device__ void WaitAtStart(const Arguments& a) {
  WaitForPriorKernel();
  if (a.gate) AllowNextKernel();
  if constexpr (kCluster > 1) ClusterWait();
}

// Writes to what block `rank` of the cluster has at `address`.
__device__ void StoreToRank(float* address, uint32_t rank, float value) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "st.shared::cluster.f32 [remote], %2;\n"
      "}\n" ::"r"(SharedAddress(address)),
      "r"(rank), "f"(value)
      : "memory");
}

// K whose inputs lie in shared memory at once, and whose weights a warp has in
// registers.
template <typename Element>
inline constexpr int kChunk = 4096 / sizeof(Element);

// As Logits, of all experts that the block has of its cluster, every
// kCluster-th from `rank` on: kExperts a warp and pass, each for half of the
// tokens, those past the last one too. staged: a chunk of each token. Waits for
// the kernel ahead.
template <typename Element, int kTokens, int kCluster, int kExperts,
          typename Store>
__device__ void TileLogits(const Arguments& a, int rank, const float* x,
                           int tokens, float* staged, Store store) {
  constexpr int kWidth = kChunk<Element>;
  constexpr int kSteps = kWidth / 128;
  constexpr int kHalf = kTokens / 2;
  constexpr int kPass = kWarps / 2 * kExperts;
  const int experts = static_cast<int>(a.options.experts);
  const int hidden = static_cast<int>(a.hidden);
  const int lane = threadIdx.x % 32;
  const int half = threadIdx.x / 32 % 2;
  const auto* rows = static_cast<const Element*>(a.weight);
  for (int first = 0; first * kCluster < experts; first += kPass) {
    const int mine = first + threadIdx.x / 64 * kExperts;
    float sum[kExperts][kHalf] = {};
    for (int chunk = 0; chunk < hidden; chunk += kWidth) {
      Four<Element> weights[kExperts][kSteps];
#pragma unroll
      for (int m = 0; m < kExperts; ++m) {
        const int64_t e = min((mine + m) * kCluster + rank, experts - 1);
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          const int k = chunk + 128 * i + 4 * lane;
          if (k < hidden) {
            weights[m][i] =
                *reinterpret_cast<const Four<Element>*>(rows + e * hidden + k);
          }
        }
      }
      if (first == 0 && chunk == 0) WaitAtStart<kCluster>(a);
      if (first == 0 || hidden > kWidth) {
        __syncthreads();  // nobody reads the chunk before
        for (int i = threadIdx.x; i < kTokens * kWidth / 4; i += kThreads) {
          const int t = i / (kWidth / 4);
          const int k = chunk + i % (kWidth / 4) * 4;
          const bool valid = t < tokens && k < hidden;
          CopyAsync(SharedAddress(staged + 4 * i),
                    x + (valid ? int64_t{t} * hidden + k : 0), valid);
        }
        CommitCopies();
        WaitForCopies();
        __syncthreads();
      }
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        if (chunk + 128 * i + 4 * lane >= hidden) break;
        float4 v[kHalf];
#pragma unroll
        for (int t = 0; t < kHalf; ++t) {
          v[t] =
              Load4(staged + (half * kHalf + t) * kWidth + 128 * i + 4 * lane);
        }
#pragma unroll
        for (int m = 0; m < kExperts; ++m) {
          const float4 w = ToFloat4(weights[m][i]);
#pragma unroll
          for (int t = 0; t < kHalf; ++t) {
            sum[m][t] = AddProducts(w, v[t], sum[m][t]);
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kExperts; ++m) {
#pragma unroll
      for (int t = 0; t < kHalf; ++t) {
        const float all = WarpSum(sum[m][t]);
        const int e = (mine + m) * kCluster + rank;
        if (lane == 0 && e < experts) store(half * kHalf + t, e, all);
      }
    }
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

// Lanes whose expert is this lane's; e is below kMaxExperts, or -1. Bit by bit.
__device__ unsigned SameExpert(int e) {
  static_assert(kMaxExperts == 1 << 9, "bit 9 is -1's alone");
  unsigned same = kAll;
#pragma unroll
  for (int bit = 0; bit < 10; ++bit) {
    const bool set = e >> bit & 1;
    const unsigned others = __ballot_sync(kAll, set);
    same &= set ? others : ~others;
  }
  return same;
}

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
        const unsigned same = SameExpert(e);
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

// Plan of one token's slots, by the warp that chose: lane i has the expert of
// slot i. No trip to memory, and none of the block's other warps.
__device__ void PlanOne(const Arguments& a, int e) {
  const int lane = threadIdx.x % 32;
  const int slots = static_cast<int>(a.options.top_k);
  int place = 0;
  for (int i = 0; i < slots; ++i) place += __shfl_sync(kAll, e, i) < e;
  if (lane < slots) {
    a.plan.order[place] = lane;
    a.plan.work[place] = {e, place, 1, 0};
  }
  if (lane == 0) a.plan.counts[0] = slots;
}

// A cluster of kCluster blocks has kTokens tokens and shares the experts,
// kAtOnce a warp at a time; each block then chooses for its share of them, a
// warp each. The block that finishes last of all makes the plan.
template <typename Element, int kTokens, int kCluster, int kAtOnce>
__global__ void __launch_bounds__(kThreads) RouterKernel(const Arguments a) {
  // Of the tokens that a block chooses for; their logits are written to it.
  constexpr int kWidth = kTokens > kCluster ? kTokens / kCluster : 1;
  static_assert(kWidth <= kWarps);
  __shared__ union {
    ChoiceShared<kWidth> choice;
    PlanShared plan;
  } shared;
  __shared__ bool last;
  extern __shared__ float4 staged[];
  const int first = blockIdx.x / kCluster * kTokens;
  const int tokens = min(kTokens, a.tokens - first);
  const int rank = kCluster == 1 ? 0 : static_cast<int>(ClusterRank());
  const int warp = threadIdx.x / 32;
  const int experts = static_cast<int>(a.options.experts);
  const float* x = a.x + first * a.hidden;
  auto& choice = shared.choice;
  if (threadIdx.x == 0) last = false;
  if (!a.gate) AllowNextKernel();
  if constexpr (kCluster > 1) ClusterArrive();
  const auto store = [&](int t, int e, float logit) {
    float* to = &choice.scores[t % kWidth][e];
    if constexpr (kCluster == 1) {
      *to = logit;
    } else {
      StoreToRank(to, t / kWidth, logit);
    }
  };
  if constexpr (kTokens == 1) {
    // Weights are constant: they come while the kernel ahead ends.
    Four<Element> ahead[kAheadSteps];
    LoadAhead<Element>(a, min(warp * kCluster + rank, experts - 1), ahead);
    WaitAtStart<kCluster>(a);
    constexpr int kStride = kWarps * kCluster;
    for (int e = warp * kCluster + rank; e < experts; e += kStride) {
      if (e >= kStride) LoadAhead<Element>(a, e, ahead);
      const float logit = LogitOfOne<Element>(a, e, ahead, x);
      if (threadIdx.x % 32 == 0) store(0, e, logit);
    }
  } else if constexpr (kCluster > 1) {
    TileLogits<Element, kTokens, kCluster, kAtOnce>(
        a, rank, x, tokens, reinterpret_cast<float*>(staged), store);
  } else {
    WaitAtStart<kCluster>(a);
    for (int e = warp; e < experts; e += kWarps * kAtOnce) {
      Logits<Element, kTokens, kAtOnce>(a, e, kWarps, x, tokens, store);
    }
  }
  if constexpr (kCluster == 1) {
    __syncthreads();
  } else {
    ClusterSync();
  }
  const int first_mine = rank * kWidth;
  const int mine = max(0, min(kWidth, tokens - first_mine));
  const bool alone = kTokens == 1 && a.tokens == 1 && a.options.top_k <= 32;
  if (warp < mine) {
    const int id = ChooseToken(a, first + first_mine + warp,
                               choice.scores[warp], choice.choice[warp]);
    if (alone) {
      PlanOne(a, id);
    } else if (a.tokens == 1) {
      last = true;
    } else if (threadIdx.x % 32 == 0) {
      __threadfence();
      if (atomicAdd(&a.plan.counts[1], 1) == a.tokens - 1) last = true;
      __threadfence();
    }
  }
  if (alone) return;
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
  constexpr bool kStaged = kTokens > 1 && kCluster > 1;
  constexpr int kStagedBytes =
      kStaged ? kTokens * kChunk<Element> * static_cast<int>(sizeof(float)) : 0;
  const auto kernel = RouterKernel<Element, kTokens, kCluster, kAtOnce>;
  if constexpr (kStaged) {
    // With what is static it is more than a launch may have unasked.
    Check(
        cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kStagedBytes),
        "Router");
  }
  Launch(kernel,
         {.grid = dim3(clusters * kCluster),
          .threads = kThreads,
          .shared_bytes = kStagedBytes,
          .cluster = kCluster},
         options, "Router", a);
}

// Few tokens spread; several of a cluster, or of a block, read the weights
// once.
template <typename Element>
void Run(const Arguments& a, const LaunchOptions& options) {
  if (a.tokens <= 16) return RunShape<Element, 1, 8, 1>(a, options);
  if (a.tokens <= 64) return RunShape<Element, 4, 8, 2>(a, options);
  if (a.tokens <= 512) return RunShape<Element, 8, 8, 2>(a, options);
  return RunShape<Element, 8, 1, 8>(a, options);
}

}  // namespace

void Router(const cpu::RouterOptions& router, WeightDtype dtype,
            const void* weight, int64_t hidden, const RouterInput& x,
            int64_t tokens, int32_t* ids, float* weights,
            const ExpertPlan& plan, const LaunchOptions& options, int tile,
            const float* correction) {
  if (tokens == 0) return;
  if (tile == 0) tile = ExpertTile(tokens, router.top_k, router.experts);
  const Arguments a = {.options = router,
                       .weight = weight,
                       .hidden = hidden,
                       .x = x.x,
                       .roots = x.roots,
                       .gain = x.gain,
                       .tokens = static_cast<int>(tokens),
                       .ids = ids,
                       .weights = weights,
                       .plan = plan,
                       .tile = tile,
                       .correction = correction,
                       .gate = options.gate};
  if (PromptRouterTakes(a)) {
    PromptRouter(a, dtype, options);
  } else if (dtype == WeightDtype::kBf16) {
    Run<__nv_bfloat16>(a, options);
  } else {
    Run<float>(a, options);
  }
}

}  // namespace invar::cuda
