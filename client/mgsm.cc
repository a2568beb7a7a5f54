#include "client/mgsm.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace invar {
namespace {

constexpr char kInputMark[] = "{input}";

struct AnswerPrefix {
  const char* language;
  const char* prefix;
};

constexpr AnswerPrefix kAnswerPrefixes[] = {
    {"bn", "উত্তর"},    {"de", "Antwort"}, {"en", "Answer"}, {"es", "Respuesta"},
    {"fr", "Réponse"}, {"ja", "答え"},    {"ru", "Ответ"},  {"sw", "Jibu"},
    {"te", "సమాధానం"},   {"th", "คำตอบ"},   {"zh", "答案"}};

// `\d` of the protocol is Unicode's category Nd, as it is in Python: that is
// what PCRE2_UCP makes of it. PCRE2 rather than a table of our own, because
// the tokenizer needs it anyway.
class NumberPattern {
 public:
  NumberPattern() {
    int error = 0;
    size_t offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>("\\d+\\.?\\d*"),
                              PCRE2_ZERO_TERMINATED,
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF,
                              &error, &offset, nullptr));
    if (code_ == nullptr) abort();  // A fixed pattern: only without memory.
    match_.reset(pcre2_match_data_create_from_pattern(code_.get(), nullptr));
    if (match_ == nullptr) abort();
  }

  // The last match in text; empty without one.
  std::string Last(absl::string_view text) {
    std::string last;
    size_t offset = 0;
    while (offset <= text.size() &&
           pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()),
                       text.size(), offset, 0, match_.get(), nullptr) > 0) {
      const size_t* span = pcre2_get_ovector_pointer(match_.get());
      last = std::string(text.substr(span[0], span[1] - span[0]));
      offset = span[1];  // Never empty: a match holds at least one digit.
    }
    return last;
  }

 private:
  struct Free {
    void operator()(pcre2_code* code) { pcre2_code_free(code); }
    void operator()(pcre2_match_data* match) { pcre2_match_data_free(match); }
  };
  std::unique_ptr<pcre2_code, Free> code_;
  std::unique_ptr<pcre2_match_data, Free> match_;
};

std::string StripTrailing(absl::string_view text, char unwanted) {
  while (!text.empty() && text.back() == unwanted) text.remove_suffix(1);
  return std::string(text);
}

std::string DropCommas(absl::string_view text) {
  return absl::StrReplaceAll(text, {{",", ""}});
}

}  // namespace

std::vector<std::string> MgsmLanguages() {
  std::vector<std::string> languages;
  for (const AnswerPrefix& entry : kAnswerPrefixes) {
    languages.push_back(entry.language);
  }
  return languages;
}

absl::StatusOr<std::string> MgsmAnswerPrefix(absl::string_view language) {
  for (const AnswerPrefix& entry : kAnswerPrefixes) {
    if (language == entry.language) return entry.prefix;
  }
  return absl::NotFoundError(
      absl::StrCat("MGSM has no language \"", language, "\"; it has ",
                   absl::StrJoin(MgsmLanguages(), ", ")));
}

absl::StatusOr<std::vector<MgsmProblem>> ParseMgsmProblems(
    absl::string_view text, absl::string_view file_name) {
  absl::ConsumePrefix(&text, "\xEF\xBB\xBF");  // A byte-order mark.
  std::vector<MgsmProblem> problems;
  int line_number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++line_number;
    // Strips the CR of CRLF, too.
    line = absl::StripAsciiWhitespace(line);
    if (line.empty()) continue;
    const std::vector<absl::string_view> columns = absl::StrSplit(line, '\t');
    if (columns.size() != 2) {
      return absl::InvalidArgumentError(absl::StrCat(
          file_name, ":", line_number, ": has ", columns.size(),
          " tab-separated columns; MGSM has 2, question and answer"));
    }
    if (absl::StrContains(columns[1], '.')) {
      return absl::InvalidArgumentError(absl::StrCat(
          file_name, ":", line_number, ": the answer \"", columns[1],
          "\" holds a dot; MGSM answers are integers"));
    }
    problems.push_back({std::string(columns[0]), std::string(columns[1])});
  }
  if (problems.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_name, ": holds no problem"));
  }
  return problems;
}

absl::StatusOr<std::string> ParseMgsmInstruction(absl::string_view text,
                                                 absl::string_view language,
                                                 absl::string_view file_name) {
  const auto json =
      nlohmann::json::parse(text.begin(), text.end(), /*cb=*/nullptr,
                            /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(
        file_name, ": is not a JSON object of language to instruction"));
  }
  const auto it = json.find(std::string(language));
  if (it == json.end() || !it->is_string()) {
    return absl::NotFoundError(
        absl::StrCat(file_name, ": has no instruction for \"", language, "\""));
  }
  std::string instruction = it->get<std::string>();
  const size_t mark = instruction.find(kInputMark);
  if (mark == std::string::npos ||
      instruction.find(kInputMark, mark + 1) != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_name, ": the instruction for \"", language,
                     "\" must hold ", kInputMark, " exactly once"));
  }
  return instruction;
}

std::string MgsmPrompt(absl::string_view instruction,
                       absl::string_view question) {
  return absl::StrReplaceAll(instruction, {{kInputMark, question}});
}

std::string ExtractMgsmAnswer(absl::string_view transcript,
                              absl::string_view answer_prefix) {
  const size_t at = transcript.rfind(answer_prefix);
  if (at == absl::string_view::npos) return "";
  const std::string after =
      DropCommas(transcript.substr(at + answer_prefix.size()));
  return StripTrailing(NumberPattern().Last(after), '.');
}

bool MgsmCorrect(absl::string_view answer, absl::string_view prediction) {
  std::string number(prediction);
  if (absl::StrContains(number, '.')) {
    number = StripTrailing(StripTrailing(number, '0'), '.');
  }
  return DropCommas(answer) == DropCommas(number);
}

}  // namespace invar
