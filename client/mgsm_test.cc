#include "client/mgsm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "client/embedded_files.h"

namespace invar {
namespace {

using ::testing::HasSubstr;

// What stands in the transcript, what is read out of it under prefix "Answer".
struct Extraction {
  const char* transcript;
  const char* prediction;
};

TEST(ExtractMgsmAnswer, FollowsTheProtocol) {
  const Extraction cases[] = {
      {"Answer: 5", "5"},
      {"Answer 5", "5"},
      {"2 + 3 = 5", ""},
      {"answer: 5", ""},
      {"", ""},
      {"Answer:", ""},
      {"Answer: none at all", ""},
      // The text after the last occurrence counts.
      {"Answer: 5\nAnswer: 7", "7"},
      {"Answer: 5\nAnswer: unknown", ""},
      {"The Answers are 3 and 4", "4"},
      // The last number counts.
      {"Answer: $1,234.50 per 2 days", "2"},
      {"Answer: 3 apples, or 36 halves.", "36"},
      // A sign is no part of a number.
      {"Answer: -5", "5"},
      {"Answer: 10-3", "3"},
      // Commas go, wherever they stand.
      {"Answer: 70,000", "70000"},
      {"Answer: 1,2,3", "123"},
      {"Answer: 12,", "12"},
      // Only the ASCII comma.
      {"Answer: 1，2", "2"},
      // Dots: one belongs to the number, a trailing run is dropped.
      {"Answer: 18.00", "18.00"},
      {"Answer: 18.", "18"},
      {"Answer: 18...", "18"},
      {"Answer: .5", "5"},
      {"Answer: 1.2.3", "3"},
      {"Answer: 1.2.", "1.2"},
      {"Answer: 018", "018"},
      {"Answer: 5e3", "3"},
      {"Answer: **42**", "42"},
      {"Answer: \\boxed{42}", "42"},
      // Unicode digits match and stay what they are; a superscript is none.
      {"Answer: ১৮", "১৮"},
      {"Answer: ４２", "４２"},
      {"Answer: ๑๒.๕", "๑๒.๕"},
      {"Answer: 5²", "5"},
      {"Answer: Ⅻ", ""},
  };
  for (const Extraction& c : cases) {
    EXPECT_EQ(ExtractMgsmAnswer(c.transcript, "Answer"), c.prediction)
        << c.transcript;
  }
}

TEST(ExtractMgsmAnswer, KnowsThePrefixOfEachLanguage) {
  const Extraction cases[] = {
      {"bn", "উত্তর: 18"},      {"de", "Antwort: 18"},  {"en", "Answer: 18"},
      {"es", "Respuesta: 18"}, {"fr", "Réponse : 18"}, {"ja", "答え: 18"},
      {"ru", "Ответ: 18"},     {"sw", "Jibu: 18"},     {"te", "సమాధానం: 18"},
      {"th", "คำตอบ: 18"},     {"zh", "答案：18"}};
  EXPECT_EQ(MgsmLanguages().size(), std::size(cases));
  for (const auto& [language, transcript] : cases) {
    const auto prefix = MgsmAnswerPrefix(language);
    ASSERT_TRUE(prefix.ok()) << language;
    EXPECT_EQ(ExtractMgsmAnswer(transcript, *prefix), "18") << language;
  }
  const auto unknown = MgsmAnswerPrefix("xx");
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(unknown.status().message()), HasSubstr("bn, de, en"));
}

TEST(MgsmCorrect, ComparesStringsAfterNormalising) {
  EXPECT_TRUE(MgsmCorrect("18", "18"));
  EXPECT_TRUE(MgsmCorrect("18", "18.00"));
  EXPECT_TRUE(MgsmCorrect("2,125", "2125"));
  EXPECT_TRUE(MgsmCorrect("10", "10.0"));
  EXPECT_TRUE(MgsmCorrect("0", "0.0"));
  // Zeros go only after a dot.
  EXPECT_FALSE(MgsmCorrect("1", "10"));
  EXPECT_FALSE(MgsmCorrect("18", "018"));
  EXPECT_FALSE(MgsmCorrect("18", "১৮"));
  EXPECT_FALSE(MgsmCorrect("18", "18.5"));
  EXPECT_FALSE(MgsmCorrect("18", ""));
}

TEST(ParseMgsmProblems, ReadsLinesOfTwoColumns) {
  // Quotes are text, CRLF and a byte-order mark are not; the last line need
  // not end.
  const auto problems = ParseMgsmProblems(
      "\xEF\xBB\xBF\"Two\" and 'two'?\t4\r\n\nNext, please\t2,125\nLast\t0",
      "some.tsv");
  ASSERT_TRUE(problems.ok()) << problems.status();
  ASSERT_EQ(problems->size(), 3u);
  EXPECT_EQ((*problems)[0].question, "\"Two\" and 'two'?");
  EXPECT_EQ((*problems)[0].answer, "4");
  EXPECT_EQ((*problems)[1].answer, "2,125");
  EXPECT_EQ((*problems)[2].question, "Last");
}

TEST(ParseMgsmProblems, NamesTheLineThatIsWrong) {
  for (const char* wrong : {"one column", "a\tb\tc", "question\t2.5"}) {
    const auto problems =
        ParseMgsmProblems(absl::StrCat("fine\t1\n", wrong, "\n"), "some.tsv");
    EXPECT_EQ(problems.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(problems.status().message()),
                HasSubstr("some.tsv:2: "));
  }
  EXPECT_FALSE(ParseMgsmProblems("\n", "some.tsv").ok());
}

TEST(ParseMgsmInstruction, ReadsOneLanguage) {
  const auto instruction = ParseMgsmInstruction(
      R"({"de": "Löse:\n\n{input}", "en": "no mark"})", "de", "some.json");
  ASSERT_TRUE(instruction.ok()) << instruction.status();
  EXPECT_EQ(MgsmPrompt(*instruction, "1 + {input}?"), "Löse:\n\n1 + {input}?");

  EXPECT_EQ(ParseMgsmInstruction(R"({"de": "{input}"})", "en", "some.json")
                .status()
                .code(),
            absl::StatusCode::kNotFound);
  for (const char* wrong :
       {R"({"en": "no mark"})", R"({"en": "{input} {input}"})", "[]", "{"}) {
    EXPECT_EQ(ParseMgsmInstruction(wrong, "en", "some.json").status().code(),
              absl::StatusCode::kInvalidArgument)
        << wrong;
  }
}

TEST(EmbeddedFiles, HoldTheShippedSet) {
  absl::string_view problems_text;
  absl::string_view instructions;
  for (const EmbeddedFile& file : EmbeddedFiles()) {
    if (file.name == "mgsm_en.tsv") problems_text = file.contents;
    if (file.name == "instructions.json") instructions = file.contents;
  }
  const auto problems = ParseMgsmProblems(problems_text, "mgsm_en.tsv");
  ASSERT_TRUE(problems.ok()) << problems.status();
  EXPECT_EQ(problems->size(), 250u);
  EXPECT_TRUE(ParseMgsmInstruction(instructions, "en", "it").ok());
}

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// The benchmark's own files, which do not ship with Invar.
TEST(RealMgsmFiles, ReadUnchanged) {
  const char* folder = std::getenv("INVAR_MGSM_DIR");
  if (folder == nullptr) {
    GTEST_SKIP() << "set INVAR_MGSM_DIR to a folder of mgsm_*.tsv and "
                    "instructions.json to test the real files";
  }
  const std::filesystem::path data = folder;
  const std::string instructions = ReadFile(data / "instructions.json");
  int with_comma = 0;
  for (const std::string& language : MgsmLanguages()) {
    const std::string name = absl::StrCat("mgsm_", language, ".tsv");
    const auto problems = ParseMgsmProblems(ReadFile(data / name), name);
    ASSERT_TRUE(problems.ok()) << problems.status();
    EXPECT_EQ(problems->size(), 250u) << name;
    const auto instruction =
        ParseMgsmInstruction(instructions, language, "instructions.json");
    ASSERT_TRUE(instruction.ok()) << instruction.status();
    const auto prefix = MgsmAnswerPrefix(language);
    // The prefix is the word that the instruction asks for.
    EXPECT_THAT(*instruction, HasSubstr(absl::StrCat(*prefix, ":")));
    for (const MgsmProblem& problem : *problems) {
      if (language == "en" && problem.answer.find(',') != std::string::npos) {
        ++with_comma;
      }
      const std::string perfect = absl::StrCat(*prefix, ": ", problem.answer);
      EXPECT_TRUE(
          MgsmCorrect(problem.answer, ExtractMgsmAnswer(perfect, *prefix)));
    }
  }
  EXPECT_EQ(with_comma, 4);
}

}  // namespace
}  // namespace invar
