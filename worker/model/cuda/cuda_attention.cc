// A layer's attention: from its norm to what it adds to the residual stream.
#include "kernels/cuda/check.h"
#include "kernels/cuda/free_split.h"
#include "worker/model/cuda/cuda_model.h"
#include "worker/model/cuda/fast_mode.h"

namespace invar::cuda {
namespace {

// From this many tokens on neighbours share the cache's tiles: fewer leave most
// of the GPU without a block of four. Free, since the bits are the same.
constexpr int64_t kPromptTokens = 512;

// Up to so many, mode FAST leaves q and kv_a to the launch that they share: the
// fastest way of each alone had lost 3 to 6% of a step.
constexpr int64_t kPairedTokens = 64;

}  // namespace

void CudaModel::Attention(const DeviceLayer& layer, const Pass& pass,
                          const KvLayer& cache) {
  const ModelConfig& c = config_;
  const int64_t tokens = pass.launched_tokens;
  const TokenPlaces places = Places(pass);
  const RopeAngles angles = Angles();
  const bool low_rank = layer.q_norm.size() > 0;
  const DeviceLinear& q_in = low_rank ? layer.q_a : layer.q;
  Norm(layer.input_norm, tokens, step_.inputs[0].Sink(q_in.input),
       step_.inputs[1].Sink(layer.kv_a.input));
  const auto leaf = [](const DeviceLinear& linear) {
    return ColumnParallelLeaf(linear.gemm);
  };
  // With kv_a beside it.
  const auto q_product = [&](const DeviceLinear& q, float* out) {
    const DeviceLinear& kv_a = layer.kv_a;
    const auto task = [&](const DeviceLinear& linear, const InputBuffer& x,
                          float* to) {
      return GemmTask{&linear.gemm, leaf(linear), &x.As(linear.input), to};
    };
    const auto is_ours = [&](const DeviceLinear& linear) {
      return Fast()->products->IsOurs(linear, tokens, GemmOutput::kFp32);
    };
    if (Fast() != nullptr && tokens > kPairedTokens &&
        !(is_ours(q) && is_ours(kv_a))) {
      Product(main_, q, leaf(q), step_.inputs[0], tokens, out);
      return Product(main_, kv_a, leaf(kv_a), step_.inputs[1], tokens,
                     step_.kv_a.data());
    }
    GemmPair(task(q, step_.inputs[0], out),
             task(kv_a, step_.inputs[1], step_.kv_a.data()), tokens,
             GemmOutput::kFp32, main_.Next());
  };
  if (low_rank) {
    q_product(layer.q_a, step_.q_a.data());
    ProjectLowRank(layer, tokens);
  } else {
    q_product(layer.q, step_.q.data());
  }
  Show("q", tokens, c.heads * c.qk_head_dim(), step_.q.data());
  Show("kv_a", tokens, c.kv_row_elements(), step_.kv_a.data());
  const CacheRows rows = NewRows(layer, cache);
  if (fast_pass_.has_prompts()) {
    KvAppend(main_.Next(), places, rows, angles);
    AttendToPrompts(layer, pass, places, angles, cache);
    return ProjectAttended(layer, tokens);
  }
  const float scale = attention_scale_ * cache.scale;
  // What an observer is shown lies packed between the kernels of prompts: it
  // sees the same bits by those of few tokens.
  if (tokens >= kPromptTokens && !observer_ &&
      PromptAttentionBytes(pass.block_ids) <= step_.prompt_tiles.bytes()) {
    const HeadProjection& v = layer.v_up.projection;
    const PackedQueries query =
        PackedQueriesIn(step_.query.data(), tokens, c.heads);
    const PackedAttended attended =
        PackedAttendedIn(step_.attended.data(), tokens, c.heads);
    std::byte* const workspace = step_.prompt_tiles.data();
    KvAppend(main_.Next(), places, rows, angles);
    // Before the queries, whose blocks leave it few multiprocessors.
    StagePrompts(main_.Next(), places, pass.block_ids, cache, workspace);
    PromptAbsorbQuery(main_.Next(), layer.k_up.projection, places, angles,
                      step_.q.data(), cache.dtype, query);
    PromptAttention(
        main_.Next(), places, pass.block_ids, query, v, scale, cache, workspace,
        attended,
        Fast() ? EqualSplits(pass.max_position + 1) : kAttentionSplits);
    Produce(main_, step_.value_inputs, layer.o.input, tokens, c.heads * kValue,
            [&](const InputSink& sink) {
              PromptAbsorbValue(main_.Next(), v, tokens, attended, sink);
            });
    return ProjectAttended(layer, tokens);
  }
  AbsorbQueryAndAppend(main_.Next(), layer.k_up.projection, places, angles,
                       step_.q.data(), step_.query.data(), rows);
  Show("absorb_query", tokens, c.heads * kRow, step_.query.data());
  AttendAbsorbed(layer, places, pass, cache);
}

TokenPlaces CudaModel::Places(const Pass& pass) const {
  return {.tokens = pass.launched_tokens,
          .positions = step_.device.positions,
          .tables = step_.device.tables,
          .block_ids = step_.device.block_ids};
}

CacheRows CudaModel::NewRows(const DeviceLayer& layer,
                             const KvLayer& cache) const {
  return {step_.kv_a.data(), layer.latent_norm.data(), config_.rms_norm_eps,
          cache, step_.results.finite};
}

void CudaModel::ProjectLowRank(const DeviceLayer& layer, int64_t tokens) {
  RmsNorm({.hidden = step_.q_a.data(),
           .hidden_stride = config_.q_lora_rank,
           .gain = layer.q_norm.data(),
           .eps = config_.rms_norm_eps,
           .rows = tokens,
           .size = config_.q_lora_rank,
           .inputs = {step_.q_inputs.Sink(layer.q.input)}},
          main_.Next());
  Product(main_, layer.q, ColumnParallelLeaf(layer.q.gemm), step_.q_inputs,
          tokens, step_.q.data());
}

void CudaModel::AttendAbsorbed(const DeviceLayer& layer,
                               const TokenPlaces& places, const Pass& pass,
                               const KvLayer& cache) {
  const ModelConfig& c = config_;
  const int64_t tokens = places.tokens;
  const float scale = attention_scale_ * cache.scale;
  // A graph begins when the steps before it have ended.
  LaunchOptions options = main_.Next();
  options.early = pass.decodes;
  AttentionParts parts;
  AttentionParts* const left = observer_ ? nullptr : &parts;
  if (const FastMode* fast = Fast()) {
    MlaAttention(options, places, pass.max_position, step_.query.data(),
                 c.heads, scale, cache, fast->attention_parts.data(),
                 step_.attended.data(),
                 FastAttentionSplits(tokens, c.heads, pass.max_position), left);
  } else {
    MlaAttention(options, places, pass.max_position, step_.query.data(),
                 c.heads, scale, cache, step_.attention_parts.data(),
                 step_.attended.data(), left);
  }
  Show("mla_attention", tokens, c.heads * kLatent, step_.attended.data());
  Produce(main_, step_.value_inputs, layer.o.input, tokens, c.heads * kValue,
          [&](const InputSink& sink) {
            AbsorbValue(main_.Next(), layer.v_up.projection, tokens,
                        step_.attended.data(), sink, parts);
          });
  if (observer_) {
    AbsorbValue(main_.Next(), layer.v_up.projection, tokens,
                step_.attended.data(), step_.unquantised.data());
    Show("absorb_value", tokens, c.heads * kValue, step_.unquantised.data());
  }
  ProjectAttended(layer, tokens);
}

void CudaModel::AttendToRows(const DeviceLayer& layer, const Pass& pass,
                             const KvLayer& cache) {
  const ModelConfig& c = config_;
  const int64_t tokens = pass.launched_tokens;
  const int64_t rows = pass.launched_rows;
  const StepMemory::Places& at = step_.device;
  const RopeAngles angles = Angles();
  Norm(layer.input_norm, tokens, step_.inputs[1].Sink(layer.kv_a.input),
       InputSink());
  Product(main_, layer.kv_a, ColumnParallelLeaf(layer.kv_a.gemm),
          step_.inputs[1], tokens, step_.kv_a.data());
  KvAppend(main_.Next(), Places(pass), NewRows(layer, cache), angles);
  if (rows == 0) return;
  const bool low_rank = layer.q_norm.size() > 0;
  const DeviceLinear& q = low_rank ? layer.q_a : layer.q;
  RmsNorm({.hidden = step_.hidden.data(),
           .hidden_stride = c.hidden_size,
           .gain = layer.input_norm.data(),
           .eps = c.rms_norm_eps,
           .rows = rows,
           .size = c.hidden_size,
           .row_ids = at.row_ids,
           .inputs = {step_.inputs[0].Sink(q.input)}},
          main_.Next());
  Product(main_, q, ColumnParallelLeaf(q.gemm), step_.inputs[0], rows,
          low_rank ? step_.q_a.data() : step_.q.data());
  if (low_rank) ProjectLowRank(layer, rows);
  const TokenPlaces places = {.tokens = rows,
                              .positions = at.row_positions,
                              .tables = at.row_tables,
                              .block_ids = at.block_ids};
  AbsorbQuery(main_.Next(), layer.k_up.projection, places, angles,
              step_.q.data(), step_.query.data());
  AttendAbsorbed(layer, places, pass, cache);
  // The rows of the residual stream move to its front, by way of memory that
  // is free: one's place can be another's.
  Embedding(WeightDtype::kFp32, step_.hidden.data(),
            StepTokens{.ids = at.row_ids}, rows, c.hidden_size,
            step_.normed.data(), main_.Next());
  Check(cudaMemcpyAsync(step_.hidden.data(), step_.normed.data(),
                        rows * c.hidden_size * sizeof(float),
                        cudaMemcpyDeviceToDevice, main_.stream()),
        "moving rows of the residual stream");
}

void CudaModel::ProjectAttended(const DeviceLayer& layer, int64_t tokens) {
  Product(main_, layer.o, RowParallelLeaf(layer.o.gemm.columns),
          step_.value_inputs, tokens, step_.projected.data());
  Show("o", tokens, config_.hidden_size, step_.projected.data());
  addend_ = {.shared = step_.projected.data()};
}

void CudaModel::AttendToPrompts(const DeviceLayer& layer, const Pass& pass,
                                const TokenPlaces& places,
                                const RopeAngles& angles,
                                const KvLayer& cache) {
  const int64_t heads = config_.heads;
  const float scale = attention_scale_ * cache.scale;
  const auto attend = [&](const InputSink& sink) {
    fast_->prompts->Attend(fast_pass_, &layer - weights_.layers.data(), places,
                           angles, step_.q.data(), scale, cache,
                           *fast_->products, sink, main_);
    for (const FastPass::Run& run : fast_pass_.rest) {
      const TokenPlaces some = {.tokens = run.tokens,
                                .positions = places.positions + run.first,
                                .tables = places.tables + run.first,
                                .block_ids = places.block_ids};
      const int64_t first = run.first * heads;
      InputSink rows = sink;
      rows.data = static_cast<std::byte*>(sink.data) +
                  first * kValue * WeightElementBytes(sink.dtype);
      AbsorbQuery(main_.Next(), layer.k_up.projection, some, angles,
                  step_.q.data() + first * config_.qk_head_dim(),
                  step_.query.data());
      MlaAttention(
          main_.Next(), some, pass.max_position, step_.query.data(), heads,
          scale, cache, fast_->attention_parts.data(), step_.attended.data(),
          FastAttentionSplits(run.tokens, heads, pass.max_position), nullptr);
      AbsorbValue(main_.Next(), layer.v_up.projection, run.tokens,
                  step_.attended.data(), rows);
    }
  };
  Produce(main_, step_.value_inputs, layer.o.input, pass.launched_tokens,
          heads * kValue, attend);
}

}  // namespace invar::cuda
