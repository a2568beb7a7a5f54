#include "worker/model/cuda/fast_prompts.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "kernels/cuda/check.h"

namespace invar::cuda {
namespace {

constexpr char kWhat[] = "what mode FAST's prompts need";
// Of longer contexts the absorbed form serves: their keys and values would take
// gigabytes.
constexpr int64_t kMostRows = int64_t{1} << 15;

}  // namespace

absl::StatusOr<std::unique_ptr<FastPrompts>> FastPrompts::Make(
    const ModelConfig& config, const DeviceWeights& weights,
    const StepLimits& limits) {
  std::unique_ptr<FastPrompts> made(new FastPrompts);
  const int64_t heads = config.heads;
  made->heads_ = heads;
  const int64_t outputs = heads * (kNope + kValue);
  const int64_t layers = static_cast<int64_t>(weights.layers.size());
  // Each sequence's rows are rounded up.
  made->row_capacity_ = std::min(limits.max_positions, kMostRows) +
                        limits.tokens + kMhaSequences * kMhaRows;
  absl::Status status;
  const auto allocate = [&](int64_t count, DeviceBuffer<__nv_bfloat16>* to) {
    if (!status.ok()) return;
    auto buffer = DeviceBuffer<__nv_bfloat16>::Allocate(count, kWhat);
    status = buffer.status();
    if (buffer.ok()) *to = *std::move(buffer);
  };
  allocate(made->row_capacity_ * kRope, &made->rope_keys_);
  allocate(made->row_capacity_ * outputs, &made->keys_values_);
  allocate(limits.tokens * heads * (kNope + kRope), &made->query_);
  if (!status.ok()) return status;
  auto latents = InputBuffer::Allocate(made->row_capacity_, kLatent);
  if (!latents.ok()) return latents.status();
  made->latents_ = *std::move(latents);
  const auto map = [](const DeviceBuffer<__nv_bfloat16>& of, int64_t columns,
                      GemmInput* to) {
    return MakeGemmInput(WeightDtype::kBf16, of.data(), of.size() / columns,
                         columns, to);
  };
  bool mapped = map(made->rope_keys_, kRope, &made->rope_keys_input_) &&
                map(made->keys_values_, outputs, &made->keys_values_input_) &&
                map(made->query_, heads * (kNope + kRope), &made->query_input_);
  Stream stream;
  for (int64_t i = 0; i < layers; ++i) {
    const HeadProjection& k = weights.layers[i].k_up.projection;
    const HeadProjection& v = weights.layers[i].v_up.projection;
    DeviceLinear& linear = made->kv_b_.emplace_back();
    auto data = DeviceBuffer<std::byte>::Allocate(
        outputs * kLatent * static_cast<int64_t>(sizeof(__nv_bfloat16)), kWhat);
    if (!data.ok()) return data.status();
    linear.data = *std::move(data);
    MhaWeights({.stream = stream.get()}, k, v,
               reinterpret_cast<__nv_bfloat16*>(linear.data.data()));
    mapped &= MakeGemmWeight(WeightDtype::kBf16, linear.data.data(), outputs,
                             kLatent, &linear.gemm);
    linear.gemm.scale = k.scale;
    made->value_scales_.push_back(v.scale / k.scale);
  }
  stream.Synchronize();
  if (!mapped) {
    return absl::InternalError("the copy engine cannot describe a prompt");
  }
  return made;
}

FastPass FastPrompts::Divide(const StepMemory::Places& host,
                             int64_t tokens) const {
  FastPass pass;
  int64_t end = 0;
  for (int64_t first = 0; first < tokens; first = end) {
    while (end < tokens && host.tables[end] == host.tables[first]) ++end;
    const int64_t count = end - first;
    const int64_t position = host.positions[first];
    const MhaSequence sequence = {
        .first_token = static_cast<int32_t>(first),
        .tokens = static_cast<int32_t>(count),
        .first_position = static_cast<int32_t>(position),
        .table = host.tables[first]};
    const int64_t rows = MhaSequences::RowsOf(sequence);
    const int64_t meetings = count * (position + 1) + count * (count - 1) / 2;
    if (meetings >= kMeetings * rows && pass.prompts.count < kMhaSequences &&
        pass.prompts.rows + rows <= row_capacity_) {
      pass.prompts.Add(sequence);
    } else if (!pass.rest.empty() &&
               pass.rest.back().first + pass.rest.back().tokens == first) {
      pass.rest.back().tokens += count;
    } else {
      pass.rest.push_back({first, count});
    }
  }
  return pass;
}

void FastPrompts::Attend(const FastPass& pass, int64_t layer,
                         const TokenPlaces& places, const RopeAngles& angles,
                         const float* q, float scale, const KvLayer& cache,
                         const FastProducts& products, const InputSink& out,
                         Lane& lane) const {
  const MhaSequences& prompts = pass.prompts;
  MhaQuery(lane.Next(), places, angles, heads_, q, query_.data());
  const DeviceLinear& kv_b = kv_b_[layer];
  MhaGather(lane.Next(), prompts, places.block_ids, cache,
            static_cast<__nv_bfloat16*>(latents_.Rows(kv_b.input).data),
            rope_keys_.data());
  products.Product(kv_b, latents_, prompts.rows, GemmOutput::kBf16,
                   keys_values_.data(), lane, 0);
  MhaAttention(lane.Next(), prompts, heads_, scale, value_scales_[layer],
               query_input_, keys_values_input_, rope_keys_input_, out);
}

}  // namespace invar::cuda
