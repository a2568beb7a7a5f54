// Which tokens of a sequence have their logits changed before a choice.
#ifndef INVAR_WORKER_ENGINE_TOKEN_USES_H_
#define INVAR_WORKER_ENGINE_TOKEN_USES_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/ops.h"

namespace invar {

// A function of the request and the text so far, whoever wrote it: an earlier
// attempt's output counts as this one's does. Empty for neutral parameters.
class TokenUses {
 public:
  TokenUses() = default;
  explicit TokenUses(const cpu::Penalties& penalties)
      : penalties_(penalties),
        counts_output_(penalties != cpu::Penalties()),
        counts_prompt_(penalties.repetition != 1.0f) {}

  void SetBias(int32_t id, float bias) { Use(id).bias = bias; }
  void AddPrompt(int32_t id) {
    if (counts_prompt_) Use(id).seen = true;
  }
  void AddOutput(int32_t id) {
    if (!counts_output_) return;
    cpu::TokenUse& use = Use(id);
    use.seen = true;
    ++use.output_count;
  }

  // No text changes a logit.
  bool neutral() const { return uses_.empty() && !counts_output_; }
  // Of different ids.
  std::span<const cpu::TokenUse> list() const { return uses_; }
  const cpu::Penalties& penalties() const { return penalties_; }

 private:
  cpu::TokenUse& Use(int32_t id) {
    const auto [at, added] = places_.emplace(id, uses_.size());
    if (added) uses_.push_back({.id = id});
    return uses_[at->second];
  }

  cpu::Penalties penalties_;
  bool counts_output_ = false;
  bool counts_prompt_ = false;
  std::vector<cpu::TokenUse> uses_;
  std::unordered_map<int32_t, size_t> places_;  // in uses_, by id
};

}  // namespace invar

#endif  // INVAR_WORKER_ENGINE_TOKEN_USES_H_
