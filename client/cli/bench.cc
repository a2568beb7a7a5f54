#include <cmath>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/bench/dataset.h"
#include "client/bench/text_pieces.h"
#include "client/bench/worker_watch.h"
#include "client/bench/workload.h"
#include "client/cli/bench_output.h"
#include "client/cli/command.h"
#include "client/cli/json.h"

namespace invar {
namespace {

constexpr int kConcurrencyMax = 65536;
constexpr int kWarmupConcurrency = 64;
constexpr double kRateMax = 1e6;
constexpr CallOptions kInfoCall{.timeout = absl::Seconds(10)};

class BenchCommand : public Command {
 public:
  std::string Name() const override { return "bench"; }
  std::string Summary() const override {
    return "Measure the service under load: throughput, latencies, digests.";
  }
  std::string Usage() const override { return "bench [flags]"; }
  std::string Description() const override {
    return "Streams made-up requests, or those of a file, and tells requests "
           "and tokens a\n"
           "second, the times to the first token and between tokens, and what "
           "failed.\n"
           "\n"
           "Without --rate the loop is closed: so many requests are in flight, "
           "and one that\n"
           "ends makes room for the next. With --rate it is open: requests "
           "come as a\n"
           "Poisson process, whether or not the server keeps up, and each "
           "latency counts\n"
           "from the time at which the request was due.\n"
           "\n"
           "Everything that is made up follows from --seed: two runs with "
           "equal requests\n"
           "print equal digests, at any concurrency and rate.\n";
  }
  std::string Examples() const override {
    return "  invar bench --concurrency 128 --requests 1024 --input-tokens "
           "1024\n"
           "  invar bench --rate 20 --duration 60 --output-tokens 64:512 "
           "--slo ttft:200,itl:50\n"
           "  invar bench --prefix-tokens 512 --prefix-share 0.5 "
           "--input-tokens 600:1000\n"
           "  invar bench --determinism-check --temperature 1 --logprobs "
           "--json\n";
  }

  void AddFlags(FlagSet& flags) override;
  int Run(const GlobalFlags& globals,
          const std::vector<std::string>& positional,
          Terminal& terminal) override;

 private:
  absl::Status CheckFlags();
  absl::Status CheckPrompts();
  grpc::Status AskServer(Client& client);
  absl::Status CheckLengths() const;
  grpc::Status Warm(v1::InferenceService::Stub& stub,
                    const bench::Workload& workload) const;
  void ShowProgress(const bench::LoadProgress& progress, Terminal& terminal);
  nlohmann::ordered_json Parameters() const;
  int Report(const bench::LoadResult& load, Terminal& terminal);
  int CheckDeterminism(Terminal& terminal) const;

  std::optional<int32_t> concurrency_;
  std::optional<double> rate_;
  std::optional<int32_t> requests_;
  std::optional<double> duration_;
  int32_t warmup_ = 0;
  absl::Duration deadline_ = absl::Minutes(10);
  std::string input_tokens_ = "128";
  std::string output_tokens_ = "128";
  std::string dataset_;
  bool text_ = false;
  std::optional<double> prefix_share_;
  std::optional<float> temperature_;
  std::optional<uint64_t> seed_;
  bool determinism_check_ = false;
  int32_t repeats_ = 2;
  std::string slo_;
  bool json_ = false;

  bench::WorkloadOptions workload_;
  bench::LoadOptions load_;
  BenchRun run_;
  bool progress_drawn_ = false;
};

void BenchCommand::AddFlags(FlagSet& flags) {
  flags.Section("How requests come");
  flags.Add("concurrency", "N",
            "Closed loop: requests in flight. Open loop: in flight at most. "
            "Default: 64; with --rate no bound.",
            &concurrency_);
  flags.Add("rate", "R",
            "Open loop: requests a second on average, as a Poisson process.",
            &rate_);
  flags.Add("requests", "N",
            "Requests, or distinct ones with --determinism-check. Default: "
            "256 without --duration.",
            &requests_);
  flags.Add("duration", "SECONDS",
            "Begin no request after so long; those in flight end.", &duration_);
  flags.Add("warmup", "N", "Requests sent first, and not counted. Default: 0.",
            &warmup_);
  flags.Add("deadline", "SECONDS", "For one request. Default: 600.",
            &deadline_);
  flags.Section("What is asked");
  flags.Add("input-tokens", "N|LOW:HIGH",
            "Length of a prompt, fixed or drawn uniformly. Default: 128.",
            &input_tokens_);
  flags.Add("output-tokens", "N|LOW:HIGH",
            "Length of an answer, likewise. Default: 128.", &output_tokens_);
  flags.AddSwitch("stop-at-eos",
                  "Let the model end an answer sooner. Default: it may not.",
                  &workload_.stop_at_eos);
  flags.AddSwitch("text",
                  "Prompts as text of the served vocabulary, of about the "
                  "length. Default: token ids, of the exact length.",
                  &text_);
  flags.Add("dataset", "FILE",
            "Prompts from JSON lines {\"text\" or \"chat\": ...} or "
            "{\"token_ids\": [...]}, each with \"output_tokens\" if it likes; "
            "in order, over and over.",
            &dataset_);
  flags.Add("prefix-tokens", "N",
            "Common to prompts, within --input-tokens. Default: 0.",
            &workload_.prefix_tokens);
  flags.Add("prefix-share", "X",
            "Share of the prompts that begin with it. Default: 1.",
            &prefix_share_);
  flags.Add("prefix-count", "N", "Common prefixes there are. Default: 1.",
            &workload_.prefix_count);
  flags.Add("temperature", "X",
            "0 is greedy; above, each request has a seed. Default: 0.",
            &temperature_);
  flags.AddSwitch("logprobs", "Ask for log-probabilities, too.",
                  &workload_.logprobs);
  flags.Add("seed", "N", "Of all that is made up. Default: 0.", &seed_);
  flags.Add("model", "NAME", "Default: the one that the server serves.",
            &workload_.model);
  flags.Section("What is checked and printed");
  flags.AddSwitch("determinism-check",
                  "Send each request --repeats times, among other neighbours; "
                  "exit 1 if two answers differ in a token or, with "
                  "--logprobs, in a bit.",
                  &determinism_check_);
  flags.Add("repeats", "N", "Of the determinism check. Default: 2.", &repeats_);
  flags.Add("slo", "NAME:MS,...",
            "Count the answers within all bounds: ttft (first token), itl "
            "(each gap between tokens), tpot (their mean), e2e (the end).",
            &slo_);
  flags.AddSwitch("json",
                  "One JSON object instead of the table. Its schema: "
                  "client/bench/README.md.",
                  &json_);
}

int BenchCommand::Run(const GlobalFlags& globals,
                      const std::vector<std::string>& positional,
                      Terminal& terminal) {
  if (!positional.empty()) {
    return ReportUsage(terminal,
                       absl::StrCat("bench takes no argument \"", positional[0],
                                    "\". See invar bench --help"));
  }
  if (absl::Status valid = CheckFlags(); !valid.ok()) {
    return ReportFailure(terminal, valid);
  }
  const auto channel = ConnectChannel(globals.address, {});
  if (!channel.ok()) return ReportFailure(terminal, channel.status());
  Client client(*channel);
  run_.address = globals.address;
  if (const grpc::Status asked = AskServer(client); !asked.ok()) {
    return ReportFailure(terminal, "", asked);
  }
  if (absl::Status valid = CheckLengths(); !valid.ok()) {
    return ReportFailure(terminal, valid);
  }

  const auto stub = v1::InferenceService::NewStub(*channel);
  const bench::Workload workload(workload_);
  if (const grpc::Status warmed = Warm(*stub, workload); !warmed.ok()) {
    return ReportFailure(terminal, "warm-up", warmed);
  }
  std::optional<bench::WorkerWatch> watch;
  if (auto admin = AdminClient::Connect(globals.admin_address); admin.ok()) {
    watch.emplace(*std::move(admin));
  }
  const bench::LoadResult load = bench::RunLoad(
      *stub, workload, load_, [&](const bench::LoadProgress& progress) {
        ShowProgress(progress, terminal);
      });
  if (watch) run_.workers = watch->Stop();
  return Report(load, terminal);
}

absl::Status BenchCommand::CheckFlags() {
  if (rate_ && !(*rate_ > 0 && *rate_ <= kRateMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--rate must be above 0 and at most ", kRateMax));
  }
  load_.rate = rate_;
  load_.concurrency = concurrency_.value_or(rate_ ? 0 : 64);
  if (concurrency_ && (*concurrency_ < 1 || *concurrency_ > kConcurrencyMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--concurrency must be from 1 to ", kConcurrencyMax));
  }
  if (requests_.value_or(1) < 1 || warmup_ < 0 || repeats_ < 2) {
    return absl::InvalidArgumentError(
        "--requests must be at least 1, --warmup 0 and --repeats 2");
  }
  if (duration_ && !(*duration_ > 0 && *duration_ <= 1e9)) {
    return absl::InvalidArgumentError("--duration must be above 0");
  }
  if (duration_) load_.duration = absl::Seconds(*duration_);
  if (requests_ || !duration_) load_.requests = requests_.value_or(256);
  if (determinism_check_) {
    workload_.distinct = load_.requests.value_or(256);
    load_.requests = *workload_.distinct * repeats_;
    load_.keep_tokens = true;
  }
  load_.timeout = deadline_;
  workload_.temperature = temperature_.value_or(0);
  if (!(workload_.temperature >= 0)) {
    return absl::InvalidArgumentError("--temperature must be at least 0");
  }
  workload_.seed = seed_.value_or(0);
  load_.arrival_seed = workload_.seed;
  auto input = bench::ParseLengthRange("input-tokens", input_tokens_);
  if (!input.ok()) return input.status();
  auto output = bench::ParseLengthRange("output-tokens", output_tokens_);
  if (!output.ok()) return output.status();
  workload_.input_tokens = *input;
  workload_.output_tokens = *output;
  if (!slo_.empty()) {
    auto level = bench::ParseServiceLevel(slo_);
    if (!level.ok()) return level.status();
    run_.service_level = *level;
  }
  return CheckPrompts();
}

// Prefix and dataset.
absl::Status BenchCommand::CheckPrompts() {
  workload_.prefix_share = prefix_share_.value_or(1);
  if (workload_.prefix_tokens < 0 || workload_.prefix_count < 1 ||
      !(workload_.prefix_share >= 0 && workload_.prefix_share <= 1)) {
    return absl::InvalidArgumentError(
        "--prefix-tokens must be at least 0, --prefix-count 1, and "
        "--prefix-share from 0 to 1");
  }
  if (workload_.prefix_tokens > workload_.input_tokens.low) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--prefix-tokens ", workload_.prefix_tokens, " is longer than the ",
        workload_.input_tokens.low, " of --input-tokens that it is part of"));
  }
  if (dataset_.empty()) return absl::OkStatus();
  if (text_ || workload_.prefix_tokens > 0) {
    return absl::InvalidArgumentError(
        "--dataset brings its own prompts: leave --text and --prefix-tokens "
        "away");
  }
  std::ifstream file(dataset_, std::ios::binary);
  const std::string contents{std::istreambuf_iterator<char>(file), {}};
  if (!file.is_open() || file.bad()) {
    return absl::NotFoundError(absl::StrCat("cannot read ", dataset_));
  }
  auto entries = bench::ParseDataset(contents, dataset_);
  if (!entries.ok()) return entries.status();
  workload_.dataset = *std::move(entries);
  return absl::OkStatus();
}

// Fills in what only the server knows.
grpc::Status BenchCommand::AskServer(Client& client) {
  grpc::Status status = client.GetServerInfo(kInfoCall, &run_.server);
  if (!status.ok()) return status;
  workload_.vocab_size = run_.server.vocab_size();
  if (!text_) return status;
  return bench::DrawTextPieces(client, workload_.vocab_size, workload_.seed,
                               &workload_.pieces);
}

absl::Status BenchCommand::CheckLengths() const {
  const int64_t longest =
      int64_t{workload_.input_tokens.high} + workload_.output_tokens.high;
  if (workload_.dataset.empty() && longest > run_.server.max_context_tokens()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--input-tokens and --output-tokens make up to ", longest,
                     " tokens, but the server takes ",
                     run_.server.max_context_tokens(), " in one sequence"));
  }
  if (workload_.dataset.empty() && workload_.vocab_size < 1) {
    return absl::InvalidArgumentError(
        "the server does not say how large its vocabulary is");
  }
  return absl::OkStatus();
}

grpc::Status BenchCommand::Warm(v1::InferenceService::Stub& stub,
                                const bench::Workload& workload) const {
  if (warmup_ == 0) return grpc::Status::OK;
  bench::LoadOptions options;
  options.concurrency = concurrency_.value_or(kWarmupConcurrency);
  options.requests = warmup_;
  options.first_index = -int64_t{warmup_};
  options.timeout = deadline_;
  const bench::LoadResult load =
      bench::RunLoad(stub, workload, options, [](const auto&) {});
  for (const bench::RequestRecord& record : load.records) {
    if (record.status.ok()) return grpc::Status::OK;
  }
  return load.records.front().status;
}

void BenchCommand::ShowProgress(const bench::LoadProgress& progress,
                                Terminal& terminal) {
  if (!terminal.err_is_terminal) return;
  terminal.err << absl::StrFormat(
                      "\r%d ended, %d failed, %d in flight, %.0f tokens/s ",
                      progress.ended, progress.failed, progress.in_flight,
                      progress.output_tokens /
                          absl::ToDoubleSeconds(progress.elapsed))
               << std::flush;
  progress_drawn_ = true;
}

nlohmann::ordered_json BenchCommand::Parameters() const {
  using Json = nlohmann::ordered_json;
  const auto or_null = [](const auto& value) {
    return value ? Json(*value) : Json(nullptr);
  };
  const auto range = [](const bench::LengthRange& length) {
    return Json({length.low, length.high});
  };
  const bench::ServiceLevel& level = run_.service_level;
  return {{"loop", rate_ ? "open" : "closed"},
          {"rate", or_null(rate_)},
          {"concurrency",
           load_.concurrency > 0 ? Json(load_.concurrency) : Json(nullptr)},
          {"requests", or_null(load_.requests)},
          {"duration_seconds", or_null(duration_)},
          {"warmup", warmup_},
          {"deadline_seconds", absl::ToDoubleSeconds(deadline_)},
          {"prompts", !dataset_.empty() ? "dataset"
                      : text_           ? "text"
                                        : "ids"},
          {"dataset", dataset_},
          {"input_tokens", range(workload_.input_tokens)},
          {"output_tokens", range(workload_.output_tokens)},
          {"stop_at_eos", workload_.stop_at_eos},
          {"prefix_tokens", workload_.prefix_tokens},
          {"prefix_share", workload_.prefix_share},
          {"prefix_count", workload_.prefix_count},
          {"temperature", JsonNumber(workload_.temperature)},
          {"logprobs", workload_.logprobs},
          {"seed", workload_.seed},
          {"repeats", determinism_check_ ? repeats_ : 1},
          {"slo",
           {{"ttft_ms", or_null(level.ttft_ms)},
            {"itl_ms", or_null(level.itl_ms)},
            {"tpot_ms", or_null(level.tpot_ms)},
            {"e2e_ms", or_null(level.e2e_ms)}}}};
}

int BenchCommand::Report(const bench::LoadResult& load, Terminal& terminal) {
  if (progress_drawn_) terminal.err << "\n";
  run_.parameters = Parameters();
  run_.report =
      bench::Summarize(load, {.concurrency = rate_ ? 0 : load_.concurrency,
                              .service_level = run_.service_level,
                              .check_determinism = determinism_check_});
  if (json_) {
    terminal.out << Dump(ToJson(run_)) << "\n";
  } else {
    terminal.out << BenchTable(run_);
  }
  const bench::Report& report = run_.report;
  if (report.succeeded == 0) {
    return ReportFailure(terminal, "no request succeeded; the first",
                         load.records.front().status);
  }
  if (report.fingerprints.size() > 1) {
    terminal.err << "invar: the server changed during the run: its figures mix "
                    "fingerprints\n";
  }
  return CheckDeterminism(terminal);
}

int BenchCommand::CheckDeterminism(Terminal& terminal) const {
  if (!run_.report.determinism) return kExitDone;
  for (const bench::Difference& one : run_.report.determinism->differences) {
    terminal.err << "invar: request " << one.distinct << " was answered in two "
                 << "ways, at places " << one.place_a << " and " << one.place_b;
    if (one.token)
      terminal.err << ", from output token " << *one.token << " on";
    terminal.err << "\n";
  }
  if (run_.report.succeeded < run_.report.sent) {
    terminal.err << "invar: the determinism check is incomplete: "
                 << run_.report.sent - run_.report.succeeded
                 << " requests failed\n";
    return kExitNo;
  }
  return run_.report.determinism->differences.empty() ? kExitDone : kExitNo;
}

}  // namespace

std::unique_ptr<Command> MakeBenchCommand() {
  return std::make_unique<BenchCommand>();
}

}  // namespace invar
