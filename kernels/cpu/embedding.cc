#include "kernels/cpu/codes.h"
#include "kernels/ops.h"

namespace invar::cpu {

void Embedding(const Weight& table, std::span<const int32_t> ids, float* out) {
  DispatchWeight(table.dtype, [&](auto code) {
    using Code = decltype(code);
    for (const int32_t id : ids) {
      const std::byte* row = table.data + id * table.columns * Code::kBytes;
      for (int64_t k = 0; k < table.columns; k += kLanes) {
        Store(Code::Decode(row + k * Code::kBytes), out + k);
      }
      out += table.columns;
    }
  });
}

}  // namespace invar::cpu
