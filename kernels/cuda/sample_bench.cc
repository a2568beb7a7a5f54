// From logits to a token: the logits' bytes once.
#include <string>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ops_sample.h"
#include "kernels/cuda/testing/bench.h"

namespace invar::cuda::testing {
namespace {

constexpr int64_t kVocabulary = 102400;

void Rows(Bench& bench, const std::string& name, const SampleRow& row,
          int64_t count) {
  std::vector<float> logits(count * kVocabulary);
  for (size_t i = 0; i < logits.size(); ++i) {
    logits[i] = static_cast<float>(i * 2654435761u % 100003) * 2e-4f;
  }
  const auto d_logits = *DeviceBuffer<float>::Upload(logits, "logits");
  const auto d_rows = *DeviceBuffer<SampleRow>::Upload(
      std::vector<SampleRow>(count, row), "rows");
  const auto sampled = *DeviceBuffer<SampledRow>::Allocate(count, "sampled");
  const double seconds = bench.Seconds(8, [&](int) {
    Sample(d_logits.data(), count, kVocabulary, kVocabulary, d_rows.data(),
           sampled.data(), {bench.stream(), /*overlap=*/true});
  });
  bench.Report("sample " + name + " T=" + std::to_string(count), seconds,
               4.0 * logits.size());
}

void Run(Bench& bench) {
  SampleRow greedy;
  SampleRow scored;
  scored.log_prob = true;
  SampleRow drawn = scored;
  drawn.parameters.temperature = 0.7f;
  SampleRow nucleus = drawn;
  nucleus.parameters.top_p = 0.95f;
  SampleRow top = scored;
  top.top_log_probs = kMaxTopLogProbs;
  for (const int64_t count : {1, 128}) {
    Rows(bench, "greedy", greedy, count);
    Rows(bench, "greedy, log-probability", scored, count);
    Rows(bench, "temperature", drawn, count);
    Rows(bench, "top-p", nucleus, count);
    Rows(bench, "top 20", top, count);
  }
}

const BenchEntry entry("sample", Run);

}  // namespace
}  // namespace invar::cuda::testing
