#include "client/cli/progress.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace invar {
namespace {

constexpr int kRowsALine = 25;
constexpr absl::Duration kLineEvery = absl::Seconds(5);
constexpr absl::Duration kBarEvery = absl::Milliseconds(100);
constexpr int kBarCells = 28;

}  // namespace

std::string ProgressText(const Evaluation& evaluation) {
  const int n = static_cast<int>(evaluation.transcripts.size());
  const double seconds = absl::ToDoubleSeconds(evaluation.elapsed);
  const double rate = seconds > 0 ? evaluation.done / seconds : 0;
  const double score =
      evaluation.done > 0
          ? static_cast<double>(evaluation.correct) / evaluation.done
          : 0;
  std::string text =
      absl::StrFormat("%d/%d  score %.3f  %.*f rows/s", evaluation.done, n,
                      score, rate < 1 ? 2 : 1, rate);
  if (rate > 0 && evaluation.done < n) {
    const int left = static_cast<int>((n - evaluation.done) / rate + 0.5);
    absl::StrAppendFormat(&text, "  %d:%02d left", left / 60, left % 60);
  }
  return text;
}

void Progress::Show(const Evaluation& evaluation) {
  const bool last =
      evaluation.done == static_cast<int>(evaluation.transcripts.size());
  const absl::Duration since = evaluation.elapsed - shown_elapsed_;
  if (terminal_.err_is_terminal) {
    if (bar_drawn_ && !last && since < kBarEvery) return;
    const int filled = kBarCells * evaluation.done /
                       static_cast<int>(evaluation.transcripts.size());
    terminal_.err << "\r[" << std::string(filled, '#')
                  << std::string(kBarCells - filled, '.') << "] "
                  << ProgressText(evaluation) << "\033[K" << std::flush;
    bar_drawn_ = true;
  } else {
    if (!last && evaluation.done - shown_done_ < kRowsALine &&
        since < kLineEvery) {
      return;
    }
    terminal_.err << ProgressText(evaluation) << std::endl;
  }
  shown_done_ = evaluation.done;
  shown_elapsed_ = evaluation.elapsed;
}

void Progress::ShowRetry(const grpc::Status& refusal) {
  if (retry_shown_ || refusal.error_code() != grpc::StatusCode::UNAVAILABLE) {
    return;
  }
  retry_shown_ = true;
  End();
  terminal_.err << "waiting for the server: " << ErrorLine(refusal)
                << std::endl;
}

void Progress::End() {
  if (bar_drawn_) terminal_.err << std::endl;
  bar_drawn_ = false;
}

}  // namespace invar
