#include "worker/model/slices.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "kernels/ops.h"

namespace invar {
namespace {

void Require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "Model::Forward: %s\n", what);
  std::abort();
}

}  // namespace

void CheckSlices(const ModelConfig& config, KvDtype kv_dtype,
                 std::span<const SequenceSlice> slices, const KvCache& cache,
                 std::span<const float> logits) {
  Require(cache.dtype() == kv_dtype && cache.layers() == config.layers &&
              cache.row_bytes() ==
                  config.kv_row_elements() * KvElementBytes(kv_dtype),
          "the cache is another model's");
  int64_t rows = 0;
  for (const SequenceSlice& slice : slices) {
    const int64_t size = static_cast<int64_t>(slice.token_ids.size());
    rows += slice.logit_rows;
    Require(size > 0 && slice.first_position >= 0, "an empty slice");
    Require(slice.logit_rows >= 0 && slice.logit_rows <= size,
            "logit_rows outside the slice");
    Require(slice.first_position + size <=
                static_cast<int64_t>(slice.block_ids.size()) * kBlockTokens,
            "block_ids do not cover the slice");
    for (const int32_t id : slice.token_ids) {
      Require(id >= 0 && id < config.vocab_size, "a token id out of range");
    }
    for (const int32_t id : slice.block_ids) {
      Require(id >= 0 && id < cache.blocks(), "a block id out of range");
    }
  }
  Require(rows * config.vocab_size == static_cast<int64_t>(logits.size()),
          "logits of another size than the rows asked for");
}

std::vector<SliceHealth> Health(const ModelConfig& config,
                                std::span<const SequenceSlice> slices,
                                std::span<const uint8_t> finite,
                                std::span<const float> logits) {
  std::vector<SliceHealth> health;
  for (const SequenceSlice& slice : slices) {
    const auto tokens = finite.first(slice.token_ids.size());
    const auto rows = logits.first(slice.logit_rows * config.vocab_size);
    const bool healthy =
        std::find(tokens.begin(), tokens.end(), 0) == tokens.end() &&
        cpu::AllFinite(rows);
    health.push_back(healthy ? SliceHealth::kFinite : SliceHealth::kNonFinite);
    finite = finite.subspan(tokens.size());
    logits = logits.subspan(rows.size());
  }
  return health;
}

}  // namespace invar
