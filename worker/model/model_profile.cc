// Where a decode step's time goes: milliseconds an operation, all layers
// together, beside the time that its multiply-adds take at the rate which this
// processor reaches in the same process.
//
//   build/bin/model_profile MODEL_FOLDER [SEQUENCES [CONTEXT [THREADS]]]
//
// Medians of kSteps steps. An operation's time is that from the one shown
// before (Model::Observe), so small ones count with the next that is shown. An
// observed step is not shared out by sequence: for a thread's share, ask for
// its sequences on one thread. "step" is not observed.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/thread_pool.h"
#include "worker/model/arithmetic.h"
#include "worker/model/model.h"

namespace invar {
namespace {

constexpr int kSteps = 101;

using Clock = std::chrono::steady_clock;

double Milliseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2,
                   values.end());
  return values[values.size() / 2];
}

// Decode steps of `sequences` sequences whose cache holds `context` tokens.
class Steps {
 public:
  Steps(Model& model, int64_t sequences, int64_t context)
      : model_(model),
        context_(context),
        tables_(sequences),
        ids_(model.config().vocab_size),
        cache_(model.NewKvCache(sequences * (context / kBlockTokens + 1))),
        logits_(sequences * model.config().vocab_size) {
    std::iota(ids_.begin(), ids_.end(), 0);
    const int64_t blocks = context / kBlockTokens + 1;
    std::vector<int32_t> prompt(context);
    for (int64_t s = 0; s < sequences; ++s) {
      tables_[s].resize(blocks);
      std::iota(tables_[s].begin(), tables_[s].end(), s * blocks);
      for (int32_t& id : prompt) id = NextId();
      const SequenceSlice slice = {.token_ids = prompt,
                                   .block_ids = tables_[s]};
      model.Forward({&slice, 1}, *cache_, {});
    }
  }

  void Run() {
    std::vector<SequenceSlice> slices;
    for (const std::vector<int32_t>& table : tables_) {
      slices.push_back({.token_ids = {&ids_[NextId()], 1},
                        .first_position = context_,
                        .block_ids = table,
                        .logit_rows = 1});
    }
    model_.Forward(slices, *cache_, logits_);
  }

 private:
  int32_t NextId() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int32_t>((state_ >> 33) % ids_.size());
  }

  Model& model_;
  const int64_t context_;
  std::vector<std::vector<int32_t>> tables_;
  std::vector<int32_t> ids_;  // ids_[i] == i
  std::unique_ptr<KvCache> cache_;
  std::vector<float> logits_;
  uint64_t state_ = 1;
};

// Milliseconds of each operation, all layers of a step together.
struct Times {
  std::vector<std::string> order;  // of the first step
  std::map<std::string, std::vector<double>> operations;
  std::vector<double> steps;  // not observed
};

// An observed step after each that is not.
Times Measure(Model& model, Steps& steps) {
  Times times;
  std::map<std::string, double> step;
  Clock::time_point last;
  const auto count = [&](const std::string& op) {
    const auto now = Clock::now();
    if (!times.operations.contains(op) && !step.contains(op)) {
      times.order.push_back(op);
    }
    step[op] += Milliseconds(now - last);
    last = Clock::now();
  };
  for (int i = 0; i < kSteps; ++i) {
    model.Observe({});
    const auto start = Clock::now();
    steps.Run();
    times.steps.push_back(Milliseconds(Clock::now() - start));
    model.Observe([&](const OpOutput& out) { count(std::string(out.op)); });
    step.clear();
    last = Clock::now();
    steps.Run();
    count("(end)");
    for (const auto& [op, time] : step) times.operations[op].push_back(time);
  }
  return times;
}

void PrintLine(const std::string& op, double ms, double products,
               double floor) {
  std::printf("%-16s %9.3f %9.1f %9.3f %8.0f%%\n", op.c_str(), ms,
              products / 1e6, floor, 100.0 * floor / ms);
}

// work: of one token.
void PrintTable(const Times& times, const std::map<std::string, Work>& work,
                double tokens, const PeakRates& peak) {
  std::printf("%-16s %9s %9s %9s %9s\n", "operation", "ms", "MMAC", "floor",
              "share");
  Work all;
  for (const std::string& op : times.order) {
    const auto found = work.find(op);
    const Work one = found == work.end() ? Work() : found->second;
    PrintLine(op, Median(times.operations.at(op)), tokens * one.all(),
              tokens * peak.Milliseconds(one));
    all += one;
  }
  PrintLine("step", Median(times.steps), tokens * all.all(),
            tokens * peak.Milliseconds(all));
}

int Main(const std::string& folder, int64_t sequences, int64_t context,
         int threads) {
  auto model = Model::Load({.path = folder, .threads = threads});
  if (!model.ok()) {
    std::fprintf(stderr, "%s\n", model.status().ToString().c_str());
    return 1;
  }
  const ModelConfig& config = (*model)->config();
  if (sequences < 1 || context < 1 ||
      context >= config.max_position_embeddings) {
    std::fprintf(stderr,
                 "SEQUENCES and CONTEXT: 1 or more, CONTEXT below %lld\n",
                 static_cast<long long>(config.max_position_embeddings));
    return 2;
  }
  cpu::ThreadPool pool(threads);
  const PeakRates peak = MeasurePeakRates(pool);
  Steps steps(**model, sequences, context);
  for (int i = 0; i < 10; ++i) steps.Run();
  const Times times = Measure(**model, steps);
  std::printf(
      "%lld sequences, context %lld, %d threads, %s, GMAC/s: %.0f of fp32, "
      "%.0f of pairs\n",
      static_cast<long long>(sequences), static_cast<long long>(context),
      pool.threads(), cpu::Name(pool.isa()), peak.fp32 / 1e6, peak.pairs / 1e6);
  PrintTable(times, WorkOf(config, context + 1), static_cast<double>(sequences),
             peak);
  return 0;
}

}  // namespace
}  // namespace invar

int main(int argc, char** argv) {
  if (argc < 2 || argc > 5) {
    std::fprintf(stderr,
                 "usage: model_profile MODEL_FOLDER [SEQUENCES [CONTEXT "
                 "[THREADS]]]\n");
    return 2;
  }
  const auto number = [&](int i, int64_t otherwise) {
    return argc > i ? std::atoll(argv[i]) : otherwise;
  };
  return invar::Main(argv[1], number(2, 64), number(3, 160),
                     static_cast<int>(number(4, 0)));
}
