// How long a megabyte takes, by what it holds. Not part of the build unless
// asked for: ninja tokenizer_bench.
//
//   tokenizer_bench [--model=FOLDER] [Google Benchmark's flags]
#include <benchmark/benchmark.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "scheduler/tokenizer/tokenizer.h"

namespace invar {
namespace {

constexpr size_t kBytes = 1 << 20;

void EncodeRun(benchmark::State& state, const Tokenizer* tokenizer,
               const std::string& unit) {
  std::string text;
  while (text.size() + unit.size() <= kBytes) text += unit;
  for (auto _ : state) {
    const auto ids = tokenizer->Encode(text);
    if (!ids.ok()) {
      state.SkipWithError(ids.status().ToString().c_str());
      break;
    }
    state.counters["ids"] = static_cast<double>(ids->size());
  }
  state.SetBytesProcessed(state.iterations() *
                          static_cast<int64_t>(text.size()));
}

}  // namespace
}  // namespace invar

int main(int argc, char** argv) {
  std::string folder = "deploy/models/invar-gsm-20m";
  constexpr std::string_view kModel = "--model=";
  if (argc > 1 && std::string_view(argv[1]).substr(0, 8) == kModel) {
    folder = argv[1] + kModel.size();
    std::swap(argv[0], argv[1]);
    ++argv;
    --argc;
  }
  benchmark::Initialize(&argc, argv);
  const auto tokenizer = invar::Tokenizer::Load(folder);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.status().ToString().c_str());
    return 1;
  }
  const std::pair<const char*, const char*> runs[] = {
      {"letter", "a"},
      {"space", " "},
      {"newline", "\n"},
      {"digit", "7"},
      {"punctuation", "!"},
      {"han", "\u4E00"},
      {"emoji", "\U0001F600"},
      {"combining_mark", "\u0301"},
      {"prose", "User: Janet's 16 eggs sell for $2,345.50 each.\r\n\r\n"}};
  for (const auto& [name, unit] : runs) {
    benchmark::RegisterBenchmark(name, invar::EncodeRun, tokenizer->get(),
                                 std::string(unit))
        ->Unit(benchmark::kMillisecond);
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
