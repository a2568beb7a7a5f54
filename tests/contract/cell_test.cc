// That the matrix is whole, and that its parts are.
#include "tests/contract/cell.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/contract/cpu_backend.h"

namespace invar::contract {
namespace {

TEST(CellTest, EverySettingHasEveryPlaceAndEveryWay) {
  const Backend backend = CpuBackend();
  std::map<Setting, std::set<std::pair<int, int>>> places;
  std::map<Setting, std::set<std::tuple<int, int, int>>> ways;
  std::map<Setting, std::set<Preemption>> preemptions;
  std::map<Setting, std::set<int>> resumed;
  for (const Cell& cell : AllCells(backend, 1)) {
    if (cell.kind == Kind::kBatch) {
      places[cell.setting].emplace(cell.batch, cell.slot);
      ways[cell.setting].emplace(cell.variant, cell.chunk, cell.prefix);
      preemptions[cell.setting].insert(cell.preemption);
    } else if (cell.kind == Kind::kResume) {
      resumed[cell.setting].insert(cell.first_position);
    }
  }
  EXPECT_EQ(places.size(), 8u);
  for (const auto& [setting, all] : places) {
    EXPECT_EQ(all.size(), kMaxBatch * (kMaxBatch + 1u) / 2);
    EXPECT_EQ(ways[setting].size(),
              backend.variants.size() * 4 * (kMaxPrefixBlocks + 2));
    EXPECT_EQ(preemptions[setting].size(), 10u);
    EXPECT_EQ(resumed[setting].size(), size_t{kPositions / kResumeRange});
  }
}

// As a GPU's has them.
Backend LargeBackend() {
  Backend backend = CpuBackend();
  backend.extent.chunks = {64, 512, 1024};
  backend.extent.large_batches = {65, 256};
  backend.extent.lanes = {{.positions = 64}, {.positions = 64, .copies = 4}};
  return backend;
}

TEST(CellTest, LargeBatchesHaveThreePlacesAndLanesTheirCopies) {
  const Backend backend = LargeBackend();
  std::map<Setting, std::set<std::pair<int, int>>> places;
  std::map<Setting, std::map<int, int>> copies;
  for (const Cell& cell : AllCells(backend, 1)) {
    if (cell.kind == Kind::kBatch && cell.batch > kMaxBatch) {
      places[cell.setting].emplace(cell.batch, cell.slot);
    }
    if (cell.kind == Kind::kLanes) ++copies[cell.setting][cell.copies];
  }
  EXPECT_EQ(places.size(), 8u);
  const std::set<std::pair<int, int>> expected = {
      {65, 0}, {65, 32}, {65, 64}, {256, 0}, {256, 128}, {256, 255}};
  for (const auto& [setting, all] : places) {
    EXPECT_EQ(all, expected);
    const int variants = static_cast<int>(backend.variants.size());
    EXPECT_EQ(copies[setting],
              (std::map<int, int>{{1, variants}, {4, variants}}));
  }
}

TEST(CellTest, SamplesDifferAsMuchAsTheyCan) {
  std::vector<Cell> cells = AllCells(LargeBackend(), 1);
  std::erase_if(cells, [&](const Cell& cell) {
    return cell.setting != cells.front().setting;
  });
  std::map<Kind, int> taken;
  std::set<int> prefixes;
  std::set<int> chunks;
  std::set<Preemption> preemptions;
  std::set<bool> large;
  for (const Cell& cell : Sample(cells, 12)) {
    ++taken[cell.kind];
    if (cell.kind != Kind::kBatch) continue;
    prefixes.insert(cell.prefix);
    chunks.insert(cell.chunk);
    preemptions.insert(cell.preemption);
    large.insert(cell.batch > kMaxBatch);
  }
  EXPECT_EQ(prefixes.size(), kMaxPrefixBlocks + 2u);
  EXPECT_EQ(preemptions.size(), 10u);
  EXPECT_EQ(chunks.size(), 3u);
  EXPECT_EQ(large.size(), 2u);
  EXPECT_EQ(taken[Kind::kBatch], 12);
  EXPECT_EQ(taken[Kind::kResume], 12);
}

class NamesTest : public ::testing::TestWithParam<Backend (*)()> {};

TEST_P(NamesTest, AreUniqueAndReadBack) {
  const Backend backend = GetParam()();
  std::set<std::string> names;
  for (const Cell& cell : AllCells(backend, 3)) {
    const std::string name = CellName(cell, backend);
    names.insert(name);
    const auto parsed = ParseCell(name, backend);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, cell) << name;
  }
  EXPECT_EQ(names.size(), AllCells(backend, 3).size());
  for (const char* wrong :
       {"", "kv=e5m3/threads=1/isa=avx2", "kv=e5m2/threads=3/isa=avx2",
        "threads=1/isa=avx2/batch=4/slot=4", "threads=1/isa=avx2/prefix=x",
        "threads=1/isa=avx2/batch=66"}) {
    EXPECT_FALSE(ParseCell(wrong, backend).ok()) << wrong;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, NamesTest,
                         ::testing::Values(CpuBackend, LargeBackend));

TEST(CellTest, ShardsPartTheCellsAndTheSeedOrdersThem) {
  const Backend backend = CpuBackend();
  const std::vector<Cell> cells = AllCells(backend, 1);
  EXPECT_EQ(cells, AllCells(backend, 1));
  EXPECT_NE(cells, AllCells(backend, 2));
  std::set<std::string> names;
  size_t total = 0;
  for (int i = 1; i <= 7; ++i) {
    for (const Cell& cell : Shard(cells, i, 7)) {
      names.insert(CellName(cell, backend));
      ++total;
    }
  }
  EXPECT_EQ(total, cells.size());
  EXPECT_EQ(names.size(), cells.size());
}

}  // namespace
}  // namespace invar::contract
