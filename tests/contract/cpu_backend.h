// The CPU backend: 1 and 2 threads, AVX2 and AVX-512.
#ifndef INVAR_TESTS_CONTRACT_CPU_BACKEND_H_
#define INVAR_TESTS_CONTRACT_CPU_BACKEND_H_

#include "tests/contract/backend.h"

namespace invar::contract {

Backend CpuBackend();

}  // namespace invar::contract

#endif  // INVAR_TESTS_CONTRACT_CPU_BACKEND_H_
