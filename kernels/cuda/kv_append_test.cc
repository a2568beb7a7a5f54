#include <algorithm>
#include <limits>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/testing/gpu_test.h"
#include "kernels/ops.h"

namespace invar::cuda {
namespace {

using testing::Poisoned;
using testing::SpreadValues;
using testing::Upload;

constexpr int64_t kTokens = 150;
constexpr int64_t kBlocks = 4;
constexpr float kEps = 1e-6f;

// One sequence of kTokens positions in shuffled blocks, and the same rows by
// the CPU backend.
struct Rows {
  std::vector<int32_t> blocks = {2, 0, 3};
  std::vector<int32_t> positions;
  std::vector<int32_t> tables = std::vector<int32_t>(kTokens, 0);
  std::vector<float> kv_a;
  std::vector<float> gain = SpreadValues(kLatent, 2, -1, 1);
  std::vector<float> cosines, sines;
  float scale = 1.0f;  // of the cache

  explicit Rows(double high)
      : kv_a(SpreadValues(kTokens * kRow, 1, -12, high)) {
    std::vector<int64_t> wide;
    for (int32_t p = 0; p < kTokens; ++p) {
      positions.push_back(p);
      wide.push_back(p);
    }
    cosines.resize(kTokens * kRope / 2);
    sines.resize(kTokens * kRope / 2);
    cpu::RopeAngles(cpu::MakeRopeTable(kRope, 10000.0, {}), wide,
                    cosines.data(), sines.data());
  }

  std::vector<uint8_t> OnCpu(KvDtype dtype, std::vector<uint8_t>* finite) {
    cpu::ThreadPool pool(1);
    std::vector<cpu::TokenPlace> places;
    for (const int32_t p : positions) places.push_back({blocks.data(), p});
    std::vector<float> latent(kTokens * kLatent);
    std::vector<float> rotated = kv_a;
    cpu::RmsNorm(pool, kv_a.data(), kRow, gain.data(), kEps, kTokens, kLatent,
                 latent.data(), kLatent);
    cpu::RopeApply(pool, cosines.data(), sines.data(), kTokens, 1, kRope,
                   rotated.data() + kLatent, kRow, 0);
    std::vector<uint8_t> cache(
        kBlocks * kBlockTokens * kRow * KvElementBytes(dtype), 0x7f);
    cpu::KvAppend(pool, places, latent.data(), rotated.data() + kLatent, kRow,
                  {.dtype = dtype,
                   .data = reinterpret_cast<std::byte*>(cache.data()),
                   .latent = kLatent,
                   .rope = kRope,
                   .scale = scale},
                  finite->data());
    return cache;
  }

  std::vector<uint8_t> OnGpu(cudaStream_t stream, KvDtype dtype,
                             std::vector<uint8_t>* finite,
                             bool beside_queries = false) {
    const auto device_blocks = Upload(blocks);
    const auto device_positions = Upload(positions);
    const auto device_tables = Upload(tables);
    const auto device_kv_a = Upload(kv_a);
    const auto device_gain = Upload(gain);
    const auto device_cosines = Upload(cosines);
    const auto device_sines = Upload(sines);
    const auto device_finite = Upload(*finite);
    const auto cache = Poisoned<uint8_t>(kBlocks * kBlockTokens * kRow *
                                         KvElementBytes(dtype));
    const TokenPlaces places = {kTokens, device_positions.data(),
                                device_tables.data(), device_blocks.data()};
    const CacheRows cached = {
        device_kv_a.data(),
        device_gain.data(),
        kEps,
        {dtype, reinterpret_cast<std::byte*>(cache.data()), scale},
        device_finite.data()};
    const RopeAngles angles = {device_cosines.data(), device_sines.data()};
    if (beside_queries) {
      constexpr int64_t kHeads = 2;
      const auto weights = Poisoned<std::byte>(2 * kHeads * kLatent * kNope);
      const auto q = Poisoned<float>(kTokens * kHeads * (kNope + kRope));
      const auto query = Poisoned<float>(kTokens * kHeads * kRow);
      AbsorbQueryAndAppend({.stream = stream},
                           {WeightDtype::kBf16, weights.data(), 1.0f, kHeads},
                           places, angles, q.data(), query.data(), cached);
      Check(cudaStreamSynchronize(stream), "kv_append");
    } else {
      KvAppend({.stream = stream}, places, cached, angles);
    }
    Check(cudaStreamSynchronize(stream), "kv_append");
    *finite = device_finite.Download();
    return cache.Download();
  }
};

class KvAppendTest : public testing::GpuTestWithParam<KvDtype> {};

// The norm sums in another order than the CPU's, so that a code may be its
// neighbour; the rotation's codes, which no sum precedes, must be equal.
TEST_P(KvAppendTest, WritesTheCodesOfTheCpuBackend) {
  for (const double high : {4.0, 18.0, 100.0}) {  // 2^18 saturates
    Rows rows(high);
    if (high == 4.0) rows.scale = 0.37f;
    std::vector<uint8_t> finite(kTokens, 1);
    std::vector<uint8_t> expected_finite(kTokens, 1);
    const auto expected = rows.OnCpu(GetParam(), &expected_finite);
    const auto actual = rows.OnGpu(stream().get(), GetParam(), &finite);
    EXPECT_EQ(finite, expected_finite);
    const int64_t bytes = KvElementBytes(GetParam());
    int64_t neighbours = 0;
    for (int64_t i = 0; i < static_cast<int64_t>(actual.size()); i += bytes) {
      int code = actual[i];
      int expected_code = expected[i];
      if (bytes == 2) {
        code |= actual[i + 1] << 8;
        expected_code |= expected[i + 1] << 8;
      }
      if (code == expected_code) continue;
      ASSERT_LT(i / bytes % kRow, kLatent) << "k_pe differs";
      ASSERT_EQ(std::abs(code - expected_code), 1) << "at element " << i;
      ++neighbours;
    }
    EXPECT_LT(neighbours, kTokens * kLatent / 1000);
  }
}

// Beside the queries, by blocks of another grid: the same rows.
TEST_P(KvAppendTest, TheSameBesideTheQueries) {
  Rows rows(4.0);
  std::vector<uint8_t> finite(kTokens, 1);
  const auto alone = rows.OnGpu(stream().get(), GetParam(), &finite);
  std::vector<uint8_t> finite_beside(kTokens, 1);
  const auto beside = rows.OnGpu(stream().get(), GetParam(), &finite_beside,
                                 /*beside_queries=*/true);
  EXPECT_TRUE(alone == beside);
  EXPECT_EQ(finite, finite_beside);
}

TEST_P(KvAppendTest, NamesTheTokensWithNonFiniteValues) {
  Rows rows(4.0);
  rows.kv_a[3 * kRow + 17] = std::numeric_limits<float>::infinity();
  rows.kv_a[5 * kRow + kRow - 1] = std::nanf("");
  rows.kv_a[9 * kRow + kLatent] = 1e30f;  // saturates, but is finite
  std::vector<uint8_t> finite(kTokens, 1);
  rows.OnGpu(stream().get(), GetParam(), &finite);
  std::vector<uint8_t> expected(kTokens, 1);
  expected[3] = expected[5] = 0;
  EXPECT_EQ(finite, expected);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, KvAppendTest,
                         ::testing::ValuesIn(testing::kKvDtypes),
                         testing::KvDtypeName);

}  // namespace
}  // namespace invar::cuda
