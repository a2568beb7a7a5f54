#include <vector>

#include "kernels/cpu/aligned.h"
#include "kernels/cpu/dot.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

void Run(ThreadPool& pool, const Weight& weight, int64_t leaf, const float* x,
         int64_t tokens, float* out) {
  const QuantizedInput input = QuantizeInput(pool, weight, x, tokens);
  std::vector<const float*> inputs(tokens);
  std::vector<float*> outputs(tokens);
  std::vector<const uint32_t*> pairs(input.pairs.empty() ? 0 : tokens);
  for (int64_t t = 0; t < tokens; ++t) {
    inputs[t] = input.values + t * weight.columns;
    outputs[t] = out + t * weight.rows;
    if (!pairs.empty()) {
      pairs[t] = input.pairs.data() + t * PairsOf(weight.columns);
    }
  }
  pool.ParallelFor(weight.rows, EvenDotGrain(weight, tokens, pool.threads()),
                   [&](int64_t begin, int64_t end) {
                     Dot(pool.isa(),
                         {.weight = &weight,
                          .row_begin = begin,
                          .row_end = end,
                          .leaf = leaf,
                          .input_scales = input.token_scales(),
                          .input_scale = input.scale,
                          .x = inputs.data(),
                          .pairs = pairs.empty() ? nullptr : pairs.data(),
                          .out = outputs.data(),
                          .tokens = tokens});
                   });
}

}  // namespace

void Linear(ThreadPool& pool, const Weight& weight, const float* x,
            int64_t tokens, float* out) {
  Run(pool, weight, /*leaf=*/0, x, tokens, out);
}

void LinearRowParallel(ThreadPool& pool, const Weight& weight, const float* x,
                       int64_t tokens, float* out) {
  Run(pool, weight, RowParallelLeaf(weight.columns), x, tokens, out);
}

}  // namespace invar::cpu
