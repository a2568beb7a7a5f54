#include "scheduler/tokenizer/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace invar {

absl::StatusOr<StopMatcher> StopMatcher::Create(std::vector<std::string> stops,
                                                bool include_stop_text) {
  StopMatcher matcher(include_stop_text);
  for (size_t i = 0; i < stops.size(); ++i) {
    if (stops[i].empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("stop[", i, "]: is empty, and would end any text"));
    }
    Stop stop{std::move(stops[i]), {0, 0}, 0};
    size_t border = 0;
    for (size_t end = 1; end < stop.text.size(); ++end) {
      while (border > 0 && stop.text[border] != stop.text[end]) {
        border = stop.borders[border];
      }
      if (stop.text[border] == stop.text[end]) ++border;
      stop.borders.push_back(border);
    }
    matcher.stops_.push_back(std::move(stop));
  }
  return matcher;
}

void StopMatcher::Advance(Stop* stop, char byte) {
  while (stop->progress > 0 && stop->text[stop->progress] != byte) {
    stop->progress = stop->borders[stop->progress];
  }
  if (stop->text[stop->progress] == byte) ++stop->progress;
}

StopMatcher::Release StopMatcher::Append(absl::string_view text) {
  if (matched_stop_.has_value()) return {"", true};
  for (size_t at = 0; at < text.size(); ++at) {
    size_t longest = 0;
    for (size_t i = 0; i < stops_.size(); ++i) {
      Stop& stop = stops_[i];
      Advance(&stop, text[at]);
      if (stop.progress == stop.text.size() && stop.progress > longest) {
        longest = stop.progress;
        matched_stop_ = i;
      }
    }
    if (!matched_stop_.has_value()) continue;
    absl::StrAppend(&held_, text.substr(0, at + 1));
    if (!include_stop_text_) held_.resize(held_.size() - longest);
    return {std::exchange(held_, {}), true};
  }
  size_t progress = 0;
  for (const Stop& stop : stops_) {
    progress = std::max(progress, stop.progress);
  }
  absl::StrAppend(&held_, text);
  Release release{held_.substr(0, held_.size() - progress), false};
  held_.erase(0, release.text.size());
  return release;
}

StopMatcher::Release StopMatcher::Finish() {
  return {std::exchange(held_, {}), matched_stop_.has_value()};
}

}  // namespace invar
