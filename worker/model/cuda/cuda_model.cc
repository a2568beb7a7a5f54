#include "worker/model/cuda/cuda_model.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/support.h"
#include "kernels/ops.h"
#include "worker/model/checkpoint/gpu_steps.h"
#include "worker/model/checkpoint/memory_needs.h"
#include "worker/model/slices.h"
#include "worker/model/weights.h"

namespace invar::cuda {
namespace {

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
    const LoadOptions& options, const Options& cuda_options) {
  const absl::StatusOr<DeviceFacts> facts = UseDevice(cuda_options.device);
  if (!facts.ok()) return facts.status();
  absl::Status status = SupportsKv(options.kv_dtype);
  if (!status.ok()) return status;
  std::optional<DeviceStore> store;
  absl::StatusOr<CheckedModel> checked =
      LoadChecked(options.path, {.progress = options.progress},
                  [&](const ModelConfig& config) {
                    return &store.emplace(config, cuda_options.device);
                  });
  if (!checked.ok()) return checked.status();
  const ModelConfig& config = checked->config;
  absl::StatusOr<DeviceWeights> weights = Upload(
      ReadWeights(config, checked->checkpoint, options.kv_dtype), *store);
  if (!weights.ok()) return weights.status();
  const int64_t positions = ContextTokens(config, options);
  absl::StatusOr<StepMemory> memory = StepMemory::Allocate(
      config, {.tokens = options.step_tokens,
               .sequences = options.step_sequences,
               .logit_rows = std::min(kLogitRows, options.step_tokens),
               .max_positions = positions});
  if (!memory.ok()) return memory.status();
  std::unique_ptr<CudaModel> model(
      new CudaModel(config, checked->checkpoint.digest(), options.kv_dtype,
                    cuda_options, *std::move(weights), *std::move(memory)));
  status =
      UploadAngles(model->rope_, positions, &model->cosines_, &model->sines_);
  if (!status.ok()) return status;
  if (!options.deterministic) {
    absl::StatusOr<std::unique_ptr<FastMode>> fast =
        FastMode::Make(config, model->weights_, model->step_);
    if (!fast.ok()) return fast.status();
    model->fast_ = *std::move(fast);
    model->plan_ = Plan::kFast;
  }
  return model;
}

void CudaModel::UsePlan(Plan plan) {
  if (plan == plan_ || (plan != Plan::kDeterministic && fast_ == nullptr)) {
    return;
  }
  Check(cudaSetDevice(options_.device), "choosing the device");
  main_.Synchronize();
  graphs_.Clear();
  plan_ = plan;
}

CudaModel::CudaModel(const ModelConfig& config, std::string weights_digest,
                     KvDtype kv_dtype, const Options& options,
                     DeviceWeights weights, StepMemory memory)
    : config_(config),
      weights_digest_(std::move(weights_digest)),
      kv_dtype_(kv_dtype),
      options_(options),
      rope_(cpu::MakeRopeTable(config_.qk_rope_head_dim, config_.rope_theta,
                               config_.rope_scaling)),
      attention_scale_(AttentionScale(config_, rope_)),
      weights_(std::move(weights)),
      step_(std::move(memory)) {}

int64_t CudaModel::ReservedBytes() const {
  const int64_t bytes =
      GpuReservedBytes(config_, {.context = step_.limits.max_positions,
                                 .sequences = step_.limits.sequences,
                                 .step_tokens = step_.limits.tokens});
  return bytes + (fast_ == nullptr ? 0 : FastMode::kReservedBytes);
}

int64_t CudaModel::MaxKvBlocks() const {
  size_t free = 0;
  size_t total = 0;
  Check(cudaSetDevice(options_.device), "choosing the device");
  Check(cudaMemGetInfo(&free, &total), "asking for the device's memory");
  const int64_t left = static_cast<int64_t>(free) - ReservedBytes();
  return std::max<int64_t>(left, 0) /
         KvCache::BlockBytes(kv_dtype_, config_.layers, kRow);
}

std::unique_ptr<KvCache> CudaModel::NewKvCache(int64_t blocks) const {
  void* data = nullptr;
  Check(cudaSetDevice(options_.device), "choosing the device");
  const int64_t bytes = KvCache::Bytes(kv_dtype_, config_.layers, blocks, kRow);
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (absl::IsResourceExhausted(ToStatus(error, "the KV cache"))) {
    return nullptr;
  }
  Check(error, "allocating the KV cache");
  Check(FillOnDevice(data, 0, bytes), "clearing the KV cache");
  return std::make_unique<KvCache>(
      kv_dtype_, config_.layers, blocks, kRow,
      KvCache::Storage(static_cast<std::byte*>(data),
                       [](std::byte* bytes) { cudaFree(bytes); }));
}

template <typename T>
std::vector<T> CudaModel::Read(const T* values, int64_t count) {
  std::vector<T> host(count);
  main_.Synchronize();
  Check(cudaMemcpy(host.data(), values, count * sizeof(T),
                   cudaMemcpyDeviceToHost),
        "showing an operation");
  return host;
}

void CudaModel::Show(std::string_view op, int64_t rows, int64_t row_size,
                     const float* values) {
  if (!observer_) return;
  const std::vector<float> host = Read(values, rows * row_size);
  observer_({shown_layer_, op, rows, row_size, host.data()});
}

void CudaModel::Show(std::string_view op, int64_t rows, int64_t row_size,
                     const __nv_bfloat16* values) {
  if (!observer_) return;
  const std::vector<__nv_bfloat16> host = Read(values, rows * row_size);
  const std::vector<float> shown(host.begin(), host.end());
  observer_({shown_layer_, op, rows, row_size, shown.data()});
}

void CudaModel::ShowChoices(int64_t tokens) {
  if (!observer_) return;
  const int64_t top_k = config_.router.top_k;
  const std::vector<int32_t> ids =
      Read(step_.expert_ids.data(), tokens * top_k);
  const std::vector<float> shown(ids.begin(), ids.end());
  observer_({shown_layer_, "chosen", tokens, top_k, shown.data()});
}

void CudaModel::Norm(const DeviceBuffer<float>& gain, int64_t tokens,
                     const InputSink& first, const InputSink& second,
                     bool routed) {
  const bool router_norms = RouterNorms(tokens, config_.hidden_size);
  RmsNorm({.hidden = step_.hidden.data(),
           .hidden_stride = config_.hidden_size,
           .addend = addend_,
           .gain = gain.data(),
           .eps = config_.rms_norm_eps,
           .rows = tokens,
           .size = config_.hidden_size,
           .normed = routed && !router_norms ? step_.normed.data() : nullptr,
           .roots = routed && router_norms ? step_.roots.data() : nullptr,
           .inputs = {first, second}},
          main_.Next());
  addend_ = {};
  Show("hidden", tokens, config_.hidden_size, step_.hidden.data());
}

Lane& CudaModel::Fork() {
  if (observer_) return main_;  // An operation is shown when it is done.
  side_.Follow(main_);
  return side_;
}

void CudaModel::Product(Lane& lane, const DeviceLinear& linear, int64_t leaf,
                        const InputBuffer& x, int64_t tokens, float* out) {
  Product(lane, linear, leaf, x, tokens, GemmOutput::kFp32, out);
}

void CudaModel::Product(Lane& lane, const DeviceLinear& linear, int64_t leaf,
                        const InputBuffer& x, int64_t tokens,
                        __nv_bfloat16* out) {
  Product(lane, linear, leaf, x, tokens, GemmOutput::kBf16, out);
}

void CudaModel::Product(Lane& lane, const DeviceLinear& linear, int64_t leaf,
                        const InputBuffer& x, int64_t tokens, GemmOutput type,
                        void* out) {
  if (const FastMode* fast = Fast()) {
    return fast->products->Product(linear, x, tokens, type, out, lane,
                                   &lane == &main_ ? 0 : 1);
  }
  Gemm(linear.gemm, leaf, x.As(linear.input), tokens, type, out, lane.Next());
}

InputSink CudaModel::Unquantised(const InputBuffer& to, const InputKind& kind,
                                 const DeviceBuffer<float>& values) {
  if (kind.dynamic == DynamicInputs::kNone) return to.Sink(kind);
  return {.data = values.data(), .dtype = WeightDtype::kFp32};
}

void CudaModel::Quantise(Lane& lane, const InputBuffer& to,
                         const InputKind& kind, int64_t rows, int64_t columns,
                         const InputSink& from) {
  if (kind.dynamic == DynamicInputs::kNone) return;
  QuantizeInputs(static_cast<const float*>(from.data), rows, columns,
                 to.Sink(kind), lane.Next());
}

void CudaModel::Produce(Lane& lane, const InputBuffer& to,
                        const InputKind& kind, int64_t rows, int64_t columns,
                        const std::function<void(const InputSink&)>& produce) {
  const InputSink values = Unquantised(
      to, kind, &lane == &main_ ? step_.unquantised : step_.side_unquantised);
  produce(values);
  Quantise(lane, to, kind, rows, columns, values);
}

void CudaModel::FeedForward(const DeviceLayer& layer, int64_t tokens) {
  const DeviceMlp& mlp = layer.mlp;
  const DeviceExperts& experts = layer.experts;
  const InputBuffer& inner =
      layer.has_experts ? step_.shared_inputs : step_.dense_inputs;
  Norm(layer.attention_norm, tokens, step_.inputs[0].Sink(mlp.gate_up.input),
       layer.has_experts ? step_.inputs[1].Sink(experts.gate_up.input)
                         : InputSink(),
       /*routed=*/layer.has_experts);
  const GemmInput& x = step_.inputs[0].As(mlp.gate_up.input);
  const auto gate_up_and_down = [&](Lane& lane) {
    Produce(lane, inner, mlp.down.input, tokens, mlp.inner,
            [&](const InputSink& sink) {
              if (const FastMode* fast = Fast()) {
                return fast->products->SwiGlu(mlp, step_.inputs[0], tokens,
                                              sink, lane,
                                              &lane == &main_ ? 0 : 1);
              }
              GemmSwiGlu(mlp.gate_up.gemm, mlp.up_scale, x, tokens, sink,
                         lane.Next());
            });
    Product(lane, mlp.down, RowParallelLeaf(mlp.down.gemm.columns), inner,
            tokens, step_.projected.data());
    Show("mlp", tokens, config_.hidden_size, step_.projected.data());
  };
  if (layer.has_experts && InOneLane(mlp, tokens)) {
    const InputSink values =
        Unquantised(inner, mlp.down.input, step_.side_unquantised);
    const SwiGluTask beside = {&mlp.gate_up.gemm, mlp.up_scale, &x, values};
    // Gates, so that each finds complete what is older than the kernel before:
    // what is beside gate and up the norm, down the plan, and the shared down
    // all of gate and up.
    Route(layer, tokens, /*gate=*/true);
    ExpertsUp(experts, tokens, &beside);
    Quantise(main_, inner, mlp.down.input, tokens, mlp.inner, values);
    ExpertsEnd(experts, tokens, /*in_one_lane=*/true);
    LaunchOptions options = main_.Next();
    options.early = true;
    Gemm(mlp.down.gemm, RowParallelLeaf(mlp.down.gemm.columns),
         inner.As(mlp.down.input), tokens, GemmOutput::kBf16,
         step_.projected.data(), options);
  } else if (layer.has_experts) {
    // The experts' own branch is longer, and does not need the shared ones'.
    Lane& lane = Fork();
    gate_up_and_down(lane);
    Route(layer, tokens, /*gate=*/false);
    ExpertsUp(experts, tokens, nullptr);
    ExpertsEnd(experts, tokens, /*in_one_lane=*/false);
    main_.Follow(lane);
  } else {
    gate_up_and_down(main_);
  }
  addend_ = {.shared = step_.projected.data()};
  if (!layer.has_experts) return;
  addend_.slots = step_.slots.data();
  addend_.weights = step_.expert_weights.data();
  addend_.top_k = config_.router.top_k;
}

bool CudaModel::InOneLane(const DeviceMlp& mlp, int64_t tokens) const {
  // The kernels for many tokens know nothing of it.
  constexpr int kLargestTile = 64;
  const FastMode* const fast = Fast();
  if (fast != nullptr &&
      !(fast->products->IsOurs(mlp, tokens) &&
        fast->products->IsOurs(mlp.down, tokens, GemmOutput::kBf16))) {
    return false;
  }
  return tokens <= kGraphTokens && !observer_ &&
         ExpertTile(tokens, config_.router.top_k, config_.router.experts) <=
             kLargestTile;
}

void CudaModel::Route(const DeviceLayer& layer, int64_t tokens, bool gate) {
  const ModelConfig& c = config_;
  const DeviceExperts& experts = layer.experts;
  const RouterInput x =
      RouterNorms(tokens, c.hidden_size)
          ? RouterInput(step_.hidden.data(), step_.roots.data(),
                        layer.attention_norm.data())
          : RouterInput(step_.normed.data());
  LaunchOptions options = main_.Next();
  options.gate = gate;
  Router(c.router, experts.router_dtype, experts.router.data(), c.hidden_size,
         x, tokens, step_.expert_ids.data(), step_.expert_weights.data(),
         step_.plan(), options, /*tile=*/0, experts.correction.data());
  Show("router", tokens, c.router.top_k, step_.expert_weights.data());
  ShowChoices(tokens);
}

void CudaModel::ExpertsUp(const DeviceExperts& experts, int64_t tokens,
                          const SwiGluTask* beside) {
  const ModelConfig& c = config_;
  const int64_t top_k = c.router.top_k;
  const InputKind& kind = experts.gate_up.input;
  const bool gather = GatherPays(tokens, top_k, c.router.experts);
  if (gather) {
    GatherInputs(step_.inputs[1].Rows(kind), step_.plan(), tokens, top_k,
                 step_.gathered_inputs.Rows(kind), main_.Next());
  }
  const InputBuffer& inputs = gather ? step_.gathered_inputs : step_.inputs[1];
  Produce(main_, step_.expert_inputs, experts.down.input, tokens * top_k,
          experts.grouped.inner, [&](const InputSink& sink) {
            LaunchOptions options = main_.Next();
            options.early = options.gate = beside != nullptr;
            ExpertsGateUp(experts.grouped, inputs.As(kind), step_.plan(),
                          tokens, top_k, sink, options, /*tile=*/0, gather,
                          beside);
          });
}

void CudaModel::ExpertsEnd(const DeviceExperts& experts, int64_t tokens,
                           bool in_one_lane) {
  const int64_t top_k = config_.router.top_k;
  LaunchOptions options = main_.Next();
  options.early = options.gate = in_one_lane;
  ExpertsDown(experts.grouped, step_.expert_inputs.As(experts.down.input),
              step_.plan(), tokens, top_k, step_.slots.data(), options);
  Show("experts", tokens, top_k * config_.hidden_size, step_.slots.data());
}

void CudaModel::BeginLayers(const Pass& pass) {
  addend_ = {};
  shown_layer_ = -1;
  fast_pass_ = plan_ == Plan::kFast && !pass.decodes
                   ? fast_->prompts->Divide(step_.host, pass.launched_tokens)
                   : FastPass();
  cuda::Embedding(weights_.embedding_dtype, weights_.embedding.data(),
                  StepTokens{.ids = step_.device.ids,
                             .sampled = step_.results.sampled,
                             .finite = step_.results.finite},
                  pass.launched_tokens, config_.hidden_size,
                  step_.hidden.data(), main_.Next());
}

void CudaModel::RunLayers(const Pass& pass, KvCache& cache, int64_t first,
                          int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    shown_layer_ = i;
    const DeviceLayer& layer = weights_.layers[i];
    const KvLayer kv = {kv_dtype_, cache.Block(i, 0), layer.kv_scale};
    if (i + 1 == config_.layers && pass.ends_with_rows) {
      AttendToRows(layer, pass, kv);
      if (pass.last_tokens() > 0) FeedForward(layer, pass.last_tokens());
    } else {
      Attention(layer, pass, kv);
      FeedForward(layer, pass.launched_tokens);
    }
  }
}

void CudaModel::EndLayers(const Pass& pass) {
  shown_layer_ = config_.layers;
  Combine(addend_, pass.last_tokens(), config_.hidden_size, step_.hidden.data(),
          main_.Next());
  addend_ = {};
  Show("hidden", pass.launched_tokens, config_.hidden_size,
       step_.hidden.data());
}

void CudaModel::RunRows(const Pass& pass, const RowSink& sink) {
  const DeviceLinear& head = weights_.lm_head;
  for (int64_t row = 0; row < pass.launched_rows;
       row += step_.limits.logit_rows) {
    const int64_t rows =
        std::min(step_.limits.logit_rows, pass.launched_rows - row);
    const bool first_ones = pass.ends_with_rows;
    RmsNorm({.hidden = step_.hidden.data() +
                       (first_ones ? row * config_.hidden_size : 0),
             .hidden_stride = config_.hidden_size,
             .gain = weights_.final_norm.data(),
             .eps = config_.rms_norm_eps,
             .rows = rows,
             .size = config_.hidden_size,
             .row_ids = first_ones ? nullptr : step_.device.row_ids + row,
             .inputs = {step_.inputs[0].Sink(head.input)}},
            main_.Next());
    Product(main_, head, ColumnParallelLeaf(head.gemm), step_.inputs[0], rows,
            step_.logits.data());
    sink(row, rows);
  }
}

std::vector<SliceHealth> CudaModel::Forward(
    std::span<const SequenceSlice> slices, KvCache& cache,
    std::span<float> logits) {
  if (slices.empty()) return {};
  BeginStep(slices, cache, static_cast<int64_t>(logits.size()));
  const int64_t vocab = config_.vocab_size;
  std::vector<uint8_t> finite;
  float* out = logits.data();
  for (Cursor cursor; cursor.slice < slices.size();) {
    constexpr int64_t kSlot = 0;  // Nothing is in flight.
    Pass pass = StagePass(slices, kSlot, &cursor);
    CopyStaged(pass, kSlot);
    pass.launched_tokens = pass.tokens;
    pass.launched_rows = pass.rows;
    BeginLayers(pass);
    RunLayers(pass, cache, 0, config_.layers);
    EndLayers(pass);
    RunRows(pass, [&](int64_t first, int64_t count) {
      Check(cudaMemcpyAsync(out + first * vocab, step_.logits.data(),
                            count * vocab * sizeof(float),
                            cudaMemcpyDeviceToHost, main_.stream()),
            "reading logits");
    });
    CopyResults(pass, kSlot);
    main_.Synchronize();
    const uint8_t* const flags = step_.HostResults(kSlot).finite;
    finite.insert(finite.end(), flags, flags + pass.tokens);
    if (observer_ && pass.rows > 0) {
      observer_({shown_layer_, "lm_head", pass.rows, vocab, out});
    }
    out += pass.rows * vocab;
  }
  return Health(SizesOf(slices), finite, FiniteRows(config_, logits));
}

}  // namespace invar::cuda
