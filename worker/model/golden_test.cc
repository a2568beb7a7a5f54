// Logits against transformers' DeepseekV2ForCausalLM in fp32, on small random
// models; tests/goldens has them and the script that made them.
#include "worker/model/testing/golden.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/ops.h"
#include "worker/model/checkpoint/safetensors.h"
#include "worker/model/model.h"

namespace invar {
namespace {

using testing::Values;

// Every position's logits, (ids, vocab), as one prompt.
std::vector<float> Score(Model& model, const std::vector<int32_t>& ids) {
  const int64_t size = static_cast<int64_t>(ids.size());
  std::vector<int32_t> blocks(size / kBlockTokens + 1);
  std::iota(blocks.begin(), blocks.end(), 0);
  const auto cache = model.NewKvCache(static_cast<int64_t>(blocks.size()));
  const SequenceSlice prompt = {
      .token_ids = ids, .block_ids = blocks, .logit_rows = size};
  std::vector<float> logits(size * model.config().vocab_size);
  EXPECT_EQ(model.Forward({&prompt, 1}, *cache, logits),
            std::vector{SliceHealth::kFinite});
  return logits;
}

// |actual - expected| / |expected|, as vectors.
double RelativeError(std::span<const float> actual,
                     std::span<const float> expected) {
  double error = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(static_cast<double>(actual[i]) - expected[i], 2);
    norm += std::pow(static_cast<double>(expected[i]), 2);
  }
  return std::sqrt(error / norm);
}

double LargestDifference(std::span<const float> actual,
                         std::span<const float> expected) {
  double largest = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest,
                       std::abs(static_cast<double>(actual[i]) - expected[i]));
  }
  return largest;
}

// Of logits in fp32, as vectors and of each.
constexpr double kFp32ErrorMost = 1e-4;

class GoldenTest : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenTest, LogitsMatchTheReferenceImplementation) {
  const std::string folder = "tests/goldens/" + GetParam();
  auto golden = SafetensorsFile::Open(folder + "/golden.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.status();
  auto model = Model::Load({.path = folder, .kv_dtype = KvDtype::kFp32});
  ASSERT_TRUE(model.ok()) << model.status();
  const auto ids = Values<int32_t>(**golden, "input_ids");
  const auto expected = Values<float>(**golden, "logits");
  const auto logits = Score(**model, ids);
  ASSERT_EQ(logits.size(), expected.size());

  EXPECT_LT(RelativeError(logits, expected), kFp32ErrorMost);
  EXPECT_LT(LargestDifference(logits, expected), kFp32ErrorMost);
  RecordProperty("largest_difference",
                 absl::StrCat(LargestDifference(logits, expected)));
  const int64_t vocab = (*model)->config().vocab_size;
  for (size_t t = 0; t < ids.size(); ++t) {
    const auto argmax = [&](const std::vector<float>& rows) {
      const auto row = rows.begin() + t * vocab;
      return std::max_element(row, row + vocab) - row;
    };
    EXPECT_EQ(argmax(logits), argmax(expected)) << "at position " << t;
  }
}

INSTANTIATE_TEST_SUITE_P(Goldens, GoldenTest,
                         ::testing::Values("q_lora", "group_limited", "yarn"),
                         [](const auto& info) { return info.param; });

// Each architecture in each format: make_format_goldens.py. What happens
// between two of its logits is compared in layer_golden_test.cc.
class FormatGoldenTest : public ::testing::TestWithParam<std::string> {};

TEST_P(FormatGoldenTest, LogitsMatchTheReference) {
  const std::string folder = "tests/goldens/" + GetParam();
  auto golden = SafetensorsFile::Open(folder + "/golden.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.status();
  const auto ids = Values<int32_t>(**golden, "input_ids");
  for (const auto& [kv_dtype, cache] :
       {std::pair(KvDtype::kFp32, "fp32"), std::pair(KvDtype::kFp8E4m3, "e4m3"),
        std::pair(KvDtype::kFp8E5m2, "e5m2")}) {
    const std::string logits = absl::StrCat("logits_", cache);
    if (!(*golden)->tensors().contains(logits)) continue;
    auto model = Model::Load({.path = folder, .kv_dtype = kv_dtype});
    ASSERT_TRUE(model.ok()) << model.status();
    const auto expected = Values<float>(**golden, logits);
    const auto all = Score(**model, ids);
    ASSERT_GE(all.size(), expected.size());
    // The last positions', which everything before them has moved.
    const std::span last = std::span(all).last(expected.size());
    const double error = RelativeError(last, expected);
    const double change =
        Values<float>(**golden, absl::StrCat("change_", cache))[0];
    RecordProperty(absl::StrCat("error_", cache),
                   absl::StrCat(error, ", of the reference's own change ",
                                error / change));
    EXPECT_LT(error, 3 * change) << cache;
    if ((*model)->config().quantization.format == CheckpointFormat::kPlain) {
      EXPECT_LT(error, kFp32ErrorMost);
      EXPECT_LT(LargestDifference(last, expected), kFp32ErrorMost);
      RecordProperty("largest_difference",
                     absl::StrCat(LargestDifference(last, expected)));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Formats, FormatGoldenTest,
    ::testing::Values("lite_bf16", "lite_fp16", "lite_autofp8", "lite_tensor",
                      "lite_channel", "lite_block", "full_bf16", "full_fp16",
                      "full_autofp8", "full_tensor", "full_channel",
                      "full_block", "v3_bf16", "v3_fp16", "v3_autofp8",
                      "v3_tensor", "v3_channel", "v3_block"),
    [](const auto& info) { return info.param; });

// The embedded model's FP8 weights and inputs against the emulation that its
// training was judged by. An input that rounds to the other neighbour moves a
// log-probability by more than fp32 noise, hence the wider bound.
TEST(EmbeddedGoldenTest, LogProbabilitiesMatchTheEmulatedCheckpoint) {
  auto golden =
      SafetensorsFile::Open("tests/goldens/embedded/golden.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.status();
  const auto ids = Values<int32_t>(**golden, "input_ids");
  for (const auto& [kv_dtype, name] :
       {std::pair(KvDtype::kFp32, "logprobs_fp32_kv"),
        std::pair(KvDtype::kFp8E5m2, "logprobs_e5m2_kv")}) {
    auto model = Model::Load(
        {.path = "deploy/models/invar-gsm-20m", .kv_dtype = kv_dtype});
    ASSERT_TRUE(model.ok()) << model.status();
    const auto expected = Values<float>(**golden, name);
    ASSERT_EQ(expected.size(), ids.size() - 1);
    const auto logits = Score(**model, ids);
    const int64_t vocab = (*model)->config().vocab_size;
    double total = 0.0;
    for (size_t t = 0; t + 1 < ids.size(); ++t) {
      const std::span row = std::span(logits).subspan(t * vocab, vocab);
      const double difference =
          cpu::LogProb(row, cpu::LogSumExp(row), ids[t + 1]) - expected[t];
      EXPECT_LT(std::abs(difference), 0.1) << name << " at " << t + 1;
      total += std::abs(difference);
    }
    EXPECT_LT(total / static_cast<double>(expected.size()), 0.01) << name;
  }
}

}  // namespace
}  // namespace invar
