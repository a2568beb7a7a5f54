#include <gtest/gtest.h>

#include <array>
#include <limits>

#include "kernels/cpu/test_values.h"
#include "kernels/ops.h"

namespace invar::cpu {
namespace {

TEST(KvAppendTest, WritesTheRowOfItsBlockAndNoOther) {
  ThreadPool pool(1);
  constexpr int64_t kLatent = 32;
  constexpr int64_t kRope = 16;
  constexpr int64_t kRow = kLatent + kRope;
  std::vector<float> cache(3 * kBlockTokens * kRow, 7.0f);
  const std::array<int32_t, 2> blocks = {2, 0};
  const std::array<TokenPlace, 2> places = {
      {{blocks.data(), 63}, {blocks.data(), 64}}};
  const auto latent = RandomValues(2 * kLatent, 1);
  const auto k_pe = RandomValues(2 * 20, 2);
  std::array<uint8_t, 2> finite = {1, 1};
  KvAppend(pool, places, latent.data(), k_pe.data(), /*k_pe_stride=*/20,
           {.dtype = KvDtype::kFp32,
            .data = reinterpret_cast<std::byte*>(cache.data()),
            .latent = kLatent,
            .rope = kRope},
           finite.data());
  EXPECT_EQ(finite, (std::array<uint8_t, 2>{1, 1}));
  std::vector<float> expected(cache.size(), 7.0f);
  const std::array<int64_t, 2> rows = {2 * kBlockTokens + 63, 0};
  for (int64_t t = 0; t < 2; ++t) {
    std::copy_n(&latent[t * kLatent], kLatent, &expected[rows[t] * kRow]);
    std::copy_n(&k_pe[t * 20], kRope, &expected[rows[t] * kRow + kLatent]);
  }
  EXPECT_TRUE(SameBits(cache, expected));
}

TEST(KvAppendTest, NamesTheTokensWithNonFiniteValues) {
  ThreadPool pool(2);
  for (const KvDtype dtype :
       {KvDtype::kFp8E5m2, KvDtype::kFp8E4m3, KvDtype::kBf16, KvDtype::kFp32}) {
    std::vector<std::byte> cache(kBlockTokens * 32 * 4);
    const int32_t block = 0;
    const std::array<TokenPlace, 4> places = {
        {{&block, 0}, {&block, 1}, {&block, 2}, {&block, 3}}};
    auto latent = RandomValues(4 * 16, 1);
    auto k_pe = RandomValues(4 * 16, 2);
    latent[1 * 16 + 5] = std::numeric_limits<float>::infinity();
    k_pe[3 * 16 + 15] = std::nanf("");
    latent[2 * 16] = 3e38f;  // saturates, but is finite
    std::array<uint8_t, 4> finite = {1, 1, 1, 1};
    KvAppend(pool, places, latent.data(), k_pe.data(), 16,
             {.dtype = dtype, .data = cache.data(), .latent = 16, .rope = 16},
             finite.data());
    EXPECT_EQ(finite, (std::array<uint8_t, 4>{1, 0, 1, 0}));
  }
}

}  // namespace
}  // namespace invar::cpu
