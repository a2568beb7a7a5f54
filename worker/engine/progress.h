// How far the engine is, readable from any thread while it works.
#ifndef INVAR_WORKER_ENGINE_PROGRESS_H_
#define INVAR_WORKER_ENGINE_PROGRESS_H_

#include <atomic>
#include <cstdint>

#include "invar/worker/v1/link.pb.h"

namespace invar {

// Written by the engine thread, read by the threads that beat. Also there
// while no model is loaded: all zero.
class Progress {
 public:
  // now_ms: of a steady clock, above 0.
  void StepBegins(int64_t now_ms) { step_began_ms_ = now_ms; }
  void StepEnded(int64_t steps, int64_t kv_blocks_used) {
    steps_ = steps;
    kv_blocks_used_ = kv_blocks_used;
    step_began_ms_ = 0;
  }

  worker::v1::Heartbeat Beat(int64_t now_ms) const {
    worker::v1::Heartbeat beat;
    const int64_t began = step_began_ms_;
    beat.set_steps(steps_);
    beat.set_step_age_ms(began == 0 ? 0 : now_ms - began);
    beat.set_kv_blocks_used(kv_blocks_used_);
    return beat;
  }

 private:
  std::atomic<int64_t> steps_{0};
  std::atomic<int64_t> kv_blocks_used_{0};
  std::atomic<int64_t> step_began_ms_{0};
};

}  // namespace invar

#endif  // INVAR_WORKER_ENGINE_PROGRESS_H_
