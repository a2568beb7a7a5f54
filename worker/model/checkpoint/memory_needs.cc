#include "worker/model/checkpoint/memory_needs.h"

#include <algorithm>

#include "kernels/cuda/attention_splits.h"
#include "worker/model/checkpoint/gpu_steps.h"

namespace invar {
namespace {

constexpr int64_t kFloat = 4;

// What both backends hold of each token of a step: fp32 elements.
int64_t TokenFloats(const ModelConfig& c) {
  const int64_t row = c.kv_row_elements();
  return 2 * c.hidden_size +                          // hidden, normed
         c.q_lora_rank + c.heads * c.qk_head_dim() +  // q
         row +                                        // kv_a
         c.heads * (row + c.kv_lora_rank) +           // query, attended
         c.router.top_k * 2;                          // ids and weights
}

// What a layer's halves add: fp32 on the CPU, bf16 on a GPU.
int64_t AddendElements(const ModelConfig& c) {
  return (1 + c.router.top_k) * c.hidden_size;  // projected, slots
}

int64_t DenseInner(const ModelConfig& c) {
  return c.dense_layers > 0 ? c.intermediate_size : 0;
}

int64_t SharedInner(const ModelConfig& c) {
  return c.layers > c.dense_layers ? c.shared_experts * c.moe_intermediate_size
                                   : 0;
}

int64_t Blocks(int64_t tokens) {
  return (tokens + kBlockTokens - 1) / kBlockTokens;
}

// A product's input as 16 bits, and scales of its groups.
int64_t InputBytes(int64_t columns) {
  return 2 * columns + kFloat * ScaleBlocks(columns);
}

// Partial sums of the splits of a few tokens' attention: more tokens walk whole
// sequences, and need none.
int64_t SplitBytes(const ModelConfig& c, int64_t context) {
  constexpr int64_t kHeads = 16;       // of a unit
  constexpr int64_t kMostUnits = 100;  // (token, kHeads heads)
  const int64_t splits =
      cuda::kAttentionSplits.Count(cuda::LaunchPosition(context - 1));
  if (splits == 1) return 0;
  return kMostUnits * splits * kHeads * (c.kv_lora_rank + 2) * kFloat;
}

}  // namespace

int64_t KvBytesPerToken(const ModelConfig& config, KvDtype dtype) {
  return config.layers * config.kv_row_elements() * KvElementBytes(dtype);
}

int64_t KvBytes(const ModelConfig& config, KvDtype dtype,
                const ServingLimits& limits) {
  return limits.sequences * Blocks(limits.context) * kBlockTokens *
         KvBytesPerToken(config, dtype);
}

StepNeeds CpuStepNeeds(const ModelConfig& c, const ServingLimits& limits) {
  const int64_t inner = std::max(DenseInner(c), SharedInner(c));
  const int64_t values = c.heads * c.v_head_dim;
  const int64_t floats = TokenFloats(c) + AddendElements(c) +
                         c.qk_rope_head_dim + c.kv_lora_rank + values +
                         2 * inner +
                         // Of the experts' products.
                         c.router.top_k * 2 * c.moe_intermediate_size +
                         // A product's quantised inputs.
                         2 * std::max({c.hidden_size, values, inner});
  return {.activations = limits.step_tokens * floats * kFloat,
          // A prompt may be scored: a row a token.
          .logits = limits.step_tokens * c.vocab_size * kFloat};
}

int64_t GpuReservedBytes(const ModelConfig& c, const ServingLimits& limits) {
  // V2-Lite's code and graphs of 95 sizes take 76 MiB of an H100, and nothing
  // is taken later (gpu_bench engine).
  constexpr int64_t kRuntime = int64_t{96} << 20;
  constexpr int64_t kGraphLayer = int64_t{32} << 10;
  const int64_t graphs = static_cast<int64_t>(
      cuda::GraphSizes(limits.sequences, limits.context, limits.step_tokens)
          .size());
  return kRuntime + graphs * c.layers * kGraphLayer;
}

StepNeeds GpuStepNeeds(const ModelConfig& c, const ServingLimits& limits) {
  const int64_t tokens = limits.step_tokens;
  const int64_t values = c.heads * c.v_head_dim;
  const int64_t widest = std::max({values, DenseInner(c), SharedInner(c),
                                   c.router.top_k * c.moe_intermediate_size});
  const int64_t token_bytes =
      kFloat * (TokenFloats(c) + 1 + widest + SharedInner(c)) +  // 1: the root
      2 * AddendElements(c) + 2 * InputBytes(c.hidden_size) +
      InputBytes(c.q_lora_rank) + InputBytes(values) +
      InputBytes(DenseInner(c)) + InputBytes(SharedInner(c)) +
      // Of the experts, gathered and between their products.
      c.router.top_k *
          (InputBytes(c.hidden_size) + InputBytes(c.moe_intermediate_size));
  // Prompts' rows of the cache as 16 bits.
  const int64_t tiles =
      (Blocks(limits.context + 2 * tokens) + cuda::kGraphTokens) *
      kBlockTokens * c.kv_row_elements() * 2;
  const int64_t angles = limits.context * c.qk_rope_head_dim * kFloat;
  // What a multiprocessor has merged of four tokens' 16 heads.
  constexpr int64_t kMultiprocessors = 132;
  const int64_t merged = kMultiprocessors * 64 * c.kv_lora_rank * kFloat;
  return {.activations = tokens * token_bytes + SplitBytes(c, limits.context) +
                         tiles + merged + angles,
          .logits = std::min(tokens, cuda::kLogitRows) * c.vocab_size * kFloat,
          .reserved = GpuReservedBytes(c, limits)};
}

}  // namespace invar
