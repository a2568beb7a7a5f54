// How an evaluation shows that it is getting on.
#ifndef INVAR_CLIENT_CLI_PROGRESS_H_
#define INVAR_CLIENT_CLI_PROGRESS_H_

#include <string>

#include "absl/time/time.h"
#include "client/cli/command.h"
#include "client/evaluation.h"

namespace invar {

// "120/250  score 0.942  6.1 rows/s  0:21 left".
std::string ProgressText(const Evaluation& evaluation);

// A bar that redraws itself on a terminal; elsewhere a line every 25 rows, or
// every 5 seconds if rows are slow.
class Progress {
 public:
  explicit Progress(Terminal& terminal) : terminal_(terminal) {}

  void Show(const Evaluation& evaluation);
  // Tells, once, that an answer waits for a server that is away. A full queue
  // is told by the summary's count of retries.
  void ShowRetry(const grpc::Status& refusal);
  // Ends the bar's line; what is written next begins a line of its own.
  void End();

 private:
  Terminal& terminal_;
  int shown_done_ = 0;
  absl::Duration shown_elapsed_;
  bool bar_drawn_ = false;
  bool retry_shown_ = false;
};

}  // namespace invar

#endif  // INVAR_CLIENT_CLI_PROGRESS_H_
