#include "scheduler/tokenizer/oniguruma_pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "scheduler/tokenizer/regex.h"

namespace invar {
namespace {

using ::testing::HasSubstr;

TEST(OnigurumaPattern, SpellsOutWhatPcre2ReadsDifferently) {
  const struct {
    const char* oniguruma;
    const char* pcre2;
  } cases[] = {
      {"\\s", "[\\p{White_Space}]"},
      {"[^\\S\\d]", "[^\\P{White_Space}\\p{Nd}]"},
      {"\\p{Lu}\\p{^Han}", "[\\p{Lu}][\\P{sc:Han}]"},
      {"(a|b)", "(?:a|b)"},
      {"[\\r\\n]", "[\\x{D}\\x{A}]"},
      {"[a-z-]{1,3}?", "[a-z\\x{2D}]{1,3}?"},
      {"(?i:'s|x)+", "(?i:\\x{27}s|x)+"},
      {"\\s+$", "(?<![\\p{White_Space}])[\\p{White_Space}]+$"},
      {"\\v\\.", "\\x{B}\\x{2E}"},
      {"\xE4\xB8\x80", "\\x{4E00}"},
  };
  for (const auto& [oniguruma, pcre2] : cases) {
    const auto translated = TranslateOnigurumaPattern(oniguruma);
    ASSERT_TRUE(translated.ok()) << oniguruma << ": " << translated.status();
    EXPECT_EQ(*translated, pcre2);
  }
}

TEST(OnigurumaPattern, NamesWhatItDoesNotUnderstand) {
  const struct {
    const char* pattern;
    const char* problem;
  } cases[] = {
      {"ab\\b", "offset 4: \"\\b\""},
      {"\\h", "\"\\h\""},
      {"(a)\\1", "\"\\1\""},
      {"a(?i)b", "offset 1: \"(?i\""},
      {"(?<name>a)", "\"(?<\""},
      {"[a&&b]", "class intersection"},
      {"[a[bc]]", "nested or POSIX class"},
      {"[[:alpha:]]", "nested or POSIX class"},
      {"[]a]", "unescaped \"]\""},
      {"[\\s-x]", "opens no range"},
      {"[a-c-e]", "after a range"},
      {"[\\W]", "\"\\W\""},
      {"a{,2}", "{n}, {n,} or {n,m}"},
      {"a{2}+", "a mark after {n}"},
      {"a**", "a repeat of a repeat"},
      {"(?i:ss)", "\"ss\" where case is ignored"},
      {"(?i:\xC3\x9F)", "non-ASCII"},
      {"\\xFF", "this hexadecimal character"},
  };
  for (const auto& [pattern, problem] : cases) {
    const auto translated = TranslateOnigurumaPattern(pattern);
    EXPECT_EQ(translated.status().code(), absl::StatusCode::kUnimplemented)
        << pattern;
    EXPECT_THAT(std::string(translated.status().message()), HasSubstr(problem));
  }
}

TEST(OnigurumaPattern, RefusesMalformedPatterns) {
  for (const char* pattern :
       {"(a", "a)", "[a", "[z-a]", "a|*", "\\", "\\p", "\\p{L", "\\x{", "\\x{}",
        "\\u12", "[a-", "\\x{110000}", "\\p{Klingon}", "(?<=a+)b"}) {
    const auto regex = Regex::Compile(pattern);
    EXPECT_FALSE(regex.ok()) << pattern;
  }
}

TEST(Regex, FindsFromAnOffset) {
  const Regex regex = Regex::Compile("a+").value();
  RegexScratch scratch;
  const auto first = regex.Find("xaax", 0, &scratch).value();
  EXPECT_EQ(first->begin, 1u);
  EXPECT_EQ(first->end, 3u);
  EXPECT_EQ(regex.Find("xaax", 2, &scratch).value()->begin, 2u);
  EXPECT_FALSE(regex.Find("xaax", 3, &scratch).value().has_value());
}

TEST(Regex, GivesUpOnACatastrophe) {
  const Regex regex = Regex::Compile("(?:(?:a|aa)+)+[bc]").value();
  RegexScratch scratch;
  const auto found = regex.Find(std::string(200, 'a'), 0, &scratch);
  EXPECT_EQ(found.status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace invar
