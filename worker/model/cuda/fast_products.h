// Mode FAST's dense products: of each weight's shape and number of tokens, the
// fastest that there is. Measured when the model is loaded, so the order of a
// sum may differ from one start to the next.
#ifndef INVAR_WORKER_MODEL_CUDA_FAST_PRODUCTS_H_
#define INVAR_WORKER_MODEL_CUDA_FAST_PRODUCTS_H_

#include <cuda_bf16.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/blas_lt.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/ops_linear.h"
#include "worker/model/cuda/device_weights.h"
#include "worker/model/cuda/lane.h"
#include "worker/model/cuda/step_memory.h"

namespace invar::cuda {

class FastProducts {
 public:
  // A way to compute a product.
  struct Way {
    bool blas = false;
    BlasAlgorithm algorithm = {};  // of cuBLASLt
    int64_t leaf = 0;              // of Gemm; 0 of GemmSwiGlu, which has none
    GemmTile tile = {};
    bool ours = false;  // as the other mode has it
  };
  // Launches that may run side by side have a workspace each.
  static constexpr int kWorkspaces = 2;

  // Products beside those of every step, with outputs of bf16.
  struct Others {
    std::span<const DeviceLinear> linears;
    const InputBuffer* x = nullptr;
    __nv_bfloat16* out = nullptr;
    int64_t most = 0;  // tokens
  };

  // `step` and the others' buffers are written to. Their sizes are the most
  // tokens. RESOURCE_EXHAUSTED: no memory. Without cuBLASLt it is OK.
  static absl::StatusOr<std::unique_ptr<FastProducts>> Make(
      const DeviceWeights& weights, const StepMemory& step,
      const Others& others);

  // cuBLASLt's version; empty where there is none.
  std::string blas_version() const {
    return blas_ == nullptr ? "" : blas_->version();
  }
  // A line a shape: which way won with how many tokens, and by how much.
  const std::string& report() const { return report_; }

  // Whether nothing is faster than what the other mode launches, which may then
  // be launched together with others as it does.
  bool IsOurs(const DeviceLinear& linear, int64_t tokens,
              GemmOutput type) const;
  bool IsOurs(const DeviceMlp& mlp, int64_t tokens) const;  // gate and up

  // As Gemm and GemmSwiGlu, with sums in any order.
  void Product(const DeviceLinear& linear, const InputBuffer& x, int64_t tokens,
               GemmOutput type, void* out, Lane& lane, int workspace) const;
  void SwiGlu(const DeviceMlp& mlp, const InputBuffer& x, int64_t tokens,
              const InputSink& activated, Lane& lane, int workspace) const;

 private:
  // Those of one shape share what was measured.
  enum class Kind { kFp32, kBf16, kSwiGlu };
  static Kind KindOf(GemmOutput type) {
    return type == GemmOutput::kFp32 ? Kind::kFp32 : Kind::kBf16;
  }
  using Shape = std::tuple<WeightDtype, int64_t, int64_t, Kind>;
  using Ways = std::map<int64_t, Way>;  // by the most tokens of each

  struct Job;

  FastProducts() = default;
  absl::Status Measure(const Job& job);
  const Way& Find(const Shape& shape, int64_t tokens) const;
  bool Run(const Way& way, const DeviceLinear& linear, const InputBuffer& x,
           int64_t tokens, GemmOutput type, void* out, Lane& lane,
           int workspace) const;
  bool RunSwiGlu(const Way& way, const DeviceMlp& mlp, const InputBuffer& x,
                 int64_t tokens, const InputSink& activated, Lane& lane,
                 int workspace) const;

  std::unique_ptr<BlasLt> blas_;
  DeviceBuffer<std::byte> workspaces_[kWorkspaces];
  DeviceBuffer<float> gate_up_;  // (tokens, 2, inner) on cuBLASLt's way
  std::map<Shape, Ways> ways_;
  std::string report_;
};

}  // namespace invar::cuda

#endif  // INVAR_WORKER_MODEL_CUDA_FAST_PRODUCTS_H_
