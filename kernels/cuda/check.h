// What is done about an error of the CUDA runtime.
//
// At load (no GPU, no memory) it is a value, ToStatus. In a running step it
// means that the device or the program is broken: Check ends the process, since
// nothing that such a device says may reach an answer.
#ifndef INVAR_KERNELS_CUDA_CHECK_H_
#define INVAR_KERNELS_CUDA_CHECK_H_

#include <cuda_runtime_api.h>

namespace invar::cuda {

// Aborts with one line that names `what` and the error.
void Check(cudaError_t error, const char* what);

// After a launch: Check for the error that the launch itself left behind.
void CheckLaunch(const char* kernel);

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_CHECK_H_
