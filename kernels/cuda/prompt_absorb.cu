// kv_b_proj in absorbed form for many tokens: absorb.cu's products, step by
// step, by warpgroups.
//
// A block has one head, whose weights it makes operands of once and keeps in
// shared memory; it walks tiles of 64 tokens. Both products are bound by the
// bytes of queries and of what has been attended, so the next tile is asked
// for, into registers, as soon as this one has been used.
#include <algorithm>

#include "kernels/cuda/gemm_launch.h"
#include "kernels/cuda/head_dispatch.cuh"
#include "kernels/cuda/input_pair.cuh"
#include "kernels/cuda/prompt_tiles.cuh"
#include "kernels/cuda/silu_mul.h"

namespace invar::cuda {
namespace {

constexpr int kTokens = 64;  // of a tile
constexpr int kGroups = 4;
constexpr int kThreads = 128 * kGroups;
constexpr int kWarps = kThreads / 32;
constexpr int kWarpTokens = kTokens / kWarps;
constexpr int kPackedTokens = 4;  // of a tile of packed queries
constexpr int kPackedHeads = 16;

// An operand of kRows rows: blocks of 64 columns one after the other.
template <int kRows, int kColumns>
constexpr int kOperandBytes = kColumns / kBlockColumns* kRows* kTileRowBytes;

__device__ std::byte* Aligned(std::byte* memory) {
  return memory + (1024 - SharedAddress(memory) % 1024) % 1024;
}

// The weights of a head, (kRows, kColumns), by all threads.
template <typename Code, int kRows, int kColumns, int kThreads>
__device__ void StoreWeights(const std::byte* weights, std::byte* to) {
  constexpr int kRowChunks = kColumns * Code::kBytes / 64;
#pragma unroll 4
  for (int i = threadIdx.x; i < kRows * kRowChunks; i += kThreads) {
    uint4 codes[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      codes[t] = __ldg(reinterpret_cast<const uint4*>(weights) + 4 * i + t);
    }
    StoreOperands<Code>(codes, i / kRowChunks, i % kRowChunks,
                        kRows * kTileRowBytes, to);
  }
}

// sum = inputs (64, kColumns) times kColumnsOut rows of the weights from
// first_row on: one chain of steps. Begun only.
template <typename Operand, int kRows, int kColumns, int kColumnsOut>
__device__ void BeginProducts(const std::byte* inputs, const std::byte* weights,
                              int first_row, float (&sum)[kColumnsOut / 2]) {
  const uint64_t left = TileDescriptor(SharedAddress(inputs));
  const uint64_t right =
      TileDescriptor(SharedAddress(weights) + first_row * kTileRowBytes);
#pragma unroll
  for (int s = 0; s < kColumns / 16; ++s) {
    const int step = s % 4 * kProductBytes / 16;
    Product<FormatOf<Operand>, kColumnsOut>::Run(
        sum, left + s / 4 * (kBlockBytes / 16) + step,
        right + s / 4 * (kRows * kTileRowBytes / 16) + step, s > 0);
  }
}

// A warp's rows of inputs, a lane's pairs of each; zeros past the last token.
template <int kColumns>
struct WarpRows {
  static constexpr int kPairs = kColumns / 64;
  float2 x[kWarpTokens][kPairs];

  // Row i, which begins at from + i * stride and is token first + i.
  __device__ void Load(int i, const float* from, int64_t stride, int64_t first,
                       int64_t tokens) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      x[i][p] = first + i < tokens ? reinterpret_cast<const float2*>(
                                         from + i * stride)[32 * p + lane]
                                   : float2{0.0f, 0.0f};
    }
  }

  // Row i as operands, times `factors` if there are any, and what undoes their
  // scale.
  template <typename Code>
  __device__ void Store(int i, const float* factors, float scale,
                        std::byte* tile, float* undo) {
    const int lane = threadIdx.x % 32;
    if (factors != nullptr) {
#pragma unroll
      for (int p = 0; p < kPairs; ++p) {
        const float2 f =
            reinterpret_cast<const float2*>(factors)[32 * p + lane];
        x[i][p] = {x[i][p].x * f.x, x[i][p].y * f.y};
      }
    }
    const int row = threadIdx.x / 32 * kWarpTokens + i;
    const float row_scale = StoreOperandRow<Code>(x[i], row, tile);
    if (lane == 0) undo[row] = scale / row_scale;
  }
};

__device__ void OperandSync() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
}

// As many blocks a head as the GPU runs at once, each of which takes
// block_tiles at a time.
dim3 Grid(int64_t heads, int64_t tokens, int64_t block_tiles) {
  const int64_t step = kTokens * block_tiles;
  const int64_t tiles = (tokens + step - 1) / step;
  const int64_t most = std::max<int64_t>(1, Multiprocessors() / heads);
  return dim3(static_cast<unsigned>(heads),
              static_cast<unsigned>(std::min(tiles, most)));
}

// ---- Queries ----------------------------------------------------------------

struct QueryShared {
  std::byte weights[kOperandBytes<kLatent, kNope>];
  std::byte inputs[kOperandBytes<kTokens, kNope>];
  std::byte staged[kPromptTileBytes];
  float undo[kTokens];
  float largest[kGroups + 1][kTokens];  // of groups' latents, and of the rope
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

// What a warp has of the rope halves of its tokens' queries: a pair a lane.
struct WarpRopes {
  float2 pair[kWarpTokens];
  int position[kWarpTokens];

  __device__ void Load(const QueryArguments& a, int64_t head, int64_t first) {
#pragma unroll
    for (int i = 0; i < kWarpTokens; ++i) {
      const int64_t t = min(first + i, a.places.tokens - 1);
      position[i] = a.places.positions[t];
      pair[i] = reinterpret_cast<const float2*>(
          a.q + (t * a.k.heads + head) * (kNope + kRope) +
          kNope)[threadIdx.x % 32];
    }
  }
  // (a, b) -> (a cos - b sin, a sin + b cos).
  __device__ void Rotate(const RopeAngles& angles) {
    float2 turn[kWarpTokens];
#pragma unroll
    for (int i = 0; i < kWarpTokens; ++i) {
      const int64_t at = int64_t{position[i]} * (kRope / 2) + threadIdx.x % 32;
      turn[i] = {angles.cosines[at], angles.sines[at]};
    }
#pragma unroll
    for (int i = 0; i < kWarpTokens; ++i) {
      const float2 v = pair[i];
      pair[i] = {v.x * turn[i].x - v.y * turn[i].y,
                 v.x * turn[i].y + v.y * turn[i].x};
    }
  }
};

// grid (heads, blocks of each)
template <typename Code, typename Cached>
__global__ void __launch_bounds__(kThreads, 1)
    PromptQueryKernel(const __grid_constant__ QueryArguments a) {
  using Operand = typename Code::Operand;
  extern __shared__ std::byte memory[];
  auto& shared = *reinterpret_cast<QueryShared*>(Aligned(memory));
  const int64_t h = blockIdx.x;
  const int64_t tokens = a.places.tokens;
  const int heads = static_cast<int>(a.k.heads);
  const int packed_heads =
      (heads + kPackedHeads - 1) / kPackedHeads * kPackedHeads;
  const int tiles = static_cast<int>((tokens + kTokens - 1) / kTokens);
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int group = warp / 4;
  AllowNextKernel();
  StoreWeights<Code, kLatent, kNope, kThreads>(
      a.k.data + h * (kLatent * kNope * Code::kBytes), shared.weights);
  WaitForPriorKernel();
  const int64_t stride = heads * int64_t{kNope + kRope};
  WarpRows<kNope> rows;
  WarpRopes next_ropes;
  const auto first_of = [&](int tile) {
    return int64_t{tile} * kTokens + warp * kWarpTokens;
  };
  const auto load = [&](int i, int tile) {
    rows.Load(i, a.q + first_of(tile) * stride + h * (kNope + kRope), stride,
              first_of(tile), tokens);
  };
  int tile = blockIdx.y;
#pragma unroll
  for (int i = 0; i < kWarpTokens; ++i) load(i, tile);
  next_ropes.Load(a, h, first_of(tile));
  for (; tile < tiles; tile += gridDim.y) {
    const int next = tile + gridDim.y;
#pragma unroll
    for (int i = 0; i < kWarpTokens; ++i) {
      rows.Store<Code>(
          i,
          a.k.input_scales == nullptr ? nullptr : a.k.input_scales + h * kNope,
          a.k.scale, shared.inputs, shared.undo);
      if (next < tiles) load(i, next);
    }
    OperandSync();
    constexpr int kGroupLatents = kLatent / kGroups;
    constexpr int kSums = kGroupLatents / 2;
    const int first_latent = group * kGroupLatents;
    float sum[kSums];
    ProductFence();
    BeginProducts<Operand, kLatent, kNope, kGroupLatents>(
        shared.inputs, shared.weights, first_latent, sum);
    ProductCommit();
    WarpRopes ropes = next_ropes;
    ropes.Rotate(a.angles);
    if (next < tiles) next_ropes.Load(a, h, first_of(next));
#pragma unroll
    for (int i = 0; i < kWarpTokens; ++i) {
      float most = fmaxf(fabsf(ropes.pair[i].x), fabsf(ropes.pair[i].y));
#pragma unroll
      for (int step = 16; step >= 1; step /= 2) {
        most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, step));
      }
      if (lane == 0) shared.largest[kGroups][warp * kWarpTokens + i] = most;
    }
    ProductWait<0>();
    const int row = FragmentRow(threadIdx.x % 128, 0);  // and the eighth after
    const float undo[2] = {shared.undo[row], shared.undo[row + 8]};
    float most[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      const int r = i / 2 % 2;
      sum[i] *= undo[r];
      if (a.k.row_scales != nullptr) {
        sum[i] *=
            a.k.row_scales[h * kLatent + first_latent + FragmentToken(lane, i)];
      }
      most[r] = fmaxf(most[r], fabsf(sum[i]));
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xffffffff, most[r], 1));
      most[r] = fmaxf(most[r], __shfl_xor_sync(0xffffffff, most[r], 2));
      if (lane % 4 == 0) shared.largest[group][row + 8 * r] = most[r];
    }
    __syncthreads();
    const auto scale_of = [&](int r) {
      float most = shared.largest[0][r];
#pragma unroll
      for (int g = 1; g <= kGroups; ++g) {
        most = fmaxf(most, shared.largest[g][r]);
      }
      return OperandScale<typename Cached::Operand>(most);
    };
    // What lies at four eights of columns is a chunk of 16 bytes.
    constexpr int kEights = Cached::kBytes == 1 ? 2 : 1;  // to the next
    constexpr int kRowChunks = kSums / 16;
    const int first_column =
        static_cast<int>(Unknown(first_latent + FragmentToken(lane, 0)));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float scale = scale_of(row + 8 * r);
#pragma unroll
      for (int c = 0; c < kRowChunks; ++c) {
        const int eight = c / kEights * 4 * kEights + c % kEights;
        uint32_t x[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int i = 4 * (eight + kEights * j) + 2 * r;
          x[j] = Pack<typename Cached::Operand>(sum[i] * scale,
                                                sum[i + 1] * scale);
        }
        *reinterpret_cast<uint4*>(OperandPair<Cached>(
            shared.staged, row + 8 * r, first_column + 8 * eight)) = {
            x[0], x[1], x[2], x[3]};
      }
    }
    const int64_t first = int64_t{tile} * kTokens;
#pragma unroll
    for (int i = 0; i < kWarpTokens; ++i) {
      const int r = warp * kWarpTokens + i;
      const float scale = scale_of(r);
      *OperandPair<Cached>(shared.staged, r, kLatent + 2 * lane) =
          Pack<typename Cached::Operand>(ropes.pair[i].x * scale,
                                         ropes.pair[i].y * scale);
      if (lane == 0 && first + r < tokens) {
        a.query.scales[(first + r) * packed_heads + h] = scale;
      }
    }
    __syncthreads();
    // Each row goes to the tile of its four tokens; 128 bytes a block of
    // columns, which there are swizzled by another row number.
    constexpr int kChunks = kRow / kBlockColumns * 8;
#pragma unroll 6
    for (int i = threadIdx.x; i < kTokens * kChunks; i += kThreads) {
      const int chunk = i % 8;
      const int r = i / 8 % kTokens;
      const int block = i / (8 * kTokens);
      const int64_t t = first + r;
      if (t >= tokens) continue;
      const int to_row =
          static_cast<int>(t % kPackedTokens * kPackedHeads + h % kPackedHeads);
      std::byte* const to = a.query.tiles +
                            (t / kPackedTokens * (packed_heads / kPackedHeads) +
                             h / kPackedHeads) *
                                kPromptTileBytes +
                            block * kBlockBytes;
      *reinterpret_cast<uint4*>(to + SwizzledChunk(to_row, chunk)) =
          *reinterpret_cast<const uint4*>(shared.staged + block * kBlockBytes +
                                          SwizzledChunk(r, chunk));
    }
  }
}

// ---- Values -----------------------------------------------------------------

// Two warpgroups a block, each with tiles of its own. What has been attended to
// goes from memory straight to operands in registers, a tile ahead.
constexpr int kValueGroups = 2;
constexpr int kValueThreads = 128 * kValueGroups;
constexpr int kValueBytes = kOperandBytes<kValue, kLatent> + 1024;

// A thread's rows of a tile, g and g + 8 of its warp's: two steps a piece.
struct AttendedTile {
  static constexpr int kPieces = kLatent / 32;
  static constexpr int kBatch = 4;  // pieces that come and are used together
  uint4 pieces[kPieces][2];

  // Pieces [first, first + kBatch) of row t of the head, and of row t + 8.
  __device__ void Load(int first, const std::byte* rows, int64_t t,
                       int64_t tokens) {
#pragma unroll
    for (int p = first; p < first + kBatch; ++p) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t row = min(t + 8 * h, tokens - 1);
        pieces[p][h] = __ldcs(
            reinterpret_cast<const uint4*>(rows + row * kAttendedRowBytes) +
            4 * p + threadIdx.x % 4);
      }
    }
  }
};

// grid (heads, blocks of each)
template <typename Code>
__global__ void __launch_bounds__(kValueThreads, 1)
    PromptValueKernel(HeadProjection v, int64_t tokens, PackedAttended attended,
                      InputSink out) {
  using Operand = typename Code::Operand;
  constexpr int kBatch = AttendedTile::kBatch;
  extern __shared__ std::byte memory[];
  std::byte* const weights = Aligned(memory);
  const int64_t h = blockIdx.x;
  const int tiles = static_cast<int>((tokens + kTokens - 1) / kTokens);
  const int lane = threadIdx.x % 32;
  AllowNextKernel();
  StoreWeights<Code, kValue, kLatent, kValueThreads>(
      v.data + h * (kValue * kLatent * Code::kBytes), weights);
  OperandSync();
  WaitForPriorKernel();
  const std::byte* const rows =
      attended.rows + h * tokens * int64_t{kAttendedRowBytes};
  const uint64_t right = TileDescriptor(SharedAddress(weights));
  int tile = blockIdx.y * kValueGroups + threadIdx.x / 128;
  const auto first_row = [&](int tile) {
    return int64_t{tile} * kTokens + FragmentRow(threadIdx.x % 128, 0);
  };
  AttendedTile x;
#pragma unroll
  for (int p = 0; p < AttendedTile::kPieces; p += kBatch) {
    if (tile < tiles) x.Load(p, rows, first_row(tile), tokens);
  }
  for (; tile < tiles; tile += gridDim.y * kValueGroups) {
    const int next = tile + gridDim.y * kValueGroups;
    float sum[kValue / 2] = {};
#pragma unroll
    for (int first = 0; first < AttendedTile::kPieces; first += kBatch) {
      ProductFence();
#pragma unroll
      for (int p = first; p < first + kBatch; ++p) {
        const uint4& a = x.pieces[p][0];
        const uint4& b = x.pieces[p][1];
        const uint64_t at = right + p / 2 * (kValue * kTileRowBytes / 16) +
                            p % 2 * (2 * kProductBytes / 16);
        RowProduct<Operand>(sum, {a.x, b.x, a.y, b.y}, at);
        RowProduct<Operand>(sum, {a.z, b.z, a.w, b.w}, at + kProductBytes / 16);
      }
      ProductCommit();
      ProductWait<0>();
      if (next < tiles) x.Load(first, rows, first_row(next), tokens);
    }
    int64_t t[2];
    float undo[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      t[r] = first_row(tile) + 8 * r;
      undo[r] = v.scale / attended.scales[h * tokens + min(t[r], tokens - 1)];
    }
#pragma unroll
    for (int i = 0; i < kValue / 2; i += 2) {
      const int r = i / 2 % 2;
      const int column = FragmentToken(lane, i);
      float x = sum[i] * undo[r];
      float y = sum[i + 1] * undo[r];
      if (v.row_scales != nullptr) {
        x *= v.row_scales[h * kValue + column];
        y *= v.row_scales[h * kValue + column + 1];
      }
      if (t[r] < tokens) {
        StoreInputPair(out, (t[r] * v.heads + h) * kValue + column, x, y);
      }
    }
  }
}

int64_t PackedHeads(int64_t heads) {
  return (heads + kPackedHeads - 1) / kPackedHeads * kPackedHeads;
}
int64_t PackedTokens(int64_t tokens) {
  return (tokens + kPackedTokens - 1) / kPackedTokens * kPackedTokens;
}

}  // namespace

PackedQueries PackedQueriesIn(void* memory, int64_t tokens, int64_t heads) {
  auto* const tiles = static_cast<std::byte*>(memory);
  const int64_t rows = PackedTokens(tokens) * PackedHeads(heads);
  return {tiles, reinterpret_cast<float*>(
                     tiles + rows / kTile * int64_t{kPromptTileBytes})};
}

int64_t PackedQueryBytes(int64_t tokens, int64_t heads) {
  const int64_t rows = PackedTokens(tokens) * PackedHeads(heads);
  return rows / kTile * kPromptTileBytes +
         rows * static_cast<int64_t>(sizeof(float));
}

void PromptAbsorbQuery(const LaunchOptions& options, const HeadProjection& k,
                       const TokenPlaces& places, const RopeAngles& angles,
                       const float* q, KvDtype cache,
                       const PackedQueries& query) {
  if (places.tokens == 0) return;
  const QueryArguments a = {k, places, angles, q, query};
  DispatchHead(k.dtype, [&]<typename Code>() {
    DispatchKv(cache, [&]<typename Cached>() {
      Launch(PromptQueryKernel<Code, Cached>,
             {.grid = Grid(k.heads, places.tokens, 1),
              .threads = kThreads,
              .shared_bytes = kQueryBytes},
             options, "PromptAbsorbQuery", a);
    });
  });
}

PackedAttended PackedAttendedIn(void* memory, int64_t tokens, int64_t heads) {
  auto* const rows = static_cast<std::byte*>(memory);
  return {rows,
          reinterpret_cast<float*>(rows + tokens * heads * kAttendedRowBytes)};
}

int64_t PackedAttendedBytes(int64_t tokens, int64_t heads) {
  return tokens * heads *
         (kAttendedRowBytes + static_cast<int64_t>(sizeof(float)));
}

void PromptAbsorbValue(const LaunchOptions& options, const HeadProjection& v,
                       int64_t tokens, const PackedAttended& attended,
                       const InputSink& out) {
  if (tokens == 0) return;
  DispatchHead(v.dtype, [&]<typename Code>() {
    Launch(PromptValueKernel<Code>,
           {.grid = Grid(v.heads, tokens, kValueGroups),
            .threads = kValueThreads,
            .shared_bytes = kValueBytes},
           options, "PromptAbsorbValue", v, tokens, attended, out);
  });
}

}  // namespace invar::cuda
