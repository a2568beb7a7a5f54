#include "client/selftest/dimensions.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace invar {
namespace {

using Requests = std::vector<v1::GenerateRequest>;
using Responses = std::vector<v1::GenerateOnceResponse>;

constexpr int kCrowd = 64;

std::string Probe(size_t i) { return absl::StrCat("probe ", i); }

const v1::Answer& First(const v1::GenerateOnceResponse& response) {
  static const v1::Answer kNone;
  return response.answers().empty() ? kNone : response.answers(0);
}

std::vector<int32_t> Join(std::vector<int32_t> ids, const v1::Answer& answer) {
  ids.insert(ids.end(), answer.token_ids().begin(), answer.token_ids().end());
  return ids;
}

std::span<const float> All(
    const google::protobuf::RepeatedField<float>& values) {
  return {values.data(), static_cast<size_t>(values.size())};
}

// Asks everything again with so many in flight, strangers among them, and
// compares with what was answered alone.
void Crowd(const Requests& requests, const Responses& alone, int concurrency,
           Asker& asker, Probes& probes, DimensionResult* result) {
  Requests crowd = requests;
  // Twice as many as fit, so that some wait, and rows are taken again.
  for (int missing = 2 * concurrency - static_cast<int>(crowd.size());
       missing > 0; --missing) {
    crowd.push_back(probes.ManySampled(1)[0]);
  }
  const Responses crowded = asker.Ask(crowd, concurrency);
  ++result->cells;
  for (size_t i = 0; i < std::min(alone.size(), crowded.size()); ++i) {
    result->comparison.Answers(
        absl::StrCat(Probe(i), ", ", concurrency, " in flight"),
        First(alone[i]), First(crowded[i]));
  }
}

DimensionResult Concurrency(Asker& asker, Probes& probes) {
  DimensionResult result;
  const Requests requests = probes.ManyGreedy(probes.sizes().probes);
  const Responses alone = asker.AskAlone(requests);
  for (const int concurrency : probes.sizes().concurrency) {
    Crowd(requests, alone, concurrency, asker, probes, &result);
  }
  return result;
}

DimensionResult SamplingAmongStrangers(Asker& asker, Probes& probes) {
  DimensionResult result;
  const Requests requests = probes.ManySampled(2 * probes.sizes().probes);
  const Responses alone = asker.AskAlone(requests);
  Crowd(requests, alone, kCrowd, asker, probes, &result);
  Crowd(requests, alone, 8, asker, probes, &result);
  return result;
}

// A prompt is cut into chunks by its length and by who else is in the step; a
// position's log-probability depends on neither.
DimensionResult PromptLength(Asker& asker, Probes& probes) {
  DimensionResult result;
  const int size = probes.sizes().long_prompt_tokens;
  const std::vector<int32_t> text = probes.Ids(size);
  Requests parts;
  std::vector<int> lengths = {2, 3, 17};
  for (int length = 64; length <= size; length *= 2) {
    for (const int near : {length - 1, length, length + 1}) {
      if (near < size) lengths.push_back(near);
    }
  }
  for (const int length : lengths) {
    parts.push_back(probes.Score({text.begin(), text.begin() + length}));
  }
  const Responses whole = asker.AskAlone({probes.Score(text)});
  for (const int concurrency : {1, kCrowd}) {
    const Responses scored = asker.Ask(parts, concurrency);
    for (size_t i = 0; i < scored.size(); ++i) {
      ++result.cells;
      result.comparison.Floats(
          absl::StrCat("a prompt of ", lengths[i], " tokens, ", concurrency,
                       " in flight"),
          "log-probability",
          All(whole[0].prompt_logprobs()).first(lengths[i] - 1),
          All(scored[i].prompt_logprobs()));
    }
  }
  return result;
}

// Cold, found whole, and found in part by a prompt that goes on otherwise.
DimensionResult PrefixCache(Asker& asker, Probes& probes) {
  DimensionResult result;
  const int size = std::max(probes.sizes().prompt_tokens_max, 140);
  const int shared = size * 3 / 4;
  int cold_hits = 0;
  int warm_hits = 0;
  for (int i = 0; i < probes.sizes().probes; ++i) {
    const std::vector<int32_t> prompt = probes.Ids(size);
    std::vector<int32_t> other(prompt.begin(), prompt.begin() + shared);
    const std::vector<int32_t> rest = probes.Ids(size - shared);
    other.insert(other.end(), rest.begin(), rest.end());
    // With the prompt's log-probabilities, a request reads no cache.
    Requests requests(4, probes.Greedy(prompt));
    requests[2] = probes.Greedy(other);
    requests[3] = requests[2];
    requests[3].mutable_output()->set_prompt_logprobs(true);
    const Responses responses = asker.AskAlone(requests);
    if (responses.empty()) return result;
    result.cells += 2;
    result.comparison.Answers(absl::StrCat(Probe(i), ", prompt found"),
                              First(responses[0]), First(responses[1]));
    result.comparison.Answers(absl::StrCat(Probe(i), ", prefix found"),
                              First(responses[3]), First(responses[2]));
    cold_hits += responses[0].usage().cached_tokens() > 0;
    warm_hits += responses[1].usage().cached_tokens() > 0 &&
                 responses[2].usage().cached_tokens() > 0;
  }
  if (warm_hits < probes.sizes().probes) {
    result.note = absl::StrCat("the cache was hit by ", warm_hits, " of ",
                               probes.sizes().probes, " probes only");
  } else if (cold_hits > 0) {
    result.note = "the cache knew this seed's prompts; take another --seed";
  }
  return result;
}

DimensionResult Scoring(Asker& asker, Probes& probes) {
  DimensionResult result;
  Requests requests = probes.ManyGreedy(probes.sizes().probes);
  const Requests sampled = probes.ManySampled(probes.sizes().probes);
  requests.insert(requests.end(), sampled.begin(), sampled.end());
  for (v1::GenerateRequest& request : requests) {
    request.mutable_output()->set_prompt_logprobs(true);
  }
  const Responses written = asker.AskAlone(requests);
  Requests scores;
  for (size_t i = 0; i < written.size(); ++i) {
    scores.push_back(
        probes.Score(Join(PromptIdsOf(requests[i]), First(written[i]))));
  }
  const Responses scored = asker.Ask(scores, kCrowd);
  for (size_t i = 0; i < scored.size(); ++i) {
    ++result.cells;
    std::vector<float> expected(written[i].prompt_logprobs().begin(),
                                written[i].prompt_logprobs().end());
    const auto& logprobs = First(written[i]).logprobs();
    expected.insert(expected.end(), logprobs.begin(), logprobs.end());
    result.comparison.Floats(absl::StrCat(Probe(i), ", scored"),
                             "log-probability", expected,
                             All(scored[i].prompt_logprobs()));
  }
  return result;
}

DimensionResult SeveralAnswers(Asker& asker, Probes& probes) {
  DimensionResult result;
  Requests requests =
      probes.ManySampled(std::max(1, probes.sizes().probes / 2));
  for (v1::GenerateRequest& request : requests) {
    request.mutable_sampling()->set_n(4);
  }
  const Responses together = asker.Ask(requests, kCrowd);
  for (size_t i = 0; i < together.size(); ++i) {
    Requests singles;
    for (const v1::Answer& answer : together[i].answers()) {
      v1::GenerateRequest& single = singles.emplace_back(requests[i]);
      single.mutable_sampling()->clear_n();
      single.mutable_sampling()->set_seed(answer.completion().receipt().seed());
    }
    const Responses alone = asker.AskAlone(singles);
    for (size_t k = 0; k < alone.size(); ++k) {
      ++result.cells;
      result.comparison.Answers(absl::StrCat(Probe(i), ", answer ", k),
                                First(alone[k]),
                                together[i].answers(static_cast<int>(k)));
    }
  }
  return result;
}

// A few letters from the middle of a text on; empty: it has none there.
std::string StopIn(const std::string& text) {
  for (size_t i = text.size() / 2; i + 2 < text.size(); ++i) {
    if (absl::ascii_isalnum(text[i]) && absl::ascii_isalnum(text[i + 1])) {
      return text.substr(i, 2);
    }
  }
  return "";
}

// What is written up to a stop string is what is written without one.
DimensionResult StopStrings(Asker& asker, Probes& probes) {
  DimensionResult result;
  Requests requests = probes.ManyGreedy(probes.sizes().probes);
  const Responses free = asker.AskAlone(requests);
  std::vector<std::string> stops;
  for (size_t i = 0; i < free.size(); ++i) {
    stops.push_back(StopIn(First(free[i]).text()));
    if (stops[i].empty()) continue;
    requests[i].mutable_stopping()->add_stop_strings(stops[i]);
  }
  const Responses stopped = asker.Ask(requests, kCrowd);
  for (size_t i = 0; i < stopped.size(); ++i) {
    if (stops[i].empty()) continue;
    ++result.cells;
    const v1::Answer& actual = First(stopped[i]);
    v1::Answer expected = First(free[i]);
    const std::string cell =
        absl::StrCat(Probe(i), ", stopped at \"", stops[i], "\"");
    result.comparison.Text(cell, stops[i],
                           actual.completion().finish().stop_string());
    // As many tokens as hold the stop string; that no more are sent is the
    // server's business, not a matter of bits.
    const int size =
        std::min(actual.token_ids_size(), expected.token_ids_size());
    expected.mutable_text()->resize(expected.text().find(stops[i]));
    expected.mutable_token_ids()->Truncate(size);
    expected.mutable_logprobs()->Truncate(size);
    while (expected.top_logprobs_size() > size) {
      expected.mutable_top_logprobs()->RemoveLast();
    }
    result.comparison.Answers(cell, expected, actual);
  }
  if (result.cells == 0) result.note = "no text of letters came up";
  return result;
}

DimensionResult Resume(Asker& asker, Probes& probes) {
  DimensionResult result;
  Requests requests = probes.ManyGreedy(probes.sizes().probes);
  const Requests sampled = probes.ManySampled(probes.sizes().probes);
  requests.insert(requests.end(), sampled.begin(), sampled.end());
  const Responses whole = asker.AskAlone(requests);
  Requests rests;
  std::vector<std::pair<size_t, int>> cuts;  // probe, tokens received
  for (size_t i = 0; i < whole.size(); ++i) {
    const auto& ids = First(whole[i]).token_ids();
    for (const int cut : std::set<int>{1, ids.size() / 2, ids.size() - 1}) {
      if (cut < 1 || cut >= ids.size()) continue;
      auto& rest = rests.emplace_back(requests[i]);
      rest.mutable_resume()->mutable_token_ids()->Assign(ids.begin(),
                                                         ids.begin() + cut);
      cuts.emplace_back(i, cut);
    }
  }
  const Responses resumed = asker.Ask(rests, kCrowd);
  for (size_t k = 0; k < resumed.size(); ++k) {
    ++result.cells;
    const auto [i, cut] = cuts[k];
    result.comparison.Answers(
        absl::StrCat(Probe(i), ", resumed after ", cut, " tokens"),
        First(whole[i]), First(resumed[k]), cut);
  }
  return result;
}

// The same tokens whatever is asked to be told of them, and however.
DimensionResult Output(Asker& asker, Probes& probes) {
  DimensionResult result;
  Requests requests = probes.ManySampled(probes.sizes().probes);
  const Responses whole = asker.AskAlone(requests);
  for (size_t i = 0; i < whole.size(); ++i) {
    ++result.cells;
    result.comparison.Answers(absl::StrCat(Probe(i), ", as a stream"),
                              First(whole[i]),
                              First(asker.Stream(requests[i])));
    requests[i].clear_output();
  }
  const Responses bare = asker.Ask(requests, kCrowd);
  for (size_t i = 0; i < std::min(whole.size(), bare.size()); ++i) {
    ++result.cells;
    v1::Answer expected = First(whole[i]);
    expected.clear_logprobs();
    expected.clear_top_logprobs();
    result.comparison.Answers(
        absl::StrCat(Probe(i), ", without log-probabilities"), expected,
        First(bare[i]));
  }
  return result;
}

constexpr Dimension kDimensions[] = {
    {"concurrency", "alone; 1, 8, 64 in flight", Concurrency},
    {"sampling", "alone; among strangers", SamplingAmongStrangers},
    {"prompt length", "a whole text; its prefixes", PromptLength},
    {"prefix cache", "cold; found; found in part", PrefixCache},
    {"scoring", "written; scored", Scoring},
    {"answers", "each alone; n at once", SeveralAnswers},
    {"stop strings", "past a stop string; up to it", StopStrings},
    {"resume", "in one go; resumed", Resume},
    {"output", "whole; streamed; tokens only", Output},
};

}  // namespace

Responses Asker::Ask(const Requests& requests, int concurrency) {
  if (!status_.ok()) return {};
  Responses responses(requests.size());
  PoolOptions options = options_;
  options.concurrency = concurrency;
  const PoolResult result =
      RunRequests(client_, requests, options,
                  [&](size_t i, const v1::GenerateOnceResponse& response) {
                    responses[i] = response;
                  });
  status_ = result.status;
  if (!status_.ok()) return {};
  return responses;
}

v1::GenerateOnceResponse Asker::Stream(const v1::GenerateRequest& request) {
  v1::GenerateOnceResponse whole;
  if (!status_.ok()) return whole;
  status_ = client_.Generate(request, options_.call,
                             [&](const v1::GenerateResponse& event) {
                               AddEvent(event, whole);
                               return true;
                             });
  return whole;
}

std::span<const Dimension> Dimensions() { return kDimensions; }

}  // namespace invar
