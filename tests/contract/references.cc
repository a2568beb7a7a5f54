#include "tests/contract/references.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>

namespace invar::contract {
namespace {

constexpr int kReferenceStepTokens = 512;

[[noreturn]] void Abandon(const Setting& setting, const Request& request,
                          const std::string& what) {
  std::fprintf(stderr, "contract_matrix: no reference for %s, %s: %s\n",
               SettingName(setting).c_str(), request.name.c_str(),
               what.c_str());
  std::abort();
}

}  // namespace

Engine::Options EngineOptions(const Model& model, int64_t kv_blocks,
                              int64_t running, int64_t step_tokens) {
  Engine::Options options;
  options.kv_blocks = kv_blocks;
  options.max_running_sequences = running;
  options.max_step_tokens = step_tokens;
  options.max_context_tokens = kContextTokens;
  options.max_top_logprobs = kTopLogprobs;
  options.tokenizer_ids = model.config().vocab_size - kPaddingIds;
  return options;
}

const Answer& References::Alone(const Setting& setting,
                                const Request& request) {
  const absl::MutexLock lock(&mutex_);
  const auto key = std::make_pair(setting, request.name);
  if (const auto found = answers_.find(key); found != answers_.end()) {
    return found->second;
  }
  const auto model = shelf_.Take(setting, /*variant=*/0);
  if (!model.ok()) Abandon(setting, request, model.status().ToString());
  EngineHarness harness(
      EngineOptions(**model, BlocksFor(kContextTokens), 1,
                    kReferenceStepTokens),
      std::make_unique<SharedModel>(*model, backend_, std::nullopt));
  const Answer& answer =
      answers_.emplace(key, harness.Run(InFull(request).submit)).first->second;
  if (answer.reason() != worker::v1::Terminal::LENGTH) {
    Abandon(setting, request, answer.terminal->message());
  }
  return answer;
}

}  // namespace invar::contract
