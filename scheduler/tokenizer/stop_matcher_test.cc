#include "scheduler/tokenizer/stop_matcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace invar {
namespace {

using ::testing::HasSubstr;

StopMatcher Matcher(std::vector<std::string> stops, bool include = false) {
  return StopMatcher::Create(std::move(stops), include).value();
}

TEST(StopMatcher, HoldsBackOnlyWhatCouldBeAStop) {
  StopMatcher matcher = Matcher({"END"});
  EXPECT_EQ(matcher.Append("abcE").text, "abc");
  EXPECT_EQ(matcher.Append("N").text, "");
  EXPECT_EQ(matcher.Append("EN").text, "EN");
  const auto release = matcher.Append("Dxyz");
  EXPECT_EQ(release.text, "");
  EXPECT_TRUE(release.matched);
  EXPECT_EQ(matcher.matched_stop(), 0u);
  EXPECT_EQ(matcher.Append("more").text, "");
  EXPECT_TRUE(matcher.Finish().matched);
}

TEST(StopMatcher, FinishReleasesWhatWasHeld) {
  StopMatcher matcher = Matcher({"\n\n"});
  EXPECT_EQ(matcher.Append("a\n").text, "a");
  const auto release = matcher.Finish();
  EXPECT_EQ(release.text, "\n");
  EXPECT_FALSE(release.matched);
}

TEST(StopMatcher, TheFirstToEndWinsThenTheLongest) {
  EXPECT_EQ(Matcher({"bcd", "c"}).Append("abcd").text, "ab");
  EXPECT_EQ(Matcher({"c", "abc"}).Append("xabc").text, "x");
  EXPECT_EQ(Matcher({"c", "abc"}, true).Append("xabcy").text, "xabc");
}

TEST(StopMatcher, SelfOverlappingStop) {
  EXPECT_EQ(Matcher({"aab"}).Append("aaaab").text, "aa");
  EXPECT_EQ(Matcher({"abab"}).Append("abaabab").text, "aba");
}

TEST(StopMatcher, WithoutStopsNothingIsHeld) {
  EXPECT_EQ(Matcher({}).Append("text").text, "text");
}

TEST(StopMatcher, RefusesAnEmptyStop) {
  const auto matcher = StopMatcher::Create({"a", ""}, false);
  EXPECT_EQ(matcher.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(matcher.status().message()), HasSubstr("stop[1]"));
}

// The definition, by brute force over a whole text.
std::pair<std::string, bool> Expected(const std::string& text,
                                      const std::vector<std::string>& stops,
                                      bool include) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (stop.size() <= end &&
          text.compare(end - stop.size(), stop.size(), stop) == 0) {
        longest = std::max(longest, stop.size());
      }
    }
    if (longest > 0)
      return {text.substr(0, include ? end : end - longest), true};
  }
  return {text, false};
}

TEST(StopMatcher, AnyCutsGiveTheSameText) {
  std::mt19937 random(1);
  const auto word = [&](int length) {
    std::string letters;
    while (length-- > 0) letters += static_cast<char>('a' + random() % 2);
    return letters;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops;
    for (size_t i = random() % 4; i > 0; --i) {
      stops.push_back(word(1 + random() % 6));
    }
    const std::string text = word(random() % 24);
    const bool include = random() % 2 == 0;
    StopMatcher matcher = Matcher(stops, include);
    std::string released;
    bool matched = false;
    for (size_t at = 0; at < text.size();) {
      const size_t length = random() % 5;
      const auto release = matcher.Append(text.substr(at, length));
      released += release.text;
      matched = release.matched;
      at += length;
    }
    const auto last = matcher.Finish();
    released += last.text;
    EXPECT_EQ(matched, last.matched);
    ASSERT_EQ(std::pair(released, last.matched), Expected(text, stops, include))
        << text << " " << testing::PrintToString(stops);
  }
}

// A held-back stop in another script never cuts a character in two.
TEST(StopMatcher, KeepsCharactersWhole) {
  StopMatcher matcher = Matcher({"\u7b54\u3048"});
  EXPECT_EQ(matcher.Append("x\u7b54").text, "x");
  EXPECT_EQ(matcher.Append("\u7b55").text, "\u7b54\u7b55");
  EXPECT_EQ(matcher.Append("\u00e9\u7b54\u3048").text, "\u00e9");
}

}  // namespace
}  // namespace invar
