// What a load asks: every request follows from the options and its index.
#ifndef INVAR_CLIENT_BENCH_WORKLOAD_H_
#define INVAR_CLIENT_BENCH_WORKLOAD_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/bench/dataset.h"
#include "invar/v1/inference.pb.h"

namespace invar::bench {

// A length in tokens, drawn uniformly from [low, high].
struct LengthRange {
  int32_t low = 0;
  int32_t high = 0;
};

// "256" or "64:512". INVALID_ARGUMENT names the flag.
absl::StatusOr<LengthRange> ParseLengthRange(absl::string_view flag,
                                             absl::string_view text);

struct WorkloadOptions {
  std::string model;
  LengthRange input_tokens{128, 128};
  LengthRange output_tokens{128, 128};
  // This share of the requests, in [0, 1], begins with one of prefix_count
  // common prefixes of prefix_tokens, which count among the input tokens.
  int32_t prefix_tokens = 0;
  double prefix_share = 1;
  int32_t prefix_count = 1;
  // Above 0: sampled, each request with a seed of its own.
  float temperature = 0;
  // The answer also ends where the model ends it.
  bool stop_at_eos = false;
  bool logprobs = false;
  uint64_t seed = 0;
  // Ids are drawn from [0, vocab_size).
  int32_t vocab_size = 0;
  // If not empty, prompts are text: these pieces in place of ids, one for each
  // input token. The server may tokenize their seams otherwise.
  std::vector<std::string> pieces = {};
  // If not empty, prompts are these, in order and from the start again.
  std::vector<DatasetEntry> dataset = {};
  // Requests 0 to distinct - 1 are sent again as distinct to
  // 2 * distinct - 1, in another order, and so on. Absent: none is.
  std::optional<int64_t> distinct = {};
};

// Thread-compatible: const methods from any thread.
class Workload {
 public:
  explicit Workload(WorkloadOptions options);

  // Which distinct request stands at a place of the sequence.
  int64_t DistinctAt(int64_t place) const;
  // A distinct request; indices below 0 are the warm-up's.
  v1::GenerateRequest Make(int64_t index) const;

 private:
  void FillRandom(int64_t index, v1::GenerateRequest& request) const;

  const WorkloadOptions options_;
};

}  // namespace invar::bench

#endif  // INVAR_CLIENT_BENCH_WORKLOAD_H_
