// Attention on the GPU, each operation with its shapes and its equation;
// ops_linear.h and ops_sample.h have the rest of the model.
//
// Symbols are those of kernels/ops.h: T tokens of a step, H heads; L, N, R, V
// the widths of latent, nope, rope and value. All pointers are to device
// memory, rows are dense and row-major; activations are fp32 unless an
// operation says otherwise, and every row is computed as if it were alone. Each
// call only enqueues, as LaunchOptions say; errors of the launch end the
// process (check.h).
#ifndef INVAR_KERNELS_CUDA_OPS_H_
#define INVAR_KERNELS_CUDA_OPS_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attention_splits.h"
#include "kernels/cuda/ops_linear.h"
#include "kernels/cuda/widths.h"
#include "kernels/types.h"

namespace invar::cuda {

// ---- Attention --------------------------------------------------------------

// Where the step's tokens lie: token t is position positions[t] of the sequence
// whose cache blocks are block_ids[tables[t]], block_ids[tables[t] + 1], ...
struct TokenPlaces {
  int64_t tokens = 0;                  // T
  const int32_t* positions = nullptr;  // (T)
  const int32_t* tables = nullptr;     // (T)
  const int32_t* block_ids = nullptr;
};

// One layer of the paged cache: (blocks, kBlockTokens, kRow) of `dtype`, which
// is not fp32.
struct KvLayer {
  KvDtype dtype = KvDtype::kFp8E5m2;
  std::byte* data = nullptr;
  // A row is scale * its elements. KvAppend divides; for what is read back,
  // MlaAttention's `scale` and AbsorbValue's weight have it as a factor.
  float scale = 1.0f;
};

// cos and sin of every position, (positions, R / 2), as cpu::RopeAngles has
// them.
struct RopeAngles {
  const float* cosines = nullptr;
  const float* sines = nullptr;
};

// What becomes the cache's new rows.
struct CacheRows {
  const float* kv_a = nullptr;  // (T, L + R)
  const float* gain = nullptr;  // (L)
  float eps = 1e-6f;
  KvLayer cache;
  uint8_t* finite = nullptr;  // (T)
};

// cache[place[t]] = quantise([norm(kv_a[t, 0:L]), rotate(kv_a[t, L:])] /
// cache.scale), nearest even, saturating; norm(x) = x / sqrt(mean(x^2) + eps) *
// gain. finite[t] = 0 if an element was infinite or not a number, else
// unchanged.
void KvAppend(const LaunchOptions& options, const TokenPlaces& places,
              const CacheRows& rows, const RopeAngles& angles);

// One half of kv_b_proj, a matrix a head: W_h = scale * data[h]. e4m3, fp16 or
// bf16; the loader refuses fp32.
struct HeadProjection {
  WeightDtype dtype = WeightDtype::kBf16;
  const std::byte* data = nullptr;
  float scale = 1.0f;
  int64_t heads = 0;  // H
  // fp32 factors, or null: of the inputs before they are rounded, (H, columns),
  // and of the sums, (H, rows). Scales of kv_b's rows or blocks, laid out so:
  // a row's scale is one of K's inputs and of V's sums, a block's the other.
  const float* input_scales = nullptr;
  const float* row_scales = nullptr;
};

// query[t, h] = [K_h q[t, h, 0:N], rotate(q[t, h, N:])].
// K (H, L, N), transposed from the checkpoint's (H, N, L); q (T, H, N + R)
// -> query (T, H, L + R). Inputs are rounded to fp16 (bf16 for bf16 weights).
void AbsorbQuery(const LaunchOptions& options, const HeadProjection& k,
                 const TokenPlaces& places, const RopeAngles& angles,
                 const float* q, float* query);

// Both AbsorbQuery and KvAppend: in one launch where tokens are few.
void AbsorbQueryAndAppend(const LaunchOptions& options, const HeadProjection& k,
                          const TokenPlaces& places, const RopeAngles& angles,
                          const float* q, float* query, const CacheRows& rows);

// What MlaAttention may leave to be merged: the splits of each token and 16
// heads. Null: nothing.
struct AttentionParts {
  const float* data = nullptr;  // (T, groups, splits, a split's result)
  int64_t groups = 0;           // of 16 heads
  int64_t splits = 0;           // of which a token has as many as it needs
  AttentionSplits cut;
  const int32_t* positions = nullptr;  // (T)
};

// out[t, h] = V_h attended[t, h].
// V (H, V, L); attended (T, H, L) -> out (T, H, V)
void AbsorbValue(const LaunchOptions& options, const HeadProjection& v,
                 int64_t tokens, const float* attended, float* out);

// The same as inputs of o_proj, whose scale is static. Where there are parts,
// they are merged to what `attended` would be.
void AbsorbValue(const LaunchOptions& options, const HeadProjection& v,
                 int64_t tokens, const float* attended, const InputSink& out,
                 const AttentionParts& parts = {});

// out[t, h] = softmax_s<=t(scale * query[t, h] . row_s) . row_s[0:L]
// over the rows s of the token's sequence up to and with its own position,
// none of which is past max_position.
// query (T, H, L + R) -> out (T, H, L).
// workspace: AttentionWorkspaceFloats of the same arguments, or more. With
// `parts` what is cut into splits stays there unmerged, and is not in `out`.
void MlaAttention(const LaunchOptions& options, const TokenPlaces& places,
                  int64_t max_position, const float* query, int64_t heads,
                  float scale, const KvLayer& cache, float* workspace,
                  float* out, AttentionParts* parts = nullptr);
// 0 where each block walks a whole sequence, since enough blocks run then.
int64_t AttentionWorkspaceFloats(int64_t tokens, int64_t heads,
                                 int64_t max_position);

// ---- Attention of prompts ---------------------------------------------------
//
// AbsorbQuery, MlaAttention and AbsorbValue, bit for bit, for steps of many
// tokens of a few sequences: those of a sequence lie together and ascend, and
// so do their tables. What lies between the three is rounded where it is made.

// A step's queries as MlaAttention would round them. Tiles of four tokens' 16
// heads.
struct PackedQueries {
  std::byte* tiles = nullptr;
  float* scales = nullptr;  // of a (token, head): what it was multiplied with
};
// Laid out in PackedQueryBytes of memory, on 16 bytes.
PackedQueries PackedQueriesIn(void* memory, int64_t tokens, int64_t heads);
int64_t PackedQueryBytes(int64_t tokens, int64_t heads);

// The queries are packed for a cache of this dtype.
void PromptAbsorbQuery(const LaunchOptions& options, const HeadProjection& k,
                       const TokenPlaces& places, const RopeAngles& angles,
                       const float* q, KvDtype cache,
                       const PackedQueries& query);

// What has been attended to as AbsorbValue would round it.
struct PackedAttended {
  std::byte* rows = nullptr;  // (H, T, L) of 16 bits
  float* scales = nullptr;    // (H, T): what each was multiplied with
};
// Laid out in PackedAttendedBytes of memory, on 16 bytes.
PackedAttended PackedAttendedIn(void* memory, int64_t tokens, int64_t heads);
int64_t PackedAttendedBytes(int64_t tokens, int64_t heads);

// The cached rows of the tables, which together have `blocks` blocks, as the
// operands that PromptAttention reads: once they are in the cache, and before
// each PromptAttention. workspace: PromptAttentionBytes, on 16 bytes.
void StagePrompts(const LaunchOptions& options, const TokenPlaces& places,
                  int64_t blocks, const KvLayer& cache, std::byte* workspace);

// With what has been staged; `v` is what out is rounded for.
void PromptAttention(const LaunchOptions& options, const TokenPlaces& places,
                     int64_t blocks, const PackedQueries& query,
                     const HeadProjection& v, float scale, const KvLayer& cache,
                     std::byte* workspace, const PackedAttended& out);
int64_t PromptAttentionBytes(int64_t blocks);

void PromptAbsorbValue(const LaunchOptions& options, const HeadProjection& v,
                       int64_t tokens, const PackedAttended& attended,
                       const InputSink& out);

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_OPS_H_
