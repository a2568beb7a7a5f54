// The router of many tokens: the same additions as router.cu's.
//
// A block has sixteen tokens and takes 64 experts at a time, a warp eight by
// eight of them; weights and inputs come through shared memory, a ring of steps
// of 128 along K ahead. The plan is a kernel of its own, a block an expert,
// which counts all slots and places its own.
#include <algorithm>

#include "kernels/cuda/divisor.cuh"
#include "kernels/cuda/gemm_async.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/router.cuh"

namespace invar::cuda {
namespace {

constexpr int kFewestTokens = 513;  // free, since the bits are the same

constexpr int kTokens = 16;   // of a block
constexpr int kExperts = 64;  // of a block at a time
constexpr int kEdge = 8;      // tokens, and experts, of a warp
constexpr int kWarps = kTokens / kEdge * (kExperts / kEdge);
constexpr int kThreads = 32 * kWarps;
constexpr int kStep = 128;  // along K: four values a lane
constexpr int kStages = 4;
static_assert(kWarps == kTokens, "a warp chooses for a token");

template <typename Element>
struct Stage {
  float x[kTokens][kStep];
  Element weights[kExperts][kStep];
};

// What a thread copies in each step: one chunk of the inputs, and one of every
// kRowsAtOnce-th expert from `first` on. What lies past K's end, or past the
// last expert, is not read by the products. All that does not change from step
// to step is found once: looked for in each, it had been a third of the work.
template <typename Element>
struct Copies {
  static constexpr int kChunk = 16 / static_cast<int>(sizeof(Element));
  static constexpr int kRowChunks = kStep / 4;
  static constexpr int kWeightChunks = kStep / kChunk;
  static constexpr int kRowsAtOnce = kThreads / kWeightChunks;
  static constexpr int kWeights = kExperts / kRowsAtOnce;
  static_assert(kTokens * kRowChunks == kThreads &&
                kExperts % kRowsAtOnce == 0);

  const float* x;
  const Element* weights[kWeights];
  int hidden;
  int x_at;
  int weight_at;
  const float* gain;  // null: inputs are multiplied as they come
  Divisor root;       // of the row

  __device__ static int64_t Token(const RouterArguments& a, int first_token) {
    return min(first_token + static_cast<int>(threadIdx.x) / kRowChunks,
               static_cast<int>(a.tokens) - 1);
  }
  __device__ Copies(const RouterArguments& a, int first_token, int first)
      : hidden(static_cast<int>(a.hidden)),
        x_at(threadIdx.x % kRowChunks * 4),
        weight_at(threadIdx.x % kWeightChunks * kChunk),
        gain(a.gain),
        root(a.gain == nullptr ? 1.0f : a.roots[Token(a, first_token)]) {
    x = a.x + Token(a, first_token) * a.hidden;
#pragma unroll
    for (int i = 0; i < kWeights; ++i) {
      const int64_t expert =
          min(first + Row(i), static_cast<int>(a.options.experts) - 1);
      weights[i] = static_cast<const Element*>(a.weight) + expert * a.hidden;
    }
  }
  __device__ static int Row(int i) {
    return threadIdx.x / kWeightChunks + i * kRowsAtOnce;
  }
  __device__ void Start(int step, Stage<Element>& stage) const {
    const int k = step * kStep;
    CopyAsync(SharedAddress(&stage.x[threadIdx.x / kRowChunks][x_at]),
              x + min(k + x_at, hidden - 4), true);
    const int at = min(k + weight_at, hidden - kChunk);
#pragma unroll
    for (int i = 0; i < kWeights; ++i) {
      CopyAsync(SharedAddress(&stage.weights[Row(i)][weight_at]),
                weights[i] + at, true);
    }
  }
  // What the thread multiplies its inputs of a step with, and does so once they
  // have come. With a gain.
  __device__ float4 Gain(int step) const {
    return Load4(gain + min(step * kStep + x_at, hidden - 4));
  }
  __device__ void Norm(const float4& gain, Stage<Element>& stage) const {
    auto& v =
        *reinterpret_cast<float4*>(&stage.x[threadIdx.x / kRowChunks][x_at]);
    v = Normed(root, v, gain);
  }
};

// sum[e][t] += four products of the lane.
template <typename Element>
__device__ void AddStep(const Stage<Element>& stage, int token, int expert,
                        float (&sum)[kEdge * kEdge]) {
  const int at = threadIdx.x % 32 * 4;
  float4 x[kEdge];
#pragma unroll
  for (int t = 0; t < kEdge; ++t) {
    x[t] = *reinterpret_cast<const float4*>(&stage.x[token + t][at]);
  }
#pragma unroll
  for (int e = 0; e < kEdge; ++e) {
    const float4 w = ToFloat4(*reinterpret_cast<const Four<Element>*>(
        &stage.weights[expert + e][at]));
#pragma unroll
    for (int t = 0; t < kEdge; ++t) {
      float& s = sum[e * kEdge + t];
      s = fmaf(w.x, x[t].x, s);
      s = fmaf(w.y, x[t].y, s);
      s = fmaf(w.z, x[t].z, s);
      s = fmaf(w.w, x[t].w, s);
    }
  }
}

// WarpSum of all 64 at once: at each step half of those that a lane has left go
// to the lane that adds them. Lane j then has the sums 2 j and 2 j + 1.
template <int kDistance = 16>
__device__ void WarpSums(float (&sum)[kEdge * kEdge]) {
  static_assert(kEdge * kEdge == 64);
  const bool upper = (threadIdx.x & kDistance) != 0;
#pragma unroll
  for (int i = 0; i < 2 * kDistance; ++i) {
    const float mine = upper ? sum[i + 2 * kDistance] : sum[i];
    const float other = upper ? sum[i] : sum[i + 2 * kDistance];
    sum[i] = mine + __shfl_xor_sync(kAll, other, kDistance);
  }
  if constexpr (kDistance > 1) WarpSums<kDistance / 2>(sum);
}

// scores[t][e] = the logits of the block's tokens and of 64 experts.
template <typename Element>
__device__ void Logits(const RouterArguments& a, int first_token, int first,
                       Stage<Element>* stages, float* scores) {
  const Copies<Element> copies(a, first_token, first);
  const int experts = static_cast<int>(a.options.experts);
  const int steps = static_cast<int>((a.hidden + kStep - 1) / kStep);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int token = warp % (kTokens / kEdge) * kEdge;
  const int expert = warp / (kTokens / kEdge) * kEdge;
  float sum[kEdge * kEdge] = {};
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) copies.Start(s, stages[s]);
    CommitCopies();
  }
#pragma unroll 1
  for (int s = 0; s < steps; ++s) {
    float4 gain;
    if (copies.gain != nullptr) gain = copies.Gain(s);
    WaitForCopies<kStages - 2>();
    if (copies.gain != nullptr) copies.Norm(gain, stages[s % kStages]);
    __syncthreads();  // step s has come, and s - 1 has been read
    const int next = s + kStages - 1;
    if (next < steps) copies.Start(next, stages[next % kStages]);
    CommitCopies();
    if (s * kStep + lane * 4 < a.hidden) {
      AddStep(stages[s % kStages], token, expert, sum);
    }
  }
  WarpSums(sum);
  // Sums 2 j and 2 j + 1 are of one expert and of neighbouring tokens.
  const int e = first + expert + 2 * lane / kEdge;
  const int t = token + 2 * lane % kEdge;
  if (e < experts) {
    scores[t * experts + e] = sum[0];
    scores[(t + 1) * experts + e] = sum[1];
  }
  __syncthreads();
}

template <typename Element>
__global__ void __launch_bounds__(kThreads, 1)
    PromptRouterKernel(const __grid_constant__ RouterArguments a) {
  extern __shared__ std::byte memory[];
  auto* const stages = reinterpret_cast<Stage<Element>*>(memory);
  const int experts = static_cast<int>(a.options.experts);
  float* const scores = reinterpret_cast<float*>(stages + kStages);
  float* const choice = scores + kTokens * experts;
  const int first_token = blockIdx.x * kTokens;
  AllowNextKernel();
  WaitForPriorKernel();
  for (int first = 0; first < experts; first += kExperts) {
    Logits(a, first_token, first, stages, scores);
  }
  const int warp = threadIdx.x / 32;
  if (first_token + warp < a.tokens) {
    ChooseToken(a, first_token + warp, scores + warp * experts,
                choice + warp * experts);
  }
}

// ---- The plan ---------------------------------------------------------------

constexpr int kPlanThreads = 512;
constexpr int kPlanWarps = kPlanThreads / 32;
constexpr int kRun = 128;  // slots that a warp looks at together: four a lane

// Four neighbouring slots' experts; past the end: none.
__device__ int4 LoadIds(const RouterArguments& a, int slot, int slots) {
  if (slot + 4 <= slots) return *reinterpret_cast<const int4*>(a.ids + slot);
  int4 ids = {-1, -1, -1, -1};
  if (slot < slots) ids.x = a.ids[slot];
  if (slot + 1 < slots) ids.y = a.ids[slot + 1];
  if (slot + 2 < slots) ids.z = a.ids[slot + 2];
  return ids;
}

// Block e places the slots of expert e, in their order, after those of the
// experts before it. The block that finishes last cuts all groups into tiles;
// until then each expert's first place and count lie where the work will be.
__global__ void __launch_bounds__(kPlanThreads)
    PromptPlanKernel(const RouterArguments a) {
  __shared__ int less[kPlanWarps];
  __shared__ int same[kPlanWarps];
  __shared__ int32_t total[kMaxExperts];
  __shared__ bool last;
  AllowNextKernel();
  WaitForPriorKernel();
  const int expert = blockIdx.x;
  const int slots = static_cast<int>(a.tokens * a.options.top_k);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  // A warp has a run of neighbouring slots.
  const int run = (slots + kPlanWarps * kRun - 1) / (kPlanWarps * kRun) * kRun;
  const int first = warp * run;
  const int end = min(first + run, slots);
  int my_less = 0;
  int my_same = 0;
#pragma unroll 4
  for (int slot = first + 4 * lane; slot < end; slot += kRun) {
    const int4 ids = LoadIds(a, slot, slots);
    for (const int e : {ids.x, ids.y, ids.z, ids.w}) {
      my_less += e >= 0 && e < expert;
      my_same += e == expert;
    }
  }
  my_less = __reduce_add_sync(kAll, my_less);
  my_same = __reduce_add_sync(kAll, my_same);
  if (lane == 0) {
    less[warp] = my_less;
    same[warp] = my_same;
  }
  __syncthreads();
  int begin = 0;
  int count = 0;
  for (int w = 0; w < kPlanWarps; ++w) begin += less[w];
  int place = begin;
  for (int w = 0; w < kPlanWarps; ++w) {
    if (w < warp) place += same[w];
    count += same[w];
  }
#pragma unroll 4
  for (int base = first; base < end; base += kRun) {
    const int slot = base + 4 * lane;
    const int4 four =
        slot < end ? LoadIds(a, slot, slots) : int4{-1, -1, -1, -1};
    const int ids[4] = {four.x, four.y, four.z, four.w};
    int before = 0;
    int all = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned hits = __ballot_sync(kAll, ids[i] == expert);
      before += __popc(hits & ((1u << lane) - 1));
      all += __popc(hits);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (ids[i] == expert) a.plan.order[place + before++] = slot + i;
    }
    place += all;
  }
  if (threadIdx.x == 0) {
    a.plan.work[expert] = {expert, begin, count, 0};
    __threadfence();
    last = atomicAdd(&a.plan.counts[1], 1) == static_cast<int>(gridDim.x) - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  const int experts = static_cast<int>(a.options.experts);
  for (int e = threadIdx.x; e < experts; e += kPlanThreads) {
    total[e] = __ldcg(&a.plan.work[e].count);
  }
  __syncthreads();
  if (threadIdx.x == 0) a.plan.counts[1] = 0;
  if (warp == 0) CutIntoTiles(a, total);
}

template <typename Element>
void Run(const RouterArguments& a, const LaunchOptions& options) {
  const int64_t choices = 2 * kTokens * a.options.experts;
  Launch(PromptRouterKernel<Element>,
         {.grid = dim3((a.tokens + kTokens - 1) / kTokens),
          .threads = kThreads,
          .shared_bytes = static_cast<int>(kStages * sizeof(Stage<Element>) +
                                           choices * sizeof(float))},
         options, "Router", a);
}

}  // namespace

bool RouterNorms(int64_t tokens, int64_t hidden) {
  // Rows come in pieces of 16 bytes.
  return tokens >= kFewestTokens && hidden % 8 == 0;
}

bool PromptRouterTakes(const RouterArguments& a) {
  return RouterNorms(a.tokens, a.hidden);
}

void PromptRouter(const RouterArguments& a, WeightDtype dtype,
                  const LaunchOptions& options) {
  if (dtype == WeightDtype::kBf16) {
    Run<__nv_bfloat16>(a, options);
  } else {
    Run<float>(a, options);
  }
  Launch(PromptPlanKernel,
         {.grid = dim3(static_cast<unsigned>(a.options.experts)),
          .threads = kPlanThreads},
         LaunchOptions{options.stream, /*overlap=*/true}, "Router's plan", a);
}

}  // namespace invar::cuda
