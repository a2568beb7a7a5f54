// Steps that are enqueued while the host works on, and answers to rows of
// logits without moving the logits: CudaModel::Start and Finish.
#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

#include "kernels/cuda/check.h"
#include "worker/model/checkpoint/gpu_steps.h"
#include "worker/model/cuda/cuda_model.h"
#include "worker/model/slices.h"

namespace invar::cuda {
namespace {

// What the kernel does not do, the CPU does, with the same bits.
bool IsTheCpus(const RowRequest& request) {
  return request.task == RowTask::kChoose &&
         (!request.uses.empty() || request.likeliest > kMaxTopLogProbs);
}

SampleRow ToSampleRow(const RowRequest& request) {
  SampleRow row;
  if (request.task != RowTask::kChoose || IsTheCpus(request)) {
    row.given_id = request.scored_token;
    row.log_prob = request.task == RowTask::kScore;
    return row;
  }
  row.parameters = request.sampling;
  row.seed = request.seed;
  row.position = request.position;
  row.log_prob = request.log_prob;
  row.top_log_probs = static_cast<int32_t>(request.likeliest);
  return row;
}

RowAnswer ToAnswer(const SampledRow& sampled, int64_t limit,
                   const RowRequest& request) {
  RowAnswer answer;
  answer.token = {sampled.id, sampled.log_prob};
  for (int64_t i = 0; i < std::min(request.likeliest, limit); ++i) {
    answer.likeliest.push_back({sampled.top_ids[i], sampled.top_log_probs[i]});
  }
  return answer;
}

// With the ids that `chosen` has for the rows that slices name, kept in `ids`.
std::vector<SequenceSlice> KnownSlices(std::span<const SequenceSlice> slices,
                                       std::span<const RowAnswer> chosen,
                                       std::vector<int32_t>* ids) {
  std::vector<SequenceSlice> known(slices.begin(), slices.end());
  ids->resize(slices.size());
  for (size_t i = 0; i < known.size(); ++i) {
    const int64_t row = std::exchange(known[i].chosen_row, -1);
    if (row < 0) continue;
    (*ids)[i] = chosen[row].token.token_id;
    known[i].token_ids = std::span(*ids).subspan(i, 1);
  }
  return known;
}

}  // namespace

void CudaModel::StageRequests(const Pass& pass,
                              std::span<const RowRequest> requests) {
  SampleRow given;
  given.given_id = 0;
  for (int64_t i = 0; i < pass.launched_rows; ++i) {
    step_.host.rows[i] = i < pass.rows ? ToSampleRow(requests[i]) : given;
  }
}

void CudaModel::Sample(const Pass& pass, int64_t limit, int64_t first,
                       int64_t count) {
  cuda::Sample(step_.logits.data(), count, config_.vocab_size, limit,
               step_.device.rows + first, step_.results.sampled + first,
               main_.Next());
}

GraphKey CudaModel::MakeGraphs(const Pass& pass, KvCache& cache,
                               int64_t limit) {
  const GraphKey key = {.size = {pass.launched_tokens, pass.max_position},
                        .limit = limit,
                        .cache = cache.Block(0, 0),
                        .cache_blocks = cache.blocks()};
  // Enough work to hide the launch of the rest.
  const int64_t begun = std::min<int64_t>(3, config_.layers);
  const std::function<void()> parts[] = {
      [&] {
        BeginLayers(pass);
        RunLayers(pass, cache, 0, begun);
      },
      [&] {
        RunLayers(pass, cache, begun, config_.layers);
        EndLayers(pass);
        RunRows(pass, [&](int64_t first, int64_t count) {
          Sample(pass, limit, first, count);
        });
      }};
  graphs_.Make(key, main_.stream(), parts);
  return key;
}

void CudaModel::Prepare(KvCache& cache, int64_t limit) {
  Check(cudaSetDevice(options_.device), "choosing the device");
  const int64_t most_tokens = step_.limits.tokens;
  const int64_t positions =
      std::min(step_.limits.max_positions, cache.blocks() * kBlockTokens);
  // A kernel's code is loaded when it is first launched, and which kernels are
  // depends on the size of a prompt.
  const int64_t longest = std::min(most_tokens, positions);
  const std::vector<int32_t> ids(longest);
  std::vector<int32_t> blocks(cache.blocks());
  std::iota(blocks.begin(), blocks.end(), 0);
  RowRequest request;
  request.task = RowTask::kChoose;
  RowAnswer answer;
  for (int64_t tokens = longest; tokens > 0; tokens /= 2) {
    const SequenceSlice slice = {.token_ids = std::span(ids).first(tokens),
                                 .block_ids = blocks,
                                 .logit_rows = 1};
    Answer({&slice, 1}, cache, limit, {&request, 1}, {&answer, 1});
  }
  if (!options_.graphs) return;
  for (const GraphSize& size :
       GraphSizes(std::min(step_.limits.sequences, cache.blocks()), positions,
                  most_tokens)) {
    step_.Place(size.tokens, /*slot=*/0);
    Pass pass;
    pass.tokens = pass.launched_tokens = size.tokens;
    pass.rows = pass.launched_rows = size.tokens;
    pass.max_position = size.max_position;
    MakeGraphs(pass, cache, limit);
  }
}

void CudaModel::RunAnswers(const Pass& pass, KvCache& cache, int64_t limit,
                           std::span<const RowRequest> requests) {
  const int64_t vocab = config_.vocab_size;
  host_rows_.clear();
  // Behind each product, since the next one overwrites its rows.
  const auto fetch = [&](int64_t first, int64_t count) {
    for (int64_t row = first; row < std::min(first + count, pass.rows); ++row) {
      if (!IsTheCpus(requests[row])) continue;
      const size_t at = host_rows_.size();
      host_rows_.resize(at + vocab);
      main_.Synchronize();
      Check(cudaMemcpy(&host_rows_[at],
                       step_.logits.data() + (row - first) * vocab,
                       vocab * sizeof(float), cudaMemcpyDeviceToHost),
            "reading logits");
    }
  };
  if (pass.decodes) {
    graphs_.Launch(MakeGraphs(pass, cache, limit), main_.stream());
    fetch(0, pass.rows);
  } else {
    BeginLayers(pass);
    RunLayers(pass, cache, 0, config_.layers);
    EndLayers(pass);
    RunRows(pass, [&](int64_t first, int64_t count) {
      Sample(pass, limit, first, count);
      fetch(first, count);
    });
  }
}

void CudaModel::Settle(Started* step) {
  if (!step->enqueued) return;
  step->done.Wait();
  step->enqueued = false;
  ReadAnswers(step);
}

void CudaModel::ReadAnswers(Started* step) {
  const StepMemory::Results results = step_.HostResults(SlotOf(*step));
  step->finite.insert(step->finite.end(), results.finite,
                      results.finite + step->pass.tokens);
  const int64_t vocab = config_.vocab_size;
  const size_t first = step->finite_rows.size();
  size_t fetched = 0;
  for (int64_t i = 0; i < step->pass.rows; ++i) {
    const RowRequest& request = step->requests[first + i];
    const SampledRow& sampled = results.sampled[i];
    step->finite_rows.push_back(sampled.finite);
    const bool is_the_cpus = IsTheCpus(request);
    const auto row =
        std::span(host_rows_).subspan(fetched, is_the_cpus ? vocab : 0);
    fetched += row.size();
    if (!sampled.finite) continue;
    step->answers[first + i] = is_the_cpus
                                   ? AnswerRow(row, step->limit, request)
                                   : ToAnswer(sampled, step->limit, request);
  }
}

bool CudaModel::NeedsTheHost(std::span<const SequenceSlice> slices,
                             std::span<const RowRequest> requests) const {
  int64_t tokens = 0;
  for (const SequenceSlice& slice : slices) {
    tokens += static_cast<int64_t>(slice.token_ids.size());
  }
  return observer_ || tokens > step_.limits.tokens ||
         std::any_of(requests.begin(), requests.end(), IsTheCpus);
}

void CudaModel::Start(std::span<const SequenceSlice> slices, KvCache& cache,
                      int64_t limit, std::span<const RowRequest> requests) {
  Started* const before =
      unfinished_ > 0 ? &InFlight(unfinished_ - 1) : nullptr;
  Started& step = InFlight(unfinished_++);
  step.limit = limit;
  step.requests.assign(requests.begin(), requests.end());
  step.slices = SizesOf(slices);
  step.finite.clear();
  step.finite_rows.clear();
  step.answers.assign(requests.size(), RowAnswer());
  step.observed.clear();
  if (slices.empty()) return;

  const bool needs_host = NeedsTheHost(slices, requests);
  if (needs_host && before != nullptr) Settle(before);
  std::vector<SequenceSlice> known;
  std::vector<int32_t> ids;
  if (before != nullptr && !before->enqueued) {
    known = KnownSlices(slices, before->answers, &ids);
    slices = known;
  }
  if (observer_) {
    step.observed = Model::Answer(slices, cache, limit, requests, step.answers);
    return;
  }
  BeginStep(slices, cache, requests.size() * config_.vocab_size);
  const int64_t slot = SlotOf(step);
  for (Cursor cursor; cursor.slice < slices.size();) {
    Settle(&step);
    const auto rest = std::span(step.requests).subspan(step.finite_rows.size());
    step.pass = StagePass(slices, slot, &cursor);
    StageRequests(step.pass, rest);
    CopyStaged(step.pass, slot);
    RunAnswers(step.pass, cache, limit, rest);
    CopyResults(step.pass, slot);
    step.done.Record(main_.stream());
    step.enqueued = true;
  }
  if (needs_host) Settle(&step);
}

std::vector<SliceHealth> CudaModel::Finish(std::span<RowAnswer> answers) {
  Started& step = InFlight(0);
  Settle(&step);
  first_started_ = (first_started_ + 1) % kStepsInFlight;
  --unfinished_;
  std::move(step.answers.begin(), step.answers.end(), answers.begin());
  if (!step.observed.empty()) return std::move(step.observed);
  return Health(step.slices, step.finite, step.finite_rows);
}

std::vector<SliceHealth> CudaModel::Answer(
    std::span<const SequenceSlice> slices, KvCache& cache, int64_t limit,
    std::span<const RowRequest> requests, std::span<RowAnswer> answers) {
  Start(slices, cache, limit, requests);
  return Finish(answers);
}

}  // namespace invar::cuda
