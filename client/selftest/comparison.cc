#include "client/selftest/comparison.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace invar {
namespace {

constexpr int64_t kValueBits = 32;
constexpr int64_t kByteBits = 8;

template <typename Value>
std::string At(std::span<const Value> values, size_t i) {
  return i < values.size() ? absl::StrFormat("%.9g", values[i]) : "absent";
}

std::string At(std::span<const int32_t> values, size_t i) {
  return i < values.size() ? absl::StrCat(values[i]) : "absent";
}

// The values from `skipped` on.
template <typename Value>
std::span<const Value> From(
    const google::protobuf::RepeatedField<Value>& values, int skipped) {
  const int first = std::min(skipped, values.size());
  return {values.data() + first, static_cast<size_t>(values.size() - first)};
}

}  // namespace

void Comparison::Count(absl::string_view cell, int64_t bits,
                       std::string difference) {
  ++values_;
  if (bits == 0) return;
  differing_bits_ += bits;
  if (first_difference_.empty()) {
    first_difference_ = absl::StrCat(cell, ": ", difference);
  }
}

void Comparison::Tokens(absl::string_view cell,
                        std::span<const int32_t> expected,
                        std::span<const int32_t> actual) {
  for (size_t i = 0; i < std::max(expected.size(), actual.size()); ++i) {
    const bool both = i < expected.size() && i < actual.size();
    const int64_t bits =
        both ? std::popcount(static_cast<uint32_t>(expected[i] ^ actual[i]))
             : kValueBits;
    Count(cell, bits,
          bits == 0 ? ""
                    : absl::StrCat("token ", i, " is ", At(actual, i), ", not ",
                                   At(expected, i)));
  }
}

void Comparison::Floats(absl::string_view cell, absl::string_view what,
                        std::span<const float> expected,
                        std::span<const float> actual) {
  for (size_t i = 0; i < std::max(expected.size(), actual.size()); ++i) {
    const bool both = i < expected.size() && i < actual.size();
    const int64_t bits =
        both ? std::popcount(std::bit_cast<uint32_t>(expected[i]) ^
                             std::bit_cast<uint32_t>(actual[i]))
             : kValueBits;
    Count(cell, bits,
          bits == 0 ? ""
                    : absl::StrCat(what, " ", i, " is ", At(actual, i),
                                   ", not ", At(expected, i)));
  }
}

void Comparison::Text(absl::string_view cell, const std::string& expected,
                      const std::string& actual) {
  for (size_t i = 0; i < std::max(expected.size(), actual.size()); ++i) {
    const bool both = i < expected.size() && i < actual.size();
    const int64_t bits =
        both ? std::popcount(static_cast<uint8_t>(expected[i] ^ actual[i]))
             : kByteBits;
    Count(cell, bits, absl::StrCat("the texts differ at byte ", i));
  }
}

void Comparison::Answers(absl::string_view cell, const v1::Answer& expected,
                         const v1::Answer& actual, int skipped) {
  Tokens(cell, From(expected.token_ids(), skipped),
         From(actual.token_ids(), 0));
  Floats(cell, "log-probability", From(expected.logprobs(), skipped),
         From(actual.logprobs(), 0));
  const int alternatives = std::max(expected.top_logprobs_size() - skipped,
                                    actual.top_logprobs_size());
  static const v1::TopLogprobs kNone;
  for (int i = 0; i < alternatives; ++i) {
    const v1::TopLogprobs& one = skipped + i < expected.top_logprobs_size()
                                     ? expected.top_logprobs(skipped + i)
                                     : kNone;
    const v1::TopLogprobs& other =
        i < actual.top_logprobs_size() ? actual.top_logprobs(i) : kNone;
    const std::string at = absl::StrCat(cell, ", alternatives to token ", i);
    Tokens(at, From(one.token_ids(), 0), From(other.token_ids(), 0));
    Floats(at, "log-probability", From(one.logprobs(), 0),
           From(other.logprobs(), 0));
  }
  if (skipped == 0) Text(cell, expected.text(), actual.text());
}

}  // namespace invar
