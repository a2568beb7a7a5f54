// The linear half of a layer on the GPU: norms, matrix products, experts.
//
// Symbols as in kernels/ops.h: T tokens of a step; E routed experts, K of them
// a token; S = T * K slots, slot t * K + r being token t's r-th choice. All
// pointers are device memory; row-major; every row is computed as if it were
// alone. fp32 unless a shape says "inputs": those are what a product reads,
// bf16 or fp16, or e4m3 codes of x / scale.
//
// Calls are asynchronous on `stream`, allocate nothing and may be captured in a
// graph; each kernel waits for the one before it also under programmatic
// dependent launch (LaunchOptions). Errors at launch abort (check.h).
#ifndef INVAR_KERNELS_CUDA_OPS_LINEAR_H_
#define INVAR_KERNELS_CUDA_OPS_LINEAR_H_

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/ops.h"
#include "kernels/types.h"

namespace invar::cuda {

// ---- Operands of products ---------------------------------------------------

// Weights in device memory, (rows, columns), for the copy engine: columns a
// multiple of 16. Several matrices of the same columns may be stacked.
struct GemmWeight {
  WeightDtype dtype = WeightDtype::kBf16;  // kBf16, kFp16 or kFp8E4m3
  int64_t rows = 0;
  int64_t columns = 0;
  CUtensorMap map = {};  // boxes of 64 rows by 128 bytes
  // y = scale * row_scales[row] * sum; input scale and weight scale together.
  float scale = 1.0f;
  const float* row_scales = nullptr;  // (rows), or null: all 1
  // Instead of both, one a block of kScaleBlock x kScaleBlock; the inputs then
  // have a scale a group. (ScaleBlocks(rows), ScaleBlocks(columns)); each of
  // several stacked matrices has blocks of its own, from its first row on.
  const float* block_scales = nullptr;
};

// A buffer of inputs, (rows, columns), of the weights' dtype. `rows` is what
// the buffer can hold; what lies past a step's T may be anything.
struct GemmInput {
  WeightDtype dtype = WeightDtype::kBf16;
  int64_t rows = 0;
  int64_t columns = 0;
  CUtensorMap map = {};         // boxes of 8 rows by 128 bytes
  CUtensorMap row_map = {};     // boxes of 1 row, for gathering tokens
  CUtensorMap middle_map = {};  // boxes of 32 rows
  CUtensorMap wide_map = {};    // boxes of 64 rows, for many tokens
  // What InputSink::scales wrote: kToken, which multiply the sums, or kGroup,
  // which do so every kScaleBlock of K. Null: GemmWeight::scale has it all.
  const float* scales = nullptr;
};

// False if the copy engine cannot describe the buffer: `data` not on 16 bytes,
// columns no multiple of 16, or an old driver.
bool MakeGemmWeight(WeightDtype dtype, const void* data, int64_t rows,
                    int64_t columns, GemmWeight* weight);
bool MakeGemmInput(WeightDtype dtype, const void* data, int64_t rows,
                   int64_t columns, GemmInput* input);

// How a value becomes an input: e4m3(x / scale), saturating, or its nearest
// bf16 or fp16. data null: not wanted.
struct InputSink {
  void* data = nullptr;  // (rows, columns) of dtype
  WeightDtype dtype = WeightDtype::kBf16;
  float scale = 1.0f;  // of e4m3; the product's GemmWeight::scale undoes it
  // Not kNone: `scale` is the row's own, max(max|x| / 448, 2^-100), 1 for
  // zeros, or that of each run of kScaleBlock, and is written to scales:
  // (rows), or (rows, ScaleBlocks(columns)). RmsNorm and QuantizeInputs do so;
  // what makes a row in pieces cannot, and writes fp32 for QuantizeInputs.
  DynamicInputs dynamic = DynamicInputs::kNone;
  float* scales = nullptr;
};

// Launch attributes. `overlap`: programmatic dependent launch, the kernel's
// preparations run while the kernel before it ends. Bits do not depend on it.
//
// What needs nothing of the kernel just before it runs beside that one, without
// a second stream: launched `early` it reads at once what older kernels have
// left. For these to have ended by then, a kernel between is launched `gate`:
// it lets the next one start only when what it waits for itself has ended. Each
// kernel ends after the one before it all the same, so those behind need not
// know. What `early` lets be read: Gemm's and GemmSwiGlu's inputs where tokens
// are few, those of what is beside ExpertsGateUp, ExpertsDown's plan, and
// MlaAttention's cached rows before a token's own. `gate` is heeded by Router,
// ExpertsGateUp and ExpertsDown, of tiles of at most 64 tokens.
struct LaunchOptions {
  cudaStream_t stream = nullptr;
  bool overlap = false;
  bool early = false;
  bool gate = false;
};

// ---- Products ---------------------------------------------------------------

// K is summed in leaves of this many, at most kMaxLeaves of them; each leaf is
// one ascending chain, leaves fold as the binary tree of kernels/types.h. A
// function of the unsharded weight's dtype, shape and whether it has block
// scales, alone. FP8 is uncut: its chain is of sums that are promoted every 128
// of K, which whoever multiplied them can add, so that few tokens share K and
// many need no registers for leaves. Other narrow weights, and FP8 of block
// scales, are cut as row-parallel ones are, so that a single token fills the
// GPU; wide ones need no cut. For o_proj and down_proj use RowParallelLeaf.
inline constexpr int64_t kNarrowRows = 4096;
inline int64_t ColumnParallelLeaf(const GemmWeight& weight) {
  const bool uncut = (weight.dtype == WeightDtype::kFp8E4m3 &&
                      weight.block_scales == nullptr) ||
                     weight.rows > kNarrowRows;
  return uncut ? (weight.columns + 127) / 128 * 128
               : RowParallelLeaf(weight.columns);
}

// The tile of a product. Which one runs is free (bits do not depend on it).
struct GemmTile {
  int tokens = 0;      // 8, 16, 32, 64, 128, 192 or 256; 0: all chosen from T
  int run = 1;         // leaves that a block walks: 1, from 32 tokens on also
                       // 2, of 64 tokens also 4 or 8
  bool deep = false;   // a longer ring of stages
  bool tall = false;   // blocks go on from tile to tile (tall_gemm.h)
  bool chain = false;  // of FP8 uncut: chain_gemm.h up to 128 tokens, then
                       // wide_chain.h
};

// Sums are fp32 till they leave; kBf16 is their nearest.
enum class GemmOutput { kFp32, kBf16 };

// out[t] = scale * row_scales . W x[t].  x (T, columns) -> out (T, rows) of
// `type`. What it and the experts' products take is in support.h.
void Gemm(const GemmWeight& weight, int64_t leaf, const GemmInput& x,
          int64_t tokens, GemmOutput type, void* out,
          const LaunchOptions& options, GemmTile tile = {});

// One of two products; the members are Gemm's arguments.
struct GemmTask {
  const GemmWeight* weight;
  int64_t leaf;
  const GemmInput* x;
  void* out;
};

// Both products of the same tokens, in one launch where they are of one dtype
// and of as many columns and leaves, so that one fills what the other leaves
// idle.
void GemmPair(const GemmTask& first, const GemmTask& second, int64_t tokens,
              GemmOutput type, const LaunchOptions& options);

// ---- Around the products ----------------------------------------------------

// What a layer's half adds to the residual stream:
//   ((shared[t] + w[t,0] slots[t,0]) + w[t,1] slots[t,1]) + ...
// in fp32, of outputs that their products have rounded to bf16: many tokens'
// fp32 took longer to write and to read than some of the products to compute.
struct Addend {
  const __nv_bfloat16* shared = nullptr;  // (T, size); null: nothing is added
  const __nv_bfloat16* slots = nullptr;  // (T, top_k, size); null: shared alone
  const float* weights = nullptr;        // (T, top_k)
  int64_t top_k = 0;
};

struct RmsNormArguments {
  float* hidden = nullptr;      // (rows of `size` at stride hidden_stride)
  int64_t hidden_stride = 0;    // a multiple of 4
  Addend addend = {};           // hidden[t] += addend[t] before the norm
  const float* gain = nullptr;  // (size)
  float eps = 1e-6f;
  int64_t rows = 0;
  int64_t size = 0;  // a multiple of 16, at most 16,384
  // Row i of the outputs is the norm of hidden[row_ids[i]]; null: of hidden[i].
  // With an addend it must be null.
  const int32_t* row_ids = nullptr;
  float* normed = nullptr;  // (rows, size) fp32, or null
  float* roots = nullptr;   // (rows) sqrt(mean(hidden[t]^2) + eps), or null
  InputSink inputs[2];      // (rows, size) each
};

// hidden[t] += addend[t]; out[t] = hidden[t] / sqrt(mean(hidden[t]^2) + eps) *
// gain, as fp32 and as inputs.
void RmsNorm(const RmsNormArguments& arguments, const LaunchOptions& options);

// hidden[t] += addend[t], alone.  hidden (T, size), size a multiple of 4.
void Combine(const Addend& addend, int64_t tokens, int64_t size, float* hidden,
             const LaunchOptions& options);

// x as inputs, alone: what attention and products have left in fp32.
// x (rows, columns), columns a multiple of 16, at most 16,384.
void QuantizeInputs(const float* x, int64_t rows, int64_t columns,
                    const InputSink& inputs, const LaunchOptions& options);

// out[t] = silu(gate[t]) * up[t], silu(g) = g / (1 + exp(-g)), as inputs.
// gate_up (T, 2, size) -> out (T, size)
void SiluMul(const float* gate_up, int64_t tokens, int64_t size,
             const InputSink& out, const LaunchOptions& options);

// ---- Mixture of experts -----------------------------------------------------

// A share of a grouped product: tokens of one expert, at most a tile of them.
struct ExpertWork {
  int32_t expert;
  int32_t first;  // of its places in the order
  int32_t count;
  int32_t unused;
};

// Which slots chose which expert. Device memory for S slots and E experts.
struct ExpertPlan {
  int32_t* order = nullptr;    // (S) slots by (expert, slot)
  ExpertWork* work = nullptr;  // (MaxExpertWork)
  // (2): entries of `work` in use; a ticket, zero before the first step.
  int32_t* counts = nullptr;
};

// Tokens of an expert that one block multiplies: chosen from T, free.
int ExpertTile(int64_t tokens, int64_t top_k, int64_t experts);
// Upper limit of the entries of `work`, with the tile of that T.
int64_t MaxExpertWork(int64_t tokens, int64_t top_k, int64_t experts);

// What a router multiplies, (T, hidden): x, or its norm, x / roots[t] * gain as
// RmsNorm makes it, which of many tokens need not go through memory.
struct RouterInput {
  const float* x;
  const float* roots = nullptr;  // (T)
  const float* gain = nullptr;   // (hidden)

  RouterInput(const float* x) : x(x) {}  // NOLINT: a matrix is one
  RouterInput(const float* x, const float* roots, const float* gain)
      : x(x), roots(roots), gain(gain) {}
};
// Whether Router takes the latter of so many tokens.
bool RouterNorms(int64_t tokens, int64_t hidden);

// cpu::Router's equation in fp32: softmax or sigmoid, the best groups, the K
// best of scores + correction. Also groups the slots by expert, for the grouped
// products.
// W (E, hidden) bf16 or fp32; correction (E) or null; x (T, hidden) -> ids,
// weights (T, K), plan. E <= 512, groups <= 32, hidden a multiple of 4, ids at
// a multiple of 16 bytes.
void Router(const cpu::RouterOptions& router, WeightDtype dtype,
            const void* weight, int64_t hidden, const RouterInput& x,
            int64_t tokens, int32_t* ids, float* weights,
            const ExpertPlan& plan, const LaunchOptions& options, int tile = 0,
            const float* correction = nullptr);

// The experts of a layer: gate over up, all experts stacked.
struct GroupedWeights {
  int64_t experts = 0;
  int64_t hidden = 0;
  int64_t inner = 0;
  // Their `scale` is not read; row_scales and block_scales are.
  GemmWeight gate_up;  // (E * 2 * inner, hidden): gate_0, up_0, gate_1, ...
  GemmWeight down;     // (E * hidden, inner)
  // Per expert, weight scale times input scale; null: 1.
  const float* gate_scales = nullptr;  // (E)
  const float* up_scales = nullptr;    // (E)
  const float* down_scales = nullptr;  // (E)
};

// Rows of inputs in memory: row_bytes (a multiple of 16) and row_scales of
// each.
struct InputRows {
  void* data = nullptr;
  int64_t row_bytes = 0;
  float* scales = nullptr;
  int64_t row_scales = 0;
};

// Whether many tokens an expert make it worth it to put x in the order of the
// groups first. Free: bits do not depend on it.
bool GatherPays(int64_t tokens, int64_t top_k, int64_t experts);

// gathered[i] = x[t], for the i-th slot of the order, t its token.
void GatherInputs(const InputRows& x, const ExpertPlan& plan, int64_t tokens,
                  int64_t top_k, const InputRows& gathered,
                  const LaunchOptions& options);

// A dense gate and up; the members are GemmSwiGlu's arguments.
struct SwiGluTask {
  const GemmWeight* gate_up;
  float up_scale;
  const GemmInput* x;
  InputSink activated;
};

// activated[i] = silu(gate_e x[t]) * up_e x[t], as inputs, for the i-th slot of
// the order, t its token and e its expert. K is never cut.
// x (T, hidden), or gathered (S, hidden) -> activated (S, inner)
// With `beside` that product of the same tokens too, in the same launch where
// it is of the same dtype: it needs no plan, and fills the time till there is
// one.
void ExpertsGateUp(const GroupedWeights& experts, const GemmInput& x,
                   const ExpertPlan& plan, int64_t tokens, int64_t top_k,
                   const InputSink& activated, const LaunchOptions& options,
                   int tile = 0, bool gathered = false,
                   const SwiGluTask* beside = nullptr);

// slots[order[i]] = down_e activated[i], its nearest bf16.
// activated (S, inner) -> slots (S, hidden), hidden even
void ExpertsDown(const GroupedWeights& experts, const GemmInput& activated,
                 const ExpertPlan& plan, int64_t tokens, int64_t top_k,
                 __nv_bfloat16* slots, const LaunchOptions& options,
                 int tile = 0);

// activated[t] = silu(gate x[t]) * up x[t], as inputs: a dense MLP or the
// shared experts. gate_up (2 * inner, hidden): gate, then up; its scale is
// gate's, up_scale is up's.  x (T, hidden) -> activated (T, inner)
void GemmSwiGlu(const GemmWeight& gate_up, float up_scale, const GemmInput& x,
                int64_t tokens, const InputSink& activated,
                const LaunchOptions& options, int tile = 0);

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_OPS_LINEAR_H_
