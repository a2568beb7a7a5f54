// What the matrix asks of a backend, and nothing of how it computes.
#ifndef INVAR_TESTS_CONTRACT_BACKEND_H_
#define INVAR_TESTS_CONTRACT_BACKEND_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/types.h"
#include "worker/kv/kv_cache.h"
#include "worker/model/model.h"

namespace invar::contract {

// One way to run the same numerics: threads, an instruction set, a graph or
// none. The contract says that no variant moves a bit of another.
struct Variant {
  // Part of a cell's name, so KEY=VALUE or several of them: "threads=2".
  std::string name;
  // Why this machine cannot run it. Empty: it can.
  std::string missing;
  std::function<absl::StatusOr<std::shared_ptr<Model>>(
      const std::string& folder, KvDtype kv_dtype)>
      load;
};

// How kLanes cells decode a text: so many positions by each of the sequences
// that share it, and all of them so many times over in one step.
struct Lanes {
  int positions = 64;
  int copies = 1;
  int chunk = 0;  // of the prefill; 0: any of the extent's
};

// How much the cells do. A large model does less of what its size adds nothing
// to.
struct Extent {
  // Different strangers; a batch takes each in turn.
  int strangers = 72;
  // Tokens a stranger writes unless it is told to write fewer.
  int stranger_tokens = 400;
  std::vector<int> chunks = {1, 7, 64, 512};
  // Batches beyond kMaxBatch, each with the probe in its first row, in the
  // middle and in its last.
  std::vector<int> large_batches = {};
  std::vector<Lanes> lanes = {{.positions = 64}, {.positions = 256}};
  // With the cells in which the engine writes a whole text.
  bool texts = true;
  // With cells that load their model anew.
  bool restarts = true;
};

struct Backend {
  std::string name;
  std::vector<KvDtype> kv_dtypes;
  // The first one computes the references; it must not be missing.
  std::vector<Variant> variants;
  // Fills a new cache with what no sequence wrote, NaNs included, another
  // content for each seed: stale blocks must not show.
  std::function<void(KvCache& cache, uint64_t seed)> soil;
  // Copies bytes of a layer's cache, from a block's first row on.
  std::function<void(const KvCache& cache, int64_t layer, int64_t block,
                     std::span<std::byte> bytes)>
      read;
  // Makes the matrix's model one whose sizes the backend computes. May be
  // empty, and leaves the vocabulary alone.
  std::function<void(ModelConfig& config)> resize;
  // Where there is a checkpoint for each Weights, "bf16" and "fp8", that is run
  // instead of the matrix's own. Empty: nowhere.
  std::string checkpoints;
  Extent extent = {};
};

}  // namespace invar::contract

#endif  // INVAR_TESTS_CONTRACT_BACKEND_H_
