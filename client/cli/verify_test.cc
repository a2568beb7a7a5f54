// What a script sees of `invar verify`: lines, JSON and exit codes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/toy_model.h"

namespace invar {
namespace {

using ::testing::HasSubstr;

class VerifyCommandTest : public testing::Test {
 protected:
  VerifyCommandTest()
      : folder_(std::filesystem::path(testing::TempDir()) /
                absl::StrCat("invar_verify_", getpid())),
        server_(model_.Behaviour()) {
    std::filesystem::create_directories(folder_);
  }
  ~VerifyCommandTest() override { std::filesystem::remove_all(folder_); }

  int Invoke(std::vector<std::string> arguments,
             const std::string& input = "") {
    arguments.insert(arguments.begin(), {"--address", server_.address()});
    std::istringstream in(input);
    std::ostringstream out;
    std::ostringstream err;
    Terminal terminal{in, out, err};
    const int code = RunInvar(arguments, terminal);
    out_ = out.str();
    err_ = err.str();
    return code;
  }

  std::string Path(const std::string& name) {
    return (folder_ / name).string();
  }
  std::string Read(const std::string& name) {
    std::ifstream file(folder_ / name);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  const std::filesystem::path folder_;
  ToyModel model_;
  const FakeServer server_;
  std::string out_;
  std::string err_;
};

TEST_F(VerifyCommandTest, TellsIdenticalFromAltered) {
  ASSERT_EQ(Invoke({"generate", "--prompt", "hello", "--request-id", "mine",
                    "--seed", "5", "--receipt", Path("r")}),
            0)
      << err_;
  EXPECT_EQ(Invoke({"verify", Path("r")}), 0) << err_;
  EXPECT_EQ(out_, "1 record: 1 identical, 0 differ, 0 cannot be told\n");

  std::string altered = Read("r");
  const size_t seed = altered.rfind("\"seed\":\"5\"");
  ASSERT_NE(seed, std::string::npos);
  altered.replace(seed, 10, "\"seed\":\"6\"");
  const std::string both = Read("r") + altered;
  EXPECT_EQ(Invoke({"verify", "-", "--concurrency", "2"}, both), 1);
  EXPECT_EQ(out_,
            "-:2: differs: answers[0].completion.receipt.seed: 6 recorded, 5 "
            "replayed\n2 records: 1 identical, 1 differs, 0 cannot be told\n");
  EXPECT_EQ(Invoke({"verify", "-", "--json"}, both), 1);
  const auto json = nlohmann::json::parse(out_);
  EXPECT_EQ(json["records"], 2);
  EXPECT_EQ(json["identical"], 1);
  EXPECT_EQ(json["findings"][0]["line"], 2);
  EXPECT_EQ(json["findings"][0]["request_id"], "mine");
}

TEST_F(VerifyCommandTest, AWholeEvaluationIsOneCommand) {
  ASSERT_EQ(Invoke({"eval", "mgsm", "--limit", "20", "--receipts", Path("m")}),
            0)
      << err_;
  EXPECT_EQ(Invoke({"verify", Path("m")}), 0);
  EXPECT_THAT(out_, HasSubstr("20 records: 20 identical"));
}

TEST_F(VerifyCommandTest, ExitsTwoForWhatIsNoRecordAndThreeWithoutAServer) {
  EXPECT_EQ(Invoke({"verify"}), 2);
  EXPECT_EQ(Invoke({"verify", Path("nowhere")}), 2);
  EXPECT_THAT(err_, HasSubstr("cannot read"));
  EXPECT_EQ(Invoke({"verify", "-"}, ""), 2);
  EXPECT_THAT(err_, HasSubstr("holds no record"));
  EXPECT_EQ(Invoke({"verify", "-"}, "{\"a\":1}\n"), 2);
  EXPECT_THAT(err_, HasSubstr("standard input:1: not a record"));
  EXPECT_EQ(Invoke({"verify", "-", "--concurrency", "0"}, "{}"), 2);
  ASSERT_EQ(Invoke({"generate", "--prompt", "x", "--receipt", Path("r")}), 0);
  EXPECT_EQ(Invoke({"--address", "127.0.0.1:1", "verify", Path("r")}), 3);
}

}  // namespace
}  // namespace invar
