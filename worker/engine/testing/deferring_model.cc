#include "worker/engine/testing/deferring_model.h"

#include <cstdio>
#include <cstdlib>
#include <span>

namespace invar {
namespace {

void Require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "Model::Start: %s\n", what);
  std::abort();
}

}  // namespace

std::vector<SliceHealth> DeferringModel::Forward(
    std::span<const SequenceSlice> slices, KvCache& cache,
    std::span<float> logits) {
  Require(in_flight_.empty(), "Forward while a step is in flight");
  return model_->Forward(slices, cache, logits);
}

std::vector<SliceHealth> DeferringModel::Answer(
    std::span<const SequenceSlice> slices, KvCache& cache, int64_t limit,
    std::span<const RowRequest> requests, std::span<RowAnswer> answers) {
  Require(in_flight_.empty(), "Answer while a step is in flight");
  return model_->Answer(slices, cache, limit, requests, answers);
}

void DeferringModel::Start(std::span<const SequenceSlice> slices,
                           KvCache& cache, int64_t limit,
                           std::span<const RowRequest> requests) {
  Require(static_cast<int64_t>(in_flight_.size()) < StepsInFlight(),
          "too many steps are in flight");
  StartedStep step;
  for (const SequenceSlice& slice : slices) {
    if (slice.chosen_row >= 0) {
      Require(slice.token_ids.size() == 1, "a choice is one token");
      Require(!in_flight_.empty(), "no step is in flight that could choose");
      const auto& before = in_flight_.back().requests;
      Require(slice.chosen_row < static_cast<int64_t>(before.size()) &&
                  before[slice.chosen_row].task == RowTask::kChoose,
              "the step before chooses nothing in that row");
    }
    step.slices.push_back({{slice.token_ids.begin(), slice.token_ids.end()},
                           {slice.block_ids.begin(), slice.block_ids.end()},
                           slice});
  }
  step.cache = &cache;
  step.limit = limit;
  step.requests.assign(requests.begin(), requests.end());
  for (const RowRequest& request : requests) {
    step.uses.emplace_back(request.uses.begin(), request.uses.end());
  }
  in_flight_.push_back(std::move(step));
}

std::vector<SliceHealth> DeferringModel::Finish(std::span<RowAnswer> answers) {
  Require(!in_flight_.empty(), "Finish without a step in flight");
  StartedStep step = std::move(in_flight_.front());
  in_flight_.pop_front();
  std::vector<SequenceSlice> slices;
  for (StartedSlice& started : step.slices) {
    const int64_t row = started.slice.chosen_row;
    if (row >= 0) started.token_ids[0] = chosen_[row];
    slices.push_back({.token_ids = started.token_ids,
                      .first_position = started.slice.first_position,
                      .block_ids = started.block_ids,
                      .logit_rows = started.slice.logit_rows});
  }
  for (size_t i = 0; i < step.requests.size(); ++i) {
    step.requests[i].uses = step.uses[i];
  }
  std::vector<SliceHealth> health =
      model_->Answer(slices, *step.cache, step.limit, step.requests, answers);
  chosen_.clear();
  for (const RowAnswer& answer : answers) {
    chosen_.push_back(answer.token.token_id);
  }
  return health;
}

bool PlansAhead() {
  const char* ahead = std::getenv("INVAR_STEPS_AHEAD");
  return ahead != nullptr && ahead[0] == '1';
}

std::unique_ptr<Model> ForThisRun(std::unique_ptr<Model> model) {
  if (!PlansAhead()) return model;
  return std::make_unique<DeferringModel>(std::move(model));
}

}  // namespace invar
