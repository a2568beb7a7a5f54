#include "tests/contract/cell_runner.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/contract/crowd.h"
#include "tests/contract/lanes.h"
#include "tests/contract/random.h"
#include "tests/contract/requests.h"

namespace invar::contract {
namespace {

// Positions of a resume cell that are computed at once.
constexpr int64_t kResumeBatch = 16;

Comparison Failed(const absl::Status& status) {
  Comparison failed;
  failed.findings.push_back(status.ToString());
  return failed;
}

}  // namespace

std::string SkipReason(const Cell& cell, const Backend& backend) {
  const Variant& variant = backend.variants[cell.variant];
  if (variant.missing.empty()) return "";
  return absl::StrCat(variant.name, ": ", variant.missing);
}

Comparison CellRunner::Run(const Cell& cell) {
  if (cell.kind == Kind::kLanes) return RunLanes(cell);
  if (cell.kind == Kind::kBatch) return RunCrowd(cell);
  const int64_t running = cell.kind == Kind::kResume ? kResumeBatch : 1;
  auto engine = NewEngine(cell, running * BlocksFor(kContextTokens), running,
                          running - 1 + cell.chunk);
  if (!engine.ok()) return Failed(engine.status());
  switch (cell.kind) {
    case Kind::kDecode:
      return RunDecode(cell, **engine);
    case Kind::kScore:
      return RunScore(cell, **engine);
    default:
      return RunResume(cell, **engine);
  }
}

Comparison CellRunner::RunCrowd(const Cell& cell) {
  auto engine =
      NewEngine(cell, CrowdBlocks(cell), cell.batch, CrowdStepTokens(cell));
  if (!engine.ok()) return Failed(engine.status());
  return Crowd(cell, SeedFor(seed_, CellName(cell, *backend_)), engine->get(),
               references_)
      .Run();
}

absl::StatusOr<std::unique_ptr<EngineHarness>> CellRunner::NewEngine(
    const Cell& cell, int64_t kv_blocks, int64_t running, int64_t step_tokens) {
  auto model = cell.restart ? shelf_.LoadAnew(cell.setting, cell.variant)
                            : shelf_.Take(cell.setting, cell.variant);
  if (!model.ok()) return model.status();
  const Engine::Options options =
      EngineOptions(**model, kv_blocks, running, step_tokens);
  return std::make_unique<EngineHarness>(
      options, std::make_unique<SharedModel>(
                   *std::move(model), backend_,
                   SeedFor(seed_ + 1, CellName(cell, *backend_))));
}

std::vector<int32_t> CellRunner::TextTokens(const Setting& setting) {
  const Request text = Text();
  std::vector<int32_t> ids(text.submit.token_ids().begin(),
                           text.submit.token_ids().end());
  const Answer& answer = references_->Alone(setting, text);
  ids.insert(ids.end(), answer.token_ids.begin(), answer.token_ids.end());
  return ids;
}

Comparison CellRunner::RunDecode(const Cell& cell, EngineHarness& engine) {
  const Request text = Text();
  return Compare(text.name, text.submit, engine.Run(text.submit),
                 references_->Alone(cell.setting, text), /*cancelled=*/false);
}

// What decode reported of a position, a prefill over it must report too.
Comparison CellRunner::RunScore(const Cell& cell, EngineHarness& engine) {
  const Answer& alone = references_->Alone(cell.setting, Text());
  std::vector<float> expected = alone.prompt_logprobs;
  expected.insert(expected.end(), alone.logprobs.begin(), alone.logprobs.end());
  const Request score = ScoreOf(TextTokens(cell.setting));
  return CompareScores(score.name, engine.Run(score.submit).prompt_logprobs,
                       expected);
}

// Every other cell first writes the text, so that prefill goes on behind
// blocks of the prefix cache that decode wrote.
Comparison CellRunner::RunResume(const Cell& cell, EngineHarness& engine) {
  if (cell.first_position / kResumeRange % 2 == 1) engine.Run(Text().submit);
  const Answer& alone = references_->Alone(cell.setting, Text());
  const std::vector<int32_t> text = TextTokens(cell.setting);
  const int64_t end = cell.first_position + kResumeRange;
  std::vector<Request> requests;
  for (int64_t p = std::max(kTextPrompt, cell.first_position); p <= end; ++p) {
    requests.push_back(ResumeAt(text, static_cast<int>(p)));
    requests.back().submit.mutable_key()->set_request(p);
  }
  Comparison result;
  for (size_t first = 0; first < requests.size(); first += kResumeBatch) {
    const size_t last = std::min(requests.size(), first + kResumeBatch);
    for (size_t i = first; i < last; ++i) engine.Submit(requests[i].submit);
    engine.Drain();
    for (size_t i = first; i < last; ++i) {
      const worker::v1::Submit& submit = requests[i].submit;
      result += Compare(requests[i].name, submit,
                        engine.answer(submit.key().request()), alone,
                        /*cancelled=*/false);
    }
  }
  return result;
}

Comparison CellRunner::RunLanes(const Cell& cell) {
  const auto model = shelf_.Take(cell.setting, cell.variant);
  if (!model.ok()) return Failed(model.status());
  return CompareLanes(**model, *backend_, cell,
                      SeedFor(seed_, CellName(cell, *backend_)),
                      references_->Lanes(cell.setting));
}

}  // namespace invar::contract
