// What the GPU takes of a model, so that a loader can refuse the rest by name
// before it moves a byte. OK, or UNIMPLEMENTED: what it is, what there is, what
// is taken.
#ifndef INVAR_KERNELS_CUDA_SUPPORT_H_
#define INVAR_KERNELS_CUDA_SUPPORT_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/ops.h"
#include "kernels/types.h"

namespace invar::cuda {

// The attention's tiles are cut for these widths: kernels/cuda/ops.h.
absl::Status SupportsAttention(int64_t latent, int64_t rope, int64_t nope,
                               int64_t value);
absl::Status SupportsKv(KvDtype dtype);

// A matrix of Gemm, GemmSwiGlu or of the experts' products. FP8 weights need
// FP8 inputs: static, a scale a row, or, with block scales, a scale a group.
absl::Status SupportsLinear(const Weight& weight, absl::string_view name);

// kv_b_proj: `weight` has both halves of every head.
absl::Status SupportsKvUp(const Weight& weight, absl::string_view name);

absl::Status SupportsRouter(const cpu::RouterOptions& router,
                            const Weight& weight, absl::string_view name);

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_SUPPORT_H_
