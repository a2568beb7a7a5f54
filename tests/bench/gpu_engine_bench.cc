// Speed of DeepSeek-V2-Lite's shape on a GPU through the engine, as a worker
// runs it: batching, sampling and reports included, sockets not.
//
//   build/bin/gpu_bench engine FOLDER bf16|fp8 [--kernels] [--tax] [CELL...]
//
// A cell is decode:BATCH:CONTEXT or prefill:PROMPTS:TOKENS. With --kernels (and
// libcupti) a step of each is also taken apart. --tax compares the plans of one
// model, in turns: what DETERMINISTIC costs against FAST in absorbed form, and
// against FAST with all that it has (prompts in MHA form).
//
// Writes a random checkpoint into FOLDER (16 GB in FP8, 31 GB in bf16), unless
// one is there. Prints the time of a decode step, of many that follow each
// other since one is in flight while the next is planned, and what it is when
// each waits for the one before, beside the floor: the bytes that must move
// over the copy bandwidth measured in this process. Experts hit are counted:
// what the router chose in a step after the timed ones. Of prefill it prints
// the share of the matrix units' rate, which is measured in turns with it.
// Prints too what the GPU's runtime takes beside what is allocated: before the
// first step, and from then on.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/testing/bench.h"
#include "tests/bench/kernel_trace.h"
#include "tests/bench/matrix_rate.h"
#include "worker/engine/engine.h"
#include "worker/engine/testing/engine_harness.h"
#include "worker/model/cuda/cuda_model.h"
#include "worker/model/testing/large_checkpoint.h"
#include "worker/model/testing/random_checkpoint.h"

namespace invar {
namespace {

// Of each timing of decode steps; the median of so many timings counts.
constexpr int kSteps = 12;
constexpr int kTimings = 3;
// With and without overlap, and those around them.
constexpr int kDecodeSteps = 2 * kTimings * kSteps + 8;
constexpr int64_t kStepTokens = 8192;
constexpr int64_t kContextTokens = 16384;
constexpr int64_t kSequences = 256;
constexpr int64_t kKvBlocks = 128 * (8192 / 64 + 8);

using Clock = std::chrono::steady_clock;
double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Bytes read plus written a second, by the best of a few large copies.
double CopyBandwidth() {
  constexpr int64_t kBytes = int64_t{1} << 30;
  auto from = *cuda::DeviceBuffer<std::byte>::Allocate(kBytes, "a copy");
  auto to = *cuda::DeviceBuffer<std::byte>::Allocate(kBytes, "a copy");
  double best = 0;
  for (int i = 0; i < 8; ++i) {
    cudaDeviceSynchronize();
    const auto start = Clock::now();
    cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice);
    cudaDeviceSynchronize();
    best = std::max(best, 2.0 * kBytes / Since(start));
  }
  return best;
}

double FreeMebibytes() {
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  return static_cast<double>(free) / (1 << 20);
}

// Bytes of weights and cache that a decode step of `batch` reads, which hits
// `experts` of all layers together.
double StepBytes(const ModelConfig& c, int64_t batch, int64_t context,
                 int64_t experts, double weight_bytes) {
  const double attention =
      c.hidden_size * (c.heads * c.qk_head_dim() + c.kv_row_elements() +
                       c.heads * c.v_head_dim) +
      c.heads * (c.qk_nope_head_dim + c.v_head_dim) * c.kv_lora_rank;
  const double expert = 3.0 * c.hidden_size * c.moe_intermediate_size;
  const int64_t sparse = c.layers - c.dense_layers;
  const double weights =
      c.layers * attention +
      c.dense_layers * 3.0 * c.hidden_size * c.intermediate_size +
      (sparse * c.shared_experts + experts) * expert;
  const double head = 2.0 * c.hidden_size * c.vocab_size;
  const double cache =
      static_cast<double>(batch) * context * c.layers * c.kv_row_elements();
  return weights * weight_bytes + head + cache;
}

// Floating-point operations of prompts of `tokens` each, by the instruction
// that does them. FP8 weights are multiplied as FP8; attention, kv_b's halves
// beside it, the LM head and bf16 weights as 16-bit. The rest counts nothing.
// In MHA form kv_b takes as much, to make keys and values, and attention less.
struct PrefillWork {
  double fp8 = 0;
  double half = 0;
};

// Of the last layer all tokens' cached rows, and all else of the last tokens
// alone; or, with `all`, of all.
PrefillWork WorkOf(const ModelConfig& c, bool fp8, int64_t prompts,
                   int64_t tokens, bool mha = false, bool all = false) {
  const double hidden = static_cast<double>(c.hidden_size);
  const double kv_a = hidden * c.kv_row_elements();
  const double q_and_o = hidden * c.heads * (c.qk_head_dim() + c.v_head_dim);
  const double experts = 3.0 * hidden * c.moe_intermediate_size *
                         (c.shared_experts + c.router.top_k);
  const double dense = 3.0 * hidden * c.intermediate_size;
  const double absorb = static_cast<double>(c.heads) *
                        (c.qk_nope_head_dim + c.v_head_dim) * c.kv_lora_rank;
  const double row = static_cast<double>(c.heads) *
                     (mha ? c.qk_head_dim() + c.v_head_dim
                          : c.kv_row_elements() + c.kv_lora_rank);
  double weights = 0;
  double half = hidden * c.vocab_size;
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const bool ends = !all && layer + 1 == c.layers;
    const double whole = ends ? 1 : tokens;
    const double seen = ends ? tokens : tokens * (tokens + 1) / 2.0;
    weights += tokens * kv_a +
               whole * (q_and_o + (layer < c.dense_layers ? dense : experts));
    half += whole * absorb + seen * row;
  }
  weights *= 2.0 * prompts;
  half *= 2.0 * prompts;
  return fp8 ? PrefillWork{weights, half} : PrefillWork{0, half + weights};
}

struct Rates {
  double fp8 = 0;
  double half = 0;

  double Floor(const PrefillWork& work) const {
    return work.fp8 / fp8 + work.half / half;
  }
};

Rates MeasureRates() {
  return {bench::MatrixRate(WeightDtype::kFp8E4m3),
          bench::MatrixRate(WeightDtype::kFp16)};
}

class Bench {
 public:
  Bench(std::unique_ptr<Model> model, std::unique_ptr<KvCache> cache,
        double weight_bytes)
      : config_(model->config()),
        model_(static_cast<cuda::CudaModel*>(model.get())),
        weight_bytes_(weight_bytes),
        harness_({.kv_blocks = kKvBlocks,
                  .max_running_sequences = kSequences,
                  .max_step_tokens = kStepTokens,
                  .max_context_tokens = kContextTokens,
                  .tokenizer_ids = config_.vocab_size},
                 std::move(model), std::move(cache)) {}

  void TraceKernels() {
    trace_ = bench::KernelTrace::Create();
    if (trace_ == nullptr) std::printf("no libcupti: no kernels' times\n");
  }

  void Decode(int64_t batch, int64_t context, double bandwidth) {
    // The first ones must still run when the last one's prompt is done.
    const int64_t prompt_steps = 2 * batch * context / kStepTokens + 1;
    for (int64_t s = 0; s < batch; ++s) {
      Submit(context, static_cast<int32_t>(prompt_steps + kDecodeSteps));
    }
    while (harness_.Step().prompt_tokens > 0) {
    }
    if (harness_.Step().generated_tokens != batch) {
      std::fprintf(stderr, "a step had not all of %lld sequences\n",
                   static_cast<long long>(batch));
      std::exit(1);
    }
    const double step = SecondsOfAStep();
    model_->UseOverlap(false);
    harness_.Step();
    const double alone = SecondsOfAStep();
    if (trace_ != nullptr) {
      trace_->Start();
      harness_.Step();
      kernels_ = trace_->Stop();
    }
    const int64_t experts = ExpertsHit();
    model_->UseOverlap(true);
    harness_.Drain();
    const double floor =
        StepBytes(config_, batch, context, experts, weight_bytes_) / bandwidth;
    std::printf(
        "decode B=%-4lld context %-6lld %8.3f ms a step (%.3f without "
        "overlap)  %9.0f tokens/s  "
        "floor %6.2f ms (%.1f experts a layer)  %3.0f%%\n",
        static_cast<long long>(batch), static_cast<long long>(context),
        step * 1e3, alone * 1e3, batch / step, floor * 1e3,
        static_cast<double>(experts) / (config_.layers - config_.dense_layers),
        100 * floor / step);
    std::fflush(stdout);
    PrintKernels();
  }

  // The plans take turns at the steps of one batch, the first of which, with a
  // graph to be made, are not counted.
  void DecodeTax(int64_t batch, int64_t context) {
    constexpr int kRounds = 5;
    constexpr int kWarming = 2;
    constexpr int kTimed = 6;
    const int64_t prompt_steps = 2 * batch * context / kStepTokens + 1;
    constexpr int kAll = 2 * kRounds * (kWarming + kTimed);
    model_->UsePlan(cuda::Plan::kFast);  // the prompts soonest
    for (int64_t s = 0; s < batch; ++s) {
      Submit(context, static_cast<int32_t>(prompt_steps + kAll + 8));
    }
    while (harness_.Step().prompt_tokens > 0) {
    }
    std::vector<double> seconds[2];
    for (int round = 0; round < kRounds; ++round) {
      for (const bool fast : {false, true}) {
        model_->UsePlan(fast ? cuda::Plan::kFast : cuda::Plan::kDeterministic);
        for (int i = 0; i < kWarming; ++i) harness_.Step();
        const auto start = Clock::now();
        for (int i = 0; i < kTimed; ++i) harness_.Step();
        seconds[fast].push_back(Since(start) / kTimed);
      }
    }
    harness_.Drain();
    const double deterministic = Median(seconds[0]);
    const double fast = Median(seconds[1]);
    std::printf(
        "tax of decode B=%-4lld context %-6lld DETERMINISTIC %8.3f ms  FAST "
        "%8.3f ms  ratio %.3f (prompts aside, FAST has one form); floors "
        "1.00\n",
        static_cast<long long>(batch), static_cast<long long>(context),
        deterministic * 1e3, fast * 1e3, deterministic / fast);
    std::fflush(stdout);
  }

  void PrefillTax(int64_t prompts, int64_t tokens) {
    constexpr int kRounds = 5;
    constexpr cuda::Plan kPlans[] = {cuda::Plan::kDeterministic,
                                     cuda::Plan::kFastAbsorbed,
                                     cuda::Plan::kFast};
    std::vector<double> seconds[3];
    for (int round = 0; round <= kRounds; ++round) {
      for (int plan = 0; plan < 3; ++plan) {
        model_->UsePlan(kPlans[plan]);
        for (int64_t p = 0; p < prompts; ++p) Submit(tokens, 1);
        const auto start = Clock::now();
        harness_.Drain();
        if (round > 0) seconds[plan].push_back(Since(start));
      }
    }
    const Rates rates = MeasureRates();
    const auto floor = [&](bool mha) {
      return rates.Floor(
          WorkOf(config_, weight_bytes_ == 1, prompts, tokens, mha));
    };
    const double deterministic = Median(seconds[0]);
    const double absorbed = Median(seconds[1]);
    const double fast = Median(seconds[2]);
    std::printf(
        "tax of prefill %lld x %lld  DETERMINISTIC %.2f ms  FAST absorbed %.2f "
        "ms  ratio %.3f, floors 1.00  FAST %.2f ms  ratio %.3f, floors %.2f\n",
        static_cast<long long>(prompts), static_cast<long long>(tokens),
        deterministic * 1e3, absorbed * 1e3, deterministic / absorbed,
        fast * 1e3, deterministic / fast, floor(false) / floor(true));
    std::fflush(stdout);
    if (trace_ == nullptr) return;
    for (const cuda::Plan plan : kPlans) {
      model_->UsePlan(plan);
      for (int64_t p = 0; p < prompts; ++p) Submit(tokens, 1);
      trace_->Start();
      harness_.Drain();
      kernels_ = trace_->Stop();
      PrintKernels();
    }
  }

  // In turns with what the matrix units do: the clock of both falls as the GPU
  // becomes warm, by some 10% within a second.
  void Prefill(int64_t prompts, int64_t tokens) {
    constexpr int kRounds = 5;
    constexpr int kTimed = 5;
    std::vector<double> seconds, fp8_rates, half_rates;
    for (int round = 0; round < kRounds; ++round) {
      const Rates rates = MeasureRates();
      fp8_rates.push_back(rates.fp8);
      half_rates.push_back(rates.half);
      for (int i = 0; i < kTimed; ++i) {
        for (int64_t p = 0; p < prompts; ++p) Submit(tokens, 1);
        const auto start = Clock::now();
        harness_.Drain();
        seconds.push_back(Since(start));
      }
    }
    const Rates rates = {Median(fp8_rates), Median(half_rates)};
    if (trace_ != nullptr) {
      for (int64_t p = 0; p < prompts; ++p) Submit(tokens, 1);
      trace_->Start();
      harness_.Drain();
      kernels_ = trace_->Stop();
    }
    const double median = Median(seconds);
    const PrefillWork work =
        WorkOf(config_, weight_bytes_ == 1, prompts, tokens);
    const double floor = rates.Floor(work);
    std::printf(
        "prefill %lld x %lld  %8.2f ms  %9.0f tokens/s  %.1f TFLOP at "
        "%.0f TFLOP/s  floor %.2f ms at the rates of their dtypes, FP8 %.0f "
        "and fp16 %.0f TFLOP/s, %.1f%% (%.1f%% with what the last layer leaves "
        "out); %.0f%% of the fp16 rate\n",
        static_cast<long long>(prompts), static_cast<long long>(tokens),
        median * 1e3, prompts * tokens / median, (work.fp8 + work.half) * 1e-12,
        (work.fp8 + work.half) / median * 1e-12, floor * 1e3, rates.fp8 * 1e-12,
        rates.half * 1e-12, 100 * floor / median,
        100 *
            rates.Floor(WorkOf(config_, weight_bytes_ == 1, prompts, tokens,
                               /*mha=*/false, /*all=*/true)) /
            median,
        100 * (work.fp8 + work.half) / median / rates.half);
    std::fflush(stdout);
    PrintKernels();
  }

 private:
  void PrintKernels() {
    if (trace_ == nullptr) return;
    std::printf("  %9.1f us from the first kernel to the last\n",
                kernels_.span * 1e6);
    for (const bench::KernelTime& kernel : kernels_.kernels) {
      std::printf("  %9.1f us  %9.1f us  %5lld x %8.2f us  %s\n",
                  kernel.added * 1e6, kernel.seconds * 1e6,
                  static_cast<long long>(kernel.launches),
                  kernel.seconds * 1e6 / kernel.launches, kernel.name.c_str());
    }
    std::fflush(stdout);
  }

  double SecondsOfAStep() {
    std::vector<double> seconds;
    for (int i = 0; i < kTimings; ++i) {
      const auto start = Clock::now();
      for (int step = 0; step < kSteps; ++step) harness_.Step();
      seconds.push_back(Since(start) / kSteps);
    }
    return Median(seconds);
  }

  // Of all layers together, in one more step.
  int64_t ExpertsHit() {
    int64_t hit = 0;
    model_->Observe([&hit](const OpOutput& output) {
      if (output.op != "chosen") return;
      hit += std::set<float>(output.values,
                             output.values + output.rows * output.row_size)
                 .size();
    });
    harness_.Step();
    model_->Observe({});
    return hit;
  }

  // A prompt unlike every earlier one.
  void Submit(int64_t tokens, int32_t max_tokens) {
    std::vector<int32_t> prompt(tokens);
    for (int32_t& id : prompt) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      id = static_cast<int32_t>((state_ >> 33) % config_.vocab_size);
    }
    harness_.Submit(MakeSubmit(++request_, prompt, max_tokens));
  }

  const ModelConfig config_;
  cuda::CudaModel* const model_;  // the harness's
  const double weight_bytes_;
  EngineHarness harness_;
  std::unique_ptr<bench::KernelTrace> trace_;
  bench::KernelTimes kernels_;  // of the last cell
  uint64_t state_ = 1;
  int64_t request_ = 0;
};

struct Cell {
  bool decode;
  int64_t sequences;
  int64_t tokens;
};

bool ParseCell(const char* text, std::vector<Cell>* cells) {
  long long sequences = 0;
  long long tokens = 0;
  for (const bool decode : {true, false}) {
    const char* format = decode ? "decode:%lld:%lld" : "prefill:%lld:%lld";
    if (std::sscanf(text, format, &sequences, &tokens) != 2) continue;
    cells->push_back({decode, sequences, tokens});
    return true;
  }
  return false;
}

int Measure(const std::string& folder, bool fp8, bool kernels, bool tax,
            const std::vector<Cell>& cells) {
  const auto device = cuda::testing::DeviceOrSkip("gpu_bench engine");
  if (!device.has_value()) return cuda::testing::kNoGpu;
  ModelConfig config = testing::V2LiteModelConfig();
  if (fp8) config.quantization = testing::StaticFp8();
  auto start = Clock::now();
  if (!std::filesystem::exists(folder + "/config.json")) {
    const absl::Status status =
        testing::WriteLargeCheckpoint(folder, config, 1);
    if (!status.ok()) {
      std::fprintf(stderr, "%s\n", status.ToString().c_str());
      return 1;
    }
    std::printf("checkpoint written in %.1f s\n", Since(start));
  }
  const double bandwidth = CopyBandwidth();
  std::printf("%s, %s weights, e4m3 cache, copy bandwidth %.2f TB/s\n",
              device->name.c_str(), fp8 ? "FP8" : "bf16", bandwidth / 1e12);
  start = Clock::now();
  auto model = cuda::CudaModel::Load({.path = folder,
                                      .kv_dtype = KvDtype::kFp8E4m3,
                                      .step_tokens = kStepTokens,
                                      .step_sequences = kSequences,
                                      .context_tokens = kContextTokens,
                                      .deterministic = !tax},
                                     {});
  if (!model.ok()) {
    std::fprintf(stderr, "%s\n", model.status().ToString().c_str());
    return 1;
  }
  std::printf("loaded in %.1f s\n", Since(start));
  if (tax) {
    const auto* fast = static_cast<cuda::CudaModel*>(model->get())->fast();
    std::printf(
        "FAST's products, of ours as DETERMINISTIC has them; cuBLASLt "
        "%s\n%s",
        fast->products->blas_version().c_str(),
        fast->products->report().c_str());
  }
  std::unique_ptr<KvCache> cache = (*model)->NewKvCache(kKvBlocks);
  if (cache == nullptr) {
    std::fprintf(stderr, "no room for the KV cache\n");
    return 1;
  }
  const double unprepared = FreeMebibytes();
  start = Clock::now();
  (*model)->Prepare(*cache, config.vocab_size);
  const double prepared = FreeMebibytes();
  const auto& cuda_model = static_cast<const cuda::CudaModel&>(**model);
  std::printf("prepared in %.2f s: code and graphs take %.0f MiB of %.0f\n",
              Since(start), unprepared - prepared,
              static_cast<double>(cuda_model.ReservedBytes()) / (1 << 20));
  Bench bench(*std::move(model), std::move(cache), fp8 ? 1 : 2);
  if (kernels) bench.TraceKernels();
  for (const Cell& cell : cells) {
    if (tax && cell.decode) {
      bench.DecodeTax(cell.sequences, cell.tokens);
    } else if (tax) {
      bench.PrefillTax(cell.sequences, cell.tokens);
    } else if (cell.decode) {
      bench.Decode(cell.sequences, cell.tokens, bandwidth);
    } else {
      bench.Prefill(cell.sequences, cell.tokens);
    }
  }
  std::printf("taken since: %.0f MiB\n", prepared - FreeMebibytes());
  return 0;
}

// Arguments as above; 2: they are others.
int Run(const std::vector<std::string>& arguments) {
  constexpr int kUsage = 2;
  if (arguments.size() < 2) return kUsage;
  const std::string& format = arguments[1];
  if (format != "bf16" && format != "fp8") return kUsage;
  bool kernels = false;
  bool tax = false;
  std::vector<Cell> cells;
  for (size_t i = 2; i < arguments.size(); ++i) {
    if (arguments[i] == "--kernels") {
      kernels = true;
    } else if (arguments[i] == "--tax") {
      tax = true;
    } else if (!ParseCell(arguments[i].c_str(), &cells)) {
      return kUsage;
    }
  }
  if (cells.empty()) {
    for (const int64_t batch : {1, 8, 32, 128, 256}) {
      cells.push_back({.decode = true, .sequences = batch, .tokens = 1024});
    }
    cells.push_back({.decode = false, .sequences = 8, .tokens = 1024});
    cells.push_back({.decode = true, .sequences = 128, .tokens = 8192});
    if (tax) cells.push_back({.decode = false, .sequences = 1, .tokens = 8192});
  }
  return Measure(arguments[0], format == "fp8", kernels, tax, cells);
}

const cuda::testing::BenchProgram program(
    "engine",
    "FOLDER bf16|fp8 [--kernels] [--tax] [decode:BATCH:CONTEXT | "
    "prefill:PROMPTS:TOKENS]...",
    Run);

}  // namespace
}  // namespace invar
