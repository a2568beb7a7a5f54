// silu(g) = g / (1 + exp(-g)), of the dense and of the routed MLPs.
#ifndef INVAR_KERNELS_CPU_SILU_H_
#define INVAR_KERNELS_CPU_SILU_H_

#include "kernels/cpu/exp.h"
#include "kernels/cpu/lanes.h"

namespace invar::cpu {

inline Lanes Silu(Lanes gate) {
  return Divide(gate, Add(Broadcast(1.0f), Exp(Subtract(Zero(), gate))));
}

}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_SILU_H_
