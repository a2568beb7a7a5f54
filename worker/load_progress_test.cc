#include "worker/load_progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <sstream>

#include "absl/strings/str_split.h"

namespace invar {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kGib = int64_t{1} << 30;
const absl::Time kStart = absl::FromUnixSeconds(1000);

absl::Time At(int64_t milliseconds) {
  return kStart + absl::Milliseconds(milliseconds);
}

TEST(LoadProgressText, BytesRateAndTimeLeft) {
  EXPECT_EQ(LoadProgressText(kGib, 4 * kGib, absl::Seconds(2)),
            "1.00 of 4.00 GiB  25%  0.50 GiB/s  0:06 left");
  EXPECT_EQ(LoadProgressText(kGib, 400 * kGib, absl::Seconds(1)),
            "1.00 of 400.00 GiB  0%  1.00 GiB/s  6:39 left");
  EXPECT_EQ(LoadProgressText(kGib, kGib, absl::Seconds(1)),
            "1.00 of 1.00 GiB  100%  1.00 GiB/s");
  EXPECT_EQ(LoadProgressText(0, kGib, absl::ZeroDuration()),
            "0.00 of 1.00 GiB  0%");
}

TEST(LoadProgress, ABarOnATerminalEndsItsLineOnce) {
  std::ostringstream terminal;
  {
    LoadProgress progress(&terminal, kStart);
    progress.Show(kGib, 4 * kGib, At(200));
    progress.Show(2 * kGib, 4 * kGib, At(250));  // too soon
    progress.Show(kGib, 4 * kGib, At(900));      // behind
    EXPECT_EQ(terminal.str(),
              "\r[#######.....................] 1.00 of 4.00 GiB  25%  "
              "5.00 GiB/s  0:01 left\033[K");
    progress.Show(4 * kGib, 4 * kGib, At(1000));
    progress.Show(4 * kGib, 4 * kGib, At(1001));
  }
  EXPECT_THAT(terminal.str(),
              EndsWith("\r[############################] 4.00 of 4.00 GiB  "
                       "100%  4.00 GiB/s\033[K\n"));
  const std::string text = terminal.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
}

TEST(LoadProgress, ABarOfALoadThatFailsEndsItsLine) {
  std::ostringstream terminal;
  {
    LoadProgress progress(&terminal, kStart);
    progress.Show(1, 4, At(500));
    EXPECT_THAT(terminal.str(), Not(HasSubstr("\n")));
  }
  EXPECT_THAT(terminal.str(), EndsWith("\n"));
}

TEST(LoadProgress, ALineASecondInALog) {
  std::ostringstream log;
  const auto before = spdlog::default_logger();
  auto logger = std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log));
  logger->set_pattern("%v");
  spdlog::set_default_logger(logger);
  {
    LoadProgress progress(nullptr, kStart);
    for (int64_t tenth = 1; tenth <= 25; ++tenth) {
      progress.Show(tenth * kGib, 25 * kGib, At(100 * tenth));
    }
  }
  spdlog::set_default_logger(before);
  EXPECT_THAT(
      std::vector<std::string>(absl::StrSplit(log.str(), '\n')),
      ElementsAre(
          "reading weights: 10.00 of 25.00 GiB  40%  10.00 GiB/s  0:02 left",
          "reading weights: 20.00 of 25.00 GiB  80%  10.00 GiB/s  0:01 left",
          "reading weights: 25.00 of 25.00 GiB  100%  10.00 GiB/s", ""));
}

}  // namespace
}  // namespace invar
