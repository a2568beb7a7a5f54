#include "common/trace.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace invar {
namespace {

constexpr size_t kLength = 55;
constexpr size_t kTraceAt = 3;
constexpr size_t kTraceLength = 32;
constexpr size_t kParentAt = 36;
constexpr size_t kParentLength = 16;
constexpr size_t kFlagsAt = 53;

bool IsHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
  });
}

bool IsZero(absl::string_view text) {
  return text.find_first_not_of('0') == absl::string_view::npos;
}

}  // namespace

std::string ReadTraceparent(absl::string_view header) {
  const absl::string_view version = header.substr(0, 2);
  if (header.size() < kLength || version == "ff" ||
      (header.size() > kLength &&
       (version == "00" || header[kLength] != '-'))) {
    return "";
  }
  header = header.substr(0, kLength);
  const absl::string_view trace = header.substr(kTraceAt, kTraceLength);
  const absl::string_view parent = header.substr(kParentAt, kParentLength);
  const absl::string_view flags = header.substr(kFlagsAt);
  if (header[kTraceAt - 1] != '-' || header[kParentAt - 1] != '-' ||
      header[kFlagsAt - 1] != '-' || !IsHex(version) || !IsHex(trace) ||
      !IsHex(parent) || !IsHex(flags) || IsZero(trace) || IsZero(parent)) {
    return "";
  }
  return std::string(header);
}

absl::string_view TraceId(absl::string_view traceparent) {
  if (traceparent.size() != kLength) return "";
  return traceparent.substr(kTraceAt, kTraceLength);
}

bool IsSampled(absl::string_view traceparent) {
  if (traceparent.size() != kLength) return false;
  const char low = traceparent.back();  // Bit 0 of the flags.
  return ((low <= '9' ? low - '0' : low - 'a' + 10) & 1) != 0;
}

std::string TraceNote(absl::string_view traceparent) {
  const absl::string_view trace = TraceId(traceparent);
  return trace.empty() ? "" : absl::StrCat(" (trace ", trace, ")");
}

}  // namespace invar
