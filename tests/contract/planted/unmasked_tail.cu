// Planted: the attention walks to the end of the last block instead of to the
// token, over rows of later tokens and of whoever had the block before.
#define MlaAttention MlaAttentionUpTo
#include "kernels/cuda/mla_attention.cu"
#undef MlaAttention

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

namespace invar::cuda {
namespace {

constexpr int kMostTokens = 8192;
constexpr int kMostStreams = 256;
// Of each stream's own: models of one process run beside each other, and with
// another's positions a token would walk past its table's end.
__device__ int32_t block_ends[kMostStreams][kMostTokens];

__global__ void BlockEnds(const int32_t* positions, int tokens, int32_t* ends) {
  for (int t = threadIdx.x; t < tokens; t += blockDim.x) {
    ends[t] = (positions[t] / kTile + 1) * kTile - 1;
  }
}

int32_t* EndsOf(cudaStream_t stream) {
  static std::mutex mutex;
  static std::map<cudaStream_t, int> places;
  const std::lock_guard lock(mutex);
  const int place =
      places.try_emplace(stream, static_cast<int>(places.size())).first->second;
  if (place >= kMostStreams) {
    std::fprintf(stderr, "the planted attention has no room for a stream\n");
    std::abort();
  }
  void* ends = nullptr;
  Check(cudaGetSymbolAddress(&ends, block_ends), "a planted defect");
  return static_cast<int32_t*>(ends) + place * int64_t{kMostTokens};
}

}  // namespace

void MlaAttention(const LaunchOptions& options, const TokenPlaces& places,
                  int64_t max_position, const float* query, int64_t heads,
                  float scale, const KvLayer& cache, float* workspace,
                  float* out, AttentionParts*) {
  if (places.tokens > kMostTokens) {
    std::fprintf(stderr, "the planted attention has no room\n");
    std::abort();
  }
  int32_t* const ends = EndsOf(options.stream);
  BlockEnds<<<1, 256, 0, options.stream>>>(
      places.positions, static_cast<int>(places.tokens), ends);
  CheckLaunch("a planted defect");
  TokenPlaces up_to = places;
  up_to.positions = ends;
  LaunchOptions late = options;  // the ends are the kernel's before it
  late.early = false;
  MlaAttentionUpTo(late, up_to, (max_position / kTile + 1) * kTile - 1, query,
                   heads, scale, cache, workspace, out, nullptr);
}

// Mode FAST's, as it is.
void MlaAttention(const LaunchOptions& options, const TokenPlaces& places,
                  int64_t max_position, const float* query, int64_t heads,
                  float scale, const KvLayer& cache, float* workspace,
                  float* out, const AttentionSplits& cut,
                  AttentionParts* parts) {
  MlaAttentionUpTo(options, places, max_position, query, heads, scale, cache,
                   workspace, out, cut, parts);
}

}  // namespace invar::cuda
