#include "worker/model/cuda/device_weights.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/ops.h"

namespace invar::cuda {
namespace {

int64_t Bytes(const Weight& weight) {
  return weight.rows * weight.columns * WeightElementBytes(weight.dtype);
}

InputKind KindOf(const Weight& weight) {
  return {.dtype = weight.dtype,
          .scale = weight.input_scale > 0 ? weight.input_scale : 1.0f,
          .dynamic = weight.dynamic_inputs};
}

// What undoes the scales that one number has: the weight's, and its inputs'.
float ProductScale(const Weight& weight, const InputKind& input) {
  const bool is_static = input.dtype == WeightDtype::kFp8E4m3 &&
                         input.dynamic == DynamicInputs::kNone;
  return weight.scale * (is_static ? input.scale : 1.0f);
}

// The weight as fp32, (rows, columns).
std::vector<float> Widen(const Weight& weight) {
  std::vector<int32_t> ids(weight.rows);
  std::iota(ids.begin(), ids.end(), 0);
  std::vector<float> values(weight.rows * weight.columns);
  cpu::Embedding(weight, ids, values.data());
  return values;
}

// Takes what the store has, and copies the rest to the device; after a first
// failure nothing more is done, and status() says what it was.
class Uploader {
 public:
  explicit Uploader(DeviceStore& store) : store_(store) {}

  const absl::Status& status() const { return status_; }

  DeviceBuffer<float> Floats(const std::vector<float>& values) {
    return Take(DeviceBuffer<float>::Upload(values, "a vector of the model"));
  }

  // The parts one after the other, of one dtype.
  DeviceBuffer<std::byte> Stack(const std::vector<Weight>& parts);
  DeviceScales Scales(const std::vector<Weight>& parts);
  // `input` is that of all parts; one scale, if they have it, is of the first.
  DeviceLinear Linear(const std::vector<Weight>& parts, const InputKind& input);
  DeviceLinear Linear(const Weight& weight) {
    return Linear({weight}, KindOf(weight));
  }

  DeviceMlp Mlp(const MlpWeights& weights);
  DeviceExperts Experts(const LayerWeights& layer);
  void UpProjections(const cpu::KvUpProjection& kv_b, DeviceLayer* layer);

 private:
  template <typename T>
  T Take(absl::StatusOr<T> made) {
    if (!status_.ok()) return {};
    if (made.ok()) return *std::move(made);
    status_ = made.status();
    return {};
  }

  void SetRouter(const LayerWeights& layer, DeviceExperts* out);

  DeviceStore& store_;
  absl::Status status_;
};

DeviceBuffer<std::byte> Uploader::Stack(const std::vector<Weight>& parts) {
  if (!status_.ok()) return {};
  DeviceBuffer<std::byte> buffer = store_.Take(parts[0].data);
  const bool stored = buffer.data() != nullptr;
  int64_t bytes = 0;
  for (const Weight& part : parts) {
    if (part.dtype != parts[0].dtype ||
        (stored && part.data != buffer.data() + bytes)) {
      status_ = absl::InternalError("weights of one matrix lie apart");
      return {};
    }
    bytes += Bytes(part);
  }
  if (stored) return buffer;
  buffer = Take(DeviceBuffer<std::byte>::Allocate(
      bytes, "the model's weights in device memory"));
  std::byte* to = buffer.data();
  for (const Weight& part : parts) {
    if (!status_.ok()) return {};
    status_ = ToStatus(CopyToDevice(to, part.data, Bytes(part)),
                       "copying weights to the device");
    to += Bytes(part);
  }
  return buffer;
}

DeviceScales Uploader::Scales(const std::vector<Weight>& parts) {
  std::vector<float> rows, blocks;
  for (const Weight& part : parts) {
    if (part.row_scales != nullptr) {
      rows.insert(rows.end(), part.row_scales, part.row_scales + part.rows);
    }
    if (part.block_scales != nullptr) {
      const float* first = part.BlockScales(0);
      blocks.insert(blocks.end(), first,
                    first + ScaleBlocks(part.rows) * ScaleBlocks(part.columns));
    }
  }
  return {Floats(rows), Floats(blocks)};
}

DeviceLinear Uploader::Linear(const std::vector<Weight>& parts,
                              const InputKind& input) {
  DeviceLinear linear;
  linear.data = Stack(parts);
  linear.scales = Scales(parts);
  linear.input = input;
  if (!status_.ok()) return linear;
  int64_t rows = 0;
  for (const Weight& part : parts) rows += part.rows;
  if (!MakeGemmWeight(parts[0].dtype, linear.data.data(), rows,
                      parts[0].columns, &linear.gemm)) {
    status_ = absl::InternalError(
        absl::StrCat("the copy engine cannot describe a weight of ", rows,
                     " x ", parts[0].columns));
  }
  linear.gemm.scale = ProductScale(parts[0], input);
  linear.gemm.row_scales = linear.scales.rows.data();
  linear.gemm.block_scales = linear.scales.blocks.data();
  return linear;
}

DeviceMlp Uploader::Mlp(const MlpWeights& weights) {
  // Gate and up read one input. Calibration gives both one scale; where it
  // does not, the larger saturates neither.
  InputKind input = KindOf(weights.gate);
  input.scale = std::max(input.scale, KindOf(weights.up).scale);
  DeviceMlp mlp;
  mlp.gate_up = Linear({weights.gate, weights.up}, input);
  mlp.up_scale = ProductScale(weights.up, input);
  mlp.down = Linear(weights.down);
  mlp.inner = weights.gate.rows;
  return mlp;
}

void Uploader::SetRouter(const LayerWeights& layer, DeviceExperts* out) {
  Weight router = layer.router;
  std::vector<float> values;
  if (router.dtype == WeightDtype::kFp16) {
    values = Widen(router);
    router.dtype = WeightDtype::kFp32;
    router.data = reinterpret_cast<const std::byte*>(values.data());
  }
  out->router_dtype = router.dtype;
  out->router = Stack({router});
  out->correction = Floats(layer.correction);
}

DeviceExperts Uploader::Experts(const LayerWeights& layer) {
  DeviceExperts out;
  SetRouter(layer, &out);
  const std::vector<cpu::Expert>& experts = layer.experts;
  const InputKind input = KindOf(experts[0].gate);
  const InputKind inner = KindOf(experts[0].down);
  std::vector<Weight> gate_up, down;
  std::vector<float> gate_scales, up_scales, down_scales;
  for (const cpu::Expert& expert : experts) {
    gate_up.push_back(expert.gate);
    gate_up.push_back(expert.up);
    down.push_back(expert.down);
    gate_scales.push_back(ProductScale(expert.gate, input));
    up_scales.push_back(ProductScale(expert.up, input));
    down_scales.push_back(ProductScale(expert.down, inner));
  }
  out.gate_up = Linear(gate_up, input);
  out.down = Linear(down, inner);
  out.gate_scales = Floats(gate_scales);
  out.up_scales = Floats(up_scales);
  out.down_scales = Floats(down_scales);
  out.grouped = {.experts = static_cast<int64_t>(experts.size()),
                 .hidden = experts[0].gate.columns,
                 .inner = experts[0].gate.rows,
                 .gate_up = out.gate_up.gemm,
                 .down = out.down.gemm,
                 .gate_scales = out.gate_scales.data(),
                 .up_scales = out.up_scales.data(),
                 .down_scales = out.down_scales.data()};
  return out;
}

// kv_b's two halves, each as one matrix a head: K transposed, (H, L, N), and V,
// (H, V, L). A row's scale is one of K's inputs and of V's sums, a block's the
// other way round.
void Uploader::UpProjections(const cpu::KvUpProjection& kv_b,
                             DeviceLayer* layer) {
  const Weight& weight = kv_b.weight;
  const int64_t bytes = WeightElementBytes(weight.dtype);
  const int64_t latent = weight.columns;
  std::vector<std::byte> k(kv_b.heads * kv_b.nope * latent * bytes);
  std::vector<std::byte> v(kv_b.heads * kv_b.value * latent * bytes);
  std::vector<float> k_inputs, k_sums, v_inputs, v_sums;
  for (int64_t h = 0; h < kv_b.heads; ++h) {
    const int64_t k_row = h * (kv_b.nope + kv_b.value);
    const int64_t v_row = k_row + kv_b.nope;
    for (int64_t n = 0; n < kv_b.nope; ++n) {
      for (int64_t l = 0; l < latent; ++l) {
        std::memcpy(&k[((h * latent + l) * kv_b.nope + n) * bytes],
                    weight.data + ((k_row + n) * latent + l) * bytes, bytes);
      }
    }
    std::memcpy(&v[h * kv_b.value * latent * bytes],
                weight.data + v_row * latent * bytes,
                kv_b.value * latent * bytes);
    if (weight.row_scales != nullptr) {
      const float* scales = weight.row_scales;
      k_inputs.insert(k_inputs.end(), scales + k_row, scales + v_row);
      v_sums.insert(v_sums.end(), scales + v_row, scales + v_row + kv_b.value);
    }
    for (int64_t l = 0; weight.block_scales != nullptr && l < latent; ++l) {
      k_sums.push_back(weight.BlockScales(k_row)[l / kScaleBlock]);
      v_inputs.push_back(weight.BlockScales(v_row)[l / kScaleBlock]);
    }
  }
  const auto half = [&](const std::vector<std::byte>& data,
                        const std::vector<float>& inputs,
                        const std::vector<float>& sums, float scale) {
    DeviceHeads heads;
    heads.data = Take(DeviceBuffer<std::byte>::Upload(data, "kv_b_proj"));
    heads.input_scales = Floats(inputs);
    heads.row_scales = Floats(sums);
    heads.projection = {.dtype = weight.dtype,
                        .data = heads.data.data(),
                        .scale = scale,
                        .heads = kv_b.heads,
                        .input_scales = heads.input_scales.data(),
                        .row_scales = heads.row_scales.data()};
    return heads;
  };
  const bool one =
      weight.row_scales == nullptr && weight.block_scales == nullptr;
  const float scale = one ? weight.scale : 1.0f;
  layer->k_up = half(k, k_inputs, k_sums, scale);
  layer->v_up = half(v, v_inputs, v_sums, scale * kv_b.latent_scale);
}

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
  layer.kv_scale = weights.kv_scale;
  layer.has_experts = !weights.experts.empty();
  if (layer.has_experts) layer.experts = uploader->Experts(weights);
  return layer;
}

}  // namespace

absl::StatusOr<DeviceWeights> Upload(const ModelWeights& weights,
                                     DeviceStore& store) {
  Uploader uploader(store);
  DeviceWeights out;
  out.embedding = uploader.Stack({weights.embedding});
  out.embedding_dtype = weights.embedding.dtype;
  out.lm_head = uploader.Linear(weights.lm_head);
  out.final_norm = uploader.Floats(weights.final_norm);
  for (const LayerWeights& layer : weights.layers) {
    out.layers.push_back(UploadLayer(layer, &uploader));
    if (!uploader.status().ok()) return uploader.status();
  }
  if (const std::string left = store.Left(); !left.empty()) {
    return absl::InternalError(absl::StrCat("nothing asks for ", left));
  }
  return out;
}

}  // namespace invar::cuda
