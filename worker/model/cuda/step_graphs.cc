#include "worker/model/cuda/step_graphs.h"

#include <chrono>
#include <cstdio>
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
                        const std::function<void()>& enqueue) {
  cudaGraphExec_t& graph = graphs_[key];
  if (graph == nullptr) {
    // Thread-local: another worker of this process may allocate meanwhile.
    Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
          "capturing a step");
    enqueue();
    cudaGraph_t captured = nullptr;
    Check(cudaStreamEndCapture(stream, &captured), "capturing a step");
    Check(cudaGraphInstantiate(&graph, captured, 0), "making a step's graph");
    Check(cudaGraphDestroy(captured), "making a step's graph");
  }
  const auto t0 = std::chrono::steady_clock::now();
  Check(cudaGraphLaunch(graph, stream), "launching a step");
  static int n = 0;
  if (++n % 16 == 0) {
    std::fprintf(stderr, "graph launch %.1f us\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - t0).count() * 1e6);
  }
}

void StepGraphs::Clear() {
  for (const auto& [key, graph] : graphs_) cudaGraphExecDestroy(graph);
  graphs_.clear();
}

}  // namespace invar::cuda
