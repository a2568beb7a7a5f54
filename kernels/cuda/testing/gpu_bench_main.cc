// The GPU's benchmarks, in one binary to be copied to where a GPU is.
//
//   gpu_bench [--bench TEXT]    times the kernels whose name holds TEXT
//   gpu_bench PROGRAM ...       what else has registered itself: see --help
//
// Exit codes: 77 there is no GPU here; 2 arguments that it does not know.
#include <cstdio>
#include <string>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/testing/bench.h"

namespace invar::cuda::testing {
namespace {

void PrintUsage(std::FILE* to) {
  std::fprintf(to, "usage: gpu_bench [--bench TEXT]\n");
  for (const BenchProgram* program : BenchPrograms()) {
    std::fprintf(to, "       gpu_bench %s %s\n", program->name.c_str(),
                 program->usage.c_str());
  }
}

int TimeKernels(const std::string& filter) {
  const auto device = DeviceOrSkip("gpu_bench");
  if (!device.has_value()) return kNoGpu;
  const Stream stream;
  Bench bench(stream.get());
  std::printf("%s, CUDA %s, copy %.0f GB/s\n", device->name.c_str(),
              device->driver.c_str(), bench.bytes_per_second() * 1e-9);
  for (const BenchEntry* entry : BenchEntries()) {
    if (entry->name.find(filter) != std::string::npos) entry->run(bench);
  }
  return 0;
}

int Main(const std::vector<std::string>& arguments) {
  if (arguments.empty()) return TimeKernels("");
  if (arguments.size() == 2 && arguments[0] == "--bench") {
    return TimeKernels(arguments[1]);
  }
  for (const BenchProgram* program : BenchPrograms()) {
    if (program->name == arguments[0]) {
      const int code = program->run({arguments.begin() + 1, arguments.end()});
      if (code == 2) PrintUsage(stderr);
      return code;
    }
  }
  const bool helps = arguments.size() == 1 && arguments[0] == "--help";
  PrintUsage(helps ? stdout : stderr);
  return helps ? 0 : 2;
}

}  // namespace
}  // namespace invar::cuda::testing

int main(int argc, char** argv) {
  return invar::cuda::testing::Main({argv + 1, argv + argc});
}
