// Runs one cell: an engine, its requests, and the comparison of all that it
// answered.
#ifndef INVAR_TESTS_CONTRACT_CELL_RUNNER_H_
#define INVAR_TESTS_CONTRACT_CELL_RUNNER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "tests/contract/backend.h"
#include "tests/contract/cell.h"
#include "tests/contract/comparison.h"
#include "tests/contract/model_shelf.h"
#include "tests/contract/references.h"

namespace invar::contract {

// Why the cell cannot run here, as "KEY=VALUE: reason"; empty if it can.
std::string SkipReason(const Cell& cell, const Backend& backend);

// One thread's. What a cell draws depends on `seed` and its name alone.
class CellRunner {
 public:
  CellRunner(const Backend* backend, const Checkpoints* checkpoints,
             References* references, uint64_t seed)
      : backend_(backend),
        shelf_(backend, checkpoints),
        references_(references),
        seed_(seed) {}

  // A cell whose situation did not come about is a finding too.
  Comparison Run(const Cell& cell);

 private:
  Comparison RunCrowd(const Cell& cell);
  // An engine for `cell` with a soiled cache.
  absl::StatusOr<std::unique_ptr<EngineHarness>> NewEngine(const Cell& cell,
                                                           int64_t kv_blocks,
                                                           int64_t running,
                                                           int64_t step_tokens);
  Comparison RunDecode(const Cell& cell, EngineHarness& engine);
  Comparison RunScore(const Cell& cell, EngineHarness& engine);
  Comparison RunResume(const Cell& cell, EngineHarness& engine);
  // By the model itself.
  Comparison RunLanes(const Cell& cell);
  // Every token of the setting's Text().
  std::vector<int32_t> TextTokens(const Setting& setting);

  const Backend* const backend_;
  ModelShelf shelf_;
  References* const references_;
  const uint64_t seed_;
};

}  // namespace invar::contract

#endif  // INVAR_TESTS_CONTRACT_CELL_RUNNER_H_
