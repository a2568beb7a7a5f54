// Steps of a few sizes as CUDA graphs: one launch instead of hundreds.
#ifndef INVAR_WORKER_MODEL_CUDA_STEP_GRAPHS_H_
#define INVAR_WORKER_MODEL_CUDA_STEP_GRAPHS_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "worker/model/checkpoint/gpu_steps.h"

namespace invar::cuda {

// What a graph's launches depend on; everything else is read from memory that
// stays where it is.
struct GraphKey {
  GraphSize size;
  int64_t limit = 0;  // of ids
  const std::byte* cache = nullptr;
  int64_t cache_blocks = 0;  // where its layers begin follows from it
  friend auto operator<=>(const GraphKey&, const GraphKey&) = default;
};

class StepGraphs {
 public:
  StepGraphs() = default;
  ~StepGraphs() { Clear(); }
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  // Makes the graphs of `key`, unless there are, of what each of `parts` puts
  // on `stream`; nothing is launched.
  void Make(const GraphKey& key, cudaStream_t stream,
            std::span<const std::function<void()>> parts);
  // Launches them on `stream`, one after the other: the device works on the
  // first part while the host launches the next one, which takes a moment.
  void Launch(const GraphKey& key, cudaStream_t stream) const;
  void Clear();
  int64_t size() const { return static_cast<int64_t>(graphs_.size()); }

 private:
  std::map<GraphKey, std::vector<cudaGraphExec_t>> graphs_;
};

}  // namespace invar::cuda

#endif  // INVAR_WORKER_MODEL_CUDA_STEP_GRAPHS_H_
