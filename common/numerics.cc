#include "common/numerics.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "common/digest.h"

namespace invar {
namespace {

using Line = std::pair<std::string, std::string>;

std::vector<Line> Lines(const v1::Numerics& numerics) {
  std::vector<Line> lines = {{"invar.numerics", "1"}};
  for (const auto& entry : numerics.plan().entries()) {
    lines.emplace_back(absl::StrCat("plan.", entry.name()), entry.value());
  }
  lines.emplace_back("weights_digest", numerics.weights_digest());
  lines.emplace_back("kernel_build_id", numerics.kernel_build_id());
  lines.emplace_back("architecture", numerics.architecture());
  lines.emplace_back("tokenizer_digest", numerics.tokenizer_digest());
  return lines;
}

std::string Escape(absl::string_view text) {
  return absl::StrReplaceAll(text, {{"\\", "\\\\"}, {"\n", "\\n"}});
}

}  // namespace

std::string CanonicalRendering(const v1::Numerics& numerics) {
  std::string text;
  for (const auto& [name, value] : Lines(numerics)) {
    absl::StrAppend(&text, Escape(name), "=", Escape(value), "\n");
  }
  return text;
}

std::string Fingerprint(const v1::Numerics& numerics) {
  return Sha256Hex(CanonicalRendering(numerics));
}

std::string PlanEntry(const v1::Numerics& numerics, absl::string_view name) {
  for (const auto& entry : numerics.plan().entries()) {
    if (entry.name() == name) return entry.value();
  }
  return "";
}

std::string FirstDifference(const v1::Numerics& ours,
                            const v1::Numerics& theirs) {
  const std::vector<Line> left = Lines(ours);
  const std::vector<Line> right = Lines(theirs);
  const auto [a, b] =
      std::mismatch(left.begin(), left.end(), right.begin(), right.end());
  if (a == left.end() && b == right.end()) return "";
  if (a != left.end() && b != right.end() && a->first == b->first) {
    return absl::StrCat(a->first, ": ", a->second, " against ", b->second);
  }
  // The longer side states something more.
  const std::string& name = left.size() > right.size() ? a->first : b->first;
  return absl::StrCat(name, ": stated by one side alone");
}

}  // namespace invar
