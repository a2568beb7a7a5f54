// A checkpoint's config.json, and the table of tensors that follows from it.
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/match.h"
#include "tests/fuzz/check.h"
#include "worker/model/checkpoint/architecture.h"
#include "worker/model/checkpoint/config.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using invar::Check;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::vector<absl::Status> problems;
  const auto config = invar::ParseModelConfig(text, "config.json", &problems);
  Check(config.ok() == problems.empty(), "a refusal names its problem");
  for (const absl::Status& problem : problems) {
    Check(absl::StrContains(problem.message(), "config.json"),
          "a problem names the file");
  }
  // The table of a giant is as right as that of a dwarf, and slow.
  if (!config.ok() || config->layers * config->router.experts > 512) return 0;
  std::set<std::string> names;
  for (const invar::TensorSpec& tensor : invar::ArchitectureTensors(*config)) {
    Check(names.insert(tensor.name).second, "a tensor stands there once");
    int64_t bytes = sizeof(float);
    for (const int64_t size : tensor.shape) {
      Check(size > 0, "a tensor has elements");
      Check(!__builtin_mul_overflow(bytes, size, &bytes),
            "a tensor's size is an int64");
    }
  }
  return 0;
}
