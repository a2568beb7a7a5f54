// Elementary functions whose bits are ours: sums, products and fused
// multiply-adds in a written order, so that no libm's version can move one.
#ifndef INVAR_KERNELS_CPU_MATH_H_
#define INVAR_KERNELS_CPU_MATH_H_

namespace invar::cpu {

// Double precision, for tables and log-probabilities. Within a few units in
// the last place over the ranges named; plain sums and products only.
double Exp(double x);            // |x| < 700
double Log(double x);            // x positive and normal
double Pow(double x, double y);  // x positive, |y ln x| < 700
void SinCos(double x, double* sine, double* cosine);  // |x| < 2^20

}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_MATH_H_
