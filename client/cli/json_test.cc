#include "client/cli/json.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace invar {
namespace {

TEST(JsonNumber, ReadsBackToTheSameBits) {
  // A walk over the bit patterns with a stride that meets every exponent.
  for (uint32_t bits = 1; bits < 0x7f800000u; bits += 104'729) {
    const float value = -std::bit_cast<float>(bits);
    const std::string text = Dump(JsonNumber(value));
    ASSERT_EQ(std::bit_cast<uint32_t>(std::strtof(text.c_str(), nullptr)),
              std::bit_cast<uint32_t>(value))
        << text;
    // As a reader does who knows only doubles.
    ASSERT_EQ(static_cast<float>(std::strtod(text.c_str(), nullptr)), value)
        << text;
  }
  EXPECT_EQ(Dump(JsonNumber(0.1f)), "0.100000001");
  EXPECT_EQ(Dump(JsonNumber(-2.5f)), "-2.5");
}

TEST(ToJson, PutsOneAnswerAtTheTop) {
  v1::GenerateOnceResponse response;
  v1::Answer& answer = *response.add_answers();
  answer.set_text("\"né\n");
  answer.add_token_ids(5);
  answer.add_logprobs(-0.1f);
  answer.add_logprobs(-std::numeric_limits<float>::infinity());
  answer.mutable_completion()->mutable_finish()->set_reason(v1::Finish::LENGTH);
  answer.mutable_completion()->mutable_receipt()->set_seed(
      18446744073709551615u);
  response.add_prompt_logprobs(-1.0f / 3);
  const auto json = ToJson(response, {.request_id = "r", .seed = 7});
  EXPECT_EQ(json["text"], "\"né\n");
  EXPECT_EQ(json["finish_reason"], "LENGTH");
  EXPECT_EQ(json["seed"], 7);
  EXPECT_EQ(json["receipt"]["seed"].dump(), "18446744073709551615");
  EXPECT_EQ(json["logprobs"].dump(), "[-0.100000001,null]");
  EXPECT_EQ(json["prompt_logprobs"].dump(), "[-0.333333343]");
  EXPECT_FALSE(json.contains("stop_token_id"));
  EXPECT_FALSE(json.contains("answers"));
}

TEST(ToJson, ListsSeveralAnswers) {
  v1::GenerateOnceResponse response;
  response.add_answers()->set_text("a");
  response.add_answers()->set_text("b");
  response.mutable_answers(1)->mutable_completion()->set_index(1);
  const auto json = ToJson(response, {});
  ASSERT_EQ(json["answers"].size(), 2u);
  EXPECT_EQ(json["answers"][1]["text"], "b");
  EXPECT_EQ(json["answers"][1]["index"], 1);
  EXPECT_FALSE(json.contains("text"));
}

TEST(Dump, SurvivesBytesThatAreNotUtf8) {
  EXPECT_EQ(Dump({{"text", "a\xff"}}), "{\"text\":\"a\xEF\xBF\xBD\"}");
}

}  // namespace
}  // namespace invar
