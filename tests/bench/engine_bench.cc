// Speed of one model through the engine, as a worker runs it: batching,
// sampling and reports included, sockets not.
//
//   build/bin/engine_bench MODEL_FOLDER [--decode] [JSON_FILE]
//
// Prints a table of medians of five and, if asked to, the same as JSON.
// --decode: leaves out prefill and the prefix cache, most of the time.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "worker/engine/engine.h"
#include "worker/engine/testing/engine_harness.h"
#include "worker/model/arithmetic.h"
#include "worker/model/model.h"

namespace invar {
namespace {

constexpr int kRepetitions = 5;
constexpr int64_t kSharedTokens = 1024;
// Decode: the tokens of a prompt, and the steps that are measured after it.
constexpr int64_t kDecodePrompt = 128;
constexpr int64_t kMeasuredSteps = 30;

double Seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
      .count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Bench {
 public:
  static Engine::Options Options(const ModelConfig& config) {
    return {.kv_blocks = 64 * 8,
            .max_running_sequences = 64,
            .max_step_tokens = 2048,
            .max_context_tokens = config.max_position_embeddings,
            .tokenizer_ids = config.vocab_size};
  }

  Bench(const Engine::Options& options, std::unique_ptr<Model> model)
      : vocab_size_(options.tokenizer_ids),
        harness_(options, std::move(model)) {}

  // Tokens a second over the decode steps of `sequences` sequences.
  double Decode(int64_t sequences) {
    for (int64_t s = 0; s < sequences; ++s) {
      Submit(FreshPrompt(kDecodePrompt), kMeasuredSteps + 4);
    }
    while (harness_.Step().prompt_tokens > 0) {
    }
    int64_t tokens = 0;
    const double seconds = Seconds([&] {
      for (int step = 0; step < kMeasuredSteps; ++step) {
        tokens += harness_.Step().generated_tokens;
      }
    });
    harness_.Drain();
    return static_cast<double>(tokens) / seconds;
  }

  // Tokens a second of `prompts` prompts at once, to their first tokens.
  double Prefill(int64_t prompts, int64_t tokens) {
    for (int64_t i = 0; i < prompts; ++i) Submit(FreshPrompt(tokens), 1);
    return static_cast<double>(prompts * tokens) /
           Seconds([&] { harness_.Drain(); });
  }

  // Time to the first token of a prompt over that of another which shared its
  // first kSharedTokens tokens just before.
  double PrefixRatio() {
    std::vector<int32_t> prompt = FreshPrompt(kSharedTokens + 16);
    Submit(prompt, 1);
    const double first = Seconds([&] { harness_.Drain(); });
    for (size_t i = kSharedTokens; i < prompt.size(); ++i) prompt[i] ^= 1;
    Submit(prompt, 1);
    return Seconds([&] { harness_.Drain(); }) / first;
  }

 private:
  // Unlike every earlier one from its first token, so that no prefix is cached.
  std::vector<int32_t> FreshPrompt(int64_t tokens) {
    std::vector<int32_t> prompt(tokens);
    for (int64_t i = 0; i < tokens; ++i) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      prompt[i] = static_cast<int32_t>((state_ >> 33) % (vocab_size_ / 2)) * 2;
    }
    return prompt;
  }

  void Submit(const std::vector<int32_t>& prompt, int32_t max_tokens) {
    worker::v1::Submit submit = MakeSubmit(++request_, prompt, max_tokens);
    harness_.Submit(submit);
  }

  const int64_t vocab_size_;
  EngineHarness harness_;
  uint64_t state_ = 1;
  int64_t request_ = 0;
};

// Tokens a second if Decode's multiply-adds were all that takes time.
double DecodeCeiling(const ModelConfig& config, const PeakRates& peak) {
  double milliseconds = 0.0;
  for (int64_t step = 0; step < kMeasuredSteps; ++step) {
    for (const auto& [op, work] : WorkOf(config, kDecodePrompt + 1 + step)) {
      milliseconds += peak.Milliseconds(work);
    }
  }
  return 1e3 * kMeasuredSteps / milliseconds;
}

int Main(int argc, char** argv) {
  const bool decode_only = argc > 2 && std::string(argv[2]) == "--decode";
  const int json_file = decode_only ? 3 : 2;
  if (argc < 2 || argc > json_file + 1) {
    std::fprintf(stderr,
                 "usage: engine_bench MODEL_FOLDER [--decode] [JSON_FILE]\n");
    return 2;
  }
  auto model = Model::Load({.path = argv[1]});
  if (!model.ok()) {
    std::fprintf(stderr, "%s\n", model.status().ToString().c_str());
    return 1;
  }
  const ModelConfig config = (*model)->config();
  const Engine::Options options = Bench::Options(config);
  cpu::ThreadPool pool(0);
  Bench bench(options, *std::move(model));
  std::vector<std::pair<std::string, std::function<double()>>> lines = {
      {"decode tokens/s, batch 1", [&] { return bench.Decode(1); }},
      {"decode tokens/s, batch 8", [&] { return bench.Decode(8); }},
      {"decode tokens/s, batch 64", [&] { return bench.Decode(64); }},
      {"prefill tokens/s, 1 prompt of 128",
       [&] { return bench.Prefill(1, 128); }},
      {"prefill tokens/s, 8 prompts of 128",
       [&] { return bench.Prefill(8, 128); }},
      {"prefill tokens/s, 64 prompts of 128",
       [&] { return bench.Prefill(64, 128); }},
      {"first token, 1024 shared tokens cached / not",
       [&] { return bench.PrefixRatio(); }},
  };
  if (decode_only) lines.resize(3);
  std::vector<double> fp32, pairs, ceiling;
  // Interleaved, so that a busy moment of the machine meets all of them.
  std::map<std::string, std::vector<double>> values;
  for (int i = 0; i < kRepetitions; ++i) {
    for (const auto& [name, measure] : lines) {
      values[name].push_back(measure());
    }
    const PeakRates peak = MeasurePeakRates(pool);
    fp32.push_back(peak.fp32 / 1e6);
    pairs.push_back(peak.pairs / 1e6);
    ceiling.push_back(DecodeCeiling(config, peak));
  }
  nlohmann::json json = nlohmann::json::object();
  const auto print = [&json](const std::string& name, double value) {
    json[name] = value;
    std::printf("%-52s %12.4g\n", name.c_str(), value);
  };
  for (const auto& line : lines) print(line.first, Median(values[line.first]));
  const double one = json["decode tokens/s, batch 1"].get<double>();
  const double most = Median(ceiling);
  print("decode, batch 64 over batch 1",
        json["decode tokens/s, batch 64"].get<double>() / one);
  print("peak of fp32 multiply-adds, GMAC/s", Median(fp32));
  print("peak of bf16 pairs, GMAC/s", Median(pairs));
  print("decode tokens/s if these were all, any batch", most);
  print("the same over batch 1", most / one);
  if (argc > json_file) {
    std::ofstream file(argv[json_file]);
    file << json.dump(2) << "\n";
    file.close();
    if (!file) {
      std::fprintf(stderr, "cannot write %s\n", argv[json_file]);
      return 1;
    }
  }
  return 0;
}

}  // namespace
}  // namespace invar

int main(int argc, char** argv) { return invar::Main(argc, argv); }
