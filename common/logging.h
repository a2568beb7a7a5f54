// One log line a thing that happened, on stderr, through spdlog.
#ifndef INVAR_COMMON_LOGGING_H_
#define INVAR_COMMON_LOGGING_H_

#include <string>

#include "absl/strings/string_view.h"

namespace invar {

// Makes spdlog's default logger write "TIME LEVEL PROCESS: text" to stderr at
// `level` (trace, debug, info, warning, error). Returns false if there is no
// such level. Call once, first thing in main.
bool InitLogging(const std::string& process, absl::string_view level);

}  // namespace invar

#endif  // INVAR_COMMON_LOGGING_H_
