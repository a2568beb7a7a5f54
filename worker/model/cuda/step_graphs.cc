#include "worker/model/cuda/step_graphs.h"

#include "kernels/cuda/check.h"

namespace invar::cuda {

int64_t PaddedTokens(int64_t tokens) {
  if (tokens > kGraphTokens) return tokens;
  int64_t padded = 1;
  while (padded < tokens && padded < 8) padded *= 2;
  // Never more than an eighth for nothing, from 64 on.
  const int64_t step = tokens <= 64 ? 8 : tokens <= 128 ? 16 : 32;
  return tokens <= 8 ? padded : (tokens + step - 1) / step * step;
}

void StepGraphs::Launch(const GraphKey& key, cudaStream_t stream,
                        std::span<const std::function<void()>> parts) {
  std::vector<cudaGraphExec_t>& graphs = graphs_[key];
  if (graphs.empty()) {
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
  for (cudaGraphExec_t graph : graphs) {
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
