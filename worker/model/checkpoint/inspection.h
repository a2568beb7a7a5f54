#ifndef INVAR_WORKER_MODEL_CHECKPOINT_INSPECTION_H_
#define INVAR_WORKER_MODEL_CHECKPOINT_INSPECTION_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
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

  // Everything beyond that for which a GPU worker would refuse it, as many;
  // of a folder without problems.
  std::vector<absl::Status> gpu_problems;

  // That a manifest beside the checkpoint pins; empty without one.
  std::string pinned_digest;
};

// NOT_FOUND or INVALID_ARGUMENT where the files cannot be read at all.
absl::StatusOr<Inspection> Inspect(const std::string& folder);

}  // namespace invar

#endif  // INVAR_WORKER_MODEL_CHECKPOINT_INSPECTION_H_
