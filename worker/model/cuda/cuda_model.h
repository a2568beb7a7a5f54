// DeepSeek-V2 on one Hopper GPU.
#ifndef INVAR_WORKER_MODEL_CUDA_CUDA_MODEL_H_
#define INVAR_WORKER_MODEL_CUDA_CUDA_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"
#include "worker/model/cuda/device_weights.h"
#include "worker/model/cuda/lane.h"
#include "worker/model/cuda/step_graphs.h"
#include "worker/model/cuda/step_memory.h"
#include "worker/model/model.h"

namespace invar::cuda {

class CudaModel final : public Model {
 public:
  struct Options {
    int device = 0;
    // Decode steps as CUDA graphs. Moves no bit.
    bool graphs = true;
  };

  // Errors are Model::Load's and FAILED_PRECONDITION (no usable GPU),
  // UNIMPLEMENTED (what the kernels do not compute), RESOURCE_EXHAUSTED (no
  // memory).
  static absl::StatusOr<std::unique_ptr<Model>> Load(
      const LoadOptions& options, const Options& cuda_options);

  const ModelConfig& config() const override { return config_; }
  const std::string& weights_digest() const override { return weights_digest_; }
  std::vector<std::pair<std::string, std::string>> NumericsPlan()
      const override;
  std::string kernel_build_id() const override;
  std::string architecture() const override { return "sm_90"; }
  int64_t MaxKvBlocks() const override;
  std::unique_ptr<KvCache> NewKvCache(int64_t blocks) const override;
  std::vector<SliceHealth> Forward(std::span<const SequenceSlice> slices,
                                   KvCache& cache,
                                   std::span<float> logits) override;
  std::vector<SliceHealth> Answer(std::span<const SequenceSlice> slices,
                                  KvCache& cache, int64_t limit,
                                  std::span<const RowRequest> requests,
                                  std::span<RowAnswer> answers) override;
  // Options::graphs from the next step on.
  void UseGraphs(bool graphs) { options_.graphs = graphs; }
  void Observe(OpObserver observer) override {
    observer_ = std::move(observer);
  }

 private:
  // As many tokens of a step, in order, as its memory holds.
  struct Pass {
    int64_t tokens = 0;
    int64_t rows = 0;  // of logits
    // What is launched: more where a graph of a larger step serves. The rest
    // repeats the first token, which writes what that one writes anyway.
    int64_t launched_tokens = 0;
    int64_t launched_rows = 0;
    int64_t max_position = 0;
    int64_t block_ids = 0;  // of all its tokens' tables together
    bool decodes = true;    // a row a token
  };
  // The next token of a step.
  struct Cursor {
    size_t slice = 0;
    int64_t token = 0;
  };
  // Called after each product with the LM head, with its rows of the pass.
  using RowSink = std::function<void(int64_t first, int64_t count)>;

  CudaModel(const ModelConfig& config, std::string weights_digest,
            KvDtype kv_dtype, const Options& options, DeviceWeights weights,
            StepMemory memory);

  // Checks a step and makes room for it.
  void BeginStep(std::span<const SequenceSlice> slices, const KvCache& cache,
                 int64_t logits);
  // Stages the next pass's tokens and moves the cursor past them.
  Pass StagePass(std::span<const SequenceSlice> slices, Cursor* cursor);
  void PadToGraph(Pass* pass);
  // Enqueue a pass: its tokens' embedding, the layers [first, last) of all,
  // what the last of them left to add.
  void BeginLayers(const Pass& pass);
  void RunLayers(const Pass& pass, KvCache& cache, int64_t first, int64_t last);
  void EndLayers(const Pass& pass);
  void Attention(const DeviceLayer& layer, const Pass& pass,
                 const KvLayer& cache);
  void FeedForward(const DeviceLayer& layer, const Pass& pass);
  // Whether a step of so many tokens is launched in one lane alone, kernels
  // beside each other by LaunchOptions::early: joining lanes costs more than
  // few tokens take.
  bool InOneLane(int64_t tokens) const;
  // The experts' parts. gate: LaunchOptions'. With `beside` that product too,
  // before the quantisation of its outputs, and in one lane.
  void Route(const DeviceExperts& experts, int64_t tokens, bool gate);
  void ExpertsUp(const DeviceExperts& experts, int64_t tokens,
                 const SwiGluTask* beside);
  void ExpertsEnd(const DeviceExperts& experts, int64_t tokens,
                  bool in_one_lane);
  // hidden += what the layer before left to add; its norm as inputs.
  void Norm(const DeviceBuffer<float>& gain, const Pass& pass, float* normed,
            const InputSink& first, const InputSink& second);
  // Where to launch what the main lane's next launches do not need.
  Lane& Fork();
  void Product(Lane& lane, const DeviceLinear& linear, int64_t leaf,
               const InputBuffer& x, int64_t tokens, float* out);
  // Where a product's inputs are written: where their scales are dynamic, first
  // as fp32 to `values`, from which Quantise makes them.
  static InputSink Unquantised(const InputBuffer& to, const InputKind& kind,
                               const DeviceBuffer<float>& values);
  static void Quantise(Lane& lane, const InputBuffer& to, const InputKind& kind,
                       int64_t rows, int64_t columns, const InputSink& from);
  // Both: `produce` writes (rows, columns).
  void Produce(Lane& lane, const InputBuffer& to, const InputKind& kind,
               int64_t rows, int64_t columns,
               const std::function<void(const InputSink&)>& produce);
  // Enqueues the pass's rows of logits.
  void RunRows(const Pass& pass, const RowSink& sink);
  // Enqueues answers to the rows, which are staged.
  void Sample(const Pass& pass, int64_t limit, int64_t first, int64_t count);
  // Waits for a pass, and appends its tokens' health.
  void EndPass(const Pass& pass, std::vector<uint8_t>* finite);
  void Show(std::string_view op, int64_t rows, int64_t row_size,
            const float* values);
  // The experts' ids, as "chosen".
  void ShowChoices(int64_t tokens);

  // Answer's parts.
  void StageRequests(const Pass& pass, std::span<const RowRequest> requests);
  void RunAnswers(const Pass& pass, KvCache& cache, int64_t limit,
                  std::span<const RowRequest> requests);
  void ReadAnswers(const Pass& pass, int64_t limit,
                   std::span<const RowRequest> requests,
                   std::span<RowAnswer> answers, std::vector<uint8_t>* finite);

  const ModelConfig config_;
  const std::string weights_digest_;
  const KvDtype kv_dtype_;
  Options options_;
  cpu::RopeTable rope_;
  float attention_scale_;
  Lane main_;
  Lane side_;  // Beside it, between Fork and the main lane's following it.
  DeviceWeights weights_;
  DeviceBuffer<float> cosines_, sines_;  // (positions, R / 2)
  StepMemory step_;
  StepGraphs graphs_;
  // Rows that the CPU answers, (rows, vocab), of the pass.
  std::vector<float> host_rows_;
  // What the last operation leaves for the next norm to add.
  Addend addend_;
  OpObserver observer_;
  int64_t shown_layer_ = -1;
};

}  // namespace invar::cuda

#endif  // INVAR_WORKER_MODEL_CUDA_CUDA_MODEL_H_
