#include <algorithm>
#include <numeric>

#include "kernels/cuda/free_split.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/testing/gpu_test.h"

namespace invar::cuda {
namespace {

using testing::Poisoned;
using testing::RelativeError;
using testing::SameBits;
using testing::SpreadValues;
using testing::Upload;

constexpr float kScale = 0.1147f;
// Two whole splits and a part of one.
constexpr int64_t kLength = 2200;
static_assert(kAttentionSplits.Count(kLength - 1) == 3);
constexpr int64_t kHeads = 19;  // a whole group of 16 and a part

// A cache of two sequences, rows past each one's end and strangers' blocks
// poisoned with NaN, in shuffled blocks.
class Sequences {
 public:
  Sequences(KvDtype dtype, cudaStream_t stream) : dtype_(dtype) {
    constexpr int64_t kBlocks = 2 * (kLength / kBlockTokens + 1);
    for (int32_t b = 0; b < kBlocks; ++b)
      blocks_.push_back((b * 7 + 3) % kBlocks);
    cache_ = Poisoned<uint8_t>((kBlocks + 1) * kBlockTokens * kRow *
                               KvElementBytes(dtype));
    // bf16's 0x7f7f is finite: a NaN there is 0x7fff.
    if (dtype == KvDtype::kBf16) {
      Check(FillOnDevice(cache_.data(), 0xff, cache_.bytes()), "poisoning");
    }
    device_blocks_ = Upload(blocks_);
    Append(stream);
    bytes_ = cache_.Download();
  }

  KvLayer layer() const {
    return {dtype_, reinterpret_cast<std::byte*>(cache_.data())};
  }
  const int32_t* device_blocks() const { return device_blocks_.data(); }
  static int32_t Table(int sequence) {
    return sequence * (kLength / kBlockTokens + 1);
  }

  // A row as the cache has it.
  std::vector<double> Row(int sequence, int64_t p) const {
    const int64_t block = blocks_[Table(sequence) + p / kBlockTokens];
    const int64_t at = (block * kBlockTokens + p % kBlockTokens) * kRow;
    std::vector<double> row(kRow);
    for (int64_t k = 0; k < kRow; ++k) row[k] = Value(at + k);
    return row;
  }

 private:
  void Append(cudaStream_t stream) {
    // Gains of 2^-3 to 2^3, and a k_pe that is as large.
    const auto gain = Upload(SpreadValues(kLatent, 2, -3, 3));
    const auto kv_a = Upload(SpreadValues(2 * kLength * kRow, 1, -6, 3));
    const auto cosines = Upload(std::vector<float>(kLength * kRope / 2, 1.0f));
    const auto sines = Upload(std::vector<float>(kLength * kRope / 2, 0.0f));
    const auto finite = Upload(std::vector<uint8_t>(2 * kLength, 1));
    std::vector<int32_t> positions;
    std::vector<int32_t> tables;
    for (int s = 0; s < 2; ++s) {
      for (int32_t p = 0; p < kLength; ++p) {
        positions.push_back(p);
        tables.push_back(Table(s));
      }
    }
    const auto device_positions = Upload(positions);
    const auto device_tables = Upload(tables);
    KvAppend({.stream = stream},
             {2 * kLength, device_positions.data(), device_tables.data(),
              device_blocks_.data()},
             {kv_a.data(), gain.data(), 1e-6f, layer(), finite.data()},
             {cosines.data(), sines.data()});
    Check(cudaStreamSynchronize(stream), "kv_append");
  }

  double Value(int64_t element) const {
    if (dtype_ == KvDtype::kBf16) {
      const uint32_t bits = bytes_[2 * element] << 16 |
                            static_cast<uint32_t>(bytes_[2 * element + 1])
                                << 24;
      float value;
      std::memcpy(&value, &bits, 4);
      return value;
    }
    const int mantissa = dtype_ == KvDtype::kFp8E5m2 ? 2 : 3;
    const int bias = dtype_ == KvDtype::kFp8E5m2 ? 15 : 7;
    const int code = bytes_[element];
    const int exponent = (code & 0x7f) >> mantissa;
    const int fraction = code & ((1 << mantissa) - 1);
    const double magnitude = exponent == 0
                                 ? std::ldexp(fraction, 1 - bias - mantissa)
                                 : std::ldexp((1 << mantissa) + fraction,
                                              exponent - bias - mantissa);
    return code & 0x80 ? -magnitude : magnitude;
  }

  KvDtype dtype_;
  std::vector<int32_t> blocks_;
  DeviceBuffer<int32_t> device_blocks_;
  DeviceBuffer<uint8_t> cache_;
  std::vector<uint8_t> bytes_;
};

struct Token {
  int sequence;
  int32_t position;
};

// The query of a token is a function of the token alone.
std::vector<float> Query(const Token& token) {
  return SpreadValues(kHeads * kRow, token.sequence * kLength + token.position,
                      -14, -2);
}

// (tokens, kHeads, kLatent)
std::vector<float> Attend(cudaStream_t stream, const Sequences& sequences,
                          const std::vector<Token>& tokens, bool fast = false) {
  std::vector<int32_t> positions;
  std::vector<int32_t> tables;
  std::vector<float> query;
  for (const Token& token : tokens) {
    positions.push_back(token.position);
    tables.push_back(Sequences::Table(token.sequence));
    const std::vector<float> one = Query(token);
    query.insert(query.end(), one.begin(), one.end());
  }
  const int64_t count = static_cast<int64_t>(tokens.size());
  const int64_t max_position =
      *std::max_element(positions.begin(), positions.end());
  const AttentionSplits split =
      fast ? FastAttentionSplits(count, kHeads, max_position)
           : kAttentionSplits;
  const auto device_positions = Upload(positions);
  const auto device_tables = Upload(tables);
  const auto device_query = Upload(query);
  const auto out = Poisoned<float>(count * kHeads * kLatent);
  const auto workspace = Poisoned<float>(
      AttentionWorkspaceFloats(count, kHeads, max_position, split));
  MlaAttention({.stream = stream},
               {count, device_positions.data(), device_tables.data(),
                sequences.device_blocks()},
               max_position, device_query.data(), kHeads, kScale,
               sequences.layer(), workspace.data(), out.data(), split, nullptr);
  Check(cudaStreamSynchronize(stream), "mla_attention");
  return out.Download();
}

std::vector<double> Reference(const Sequences& sequences, const Token& token) {
  const std::vector<float> query = Query(token);
  std::vector<std::vector<double>> rows;
  for (int64_t p = 0; p <= token.position; ++p) {
    rows.push_back(sequences.Row(token.sequence, p));
  }
  std::vector<double> out;
  for (int64_t h = 0; h < kHeads; ++h) {
    std::vector<double> weights;
    for (const auto& row : rows) {
      weights.push_back(kScale * std::inner_product(row.begin(), row.end(),
                                                    &query[h * kRow], 0.0));
    }
    const double max = *std::max_element(weights.begin(), weights.end());
    double sum = 0.0;
    std::vector<double> head(kLatent);
    for (size_t p = 0; p < rows.size(); ++p) {
      const double weight = std::exp(weights[p] - max);
      sum += weight;
      for (int64_t c = 0; c < kLatent; ++c) head[c] += weight * rows[p][c];
    }
    for (const double value : head) out.push_back(value / sum);
  }
  return out;
}

class MlaAttentionTest : public testing::GpuTestWithParam<KvDtype> {};

TEST_P(MlaAttentionTest, MatchesDoublePrecisionAcrossTilesAndSplits) {
  const Sequences sequences(GetParam(), stream().get());
  // Weights and queries are rounded to 11 bits, or to 8.
  const double bound = GetParam() == KvDtype::kBf16 ? 5e-3 : 6e-4;
  for (const int32_t p : {0, 1, 15, 63, 64, 255, 256, 511, 512, 1023, 1024,
                          1087, 1300, 2047, 2048, 2199}) {
    const Token token = {p % 2, p};
    const auto out = Attend(stream().get(), sequences, {token});
    EXPECT_LT(RelativeError(out, Reference(sequences, token)), bound)
        << "at position " << p;
  }
}

// Splits that follow the load: from a tile each to a whole sequence.
TEST_P(MlaAttentionTest, MatchesDoublePrecisionWithFastSplits) {
  const Sequences sequences(GetParam(), stream().get());
  const double bound = GetParam() == KvDtype::kBf16 ? 5e-3 : 6e-4;
  for (const size_t count : {1, 3, 8, 40, 70, 130}) {
    std::vector<Token> tokens;
    for (size_t i = 0; i < count; ++i) {
      tokens.push_back(
          {static_cast<int>(i % 2),
           static_cast<int32_t>((kLength - 1 + 347 * i) % kLength)});
    }
    const auto out = Attend(stream().get(), sequences, tokens, /*fast=*/true);
    for (size_t i = 0; i < std::min<size_t>(count, 4); ++i) {
      const float* mine = &out[i * kHeads * kLatent];
      EXPECT_LT(RelativeError(std::vector<float>(mine, mine + kHeads * kLatent),
                              Reference(sequences, tokens[i])),
                bound)
          << "token " << i << " of " << count;
    }
  }
}

// Few tokens have a cluster of eight, four or two blocks a split, or a block a
// split; many a block a sequence, with two groups of warps or one. Order and
// company differ; every position is among them, as a prompt has it.
TEST_P(MlaAttentionTest, ATokenHasTheSameBitsInAnyCompany) {
  const Sequences sequences(GetParam(), stream().get());
  std::vector<Token> all;
  for (int32_t p = 0; p < kLength; ++p) all.push_back({0, p});
  for (int32_t p = kLength - 1; p >= 0; p -= 9) all.push_back({1, p});
  const auto together = Attend(stream().get(), sequences, all);
  constexpr int64_t kRowFloats = kHeads * kLatent;
  for (size_t i = 0; i < all.size(); i += 41) {
    for (const size_t company : {1, 2, 5, 7, 40, 64, 150}) {
      std::vector<Token> some;
      for (size_t k = 0; k < company; ++k) {
        some.push_back(all[(i + k * 31) % all.size()]);
      }
      const auto out = Attend(stream().get(), sequences, some);
      for (size_t k = 0; k < company; ++k) {
        ASSERT_TRUE(SameBits(&out[k * kRowFloats],
                             &together[(i + k * 31) % all.size() * kRowFloats],
                             kRowFloats))
            << "token " << i << " with " << company << ", place " << k;
      }
    }
  }
}

// What is left in parts is merged to the bits that it would have had.
TEST_P(MlaAttentionTest, ValuesOfPartsAreThoseOfTheWhole) {
  const Sequences sequences(GetParam(), stream().get());
  std::vector<uint16_t> halves;  // bf16: the upper ones
  for (const float x : SpreadValues(kHeads * kValue * kLatent, 5)) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    halves.push_back(static_cast<uint16_t>(bits >> 16));
  }
  const auto weights = Upload(halves);
  const HeadProjection v = {WeightDtype::kBf16,
                            reinterpret_cast<const std::byte*>(weights.data()),
                            1.0f, kHeads};
  for (const int64_t count : {1, 3, 21}) {
    std::vector<int32_t> positions;
    std::vector<int32_t> tables;
    std::vector<float> query;
    for (int64_t t = 0; t < count; ++t) {
      const Token token = {
          static_cast<int>(t % 2),
          static_cast<int32_t>((kLength - 1 - t * 97) % kLength)};
      positions.push_back(std::abs(token.position));
      tables.push_back(Sequences::Table(token.sequence));
      const auto one = Query(token);
      query.insert(query.end(), one.begin(), one.end());
    }
    const auto device_positions = Upload(positions);
    const auto device_tables = Upload(tables);
    const auto device_query = Upload(query);
    const auto run = [&](bool in_parts) {
      const auto attended = Poisoned<float>(count * kHeads * kLatent);
      const auto workspace =
          Poisoned<float>(AttentionWorkspaceFloats(count, kHeads, kLength - 1));
      const auto out = Poisoned<float>(count * kHeads * kValue);
      AttentionParts parts;
      MlaAttention({.stream = stream().get(), .overlap = true},
                   {count, device_positions.data(), device_tables.data(),
                    sequences.device_blocks()},
                   kLength - 1, device_query.data(), kHeads, kScale,
                   sequences.layer(), workspace.data(), attended.data(),
                   in_parts ? &parts : nullptr);
      EXPECT_EQ(parts.data != nullptr, in_parts);
      AbsorbValue({.stream = stream().get(), .overlap = true}, v, count,
                  attended.data(),
                  InputSink{.data = out.data(), .dtype = WeightDtype::kFp32},
                  parts);
      stream().Synchronize();
      return out.Download();
    };
    const auto whole = run(false);
    EXPECT_TRUE(SameBits(run(true).data(), whole.data(), whole.size()))
        << count << " tokens";
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, MlaAttentionTest,
                         ::testing::ValuesIn(testing::kKvDtypes),
                         testing::KvDtypeName);

}  // namespace
}  // namespace invar::cuda
