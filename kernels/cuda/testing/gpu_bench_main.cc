// gpu_bench [--bench TEXT]: times the kernels whose name holds TEXT.
#include <cstdio>
#include <cstring>

#include "kernels/cuda/device.h"
#include "kernels/cuda/testing/bench.h"

int main(int argc, char** argv) {
  using namespace invar::cuda;  // NOLINT: a main of one screen
  std::string filter;
  if (argc == 3 && std::strcmp(argv[1], "--bench") == 0) {
    filter = argv[2];
  } else if (argc != 1) {
    std::fprintf(stderr, "usage: gpu_bench [--bench TEXT]\n");
    return 2;
  }
  const auto device = UseDevice(0);
  if (!device.ok()) {
    std::fprintf(stderr, "gpu_bench: %s\n",
                 std::string(device.status().message()).c_str());
    return 1;
  }
  const Stream stream;
  testing::Bench bench(stream.get());
  std::printf("%s, CUDA %s, copy %.0f GB/s\n", device->name.c_str(),
              device->driver.c_str(), bench.bytes_per_second() * 1e-9);
  for (const testing::BenchEntry* entry : testing::BenchEntries()) {
    if (entry->name.find(filter) != std::string::npos) entry->run(bench);
  }
  return 0;
}
