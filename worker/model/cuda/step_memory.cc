#include "worker/model/cuda/step_memory.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "worker/kv/block_pool.h"
#include "worker/model/checkpoint/gpu_steps.h"
#include "worker/model/checkpoint/gpu_support.h"

namespace invar::cuda {
namespace {

constexpr char kWhat[] = "the memory of a step";

template <typename T>
void Grow(DeviceBuffer<T>* buffer, int64_t count, absl::Status* status) {
  if (!status->ok()) return;
  auto made = DeviceBuffer<T>::Allocate(count, kWhat);
  *status = made.status();
  if (made.ok()) *buffer = *std::move(made);
}

template <typename T>
void Grow(PinnedBuffer<T>* buffer, int64_t count, absl::Status* status) {
  if (!status->ok()) return;
  auto made = PinnedBuffer<T>::Allocate(count);
  *status = made.status();
  if (made.ok()) *buffer = *std::move(made);
}

void Grow(InputBuffer* buffer, int64_t rows, int64_t columns,
          absl::Status* status) {
  if (!status->ok() || rows == 0 || columns == 0) return;
  auto made = InputBuffer::Allocate(rows, columns);
  *status = made.status();
  if (made.ok()) *buffer = *std::move(made);
}

// Of SampledRow in what a step leaves; behind a flag a token.
constexpr int64_t SampledOffset(int64_t tokens) {
  return (tokens + 255) / 256 * 256;
}

// The largest workspace of any T up to `tokens`.
int64_t AttentionFloats(const ModelConfig& config, const StepLimits& limits) {
  int64_t most = 0;
  for (int64_t t = 1; t <= limits.tokens; ++t) {
    const int64_t floats = AttentionWorkspaceFloats(
        t, config.heads, LaunchPosition(limits.max_positions - 1));
    if (floats == 0) break;
    most = std::max(most, floats);
  }
  return most;
}

}  // namespace

absl::StatusOr<InputBuffer> InputBuffer::Allocate(int64_t rows,
                                                  int64_t columns) {
  InputBuffer buffer;
  buffer.columns_ = columns;
  auto data = DeviceBuffer<std::byte>::Allocate(rows * columns * 2, kWhat);
  if (!data.ok()) return data.status();
  buffer.data_ = *std::move(data);
  auto scales =
      DeviceBuffer<float>::Allocate(rows * ScaleBlocks(columns), kWhat);
  if (!scales.ok()) return scales.status();
  buffer.scales_ = *std::move(scales);
  const auto map = [&](WeightDtype dtype, GemmInput* input) {
    return MakeGemmInput(dtype, buffer.data_.data(), rows, columns, input);
  };
  if (!map(WeightDtype::kBf16, &buffer.bf16_) ||
      !map(WeightDtype::kFp16, &buffer.fp16_) ||
      !map(WeightDtype::kFp8E4m3, &buffer.fp8_)) {
    return absl::InternalError("the copy engine cannot describe a step");
  }
  buffer.fp8_dynamic_ = buffer.fp8_;
  buffer.fp8_dynamic_.scales = buffer.scales_.data();
  return buffer;
}

const GemmInput& InputBuffer::As(const InputKind& kind) const {
  switch (kind.dtype) {
    case WeightDtype::kFp8E4m3:
      return kind.dynamic == DynamicInputs::kNone ? fp8_ : fp8_dynamic_;
    case WeightDtype::kFp16:
      return fp16_;
    default:
      return bf16_;
  }
}

InputSink InputBuffer::Sink(const InputKind& kind) const {
  return {.data = data_.data(),
          .dtype = kind.dtype,
          .scale = kind.scale,
          .dynamic = kind.dynamic,
          .scales = scales_.data()};
}

InputRows InputBuffer::Rows(const InputKind& kind) const {
  return {.data = data_.data(),
          .row_bytes = columns_ * WeightElementBytes(kind.dtype),
          .scales = scales_.data(),
          .row_scales = kind.dynamic == DynamicInputs::kNone ? 0
                        : kind.dynamic == DynamicInputs::kToken
                            ? 1
                            : ScaleBlocks(columns_)};
}

int64_t StepMemory::BlockIds() const {
  return limits.sequences * BlocksFor(limits.max_positions);
}

int64_t StepMemory::StagedBytes(int64_t block_ids) const {
  return stride * (sizeof(SampleRow) + 6 * sizeof(int32_t)) +
         block_ids * sizeof(int32_t);
}

void StepMemory::Place(int64_t tokens, int64_t slot) {
  stride = tokens <= kGraphTokens ? kGraphTokens : limits.tokens;
  const auto places = [this](std::byte* base) {
    auto* const rows = reinterpret_cast<SampleRow*>(base);
    auto* const words = reinterpret_cast<int32_t*>(rows + stride);
    return Places{rows,
                  words,
                  words + stride,
                  words + 2 * stride,
                  words + 3 * stride,
                  words + 4 * stride,
                  words + 5 * stride,
                  words + 6 * stride};
  };
  host = places(staged_host[slot].data());
  device = places(staged.data());
}

int64_t StepMemory::ResultBytes(int64_t rows) const {
  return SampledOffset(limits.tokens) +
         rows * static_cast<int64_t>(sizeof(SampledRow));
}

StepMemory::Results StepMemory::ResultsAt(std::byte* base) const {
  return {reinterpret_cast<uint8_t*>(base),
          reinterpret_cast<SampledRow*>(base + SampledOffset(limits.tokens))};
}

absl::StatusOr<StepMemory> StepMemory::Allocate(const ModelConfig& config,
                                                const StepLimits& limits) {
  StepMemory m;
  m.limits = limits;
  const ModelConfig& c = config;
  const int64_t tokens = limits.tokens;
  const int64_t slots = tokens * c.router.top_k;
  absl::Status status;
  m.stride = std::max(tokens, kGraphTokens);
  for (PinnedBuffer<std::byte>& slot : m.staged_host) {
    Grow(&slot, m.StagedBytes(m.BlockIds()), &status);
  }
  Grow(&m.staged, m.StagedBytes(m.BlockIds()), &status);
  for (PinnedBuffer<std::byte>& slot : m.results_host) {
    Grow(&slot, m.ResultBytes(tokens), &status);
  }
  Grow(&m.results_memory, m.ResultBytes(tokens), &status);
  m.results = m.ResultsAt(m.results_memory.data());
  Grow(&m.hidden, tokens * c.hidden_size, &status);
  Grow(&m.normed, tokens * c.hidden_size, &status);
  Grow(&m.roots, tokens, &status);
  Grow(&m.q_a, tokens * c.q_lora_rank, &status);
  Grow(&m.q, tokens * c.heads * c.qk_head_dim(), &status);
  Grow(&m.kv_a, tokens * c.kv_row_elements(), &status);
  // In fp32, or packed for prompts.
  constexpr int64_t kFloat = sizeof(float);
  Grow(&m.query,
       std::max(tokens * c.heads * c.kv_row_elements(),
                (PackedQueryBytes(tokens, c.heads) + kFloat - 1) / kFloat),
       &status);
  Grow(&m.attended, tokens * c.heads * c.kv_lora_rank, &status);
  Grow(&m.attention_parts, AttentionFloats(c, limits), &status);
  // Of the longest sequence, and of a step of prompts.
  const int64_t tiles =
      (limits.max_positions + 2 * tokens) / kBlockTokens + kGraphTokens;
  Grow(&m.prompt_tiles, PromptAttentionBytes(tiles), &status);
  const int64_t widest = std::max({c.heads * c.v_head_dim, c.intermediate_size,
                                   c.shared_experts * c.moe_intermediate_size,
                                   c.router.top_k * c.moe_intermediate_size});
  Grow(&m.unquantised, tokens * widest, &status);
  Grow(&m.side_unquantised, tokens * c.shared_experts * c.moe_intermediate_size,
       &status);
  Grow(&m.projected, tokens * c.hidden_size, &status);
  Grow(&m.expert_ids, slots, &status);
  Grow(&m.expert_weights, slots, &status);
  Grow(&m.slots, slots * c.hidden_size, &status);
  Grow(&m.order, slots, &status);
  Grow(&m.counts, 2, &status);
  int64_t work = 0;
  for (int64_t t = 1; c.router.experts > 0 && t <= tokens; ++t) {
    work = std::max(work, MaxExpertWork(t, c.router.top_k, c.router.experts));
  }
  Grow(&m.work, work, &status);
  Grow(&m.logits, limits.logit_rows * c.vocab_size, &status);
  for (InputBuffer& input : m.inputs) {
    Grow(&input, tokens, c.hidden_size, &status);
  }
  Grow(&m.q_inputs, tokens, c.q_lora_rank, &status);
  Grow(&m.value_inputs, tokens, c.heads * c.v_head_dim, &status);
  Grow(&m.dense_inputs, tokens, c.dense_layers > 0 ? c.intermediate_size : 0,
       &status);
  Grow(&m.shared_inputs, tokens,
       c.layers > c.dense_layers ? c.shared_experts * c.moe_intermediate_size
                                 : 0,
       &status);
  const bool gathers = c.router.experts > 0 &&
                       GatherPays(tokens, c.router.top_k, c.router.experts);
  Grow(&m.gathered_inputs, gathers ? slots : 0, c.hidden_size, &status);
  Grow(&m.expert_inputs, slots, c.moe_intermediate_size, &status);
  if (absl::IsResourceExhausted(status)) return StepDoesNotFit(status);
  if (!status.ok()) return status;
  // The router's ticket begins at zero. What is copied to the host has gaps.
  status = ToStatus(FillOnDevice(m.counts.data(), 0, m.counts.bytes()), kWhat);
  if (!status.ok()) return status;
  status = ToStatus(
      FillOnDevice(m.results_memory.data(), 0, m.results_memory.bytes()),
      kWhat);
  if (!status.ok()) return status;
  return m;
}

}  // namespace invar::cuda
