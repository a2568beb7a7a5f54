// The contract's matrix on the CPU backend.
#include "tests/contract/cpu_backend.h"
#include "tests/contract/matrix.h"

int main(int argc, char** argv) {
  return invar::contract::MatrixMain(invar::contract::CpuBackend(), argv[0],
                                     {argv + 1, argv + argc});
}
