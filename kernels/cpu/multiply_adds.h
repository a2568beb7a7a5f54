// How fast a thread makes multiply-adds out of registers, when nothing else
// holds it up.
#ifndef INVAR_KERNELS_CPU_MULTIPLY_ADDS_H_
#define INVAR_KERNELS_CPU_MULTIPLY_ADDS_H_

#include <cstdint>

namespace invar::cpu {

// A loop of one kind of multiply-adds. Only for a processor that has them.
struct MultiplyAdds {
  // Runs `rounds` rounds, and returns what keeps them from being left out.
  float (*run)(int64_t rounds);
  int64_t a_round;  // multiply-adds
};

extern const MultiplyAdds kFp32MultiplyAdds256;
extern const MultiplyAdds kFp32MultiplyAdds512;
// Of pairs of bf16: AVX512_BF16.
extern const MultiplyAdds kPairMultiplyAdds512;

// Multiply-adds a millisecond by this thread, measured once.
double RateOf(const MultiplyAdds& loop, int64_t rounds);

}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_MULTIPLY_ADDS_H_
