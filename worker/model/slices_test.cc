#include "worker/model/slices.h"

#include <gtest/gtest.h>

#include <vector>

namespace invar {
namespace {

// Slices of so many tokens at so many positions, in order.
struct Batch {
  void Add(int64_t tokens, int64_t first_position) {
    slices.push_back({.token_ids = std::span(ids).first(tokens),
                      .first_position = first_position,
                      .block_ids = {}});
  }
  // How many slices each run has.
  std::vector<size_t> Cut(int64_t parts) const {
    std::vector<size_t> sizes;
    const SequenceSlice* next = slices.data();
    for (const auto run : CutEvenly(slices, parts, /*token_cost=*/100)) {
      EXPECT_EQ(run.data(), next);  // in order, none left out
      next += run.size();
      sizes.push_back(run.size());
    }
    EXPECT_TRUE(sizes.empty() || next == slices.data() + slices.size());
    return sizes;
  }

  std::vector<int32_t> ids = std::vector<int32_t>(64);
  std::vector<SequenceSlice> slices;
};

TEST(CutEvenlyTest, CountsTokensAndWhatTheyAttendTo) {
  Batch decodes;
  for (int i = 0; i < 64; ++i) decodes.Add(1, 160);
  EXPECT_EQ(decodes.Cut(2), (std::vector<size_t>{32, 32}));
  EXPECT_EQ(decodes.Cut(3), (std::vector<size_t>{21, 22, 21}));

  Batch mixed;  // one token at 500 costs as much as six at 0
  for (int i = 0; i < 6; ++i) mixed.Add(1, 500);
  for (int i = 0; i < 36; ++i) mixed.Add(1, 0);
  EXPECT_EQ(mixed.Cut(2), (std::vector<size_t>{6, 36}));
}

TEST(CutEvenlyTest, RefusesWhatCannotBeCutEvenly) {
  Batch prompt;
  prompt.Add(64, 0);
  EXPECT_TRUE(prompt.Cut(2).empty());
  for (int i = 0; i < 32; ++i) prompt.Add(1, 0);
  EXPECT_TRUE(prompt.Cut(2).empty());
  EXPECT_EQ(prompt.Cut(1), (std::vector<size_t>{33}));
}

}  // namespace
}  // namespace invar
