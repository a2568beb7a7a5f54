#include "worker/model/rows.h"

#include <algorithm>
#include <iterator>
#include <numeric>

namespace invar {
namespace {

// Costs the tokens used, not the vocabulary.
int32_t Choose(std::span<float> logits, int64_t limit,
               const RowRequest& request) {
  std::vector<float> raw;
  raw.reserve(request.uses.size());
  for (const cpu::TokenUse& use : request.uses) raw.push_back(logits[use.id]);
  cpu::AdjustLogits(request.uses, request.penalties, logits);
  const int32_t token = cpu::Sample(logits, limit, request.sampling,
                                    request.seed, request.position);
  for (size_t i = 0; i < raw.size(); ++i) logits[request.uses[i].id] = raw[i];
  return token;
}

std::vector<TokenLogProb> Likeliest(std::span<const float> logits,
                                    int64_t limit, double log_sum_exp,
                                    int64_t count) {
  std::vector<int32_t> ids(limit);
  std::iota(ids.begin(), ids.end(), 0);
  count = std::min(count, limit);
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(),
                    [&](int32_t a, int32_t b) {
                      if (logits[a] != logits[b]) return logits[a] > logits[b];
                      return a < b;
                    });
  std::vector<TokenLogProb> likeliest;
  for (int64_t i = 0; i < count; ++i) {
    likeliest.push_back({ids[i], cpu::LogProb(logits, log_sum_exp, ids[i])});
  }
  return likeliest;
}

}  // namespace

RowAnswer AnswerRow(std::span<float> logits, int64_t limit,
                    const RowRequest& request) {
  RowAnswer answer;
  if (request.task == RowTask::kNone) return answer;
  const bool scores = request.task == RowTask::kScore;
  answer.token.token_id =
      scores ? request.scored_token : Choose(logits, limit, request);
  if (!scores && !request.log_prob && request.likeliest == 0) return answer;
  const double log_sum_exp = cpu::LogSumExp(logits);
  answer.token.log_prob =
      cpu::LogProb(logits, log_sum_exp, answer.token.token_id);
  if (request.likeliest > 0) {
    answer.likeliest = Likeliest(logits, limit, log_sum_exp, request.likeliest);
  }
  return answer;
}

void AppendRowsPlan(std::vector<std::pair<std::string, std::string>>* plan) {
  const std::pair<std::string, std::string> entries[] = {
      {"argmax.tie_break", "lowest token id"},
      {"log_prob.sum", "16 lanes over runs of 1024, runs in double"},
      {"sampling.order", "logit descending, token id ascending"},
      {"sampling.weight_bits", "40"},
      {"sampling.generator", "philox4x32-10, key seed, counter position"},
  };
  plan->insert(plan->end(), std::begin(entries), std::end(entries));
}

}  // namespace invar
