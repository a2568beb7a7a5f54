// What a model is made of, as any backend takes it: weights where the
// checkpoint has them, with the scales that belong to them.
#ifndef INVAR_WORKER_MODEL_WEIGHTS_H_
#define INVAR_WORKER_MODEL_WEIGHTS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "worker/model/checkpoint/checkpoint.h"
#include "worker/model/checkpoint/config.h"

namespace invar {

// A folder's config and tensors, each checked.
struct CheckedModel {
  ModelConfig config;
  Checkpoint checkpoint;
};

// Gives what takes tensors of a model out of host memory. The loader calls it
// when it has read the config.
using MakeTensorStore = std::function<TensorStore*(const ModelConfig&)>;

// Errors are those of Model::Load.
absl::StatusOr<CheckedModel> LoadChecked(
    const std::string& folder, const Checkpoint::Options& options = {},
    const MakeTensorStore& make_store = nullptr);

struct MlpWeights {
  Weight gate, up;  // (inner, hidden)
  Weight down;      // (hidden, inner)
};

struct LayerWeights {
  std::vector<float> input_norm;      // (hidden)
  Weight q;                           // (heads * (N + R), hidden), or
  Weight q_a;                         // (q_lora_rank, hidden),
  std::vector<float> q_norm;          // (q_lora_rank) and
  Weight q_b;                         // (heads * (N + R), q_lora_rank)
  Weight kv_a;                        // (L + R, hidden)
  std::vector<float> latent_norm;     // (L)
  cpu::KvUpProjection kv_b;           // (heads * (N + V), L)
  Weight o;                           // (hidden, heads * V)
  std::vector<float> attention_norm;  // (hidden)
  // A dense layer's MLP, or the shared experts of a MoE layer.
  MlpWeights mlp;
  float kv_scale = 1.0f;             // of the cache's rows
  Weight router;                     // (experts, hidden)
  std::vector<float> correction;     // (experts) or empty
  std::vector<cpu::Expert> experts;  // empty: a dense layer
};

struct ModelWeights {
  Weight embedding;  // (vocab, hidden)
  Weight lm_head;    // (vocab, hidden)
  std::vector<float> final_norm;
  std::vector<LayerWeights> layers;
};

// Of a checkpoint that has the tensors of `config`. Weights point into
// `checkpoint`, or its store, which has matrices alone: neither kv_b_proj nor
// the router's; vectors are its values as fp32.
ModelWeights ReadWeights(const ModelConfig& config,
                         const Checkpoint& checkpoint, KvDtype kv_dtype);

// (N + R)^-0.5 * m^2: the width of the heads that were trained, not of the
// absorbed form.
float AttentionScale(const ModelConfig& config, const cpu::RopeTable& rope);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_WEIGHTS_H_
