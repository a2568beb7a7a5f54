// The contract's matrix on the CUDA backend. Exit code 77: there is no GPU.
#include <cstdio>

#include "kernels/cuda/device.h"
#include "tests/contract/cuda_backend.h"
#include "tests/contract/matrix.h"

int main(int argc, char** argv) {
  const auto device = invar::cuda::UseDevice(0);
  if (!device.ok()) {
    std::printf("skipped: contract_matrix_cuda: %s\n",
                std::string(device.status().message()).c_str());
    return 77;
  }
  std::printf("%s, driver for CUDA %s\n", device->name.c_str(),
              device->driver.c_str());
  return invar::contract::MatrixMain(invar::contract::CudaBackend(), argv[0],
                                     {argv + 1, argv + argc});
}
