#include <gtest/gtest.h>

#include <limits>
#include <numeric>

#include "kernels/cpu/codes.h"
#include "kernels/cpu/test_values.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

constexpr int64_t kLatent = 48;
constexpr int64_t kRope = 16;
constexpr int64_t kRow = kLatent + kRope;
constexpr int64_t kHeads = 7;  // 4 + 2 + 1
constexpr int64_t kLength = 600;
constexpr float kScale = 0.3f;

// A sequence of kLength rows in shuffled blocks, everything past it poisoned.
struct Sequence {
  explicit Sequence(KvDtype dtype) {
    const int64_t blocks = (kLength + kBlockTokens - 1) / kBlockTokens;
    for (int64_t b = 0; b < blocks; ++b) {
      block_ids.push_back(static_cast<int32_t>((b * 7 + 3) % blocks));
    }
    storage.resize(blocks * kBlockTokens * kRow * KvElementBytes(dtype));
    // A NaN in each of the dtypes.
    std::fill(storage.begin(), storage.end(), std::byte{0x7f});
    cache = {.dtype = dtype,
             .data = storage.data(),
             .latent = kLatent,
             .rope = kRope};
    for (int64_t p = 0; p < kLength; ++p)
      places.push_back({block_ids.data(), p});
    const auto latent = RandomValues(kLength * kLatent, 1, 4.0);
    const auto k_pe = RandomValues(kLength * kRope, 2, 4.0);
    std::vector<uint8_t> finite(kLength, 1);
    ThreadPool pool(1);
    KvAppend(pool, places, latent.data(), k_pe.data(), kRope, cache,
             finite.data());
    rows.resize(kLength * kRow);
    for (int64_t p = 0; p < kLength; ++p) {
      const int64_t at =
          (block_ids[p / kBlockTokens] * kBlockTokens + p % kBlockTokens) *
          kRow;
      DispatchKv(dtype, [&](auto code) {
        using Code = decltype(code);
        for (int64_t k = 0; k < kRow; k += 16) {
          Store(Code::Decode(&storage[(at + k) * Code::kBytes]),
                &rows[p * kRow + k]);
        }
      });
    }
  }

  std::vector<int32_t> block_ids;
  std::vector<std::byte> storage;
  KvLayer cache;
  std::vector<TokenPlace> places;
  std::vector<float> rows;  // (kLength, kRow), read back
};

std::vector<double> Reference(const Sequence& sequence, const float* query,
                              int64_t position) {
  std::vector<double> scores(position + 1);
  for (int64_t p = 0; p <= position; ++p) {
    for (int64_t k = 0; k < kRow; ++k) {
      scores[p] += static_cast<double>(query[k]) * sequence.rows[p * kRow + k];
    }
    scores[p] *= kScale;
  }
  const double max = *std::max_element(scores.begin(), scores.end());
  double sum = 0.0;
  std::vector<double> out(kLatent);
  for (int64_t p = 0; p <= position; ++p) {
    const double weight = std::exp(scores[p] - max);
    sum += weight;
    for (int64_t c = 0; c < kLatent; ++c) {
      out[c] += weight * sequence.rows[p * kRow + c];
    }
  }
  for (double& value : out) value /= sum;
  return out;
}

class MlaAttentionTest : public ::testing::TestWithParam<KvDtype> {};

TEST_P(MlaAttentionTest, MatchesDoublePrecisionAcrossTilesAndSplits) {
  ThreadPool pool(2);
  const Sequence sequence(GetParam());
  for (const int64_t position : {0, 1, 63, 64, 255, 256, 511, 512, 599}) {
    const auto query = RandomValues(kHeads * kRow, position + 10, 0.3);
    std::vector<float> out(kHeads * kLatent);
    MlaAttention(pool, {&sequence.places[position], 1}, query.data(), kHeads,
                 kScale, sequence.cache, out.data());
    std::vector<double> expected;
    for (int64_t h = 0; h < kHeads; ++h) {
      const auto head = Reference(sequence, &query[h * kRow], position);
      expected.insert(expected.end(), head.begin(), head.end());
    }
    ExpectClose(out, expected, 5e-6);
  }
}

TEST_P(MlaAttentionTest, ATokenHasTheSameBitsInAnyCompanyAndOnAnyThreads) {
  ThreadPool one(1);
  ThreadPool three(3);
  const Sequence sequence(GetParam());
  const auto query = RandomValues(kLength * kHeads * kRow, 5, 0.3);
  std::vector<float> all(kLength * kHeads * kLatent);
  MlaAttention(three, sequence.places, query.data(), kHeads, kScale,
               sequence.cache, all.data());
  for (int64_t t = 0; t < kLength; t += 37) {
    std::vector<float> alone(kHeads * kLatent);
    for (ThreadPool* pool : {&one, &three}) {
      MlaAttention(*pool, {&sequence.places[t], 1}, &query[t * kHeads * kRow],
                   kHeads, kScale, sequence.cache, alone.data());
      EXPECT_EQ(std::memcmp(alone.data(), &all[t * kHeads * kLatent],
                            alone.size() * sizeof(float)),
                0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, MlaAttentionTest,
                         ::testing::Values(KvDtype::kFp8E5m2, KvDtype::kFp8E4m3,
                                           KvDtype::kBf16, KvDtype::kFp32));

}  // namespace
}  // namespace invar::cpu
