#include "scheduler/api/sample.h"

#include <algorithm>
#include <utility>

namespace invar::scheduler {

Sample::Sample(std::shared_ptr<const RequestSpec> spec, int32_t index,
               const Tokenizer& tokenizer, StopMatcher stops,
               TextOptions options)
    : spec_(std::move(spec)),
      index_(index),
      decoder_(tokenizer, options.skip_special_tokens),
      stops_(std::move(stops)),
      options_(options) {
  std::string already_sent;
  AppendTokens(spec_->resume_tokens, &already_sent);
}

int Sample::AppendTokens(std::span<const int32_t> ids, std::string* text) {
  int used = 0;
  for (const int32_t id : ids) {
    if (stopped()) break;
    ++used;
    output_.push_back(id);
    // A stop id that ends the answer is no text, whatever its token says.
    const auto& stop_ids = spec_->sampling.stop_token_ids();
    const bool early =
        static_cast<int32_t>(output_.size()) <= spec_->sampling.min_tokens();
    const bool is_stop = !early && std::find(stop_ids.begin(), stop_ids.end(),
                                             id) != stop_ids.end();
    if (is_stop && !options_.include_stop_text) continue;
    const std::string piece = decoder_.Append(id);
    // Before min_tokens nothing is a stop string, nor begins one.
    text->append(early ? piece : stops_.Append(piece).text);
  }
  return used;
}

v1::TokenDelta Sample::Append(const worker::v1::AttemptReport& report) {
  v1::TokenDelta delta;
  delta.set_index(index_);
  delta.set_position(position());
  const int used = AppendTokens(
      {report.token_ids().data(), static_cast<size_t>(report.token_ids_size())},
      delta.mutable_text());
  for (int i = 0; i < used; ++i) {
    delta.add_token_ids(report.token_ids(i));
    if (i < report.logprobs_size()) delta.add_logprobs(report.logprobs(i));
    if (i < report.alternatives_size()) {
      auto* top = delta.add_top_logprobs();
      *top->mutable_token_ids() = report.alternatives(i).token_ids();
      *top->mutable_logprobs() = report.alternatives(i).logprobs();
    }
  }
  return delta;
}

std::string Sample::End() {
  if (stopped()) return "";
  std::string text = stops_.Append(decoder_.Finish()).text;
  return text + stops_.Finish().text;
}

v1::Finish Sample::MakeFinish(worker::v1::Terminal::Reason reason) const {
  v1::Finish finish;
  if (const auto stop = stops_.matched_stop()) {
    finish.set_reason(v1::Finish::STOP);
    finish.set_stop_string(
        spec_->sampling.stop_strings(static_cast<int>(*stop)));
  } else if (reason == worker::v1::Terminal::STOP) {
    finish.set_reason(v1::Finish::STOP);
    if (!output_.empty()) finish.set_stop_token_id(output_.back());
  } else {
    finish.set_reason(v1::Finish::LENGTH);
  }
  return finish;
}

}  // namespace invar::scheduler
