#include "kernels/cpu/codes.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

// Quantises `count` values over `scale`; true if all were finite.
template <typename Code>
bool Quantize(const float* x, float scale, int64_t count, std::byte* out) {
  __m256 bad = _mm256_setzero_ps();
  for (int64_t k = 0; k < count; k += kLanes) {
    const Lanes v = Load(x + k);
    bad = _mm256_or_ps(bad, NonFinite(v));
    Code::Encode(Divide(v, Broadcast(scale)), out + k * Code::kBytes);
  }
  return _mm256_movemask_ps(bad) == 0;
}

}  // namespace

void KvAppend(ThreadPool& pool, std::span<const TokenPlace> places,
              const float* latent, const float* k_pe, int64_t k_pe_stride,
              const KvLayer& cache, uint8_t* finite) {
  DispatchKv(cache.dtype, [&](auto code) {
    using Code = decltype(code);
    const int64_t row_bytes = cache.row_elements() * Code::kBytes;
    const auto append = [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t position = places[t].position;
        const int64_t block = places[t].block_ids[position / kBlockTokens];
        std::byte* row =
            cache.data +
            (block * kBlockTokens + position % kBlockTokens) * row_bytes;
        const bool latent_finite = Quantize<Code>(
            latent + t * cache.latent, cache.scale, cache.latent, row);
        const bool k_pe_finite =
            Quantize<Code>(k_pe + t * k_pe_stride, cache.scale, cache.rope,
                           row + cache.latent * Code::kBytes);
        if (!latent_finite || !k_pe_finite) finite[t] = 0;
      }
    };
    pool.ParallelForRows(static_cast<int64_t>(places.size()),
                         2 * cache.row_elements(), append);
  });
}

}  // namespace invar::cpu
