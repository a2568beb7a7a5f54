// What a worker computes on.
#ifndef INVAR_WORKER_DEVICE_H_
#define INVAR_WORKER_DEVICE_H_

#include <string>

#include "absl/status/statusor.h"
#include "worker/replica.h"

namespace invar {

// How a model is loaded onto `device`, "cpu" or "cuda:N". FAILED_PRECONDITION
// says in one line what the machine or this build lacks.
absl::StatusOr<Replica::ModelLoader> LoaderFor(const std::string& device);

}  // namespace invar

#endif  // INVAR_WORKER_DEVICE_H_
