#include "tests/contract/references.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"

namespace invar::contract {
namespace {

constexpr int kReferenceStepTokens = 512;

[[noreturn]] void Abandon(const Setting& setting, const std::string& request,
                          const std::string& what) {
  std::fprintf(stderr, "contract_matrix: no reference for %s, %s: %s\n",
               SettingName(setting).c_str(), request.c_str(), what.c_str());
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
  if (!model.ok()) Abandon(setting, request.name, model.status().ToString());
  EngineHarness harness(
      EngineOptions(**model, BlocksFor(kContextTokens), 1,
                    kReferenceStepTokens),
      std::make_unique<SharedModel>(*model, backend_, std::nullopt));
  const Answer& answer =
      answers_.emplace(key, harness.Run(InFull(request).submit)).first->second;
  if (answer.reason() != worker::v1::Terminal::LENGTH) {
    Abandon(setting, request.name, answer.terminal->message());
  }
  return answer;
}

const LaneRows& References::Lanes(const Setting& setting) {
  const absl::MutexLock lock(&mutex_);
  if (const auto found = lanes_.find(setting); found != lanes_.end()) {
    return found->second;
  }
  const auto model = shelf_.Take(setting, /*variant=*/0);
  if (!model.ok()) Abandon(setting, "lanes", model.status().ToString());
  const auto cache = (*model)->NewKvCache(kLanePositions / kBlockTokens);
  LaneRows rows =
      PrefillLanes(**model, *backend_, kReferenceStepTokens, *cache);
  if (!rows.finite) Abandon(setting, "lanes", "a value is not finite");
  return lanes_.emplace(setting, std::move(rows)).first->second;
}

std::vector<std::string> References::LaneDigests() {
  const absl::MutexLock lock(&mutex_);
  std::vector<std::string> lines;
  for (const auto& [setting, rows] : lanes_) {
    lines.push_back(
        absl::StrCat("digest of ", SettingName(setting), ": ", Digest(rows)));
  }
  return lines;
}

}  // namespace invar::contract
