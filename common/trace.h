// W3C Trace Context, as far as it is carried through: the `traceparent` of a
// call's metadata goes from the client to the logs of whoever serves it.
#ifndef INVAR_COMMON_TRACE_H_
#define INVAR_COMMON_TRACE_H_

#include <string>

#include "absl/strings/string_view.h"

namespace invar {

// The metadata key.
inline constexpr char kTraceparentKey[] = "traceparent";

// "00-TRACE-PARENT-FLAGS" with TRACE of 32 and PARENT of 16 lower-case hex
// digits, neither all zero: a well-formed header's first four fields, also of a
// later version. Empty for anything else, which counts as no trace.
std::string ReadTraceparent(absl::string_view header);

// TRACE of what ReadTraceparent gave; empty for empty.
absl::string_view TraceId(absl::string_view traceparent);

// Whether the caller records this trace, so that a line in a log serves it.
bool IsSampled(absl::string_view traceparent);

// " (trace TRACE)" to end a log line with; empty for empty.
std::string TraceNote(absl::string_view traceparent);

}  // namespace invar

#endif  // INVAR_COMMON_TRACE_H_
