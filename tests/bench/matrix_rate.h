// What the matrix units of the device do at most, measured.
#ifndef INVAR_TESTS_BENCH_MATRIX_RATE_H_
#define INVAR_TESTS_BENCH_MATRIX_RATE_H_

#include "kernels/types.h"

namespace invar::bench {

// Floating-point operations a second of warpgroup products (m64n128, two
// warpgroups a multiprocessor) of random operands that stay in shared memory:
// nothing is loaded, stored or promoted. The median of runs of some
// milliseconds, so that the clock is the one under this load. kFp8E4m3, kFp16
// or kBf16.
double MatrixRate(WeightDtype dtype);

}  // namespace invar::bench

#endif  // INVAR_TESTS_BENCH_MATRIX_RATE_H_
