// The ids and texts of the reference implementation, recorded by
// testdata/make_vectors.py.
#include <gtest/gtest.h>

#include <algorithm>

#include "scheduler/tokenizer/stream_decoder.h"
#include "scheduler/tokenizer/test_tokenizer.h"

namespace invar {
namespace {

using nlohmann::json;

constexpr char kTestData[] = "scheduler/tokenizer/testdata/";

void ExpectVectors(const Tokenizer& tokenizer, const json& vectors) {
  for (const json& vector : vectors["cases"]) {
    const std::string text = vector["text"];
    const auto ids = tokenizer.Encode(text, {vector["parse_special"]});
    ASSERT_TRUE(ids.ok()) << ids.status() << "\n" << text;
    EXPECT_EQ(*ids, vector["ids"].get<std::vector<int32_t>>()) << vector;
  }
  for (const json& vector : vectors["decodes"]) {
    const auto ids = vector["ids"].get<std::vector<int32_t>>();
    const bool skip_special = vector["skip_special"];
    const std::string text = vector["text"];
    EXPECT_EQ(tokenizer.Decode(ids, skip_special).value(), text) << vector;
    StreamDecoder stream(tokenizer, skip_special);
    std::string streamed;
    for (const int32_t id : ids) streamed += stream.Append(id);
    EXPECT_EQ(streamed + stream.Finish(), text) << vector;
  }
}

TEST(Vectors, EveryVariantOfTheSyntheticTokenizer) {
  const json vectors = ReadJsonFile(std::string(kTestData) + "vectors.json");
  ASSERT_GE(vectors["variants"].size(), 50u);
  TestModel model;
  model.config = ReadJsonFile(std::string(kTestData) + "tokenizer_config.json");
  const json base = ReadJsonFile(std::string(kTestData) + "tokenizer.json");
  for (const json& variant : vectors["variants"]) {
    SCOPED_TRACE(variant["name"].get<std::string>());
    model.tokenizer = base;
    for (const auto& [key, value] : variant["patch"].items()) {
      if (key != "model") {
        model.tokenizer[key] = value;
        continue;
      }
      model.tokenizer[key]["ignore_merges"] = value["ignore_merges"];
      json& merges = model.tokenizer[key]["merges"];
      merges.erase(merges.begin() + value["merges"].get<int>(), merges.end());
    }
    const auto tokenizer = model.Load();
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    ExpectVectors(**tokenizer, variant);
  }
}

TEST(Vectors, TheModelInTheTree) {
  const std::string path = "deploy/models/invar-gsm-20m";
  const auto tokenizer = Tokenizer::Load(path);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_TRUE((*tokenizer)->adds_bos());
  SCOPED_TRACE("a changed tokenizer needs testdata/make_vectors.py run again");
  ExpectVectors(**tokenizer,
                ReadJsonFile(std::string(kTestData) + "model_vectors.json"));
}

}  // namespace
}  // namespace invar
