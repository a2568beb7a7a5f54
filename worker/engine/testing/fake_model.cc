#include "worker/engine/testing/fake_model.h"

#include <cstdlib>
#include <cstring>
#include <span>

namespace invar {
namespace {

// One step of FNV-1a, wide enough to tell any two short texts apart.
uint64_t Mix(uint64_t hash, uint64_t value) {
  return (hash ^ (value + 1)) * 1099511628211ull;
}

constexpr uint64_t kStart = 14695981039346656037ull;

std::vector<float> LogitsOf(uint64_t hash, int64_t vocab_size) {
  std::vector<float> logits(vocab_size);
  for (int64_t id = 0; id < vocab_size; ++id) {
    const uint64_t mixed = Mix(Mix(hash, id), hash >> 32);
    logits[id] = static_cast<float>((mixed >> 20) % 4001) / 500.0f - 4.0f;
  }
  return logits;
}

}  // namespace

FakeModel::FakeModel(Options options) : options_(std::move(options)) {
  config_.vocab_size = options_.vocab_size;
  config_.max_position_embeddings = options_.max_position_embeddings;
  config_.layers = 1;
  config_.kv_lora_rank = 1;
  config_.qk_rope_head_dim = 0;
}

std::unique_ptr<KvCache> FakeModel::NewKvCache(int64_t blocks) const {
  if (options_.memory_is_taken) return nullptr;
  return std::make_unique<KvCache>(KvDtype::kFp32, 1, blocks, 1);
}

std::vector<SliceHealth> FakeModel::Forward(
    std::span<const SequenceSlice> slices, KvCache& cache,
    std::span<float> logits) {
  if (options_.on_forward) options_.on_forward(slices);
  std::vector<SliceHealth> health;
  float* row = logits.data();
  for (const SequenceSlice& slice : slices) {
    const int64_t size = static_cast<int64_t>(slice.token_ids.size());
    for (int64_t i = 0; i < size; ++i) {
      const int64_t position = slice.first_position + i;
      std::byte* block =
          cache.Block(0, slice.block_ids[position / kBlockTokens]);
      std::memcpy(block + position % kBlockTokens * cache.row_bytes(),
                  &slice.token_ids[i], sizeof(int32_t));
    }
    uint64_t hash = kStart;
    bool poisoned = false;
    for (int64_t position = 0; position < slice.first_position + size;
         ++position) {
      int32_t id = 0;
      std::memcpy(&id,
                  cache.Block(0, slice.block_ids[position / kBlockTokens]) +
                      position % kBlockTokens * cache.row_bytes(),
                  sizeof(id));
      hash = Mix(hash, id);
      poisoned |= id == options_.poison_id;
      if (position < slice.first_position + size - slice.logit_rows) continue;
      const std::vector<float> values = LogitsOf(hash, options_.vocab_size);
      std::memcpy(row, values.data(), values.size() * sizeof(float));
      row += options_.vocab_size;
    }
    health.push_back(poisoned ? SliceHealth::kNonFinite : SliceHealth::kFinite);
  }
  return health;
}

std::vector<float> FakeModel::Logits(std::span<const int32_t> token_ids) const {
  uint64_t hash = kStart;
  for (const int32_t id : token_ids) hash = Mix(hash, id);
  return LogitsOf(hash, options_.vocab_size);
}

}  // namespace invar
