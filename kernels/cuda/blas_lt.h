// cuBLASLt, for mode FAST alone: its order of sums follows the load, so no bit
// of the other mode may come from here. Opened at run time, so that no binary
// needs it; where it is missing FAST goes without.
#ifndef INVAR_KERNELS_CUDA_BLAS_LT_H_
#define INVAR_KERNELS_CUDA_BLAS_LT_H_

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/ops_linear.h"

namespace invar::cuda {

// out[t] = scale * W x[t].  W (rows, columns), x (T, columns), both of `dtype`;
// out (T, rows at stride out_stride). FP8 sums are not promoted on the way.
struct BlasProduct {
  WeightDtype dtype = WeightDtype::kBf16;  // kBf16, kFp16 or kFp8E4m3
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t tokens = 0;
  int64_t out_stride = 0;
  GemmOutput type = GemmOutput::kFp32;
};

// One way to compute products of one shape; of cuBLASLt's own making.
struct BlasAlgorithm {
  std::array<uint64_t, 8> data = {};
};

class BlasLt {
 public:
  static constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

  // NOT_FOUND where there is no cuBLASLt of CUDA 13, or the build had no header
  // of it.
  static absl::StatusOr<std::unique_ptr<BlasLt>> Open();
  virtual ~BlasLt() = default;

  // "13.1.0"
  virtual std::string version() const = 0;

  // At most `most` ways, the likeliest to be fast first; none: it cannot.
  virtual std::vector<BlasAlgorithm> Algorithms(const BlasProduct& product,
                                                int most) const = 0;

  // Enqueues the product; false, and nothing enqueued, if `algorithm` does not
  // take it. workspace: kWorkspaceBytes, of one stream at a time.
  virtual bool Run(const BlasProduct& product, const BlasAlgorithm& algorithm,
                   float scale, const void* weight, const void* x, void* out,
                   std::byte* workspace, cudaStream_t stream) const = 0;
};

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_BLAS_LT_H_
