// A model's weights in device memory, in the layouts that kernels/cuda reads.
#ifndef INVAR_WORKER_MODEL_CUDA_DEVICE_WEIGHTS_H_
#define INVAR_WORKER_MODEL_CUDA_DEVICE_WEIGHTS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ops_linear.h"
#include "worker/model/cuda/device_store.h"
#include "worker/model/weights.h"

namespace invar::cuda {

// What a product's inputs are.
struct InputKind {
  WeightDtype dtype = WeightDtype::kBf16;
  float scale = 1.0f;  // static, of e4m3
  DynamicInputs dynamic = DynamicInputs::kNone;
};

// Scales of a weight's rows or blocks; both empty where one scale has it all.
struct DeviceScales {
  DeviceBuffer<float> rows;
  DeviceBuffer<float> blocks;
};

// One matrix, or several of the same columns stacked.
struct DeviceLinear {
  DeviceBuffer<std::byte> data;
  DeviceScales scales;
  GemmWeight gemm;
  InputKind input;
};

struct DeviceMlp {
  DeviceLinear gate_up;  // (2 * inner, hidden): gate, then up
  float up_scale = 1.0f;
  DeviceLinear down;  // (hidden, inner)
  int64_t inner = 0;
};

struct DeviceExperts {
  DeviceBuffer<std::byte> router;  // (E, hidden) bf16 or fp32
  WeightDtype router_dtype = WeightDtype::kBf16;
  DeviceBuffer<float> correction;                           // (E) or empty
  DeviceLinear gate_up, down;                               // of all experts
  DeviceBuffer<float> gate_scales, up_scales, down_scales;  // (E)
  GroupedWeights grouped;
};

// One half of kv_b_proj.
struct DeviceHeads {
  DeviceBuffer<std::byte> data;
  DeviceBuffer<float> input_scales, row_scales;
  HeadProjection projection;
};

struct DeviceLayer {
  DeviceBuffer<float> input_norm;
  DeviceLinear q;  // q_proj, or q_b_proj where q_a is there
  DeviceLinear q_a;
  DeviceBuffer<float> q_norm;
  DeviceLinear kv_a;
  DeviceBuffer<float> latent_norm;
  DeviceHeads k_up;  // (H, L, N)
  DeviceHeads v_up;  // (H, V, L)
  DeviceLinear o;
  DeviceBuffer<float> attention_norm;
  DeviceMlp mlp;  // a dense layer's, or the shared experts
  float kv_scale = 1.0f;
  bool has_experts = false;
  DeviceExperts experts;
};

struct DeviceWeights {
  DeviceBuffer<std::byte> embedding;
  WeightDtype embedding_dtype = WeightDtype::kBf16;
  DeviceLinear lm_head;
  DeviceBuffer<float> final_norm;
  std::vector<DeviceLayer> layers;
};

// Of weights that were loaded into `store`, all of which is taken out of it;
// what the store does not have is copied. RESOURCE_EXHAUSTED where the device
// has no room.
absl::StatusOr<DeviceWeights> Upload(const ModelWeights& weights,
                                     DeviceStore& store);

}  // namespace invar::cuda

#endif  // INVAR_WORKER_MODEL_CUDA_DEVICE_WEIGHTS_H_
