// The command as a person or a script meets it: what is printed where, and the
// exit code.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/fake_server.h"
#include "common/status.h"

namespace invar {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

struct Outcome {
  int code;
  std::string out;
  std::string err;
};

Outcome Invoke(std::vector<std::string> arguments,
               const std::string& input = "", bool on_terminal = false) {
  std::istringstream in(input);
  std::ostringstream out;
  std::ostringstream err;
  Terminal terminal{in, out, err, on_terminal, on_terminal};
  const int code = RunInvar(arguments, terminal);
  return {code, out.str(), err.str()};
}

Outcome InvokeAt(const FakeServer& server, std::vector<std::string> arguments,
                 const std::string& input = "", bool on_terminal = false) {
  arguments.insert(arguments.begin(), {"--address", server.address(),
                                       "--admin-address", server.address()});
  return Invoke(arguments, input, on_terminal);
}

int LineCount(const std::string& text) {
  return static_cast<int>(std::count(text.begin(), text.end(), '\n'));
}

TEST(Invar, HelpsToLearnEveryCommand) {
  const Outcome help = Invoke({"--help"});
  EXPECT_EQ(help.code, 0);
  for (const char* name : {"generate", "chat", "eval", "check", "workers"}) {
    EXPECT_THAT(help.out, HasSubstr(absl::StrCat("\n  ", name, " ")));
    const Outcome command = Invoke({name, "--help"});
    EXPECT_EQ(command.code, 0);
    for (const char* part : {"Usage: invar ", "\nExamples:\n  invar ",
                             "\nExit codes:\n", "--address HOST:PORT"}) {
      EXPECT_THAT(command.out, HasSubstr(part)) << name;
    }
    std::istringstream lines(command.out);
    for (std::string line; std::getline(lines, line);) {
      EXPECT_LE(line.size(), 80u) << line;
    }
    EXPECT_EQ(Invoke({"help", name}).out, command.out);
  }
}

TEST(Invar, AnswersWrongUsageWithOneLineAndTwo) {
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{"genrate"}, "unknown command \"genrate\"; did you mean generate?"},
      {{"zzz"}, "unknown command \"zzz\". See invar --help"},
      {{"eval", "mgsm", "--min-scor", "1"},
       "unknown flag --min-scor; did you mean --min-score? See invar eval "
       "--help"},
      {{"check", "--min-score", "1"}, "unknown flag --min-score. See"},
      {{"generate", "-p", "x"}, "unknown flag -p; flags have two dashes"},
      {{"generate"}, "exactly one of --prompt, --chat and --token-ids"},
      {{"generate", "--prompt", "a", "--chat", "b"}, "exactly one of"},
      {{"generate", "hello"}, "takes no argument \"hello\""},
      {{"generate", "--prompt", "a", "--logprobs"}, "only with --json"},
      {{"generate", "--token-ids", "1,x"}, "--token-ids must be integers"},
      {{"generate", "--prompt", "a", "--seed"}, "--seed needs a value"},
      {{"eval"}, "there is \"mgsm\""},
      {{"eval", "gsm8k"}, "there is \"mgsm\""},
      {{"eval", "mgsm", "--lang", "xx"}, "no language \"xx\""},
      {{"eval", "mgsm", "--lang", "fr"}, "shipped set has no mgsm_fr.tsv"},
      {{"eval", "mgsm", "--concurrency", "0"}, "from 1 to 4096, is 0"},
      {{"eval", "mgsm", "--min-score", "80"}, "from 0 to 1"},
      {{"eval", "mgsm", "--data", "/nowhere"}, "/nowhere/mgsm_en.tsv"},
      {{"eval", "mgsm", "--output", "/nowhere/x"}, "cannot write /nowhere/x"},
      {{"workers", "stop", "w"}, "drain ID or resume ID"},
      {{"check", "--address", "nowhere"}, "\"nowhere\" is not HOST:PORT"},
  };
  for (const auto& [arguments, line] : cases) {
    const Outcome outcome = Invoke(arguments);
    EXPECT_EQ(outcome.code, 2) << line;
    EXPECT_THAT(outcome.err, HasSubstr(line));
    EXPECT_THAT(outcome.err, StartsWith("invar: "));
    EXPECT_EQ(LineCount(outcome.err), 1) << outcome.err;
    EXPECT_EQ(outcome.out, "");
  }
  EXPECT_EQ(Invoke({}).code, 2);
}

TEST(Invar, ExitsThreeWithoutAServer) {
  std::string address;
  {
    FakeServer server({});
    address = server.address();
  }
  for (std::vector<std::string> command : {std::vector<std::string>{"check"},
                                           {"generate", "--prompt", "x"},
                                           {"chat", "x"},
                                           {"eval", "mgsm"},
                                           {"workers"}}) {
    command.insert(command.end(),
                   {"--address", address, "--admin-address", address});
    const Outcome outcome = Invoke(command);
    EXPECT_EQ(outcome.code, 3) << command[0];
    EXPECT_THAT(outcome.err, StartsWith("invar: no server at " + address));
    EXPECT_EQ(LineCount(outcome.err), 1);
  }
}

TEST(Invar, PutsAServersErrorOnOneLine) {
  const std::pair<grpc::Status, std::pair<int, std::string>> cases[] = {
      {BadField("sampling.temperature", "must be in [0, 100], is -1"),
       {2,
        "invar: INVALID_ARGUMENT: sampling.temperature must be in [0, 100], "
        "is -1 (field sampling.temperature; reason BAD_FIELD)\n"}},
      {Error(absl::StatusCode::kUnavailable, "NO_WORKER", "no worker\nhere")
           .RetryAfter(absl::Milliseconds(1500)),
       {3,
        "invar: UNAVAILABLE: no worker here (reason NO_WORKER; try again in "
        "1.5s)\n"}},
      {grpc::Status(grpc::StatusCode::OUT_OF_RANGE, "too long"),
       {2, "invar: OUT_OF_RANGE: too long\n"}},
      {grpc::Status(grpc::StatusCode::DATA_LOSS, "not finite"),
       {1, "invar: DATA_LOSS: not finite\n"}},
  };
  for (const auto& [status, expected] : cases) {
    FakeServer server({.refuse = [status = status](const v1::GenerateRequest&,
                                                   int) { return status; }});
    const Outcome outcome = InvokeAt(server, {"generate", "--prompt", "x"});
    EXPECT_EQ(outcome.code, expected.first);
    EXPECT_EQ(outcome.err, expected.second);
    EXPECT_EQ(outcome.out, "");
  }
}

TEST(Generate, StreamsTextAndReadsStandardInput) {
  FakeServer server({});
  EXPECT_EQ(InvokeAt(server, {"generate", "--prompt", "hi"}).out, "echo: hi\n");
  EXPECT_EQ(InvokeAt(server, {"generate", "--prompt", "-"}, "from\nfile").out,
            "echo: from\nfile\n");
  // A flag of the command may stand before it.
  EXPECT_EQ(InvokeAt(server, {"--chat", "hey", "generate"}).out, "echo: hey\n");
  EXPECT_EQ(InvokeAt(server, {"generate", "--chat", "x", "--n", "2"}).out,
            "--- answer 0\necho: x\n--- answer 1\necho: x\n");
}

TEST(Generate, SendsWhatItsFlagsSay) {
  FakeServer server({});
  const Outcome outcome = InvokeAt(server, {"generate",
                                            "--token-ids",
                                            "5,6,7",
                                            "--max-tokens",
                                            "0",
                                            "--temperature",
                                            "0.5",
                                            "--top-k",
                                            "3",
                                            "--logit-bias",
                                            "5=1.5",
                                            "--stop",
                                            "END",
                                            "--stop",
                                            "FIN",
                                            "--stop-token-ids",
                                            "1,2",
                                            "--ignore-eos",
                                            "--prompt-logprobs",
                                            "--json",
                                            "--request-id",
                                            "mine",
                                            "--seed",
                                            "18446744073709551615",
                                            "--no-skip-special-tokens"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const v1::GenerateRequest sent = server.requests().at(0);
  EXPECT_EQ(sent.token_ids().ids_size(), 3);
  EXPECT_TRUE(sent.stopping().has_max_tokens());
  EXPECT_EQ(sent.stopping().max_tokens(), 0);
  EXPECT_EQ(sent.stopping().stop_strings_size(), 2);
  EXPECT_EQ(sent.stopping().stop_token_ids(1), 2);
  EXPECT_TRUE(sent.stopping().ignore_eos());
  EXPECT_EQ(sent.sampling().temperature(), 0.5f);
  EXPECT_EQ(sent.sampling().seed(), 18446744073709551615u);
  EXPECT_EQ(sent.sampling().logit_bias().at(5), 1.5f);
  // What was not said is left to the server.
  EXPECT_FALSE(sent.sampling().has_top_p());
  EXPECT_FALSE(sent.stopping().has_min_tokens());
  EXPECT_FALSE(sent.output().has_logprobs());
  EXPECT_FALSE(sent.output().skip_special_tokens());

  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json["request_id"], "mine");
  EXPECT_EQ(json["prompt_logprobs"].dump(), "[-0.100000001,-0.333333343]");
  EXPECT_EQ(json["receipt"]["fingerprint"], "f00d");
  EXPECT_EQ(LineCount(outcome.out), 1);
}

TEST(Chat, RemembersTheConversation) {
  FakeServer server({});
  const Outcome outcome =
      InvokeAt(server, {"chat", "--system", "Be brief."},
               "one\ntwo\n/reset\nthree\n/quit\nnever\n", /*on_terminal=*/true);
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.out, "echo: one\necho: two\necho: three\n");
  const auto requests = server.requests();
  ASSERT_EQ(requests.size(), 3u);
  EXPECT_EQ(requests[1].chat().messages_size(), 4);
  EXPECT_EQ(requests[1].chat().messages(2).role(), "assistant");
  EXPECT_EQ(requests[1].chat().messages(2).content(), "echo: one");
  EXPECT_EQ(requests[2].chat().messages_size(), 2);
}

TEST(Chat, SendsOneMessageFromArgumentsOrInput) {
  FakeServer server({});
  EXPECT_EQ(InvokeAt(server, {"chat", "how", "are", "you"}).out,
            "echo: how are you\n");
  EXPECT_EQ(InvokeAt(server, {"chat"}, "piped").out, "echo: piped\n");
}

TEST(Check, TellsReadyFromAlive) {
  FakeServer ready({});
  FakeServer alive({.ready = false});
  const Outcome yes = InvokeAt(ready, {"check"});
  EXPECT_EQ(yes.code, 0);
  EXPECT_EQ(yes.out, "server: SERVING\ninvar.v1.InferenceService: SERVING\n");
  const Outcome no = InvokeAt(alive, {"check", "--wait", "0.01"});
  EXPECT_EQ(no.code, 1);
  EXPECT_THAT(no.out, HasSubstr("invar.v1.InferenceService: NOT_SERVING\n"));
}

TEST(Workers, ListsDrainsAndResumes) {
  FakeBehaviour behaviour;
  behaviour.workers.set_queued_requests(3);
  v1::WorkerInfo& good = *behaviour.workers.add_workers();
  good.set_worker_id("alpha");
  good.set_device("cpu");
  good.set_state(v1::WorkerInfo::READY);
  good.mutable_numerics()->set_fingerprint("0123456789abcdef");
  good.set_running_sequences(2);
  good.set_kv_blocks_used(7);
  good.set_kv_blocks_total(90);
  good.set_heartbeat_age_ms(250);
  v1::WorkerInfo& bad = *behaviour.workers.add_workers();
  bad.set_worker_id("beta");
  bad.set_state(v1::WorkerInfo::REFUSED);
  bad.set_reason("kv_cache.dtype differs");
  v1::WorkerInfo& other = *behaviour.workers.add_workers();
  other.set_worker_id("delta");
  other.set_state(v1::WorkerInfo::READY);
  other.set_first_difference("plan.kv.dtype: e5m2 against e4m3");
  auto& entry = *other.mutable_numerics()->mutable_plan()->add_entries();
  entry.set_name("kv.dtype");
  entry.set_value("e4m3");
  FakeServer server(behaviour);

  const Outcome table = InvokeAt(server, {"workers"});
  EXPECT_EQ(table.code, 0);
  EXPECT_THAT(table.out, HasSubstr("alpha   cpu     READY    0123456789ab"));
  EXPECT_THAT(table.out, HasSubstr("7/90"));
  EXPECT_THAT(table.out, HasSubstr("beta: kv_cache.dtype differs\n"));
  EXPECT_THAT(table.out,
              HasSubstr("delta: a pool of its own, by plan.kv.dtype: "
                        "e5m2 against e4m3\n"));
  const auto json =
      nlohmann::json::parse(InvokeAt(server, {"workers", "--json"}).out);
  EXPECT_EQ(json["queued_requests"], 3);
  EXPECT_EQ(json["workers"][1]["state"], "REFUSED");
  EXPECT_EQ(json["workers"][2]["plan"]["kv.dtype"], "e4m3");

  EXPECT_EQ(InvokeAt(server, {"workers", "drain", "alpha"}).code, 0);
  EXPECT_EQ(InvokeAt(server, {"workers", "resume", "alpha"}).code, 0);
  const Outcome unknown = InvokeAt(server, {"workers", "drain", "gamma"});
  EXPECT_EQ(unknown.code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("no worker is named gamma"));
  EXPECT_THAT(
      server.admin_calls(),
      testing::ElementsAre("drain alpha", "resume alpha", "drain gamma"));
}

// Four problems in a folder of MGSM's shape; the server gets three right.
class EvalTest : public testing::Test {
 protected:
  EvalTest()
      : folder_(std::filesystem::path(testing::TempDir()) /
                absl::StrCat("invar_eval_", getpid())),
        server_({.answer = [](const v1::GenerateRequest& request) {
          const std::string prompt = PromptOf(request);
          return absl::StrCat("Antwort: ", prompt == "Löse: d" ? "9" : "7.0");
        }}) {
    std::filesystem::create_directories(folder_);
    Write("mgsm_de.tsv", "a\t7\nb\t7\nc\t7\nd\t7\n");
    Write("instructions.json", R"({"de": "Löse: {input}"})");
  }
  ~EvalTest() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& name, const std::string& contents) {
    std::ofstream(folder_ / name) << contents;
  }

  std::string Read(const std::string& name) {
    std::ifstream file(folder_ / name);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  Outcome Eval(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"eval", "mgsm", "--lang", "de",
                                         "--data", folder_.string()});
    return InvokeAt(server_, arguments);
  }

  const std::filesystem::path folder_;
  const FakeServer server_;
};

TEST_F(EvalTest, PrintsOneJsonObject) {
  const Outcome outcome = Eval({"--json", "--concurrency", "2"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(LineCount(outcome.out), 1);
  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json["score"], 0.75);
  EXPECT_EQ(json["n"], 4);
  EXPECT_EQ(json["correct"], 3);
  EXPECT_EQ(json["digest"].get<std::string>().size(), 64u);
  EXPECT_EQ(json["fingerprint"], "f00d");
  EXPECT_EQ(json["lang"], "de");
  EXPECT_EQ(json["concurrency"], 2);
  EXPECT_GT(json["latency_seconds"], 0);
  EXPECT_GT(json["output_tokens_per_second"], 0);
  EXPECT_THAT(outcome.err, HasSubstr("4/4  score 0.750"));
}

TEST_F(EvalTest, ExitsOneBelowTheScore) {
  EXPECT_EQ(Eval({"--min-score", "0.75"}).code, 0);
  const Outcome below = Eval({"--min-score", "0.76"});
  EXPECT_EQ(below.code, 1);
  EXPECT_THAT(below.err, HasSubstr("score 0.750 is below 0.76\n"));
  EXPECT_THAT(below.out, HasSubstr("score        0.750 (3 of 4)"));
}

TEST_F(EvalTest, WritesEqualTranscriptsForEqualRuns) {
  ASSERT_EQ(
      Eval({"--output", (folder_ / "1").string(), "--concurrency", "1"}).code,
      0);
  ASSERT_EQ(
      Eval({"--output", (folder_ / "4").string(), "--concurrency", "4"}).code,
      0);
  EXPECT_EQ(LineCount(Read("1")), 4);
  EXPECT_EQ(Read("1"), Read("4"));
  const auto last = nlohmann::json::parse(
      Read("1").substr(Read("1").rfind('\n', Read("1").size() - 2) + 1));
  EXPECT_EQ(last["prediction"], "9");
  EXPECT_EQ(last["correct"], false);
}

TEST_F(EvalTest, TakesALimitAndOtherInstructions) {
  Write("other.json", R"({"de": "Sag {input}"})");
  const Outcome outcome = Eval({"--json", "--limit", "2", "--instructions",
                                (folder_ / "other.json").string()});
  EXPECT_EQ(nlohmann::json::parse(outcome.out)["n"], 2);
  EXPECT_THAT(PromptOf(server_.requests()[0]), StartsWith("Sag "));
}

TEST_F(EvalTest, AsksForMissingInstructions) {
  std::filesystem::remove(folder_ / "instructions.json");
  const Outcome outcome = Eval({});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("--instructions FILE"));
}

TEST(Eval, AsksTheShippedProblemsByDefault) {
  FakeServer server({});
  const Outcome outcome =
      InvokeAt(server, {"eval", "mgsm", "--json"}, "", /*on_terminal=*/true);
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(nlohmann::json::parse(outcome.out)["n"], 250);
  EXPECT_THAT(outcome.err, HasSubstr("\r[############################] "));
  EXPECT_THAT(outcome.err, Not(HasSubstr("nan")));
}

TEST(Eval, StopsAtAFailureAndSaysWhere) {
  FakeServer server({.refuse = [](const v1::GenerateRequest&, int seen) {
    return seen == 3 ? BadField("chat", "is odd").ToStatus() : grpc::Status::OK;
  }});
  const Outcome outcome =
      InvokeAt(server, {"eval", "mgsm", "--concurrency", "1"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err,
              HasSubstr("invar: problem 4 failed after 1 attempt(s), 3 of 250 "
                        "done: INVALID_ARGUMENT: chat is odd"));
  EXPECT_EQ(outcome.out, "");
}

}  // namespace
}  // namespace invar
