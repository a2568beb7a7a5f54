#include "worker/model/cuda/lane.h"

#include <utility>

#include "kernels/cuda/check.h"

namespace invar::cuda {

Lane::Lane() {
  Check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming),
        "making an event");
}

Lane::~Lane() { cudaEventDestroy(event_); }

LaunchOptions Lane::Next() {
  const bool follows = std::exchange(follows_, false);
  return {.stream = stream(), .overlap = !follows};
}

cudaStream_t Lane::NextOfOthers() {
  follows_ = true;
  return stream();
}

void Lane::Follow(Lane& other) {
  if (this == &other) return;
  Check(cudaEventRecord(other.event_, other.stream()), "joining lanes");
  Check(cudaStreamWaitEvent(stream(), other.event_, 0), "joining lanes");
  follows_ = true;
}

}  // namespace invar::cuda
