// MlaAttention for many tokens of a prompt: four neighbouring tokens share each
// tile of cached rows. The arithmetic is mla_attention.cu's, product by
// product.
//
// A unit of work is four tokens' 16 heads, the 64 rows of warpgroup products:
// warp w of each warpgroup has token w. One warpgroup scores a tile, Q K^T, and
// makes its weights, while two sum the tile before it, P V, 256 latents each; a
// fourth copies. Tiles come as operands, made once a step (StageKernel):
// 16-bit, swizzled, K in the order of operands.cuh.
//
// A block stays on its multiprocessor and takes one unit after the other, the
// longest first: the next one's queries and first tiles come, and are scored,
// while the sums of the last are stored.
#include <algorithm>

#include "kernels/cuda/free_split.h"
#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/prompt_values.cuh"

namespace invar::cuda {
namespace prompt {
namespace {

// One thread copies all that the block reads.
__device__ void Produce(const Arguments& a, Shared& shared) {
  Place place;
  int index = blockIdx.x;
  for (int n = 0;; ++n) {
    Unit unit;
    unit.index = index < a.units ? index : -1;
    const int first_token = FirstToken(a, index);
    int next = 0;
    if (unit.index >= 0) {
      next = gridDim.x + atomicAdd(a.next_unit, 1);
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
        const bool real = first_token + i < a.places.tokens;
        unit.tables[i] = real ? a.places.tables[first_token + i] : -1;
        unit.positions[i] = real ? a.places.positions[first_token + i] : -1;
      }
    }
    BarrierWait(&shared.scored_all, n % 2 ^ 1);
    shared.unit = unit;
    if (unit.index < 0) {
      BarrierArrive(&shared.asked);
      return;
    }
    BarrierExpect(&shared.asked, kPromptTileBytes);
    CopyBulk(shared.query,
             a.query.tiles + (int64_t{first_token / kTokens} * a.head_groups +
                              FirstHead(a, index) / kHeads) *
                                 kPromptTileBytes,
             kPromptTileBytes, &shared.asked);
    shared.unit.ForEachSequence([&](int table, int tiles, bool) {
      for (int tile = 0; tile < tiles; ++tile, ++place.tile) {
        BarrierWait(&shared.empty[place.slot()], place.phase() ^ 1);
        const std::byte* const from =
            a.tiles + int64_t{table + tile} * kPromptTileBytes;
        for (int part = 0; part < kParts; ++part) {
          uint64_t* const full = &shared.full[place.slot()][part];
          BarrierExpect(full, kPartBytes);
          CopyBulk(shared.rows[place.slot()] + part * kPartBytes,
                   from + part * kPartBytes, kPartBytes, full);
        }
      }
    });
    index = next;
  }
}

// A thread's part of the scores of its warp's token, of heads g and g + 8.
template <typename Code>
struct Scores {
  using Operand = typename Code::Operand;
  static constexpr int kValues = kTile / 2;  // a thread has of a tile

  Shared& shared;
  int position;     // of the warp's token, or -1
  float factor[2];  // of its scores
  float reference[2];
  float even[kValues];
  float odd[kValues];

  __device__ explicit Scores(Shared& shared) : shared(shared) {}

  // even, odd = the scores of a tile, its steps two chains.
  __device__ void Multiply(const Place& place) {
    const uint64_t query = TileDescriptor(Unknown(SharedAddress(shared.query)));
    const uint64_t keys =
        TileDescriptor(Unknown(SharedAddress(shared.rows[place.slot()])));
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (s % kPartSteps == 0) {
        BarrierWait(&shared.full[place.slot()][s / kPartSteps], place.phase());
        ProductFence();
      }
      const int at = (s / 4 * kBlockBytes + s % 4 * kProductBytes) / 16;
      Product<FormatOf<Operand>, kTile>::Run(s % 2 == 0 ? even : odd,
                                             query + at, keys + at, s >= 2);
    }
    ProductCommit();
    ProductWait<0>();
  }

  // The scores of tile `tile` become its weights, once those of the tile before
  // it, of which there are `before`, have been taken.
  __device__ void Exponentials(int tile, int before, const Step& step) {
    const int lane = threadIdx.x % 32;
    const int warp = GroupWarp();
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const int row = tile * kTile + FragmentToken(lane, i);
      const int h = i / 2 % 2;
      const float score = even[i] + odd[i];
      even[i] = row <= position ? score * factor[h] : -INFINITY;
      largest[h] = fmaxf(largest[h], even[i]);
    }
    const bool has_rows = tile * kTile <= position;
    float rescale[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      largest[h] =
          fmaxf(largest[h], __shfl_xor_sync(0xffffffff, largest[h], 1));
      largest[h] =
          fmaxf(largest[h], __shfl_xor_sync(0xffffffff, largest[h], 2));
      const float next = NextReference(reference[h], largest[h]);
      // A tile past the token leaves all as it was.
      rescale[h] = has_rows ? RescaleFactor(reference[h], next) : 1.0f;
      reference[h] = next;
    }
    const uint32_t keep = has_rows ? 0xffffffff : 0;
    uint32_t parts[kTile / 16][4];
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const float offset = reference[p % 2] - kWeightShift<Operand>;
        parts[s][p] =
            keep & Pack<Operand>(Exp2(even[8 * s + 2 * p] - offset),
                                 Exp2(even[8 * s + 2 * p + 1] - offset));
      }
    }
    BarrierWait(&shared.taken, before % 2 ^ 1);
#pragma unroll
    for (int s = 0; s < kTile / 16; ++s) {
      shared.weights[warp][s][lane] = {parts[s][0], parts[s][1], parts[s][2],
                                       parts[s][3]};
    }
    if (lane % 4 == 0) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = 16 * warp + lane / 4 + 8 * h;
        shared.rescale[row] = rescale[h];
        shared.reference[row] = reference[h];
      }
    }
    Publish(step);
  }

  __device__ void Publish(const Step& step) {
    if (threadIdx.x % 32 == 0) shared.steps[GroupWarp()] = step;
    BarrierArrive(&shared.scored);
  }

  // All tiles of the unit's sequences, `place` on.
  __device__ void Walk(const Arguments& a, Place& place) {
    const int token_table = shared.unit.tables[GroupWarp()];
    const int token_position = shared.unit.positions[GroupWarp()];
    const int unit = shared.unit.index;
    shared.unit.ForEachSequence([&](int table, int tiles, bool is_last) {
      position = token_table == table ? token_position : -1;
      int split = -1;
      int end = 0;
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile, ++place.tile) {
        if (tile == end) {
          end = a.cut.Begin(++split + 1);
          reference[0] = reference[1] = -INFINITY;
        }
        Step step = {unit, 0};
        if (tile + 1 == end || tile + 1 == tiles) {
          step.flags = kSplitEnds |
                       (a.cut.Begin(split) * kTile <= position ? kHasRows : 0) |
                       (split == 0 ? kIsFirstSplit : 0) |
                       (position < end * kTile ? kIsLastSplit : 0);
        }
        Multiply(place);
        if (is_last && tile + 1 == tiles) BarrierArrive(&shared.scored_all);
        Exponentials(tile, place.tile, step);
      }
    });
  }
};

// A block a multiprocessor.
template <typename Code>
__global__ void __launch_bounds__(kThreads, 1)
    PromptAttentionKernel(const __grid_constant__ Arguments a) {
  extern __shared__ std::byte memory[];
  // TileAligned, written out: by a call of it more registers spill.
  auto& shared = *reinterpret_cast<Shared*>(
      memory + (1024 - SharedAddress(memory) % 1024) % 1024);
  AllowNextKernel();
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      for (uint64_t& part : shared.full[i]) BarrierInit(&part, 1);
      BarrierInit(&shared.empty[i], kValueThreads);
    }
    BarrierInit(&shared.asked, 1);
    BarrierInit(&shared.scored_all, 128);
    BarrierInit(&shared.scored, 128);
    BarrierInit(&shared.taken, kValueThreads);
    BarrierInitFence();
  }
  __syncthreads();
  WaitForPriorKernel();
  const int lane = threadIdx.x % 32;
  if (Group() == kGroups) {
    ReduceRegisters<kProducerRegisters>();
    if (threadIdx.x % 128 == 0) Produce(a, shared);
  } else if (Group() == 0) {
    ReduceRegisters<kScoreRegisters>();
    Scores<Code> scores(shared);
    Place place;
    for (int n = 0;; ++n) {
      BarrierWait(&shared.asked, n % 2);
      const int unit = shared.unit.index;
      if (unit < 0) break;
      const int64_t token = min(FirstToken(a, unit) + GroupWarp(),
                                static_cast<int>(a.places.tokens) - 1);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int head = FirstHead(a, unit) + lane / 4 + 8 * h;
        scores.factor[h] =
            a.scale_log2 /
            a.query.scales[token * kHeads * a.head_groups + head];
      }
      scores.Walk(a, place);
    }
    BarrierWait(&shared.taken, place.tile % 2 ^ 1);
    scores.Publish({-1, 0});
  } else {
    RaiseRegisters<kValueRegisters>();
    Values<Code> values(shared, a, Group() - 1);
    int finished = 0;
    for (Place place;;) {
      values.Clear();
#pragma unroll 1
      do {
        values.Take(place.tile);
        if (values.step.unit < 0) return;
        values.Rescale();
        values.Multiply(shared.rows[place.slot()]);
        BarrierArrive(&shared.empty[place.slot()]);
        ++place.tile;
      } while (!(values.step.flags & kSplitEnds));
      if (!(values.step.flags & kHasRows)) continue;
      values.Merge();
      if (!(values.step.flags & kIsLastSplit)) continue;
      if (a.weights == WeightDtype::kFp8E4m3) {
        values.template Finish<E4m3>(finished);
      } else if (a.weights == WeightDtype::kFp16) {
        values.template Finish<Fp16>(finished);
      } else {
        values.template Finish<Bf16>(finished);
      }
      ++finished;
    }
  }
}

// Behind the tiles.
constexpr int64_t kCounterBytes = 128;
int* NextUnit(int64_t blocks, std::byte* workspace) {
  return reinterpret_cast<int*>(workspace + blocks * kPromptTileBytes);
}

}  // namespace
}  // namespace prompt

int64_t PromptAttentionBytes(int64_t blocks) {
  return blocks * kPromptTileBytes + prompt::kCounterBytes +
         Multiprocessors() * (prompt::kMergedFours * int64_t{sizeof(float4)});
}

void StagePrompts(const LaunchOptions& options, const TokenPlaces& places,
                  int64_t blocks, const KvLayer& cache, std::byte* workspace) {
  if (places.tokens == 0) return;
  DispatchKv(cache.dtype, [&]<typename Code>() {
    Launch(StageKernel<Code>,
           {.grid = dim3(static_cast<unsigned>(blocks), kStageParts),
            .threads = kStageThreads},
           options, "StagePrompts", places,
           static_cast<const std::byte*>(cache.data), workspace,
           prompt::NextUnit(blocks, workspace));
  });
}

void PromptAttention(const LaunchOptions& options, const TokenPlaces& places,
                     int64_t blocks, const PackedQueries& query,
                     const HeadProjection& v, float scale, const KvLayer& cache,
                     std::byte* workspace, const PackedAttended& out,
                     const AttentionSplits& cut) {
  constexpr float kLog2E = 0x1.715476p+0f;
  if (places.tokens == 0) return;
  const auto heads = static_cast<int>(v.heads);
  const int head_groups = (heads + prompt::kHeads - 1) / prompt::kHeads;
  const prompt::Arguments a = {
      .places = places,
      .query = query,
      .heads = heads,
      .head_groups = head_groups,
      .units = static_cast<int>((places.tokens + prompt::kTokens - 1) /
                                prompt::kTokens) *
               head_groups,
      .scale_log2 = scale * kLog2E,
      .tiles = workspace,
      .merged = reinterpret_cast<float4*>(
          workspace + blocks * kPromptTileBytes + prompt::kCounterBytes),
      .next_unit = prompt::NextUnit(blocks, workspace),
      .cut = cut,
      .weights = v.dtype,
      .factors = v.input_scales,
      .out = out};
  DispatchKv(cache.dtype, [&]<typename Code>() {
    Launch(prompt::PromptAttentionKernel<Code>,
           {.grid = dim3(std::min(a.units, Multiprocessors())),
            .threads = prompt::kThreads,
            .shared_bytes = prompt::kSharedBytes},
           options, "PromptAttention", a);
  });
}

void PromptAttention(const LaunchOptions& options, const TokenPlaces& places,
                     int64_t blocks, const PackedQueries& query,
                     const HeadProjection& v, float scale, const KvLayer& cache,
                     std::byte* workspace, const PackedAttended& out) {
  PromptAttention(options, places, blocks, query, v, scale, cache, workspace,
                  out, kAttentionSplits);
}

}  // namespace invar::cuda
