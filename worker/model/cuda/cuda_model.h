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
#include "worker/model/cuda/fast_mode.h"
#include "worker/model/cuda/lane.h"
#include "worker/model/cuda/step_graphs.h"
#include "worker/model/cuda/step_memory.h"
#include "worker/model/model.h"
#include "worker/model/slices.h"

namespace invar::cuda {

class CudaModel final : public Model {
 public:
  struct Options {
    int device = 0;
    // Decode steps as CUDA graphs. Moves no bit.
    bool graphs = true;
    // A step may be started while one is in flight. Moves no bit.
    bool overlap = true;
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
  bool HasFastPlan() const override { return true; }
  std::string kernel_build_id() const override;
  std::string architecture() const override { return "sm_90"; }
  // What MaxKvBlocks leaves free: the runtime takes it later, in Prepare.
  int64_t ReservedBytes() const;
  int64_t MaxKvBlocks() const override;
  std::unique_ptr<KvCache> NewKvCache(int64_t blocks) const override;
  std::vector<SliceHealth> Forward(std::span<const SequenceSlice> slices,
                                   KvCache& cache,
                                   std::span<float> logits) override;
  std::vector<SliceHealth> Answer(std::span<const SequenceSlice> slices,
                                  KvCache& cache, int64_t limit,
                                  std::span<const RowRequest> requests,
                                  std::span<RowAnswer> answers) override;
  void Prepare(KvCache& cache, int64_t limit) override;
  // In a steady state they allocate nothing on the device, and wait for nothing
  // but the step that is finished.
  int64_t StepsInFlight() const override {
    return options_.overlap ? kStepsInFlight : 1;
  }
  void Start(std::span<const SequenceSlice> slices, KvCache& cache,
             int64_t limit, std::span<const RowRequest> requests) override;
  std::vector<SliceHealth> Finish(std::span<RowAnswer> answers) override;
  // Decode steps of which there are graphs.
  int64_t graphs() const { return graphs_.size(); }
  // Options::graphs and Options::overlap from the next step on.
  void UseGraphs(bool graphs) { options_.graphs = graphs; }
  void UseOverlap(bool overlap) { options_.overlap = overlap; }
  // kFast where the model was loaded for mode FAST, else kDeterministic.
  Plan plan() const { return plan_; }
  // Another plan from the next step on, in the same cache: for measuring what
  // one costs against another. Those of FAST need a model loaded for it.
  void UsePlan(Plan plan);
  const FastMode* fast() const { return fast_.get(); }
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
    // Whether the last layer computes, but for the cache's new rows, those
    // tokens alone whose logits are wanted: nobody reads the others' outputs.
    bool ends_with_rows = false;

    // Tokens whose residual stream is left behind the last layer.
    int64_t last_tokens() const {
      return ends_with_rows ? launched_rows : launched_tokens;
    }
  };
  // The next token of a step.
  struct Cursor {
    size_t slice = 0;
    int64_t token = 0;
  };
  // A step that has not been finished.
  struct Started {
    int64_t limit = 0;
    std::vector<RowRequest> requests;
    std::vector<SliceSize> slices;
    // The pass that was enqueued last, while its results have not been read:
    // they lie in the host's memory after `done`.
    bool enqueued = false;
    Pass pass;
    Event done;
    // What the passes before it gave.
    std::vector<uint8_t> finite;
    std::vector<uint8_t> finite_rows;
    std::vector<RowAnswer> answers;
    std::vector<SliceHealth> observed;  // of a step that was shown
  };
  // Called after each product with the LM head, with its rows of the pass.
  using RowSink = std::function<void(int64_t first, int64_t count)>;

  CudaModel(const ModelConfig& config, std::string weights_digest,
            KvDtype kv_dtype, const Options& options, DeviceWeights weights,
            StepMemory memory);

  // Checks a step and makes room for it.
  void BeginStep(std::span<const SequenceSlice> slices, const KvCache& cache,
                 int64_t logits);
  // Stages the next pass's tokens for step `slot` of those in flight, and moves
  // the cursor past them.
  Pass StagePass(std::span<const SequenceSlice> slices, int64_t slot,
                 Cursor* cursor);
  void PadToGraph(Pass* pass);
  // Enqueues the copy of what the staged places hold.
  void CopyStaged(const Pass& pass, int64_t slot);
  // Enqueues the copy of a pass's results.
  void CopyResults(const Pass& pass, int64_t slot);
  // Enqueue a pass: its tokens' embedding, the layers [first, last) of all,
  // what the last of them left to add.
  void BeginLayers(const Pass& pass);
  void RunLayers(const Pass& pass, KvCache& cache, int64_t first, int64_t last);
  void EndLayers(const Pass& pass);
  void Attention(const DeviceLayer& layer, const Pass& pass,
                 const KvLayer& cache);
  // Mode FAST: of a pass whose prompts take the MHA form.
  void AttendToPrompts(const DeviceLayer& layer, const Pass& pass,
                       const TokenPlaces& places, const RopeAngles& angles,
                       const KvLayer& cache);
  // The last layer's, of a pass that ends with rows: what it leaves, of the
  // residual stream too, is theirs.
  void AttendToRows(const DeviceLayer& layer, const Pass& pass,
                    const KvLayer& cache);
  // Where the pass's tokens are, and their new rows of a layer's cache.
  TokenPlaces Places(const Pass& pass) const;
  CacheRows NewRows(const DeviceLayer& layer, const KvLayer& cache) const;
  RopeAngles Angles() const { return {cosines_.data(), sines_.data()}; }
  // q_b_proj, where a layer has a low-rank q, of what q_a_proj has left.
  void ProjectLowRank(const DeviceLayer& layer, int64_t tokens);
  // From absorbed queries to o_proj, with the kernels of few tokens.
  void AttendAbsorbed(const DeviceLayer& layer, const TokenPlaces& places,
                      const Pass& pass, const KvLayer& cache);
  // What attention has left, through o_proj.
  void ProjectAttended(const DeviceLayer& layer, int64_t tokens);
  void FeedForward(const DeviceLayer& layer, int64_t tokens);
  // Whether a step of so many tokens is launched in one lane alone, kernels
  // beside each other by LaunchOptions::early: joining lanes costs more than
  // few tokens take.
  bool InOneLane(const DeviceMlp& mlp, int64_t tokens) const;
  // The experts' parts. gate: LaunchOptions'. With `beside` that product too,
  // before the quantisation of its outputs, and in one lane.
  void Route(const DeviceLayer& layer, int64_t tokens, bool gate);
  void ExpertsUp(const DeviceExperts& experts, int64_t tokens,
                 const SwiGluTask* beside);
  void ExpertsEnd(const DeviceExperts& experts, int64_t tokens,
                  bool in_one_lane);
  // hidden += what the layer before left to add; its norm as inputs.
  // routed: also what the router multiplies.
  void Norm(const DeviceBuffer<float>& gain, int64_t tokens,
            const InputSink& first, const InputSink& second,
            bool routed = false);
  // What the step under way uses of mode FAST; null: nothing.
  const FastMode* Fast() const {
    return plan_ == Plan::kDeterministic ? nullptr : fast_.get();
  }
  // Where to launch what the main lane's next launches do not need.
  Lane& Fork();
  void Product(Lane& lane, const DeviceLinear& linear, int64_t leaf,
               const InputBuffer& x, int64_t tokens, float* out);
  void Product(Lane& lane, const DeviceLinear& linear, int64_t leaf,
               const InputBuffer& x, int64_t tokens, __nv_bfloat16* out);
  void Product(Lane& lane, const DeviceLinear& linear, int64_t leaf,
               const InputBuffer& x, int64_t tokens, GemmOutput type,
               void* out);
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
  // `count` values of what has been enqueued.
  template <typename T>
  std::vector<T> Read(const T* values, int64_t count);
  void Show(std::string_view op, int64_t rows, int64_t row_size,
            const float* values);
  void Show(std::string_view op, int64_t rows, int64_t row_size,
            const __nv_bfloat16* values);
  // The experts' ids, as "chosen".
  void ShowChoices(int64_t tokens);

  // Start's parts.
  Started& InFlight(int64_t i) {
    return started_[(first_started_ + i) % kStepsInFlight];
  }
  int64_t SlotOf(const Started& step) const { return &step - started_; }
  // Whether the host takes part in its computation.
  bool NeedsTheHost(std::span<const SequenceSlice> slices,
                    std::span<const RowRequest> requests) const;
  void StageRequests(const Pass& pass, std::span<const RowRequest> requests);
  // Makes the graphs of a pass that decodes, unless there are.
  GraphKey MakeGraphs(const Pass& pass, KvCache& cache, int64_t limit);
  void RunAnswers(const Pass& pass, KvCache& cache, int64_t limit,
                  std::span<const RowRequest> requests);
  // Waits for the pass that is enqueued, if one is, and reads its results.
  void Settle(Started* step);
  void ReadAnswers(Started* step);

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
  // Null but in mode FAST, so the other one cannot come to use it.
  std::unique_ptr<FastMode> fast_;
  Plan plan_ = Plan::kDeterministic;
  FastPass fast_pass_;  // of the pass under way
  Started started_[kStepsInFlight];
  int64_t first_started_ = 0;  // the first unfinished one
  int64_t unfinished_ = 0;
  // Rows that the CPU answers, (rows, vocab), of the pass.
  std::vector<float> host_rows_;
  // What the last operation leaves for the next norm to add.
  Addend addend_;
  OpObserver observer_;
  int64_t shown_layer_ = -1;
};

}  // namespace invar::cuda

#endif  // INVAR_WORKER_MODEL_CUDA_CUDA_MODEL_H_
