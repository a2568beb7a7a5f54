// The contract's matrix at DeepSeek-V2-Lite's full shape on a GPU:
//
//   build/bin/full_shape_checkpoint FOLDER/fp8 fp8
//   build/bin/contract_matrix_full_shape FOLDER --full --sample 5
//
// with --match kv=e5m2/weights=fp8, say, since a process has memory for one
// setting.
//
// Exit code 77: there is no GPU.
#include <cstdio>
#include <string>
#include <vector>

#include "kernels/cuda/device.h"
#include "tests/contract/full_shape_backend.h"
#include "tests/contract/matrix.h"

int main(int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') {
    std::fprintf(stderr,
                 "usage: contract_matrix_full_shape FOLDER [FLAGS of "
                 "contract_matrix]\n");
    return 2;
  }
  const auto device = invar::cuda::UseDevice(0);
  if (!device.ok()) {
    std::printf("skipped: contract_matrix_full_shape: %s\n",
                std::string(device.status().message()).c_str());
    return 77;
  }
  std::printf("%s, driver for CUDA %s\n", device->name.c_str(),
              device->driver.c_str());
  // One thread, for there is one model.
  std::vector<std::string> arguments = {"--jobs", "1"};
  arguments.insert(arguments.end(), argv + 2, argv + argc);
  return invar::contract::MatrixMain(invar::contract::FullShapeBackend(argv[1]),
                                     std::string(argv[0]) + " " + argv[1],
                                     arguments);
}
