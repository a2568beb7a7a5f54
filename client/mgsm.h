// MGSM by the simple-evals protocol: its files, its prompt, and how an answer
// is read out of a transcript and scored.
//
// One user message, no system message: the language's instruction with
// `{input}` replaced by the question. Scored by exact match of strings.
#ifndef INVAR_CLIENT_MGSM_H_
#define INVAR_CLIENT_MGSM_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace invar {

struct MgsmProblem {
  std::string question;
  // As in the file: a few carry commas ("2,125").
  std::string answer;
};

// The languages of MGSM: bn de en es fr ja ru sw te th zh.
std::vector<std::string> MgsmLanguages();

// What stands before the answer in a transcript, without a colon: "Answer" for
// en. NOT_FOUND for a language that MGSM does not have.
absl::StatusOr<std::string> MgsmAnswerPrefix(absl::string_view language);

// Reads the text of a mgsm_LANG.tsv: a problem a line, question and answer
// split by one tab, no header, no quoting. INVALID_ARGUMENT names file and
// line.
absl::StatusOr<std::vector<MgsmProblem>> ParseMgsmProblems(
    absl::string_view text, absl::string_view file_name);

// The instruction of a language out of the text of an instructions.json: an
// object from language to instruction. INVALID_ARGUMENT unless it holds
// `{input}` exactly once; NOT_FOUND without the language.
absl::StatusOr<std::string> ParseMgsmInstruction(absl::string_view text,
                                                 absl::string_view language,
                                                 absl::string_view file_name);

// The user message.
std::string MgsmPrompt(absl::string_view instruction,
                       absl::string_view question);

// The prediction that a transcript makes: empty without the prefix, or without
// a number after its last occurrence. Otherwise the last number there, commas
// dropped first; digits are those of Unicode, and stay as they are.
std::string ExtractMgsmAnswer(absl::string_view transcript,
                              absl::string_view answer_prefix);

// Whether a prediction is the answer: equal strings, once trailing zeros after
// a dot, and commas, are gone. "18.00" is 18; "018" and "১৮" are not.
bool MgsmCorrect(absl::string_view answer, absl::string_view prediction);

}  // namespace invar

#endif  // INVAR_CLIENT_MGSM_H_
