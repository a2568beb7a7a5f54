#include "tests/contract/planted/unordered_combine.cuh"
//
#include "kernels/cuda/combine.cu"
