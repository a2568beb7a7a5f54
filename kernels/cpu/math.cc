#include "kernels/cpu/math.h"

#include <cstdint>
#include <cstring>

namespace invar::cpu {
namespace {

constexpr double kLn2 = 0x1.62e42fefa39efp-1;

// Parts of ln 2 and pi/2 with enough trailing zeros for their products with
// an exponent or a quadrant number to be exact.
constexpr double kLn2High = 0x1.62e42fep-1;
constexpr double kLn2Low = 0x1.f473de6af278fp-30;
constexpr double kHalfPiHigh = 0x1.921fb544p+0;
constexpr double kHalfPiMiddle = 0x1.0b4611a6p-34;
constexpr double kHalfPiLow = 0x1.3198a2e037073p-69;

// Nearest integer, ties to even, for |x| < 2^51.
double Nearest(double x) {
  constexpr double kShift = 0x1.8p+52;
  volatile double shifted = x + kShift;  // no optimiser may cancel the shift
  return shifted - kShift;
}

double FromBits(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint64_t ToBits(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// sin and cos by Taylor's series, |x| <= pi/4.
double SinKernel(double x) {
  const double z = x * x;
  double sum = 0.0;
  for (int n = 19; n >= 3; n -= 2) {
    sum = (1.0 + sum) * (-z / (n * (n - 1)));
  }
  return x + x * sum;
}

double CosKernel(double x) {
  const double z = x * x;
  double sum = 0.0;
  for (int n = 20; n >= 4; n -= 2) {
    sum = (1.0 + sum) * (-z / (n * (n - 1)));
  }
  return 1.0 - 0.5 * z * (1.0 + sum);
}

}  // namespace

// e^x = 2^n e^r with |r| <= ln(2)/2; e^r by Taylor's series.
double Exp(double x) {
  const double n = Nearest(x / kLn2);
  const double r = (x - n * kLn2High) - n * kLn2Low;
  double sum = 1.0;
  for (int k = 14; k >= 1; --k) sum = 1.0 + sum * (r / k);
  return sum *
         FromBits(static_cast<uint64_t>(1023 + static_cast<int64_t>(n)) << 52);
}

// ln(2^e m) = e ln 2 + 2 artanh((m - 1) / (m + 1)), m in [sqrt(1/2), sqrt(2)).
double Log(double x) {
  const uint64_t bits = ToBits(x);
  int64_t exponent = static_cast<int64_t>(bits >> 52) - 1023;
  double m = FromBits((bits & 0xfffffffffffff) | (uint64_t{1023} << 52));
  if (m > 0x1.6a09e667f3bcdp+0) {
    m *= 0.5;
    ++exponent;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;
  double sum = 0.0;
  for (int k = 23; k >= 3; k -= 2) sum = (1.0 / k + sum) * z;
  const double e = static_cast<double>(exponent);
  return e * kLn2High + (e * kLn2Low + 2.0 * (s + s * sum));
}

double Pow(double x, double y) { return Exp(y * Log(x)); }

void SinCos(double x, double* sine, double* cosine) {
  const double n = Nearest(x / (kHalfPiHigh + kHalfPiMiddle));
  const double r = ((x - n * kHalfPiHigh) - n * kHalfPiMiddle) - n * kHalfPiLow;
  const double s = SinKernel(r);
  const double c = CosKernel(r);
  switch (static_cast<int64_t>(n) & 3) {
    case 0:
      *sine = s;
      *cosine = c;
      return;
    case 1:
      *sine = c;
      *cosine = -s;
      return;
    case 2:
      *sine = -s;
      *cosine = -c;
      return;
    default:
      *sine = -c;
      *cosine = s;
  }
}

}  // namespace invar::cpu
