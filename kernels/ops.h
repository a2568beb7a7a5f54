// Every operation of the model, with its shapes and its equation.
//
// Symbols: T tokens of one engine step, in any mix of sequences; H heads;
// L = kv_lora_rank; N, R, V = qk_nope, qk_rope and v head dims; E routed
// experts, K of them a token. Activations are fp32, row-major, and every row is
// computed as if it were alone: no operation looks at T.
//
// One operation a file, of the operation's name, in kernels/cpu; kernels/cpu/
// README.md says which file keeps which rule of the numerics contract. Sizes
// that are summed over or rotated (hidden, L, N, R, V, inner sizes) are
// multiples of kLanes; the loader refuses a model where they are not.
#ifndef INVAR_KERNELS_OPS_H_
#define INVAR_KERNELS_OPS_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/cpu/thread_pool.h"
#include "kernels/types.h"

namespace invar::cpu {

// ---- Around the layers ------------------------------------------------------

// out[t] = W[ids[t]].  W (vocab, hidden) -> out (T, hidden)
void Embedding(const Weight& table, std::span<const int32_t> ids, float* out);

// out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * gain
// x (rows of `size` at stride `x_stride`) -> out (rows at stride `out_stride`)
void RmsNorm(ThreadPool& pool, const float* x, int64_t x_stride,
             const float* gain, float eps, int64_t rows, int64_t size,
             float* out, int64_t out_stride);

// out[t] = W x[t], each sum in the 16-lane order over all of K.
// x (T, columns) -> out (T, rows). With an input_scale s:
// out[t] = (s * W.scale) * (codes of W)(e4m3(x[t] / s)). Likewise with a
// dynamic s a row; one s a group multiplies the codes of x before the sum.
void Linear(ThreadPool& pool, const Weight& weight, const float* x,
            int64_t tokens, float* out);

// The same for row-parallel weights: sums of leaves of
// RowParallelLeaf(columns), folded ((0+1)+(2+3))+((4+5)+(6+7)).
void LinearRowParallel(ThreadPool& pool, const Weight& weight, const float* x,
                       int64_t tokens, float* out);

// out = silu(gate) * up, silu(g) = g / (1 + exp(-g)); `count` elements.
void SiluMul(ThreadPool& pool, const float* gate, const float* up,
             int64_t count, float* out);

// hidden += y; `count` elements.
void AddInto(ThreadPool& pool, const float* y, int64_t count, float* hidden);

// ---- Rotary positions -------------------------------------------------------

// rope_scaling of type yarn; factor 1 is plain rotary.
struct YarnScaling {
  double factor = 1.0;
  double original_max_positions = 4096.0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double mscale = 0.0;          // 0: absent
  double mscale_all_dim = 0.0;  // 0: absent
};

struct RopeTable {
  // Radians a position, one a pair: (R / 2).
  std::vector<double> frequencies;
  // Multiplies cos and sin: m(factor, mscale) / m(factor, mscale_all_dim), or
  // m(factor, 1) where one is absent. m(s, a) = 0.1 a ln s + 1.
  double amplitude = 1.0;
  // m(factor, mscale_all_dim)^2, which multiplies the attention scale.
  double attention_factor = 1.0;
};

// frequency_i = theta^(-2i/R), slowed by `factor` over YaRN's ramp.
RopeTable MakeRopeTable(int64_t rope_dim, double theta,
                        const YarnScaling& scaling);

// cos, sin of position * frequency_i, times amplitude.
// positions (T) -> cosines, sines (T, R / 2)
void RopeAngles(const RopeTable& table, std::span<const int64_t> positions,
                float* cosines, float* sines);

// (a, b) of each pair (2i, 2i+1) -> (a cos_i - b sin_i, a sin_i + b cos_i).
// `heads` vectors of R a token at x + t * token_stride + h * head_stride.
void RopeApply(ThreadPool& pool, const float* cosines, const float* sines,
               int64_t tokens, int64_t heads, int64_t rope_dim, float* x,
               int64_t token_stride, int64_t head_stride);

// ---- Attention --------------------------------------------------------------

// Where a token's row lies in the cache: its sequence's blocks and its
// position in the sequence.
struct TokenPlace {
  const int32_t* block_ids = nullptr;
  int64_t position = 0;
};

// One layer of the paged cache: (blocks, kBlockTokens, L + R) of `dtype`.
struct KvLayer {
  KvDtype dtype = KvDtype::kFp8E5m2;
  std::byte* data = nullptr;
  int64_t latent = 0;  // L
  int64_t rope = 0;    // R
  // A row is scale * its elements; MlaAttention leaves that to its caller.
  float scale = 1.0f;
  int64_t row_elements() const { return latent + rope; }
};

// cache[place[t]] = quantise([latent[t], k_pe[t]] / cache.scale), nearest even,
// saturating.
// latent (T, L) after its norm; k_pe (T, R) rotated, rows at k_pe_stride.
// finite[t] = 0 if an element was infinite or not a number, else unchanged.
void KvAppend(ThreadPool& pool, std::span<const TokenPlace> places,
              const float* latent, const float* k_pe, int64_t k_pe_stride,
              const KvLayer& cache, uint8_t* finite);

// kv_b_proj (H * (N + V), L): per head N rows of k_nope, then V rows of v.
struct KvUpProjection {
  Weight weight;  // its input_scale is ignored: the input is the cached latent
  int64_t heads = 0;
  int64_t nope = 0;   // N
  int64_t rope = 0;   // R
  int64_t value = 0;  // V
  // KvLayer::scale: attended latents are in its units.
  float latent_scale = 1.0f;
};

// query[t, h] = [sum_n q[t, h, n] * K_h[n, :], q_pe[t, h]]
// q (T, H, N + R) -> query (T, H, L + R). n ascends in one chain.
void AbsorbQuery(ThreadPool& pool, const KvUpProjection& kv_b, const float* q,
                 int64_t tokens, float* query);

// out[t, h] = softmax_s<=t(scale * query[t, h] . row_s) . row_s[0:L]
// over the rows s of the token's sequence up to and with its own position, in
// units of cache.scale: `scale` has it as a factor.
// query (T, H, L + R) -> out (T, H, L)
void MlaAttention(ThreadPool& pool, std::span<const TokenPlace> places,
                  const float* query, int64_t heads, float scale,
                  const KvLayer& cache, float* out);

// out[t, h] = latent_scale * V_h attended[t, h].  attended (T, H, L) -> out (T,
// H, V)
void AbsorbValue(ThreadPool& pool, const KvUpProjection& kv_b,
                 const float* attended, int64_t tokens, float* out);

// ---- Mixture of experts -----------------------------------------------------

enum class RouterScoring { kSoftmax, kSigmoid };
enum class RouterMethod {
  kGreedy,
  kGroupLimitedGreedy,  // within the best groups, by their best score
  kNoauxTc,             // likewise, by the sum of their two best
};

struct RouterOptions {
  RouterScoring scoring = RouterScoring::kSoftmax;
  RouterMethod method = RouterMethod::kGreedy;
  int64_t experts = 0;     // E
  int64_t top_k = 0;       // K
  int64_t groups = 1;      // E / groups experts each
  int64_t top_groups = 1;  // groups that remain
  bool normalise = false;  // weights sum to 1 before the factor
  float scaling_factor = 1.0f;
};

// scores = softmax or sigmoid of W x[t]; the K best of scores + correction by
// (descending, id ascending), of the groups that remain. correction (E), or
// null; it chooses and does not weigh.
// weight = score * scaling_factor; normalised: score / (sum of the K, best
// first, + 1e-20) * scaling_factor.
// x (T, hidden) -> ids, weights (T, K), best first
void Router(ThreadPool& pool, const RouterOptions& options,
            const Weight& weight, const float* correction, const float* x,
            int64_t tokens, int32_t* ids, float* weights);

struct Expert {
  Weight gate;  // (inner, hidden)
  Weight up;    // (inner, hidden)
  Weight down;  // (hidden, inner)
};

// slots[t, r] = down_e(silu(gate_e x[t]) * up_e x[t]), e = ids[t, r].
// All experts of a layer quantise alike the inputs of gate and up, and down's.
// x (T, hidden), ids (T, K) -> slots (T, K, hidden)
void Experts(ThreadPool& pool, std::span<const Expert> experts, const float* x,
             int64_t tokens, const int32_t* ids, int64_t top_k, float* slots);

// hidden[t] += ((shared[t] + w[t,0] slots[t,0]) + w[t,1] slots[t,1]) + ...
// shared, hidden (T, size); weights (T, K); slots (T, K, size)
void Combine(ThreadPool& pool, const float* shared, const float* slots,
             const float* weights, int64_t tokens, int64_t top_k, int64_t size,
             float* hidden);

// ---- From logits to tokens --------------------------------------------------

// log(sum_v exp(logits[v])): 16 lanes over runs of 1,024, runs in double.
double LogSumExp(std::span<const float> logits);

// logits[id] - log_sum_exp, rounded once.
float LogProb(std::span<const float> logits, double log_sum_exp, int32_t id);

// False if a logit is infinite or not a number.
bool AllFinite(std::span<const float> logits);

// The highest logit's id, the lowest such id. Ids >= limit are never chosen;
// limit is in [1, logits.size()].
int32_t Argmax(std::span<const float> logits, int64_t limit);

// What changes one token's logit before a choice.
struct TokenUse {
  int32_t id = 0;
  int32_t output_count = 0;  // times it is in the output
  bool seen = false;         // in the prompt or the output
  float bias = 0.0f;
};

// Neutral as they stand here.
struct Penalties {
  float repetition = 1.0f;  // above 0
  float frequency = 0.0f;
  float presence = 0.0f;
  friend bool operator==(const Penalties&, const Penalties&) = default;
};

// logits[u.id] of each use, which have different ids, becomes d, where each
// operation is one of fp32, rounded once, in this order:
//   a = logit / repetition if logit > 0, logit * repetition otherwise; u.seen
//   b = a - frequency * u.output_count                  if u.output_count > 0
//   c = b - presence                                    if u.output_count > 0
//   d = c + u.bias, and what overflowed becomes the largest finite number
// A step whose condition fails leaves the value as it is. No id sees another,
// so the order of `uses` cannot show. Sample then takes the changed logits,
// Argmax included; log-probabilities are of the unchanged ones.
void AdjustLogits(std::span<const TokenUse> uses, const Penalties& penalties,
                  std::span<float> logits);

struct SamplingParameters {
  float temperature = 0.0f;  // 0: Argmax
  int32_t top_k = 0;         // 0: off
  float top_p = 1.0f;        // 1: off
  float min_p = 0.0f;        // 0: off
};

// The token at absolute `position`, as a function of its arguments alone:
//   weight_i = floor(2^40 exp((logit_i - max) / temperature)), i < limit
//   order: logit descending, id ascending, of the ids with weight > 0
//   top-k: the first k. top-p: then the shortest prefix that weighs at least
//   top_p of what is left. min-p: then those with weight >= min_p * 2^40.
//   u = the first two words of Philox4x32-10 with key `seed` and counter
//   (position, 0): 64 bits; target = floor(u * total / 2^64)
//   token: the first id, ascending, at which the sum of weights exceeds target
// Only comparisons and integer sums follow the weights, so no order of
// summation exists that could move a choice.
int32_t Sample(std::span<const float> logits, int64_t limit,
               const SamplingParameters& parameters, uint64_t seed,
               uint64_t position);

// ---- Identity ---------------------------------------------------------------

// Name and revision of each operation, in a fixed order. A change that moves a
// bit of an operation's output raises its revision.
std::span<const std::pair<std::string_view, std::string_view>>
KernelRevisions();

// Empty, or what this processor lacks of x86-64-v3. Safe on any x86-64;
// everything else here is not where this names something.
std::string MissingCpuFeatures();

}  // namespace invar::cpu

#endif  // INVAR_KERNELS_OPS_H_
