// PromptAbsorbQuery: the query half of kv_b_proj for many tokens, rope, and the
// queries as prompt_attention.cu reads them.
//
// Weights are on the side with 64 rows, in the order in which latents lie in a
// packed query: so a thread has eights of a token's latents to store, and the
// few latents' scales to look up.
#include "kernels/cuda/prompt_absorb.cuh"
#include "kernels/cuda/wide_store.cuh"

namespace invar::cuda {
namespace prompt_absorb {
namespace {

constexpr int kTokens = 32;  // of a tile
constexpr int kGroups = 2;   // warpgroups of a worker
constexpr int kWorkerThreads = 128 * kGroups;
constexpr int kThreads = kWorkers * kWorkerThreads;
constexpr int kWarps = kWorkerThreads / 32;
constexpr int kWarpTokens = kTokens / kWarps;
constexpr int kGroupBlocks = kLatent / kProductRows / kGroups;
constexpr int kSums = kTokens / 2;  // a thread has of a row block
constexpr int kTokenBlockBytes = kTokens * kTileRowBytes;  // of columns
static_assert(kTokens == 32, "a lane finds the scale of one of them");

struct QueryShared {
  std::byte weights[kOperandBytes<kLatent, kNope>];
  std::byte inputs[kWorkers][kOperandBytes<kTokens, kNope>];
  std::byte staged[kWorkers][kOperandBytes<kTokens, kRow>];
  float row_scale[kLatent];  // of the weights' rows as they lie
  float undo[kWorkers][kTokens];
  // Of warps' latents, and of the rope.
  float largest[kWorkers][kWarps + 1][kTokens];
};
constexpr int kQueryBytes = static_cast<int>(sizeof(QueryShared)) + 1024;
static_assert(kQueryBytes <= 227 * 1024);

struct QueryArguments {
  HeadProjection k;
  TokenPlaces places;
  RopeAngles angles;
  const float* q;
  PackedQueries query;
};

// A thread's place in its worker.
__device__ int Thread() { return threadIdx.x % kWorkerThreads; }
__device__ int Warp() { return Thread() / 32; }
__device__ int Lane() { return threadIdx.x % 32; }

__host__ __device__ int64_t PackedHeadsOf(int64_t heads) {
  return (heads + kPackedHeads - 1) / kPackedHeads * kPackedHeads;
}

// A warp's largest of each x: their shuffles side by side.
__device__ void WarpMaxima(float (&x)[kWarpTokens]) {
#pragma unroll
  for (int step = 16; step >= 1; step /= 2) {
#pragma unroll
    for (int i = 0; i < kWarpTokens; ++i) {
      x[i] = fmaxf(x[i], __shfl_xor_sync(0xffffffff, x[i], step));
    }
  }
}

// What comes of a warp's tokens of a tile: a lane's pairs of each.
struct WarpQueries {
  static constexpr int kPairs = kNope / 64;
  const QueryArguments& a;
  const float2* row;  // of the head's first token, the lane's first pair
  uint32_t row_pairs;
  float2 nope[kWarpTokens][kPairs];
  float2 rope[kWarpTokens];
  float2 turn[kWarpTokens];  // cos and sin
  int position;              // of token lane % kWarpTokens

  __device__ explicit WarpQueries(const QueryArguments& a)
      : a(a),
        row(reinterpret_cast<const float2*>(a.q +
                                            blockIdx.x * (kNope + kRope)) +
            Lane()),
        row_pairs(static_cast<uint32_t>(a.k.heads) * ((kNope + kRope) / 2)) {}

  // Past the last token, that one again: nobody reads what comes of it.
  __device__ uint32_t Token(int tile, int i) const {
    return min(tile * kTokens + Warp() * kWarpTokens + i,
               static_cast<int>(a.places.tokens) - 1);
  }
  __device__ const float2* Row(int tile, int i) const {
    return row + static_cast<uint64_t>(Token(tile, i)) * row_pairs;
  }
  __device__ void LoadNope(int tile) {
#pragma unroll
    for (int i = 0; i < kWarpTokens; ++i) {
      const float2* const from = Row(tile, i);
#pragma unroll
      for (int p = 0; p < kPairs; ++p) nope[i][p] = from[32 * p];
    }
  }
  __device__ void LoadPositions(int tile) {
    position = a.places.positions[Token(tile, Lane() % kWarpTokens)];
  }
  // Of which the positions are here.
  __device__ void LoadRope(int tile) {
#pragma unroll
    for (int i = 0; i < kWarpTokens; ++i) {
      rope[i] = Row(tile, i)[kNope / 2];
      const int at =
          __shfl_sync(0xffffffff, position, i) * (kRope / 2) + Lane();
      turn[i] = {a.angles.cosines[at], a.angles.sines[at]};
    }
  }

  // As rows of the operand, times `factors` if there are any, and what undoes
  // their scales.
  template <typename Code>
  __device__ void StoreNope(const float* factors, std::byte* inputs,
                            float* undo) {
    using Operand = typename Code::Operand;
    float largest[kWarpTokens] = {};
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      float2 f = {1.0f, 1.0f};
      if (factors != nullptr) {
        f = reinterpret_cast<const float2*>(factors)[32 * p + Lane()];
      }
#pragma unroll
      for (int i = 0; i < kWarpTokens; ++i) {
        float2& x = nope[i][p];
        x = {x.x * f.x, x.y * f.y};
        largest[i] = fmaxf(largest[i], fmaxf(fabsf(x.x), fabsf(x.y)));
      }
    }
    WarpMaxima(largest);
#pragma unroll
    for (int i = 0; i < kWarpTokens; ++i) {
      const float scale = OperandScale<Operand>(largest[i]);
      const int row = Warp() * kWarpTokens + i;
      uint32_t* const to = OperandPair<Code, kTokens>(inputs, row, 2 * Lane());
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {  // each in a block of columns
        to[p * (kTokenBlockBytes / 4)] =
            Pack<Operand>(nope[i][p].x * scale, nope[i][p].y * scale);
      }
      if (Lane() == 0) undo[row] = a.k.scale * ScaleInverse(scale);
    }
  }

  // (a, b) -> (a cos - b sin, a sin + b cos); the tokens' largest to `largest`.
  __device__ void Rotate(float* largest) {
    float most[kWarpTokens];
#pragma unroll
    for (int i = 0; i < kWarpTokens; ++i) {
      const float2 v = rope[i];
      rope[i] = {v.x * turn[i].x - v.y * turn[i].y,
                 v.x * turn[i].y + v.y * turn[i].x};
      most[i] = fmaxf(fabsf(rope[i].x), fabsf(rope[i].y));
    }
    WarpMaxima(most);
    if (Lane() == 0) {
#pragma unroll
      for (int i = 0; i < kWarpTokens; ++i) {
        largest[Warp() * kWarpTokens + i] = most[i];
      }
    }
  }
};

using Sums = float[kGroupBlocks][kSums];

// sum = the group's rows of the weights times the tile's inputs: one chain of
// steps each.
template <typename Operand>
__device__ void BeginProducts(const std::byte* weights, const std::byte* inputs,
                              int group, Sums& sum) {
  const UniformDescriptor left(SharedAddress(weights) +
                               group * kGroupBlocks * kBlockBytes);
  const UniformDescriptor right(SharedAddress(inputs));
  ProductFence();
#pragma unroll
  for (int s = 0; s < kNope / 16; ++s) {
    const int step = s % 4 * kProductBytes / 16;
    const uint64_t b = right[s / 4 * (kTokenBlockBytes / 16) + step];
#pragma unroll
    for (int m = 0; m < kGroupBlocks; ++m) {
      const int block = s / 4 * (kLatent * kTileRowBytes) + m * kBlockBytes;
      Product<FormatOf<Operand>, kTokens>::Run(sum[m], left[block / 16 + step],
                                               b, s > 0);
    }
  }
  ProductCommit();
}

// Sums become latents. Returns the largest magnitude of one token's, of the
// warp's latents: of token LargestToken().
__device__ float FinishSums(const float* undo, const float* row_scale,
                            Sums& sum) {
  const int lane = Lane();
  float largest[kTokens / 4] = {};
#pragma unroll
  for (int m = 0; m < kGroupBlocks; ++m) {
    float row[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row[r] = row_scale[m * kProductRows + FragmentRow(Thread() % 128, 2 * r)];
    }
#pragma unroll
    for (int eight = 0; eight < kTokens / 8; ++eight) {
      const float2 of =
          *reinterpret_cast<const float2*>(undo + 8 * eight + 2 * (lane % 4));
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float* const two = &sum[m][4 * eight + 2 * r];
        two[0] = two[0] * of.x * row[r];
        two[1] = two[1] * of.y * row[r];
        float* const most = &largest[2 * eight];
        most[0] = fmaxf(most[0], fabsf(two[0]));
        most[1] = fmaxf(most[1], fabsf(two[1]));
      }
    }
  }
  // At each step half of what a lane has left goes to the lane that keeps it.
#pragma unroll
  for (int distance = 16; distance >= 4; distance /= 2) {
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < distance / 4; ++i) {
      const float mine = upper ? largest[i + distance / 4] : largest[i];
      const float other = upper ? largest[i] : largest[i + distance / 4];
      largest[i] = fmaxf(mine, __shfl_xor_sync(0xffffffff, other, distance));
    }
  }
  return largest[0];
}
__device__ int LargestToken() {
  const int value = Lane() / 4;
  return 8 * (value / 2) + 2 * (Lane() % 4) + value % 2;
}

// The latents times their tokens' scales, rounded, to `staged`; `scale` is that
// of token Lane().
template <typename Operand>
__device__ void StageLatents(float scale, int group, std::byte* staged,
                             Sums& sum) {
#pragma unroll
  for (int i = 0; i < kSums; i += 4) {
    const int token = FragmentToken(Thread(), i);
    const float of[2] = {__shfl_sync(0xffffffff, scale, token),
                         __shfl_sync(0xffffffff, scale, token + 1)};
#pragma unroll
    for (int m = 0; m < kGroupBlocks; ++m) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[m][i + j] *= of[j % 2];
    }
  }
#pragma unroll
  for (int m = 0; m < kGroupBlocks; ++m) {
    std::byte* const block =
        staged + (group * kGroupBlocks + m) * kTokenBlockBytes;
#pragma unroll
    for (int first = 0; first < kTokens; first += 16) {
      PlaceSixteenTokens<Operand>(
          [&](int token, int row) {
            return block + SwizzledChunk(token, row / 8);
          },
          first, sum[m]);
    }
  }
}

// Each row goes to the tile of its four tokens; 128 bytes a block of columns,
// which there are swizzled by another row number.
__device__ void StoreQueries(const PackedQueries& query, int first, int tokens,
                             int packed_heads, const std::byte* staged) {
  static_assert(kWorkerThreads == 8 * kTokens);
  const int chunk = Thread() % 8;
  const int row = Thread() / 8;
  const unsigned t = first + row;
  const unsigned h = blockIdx.x;
  if (t >= tokens) return;
  const int to_row = t % kPackedTokens * kPackedHeads + h % kPackedHeads;
  const unsigned tile =
      t / kPackedTokens * (packed_heads / kPackedHeads) + h / kPackedHeads;
  std::byte* const to = query.tiles + int64_t{tile} * kPromptTileBytes +
                        SwizzledChunk(to_row, chunk);
  const std::byte* const from = staged + SwizzledChunk(row, chunk);
#pragma unroll
  for (int block = 0; block < kRow / kBlockColumns; ++block) {
    *reinterpret_cast<uint4*>(to + block * kBlockBytes) =
        *reinterpret_cast<const uint4*>(from + block * kTokenBlockBytes);
  }
}

// grid (heads, blocks of each)
template <typename Code, typename Cached>
__global__ void __launch_bounds__(kThreads, 1)
    PromptQueryKernel(const __grid_constant__ QueryArguments a) {
  using Rounded = typename Cached::Operand;
  extern __shared__ std::byte memory[];
  auto& shared = *reinterpret_cast<QueryShared*>(TileAligned(memory));
  const int h = blockIdx.x;
  const int tokens = static_cast<int>(a.places.tokens);
  const int packed_heads = static_cast<int>(PackedHeadsOf(a.k.heads));
  const int tiles = (tokens + kTokens - 1) / kTokens;
  const int worker = threadIdx.x / kWorkerThreads;
  const int group = Thread() / 128;
  AllowNextKernel();
  StoreWeights<Code, kLatent, kNope, kThreads>(
      a.k.data + int64_t{h} * (kLatent * kNope * Code::kBytes), shared.weights,
      [](int latent) { return OperandPlace<Cached>(latent); });
  for (int i = threadIdx.x; i < kLatent; i += kThreads) {
    shared.row_scale[i] =
        a.k.row_scales == nullptr
            ? 1.0f
            : a.k.row_scales[h * kLatent + OperandColumn<Cached>(i)];
  }
  AsyncFence();
  __syncthreads();
  WaitForPriorKernel();

  std::byte* const inputs = shared.inputs[worker];
  std::byte* const staged = shared.staged[worker];
  auto& largest = shared.largest[worker];
  const float* const factors =
      a.k.input_scales == nullptr ? nullptr : a.k.input_scales + h * kNope;
  const auto meet = [worker] { BarrierSync(1 + worker, kWorkerThreads); };
  WarpQueries x(a);
  int tile = blockIdx.y * kWorkers + worker;
  x.LoadNope(tile);
  x.LoadPositions(tile);
  x.LoadRope(tile);
  for (int next; tile < tiles; tile = next) {
    next = tile + gridDim.y * kWorkers;
    x.StoreNope<Code>(factors, inputs, shared.undo[worker]);
    x.LoadNope(next);
    x.LoadPositions(next);
    AsyncFence();
    meet();
    Sums sum;
    BeginProducts<typename Code::Operand>(shared.weights, inputs, group, sum);
    x.Rotate(largest[kWarps]);
    ProductWait<0>();
    largest[Warp()][LargestToken()] =
        FinishSums(shared.undo[worker],
                   shared.row_scale + group * kGroupBlocks * kProductRows, sum);
    meet();
    float most = largest[0][Lane()];
#pragma unroll
    for (int w = 1; w <= kWarps; ++w) most = fmaxf(most, largest[w][Lane()]);
    const float scale = OperandScale<Rounded>(most);
    const int first = tile * kTokens;
    if (Warp() == 0 && first + Lane() < tokens) {
      a.query.scales[int64_t{first + Lane()} * packed_heads + h] = scale;
    }
    StageLatents<Rounded>(scale, group, staged, sum);
#pragma unroll
    for (int i = 0; i < kWarpTokens; ++i) {
      const int row = Warp() * kWarpTokens + i;
      const float of = __shfl_sync(0xffffffff, scale, row);
      *OperandPair<Cached, kTokens>(
          staged + kLatent / kBlockColumns * kTokenBlockBytes, row,
          2 * Lane()) = Pack<Rounded>(x.rope[i].x * of, x.rope[i].y * of);
    }
    x.LoadRope(next);
    meet();
    StoreQueries(a.query, first, tokens, packed_heads, staged);
  }
}

int64_t PackedTokensOf(int64_t tokens) {
  return (tokens + kPackedTokens - 1) / kPackedTokens * kPackedTokens;
}

}  // namespace
}  // namespace prompt_absorb

PackedQueries PackedQueriesIn(void* memory, int64_t tokens, int64_t heads) {
  using namespace prompt_absorb;
  auto* const tiles = static_cast<std::byte*>(memory);
  const int64_t rows = PackedTokensOf(tokens) * PackedHeadsOf(heads);
  return {tiles, reinterpret_cast<float*>(
                     tiles + rows / kTile * int64_t{kPromptTileBytes})};
}

int64_t PackedQueryBytes(int64_t tokens, int64_t heads) {
  using namespace prompt_absorb;
  const int64_t rows = PackedTokensOf(tokens) * PackedHeadsOf(heads);
  return rows / kTile * kPromptTileBytes +
         rows * static_cast<int64_t>(sizeof(float));
}

void PromptAbsorbQuery(const LaunchOptions& options, const HeadProjection& k,
                       const TokenPlaces& places, const RopeAngles& angles,
                       const float* q, KvDtype cache,
                       const PackedQueries& query) {
  using namespace prompt_absorb;
  if (places.tokens == 0) return;
  const QueryArguments a = {k, places, angles, q, query};
  DispatchHead(k.dtype, [&]<typename Code>() {
    DispatchKv(cache, [&]<typename Cached>() {
      Launch(PromptQueryKernel<Code, Cached>,
             {.grid = Grid(k.heads, places.tokens, kTokens),
              .threads = kThreads,
              .shared_bytes = kQueryBytes},
             options, "PromptAbsorbQuery", a);
    });
  });
}

}  // namespace invar::cuda
