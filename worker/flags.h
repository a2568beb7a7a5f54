// The command line of invar-worker.
#ifndef INVAR_WORKER_FLAGS_H_
#define INVAR_WORKER_FLAGS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace invar {

struct WorkerFlags {
  bool help = false;
  bool version = false;
  std::vector<std::string> schedulers;     // HOST:PORT, at least one
  std::string device = "cpu";              // "cpu" or "cuda:N"
  std::string worker_id;                   // resolved, never empty
  std::string metrics = "127.0.0.1:9471";  // empty: off
  std::string health;                      // HOST:PORT; empty: off
  int threads = 0;
  std::string log_level = "info";
};

// Arguments without the program's name, as --name VALUE or --name=VALUE.
// INVALID_ARGUMENT says in one line what is wrong and what to do.
absl::StatusOr<WorkerFlags> ParseWorkerFlags(
    const std::vector<std::string>& arguments);

std::string WorkerHelp();

}  // namespace invar

#endif  // INVAR_WORKER_FLAGS_H_
