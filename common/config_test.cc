#include "common/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

namespace invar {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string ErrorOf(absl::string_view text) {
  return std::string(ParseServerConfig(text, "c.textproto").status().message());
}

TEST(ConfigTest, ResolvesEveryDefault) {
  const auto config =
      ParseServerConfig("model { path: \"/models/tiny/\" }", "c");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model().name(), "tiny");
  EXPECT_EQ(config->kv_cache().dtype(), v1::KvCache::FP8_E5M2);
  EXPECT_EQ(config->kv_cache().memory_bytes(), int64_t{1} << 30);
  EXPECT_EQ(config->determinism().mode(), v1::Determinism::DETERMINISTIC);
  EXPECT_EQ(config->listen().api(), "127.0.0.1:8470");
  const auto& limits = config->limits();
  const auto* descriptor = limits.GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const auto* field = descriptor->field(i);
    if (field->name() == "max_context_tokens") continue;  // 0: the model's.
    EXPECT_TRUE(limits.GetReflection()->HasField(limits, field))
        << field->name() << " has no default";
  }
}

TEST(ConfigTest, ErrorsNameTheLine) {
  EXPECT_THAT(ErrorOf("model { path: \"m\" }\nkv_cache { dtypo: BF16 }"),
              StartsWith("c.textproto:2:"));
  EXPECT_THAT(ErrorOf("determinism { mode: SOMETIMES }"),
              HasSubstr("SOMETIMES"));
}

TEST(ConfigTest, ErrorsNameFieldAndRange) {
  EXPECT_THAT(ErrorOf(""), HasSubstr("model.path"));
  EXPECT_THAT(ErrorOf("model { path: \"m\" } limits { max_attempts: -1 }"),
              HasSubstr("limits.max_attempts is -1; it must lie in [1, 16]"));
  EXPECT_THAT(ErrorOf("model { path: \"m\" } kv_cache { block_tokens: 32 }"),
              HasSubstr("kv_cache.block_tokens is 32"));
  EXPECT_THAT(ErrorOf("model { path: \"m\" } limits { heartbeat_ms: 1500 }"),
              HasSubstr("at least twice"));
  const auto parallel =
      ParseServerConfig("model { path: \"m\" tensor_parallel: 2 }", "c");
  EXPECT_TRUE(absl::IsFailedPrecondition(parallel.status()));
}

TEST(ConfigTest, ModelPathIsRelativeToTheFile) {
  const std::string folder = ::testing::TempDir();
  const std::string path = folder + "/relative.textproto";
  std::ofstream(path) << "model { path: \"../models/m\" }";
  const auto config = LoadServerConfig(path);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_THAT(config->model().path(), StartsWith("/"));
  EXPECT_THAT(config->model().path(), HasSubstr("/models/m"));
  EXPECT_TRUE(absl::IsNotFound(LoadServerConfig("/nonexistent").status()));
}

TEST(ConfigTest, EveryWorkerFieldMovesTheDigest) {
  const auto config = ParseServerConfig("model { path: \"m\" }", "c");
  ASSERT_TRUE(config.ok());
  const auto ours = MakeWorkerConfig(*config);
  auto theirs = ours;
  EXPECT_EQ(ConfigDigest(ours), ConfigDigest(theirs));
  EXPECT_EQ(DifferingField(ours, theirs), "");
  theirs.mutable_determinism()->set_mode(v1::Determinism::FAST);
  EXPECT_NE(ConfigDigest(ours), ConfigDigest(theirs));
  EXPECT_EQ(DifferingField(ours, theirs),
            "determinism.mode is DETERMINISTIC here and FAST there");
  theirs = ours;
  theirs.mutable_limits()->set_max_attempts(9);
  EXPECT_NE(ConfigDigest(ours), ConfigDigest(theirs));
}

}  // namespace
}  // namespace invar
