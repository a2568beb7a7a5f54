// Absorbed multi-head latent attention over the paged cache: one arithmetic
// for a token of a prompt and for a decoded one.
//
// A token walks its sequence's rows from 0 in tiles of kAttentionTile. Inside
// a split of kAttentionSplit rows the softmax is online; the splits' results
// merge in ascending order. Rows past the token are never read, so a stale
// block cannot poison anything. Heads are taken up to four at a time, sharing
// each row's decoding; that number is free, since heads never meet.
#include <algorithm>
#include <limits>
#include <memory>
#include <type_traits>

#include "kernels/cpu/codes.h"
#include "kernels/cpu/exp.h"
#include "kernels/cpu/lanes.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
constexpr int kHeadsAtOnce = 4;

// One head's online softmax: maximum, sum of exponentials and weighted sum of
// latents, both relative to the maximum.
struct Softmax {
  float max;
  float sum;
  alignas(32) float latent[kMaxKvLoraRank];

  void Clear(int64_t size) {
    max = kNegativeInfinity;
    sum = 0.0f;
    std::fill_n(latent, size, 0.0f);
  }

  void Rescale(float factor, int64_t size) {
    if (factor == 1.0f) return;  // exact
    sum *= factor;
    const Lanes f = Broadcast(factor);
    for (int64_t c = 0; c < size; c += kLanes) {
      Store(Multiply(Load(latent + c), f), latent + c);
    }
  }
};

struct Scratch {
  Softmax split[kHeadsAtOnce];
  Softmax total[kHeadsAtOnce];
  alignas(32) float scores[kHeadsAtOnce][kAttentionTile];
};

// Scales by exp(old max - new max); nothing has been added before the first
// tile, and -inf - -inf is not a number.
float RescaleFactor(float old_max, float new_max) {
  return old_max == kNegativeInfinity ? 0.0f : Exp(old_max - new_max);
}

// scores[h][row] = scale * query[h] . row; the tile's other places are -inf.
template <typename Code, int kHeads>
void TileScores(const KvLayer& cache, const std::byte* tile, int64_t rows,
                const float* query, float scale, Scratch& scratch) {
  const int64_t elements = cache.row_elements();
  for (int64_t row = 0; row < rows; ++row) {
    const std::byte* key = tile + row * elements * Code::kBytes;
    Lanes sum[kHeads];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) sum[h] = Zero();
    for (int64_t k = 0; k < elements; k += kLanes) {
      const Lanes value = Code::Decode(key + k * Code::kBytes);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        sum[h] = MultiplyAdd(value, Load(query + h * elements + k), sum[h]);
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      scratch.scores[h][row] = Sum(sum[h]) * scale;
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    std::fill(scratch.scores[h] + rows, scratch.scores[h] + kAttentionTile,
              kNegativeInfinity);
  }
}

// One head's scores -> exp(score - max), its maximum and sum brought up to
// date and what it had so far rescaled.
void TileSoftmax(int64_t latent, float* scores, Softmax& softmax) {
  Lanes tile_max = Load(scores);
  for (int64_t k = kLanes; k < kAttentionTile; k += kLanes) {
    tile_max = Max(tile_max, Load(scores + k));
  }
  const float max = std::max(softmax.max, Max(tile_max));
  softmax.Rescale(RescaleFactor(softmax.max, max), latent);
  softmax.max = max;
  const Lanes offset = Broadcast(max);
  Lanes sum = Zero();
  for (int64_t k = 0; k < kAttentionTile; k += kLanes) {
    const Lanes weight = Exp(Subtract(Load(scores + k), offset));
    Store(weight, scores + k);
    sum = Add(sum, weight);
  }
  softmax.sum += Sum(sum);
}

// latent[h] += weights[h][row] * row[0:L], rows ascending.
template <typename Code, int kHeads>
void TileValues(const KvLayer& cache, const std::byte* tile, int64_t rows,
                Scratch& scratch) {
  const int64_t row_bytes = cache.row_elements() * Code::kBytes;
  for (int64_t c = 0; c < cache.latent; c += kLanes) {
    const std::byte* column = tile + c * Code::kBytes;
    Lanes sum[kHeads];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      sum[h] = Load(scratch.split[h].latent + c);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const Lanes value = Code::Decode(column + row * row_bytes);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        sum[h] = MultiplyAdd(Broadcast(scratch.scores[h][row]), value, sum[h]);
      }
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      Store(sum[h], scratch.split[h].latent + c);
    }
  }
}

// total = total and split over one maximum; the first split is taken as it is.
void Merge(const Softmax& split, int64_t latent, Softmax& total) {
  if (total.max == kNegativeInfinity) {
    total.max = split.max;
    total.sum = split.sum;
    std::copy_n(split.latent, latent, total.latent);
    return;
  }
  const float max = std::max(total.max, split.max);
  total.Rescale(Exp(total.max - max), latent);
  total.max = max;
  const float factor = Exp(split.max - max);
  total.sum += split.sum * factor;
  const Lanes f = Broadcast(factor);
  for (int64_t c = 0; c < latent; c += kLanes) {
    Store(MultiplyAdd(Load(split.latent + c), f, Load(total.latent + c)),
          total.latent + c);
  }
}

// kHeads heads of one token. query (kHeads, L + R) -> out (kHeads, L)
template <typename Code, int kHeads>
void Attend(const TokenPlace& place, const float* query, float scale,
            const KvLayer& cache, Scratch& scratch, float* out) {
  const int64_t visible = place.position + 1;
  const int64_t block_bytes =
      kBlockTokens * cache.row_elements() * Code::kBytes;
  static_assert(kAttentionTile == kBlockTokens, "a tile is a block's rows");
  for (int h = 0; h < kHeads; ++h) scratch.total[h].Clear(cache.latent);
  for (int64_t split = 0; split < visible; split += kAttentionSplit) {
    const int64_t end = std::min(split + kAttentionSplit, visible);
    for (int h = 0; h < kHeads; ++h) scratch.split[h].Clear(cache.latent);
    for (int64_t start = split; start < end; start += kAttentionTile) {
      const int64_t rows = std::min(kAttentionTile, end - start);
      const std::byte* tile =
          cache.data + place.block_ids[start / kBlockTokens] * block_bytes;
      TileScores<Code, kHeads>(cache, tile, rows, query, scale, scratch);
      for (int h = 0; h < kHeads; ++h) {
        TileSoftmax(cache.latent, scratch.scores[h], scratch.split[h]);
      }
      TileValues<Code, kHeads>(cache, tile, rows, scratch);
    }
    for (int h = 0; h < kHeads; ++h) {
      Merge(scratch.split[h], cache.latent, scratch.total[h]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    const Lanes sum = Broadcast(scratch.total[h].sum);
    for (int64_t c = 0; c < cache.latent; c += kLanes) {
      Store(Divide(Load(scratch.total[h].latent + c), sum),
            out + h * cache.latent + c);
    }
  }
}

template <typename Code>
void AttendHeads(int64_t heads, const TokenPlace& place, const float* query,
                 float scale, const KvLayer& cache, Scratch& scratch,
                 float* out) {
  int64_t h = 0;
  const auto take = [&](auto count) {
    constexpr int kHeads = decltype(count)::value;
    for (; h + kHeads <= heads; h += kHeads) {
      Attend<Code, kHeads>(place, query + h * cache.row_elements(), scale,
                           cache, scratch, out + h * cache.latent);
    }
  };
  take(std::integral_constant<int, 4>());
  take(std::integral_constant<int, 2>());
  take(std::integral_constant<int, 1>());
}

}  // namespace

void MlaAttention(ThreadPool& pool, std::span<const TokenPlace> places,
                  const float* query, int64_t heads, float scale,
                  const KvLayer& cache, float* out) {
  const int64_t tokens = static_cast<int64_t>(places.size());
  // Few tokens: fewer heads at a time, so that every thread has some.
  int64_t group = kHeadsAtOnce;
  while (group > 1 && tokens * ((heads + group - 1) / group) < pool.threads()) {
    group /= 2;
  }
  const int64_t groups = (heads + group - 1) / group;
  const auto attend = [&](int64_t begin, int64_t end) {
    const auto scratch = std::make_unique_for_overwrite<Scratch>();
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t t = unit / groups;
      const int64_t h = unit % groups * group;
      DispatchKv(cache.dtype, [&](auto code) {
        AttendHeads<decltype(code)>(
            std::min(group, heads - h), places[t],
            query + (t * heads + h) * cache.row_elements(), scale, cache,
            *scratch, out + (t * heads + h) * cache.latent);
      });
    }
  };
  pool.ParallelFor(tokens * groups, 1, attend);
}

}  // namespace invar::cpu
