#include "worker/model/checkpoint/text_file.h"

#include <cerrno>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace invar {

absl::StatusOr<std::string> ReadTextFile(const std::string& path) {
  constexpr std::streamoff kMaxBytes = 64 << 20;
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  }
  const std::streamoff size = file.tellg();
  if (size < 0 || size > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is larger than ", kMaxBytes, " bytes"));
  }
  std::string text(static_cast<size_t>(size), '\0');
  file.seekg(0);
  file.read(text.data(), size);
  if (!file) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  }
  return text;
}

}  // namespace invar
