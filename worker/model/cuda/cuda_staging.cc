// What a pass brings from the host and leaves to it.
#include <algorithm>

#include "kernels/cuda/check.h"
#include "worker/model/checkpoint/gpu_steps.h"
#include "worker/model/cuda/cuda_model.h"
#include "worker/model/slices.h"

namespace invar::cuda {

void CudaModel::BeginStep(std::span<const SequenceSlice> slices,
                          const KvCache& cache, int64_t logits) {
  CheckSlices(config_, kv_dtype_, slices, cache, logits);
  Check(cudaSetDevice(options_.device), "choosing the device");
  CheckPlanned(slices, step_.limits.sequences, step_.limits.max_positions);
}

CudaModel::Pass CudaModel::StagePass(std::span<const SequenceSlice> slices,
                                     int64_t slot, Cursor* cursor) {
  int64_t rest = -cursor->token;
  for (size_t i = cursor->slice; i < slices.size(); ++i) {
    rest += static_cast<int64_t>(slices[i].token_ids.size());
  }
  step_.Place(std::min(rest, step_.limits.tokens), slot);
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
      to.ids[pass.tokens] = slice.chosen_row < 0
                                ? slice.token_ids[cursor->token + i]
                                : static_cast<int32_t>(~slice.chosen_row);
      to.positions[pass.tokens] = static_cast<int32_t>(first + i);
      to.tables[pass.tokens] = static_cast<int32_t>(block_ids);
      if (cursor->token + i >= size - slice.logit_rows) {
        to.row_positions[pass.rows] = to.positions[pass.tokens];
        to.row_tables[pass.rows] = to.tables[pass.tokens];
        to.row_ids[pass.rows++] = static_cast<int32_t>(pass.tokens);
      }
      ++pass.tokens;
    }
    pass.decodes &= size == 1 && slice.logit_rows == 1;
    pass.max_position = std::max(pass.max_position, first + taken - 1);
    const int64_t blocks = (first + taken - 1) / kBlockTokens + 1;
    std::copy_n(slice.block_ids.begin(), blocks, to.block_ids + block_ids);
    block_ids += blocks;
    if (cursor->token + taken < size) {
      cursor->token += taken;
      break;
    }
  }
  pass.block_ids = block_ids;
  pass.launched_tokens = pass.tokens;
  pass.launched_rows = pass.rows;
  // A few launches more, which a few tokens less would not pay for.
  constexpr int64_t kFewestLeftOut = 64;
  pass.ends_with_rows = !observer_ && pass.tokens - pass.rows >= kFewestLeftOut;
  pass.max_position = LaunchPosition(pass.max_position);
  PadToGraph(&pass);
  return pass;
}

void CudaModel::PadToGraph(Pass* pass) {
  const int64_t padded = PaddedTokens(pass->tokens);
  pass->decodes &= options_.graphs && !observer_ && padded <= kGraphTokens &&
                   padded <= step_.limits.tokens;
  if (!pass->decodes) return;
  const StepMemory::Places& to = step_.host;
  for (int64_t t = pass->tokens; t < padded; ++t) {
    for (int32_t* const of : {to.ids, to.positions, to.tables, to.row_ids}) {
      of[t] = of[0];
    }
  }
  pass->launched_tokens = padded;
  pass->launched_rows = padded;
}

void CudaModel::CopyStaged(const Pass& pass, int64_t slot) {
  Check(cudaMemcpyAsync(step_.staged.data(), step_.staged_host[slot].data(),
                        step_.StagedBytes(pass.block_ids),
                        cudaMemcpyHostToDevice, main_.stream()),
        "staging a step");
}

void CudaModel::CopyResults(const Pass& pass, int64_t slot) {
  Check(
      cudaMemcpyAsync(step_.results_host[slot].data(),
                      step_.results_memory.data(), step_.ResultBytes(pass.rows),
                      cudaMemcpyDeviceToHost, main_.stream()),
      "reading a step's results");
}

}  // namespace invar::cuda
