// What cutlass_gemm_bench.cu times, and what cutlass_gemm_kernels.cu has for
// it.
#ifndef INVAR_TESTS_BENCH_CUTLASS_GEMM_H_
#define INVAR_TESTS_BENCH_CUTLASS_GEMM_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace invar::bench {

// out[tokens, rows] = x[tokens, columns] weights[rows, columns]^T, with one of
// as many copies of the weights as are not in L2 together.
struct Product {
  int tokens;
  int rows;
  int columns;
  const void* x;
  std::vector<const void*> weights;
  void* out;
  void* workspace;
  size_t workspace_bytes;
};

struct Variant {
  const char* name;
  bool overlap;
  char first;   // 'm', 'n' or 0: the heuristic's
  int swizzle;  // tiles side by side before the next row of them
};

// Launches the product with a copy of the weights; false if that fails.
using Launch = std::function<bool(int copy, cudaStream_t stream)>;

struct Candidate {
  std::string type;
  std::string output;
  std::string name;
  bool has_variants;
  // Prepares a launch for each copy, or says why there is none.
  std::function<std::string(const Product&, const Variant&, Launch*)> prepare;
};

// Of all objects that are linked.
std::vector<Candidate>& Candidates();

}  // namespace invar::bench

#endif  // INVAR_TESTS_BENCH_CUTLASS_GEMM_H_
