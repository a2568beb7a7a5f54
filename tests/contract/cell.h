// The matrix's cells: every situation in which a request's bits must stand.
#ifndef INVAR_TESTS_CONTRACT_CELL_H_
#define INVAR_TESTS_CONTRACT_CELL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/types.h"
#include "tests/contract/backend.h"

namespace invar::contract {

enum class Weights { kBf16, kFp8 };

// What may move bits: one reference for each.
struct Setting {
  KvDtype kv_dtype = KvDtype::kFp8E5m2;
  Weights weights = Weights::kBf16;
  friend auto operator<=>(const Setting&, const Setting&) = default;
};

// Up to here every batch has its cells; a backend may name some beyond.
inline constexpr int kMaxBatch = 64;
inline constexpr int kMaxPrefixBlocks = 8;
// Positions whose log-probabilities are compared between prefill and decode.
inline constexpr int kPositions = 2048;
// Positions of one resume cell.
inline constexpr int kResumeRange = 128;
// Positions that lanes compare.
inline constexpr int kLanePositions = 4096;

enum class Kind {
  kBatch,   // A probe among strangers.
  kDecode,  // A text is written, kPositions tokens long.
  kScore,   // That text is prefilled and scored.
  kResume,  // That text is prefilled up to a position, and one token written.
  kLanes,   // A given text is prefilled, and decoded at every position.
};

// When the probe, or for kNeighbours a stranger, is preempted. A block is one
// of the KV cache; sizes are of prompt and output together.
enum class Preemption {
  kNone,
  kInPrompt,    // after the prompt's first chunk
  kFirstToken,  // after the first output token
  kBlockEnd,    // one token before a block is full
  kBlockFull,   // with a full last block
  kBlockStart,  // with one token in the last block
  kLastToken,   // with one token left to write
  kOften,       // after every 16th output token
  kNeighbours,  // strangers, at random
  kPressure,    // whom the engine chooses: there are too few blocks for all
};

// A prefix of kScored also asks for the prompt's log-probabilities, for which
// the prefix cache is not read. Otherwise: blocks that it holds.
inline constexpr int kScored = -1;

struct Cell {
  Setting setting;
  int variant = 0;  // of the backend's
  Kind kind = Kind::kBatch;
  // Sequences that run at once, and those of them that started before the
  // probe: its row among the decodes of a step.
  int batch = 1;
  int slot = 0;
  // Tokens that a step has for a prompt when all others decode; at least 2
  // beside others, since the engine keeps one more than it has places.
  int chunk = 512;
  int prefix = kScored;
  Preemption preemption = Preemption::kNone;
  // With a model that was loaded for this cell alone.
  bool restart = false;
  // kResume: the first of kResumeRange positions.
  int first_position = 0;
  // kLanes: how many positions each of the sequences that share the text
  // decodes, and how many times over.
  int lane = 0;
  int copies = 1;

  friend bool operator==(const Cell&, const Cell&) = default;
};

std::string SettingName(const Setting& setting);
std::string PreemptionName(Preemption preemption);

// KEY=VALUE/KEY=VALUE/...; ParseCell reads it back, whatever the keys' order.
std::string CellName(const Cell& cell, const Backend& backend);
absl::StatusOr<Cell> ParseCell(const std::string& name, const Backend& backend);

// Every setting, and for each of them: every (batch, slot) and every (variant,
// chunk, prefix, preemption), paired at random by `seed`; every (kDecode,
// variant), (kScore, variant, chunk), (kResume, variant, range) and (kLanes,
// variant, lanes). In an order in which each Nth cell is a fair sample.
std::vector<Cell> AllCells(const Backend& backend, uint64_t seed);

// `count` of each kind, each the one that has most values of its dimensions
// that none before it has.
std::vector<Cell> Sample(const std::vector<Cell>& cells, int count);

// Part `index` of `count` (from 1) of the cells.
std::vector<Cell> Shard(const std::vector<Cell>& cells, int index, int count);

}  // namespace invar::contract

#endif  // INVAR_TESTS_CONTRACT_CELL_H_
