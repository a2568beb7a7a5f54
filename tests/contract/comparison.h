// Bit for bit: an answer, and what the same request is answered when it runs
// alone.
#ifndef INVAR_TESTS_CONTRACT_COMPARISON_H_
#define INVAR_TESTS_CONTRACT_COMPARISON_H_

#include <cstdint>
#include <string>
#include <vector>

#include "invar/worker/v1/link.pb.h"
#include "worker/engine/testing/engine_harness.h"
#include "worker/model/rows.h"

namespace invar::contract {

// What was compared so far, and what of it differed.
struct Comparison {
  int64_t log_probs = 0;   // of output tokens, alternatives and prompts
  int64_t tokens = 0;      // output tokens and alternatives
  int64_t cache_rows = 0;  // one a position and layer
  int64_t differing = 0;   // of all three
  int64_t preemptions = 0;
  // The first difference of each request, and whatever else was wrong.
  std::vector<std::string> findings;

  void operator+=(const Comparison& other);
};

// Compares what `answer` has with `reference`, the answer to the same request
// in full: the reference may have written more tokens and more alternatives.
// `cancelled`: the answer may stop anywhere.
Comparison Compare(const std::string& name, const worker::v1::Submit& submit,
                   const Answer& answer, const Answer& reference,
                   bool cancelled);

// Compares prompt log-probabilities alone, of positions from 1.
Comparison CompareScores(const std::string& name,
                         const std::vector<float>& scores,
                         const std::vector<float>& expected);

// Compares the model's answers to rows of logits, one a position from 0.
Comparison CompareRows(const std::string& name,
                       const std::vector<RowAnswer>& answers,
                       const std::vector<RowAnswer>& expected);

}  // namespace invar::contract

#endif  // INVAR_TESTS_CONTRACT_COMPARISON_H_
