// The model that the matrix runs: two random layers, one dense and one of
// experts, with every trait that could move a bit.
#ifndef INVAR_TESTS_CONTRACT_CHECKPOINT_H_
#define INVAR_TESTS_CONTRACT_CHECKPOINT_H_

#include <string>

#include "absl/status/status.h"
#include "tests/contract/cell.h"
#include "worker/model/checkpoint/config.h"

namespace invar::contract {

// Row-parallel weights of several leaves, heads that no power of two divides,
// YaRN, and a context beyond kPositions.
ModelConfig ContractModelConfig(Weights weights);

// Writes such a model into `folder`, with router rows in equal pairs: every
// token's scores tie, and with an odd top_k its last expert is chosen by a tie
// alone.
absl::Status WriteContractCheckpoint(const std::string& folder,
                                     const ModelConfig& config);

}  // namespace invar::contract

#endif  // INVAR_TESTS_CONTRACT_CHECKPOINT_H_
