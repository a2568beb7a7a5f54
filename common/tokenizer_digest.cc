#include "common/tokenizer_digest.h"

#include <cstdint>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/digest.h"

namespace invar {

absl::StatusOr<std::string> TokenizerDigest(const std::string& model_path) {
  Sha256 hash;
  for (const std::string name : {"tokenizer.json", "tokenizer_config.json"}) {
    const std::string path = absl::StrCat(model_path, "/", name);
    std::ifstream file(path, std::ios::binary);
    std::stringstream bytes;
    if (!file || !(bytes << file.rdbuf())) {
      return absl::NotFoundError(absl::StrCat("cannot read ", path));
    }
    const std::string text = bytes.str();
    const uint64_t size = text.size();
    hash.Update(name);
    hash.Update(absl::string_view("\0", 1));
    hash.Update(
        absl::string_view(reinterpret_cast<const char*>(&size), sizeof(size)));
    hash.Update(text);
  }
  return hash.HexDigest();
}

}  // namespace invar
