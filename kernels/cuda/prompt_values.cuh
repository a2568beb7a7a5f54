// The warpgroups of prompt_attention.cu that sum: P V of a tile, the merge of
// splits, and what leaves for AbsorbValue.
#ifndef INVAR_KERNELS_CUDA_PROMPT_VALUES_CUH_
#define INVAR_KERNELS_CUDA_PROMPT_VALUES_CUH_

#include "kernels/cuda/prompt_units.cuh"

namespace invar::cuda::prompt {

// A thread's part of the sums of its warp's token, of heads g and g + 8 and of
// its group's latents.
template <typename Code>
struct Values {
  using Operand = typename Code::Operand;
  static constexpr int kFours = kLatents / 16;  // that it has of a head

  Shared& shared;
  const Arguments& a;
  int group;  // of those that sum
  Step step;
  uint4 weights[kTile / 16];
  float reference[2];
  float rescale[2];
  float sum[4];
  float out[2][64];
  MergedSplits heads[2];

  __device__ Values(Shared& shared, const Arguments& a, int group)
      : shared(shared), a(a), group(group) {}

  // What was scored as tile number `tile` of the block's.
  __device__ void Take(int tile) {
    const int lane = threadIdx.x % 32;
    const int warp = GroupWarp();
    BarrierWait(&shared.scored, tile % 2);
    step = shared.steps[warp];
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
      weights[s] = shared.weights[warp][s][lane];
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      rescale[h] = shared.rescale[16 * warp + lane / 4 + 8 * h];
      reference[h] = shared.reference[16 * warp + lane / 4 + 8 * h];
    }
    BarrierArrive(&shared.taken);
  }

  // out += P V for the group's latents.
  __device__ void Multiply(const std::byte* rows) {
    constexpr uint32_t kOnes =
        std::is_same_v<Operand, __half> ? 0x3c003c00 : 0x3f803f80;
    constexpr int kHalf = 128 / kBlockColumns * kBlockBytes / 16;
    const uint64_t values = TransposedDescriptor(Unknown(
        SharedAddress(rows) + group * kLatents / kBlockColumns * kBlockBytes));
    ProductFence();
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
      const uint64_t at = values + s * (16 * kTileRowBytes / 16);
      ValueProduct<Operand>(out[0], weights[s], at);
      ValueProduct<Operand>(out[1], weights[s], at + kHalf);
    }
    ProductCommit();
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
      Mma<Operand>(sum, weights[s], kOnes, kOnes);
    }
    ProductWait<0>();
  }

  __device__ void Clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = 0.0f;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 64; ++i) out[n][i] = 0.0f;
    }
  }

  __device__ void Rescale() {
    // Times one leaves all as it is.
    if (__all_sync(0xffffffff, rescale[0] == 1.0f && rescale[1] == 1.0f)) {
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] *= rescale[i / 2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 64; ++i) out[n][i] *= rescale[i / 2 % 2];
    }
  }

  // Merges what is summed of a split with those before it, which wait in
  // memory that the L2 cache holds: registers have no room for them.
  __device__ __forceinline__ void Merge() {
    const bool is_first = step.flags & kIsFirstSplit;
    const bool is_last = step.flags & kIsLastSplit;
#pragma unroll
    for (int h = 0; h < 2; ++h)
      heads[h].Add(is_first, reference[h], sum[2 * h]);
    if (is_first && !is_last) {
#pragma unroll
      for (int j = 0; j < 2 * kFours; ++j) __stcg(Merged(j), Four(j));
    } else if (!is_first && !is_last) {
      if (!__all_sync(0xffffffff, heads[0].old_factor == 1.0f &&
                                      heads[1].old_factor == 1.0f)) {
        RescaleMerged();
      }
#pragma unroll
      for (int j = 0; j < 2 * kFours; ++j) {
        const MergedSplits& head = heads[j / kFours];
        const float4 x = Four(j);
        AddInMemory(Merged(j), {head.Share(x.x), head.Share(x.y),
                                head.Share(x.z), head.Share(x.w)});
      }
    } else if (!is_first) {
      ForEachMerged([&](int j, const float4& x) {
        Sum(j / kFours, j % kFours, 0) = x.x;
        Sum(j / kFours, j % kFours, 1) = x.y;
        Sum(j / kFours, j % kFours, 2) = x.z;
        Sum(j / kFours, j % kFours, 3) = x.w;
      });
    }
  }
  // By their old factors, which nearly always are one.
  __device__ void RescaleMerged() {
#pragma unroll 1
    for (int j = 0; j < 2 * kFours; ++j) {
      const float factor =
          j < kFours ? heads[0].old_factor : heads[1].old_factor;
      const float4 old = __ldcg(Merged(j));
      __stcg(Merged(j),
             {old.x * factor, old.y * factor, old.z * factor, old.w * factor});
    }
  }
  // f(j, what Four(j) and Merged(j) come to together).
  template <typename Function>
  __device__ __forceinline__ void ForEachMerged(Function f) {
    constexpr int kAhead = 8;  // asked for ahead
    float4 old[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) old[j] = __ldcg(Merged(j));
#pragma unroll
    for (int j = 0; j < 2 * kFours; ++j) {
      const MergedSplits& head = heads[j / kFours];
      const float4 o = old[j % kAhead];
      const float4 x = Four(j);
      if (j + kAhead < 2 * kFours) old[j % kAhead] = __ldcg(Merged(j + kAhead));
      f(j, {head.Merge(false, x.x, o.x), head.Merge(false, x.y, o.y),
            head.Merge(false, x.z, o.z), head.Merge(false, x.w, o.w)});
    }
  }
  __device__ float4 Four(int j) {
    const int h = j / kFours;
    const int m = j % kFours;
    return {Sum(h, m, 0), Sum(h, m, 1), Sum(h, m, 2), Sum(h, m, 3)};
  }
  __device__ float4* Merged(int j) const {
    return a.merged + int64_t{blockIdx.x} * kMergedFours + group * 128 +
           threadIdx.x % 128 + j * kValueThreads;
  }

  // Of head g + 8 h the sum of latent Column(m) + i.
  __device__ __forceinline__ float& Sum(int h, int m, int i) {
    return out[m / (kFours / 2)]
              [8 * (m % (kFours / 2)) + 2 * h + i / 2 * 4 + i % 2];
  }
  __device__ int Column(int m) const {
    constexpr int kElements = 16 / Code::kBytes;
    constexpr int kRunSteps = kElements / 4;
    return group * kLatents + m / kRunSteps * (4 * kElements) +
           kElements * (threadIdx.x % 4) + m % kRunSteps * 4;
  }

  // The merged sums become means, and these operands beside `Weight`s: as
  // PackRow of operands.cuh rounds them.
  template <typename Weight>
  __device__ __forceinline__ void Finish(int unit_count) {
    using Rounded = typename Weight::Operand;
    const int lane = threadIdx.x % 32;
    const int warp = GroupWarp();
    const int64_t token = FirstToken(a, step.unit) + warp;
    const int first_head = FirstHead(a, step.unit) + lane / 4;
    float(&largest)[kValueGroups][kRows] = shared.largest[unit_count % 2];
    float most[2] = {0.0f, 0.0f};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float inverse = heads[h].Inverse();
      const int head = min(first_head + 8 * h, a.heads - 1);
#pragma unroll
      for (int m = 0; m < kFours; ++m) {
        float4 factors = {1.0f, 1.0f, 1.0f, 1.0f};
        if (a.factors != nullptr) {
          factors = *reinterpret_cast<const float4*>(
              a.factors + head * kLatent + Column(m));
        }
        const auto scale = [&](int i, float factor) {
          float& x = Sum(h, m, i);
          x *= inverse;
          if (a.factors != nullptr) x *= factor;
          most[h] = fmaxf(most[h], fabsf(x));
        };
        scale(0, factors.x);
        scale(1, factors.y);
        scale(2, factors.z);
        scale(3, factors.w);
      }
      most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffff, most[h], 1));
      most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffff, most[h], 2));
      if (lane % 4 == 0) largest[group][16 * warp + lane / 4 + 8 * h] = most[h];
    }
    // The warps of both groups that have the token.
    BarrierSync(1 + warp, 64);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = first_head + 8 * h;
      const float scale = OperandScale<Rounded>(
          fmaxf(most[h], largest[1 - group][16 * warp + lane / 4 + 8 * h]));
      if (head >= a.heads) continue;
      const int64_t row = head * a.places.tokens + token;
      if (group == 0 && lane % 4 == 0) a.out.scales[row] = scale;
#pragma unroll
      for (int m = 0; m < kFours; m += 2) {
        const auto pack = [&](int n, int i) {
          return Pack<Rounded>(Sum(h, n, i) * scale, Sum(h, n, i + 1) * scale);
        };
        *AttendedPiece<Weight>(a.out.rows + row * kAttendedRowBytes,
                               Column(m)) = {pack(m, 0), pack(m, 2),
                                             pack(m + 1, 0), pack(m + 1, 2)};
      }
    }
  }
};

}  // namespace invar::cuda::prompt

#endif  // INVAR_KERNELS_CUDA_PROMPT_VALUES_CUH_
