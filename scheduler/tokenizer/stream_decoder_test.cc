#include "scheduler/tokenizer/stream_decoder.h"

#include <gtest/gtest.h>

#include <random>

#include "scheduler/tokenizer/test_tokenizer.h"

namespace invar {
namespace {

TEST(StreamDecoder, WaitsForTheWholeCharacter) {
  const auto tokenizer = TestModel().Load().value();
  StreamDecoder decoder(*tokenizer, true);
  EXPECT_EQ(decoder.Append(259), "hello");
  EXPECT_EQ(decoder.Append(0xF0), "");
  EXPECT_EQ(decoder.Append(0x9F), "");
  EXPECT_EQ(decoder.Append(0x98), "");
  EXPECT_EQ(decoder.Append(0x80), "\U0001F600");
  EXPECT_EQ(decoder.Finish(), "");
}

TEST(StreamDecoder, SkipsSpecialTokensInsideACharacter) {
  const auto tokenizer = TestModel().Load().value();
  StreamDecoder skipping(*tokenizer, true);
  EXPECT_EQ(skipping.Append(0xC3), "");
  EXPECT_EQ(skipping.Append(261), "");
  EXPECT_EQ(skipping.Append(0xA9), "\u00e9");
  StreamDecoder showing(*tokenizer, false);
  EXPECT_EQ(showing.Append(0xC3), "");
  EXPECT_EQ(showing.Append(261), "\uFFFD<eos>");
  EXPECT_EQ(showing.Append(0xA9), "\uFFFD");
}

TEST(StreamDecoder, UnknownIdsAreSilent) {
  const auto tokenizer = TestModel().Load().value();
  StreamDecoder decoder(*tokenizer, true);
  EXPECT_EQ(decoder.Append(-1), "");
  EXPECT_EQ(decoder.Append(263), "");
}

TEST(StreamDecoder, FinishReplacesACharacterCutShort) {
  const auto tokenizer = TestModel().Load().value();
  StreamDecoder decoder(*tokenizer, true);
  EXPECT_EQ(decoder.Append(0xE4), "");
  EXPECT_EQ(decoder.Append(0xB8), "");
  EXPECT_EQ(decoder.Finish(), "\uFFFD");
  EXPECT_EQ(decoder.Finish(), "");
}

// Bytes drawn near the edges of UTF-8: pieces are always whole characters, and
// joined they are the decoding of the whole.
TEST(StreamDecoder, AnyBytesGiveTheTextOfTheWhole) {
  const auto tokenizer = TestModel().Load().value();
  constexpr uint8_t kEdges[] = {0x00, 'a',  0x7F, 0x80, 0x8F, 0x90, 0x9F,
                                0xA0, 0xBF, 0xC0, 0xC2, 0xDF, 0xE0, 0xE1,
                                0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF};
  std::mt19937 random(2);
  for (int round = 0; round < 2000; ++round) {
    std::vector<int32_t> ids(random() % 12);
    for (int32_t& id : ids) id = kEdges[random() % std::size(kEdges)];
    StreamDecoder decoder(*tokenizer, false);
    std::string text;
    for (const int32_t id : ids) {
      const std::string piece = decoder.Append(id);
      EXPECT_EQ(FindInvalidUtf8(piece), std::nullopt);
      text += piece;
    }
    text += decoder.Finish();
    ASSERT_EQ(text, tokenizer->Decode(ids, false).value());
  }
}

// Unicode's own example (chapter 3, substitution of maximal subparts).
TEST(Utf8Stream, ReplacesMaximalSubparts) {
  Utf8Stream stream;
  EXPECT_EQ(
      stream.Append("\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64"),
      "a\uFFFD\uFFFD\uFFFDb\uFFFDc\uFFFD\uFFFDd");
}

}  // namespace
}  // namespace invar
