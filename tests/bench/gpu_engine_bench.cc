// Speed of DeepSeek-V2-Lite's shape on a GPU through the engine, as a worker
// runs it: batching, sampling and reports included, sockets not.
//
//   build/bin/gpu_engine_bench FOLDER [bf16|fp8]
//
// Writes a random checkpoint into FOLDER (16 GB in FP8, 31 GB in bf16), unless
// one is there. Prints medians of decode steps beside the floor: the bytes that
// must move over the copy bandwidth measured in this process. Experts hit are
// counted: what the router chose in a step after the timed ones.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/device.h"
#include "worker/engine/engine.h"
#include "worker/engine/testing/engine_harness.h"
#include "worker/model/cuda/cuda_model.h"
#include "worker/model/testing/large_checkpoint.h"
#include "worker/model/testing/random_checkpoint.h"

namespace invar {
namespace {

constexpr int kSteps = 24;
constexpr int64_t kKvBlocks = 8192 + 64 * 64;

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

class Bench {
 public:
  Bench(std::unique_ptr<Model> model, double weight_bytes)
      : config_(model->config()),
        model_(model.get()),
        weight_bytes_(weight_bytes),
        harness_({.kv_blocks = kKvBlocks,
                  .max_running_sequences = 256,
                  .max_step_tokens = 8192,
                  .max_context_tokens = 16384,
                  .tokenizer_ids = config_.vocab_size},
                 std::move(model)) {}

  void Decode(int64_t batch, int64_t context, double bandwidth) {
    for (int64_t s = 0; s < batch; ++s) Submit(context, kSteps + 4);
    while (harness_.Step().prompt_tokens > 0) {
    }
    harness_.Step();
    std::vector<double> seconds;
    for (int i = 0; i < kSteps - 4; ++i) {
      const auto start = Clock::now();
      harness_.Step();
      seconds.push_back(Since(start));
    }
    const int64_t experts = ExpertsHit();
    harness_.Drain();
    const double step = Median(seconds);
    const double floor =
        StepBytes(config_, batch, context, experts, weight_bytes_) / bandwidth;
    std::printf(
        "decode B=%-4lld context %-6lld %8.2f ms a step  %9.0f tokens/s  "
        "floor %6.2f ms (%.1f experts a layer)  %3.0f%%\n",
        static_cast<long long>(batch), static_cast<long long>(context),
        step * 1e3, batch / step, floor * 1e3,
        static_cast<double>(experts) / (config_.layers - config_.dense_layers),
        100 * floor / step);
    std::fflush(stdout);
  }

  void Prefill(int64_t prompts, int64_t tokens) {
    std::vector<double> seconds;
    for (int i = 0; i < 3; ++i) {
      for (int64_t p = 0; p < prompts; ++p) Submit(tokens, 1);
      const auto start = Clock::now();
      harness_.Drain();
      seconds.push_back(Since(start));
    }
    const double median = Median(seconds);
    std::printf("prefill %lld x %lld  %8.2f ms  %9.0f tokens/s\n",
                static_cast<long long>(prompts), static_cast<long long>(tokens),
                median * 1e3, prompts * tokens / median);
    std::fflush(stdout);
  }

 private:
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
  Model* const model_;  // the harness's
  const double weight_bytes_;
  EngineHarness harness_;
  uint64_t state_ = 1;
  int64_t request_ = 0;
};

int Main(const std::string& folder, bool fp8) {
  const auto device = cuda::UseDevice(0);
  if (!device.ok()) {
    std::printf("skipped: %s\n",
                std::string(device.status().message()).c_str());
    return 77;
  }
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
                                      .step_tokens = 8192,
                                      .context_tokens = 16384},
                                     {});
  if (!model.ok()) {
    std::fprintf(stderr, "%s\n", model.status().ToString().c_str());
    return 1;
  }
  std::printf("loaded in %.1f s\n", Since(start));
  Bench bench(*std::move(model), fp8 ? 1 : 2);
  for (const int64_t batch : {1, 8, 32, 128, 256}) {
    bench.Decode(batch, 1024, bandwidth);
  }
  bench.Prefill(8, 1024);
  bench.Decode(64, 8192, bandwidth);
  return 0;
}

}  // namespace
}  // namespace invar

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: gpu_engine_bench FOLDER [bf16|fp8]\n");
    return 2;
  }
  return invar::Main(argv[1], argc < 3 || std::string(argv[2]) == "fp8");
}
