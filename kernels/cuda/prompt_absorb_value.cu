// PromptAbsorbValue: the value half of kv_b_proj for many tokens. What has been
// attended goes from memory straight to operands in registers, a tile ahead.
#include "kernels/cuda/input_pair.cuh"
#include "kernels/cuda/prompt_absorb.cuh"
#include "kernels/cuda/silu_mul.h"

namespace invar::cuda {
namespace prompt_absorb {
namespace {

constexpr int kTokens = 64;  // of a tile, which is a warpgroup's
constexpr int kThreads = 128 * kWorkers;
constexpr int kSums = kValue / 2;
constexpr int kFours = kSums / 16;  // of eights of columns

struct ValueShared {
  std::byte weights[kOperandBytes<kValue, kLatent>];
  float row_scale[kValue];
};
constexpr int kValueBytes = static_cast<int>(sizeof(ValueShared)) + 1024;

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

// Row g + 8 r of a thread's sums as e4m3, to a head's values `row`: of four
// eights of columns each of the lanes that share the row stores one.
__device__ void StoreE4m3(const E4m3Input& convert, bool real, int r,
                          const float (&sum)[kSums], std::byte* row) {
  const int lane = threadIdx.x % 4;
  const bool upper = lane >= 2;
  const bool odd = lane % 2 == 1;
#pragma unroll
  for (int four = 0; four < kFours; ++four) {
    // Two eights' pairs in a word.
    uint32_t words[2];
#pragma unroll
    for (int w = 0; w < 2; ++w) {
      const float* const low = &sum[16 * four + 8 * w + 2 * r];
      const float* const high = low + 4;
      words[w] = convert.Pair(low[0], low[1]) | convert.Pair(high[0], high[1])
                                                    << 16;
    }
    // The lanes with two apart trade words, so that each has two lanes' pairs
    // of two eights; neighbours trade halves, and it has all four of one.
    const uint32_t mine = upper ? words[1] : words[0];
    const uint32_t theirs =
        __shfl_xor_sync(0xffffffff, upper ? words[0] : words[1], 2);
    const uint32_t first = upper ? theirs : mine;   // lanes 0 and 1
    const uint32_t second = upper ? mine : theirs;  // lanes 2 and 3
    const uint32_t keep = __byte_perm(first, second, odd ? 0x7632 : 0x5410);
    const uint32_t other = __shfl_xor_sync(
        0xffffffff, __byte_perm(first, second, odd ? 0x5410 : 0x7632), 1);
    const uint32_t even_lanes = odd ? other : keep;
    const uint32_t odd_lanes = odd ? keep : other;
    const uint2 eight = {__byte_perm(even_lanes, odd_lanes, 0x5410),
                         __byte_perm(even_lanes, odd_lanes, 0x7632)};
    if (real) {
      *reinterpret_cast<uint2*>(row + 32 * four + 8 * lane) = eight;
    }
  }
}

// grid (heads, blocks of each)
template <typename Code>
__global__ void __launch_bounds__(kThreads, 1)
    PromptValueKernel(HeadProjection v, int64_t tokens, PackedAttended attended,
                      InputSink out) {
  using Operand = typename Code::Operand;
  constexpr int kBatch = AttendedTile::kBatch;
  extern __shared__ std::byte memory[];
  auto& shared = *reinterpret_cast<ValueShared*>(TileAligned(memory));
  const int64_t h = blockIdx.x;
  const int tiles = static_cast<int>((tokens + kTokens - 1) / kTokens);
  const int lane = threadIdx.x % 32;
  AllowNextKernel();
  StoreWeights<Code, kValue, kLatent, kThreads>(
      v.data + h * (kValue * kLatent * Code::kBytes), shared.weights,
      [](int row) { return row; });
  for (int i = threadIdx.x; i < kValue; i += kThreads) {
    shared.row_scale[i] =
        v.row_scales == nullptr ? 1.0f : v.row_scales[h * kValue + i];
  }
  AsyncFence();
  __syncthreads();
  WaitForPriorKernel();
  const std::byte* const rows =
      attended.rows + h * tokens * int64_t{kAttendedRowBytes};
  const uint64_t right = TileDescriptor(SharedAddress(shared.weights));
  const E4m3Input to_e4m3(out.scale);
  int tile = blockIdx.y * kWorkers + threadIdx.x / 128;
  const auto first_row = [&](int tile) {
    return int64_t{tile} * kTokens + FragmentRow(threadIdx.x % 128, 0);
  };
  AttendedTile x;
#pragma unroll
  for (int p = 0; p < AttendedTile::kPieces; p += kBatch) {
    if (tile < tiles) x.Load(p, rows, first_row(tile), tokens);
  }
  for (; tile < tiles; tile += gridDim.y * kWorkers) {
    const int next = tile + gridDim.y * kWorkers;
    float sum[kSums] = {};
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
      undo[r] =
          v.scale *
          ScaleInverse(attended.scales[h * tokens + min(t[r], tokens - 1)]);
    }
#pragma unroll
    for (int i = 0; i < kSums; i += 4) {
      const float2 of = *reinterpret_cast<const float2*>(
          shared.row_scale + FragmentToken(lane, i));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sum[i + j] = sum[i + j] * undo[j / 2] * (j % 2 == 0 ? of.x : of.y);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool real = t[r] < tokens;
      const int64_t at = (t[r] * v.heads + h) * kValue;
      if (out.dtype == WeightDtype::kFp8E4m3) {
        StoreE4m3(to_e4m3, real, r, sum,
                  static_cast<std::byte*>(out.data) + at);
        continue;
      }
      if (!real) continue;
#pragma unroll
      for (int i = 2 * r; i < kSums; i += 4) {
        StoreInputPair(out, at + FragmentToken(lane, i), sum[i], sum[i + 1]);
      }
    }
  }
}

}  // namespace
}  // namespace prompt_absorb

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
  using namespace prompt_absorb;
  if (tokens == 0) return;
  DispatchHead(v.dtype, [&]<typename Code>() {
    Launch(PromptValueKernel<Code>,
           {.grid = Grid(v.heads, tokens, kTokens),
            .threads = kThreads,
            .shared_bytes = kValueBytes},
           options, "PromptAbsorbValue", v, tokens, attended, out);
  });
}

}  // namespace invar::cuda
