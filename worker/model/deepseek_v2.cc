#include "worker/model/deepseek_v2.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>

#include "worker/model/slices.h"

namespace invar {
namespace {

// Default rounding and no flush to zero while a step runs, whatever the
// calling thread had set.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloatingPoint() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
};

}  // namespace

void DeepseekV2::BeginStep(std::span<const SequenceSlice> slices,
                           Step& s) const {
  s.ids.clear();
  s.positions.clear();
  s.places.clear();
  for (const SequenceSlice& slice : slices) {
    for (size_t i = 0; i < slice.token_ids.size(); ++i) {
      const int64_t position = slice.first_position + static_cast<int64_t>(i);
      s.ids.push_back(slice.token_ids[i]);
      s.positions.push_back(position);
      s.places.push_back({slice.block_ids.data(), position});
    }
  }
  const ModelConfig& c = config_;
  const int64_t tokens = s.tokens();
  const int64_t inner =
      std::max(c.intermediate_size, c.shared_experts * c.moe_intermediate_size);
  s.finite.assign(tokens, 1);
  s.cosines.resize(tokens * c.qk_rope_head_dim / 2);
  s.sines.resize(tokens * c.qk_rope_head_dim / 2);
  s.hidden.resize(tokens * c.hidden_size);
  s.normed.resize(tokens * c.hidden_size);
  s.q_a.resize(tokens * c.q_lora_rank);
  s.q.resize(tokens * c.heads * c.qk_head_dim());
  s.kv_a.resize(tokens * c.kv_row_elements());
  s.latent.resize(tokens * c.kv_lora_rank);
  s.query.resize(tokens * c.heads * c.kv_row_elements());
  s.attended.resize(tokens * c.heads * c.kv_lora_rank);
  s.values.resize(tokens * c.heads * c.v_head_dim);
  s.projected.resize(tokens * c.hidden_size);
  s.gate.resize(tokens * inner);
  s.up.resize(tokens * inner);
  s.expert_ids.resize(tokens * c.router.top_k);
  s.expert_weights.resize(tokens * c.router.top_k);
  s.slots.resize(tokens * c.router.top_k * c.hidden_size);
}

void DeepseekV2::Attention(const LayerWeights& layer, const cpu::KvLayer& cache,
                           Step& s) const {
  const ModelConfig& c = config_;
  const int64_t tokens = s.tokens();
  cpu::RmsNorm(*s.pool, s.hidden.data(), c.hidden_size, layer.input_norm.data(),
               c.rms_norm_eps, tokens, c.hidden_size, s.normed.data(),
               c.hidden_size);
  Show("input_norm", tokens, c.hidden_size, s.normed.data());
  if (c.q_lora_rank == 0) {
    cpu::Linear(*s.pool, layer.q, s.normed.data(), tokens, s.q.data());
  } else {
    cpu::Linear(*s.pool, layer.q_a, s.normed.data(), tokens, s.q_a.data());
    cpu::RmsNorm(*s.pool, s.q_a.data(), c.q_lora_rank, layer.q_norm.data(),
                 c.rms_norm_eps, tokens, c.q_lora_rank, s.q_a.data(),
                 c.q_lora_rank);
    cpu::Linear(*s.pool, layer.q_b, s.q_a.data(), tokens, s.q.data());
  }
  cpu::RopeApply(*s.pool, s.cosines.data(), s.sines.data(), tokens, c.heads,
                 c.qk_rope_head_dim, s.q.data() + c.qk_nope_head_dim,
                 c.heads * c.qk_head_dim(), c.qk_head_dim());
  Show("q", tokens, c.heads * c.qk_head_dim(), s.q.data());

  cpu::Linear(*s.pool, layer.kv_a, s.normed.data(), tokens, s.kv_a.data());
  float* k_pe = s.kv_a.data() + c.kv_lora_rank;
  cpu::RopeApply(*s.pool, s.cosines.data(), s.sines.data(), tokens, /*heads=*/1,
                 c.qk_rope_head_dim, k_pe, c.kv_row_elements(), 0);
  cpu::RmsNorm(*s.pool, s.kv_a.data(), c.kv_row_elements(),
               layer.latent_norm.data(), c.rms_norm_eps, tokens, c.kv_lora_rank,
               s.latent.data(), c.kv_lora_rank);
  Show("kv_a", tokens, c.kv_row_elements(), s.kv_a.data());
  Show("latent", tokens, c.kv_lora_rank, s.latent.data());
  // Every token of the step is in the cache before any token attends, and is
  // read back from it: the same path for a chunk's own tokens and for older.
  cpu::KvAppend(*s.pool, s.places, s.latent.data(), k_pe, c.kv_row_elements(),
                cache, s.finite.data());

  cpu::AbsorbQuery(*s.pool, layer.kv_b, s.q.data(), tokens, s.query.data());
  Show("absorb_query", tokens, c.heads * c.kv_row_elements(), s.query.data());
  cpu::MlaAttention(*s.pool, s.places, s.query.data(), c.heads,
                    attention_scale_ * layer.kv_scale, cache,
                    s.attended.data());
  Show("mla_attention", tokens, c.heads * c.kv_lora_rank, s.attended.data());
  cpu::AbsorbValue(*s.pool, layer.kv_b, s.attended.data(), tokens,
                   s.values.data());
  Show("absorb_value", tokens, c.heads * c.v_head_dim, s.values.data());
  cpu::LinearRowParallel(*s.pool, layer.o, s.values.data(), tokens,
                         s.projected.data());
  Show("o", tokens, c.hidden_size, s.projected.data());
  cpu::AddInto(*s.pool, s.projected.data(), tokens * c.hidden_size,
               s.hidden.data());
}

void DeepseekV2::RunMlp(const MlpWeights& mlp, const float* x, Step& s,
                        float* out) const {
  const int64_t tokens = s.tokens();
  cpu::Linear(*s.pool, mlp.gate, x, tokens, s.gate.data());
  cpu::Linear(*s.pool, mlp.up, x, tokens, s.up.data());
  cpu::SiluMul(*s.pool, s.gate.data(), s.up.data(), tokens * mlp.gate.rows,
               s.gate.data());
  cpu::LinearRowParallel(*s.pool, mlp.down, s.gate.data(), tokens, out);
}

void DeepseekV2::FeedForward(const LayerWeights& layer, Step& s) const {
  const ModelConfig& c = config_;
  const int64_t tokens = s.tokens();
  cpu::RmsNorm(*s.pool, s.hidden.data(), c.hidden_size,
               layer.attention_norm.data(), c.rms_norm_eps, tokens,
               c.hidden_size, s.normed.data(), c.hidden_size);
  Show("attention_norm", tokens, c.hidden_size, s.normed.data());
  RunMlp(layer.mlp, s.normed.data(), s, s.projected.data());
  Show("mlp", tokens, c.hidden_size, s.projected.data());
  if (layer.experts.empty()) {
    cpu::AddInto(*s.pool, s.projected.data(), tokens * c.hidden_size,
                 s.hidden.data());
    return;
  }
  cpu::Router(*s.pool, c.router, layer.router,
              layer.correction.empty() ? nullptr : layer.correction.data(),
              s.normed.data(), tokens, s.expert_ids.data(),
              s.expert_weights.data());
  Show("router", tokens, c.router.top_k, s.expert_weights.data());
  cpu::Experts(*s.pool, layer.experts, s.normed.data(), tokens,
               s.expert_ids.data(), c.router.top_k, s.slots.data());
  Show("experts", tokens, c.router.top_k * c.hidden_size, s.slots.data());
  cpu::Combine(*s.pool, s.projected.data(), s.slots.data(),
               s.expert_weights.data(), tokens, c.router.top_k, c.hidden_size,
               s.hidden.data());
}

void DeepseekV2::Logits(std::span<const SequenceSlice> slices, Step& s,
                        std::span<float> logits) const {
  const int64_t hidden = config_.hidden_size;
  int64_t rows = 0;
  int64_t end = 0;  // of the slice's tokens among the step's
  for (const SequenceSlice& slice : slices) {
    end += static_cast<int64_t>(slice.token_ids.size());
    for (int64_t t = end - slice.logit_rows; t < end; ++t, ++rows) {
      // Rows only move down: those above have been read.
      std::copy_n(&s.hidden[t * hidden], hidden, &s.hidden[rows * hidden]);
    }
  }
  if (rows == 0) return;
  cpu::RmsNorm(*s.pool, s.hidden.data(), hidden, weights_.final_norm.data(),
               config_.rms_norm_eps, rows, hidden, s.normed.data(), hidden);
  cpu::Linear(*s.pool, weights_.lm_head, s.normed.data(), rows, logits.data());
  Show("lm_head", rows, config_.vocab_size, logits.data());
}

std::vector<SliceHealth> DeepseekV2::Compute(
    std::span<const SequenceSlice> slices, KvCache& cache, Step& s,
    std::span<float> logits) {
  BeginStep(slices, s);
  const int64_t pairs = config_.qk_rope_head_dim / 2;
  // A pair's sine and cosine are computed in double.
  s.pool->ParallelForRows(
      s.tokens(), 128 * pairs, [&](int64_t begin, int64_t end) {
        cpu::RopeAngles(
            rope_, std::span(s.positions).subspan(begin, end - begin),
            s.cosines.data() + begin * pairs, s.sines.data() + begin * pairs);
      });
  cpu::Embedding(weights_.embedding, s.ids, s.hidden.data());
  if (observer_) shown_layer_ = -1;
  Show("embedding", s.tokens(), config_.hidden_size, s.hidden.data());
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    if (observer_) shown_layer_ = static_cast<int64_t>(i);
    const LayerWeights& layer = weights_.layers[i];
    Attention(layer,
              {.dtype = kv_dtype_,
               .data = cache.Block(static_cast<int64_t>(i), 0),
               .latent = config_.kv_lora_rank,
               .rope = config_.qk_rope_head_dim,
               .scale = layer.kv_scale},
              s);
    FeedForward(layer, s);
    Show("hidden", s.tokens(), config_.hidden_size, s.hidden.data());
  }
  if (observer_) shown_layer_ = config_.layers;
  Logits(slices, s, logits);
  return Health(SizesOf(slices), s.finite, FiniteRows(config_, logits));
}

std::vector<std::span<const SequenceSlice>> DeepseekV2::Shares(
    std::span<const SequenceSlice> slices) const {
  // Each share's team decodes all weights for its tokens: worth it for so many,
  // and where weights are read from a cache.
  constexpr int64_t kTokensLeast = 16;
  constexpr int64_t kWeightBytesMost = int64_t{24} << 20;
  // A token's products with weights over those with one position's row, as
  // order of magnitude: V2-Lite has 1,000, the embedded model 500.
  constexpr int64_t kTokenCost = 500;
  if (observer_ || pool_.threads() == 1 ||
      checkpoint_.bytes() > kWeightBytesMost) {
    return {};
  }
  int64_t tokens = 0;
  for (const SequenceSlice& slice : slices) {
    tokens += static_cast<int64_t>(slice.token_ids.size());
  }
  const int64_t threads = pool_.threads();
  for (int64_t shares = std::min(tokens / kTokensLeast, threads); shares >= 2;
       --shares) {
    if (threads % shares != 0) continue;
    auto runs = CutEvenly(slices, shares, kTokenCost);
    if (!runs.empty()) return runs;
  }
  return {};
}

std::vector<SliceHealth> DeepseekV2::Forward(
    std::span<const SequenceSlice> slices, KvCache& cache,
    std::span<float> logits) {
  if (slices.empty()) return {};
  const DefaultFloatingPoint floating_point;
  CheckSlices(config_, kv_dtype_, slices, cache,
              static_cast<int64_t>(logits.size()));
  const std::vector<std::span<const SequenceSlice>> shares = Shares(slices);
  if (shares.empty()) return Compute(slices, cache, step_, logits);
  std::vector<std::span<float>> share_logits;
  for (const std::span<const SequenceSlice> share : shares) {
    int64_t rows = 0;
    for (const SequenceSlice& slice : share) rows += slice.logit_rows;
    share_logits.push_back(logits.first(rows * config_.vocab_size));
    logits = logits.subspan(rows * config_.vocab_size);
  }
  std::vector<std::vector<SliceHealth>> parts(shares.size());
  pool_.ForTeams(
      static_cast<int>(shares.size()), [&](int64_t i, cpu::ThreadPool& team) {
        share_steps_[i].pool = &team;
        parts[i] = Compute(shares[i], cache, share_steps_[i], share_logits[i]);
      });
  std::vector<SliceHealth> health;
  for (const std::vector<SliceHealth>& part : parts) {
    health.insert(health.end(), part.begin(), part.end());
  }
  return health;
}

}  // namespace invar
