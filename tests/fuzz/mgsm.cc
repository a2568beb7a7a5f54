// The evaluation's files, and what a transcript answers.
#include "client/mgsm.h"

#include "absl/strings/match.h"
#include "tests/fuzz/check.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using invar::Check;
  const absl::string_view text = invar::Text(data, size);
  const auto problems = invar::ParseMgsmProblems(text, "mgsm_en.tsv");
  if (problems.ok()) {
    for (const invar::MgsmProblem& problem : *problems) {
      Check(!absl::StrContains(problem.question, '\n') &&
                !absl::StrContains(problem.answer, '\t'),
            "a problem is a line of two fields");
      Check(invar::MgsmCorrect(problem.answer, problem.answer),
            "an answer is its own");
    }
  }
  const auto instruction =
      invar::ParseMgsmInstruction(text, "en", "instructions.json");
  if (instruction.ok()) {
    Check(absl::StrContains(invar::MgsmPrompt(*instruction, "[q]"), "[q]"),
          "a prompt holds the question");
  }
  const std::string prediction = invar::ExtractMgsmAnswer(text, "Answer");
  Check(!absl::StrContains(prediction, ','), "commas are dropped");
  Check(prediction.empty() || absl::StrContains(text, "Answer"),
        "no prediction without the prefix");
  return 0;
}
