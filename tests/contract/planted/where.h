// Where a GPU operation runs, its first parameter, without its type: what is
// planted passes it on.
#ifndef INVAR_TESTS_CONTRACT_PLANTED_WHERE_H_
#define INVAR_TESTS_CONTRACT_PLANTED_WHERE_H_

#include <cuda_runtime_api.h>

#include "kernels/cuda/ops_linear.h"

namespace invar::cuda {

template <typename Function>
struct FirstParameter;
template <typename First, typename... Rest>
struct FirstParameter<void(First, Rest...)> {
  using Type = First;
};

inline cudaStream_t StreamOf(cudaStream_t stream) { return stream; }
inline cudaStream_t StreamOf(const LaunchOptions& options) {
  return options.stream;
}

}  // namespace invar::cuda

#endif  // INVAR_TESTS_CONTRACT_PLANTED_WHERE_H_
