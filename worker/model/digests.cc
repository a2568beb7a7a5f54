#include "worker/model/digests.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/digest.h"

namespace invar {
namespace {

std::string RowDigest(const float* row, int64_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(row),
                                size * sizeof(float));
  return Sha256Hex(bytes).substr(0, 16);
}

}  // namespace

std::vector<std::string> DumpDigests(Model& model,
                                     std::span<const int32_t> token_ids,
                                     int64_t chunk) {
  const int64_t tokens = static_cast<int64_t>(token_ids.size());
  const auto cache = model.NewKvCache((tokens - 1) / kBlockTokens + 1);
  std::vector<int32_t> blocks(cache->blocks());
  std::iota(blocks.begin(), blocks.end(), 0);
  std::vector<float> logits(chunk * model.config().vocab_size);

  // The lines of each operation; every chunk has the same operations.
  std::vector<std::vector<std::string>> operations;
  size_t operation = 0;
  int64_t first = 0;
  model.Observe([&](const OpOutput& output) {
    if (operation == operations.size()) operations.emplace_back();
    for (int64_t row = 0; row < output.rows; ++row) {
      operations[operation].push_back(absl::StrCat(
          output.layer, " ",
          absl::string_view(output.op.data(), output.op.size()), " ",
          first + row, " ",
          RowDigest(output.values + row * output.row_size, output.row_size)));
    }
    ++operation;
  });
  for (; first < tokens; first += chunk) {
    operation = 0;
    const int64_t size = std::min(chunk, tokens - first);
    const SequenceSlice slice = {.token_ids = token_ids.subspan(first, size),
                                 .first_position = first,
                                 .block_ids = blocks,
                                 .logit_rows = size};
    model.Forward({&slice, 1}, *cache,
                  std::span(logits).first(size * model.config().vocab_size));
  }
  model.Observe({});

  std::vector<std::string> lines;
  for (const std::vector<std::string>& of_one : operations) {
    lines.insert(lines.end(), of_one.begin(), of_one.end());
  }
  return lines;
}

std::string FirstDifference(const std::vector<std::string>& a,
                            const std::vector<std::string>& b) {
  for (size_t i = 0; i < std::max(a.size(), b.size()); ++i) {
    const std::string left = i < a.size() ? a[i] : "(end)";
    const std::string right = i < b.size() ? b[i] : "(end)";
    if (left != right) return absl::StrCat(left, "\n", right);
  }
  return "";
}

}  // namespace invar
