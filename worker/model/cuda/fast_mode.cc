#include "worker/model/cuda/fast_mode.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/free_split.h"
#include "worker/model/checkpoint/gpu_steps.h"

namespace invar::cuda {
namespace {

// The largest workspace of any step.
int64_t AttentionFloats(const ModelConfig& config, const StepLimits& limits) {
  int64_t most = 0;
  const std::vector<int64_t> launched = LaunchPositions(limits.max_positions);
  for (int64_t tokens = 1; tokens <= limits.tokens; ++tokens) {
    if (AttentionWorkspaceFloats(tokens, config.heads, launched.back(),
                                 EqualSplits(kAttentionTile)) == 0) {
      break;  // a block walks a whole sequence from here on
    }
    for (const int64_t position : launched) {
      most = std::max(most,
                      AttentionWorkspaceFloats(
                          tokens, config.heads, position,
                          FastAttentionSplits(tokens, config.heads, position)));
    }
  }
  return most;
}

}  // namespace

absl::StatusOr<std::unique_ptr<FastMode>> FastMode::Make(
    const ModelConfig& config, const DeviceWeights& weights,
    const StepMemory& step) {
  auto fast = std::make_unique<FastMode>();
  absl::StatusOr<std::unique_ptr<FastPrompts>> prompts =
      FastPrompts::Make(config, weights, step.limits);
  if (!prompts.ok()) return prompts.status();
  fast->prompts = *std::move(prompts);
  absl::StatusOr<std::unique_ptr<FastProducts>> products =
      FastProducts::Make(weights, step, fast->prompts->products());
  if (!products.ok()) return products.status();
  fast->products = *std::move(products);
  auto parts = DeviceBuffer<float>::Allocate(
      AttentionFloats(config, step.limits), "what mode FAST's attention needs");
  if (!parts.ok()) return parts.status();
  fast->attention_parts = *std::move(parts);
  return fast;
}

std::vector<std::pair<std::string, std::string>> FastMode::Entries(
    Plan plan) const {
  const std::string blas = products->blas_version();
  std::vector<std::pair<std::string, std::string>> entries = {
      {"linear.k_order",
       absl::StrCat("the fastest of those measured at load: leaves of any "
                    "length, ",
                    blas.empty() ? "no cuBLASLt" : "cuBLASLt " + blas)},
      {"linear.fp8_promotion", blas.empty() ? "128" : "128, in cuBLASLt none"},
      {"attention.split_tokens", "follow the load"},
  };
  if (plan == Plan::kFast) {
    entries.emplace_back(
        "attention.form",
        absl::StrCat("absorbed; MHA in bf16 where a chunk's tokens see each "
                     "cached row ",
                     FastPrompts::kMeetings, " times"));
  }
  return entries;
}

}  // namespace invar::cuda
