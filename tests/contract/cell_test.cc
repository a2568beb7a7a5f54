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

TEST(CellTest, NamesAreUniqueAndReadBack) {
  const Backend backend = CpuBackend();
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
        "threads=1/isa=avx2/batch=65"}) {
    EXPECT_FALSE(ParseCell(wrong, backend).ok()) << wrong;
  }
}

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
