#ifndef INVAR_WORKER_MODEL_CHECKPOINT_INSPECTION_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_INSPECTION_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/types.h"
#include "worker/model/checkpoint/config.h"

namespace invar {

// What a folder's config.json and tensor headers say; no weight is read.
struct Inspection {
  ModelConfig config;  // what is in `problems` aside
  int64_t files = 0;
  int64_t tensors = 0;
  int64_t weight_bytes = 0;
  int64_t parameters = 0;  // scales are none
  std::map<std::string, int64_t> bytes_by_dtype;
  // Everything for which a worker would refuse the folder before it reads
  // weights, at most 20 tensors among it; empty: it would load them.
  std::vector<absl::Status> problems;

  // That a manifest beside the checkpoint pins; empty without one.
  std::string pinned_digest;

  // Of one token in all layers.
  int64_t KvBytesPerToken(KvDtype dtype) const {
    return config.layers * config.kv_row_elements() * KvElementBytes(dtype);
  }
  // Of so many sequences of `context` tokens, in whole blocks.
  int64_t KvBytes(KvDtype dtype, int64_t context, int64_t sequences) const {
    const int64_t blocks = (context + kBlockTokens - 1) / kBlockTokens;
    return sequences * blocks * kBlockTokens * KvBytesPerToken(dtype);
  }
};

// NOT_FOUND or INVALID_ARGUMENT where the files cannot be read at all.
absl::StatusOr<Inspection> Inspect(const std::string& folder);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_INSPECTION_H_
