// From logits to tokens on the GPU: cpu::Sample, cpu::LogSumExp and the order
// of top_logprobs, with the CPU's bits for the same logits, so that a row may
// be sampled on either side. Only what is chosen leaves the device.
#ifndef INVAR_KERNELS_CUDA_OPS_SAMPLE_H_
#define INVAR_KERNELS_CUDA_OPS_SAMPLE_H_

#include <cstdint>

#include "kernels/cuda/ops_linear.h"
#include "kernels/ops.h"

namespace invar::cuda {

inline constexpr int kMaxTopLogProbs = 20;
inline constexpr int64_t kMaxVocabulary = 262144;

// What is wanted of one row of logits.
struct SampleRow {
  cpu::SamplingParameters parameters;
  // Not negative: this id is given, and nothing is sampled.
  int32_t given_id = -1;
  uint64_t seed = 0;
  uint64_t position = 0;
  bool log_prob = false;
  int32_t top_log_probs = 0;  // at most kMaxTopLogProbs
};

struct SampledRow {
  int32_t id;
  uint8_t finite;  // cpu::AllFinite; else the rest means nothing
  float log_prob;  // of id
  // The likeliest ids below the limit by (logit descending, id ascending).
  int32_t top_ids[kMaxTopLogProbs];
  float top_log_probs[kMaxTopLogProbs];
};

// Row i: cpu::Sample of logits[i] with rows[i], and log-probabilities of its
// logits. Penalties and biases (cpu::AdjustLogits) are the CPU's affair.
// logits (rows, vocabulary), rows, sampled: device memory (rows).
// limit is in [1, vocabulary], which is at most kMaxVocabulary.
void Sample(const float* logits, int64_t row_count, int64_t vocabulary,
            int64_t limit, const SampleRow* rows, SampledRow* sampled,
            const LaunchOptions& options);

// The tokens that a step begins with.
struct StepTokens {
  // (T). Below 0: the id that row ~ids[t] of `sampled` has, so that a step can
  // be enqueued before its tokens are known.
  const int32_t* ids = nullptr;
  const SampledRow* sampled = nullptr;
  // (T), or null. Set to 1, for KvAppend to say otherwise.
  uint8_t* finite = nullptr;
};

// out[t] = W[the id of token t], W (vocab, hidden) of any dtype but FP8.
// out (count, hidden)
void Embedding(WeightDtype dtype, const void* table, const StepTokens& tokens,
               int64_t count, int64_t hidden, float* out,
               const LaunchOptions& options);

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_OPS_SAMPLE_H_
