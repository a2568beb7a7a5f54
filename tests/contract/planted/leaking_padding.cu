// Planted: the rows that fill a graph's step up are no copies of its first
// token: what they append to the cache is that token's row with a bit turned.
#define KvAppend KvAppendAsItIs
#include "kernels/cuda/kv_append.cu"
#undef KvAppend

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

void KvAppend(cudaStream_t stream, const TokenPlaces& places, const float* kv_a,
              const float* gain, float eps, const RopeAngles& angles,
              const KvLayer& cache, uint8_t* finite) {
  KvAppendAsItIs(stream, places, kv_a, gain, eps, angles, cache, finite);
  if (places.tokens == 1) return;
  TurnABit<<<1, 1, 0, stream>>>(
      places, cache.data, static_cast<int>(kRow * KvElementBytes(cache.dtype)));
  CheckLaunch("a planted defect");
}

}  // namespace invar::cuda
