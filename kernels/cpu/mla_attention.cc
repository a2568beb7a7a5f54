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
#include <utility>

#include "kernels/cpu/exp.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/lanes.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

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

// A head's split and what the splits before it came to, which change places.
struct HeadSoftmax {
  Softmax both[2];
  Softmax* split = &both[0];
  Softmax* total = &both[1];
};

struct Scratch {
  HeadSoftmax heads[kHeadsAtOnce];
  alignas(32) float scores[kHeadsAtOnce][kAttentionTile];
};

// Scales by exp(old max - new max); nothing has been added before the first
// tile, and -inf - -inf is not a number.
float RescaleFactor(float old_max, float new_max) {
  return old_max == kNegativeInfinity ? 0.0f : Exp(old_max - new_max);
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

// total = total and split over one maximum; the first split is taken as it is.
void Merge(int64_t latent, HeadSoftmax& head) {
  if (head.total->max == kNegativeInfinity) {
    std::swap(head.split, head.total);
    return;
  }
  const Softmax& split = *head.split;
  Softmax& total = *head.total;
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

// The tile of rows from `start` on that end before `end`.
KvTile TileAt(const KvLayer& cache, const TokenPlace& place, int64_t start,
              int64_t end) {
  static_assert(kAttentionTile == kBlockTokens, "a tile is a block's rows");
  return {.dtype = cache.dtype,
          .data = cache.data + place.block_ids[start / kBlockTokens] *
                                   kBlockTokens * cache.row_elements() *
                                   KvElementBytes(cache.dtype),
          .rows = std::min(kAttentionTile, end - start),
          .row_elements = cache.row_elements(),
          .latent = cache.latent};
}

// Up to kHeadsAtOnce heads of one token, `next` being the tile that is walked
// after this token's. query (heads, L + R) -> out (heads, L)
void Attend(const IsaKernels& kernels, const TokenPlace& place,
            const float* query, int heads, float scale, const KvLayer& cache,
            const KvTile& next, Scratch& scratch, float* out) {
  const int64_t visible = place.position + 1;
  float* latents[kHeadsAtOnce];
  for (int h = 0; h < heads; ++h) {
    scratch.heads[h].total->max = kNegativeInfinity;
  }
  for (int64_t split = 0; split < visible; split += kAttentionSplit) {
    const int64_t end = std::min(split + kAttentionSplit, visible);
    for (int h = 0; h < heads; ++h) {
      scratch.heads[h].split->Clear(cache.latent);
      latents[h] = scratch.heads[h].split->latent;
    }
    for (int64_t start = split; start < end; start += kAttentionTile) {
      KvTile tile = TileAt(cache, place, start, end);
      const KvTile after =
          start + kAttentionTile < visible
              ? TileAt(cache, place, start + kAttentionTile, visible)
              : next;
      tile.next = after.data;
      tile.next_lines = after.rows * after.row_elements *
                        KvElementBytes(after.dtype) / kCacheLine;
      kernels.tile_scores(tile, query, heads, scale, scratch.scores[0]);
      for (int h = 0; h < heads; ++h) {
        std::fill(scratch.scores[h] + tile.rows,
                  scratch.scores[h] + kAttentionTile, kNegativeInfinity);
        TileSoftmax(cache.latent, scratch.scores[h], *scratch.heads[h].split);
      }
      kernels.tile_values(tile, scratch.scores[0], heads, latents);
    }
    for (int h = 0; h < heads; ++h) {
      Merge(cache.latent, scratch.heads[h]);
    }
  }
  for (int h = 0; h < heads; ++h) {
    const Softmax& total = *scratch.heads[h].total;
    const Lanes sum = Broadcast(total.sum);
    for (int64_t c = 0; c < cache.latent; c += kLanes) {
      Store(Divide(Load(total.latent + c), sum), out + h * cache.latent + c);
    }
  }
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
  const IsaKernels& kernels = KernelsOf(pool.isa());
  const auto attend = [&](int64_t begin, int64_t end) {
    const auto scratch = std::make_unique_for_overwrite<Scratch>();
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t t = unit / groups;
      const int64_t last = std::min((unit % groups + 1) * group, heads);
      int64_t h = unit % groups * group;
      const TokenPlace& after = places[std::min(unit + 1, end - 1) / groups];
      const KvTile next = TileAt(cache, after, 0, after.position + 1);
      for (int count = kHeadsAtOnce; count >= 1; count /= 2) {
        for (; h + count <= last; h += count) {
          Attend(kernels, places[t],
                 query + (t * heads + h) * cache.row_elements(), count, scale,
                 cache, next, *scratch, out + (t * heads + h) * cache.latent);
        }
      }
    }
  };
  pool.ParallelFor(tokens * groups, 1, attend);
}

}  // namespace invar::cpu
