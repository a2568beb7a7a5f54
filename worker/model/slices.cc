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
                 int64_t logits) {
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
  Require(rows * config.vocab_size == logits,
          "logits of another size than the rows asked for");
}

void CheckPlanned(std::span<const SequenceSlice> slices, int64_t sequences,
                  int64_t positions) {
  Require(static_cast<int64_t>(slices.size()) <= sequences,
          "more sequences than the model was loaded for");
  for (const SequenceSlice& slice : slices) {
    const int64_t size = static_cast<int64_t>(slice.token_ids.size());
    Require(slice.first_position + size <= positions,
            "a position beyond the context that the model was loaded for");
  }
}

std::vector<uint8_t> FiniteRows(const ModelConfig& config,
                                std::span<const float> logits) {
  std::vector<uint8_t> finite;
  for (; !logits.empty(); logits = logits.subspan(config.vocab_size)) {
    finite.push_back(cpu::AllFinite(logits.first(config.vocab_size)));
  }
  return finite;
}

std::vector<SliceSize> SizesOf(std::span<const SequenceSlice> slices) {
  std::vector<SliceSize> sizes;
  for (const SequenceSlice& slice : slices) {
    sizes.push_back(
        {static_cast<int64_t>(slice.token_ids.size()), slice.logit_rows});
  }
  return sizes;
}

std::vector<SliceHealth> Health(std::span<const SliceSize> slices,
                                std::span<const uint8_t> finite_tokens,
                                std::span<const uint8_t> finite_rows) {
  const auto take = [](std::span<const uint8_t>* from, size_t count) {
    const auto taken = from->first(count);
    *from = from->subspan(count);
    return std::find(taken.begin(), taken.end(), 0) == taken.end();
  };
  std::vector<SliceHealth> health;
  for (const SliceSize& slice : slices) {
    const bool tokens = take(&finite_tokens, slice.tokens);
    const bool rows = take(&finite_rows, slice.rows);
    health.push_back(tokens && rows ? SliceHealth::kFinite
                                    : SliceHealth::kNonFinite);
  }
  return health;
}

std::vector<std::span<const SequenceSlice>> CutEvenly(
    std::span<const SequenceSlice> slices, int64_t parts, int64_t token_cost) {
  std::vector<int64_t> ends;  // what the slices up to here cost
  int64_t total = 0;
  for (const SequenceSlice& slice : slices) {
    const int64_t size = static_cast<int64_t>(slice.token_ids.size());
    total += size * (token_cost + slice.first_position + size / 2);
    ends.push_back(total);
  }
  std::vector<std::span<const SequenceSlice>> runs;
  size_t begin = 0;
  int64_t spent = 0;
  for (int64_t part = 1; part <= parts; ++part) {
    // Up to the slice whose middle is past the cut.
    size_t end = begin;
    while (end < slices.size()) {
      const int64_t before = end == 0 ? 0 : ends[end - 1];
      if ((before + ends[end]) / 2 >= total * part / parts) break;
      ++end;
    }
    const int64_t cost = (end == 0 ? 0 : ends[end - 1]) - spent;
    if (end == begin || cost > total / parts + total / parts / 8) return {};
    runs.push_back(slices.subspan(begin, end - begin));
    begin = end;
    spent += cost;
  }
  return runs;
}

}  // namespace invar
