// How a checkpoint's weights are stored, and what its linear layers make of
// their inputs.
#ifndef INVAR_WORKER_MODEL_CHECKPOINT_QUANTIZATION_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_QUANTIZATION_H_

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace invar {

// Who wrote the layout, and with it the names of the scales.
enum class CheckpointFormat {
  kPlain,              // bf16, fp16 or fp32
  kAutoFp8,            // quant_method fp8: .weight_scale, .input_scale
  kBlockFp8,           // quant_method fp8, weight_block_size: .weight_scale_inv
  kCompressedTensors,  // quant_method compressed-tensors, float-quantized
};

enum class WeightScaling {
  kNone,
  kTensor,   // one scale
  kChannel,  // one a row
  kBlock,    // one a block of kScaleBlock x kScaleBlock
};

enum class InputScaling {
  kNone,    // inputs stay fp32
  kTensor,  // one static scale
  kToken,   // one a row, made of the row
  kGroup,   // one a run of kScaleBlock in a row, made of the run
};

// FP8 is e4m3 throughout.
struct Quantization {
  CheckpointFormat format = CheckpointFormat::kPlain;
  WeightScaling weights = WeightScaling::kNone;
  InputScaling inputs = InputScaling::kNone;
  // Each layer brings self_attn.k_scale for its cache rows.
  bool kv_scales = false;
  // Modules that stay as they were: names, with or without "model.", which
  // stand for what is below them too, and "re:" patterns.
  std::vector<std::string> ignored = {};

  // Whether a module (model.layers.0.mlp.up_proj) is quantised.
  bool Covers(std::string_view module) const;
};

// "compressed-tensors", for people.
const char* Name(CheckpointFormat format);
// "one a row", for people and for the NumericsPlan.
const char* Name(WeightScaling scaling);
const char* Name(InputScaling scaling);

// Reads quantization_config or compression_config of a config.json; neither is
// a plain checkpoint. Appends what is wrong or not supported to `problems`,
// each naming its field.
Quantization ReadQuantization(const nlohmann::json& config,
                              const std::string& file,
                              std::vector<absl::Status>* problems);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_QUANTIZATION_H_
