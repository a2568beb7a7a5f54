// The tensors that a DeepSeek-V2 checkpoint has, as its config implies them.
#ifndef INVAR_WORKER_MODEL_CHECKPOINT_ARCHITECTURE_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_ARCHITECTURE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "worker/model/checkpoint/config.h"

namespace invar {

enum class TensorKind {
  kFloat,  // BF16, F16 or F32
  kFp8,    // F8_E4M3, no NaN codes
  kScale,  // one F32, shape [] or [1], finite and above 0
};

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;  // kScale: empty
  TensorKind kind = TensorKind::kFloat;
};

// Every tensor, exactly: one that is missing or left over is an error. A
// quantised module brings .weight, .weight_scale and .input_scale.
std::vector<TensorSpec> ArchitectureTensors(const ModelConfig& config);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_ARCHITECTURE_H_
