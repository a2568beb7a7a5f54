#include "worker/model/cuda/device_weights.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/ops.h"

namespace invar::cuda {
namespace {

int64_t Bytes(const Weight& weight) {
  return weight.rows * weight.columns * WeightElementBytes(weight.dtype);
}

// What undoes a product's scales: the weight's, and that of its input.
float ProductScale(const Weight& weight, float input_scale) {
  return weight.scale *
         (weight.dtype == WeightDtype::kFp8E4m3 ? input_scale : 1.0f);
}

float InputScale(const Weight& weight) {
  return weight.input_scale > 0 ? weight.input_scale : 1.0f;
}

// The weight as fp32, (rows, columns).
std::vector<float> Widen(const Weight& weight) {
  std::vector<int32_t> ids(weight.rows);
  std::iota(ids.begin(), ids.end(), 0);
  std::vector<float> values(weight.rows * weight.columns);
  cpu::Embedding(weight, ids, values.data());
  return values;
}

// Copies to the device; after a first failure nothing more is done, and
// status() says what it was.
class Uploader {
 public:
  const absl::Status& status() const { return status_; }

  DeviceBuffer<float> Floats(const std::vector<float>& values) {
    return Take(DeviceBuffer<float>::Upload(values, "a vector of the model"));
  }

  // The parts one after the other.
  DeviceBuffer<std::byte> Stack(const std::vector<Weight>& parts) {
    int64_t bytes = 0;
    for (const Weight& part : parts) {
      bytes += Bytes(part);
      if (part.dtype != parts[0].dtype) {
        status_.Update(absl::UnimplementedError(
            "gate, up or the experts of one layer have different dtypes; use "
            "--device cpu"));
      }
    }
    if (!status_.ok()) return {};
    auto buffer = Take(DeviceBuffer<std::byte>::Allocate(
        bytes, "the model's weights in device memory"));
    std::byte* to = buffer.data();
    for (const Weight& part : parts) {
      if (!status_.ok()) return {};
      status_ = ToStatus(
          cudaMemcpy(to, part.data, Bytes(part), cudaMemcpyHostToDevice),
          "copying weights to the device");
      to += Bytes(part);
    }
    return buffer;
  }

  DeviceLinear Linear(const std::vector<Weight>& parts, float input_scale) {
    DeviceLinear linear;
    linear.data = Stack(parts);
    linear.input_scale = input_scale;
    if (!status_.ok()) return linear;
    int64_t rows = 0;
    for (const Weight& part : parts) rows += part.rows;
    linear.gemm = Map(parts[0], linear.data.data(), rows);
    linear.gemm.scale = ProductScale(parts[0], input_scale);
    return linear;
  }
  DeviceLinear Linear(const Weight& weight) {
    return Linear({weight}, InputScale(weight));
  }

  GemmWeight Map(const Weight& like, const std::byte* data, int64_t rows) {
    GemmWeight weight;
    if (status_.ok() &&
        !MakeGemmWeight(like.dtype, data, rows, like.columns, &weight)) {
      status_ = absl::InternalError(
          absl::StrCat("the copy engine cannot describe a weight of ", rows,
                       " x ", like.columns));
    }
    return weight;
  }

  DeviceMlp Mlp(const MlpWeights& weights) {
    // Gate and up read one input. Calibration gives both one scale; where it
    // does not, the larger saturates neither.
    const float scale =
        std::max(InputScale(weights.gate), InputScale(weights.up));
    DeviceMlp mlp;
    mlp.gate_up = Linear({weights.gate, weights.up}, scale);
    mlp.up_scale = ProductScale(weights.up, scale);
    mlp.down = Linear(weights.down);
    mlp.inner = weights.gate.rows;
    return mlp;
  }

  DeviceExperts Experts(const LayerWeights& layer) {
    DeviceExperts out;
    const std::vector<cpu::Expert>& experts = layer.experts;
    out.input_scale = InputScale(experts[0].gate);
    out.inner_scale = InputScale(experts[0].down);
    std::vector<Weight> gate_up, down;
    std::vector<float> gate_scales, up_scales, down_scales;
    for (const cpu::Expert& expert : experts) {
      gate_up.push_back(expert.gate);
      gate_up.push_back(expert.up);
      down.push_back(expert.down);
      gate_scales.push_back(ProductScale(expert.gate, out.input_scale));
      up_scales.push_back(ProductScale(expert.up, out.input_scale));
      down_scales.push_back(ProductScale(expert.down, out.inner_scale));
    }
    const int64_t count = static_cast<int64_t>(experts.size());
    const Weight& gate = experts[0].gate;
    out.gate_up = Stack(gate_up);
    out.down = Stack(down);
    out.gate_scales = Floats(gate_scales);
    out.up_scales = Floats(up_scales);
    out.down_scales = Floats(down_scales);
    out.grouped = {
        .experts = count,
        .hidden = gate.columns,
        .inner = gate.rows,
        .gate_up = Map(gate, out.gate_up.data(), 2 * count * gate.rows),
        .down = Map(experts[0].down, out.down.data(), count * gate.columns),
        .gate_scales = out.gate_scales.data(),
        .up_scales = out.up_scales.data(),
        .down_scales = out.down_scales.data()};
    out.router_dtype = layer.router.dtype;
    if (layer.router.dtype == WeightDtype::kFp16) {
      const std::vector<float> values = Widen(layer.router);
      Weight wide = layer.router;
      wide.dtype = out.router_dtype = WeightDtype::kFp32;
      wide.data = reinterpret_cast<const std::byte*>(values.data());
      out.router = Stack({wide});
    } else {
      out.router = Stack({layer.router});
    }
    return out;
  }

  // kv_b's two halves, each as one matrix a head.
  void UpProjections(const cpu::KvUpProjection& kv_b, DeviceLayer* layer) {
    const Weight& weight = kv_b.weight;
    const int64_t bytes = WeightElementBytes(weight.dtype);
    const int64_t latent = weight.columns;
    const int64_t head_rows = kv_b.nope + kv_b.value;
    std::vector<std::byte> k(kv_b.heads * kv_b.nope * latent * bytes);
    std::vector<std::byte> v(kv_b.heads * kv_b.value * latent * bytes);
    for (int64_t h = 0; h < kv_b.heads; ++h) {
      const std::byte* head = weight.data + h * head_rows * latent * bytes;
      for (int64_t n = 0; n < kv_b.nope; ++n) {
        for (int64_t l = 0; l < latent; ++l) {
          std::memcpy(&k[((h * latent + l) * kv_b.nope + n) * bytes],
                      head + (n * latent + l) * bytes, bytes);
        }
      }
      std::memcpy(&v[h * kv_b.value * latent * bytes],
                  head + kv_b.nope * latent * bytes,
                  kv_b.value * latent * bytes);
    }
    layer->k_up_data = Take(DeviceBuffer<std::byte>::Upload(k, "kv_b_proj"));
    layer->v_up_data = Take(DeviceBuffer<std::byte>::Upload(v, "kv_b_proj"));
    layer->k_up = {.dtype = weight.dtype,
                   .data = layer->k_up_data.data(),
                   .scale = weight.scale,
                   .heads = kv_b.heads};
    layer->v_up = layer->k_up;
    layer->v_up.data = layer->v_up_data.data();
  }

 private:
  template <typename T>
  T Take(absl::StatusOr<T> made) {
    if (!status_.ok()) return {};
    if (made.ok()) return *std::move(made);
    status_ = made.status();
    return {};
  }

  absl::Status status_;
};

DeviceLayer UploadLayer(const LayerWeights& weights, Uploader* uploader) {
  DeviceLayer layer;
  layer.input_norm = uploader->Floats(weights.input_norm);
  if (weights.q_norm.empty()) {
    layer.q = uploader->Linear(weights.q);
  } else {
    layer.q_a = uploader->Linear(weights.q_a);
    layer.q_norm = uploader->Floats(weights.q_norm);
    layer.q = uploader->Linear(weights.q_b);
  }
  layer.kv_a = uploader->Linear(weights.kv_a);
  layer.latent_norm = uploader->Floats(weights.latent_norm);
  uploader->UpProjections(weights.kv_b, &layer);
  layer.o = uploader->Linear(weights.o);
  layer.attention_norm = uploader->Floats(weights.attention_norm);
  layer.mlp = uploader->Mlp(weights.mlp);
  layer.has_experts = !weights.experts.empty();
  if (layer.has_experts) layer.experts = uploader->Experts(weights);
  return layer;
}

// Names the first weight that no product reads.
absl::Status CheckDtypes(const ModelWeights& weights) {
  const auto check = [](const Weight& weight, int64_t layer,
                        const char* what) -> absl::Status {
    if (weight.data == nullptr || weight.dtype != WeightDtype::kFp32) {
      return absl::OkStatus();
    }
    return absl::UnimplementedError(
        absl::StrCat(what, layer < 0 ? "" : absl::StrCat(" of layer ", layer),
                     " is F32; the CUDA backend multiplies BF16, F16 and "
                     "F8_E4M3: convert the checkpoint, or use --device cpu"));
  };
  absl::Status status = check(weights.lm_head, -1, "lm_head");
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const LayerWeights& l = weights.layers[i];
    for (const Weight& weight :
         {l.q, l.q_a, l.q_b, l.kv_a, l.kv_b.weight, l.o}) {
      status.Update(check(weight, i, "a weight of self_attn"));
    }
    for (const Weight& weight : {l.mlp.gate, l.mlp.up, l.mlp.down}) {
      status.Update(check(weight, i, "a weight of mlp"));
    }
    for (const cpu::Expert& e : l.experts) {
      for (const Weight& weight : {e.gate, e.up, e.down}) {
        status.Update(check(weight, i, "a weight of an expert"));
      }
    }
  }
  return status;
}

}  // namespace

absl::Status CheckSupported(const ModelConfig& config, KvDtype kv_dtype) {
  const auto refuse = [](const auto&... parts) {
    return absl::UnimplementedError(
        absl::StrCat("the CUDA backend ", parts..., "; use --device cpu"));
  };
  if (config.kv_lora_rank != kLatent || config.qk_rope_head_dim != kRope ||
      config.qk_nope_head_dim != kNope || config.v_head_dim != kValue) {
    return refuse("has attention kernels for kv_lora_rank ", kLatent,
                  ", qk_rope_head_dim ", kRope, ", qk_nope_head_dim ", kNope,
                  " and v_head_dim ", kValue, "; config.json has ",
                  config.kv_lora_rank, ", ", config.qk_rope_head_dim, ", ",
                  config.qk_nope_head_dim, " and ", config.v_head_dim);
  }
  if (kv_dtype == KvDtype::kFp32) {
    return refuse("has no kv_cache.dtype FP32, the CPU's reference");
  }
  if (config.router.scoring != cpu::RouterScoring::kSoftmax ||
      config.router.method == cpu::RouterMethod::kNoauxTc ||
      config.router.normalise) {
    return refuse("routes by softmax without norm_topk_prob alone");
  }
  if (config.router.experts > 512 || config.router.groups > 32) {
    return refuse("routes to at most 512 experts in at most 32 groups");
  }
  const Quantization& q = config.quantization;
  if (q.weights == WeightScaling::kChannel ||
      q.weights == WeightScaling::kBlock) {
    return refuse("has no kernel for weight scales ", Name(q.weights));
  }
  if (q.weights != WeightScaling::kNone && q.inputs != InputScaling::kTensor) {
    return refuse("has no kernel for FP8 weights with input scales ",
                  Name(q.inputs));
  }
  if (q.kv_scales && KvElementBytes(kv_dtype) == 1) {
    return refuse("has no FP8 cache with the checkpoint's k_scale");
  }
  return absl::OkStatus();
}

absl::StatusOr<DeviceWeights> Upload(const ModelConfig& config,
                                     const ModelWeights& weights) {
  if (absl::Status status = CheckDtypes(weights); !status.ok()) return status;
  Uploader uploader;
  DeviceWeights out;
  out.embedding = uploader.Stack({weights.embedding});
  out.embedding_dtype = weights.embedding.dtype;
  out.lm_head = uploader.Linear(weights.lm_head);
  out.final_norm = uploader.Floats(weights.final_norm);
  for (const LayerWeights& layer : weights.layers) {
    out.layers.push_back(UploadLayer(layer, &uploader));
    if (!uploader.status().ok()) return uploader.status();
  }
  return out;
}

}  // namespace invar::cuda
