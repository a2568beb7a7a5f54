#ifndef INVAR_SCHEDULER_TOKENIZER_TEST_TOKENIZER_H_
#define INVAR_SCHEDULER_TOKENIZER_TEST_TOKENIZER_H_

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "scheduler/tokenizer/tokenizer.h"

namespace invar {

// For tests: a model folder that is removed again.
class TestModel {
 public:
  // A byte-level vocabulary whose first 256 ids are the bytes, so that byte b
  // has id b, then "he", "ll", "hell", "hello" (256 to 259), then the special
  // tokens <bos> (260) and <eos> (261) and the plain added token <tool> (262).
  TestModel();
  ~TestModel();
  TestModel(const TestModel&) = delete;
  TestModel& operator=(const TestModel&) = delete;

  // Written by Load, after whatever the test changed.
  nlohmann::json tokenizer;
  nlohmann::json config;
  // Written instead of `tokenizer` where it is not empty.
  std::string tokenizer_text;

  void Write(const std::string& name, const std::string& text) const;
  absl::StatusOr<std::unique_ptr<Tokenizer>> Load() const;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

nlohmann::json ReadJsonFile(const std::string& path);

}  // namespace invar

#endif  // INVAR_SCHEDULER_TOKENIZER_TEST_TOKENIZER_H_
