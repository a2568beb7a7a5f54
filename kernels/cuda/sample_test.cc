// Sampling has the CPU backend's choices and the bits of its log-probabilities.
#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/cuda/ops_sample.h"
#include "kernels/cuda/testing/gpu_test.h"
#include "kernels/ops.h"

namespace invar::cuda::testing {
namespace {

class SampleTest : public GpuTest {
 protected:
  std::vector<SampledRow> Run(const std::vector<float>& logits, int64_t limit,
                              const std::vector<SampleRow>& rows) {
    const int64_t count = static_cast<int64_t>(rows.size());
    const auto d_logits = Upload(logits);
    const auto d_rows = Upload(rows);
    const auto sampled = Poisoned<SampledRow>(count);
    Sample(d_logits.data(), count, logits.size() / count, limit, d_rows.data(),
           sampled.data(), {.stream = stream().get(), .overlap = true});
    stream().Synchronize();
    return sampled.Download();
  }
};

void ExpectAsOnCpu(std::span<const float> logits, int64_t limit,
                   const SampleRow& row, const SampledRow& sampled) {
  const int32_t id =
      row.given_id >= 0
          ? row.given_id
          : cpu::Sample(logits, limit, row.parameters, row.seed, row.position);
  ASSERT_EQ(sampled.id, id)
      << "temperature " << row.parameters.temperature << " top_k "
      << row.parameters.top_k << " top_p " << row.parameters.top_p << " min_p "
      << row.parameters.min_p << " of " << limit;
  EXPECT_EQ(sampled.finite, 1);
  const double log_sum_exp = cpu::LogSumExp(logits);
  if (row.log_prob) {
    EXPECT_EQ(sampled.log_prob, cpu::LogProb(logits, log_sum_exp, id));
  }
  std::vector<int32_t> ids(limit);
  std::iota(ids.begin(), ids.end(), 0);
  const int64_t count = std::min<int64_t>(row.top_log_probs, limit);
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(),
                    [&](int32_t a, int32_t b) {
                      if (logits[a] != logits[b]) return logits[a] > logits[b];
                      return a < b;
                    });
  for (int64_t i = 0; i < count; ++i) {
    ASSERT_EQ(sampled.top_ids[i], ids[i]) << i;
    EXPECT_EQ(sampled.top_log_probs[i],
              cpu::LogProb(logits, log_sum_exp, ids[i]));
  }
}

TEST_F(SampleTest, ChoosesAsTheCpuDoes) {
  const cpu::SamplingParameters parameters[] = {
      {},
      {.temperature = 1.0f},
      {.temperature = 0.3f},
      {.temperature = 50.0f},
      {.temperature = 1e-30f},
      {.temperature = 1.0f, .top_k = 1},
      {.temperature = 2.0f, .top_k = 50},
      {.temperature = 9.0f, .top_k = 1000000},
      {.temperature = 1.0f, .top_p = 0.9f},
      {.temperature = 7.0f, .top_p = 0.999f},
      {.temperature = 1.0f, .top_p = 0.0f},
      {.temperature = 3.0f, .min_p = 0.05f},
      {.temperature = 3.0f, .top_k = 40, .top_p = 0.8f, .min_p = 0.1f},
  };
  struct Case {
    int64_t vocabulary, limit;
    bool ties;
  };
  for (const auto& [vocabulary, limit, ties] :
       {Case{102400, 100015, false}, Case{102400, 102400, true},
        Case{1088, 1084, false}, Case{1088, 1084, true}, Case{37, 37, false},
        Case{5, 4, true}}) {
    std::vector<float> logits;
    std::vector<SampleRow> rows;
    uint64_t seed = vocabulary;
    for (const auto& p : parameters) {
      for (int i = 0; i < 3; ++i) {
        auto mine = SpreadValues(vocabulary, seed, -3, 4);
        if (ties) {
          for (float& logit : mine) logit = std::round(logit);
        }
        logits.insert(logits.end(), mine.begin(), mine.end());
        rows.push_back({.parameters = p,
                        .seed = seed * 0x9e3779b97f4a7c15,
                        .position = seed << (i * 16),
                        .log_prob = i != 1,
                        .top_log_probs = i * 10});
        ++seed;
      }
    }
    rows[4].given_id = static_cast<int32_t>(vocabulary) - 1;
    const auto sampled = Run(logits, limit, rows);
    for (size_t i = 0; i < rows.size(); ++i) {
      ExpectAsOnCpu(std::span(logits).subspan(i * vocabulary, vocabulary),
                    limit, rows[i], sampled[i]);
    }
  }
}

TEST_F(SampleTest, TiesGoToTheLowestIdAndNonFiniteRowsAreNamed) {
  constexpr int64_t kVocabulary = 3000;
  std::vector<float> logits(4 * kVocabulary, -1.0f);
  logits[2999] = 9.0f;  // past the limit
  logits[1700] = logits[40] = 5.0f;
  logits[kVocabulary + 2999] = std::numeric_limits<float>::infinity();
  logits[2 * kVocabulary + 3] = std::nanf("");
  std::vector<SampleRow> rows(4);
  for (SampleRow& row : rows) row.log_prob = true;
  const auto sampled = Run(logits, 2990, rows);
  EXPECT_EQ(sampled[0].id, 40);
  EXPECT_EQ(sampled[3].id, 0);
  EXPECT_EQ(sampled[0].finite, 1);
  EXPECT_EQ(sampled[1].finite, 0);
  EXPECT_EQ(sampled[2].finite, 0);
  EXPECT_EQ(sampled[3].finite, 1);
}

}  // namespace
}  // namespace invar::cuda::testing
