// `invar bench` as a script meets it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "client/bench/token_server.h"
#include "client/cli/command.h"

namespace invar {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

struct Outcome {
  int code;
  std::string out;
  std::string err;
};

Outcome Bench(const bench::TokenServer& server,
              std::vector<std::string> flags) {
  std::istringstream in;
  std::ostringstream out, err;
  Terminal terminal{in, out, err};
  flags.insert(
      flags.begin(),
      {"bench", "--address", server.address(), "--admin-address",
       server.address(), "--input-tokens", "5:9", "--output-tokens", "3:6"});
  const int code = RunInvar(flags, terminal);
  return {code, out.str(), err.str()};
}

// The names of client/bench/README.md, DIST written out.
std::set<std::string> DocumentedPaths() {
  std::ifstream file("client/bench/README.md");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const size_t table = text.find("| path | meaning |");
  EXPECT_NE(table, std::string::npos);
  std::set<std::string> paths;
  std::istringstream lines(text.substr(table));
  const std::regex name("`([^`]+)`");
  for (std::string line; std::getline(lines, line) && !line.empty();) {
    const std::string cell = line.substr(0, line.find(" | ", 2));
    for (std::sregex_iterator it(cell.begin(), cell.end(), name), end;
         it != end; ++it) {
      const std::string path = (*it)[1];
      const size_t dist = path.find(".DIST");
      if (dist == std::string::npos) {
        paths.insert(path);
        continue;
      }
      for (const char* value :
           {"count", "mean", "p50", "p90", "p95", "p99", "max"}) {
        paths.insert(absl::StrCat(path.substr(0, dist), ".", value));
      }
    }
  }
  return paths;
}

// Every path of a document to something that is no object and no list.
void AddPaths(const Json& json, const std::string& path,
              std::set<std::string>& paths) {
  if (json.is_array()) {
    for (const Json& item : json) AddPaths(item, path + "[]", paths);
  } else if (json.is_object()) {
    for (const auto& [key, value] : json.items()) {
      const std::string name = path == "requests.errors" ? "CODE"
                               : path == "server.plan"   ? "NAME"
                                                         : key;
      AddPaths(value, path.empty() ? name : absl::StrCat(path, ".", name),
               paths);
    }
  } else {
    paths.insert(path);
  }
}

TEST(Bench, PrintsTheDocumentThatItsPageDescribes) {
  // One answer fails and one differs, so that every list has an item.
  const bench::TokenServer server(
      {.refuse =
           [](const v1::GenerateRequest&, int64_t number) {
             return number == 0
                        ? grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "")
                        : grpc::Status::OK;
           },
       .answer =
           [](const v1::GenerateRequest&, int64_t number) {
             return std::vector<int32_t>(3, static_cast<int32_t>(number));
           }});
  const Outcome outcome =
      Bench(server, {"--requests", "4", "--determinism-check", "--slo",
                     "ttft:60000", "--json"});
  EXPECT_EQ(outcome.code, 1);
  const Json json = Json::parse(outcome.out);
  std::set<std::string> paths;
  AddPaths(json, "", paths);
  std::set<std::string> documented = DocumentedPaths();
  // The admin port is none: all of `workers` is null.
  EXPECT_TRUE(json["workers"].is_null());
  paths.erase("workers");
  std::erase_if(documented, [](const std::string& path) {
    return path.rfind("workers.", 0) == 0;
  });
  std::vector<std::string> one_sided;
  std::set_symmetric_difference(paths.begin(), paths.end(), documented.begin(),
                                documented.end(),
                                std::back_inserter(one_sided));
  EXPECT_THAT(one_sided, ::testing::IsEmpty());
}

TEST(Bench, CountsRequestsAndTokens) {
  const bench::TokenServer server({});
  const Outcome outcome =
      Bench(server,
            {"--requests", "20", "--warmup", "7", "--concurrency", "4", "--slo",
             "e2e:60000", "--json", "--seed", "9", "--temperature", "0.5"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const Json json = Json::parse(outcome.out);
  EXPECT_EQ(json["schema"], "invar.bench.1");
  EXPECT_EQ(json["requests"]["sent"], 20);
  EXPECT_EQ(json["requests"]["succeeded"], 20);
  EXPECT_EQ(json["tokens"]["cached"], 20);  // One an answer.
  EXPECT_GE(json["tokens"]["input"], 20 * 5);
  EXPECT_LE(json["tokens"]["input"], 20 * 9);
  EXPECT_EQ(json["itl_ms"]["count"], json["tokens"]["output"].get<int>() - 20);
  EXPECT_EQ(json["goodput"]["requests"], 20);
  EXPECT_EQ(json["parameters"]["warmup"], 7);
  EXPECT_EQ(json["parameters"]["seed"], 9);
  EXPECT_EQ(json["server"]["fingerprint"], "f00d");
  EXPECT_TRUE(json["determinism"].is_null());
}

TEST(Bench, TellsWhereAnswersDiffer) {
  const bench::TokenServer liar(
      {.answer = [](const v1::GenerateRequest& request, int64_t number) {
        std::vector<int32_t> tokens(request.stopping().max_tokens(), 1);
        tokens[2] = number == 5 ? 7 : 1;
        return tokens;
      }});
  const Outcome outcome = Bench(
      liar, {"--requests", "4", "--determinism-check", "--concurrency", "1"});
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.out,
              HasSubstr("8 answers to 4 requests: 1 requests DIF"));
  EXPECT_THAT(outcome.err, HasSubstr("from output token 2 on"));

  const bench::TokenServer honest({});
  EXPECT_EQ(Bench(honest, {"--requests", "4", "--determinism-check"}).code, 0);
}

TEST(Bench, FailsIfNothingSucceeded) {
  const bench::TokenServer server(
      {.refuse = [](const v1::GenerateRequest&, int64_t) {
        return grpc::Status(grpc::StatusCode::NOT_FOUND, "no such model");
      }});
  const Outcome outcome = Bench(server, {"--requests", "2"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("no request succeeded; the first: "
                                     "NOT_FOUND: no such model"));
}

TEST(Bench, RefusesWhatItCannotSend) {
  const bench::TokenServer server({});
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{"now"}, "takes no argument \"now\""},
      {{"--rate", "0"}, "--rate must be above 0"},
      {{"--concurrency", "0"}, "--concurrency must be from 1"},
      {{"--requests", "0"}, "--requests must be at least 1"},
      {{"--duration", "-1"}, "--duration must be above 0"},
      {{"--output-tokens", "5:3"}, "--output-tokens must be a number"},
      {{"--output-tokens", "9000"}, "but the server takes 8192"},
      {{"--prefix-tokens", "6"}, "--prefix-tokens 6 is longer than the 5"},
      {{"--prefix-share", "1.5"}, "--prefix-share from 0 to 1"},
      {{"--slo", "x:1"}, "--slo must be NAME:MILLISECONDS"},
      {{"--temperature", "-1"}, "--temperature must be at least 0"},
      {{"--dataset", "/nowhere"}, "cannot read /nowhere"},
      {{"--dataset", "/nowhere", "--text"}, "leave --text and"},
  };
  for (const auto& [flags, line] : cases) {
    const Outcome outcome = Bench(server, flags);
    EXPECT_EQ(outcome.code, 2) << line;
    EXPECT_THAT(outcome.err, HasSubstr(line));
    EXPECT_EQ(outcome.out, "");
  }
}

}  // namespace
}  // namespace invar
