// Without CUDA, for whoever only asks what the GPU takes: support.h.
#ifndef INVAR_KERNELS_CUDA_WIDTHS_H_
#define INVAR_KERNELS_CUDA_WIDTHS_H_

namespace invar::cuda {

// The family's widths, which the attention's tiles are cut for. The loader
// refuses others.
inline constexpr int kLatent = 512;  // L
inline constexpr int kRope = 64;     // R
inline constexpr int kRow = kLatent + kRope;
inline constexpr int kNope = 128;   // N
inline constexpr int kValue = 128;  // V

}  // namespace invar::cuda

#endif  // INVAR_KERNELS_CUDA_WIDTHS_H_
