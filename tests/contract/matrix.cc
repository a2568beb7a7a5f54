#include "tests/contract/matrix.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <optional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/flags.h"
#include "tests/contract/cell.h"
#include "tests/contract/cell_runner.h"

namespace invar::contract {
namespace {

// The slice is this part of all cells.
constexpr int kSliceOf = 16;
constexpr uint64_t kDefaultSeed = 1;
constexpr int kMaxFindings = 4;  // printed of a cell
constexpr int64_t kProgressEvery = 1000;

struct MatrixOptions {
  bool full = false;
  std::optional<uint64_t> seed;
  std::string shard = "1/1";
  std::string cell;
  std::vector<std::string> match;
  std::optional<int32_t> sample;
  int32_t jobs = std::max(1u, std::thread::hardware_concurrency());
  bool list = false;
  bool expect_difference = false;
  bool help = false;
};

FlagSet MakeFlags(MatrixOptions* options) {
  FlagSet flags;
  flags.Section("Which cells");
  flags.AddSwitch("full",
                  absl::StrCat("every cell, not a ", kSliceOf, "th of them"),
                  &options->full);
  flags.Add("seed", "N", "pairs, orders and fills the cells; default 1",
            &options->seed);
  flags.Add("shard", "I/N", "the Ith of N parts of them", &options->shard);
  flags.Add("match", "TEXT",
            "only cells whose name contains it; repeats narrow further",
            &options->match);
  flags.Add("sample", "N", "of these, N of each kind that differ most",
            &options->sample);
  flags.Add("cell", "NAME", "that cell alone", &options->cell);
  flags.Section("How");
  flags.Add("jobs", "N", "cells that run at once; default: one per core",
            &options->jobs);
  flags.AddSwitch("list", "print the cells' names and run none",
                  &options->list);
  flags.AddSwitch("expect-difference",
                  "succeed if a bit differs: for builds with a planted defect",
                  &options->expect_difference);
  flags.AddSwitch("help", "print this", &options->help);
  return flags;
}

absl::StatusOr<std::vector<Cell>> ChooseCells(const MatrixOptions& options,
                                              const Backend& backend) {
  if (!options.cell.empty()) {
    auto cell = ParseCell(options.cell, backend);
    if (!cell.ok()) return cell.status();
    return std::vector<Cell>{*cell};
  }
  const std::vector<std::string> parts = absl::StrSplit(options.shard, '/');
  int index = 0;
  int count = 0;
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &index) ||
      !absl::SimpleAtoi(parts[1], &count) || index < 1 || index > count) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--shard is \"", options.shard, "\"; it must be I/N, I from 1 to N"));
  }
  std::vector<Cell> cells =
      AllCells(backend, options.seed.value_or(kDefaultSeed));
  if (!options.full) cells = Shard(cells, 1, kSliceOf);
  cells = Shard(cells, index, count);
  std::erase_if(cells, [&](const Cell& cell) {
    const std::string name = CellName(cell, backend);
    return !std::all_of(options.match.begin(), options.match.end(),
                        [&name](const std::string& text) {
                          return absl::StrContains(name, text);
                        });
  });
  return options.sample.has_value() ? Sample(cells, *options.sample) : cells;
}

// Hands cells to threads and adds up what they found.
class Matrix {
 public:
  Matrix(const Backend* backend, std::string program, uint64_t seed,
         std::vector<Cell> cells)
      : backend_(backend),
        program_(std::move(program)),
        seed_(seed),
        cells_(std::move(cells)) {}

  absl::Status Run(int jobs) {
    if (absl::Status status = checkpoints_.Write(*backend_); !status.ok()) {
      return status;
    }
    References references(backend_, &checkpoints_);
    std::vector<std::thread> threads;
    for (int i = 0; i < jobs; ++i) {
      threads.emplace_back([this, &references] { Work(&references); });
    }
    for (std::thread& thread : threads) thread.join();
    for (const std::string& line : references.LaneDigests()) {
      std::printf("%s\n", line.c_str());
    }
    return absl::OkStatus();
  }

  int64_t failed() const ABSL_NO_THREAD_SAFETY_ANALYSIS { return failed_; }
  int64_t differing() const ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return total_.differing;
  }

  void PrintSummary(absl::Duration duration) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    for (const auto& [reason, count] : skipped_) {
      std::printf("skipped %lld cells of %s\n", static_cast<long long>(count),
                  reason.c_str());
    }
    std::printf(
        "%lld cells ran with %lld preemptions, %lld failed; compared %lld "
        "log-probabilities, %lld token ids and %lld rows of caches, %lld "
        "differ; %.0f s\n",
        static_cast<long long>(ran_),
        static_cast<long long>(total_.preemptions),
        static_cast<long long>(failed_),
        static_cast<long long>(total_.log_probs),
        static_cast<long long>(total_.tokens),
        static_cast<long long>(total_.cache_rows),
        static_cast<long long>(total_.differing),
        absl::ToDoubleSeconds(duration));
  }

 private:
  void Work(References* references) {
    CellRunner runner(backend_, &checkpoints_, references, seed_);
    while (const Cell* cell = Next()) {
      const std::string reason = SkipReason(*cell, *backend_);
      if (!reason.empty()) {
        const absl::MutexLock lock(&mutex_);
        ++skipped_[reason];
        continue;
      }
      Count(*cell, runner.Run(*cell));
    }
  }

  const Cell* Next() {
    const absl::MutexLock lock(&mutex_);
    return next_ < cells_.size() ? &cells_[next_++] : nullptr;
  }

  void Count(const Cell& cell, const Comparison& result) {
    const absl::MutexLock lock(&mutex_);
    if (++ran_ % kProgressEvery == 0) {
      std::printf("%lld of %zu cells\n", static_cast<long long>(ran_),
                  cells_.size());
    }
    if (!result.findings.empty()) PrintFailure(cell, result);
    failed_ += result.findings.empty() ? 0 : 1;
    total_.log_probs += result.log_probs;
    total_.tokens += result.tokens;
    total_.cache_rows += result.cache_rows;
    total_.differing += result.differing;
    total_.preemptions += result.preemptions;
    std::fflush(stdout);
  }

  void PrintFailure(const Cell& cell, const Comparison& result) const {
    const std::string name = CellName(cell, *backend_);
    std::printf("FAILED %s: %lld values differ\n", name.c_str(),
                static_cast<long long>(result.differing));
    const size_t shown = std::min<size_t>(result.findings.size(), kMaxFindings);
    for (size_t i = 0; i < shown; ++i) {
      std::printf("  %s\n", result.findings[i].c_str());
    }
    if (shown < result.findings.size()) {
      std::printf("  and %zu findings more\n", result.findings.size() - shown);
    }
    std::printf("  again: %s --seed %llu --cell %s\n", program_.c_str(),
                static_cast<unsigned long long>(seed_), name.c_str());
  }

  const Backend* const backend_;
  const std::string program_;
  const uint64_t seed_;
  const std::vector<Cell> cells_;
  Checkpoints checkpoints_;
  absl::Mutex mutex_;
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t ran_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t failed_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::string, int64_t> skipped_ ABSL_GUARDED_BY(mutex_);
  Comparison total_ ABSL_GUARDED_BY(mutex_);
};

int RunCells(const Backend& backend, const std::string& program,
             const MatrixOptions& options, const std::vector<Cell>& cells) {
  const uint64_t seed = options.seed.value_or(kDefaultSeed);
  std::printf("contract matrix on %s: seed %llu, %zu of %zu cells, %d jobs\n",
              backend.name.c_str(), static_cast<unsigned long long>(seed),
              cells.size(), AllCells(backend, seed).size(), options.jobs);
  std::fflush(stdout);
  Matrix matrix(&backend, program, seed, cells);
  const absl::Time start = absl::Now();
  if (absl::Status status = matrix.Run(options.jobs); !status.ok()) {
    std::fprintf(stderr, "contract_matrix: %s\n",
                 std::string(status.message()).c_str());
    return 1;
  }
  matrix.PrintSummary(absl::Now() - start);
  // What EngineHarness expects of the engine's accounts; it has said which.
  if (::testing::UnitTest::GetInstance()->Failed()) return 1;
  if (!options.expect_difference) return matrix.failed() == 0 ? 0 : 1;
  if (matrix.differing() > 0) return 0;
  std::printf("no cell saw the planted defect\n");
  return 1;
}

}  // namespace

int MatrixMain(const Backend& backend, const std::string& program,
               const std::vector<std::string>& arguments) {
  MatrixOptions options;
  FlagSet flags = MakeFlags(&options);
  const auto wrong = [](const absl::Status& status) {
    std::fprintf(stderr, "contract_matrix: %s\n",
                 std::string(status.message()).c_str());
    return 2;
  };
  absl::Status status = ParseFlags(program, arguments, &flags);
  if (status.ok() && options.jobs < 1) {
    status = absl::InvalidArgumentError("--jobs must be at least 1");
  }
  if (!status.ok()) return wrong(status);
  if (options.help) {
    std::printf(
        "Holds the numerics contract, bit for bit; tests/contract/"
        "README.md says how.\n\n%s",
        flags.Help().c_str());
    return 0;
  }
  const auto cells = ChooseCells(options, backend);
  if (!cells.ok()) return wrong(cells.status());
  if (options.list) {
    for (const Cell& cell : *cells) {
      std::printf("%s\n", CellName(cell, backend).c_str());
    }
    return 0;
  }
  return RunCells(backend, program, options, *cells);
}

}  // namespace invar::contract
