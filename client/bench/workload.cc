#include "client/bench/workload.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/bench/random.h"

namespace invar::bench {
namespace {

// What is drawn from a seed. Requests take the streams from their index on,
// which leaves the top to these.
constexpr uint64_t kPrefixStreams = 0xff00'0000'0000'0000;
constexpr uint64_t kPassStreams = 0xfe00'0000'0000'0000;
constexpr uint64_t kRequestMask = 0x00ff'ffff'ffff'ffff;

Random RequestRandom(uint64_t seed, int64_t index) {
  return Random(seed, static_cast<uint64_t>(index) & kRequestMask);
}

struct PromptSetter {
  v1::GenerateRequest& request;

  void operator()(const DatasetEntry::Text& prompt) const {
    request.set_text(prompt.text);
  }
  void operator()(const DatasetEntry::Chat& prompt) const {
    v1::ChatMessage& message = *request.mutable_chat()->add_messages();
    message.set_role("user");
    message.set_content(prompt.text);
  }
  void operator()(const DatasetEntry::TokenIds& prompt) const {
    request.mutable_token_ids()->mutable_ids()->Add(prompt.begin(),
                                                    prompt.end());
  }
};

}  // namespace

absl::StatusOr<LengthRange> ParseLengthRange(absl::string_view flag,
                                             absl::string_view text) {
  const std::vector<absl::string_view> ends = absl::StrSplit(text, ':');
  LengthRange range;
  if (ends.size() > 2 || !absl::SimpleAtoi(ends.front(), &range.low) ||
      !absl::SimpleAtoi(ends.back(), &range.high) || range.low < 1 ||
      range.high < range.low) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", flag,
                     " must be a number of tokens or a range LOW:HIGH, from 1, "
                     "for example 64:512; is \"",
                     text, "\""));
  }
  return range;
}

Workload::Workload(WorkloadOptions options) : options_(std::move(options)) {}

int64_t Workload::DistinctAt(int64_t place) const {
  if (!options_.distinct.has_value()) return place;
  const int64_t count = *options_.distinct;
  const uint64_t pass = static_cast<uint64_t>(place / count);
  if (pass == 0) return place;
  // Other neighbours at each pass: rotated by half a pass and a bit more, and
  // every other pass backwards.
  Random random(options_.seed, kPassStreams | pass);
  const int64_t turned =
      (place % count + count / 2 + random.Between(0, count / 2)) % count;
  return pass % 2 == 1 ? count - 1 - turned : turned;
}

v1::GenerateRequest Workload::Make(int64_t index) const {
  v1::GenerateRequest request;
  request.set_model(options_.model);
  Random random = RequestRandom(options_.seed, index);
  if (options_.temperature > 0) {
    request.mutable_sampling()->set_temperature(options_.temperature);
    request.mutable_sampling()->set_seed(random.Next());
  }
  int64_t output_tokens =
      random.Between(options_.output_tokens.low, options_.output_tokens.high);
  if (options_.dataset.empty()) {
    FillRandom(index, request);
  } else {
    const int64_t lines = static_cast<int64_t>(options_.dataset.size());
    const DatasetEntry& entry =
        options_.dataset[((index % lines) + lines) % lines];
    std::visit(PromptSetter{request}, entry.prompt);
    output_tokens = entry.output_tokens.value_or(output_tokens);
  }
  request.mutable_stopping()->set_max_tokens(
      static_cast<int32_t>(output_tokens));
  request.mutable_stopping()->set_ignore_eos(!options_.stop_at_eos);
  if (options_.logprobs) request.mutable_output()->set_logprobs(true);
  return request;
}

void Workload::FillRandom(int64_t index, v1::GenerateRequest& request) const {
  // Apart from the stream of Make, whose draws depend on other options.
  Random random = RequestRandom(~options_.seed, index);
  const int64_t length =
      random.Between(options_.input_tokens.low, options_.input_tokens.high);
  const bool shares = random.Unit() <= options_.prefix_share;
  Random prefix(options_.seed,
                kPrefixStreams | static_cast<uint64_t>(random.Between(
                                     0, options_.prefix_count - 1)));
  for (int64_t i = 0; i < length; ++i) {
    const bool common = shares && i < options_.prefix_tokens;
    const uint64_t drawn = common ? prefix.Next() : random.Next();
    if (options_.pieces.empty()) {
      request.mutable_token_ids()->add_ids(
          static_cast<int32_t>(drawn % options_.vocab_size));
    } else {
      request.mutable_text()->append(
          options_.pieces[drawn % options_.pieces.size()]);
    }
  }
}

}  // namespace invar::bench
