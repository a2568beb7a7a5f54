// The CUDA backend on the machine's first GPU.
#ifndef INVAR_TESTS_CONTRACT_CUDA_BACKEND_H_
#define INVAR_TESTS_CONTRACT_CUDA_BACKEND_H_

#include "tests/contract/backend.h"

namespace invar::contract {

Backend CudaBackend();

}  // namespace invar::contract

#endif  // INVAR_TESTS_CONTRACT_CUDA_BACKEND_H_
