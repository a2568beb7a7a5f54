// The paged cache of MLA latents.
//
// One row a token and layer: kv_lora_rank latents after kv_a_layernorm, then
// qk_rope_head_dim rotated k_pe, in one dtype. A block is kBlockTokens rows of
// every layer; blocks are handed out by worker/kv/block_pool.h, and a
// sequence's position p lies in its block p / kBlockTokens at row
// p % kBlockTokens.
#ifndef INVAR_WORKER_KV_KV_CACHE_H_
#define INVAR_WORKER_KV_KV_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels/types.h"

namespace invar {

class KvCache {
 public:
  // row_elements: kv_lora_rank + qk_rope_head_dim.
  KvCache(KvDtype dtype, int64_t layers, int64_t blocks, int64_t row_elements)
      : dtype_(dtype),
        layers_(layers),
        blocks_(blocks),
        row_bytes_(row_elements * KvElementBytes(dtype)),
        storage_(Zeros(layers * blocks * kBlockTokens * row_bytes_)) {}

  KvDtype dtype() const { return dtype_; }
  int64_t layers() const { return layers_; }
  int64_t blocks() const { return blocks_; }
  int64_t row_bytes() const { return row_bytes_; }

  // The rows of one block in one layer: (kBlockTokens, row_elements).
  std::byte* Block(int64_t layer, int64_t block) {
    return storage_.get() +
           (layer * blocks_ + block) * kBlockTokens * row_bytes_;
  }
  const std::byte* Block(int64_t layer, int64_t block) const {
    return storage_.get() +
           (layer * blocks_ + block) * kBlockTokens * row_bytes_;
  }

  // Bytes a block takes over all layers.
  static int64_t BlockBytes(KvDtype dtype, int64_t layers,
                            int64_t row_elements) {
    return layers * kBlockTokens * row_elements * KvElementBytes(dtype);
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };

  // The system's own zero pages, which cost neither time nor memory before the
  // first write: a cache is sized for the worst case, and most of it is not
  // touched in the first minutes, if ever.
  static std::unique_ptr<std::byte[], Free> Zeros(int64_t bytes) {
    void* const p = std::calloc(bytes > 0 ? bytes : 1, 1);
    if (p == nullptr) throw std::bad_alloc();
    return std::unique_ptr<std::byte[], Free>(static_cast<std::byte*>(p));
  }

  KvDtype dtype_;
  int64_t layers_;
  int64_t blocks_;
  int64_t row_bytes_;
  std::unique_ptr<std::byte[], Free> storage_;
};

}  // namespace invar

#endif  // INVAR_WORKER_KV_KV_CACHE_H_
