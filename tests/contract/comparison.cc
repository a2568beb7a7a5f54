#include "tests/contract/comparison.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace invar::contract {
namespace {

using worker::v1::Submit;
using worker::v1::Terminal;

// Compares one request's values, keeping its first difference.
class Comparer {
 public:
  explicit Comparer(const std::string& name) : name_(name) {}

  void LogProb(const char* what, int64_t position, float actual,
               float expected) {
    ++result_.log_probs;
    const auto bits = std::bit_cast<uint32_t>(actual);
    const auto expected_bits = std::bit_cast<uint32_t>(expected);
    if (bits == expected_bits) return;
    Differ(
        absl::StrFormat("%s of position %d is 0x%08x (%.9g), alone "
                        "0x%08x (%.9g)",
                        what, position, bits, actual, expected_bits, expected));
  }
  void Token(const char* what, int64_t position, int32_t actual,
             int32_t expected) {
    ++result_.tokens;
    if (actual == expected) return;
    Differ(absl::StrFormat("%s of position %d is %d, alone %d", what, position,
                           actual, expected));
  }
  void Wrong(const std::string& finding) {
    result_.findings.push_back(absl::StrCat(name_, ": ", finding));
  }
  const Comparison& result() const { return result_; }

 private:
  void Differ(const std::string& finding) {
    if (result_.differing == 0) Wrong(finding);
    ++result_.differing;
  }

  const std::string name_;
  Comparison result_;
};

// Output tokens that a submit already had.
size_t Delivered(const Submit& submit) {
  return submit.total_tokens() - submit.prompt_tokens();
}

// An answer must have ended as it was asked to, with a value for each token.
void CheckShape(const Submit& submit, const Answer& answer,
                const Answer& reference, bool cancelled, Comparer& compare) {
  const size_t tokens = answer.token_ids.size();
  const Terminal::Reason reason = answer.reason();
  const size_t written = Delivered(submit) + tokens;
  const bool whole = written == static_cast<size_t>(submit.max_tokens());
  const auto& stops = submit.sampling().stop_token_ids();
  const bool stopped =
      tokens > 0 && std::find(stops.begin(), stops.end(),
                              answer.token_ids.back()) != stops.end();
  if (!(reason == Terminal::LENGTH && whole) &&
      !(reason == Terminal::STOP && stopped) &&
      !(reason == Terminal::CANCELLED && cancelled)) {
    compare.Wrong(absl::StrCat(
        "ended with ", Terminal::Reason_Name(reason), " after ", tokens,
        " tokens: ",
        answer.terminal.has_value() ? answer.terminal->message() : ""));
  }
  if (written > reference.token_ids.size()) {
    compare.Wrong("wrote more tokens than alone");
  }
  if (submit.logprobs() && answer.logprobs.size() != tokens) {
    compare.Wrong("has not one log-probability a token");
  }
  if (submit.top_logprobs() > 0 && answer.alternatives.size() != tokens) {
    compare.Wrong("has not its alternatives for each token");
  }
  const size_t scores =
      submit.prompt_logprobs() ? reference.prompt_logprobs.size() : 0;
  if (answer.prompt_logprobs.size() > scores ||
      (tokens > 0 && answer.prompt_logprobs.size() < scores)) {
    compare.Wrong(absl::StrCat(answer.prompt_logprobs.size(),
                               " log-probabilities for a prompt that has ",
                               scores));
  }
}

// Compares what is known of one output token: the answer's i-th, the
// reference's k-th.
void CompareToken(const Submit& submit, const Answer& answer, size_t i,
                  const Answer& reference, size_t k, Comparer& compare) {
  const int64_t position = submit.prompt_tokens() + static_cast<int64_t>(k);
  compare.Token("the token", position, answer.token_ids[i],
                reference.token_ids[k]);
  if (answer.positions[i] != position) {
    compare.Wrong(absl::StrCat("the token of position ", position,
                               " was reported as of position ",
                               answer.positions[i]));
  }
  if (i < answer.logprobs.size()) {
    compare.LogProb("the log-probability", position, answer.logprobs[i],
                    reference.logprobs[k]);
  }
  if (i >= answer.alternatives.size()) return;
  const worker::v1::Alternatives& own = answer.alternatives[i];
  const worker::v1::Alternatives& alone = reference.alternatives[k];
  if (own.token_ids_size() != submit.top_logprobs()) {
    compare.Wrong("has another number of alternatives than asked for");
  }
  for (int a = 0; a < std::min(own.token_ids_size(), alone.token_ids_size());
       ++a) {
    compare.Token("an alternative", position, own.token_ids(a),
                  alone.token_ids(a));
    compare.LogProb("an alternative's log-probability", position,
                    own.logprobs(a), alone.logprobs(a));
  }
}

}  // namespace

void Comparison::operator+=(const Comparison& other) {
  log_probs += other.log_probs;
  tokens += other.tokens;
  cache_rows += other.cache_rows;
  differing += other.differing;
  preemptions += other.preemptions;
  findings.insert(findings.end(), other.findings.begin(), other.findings.end());
}

Comparison Compare(const std::string& name, const Submit& submit,
                   const Answer& answer, const Answer& reference,
                   bool cancelled) {
  Comparer compare(name);
  CheckShape(submit, answer, reference, cancelled, compare);
  for (size_t i = 0; i < std::min(answer.prompt_logprobs.size(),
                                  reference.prompt_logprobs.size());
       ++i) {
    compare.LogProb("the prompt's log-probability", i + 1,
                    answer.prompt_logprobs[i], reference.prompt_logprobs[i]);
  }
  const size_t delivered = Delivered(submit);
  for (size_t i = 0; i < answer.token_ids.size() &&
                     delivered + i < reference.token_ids.size();
       ++i) {
    CompareToken(submit, answer, i, reference, delivered + i, compare);
  }
  return compare.result();
}

Comparison CompareScores(const std::string& name,
                         const std::vector<float>& scores,
                         const std::vector<float>& expected) {
  Comparer compare(name);
  if (scores.size() != expected.size()) {
    compare.Wrong(absl::StrCat("has ", scores.size(),
                               " log-probabilities, not ", expected.size()));
  }
  for (size_t i = 0; i < std::min(scores.size(), expected.size()); ++i) {
    compare.LogProb("the log-probability", i + 1, scores[i], expected[i]);
  }
  return compare.result();
}

Comparison CompareRows(const std::string& name,
                       const std::vector<RowAnswer>& answers,
                       const std::vector<RowAnswer>& expected) {
  Comparer compare(name);
  const auto token = [&compare](const char* what, int64_t position,
                                const TokenLogProb& actual,
                                const TokenLogProb& alone) {
    compare.Token(what, position, actual.token_id, alone.token_id);
    compare.LogProb("its log-probability", position, actual.log_prob,
                    alone.log_prob);
  };
  for (size_t i = 0; i < std::min(answers.size(), expected.size()); ++i) {
    const std::vector<TokenLogProb>& likeliest = answers[i].likeliest;
    token("the choice", i, answers[i].token, expected[i].token);
    if (likeliest.size() != expected[i].likeliest.size()) {
      compare.Wrong("has another number of alternatives than alone");
      continue;
    }
    for (size_t a = 0; a < likeliest.size(); ++a) {
      token("an alternative", i, likeliest[a], expected[i].likeliest[a]);
    }
  }
  return compare.result();
}

}  // namespace invar::contract
