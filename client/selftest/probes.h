// The requests of a self-test, drawn from a seed.
#ifndef INVAR_CLIENT_SELFTEST_PROBES_H_
#define INVAR_CLIENT_SELFTEST_PROBES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "client/bench/random.h"
#include "invar/v1/inference.pb.h"

namespace invar {

// How much is asked.
struct ProbeSizes {
  int probes = 8;               // requests of a dimension
  int output_tokens = 24;       // of each
  int prompt_tokens_max = 160;  // of those whose length does not matter
  int long_prompt_tokens = 600;
  std::vector<int> concurrency = {1, 8, 64};
};

// Draws requests. The same seed draws the same, on every machine.
class Probes {
 public:
  // fingerprint: whose workers shall answer.
  Probes(uint64_t seed, ProbeSizes sizes, int32_t vocab_size,
         std::string fingerprint)
      : random_(seed, /*stream=*/0),
        sizes_(std::move(sizes)),
        vocab_size_(vocab_size),
        fingerprint_(std::move(fingerprint)) {}

  const ProbeSizes& sizes() const { return sizes_; }

  // In [0, below).
  int Below(int below);
  std::vector<int32_t> Ids(int count);

  // A request for as many tokens as it says, with log-probabilities and
  // alternatives: greedy, or with sampling parameters of its own.
  v1::GenerateRequest Greedy(const std::vector<int32_t>& prompt) const;
  v1::GenerateRequest Sampled(const std::vector<int32_t>& prompt);
  // Only the log-probabilities of a text.
  v1::GenerateRequest Score(const std::vector<int32_t>& text) const;

  // With prompts drawn.
  std::vector<v1::GenerateRequest> ManyGreedy(int count);
  std::vector<v1::GenerateRequest> ManySampled(int count);

 private:
  bench::Random random_;
  const ProbeSizes sizes_;
  const int32_t vocab_size_;
  const std::string fingerprint_;
};

// The prompt's ids; the request was made by Probes.
std::vector<int32_t> PromptIdsOf(const v1::GenerateRequest& request);

}  // namespace invar

#endif  // INVAR_CLIENT_SELFTEST_PROBES_H_
