// Queues of a step: what does not depend on each other runs side by side.
#ifndef INVAR_WORKER_MODEL_CUDA_LANE_H_
#define INVAR_WORKER_MODEL_CUDA_LANE_H_

#include <cuda_runtime_api.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/ops_linear.h"

namespace invar::cuda {

// A point of a stream's work.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  cudaEvent_t get() const { return event_; }
  // The end of what has been enqueued there.
  void Record(cudaStream_t stream);
  // Until the work before it is done; aborts if some of it failed.
  void Wait() const;

 private:
  cudaEvent_t event_ = nullptr;
};

// Launches in order. Lanes may be captured together: those that followed the
// captured one, and that it follows again before the capture ends.
class Lane {
 public:
  cudaStream_t stream() const { return stream_.get(); }
  void Synchronize() const { stream_.Synchronize(); }

  // For one launch. It overlaps the launch before it, unless it follows another
  // lane: dependent launch knows of one kernel ahead only.
  LaunchOptions Next();
  // For launches of a library's: nothing overlaps them.
  cudaStream_t NextOfOthers();
  // What is launched here from now on waits for what `other` has launched.
  void Follow(Lane& other);

 private:
  Stream stream_;
  Event launched_;
  bool follows_ = false;
};

}  // namespace invar::cuda

#endif  // INVAR_WORKER_MODEL_CUDA_LANE_H_
