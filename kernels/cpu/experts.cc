#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/cpu/aligned.h"
#include "kernels/cpu/dot.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

// One expert's share of the step: which slots (token * top_k + rank) chose it.
struct Group {
  const Expert* expert;
  std::vector<int64_t> slots;
};

std::vector<Group> GroupByExpert(std::span<const Expert> experts,
                                 const int32_t* ids, int64_t slots) {
  std::vector<Group> all(experts.size());
  for (int64_t slot = 0; slot < slots; ++slot) {
    all[ids[slot]].slots.push_back(slot);
  }
  std::vector<Group> chosen;
  for (size_t e = 0; e < experts.size(); ++e) {
    if (all[e].slots.empty()) continue;
    all[e].expert = &experts[e];
    chosen.push_back(std::move(all[e]));
  }
  return chosen;
}

// Rows [begin, end) of `weight` for one group: a claim of the pool.
struct Unit {
  const Group* group;
  const Weight* weight;
  int64_t begin;
  int64_t end;
  float* out;  // (slots, rows)
};

// whole: not in pieces, for all groups' weights are enough units.
void AddUnits(const Group& group, const Weight& weight, bool whole, float* out,
              std::vector<Unit>& units) {
  const int64_t grain =
      whole ? weight.rows
            : DotGrain(weight, static_cast<int64_t>(group.slots.size()));
  for (int64_t row = 0; row < weight.rows; row += grain) {
    units.push_back(
        {&group, &weight, row, std::min(row + grain, weight.rows), out});
  }
}

const std::byte* FirstByte(const Unit& unit) {
  return unit.weight->data + unit.begin * unit.weight->columns *
                                 WeightElementBytes(unit.weight->dtype);
}

// A group's slots as DotProducts has them, and their outputs.
struct GroupTokens {
  std::vector<const float*> from;
  std::vector<const uint32_t*> pairs;
  std::vector<float> scales;
  std::vector<float*> to;

  void Gather(const Unit& unit, const QuantizedInput& x,
              int64_t slots_per_row) {
    from.clear();
    pairs.clear();
    scales.clear();
    to.clear();
    const int64_t columns = unit.weight->columns;
    for (const int64_t slot : unit.group->slots) {
      const int64_t row = slot / slots_per_row;
      from.push_back(x.values + row * columns);
      if (!x.pairs.empty()) {
        pairs.push_back(x.pairs.data() + row * PairsOf(columns));
      }
      if (!x.scales.empty()) scales.push_back(x.scales[row]);
      to.push_back(unit.out + slot * unit.weight->rows);
    }
  }
};

// out[slot] = W x[slot / slots_per_row] for the slots of each unit.
void RunUnits(ThreadPool& pool, const std::vector<Unit>& units,
              const QuantizedInput& x, int64_t slots_per_row) {
  const auto run = [&](int64_t begin, int64_t end) {
    GroupTokens tokens;
    for (int64_t u = begin; u < end; ++u) {
      const Unit& unit = units[u];
      if (u == begin || unit.weight != units[u - 1].weight) {
        tokens.Gather(unit, x, slots_per_row);
      }
      Dot(pool.isa(),
          {.weight = unit.weight,
           .row_begin = unit.begin,
           .row_end = unit.end,
           .leaf = 0,
           .input_scales =
               tokens.scales.empty() ? nullptr : tokens.scales.data(),
           .input_scale = x.scale,
           .x = tokens.from.data(),
           .pairs = tokens.pairs.empty() ? nullptr : tokens.pairs.data(),
           .out = tokens.to.data(),
           .tokens = static_cast<int64_t>(tokens.from.size()),
           .next = u + 1 < end ? FirstByte(units[u + 1]) : nullptr});
    }
  };
  pool.ParallelFor(static_cast<int64_t>(units.size()), 1, run);
}

}  // namespace

void Experts(ThreadPool& pool, std::span<const Expert> experts, const float* x,
             int64_t tokens, const int32_t* ids, int64_t top_k, float* slots) {
  const int64_t inner = experts[0].gate.rows;
  const int64_t count = tokens * top_k;
  const std::vector<Group> groups = GroupByExpert(experts, ids, count);
  // All experts quantise their inputs alike.
  const QuantizedInput input = QuantizeInput(pool, experts[0].gate, x, tokens);
  AlignedVector<float> gate(count * inner);
  AlignedVector<float> up(count * inner);
  // Groups differ in size, so a thread takes some units.
  const auto are_enough = [&pool](size_t units) {
    constexpr size_t kUnitsAThread = 8;
    return pool.threads() == 1 || units >= kUnitsAThread * pool.threads();
  };
  std::vector<Unit> units;
  bool whole = are_enough(2 * groups.size());
  for (const Group& group : groups) {
    AddUnits(group, group.expert->gate, whole, gate.data(), units);
    AddUnits(group, group.expert->up, whole, up.data(), units);
  }
  RunUnits(pool, units, input, top_k);
  SiluMul(pool, gate.data(), up.data(), count * inner, gate.data());
  const QuantizedInput product =
      QuantizeInput(pool, experts[0].down, gate.data(), count);
  units.clear();
  whole = are_enough(groups.size());
  for (const Group& group : groups) {
    AddUnits(group, group.expert->down, whole, slots, units);
  }
  RunUnits(pool, units, product, 1);
}

}  // namespace invar::cpu
