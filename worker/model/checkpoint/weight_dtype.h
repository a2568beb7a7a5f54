// What a checkpoint says of a weight, as kernels name it.
#ifndef INVAR_WORKER_MODEL_CHECKPOINT_WEIGHT_DTYPE_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_WEIGHT_DTYPE_H_

#include "kernels/types.h"
#include "worker/model/checkpoint/quantization.h"
#include "worker/model/checkpoint/safetensors.h"

namespace invar {

inline WeightDtype ToWeightDtype(TensorDtype dtype) {
  switch (dtype) {
    case TensorDtype::kBf16:
      return WeightDtype::kBf16;
    case TensorDtype::kF16:
      return WeightDtype::kFp16;
    case TensorDtype::kF8E4m3:
      return WeightDtype::kFp8E4m3;
    default:  // the architecture's table of tensors lets no other pass
      return WeightDtype::kFp32;
  }
}

// A static scale, and none, are not dynamic.
inline DynamicInputs ToDynamicInputs(InputScaling inputs) {
  switch (inputs) {
    case InputScaling::kToken:
      return DynamicInputs::kToken;
    case InputScaling::kGroup:
      return DynamicInputs::kGroup;
    default:
      return DynamicInputs::kNone;
  }
}

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_WEIGHT_DTYPE_H_
