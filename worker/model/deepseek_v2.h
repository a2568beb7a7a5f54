// DeepSeek-V2: multi-head latent attention with a mixture of experts.
#ifndef INVAR_WORKER_MODEL_DEEPSEEK_V2_H_
#define INVAR_WORKER_MODEL_DEEPSEEK_V2_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/cpu/aligned.h"
#include "kernels/ops.h"
#include "worker/model/checkpoint/checkpoint.h"
#include "worker/model/model.h"
#include "worker/model/weights.h"

namespace invar {

class DeepseekV2 final : public Model {
 public:
  DeepseekV2(ModelConfig config, Checkpoint checkpoint, KvDtype kv_dtype,
             int threads, cpu::Isa isa);

  const ModelConfig& config() const override { return config_; }
  const std::string& weights_digest() const override {
    return checkpoint_.digest();
  }
  std::vector<std::pair<std::string, std::string>> NumericsPlan()
      const override;
  std::string kernel_build_id() const override;
  std::string architecture() const override { return "x86-64-v3"; }
  std::unique_ptr<KvCache> NewKvCache(int64_t blocks) const override;
  std::vector<SliceHealth> Forward(std::span<const SequenceSlice> slices,
                                   KvCache& cache,
                                   std::span<float> logits) override;
  void Observe(OpObserver observer) override {
    observer_ = std::move(observer);
  }

 private:
  // One step's tokens, T of them over all slices, and what is computed of
  // them. Grows to the largest step and stays.
  struct Step {
    using Floats = cpu::AlignedVector<float>;

    cpu::ThreadPool* pool = nullptr;      // what computes it
    std::vector<int32_t> ids;             // (T)
    std::vector<int64_t> positions;       // (T)
    std::vector<cpu::TokenPlace> places;  // (T)
    std::vector<uint8_t> finite;          // (T)
    Floats cosines, sines;                // (T, R / 2)
    Floats hidden;                        // (T, hidden)
    Floats normed;                        // (T, hidden)
    Floats q_a;                           // (T, q_lora_rank)
    Floats q;                             // (T, heads, N + R)
    Floats kv_a;                          // (T, L + R)
    Floats latent;                        // (T, L)
    Floats query;                         // (T, heads, L + R)
    Floats attended;                      // (T, heads, L)
    Floats values;                        // (T, heads, V)
    Floats projected;                     // (T, hidden)
    Floats gate, up;                      // (T, inner)
    std::vector<int32_t> expert_ids;      // (T, top_k)
    Floats expert_weights;                // (T, top_k)
    Floats slots;                         // (T, top_k, hidden)

    int64_t tokens() const { return static_cast<int64_t>(ids.size()); }
  };

  // The slices in shares that a team of threads each computes, where that is
  // faster than all threads on each operation; else none.
  std::vector<std::span<const SequenceSlice>> Shares(
      std::span<const SequenceSlice> slices) const;
  // Forward on s.pool alone.
  std::vector<SliceHealth> Compute(std::span<const SequenceSlice> slices,
                                   KvCache& cache, Step& s,
                                   std::span<float> logits);
  void BeginStep(std::span<const SequenceSlice> slices, Step& s) const;
  // Shows an operation's (rows, row_size) to the observer, if there is one.
  void Show(std::string_view op, int64_t rows, int64_t row_size,
            const float* values) const {
    if (observer_) observer_({shown_layer_, op, rows, row_size, values});
  }
  // hidden += attention(norm(hidden))
  void Attention(const LayerWeights& layer, const cpu::KvLayer& cache,
                 Step& s) const;
  // hidden += mlp(norm(hidden))
  void FeedForward(const LayerWeights& layer, Step& s) const;
  // out = down(silu(gate(x)) * up(x)), x and out (T, hidden)
  void RunMlp(const MlpWeights& mlp, const float* x, Step& s, float* out) const;
  void Logits(std::span<const SequenceSlice> slices, Step& s,
              std::span<float> logits) const;

  ModelConfig config_;
  Checkpoint checkpoint_;
  KvDtype kv_dtype_;
  cpu::RopeTable rope_;
  float attention_scale_;
  ModelWeights weights_;
  cpu::ThreadPool pool_;
  Step step_;
  std::vector<Step> share_steps_;  // of as many shares as pool_ has threads
  OpObserver observer_;
  int64_t shown_layer_ = -1;
};

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_DEEPSEEK_V2_H_
