// The paged cache of MLA latents.
//
// One row a token and layer: kv_lora_rank latents after kv_a_layernorm, then
// qk_rope_head_dim rotated k_pe, in one dtype. A block is kBlockTokens rows of
// every layer; blocks are handed out by worker/kv/block_pool.h, and a
// sequence's position p lies in its block p / kBlockTokens at row
// p % kBlockTokens.
#ifndef INVAR_WORKER_KV_KV_CACHE_H_
#define INVAR_WORKER_KV_KV_CACHE_H_

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "kernels/types.h"

namespace invar {

class KvCache {
 public:
  // Memory that a backend reads and writes, and how to give it back.
  using Storage = std::unique_ptr<std::byte[], void (*)(std::byte*)>;

  // In host memory. row_elements: kv_lora_rank + qk_rope_head_dim.
  KvCache(KvDtype dtype, int64_t layers, int64_t blocks, int64_t row_elements)
      : KvCache(dtype, layers, blocks, row_elements,
                Zeros(Bytes(dtype, layers, blocks, row_elements))) {}
  // In `storage`, which has Bytes(...) of them.
  KvCache(KvDtype dtype, int64_t layers, int64_t blocks, int64_t row_elements,
          Storage storage)
      : dtype_(dtype),
        layers_(layers),
        blocks_(blocks),
        row_bytes_(row_elements * KvElementBytes(dtype)),
        storage_(std::move(storage)) {}

  KvDtype dtype() const { return dtype_; }
  int64_t layers() const { return layers_; }
  int64_t blocks() const { return blocks_; }
  int64_t row_bytes() const { return row_bytes_; }

  // The rows of one block in one layer: (kBlockTokens, row_elements). Where
  // the backend has its memory: a GPU's is not for the host to read.
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

  static int64_t Bytes(KvDtype dtype, int64_t layers, int64_t blocks,
                       int64_t row_elements) {
    return blocks * BlockBytes(dtype, layers, row_elements);
  }

 private:
  // The system's own zero pages, which cost neither time nor memory before the
  // first write: a cache is sized for the worst case, and most of it is not
  // touched in the first minutes, if ever. Begins at a cache line, as then do
  // the rows of published models; calloc's own pointer is kept in front.
  static Storage Zeros(int64_t bytes) {
    constexpr int64_t kLine = 64;
    auto* const p = static_cast<std::byte*>(std::calloc(bytes + kLine, 1));
    if (p == nullptr) throw std::bad_alloc();
    AdviseHugePages(p, bytes);
    std::byte* const line = p + kLine - reinterpret_cast<uintptr_t>(p) % kLine;
    static_assert(alignof(std::max_align_t) >= sizeof(p));
    std::memcpy(line - sizeof(p), &p, sizeof(p));
    return Storage(line, [](std::byte* line) {
      void* p;
      std::memcpy(&p, line - sizeof(p), sizeof(p));
      std::free(p);
    });
  }

  // Only advice: a step reads some rows of each of many blocks, more pages of
  // 4 KiB than a processor keeps the translations of.
  static void AdviseHugePages(std::byte* p, int64_t bytes) {
    constexpr uintptr_t kPage = 4096;
    const uintptr_t begin =
        (reinterpret_cast<uintptr_t>(p) + kPage - 1) / kPage * kPage;
    const uintptr_t end =
        (reinterpret_cast<uintptr_t>(p) + bytes) / kPage * kPage;
    if (begin < end) {
      madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
    }
  }

  KvDtype dtype_;
  int64_t layers_;
  int64_t blocks_;
  int64_t row_bytes_;
  Storage storage_;
};

}  // namespace invar

#endif  // INVAR_WORKER_KV_KV_CACHE_H_
