// The scheduler process, put together: what main and the tests start.
#ifndef INVAR_SCHEDULER_SCHEDULER_H_
#define INVAR_SCHEDULER_SCHEDULER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "invar/v1/config.pb.h"

namespace invar::scheduler {

class Scheduler {
 public:
  // Reads the tokenizer and listens. Errors say what to change: NOT_FOUND,
  // INVALID_ARGUMENT or UNIMPLEMENTED (tokenizer), UNAVAILABLE (an address).
  // An empty listen.metrics serves none.
  static absl::StatusOr<std::unique_ptr<Scheduler>> Start(
      v1::ServerConfig config);

  // Stops: streams in flight get two seconds to end, then are cut.
  virtual ~Scheduler() = default;

  // The addresses listened on, ports resolved.
  virtual const v1::Listen& addresses() const = 0;
};

}  // namespace invar::scheduler

#endif  // INVAR_SCHEDULER_SCHEDULER_H_
