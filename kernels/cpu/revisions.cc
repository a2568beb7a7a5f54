#include <array>

#include "kernels/ops.h"

namespace invar::cpu {

// Raise a number when a change moves a bit of what the operation returns.
std::span<const std::pair<std::string_view, std::string_view>>
KernelRevisions() {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 19>
      kRevisions = {{
          {"embedding", "1"},
          {"rms_norm", "1"},
          {"linear", "1"},
          {"silu_mul", "1"},
          {"add_into", "1"},
          {"rope", "1"},
          {"kv_append", "1"},
          {"absorb", "1"},
          {"mla_attention", "1"},
          {"router", "1"},
          {"experts", "1"},
          {"combine", "1"},
          {"log_prob", "1"},
          {"argmax", "1"},
          {"adjust_logits", "1"},
          {"sample", "1"},
          {"exp", "1"},
          {"math", "1"},
          {"codes", "1"},
      }};
  return kRevisions;
}

}  // namespace invar::cpu
