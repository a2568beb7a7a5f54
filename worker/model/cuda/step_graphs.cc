#include "worker/model/cuda/step_graphs.h"

#include "kernels/cuda/check.h"

namespace invar::cuda {

void StepGraphs::Make(const GraphKey& key, cudaStream_t stream,
                      std::span<const std::function<void()>> parts) {
  std::vector<cudaGraphExec_t>& graphs = graphs_[key];
  if (!graphs.empty()) return;
  for (const std::function<void()>& enqueue : parts) {
    // Thread-local: another worker of this process may allocate meanwhile.
    Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
          "capturing a step");
    enqueue();
    cudaGraph_t captured = nullptr;
    Check(cudaStreamEndCapture(stream, &captured), "capturing a step");
    Check(cudaGraphInstantiate(&graphs.emplace_back(), captured, 0),
          "making a step's graph");
    Check(cudaGraphDestroy(captured), "making a step's graph");
  }
}

void StepGraphs::Launch(const GraphKey& key, cudaStream_t stream) const {
  for (cudaGraphExec_t graph : graphs_.at(key)) {
    Check(cudaGraphLaunch(graph, stream), "launching a step");
  }
}

void StepGraphs::Clear() {
  for (const auto& [key, graphs] : graphs_) {
    for (cudaGraphExec_t graph : graphs) cudaGraphExecDestroy(graph);
  }
  graphs_.clear();
}

}  // namespace invar::cuda
