#include "tests/contract/planted/unordered_combine.cuh"
//
#include "kernels/cuda/rms_norm.cu"
