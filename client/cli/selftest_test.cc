// What a script sees of `invar selftest`: the table, JSON and exit codes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "client/cli/command.h"
#include "client/toy_model.h"

namespace invar {
namespace {

using ::testing::HasSubstr;

struct Outcome {
  int code;
  std::string out;
  std::string err;
};

Outcome Invoke(ToyModel& model, std::vector<std::string> arguments) {
  FakeServer server(model.Behaviour());
  arguments.insert(arguments.begin(),
                   {"--address", server.address(), "selftest"});
  std::istringstream in;
  std::ostringstream out;
  std::ostringstream err;
  Terminal terminal{in, out, err};
  const int code = RunInvar(arguments, terminal);
  return {code, out.str(), err.str()};
}

TEST(SelfTestCommand, PrintsATableAndExitsByIt) {
  ToyModel model;
  const Outcome good = Invoke(model, {"--seed", "3"});
  EXPECT_EQ(good.code, 0) << good.err;
  EXPECT_THAT(good.out, HasSubstr("mode DETERMINISTIC, seed 3, quick"));
  EXPECT_THAT(good.out, HasSubstr("\nno bit differs in "));

  ToyModel broken([](const ToySituation& one) { return one.streamed; });
  const Outcome bad = Invoke(broken, {"--seed", "3", "--json"});
  EXPECT_EQ(bad.code, 1);
  const auto json = nlohmann::json::parse(bad.out);
  EXPECT_EQ(json["passed"], false);
  EXPECT_EQ(json["seed"], 3);
  for (const auto& row : json["dimensions"]) {
    EXPECT_EQ(row["differing_bits"] > 0, row["dimension"] == "output");
  }
}

TEST(SelfTestCommand, WrongUsage) {
  ToyModel model;
  EXPECT_EQ(Invoke(model, {"--quick", "--full"}).code, 2);
  EXPECT_EQ(Invoke(model, {"now"}).code, 2);
  EXPECT_EQ(Invoke(model, {"--fingerprint", "zz"}).code, 2);
}

}  // namespace
}  // namespace invar
