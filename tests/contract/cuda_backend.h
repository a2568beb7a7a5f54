// The CUDA backend on the machine's first GPU.
#ifndef INVAR_TESTS_CONTRACT_CUDA_BACKEND_H_
#define INVAR_TESTS_CONTRACT_CUDA_BACKEND_H_

#include <cstdint>

#include "tests/contract/backend.h"

namespace invar::contract {

// What a pass holds: the longest chunk, and as many decodes as a graph has.
inline constexpr int64_t kCudaStepTokens = 2048 + 256;

Backend CudaBackend();

}  // namespace invar::contract

#endif  // INVAR_TESTS_CONTRACT_CUDA_BACKEND_H_
