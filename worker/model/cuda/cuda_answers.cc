// Answers to rows of logits without moving the logits: CudaModel::Answer.
#include <algorithm>
#include <functional>
#include <utility>

#include "kernels/cuda/check.h"
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

}  // namespace

void CudaModel::StageRequests(const Pass& pass,
                              std::span<const RowRequest> requests) {
  SampleRow given;
  given.given_id = 0;
  for (int64_t i = 0; i < pass.launched_rows; ++i) {
    step_.rows.data()[i] =
        i < pass.rows ? ToSampleRow(requests[i]) : given;
  }
}

void CudaModel::Sample(const Pass& pass, int64_t limit, int64_t first,
                       int64_t count) {
  cuda::Sample(step_.logits.data(), count, config_.vocab_size, limit,
               step_.rows.data() + first, step_.sampled.data() + first,
               main_.Next());
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
    const GraphKey key = {pass.launched_tokens, pass.launched_rows,
                          pass.max_position,    limit,
                          cache.Block(0, 0),    cache.blocks()};
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
    graphs_.Launch(key, main_.stream(), parts);
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

void CudaModel::ReadAnswers(const Pass& pass, int64_t limit,
                            std::span<const RowRequest> requests,
                            std::span<RowAnswer> answers,
                            std::vector<uint8_t>* finite) {
  const int64_t vocab = config_.vocab_size;
  size_t fetched = 0;
  for (int64_t i = 0; i < pass.rows; ++i) {
    const SampledRow& sampled = step_.sampled.data()[i];
    finite->push_back(sampled.finite);
    const bool is_the_cpus = IsTheCpus(requests[i]);
    const auto row =
        std::span(host_rows_).subspan(fetched, is_the_cpus ? vocab : 0);
    fetched += row.size();
    if (!sampled.finite) continue;
    answers[i] = is_the_cpus ? AnswerRow(row, limit, requests[i])
                             : ToAnswer(sampled, limit, requests[i]);
  }
}

std::vector<SliceHealth> CudaModel::Answer(
    std::span<const SequenceSlice> slices, KvCache& cache, int64_t limit,
    std::span<const RowRequest> requests, std::span<RowAnswer> answers) {
  if (slices.empty()) return {};
  if (observer_) return Model::Answer(slices, cache, limit, requests, answers);
  BeginStep(slices, cache, requests.size() * config_.vocab_size);
  std::vector<uint8_t> finite, finite_rows;
  for (Cursor cursor; cursor.slice < slices.size();) {
    const Pass pass = StagePass(slices, &cursor);
    StageRequests(pass, requests);
    RunAnswers(pass, cache, limit, requests);
    EndPass(pass, &finite);
    ReadAnswers(pass, limit, requests, answers, &finite_rows);
    requests = requests.subspan(pass.rows);
    answers = answers.subspan(pass.rows);
  }
  return Health(slices, finite, finite_rows);
}

}  // namespace invar::cuda
