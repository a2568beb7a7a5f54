#include "tests/contract/lanes.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "tests/contract/random.h"
#include "tests/contract/requests.h"

namespace invar::contract {
namespace {

constexpr int64_t kTextBlocks = kLanePositions / kBlockTokens;

RowRequest RequestOf(int64_t position) {
  RowRequest request;
  request.task = RowTask::kChoose;
  request.position = static_cast<uint64_t>(position + 1);
  request.log_prob = true;
  request.likeliest = kTopLogprobs;
  return request;
}

int64_t Limit(const Model& model) {
  return model.config().vocab_size - kPaddingIds;
}

std::vector<int32_t> Iota(int64_t count) {
  std::vector<int32_t> values(count);
  std::iota(values.begin(), values.end(), 0);
  return values;
}

bool Finite(const std::vector<SliceHealth>& health) {
  return std::all_of(health.begin(), health.end(), [](SliceHealth of_one) {
    return of_one == SliceHealth::kFinite;
  });
}

// The cache's blocks from `first_block` on, as LaneRows has them.
std::vector<std::byte> TextRows(const Backend& backend, const KvCache& cache,
                                int64_t first_block) {
  const int64_t bytes = kLanePositions * cache.row_bytes();
  std::vector<std::byte> rows(cache.layers() * bytes);
  for (int64_t layer = 0; layer < cache.layers(); ++layer) {
    backend.read(cache, layer, first_block,
                 std::span(rows).subspan(layer * bytes, bytes));
  }
  return rows;
}

// Decodes every position of each copy: lane i of a copy has the positions from
// i * lane on, the text's blocks before them, and the i-th run of the copy's
// own blocks, which are behind the text's.
std::vector<LaneRows> Decode(Model& model, const Backend& backend, int64_t lane,
                             int64_t copies, Random& random, KvCache& cache) {
  const std::vector<int32_t> text = LaneText();
  const int64_t lanes = kLanePositions / lane;
  std::vector<std::vector<int32_t>> tables;
  for (int64_t s = 0; s < copies * lanes; ++s) {
    const int64_t i = s % lanes;
    tables.push_back(Iota((i + 1) * lane / kBlockTokens));
    for (int64_t b = i * lane / kBlockTokens;
         b < static_cast<int64_t>(tables[s].size()); ++b) {
      tables[s][b] = static_cast<int32_t>((1 + s / lanes) * kTextBlocks + b);
    }
  }
  std::vector<LaneRows> decoded(copies);
  for (LaneRows& copy : decoded) copy.answers.resize(kLanePositions);
  std::vector<int32_t> order = Iota(copies * lanes);
  std::vector<RowAnswer> answers(order.size());
  for (int64_t step = 0; step < lane; ++step) {
    random.Shuffle(order);
    std::vector<SequenceSlice> slices;
    std::vector<RowRequest> requests;
    for (const int32_t s : order) {
      const int64_t position = s % lanes * lane + step;
      slices.push_back({.token_ids = std::span(text).subspan(position, 1),
                        .first_position = position,
                        .block_ids = tables[s],
                        .logit_rows = 1});
      requests.push_back(RequestOf(position));
    }
    const bool finite =
        Finite(model.Answer(slices, cache, Limit(model), requests, answers));
    for (size_t i = 0; i < order.size(); ++i) {
      LaneRows& copy = decoded[order[i] / lanes];
      copy.finite &= finite;
      copy.answers[order[i] % lanes * lane + step] = std::move(answers[i]);
    }
  }
  for (int64_t c = 0; c < copies; ++c) {
    decoded[c].rows = TextRows(backend, cache, (1 + c) * kTextBlocks);
  }
  return decoded;
}

Comparison CompareBoth(const std::string& name, const LaneRows& own,
                       const LaneRows& alone) {
  Comparison result = CompareRows(name, own.answers, alone.answers);
  if (!own.finite) {
    result.findings.push_back(absl::StrCat(name, ": a value is not finite"));
  }
  const int64_t count =
      static_cast<int64_t>(alone.rows.size()) / alone.row_bytes;
  bool told = false;
  for (int64_t i = 0; i < count; ++i) {
    ++result.cache_rows;
    const int64_t at = i * alone.row_bytes;
    if (std::memcmp(&own.rows[at], &alone.rows[at], alone.row_bytes) == 0) {
      continue;
    }
    ++result.differing;
    if (told) continue;
    told = true;
    result.findings.push_back(absl::StrCat(
        name, ": the cache of position ", i % kLanePositions, " in layer ",
        i / kLanePositions, " is another than alone"));
  }
  return result;
}

}  // namespace

std::string Digest(const LaneRows& rows) {
  Sha256 hash;
  const auto add = [&hash](const TokenLogProb& token) {
    char bytes[8];
    std::memcpy(bytes, &token.token_id, 4);
    std::memcpy(bytes + 4, &token.log_prob, 4);
    hash.Update({bytes, sizeof(bytes)});
  };
  for (const RowAnswer& answer : rows.answers) {
    add(answer.token);
    for (const TokenLogProb& alternative : answer.likeliest) add(alternative);
  }
  hash.Update(
      {reinterpret_cast<const char*>(rows.rows.data()), rows.rows.size()});
  return hash.HexDigest();
}

LaneRows PrefillLanes(Model& model, const Backend& backend, int64_t chunk,
                      KvCache& cache) {
  const std::vector<int32_t> text = LaneText();
  const std::vector<int32_t> table = Iota(kTextBlocks);
  LaneRows prefilled;
  prefilled.answers.resize(kLanePositions);
  for (int64_t first = 0; first < kLanePositions; first += chunk) {
    const int64_t size = std::min<int64_t>(chunk, kLanePositions - first);
    const SequenceSlice slice = {
        .token_ids = std::span(text).subspan(first, size),
        .first_position = first,
        .block_ids = table,
        .logit_rows = size};
    std::vector<RowRequest> requests;
    for (int64_t i = 0; i < size; ++i) requests.push_back(RequestOf(first + i));
    prefilled.finite &=
        Finite(model.Answer({&slice, 1}, cache, Limit(model), requests,
                            std::span(prefilled.answers).subspan(first, size)));
  }
  prefilled.rows = TextRows(backend, cache, 0);
  prefilled.row_bytes = cache.row_bytes();
  return prefilled;
}

Comparison CompareLanes(Model& model, const Backend& backend, const Cell& cell,
                        uint64_t seed, const LaneRows& alone) {
  const std::unique_ptr<KvCache> cache =
      model.NewKvCache((1 + cell.copies) * kTextBlocks);
  backend.soil(*cache, seed);
  Random random(seed);
  Comparison result =
      CompareBoth("the text prefilled",
                  PrefillLanes(model, backend, cell.chunk, *cache), alone);
  for (const LaneRows& copy :
       Decode(model, backend, cell.lane, cell.copies, random, *cache)) {
    result += CompareBoth("the text decoded", copy, alone);
  }
  return result;
}

}  // namespace invar::contract
