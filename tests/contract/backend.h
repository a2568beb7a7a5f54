// What the matrix asks of a backend, and nothing of how it computes.
#ifndef INVAR_TESTS_CONTRACT_BACKEND_H_
#define INVAR_TESTS_CONTRACT_BACKEND_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

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
  std::function<absl::StatusOr<std::unique_ptr<Model>>(
      const std::string& folder, KvDtype kv_dtype)>
      load;
};

struct Backend {
  std::string name;
  std::vector<KvDtype> kv_dtypes;
  // The first one computes the references; it must not be missing.
  std::vector<Variant> variants;
  // Fills a new cache with what no sequence wrote, NaNs included, another
  // content for each seed: stale blocks must not show. May be empty.
  std::function<void(KvCache& cache, uint64_t seed)> soil;
  // Makes the matrix's model one whose sizes the backend computes. May be
  // empty, and leaves the vocabulary alone.
  std::function<void(ModelConfig& config)> resize;
};

}  // namespace invar::contract

#endif  // INVAR_TESTS_CONTRACT_BACKEND_H_
