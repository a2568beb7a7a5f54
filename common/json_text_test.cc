#include "common/json_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace invar {
namespace {

using ::testing::HasSubstr;

std::string Problem(const std::string& text) {
  const auto json = ParseJson(text, "f.json");
  EXPECT_EQ(json.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(json.status().message().substr(0, 8), "f.json: ");
  return std::string(json.status().message());
}

TEST(JsonText, NamesTheFileAndThePlace) {
  EXPECT_EQ(ParseJson("[1, {\"a\": null}]", "f.json").value().size(), 2u);
  EXPECT_THAT(Problem("{\n\"a\": nul}"), HasSubstr("line 2, column 9"));
  EXPECT_THAT(Problem(""), HasSubstr("end of input"));
  EXPECT_THAT(Problem("\"\xFF\""), HasSubstr("UTF-8"));
}

TEST(JsonText, RefusesNestingThatWouldNeedAStackOfItsOwn) {
  EXPECT_TRUE(ParseJson(std::string(64, '[') + std::string(64, ']'), "").ok());
  EXPECT_TRUE(ParseJson("\"\\\"" + std::string(100, '[') + "\"", "").ok());
  EXPECT_THAT(Problem(std::string(65, '[') + std::string(65, ']')),
              HasSubstr("nested more than 64 levels"));
  EXPECT_THAT(Problem(std::string(4'000'000, '[')), HasSubstr("nested"));
}

TEST(JsonText, KeepsTheMessageShort) {
  EXPECT_LT(Problem("\"" + std::string(4'000'000, 'x')).size(), 600u);
}

}  // namespace
}  // namespace invar
