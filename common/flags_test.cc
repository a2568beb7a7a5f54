#include "common/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace invar {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

struct Values {
  bool json = false;
  std::optional<bool> logprobs;
  std::string model = "default";
  int32_t concurrency = 64;
  std::optional<float> temperature;
  std::optional<uint64_t> seed;
  std::optional<std::vector<int32_t>> ids;
  std::vector<std::string> stops;
  std::map<int32_t, float> bias;
  absl::Duration deadline = absl::Seconds(5);
};

FlagSet MakeFlags(Values& values) {
  FlagSet flags;
  flags.Section("First");
  flags.AddSwitch("json", "One object.", &values.json);
  flags.AddSwitch("logprobs", "With them.", &values.logprobs);
  flags.Add("model", "NAME", "The model.", &values.model);
  flags.Add("concurrency", "N", "In flight.", &values.concurrency);
  flags.Section("Second");
  flags.Add("temperature", "X", "How warm.", &values.temperature);
  flags.Add("seed", "N", "The seed.", &values.seed);
  flags.Add("ids", "ID,...", "The ids.", &values.ids);
  flags.Add("stop", "TEXT", "A stop.", &values.stops);
  flags.Add("bias", "ID=X,...", "The bias.", &values.bias);
  flags.Add("deadline", "SECONDS", "The deadline.", &values.deadline);
  return flags;
}

TEST(FlagSet, ReadsEachType) {
  Values values;
  FlagSet flags = MakeFlags(values);
  EXPECT_TRUE(flags.Set("json", std::nullopt).ok());
  EXPECT_TRUE(flags.Set("logprobs", "false").ok());
  EXPECT_TRUE(flags.Set("model", "").ok());
  EXPECT_TRUE(flags.Set("concurrency", "-3").ok());
  EXPECT_TRUE(flags.Set("temperature", "0.1").ok());
  EXPECT_TRUE(flags.Set("seed", "18446744073709551615").ok());
  EXPECT_TRUE(flags.Set("ids", "5,6,-7").ok());
  EXPECT_TRUE(flags.Set("stop", "a,b").ok());
  EXPECT_TRUE(flags.Set("stop", "c").ok());
  EXPECT_TRUE(flags.Set("bias", "5=1.5,7=-100").ok());
  EXPECT_TRUE(flags.Set("deadline", "0.25").ok());
  EXPECT_TRUE(values.json);
  EXPECT_EQ(values.logprobs, false);
  EXPECT_EQ(values.model, "");
  EXPECT_EQ(values.concurrency, -3);
  EXPECT_EQ(values.temperature, 0.1f);
  EXPECT_EQ(values.seed, 18446744073709551615u);
  EXPECT_THAT(*values.ids, ElementsAre(5, 6, -7));
  EXPECT_THAT(values.stops, ElementsAre("a,b", "c"));
  EXPECT_THAT(values.bias, ElementsAre(Pair(5, 1.5f), Pair(7, -100.0f)));
  EXPECT_EQ(values.deadline, absl::Milliseconds(250));
}

TEST(FlagSet, LeavesAbsentFlagsAlone) {
  Values values;
  MakeFlags(values);
  EXPECT_EQ(values.model, "default");
  EXPECT_FALSE(values.temperature.has_value());
  EXPECT_FALSE(values.ids.has_value());
}

TEST(FlagSet, SaysWhatAValueMustBe) {
  Values values;
  FlagSet flags = MakeFlags(values);
  const auto message = [&](const char* name, const char* value) {
    const absl::Status status = flags.Set(name, value);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(message("concurrency", "many"),
            "--concurrency must be an integer, is \"many\"");
  EXPECT_EQ(message("json", "maybe"),
            "--json must be true or false, is \"maybe\"");
  EXPECT_THAT(message("concurrency", "2147483648"), HasSubstr("integer"));
  EXPECT_THAT(message("seed", "-1"), HasSubstr("at least 0"));
  EXPECT_THAT(message("ids", "5,,6"), HasSubstr("5,6,7"));
  EXPECT_THAT(message("bias", "5"), HasSubstr("ID=VALUE"));
  EXPECT_THAT(message("deadline", "0"), HasSubstr("seconds above 0"));
  EXPECT_THAT(message("deadline", "nan"), HasSubstr("seconds above 0"));
  EXPECT_EQ(flags.Set("model", std::nullopt).message(),
            "--model needs a value: a text");
  EXPECT_EQ(flags.Set("nothing", "1").code(), absl::StatusCode::kNotFound);
}

TEST(FlagSet, HelpsInSectionsOfEightyColumns) {
  Values values;
  FlagSet flags = MakeFlags(values);
  flags.Add("long", "VALUE", std::string(30, 'w') + " " + std::string(30, 'v'),
            &values.model);
  const std::string help = flags.Help();
  EXPECT_THAT(help, HasSubstr("First:\n  --json                      One"));
  EXPECT_THAT(help, HasSubstr("\n\nSecond:\n  --temperature X  "));
  size_t begin = 0;
  while (begin < help.size()) {
    const size_t end = help.find('\n', begin);
    EXPECT_LE(end - begin, 80u);
    begin = end + 1;
  }
}

TEST(CutCommandLine, TellsFlagsFromTheRest) {
  const auto line =
      CutCommandLine({"--address", "a:1", "eval", "--json", "mgsm", "--lang=de",
                      "-", "--stop", "--json", "--", "--not-a-flag"},
                     [](const std::string& name) { return name != "json"; });
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_THAT(line->positional,
              ElementsAre("eval", "mgsm", "-", "--not-a-flag"));
  EXPECT_THAT(line->flags,
              ElementsAre(Pair("address", "a:1"), Pair("json", std::nullopt),
                          Pair("lang", "de"), Pair("stop", "--json")));
}

TEST(CutCommandLine, KnowsOneDash) {
  const auto takes_none = [](const std::string&) { return false; };
  EXPECT_FALSE(CutCommandLine({"-x"}, takes_none).ok());
  const auto help = CutCommandLine({"-h"}, takes_none);
  ASSERT_TRUE(help.ok());
  EXPECT_THAT(help->flags, ElementsAre(Pair("help", std::nullopt)));
}

TEST(NearestName, SuggestsOnlyWhatIsNear) {
  const std::vector<std::string> names = {"temperature", "top-k", "top-p"};
  EXPECT_EQ(NearestName("temprature", names), "temperature");
  EXPECT_EQ(NearestName("top-q", names), "top-k");
  EXPECT_EQ(NearestName("tpo-p", names), "top-p");
  EXPECT_EQ(NearestName("zzzzzz", names), std::nullopt);
}

}  // namespace
}  // namespace invar
