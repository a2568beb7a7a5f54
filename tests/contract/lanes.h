// Every position of a text, prefilled and decoded by the model itself.
//
// Decoding thousands of tokens one after the other takes long with a large
// model. Here the text is given and cut into lanes, each a sequence of its own
// that shares the prefilled blocks before it; a step decodes the next token of
// every lane. What a lane appends to its cache must be what prefill had
// appended, so by induction a sequence decoded from its first token on would
// have the same bits.
#ifndef INVAR_TESTS_CONTRACT_LANES_H_
#define INVAR_TESTS_CONTRACT_LANES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/contract/backend.h"
#include "tests/contract/cell.h"
#include "tests/contract/comparison.h"

namespace invar::contract {

// What a model has computed of LaneText().
struct LaneRows {
  // Of each position: the likeliest ids and their log-probabilities.
  std::vector<RowAnswer> answers;
  // Of the cache, (layers, kLanePositions, row_bytes).
  std::vector<std::byte> rows;
  int64_t row_bytes = 0;
  bool finite = true;
};

// SHA-256 of all bits.
std::string Digest(const LaneRows& rows);

// In chunks, into the first blocks of `cache`.
LaneRows PrefillLanes(Model& model, const Backend& backend, int64_t chunk,
                      KvCache& cache);

// Prefills in the cell's chunks, decodes in its lanes, those of a step in an
// order drawn from `seed`, and compares both with `alone`.
Comparison CompareLanes(Model& model, const Backend& backend, const Cell& cell,
                        uint64_t seed, const LaneRows& alone);

}  // namespace invar::contract

#endif  // INVAR_TESTS_CONTRACT_LANES_H_
