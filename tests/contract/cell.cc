#include "tests/contract/cell.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/contract/random.h"

namespace invar::contract {
namespace {

// One cell in so many loads its model anew.
constexpr int kRestartEvery = 8;

constexpr const char* kKvNames[] = {"e5m2", "e4m3", "bf16", "fp32"};
constexpr const char* kWeightsNames[] = {"bf16", "fp8"};
constexpr const char* kPreemptionNames[] = {
    "none",        "in-prompt",  "first-token", "block-end",  "block-full",
    "block-start", "last-token", "often",       "neighbours", "pressure"};

// The value of a name in an array of them; -1: none.
template <size_t kCount>
int IndexOf(const char* const (&names)[kCount], absl::string_view name) {
  const auto found = std::find(names, names + kCount, name);
  return found == names + kCount ? -1 : static_cast<int>(found - names);
}

std::string PrefixName(int prefix) {
  if (prefix == kScored) return "scored";
  return prefix == 0 ? "cold" : absl::StrCat(prefix);
}

// Where a batch cell's probe runs, or how; a cell is a pair of both.
struct Place {
  int batch;
  int slot;
};
struct Way {
  int variant;
  int chunk;
  int prefix;
  Preemption preemption;
};

std::vector<Place> AllPlaces(const Extent& extent) {
  std::vector<Place> places;
  for (const int batch : extent.large_batches) {
    for (const int slot : {0, batch / 2, batch - 1}) {
      places.push_back({batch, slot});
    }
  }
  for (int batch = 1; batch <= kMaxBatch; ++batch) {
    for (int slot = 0; slot < batch; ++slot) places.push_back({batch, slot});
  }
  return places;
}

std::vector<Way> AllWays(int variants, const std::vector<int>& chunks) {
  std::vector<Way> ways;
  for (int variant = 0; variant < variants; ++variant) {
    for (const int chunk : chunks) {
      for (int prefix = kScored; prefix <= kMaxPrefixBlocks; ++prefix) {
        for (size_t p = 0; p < std::size(kPreemptionNames); ++p) {
          ways.push_back({variant, chunk, prefix, static_cast<Preemption>(p)});
        }
      }
    }
  }
  return ways;
}

void AddBatchCells(const Setting& setting, int variants, const Extent& extent,
                   Random& random, std::vector<Cell>& cells) {
  std::vector<Place> places = AllPlaces(extent);
  std::vector<Way> ways = AllWays(variants, extent.chunks);
  random.Shuffle(places);
  random.Shuffle(ways);
  for (size_t i = 0; i < std::max(places.size(), ways.size()); ++i) {
    const Place& place = places[i % places.size()];
    Way way = ways[i % ways.size()];
    // Strangers who come again fill the same blocks and share them: no
    // pressure.
    if (place.batch > 2 * extent.strangers &&
        way.preemption == Preemption::kPressure) {
      way.preemption = Preemption::kNeighbours;
    }
    // Nobody else is there to be preempted.
    if (place.batch == 1 && (way.preemption == Preemption::kNeighbours ||
                             way.preemption == Preemption::kPressure)) {
      way.preemption = Preemption::kOften;
    }
    cells.push_back(
        {.setting = setting,
         .variant = way.variant,
         .batch = place.batch,
         .slot = place.slot,
         .chunk = way.chunk,
         .prefix = way.prefix,
         .preemption = way.preemption,
         .restart = extent.restarts && random.Below(kRestartEvery) == 0});
  }
}

int AnyChunk(const Extent& extent, Random& random) {
  return extent
      .chunks[random.Below(static_cast<int64_t>(extent.chunks.size()))];
}

void AddTextCells(const Setting& setting, int variants, const Extent& extent,
                  Random& random, std::vector<Cell>& cells) {
  for (int variant = 0; variant < variants; ++variant) {
    cells.push_back(
        {.setting = setting, .variant = variant, .kind = Kind::kDecode});
    for (const int chunk : extent.chunks) {
      cells.push_back({.setting = setting,
                       .variant = variant,
                       .kind = Kind::kScore,
                       .chunk = chunk});
    }
    for (int first = 0; first < kPositions; first += kResumeRange) {
      cells.push_back({.setting = setting,
                       .variant = variant,
                       .kind = Kind::kResume,
                       .chunk = AnyChunk(extent, random),
                       .first_position = first});
    }
  }
}

void AddLaneCells(const Setting& setting, int variants, const Extent& extent,
                  Random& random, std::vector<Cell>& cells) {
  for (int variant = 0; variant < variants; ++variant) {
    for (const Lanes& lanes : extent.lanes) {
      const int any = AnyChunk(extent, random);
      cells.push_back({.setting = setting,
                       .variant = variant,
                       .kind = Kind::kLanes,
                       .chunk = lanes.chunk == 0 ? any : lanes.chunk,
                       .lane = lanes.positions,
                       .copies = lanes.copies});
    }
  }
}

bool HasBatch(const Extent& extent, int batch) {
  const std::vector<int>& large = extent.large_batches;
  return (batch >= 1 && batch <= kMaxBatch) ||
         std::find(large.begin(), large.end(), batch) != large.end();
}

// Sets one dimension of a cell; false if the pair says nothing.
bool SetDimension(const Extent& extent, const std::string& key,
                  const std::string& value, Cell& cell) {
  int number = 0;
  const bool numeric = absl::SimpleAtoi(value, &number) && number >= 0;
  if (key == "kv") {
    const int index = IndexOf(kKvNames, value);
    cell.setting.kv_dtype = static_cast<KvDtype>(index);
    return index >= 0;
  }
  if (key == "weights") {
    const int index = IndexOf(kWeightsNames, value);
    cell.setting.weights = static_cast<Weights>(index);
    return index >= 0;
  }
  if (key == "preempt") {
    const int index = IndexOf(kPreemptionNames, value);
    cell.preemption = static_cast<Preemption>(index);
    return index >= 0;
  }
  if (key == "prefix") {
    const bool named = value == "scored" || value == "cold";
    cell.prefix = value == "scored" ? kScored : value == "cold" ? 0 : number;
    return named || (numeric && number <= kMaxPrefixBlocks);
  }
  if (!numeric) return false;
  if (key == "batch") {
    cell.batch = number;
    return HasBatch(extent, number);
  }
  if (key == "chunk") {
    cell.chunk = number;
    return number >= 1;
  }
  if (key == "slot") cell.slot = number;
  if (key == "restart") cell.restart = number != 0;
  if (key == "decode") cell.kind = Kind::kDecode;
  if (key == "score") cell.kind = Kind::kScore;
  if (key == "lanes") {
    cell.kind = Kind::kLanes;
    cell.lane = number;
    return number > 0 && number % kBlockTokens == 0 &&
           kLanePositions % number == 0;
  }
  if (key == "copies") {
    cell.copies = number;
    return number >= 1;
  }
  if (key == "resume") {
    cell.kind = Kind::kResume;
    cell.first_position = number;
    return number < kPositions;
  }
  return key == "slot" || key == "restart" || key == "decode" || key == "score";
}

// What Sample spreads over. Batches count by their size's order.
std::vector<std::pair<int, int>> Values(const Cell& cell) {
  int size = 0;
  while (1 << size < cell.batch) ++size;
  int dimension = 0;
  std::vector<std::pair<int, int>> values;
  for (const int value :
       {static_cast<int>(cell.setting.kv_dtype),
        static_cast<int>(cell.setting.weights), cell.variant, size, cell.chunk,
        cell.prefix, static_cast<int>(cell.preemption),
        static_cast<int>(cell.restart), cell.first_position, cell.lane,
        cell.copies}) {
    values.emplace_back(dimension++, value);
  }
  return values;
}

// Takes the cell with most values that `seen` lacks out of `cells`.
Cell TakeNewest(std::vector<Cell>& cells,
                const std::set<std::pair<int, int>>& seen) {
  const auto unseen = [&seen](const Cell& cell) {
    const auto values = Values(cell);
    return std::count_if(
        values.begin(), values.end(),
        [&seen](const auto& value) { return !seen.contains(value); });
  };
  auto best = cells.begin();
  auto most = unseen(*best);
  for (auto cell = std::next(best); cell != cells.end(); ++cell) {
    if (const auto count = unseen(*cell); count > most) {
      best = cell;
      most = count;
    }
  }
  const Cell taken = *best;
  cells.erase(best);
  return taken;
}

}  // namespace

std::string SettingName(const Setting& setting) {
  return absl::StrCat(
      "kv=", kKvNames[static_cast<int>(setting.kv_dtype)],
      "/weights=", kWeightsNames[static_cast<int>(setting.weights)]);
}

std::string PreemptionName(Preemption preemption) {
  return kPreemptionNames[static_cast<int>(preemption)];
}

std::string CellName(const Cell& cell, const Backend& backend) {
  const std::string where = absl::StrCat(SettingName(cell.setting), "/",
                                         backend.variants[cell.variant].name);
  switch (cell.kind) {
    case Kind::kBatch:
      return absl::StrCat(where, "/batch=", cell.batch, "/slot=", cell.slot,
                          "/chunk=", cell.chunk,
                          "/prefix=", PrefixName(cell.prefix),
                          "/preempt=", PreemptionName(cell.preemption),
                          "/restart=", cell.restart ? 1 : 0);
    case Kind::kDecode:
      return absl::StrCat(where, "/decode=", kPositions);
    case Kind::kScore:
      return absl::StrCat(where, "/score=", kPositions, "/chunk=", cell.chunk);
    case Kind::kResume:
      return absl::StrCat(where, "/resume=", cell.first_position,
                          "/chunk=", cell.chunk);
    case Kind::kLanes:
      return absl::StrCat(
          where, "/lanes=", cell.lane,
          cell.copies == 1 ? "" : absl::StrCat("/copies=", cell.copies),
          "/chunk=", cell.chunk);
  }
  return where;
}

absl::StatusOr<Cell> ParseCell(const std::string& name,
                               const Backend& backend) {
  Cell cell;
  std::vector<std::string> of_variant;
  for (const auto part : absl::StrSplit(name, '/')) {
    const std::string pair(part);
    const std::pair<std::string, std::string> key_value =
        absl::StrSplit(pair, absl::MaxSplits('=', 1));
    if (!SetDimension(backend.extent, key_value.first, key_value.second,
                      cell)) {
      of_variant.push_back(pair);
    }
  }
  for (size_t i = 0; i < backend.variants.size(); ++i) {
    const std::vector<std::string> pairs =
        absl::StrSplit(backend.variants[i].name, '/');
    if (std::is_permutation(pairs.begin(), pairs.end(), of_variant.begin(),
                            of_variant.end())) {
      cell.variant = static_cast<int>(i);
      if (cell.slot < cell.batch) return cell;
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no cell is named \"", name, "\"; --list shows them"));
}

std::vector<Cell> AllCells(const Backend& backend, uint64_t seed) {
  std::vector<Cell> cells;
  const int variants = static_cast<int>(backend.variants.size());
  for (const KvDtype kv_dtype : backend.kv_dtypes) {
    for (const Weights weights : {Weights::kBf16, Weights::kFp8}) {
      const Setting setting = {kv_dtype, weights};
      Random random(SeedFor(seed, SettingName(setting)));
      std::vector<Cell> own;
      AddBatchCells(setting, variants, backend.extent, random, own);
      if (backend.extent.texts) {
        AddTextCells(setting, variants, backend.extent, random, own);
      }
      AddLaneCells(setting, variants, backend.extent, random, own);
      random.Shuffle(own);
      cells.insert(cells.end(), own.begin(), own.end());
    }
  }
  return cells;
}

std::vector<Cell> Sample(const std::vector<Cell>& cells, int count) {
  std::map<Kind, std::vector<Cell>> of_kind;
  for (const Cell& cell : cells) of_kind[cell.kind].push_back(cell);
  std::vector<Cell> sample;
  for (auto& [kind, rest] : of_kind) {
    std::set<std::pair<int, int>> seen;
    for (int i = 0; i < count && !rest.empty(); ++i) {
      sample.push_back(TakeNewest(rest, seen));
      for (const auto& value : Values(sample.back())) seen.insert(value);
    }
  }
  return sample;
}

std::vector<Cell> Shard(const std::vector<Cell>& cells, int index, int count) {
  std::vector<Cell> part;
  for (size_t i = index - 1; i < cells.size(); i += count) {
    part.push_back(cells[i]);
  }
  return part;
}

}  // namespace invar::contract
