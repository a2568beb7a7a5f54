// Counts what two answers to the same question do not have in common.
#ifndef INVAR_CLIENT_SELFTEST_COMPARISON_H_
#define INVAR_CLIENT_SELFTEST_COMPARISON_H_

#include <cstdint>
#include <span>
#include <string>

#include "absl/strings/string_view.h"
#include "invar/v1/inference.pb.h"

namespace invar {

// What is compared so far. Values: token ids and log-probabilities, 32 bits
// each, and bytes of text. A value that one side lacks differs in all its bits.
class Comparison {
 public:
  int64_t values() const { return values_; }
  int64_t differing_bits() const { return differing_bits_; }
  // "CELL: token 3 is 17, not 12"; empty: no bit differs.
  const std::string& first_difference() const { return first_difference_; }

  // `cell` names what was done differently.
  void Tokens(absl::string_view cell, std::span<const int32_t> expected,
              std::span<const int32_t> actual);
  // what: "log-probability" or another word for one of them.
  void Floats(absl::string_view cell, absl::string_view what,
              std::span<const float> expected, std::span<const float> actual);
  void Text(absl::string_view cell, const std::string& expected,
            const std::string& actual);
  // Tokens, log-probabilities with the likeliest alternatives, and text, the
  // first `skipped` tokens of what is expected left out; then the text is too.
  void Answers(absl::string_view cell, const v1::Answer& expected,
               const v1::Answer& actual, int skipped = 0);

 private:
  void Count(absl::string_view cell, int64_t bits, std::string difference);

  int64_t values_ = 0;
  int64_t differing_bits_ = 0;
  std::string first_difference_;
};

}  // namespace invar

#endif  // INVAR_CLIENT_SELFTEST_COMPARISON_H_
