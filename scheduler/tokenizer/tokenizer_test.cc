#include "scheduler/tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "common/tokenizer_digest.h"
#include "scheduler/tokenizer/test_tokenizer.h"

namespace invar {
namespace {

using ::nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<int32_t> Encode(const Tokenizer& tokenizer, const std::string& text,
                            bool parse_special = false) {
  return tokenizer.Encode(text, {parse_special}).value();
}

// Loads what the test has broken and checks the complaint.
void ExpectRefused(const TestModel& model, absl::StatusCode code,
                   const std::string& path, const std::string& problem) {
  const auto tokenizer = model.Load();
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_EQ(tokenizer.status().code(), code) << tokenizer.status();
  const std::string message(tokenizer.status().message());
  EXPECT_THAT(message, HasSubstr(model.path() + "/"));
  EXPECT_THAT(message, HasSubstr(path));
  EXPECT_THAT(message, HasSubstr(problem));
}
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kOtherKind = absl::StatusCode::kUnimplemented;

TEST(Tokenizer, MergesByRank) {
  const auto tokenizer = TestModel().Load().value();
  EXPECT_THAT(Encode(*tokenizer, "hello"), ElementsAre(259));
  EXPECT_THAT(Encode(*tokenizer, "hellhe"), ElementsAre(258, 256));
  // "l l" ranks before "he ll": the first two of three are joined.
  EXPECT_THAT(Encode(*tokenizer, "helll"), ElementsAre(258, 'l'));
  EXPECT_THAT(Encode(*tokenizer, ""), ElementsAre());
  EXPECT_EQ(tokenizer->vocab_size(), 263);
}

TEST(Tokenizer, ReadsMergesInBothForms) {
  TestModel model;
  model.tokenizer["model"]["merges"] =
      json::array({json::array({"h", "e"}), json::array({"l", "l"})});
  EXPECT_THAT(Encode(*model.Load().value(), "hello"),
              ElementsAre(256, 257, 'o'));
}

TEST(Tokenizer, SpecialTokensAreTextUnlessAskedFor) {
  const auto tokenizer = TestModel().Load().value();
  EXPECT_THAT(Encode(*tokenizer, "<eos>", true), ElementsAre(261));
  EXPECT_THAT(Encode(*tokenizer, "<eos>"),
              ElementsAre('<', 'e', 'o', 's', '>'));
  EXPECT_THAT(Encode(*tokenizer, "<tool>"), ElementsAre(262));
  EXPECT_TRUE(tokenizer->IsSpecial(260));
  EXPECT_FALSE(tokenizer->IsSpecial(262));
  EXPECT_FALSE(tokenizer->IsSpecial(-1));
}

TEST(Tokenizer, BosAndEosAreSpecialWhateverTheFileSays) {
  TestModel model;
  model.tokenizer["added_tokens"][1]["special"] = false;
  const auto tokenizer = model.Load().value();
  EXPECT_EQ(tokenizer->eos_id(), 261);
  EXPECT_TRUE(tokenizer->IsSpecial(261));
  EXPECT_EQ(Encode(*tokenizer, "<eos>").size(), 5u);
}

TEST(Tokenizer, ReadsTheConfig) {
  TestModel model;
  EXPECT_EQ(model.Load().value()->bos_id(), 260);
  EXPECT_FALSE(model.Load().value()->adds_bos());
  model.config["tokenizer_class"] = "LlamaTokenizerFast";
  EXPECT_TRUE(model.Load().value()->adds_bos());
  model.config["add_bos_token"] = false;
  EXPECT_FALSE(model.Load().value()->adds_bos());
  model.config["eos_token"] = nullptr;
  EXPECT_EQ(model.Load().value()->eos_id(), std::nullopt);
  model.config["bos_token"] = "<s>";
  ExpectRefused(model, kInvalid, "$.bos_token", "\"<s>\" is not among");
}

TEST(Tokenizer, DigestCoversBothFiles) {
  TestModel model;
  const std::string digest = model.Load().value()->digest();
  EXPECT_EQ(digest.size(), 64u);
  EXPECT_EQ(digest, TokenizerDigest(model.path()).value());
  model.config["x"] = 1;
  EXPECT_NE(model.Load().value()->digest(), digest);
}

TEST(Tokenizer, RefusesBadInput) {
  const auto tokenizer = TestModel().Load().value();
  const auto bad_text = tokenizer->Encode("ab\xED\xA0\x80");  // a surrogate
  EXPECT_EQ(bad_text.status().code(), kInvalid);
  EXPECT_THAT(std::string(bad_text.status().message()), HasSubstr("byte 2"));
  const std::vector<int32_t> ids = {1, 263};
  const auto bad_id = tokenizer->Decode(ids, false);
  EXPECT_EQ(bad_id.status().code(), kInvalid);
  EXPECT_THAT(std::string(bad_id.status().message()),
              HasSubstr("token_ids[1]: 263"));
  EXPECT_EQ(tokenizer->Encode(std::string((64 << 20) + 1, 'a')).status().code(),
            kInvalid);
}

// A merge looks at two pairs more and leaves a symbol fewer, however the
// merges lie: here those of runs, "a a", "aa aa" and so on.
TEST(Bpe, LooksAtThreePairsAByteAtMost) {
  json model = TestModel().tokenizer["model"];
  std::string run = "a";
  for (int id = 260; id < 276; ++id) {
    model["merges"].push_back(json::array({run, run}));
    model["vocab"][run += run] = id;
  }
  Bpe::Vocabulary vocabulary;
  const json read = json::parse(model.dump());
  const Bpe bpe = Bpe::Parse(JsonNode(read, "test"), &vocabulary).value();
  for (const int64_t bytes : {1 << 10, 1 << 16, 1 << 20}) {
    std::vector<int32_t> ids;
    EXPECT_LE(bpe.Encode(std::string(bytes, 'a'), &ids), 3 * bytes);
    EXPECT_EQ(ids.size(), bytes <= 1 << 16 ? 1u : 16u);
    std::string words;
    while (static_cast<int64_t>(words.size()) < bytes) words += "hellohelaaa";
    ids.clear();
    EXPECT_LE(bpe.Encode(words, &ids), 3 * static_cast<int64_t>(words.size()));
  }
}

// No run of a kind of character makes a pattern give up, nor scan it again
// from each of its characters: that would be days.
TEST(Tokenizer, LongRunsOfEveryKind) {
  const auto deepseek = Tokenizer::Load("deploy/models/invar-gsm-20m").value();
  TestModel model;
  model.tokenizer["pre_tokenizer"]["use_regex"] = true;
  const auto gpt2 = model.Load().value();
  for (const std::string unit :
       {"a", " ", "\n", "\r\n", "7", "!", "\u4E00", "\U0001F600", "\u0301",
        "\u00A0", "<\uFF5C", "It's 12,345 kg\r\n \u00E9\u4E00  x"}) {
    SCOPED_TRACE(unit);
    std::string text;
    while (text.size() < 1 << 17) text += unit;
    for (const std::string end : {"", "x"}) {
      for (const Tokenizer* tokenizer : {deepseek.get(), gpt2.get()}) {
        const auto ids = tokenizer->Encode(text + end);
        ASSERT_TRUE(ids.ok()) << ids.status();
        EXPECT_EQ(tokenizer->Decode(*ids, false).value(), text + end);
      }
    }
  }
}

TEST(Tokenizer, LongRunsNeedNoRecursionAndNoSquareTime) {
  TestModel model;
  model.tokenizer["pre_tokenizer"] = {{"type", "Sequence"},
                                      {"pretokenizers",
                                       {{{"type", "Split"},
                                         {"pattern", {{"Regex", "\\s+$"}}},
                                         {"behavior", "Isolated"}},
                                        model.tokenizer["pre_tokenizer"]}}};
  const auto tokenizer = model.Load().value();
  const size_t n = 1 << 20;
  EXPECT_EQ(Encode(*tokenizer, std::string(n, 'l')).size(), n / 2);
  EXPECT_EQ(Encode(*tokenizer, std::string(n, ' ') + "x").size(), n + 1);
}

TEST(Tokenizer, ManyThreadsAtOnce) {
  const auto tokenizer = TestModel().Load().value();
  const std::string text = "hello <tool> hell \xE2\x82\xAC";
  const std::vector<int32_t> expected = Encode(*tokenizer, text);
  std::vector<std::thread> threads;
  std::vector<int> equal(4);
  for (int& count : equal) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i)
        count += Encode(*tokenizer, text) == expected;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(equal, ElementsAre(200, 200, 200, 200));
}

TEST(TokenizerFile, MissingOrNotJson) {
  TestModel model;
  const auto missing = Tokenizer::Load(model.path());
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()),
              HasSubstr("tokenizer.json"));
  for (const std::string text :
       {"{", "nul", "{\"a\": \"\xFF\"}", "[\"\\ud800\"]"}) {
    model.tokenizer_text = text;
    ExpectRefused(model, kInvalid, "tokenizer.json", "not valid JSON");
  }
  model.tokenizer_text = "[]";
  ExpectRefused(model, kInvalid, "$", "expected an object, found array");
  model.tokenizer_text = std::string(1 << 20, '[');
  ExpectRefused(model, kInvalid, "tokenizer.json", "nested more than 64");
}

TEST(TokenizerFile, AnotherKindIsNamed) {
  TestModel model;
  model.tokenizer["model"] = {{"type", "Unigram"}, {"vocab", json::array()}};
  ExpectRefused(model, kOtherKind, "$.model",
                "another kind: model type \"Unigram\"");
}

TEST(TokenizerFile, WhatIsNotSupportedIsNamed) {
  const struct {
    const char* pointer;
    json value;
    const char* path;
    const char* problem;
  } cases[] = {
      {"/normalizer", {{"type", "NFC"}}, "$.normalizer", "\"NFC\""},
      {"/normalizer", {{"type", "NFD"}}, "$.normalizer", "\"NFD\""},
      {"/normalizer", {{"type", "NFKC"}}, "$.normalizer", "\"NFKC\""},
      {"/normalizer", {{"type", "NFKD"}}, "$.normalizer", "\"NFKD\""},
      {"/normalizer", {{"type", "Replace"}}, "$.normalizer", "\"Replace\""},
      {"/normalizer", {{"type", "Prepend"}}, "$.normalizer", "\"Prepend\""},
      {"/normalizer", {{"type", "Strip"}}, "$.normalizer", "\"Strip\""},
      {"/normalizer",
       {{"type", "Sequence"}, {"normalizers", {{{"type", "Lowercase"}}}}},
       "$.normalizer.normalizers[0]",
       "\"Lowercase\""},
      {"/pre_tokenizer",
       {{"type", "Metaspace"}},
       "$.pre_tokenizer",
       "\"Metaspace\""},
      {"/pre_tokenizer",
       {{"type", "Digits"}, {"individual_digits", true}},
       "$.pre_tokenizer",
       "does not end in ByteLevel"},
      {"/pre_tokenizer/surprise", true, "$.pre_tokenizer",
       "unknown key \"surprise\""},
      {"/decoder", nullptr, "$.decoder", "ByteLevel is needed"},
      {"/post_processor",
       {{"type", "BertProcessing"}},
       "$.post_processor",
       "\"BertProcessing\""},
      {"/version", "2.0", "$.version", "2.0"},
      {"/surprise", 1, "$", "unknown key \"surprise\""},
      {"/model/byte_fallback", true, "$.model.byte_fallback", "byte_fallback"},
      {"/model/dropout", 0.1, "$.model.dropout", "random"},
      {"/model/end_of_word_suffix", "</w>", "$.model.end_of_word_suffix",
       "suffix"},
      {"/added_tokens/2/single_word", true, "$.added_tokens[2]", "single_word"},
  };
  for (const auto& [pointer, value, path, problem] : cases) {
    SCOPED_TRACE(pointer);
    TestModel model;
    model.tokenizer[json::json_pointer(pointer)] = value;
    ExpectRefused(model, kOtherKind, path, problem);
  }
}

TEST(TokenizerFile, WhatContradictsItselfIsNamed) {
  const struct {
    const char* pointer;
    json value;
    const char* path;
    const char* problem;
  } cases[] = {
      {"/model/vocab/he", -1, "$.model.vocab.he", "-1 is not a token id"},
      {"/model/vocab/he", 1.5, "$.model.vocab.he", "expected a token id"},
      {"/model/vocab/he", 4294967296u, "$.model.vocab.he", "not a token id"},
      {"/model/vocab/he", 2147483647, "$.model.vocab.he", "leaves a gap"},
      {"/model/vocab/he", 257, "$.model.vocab.", "already another's"},
      {"/model/vocab", json::array(), "$.model.vocab", "expected an object"},
      {"/model/vocab", {{"a", 0}}, "$.model.vocab", "for byte 0"},
      {"/model/merges/1", "x yz", "$.model.merges[1]", "\"yz\", which is not"},
      {"/model/merges/1", "a b c", "$.model.merges[1]", "one space"},
      {"/model/merges/1", "a b", "$.model.merges[1]", "\"ab\", which is not"},
      {"/model/merges/1", json::array({"a"}), "$.model.merges[1]", "expected"},
      {"/model/merges", nullptr, "$.model.merges", "expected an array"},
      {"/model/ignore_merges", "yes", "$.model.ignore_merges", "true or false"},
      {"/added_tokens/0/id", 5, "$.added_tokens[0]", "already another's"},
      {"/added_tokens/0/content", "", "$.added_tokens[0].content", "found 0"},
      {"/added_tokens/0/content", "he", "$.added_tokens[0]",
       "the same token id 256"},
      {"/added_tokens/0/content", "<eos>", "$.added_tokens[1]",
       "the same content"},
      {"/pre_tokenizer",
       {{"type", "Split"},
        {"pattern", {{"Regex", "(a"}}},
        {"behavior", "Isolated"}},
       "$.pre_tokenizer.pattern.Regex",
       "offset 2: a group is not closed"},
      {"/pre_tokenizer",
       {{"type", 3}},
       "$.pre_tokenizer.type",
       "expected a string"},
  };
  for (const auto& [pointer, value, path, problem] : cases) {
    SCOPED_TRACE(std::string(pointer) + " " + value.dump());
    TestModel model;
    model.tokenizer[json::json_pointer(pointer)] = value;
    ExpectRefused(model, kInvalid, path, problem);
  }
}

TEST(TokenizerFile, MustFitTheModel) {
  TestModel model;
  model.Write("config.json", "{\"vocab_size\": 262}");
  ExpectRefused(model, kInvalid, "config.json: $.vocab_size",
                "the model has 262 ids, its tokenizer 263");
  model.Write("config.json", "{\"vocab_size\": 512}");
  EXPECT_TRUE(model.Load().ok());
}

// Every prefix and many one-byte changes: a Status or a tokenizer, no crash.
TEST(TokenizerFile, SurvivesDamage) {
  TestModel model;
  const json split = {{"type", "Split"},
                      {"pattern", {{"Regex", "(?:[a-z\\]]+|\\s{2,}?)$"}}},
                      {"behavior", "Contiguous"}};
  model.tokenizer["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers", {split, model.tokenizer["pre_tokenizer"]}}};
  ASSERT_TRUE(model.Load().ok());
  const std::string whole = model.tokenizer.dump();
  for (size_t i = 0; i < whole.size(); i += 31) {
    model.tokenizer_text = whole.substr(0, i);
    EXPECT_EQ(model.Load().ok(), i == 0);  // empty: the whole
    model.tokenizer_text = whole;
    model.tokenizer_text[i] ^= static_cast<char>(1 << i % 7);
    const auto tokenizer = model.Load();
    if (tokenizer.ok()) (*tokenizer)->Encode("hello <eos>\n").IgnoreError();
  }
}

}  // namespace
}  // namespace invar
