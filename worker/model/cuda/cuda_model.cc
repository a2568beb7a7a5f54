#include "worker/model/cuda/cuda_model.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/check.h"
#include "kernels/ops.h"
#include "worker/model/slices.h"
#include "worker/model/weights.h"

namespace invar::cuda {
namespace {

// Rows of logits that are computed at once.
constexpr int64_t kLogitRows = 256;
// Left free for the runtime's own needs: code, stacks, graphs.
constexpr int64_t kReservedBytes = int64_t{256} << 20;

int64_t ContextTokens(const ModelConfig& config,
                      const Model::LoadOptions& options) {
  return options.context_tokens > 0
             ? std::min(options.context_tokens, config.max_position_embeddings)
             : config.max_position_embeddings;
}

// cos and sin of every position up to `positions`.
absl::Status UploadAngles(const cpu::RopeTable& rope, int64_t positions,
                          DeviceBuffer<float>* cosines,
                          DeviceBuffer<float>* sines) {
  std::vector<int64_t> all(positions);
  std::iota(all.begin(), all.end(), 0);
  std::vector<float> cos(positions * kRope / 2), sin(cos.size());
  cpu::RopeAngles(rope, all, cos.data(), sin.data());
  auto device_cos = DeviceBuffer<float>::Upload(cos, "the rotary table");
  if (!device_cos.ok()) return device_cos.status();
  auto device_sin = DeviceBuffer<float>::Upload(sin, "the rotary table");
  if (!device_sin.ok()) return device_sin.status();
  *cosines = *std::move(device_cos);
  *sines = *std::move(device_sin);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> CudaModel::Load(
    const LoadOptions& options, int device) {
  const absl::StatusOr<DeviceFacts> facts = UseDevice(device);
  if (!facts.ok()) return facts.status();
  absl::StatusOr<CheckedModel> checked = LoadChecked(options.path);
  if (!checked.ok()) return checked.status();
  const ModelConfig& config = checked->config;
  absl::Status status = CheckSupported(config, options.kv_dtype);
  if (!status.ok()) return status;
  absl::StatusOr<DeviceWeights> weights = Upload(
      config, ReadWeights(config, checked->checkpoint, options.kv_dtype));
  if (!weights.ok()) return weights.status();
  const int64_t positions = ContextTokens(config, options);
  absl::StatusOr<StepMemory> memory = StepMemory::Allocate(
      config, {.tokens = options.step_tokens,
               .logit_rows = std::min(kLogitRows, options.step_tokens),
               .max_positions = positions});
  if (!memory.ok()) return memory.status();
  std::unique_ptr<CudaModel> model(
      new CudaModel(config, checked->checkpoint.digest(), options.kv_dtype,
                    device, *std::move(weights), *std::move(memory)));
  status =
      UploadAngles(model->rope_, positions, &model->cosines_, &model->sines_);
  if (!status.ok()) return status;
  return model;
}

CudaModel::CudaModel(ModelConfig config, std::string weights_digest,
                     KvDtype kv_dtype, int device, DeviceWeights weights,
                     StepMemory memory)
    : config_(std::move(config)),
      weights_digest_(std::move(weights_digest)),
      kv_dtype_(kv_dtype),
      device_(device),
      rope_(cpu::MakeRopeTable(config_.qk_rope_head_dim, config_.rope_theta,
                               config_.rope_scaling)),
      attention_scale_(AttentionScale(config_, rope_)),
      launch_{.stream = stream_.get(), .overlap = true},
      weights_(std::move(weights)),
      step_(std::move(memory)) {}

int64_t CudaModel::MaxKvBlocks() const {
  size_t free = 0;
  size_t total = 0;
  Check(cudaSetDevice(device_), "choosing the device");
  Check(cudaMemGetInfo(&free, &total), "asking for the device's memory");
  const int64_t left = static_cast<int64_t>(free) - kReservedBytes;
  return std::max<int64_t>(left, 0) /
         KvCache::BlockBytes(kv_dtype_, config_.layers, kRow);
}

std::unique_ptr<KvCache> CudaModel::NewKvCache(int64_t blocks) const {
  void* data = nullptr;
  Check(cudaSetDevice(device_), "choosing the device");
  const int64_t bytes = KvCache::Bytes(kv_dtype_, config_.layers, blocks, kRow);
  Check(cudaMalloc(&data, bytes), "allocating the KV cache");
  Check(cudaMemset(data, 0, bytes), "clearing the KV cache");
  return std::make_unique<KvCache>(
      kv_dtype_, config_.layers, blocks, kRow,
      KvCache::Storage(static_cast<std::byte*>(data),
                       [](std::byte* bytes) { cudaFree(bytes); }));
}

CudaModel::Pass CudaModel::StagePass(std::span<const SequenceSlice> slices,
                                     Cursor* cursor) {
  Pass pass;
  const StepMemory::Places& to = step_.host;
  int64_t block_ids = 0;
  for (; cursor->slice < slices.size(); ++cursor->slice, cursor->token = 0) {
    const SequenceSlice& slice = slices[cursor->slice];
    const int64_t size = static_cast<int64_t>(slice.token_ids.size());
    const int64_t taken =
        std::min(size - cursor->token, step_.limits.tokens - pass.tokens);
    if (taken == 0) break;
    const int64_t first = slice.first_position + cursor->token;
    for (int64_t i = 0; i < taken; ++i) {
      to.ids[pass.tokens] = slice.token_ids[cursor->token + i];
      to.positions[pass.tokens] = static_cast<int32_t>(first + i);
      to.tables[pass.tokens] = static_cast<int32_t>(block_ids);
      if (cursor->token + i >= size - slice.logit_rows) {
        to.row_ids[pass.rows++] = static_cast<int32_t>(pass.tokens);
      }
      ++pass.tokens;
    }
    pass.max_position = std::max(pass.max_position, first + taken - 1);
    const int64_t blocks = (first + taken - 1) / kBlockTokens + 1;
    std::copy_n(slice.block_ids.begin(), blocks, to.block_ids + block_ids);
    block_ids += blocks;
    if (cursor->token + taken < size) {
      cursor->token += taken;
      break;
    }
  }
  const int64_t words = 4 * step_.limits.tokens + block_ids;
  Check(cudaMemcpyAsync(step_.staged.data(), step_.staged_host.data(),
                        words * sizeof(int32_t), cudaMemcpyHostToDevice,
                        stream_.get()),
        "staging a step");
  Check(cudaMemsetAsync(step_.finite.data(), 1, pass.tokens, stream_.get()),
        "staging a step");
  return pass;
}

void CudaModel::Show(std::string_view op, int64_t rows, int64_t row_size,
                     const float* values) {
  if (!observer_) return;
  std::vector<float> host(rows * row_size);
  stream_.Synchronize();
  Check(cudaMemcpy(host.data(), values, host.size() * sizeof(float),
                   cudaMemcpyDeviceToHost),
        "showing an operation");
  observer_({shown_layer_, op, rows, row_size, host.data()});
}

void CudaModel::Norm(const DeviceBuffer<float>& gain, const Pass& pass,
                     float* normed, const InputSink& first,
                     const InputSink& second) {
  RmsNorm({.hidden = step_.hidden.data(),
           .hidden_stride = config_.hidden_size,
           .addend = addend_,
           .gain = gain.data(),
           .eps = config_.rms_norm_eps,
           .rows = pass.tokens,
           .size = config_.hidden_size,
           .normed = normed,
           .inputs = {first, second}},
          launch_);
  addend_ = {};
  Show("hidden", pass.tokens, config_.hidden_size, step_.hidden.data());
}

void CudaModel::Attention(const DeviceLayer& layer, const Pass& pass,
                          const KvLayer& cache) {
  const ModelConfig& c = config_;
  const int64_t tokens = pass.tokens;
  const TokenPlaces places = {.tokens = tokens,
                              .positions = step_.device.positions,
                              .tables = step_.device.tables,
                              .block_ids = step_.device.block_ids};
  const RopeAngles angles = {cosines_.data(), sines_.data()};
  const bool low_rank = layer.q_norm.size() > 0;
  const DeviceLinear& q_in = low_rank ? layer.q_a : layer.q;
  const InputSink q_sink =
      step_.inputs[0].Sink(q_in.input_dtype(), q_in.input_scale);
  const InputSink kv_sink =
      step_.inputs[1].Sink(layer.kv_a.input_dtype(), layer.kv_a.input_scale);
  Norm(layer.input_norm, pass, nullptr, q_sink, kv_sink);
  const auto gemm = [&](const DeviceLinear& linear, const InputBuffer& x,
                        int64_t leaf, float* out) {
    Gemm(linear.gemm, leaf, x.As(linear.input_dtype()), tokens,
         GemmOutput::kFp32, out, launch_);
  };
  const auto column_leaf = [](const DeviceLinear& linear) {
    return ColumnParallelLeaf(linear.gemm.rows, linear.gemm.columns);
  };
  if (low_rank) {
    gemm(layer.q_a, step_.inputs[0], column_leaf(layer.q_a), step_.q_a.data());
    RmsNorm({.hidden = step_.q_a.data(),
             .hidden_stride = c.q_lora_rank,
             .gain = layer.q_norm.data(),
             .eps = c.rms_norm_eps,
             .rows = tokens,
             .size = c.q_lora_rank,
             .inputs = {step_.q_inputs.Sink(layer.q.input_dtype(),
                                            layer.q.input_scale)}},
            launch_);
    gemm(layer.q, step_.q_inputs, column_leaf(layer.q), step_.q.data());
  } else {
    gemm(layer.q, step_.inputs[0], column_leaf(layer.q), step_.q.data());
  }
  Show("q", tokens, c.heads * c.qk_head_dim(), step_.q.data());
  gemm(layer.kv_a, step_.inputs[1], column_leaf(layer.kv_a), step_.kv_a.data());
  Show("kv_a", tokens, c.kv_row_elements(), step_.kv_a.data());
  KvAppend(stream_.get(), places, step_.kv_a.data(), layer.latent_norm.data(),
           c.rms_norm_eps, angles, cache, step_.finite.data());
  AbsorbQuery(stream_.get(), layer.k_up, places, angles, step_.q.data(),
              step_.query.data());
  Show("absorb_query", tokens, c.heads * kRow, step_.query.data());
  MlaAttention(stream_.get(), places, pass.max_position, step_.query.data(),
               c.heads, attention_scale_, cache, step_.attention_parts.data(),
               step_.attended.data());
  Show("mla_attention", tokens, c.heads * kLatent, step_.attended.data());
  AbsorbValue(
      stream_.get(), layer.v_up, tokens, step_.attended.data(),
      step_.value_inputs.Sink(layer.o.input_dtype(), layer.o.input_scale));
  if (observer_) {
    AbsorbValue(stream_.get(), layer.v_up, tokens, step_.attended.data(),
                step_.values.data());
  }
  Show("absorb_value", tokens, c.heads * kValue, step_.values.data());
  gemm(layer.o, step_.value_inputs, RowParallelLeaf(layer.o.gemm.columns),
       step_.projected.data());
  Show("o", tokens, c.hidden_size, step_.projected.data());
  addend_ = {.shared = step_.projected.data()};
}

void CudaModel::FeedForward(const DeviceLayer& layer, const Pass& pass) {
  const ModelConfig& c = config_;
  const int64_t tokens = pass.tokens;
  const DeviceMlp& mlp = layer.mlp;
  const DeviceExperts& experts = layer.experts;
  const InputBuffer& inner =
      layer.has_experts ? step_.shared_inputs : step_.dense_inputs;
  InputSink expert_sink;
  if (layer.has_experts) {
    expert_sink = step_.inputs[1].Sink(experts.grouped.gate_up.dtype,
                                       experts.input_scale);
  }
  Norm(layer.attention_norm, pass,
       layer.has_experts ? step_.normed.data() : nullptr,
       step_.inputs[0].Sink(mlp.gate_up.input_dtype(), mlp.gate_up.input_scale),
       expert_sink);
  GemmSwiGlu(mlp.gate_up.gemm, mlp.up_scale,
             step_.inputs[0].As(mlp.gate_up.input_dtype()), tokens,
             inner.Sink(mlp.down.input_dtype(), mlp.down.input_scale), launch_);
  Gemm(mlp.down.gemm, RowParallelLeaf(mlp.down.gemm.columns),
       inner.As(mlp.down.input_dtype()), tokens, GemmOutput::kFp32,
       step_.projected.data(), launch_);
  Show("mlp", tokens, c.hidden_size, step_.projected.data());
  addend_ = {.shared = step_.projected.data()};
  if (!layer.has_experts) return;
  const int64_t top_k = c.router.top_k;
  Router(c.router, experts.router_dtype, experts.router.data(), c.hidden_size,
         step_.normed.data(), tokens, step_.expert_ids.data(),
         step_.expert_weights.data(), step_.plan(), launch_);
  Show("router", tokens, top_k, step_.expert_weights.data());
  ExpertsGateUp(
      experts.grouped, step_.inputs[1].As(experts.grouped.gate_up.dtype),
      step_.plan(), tokens, top_k,
      step_.expert_inputs.Sink(experts.grouped.down.dtype, experts.inner_scale),
      launch_);
  ExpertsDown(experts.grouped,
              step_.expert_inputs.As(experts.grouped.down.dtype), step_.plan(),
              tokens, top_k, step_.slots.data(), launch_);
  Show("experts", tokens, top_k * c.hidden_size, step_.slots.data());
  addend_ = {.shared = step_.projected.data(),
             .slots = step_.slots.data(),
             .weights = step_.expert_weights.data(),
             .top_k = top_k};
}

void CudaModel::RunLayers(const Pass& pass, KvCache& cache) {
  addend_ = {};
  shown_layer_ = -1;
  cuda::Embedding(weights_.embedding_dtype, weights_.embedding.data(),
                  step_.device.ids, pass.tokens, config_.hidden_size,
                  step_.hidden.data(), launch_);
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    shown_layer_ = static_cast<int64_t>(i);
    Attention(weights_.layers[i], pass,
              {kv_dtype_, cache.Block(static_cast<int64_t>(i), 0)});
    FeedForward(weights_.layers[i], pass);
  }
  shown_layer_ = config_.layers;
  Combine(addend_, pass.tokens, config_.hidden_size, step_.hidden.data(),
          launch_);
  Show("hidden", pass.tokens, config_.hidden_size, step_.hidden.data());
}

void CudaModel::Logits(const Pass& pass, std::span<float> logits) {
  const DeviceLinear& head = weights_.lm_head;
  const int64_t vocab = config_.vocab_size;
  for (int64_t row = 0; row < pass.rows; row += step_.limits.logit_rows) {
    const int64_t rows = std::min(step_.limits.logit_rows, pass.rows - row);
    RmsNorm({.hidden = step_.hidden.data(),
             .hidden_stride = config_.hidden_size,
             .gain = weights_.final_norm.data(),
             .eps = config_.rms_norm_eps,
             .rows = rows,
             .size = config_.hidden_size,
             .row_ids = step_.device.row_ids + row,
             .inputs = {step_.inputs[0].Sink(head.input_dtype(),
                                             head.input_scale)}},
            launch_);
    Gemm(head.gemm, ColumnParallelLeaf(head.gemm.rows, head.gemm.columns),
         step_.inputs[0].As(head.input_dtype()), rows, GemmOutput::kFp32,
         step_.logits.data(), launch_);
    Check(cudaMemcpyAsync(logits.data() + row * vocab, step_.logits.data(),
                          rows * vocab * sizeof(float), cudaMemcpyDeviceToHost,
                          stream_.get()),
          "reading logits");
  }
}

std::vector<SliceHealth> CudaModel::Forward(
    std::span<const SequenceSlice> slices, KvCache& cache,
    std::span<float> logits) {
  if (slices.empty()) return {};
  CheckSlices(config_, kv_dtype_, slices, cache, logits);
  Check(cudaSetDevice(device_), "choosing the device");
  int64_t block_ids = 0;
  for (const SequenceSlice& slice : slices) block_ids += slice.block_ids.size();
  const absl::Status room = step_.ReserveBlockIds(block_ids);
  if (!room.ok()) Check(cudaErrorMemoryAllocation, "staging a step");

  std::vector<uint8_t> finite;
  int64_t rows = 0;
  for (Cursor cursor; cursor.slice < slices.size();) {
    const Pass pass = StagePass(slices, &cursor);
    RunLayers(pass, cache);
    Logits(pass, logits.subspan(rows * config_.vocab_size,
                                pass.rows * config_.vocab_size));
    Check(cudaMemcpyAsync(step_.finite_host.data(), step_.finite.data(),
                          pass.tokens, cudaMemcpyDeviceToHost, stream_.get()),
          "reading a step's health");
    stream_.Synchronize();
    if (observer_ && pass.rows > 0) {
      observer_({shown_layer_, "lm_head", pass.rows, config_.vocab_size,
                 logits.data() + rows * config_.vocab_size});
    }
    finite.insert(finite.end(), step_.finite_host.data(),
                  step_.finite_host.data() + pass.tokens);
    rows += pass.rows;
  }
  return Health(config_, slices, finite, logits);
}

}  // namespace invar::cuda
