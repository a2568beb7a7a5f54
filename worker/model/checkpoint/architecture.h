// The tensors that a DeepSeek-V2-family checkpoint has, as its config implies
// them.
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
  kScale,  // F32, BF16 or F16, all finite and above 0
};

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
  TensorKind kind = TensorKind::kFloat;
  // May be absent. Only what no answer depends on.
  bool optional = false;
};

// Whether a tensor of this shape is what `spec` asks for. The one scale of a
// tensor is written as [] or [1], scales of rows as [rows] or [rows, 1].
bool ShapeFits(const TensorSpec& spec, const std::vector<int64_t>& shape);

// Every tensor, exactly: one that is missing or left over is an error. A
// quantised module brings .weight and its scales.
std::vector<TensorSpec> ArchitectureTensors(const ModelConfig& config);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_ARCHITECTURE_H_
