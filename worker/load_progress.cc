#include "worker/load_progress.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"

namespace invar {
namespace {

constexpr int kBarCells = 28;
constexpr absl::Duration kBarEvery = absl::Milliseconds(100);
constexpr absl::Duration kLineEvery = absl::Seconds(1);

double Gibibytes(int64_t bytes) {
  return static_cast<double>(bytes) / (1 << 30);
}

}  // namespace

std::string LoadProgressText(int64_t done, int64_t total,
                             absl::Duration elapsed) {
  const double seconds = absl::ToDoubleSeconds(elapsed);
  const double rate = seconds > 0 ? static_cast<double>(done) / seconds : 0;
  const int percent = total > 0 ? static_cast<int>(100.0 * done / total) : 100;
  std::string text = absl::StrFormat("%.2f of %.2f GiB  %d%%", Gibibytes(done),
                                     Gibibytes(total), percent);
  if (rate > 0) {
    absl::StrAppendFormat(&text, "  %.2f GiB/s", rate / (1 << 30));
    if (done < total) {
      const auto left = static_cast<int64_t>(std::ceil((total - done) / rate));
      absl::StrAppendFormat(&text, "  %d:%02d left", left / 60, left % 60);
    }
  }
  return text;
}

LoadProgress::~LoadProgress() {
  absl::MutexLock lock(&mutex_);
  if (bar_drawn_) *terminal_ << std::endl;
}

void LoadProgress::Show(int64_t done, int64_t total, absl::Time now) {
  absl::MutexLock lock(&mutex_);
  if (done <= done_) return;
  done_ = done;
  const bool last = done == total;
  const absl::Duration every = terminal_ != nullptr ? kBarEvery : kLineEvery;
  if (!last && now - shown_.value_or(start_) < every) return;
  shown_ = now;
  const std::string text = LoadProgressText(done, total, now - start_);
  if (terminal_ == nullptr) {
    spdlog::info("reading weights: {}", text);
    return;
  }
  const auto cells = std::min<int64_t>(kBarCells, kBarCells * done / total);
  *terminal_ << "\r[" << std::string(cells, '#')
             << std::string(kBarCells - cells, '.') << "] " << text << "\033[K"
             << std::flush;
  bar_drawn_ = !last;
  if (last) *terminal_ << std::endl;
}

}  // namespace invar
