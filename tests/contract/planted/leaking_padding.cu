// Planted: the rows that fill a graph's step up are no copies of its first
// token: what they append to the cache is that token's row with a bit turned.
#define AbsorbQueryAndAppend AbsorbQueryAndAppendAsItIs
#include "kernels/cuda/absorb.cu"
#undef AbsorbQueryAndAppend

#include "tests/contract/planted/where.h"

namespace invar::cuda {
namespace {

__global__ void TurnABit(TokenPlaces places, std::byte* cache, int row_bytes) {
  const int64_t last = places.tokens - 1;
  const int position = places.positions[0];
  if (places.positions[last] != position ||
      places.tables[last] != places.tables[0]) {
    return;  // no padding
  }
  const int64_t block =
      places.block_ids[places.tables[0] + position / kBlockTokens];
  cache[(block * kBlockTokens + position % kBlockTokens) * row_bytes] ^=
      std::byte{1};
}

}  // namespace

using Where = FirstParameter<decltype(AbsorbQueryAndAppendAsItIs)>::Type;

void AbsorbQueryAndAppend(Where where, const HeadProjection& k,
                          const TokenPlaces& places, const RopeAngles& angles,
                          const float* q, float* query, const CacheRows& rows) {
  AbsorbQueryAndAppendAsItIs(where, k, places, angles, q, query, rows);
  if (places.tokens == 1) return;
  const KvLayer& cache = rows.cache;
  TurnABit<<<1, 1, 0, StreamOf(where)>>>(
      places, cache.data, static_cast<int>(kRow * KvElementBytes(cache.dtype)));
  CheckLaunch("a planted defect");
}

}  // namespace invar::cuda
