// The name of the kernels' machine code, for the fingerprint.
#ifndef INVAR_KERNELS_CUDA_KERNEL_DIGEST_H_
#define INVAR_KERNELS_CUDA_KERNEL_DIGEST_H_

namespace invar::cuda {

// SHA-256 (hex) over the machine code of every kernel, made by
// kernel_digest.py while building: another compiler's code is another
// fingerprint; a folder, a name or a time is not.
const char* KernelDigest();

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_KERNEL_DIGEST_H_
