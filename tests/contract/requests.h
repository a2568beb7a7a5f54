// The requests that the matrix's cells are made of.
#ifndef INVAR_TESTS_CONTRACT_REQUESTS_H_
#define INVAR_TESTS_CONTRACT_REQUESTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "invar/worker/v1/link.pb.h"
#include "tests/contract/cell.h"

namespace invar::contract {

// Tokens of the vocabulary that no tokenizer knows, hence never chosen.
inline constexpr int kPaddingIds = 3;
// Alternatives that a request may ask for.
inline constexpr int kTopLogprobs = 5;

// The name tells two requests apart whose bits differ.
struct Request {
  std::string name;
  worker::v1::Submit submit;
};

// The probe of a kBatch cell: as many blocks as are shared, and a tail of at
// least two chunks; its output passes the end of a block, under pressure three.
Request Probe(const Cell& cell);
// What fills the prefix cache before that probe: its first `prefix` blocks.
Request ProbePrefix(const Cell& cell);

// A stranger, with sampling parameters, seed and output of its own, of so many
// tokens.
Request Stranger(int index, int tokens);

// Writes a text of kPositions + 1 tokens from a short prompt.
Request Text();
// The prompt of Text(), positions that no cell compares.
inline constexpr int kTextPrompt = 8;

// `text` from position 0: a prompt of which every token is scored.
Request ScoreOf(const std::vector<int32_t>& text);
// Text() interrupted before `position`: one token to write.
Request ResumeAt(const std::vector<int32_t>& text, int position);

// What lanes prefill and decode: kLanePositions ids.
std::vector<int32_t> LaneText();

// Asks for all that can be asked for, and stops at nothing.
Request InFull(Request request);

}  // namespace invar::contract

#endif  // INVAR_TESTS_CONTRACT_REQUESTS_H_
