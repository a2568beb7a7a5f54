// Bisects two runs whose bits differ, by layer, operation and position; see
// Help. A tool of its own rather than a flag of the worker: a run is repeated
// without sockets, from what a person has: a checkpoint and ids.
#include <cstdio>
#include <fstream>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/flags.h"
#include "worker/model/digests.h"

namespace invar {
namespace {

constexpr const char* kProgram = "model_digests";

using Lines = std::vector<std::string>;

struct DigestFlags {
  std::string model;
  std::optional<std::vector<int32_t>> ids;
  std::vector<std::string> runs;
  std::vector<std::string> dumps;
  bool help = false;
};

FlagSet MakeFlags(DigestFlags* flags) {
  FlagSet set;
  set.Section("What is computed");
  set.Add("model", "FOLDER", "the checkpoint", &flags->model);
  set.Add("ids", "LIST", "the text, as token ids: 5,6,7", &flags->ids);
  set.Section(
      "One run prints its digests; of two the first difference is named");
  set.Add("run", "SETTINGS",
          "pairs with commas, each with a default: "
          "kv=fp8_e5m2|fp8_e4m3|bf16|fp32, threads=N (0: one a core), chunk=N "
          "(positions at once; 0: all), isa=avx2|avx512|avx512_bf16, model=FOLDER",
          &flags->runs);
  set.Add("dump", "FILE", "a run that was printed before, or elsewhere",
          &flags->dumps);
  set.AddSwitch("help", "print this", &flags->help);
  return set;
}

std::string Help() {
  DigestFlags unused;
  return absl::StrCat(
      "Bisects two runs whose bits differ: a digest for each layer, operation "
      "and\nposition, in the order of computation.\n\n"
      "  model_digests --model FOLDER --ids 5,6,7 --run threads=1 "
      "--run chunk=1,isa=avx2\n"
      "  model_digests --model FOLDER --ids 5,6,7 >HERE\n"
      "  model_digests --model FOLDER --ids 5,6,7 --dump THERE\n"
      "  model_digests --dump HERE --dump THERE\n\n"
      "Exits 1 if two runs differ, 2 if one could not be had.\n\n",
      MakeFlags(&unused).Help());
}

struct Run {
  Model::LoadOptions options;
  int32_t chunk = 0;
};

bool SetKvDtype(absl::string_view name, KvDtype* dtype) {
  constexpr std::pair<absl::string_view, KvDtype> kNames[] = {
      {"fp8_e5m2", KvDtype::kFp8E5m2},
      {"fp8_e4m3", KvDtype::kFp8E4m3},
      {"bf16", KvDtype::kBf16},
      {"fp32", KvDtype::kFp32}};
  for (const auto& [known, value] : kNames) {
    if (known != name) continue;
    *dtype = value;
    return true;
  }
  return false;
}

bool SetIsa(absl::string_view name, cpu::Isa* isa) {
  for (const cpu::Isa known :
       {cpu::Isa::kAvx2, cpu::Isa::kAvx512, cpu::Isa::kAvx512Bf16}) {
    if (name != cpu::Name(known)) continue;
    *isa = known;
    return known <= cpu::BestIsa();
  }
  return false;
}

bool SetOne(absl::string_view key, absl::string_view value, Run* run) {
  if (key == "kv") return SetKvDtype(value, &run->options.kv_dtype);
  if (key == "isa") return SetIsa(value, &run->options.isa);
  if (key == "model") {
    run->options.path = std::string(value);
    return true;
  }
  if (key == "threads") {
    return absl::SimpleAtoi(value, &run->options.threads) &&
           run->options.threads >= 0;
  }
  return key == "chunk" && absl::SimpleAtoi(value, &run->chunk) &&
         run->chunk >= 0;
}

absl::StatusOr<Run> ParseRun(const DigestFlags& flags,
                             const std::string& text) {
  Run run;
  run.options.path = flags.model;
  for (const absl::string_view pair :
       absl::StrSplit(text, ',', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(pair, absl::MaxSplits('=', 1));
    if (SetOne(parts.first, parts.second, &run)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "--run: \"", pair, "\" is no setting of this machine; see --help"));
  }
  if (run.options.path.empty() || !flags.ids.has_value() ||
      flags.ids->empty()) {
    return absl::InvalidArgumentError(
        "a run needs --model and --ids; see --help");
  }
  return run;
}

absl::StatusOr<Lines> Compute(const Run& run, const std::vector<int32_t>& ids) {
  const auto model = Model::Load(run.options);
  if (!model.ok()) return model.status();
  for (const int32_t id : ids) {
    if (id >= 0 && id < (*model)->config().vocab_size) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--ids: ", id, " is outside the vocabulary of ",
                     (*model)->config().vocab_size));
  }
  const auto all = static_cast<int64_t>(ids.size());
  return DumpDigests(**model, ids, run.chunk == 0 ? all : run.chunk);
}

absl::StatusOr<Lines> ReadDump(const std::string& path) {
  std::ifstream file(path);
  Lines lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  if (file.eof()) return lines;
  return absl::NotFoundError(absl::StrCat("--dump: cannot read ", path));
}

// One side or two: runs and dumps.
absl::Status Collect(const DigestFlags& flags, std::vector<Lines>* sides) {
  std::vector<std::string> runs = flags.runs;
  if (runs.empty() && flags.dumps.size() < 2) runs.push_back("");
  if (runs.size() + flags.dumps.size() > 2) {
    return absl::InvalidArgumentError(
        "more than two of --run and --dump; see --help");
  }
  for (const std::string& path : flags.dumps) {
    auto lines = ReadDump(path);
    if (!lines.ok()) return lines.status();
    sides->push_back(*std::move(lines));
  }
  for (const std::string& text : runs) {
    const auto run = ParseRun(flags, text);
    if (!run.ok()) return run.status();
    auto lines = Compute(*run, *flags.ids);
    if (!lines.ok()) return lines.status();
    sides->push_back(*std::move(lines));
  }
  return absl::OkStatus();
}

int Main(const std::vector<std::string>& arguments) {
  DigestFlags flags;
  FlagSet set = MakeFlags(&flags);
  absl::Status status = ParseFlags(kProgram, arguments, &set);
  if (status.ok() && flags.help) {
    std::fputs(Help().c_str(), stdout);
    return 0;
  }
  std::vector<Lines> sides;
  if (status.ok()) status = Collect(flags, &sides);
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", kProgram,
                 std::string(status.message()).c_str());
    return 2;
  }
  if (sides.size() == 1) {
    for (const std::string& line : sides.front()) std::puts(line.c_str());
    return 0;
  }
  const std::string difference = FirstDifference(sides[0], sides[1]);
  if (difference.empty()) {
    std::printf("identical: %zu digests\n", sides.front().size());
    return 0;
  }
  std::printf("the first that differs (layer operation position digest):\n%s\n",
              difference.c_str());
  return 1;
}

}  // namespace
}  // namespace invar

int main(int argc, char** argv) {
  return invar::Main(std::vector<std::string>(argv + 1, argv + argc));
}
