#include "worker/model/cuda/lane.h"

#include <utility>

#include "kernels/cuda/check.h"

namespace invar::cuda {

Event::Event() {
  Check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming),
        "making an event");
}

Event::~Event() { cudaEventDestroy(event_); }

void Event::Record(cudaStream_t stream) {
  Check(cudaEventRecord(event_, stream), "recording an event");
}

void Event::Wait() const {
  Check(cudaEventSynchronize(event_), "waiting for a step");
}

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
  other.launched_.Record(other.stream());
  Check(cudaStreamWaitEvent(stream(), other.launched_.get(), 0),
        "joining lanes");
  follows_ = true;
}

}  // namespace invar::cuda
