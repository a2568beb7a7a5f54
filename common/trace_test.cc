#include "common/trace.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace invar {
namespace {

constexpr char kTrace[] = "0af7651916cd43dd8448eb211c80319c";
constexpr char kSampled[] =
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

TEST(Traceparent, GivesItsTraceAndWhetherItIsRecorded) {
  EXPECT_EQ(ReadTraceparent(kSampled), kSampled);
  EXPECT_EQ(TraceId(kSampled), kTrace);
  EXPECT_TRUE(IsSampled(kSampled));
  EXPECT_EQ(TraceNote(kSampled), absl::StrCat(" (trace ", kTrace, ")"));
  std::string quiet = kSampled;
  quiet.back() = 'a';
  EXPECT_FALSE(IsSampled(ReadTraceparent(quiet)));
  // A later version may have more fields.
  std::string later = absl::StrCat(kSampled, "-more");
  later[1] = '1';
  EXPECT_EQ(TraceId(ReadTraceparent(later)), kTrace);
}

TEST(Traceparent, IsNoneUnlessWellFormed) {
  EXPECT_EQ(ReadTraceparent(""), "");
  EXPECT_EQ(TraceId(""), "");
  EXPECT_FALSE(IsSampled(""));
  EXPECT_EQ(TraceNote(""), "");
  const auto with = [](size_t at, absl::string_view part) {
    std::string text = kSampled;
    return text.replace(at, part.size(), std::string(part));
  };
  for (const std::string& bad :
       {with(0, "ff"), with(0, "0G"), with(2, "_"), with(35, "_"),
        with(52, "_"), with(3, std::string(32, '0')),
        with(36, std::string(16, '0')), with(10, "A"), with(40, "\n"),
        with(53, "xy"), absl::StrCat(kSampled, "-more"),
        std::string(kSampled).substr(1)}) {
    EXPECT_EQ(ReadTraceparent(bad), "") << bad;
  }
}

}  // namespace
}  // namespace invar
